"""Results for experiment trackers: each finished run of a study, exported once from its record.

Records have the values of every epoch, so nothing is logged while a network trains: a run that was
killed and resumed has each point once, and a study that ended long ago can be exported too. While a
study runs, ``export`` is called repeatedly, and adds the runs that have finished since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from regrow.core.machine import versions
from regrow.core.texts import one_line
from regrow.report import page_of
from regrow.report.answer import sentence
from regrow.report.collect import Results, results_of
from regrow.report.ledger import costs
from regrow.report.rows import Run, summarise
from regrow.store import Store
from regrow.studies.study import Study

Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One finished run: its settings, the values of each epoch, its results, and its record."""

    name: str
    key: str
    settings: Mapping[str, str]
    epochs: tuple[tuple[int, Values], ...]
    results: Values
    record: Path

    @property
    def id(self) -> str:
        """Its identifier in a tracker, from its name in the study and the key of its record."""
        return sha256(f"{self.name}\n{self.key}".encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The answer of a study so far, and each comparison, in words."""

    title: str
    answer: str
    verdicts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole conclusion as Markdown."""
        lines = [f"# {self.title}", "", *(f"- {line}" for line in self.answer.splitlines())]
        return "\n".join([*lines, "", *(f"- {verdict}" for verdict in self.verdicts)])


class Tracker(Protocol):
    """An experiment tracker, opened at the location of one study's runs."""

    place: str  # the location, for display

    def known(self) -> set[str]:
        """Return the identifiers of the runs that were written completely."""

    def add(self, run: TrackedRun) -> None:
        """Write one run, and remove what an interrupted attempt left of it."""

    def conclude(self, conclusion: Conclusion) -> None:
        """Write the conclusion of the study, in place of the previous one."""


def export(study: Study, store: Store, trackers: Sequence[Tracker]) -> dict[str, int]:
    """Write to each tracker the finished runs that it lacks; return their number by location."""
    results = results_of(study, store)
    runs = tracked(results, store)
    written = {}
    for tracker in trackers:
        known = tracker.known()
        new = [run for run in runs if run.id not in known]
        for run in new:
            tracker.add(run)
        written[tracker.place] = len(new)
    conclusion = _conclusion(study, results) if any(written.values()) else None
    for tracker in trackers:
        if conclusion is not None:
            tracker.conclude(conclusion)
    return written


def tracked(results: Results, store: Store) -> list[TrackedRun]:
    """Return the finished runs of a study as trackers receive them."""
    reader = results.reader
    each, _ = costs(results.cells, reader)
    found = []
    for cell, run, cost in zip(results.cells, results.runs, each, strict=True):
        if not run.done:
            continue
        history = reader.record(cell.job).get("history", ())
        file = store.record_file(cell.job.key).absolute()
        energy = {} if cost.energy.unknown else {"joules": cost.energy.joules}
        found.append(
            TrackedRun(
                name=" / ".join(
                    (*filter(None, (*run.panel, run.cut, run.arm)), f"seed {run.seed}")
                ),
                key=cell.job.key,
                settings={**_settings(run), "key": cell.job.key, "record": str(file)},
                epochs=tuple(_epoch(number, line) for number, line in enumerate(history)),
                results={**_results(run), "seconds": cost.seconds, **energy},
                record=file,
            )
        )
    return found


def _epoch(number: int, line: Mapping[str, Any]) -> tuple[int, Values]:
    values = {
        name: float(value)
        for name, value in line.items()
        if name != "epoch" and isinstance(value, int | float)
    }
    return int(line.get("epoch", number)), values


def _settings(run: Run) -> dict[str, str]:
    named = ("data", "model", "method", "target", "sparsity", "unit", "arm", "start", "budget")
    values = {name: getattr(run, name) for name in (*named, "schedule", "recipe", "epochs", "seed")}
    known = {
        name: one_line(str(value)) for name, value in values.items() if value not in (None, "")
    }
    return {**known, "versions": versions()}


def _results(run: Run) -> dict[str, float]:
    names = ("loss", "parameters", "macs", "training_flops", "samples")
    values = {run.metric.key: run.score, f"validation_{run.metric.key}": run.validation}
    values |= {name: getattr(run, name) for name in names}
    return {name: float(value) for name, value in values.items() if value is not None}


def _conclusion(study: Study, results: Results) -> Conclusion:
    page = page_of(
        results.runs,
        summarise(results.runs),
        title=study.title,
        margin=study.margin,
        reference=study.reference,
    )
    verdicts = tuple(map(sentence, page.verdicts))
    return Conclusion(title=one_line(study.title), answer=page.answer, verdicts=verdicts)
