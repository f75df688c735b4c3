"""A detection study: a study of classifiers, and detectors on what each of its arms leaves.

    name: voc
    backbone:                      # a study as `regrow run` takes it, of one network
      data: {name: "folder:imagenet", size: 224}
      models: imagenet-resnet-34
      methods: {name: l1-filter, target: [resnet-34-a, resnet-34-b]}
      recipe: imagenet
    data: "voc:VOCdevkit/VOC2007"
    detector: voc
    recipe: {epochs: 7}
    arms: [unpruned, prune-c, prune-d, scratch-e, scratch-b]

Arms (the paper's Table 12): prune-c trains a detector on the classifier that was pruned and
fine-tuned; scratch-e and scratch-b on the pruned classifier trained from scratch; prune-d prunes
the backbone of the unpruned detector and goes on at its lowest rate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from regrow.arms import UNPRUNED
from regrow.detection.evaluate import check_libraries
from regrow.detection.jobs import (
    DetectionMaterial,
    PruneDetector,
    TrainDetector,
    detection_material,
)
from regrow.detection.model import Detector
from regrow.detection.spec import DetectionSpec
from regrow.detection.training import AUGMENTATIONS, VOC_RECIPE
from regrow.errors import ConfigError, StoreError, unknown
from regrow.experiment import Cut, MethodUse, mapping
from regrow.jobs import Material, Prune, Retrain, Train
from regrow.prune import METHODS, Method
from regrow.store import Store
from regrow.study import Cell, Study, _Loader
from regrow.train import Recipe
from regrow.work import Job

KEYS = ("name", "title", "backbone", "data", "detector", "recipe", "arms", "seeds")

# What a detection arm needs of the classifiers: the paper caps scratch-b on ImageNet at twice.
CLASSIFIER_ARMS: Mapping[str, Any] = {
    "unpruned": "unpruned",
    "prune-c": "fine-tune",
    "prune-d": "unpruned",
    "scratch-e": "scratch-e",
    "scratch-b": {"name": "scratch-b", "cap": 2},
}


@dataclass(frozen=True, kw_only=True)
class DetectionCell:
    """One seed of one row of the table, and the job that fills it."""

    arm: str
    target: str | None  # how much was cut: a target's name or a sparsity
    seed: int
    job: TrainDetector


@dataclass(frozen=True, kw_only=True)
class DetectionStudy:
    """Detectors that are compared, in report order."""

    name: str
    title: str
    classes: tuple[str, ...]
    cells: tuple[DetectionCell, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that fill the cells; what they stand on is in their ``inputs``."""
        return tuple({cell.job.key: cell.job for cell in self.cells}.values())

    def rows(self, store: Store) -> list[dict[str, Any]]:
        """Return a mapping for each cell: its place, its status, and what was measured.

        ``map``, ``ap_<class>`` (VOC 2007, percent), ``coco_ap``, ``coco_ap50`` and ``coco_ap75``
        (percent); ``map_before`` its first step; ``accuracy`` of the classifier it started from.
        """
        return [_row(cell, store) for cell in self.cells]


def detection_study(value: str | Path | Mapping[str, Any]) -> DetectionStudy:
    """Read a detection study from a YAML file or a mapping, and expand it into jobs.

    All annotations are read, so that broken ones are refused before anything is trained.
    """
    if isinstance(value, Mapping):
        return _read(value, name="detection")
    file = Path(value)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot read the study '{file}': {reason}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The study '{file}' is not YAML: {error}") from error
    try:
        return _read(content, name=file.stem)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _read(value: Any, *, name: str) -> DetectionStudy:
    top = mapping(value, "A detection study", KEYS)
    for key in ("backbone", "data"):
        if key not in top:
            raise ConfigError(f"{key!r} is missing. A detection study needs it.")
    check_libraries()
    arms = _arms(top.get("arms", list(CLASSIFIER_ARMS)))
    detector = Detector.from_json(top.get("detector", "voc"))
    recipe = _recipe(top.get("recipe", {}))
    data = detection_material(DetectionSpec.from_json(top["data"]), detector)
    cells = _classifiers(top, arms)
    return DetectionStudy(
        name=str(top.get("name", name)),
        title=str(top.get("title", top.get("name", name))),
        classes=data.classes,
        cells=tuple(_cells(cells, arms, data, detector, recipe)),
    )


def _arms(value: Any) -> list[str]:
    arms = [value] if isinstance(value, str) else value
    if not isinstance(arms, Sequence) or not arms:
        raise ConfigError(f"'arms' must list at least one name. Got {value!r}.")
    for arm in arms:
        if arm not in CLASSIFIER_ARMS:
            raise ConfigError(f"Detection: {unknown('arm', str(arm), CLASSIFIER_ARMS)}")
    return list(dict.fromkeys(arms))


