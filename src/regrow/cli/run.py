"""The commands ``regrow quickstart``, ``run`` and ``report``."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regrow.cli.execution import HERE, takes_execution
from regrow.cli.hours import HoursOption, load_within
from regrow.cli.inputs import load_extensions, open_store, warn_about
from regrow.cli.options import (
    DEFAULT_REPORT,
    DEFAULT_STORE,
    DataOption,
    HtmlOption,
    JsonOption,
    OutOption,
    ReferenceOption,
    StoreOption,
    StudyFile,
    TensorboardOption,
    TrackOption,
    WithOption,
    WorkersOption,
)
from regrow.cli.terminal import (
    EXIT_FAILED_JOBS,
    announce,
    command_line,
    complain,
    count,
    in_lines,
    print_json,
    say,
    say_written,
)
from regrow.cli.track import export_at_end, names_of, trackers_of, while_running
from regrow.core.durations import clock
from regrow.core.execution import Execution
from regrow.core.registry import loaded_files
from regrow.errors import ConfigError, Interrupted
from regrow.studies.yaml_file import pairs

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.report import Report
    from regrow.run import Summary
    from regrow.run.events import Event
    from regrow.run.precision import PrecisionChoice
    from regrow.store import Store
    from regrow.studies.study import Study


def quickstart(
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    workers: WorkersOption = None,
    html: HtmlOption = False,
) -> None:
    """Run a small study on handwritten digits: three methods, every arm, five seeds."""
    study = Path(str(files("regrow.cli"))) / "quickstart.yaml"
    run_study(study, store, out, execution=Execution(workers=workers), html=html)


@takes_execution
def run(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    execution: Execution = HERE,
    with_files: WithOption = None,
    data: DataOption = None,
    hours: HoursOption = None,
    html: HtmlOption = False,
    track: TrackOption = None,
    tensorboard: TensorboardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a study's unfinished jobs, then write the report.

    Stop it whenever you like; the same command resumes.
    """
    execution.check_hours(hours)
    load_extensions(with_files)
    run_study(
        study,
        store,
        out,
        execution=execution,
        as_json=as_json,
        data=data,
        hours=hours,
        html=html,
        track=names_of(track, tensorboard),
    )


