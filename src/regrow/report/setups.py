"""Setups of Wang et al. (2023): how much the two rows of a comparison have in common.

Each includes those before it: S1 the same data, network and speed-up; S2 the same trained network;
S3.1 the same number of retraining epochs, S3.2 the same schedule; S4.1 the same number of training
epochs while pruning, S4.2 the same treatment. For whole pipelines (training, pruning and retraining
together) SX-A is the same number of epochs, SX-B of FLOPs. A network that is trained from a random
start needs no earlier training, so its pipeline is that training alone. What given weights cost is
unknown, so their pipeline is never equal to that of another start.

Reference: Wang, Qin, Bai and Fu, Why is the State of Neural Network Pruning so Confusing?, 2023,
arXiv:2301.05219.
"""

import re
from collections.abc import Sequence

from regrow.report.rows import Run

SAME = "the same data, network and speed-up"
TUNED = f"{SAME}, the same trained network, the same number of epochs of retraining"
WORDS = {
    "S1": SAME,
    "S2": f"{SAME}, and the same trained network",
    "S3.1": TUNED,
    "S3.2": f"{TUNED} on the same schedule",
    "S4.1": f"{TUNED} on the same schedule, and the same number of epochs while pruning",
    "S4.2": f"{TUNED} on the same schedule, and the same treatment while pruning",
    "SX-A": "the same number of epochs of training, pruning and retraining together",
    "SX-B": "the same number of FLOPs of training, pruning and retraining together",
}
_STAMP = r"S[1-4X][\w.-]*(?:, S[1-4X][\w.-]*)*"
STAMP = re.compile(rf"\[({_STAMP})\]")  # in a sentence
STAMP_ESCAPED = re.compile(rf"\\\[({_STAMP})\\\]")  # in a sentence of Markdown, escaped
EQUAL = 0.05  # costs that differ by at most this share of the larger count as equal
ABOUT = (
    "Setups state what both sides of a comparison have in common, after Wang et al. (2023, "
    "https://arxiv.org/abs/2301.05219): S1 same data, network and speed-up; S2 same trained "
    "network; S3.1 same epochs of retraining, S3.2 same schedule; S4.1 same epochs while pruning, "
    "S4.2 same treatment; SX-A and SX-B same epochs and FLOPs of all training together, where the "
    "cost of all of it is known."
)


def equal(first: float | None, second: float | None) -> bool:
    """Return whether two costs differ by at most ``EQUAL``; unknown costs are not equal."""
    if first is None or second is None:
        return False
    return abs(first - second) <= EQUAL * max(first, second)


def in_words(stamp: str) -> str:
    """Describe a setup, with its code in brackets: ``the same data, network and speed-up [S1]``.

    >>> in_words("SX-B")
    'the same number of FLOPs of training, pruning and retraining together [SX-B]'
    """
    return f"{'; '.join(WORDS[name] for name in stamp.split(', '))} [{stamp}]"


def setup(first: Sequence[Run], second: Sequence[Run]) -> str:
    """Return the codes of the strictest setups that two rows meet in every seed they share.

    Empty if they share no seed, or if their data set or model differ.
    """
    by_seed = {run.seed: run for run in second if run.done}
    pairs = [(run, by_seed[run.seed]) for run in first if run.done and run.seed in by_seed]
    if not pairs or any(one.panel != other.panel for one, other in pairs):
        return ""
    rungs = [_rungs(one, other) for one, other in pairs]
    names = ("S1", "S2", "S3.1", "S3.2", "S4.1", "S4.2")
    height = 0
    while height < len(names) and all(rung[height] for rung in rungs):
        height += 1
    whole = [
        name
        for name, holds in (
            ("SX-A", all(_same_total(one, other) for one, other in pairs)),
            ("SX-B", all(_same_flops(one, other) for one, other in pairs)),
        )
        if holds
    ]
    return ", ".join([*names[max(0, height - 1) : height], *whole])


def _rungs(one: Run, other: Run) -> tuple[bool, ...]:
    schedules = [(r.recipe, r.entered, r.objective, r.treatment) for r in (one, other)]
    return (
        equal(one.macs, other.macs) or _same_target(one, other),
        bool(one.base) and one.base == other.base and one.start == other.start,
        one.epochs == other.epochs,
        schedules[0] == schedules[1],
        one.pruning_epochs is not None and one.pruning_epochs == other.pruning_epochs,
        one.pruning_epochs == 0,
    )


def _same_target(one: Run, other: Run) -> bool:
    return one.cost_asked is not None and one.target == other.target


def _same_total(one: Run, other: Run) -> bool:
    totals = _pipeline(one, other)[0], _pipeline(other, one)[0]
    return totals[0] is not None and totals[0] == totals[1]


def _same_flops(one: Run, other: Run) -> bool:
    return equal(_pipeline(one, other)[1], _pipeline(other, one)[1])


def _pipeline(run: Run, other: Run) -> tuple[float | None, float | None]:
    """Return the epochs and FLOPs of a run's whole pipeline, as far as they are known.

    If both rows have the same start, all that they depend on is counted.
    """
    if run.start == other.start:
        return run.total_epochs, run.training_flops
    if run.start in ("random", "redrawn"):
        epochs, flops = run.other_trials
        return (
            None if run.epochs is None else run.epochs + epochs,
            None if run.arm_flops is None else run.arm_flops + flops,
        )
    return (None, None) if run.given else (run.total_epochs, run.training_flops)
