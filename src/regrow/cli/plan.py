"""The commands ``regrow plan`` and ``regrow status``: the work left, and the work done so far."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from regrow.cli.hours import HoursOption, load_within, print_budgets, print_rows
from regrow.cli.inputs import (
    load_extensions,
    load_study,
    open_store,
    stored,
    warn_about,
)
from regrow.cli.options import (
    DEFAULT_STORE,
    DataOption,
    JsonOption,
    StoreOption,
    StudyFile,
    WithOption,
    WorkersOption,
)
from regrow.cli.terminal import announce, console, count, print_json, say
from regrow.core.durations import in_words
from regrow.core.texts import one_line, visible
from regrow.studies.yaml_file import pairs

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.run.estimate import Estimate
    from regrow.store import Snapshot, Store
    from regrow.studies.job_list import Planned

WATCH_SECONDS = 2.0
# Status of a job, and how a sentence calls it.
WORDS = {"done": "done", "running": "running", "paused": "stopped half-way", "failed": "failed"}


def plan(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    with_files: WithOption = None,
    data: DataOption = None,
    hours: HoursOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a study's jobs, and estimate how long the unfinished ones take on this machine.

    With --hours also the number of epochs that fits, and the epochs, hours and FLOPs of each row.
    For a study with budgets also the updates, FLOPs and time of each budget.
    """
    load_extensions(with_files)
    loaded, _, _ = load_within(hours, study, store, data=data, workers=workers)
    announce("Checking its data and networks")
    from regrow.jobs.base import specs
    from regrow.run import num_cores
    from regrow.run.estimate import estimate, measuring
    from regrow.run.hours import budget_costs

    cells = loaded.cells()
    jobs = [cell.job for cell in cells]
    opened = open_store(store, create=False) if store.exists() else None
    finished = stored(opened, specs(jobs)).done if opened else frozenset[str]()
    num_workers = max(workers if workers is not None else num_cores(), 1)
    warn_about(jobs, loaded)
    announce("Timing its networks on this machine")
    with measuring(num_workers) as rates:
        work = estimate(jobs, finished, workers=num_workers, store=opened, rates=rates)
        costs = [] if loaded.own else budget_costs(cells, rates, workers=num_workers)
        if hours is not None and not as_json:
            print_rows(cells, rates, workers=num_workers)
    if as_json:
        print_json(
            {
                "study": loaded.name,
                "jobs": work.jobs,
                "done": work.done,
                "by_kind": work.by_kind,
                **_spending(work, known=not loaded.own),
                **({"budgets": [asdict(cost) for cost in costs]} if costs else {}),
                "workers": num_workers,
                "notes": list(loaded.notes),
            }
        )
    else:
        if costs:
            print_budgets(costs, workers=num_workers)
        _print_plan(loaded.title, work, num_workers, known=not loaded.own)


def _spending(work: "Estimate", *, known: bool) -> dict[str, float | None]:
    """Return the cost of the remaining work; None if the user's own function trains."""
    names = ("training_flops", "seconds", "compute_seconds")
    return {name: getattr(work, name) if known else None for name in names}


def _print_plan(title: str, work: "Estimate", num_workers: int, *, known: bool) -> None:
    table = Table("jobs", "in all", "done", "to do", title=Text(f"Plan of {one_line(title)}"))
    for kind, (total, ready) in work.by_kind.items():
        table.add_row(kind, str(total), str(ready), str(total - ready))
    table.add_row("all", str(work.jobs), str(work.done), str(work.jobs - work.done))
    console().print(table)
    if work.done == work.jobs:
        console().print("Every job is done: `regrow report` shows the results.")
        return
    if not known:
        console().print("The time that your own training function takes cannot be estimated.")
        return
    console().print(f"Training left: {_time_left(work, num_workers)}.", highlight=False)


def _time_left(work: "Estimate", num_workers: int) -> str:
    source = "the jobs done so far" if work.from_records else "a short calibration"
    return (
        f"{work.training_flops:.3g} FLOPs, about {in_words(work.seconds)} with "
        f"{count(num_workers, 'worker')} on this machine under its current load (estimated from "
        f"{source}; the sizes of networks that are not pruned yet are guesses)"
    )


