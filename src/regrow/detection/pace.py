"""Estimates for a detector that is yet to be trained: FLOPs, and seconds on this machine.

Both are those of an uncut detector on a classifier as first drawn.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from regrow.data import normalise
from regrow.data.normalisation import IMAGENET
from regrow.detection.model import (
    Detection,
    Detector,
    build_detector,
    detector_cost,
    settle_norms_,
)
from regrow.detection.pictures import Pictures
from regrow.detection.training import DetectionTraining, forward
from regrow.detection.voc import DetectionData
from regrow.models import ModelSpec, build
from regrow.train import Recipe

SETTLING_IMAGES = 64  # whose statistics the norms of an untrained backbone take
MEASURING_LR = 1e-9


@dataclass(frozen=True)
class Pace:
    """Seconds for a picture that is trained on, and for one that is tested."""

    shown: float
    tested: float


@lru_cache
def measured_pace(
    model: ModelSpec, detector: Detector, recipe: Recipe, data: DetectionData, *, seconds: float
) -> Pace:
    """Train and test for about so long each, once for each detector and recipe."""
    net = build(model.untrained())
    settle_norms_(net, some_images(data.train, IMAGENET.mean, IMAGENET.std))
    whole = _around(net, detector, len(data.classes))
    # Hardly learning, for a network as first drawn may diverge at a rate that suits a trained one.
    training = DetectionTraining(whole, data.train, replace(recipe, lr=MEASURING_LR), seed=0)
    training.step()  # the first is slower
    began, steps = time.perf_counter(), 0
    while not training.done and (not steps or time.perf_counter() - began < seconds):
        training.step()
        steps += 1
    shown = (time.perf_counter() - began) / max(steps * recipe.batch, 1)
    whole.eval()
    began, tested = time.perf_counter(), 0
    with torch.inference_mode():
        while tested < len(data.test) and (not tested or time.perf_counter() - began < seconds):
            forward(whole, [data.test.pixels(tested)], precision=recipe.precision)
            tested += 1
    return Pace(shown, (time.perf_counter() - began) / tested)


@lru_cache
def planned_flops(model: ModelSpec, detector: Detector, num_classes: int) -> int:
    """Count the FLOPs of one test image."""
    whole = _around(build(model.untrained()), detector, num_classes)
    return detector_cost(whole, detector).flops


def some_images(
    pictures: Pictures, mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[Tensor]:
    """Yield the first pictures, normalised, for norms to settle on."""
    for index in range(min(SETTLING_IMAGES, len(pictures))):
        yield normalise(pictures.pixels(index)[None], mean, std)


def _around(net: nn.Module, detector: Detector, num_classes: int) -> Detection:
    mean, std = IMAGENET.mean, IMAGENET.std
    return build_detector(net, detector, num_classes=num_classes, mean=mean, std=std)
