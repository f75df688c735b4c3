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
from functools import cached_property
from typing import Any, ClassVar

from regrow.core.validation import mapping, text
from regrow.detection.evaluate import check_libraries
from regrow.detection.jobs import (
    DetectionMaterial,
    PruneDetector,
    TrainDetector,
    check_cuts,
    detection_material,
)
from regrow.detection.model import Detector
from regrow.detection.spec import AUGMENTATIONS, VOC_RECIPE, DetectionSpec
from regrow.errors import ConfigError, unknown
from regrow.jobs.arms import UNPRUNED, Arm, Budget
from regrow.jobs.base import Job, Material
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.pruning.method import METHODS, Method
from regrow.studies.expand import Cell
from regrow.studies.experiment import Cut, Experiment, MethodUse
from regrow.studies.study import Study, file_name, read_margin
from regrow.train import Recipe

KEYS = (
    "task",
    "name",
    "title",
    "backbone",
    "data",
    "detector",
    "recipe",
    "arms",
    "seeds",
    "margin",
)


@dataclass(frozen=True, kw_only=True)
class DetectorArm:
    """What the detectors of a row stand on.

    ``classifier``: the classifiers' arm, as a study of them names it; ``further``: the detector on
    it is pruned, and goes on.
    """

    name: str
    classifier: Any
    further: bool = False

    @property
    def needs(self) -> str:
        """The name of the classifiers' arm."""
        return _arm_name(self.classifier)

    @property
    def unpruned(self) -> bool:
        """Whether nothing of it is pruned, neither classifier nor detector."""
        return self.needs == UNPRUNED.name and not self.further

    def after(self, classifier: Arm) -> Arm:
        """Return what happens after pruning, to the classifier's arm or to the detector itself."""
        if not self.further:
            return replace(classifier, name=self.name)
        budget = Budget(kind="equal-epochs")
        return Arm(name=self.name, start="inherited", budget=budget, schedule="last-rate")


ARMS: Mapping[str, DetectorArm] = {
    arm.name: arm
    for arm in (
        DetectorArm(name=UNPRUNED.name, classifier=UNPRUNED.name),
        DetectorArm(name="prune-c", classifier="fine-tune"),
        DetectorArm(name="prune-d", classifier=UNPRUNED.name, further=True),
        DetectorArm(name="scratch-e", classifier="scratch-e"),
        # The paper's cap on ImageNet.
        DetectorArm(name="scratch-b", classifier={"name": "scratch-b", "cap": 2}),
    )
}


@dataclass(frozen=True, kw_only=True)
class DetectionStudy:
    """Detectors that are compared, on the classifiers of a ``backbone`` study."""

    name: str
    title: str
    backbone: Study  # of one network, one data set and at most one method
    arms: tuple[DetectorArm, ...]
    data: DetectionSpec
    data_label: str
    detector: Detector
    recipe: Recipe
    margin: float | None = None
    kind: ClassVar[str] = "detection"

    @classmethod
    def from_json(cls, value: Any, *, name: str = "detection") -> "DetectionStudy":
        """Check a study given as mappings and lists."""
        top = mapping(value, "A detection study", KEYS)
        for key in ("backbone", "data"):
            if key not in top:
                raise ConfigError(f"{key!r} is missing. A detection study needs it.")
        arms = _arms(top.get("arms", list(ARMS)))
        data, label = _data(top["data"])
        return cls(
            name=file_name(top.get("name", name)),
            title=text(top.get("title", top.get("name", name)), "title"),
            backbone=_backbone(top, arms),
            arms=arms,
            data=data,
            data_label=label,
            detector=Detector.from_json(top.get("detector", "voc")),
            recipe=_recipe(top.get("recipe", {})),
            margin=read_margin(top),
        )

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment of the backbones, under the names that its detectors have in a table."""
        (own,) = self.backbone.experiments
        model = f"Faster R-CNN on {own.model_label}"
        return replace(own, data_label=self.data_label, model_label=model)

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The only one, as a tuple."""
        return (self.experiment,)

    def cells(self) -> list[Cell]:
        """Expand into the rows of the table, one cell a seed, in report order.

        All annotations are read, so that broken ones are refused before anything is trained.
        """
        check_libraries()
        return [cell for cell, _ in self.pairs()]

    def pairs(self) -> list[tuple[Cell, Cell]]:
        """Return the cells of the table, each with that of the classifier it stands on."""
        classifiers = self.backbone.cells()
        if (channels := _looked_at(classifiers[0].job).shape[1]) != 3:
            raise ConfigError(
                f"Detection needs a classifier of colour images, and the 'backbone' has {channels} "
                "channel(s). Name another data set."
            )
        return list(_cells(self, classifiers, detection_material(self.data, self.detector)))

    def jobs(self) -> tuple[Job, ...]:
        """Return the jobs that fill the cells; what they stand on is in their ``inputs``."""
        return tuple({cell.job.key: cell.job for cell in self.cells()}.values())


