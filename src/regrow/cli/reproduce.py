"""The command ``regrow reproduce``."""

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regrow.cli.execution import HERE, takes_execution
from regrow.cli.hours import ChosenBudget, HoursOption, print_rows, request_within
from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import (
    DEFAULT_STORE,
    HtmlOption,
    StoreOption,
    WithOption,
)
from regrow.cli.terminal import EXIT_FAILED_JOBS, command_line, count, say, say_written
from regrow.core.durations import in_words
from regrow.core.execution import Execution
from regrow.core.machine import machine
from regrow.errors import ConfigError, Interrupted, RegrowError
from regrow.studies.yaml_file import pairs

if TYPE_CHECKING:
    from regrow.reproduce.images import Request
    from regrow.reproduce.paper import Entry, Paper
    from regrow.reproduce.publish import Published
    from regrow.run.precision import PrecisionChoice
    from regrow.store import Store
    from regrow.studies.expand import Cell

DEFAULT_OUT = Path("regrow-paper")

EntryArgument = Annotated[
    str,
    typer.Argument(
        help="Table or figure, e.g. table-1 or wang2023/table-6; all; or list.",
        show_default=False,
    ),
]
PaperOption = Annotated[
    str | None,
    typer.Option(
        help="Name or folder of the paper; see `regrow reproduce list`.", show_default="liu2019"
    ),
]
ScaleOption = Annotated[
    str,
    typer.Option(
        help="paper: as published; small: narrower networks, shorter training; minutes: a first "
        "look on handwritten digits; smoke: only checks that everything runs."
    ),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=OTHER",
        help="Use other data in place of a data set: cifar10=hf:PATH, imagenet=folder:PATH, "
        "voc2007=voc:PATH.",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder to write to.", show_default="regrow-paper/<scale>")
]
SeedsOption = Annotated[
    int | None, typer.Option(min=1, help="Seeds per row.", show_default="as in the study")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Run only the rows whose label matches, e.g. 'ResNet-56*scratch'; repeatable."
    ),
]
PrecisionOption = Annotated[
    str | None, typer.Option(help="fp32, bf16 or auto.", show_default="fp32, as in the paper")
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Show the jobs and the estimated time; run nothing.")
]


@takes_execution
def reproduce(
    name: EntryArgument,
    paper: PaperOption = None,
    scale: ScaleOption = "paper",
    data: DataOption = None,
    with_files: WithOption = None,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    execution: Execution = HERE,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    precision: PrecisionOption = None,
    hours: HoursOption = None,
    html: HtmlOption = False,
    plan: PlanOption = False,
) -> None:
    """Reproduce a table or figure of a paper, with its printed numbers beside ours."""
    from regrow.reproduce import scales
    from regrow.reproduce.paper import find_paper, papers

    chosen_paper = find_paper(paper) if paper is not None else None
    if name == "list":
        _list([chosen_paper] if chosen_paper else list(papers().values()))
        return
    execution.check_hours(hours)
    load_extensions(with_files)
    entries = _chosen(name, chosen_paper)
    source = entries[0].paper
    source.check_data(replacements := pairs(data or ()))
    chosen_scale = scales.named(scale)
    if sys.stderr.isatty():
        say(f"Preparing {name} at scale {scale} ...")
    from regrow.reproduce.images import Request
    from regrow.run import check_machines

    computed, choice = _precision(precision, scale, store, execution.first)
    request = Request(
        scale=chosen_scale,
        data=replacements,
        seeds=seeds,
        only=tuple(only or ()),
        precision=computed,
    )
    request, chosen = _within(hours, entries, request, store, execution=execution)
    if plan:
        _plan(entries, request, store=store, workers=execution.workers)
        return
    everything = out or _out(source, scale, hours)
    check_machines(execution)
    opened = _opened(store, choice, chosen)
    how: dict[str, Any] = {"execution": execution, "html": html}
    if name.rpartition("/")[2] == "all":
        _reproduce_all(entries, request, opened, everything, **how)
        return
    folder = everything / entries[0].name
    written = _reproduce(entries[0], request, opened, folder, **how)
    print(written.text)
    say_written(folder, ": report.md and its tables and figures.")
    if written.num_failed or not written.complete:
        raise typer.Exit(EXIT_FAILED_JOBS)


