"""Results of a table or a figure from a store, in the places of the paper's printed cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from regrow.jobs.base import specs
from regrow.report import Extra, Failure
from regrow.report.collect import Reader, results_of
from regrow.report.rows import Run
from regrow.report.statistics import mean_and_std
from regrow.reproduce.known import KNOWN, known_of, known_of_parents, typed
from regrow.reproduce.layout import BETWEEN_REASONS, Sheet, lay_out
from regrow.reproduce.measures import MEASURES, measured
from regrow.reproduce.paper import OF_PRUNINGS, Kind, Paper
from regrow.reproduce.plan import Plan, PlannedCell, PlannedStudy, key
from regrow.reproduce.printed import FIGURES, records
from regrow.reproduce.printed import results as printed_results
from regrow.reproduce.read_results import FILES
from regrow.store import Store


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The results of a part in a store: its runs in the order of the cells, and the failures.

    ``complete``: whether every requested job has its result. ``measured``: the entry's numbers
    besides accuracies, a row for each number and seed (see ``measures``). ``parents``: for an entry
    that shows prunings, the columns of ``known.KNOWN`` for the networks that were pruned.
    """

    part: PlannedStudy
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    complete: bool
    measured: pd.DataFrame
    parents: Mapping[str, Any] = field(default_factory=dict)
    extras: tuple[Extra, ...] = ()


def read_back(plan: Plan, store: Store) -> list[StudyResults]:
    """Read the results of each part of a plan from a store."""
    return [_read_back(part, plan, store) for part in plan.parts]


def _read_back(part: PlannedStudy, plan: Plan, store: Store) -> StudyResults:
    finished = store.snapshot(specs(part.jobs)).done
    measurable, damaged = _measurable(part, plan.entry.kind, store, finished)
    runs: list[Run] = []
    failures: Sequence[Failure]
    extras = tuple[Extra, ...]()
    parents: Mapping[str, Any] = {}
    if plan.entry.kind in OF_PRUNINGS:
        failures = Reader(store).failures(planned.cell for planned in part.cells)
        pruned = [job for planned in measurable.cells for job in planned.cell.job.inputs]
        parents = known_of_parents([job for job in pruned if job.key in finished], store)
    else:
        collected = results_of(part.study, store)
        failures, extras = collected.failures, collected.extras
        # Every cell was expanded in this order; those that were not requested are left out.
        places = {planned.cell.place for planned in part.cells}
        pairs = zip(part.study.cells(), collected.runs, strict=True)
        runs = [run for cell, run in pairs if cell.place in places]
    return StudyResults(
        part=part,
        runs=tuple(runs),
        failures=(*failures, *damaged),
        extras=extras,
        complete=not damaged and all(job.key in finished for job in part.jobs),
        measured=measured(plan.entry.kind, measurable, store),
        parents=parents,
    )


def _measurable(
    part: PlannedStudy, kind: Kind, store: Store, finished: frozenset[str]
) -> tuple[PlannedStudy, list[Failure]]:
    """Return a part with only the finished cells whose tensors are sound, and the damaged ones."""
    if kind not in MEASURES:
        return part, []
    problems = {
        planned.cell.job.key: Failure(label=planned.cell.job.label, message=problem)
        for planned in part.cells
        if planned.cell.job.key in finished
        and (problem := store.problem(planned.cell.job.key, planned.cell.job.spec)) is not None
    }
    sound = tuple(
        planned for planned in part.cells if planned.cell.job.key in finished - problems.keys()
    )
    return replace(part, cells=sound), list(problems.values())


def rows(plan: Plan, results: Sequence[StudyResults]) -> pd.DataFrame:
    """Return our means under the labels of the printed cells, one row for each with a result.

    Accuracies are in percent; for tables of changes, ``as_cells`` turns them into changes. Columns
    are those of ``printed.cells``; none for a figure that has no table.
    """
    if plan.entry.table is None:
        return pd.DataFrame()
    if plan.entry.kind in OF_PRUNINGS:
        frame = averaged(results, plan.entry.paper.labels(plan.entry.table)[1:]).assign(
            table=plan.entry.table
        )
        reasons = [study.part.departs(cell) for study in results for cell in study.part.cells]
        return typed(frame.assign(departs=_joined_reasons(reasons), **_parents(results)))
    return _accuracies(plan.entry.paper, results)


def averaged(results: Sequence[StudyResults], labels: Sequence[str]) -> pd.DataFrame:
    """Average the measurements over seeds: the labels, ``mean``, ``std`` (n - 1) and ``n``."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for study in results:
        for row in records(study.measured):
            groups.setdefault(tuple(row[name] for name in labels), []).append(row["value"])
    averages = [
        {
            **dict(zip(labels, place, strict=True)),
            **dict(zip(FIGURES, (*mean_and_std(values), len(values)), strict=True)),
        }
        for place, values in groups.items()
    ]
    frame = pd.DataFrame(averages, columns=[*labels, *FIGURES])
    return frame.astype({"mean": float, "std": float, "n": int})


def _accuracies(paper: Paper, results: Sequence[StudyResults]) -> pd.DataFrame:
    groups: dict[tuple[str, ...], list[tuple[StudyResults, PlannedCell, Run]]] = {}
    for study in results:
        for printable, run in zip(study.part.cells, study.runs, strict=True):
            if printable.labels is not None and run.score is not None:
                groups.setdefault(key(printable.labels), []).append((study, printable, run))
    labelled = [(group[0][1].labels or {}, group) for group in groups.values()]
    whole = {_parent(labels) for labels, _ in labelled if not labels["target"]}
    averages = []
    for labels, group in labelled:
        changes = bool(paper.table(labels["table"]).changes)
        if changes and _parent(labels) not in whole:
            continue  # a change from a network that has no result
        runs = [run for _, _, run in group]
        mean, std = mean_and_std([run.score for run in runs if run.score is not None])
        figures = dict(zip(FIGURES, (mean, std, len(runs)), strict=True))
        reasons = [study.part.departs(printable) for study, printable, _ in group]
        metric = "top1" if changes else str(labels["metric"])
        about = {"metric": metric, "departs": _joined_reasons(reasons)}
        averages.append({**labels, **figures, **about, **known_of(runs)})
    return typed(
        pd.DataFrame(averages, columns=[*printed_results(paper).columns, "departs", *KNOWN])
    )


def _parents(results: Sequence[StudyResults]) -> dict[str, Any]:
    """Return what is known of the trained networks whose prunings are shown."""
    facts = {name: value for study in results for name, value in study.parents.items()}
    return {name: facts.get(name) for name in KNOWN}


def _joined_reasons(reasons: Iterable[Iterable[str]]) -> str:
    return BETWEEN_REASONS.join(dict.fromkeys(reason for several in reasons for reason in several))


def sheet(plan: Plan, measured: pd.DataFrame) -> Sheet | None:
    """Put our rows into the paper's table; None for a figure that has no table."""
    entry = plan.entry
    return lay_out(entry.paper, entry.table, measured) if entry.table is not None else None


def _parent(labels: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(labels[name] for name in ("table", "dataset", "model"))


def cells_file(plan: Plan) -> str:
    """Return the name of the file for our rows of a table: one for each set of labels."""
    assert plan.entry.table is not None
    return FILES[plan.entry.paper.labels(plan.entry.table)]