def _data(value: Any) -> tuple[DetectionSpec, str]:
    given = {"name": value} if isinstance(value, str) else value
    label = given.get("label") if isinstance(given, Mapping) else None
    if label is not None:
        given = {key: own for key, own in given.items() if key != "label"}
    spec = DetectionSpec.from_json(given)
    return spec, text(label if label is not None else spec.label, "label")


def _arms(value: Any) -> tuple[DetectorArm, ...]:
    arms = [value] if isinstance(value, str) else value
    if not isinstance(arms, Sequence) or not arms:
        raise ConfigError(f"'arms' must list at least one name. Got {value!r}.")
    for arm in arms:
        if not isinstance(arm, str) or arm not in ARMS:
            raise ConfigError(f"Detection: {unknown('arm', str(arm), ARMS)}")
    return tuple(ARMS[arm] for arm in dict.fromkeys(arms))


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


def _backbone(top: Mapping[str, Any], arms: Sequence[DetectorArm]) -> Study:
    """Read the study of the backbones, with the arms that the detectors need."""
    backbone = top["backbone"]
    if not isinstance(backbone, Mapping):
        raise ConfigError(f"The 'backbone' must be a study of classifiers. Got {backbone!r}.")
    wanted = {arm.needs: arm.classifier for arm in arms}
    given = {_arm_name(arm): arm for arm in backbone.get("arms", [])}
    whole = {UNPRUNED.name: UNPRUNED.name}
    needed = [given.get(name, arm) for name, arm in (whole | wanted).items()]
    if extra := sorted(set(given) - set(wanted)):
        raise ConfigError(
            f"The 'backbone' has the arm {extra[0]!r}, on which no detector of the arms "
            f"{', '.join(arm.name for arm in arms)} is trained. Leave it out."
        )
    seeds = {"seeds": top.get("seeds", 1)} | dict(backbone)
    study = Study.from_json({**seeds, "arms": needed})
    uses = study.experiments[0].uses
    if len(study.experiments) > 1 or len(uses) > 1:
        raise ConfigError(
            "The 'backbone' of a detection study has one network, one data set and one method. "
            "Write a study for each."
        )
    if not uses and not all(arm.unpruned for arm in arms):
        raise ConfigError(
            "The 'backbone' names no method, so only the arm 'unpruned' can be run. Name one."
        )
    for use in uses:
        check_cuts(use.method)
    return study


def _arm_name(arm: Any) -> str:
    return str(arm.get("name", "")) if isinstance(arm, Mapping) else str(arm)


def _looked_at(job: Job) -> Material:
    job = job.prune if isinstance(job, Retrain) else job
    assert isinstance(job, Train | Prune)
    return job.data


def _cells(
    study: DetectionStudy, classifiers: Sequence[Cell], data: DetectionMaterial
) -> Iterator[tuple[Cell, Cell]]:
    """Hang a detector on each classifier, and prune the unpruned ones."""

    def pair(
        arm: DetectorArm,
        under: Cell,
        backbone: Job,
        use: MethodUse | None = None,
        cut: Cut | None = None,
    ) -> tuple[Cell, Cell]:
        assert isinstance(backbone, Train | Retrain | PruneDetector)
        target = None if cut is None else cut.label
        job = TrainDetector(
            data=data,
            detector=study.detector,
            recipe=_lowest(study.recipe) if arm.further else study.recipe,
            seed=under.seed,
            backbone=backbone,
            label=" ".join(filter(None, ["detector", arm.name, target, f"seed {under.seed}"])),
        )
        cell = Cell(
            experiment=study.experiment,
            use=use,
            cut=cut,
            arm=arm.after(under.arm),
            seed=under.seed,
            job=job,
        )
        return cell, under

    found = {(cell.cut, cell.arm.name, cell.seed): cell for cell in classifiers}
    seeds = study.experiment.seeds
    whole = {}
    for seed in seeds:
        under = found[None, UNPRUNED.name, seed]
        whole[seed] = pair(ARMS[UNPRUNED.name], under, under.job)
    if any(arm.unpruned for arm in study.arms):
        yield from whole.values()
    cuts = [(use, cut) for use in study.experiment.uses for cut in use.cuts]
    for use, cut in cuts:
        for arm in (arm for arm in study.arms if not arm.unpruned):
            for seed in seeds:
                if arm.further:
                    detector, under = whole[seed]
                    yield pair(arm, under, _prune(detector.job, use, cut), use, cut)
                else:
                    under = found[cut, arm.needs, seed]
                    yield pair(arm, under, under.job, use, cut)


def _prune(parent: Job, use: MethodUse, cut: Cut) -> PruneDetector:
    assert isinstance(parent, TrainDetector)
    chosen = use.method  # of which this needs what decides, and nothing that is done in training
    method = Method(
        name=chosen.name,
        criterion=chosen.criterion,
        allocation=chosen.allocation,
        unit=chosen.unit,
        scope=chosen.scope,
        normalise=chosen.normalise,
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
