"""The paper's tables and figures as studies, and our results in the places of its printed cells.

A study file (``studies/*.yaml``) is a study with three keys more. ``paper``, at the top and in each
experiment, names the printed cells: ``table``, ``dataset``, ``model``; where needed ``part``,
``reference`` or ``target``, and ``arms`` (our arm: the printed one, or null for a control that is
not printed). ``notes`` go into the report. ``absent`` lists printed cells that no cell of ours
fills, and why. ``studies/index.yaml`` says which files make up a table, and what others wait for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from regrow.arms import UNPRUNED
from regrow.data import DataSpec
from regrow.errors import ConfigError, DataError, unknown
from regrow.experiment import Experiment
from regrow.paper import scales
from regrow.paper.layout import Sheet, lay_out
from regrow.paper.printed import CHANGES, FIGURES, RESULT, cells, records
from regrow.paper.scales import Scale
from regrow.report.collect import collect
from regrow.report.render import Failure
from regrow.report.rows import Run
from regrow.stats import mean_and_std
from regrow.store import Store
from regrow.study import Cell, Study, material
from regrow.work import Job

STUDIES = files("regrow.paper") / "studies"
OWN_KEYS = ("paper", "notes", "absent")
FILTERS = ("dataset", "model", "part", "reference", "target")
PRINTED_ARMS = {"fine-tune": "fine-tuned"}
IMAGENET = "imagenet"  # comes from a folder of the user's: there is nothing to download
Labels = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table or a figure: the study files that make it up, or what it waits for."""

    name: str
    table: int | None = None
    studies: tuple[str, ...] = ()
    note: str = ""
    waits_for: str = ""


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a table is asked for: at which scale, on which data, with how many seeds, which rows."""

    scale: Scale
    data: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None
    only: str | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        known = ("cifar10", "cifar100", IMAGENET)
        for name in self.data:
            if name not in known:
                raise ConfigError(
                    f"--data replaces a data set of the paper: {unknown('data set', name, known)}"
                )


@dataclass(frozen=True, kw_only=True)
class Printable:
    """A cell of ours, and the labels of the printed cell that it fills (None: a control)."""

    cell: Cell
    labels: Labels | None

    @property
    def words(self) -> str:
        """Data set, model, target and arm as printed; a control's as in its study."""
        if self.labels is None:
            return " / ".join(str(part) for part in self.cell.place[:-1] if part)
        parts = (self.labels[name] for name in ("dataset", "model", "target", "arm"))
        return " / ".join(str(part) for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study file at a scale, with the cells that are asked for."""

    name: str
    study: Study
    cells: tuple[Printable, ...]
    notes: tuple[str, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the cells asked for."""
        return tuple({one.cell.job.key: one.cell.job for one in self.cells}.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An entry as it can be run here: its parts, and those that cannot be, with the reason."""

    entry: Entry
    parts: tuple[Part, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of all parts."""
        return tuple({job.key: job for part in self.parts for job in part.jobs}.values())


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a store holds of a part: its runs in the order of the cells, and what failed."""

    part: Part
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]

    @property
    def complete(self) -> bool:
        """Whether every cell asked for has its result."""
        return all(run.done for run in self.runs)


# Entries ------------------------------------------------------------------------------------------


@cache
def entries() -> Mapping[str, Entry]:
    """Return the tables and figures by name, in the paper's order."""
    return {name: Entry(name=name, **_tuples(value)) for name, value in _read("index").items()}


def entry(name: str) -> Entry:
    """Return a table or figure that can be run; else a ``ConfigError`` says what it waits for."""
    known = entries()
    if name not in known:
        raise ConfigError(unknown("table or figure", name, [*known, "all", "list"]))
    found = known[name]
    if found.waits_for:
        ready = ", ".join(one.name for one in known.values() if not one.waits_for)
        raise ConfigError(f"{name} is not available yet: {found.waits_for}. There are: {ready}.")
    return found


def absent(name: str) -> list[Mapping[str, Any]]:
    """Return the printed cells that a study file does not fill: labels, and ``why``."""
    return list(_read(name).get("absent", []))


# From a study file to cells -----------------------------------------------------------------------


def prepare(entry: Entry, request: Request) -> Plan:
    """Read an entry's studies at a scale; a part whose data is not at hand is skipped.

    A ``DataError`` says what to do where no part is left.
    """
    parts: list[Part] = []
    skipped: dict[str, str] = {}
    notes: dict[str, None] = {}
    for name in entry.studies:
        try:
            part, replaced = _part(name, request)
        except DataError as error:
            skipped[name] = str(error)
            continue
        parts.append(part)
        notes |= dict.fromkeys((*replaced, *part.notes))
    if not parts:
        raise DataError(f"{entry.name} cannot be run. {' '.join(skipped.values())}")
    if request.only is not None and not any(part.cells for part in parts):
        rows = _rows_of(entry, request)
        raise ConfigError(
            f"No row of {entry.name} matches --only {request.only!r}. Its rows: {'; '.join(rows)}."
        )
    scale = request.scale
    head = [f"Scale {scale.name}: {scale.about}."]
    head += [entry.note] if entry.note else []
    return Plan(entry=entry, parts=tuple(parts), skipped=skipped, notes=(*head, *notes))


def _rows_of(entry: Entry, request: Request) -> list[str]:
    everything = Request(scale=request.scale, data=request.data, seeds=1)
    plan = prepare(entry, everything)
    return list(dict.fromkeys(one.words for part in plan.parts for one in part.cells))


def _part(name: str, request: Request) -> tuple[Part, list[str]]:
    """Build the study of a file, with what was replaced in it."""
    value = _read(name)
    top = value["paper"]
    notes = [*value.get("notes", []), *(_why_absent(one) for one in value.get("absent", []))]
    papers = [{**top, **part.get("paper", {})} for part in value["experiments"]]
    for paper in papers:
        paper["arms"] = {**PRINTED_ARMS, **paper.get("arms", {})}
    replaced: dict[str, None] = {}
    plain = scales.scaled(_without(value, OWN_KEYS), request.scale, precision=request.precision)
    default = plain.pop("data")
    experiments = []
    for part, paper in zip(plain["experiments"], papers, strict=True):
        data, note = _data(part.get("data", default), paper["dataset"], request)
        replaced |= dict.fromkeys(note)
        models = [{"label": paper["model"], **model} for model in part["models"]]
        experiments.append({**_without(part, OWN_KEYS), "data": data, "models": models})
    if request.seeds is not None:
        plain["seeds"] = request.seeds
    if request.precision is not None:
        replaced[f"Layers are computed in {request.precision}; the paper has fp32."] = None
    study = Study.from_json({**plain, "name": name, "experiments": experiments})
    pairs = list(zip(study.experiments, papers, strict=True))
    found = [Printable(cell=cell, labels=_labels(cell, pairs)) for cell in study.cells()]
    _check_once(found)
    asked = tuple(one for one in found if _matches(one, request.only))
    if asked and top["table"] in CHANGES:  # what they are changes from belongs to them
        asked = tuple(o for o in found if o in asked or (o.cell.arm == UNPRUNED and _is_whole(o)))
    return Part(name=name, study=study, cells=asked, notes=tuple(notes)), [*replaced]


def _data(
    asked: str | Mapping[str, Any], label: str, request: Request
) -> tuple[dict[str, Any], list[str]]:
    """Choose the data set that stands for one of the paper's, and say so if it is another.

    What the study says besides the name (its normalisation) goes for a copy too, which is known by
    its classes; images of another kind have their own.
    """
    scale = request.scale
    given: dict[str, Any] = {"name": asked} if isinstance(asked, str) else dict(asked)
    name = given["name"]
    chosen = request.data.get(name) or scale.data.get(name)
    if chosen is None and name == IMAGENET:
        raise DataError(
            "ImageNet is not downloaded. Name a copy, or what shall stand in for it: "
            "--data imagenet=folder:PATH or --data imagenet=hf:PATH."
        )
    data = given if chosen is None else _stand_in(given, chosen)
    if name in scale.size and name in request.data:
        data["size"] = scale.size[name]
    if scale.subset is not None or scale.test_subset is not None:
        whole = material(DataSpec.from_json(data))
        data["subset"] = _at_most(scale.subset, whole.num_train, whole.classes)
        data["test_subset"] = _at_most(scale.test_subset, whole.num_test, whole.classes)
    data["label"] = label
    if chosen is None:
        return data, []
    data["label"] = f"{chosen} for {label}"
    said = [
        f"In place of {label}: {chosen}. For other images the printed numbers are no reference."
    ]
    if data.get("normalisation") != given.get("normalisation"):
        said.append(
            f"{chosen} is normalised by its own mean and std: it has no {given['normalisation']!r}."
        )
    return data, said


def _stand_in(given: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """Put another data set in the place of one, with its normalisation if it has that too."""
    data = {**given, "name": chosen}
    if len(data) > 1:
        try:
            material(DataSpec.from_json(data))
        except ConfigError:  # the option does not fit these images
            return {"name": chosen}
    return data


def _at_most(wanted: int | None, there: int, classes: int) -> int | None:
    return None if wanted is None or wanted >= there else max(wanted, classes)


def _labels(cell: Cell, pairs: Sequence[tuple[Experiment, Mapping[str, Any]]]) -> Labels | None:
    """Find the printed cell that a cell of ours fills; None for a control."""
    paper = next(paper for experiment, paper in pairs if experiment is cell.experiment)
    arm = paper["arms"].get(cell.arm.name, cell.arm.name)
    if arm is None:
        return None
    wanted = {name: paper[name] for name in FILTERS if name in paper} | {"arm": arm}
    if "target" not in paper:
        wanted["target"] = _target(cell, paper["table"])
    rows = [
        row
        for row in _printed_rows(paper["table"])
        if all(row[name] == value for name, value in wanted.items())
    ]
    if len(rows) != 1:
        raise ConfigError(
            f"Table {paper['table']} has {len(rows)} printed cells with the labels {wanted}. The "
            "study file must name exactly one with its 'paper'."
        )
    return rows[0]


def _target(cell: Cell, table: int) -> str:
    """Name a pruned network as the table does: by its target, or by its share in percent."""
    if cell.use is None or cell.cut is None:
        return ""
    share = f"{100 * cell.cut.sparsity:g}%" if cell.cut.sparsity is not None else ""
    printed = {str(row["target"]).casefold(): str(row["target"]) for row in _printed_rows(table)}
    for name in (cell.use.label, cell.cut.label, share):
        if name.casefold() in printed:
            return printed[name.casefold()]
    return share or cell.cut.label


@cache
def _printed_rows(table: int) -> list[Labels]:
    return records(cells(table))


def _matches(one: Printable, only: str | None) -> bool:
    return only is None or fnmatch(one.words.casefold(), f"*{only.casefold()}*")


def _is_whole(one: Printable) -> bool:
    return one.labels is not None and not one.labels["target"]


def _check_once(found: Sequence[Printable]) -> None:
    """Refuse a file that puts two different cells of ours into one printed cell."""
    places: dict[tuple[str, ...], tuple[str, ...]] = {}
    for one in found:
        if one.labels is None:
            continue
        own = one.cell.place[:-1]
        if places.setdefault(_key(one.labels), own) != own:
            raise ConfigError(f"Two cells are for the printed cell {one.words}: {own} is one.")


# From a store to the paper's layout ---------------------------------------------------------------


def read_back(plan: Plan, store: Store) -> list[Found]:
    """Read what a store holds of each part of a plan."""
    return [_read_back(part, store) for part in plan.parts]


def _read_back(part: Part, store: Store) -> Found:
    runs, failures = collect(part.study, store)
    # Every cell was expanded in this order; those not asked for are left out.
    places = {one.cell.place for one in part.cells}
    kept = [run for cell, run in zip(part.study.cells(), runs, strict=True) if cell.place in places]
    return Found(part=part, runs=tuple(kept), failures=tuple(failures))


def rows(found: Sequence[Found]) -> pd.DataFrame:
    """Put our means under the labels of the printed cells, one row for each that has a result.

    All are accuracies in percent; beside Tables 2 and 3 ``as_cells`` makes changes of them.
    """
    groups: dict[tuple[str, ...], tuple[Labels, list[float]]] = {}
    for one in found:
        for printable, run in zip(one.part.cells, one.runs, strict=True):
            if printable.labels is not None and run.accuracy is not None:
                group = groups.setdefault(_key(printable.labels), (printable.labels, []))
                group[1].append(run.accuracy)
    whole = {_parent(labels) for labels, _ in groups.values() if not labels["target"]}
    made = []
    for labels, accuracies in groups.values():
        if labels["table"] in CHANGES and _parent(labels) not in whole:
            continue  # a change from a network that has no result
        mean, std = mean_and_std(accuracies)
        figures = dict(zip(FIGURES, (mean, std, len(accuracies)), strict=True))
        made.append({**labels, **figures, "metric": "top1"})
    return pd.DataFrame(made, columns=[*cells(1).columns])


def sheet(plan: Plan, ours: pd.DataFrame) -> Sheet:
    """Lay our rows into the paper's table."""
    assert plan.entry.table is not None, "an entry with studies has a table"
    return lay_out(plan.entry.table, ours)


def _key(labels: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(labels[name]) for name in RESULT)


def _parent(labels: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in ("table", "dataset", "model"))


def _why_absent(one: Mapping[str, Any]) -> str:
    labels = " / ".join(str(value) for name, value in one.items() if name != "why")
    return f"Not run, {labels}: {one['why']}."


# Files --------------------------------------------------------------------------------------------


@cache
def _read(name: str) -> Mapping[str, Any]:
    value = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(value, dict), f"{name}.yaml must be a mapping"
    return value


def _without(value: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: own for key, own in value.items() if key not in keys}


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(own) if isinstance(own, list) else own for key, own in value.items()}


def read_cells(folder: Path) -> pd.DataFrame:
    """Read what a reproduction wrote: ``cells.csv`` of a folder, or of the folders in it."""
    found = [folder / "cells.csv"] if (folder / "cells.csv").is_file() else []
    found = found or sorted(folder.glob("*/cells.csv"))
    if not found:
        raise ConfigError(
            f"There is no cells.csv in '{folder}' nor in the folders in it. Name the folder that "
            "`regrow reproduce` wrote."
        )
    text = dict.fromkeys(("part", "reference", "target", "pruning"), str)
    frames = [pd.read_csv(file, dtype=text, keep_default_na=False) for file in found]
    return pd.concat(frames, ignore_index=True)
