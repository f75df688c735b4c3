"""Notes on runs of a user's training function: what they cost, and whether seeds matter."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from regrow.core.texts import listed, quoted
from regrow.jobs.base import Job
from regrow.report.rows import Run
from regrow.studies.expand import Cell
from regrow.train.by_epoch import LOSS, RATE

LOWER = 0.5  # rates up to this share of those of scratch training are clearly lower
CLOSE = 0.1  # networks whose MACs differ by at most this share have the same cost
BESIDE_TOKENS = ("attention_mask", "token_type_ids")  # exported, and without cost


class Reads(Protocol):
    """A reader of the records of finished jobs."""

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of a finished job."""


def spending_notes(reader: Reads, cells: Sequence[Cell], runs: Sequence[Run]) -> Iterator[str]:
    """Yield what a reader should know of trainings by a user's function."""
    own = [
        (cell, run, reader.record(cell.job))
        for cell, run in zip(cells, runs, strict=True)
        if run.done and cell.job.scored_on is not None and cell.job.scored_on.task is None
    ]
    trained = [(cell, run, record) for cell, run, record in own if record["amount"]]
    uncounted = _arms(run for _, run, record in trained if record["samples"] is None)
    if uncounted:
        yield (
            f"What {listed(uncounted)} cost is not known: the function never calls the network "
            "itself in training mode, so that no training examples could be counted."
        )
    yield from _unknown(trained)
    yield from _same_seeds(trained)
    for shapes, arms in _other_shapes(trained).items():
        yield f"{listed(arms)} trained on inputs of {shapes}: FLOPs are counted at the latter."
    beside = dict.fromkeys(name for _, _, record in trained for name in record.get("beside", ()))
    if unsaid := [name for name in beside if name not in BESIDE_TOKENS]:
        yield (
            f"The function trains with {quoted(unsaid)} too, which --input does not name: "
            "costs are counted, and files are exported, without them. Name all inputs."
        )
    yield from _other_costs(own)
    drawn = dict.fromkeys(name for _, _, record in trained for name in record.get("drawn", ()))
    if drawn:
        yield (
            "For training from scratch, the network has no initialisation at its smaller size for "
            f"{quoted([*drawn])}: these are drawn as in the uncut network, then cut."
        )


def _unknown(trained: Sequence[tuple[Cell, Run, dict[str, Any]]]) -> Iterator[str]:
    """Name what a user's training function does not return, and how to find it out."""
    yield from _rates(trained)
    for message in dict.fromkeys(r["unusable"] for _, _, r in trained if r.get("unusable")):
        yield f"{message} It is left out."
    if trained and all(run.training_budget is None for _, run, _ in trained):
        if any(run.given for _, run, _ in trained):
            yield (
                "Whether the given weights had converged is not known. A longer --budget shows "
                "whether the smaller network still gains from training."
            )
        elif not any(run.parent_ending or (run.unpruned and run.ending) for _, run, _ in trained):
            yield (
                "Whether the unpruned network had converged is not known, because the training "
                f"function returns no {LOSS!r} (for each epoch, with its metrics). --budgets "
                "compares several lengths of training, and shows whether it still gains."
            )
    if any(run.given for _, run, _ in trained):
        yield "The cost of training the given weights is not known, and counts as 0 FLOPs."


def _rates(trained: Sequence[tuple[Cell, Run, dict[str, Any]]]) -> Iterator[str]:
    """Compare the highest learning rates of fine-tuning and of scratch training, if returned."""
    rates: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for cell, run, record in (row for row in trained if not row[1].unpruned):
        told = [line.get("lr") for line in record.get("history", ())]
        highest = math.inf if None in told or not told else max(told)
        of_start = rates[cell.arm.start == "inherited"]
        of_start[run.arm] = max(of_start.get(run.arm, 0.0), highest)
    tuned, others = rates[True], rates[False]
    if not tuned:
        return
    if math.inf in {*tuned.values(), *others.values()}:
        yield (
            "The training function chooses its own learning rates. At which rate it fine-tuned is "
            "not known here; a rate as high as for training from scratch puts fine-tuning at a "
            f"disadvantage (the function can read budget.inherited to tell them apart, and return "
            f"its rates as {RATE!r})."
        )
    elif others and max(tuned.values()) > LOWER * min(others.values()):
        high = [f"{arm} {rate:g}" for arm, rate in (*tuned.items(), *others.items())]
        yield (
            f"The highest learning rates were {listed(high)}. A rate about as high as for training "
            "from scratch puts fine-tuning at a disadvantage (the function can read "
            "budget.inherited to tell them apart)."
        )


def _arms(runs: Any) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def _same_seeds(trained: Sequence[tuple[Cell, Run, dict[str, Any]]]) -> Iterator[str]:
    """Name arms whose seeds all end with the same weights, or with the same score only."""
    rows: dict[tuple[str, str], list[tuple[Run, str]]] = {}
    for _, run, record in trained:
        rows.setdefault((run.group, run.arm), []).append((run, record["weights"]))
    several = [row for row in rows.values() if len(row) > 1]
    alike = [row for row in several if len({weights for _, weights in row}) == 1]
    if alike:
        yield (
            f"All seeds of {listed(_arms(row[0][0] for row in alike))} end with the same weights: "
            "the training function does not use its seed, so n counts one training."
        )
    scores = [
        row for row in several if row not in alike and len({run.score for run, _ in row}) == 1
    ]
    if scores:
        yield (
            f"All seeds of {listed(_arms(row[0][0] for row in scores))} score exactly the same, "
            "with different weights: the metric has reached its best value, or does not depend on "
            "the network."
        )


def _other_shapes(trained: Sequence[tuple[Cell, Run, dict[str, Any]]]) -> dict[str, list[str]]:
    """List arms whose first training example had another shape than costs are measured at."""
    first: dict[str, str] = {}
    for _, run, record in trained:
        if record["shape"] is not None and record["shape"] != record["input"]:
            sizes = ("x".join(map(str, record[name])) for name in ("shape", "input"))
            first.setdefault(run.arm, ", and costs are measured at ".join(sizes))
    found: dict[str, list[str]] = {}
    for arm, shapes in first.items():
        found.setdefault(shapes, []).append(arm)
    return found


def _other_costs(own: Sequence[tuple[Cell, Run, dict[str, Any]]]) -> Iterator[str]:
    """Name arms on other networks whose MACs differ from those of the pruned network."""
    cut: dict[str, int] = {}
    for cell, run, _ in own:
        if cell.use is not None and not cell.subject and run.macs:
            cut.setdefault(run.group, run.macs)
    told = set()
    for cell, run, _ in own:
        small = cut.get(run.group)
        if not cell.subject or not small or not run.macs or (run.group, run.arm) in told:
            continue
        if abs(run.macs / small - 1) > CLOSE:
            told.add((run.group, run.arm))
            yield (
                f"{run.arm} does not have the same cost: it takes {run.macs / small:.2f} times "
                f"the MACs of {run.cut}."
            )
