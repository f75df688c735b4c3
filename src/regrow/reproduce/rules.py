"""Rules that judge the parts of a claim.

Outcomes are strict. ``holds``: the test that the claim needs shows it. ``does not hold``: the rows
contradict it; for a claim about every row, one clear counterexample is enough. ``partly``: neither,
and the numbers say why. "Not significant" never counts as equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from regrow.report.statistics import ROUNDING
from regrow.reproduce.contrasts import MARGIN, Contrast, LeftOut, Pair, Tally, parted
from regrow.reproduce.curves import CurveContrast, curve_pairs
from regrow.reproduce.known import has_known, usable, worded
from regrow.reproduce.paper import Paper

Outcome = Literal["holds", "partly", "does not hold", "no conclusion", "not testable here"]
INCONCLUSIVE: Outcome = "no conclusion"
UNTESTABLE: Outcome = "not testable here"
OUTCOMES: tuple[Outcome, ...] = ("holds", "partly", "does not hold", INCONCLUSIVE, UNTESTABLE)
Measured = Literal["widths", "sparsity", "curves", "weights"]
# The columns that identify a row of each, and whether its mean is an accuracy.
ROWS: Mapping[Measured, tuple[tuple[str, ...], bool]] = {
    "widths": (("layer", "quantity"), False),
    "sparsity": (("table", "ratio", "stage", "kernel_row", "kernel_col"), False),
    "curves": (("figure", "panel", "series", "ratio"), True),
    "weights": (("panel", "column"), True),
}


@dataclass(frozen=True, kw_only=True)
class ClaimEvidence:
    """The evidence that a claim is judged on: accuracies, and other measurements.

    ``widths`` and ``sparsity`` (shares kept) are cells of tables; ``curves`` are the points of
    figures and ``weights`` the bins of histograms, as ``read_cells`` returns them. Rows that allow
    no conclusion are always left out, and added with the reasons to ``left_out``.
    """

    paper: Paper
    results: pd.DataFrame
    widths: pd.DataFrame | None = None
    sparsity: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    weights: pd.DataFrame | None = None
    margin: float = MARGIN
    left_out: LeftOut = field(default_factory=dict, compare=False)

    @property
    def known(self) -> bool:
        """True if the rows have the facts about their networks that conclusions need."""
        frames = [getattr(self, name) for name in ("results", *ROWS)]
        return all(has_known(frame) for frame in frames if frame is not None and len(frame))

    def fresh(self) -> "ClaimEvidence":
        """Return the same evidence, with nothing left out yet."""
        return replace(self, left_out={})

    def measured(self, name: Measured, *, where: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return the rows of one kind that have these values and allow a conclusion."""
        frame: pd.DataFrame | None = getattr(self, name)
        if frame is None:
            return pd.DataFrame()
        for column, value in (where or {}).items():
            frame = frame[frame[column] == value]
        named, accuracies = ROWS[name]
        rows, left_out = usable(frame, margin=self.margin, named=named, accuracies=accuracies)
        self.left_out.update(left_out)
        return rows

    def tally(self, contrast: Contrast | CurveContrast, *, sign: int = 1) -> Tally:
        """Compare every row that has both sides; p-values corrected within each table."""
        if isinstance(contrast, CurveContrast):
            points = self.measured("curves", where={"figure": contrast.figure})
            pairs, num_beyond = curve_pairs(points, contrast, margin=self.margin)
            return Tally(pairs=pairs, margin=self.margin, sign=sign, beyond=num_beyond)
        pairs, left_out = parted(self.paper, self.results, contrast, margin=self.margin)
        self.left_out.update(left_out)
        return Tally(pairs=pairs, margin=self.margin, sign=sign)


