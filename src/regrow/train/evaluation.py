"""Evaluation of a network on a split, in one pass that waits for the device only at its end."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.core.choice import Choice
from regrow.core.distributed import ALONE, Ranks
from regrow.data import Dataset, Images, MemoryImages, scaling_of
from regrow.tasks import task_of
from regrow.train.engine import BATCHES_AHEAD, on_device
from regrow.train.layout import takes_channels_last
from regrow.train.objective import Objective, make_objective
from regrow.train.recipe import EngineName, Precision
from regrow.train.step import forward, normalised

EVALUATION_BATCH = 256  # the paper's


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's unscaled score by its task's metric and mean ``loss``, on ``num`` examples.

    ``error`` is the score's standard error over the examples, None if it follows from the count.
    """

    score: float
    loss: float
    num: int
    error: float | None = None


def evaluate(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    *,
    objective: Objective | None = None,
    precision: Precision = "fp32",
    engine: EngineName = "exact",
    channels_last: bool = True,
    batch: int = EVALUATION_BATCH,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Score a model on all examples of a split, on its own device and in a layout that it supports.

    ``dataset`` gives the task and the normalisation. The modes (training or evaluation) of the
    model's modules are restored. An accuracy is an exact count over the number of examples; the
    loss is the mean of an objective, by default the task's. Several ``ranks`` take the batches in
    turn, and all return the same result.
    """
    task = task_of(dataset)
    assert task.tally is not None, f"the task {task.name} has scores of its own"
    assert task.conclude is not None
    objective = objective or make_objective(Choice(task.objective))
    device = next(model.parameters()).device
    images = on_device(images, device)
    labels = images.labels.to(device)
    factors = scaling_of(dataset, device)
    # Indices are on the images' device; streamed images are decoded on the CPU.
    places = torch.arange(len(images), device=device if isinstance(images, MemoryImages) else "cpu")
    order = torch.split(places, batch)
    # By batch, so that the order of sums does not depend on the number of ranks.
    tallies: dict[int, Tensor] = {}
    losses = torch.zeros(len(order), dtype=torch.float64, device=device)
    counts = torch.zeros(len(order), dtype=torch.int64, device=device)
    rows_of_rank = range(ranks.rank, len(order), ranks.size)
    with _evaluating(model), torch.inference_mode(), ranks.agreeing():
        channels_last = (
            channels_last and dataset.of_images and takes_channels_last(model, dataset.shape)
        )
        for number, place in enumerate(rows_of_rank):
            for later in rows_of_rank[number : number + BATCHES_AHEAD]:
                images.prefetch(order[later])
            indices = order[place]
            pixels = images.batch(indices).to(device, non_blocking=True)
            x = normalised(pixels, factors, channels_last=channels_last)
            outputs = forward(model, x, precision, engine=engine)
            targets = labels[indices.to(device)]
            losses[place] = objective.total(outputs, targets)
            tallies[place] = task.tally(outputs, targets)
            counts[place] = objective.count(targets)
    sums = _stacked(tallies, len(order), ranks).to(device)
    for total in (sums, losses, counts):
        ranks.add_(total)
    score, error = task.conclude([math.fsum(column) for column in sums.T.tolist()])
    return Evaluation(
        score=score,
        error=error,
        loss=math.fsum(losses.tolist()) / int(counts.sum()),
        num=len(images),
    )


def _stacked(tallies: Mapping[int, Tensor], num: int, ranks: Ranks) -> Tensor:
    """Return the tallies of all batches, with zeros for those of other ranks."""
    # A rank without a batch does not know how many sums a tally has.
    width = ranks.most(max((len(tally) for tally in tallies.values()), default=0))
    sums = torch.zeros(num, width, dtype=torch.float64)
    for place, tally in tallies.items():
        sums[place] = tally
    return sums


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and restore its mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
