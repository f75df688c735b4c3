"""A study run from Python: in a script, or in a notebook.

import regrow

found = regrow.run_study("study.yaml", store="regrow-store")
found.rows          # a pandas frame with a row for each cell and arm
found.verdicts      # a row for each comparison
found.report(html=True)
"""

import html
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from regrow.core.execution import RETRIES, Execution
from regrow.core.registry import load_file, registered_elsewhere
from regrow.core.source import keeping_code
from regrow.errors import ConfigError, Interrupted, StoreError, short
from regrow.models.origins import refuse_second_call
from regrow.report import Report, page_of
from regrow.report.collect import Results, results_of
from regrow.report.files import write_study
from regrow.report.frames import epochs_of
from regrow.report.render import Page
from regrow.report.rows import runs_frame, summarise
from regrow.report.trackers import open_trackers
from regrow.report.tracking import Tracker, export
from regrow.report.verdict import verdicts_frame
from regrow.run import Event, Summary, check_machines, run_as
from regrow.run.display import display
from regrow.run.precision import PrecisionChoice
from regrow.run.refreshing import Refreshing
from regrow.store import Store
from regrow.studies.lint import check_margin_of
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided, replaced

COLUMNS = ("data", "model", "method", "target", "sparsity", "arm", "mean", "std", "n")


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyRun:
    """A study and its results in a store, as they were when its run ended.

    ``summary`` lists the jobs that were done, had been done before, failed, or were blocked by a
    failure.
    """

    study: Study
    store: Store
    summary: Summary
    results: Results
    rows: pd.DataFrame
    page: Page
    precision: str | None = None

    @property
    def complete(self) -> bool:
        """True if every job was done."""
        return self.summary.complete

    @property
    def runs(self) -> pd.DataFrame:
        """A row for each run, with the key of its record."""
        frame = runs_frame(self.results.runs)
        frame["key"] = [cell.job.key for cell in self.results.cells]
        return frame

    @property
    def epochs(self) -> pd.DataFrame:
        """A row for each epoch of each finished run."""
        return epochs_of(self.study, self.store)

    @property
    def verdicts(self) -> pd.DataFrame:
        """A row for each comparison, with its interval and its outcome."""
        return verdicts_frame(self.page.verdicts)

    @property
    def answer(self) -> str:
        """The study's answer in words."""
        return self.page.answer

    @property
    def failures(self) -> dict[str, str]:
        """The messages of failed jobs, by job label."""
        return {failure.label: failure.message for failure in self.results.failures}

    def report(self, out: str | Path | None = None, *, html: bool = False) -> Report:
        """Write the report into ``out`` (default: ``regrow-report/<name>``) and return it."""
        folder = Path("regrow-report") / self.study.name if out is None else Path(out)
        written, _ = write_study(
            self.study,
            self.store,
            folder,
            command="regrow.run_study(...)",
            precision=self.precision,
            html=html,
        )
        return written

    def __repr__(self) -> str:
        done = sum(run.done for run in self.results.runs)
        return f"{self.study.title}: {done} of {len(self.results.runs)} runs done\n{self.answer}"

    def _repr_html_(self) -> str:
        """Return the answer and the rows as HTML for notebooks, with all texts escaped."""
        shown = self.rows[[name for name in COLUMNS if name in self.rows]]
        failed = [f"{label}: {message}" for label, message in self.failures.items()]
        lines = [*self.answer.splitlines(), *failed]
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        table = shown.to_html(index=False, escape=True, na_rep="", float_format="{:.4g}".format)
        return f"<p><b>{html.escape(self.study.title)}</b></p><ul>{items}</ul>{table}"


