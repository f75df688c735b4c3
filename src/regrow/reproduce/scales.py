"""Scales of a reproduction: the paper's own, or narrower networks and shorter training.

A scale is applied to the mapping that a study file holds, so that there is one file for each table
and not one for each size of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from math import floor
from typing import Any

from regrow.errors import ConfigError, unknown
from regrow.jobs.arms import ARMS
from regrow.models import MODELS
from regrow.train import Recipe

NORMS = "conv_norm"  # the argument of models that gives convolutions a norm


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A reduction of a study's numbers; None leaves them as they are.

    Networks of another width than the published ones are trained instead of loaded pretrained.

    Attributes:
        epochs: factor on every number of epochs; at least one is left.
        width: factor on the width of every network.
        subset: the largest number of training images; ``test_subset`` likewise.
        batch: the largest number of images per step.
        cap: the largest cap on budgets of equal FLOPs, in multiples of the base epochs.
        rounds: the largest number of rounds of pruning.
        seeds: the largest number of seeds.
        normed: whether networks get norms if their family supports them: without norms they end at
            chance after a thousand updates (docs/reproduce.md).
        large_size: side of large images in pixels (``paper.DataSet``).
        large_least: side in pixels to which stand-ins for large images are enlarged.
        stand_in: images to use for the paper's if no others are named.
        detection: further reductions for studies of detectors.
    """

    name: str
    about: str
    epochs: float = 1.0
    width: float = 1.0
    subset: int | None = None
    test_subset: int | None = None
    batch: int | None = None
    cap: float | None = None
    rounds: int | None = None
    seeds: int | None = None
    normed: bool = False
    large_size: int = 224
    large_least: int | None = None
    stand_in: str | None = None
    detection: "DetectionScale" = field(default_factory=lambda: DetectionScale())


@dataclass(frozen=True, kw_only=True)
class DetectionScale:
    """A scale's further reductions of a study of detectors.

    Attributes:
        detector: a detector in place of the paper's, as a study file has it.
        epochs: factor on the detectors' epochs, if it is not that of the networks.
        batch: the largest batch of the classifiers: detectors keep the statistics of their norms,
            which take some steps to settle.
        stand_in: images with boxes to use for the paper's.
        backbone_stand_in: colour images to use for the classifiers' data.
    """

    detector: Mapping[str, Any] | None = None
    epochs: float | None = None
    batch: int | None = None
    stand_in: str | None = None
    backbone_stand_in: str | None = None


SCALES: Mapping[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(
            name="paper",
            about="the paper's own widths, epochs, seeds and data",
        ),
        Scale(
            name="small",
            about="a quarter of the width, a tenth of the epochs, at most 5,000 training and "
            "2,000 test images, scratch-b of at most 3 times the epochs, 2 seeds",
            epochs=1 / 10,
            width=0.25,
            subset=5_000,
            test_subset=2_000,
            batch=64,
            cap=3.0,
            seeds=2,
            large_size=64,
            detection=DetectionScale(detector={"name": "small"}),
        ),
        Scale(
            name="minutes",
            about="a quarter of the width, a tenth of the epochs in steps of at most 32 images, "
            "handwritten digits for images, norms in networks that have none, scratch-b of at most "
            "twice the epochs, at most 5 rounds, 2 seeds: a first look in minutes",
            epochs=1 / 10,
            width=0.25,
            batch=32,
            cap=2.0,
            rounds=5,
            seeds=2,
            normed=True,
            large_size=32,
            large_least=16,
            stand_in="digits",
            detection=DetectionScale(
                detector={"name": "small", "short_side": 72, "long_side": 120},
                epochs=1.0,
                batch=8,
                stand_in="voc-shapes",
                backbone_stand_in="shapes",
            ),
        ),
        Scale(
            name="smoke",
            about="an eighth of the width, an 80th of the epochs, at most 256 training and 128 "
            "test images, scratch-b of at most twice the epochs, 1 seed: a test that everything "
            "runs, whose numbers mean nothing",
            epochs=1 / 80,
            width=0.125,
            subset=256,
            test_subset=128,
            batch=64,
            cap=2.0,
            seeds=1,
            large_size=32,
            stand_in="digits",
            detection=DetectionScale(
                detector={"name": "small", "short_side": 72, "long_side": 120},
                batch=8,
                stand_in="voc-shapes",
                backbone_stand_in="shapes",
            ),
        ),
    )
}


def named(name: str) -> Scale:
    """Return a scale by name; for an unknown one, a ``ConfigError`` suggests similar names."""
    if name not in SCALES:
        raise ConfigError(unknown("scale", name, SCALES))
    return SCALES[name]