STRAIGHT = {"up": "up", "down": "down", "above": "above", "worse": "worse", "minus": ""}
TURNED = {"up": "down", "down": "up", "above": "below", "worse": "better", "minus": "-"}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition that a claim puts on a tally, in words and as a judgement.

    The words have directions in braces: {up}, {down}, {above} and {worse} are reversed when a
    contrast is judged by its negative, and {minus} is then a minus sign. A rule about every row has
    a ``minimum``, the points that each row has to exceed.
    """

    asks: str
    judge: Callable[[Tally], Outcome]
    minimum: float | None = None

    def words(self, *, against: bool) -> str:
        """Return the condition in words, in the direction in which the contrast is shown."""
        return self.asks.format_map(TURNED if against else STRAIGHT)

    def counterexamples(self, tally: Tally) -> list[Pair]:
        """Return the rows that each refute a rule about every row.

        They are significantly down (after Holm) or, where nothing can be tested, short of the
        minimum by the margin or more.
        """
        if self.minimum is None:
            return []
        short = self.minimum - tally.margin
        return [
            pair
            for pair, difference in tally.directed()
            if (pair.significant(corrected=True) and difference < 0)
            or (pair.comparison.p is None and difference < short + ROUNDING)
        ]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One part of a claim in numbers and words, and how it was ``judged``: (rule, outcome) pairs.

    A part without rules is shown, not judged. ``rows`` counts its rows, ``n`` their seeds;
    ``against`` names rows that each refute it, ``left_out`` rows that allow no conclusion.
    """

    name: str
    text: str
    judged: tuple[tuple[str, Outcome], ...] = ()
    rows: int = 0
    n: tuple[int, ...] = ()
    against: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable statement, and the parts that must hold for it.

    ``tests`` names the tests that judge it: W (Welch), E (equivalence), S (signs), P (patterns); it
    is empty if neither printed numbers nor those of ``reproduce`` bear on it. ``section`` is the
    part of the paper that it belongs to.
    """

    number: int
    text: str
    asks: tuple[Callable[[ClaimEvidence], Judgement], ...]
    tables: tuple[int, ...] = ()
    tests: str = ""
    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A contrast and the rules it is judged by; ``against=True`` judges its negative."""

    contrast: Contrast | CurveContrast
    rules: tuple[Rule, ...] = ()
    against: bool = False

    def __call__(self, evidence: ClaimEvidence) -> Judgement:
        """Judge this part of a claim on the evidence."""
        tally = evidence.tally(self.contrast, sign=-1 if self.against else 1)
        if not tally.pairs:
            return untestable(
                self.contrast.name, reason=self.contrast.absent, optional=not self.rules
            )
        refuting = {rule: rule.counterexamples(tally) for rule in self.rules}
        against = {pair.named: None for pairs in refuting.values() for pair in pairs}
        return Judgement(
            name=self.contrast.name,
            text=tally.sentence(),
            judged=tuple(
                (rule.words(against=self.against), "does not hold" if pairs else rule.judge(tally))
                for rule, pairs in refuting.items()
            ),
            against=tuple(against),
            rows=tally.num,
            n=tuple(sorted({pair.comparison.n for pair in tally.pairs})),
            numbers=tally.numbers(),
        )


def untestable(name: str, *, reason: str = "not run", optional: bool = False) -> Judgement:
    """Return a part that the evidence cannot decide; an ``optional`` one is not counted."""
    return Judgement(name=name, text=reason, judged=() if optional else (("", UNTESTABLE),))


def judge_part(ask: Callable[[ClaimEvidence], Judgement], evidence: ClaimEvidence) -> Judgement:
    """Judge one part of a claim, noting rows left out; if all are, there is no conclusion."""
    fresh = evidence.fresh()
    part = ask(fresh)
    if not fresh.left_out:
        return part
    num, reasons = len(fresh.left_out), worded(fresh.left_out)
    if part.rows:
        some = "1 row is" if num == 1 else f"{num} rows are"
        text = f"{part.text}; {some} left out: {reasons}"
        return replace(part, text=text, left_out=fresh.left_out)
    judged = tuple((asks, INCONCLUSIVE) for asks, _ in part.judged)
    whole = "its one row is" if num == 1 else f"all {num} rows are"
    text = f"no conclusion, {whole} left out: {reasons}"
    return replace(part, text=text, judged=judged, left_out=fresh.left_out)


def combine(outcomes: Sequence[Outcome], *, refuted: bool = False) -> Outcome:
    """Join the outcomes of a claim's parts: all hold, none holds, or partly.

    A part that is ``refuted`` by a counterexample refutes the claim.

    A part that cannot be tested, or allows no conclusion, keeps the claim from holding as a whole.

    >>> combine(["holds", "holds"]), combine(["holds", "not testable here"])
    ('holds', 'partly')
    """
    if refuted:
        return "does not hold"
    tested = {outcome for outcome in outcomes if outcome not in (INCONCLUSIVE, UNTESTABLE)}
    if not tested:
        return INCONCLUSIVE if INCONCLUSIVE in outcomes else UNTESTABLE
    if tested == {"does not hold"}:
        return "does not hold"
    return "holds" if set(outcomes) == {"holds"} else "partly"


