"""Comparison of arms over the rows of the paper's tables, or over rows of ours in the same form.

Welch's t from summary figures, corrected by Holm over the rows of one contrast within one table;
equivalence within a margin (two one-sided tests); counts of rows by sign with the exact sign test.
Single runs enter only the counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from regrow.report.statistics import (
    ROUNDING,
    Comparison,
    Equivalence,
    Pooled,
    Sample,
    equivalence,
    holm,
    pooled,
    sign_test,
    welch,
)
from regrow.report.validity import Reason, excluded
from regrow.report.words import p_value, signed
from regrow.reproduce.known import has_known, reasons_against
from regrow.reproduce.paper import UNPRUNED, Paper
from regrow.reproduce.printed import once, records, sample

ALPHA = 0.05
MARGIN = 0.3  # points; about two typical standard deviations of the CIFAR cells
NETWORK = ("table", "part", "dataset", "model")
LABELS = ("table", "part", "dataset", "model", "target", "arm")
Numbers = dict[str, Any]
LeftOut = dict[str, tuple[Reason, ...]]  # rows that allow no conclusion, by name


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two groups of rows to compare: ``first`` minus ``second`` in the column ``by``.

    ``second`` may list several arms; a row has one of them. ``where`` selects rows by the values of
    columns.
    """

    first: str
    second: tuple[str, ...]
    tables: tuple[int, ...]
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by: str = "arm"

    @property
    def name(self) -> str:
        """The difference in words: ``scratch-b - fine-tuned, Table 4, CIFAR-10``."""
        lead = "" if self.by == "arm" else f"{self.by} "
        minus = f"{lead}{self.first} - {lead}{' or '.join(self.second)}"
        tables = f"Table{'s' * (len(self.tables) > 1)} {', '.join(map(str, self.tables))}"
        selections = [
            f"{'part ' * (name == 'part')}{' and '.join(values)}"
            for name, values in self.where.items()
        ]
        return ", ".join([minus, tables, *selections])

    @property
    def absent(self) -> str:
        """The reason when there is nothing to compare."""
        return "not run"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One row of a contrast; ``p`` is corrected by Holm within its table."""

    row: Mapping[str, Any]
    comparison: Comparison
    equivalence: Equivalence
    larger: float | None
    total: float | None
    p: float | None = None

    @property
    def where(self) -> str:
        """The row's data set, model and target, for display."""
        parts = (self.row["dataset"], self.row["model"], self.row["target"])
        return " ".join(part for part in parts if part)

    @property
    def named(self) -> str:
        """The row with its difference, for display."""
        return f"{self.where} {signed(self.comparison.difference)}"

    def significant(self, *, corrected: bool) -> bool:
        """Return whether the difference is significant, before or after Holm's correction."""
        p = self.p if corrected else self.comparison.p
        return p is not None and p < ALPHA


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The rows of a contrast together; differences in points.

    ``beyond`` counts points of a curve that have no counterpart on the other.
    """

    pairs: tuple[Pair, ...]
    margin: float
    sign: int = 1
    beyond: int = 0

    @property
    def differences(self) -> list[float]:
        """Row differences in the direction that the claim asks for."""
        return [self.sign * pair.comparison.difference for pair in self.pairs]

    @property
    def num(self) -> int:
        """Count the rows."""
        return len(self.pairs)

    @property
    def mean(self) -> float:
        """Average the row differences, each row counting alike."""
        return sum(self.differences) / self.num

    @property
    def tested(self) -> int:
        """Count the rows that have a spread in both arms."""
        return sum(pair.comparison.p is not None for pair in self.pairs)

    @property
    def pooled(self) -> Pooled | None:
        """Average the tested rows by random effects."""
        compared = [replace(p.comparison, difference=d) for p, d in self.directed()]
        return pooled(compared)

    def directed(self) -> list[tuple[Pair, float]]:
        """Return each row with its difference in the direction that the claim asks for."""
        return list(zip(self.pairs, self.differences, strict=True))

    def above(self, points: float) -> int:
        """Count the rows whose difference exceeds ``points``."""
        return sum(d > points + ROUNDING for d in self.differences)

    def significant(self, sign: int, *, corrected: bool) -> int:
        """Count the rows significantly up (1) or down (-1)."""
        return sum(p.significant(corrected=corrected) and sign * d > 0 for p, d in self.directed())

    def no_worse(self) -> int:
        """Count the tested rows shown to lie above -margin (one-sided test)."""
        bounds = [
            e.low if self.sign > 0 else -e.high
            for e in (pair.equivalence for pair in self.pairs)
            if e.low is not None and e.high is not None
        ]
        return sum(low > -self.margin for low in bounds)

    def equivalent(self) -> int:
        """Count the tested rows shown to lie within the margin (TOST)."""
        return sum((p.equivalence.p or 0.0) < ALPHA for p in self.pairs if p.equivalence.p)

    def within(self, *, total: bool) -> int:
        """Count the rows whose difference is at most the larger of both stds, or their sum."""
        spreads = [pair.total if total else pair.larger for pair in self.pairs]
        return sum(
            spread is not None and abs(d) <= spread + ROUNDING
            for spread, d in zip(spreads, self.differences, strict=True)
        )

    def numbers(self) -> Numbers:
        """Return every count and average, unflipped, for JSON."""
        plain = replace(self, sign=1)
        signs = sign_test(plain.differences)
        numbers: Numbers = {"rows": self.num, "up": signs.up, "down": signs.down}
        numbers |= {"ties": signs.ties, "sign_p": signs.p, "mean": plain.mean}
        numbers |= {"smallest": min(plain.differences), "largest": max(plain.differences)}
        numbers["tested"] = self.tested
        for name, corrected in (("", False), ("_holm", True)):
            for word, sign in (("up", 1), ("down", -1)):
                numbers[f"significant_{word}{name}"] = plain.significant(sign, corrected=corrected)
        numbers["equivalent"] = self.equivalent()
        numbers["within_larger_std"] = plain.within(total=False)
        numbers["within_both_stds"] = plain.within(total=True)
        if average := plain.pooled:
            numbers["pooled"] = {"mean": average.mean, "low": average.low, "high": average.high}
            numbers["pooled"] |= {"p": average.p, "rows": average.num, "tau": average.tau}
        numbers["significantly_down_in"] = [
            p.where for p, d in plain.directed() if d < 0 and p.significant(corrected=False)
        ]
        numbers["holm_p"] = [pair.p for pair in self.pairs]
        return numbers

    def sentence(self) -> str:
        """Return the counts, means and p-values in words."""
        plain = replace(self, sign=1)
        signs = sign_test(plain.differences)
        text = f"{signs.up} of {self.num} rows up, {signs.down} down (sign test {p_value(signs.p)})"
        text += f", mean {signed(plain.mean)}; "
        text += f"{self.beyond} points lie beyond the other curve; " if self.beyond else ""
        if not self.tested:
            return text + "single runs: nothing else can be tested"
        up, down = (plain.significant(sign, corrected=False) for sign in (1, -1))
        holm_up, holm_down = (plain.significant(sign, corrected=True) for sign in (1, -1))
        text += (
            f"of {self.tested} tested {up} significantly up and {down} down (after Holm {holm_up} "
            f"and {holm_down}), {self.equivalent()} equivalent within {self.margin:g}"
        )
        if average := plain.pooled:
            text += f"; random-effects mean {signed(average.mean)} "
            text += f"({signed(average.low)} to {signed(average.high)})"
        return text


def pairs(
    paper: Paper, frame: pd.DataFrame, contrast: Contrast, *, margin: float
) -> tuple[Pair, ...]:
    """Pair the rows of a contrast that allow a conclusion, and compare each.

    A network's unpruned cell serves all its rows. Cells that repeat a cell of another of the
    contrast's tables are counted once.
    """
    return parted(paper, frame, contrast, margin=margin)[0]


def parted(
    paper: Paper, frame: pd.DataFrame, contrast: Contrast, *, margin: float
) -> tuple[tuple[Pair, ...], LeftOut]:
    """Return the ``pairs`` of a contrast, and those left out of it with the reasons."""
    frame = frame[frame["table"].isin(contrast.tables)]
    rows = {tuple(row[name] for name in LABELS): row for row in records(frame)}
    judgeable = has_known(frame)
    pairs, left_out = [], {}
    for row in records(once(paper, frame)):
        if row[contrast.by] != contrast.first or any(
            row[name] not in values for name, values in contrast.where.items()
        ):
            continue
        for label in contrast.second:
            partner_labels = {**row, contrast.by: label} | (
                {"target": ""} if label == UNPRUNED else {}
            )
            partner = rows.get(tuple(partner_labels[name] for name in LABELS))
            if partner is None:
                continue
            pair = compared(row, sample(row), sample(partner), margin=margin)
            reasons = _reasons(row, partner, rows.values(), margin=margin) if judgeable else ()
            if excluded(reasons):
                left_out[f"Table {row['table']}, {pair.where}"] = reasons
            else:
                pairs.append(pair)
    return corrected(pairs), left_out


def _reasons(
    row: Mapping[str, Any],
    partner: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    *,
    margin: float,
) -> tuple[Reason, ...]:
    """Return why two rows allow no conclusion, from all that is known of their network."""
    network = [
        candidate for candidate in rows if all(candidate[name] == row[name] for name in NETWORK)
    ]
    plain = [candidate for candidate in network if candidate["arm"] == UNPRUNED]
    pruned = [candidate for candidate in network if candidate["target"] == row["target"] != ""]
    return reasons_against(row, partner, margin=margin, plain=next(iter(plain), None), cut=pruned)


def compared(row: Mapping[str, Any], first: Sample, second: Sample, *, margin: float) -> Pair:
    """Compare the two cells of a row; ``row`` has its table, dataset, model and target."""
    comparison = welch(first, second)
    stds = None if first.std is None or second.std is None else (first.std, second.std)
    return Pair(
        row=row,
        comparison=comparison,
        equivalence=equivalence(comparison, margin=margin, alpha=ALPHA),
        larger=max(stds) if stds else None,
        total=sum(stds) if stds else None,
    )


def corrected(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Give each pair its p-value corrected by Holm within its table (or figure)."""
    tables: dict[int, list[int]] = {}
    for i, pair in enumerate(pairs):
        tables.setdefault(pair.row["table"], []).append(i)
    all_pairs = list(pairs)
    for places in tables.values():
        ps = holm([pairs[i].comparison.p for i in places])
        for i, p in zip(places, ps, strict=True):
            all_pairs[i] = replace(pairs[i], p=p)
    return tuple(all_pairs)