def report(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    with_files: WithOption = None,
    data: DataOption = None,
    reference: ReferenceOption = None,
    hours: HoursOption = None,
    html: HtmlOption = False,
    checklist: Annotated[
        bool,
        typer.Option(
            "--checklist",
            help="Add the NeurIPS paper checklist to report.html, answered from the records "
            "(implies --html).",
        ),
    ] = False,
    epochs: Annotated[
        bool, typer.Option("--epochs", help="Also write epochs.csv: one row per epoch of each run.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the report from the results so far, and print its table and answer."""
    load_extensions(with_files)
    loaded, choice, _ = load_within(hours, study, store, data=data, measure=False)
    if reference is not None:
        loaded = replace(loaded, reference=reference)
    opened = open_store(store, create=False)
    written, statuses = _report(
        loaded,
        opened,
        out,
        choice=choice,
        html=html or checklist,
        path=study,
        checklist=checklist,
        epochs=epochs,
    )
    _print_report(written, as_json=as_json)
    if "failed" in statuses:
        raise typer.Exit(EXIT_FAILED_JOBS)


def run_study(
    path: Path,
    store: Path,
    out: Path | None,
    *,
    execution: Execution,
    as_json: bool = False,
    data: Sequence[str] | None = None,
    hours: float | None = None,
    html: bool = False,
    track: Sequence[str] = (),
    first: "Callable[[Sequence[Job], Store, int | None], None] | None" = None,
) -> None:
    """Run a study's unfinished jobs, write its report, and print it.

    ``first`` is called with the jobs, the store and the number of workers before anything runs.
    """
    workers, device = execution.workers, execution.first
    study, choice, keep = load_within(hours, path, store, data=data, workers=workers, device=device)
    from regrow.core.source import keeping_code
    from regrow.report.files import check_writable
    from regrow.run import check_machines, run_as
    from regrow.run.display import display

    announce("Checking its data and networks")
    jobs = study.jobs()  # checks data and networks, so that an invalid study creates no store
    tools = trackers_of(study, track)
    check_machines(execution)
    warn_about(jobs, study, device=device)
    opened = open_store(store, create=True)
    keep(opened)
    _remember(opened, path, study, jobs, data or ())
    check_writable(_report_folder(study, out))
    if first is not None:
        first(jobs, opened, workers)
    command = _report_command(path, store, out, data or (), hours)
    with keeping_code():
        with display() as show, _saying_how_to_report(command):
            show = _saying_what_is_known(study, opened, command, before=show)
            if html:
                show = _live_page(study, opened, out, choice=choice, path=path, before=show)
            if tools:
                show = while_running(study, opened, tools, before=show)
            summary = run_as(execution, jobs, opened, on_event=show)
        announce("Writing the report")
        written, statuses = _report(study, opened, out, choice=choice, html=html, path=path)
        _print_report(written, as_json=as_json, summary=summary)
        _print_summary(summary, written.paths[0])
        export_at_end(study, opened, tools)
    if set(statuses) != {"done"} or not summary.complete:
        raise typer.Exit(EXIT_FAILED_JOBS)


def _remember(
    store: "Store", path: Path, study: "Study", jobs: "Sequence[Job]", data: Sequence[str]
) -> None:
    """Save the study's list of jobs in the store, for ``regrow status``."""
    from regrow.jobs.base import all_jobs
    from regrow.studies.job_list import Planned, remember

    planned = Planned.of(study.name, study.title, all_jobs(jobs))
    remember(store, path, planned, data=pairs(data))


@contextmanager
def _saying_how_to_report(command: str) -> Iterator[None]:
    """Add to the message of an interruption the command that reports the results so far."""
    try:
        yield
    except Interrupted as error:
        raise type(error)(f"{error} The results so far: {command}.", by=error.by) from error


def _report_command(
    study: Path, store: Path, out: Path | None, data: Sequence[str], hours: float | None
) -> str:
    """Return the command that reports the results so far."""
    options: list[tuple[str, str | Path]] = [("--store", store)] if store != DEFAULT_STORE else []
    options += [("--out", out)] if out is not None else []
    options += [("--with", _nearby(file)) for file in loaded_files()]
    options += [("--data", text) for text in data]
    options += [("--hours", f"{hours:g}")] if hours is not None else []
    words = ["regrow", "report", study, *(word for option in options for word in option)]
    return shlex.join(map(str, words))


def _saying_what_is_known(
    study: "Study", store: "Store", command: str, *, before: "Callable[[Event], None]"
) -> "Callable[[Event], None]":
    """Return a handler that summarises the results each time all arms of another seed are done.

    It passes all events, and its own, to ``before``.
    """
    from regrow.report.advice import so_far
    from regrow.report.collect import results_of
    from regrow.run.refreshing import SeedBySeed

    cells, done = study.cells(), store.snapshot().done
    waiting: dict[int, set[str]] = {}
    for cell in cells:
        waiting.setdefault(cell.seed, set()).update({cell.job.key} - done)

    def known(seeds: Sequence[int]) -> str:
        told = f"{len(seeds)} of {len(waiting)} seeds {'is' if len(seeds) == 1 else 'are'} complete"
        if len({cell.experiment.title for cell in cells}) == 1:  # more do not fit into a line
            runs = results_of(study, store).runs
            told = "; ".join(filter(None, (told, so_far([r for r in runs if r.seed in seeds]))))
        return f"{told}. To see more in another terminal: {command}"

    return SeedBySeed(waiting, known, before=before)


def _nearby(file: Path) -> Path:
    """Return a path relative to the current folder, if it is inside it."""
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _print_summary(summary: "Summary", page: Path) -> None:
    """Print on standard error how many jobs were done, reused, failed or blocked."""
    line = f"{count(len(summary.done), 'job')} done in {clock(summary.seconds)}"
    if summary.reused:
        line += f", {len(summary.reused)} were done before"
    if summary.failed:
        jobs = (summary.done, summary.reused, summary.failed, summary.blocked)
        line += f"; {len(summary.failed)} FAILED"
        if summary.blocked:
            line += f" and {len(summary.blocked)} not started because of that"
        line += (
            f", of {count(sum(map(len, jobs)), 'job')} in all (a pruning is a job too, but no row "
            f"of the table): see 'Failures' in {page}. The same command retries them"
        )
    say(f"{line}.")


def _report_folder(study: "Study", out: Path | None) -> Path:
    return out if out is not None else DEFAULT_REPORT / study.name


def _live_page(
    study: "Study",
    store: "Store",
    out: Path | None,
    *,
    choice: "PrecisionChoice",
    path: Path,
    before: "Callable[[Event], None]",
) -> "Callable[[Event], None]":
    """Return a handler that rewrites the HTML page as jobs finish, and passes on all events."""
    from regrow.run.refreshing import Refreshing

    told: set[str] = set()

    def write(seconds: int) -> None:
        try:
            _report(
                study,
                store,
                out,
                choice=choice,
                html=True,
                path=path,
                refresh=seconds,
            )
        except ConfigError as error:  # the page is rewritten later, so training need not stop
            if str(error) not in told:
                complain(f"{error} The study goes on.")
            told.add(str(error))

    return Refreshing(write, before=before)


def _report(
    study: "Study",
    store: "Store",
    out: Path | None,
    *,
    choice: "PrecisionChoice",
    html: bool = False,
    path: Path | None = None,
    checklist: bool = False,
    epochs: bool = False,
    refresh: int | None = None,
) -> "tuple[Report, list[str]]":
    """Write a study's report; return it with the status of each run.

    ``html`` adds the HTML page, which includes the study file ``path``. ``refresh`` writes only the
    page, which the browser reloads after that many seconds.
    """
    from regrow.report.files import write_study

    written, results = write_study(
        study,
        store,
        _report_folder(study, out),
        command=command_line(),
        precision=str(choice.decision) if choice.decision is not None else None,
        html=html,
        settings={f"The study file, {path.name}": _text_of(path)} if path is not None else {},
        checklist=checklist,
        epochs=epochs,
        refresh=refresh,
    )
    return written, [run.status for run in results.runs]


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _print_report(written: "Report", *, as_json: bool, summary: "Summary | None" = None) -> None:
    if not as_json:
        print(written.text)
        say_written(written.paths[0].parent, ":")
        print(in_lines(path.name for path in written.paths))
        return
    value: dict[str, Any] = {
        **{f"{metric.key}_unit": metric.unit_word for metric in written.metrics},
        "rows": json.loads(written.frame.to_json(orient="records")),
        "answer": written.answer,
        "paths": [str(path) for path in written.paths],
    }
    if summary is not None:
        value["jobs"] = {
            "done": len(summary.done),
            "reused": len(summary.reused),
            "failed": list(summary.failed),
            "blocked": list(summary.blocked),
            "seconds": round(summary.seconds, 3),
        }
    print_json(value)
