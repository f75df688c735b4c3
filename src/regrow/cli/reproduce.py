"""The command ``regrow reproduce``."""

import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import DEFAULT_STORE, DeviceOption, StoreOption, WithOption, WorkersOption
from regrow.cli.terminal import EXIT_FAILED_JOBS, command_line, say
from regrow.core.durations import in_words
from regrow.errors import Interrupted, RegrowError
from regrow.studies.data_overrides import pairs

if TYPE_CHECKING:
    from regrow.reproduce.data import Request
    from regrow.reproduce.entries import Entry
    from regrow.reproduce.publish import Published
    from regrow.store import Store

DEFAULT_OUT = Path("regrow-paper")

EntryArgument = Annotated[
    str,
    typer.Argument(
        help="Table or figure, e.g. table-1 or figure-7; all; or list.", show_default=False
    ),
]
ScaleOption = Annotated[
    str,
    typer.Option(
        help="paper: as published; small: narrower networks, shorter training; smoke: minimal."
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


def reproduce(
    what: EntryArgument,
    scale: ScaleOption = "paper",
    data: DataOption = None,
    with_files: WithOption = None,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    workers: WorkersOption = None,
    seeds: SeedsOption = None,
    only: OnlyOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    plan: PlanOption = False,
) -> None:
    """Reproduce a table or figure of the paper, with its printed numbers beside ours."""
    from regrow.reproduce import scales
    from regrow.reproduce.entries import entries, entry

    if what == "list":
        _list(list(entries().values()))
        return
    load_extensions(with_files)
    chosen = [*entries().values()] if what == "all" else [entry(what)]
    chosen_scale, replacements = scales.named(scale), pairs(data or ())
    if sys.stderr.isatty():
        say(f"Preparing {what} at scale {scale} ...")
    from regrow.reproduce.data import Request
    from regrow.run import check_device
    from regrow.run.precision import Choice
    from regrow.train import AUTO

    choice = Choice(None, device=device)
    if precision == AUTO:
        choice = Choice(open_store(store, create=False) if store.exists() else None, device=device)
        # The paper's scale is the paper's.
        precision = None if scale == "paper" or choice() == "fp32" else "bf16"
    request = Request(
        scale=chosen_scale,
        data=replacements,
        seeds=seeds,
        only=tuple(only or ()),
        precision=precision,
    )
    folder = (out or DEFAULT_OUT / scale) / ("" if what == "all" else what)
    if plan:
        _plan(chosen, request, store=store, workers=workers)
        return
    check_device(device)
    choice.keep(open_store(store, create=True))
    if what == "all":
        _reproduce_all(chosen, request, store, folder, workers=workers, device=device)
    else:
        opened = open_store(store, create=True)
        made = _reproduce(chosen[0], request, opened, folder, workers=workers, device=device)
        print(made.text)
        print(f"Written to {folder}: report.md and what it shows.")
        if made.num_failed or not made.complete:
            raise typer.Exit(EXIT_FAILED_JOBS)


def _reproduce(
    entry: "Entry",
    request: "Request",
    store: "Store",
    folder: Path,
    *,
    workers: int | None,
    device: str,
) -> "Published":
    """Do what is missing of one table, and write its folder."""
    from regrow.asked import notices
    from regrow.reproduce.publish import publish
    from regrow.reproduce.reproduce import prepare
    from regrow.reproduce.results import read_back
    from regrow.run import run
    from regrow.run.display import display
    from regrow.run.precision import slow_bf16

    plan = prepare(entry, request)
    for name, why in plan.skipped.items():
        say(f"{name} is not run. {why}")
    for notice in (*notices(plan.jobs), slow_bf16(plan.jobs, device)):
        if notice is not None:
            say(notice)
    with display() as show:
        run(plan.jobs, store, workers=workers, on_event=show, device=device)
    return publish(plan, read_back(plan, store), folder, made=_made())


def _reproduce_all(
    chosen: Sequence["Entry"],
    request: "Request",
    store: Path,
    folder: Path,
    *,
    workers: int | None,
    device: str,
) -> None:
    """Reproduce one table after the other, whatever becomes of the others."""
    from regrow.reproduce.publish import publish_all

    opened = open_store(store, create=True)
    tables: list[Published] = []
    problems: dict[str, str] = {}
    for one in chosen:
        say(f"{one.name} ...")
        own = folder / one.name
        try:
            made = _reproduce(one, request, opened, own, workers=workers, device=device)
        except Interrupted:
            raise
        except RegrowError as error:
            problems[one.name] = str(error)
            say(f"{one.name} is not run. {error}")
            continue
        tables.append(made)
        print(made.text)
    page = publish_all(tables, problems, folder, made=_made())
    for table in tables:
        print(f"{table.plan.entry.name}: {table.summary}")
    for name, why in problems.items():
        print(f"{name}: not run. {why}")
    print(f"Written to {page.parent}: report.md, our cells, and a folder for each of these.")
    if problems or any(table.num_failed or not table.complete for table in tables):
        raise typer.Exit(EXIT_FAILED_JOBS)


def _plan(
    chosen: Sequence["Entry"], request: "Request", *, store: Path, workers: int | None
) -> None:
    """Show the jobs of each table, and what all together will take on this machine."""
    from regrow.jobs.base import Job, all_jobs
    from regrow.reproduce.reproduce import prepare
    from regrow.run import num_cores
    from regrow.run.estimate import estimate

    opened = open_store(store, create=False) if store.exists() else None
    done: frozenset[str] = frozenset()
    jobs: dict[str, Job] = {}
    for one in chosen:
        try:
            plan = prepare(one, request)
        except RegrowError as error:
            if len(chosen) == 1:
                raise
            print(f"{one.name:10} not to be run: {error}")
            continue
        nodes = all_jobs(plan.jobs)
        if opened is not None:
            fresh = {key: nodes[key].spec for key in nodes.keys() - jobs.keys()}
            stored = opened.snapshot(fresh)
            done |= stored.done & fresh.keys()
            for problem in stored.damaged.values():
                print(problem, file=sys.stderr)
        ready, new = len(nodes.keys() & done), len(nodes.keys() - done - jobs.keys())
        shared = len(nodes) - ready - new
        print(
            f"{one.name:10} {len(nodes):5} jobs, {ready} done, {new} to do"
            + (f", {shared} shared with tables above" if shared else "")
        )
        for name, why in plan.skipped.items():
            print(f"{'':10} without {name}: {why}")
        jobs |= nodes
    num_workers = max(num_cores() if workers is None else workers, 1)
    found = estimate(tuple(jobs.values()), done, workers=num_workers, store=opened)
    print(
        f"In all {found.jobs} jobs, {found.done} done. To do: {found.training_flops:.3g} FLOPs, "
        f"about {in_words(found.seconds)} with {num_workers} workers on this machine as it is "
        "now (networks that are yet to be pruned are guessed)."
    )


def _list(entries: Sequence["Entry"]) -> None:
    """Print every table and figure, and what it shows."""
    from regrow.reproduce.layout import TABLES

    for one in entries:
        number = int(one.name.partition("-")[2])
        about = TABLES[number][0] if one.name.startswith("table") else one.about
        print(f"{one.name:10} {about}")


def _made() -> dict[str, str]:
    """Return the command, the date and the machine, for the report."""
    from regrow.run import num_cores

    return {
        "command": command_line(),
        "date": date.today().isoformat(),
        "machine": f"{num_cores()} cores, {platform.machine()}, {platform.system()}",
    }