def shortened(scale: Scale, share: float) -> Scale:
    """Return a scale with this share of its epochs."""
    if share == 1.0:
        return scale
    about = f"{scale.about}, for {100 * share:.3g} % of those epochs"
    detection = scale.detection
    if detection.epochs is not None:
        detection = replace(detection, epochs=detection.epochs * share)
    return replace(scale, epochs=scale.epochs * share, about=about, detection=detection)


def scaled(
    study: Mapping[str, Any], scale: Scale, *, precision: str | None = None
) -> dict[str, Any]:
    """Apply a scale to a study's mapping: to its top level and to each of its experiments.

    Data are not changed, because they depend on what is available. ``precision`` replaces that of
    the recipes.
    """
    smaller = _block(study, scale, precision)
    if "experiments" in study:
        smaller["experiments"] = [_block(part, scale, precision) for part in study["experiments"]]
    return smaller


def _built(part: Mapping[str, Any], scale: Scale, precision: str | None) -> dict[str, Any]:
    """Apply a scale to a study of detectors: to the backbone, the detector and its recipe."""
    smaller, reductions = dict(part), scale.detection
    beneath = replace(scale, batch=reductions.batch or scale.batch)
    smaller["backbone"] = _block(part["backbone"], beneath, precision)
    factor = scale.epochs if reductions.epochs is None else reductions.epochs
    recipe = {"name": "voc", **part.get("recipe", {})}
    smaller["recipe"] = _recipe(recipe, replace(scale, epochs=factor), precision)
    if reductions.detector is not None:
        smaller["detector"] = dict(reductions.detector)
    return smaller


def _block(part: Mapping[str, Any], scale: Scale, precision: str | None) -> dict[str, Any]:
    smaller = dict(part)
    if "backbone" in part:  # its arms are transfers, which a scale does not change
        smaller = _built(part, scale, precision)
        part = {key: value for key, value in part.items() if key == "seeds"}
    if "models" in part:
        smaller["models"] = [_model(entry, scale) for entry in _list(part["models"])]
    if "methods" in part:
        smaller["methods"] = [_method(entry, scale, precision) for entry in _list(part["methods"])]
    if "arms" in part:
        smaller["arms"] = [_arm(entry, scale) for entry in _list(part["arms"])]
    if "recipe" in part:
        smaller["recipe"] = _recipe(part["recipe"], scale, precision)
    if "seeds" in part and scale.seeds is not None:
        smaller["seeds"] = min(part["seeds"], scale.seeds)
    return smaller


def _model(entry: Any, scale: Scale) -> dict[str, Any]:
    model = _mapping(entry)
    if scale.normed and NORMS in signature(MODELS.get(model["name"]).factory).parameters:
        model[NORMS] = True
    if scale.width == 1.0:
        return model
    model.pop("weights", None)
    return {**model, "width": model.get("width", 1.0) * scale.width}


def _method(entry: Any, scale: Scale, precision: str | None) -> dict[str, Any]:
    """Apply a scale to a method's rounds, and to the networks whose pattern it follows."""
    method = _mapping(entry)
    if scale.rounds is not None and "rounds" in method:
        method["rounds"] = min(method["rounds"], scale.rounds)
    if "from" in method:
        source = method["from"] = dict(method["from"])
        if "model" in source:
            source["model"] = _model(source["model"], scale)
        if "recipe" in source:
            source["recipe"] = _recipe(source["recipe"], scale, precision)
    return method


def _arm(entry: Any, scale: Scale) -> dict[str, Any]:
    arm = _mapping(entry)
    for name in ("epochs", "epoch", "schedule_epoch"):
        if name in arm:
            arm[name] = _epochs(arm[name], scale)
    base = arm.get("like", arm["name"])
    own_budget = {"start", "epochs", "share", "budget"} & set(arm)
    equal_flops = not own_budget and ARMS.get(base).budget.kind == "equal-flops"
    if equal_flops and scale.cap is not None:
        arm["cap"] = min(arm.get("cap", scale.cap), scale.cap)
    return arm


def _recipe(value: Any, scale: Scale, precision: str | None) -> dict[str, Any]:
    recipe, smaller = Recipe.from_json(value), _mapping(value)
    smaller["epochs"] = _epochs(recipe.epochs, scale)
    if scale.batch is not None:
        smaller["batch"] = min(recipe.batch, scale.batch)
    return smaller if precision is None else {**smaller, "precision": precision}


def _epochs(epochs: int, scale: Scale) -> int:
    return max(1, floor(epochs * scale.epochs + 1e-9))


def _mapping(entry: Any) -> dict[str, Any]:
    return {"name": entry} if isinstance(entry, str) else dict(entry)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
