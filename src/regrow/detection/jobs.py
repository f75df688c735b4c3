"""The two jobs of a detection study: train a detector on a backbone, and prune one's backbone.

Prune-C and the scratch arms are ``TrainDetector`` on the classifier that a ``Retrain`` left;
Prune-D is ``TrainDetector`` on the whole detector that a ``PruneDetector`` left.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from regrow.core.units import UNITS
from regrow.data.normalisation import IMAGENET
from regrow.detection.evaluate import evaluate_detector
from regrow.detection.model import (
    Detection,
    Detector,
    build_detector,
    classifier_state,
    detector_cost,
    settle_norms_,
)
from regrow.detection.pace import measured_pace, planned_flops, some_images
from regrow.detection.spec import AUGMENTATIONS, DetectionSpec
from regrow.detection.training import DetectionTraining
from regrow.detection.voc import DetectionData, fingerprint, loaded
from regrow.errors import ConfigError
from regrow.jobs.base import Context, Job, Keyed, Outcome, Pace, state_of, without_none
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train, advance
from regrow.models import ModelSpec, build
from regrow.pruning.method import Method
from regrow.pruning.select import select
from regrow.surgery import prove, shrink, trace
from regrow.surgery.architecture import Architecture
from regrow.train import Recipe

PRUNE_SECONDS = 3.0
UNTRAINED_SHAPE = (1, 3, 64, 64)  # on which a backbone without a classifier's data is traced


@dataclass(frozen=True, kw_only=True)
class DetectionMaterial:
    """The pictures of a job: how to load them, the identity of their content, their classes."""

    spec: DetectionSpec
    content: str  # fingerprint, the same wherever the files lie
    classes: tuple[str, ...]
    num_train: int
    num_test: int
    num_left_out: int = 0
    notices: tuple[str, ...] = ()  # for people: no part of any key


def detection_material(spec: DetectionSpec, detector: Detector) -> DetectionMaterial:
    """Look at a data set, reading all of it: broken files are refused before any training."""
    data = loaded(spec, detector.short_side, detector.long_side)
    return DetectionMaterial(
        spec=spec,
        content=fingerprint(spec),
        classes=data.classes,
        num_train=len(data.train),
        num_test=len(data.test),
        num_left_out=data.num_left_out,
        notices=data.notices,
    )


@dataclass(frozen=True)
class _Start:
    """What a training starts from."""

    model: Detection
    architecture: Architecture
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TrainDetector(Keyed):
    """Train a detector.

    ``backbone``: a trained classifier, whole (``Train``) or cut (``Retrain``); a detector with a
    cut backbone (``PruneDetector``), which goes on as a whole; or None: ``model`` as first drawn,
    its norms set to the statistics of some training pictures.
    """

    kind: ClassVar[str] = "train-detector"
    version: ClassVar[int] = 1

    data: DetectionMaterial
    detector: Detector
    recipe: Recipe
    seed: int
    backbone: "Train | Retrain | PruneDetector | None" = None
    model: ModelSpec | None = None  # without a backbone
    label: str = "train detector"

    def __post_init__(self) -> None:
        if (self.backbone is None) == (self.model is None):
            raise ConfigError("A detector is trained on a 'backbone' or on a 'model': give one.")
        if isinstance(self.backbone, Retrain):
            check_cuts(self.backbone.prune.method)
            if self.backbone.arm.budget.kind == "none":
                raise ConfigError(
                    f"The arm {self.backbone.arm.name!r} trains nothing, so it leaves no network "
                    "to detect with. Give it a budget."
                )

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The network it starts from, and how that was cut."""
        if self.backbone is None:
            return ()
        if isinstance(self.backbone, Retrain):
            return (self.backbone, self.backbone.prune)
        return (self.backbone,)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that was asked for."""
        return without_none(
            data=self.data.content,
            detector=self.detector.to_json(),
            recipe=self.recipe.to_json(),
            seed=self.seed,
            model=self.model and self.model.identity(),
        )

    @cached_property
    def flops(self) -> float:
        """FLOPs of the training, as if the backbone were whole."""
        cost = planned_flops(self._model(), self.detector, len(self.data.classes))
        return 3.0 * cost * self._num_shown

    def run(self, context: Context) -> Outcome:
        """Train, and read the test pictures once after and once before."""
        data = loaded(self.data.spec, self.detector.short_side, self.detector.long_side)
        start = self._start(context, data)
        training = DetectionTraining(
            start.model, data.train, self.recipe, seed=self.seed, device=context.device
        )
        advance(training, context)
        cost = detector_cost(training.model, self.detector)
        precision = self.recipe.precision
        score = evaluate_detector(training.model, data.test, data.classes, precision=precision)
        # Built anew rather than scored at first: a resumed training has it no more.
        before = self._start(context, data).model.to(context.device)
        untrained = evaluate_detector(before, data.test, data.classes, precision=precision)
        record = {
            **score.to_json(),
            "before": untrained.to_json(),
            "num_test": score.num,
            **cost.to_json(),
            "epochs": self.recipe.epochs,
            "samples": training.samples,
            "training_flops": cost.training_flops(training.samples),
            "history": training.history,
            "classes": list(data.classes),
            "num_left_out": data.num_left_out,
            "architecture": start.architecture.to_json(),
            "mean": list(start.mean),
            "std": list(start.std),
        }
        return Outcome(record, state_of(training.model))

    @property
    def pace_group(self) -> str:  # type: ignore[override]
        """Detectors take what is estimated times one factor."""
        return self.kind

    def estimate(self, pace: Pace) -> float:
        """Return the seconds of all steps and tests, after some with an uncut detector."""
        data = loaded(self.data.spec, self.detector.short_side, self.detector.long_side)
        measured = measured_pace(
            self._model(), self.detector, self.recipe, data, seconds=pace.seconds
        )
        return self._num_shown * measured.shown + 2 * self.data.num_test * measured.tested

    @property
    def _num_shown(self) -> int:
        """Count the pictures of all epochs."""
        copies = 2 if (self.recipe.augmentation or AUGMENTATIONS[0]) == "flipped-copies" else 1
        return self.recipe.epochs * self.data.num_train * copies

    def _start(self, context: Context, data: DetectionData) -> _Start:
        """Build the detector as it is before its first step."""
        backbone = self.backbone
        if isinstance(backbone, PruneDetector):
            record = context.record(backbone)
            architecture = Architecture.from_json(record["architecture"])
            mean, std = tuple(record["mean"]), tuple(record["std"])
            model = self._around(architecture.build(), mean, std)
            model.load_state_dict(context.tensors(backbone))
            return _Start(model, architecture, mean, std)
        if backbone is None:
            assert self.model is not None
            architecture = Architecture(model=self.model, shape=UNTRAINED_SHAPE)
            net, mean, std = build(self.model, seed=self.seed), IMAGENET.mean, IMAGENET.std
            settle_norms_(net, some_images(data.train, mean, std))
        else:
            architecture = _architecture(backbone, context)
            net = architecture.build()
            net.load_state_dict(context.tensors(backbone))
            dataset = context.dataset(_classified(backbone).data.spec)
            mean, std = dataset.mean, dataset.std
        return _Start(self._around(net, mean, std), architecture, mean, std)

    def _around(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Detection:
        return build_detector(
            net,
            self.detector,
            num_classes=len(self.data.classes),
            mean=mean,
            std=std,
            seed=self.seed,
        )

    def _model(self) -> ModelSpec:
        """Return the uncut classifier."""
        job = self.backbone
        while isinstance(job, PruneDetector):
            if job.parent.model is not None:
                return job.parent.model
            job = job.parent.backbone
        if job is None:
            assert self.model is not None
            return self.model
        return _classified(job).model


def check_cuts(method: Method) -> None:
    """Refuse a method that leaves no smaller network for a detector to stand on."""
    if not UNITS.get(method.unit).narrows:
        raise ConfigError(
            f"Detection stands on backbones of fewer channels, and {method.name!r} removes "
            f"{method.unit}s. Use a method of unit 'channel', such as l1-filter."
        )


@dataclass(frozen=True, kw_only=True)
class PruneDetector(Keyed):
    """Prune the backbone of a trained detector by its weights, within the blocks."""

    kind: ClassVar[str] = "prune-detector"
    version: ClassVar[int] = 1

    parent: TrainDetector
    method: Method
    seed: int
    sparsity: float | None = None
    shares: tuple[float, ...] | None = None
    code: str | None = None  # digest of the files that decide, where not part of this package
    label: str = "prune detector"

    def __post_init__(self) -> None:
        check_cuts(self.method)
        if self.method.repair is not None:
            raise ConfigError(
                f"{self.method.name!r} mends a classifier's weights after it has cut them, which "
                "cannot be done within a detector. Leave the arm 'prune-d' out, or use a method "
                "that mends nothing, such as l1-filter."
            )

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The trained detector."""
        return (self.parent,)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """All that was asked for."""
        method = self.method
        return without_none(
            criterion=method.criterion,
            allocation=method.allocation if self.shares is None else None,
            scope=list(method.scope),
            sparsity=self.sparsity,
            shares=None if self.shares is None else list(self.shares),
            normalise=method.normalise,
            seed=self.seed,
            code=self.code,
        )

    @property
    def flops(self) -> float:
        """Nothing is trained."""
        return 0.0

    @property
    def pace_group(self) -> str:  # type: ignore[override]
        """Such prunings take what is estimated times one factor."""
        return self.kind

    def estimate(self, pace: Pace) -> float:
        """Return what following the channels of a ResNet takes, which is most of it."""
        return PRUNE_SECONDS

    def run(self, context: Context) -> Outcome:
        """Score the filters that the detector learnt, cut, and keep all other layers."""
        record, tensors = context.record(self.parent), context.tensors(self.parent)
        architecture = Architecture.from_json(record["architecture"])
        net = architecture.build()
        features = classifier_state(tensors)
        # The classifier's own head is no part of a detector, and no part of this choice.
        net.load_state_dict({**net.state_dict(), **features})
        found = trace(net, architecture.example())
        mask = select(
            net,
            found,
            self.method,
            sparsity=self.sparsity,
            shares=self.shares,
            seed=self.seed,
        )
        prove(net, mask, found)
        model = build_detector(
            shrink(net, mask, found),
            self.parent.detector,
            num_classes=len(self.parent.data.classes),
            mean=tuple(record["mean"]),
            std=tuple(record["std"]),
        )
        model.load_state_dict(_kept(model.state_dict(), tensors, method=self.method.name))
        before = {name: record[name] for name in ("parameters", "macs", "flops")}
        found_record = {
            "unit": mask.unit,
            "sparsity": mask.sparsity,
            "widths": mask.widths(),
            "guarded": list(mask.guarded),
            "before": before,
            "after": detector_cost(model, self.parent.detector).to_json(),
            "architecture": architecture.then(mask).to_json(),
            "mean": record["mean"],
            "std": record["std"],
        }
        return Outcome(found_record, state_of(model))


def _kept(
    state: dict[str, Tensor], trained: dict[str, Tensor], *, method: str
) -> dict[str, Tensor]:
    """Return a cut detector's state with the trained values of all layers around its backbone."""
    cut = {name for name in state if classifier_state({name: state[name]})}
    for name in state:
        if name not in cut and state[name].shape != trained[name].shape:
            raise ConfigError(
                f"{method!r} cuts what the backbone puts out, which {name!r} of the detector "
                "reads. Prune within the blocks only: scope: conv."
            )
    return {name: state[name] if name in cut else trained[name] for name in state}


def _classified(backbone: Train | Retrain) -> Train | Prune:
    """Return the job that knows a classifier's data and model."""
    return backbone if isinstance(backbone, Train) else backbone.prune


def _architecture(backbone: Train | Retrain, context: Context) -> Architecture:
    if isinstance(backbone, Train):
        return Architecture(model=backbone.model, shape=backbone.data.shape)
    return Architecture.from_json(context.record(backbone.prune)["architecture"])
