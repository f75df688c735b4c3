"""Columns beside our numbers that describe the networks behind them.

The rules of ``report.validity`` need more than an accuracy: the size of the test set and its chance
level, how training ended, and which network was pruned. ``regrow reproduce`` writes these to its
files, so that ``regrow claims`` can find the rows that allow no conclusion.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from regrow.report.rows import Ending, Run
from regrow.report.validity import (
    RULES,
    Evidence,
    Reason,
    Rule,
    evidence,
    excluded,
    judge,
    parent_evidence,
    rule_text,
)
from regrow.reproduce.printed import records
from regrow.tasks.metric import ACCURACY as MEASURED
from regrow.train.material import Material

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.store import Store

OWN = ("num_test", "chance", "loss", "fall")
PARENT = ("parent_mean", "parent_std", "parent_n", "parent_loss", "parent_fall")
KNOWN = (*OWN, *PARENT)
ACCURACY = "accuracy"  # column of the mean where ``mean`` is a change from another network


def known_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the columns of ``KNOWN`` for the runs of one cell; None means unknown."""
    network, parent = evidence(runs), parent_evidence(runs)
    return {name: getattr(network, name, None) for name in OWN} | {
        name: getattr(parent, name.removeprefix("parent_"), None) for name in PARENT
    }


def known_of_parents(jobs: "Iterable[Job]", store: "Store") -> dict[str, Any]:
    """Return the columns of ``KNOWN`` for prunings of the trained networks among the jobs.

    Endings of trainings with a method's treatment are left out: they say nothing of convergence.
    """
    trained = [job for job in jobs if job.scored_on is not None and job.pruning is None]
    data = [job.scored_on for job in trained if isinstance(job.scored_on, Material)]
    records = [store.record(job.key, spec=job.spec) for job in trained]
    parent = Evidence.of(
        [MEASURED.reported(record[MEASURED.key]) for record in records],
        num_test=min((material.num_test for material in data), default=None),
        chance=max((material.chance for material in data if material.chance), default=None),
        endings=[
            Ending.of(record["history"]) if job.treated is None else None
            for job, record in zip(trained, records, strict=True)
        ],
    )
    columns = {name: getattr(parent, name.removeprefix("parent_"), None) for name in PARENT}
    tested = {name: getattr(parent, name, None) for name in ("num_test", "chance")}
    return {"loss": None, "fall": None, **tested, **columns}


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert a frame's columns of ``KNOWN`` to floats, even where all values are missing."""
    return frame.astype(dict.fromkeys(KNOWN, float))


def has_known(frame: pd.DataFrame) -> bool:
    """Return whether a frame has the columns of ``KNOWN``, which printed numbers lack."""
    return set(KNOWN) <= set(frame.columns)


def evidence_in(row: Mapping[str, Any]) -> Evidence:
    """Return a row's evidence on its own networks."""
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
    """Return a row's evidence on the network that was pruned; None if it has none."""
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


def usable(
    frame: pd.DataFrame, *, margin: float, named: Sequence[str], accuracies: bool
) -> tuple[pd.DataFrame, dict[str, tuple[Reason, ...]]]:
    """Return the rows that allow conclusions by themselves, and the reasons against the others.

    Args:
        frame: points of curves, or what was kept of networks.
        margin: in points.
        named: columns that name a row in a message.
        accuracies: whether ``mean`` is an accuracy; if not, a row is judged by its parent alone.
    """
    if not has_known(frame):
        return frame, {}
    left_out: dict[str, tuple[Reason, ...]] = {}
    rows_to_keep = []
    for row in records(frame):
        if not _count(row["n"]):
            rows_to_keep.append(True)  # not run
            continue
        parent = parent_in(row)
        network = evidence_in(row) if accuracies else parent
        reasons = () if network is None else judge(network, network, margin=margin, parent=parent)
        rows_to_keep.append(not excluded(reasons))
        if excluded(reasons):
            left_out[" ".join(str(row[name]) for name in named)] = reasons
    return frame[rows_to_keep].reset_index(drop=True), left_out


def worded(left_out: Mapping[str, Sequence[Reason]]) -> str:
    """Return the counts of rows by their first excluding reason, with the figures of one each."""
    first: dict[Rule, list[Reason]] = {}
    for reasons in left_out.values():
        reason = next(reason for reason in reasons if reason.excludes)
        first.setdefault(reason.rule, []).append(reason)
    return "; ".join(
        f"{rule_text(rule)} ({len(group)}; one of them: {group[0].figures})"
        for rule, group in sorted(first.items(), key=lambda pair: RULES.index(pair[0]))
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
        cut: rows of all networks that were trained from the same pruning.
    """
    whole = evidence_in(plain) if plain is not None else None
    parents: list[Evidence | None] = [
        parent for row in (first, second) if (parent := parent_in(row)) is not None
    ]
    by_rule: dict[str, Reason] = {}
    for parent in parents or [whole]:
        for reason in judge(
            evidence_in(first),
            evidence_in(second),
            margin=margin,
            parent=parent,
            plain=whole or parent,
            cut=[evidence_in(row) for row in cut],
        ):
            by_rule.setdefault(reason.rule, reason)
    return tuple(by_rule.values())


def _number(value: Any) -> float | None:
    return None if value is None or value == "" or pd.isna(value) else float(value)


def _count(value: Any) -> int | None:
    return None if (number := _number(value)) is None else int(number)
