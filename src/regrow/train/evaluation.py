"""Evaluation of a network on a split, in one pass that waits for the device only at its end."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from regrow.core.distributed import ALONE, Ranks
from regrow.data import Dataset, Images, MemoryImages, scaling
from regrow.train.engine import BATCHES_AHEAD, on_device
from regrow.train.layout import takes_channels_last
from regrow.train.objective import CROSS_ENTROPY, Objective, logits_of, make_objective
from regrow.train.recipe import Precision
from regrow.train.step import forward, normalised

EVALUATION_BATCH = 256  # the paper's


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a network: ``accuracy`` in [0, 1], mean ``loss``, of ``num`` images."""

    accuracy: float
    loss: float
    num: int


def evaluate(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    *,
    objective: Objective | None = None,
    precision: Precision = "fp32",
    channels_last: bool = True,
    batch: int = EVALUATION_BATCH,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Score a model on all images of a split, on the device it has; in the layout that it allows.

    ``dataset`` tells how to normalise. The modes (training or not) of its modules are as before
    afterwards. The accuracy is an exact count over the number of images; the loss is the mean of an
    objective, the cross-entropy unless another is given. Several ``ranks`` take the batches in
    turn, and all return the same.
    """
    objective = objective or make_objective(CROSS_ENTROPY)
    device = next(model.parameters()).device
    images = on_device(images, device)
    labels = images.labels.to(device)
    factors = scaling(dataset.mean, dataset.std, device)
    # Indices lie where the images are read: decoding is the CPU's.
    places = torch.arange(len(images), device=device if isinstance(images, MemoryImages) else "cpu")
    order = torch.split(places, batch)
    # By batch, so that sums are taken in one order, however many ranks there are.
    correct = torch.zeros(len(order), dtype=torch.int64, device=device)
    losses = torch.zeros(len(order), dtype=torch.float64, device=device)
    counts = torch.zeros(len(order), dtype=torch.int64, device=device)
    rows_of_rank = range(ranks.rank, len(order), ranks.size)
    image = (dataset.channels, dataset.size, dataset.size)
    with _evaluating(model), torch.inference_mode(), ranks.agreeing():
        channels_last = channels_last and takes_channels_last(model, image)
        for number, place in enumerate(rows_of_rank):
            for later in rows_of_rank[number : number + BATCHES_AHEAD]:
                images.prefetch(order[later])
            indices = order[place]
            pixels = images.batch(indices).to(device, non_blocking=True)
            x = normalised(pixels, factors, channels_last=channels_last)
            logits = logits_of(forward(model, x, precision))
            wanted = labels[indices.to(device)]
            correct[place] = (logits.argmax(dim=1) == wanted).sum()
            losses[place] = objective.total(logits, wanted)
            counts[place] = objective.count(wanted)
    for total in (correct, losses, counts):
        ranks.add_(total)
    return Evaluation(
        accuracy=int(correct.sum()) / len(images),
        loss=math.fsum(losses.tolist()) / int(counts.sum()),
        num=len(images),
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
