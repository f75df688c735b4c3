"""The commands ``regrow reproduce`` and ``regrow claims``."""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regrow.core.durations import in_words
from regrow.errors import Interrupted, RegrowError
from regrow.studies.data_overrides import pairs

if TYPE_CHECKING:
    from regrow.reproduce.data import Request
    from regrow.reproduce.entries import Entry
    from regrow.reproduce.publish import Published
    from regrow.store import Store

app = typer.Typer(no_args_is_help=True)

EXIT_FAILED_JOBS = 1
DEFAULT_STORE = Path("regrow-store")
DEFAULT_OUT = Path("regrow-paper")

What = Annotated[
    str,
    typer.Argument(help="table-1, ..., figure-7; all that there is; or list.", show_default=False),
]
ScaleOption = Annotated[
    str, typer.Option(help="paper: exactly; small: thinner and shorter; smoke: least of all.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Replace a data set: cifar10=hf:PATH, cifar100=..., imagenet=folder:PATH, "
        "voc2007=voc:PATH.",
    ),
]
StoreOption = Annotated[Path, typer.Option(help="Folder of results; all tables share it.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder to write to.", show_default="regrow-paper/<scale>")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Worker processes.", show_default="one a core")
]
SeedsOption = Annotated[
    int | None, typer.Option(min=1, help="Seeds of each row.", show_default="the study's")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help="Rows that contain this, such as 'ResNet-56*scratch'; may be repeated."),
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Python file that registers data sets, to name in --data."),
]
DeviceOption = Annotated[str, typer.Option(help="Where networks are trained: cpu, cuda, ...")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="fp32, bf16 or auto.", show_default="fp32, as the paper")
]


@app.command()
def reproduce(
    what: What,
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
    plan: Annotated[bool, typer.Option("--plan", help="Show jobs and time; run nothing.")] = False,
) -> None:
    """Reproduce a table or figure of the paper, its printed number beside each of ours."""
    from regrow.core.registry import load_file
    from regrow.reproduce import scales
    from regrow.reproduce.entries import entries, entry

    if what == "list":
        _list(list(entries().values()))
        return
    for file in with_files or ():
        load_file(file)
    chosen = [*entries().values()] if what == "all" else [entry(what)]
    chosen_scale, replacements = scales.named(scale), pairs(data or ())
    if sys.stderr.isatty():  # whoever watches sees at once that something happens
        _say(f"Preparing {what} at scale {scale} ...")
    from regrow.reproduce.data import Request
    from regrow.run import check_device
    from regrow.run.precision import Choice
    from regrow.store import Store
    from regrow.train import AUTO

    choice = Choice(None, device=device)
    if precision == AUTO:
        choice = Choice(Store.open(store, create=False) if store.exists() else None, device=device)
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
    choice.keep(_open(store))
    if what == "all":
        _reproduce_all(chosen, request, store, folder, workers=workers, device=device)
    else:
        opened = _open(store)
        made = _reproduce(chosen[0], request, opened, folder, workers=workers, device=device)
        print(made.text)
        print(f"Written to {folder}: report.md and what it shows.")
        if made.num_failed or not made.complete:
            raise typer.Exit(EXIT_FAILED_JOBS)


@app.command()
def claims(
    ours: Annotated[
        Path | None, typer.Option(help="Folder that `regrow reproduce` wrote.", show_default="none")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")
    ] = False,
) -> None:
    """Judge the paper's claims on its printed numbers, and on ours where there are any."""
    from regrow.reproduce.claims import evaluate_claims, render, to_json
    from regrow.reproduce.own_results import read_cells

    printed, own = evaluate_claims(), []
    if ours is not None:
        found = read_cells(ours)
        own = evaluate_claims(
            found.results,
            widths_frame=found.widths,
            sparsity_frame=found.sparsity,
            curves_frame=found.curves,
            weights_frame=found.weights,
        )
    if as_json:
        both = {"printed": to_json(printed)} | ({"ours": to_json(own)} if ours else {})
        print(json.dumps(both, indent=1, allow_nan=False))
    else:
        print(render(printed, ours=own))


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
        _say(f"{name} is not run. {why}")
    for notice in (*notices(plan.jobs), slow_bf16(plan.jobs, device)):
        if notice is not None:
            _say(notice)
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

    opened = _open(store)
    tables: list[Published] = []
    problems: dict[str, str] = {}
    for one in chosen:
        _say(f"{one.name} ...")
        own = folder / one.name
        try:
            made = _reproduce(one, request, opened, own, workers=workers, device=device)
        except Interrupted:
            raise
        except RegrowError as error:
            problems[one.name] = str(error)
            _say(f"{one.name} is not run. {error}")
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
    from regrow.store import Store

    opened = Store.open(store, create=False) if store.exists() else None
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


def _open(store: Path) -> "Store":
    from regrow.store import Store

    return Store.open(store, create=True)


def _made() -> dict[str, str]:
    """Say with which command, when and on what machine."""
    from regrow.run import num_cores

    return {
        "command": shlex.join(["regrow", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": f"{num_cores()} cores, {platform.machine()}, {platform.system()}",
    }


def _say(line: str) -> None:
    typer.echo(line, err=True)