def say_estimate(jobs: "Sequence[Job]", store: "Store", workers: int | None) -> None:
    """Print an estimate of how long a run will take, before it starts."""
    from regrow.jobs.base import specs
    from regrow.run import num_cores
    from regrow.run.estimate import estimate

    finished = stored(store, specs(jobs)).done
    num_workers = max(workers if workers is not None else num_cores(), 1)
    announce("Timing its networks on this machine")
    work = estimate(jobs, finished, workers=num_workers, store=store)
    if work.done < work.jobs:
        say(
            f"{count(work.jobs - work.done, 'job')} to do: {_time_left(work, num_workers)}. Ctrl-C "
            "stops them cleanly, and the same command resumes."
        )


def status(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    data: DataOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep showing the progress until every job has ended.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show how many of a study's jobs are done, running, stopped, failed or not started."""
    load_extensions(with_files)
    opened = open_store(store, create=False)
    planned = planned_of(opened, study, store, data)
    if watch and not as_json:
        _watch(opened, planned)
        return
    groups = _by_status(planned, stored(opened, planned.specs))
    running = {planned.labels[key]: opened.progress(key) for key in groups["running"]}
    failures = {
        planned.labels[key]: (opened.failure(key) or {}).get("message") for key in groups["failed"]
    }
    if as_json:
        print_json(
            {
                "study": planned.name,
                "jobs": len(planned.labels),
                "counts": {name: len(keys) for name, keys in groups.items()},
                "running": [{"job": job, **progress} for job, progress in running.items()],
                "failed": [{"job": job, "message": text} for job, text in failures.items()],
            }
        )
        return
    for line in _lines(opened, planned, groups):
        console().print(line, markup=False, highlight=False)


def _lines(store: "Store", planned: "Planned", groups: Mapping[str, list[str]]) -> list[str]:
    """Return a study's status as lines: the counts of all jobs, running jobs, then failed ones."""
    lines = [f"{planned.title}: {_counts(groups)}."]
    for key in groups["running"]:
        progress = store.progress(key)
        share, note = progress.get("fraction", 0.0), progress.get("note", "")
        doing = "waiting" if progress.get("waits") else "running"
        how_far = f"{share:.0%} {note}" if share or not note else note  # 0 means unknown
        lines.append(f"  {doing} {planned.labels[key]}: {how_far}".rstrip())
    for key in groups["failed"]:
        message = (store.failure(key) or {}).get("message")
        lines.append(f"  failed {planned.labels[key]}: {message} (log: {store.log_file(key)})")
    lines += ["`regrow run` tries failed jobs again."] if groups["failed"] else []
    return [visible(line) for line in lines]


def _watch(store: "Store", planned: "Planned") -> None:
    """Show a study's status until nothing is left to do: updated in place, or a line per change."""
    out, before = console(), ""
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while True:
            groups = _by_status(planned, store.snapshot())
            lines = _lines(store, planned, groups)
            if live is not None:
                live.update(Text("\n".join(lines)), refresh=True)
            elif lines[0] != before:
                out.print(lines[0], markup=False, highlight=False)
                before = lines[0]
            if not any(groups[name] for name in ("running", "paused", "missing")):
                return
            time.sleep(WATCH_SECONDS)


def planned_of(opened: "Store", study: Path, store: Path, data: Sequence[str] | None) -> "Planned":
    """Return the jobs of a study: as stored, or expanded if this version of it was never run."""
    from regrow.studies.job_list import recall

    known = recall(opened, study, data=pairs(data or ()))
    if known is not None:
        return known
    loaded, _ = load_study(study, store, data=data, measure=False)
    from regrow.jobs.base import all_jobs
    from regrow.studies.job_list import Planned

    return Planned.of(loaded.name, loaded.title, all_jobs(loaded.jobs()))


def _by_status(planned: "Planned", snapshot: "Snapshot") -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {name: [] for name in (*WORDS, "missing")}
    for key in planned.labels:
        name = next((name for name in WORDS if key in getattr(snapshot, name)), "missing")
        groups[name].append(key)
    return groups


def _counts(groups: Mapping[str, list[Any]]) -> str:
    total = sum(map(len, groups.values()))
    parts = [f"{len(groups['done'])} of {count(total, 'job')} done"]
    parts += [f"{len(groups[k])} {word}" for k, word in WORDS.items() if groups[k] and k != "done"]
    parts += [f"{len(groups['missing'])} not started"] if groups["missing"] else []
    return ", ".join(parts)
