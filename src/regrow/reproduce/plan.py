"""An entry of a paper, prepared to be run: its studies at a scale, on the available images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

from regrow.errors import ConfigError, DataError
from regrow.jobs.arms import UNPRUNED
from regrow.jobs.base import Job
from regrow.pruning.amounts import Cut
from regrow.reproduce import scales
from regrow.reproduce.images import (
    IMAGENET,
    Request,
    detection_images_for,
    images_for,
    methods_on,
)
from regrow.reproduce.notes import notes_of
from regrow.reproduce.originals import CellImages, departs, scale_departs
from regrow.reproduce.paper import OF_PRUNINGS, RESULT, Entry, Paper
from regrow.reproduce.printed import cells, records
from regrow.reproduce.scales import Scale
from regrow.run.hours import network_of
from regrow.studies.expand import Cell
from regrow.studies.experiment import Experiment
from regrow.studies.study import Study

OWN_KEYS = ("paper", "notes", "absent")
FILTERS = ("dataset", "model", "part", "reference", "target")
Labels = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """A cell of ours, and the labels of the printed cell that it fills (None: not printed).

    For an entry that shows prunings, the cell's job is the pruning.
    """

    cell: Cell
    labels: Labels | None
    panel: str = ""
    images: tuple[CellImages, ...] = ()

    @property
    def words(self) -> str:
        """Data set, model, target and arm as printed; a control's as in its study."""
        if self.labels is None:
            return " / ".join(str(part) for part in self.cell.place[:-1] if part)
        parts = (self.labels[name] for name in ("dataset", "model", "target", "arm"))
        return " / ".join(str(part) for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """One study file at a scale, with the requested cells."""

    name: str
    study: Study
    cells: tuple[PlannedCell, ...]
    notes: tuple[str, ...]
    scale_departs: str = ""  # how its scale departs from the paper's

    def departs(self, planned: PlannedCell) -> list[str]:
        """Return why printed numbers are no reference for a cell; empty if they are."""
        return departs(self.scale_departs, planned.images)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of the requested cells."""
        return tuple({planned.cell.job.key: planned.cell.job for planned in self.cells}.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An entry prepared to be run: its parts, and those that cannot be run, with the reason."""

    entry: Entry
    scale: Scale
    parts: tuple[PlannedStudy, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def longest(self) -> int:
        """The epochs of the longest recipe."""
        return max(part.study.longest for part in self.parts)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs of all parts."""
        return tuple({job.key: job for part in self.parts for job in part.jobs}.values())


def prepare(entry: Entry, request: Request) -> Plan:
    """Read an entry's studies at a scale; parts whose data are not available are skipped.

    If no part is left, a ``DataError`` says what to do.
    """
    entry.paper.check_data(request.data)
    parts: list[PlannedStudy] = []
    skipped: dict[str, str] = {}
    notes: dict[str, None] = {}
    for name in entry.studies:
        try:
            part, replaced = _part(name, entry, request)
        except DataError as error:
            skipped[name] = str(error)
            continue
        parts.append(part)
        notes |= dict.fromkeys((*replaced, *part.notes))
    if not parts:
        raise DataError(f"{entry.name} cannot be run. {' '.join(skipped.values())}")
    lost = _unmatched(request.only, parts)
    if request.only and not any(part.cells for part in parts):
        rows = _rows_of(entry, request)
        raise ConfigError(f"No row of {entry.name} matches {lost}. Its rows: {'; '.join(rows)}.")
    if lost:
        notes[f"No row of {entry.name} matches {lost}."] = None
    scale = request.scale
    head = [f"Scale {scale.name}: {scale.about}."]
    head += [*request.budget, *([entry.note] if entry.note else [])]
    if entry.kind == "widths" and scale.width != 1.0:
        head += [f"At this scale each layer has {scale.width:g} of its width: compare the shares."]
    return Plan(
        entry=entry,
        scale=scale,
        parts=tuple(parts),
        skipped=skipped,
        notes=(*head, *notes),
    )


def _rows_of(entry: Entry, request: Request) -> list[str]:
    everything = Request(scale=request.scale, data=request.data, seeds=1)
    plan = prepare(entry, everything)
    return list(dict.fromkeys(planned.words for part in plan.parts for planned in part.cells))


def _part(name: str, entry: Entry, request: Request) -> tuple[PlannedStudy, list[str]]:
    """Build the study of a file, with notes on what was replaced in it."""
    value, paper = entry.paper.study(name), entry.paper
    top = value["paper"]
    labels = [{**top, **part.get("paper", {})} for part in value.get("experiments", [{}])]
    for printed in labels:
        printed["arms"] = {**paper.arms, **printed.get("arms", {})}
    replaced: dict[str, None] = {}
    bare = _without(value, OWN_KEYS)
    plain = scales.scaled(bare, request.scale, precision=request.precision)
    experiments = []
    for block, printed in zip(plain.pop("experiments", [{}]), labels, strict=True):
        shared = {**plain, **block}
        choose = _built_on if "backbone" in shared else _networks
        chosen, notes = choose(shared, printed, paper, request=request)
        experiments.append({**_without(block, OWN_KEYS), **chosen})
        replaced |= dict.fromkeys(notes)
    if request.seeds is not None:
        plain["seeds"] = request.seeds
    if request.precision is not None:
        replaced[f"Layers are computed in {request.precision}; the paper has fp32."] = None
    study = Study.from_json({**plain, "name": name, "experiments": experiments})
    if any(experiment.budget is not None for experiment in study.experiments):
        raise ConfigError(
            f"The study {name!r} of a paper has 'budgets', and a printed cell was trained for one. "
            "Leave them out; `regrow run` takes studies of several."
        )
    pairs = list(zip(study.experiments, labels, strict=True))
    planned_cells = [_printable(cell, paper, pairs) for cell in study.cells()]
    _check_once(planned_cells)
    if entry.kind in OF_PRUNINGS:
        planned_cells = _prunings(planned_cells, entry)
    planned_cells = [
        p for p in planned_cells if network_of(p.cell.experiment) not in request.without
    ]
    selected = tuple(planned for planned in planned_cells if _matches(planned, request.only))
    # Changes need the unpruned networks that they are changes from.
    if selected and "table" in top and paper.table(top["table"]).changes:
        selected = tuple(
            planned
            for planned in planned_cells
            if planned in selected or (planned.cell.arm == UNPRUNED and _is_whole(planned))
        )
    part = PlannedStudy(
        name=name,
        study=study,
        cells=selected,
        notes=tuple(notes_of(value, study.experiments, paper.notes)),
        scale_departs=scale_departs(bare, request.scale),
    )
    return part, [*replaced]


def _networks(
    block: Mapping[str, Any], printed: Labels, paper: Paper, *, request: Request
) -> tuple[dict[str, Any], list[str]]:
    """Choose data and labels of an experiment, with notes on what was replaced."""
    least = printed.get("least_size", 0)
    data, notes = images_for(block["data"], paper, request, least_size=least)
    models = [{"label": printed["model"], **model} for model in block["models"]]
    chosen: dict[str, Any] = {"data": data, "models": models}
    if "methods" in block:
        methods, method_notes = methods_on(block["methods"], paper, request, least_size=least)
        chosen["methods"] = methods
        notes = [*notes, *method_notes]
    return chosen, notes


def _built_on(
    block: Mapping[str, Any], printed: Labels, paper: Paper, *, request: Request
) -> tuple[dict[str, Any], list[str]]:
    """Choose data and labels of a head and of its backbone, whose images must be in colour."""
    scale, backbone = request.scale, block["backbone"]
    stand_in = scale.detection.backbone_stand_in or scale.stand_in
    in_colour = replace(request, scale=replace(scale, stand_in=stand_in))
    chosen, backbone_notes = _networks(backbone, printed, paper, request=in_colour)
    data, notes = detection_images_for(paper, request)
    return {"data": data, "backbone": {**backbone, **chosen}}, [*backbone_notes, *notes]


def _printable(
    cell: Cell,
    paper: Paper,
    pairs: Sequence[tuple[Experiment, Mapping[str, Any]]],
) -> PlannedCell:
    own, backbone = cell.experiment, cell.experiment.backbone
    printed = next(printed for experiment, printed in pairs if experiment is own)
    images = [CellImages.of(printed["dataset"], own.data, label=own.data_label)]
    if backbone is not None:
        label = paper.datasets[IMAGENET].label
        images.insert(0, CellImages.of(label, backbone.data, label=backbone.data_label))
    labels, panel = _labels(cell, paper, printed), printed.get("panel", "")
    return PlannedCell(cell=cell, labels=labels, panel=panel, images=tuple(images))


def _labels(cell: Cell, paper: Paper, top: Mapping[str, Any]) -> Labels | None:
    """Find the printed cell that a cell of ours fills; None if it is not printed."""
    arm = top["arms"].get(cell.arm.name, cell.arm.name)
    if arm is None or "table" not in top:
        return None
    printed = records(cells(paper, top["table"]))
    filters = {name: top[name] for name in FILTERS if name in top} | {"arm": arm}
    if "target" not in top:
        filters["target"] = _target(cell, printed)
    rows = [row for row in printed if all(row[name] == value for name, value in filters.items())]
    if len(rows) != 1:
        raise ConfigError(
            f"Table {top['table']} has {len(rows)} printed cells with the labels {filters}. The "
            "study file must name exactly one with its 'paper'."
        )
    return rows[0]


def _prunings(planned_cells: Sequence[PlannedCell], entry: Entry) -> list[PlannedCell]:
    """Keep one cell for each pruning that an entry shows, with the pruning as its job."""
    ratios = {f"{100 * entry.ratio:g}%"} if entry.ratio is not None else set[str]()
    if entry.ratio is None and entry.table is not None:
        ratios = {str(row["ratio"]) for row in records(cells(entry.paper, entry.table))}
    by_pruning: dict[str, PlannedCell] = {}
    for planned in planned_cells:
        cell, job = planned.cell, planned.cell.job
        if cell.use is None or cell.cut is None or job.pruning is None:
            continue
        if cell.use.method.trained and percent(cell.cut) in ratios:
            by_pruning.setdefault(
                job.pruning.key, replace(planned, cell=replace(cell, job=job.pruning))
            )
    return list(by_pruning.values())


def percent(cut: Cut) -> str:
    """Return the requested sparsity as the paper writes it, in percent; empty for a target."""
    return f"{100 * cut.sparsity:g}%" if cut.sparsity is not None else ""


def _target(cell: Cell, rows: Sequence[Labels]) -> str:
    """Return a pruned network's name in the table: its target, or its share in percent."""
    if cell.use is None or cell.cut is None:
        return ""
    share = percent(cell.cut)
    printed = {str(row["target"]).casefold(): str(row["target"]) for row in rows}
    for name in (cell.use.label, cell.cut.label, share):
        if name.casefold() in printed:
            return printed[name.casefold()]
    return share or cell.cut.label


def _matches(planned: PlannedCell, only: Sequence[str]) -> bool:
    return not only or any(
        fnmatch(planned.words.casefold(), f"*{text.casefold()}*") for text in only
    )


def _unmatched(only: Sequence[str], parts: Sequence[PlannedStudy]) -> str:
    """Return the ``--only`` patterns that no row matches, in words."""
    cells = [planned for part in parts for planned in part.cells]
    lost = [text for text in only if not any(_matches(planned, [text]) for planned in cells)]
    return " or ".join(f"--only {text!r}" for text in lost)


def _is_whole(planned: PlannedCell) -> bool:
    return planned.labels is not None and not planned.labels["target"]


def _check_once(planned_cells: Sequence[PlannedCell]) -> None:
    """Refuse a file that puts two different cells of ours into one printed cell."""
    places: dict[tuple[str, ...], tuple[str, ...]] = {}
    for planned in planned_cells:
        if planned.labels is None:
            continue
        place = planned.cell.place[:-1]
        if places.setdefault(key(planned.labels), place) != place:
            raise ConfigError(
                f"Two cells are for the printed cell {planned.words}: {place} is one."
            )


def key(labels: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels that identify a printed cell of a table of accuracies."""
    return tuple(str(labels[name]) for name in RESULT)


def _without(value: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: entry for key, entry in value.items() if key not in keys}
