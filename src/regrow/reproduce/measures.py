"""Measurements of the networks themselves: widths, shares kept, distributions of weights.

Each measure reads the masks or weights of a part from a store, and yields one row for each number
and seed: the labels of the printed cell, ``seed`` and ``value``.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import pandas as pd
import torch
from torch import Tensor, nn

from regrow.jobs.arms import Start
from regrow.jobs.base import Stored
from regrow.jobs.prune import Prune, edit_of
from regrow.models import ModelSpec, build
from regrow.pruning.stages import pattern_of, stages_of
from regrow.reproduce.paper import Kind
from regrow.reproduce.plan import PlannedCell, PlannedStudy, percent
from regrow.store import Store
from regrow.surgery import Trace
from regrow.surgery.architecture import traced
from regrow.surgery.mask import Mask

KERNEL = "3x3"
EDGE = 0.3  # weights beyond it are counted together; the paper's axis ends a little after 0.2
FINEST = 6000  # bins from -EDGE to EDGE
# Columns of Figure 8 by the start of the arm. It shows no winning tickets, so ``initial`` is the
# unpruned network.
COLUMNS: Mapping[Start, str] = {
    "initial": "Unpruned",
    "inherited": "Fine-tuned",
    "random": "Scratch-trained",
}
Row = dict[str, object]


def measured(kind: Kind, part: PlannedStudy, store: Store) -> pd.DataFrame:
    """Return the numbers that a kind of table or figure shows besides accuracies, if any.

    All cells of the part must be done.

    Columns, by kind:

    - ``widths``: layer, quantity, seed, value (channels);
    - ``stages``, ``kernels``, ``heatmaps``: ratio, stage, kernel_row, kernel_col (the last two are
      empty for channels), seed, value (kept share);
    - ``histograms``: panel, column, low, high, value (weights in the bin); of the first seed.
    """
    measure = MEASURES.get(kind)
    return pd.DataFrame(measure(part, store) if measure else ())


def _widths(part: PlannedStudy, store: Store) -> Iterator[Row]:
    widths_known = False
    for planned, mask in _masks(part, store):
        _, traced = _traced(*_network_of(planned))
        layers = [mask.kept[name] for name in traced.groups if name in mask.kept]
        for quantity, widths in (
            ("width", [len(stays) for stays in layers]),
            ("pruned width", [int(stays.sum()) for stays in layers]),
        ):
            if quantity == "width" and widths_known:
                continue  # the same for every seed
            by_label = {str(i): width for i, width in enumerate(widths, 1)} | {"total": sum(widths)}
            for layer, width in by_label.items():
                yield {
                    "layer": layer,
                    "quantity": quantity,
                    "seed": planned.cell.seed,
                    "value": width,
                }
        widths_known = True


def _stages(part: PlannedStudy, store: Store) -> Iterator[Row]:
    for planned, mask in _masks(part, store):
        shares = pattern_of([mask], _stages_of(planned)).shares
        for stage, share in enumerate(shares, 1):
            yield _share(planned, share, stage=stage)


def _kernels(part: PlannedStudy, store: Store) -> Iterator[Row]:
    for planned, mask in _masks(part, store):
        pattern = pattern_of([mask], _stages_of(planned))
        for stage in range(pattern.num_stages):
            for i, row in enumerate(pattern.kernel(stage, KERNEL) or (), 1):
                for j, share in enumerate(row, 1):
                    yield _share(planned, share, stage=stage + 1, place=(str(i), str(j)))


def _share(
    planned: PlannedCell, share: float, *, stage: int, place: tuple[str, str] = ("", "")
) -> Row:
    assert planned.cell.cut is not None
    labels = {"ratio": percent(planned.cell.cut), "stage": str(stage)}
    labels |= {"kernel_row": place[0], "kernel_col": place[1]}
    return {**labels, "seed": planned.cell.seed, "value": share}


def _histograms(part: PlannedStudy, store: Store) -> Iterator[Row]:
    networks: set[tuple[str, str]] = set()
    for planned in part.cells:
        job, column = planned.cell.job, COLUMNS[planned.cell.arm.start]
        if (planned.panel, column) in networks:
            continue
        networks.add((planned.panel, column))
        counts = _counts(store.tensors(job.key))
        inner = [round(EDGE * (2 * i / FINEST - 1), 6) for i in range(FINEST + 1)]
        edges = [-float("inf"), *inner, float("inf")]
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            yield {
                "panel": planned.panel,
                "column": column,
                "low": low,
                "high": high,
                "value": count,
            }


def _counts(weights: dict[str, Tensor]) -> list[int]:
    """Count the nonzero weights of convolutions: below the bins, in each bin, and above them."""
    kernels = [value.flatten() for value in weights.values() if value.dim() == 4]
    pooled = torch.cat(kernels).double()
    pooled = pooled[pooled != 0]
    inside = torch.histc(pooled, bins=FINEST, min=-EDGE, max=EDGE).long().tolist()
    return [int((pooled < -EDGE).sum()), *inside, int((pooled > EDGE).sum())]


def _masks(part: PlannedStudy, store: Store) -> Iterator[tuple[PlannedCell, Mask]]:
    """Yield each cell of a part with the mask of its pruning."""
    for planned in part.cells:
        yield planned, edit_of(Stored(store), _pruning_of(planned)).mask


def _pruning_of(planned: PlannedCell) -> Prune:
    pruning = planned.cell.job.pruning
    assert pruning is not None, "such a part has a cell for each pruning"
    return pruning


def _network_of(planned: PlannedCell) -> tuple[ModelSpec, tuple[int, ...]]:
    pruning = _pruning_of(planned)
    return pruning.model, pruning.data.shape


def _stages_of(planned: PlannedCell) -> dict[str, int]:
    return _numbered(*_network_of(planned))


@lru_cache(maxsize=1)
def _numbered(model: ModelSpec, shape: tuple[int, ...]) -> dict[str, int]:
    return stages_of(*_traced(model, shape))


@lru_cache(maxsize=1)
def _traced(model: ModelSpec, shape: tuple[int, ...]) -> tuple[nn.Module, Trace]:
    network = build(model.untrained())
    return network, traced(network, model, shape)


MEASURES: dict[Kind, Callable[[PlannedStudy, Store], Iterator[Row]]] = {
    "widths": _widths,
    "stages": _stages,
    "kernels": _kernels,
    "heatmaps": _kernels,
    "histograms": _histograms,
}
