"""Evidence from records besides scores: training history, costs, kept units and weights."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import Damaged
from regrow.jobs.base import Job, Stored
from regrow.jobs.prune import Prune
from regrow.report.collect import Reader
from regrow.report.ledger import NO_COST, NO_COSTS, RunCost, StudyCost, costs
from regrow.store import Store
from regrow.studies.expand import Cell

if TYPE_CHECKING:
    import numpy as np

MOST_WEIGHTS = 100_000_000  # most weights read for all histograms; about ten seconds
BINS = 61
UNIFORM = "at uniform widths"
REACH = 3.0  # standard deviations shown on each side


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """The record of one run: its key and file, its history, and its costs."""

    key: str
    file: Path
    done: bool
    history: tuple[Mapping[str, Any], ...] = ()
    cost: RunCost = NO_COST


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The share of each layer that the prunings of one cell kept, averaged over seeds.

    ``rival`` names a pruning for comparison; it is empty for the one that the cell is about.
    """

    group: str
    unit: str
    rival: str = ""
    shares: Mapping[str, float]
    n: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The nonzero weights of one network: the middle of each bin, and the density in it."""

    group: str
    arm: str
    seed: int
    middles: tuple[float, ...]
    densities: tuple[float, ...]
    num: int
    num_zero: int


@dataclass(frozen=True, kw_only=True)
class StudyEvidence:
    """The records behind the runs of a study, in their order, and the cost of all its jobs."""

    runs: tuple[RunEvidence, ...]
    kept: tuple[Kept, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    cost: StudyCost = NO_COSTS
    notes: tuple[str, ...] = field(default=())


def gather(
    cells: Sequence[Cell], groups: Sequence[str], reader: Reader, *, weights: bool = True
) -> StudyEvidence:
    """Read the evidence of cells; ``groups`` are those of their runs.

    ``weights=False`` leaves out distributions of weights, for which tensors have to be read.
    """
    store = reader.store
    each, together = costs(cells, reader)
    notes: list[str] = []
    histograms = tuple(_histograms(cells, groups, reader, store, notes)) if weights else ()
    return StudyEvidence(
        runs=tuple(
            _of_run(cell.job, cost, reader, store) for cell, cost in zip(cells, each, strict=True)
        ),
        kept=tuple(_kept(cells, groups, reader, store)),
        histograms=histograms,
        cost=together,
        notes=tuple(notes),
    )


def _of_run(job: Job, cost: RunCost, reader: Reader, store: Store) -> RunEvidence:
    file = store.record_file(job.key)
    if not cost.jobs:
        return RunEvidence(key=job.key, file=file, done=False)
    history = tuple(reader.record(job).get("history", ()))
    return RunEvidence(key=job.key, file=file, done=True, history=history, cost=cost)


def _kept(
    cells: Sequence[Cell], groups: Sequence[str], reader: Reader, store: Store
) -> Iterable[Kept]:
    """Yield the share of each layer that each cell's prunings kept, averaged over seeds."""
    totals: dict[tuple[str, str, str], Mapping[str, int]] = {}
    found: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    units: dict[str, str] = {}
    for cell, group in zip(cells, groups, strict=True):
        prune = cell.job.pruning
        # Prunings of networks with a head store neither masks nor sizes.
        if prune is None or not reader.has(prune):
            continue
        if isinstance(prune, Prune) and prune.head is not None:
            continue
        record = reader.record(prune)
        if "widths" not in record:  # of a folder with an uncut network
            continue
        widths, unit = record["widths"], prune.method.unit
        place = cell.experiment.data_label, cell.experiment.model_label, unit
        if set(totals.get(place, {})) != set(widths):
            try:
                totals[place] = _sizes(prune, record, store)
            except Damaged:
                continue
        shares = {name: width / totals[place][name] for name, width in widths.items()}
        rival = UNIFORM if getattr(prune, "like", None) is not None else ""
        found.setdefault((group, rival), {})[prune.key] = shares
        units[group] = unit
    for (group, rival), prunings in found.items():
        names = dict.fromkeys(name for shares in prunings.values() for name in shares)
        alike = [shares for shares in prunings.values() if set(shares) == set(names)]
        if alike:
            means = {name: sum(shares[name] for shares in alike) / len(alike) for name in names}
            unit = units[group]
            yield Kept(group=group, unit=unit, rival=rival, shares=means, n=len(alike))


def _sizes(prune: Job, record: Mapping[str, Any], store: Store) -> dict[str, int]:
    """Return how many units each group had before any pruning."""
    if isinstance(prune, Prune):
        return {name: kept.numel() for name, kept in store.tensors(prune.key).items()}
    sizes: dict[str, int] = {}
    for cut in record["architecture"]["cuts"]:  # of a user's network, whole at the first cut
        for name, group in cut.items():
            sizes.setdefault(name, group["of"])
    return sizes


def _histograms(
    cells: Sequence[Cell], groups: Sequence[str], reader: Reader, store: Store, notes: list[str]
) -> Iterable[Histogram]:
    """Yield the histogram of each row's first finished seed, up to ``MOST_WEIGHTS`` in all."""
    seen: set[tuple[str, str]] = set()
    num_read = 0
    spans: dict[tuple[str, str], float] = {}
    for cell, group in zip(cells, groups, strict=True):
        place = group, cell.arm.name
        if place in seen or not reader.has(cell.job):
            continue
        num_weights = int(reader.record(cell.job).get("parameters", 0))
        if num_read + num_weights > MOST_WEIGHTS:
            notes.append(f"after {num_read:,} weights, no further network was read")
            return
        seen.add(place)
        values = _weights(cell.job, store)
        if values is None or not len(values):
            continue
        num_read += num_weights
        panel = cell.experiment.data_label, cell.experiment.model_label
        span = spans.setdefault(panel, REACH * float(values.std()) or 1.0)
        yield _counted(values, span, group=group, arm=cell.arm.name, seed=cell.seed)


def _weights(job: Job, store: Store) -> "np.ndarray[Any, Any] | None":
    """Return a network's tensors of two dimensions or more as one flat array; None without."""
    import numpy as np

    try:
        state = Stored(store).tensors(job)
    except Damaged:
        return None
    layers = [t.float().flatten().numpy() for t in state.values() if t.dim() > 1]
    return np.concatenate(layers) if layers else None


def _counted(
    values: "np.ndarray[Any, Any]", span: float, *, group: str, arm: str, seed: int
) -> Histogram:
    import numpy as np

    present = values[values != 0]
    bins = min(BINS, max(15, int(len(present) ** 0.5)))  # fewer bins for few weights
    counts, edges = np.histogram(present, bins=bins, range=(-span, span))
    width = 2 * span / bins
    return Histogram(
        group=group,
        arm=arm,
        seed=seed,
        middles=tuple(float(edge + width / 2) for edge in edges[:-1]),
        densities=tuple(float(c) / max(len(present), 1) / width for c in counts),
        num=len(present),
        num_zero=len(values) - len(present),
    )