def _precision(
    precision: str | None, scale: str, store: Path, device: str
) -> "tuple[str | None, PrecisionChoice]":
    """Replace ``auto`` by bf16 if it is faster and the scale is not ``paper``, else by None."""
    from regrow.run.precision import PrecisionChoice
    from regrow.train import AUTO

    if precision != AUTO:
        return precision, PrecisionChoice(None, device=device)
    choice = PrecisionChoice(
        open_store(store, create=False) if store.exists() else None, device=device
    )
    return None if scale == "paper" or choice().precision == "fp32" else "bf16", choice


def _opened(store: Path, choice: "PrecisionChoice", chosen: ChosenBudget | None) -> "Store":
    """Open a store, and save the chosen precision and training budget in it."""
    opened = open_store(store, create=True)
    choice.keep(opened)
    if chosen is not None:
        chosen.keep(opened)
    return opened


def _out(paper: "Paper", scale: str, hours: float | None) -> Path:
    """Return the default output folder for a scale and a limit in hours."""
    from regrow.reproduce.paper import DEFAULT

    name = scale if hours is None else f"{scale}-{hours:g}-hours"
    return DEFAULT_OUT / ("" if paper.name == DEFAULT else paper.name) / name


def _within(
    hours: float | None,
    entries: Sequence["Entry"],
    request: "Request",
    store: Path,
    *,
    execution: Execution,
) -> "tuple[Request, ChosenBudget | None]":
    """Shorten a table or figure to fit into a number of hours, if one is given, and print how."""
    if hours is None:
        return request, None
    from regrow.run.hours import check_hours

    check_hours(hours, device=execution.first)
    if len(entries) > 1:
        raise ConfigError("--hours works for one table or figure. Name one instead of 'all'.")
    return request_within(hours, entries[0], request, store, workers=execution.workers)


def _chosen(name: str, paper: "Paper | None") -> list["Entry"]:
    """Return the table or figure with this name, or a whole paper's for ``all`` or ``NAME/all``."""
    from regrow.reproduce.paper import DEFAULT, find_entry, find_paper

    before, _, last = name.rpartition("/")
    if last == "all":
        return [*(paper or find_paper(before or DEFAULT)).entries.values()]
    return [find_entry(name, paper)]


def _reproduce(
    entry: "Entry",
    request: "Request",
    store: "Store",
    folder: Path,
    *,
    execution: Execution,
    html: bool,
) -> "Published":
    """Run the unfinished jobs of a table or figure, and write its folder."""
    from regrow.core.source import keeping_code
    from regrow.jobs.base import notices
    from regrow.reproduce.plan import prepare
    from regrow.reproduce.publish import publish
    from regrow.reproduce.results import read_back
    from regrow.run import run_as
    from regrow.run.display import display
    from regrow.run.precision import slow_bf16

    plan = prepare(entry, request)
    for name, reason in plan.skipped.items():
        say(f"{name} was not run. {reason}")
    for notice in (*notices(plan.jobs), slow_bf16(plan.jobs, execution.first)):
        if notice is not None:
            say(notice)
    with keeping_code():
        with display() as show:
            run_as(execution, plan.jobs, store, on_event=show)
        results, provenance = read_back(plan, store), _provenance()
    published = publish(plan, results, folder, provenance=provenance)
    if html:
        from regrow.reproduce.page import write_entry

        write_entry(published, results, store, provenance=provenance)
    return published