def _recipe(value: Any) -> Recipe:
    """Read a recipe whose fields are those of VOC where they are not given."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"A detector's recipe must be a mapping of fields. Got {value!r}.")
    recipe = Recipe.from_json({**VOC_RECIPE.to_json(), **value})
    if recipe.augmentation not in (None, *AUGMENTATIONS):
        raise ConfigError(
            f"Detection: {unknown('augmentation', recipe.augmentation or '', AUGMENTATIONS)}"
        )
    return recipe


def _classifiers(top: Mapping[str, Any], arms: list[str]) -> list[Cell]:
    """Expand the study of the backbones, with the arms that the detectors need."""
    backbone = top["backbone"]
    if not isinstance(backbone, Mapping):
        raise ConfigError(f"The 'backbone' must be a study of classifiers. Got {backbone!r}.")
    wanted = {_arm_name(CLASSIFIER_ARMS[arm]): CLASSIFIER_ARMS[arm] for arm in arms}
    given = {_arm_name(arm): arm for arm in backbone.get("arms", [])}
    needed = [given.get(name, arm) for name, arm in ({"unpruned": "unpruned"} | wanted).items()]
    if extra := sorted(set(given) - set(wanted)):
        raise ConfigError(
            f"The 'backbone' has the arm {extra[0]!r}, on which no detector of the arms "
            f"{', '.join(arms)} is trained. Leave it out."
        )
    seeds = {"seeds": top.get("seeds", 1)} | dict(backbone)
    cells = Study.from_json({**seeds, "arms": needed}).cells()
    uses = cells[0].experiment.uses
    if len({id(c.experiment) for c in cells}) > 1 or len(uses) > 1:
        raise ConfigError(
            "The 'backbone' of a detection study has one network, one data set and one method. "
            "Write a study for each."
        )
    if not uses and arms != ["unpruned"]:
        raise ConfigError(
            "The 'backbone' names no method, so only the arm 'unpruned' can be run. Name one."
        )
    if (channels := _looked_at(cells[0].job).channels) != 3:
        raise ConfigError(
            f"Detection needs a classifier of colour images, and the 'backbone' has {channels} "
            "channel(s). Name another data set."
        )
    return cells


def _arm_name(arm: Any) -> str:
    return str(arm.get("name", "")) if isinstance(arm, Mapping) else str(arm)


def _looked_at(job: Job) -> Material:
    job = job.prune if isinstance(job, Retrain) else job
    assert isinstance(job, Train | Prune)
    return job.data


def _cells(
    classifiers: list[Cell],
    arms: list[str],
    data: DetectionMaterial,
    detector: Detector,
    recipe: Recipe,
) -> Iterator[DetectionCell]:
    """Hang a detector on each classifier, and prune the unpruned ones."""

    def cell(
        arm: str, backbone: Train | Retrain | PruneDetector, seed: int, cut: Cut | None = None
    ) -> DetectionCell:
        target = None if cut is None else cut.label
        job = TrainDetector(
            data=data,
            detector=detector,
            recipe=_lowest(recipe) if arm == "prune-d" else recipe,
            seed=seed,
            backbone=backbone,
            label=" ".join(filter(None, ["detector", arm, target, f"seed {seed}"])),
        )
        return DetectionCell(arm=arm, target=target, seed=seed, job=job)

    jobs = {(c.cut, c.arm.name, c.seed): c.job for c in classifiers}
    experiment = classifiers[0].experiment
    whole = {}
    for seed in experiment.seeds:
        trained = jobs[None, UNPRUNED.name, seed]
        assert isinstance(trained, Train)
        whole[seed] = cell("unpruned", trained, seed)
    if "unpruned" in arms:
        yield from whole.values()
    for use in experiment.uses:
        for cut in use.cuts:
            for arm in (arm for arm in arms if arm != "unpruned"):
                for seed in experiment.seeds:
                    if arm == "prune-d":
                        yield cell(arm, _prune(whole[seed].job, use, cut), seed, cut)
                        continue
                    backbone = jobs[cut, _arm_name(CLASSIFIER_ARMS[arm]), seed]
                    assert isinstance(backbone, Retrain)
                    yield cell(arm, backbone, seed, cut)


def _prune(parent: TrainDetector, use: MethodUse, cut: Cut) -> PruneDetector:
    chosen = use.method  # of which this needs what decides, and nothing that is done in training
    method = Method(
        name=chosen.name,
        criterion=chosen.criterion,
        allocation=chosen.allocation,
        unit=chosen.unit,
        scope=chosen.scope,
        repair=chosen.repair,
    )
    return PruneDetector(
        parent=parent,
        method=method,
        seed=parent.seed,
        sparsity=cut.sparsity,
        shares=cut.shares,
        code=METHODS.code(method.name),
        label=f"prune detector {cut.label} seed {parent.seed}",
    )


def _lowest(recipe: Recipe) -> Recipe:
    """Return as many epochs at the lowest rate: the paper's rule, whose length it leaves open."""
    return replace(recipe, schedule="constant", lr=recipe.last_lr(), warmup_epochs=0)


def _row(cell: DetectionCell, store: Store) -> dict[str, Any]:
    job = cell.job
    row: dict[str, Any] = {"arm": cell.arm, "target": cell.target, "seed": cell.seed}
    status = store.status(job.key)
    if status != "done":
        failure = store.failure(job.key) if status == "failed" else None
        return row | {"status": status} | ({"message": failure["message"]} if failure else {})
    record = store.record(job.key, spec=job.spec)
    row |= {"status": "done", "map": 100 * record["map"]}
    row["map_before"] = 100 * record["before"]["map"]
    row |= {f"ap_{c}": None if ap is None else 100 * ap for c, ap in record["ap"].items()}
    row |= {f"coco_{name}": 100 * value for name, value in record["coco"].items()}
    row |= {name: record[name] for name in ("parameters", "macs", "epochs", "samples", "num_test")}
    if isinstance(job.backbone, Train | Retrain):
        try:
            accuracy = store.record(job.backbone.key, spec=job.backbone.spec)["accuracy"]
        except StoreError:  # the classifier was removed; the detector stands without
            accuracy = None
        row["accuracy"] = None if accuracy is None else 100 * accuracy
    return row
