"""A study, read from YAML and checked when it is read.

    name: small
    data: {name: "hf:images/cifar10", subset: 5000}
    models: [resnet-20, {name: vgg-16, width: 0.25}]
    methods:
      - {name: l1-filter, sparsity: [0.3, 0.6]}
      - {name: network-slimming, sparsity: 0.5, strength: 1e-4}
    arms: [unpruned, pruned, fine-tune, scratch-e, {name: scratch-b, cap: 3}]
    seeds: 3
    recipe: {name: cifar, epochs: 20}

The amount of pruning is a ``sparsity``, the share of units that is removed; or a cost, the largest
share that may remain: ``macs: 0.5``, ``parameters: 0.3``, ``latency: 0.5``, one or a list; or a
``target`` or ``shares``. The allocations ``2:4`` and ``4:8`` need none of these.

Some methods have further options: ``{name: lottery, rounds: 14, sparsity: 0.2, ticket: late}``
prunes, in each round, the network that an arm such as ``{name: late, start: rewound, epoch: 5}``
trained after the previous round (default ``winning-ticket``); ``{name: soft-filter, sparsity: 0.3,
pretrained: true, lr: 0.01}`` continues training from the unpruned network at another rate; ``{name:
sparse-structure, target: zeros}`` removes the blocks whose factor was trained to zero; ``{name:
guided-pruning, sparsity: 0.5, from: {model: vgg-16, data: cifar10}}`` keeps of each stage the share
that another method kept in other networks (``from`` may name their ``model``, ``data``, ``method``
and ``recipe``; by default they are the row's own).

The length of the unpruned network's training may be an axis: ``budgets: [2, 4, 8, 16]`` (epochs),
or ``[0.25x, 0.5x, 1x]`` (factors of the recipe's own). Each row is run once per budget. Arms scale
with it if they are given in shares (``share``, ``epoch_share``, ``schedule_share``,
``warmup_share``), as equal epochs or FLOPs, or at multiples of the recipe's highest rate
(``peak_rates``); settings in epochs do not change (see ``studies.budgets``).

Networks for another task, such as detectors, are built on those of a ``backbone``, an experiment of
one network, one data set and one method::

    backbone:
      data: {name: "folder:imagenet", size: 224}
      models: imagenet-resnet-34
      methods: {name: l1-filter, target: [resnet-34-a, resnet-34-b]}
      recipe: imagenet
    data: "voc:VOCdevkit/VOC2007"
    detector: voc
    recipe: {epochs: 7}
    arms: [unpruned, prune-c, prune-d, scratch-e, scratch-b]

Arms (the paper's Table 12): ``prune-c`` is built on the classifier that was pruned and fine-tuned,
``scratch-e`` and ``scratch-b`` on the pruned classifier trained from scratch; ``prune-d`` prunes
the backbone of the unpruned detector and continues training at its last rate.

``experiments`` lists several experiments in one study; keys that an experiment lacks are taken from
the study's top level.

``reference`` names the method that the report compares every other one with, at equal cost; without
it, all pairs are compared.

A study with ``train: my_train.py:train`` compares versions of the user's own network, trained by
the user's own function: see ``studies.own``.

A model with ``weights: torchvision`` is not trained but used as published, on data with the same
thousand classes (on other data, training continues from those weights).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.core.validation import is_number, mapping, text
from regrow.errors import ConfigError, short, unknown
from regrow.studies.experiment import Experiment, read_experiments
from regrow.studies.keys import AXES, EACH, KEYS, OWN_KEYS
from regrow.studies.yaml_file import Choose, decided, read_file, replaced
from regrow.tasks.metric import LEAST_MARGIN
from regrow.train import Precision

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.studies.expand import Cell
    from regrow.studies.own import OwnExperiment

    AnyExperiment = Experiment | OwnExperiment

MOST_ROWS = 100_000
MOST_NAME_BYTES = 200  # of a folder; file systems allow 255
TRAIN = "train"  # the key of a study whose networks the user's own function trains


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study: models x data sets x budgets x methods x sparsities x arms x seeds, and recipes."""

    name: str
    title: str
    experiments: tuple[Experiment, ...]
    margin: float | None = None  # None: the metric's own
    reference: str | None = None  # the method that others are compared with; None: all pairs
    own: "tuple[OwnExperiment, ...]" = ()  # experiments on the user's own networks
    notes: tuple[str, ...] = ()  # for its report

    def __post_init__(self) -> None:
        by_labels: dict[tuple[str, str, int | None], AnyExperiment] = {}
        every: list[AnyExperiment] = [*self.experiments, *self.own]
        for experiment in every:
            labels = experiment.data_label, experiment.model_label, experiment.budget
            first = by_labels.setdefault(labels, experiment)
            differs = [
                a
                for a in ("data", "model", "recipe")
                if getattr(experiment, a) != getattr(first, a)
            ]
            if differs:
                raise ConfigError(
                    f"Two experiments call their network {experiment.model_label!r} on "
                    f"{experiment.data_label!r}, but differ in the {' and the '.join(differs)}: a "
                    "table could not tell them apart. Give the model or the data of one of them "
                    "another 'label'."
                )
        if self.reference is not None:
            check_reference(self.reference, self.experiments)

    @classmethod
    def load(
        cls,
        path: str | Path,
        precision: Precision | Choose = "fp32",
        *,
        data: Mapping[str, str] | None = None,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> "Study":
        """Read a study file; a ``ConfigError`` says where it is wrong.

        ``precision`` is that of recipes with ``auto`` or none; a function is called only if there
        is such a recipe, and may choose the engine too (see ``run.precision``). ``data`` replaces
        data sets that the study names; then ``change`` is applied to the whole study.
        """

        def parse(value: Any, name: str) -> "Study":
            choose = precision if callable(precision) else lambda: precision
            study = decided(replaced(value, data or {}), choose)
            return cls.from_json(study if change is None else change(study), name=name)

        return read_file(path, parse)

    @classmethod
    def from_json(cls, value: Any, *, name: str = "study") -> "Study":
        """Check a study given as mappings and lists."""
        top = mapping(value, "A study", _known(value, KEYS))
        shared = {key: entry for key, entry in top.items() if key in EACH or key not in KEYS}
        if "experiments" in top:
            experiments = _listed_experiments(top["experiments"], shared)
        else:
            experiments = _read(shared)
        _check_rows(experiments)
        experiments = _telling_data_apart(experiments)
        return cls(
            name=file_name(top.get("name", name)),
            title=text(top.get("title", top.get("name", name)), "title"),
            experiments=tuple(e for e in experiments if isinstance(e, Experiment)),
            own=tuple(e for e in experiments if not isinstance(e, Experiment)),
            margin=read_margin(top),
            reference=None if top.get("reference") is None else text(top["reference"], "reference"),
        )

    @property
    def longest(self) -> int:
        """The epochs of the longest recipe, including those of backbones."""
        beneath = [e.backbone for e in self.experiments if e.backbone is not None]
        return max(experiment.recipe.epochs for experiment in (*self.experiments, *beneath))

    def cells(self) -> "list[Cell]":
        """Expand into the rows of the table, one cell per seed, in report order.

        Reads the data (for its shape and a digest of its content) and traces each network once, so
        that errors are found before anything is trained. Rows that several experiments share appear
        once.
        """
        from regrow.studies.expand import expanded

        expansions = [*map(expanded, self.experiments)]
        if self.own:
            from regrow.studies.own_cells import own_cells

            expansions += map(own_cells, self.own)
        cells: dict[Any, Cell] = {}
        for expansion in expansions:
            for cell in expansion:
                if cells.setdefault(cell.place, cell).job.key != cell.job.key:
                    *place, seed = cell.place
                    raise ConfigError(
                        f"Two experiments mean different things by the row "
                        f"'{' / '.join(map(str, filter(None, place)))}' "
                        f"(seed {seed}). Give the method of one of them another 'label', or its "
                        "arm another 'name'."
                    )
        return list(cells.values())

    def jobs(self) -> "tuple[Job, ...]":
        """Return the jobs that fill the cells; what they depend on is in their ``inputs``."""
        return tuple({cell.job.key: cell.job for cell in self.cells()}.values())


def _known(value: Any, keys: Collection[str]) -> Collection[str]:
    """Return the keys that a study may have; those of heads import PyTorch, so only if needed."""
    if not isinstance(value, Mapping) or set(value) <= {*keys}:
        return keys
    if TRAIN in value:
        return (*OWN_KEYS, *(key for key in keys if key not in EACH))
    from regrow.studies.transfers import head_keys

    return (*keys, *head_keys())


def _read(value: Mapping[str, Any]) -> "list[AnyExperiment]":
    """Read experiments on a user's own network, on pruned networks, or on heads built on them."""
    if TRAIN in value:
        from regrow.studies.own import read_own

        return [*read_own(value)]
    if set(value) <= {*AXES}:
        return [*read_experiments(value)]
    from regrow.studies.transfers import read_transfers

    return [*read_transfers(value)]


def _listed_experiments(parts: Any, shared: Mapping[str, Any]) -> "list[AnyExperiment]":
    if not isinstance(parts, list) or not parts:
        raise ConfigError(f"'experiments' must be a list of mappings. Got {parts!r}.")
    experiments: list[AnyExperiment] = []
    for number, part in enumerate(parts, 1):
        axes = mapping(part, f"experiments, number {number}", _known(part, EACH))
        try:
            experiments += _read({**shared, **axes})
        except ConfigError as error:
            raise ConfigError(f"experiments, number {number}: {error}") from error
    return experiments


def _telling_data_apart(experiments: "list[AnyExperiment]") -> "list[AnyExperiment]":
    """Name the data set in the labels of jobs, if there are several, also beneath heads."""

    def among(parts: "Sequence[Any]") -> "list[Any]":
        several = len({part.data_label for part in parts}) > 1
        return [replace(part, on=part.data_label) for part in parts] if several else [*parts]

    beneath = iter(among([e.backbone for e in experiments if e.backbone is not None]))
    return [
        replace(e, backbone=next(beneath)) if e.backbone is not None else e
        for e in among(experiments)
    ]


def _check_rows(experiments: "Iterable[AnyExperiment]") -> None:
    """Refuse a table with too many rows to run, before it is expanded."""
    rows = sum(
        len(experiment.seeds)
        * (1 + sum(len(use.cuts) for use in experiment.uses) * len(experiment.arms))
        for experiment in experiments
    )
    if rows > MOST_ROWS:
        raise ConfigError(
            f"The study asks for {rows:,} rows (models x data x sparsities x arms x seeds), and "
            f"{MOST_ROWS:,} is the most. Divide it into several."
        )


def check_reference(name: str, experiments: Iterable[Experiment]) -> None:
    """Refuse a reference method that the study does not have."""
    labels = dict.fromkeys(use.label for experiment in experiments for use in experiment.uses)
    if name not in labels:
        raise ConfigError(
            f"The 'reference' is the method of the study that others are compared with, by its "
            f"label: {unknown('method', name, labels)}"
        )


def read_margin(top: Mapping[str, Any]) -> float | None:
    """Read the difference below which arms count as equivalent, in the unit of the report."""
    margin = top.get("margin")
    if "margin" in top and not (is_number(margin) and margin >= LEAST_MARGIN):
        raise ConfigError(
            "The 'margin' must be a number above 0 (and not below 1e-6), in the unit of the "
            f"differences that the report shows (points of accuracy). Got {margin!r}."
        )
    return None if margin is None else float(margin)


def file_name(value: Any) -> str:
    """Check a study's name, which is also the name of its report's folder."""
    name = text(value, "name")
    good = name.isprintable() and len(name.encode()) <= MOST_NAME_BYTES
    if not good or "/" in name or "\\" in name or name.startswith("."):
        raise ConfigError(
            f"The 'name' of a study names a folder, so it has one line of at most "
            f"{MOST_NAME_BYTES} bytes and can have no slash and no dot in front. Got "
            f"{short(name)}; a 'title' may be any text."
        )
    return name