def _graded(holds: bool, fails: bool) -> Outcome:
    return "does not hold" if fails else "holds" if holds else "partly"


def _at_least_each(tally: Tally) -> Outcome:
    worse = tally.significant(-1, corrected=True)
    untested = [d for p, d in tally.directed() if p.comparison.p is None]
    no_worse = tally.no_worse() == tally.tested and all(d >= -ROUNDING for d in untested)
    return _graded(no_worse, fails=worse > 0)


def _at_least(tally: Tally) -> Outcome:
    average = tally.pooled
    if average is None:
        return _at_least_each(tally)
    worse = tally.significant(-1, corrected=True)
    return _graded(
        worse == 0 and average.low > -tally.margin, fails=average.high < 0 or 2 * worse > tally.num
    )


def _on_par(tally: Tally) -> Outcome:
    average = tally.pooled
    if average is None:
        return _graded(tally.equivalent() == tally.num, fails=False)
    apart = [tally.significant(sign, corrected=True) for sign in (1, -1)]
    inside = average.low > -tally.margin and average.high < tally.margin
    outside = average.low > tally.margin or average.high < -tally.margin
    return _graded(inside and not any(apart), fails=outside or 2 * max(apart) > tally.num)


def _better(tally: Tally) -> Outcome:
    average = tally.pooled
    above = average.low > 0 if average else tally.above(0) == tally.num
    worse = tally.significant(-1, corrected=True)
    most = 2 * tally.above(0) > tally.num
    return _graded(above and most and not worse, fails=not most or tally.mean <= 0)


def _better_each(tally: Tally) -> Outcome:
    significant = tally.significant(1, corrected=True) == tally.tested
    up = tally.above(0)
    return _graded(significant and up == tally.num, fails=2 * up <= tally.num)


def _sometimes(tally: Tally) -> Outcome:
    significant = tally.significant(1, corrected=True) > 0
    return _graded(significant, fails=tally.significant(1, corrected=False) == 0)


def _within_spread(tally: Tally) -> Outcome:
    larger, total = (2 * tally.within(total=total_std) > tally.num for total_std in (False, True))
    return _graded(larger, fails=not total)


AT_LEAST_EACH = Rule(
    asks="each row shown to be no {worse} by the margin, none significantly {worse} (Holm)",
    judge=_at_least_each,
    minimum=0.0,
)
AT_LEAST = Rule(
    asks="mean shown to be no {worse} by the margin, no row significantly {worse} (Holm)",
    judge=_at_least,
)
ON_PAR = Rule(asks="mean shown to lie within the margin, no row apart (Holm)", judge=_on_par)
BETTER = Rule(
    asks="mean {above} 0, most rows {up}, none significantly {down} (Holm)", judge=_better
)
BETTER_EACH = Rule(
    asks="every row {up} and, where tested, significant (Holm)", judge=_better_each, minimum=0.0
)
SOMETIMES = Rule(asks="at least one row significantly {up} (Holm)", judge=_sometimes)
WITHIN_SPREAD = Rule(
    asks="most differences at most the larger of both stds (partly: their sum)",
    judge=_within_spread,
)
ON_AVERAGE = Rule(
    asks="mean difference {above} 0",
    judge=lambda tally: _graded(tally.mean > 0, fails=tally.mean <= 0),
)
SELDOM_DOWN = Rule(
    asks="at most one row in ten significantly {down}",
    judge=lambda tally: (
        "holds" if 10 * tally.significant(-1, corrected=False) <= tally.num else "does not hold"
    ),
)


def every(points: float = 0.0) -> Rule:
    """Require every row to lie above ``points``; if at most half do, the claim does not hold."""

    def judge(tally: Tally) -> Outcome:
        above = tally.above(points)
        return _graded(above == tally.num, fails=2 * above <= tally.num)

    return Rule(asks=f"every row {{above}} {_bound(points)}", judge=judge, minimum=points)


def most(share: float = 0.5, *, points: float = 0.0) -> Rule:
    """Require more than half of the rows to lie above ``points``, or at least a larger share."""

    def judge(tally: Tally) -> Outcome:
        above = tally.above(points)
        many = 2 * above > tally.num
        return _graded(many and above >= share * tally.num - ROUNDING, fails=not many)

    portion = "more than half" if share == 0.5 else f"at least {100 * share:g}%"
    return Rule(asks=f"{portion} of the rows {{above}} {_bound(points)}", judge=judge)


def _bound(points: float) -> str:
    return f"{{minus}}{points:g}" if points else "0"
