"""The ladder of setups of Wang et al. (2023): how equal the two rows of a comparison are.

Stricter downwards: S1 the same data and network at the same speed-up; S2 from the same trained
network; S3.1 for as many epochs of retraining, S3.2 on the same schedule; S4.1 with as many epochs
of training while pruning, S4.2 in the same way. Of whole pipelines (training, pruning and
retraining together) SX-A is as many epochs, SX-B as many FLOPs.

Reference: Wang, Qin, Bai and Fu, Why is the State of Neural Network Pruning so Confusing?, 2023,
arXiv:2301.05219.
"""

from collections.abc import Sequence

from regrow.report.rows import Run

EQUAL = 0.05  # costs and FLOPs that differ by no more of the larger count as equal
ABOUT = (
    "Setups are those of Wang et al. (2023): S1 same data, network and speed-up; S2 same trained "
    "network; S3.1 same epochs of retraining, S3.2 same schedule; S4.1 same epochs while pruning, "
    "S4.2 same treatment; SX-A and SX-B same epochs and FLOPs of all training together."
)


def equal(first: float | None, second: float | None) -> bool:
    """Tell whether two costs differ by no more than ``EQUAL``; unknown ones are not equal."""
    if first is None or second is None:
        return False
    return abs(first - second) <= EQUAL * max(first, second)


def setup(first: Sequence[Run], second: Sequence[Run]) -> str:
    """Name the strictest setup of both ladders that every seed of two rows of equal cost meets.

    Empty where they share no seed, or where their networks are not of one data set and model.
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
            ("SX-B", all(equal(one.training_flops, other.training_flops) for one, other in pairs)),
        )
        if holds
    ]
    return ", ".join([*names[max(0, height - 1) : height], *whole])


def _rungs(one: Run, other: Run) -> tuple[bool, ...]:
    schedules = [(run.recipe, run.objective, run.treatment) for run in (one, other)]
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
    return one.total_epochs is not None and one.total_epochs == other.total_epochs
