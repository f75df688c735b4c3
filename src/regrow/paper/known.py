"""What is known of the networks behind our numbers, in columns beside them.

The rules of ``report.validity`` ask for more than an accuracy: the size of the test set and its
chance level, how a training ended, and what network was pruned. It stands in the files that
``regrow reproduce`` writes, so that ``regrow claims`` can tell which rows allow no conclusion.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from regrow.report.rows import Run, evidence, parent_evidence
from regrow.report.validity import Evidence, Reason, judge

OWN = ("num_test", "chance", "loss", "fall")
PARENT = ("parent_mean", "parent_std", "parent_n", "parent_loss", "parent_fall")
KNOWN = (*OWN, *PARENT)
ACCURACY = "accuracy"  # column of the mean where ``mean`` is a change from another network


def known_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the columns of ``KNOWN`` for the runs of one cell; None is what is not known."""
    own, parent = evidence(runs), parent_evidence(runs)
    return {name: getattr(own, name, None) for name in OWN} | {
        name: getattr(parent, name.removeprefix("parent_"), None) for name in PARENT
    }


def has_known(frame: pd.DataFrame) -> bool:
    """Tell whether a frame says what is known: printed numbers do not."""
    return set(KNOWN) <= set(frame.columns)


def evidence_in(row: Mapping[str, Any]) -> Evidence:
    """Read what a row says of its own networks."""
    mean = row[ACCURACY] if ACCURACY in row else row["mean"]
    return Evidence(
        mean=float(mean),
        std=_number(row["std"]),
        n=int(row["n"]),
        num_test=_count(row["num_test"]),
        chance=_number(row["chance"]),
        loss=_number(row["loss"]),
        fall=_number(row["fall"]),
    )


def parent_in(row: Mapping[str, Any]) -> Evidence | None:
    """Read what a row says of the network that was pruned; None where it says nothing."""
    if (mean := _number(row["parent_mean"])) is None:
        return None
    return Evidence(
        mean=mean,
        std=_number(row["parent_std"]),
        n=int(row["parent_n"]),
        num_test=_count(row["num_test"]),
        chance=_number(row["chance"]),
        loss=_number(row["parent_loss"]),
        fall=_number(row["parent_fall"]),
    )


def reasons_against(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    margin: float,
    plain: Mapping[str, Any] | None = None,
    cut: Iterable[Mapping[str, Any]] = (),
) -> tuple[Reason, ...]:
    """Return why two rows allow no conclusion, or less than it seems.

    Args:
        first, second: rows that are compared.
        margin: in points.
        plain: the row of the unpruned network, if there is one.
        cut: rows of all that was trained of what is left of it.
    """
    whole = evidence_in(plain) if plain is not None else None
    parents: list[Evidence | None] = [
        parent for row in (first, second) if (parent := parent_in(row)) is not None
    ]
    found: dict[str, Reason] = {}
    for parent in parents or [whole]:
        for reason in judge(
            evidence_in(first),
            evidence_in(second),
            margin=margin,
            parent=parent,
            plain=whole or parent,
            cut=[evidence_in(row) for row in cut],
        ):
            found.setdefault(reason.rule, reason)
    return tuple(found.values())


def _number(value: Any) -> float | None:
    return None if value is None or value == "" or pd.isna(value) else float(value)


def _count(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(number)