def run_study(
    study: str | Path | Mapping[str, Any] | Study,
    *,
    store: str | Path = "regrow-store",
    device: str = "cpu",
    workers: int | None = None,
    on: str | None = None,
    address: str | None = None,
    stop_after: float | str | None = None,
    retries: int = RETRIES,
    data: Mapping[str, str] | None = None,
    with_files: Iterable[str | Path] = (),
    progress: bool = True,
    on_event: Callable[[Event], None] | None = None,
    track: Iterable[str] = (),
) -> StudyRun:
    """Run a study's unfinished jobs, as ``regrow run`` does, and return its results.

    Keys, records and numbers are bit-identical to those of the command. On Ctrl-C (a
    notebook's stop button) all jobs save their state and ``Interrupted`` is raised; the same call
    resumes. A script needs no ``if __name__ == "__main__"``, unless it registers methods, models
    or other parts itself.

    Args:
        study: a study file, its content as a mapping, or a ``Study``.
        store, device, workers: as for the command; ``workers=0`` runs in this process.
        on, address, stop_after, retries: as for the command: ``on="ray", stop_after="9m"``.
        data: the study's data sets to replace, by name, with their replacements.
        with_files: files that register methods, models, data sets or arms.
        progress: whether to show progress on standard error.
        on_event: called with each event of ``regrow.run.events`` instead of showing progress.
        track: trackers that receive finished runs during the run, like ``regrow run --track``:
            ``mlflow``, ``trackio``, ``tensorboard:FOLDER``. If one fails, a warning is issued.

    Raises:
        ConfigError: an argument or the study is invalid.
        Interrupted: the run was stopped; its progress is kept.
    """
    refuse_second_call("regrow.run_study")
    limits: dict[str, Any] = {"stop_after": stop_after, "retries": retries}
    execution = Execution(workers=workers, device=device, on=on, address=address, **limits)
    for file in with_files:
        load_file(file)
    choice = PrecisionChoice(_existing(store), device=execution.first)
    read = _read(study, choice, data or {})
    check_margin_of(read)
    jobs = read.jobs()
    trackers = list(open_trackers(list(track), read))
    check_machines(execution)
    script_again = _script_again(execution)
    opened = Store.open(store)
    choice.keep(opened)
    shown = nullcontext(on_event) if on_event is not None or not progress else display()
    with keeping_code():
        with shown as show, _saying_how_to_resume():
            hear = _tracking(read, opened, trackers, before=show)
            summary = run_as(execution, jobs, opened, on_event=hear, script_again=script_again)
        _track(read, opened, trackers)
        return _found(read, opened, summary, choice=choice)


@contextmanager
def _saying_how_to_resume() -> Iterator[None]:
    """Add to the message of an interruption how to resume."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error} The same call resumes.", by=error.by) from None


def _tracking(
    study: Study,
    store: Store,
    trackers: list[Tracker],
    *,
    before: Callable[[Event], None] | None,
) -> Callable[[Event], None] | None:
    """Return a handler of events that exports runs as they finish, after calling ``before``."""
    if not trackers:
        return before
    return Refreshing(
        lambda _: _track(study, store, trackers), before=before or (lambda event: None)
    )


def _track(study: Study, store: Store, trackers: list[Tracker]) -> None:
    """Export new runs to each tracker; one that fails is dropped with a warning."""
    for tracker in tuple(trackers):
        try:
            export(study, store, [tracker])
        except ConfigError as error:
            trackers.remove(tracker)
            warnings.warn(
                f"{error} The study goes on without it; `regrow track` can write it later.",
                stacklevel=3,
            )


def _found(study: Study, store: Store, summary: Summary, *, choice: PrecisionChoice) -> StudyRun:
    results = results_of(study, store)
    rows = summarise(results.runs)
    page = page_of(
        results.runs,
        rows,
        title=study.title,
        margin=study.margin,
        reference=study.reference,
        failures=results.failures,
        notes=results.notes,
        extras=results.extras,
    )
    return StudyRun(
        study=study,
        store=store,
        summary=summary,
        results=results,
        rows=rows,
        page=page,
        precision=None if choice.decision is None else str(choice.decision),
    )


def _read(study: Any, choice: PrecisionChoice, data: Mapping[str, str]) -> Study:
    if isinstance(study, Study):
        if data:
            raise ConfigError("'data' replaces data sets of a study file, but this is a Study.")
        return study
    if isinstance(study, Mapping):
        value = decided(replaced(dict(study), data), choice)
        return Study.from_json(value, name=str(study.get("name", "study")))
    if isinstance(study, str | Path):
        return Study.load(study, choice, data=data)
    raise ConfigError(
        f"A study is a file, a mapping with the same content, or a Study. Got {short(study)}."
    )


def _existing(store: str | Path) -> Store | None:
    with suppress(StoreError):
        return Store.open(store, create=False)
    return None


def _script_again(execution: Execution) -> bool:
    """Return whether workers must import the calling script again, because it registered parts.

    Parts registered in a notebook can be imported by workers only if they come from a file; parts
    registered in a script cannot be imported on other machines.
    """
    files = registered_elsewhere()
    if execution.on is not None and files:
        raise ConfigError(
            "This session registered methods, models, data sets or arms, which the machines of a "
            "Ray cluster cannot import. Put them into a file and name it in 'with_files'."
        )
    if not files or execution.workers == 0 or execution.device != "cpu":
        return False
    if getattr(sys.modules["__main__"], "__file__", None) is not None:
        return True
    for file in files:
        if not Path(file).is_file():
            raise ConfigError(
                "This session registered methods, models, data sets or arms, which worker "
                "processes cannot import. Put them into a file and name it in 'with_files', or "
                "use workers=0."
            )
        load_file(file)
    return False