def _reproduce_all(
    entries: Sequence["Entry"],
    request: "Request",
    store: "Store",
    folder: Path,
    *,
    execution: Execution,
    html: bool,
) -> None:
    """Reproduce every table and figure in turn, even if some fail."""
    from regrow.reproduce.publish import publish_all

    tables: list[Published] = []
    problems: dict[str, str] = {}
    for entry in entries:
        say(f"{entry.name} ...")
        try:
            written = _reproduce(
                entry,
                request,
                store,
                folder / entry.name,
                execution=execution,
                html=html,
            )
        except Interrupted:
            raise
        except RegrowError as error:
            problems[entry.name] = str(error)
            say(f"{entry.name} was not run. {error}")
            continue
        tables.append(written)
        print(written.text)
    page = publish_all(tables, problems, folder, provenance=_provenance())
    if html and tables:
        from regrow.reproduce.page import write_all

        write_all(tables, problems, folder, provenance=_provenance())
    for table in tables:
        print(f"{table.plan.entry.name}: {table.summary}")
    for name, reason in problems.items():
        print(f"{name}: not run. {reason}")
    say_written(page.parent, ": report.md, our cells, and a folder for each of these.")
    if problems or any(table.num_failed or not table.complete for table in tables):
        raise typer.Exit(EXIT_FAILED_JOBS)


def _plan(
    entries: Sequence["Entry"], request: "Request", *, store: Path, workers: int | None
) -> None:
    """Print the jobs of each table, and the estimated time of all of them together."""
    from regrow.jobs.base import Job, all_jobs
    from regrow.reproduce.plan import prepare
    from regrow.run import num_cores
    from regrow.run.estimate import estimate, measuring

    opened = open_store(store, create=False) if store.exists() else None
    finished: frozenset[str] = frozenset()
    jobs: dict[str, Job] = {}
    cells: list[Cell] = []
    for entry in entries:
        try:
            plan = prepare(entry, request)
        except RegrowError as error:
            if len(entries) == 1:
                raise
            print(f"{entry.name:10} cannot be run: {error}")
            continue
        nodes = all_jobs(plan.jobs)
        if opened is not None:
            fresh = {key: nodes[key].spec for key in nodes.keys() - jobs.keys()}
            stored = opened.snapshot(fresh)
            finished |= stored.done & fresh.keys()
            for problem in stored.damaged.values():
                print(problem, file=sys.stderr)
        ready, new = len(nodes.keys() & finished), len(nodes.keys() - finished - jobs.keys())
        shared = len(nodes) - ready - new
        print(
            f"{entry.name:10} {len(nodes):5} jobs, {ready} done, {new} to do"
            + (f", {shared} shared with tables above" if shared else "")
        )
        for name, reason in plan.skipped.items():
            print(f"{'':10} without {name}: {reason}")
        jobs |= nodes
        cells = [one.cell for part in plan.parts for one in part.cells]
    num_workers = max(num_cores() if workers is None else workers, 1)
    with measuring(num_workers) as rates:
        work = estimate(
            tuple(jobs.values()), finished, workers=num_workers, store=opened, rates=rates
        )
        if len(entries) == 1:
            print_rows(cells, rates, workers=num_workers)
    time = f"{in_words(work.seconds)} with {count(num_workers, 'worker')}"
    print(
        f"In all {work.jobs} jobs, {work.done} done. Training left: {work.training_flops:.3g} "
        f"FLOPs, about {time} on this machine under its current load (the sizes of networks that "
        "are not pruned yet are estimates)."
    )


def _list(papers: Sequence["Paper"]) -> None:
    """Print the tables and figures of each paper, and what they show."""
    for number, paper in enumerate(papers):
        if number:
            print()
        print(f"{paper.name}: {paper.title} ({paper.reference})")
        for entry in paper.entries.values():
            print(f"  {entry.name:10} {entry.about}")


def _provenance() -> dict[str, str]:
    """Return the command, the date and the machine, for the report."""
    return {
        "command": command_line(),
        "date": date.today().isoformat(),
        "machine": machine(),
    }
