"""The task "detection": Faster R-CNN on a classifier, scored by mean average precision."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.cost import Cost
from regrow.data import Dataset, DataSpec, load, normalise
from regrow.data.boxed_images import BoxedImages
from regrow.data.normalisation import IMAGENET
from regrow.detection.evaluate import check_libraries, detect, score
from regrow.detection.model import (
    Detection,
    Detector,
    build_detector,
    classifier_state,
    detector_cost,
    is_of_classifier,
    settle_norms_,
)
from regrow.detection.training import AUGMENTATIONS, DetectionTraining, forward, num_shown
from regrow.errors import ConfigError, unknown
from regrow.models import ModelSpec, build
from regrow.tasks.base import Details, of_images, register_task
from regrow.tasks.metric import MEAN_AP
from regrow.train import Precision, Recipe

SETTLING_IMAGES = 64  # for the statistics of an untrained backbone's norms
MEASURING_LR = 1e-9  # almost no learning, see ``_measured``
COCO = {"ap": "COCO AP", "ap50": "COCO AP50", "ap75": "COCO AP75"}
DETAILS = Details(
    name="detections",
    title="Average precision by class",
    about="In percent, means over the seeds. AP of a class: VOC 2007's. COCO AP: over IoUs of 0.5 "
    "to 0.95, AP50 and AP75 at one. 'mAP before': of the same detector before its first step, its "
    "head as first drawn (or as it was cut, of a detector that was pruned itself). 'classifier': "
    "test accuracy of the network that the detector was built on.",
    values=lambda record: {
        "mAP": record["map"],
        **{f"AP {name}": value for name, value in record["ap"].items()},
        **{title: record["coco"][name] for name, title in COCO.items()},
        "mAP before": record["before"]["map"],
    },
)


@dataclass(frozen=True)
class DetectorHead:
    """A detector on a classifier's network, with the interface that jobs and studies use."""

    detector: Detector
    noun: ClassVar[str] = "detector"
    title: ClassVar[str] = "Faster R-CNN"
    recipe: ClassVar[str] = "voc"

    @classmethod
    def read(cls, value: Any) -> "DetectorHead":
        """Read a study's settings of its detector; the default is ``voc``."""
        check_libraries()
        return cls(Detector.from_json("voc" if value is None else value))

    def to_json(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults."""
        return self.detector.to_json()

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise a ``ConfigError`` for a recipe that cannot train a detector."""
        if recipe.augmentation not in (None, *AUGMENTATIONS):
            raise ConfigError(
                f"Detection: {unknown('augmentation', recipe.augmentation or '', AUGMENTATIONS)}"
            )
        for option in ("objective", "ema", "lookahead", "mixup", "cutout", "alternating_flip"):
            if (value := getattr(recipe, option)) not in (None, False):
                raise ConfigError(
                    f"A detector has its own losses and augmentation, so its recipe does not "
                    f"accept {option!r}. Leave it out. Got {value!r}."
                )

    def around(
        self,
        net: nn.Module,
        *,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        trained: Mapping[str, Tensor] | None = None,
    ) -> Detection:
        """Build a detector on a network; its other layers are new, or those of ``trained``."""
        options: dict[str, Any] = {"num_classes": num_classes, "mean": mean, "std": std}
        model = build_detector(net, self.detector, **options, seed=seed)
        if trained is not None:
            state = model.state_dict()
            for name in (name for name in state if not is_of_classifier(name)):
                if state[name].shape != trained[name].shape:
                    raise ConfigError(
                        f"Pruning would cut channels of the backbone's output, which the "
                        f"detector's {name!r} reads. Prune within the blocks only: scope: conv."
                    )
                state[name] = trained[name]
            model.load_state_dict(state)
        return model

    def backbone(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Extract the network's state from a detector's, under the network's names."""
        return classifier_state(state)

    def settle_(self, net: nn.Module, dataset: Dataset) -> None:
        """Set the norms' statistics of an untrained network to those of some training images."""
        train, _ = self._examples(dataset)
        settle_norms_(net, _some_images(train))

    def training(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str,
    ) -> DetectionTraining:
        """Return the training of a detector, at its first step."""
        assert isinstance(model, Detection)
        train, _ = self._examples(dataset)
        return DetectionTraining(model, train, recipe, seed=seed, device=device)

    def score(self, model: nn.Module, dataset: Dataset, *, precision: Precision) -> dict[str, Any]:
        """Return a detector's scores on the test images, for a record."""
        assert isinstance(model, Detection)
        _, test = self._examples(dataset)
        detections = detect(model, test, precision=precision)
        return score(detections, test.truths, dataset.classes)

    def cost(self, model: nn.Module) -> Cost:
        """Return the cost of a test image with the most proposals."""
        assert isinstance(model, Detection)
        return detector_cost(model, self.detector)

    def shown(self, recipe: Recipe, num_train: int) -> int:
        """Count the images of one epoch, with mirrored copies."""
        return num_shown(recipe, num_train)

    def planned_flops(self, model: ModelSpec, num_classes: int) -> int:
        """Count the FLOPs of a test image, for a detector on the unpruned network."""
        return _planned(self, model, num_classes).flops

    def seconds(
        self, model: ModelSpec, data: DataSpec, recipe: Recipe, *, measured_for: float
    ) -> tuple[float, float]:
        """Measure the seconds per training image and per test image."""
        return _measured(self, model, data, recipe, measured_for)

    def _examples(self, dataset: Dataset) -> tuple[BoxedImages, BoxedImages]:
        return _fitted(dataset.spec, self.detector.short_side, self.detector.long_side)


@lru_cache(maxsize=2)
def _fitted(spec: DataSpec, short_side: int, long_side: int) -> tuple[BoxedImages, BoxedImages]:
    data: Any = load(spec)
    train, test = (part.fitted(short_side, long_side) for part in (data.train, data.test))
    return train, test


def _some_images(examples: BoxedImages) -> Iterator[Tensor]:
    """Yield the first images, normalised, to compute the norms' statistics."""
    for index in range(min(SETTLING_IMAGES, len(examples))):
        yield normalise(examples.pixels(index)[None], IMAGENET.mean, IMAGENET.std)


def _drawn(head: DetectorHead, net: nn.Module, num_classes: int) -> Detection:
    return head.around(net, num_classes=num_classes, mean=IMAGENET.mean, std=IMAGENET.std)


@cache
def _planned(head: DetectorHead, model: ModelSpec, num_classes: int) -> Cost:
    return head.cost(_drawn(head, build(model.untrained()), num_classes))


@lru_cache
def _measured(
    head: DetectorHead, model: ModelSpec, data: DataSpec, recipe: Recipe, seconds: float
) -> tuple[float, float]:
    """Time training and testing, about ``seconds`` each, of a detector on an untrained network."""
    dataset, net = load(data), build(model.untrained())
    head.settle_(net, dataset)
    whole = _drawn(head, net, len(dataset.classes))
    # Almost no learning: an untrained network may diverge at a rate that suits a trained one.
    slow = replace(recipe, lr=MEASURING_LR)
    training = head.training(whole, dataset, slow, seed=0, device="cpu")
    training.step()  # the first is slower
    began, steps = time.perf_counter(), 0
    while not training.done and (not steps or time.perf_counter() - began < seconds):
        training.step()
        steps += 1
    seconds_per_image = (time.perf_counter() - began) / max(steps * recipe.batch, 1)
    whole.eval()
    _, test = head._examples(dataset)
    began, tested = time.perf_counter(), 0
    with torch.inference_mode():
        while tested < len(test) and (not tested or time.perf_counter() - began < seconds):
            forward(whole, [test.pixels(tested)], precision=recipe.precision)
            tested += 1
    return seconds_per_image, (time.perf_counter() - began) / tested


def lucky_box(untrained: Mapping[str, Any]) -> float:
    """Return the mAP of the untrained detector plus that of one lucky box.

    If only the highest-scoring box of a class is correct, the class's average precision is 1/11. It
    is None for classes that the test images lack, which are not in the mean.
    """
    present = [value for value in untrained["ap"].values() if value is not None]
    return float(untrained["map"]) + 1 / 11 / max(1, len(present))


register_task(
    "detection",
    metric=MEAN_AP,
    model_arguments=of_images,
    inputs=("images",),
    targets=("boxes",),
    head=DetectorHead,
    measured_baseline=lucky_box,
    details=DETAILS,
    about="Objects in images, by a detector on each classifier of a study; mAP",
)
