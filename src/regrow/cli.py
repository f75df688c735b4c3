"""The command line: ``regrow quickstart``, ``run``, ``plan``, ``status``, ``report``, ``list``.

Only this module prints. Heavy imports stand inside the commands, so that ``regrow --help`` answers
at once.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from regrow.errors import ConfigError, Interrupted, RegrowError, unknown

if TYPE_CHECKING:
    from regrow.report import Report
    from regrow.store import Store
    from regrow.study import Study

EXIT_FAILED_JOBS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is a pruned network good because of the weights it inherits, or because of its "
    "architecture? Train, prune and retrain under every arm, and read the fair table.",
)

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
StoreOption = Annotated[Path, typer.Option(help="Folder of results; shared by studies.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the report.", show_default="regrow-report/<name>")
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Python file that registers methods, models, data sets or arms."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="Worker processes.", show_default="one a core")
]
CheckpointOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds between checkpoints of a training.")
]
DeviceOption = Annotated[str, typer.Option(help="Where networks are trained: cpu, cuda, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

DEFAULT_STORE = Path("regrow-store")
DEFAULT_OUT = Path("regrow-report")


@app.command()
def quickstart(
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    workers: WorkersOption = None,
) -> None:
    """Run a whole small study on handwritten digits: three methods, every arm, five seeds."""
    study = Path(str(files("regrow"))) / "quickstart.yaml"
    _run(study, store, out, workers=workers, command=_command())


@app.command()
def run(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    workers: WorkersOption = None,
    with_files: WithOption = None,
    checkpoint_seconds: CheckpointOption = 60.0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Do what is missing of a study, then report. Stop it at any time; the same command goes on."""
    _load_files(with_files)
    _run(
        study,
        store,
        out,
        workers=workers,
        command=_command(),
        checkpoint_seconds=checkpoint_seconds,
        device=device,
        as_json=as_json,
    )


@app.command()
def plan(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the jobs of a study, which are done, and what the rest will take on this machine."""
    _load_files(with_files)
    from regrow.run import num_cores
    from regrow.run.estimate import estimate

    asked = _study(study)
    done = _open(store, create=False).snapshot().done if store.exists() else frozenset[str]()
    num_workers = max(workers if workers is not None else num_cores(), 1)
    found = estimate(asked.jobs(), done, workers=num_workers)
    if as_json:
        _print_json(
            {
                "study": asked.name,
                "jobs": found.jobs,
                "done": found.done,
                "by_kind": found.by_kind,
                "training_flops": found.training_flops,
                "seconds": found.seconds,
                "workers": num_workers,
            }
        )
        return
    console = Console()
    table = Table("jobs", "in all", "done", "to do", title=f"Plan of {asked.title}")
    for kind, (total, ready) in found.by_kind.items():
        table.add_row(kind, str(total), str(ready), str(total - ready))
    table.add_row("all", str(found.jobs), str(found.done), str(found.jobs - found.done))
    console.print(table)
    if found.done == found.jobs:
        console.print("All of it is done: regrow report shows it.")
        return
    console.print(
        f"Still to train: {found.training_flops:.3g} FLOPs, about {_duration(found.seconds)} with "
        f"{num_workers} worker{'s' if num_workers > 1 else ''} on this machine (from a short "
        "calibration; FLOPs of networks that are yet to be pruned are guessed)."
    )


@app.command()
def status(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a study is: done, running, waiting to go on, failed, missing."""
    _load_files(with_files)
    from regrow.run.estimate import all_jobs

    asked, opened = _study(study), _open(store, create=False)
    snapshot = opened.snapshot()
    nodes = all_jobs(asked.jobs())
    groups: dict[str, list[str]] = {k: [] for k in ("done", "running", "paused", "failed")}
    missing = []
    for key in nodes:
        for name, keys in groups.items():
            if key in getattr(snapshot, name):
                keys.append(key)
                break
        else:
            missing.append(key)
    failures = {key: opened.failure(key) or {} for key in groups["failed"]}
    running = {key: opened.progress(key) or {} for key in groups["running"]}
    if as_json:
        counts = {name: len(keys) for name, keys in groups.items()} | {"missing": len(missing)}
        _print_json(
            {
                "study": asked.name,
                "counts": counts,
                "running": [
                    {"job": nodes[key].label, **progress} for key, progress in running.items()
                ],
                "failed": [
                    {"job": nodes[key].label, "message": failure.get("message")}
                    for key, failure in failures.items()
                ],
            }
        )
        return
    console = Console()
    counts_text = ", ".join(f"{len(keys)} {name}" for name, keys in groups.items())
    console.print(f"{asked.title}: {counts_text}, {len(missing)} missing, of {len(nodes)} jobs.")
    for key, progress in running.items():
        share, note = progress.get("fraction", 0.0), progress.get("note", "")
        console.print(f"  running {nodes[key].label}: {share:.0%} {note}", highlight=False)
    for key, failure in failures.items():
        console.print(f"  failed  {nodes[key].label}: {failure.get('message')}", highlight=False)


@app.command()
def report(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of what a study has so far, and show its table and answer."""
    _load_files(with_files)
    asked = _study(study)
    made, incomplete = _report(asked, _open(store, create=False), out, command=_command())
    _show(made, as_json=as_json)
    if incomplete:
        raise typer.Exit(EXIT_FAILED_JOBS)


@app.command(name="list")
def list_names(
    what: Annotated[
        str, typer.Argument(help="models, data, methods, criteria, allocations, arms, recipes.")
    ] = "all",
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what can be named in a study."""
    _load_files(with_files)
    found = _names()
    if what != "all":
        if what not in found:
            raise ConfigError(unknown("kind of name", what, [*found, "all"]))
        found = {what: found[what]}
    if as_json:
        _print_json(found)
        return
    console = Console()
    for kind, names in found.items():
        table = Table(kind, "", box=None, title_justify="left", pad_edge=False)
        for name, about in names.items():
            table.add_row(name, about)
        console.print(table)
        console.print()


def main() -> None:
    """Run the command line; errors for people end in exit code 2 without a traceback."""
    try:
        app(standalone_mode=True)
    except Interrupted as error:
        _complain(f"Stopped. {error} Give the same command to go on.")
        sys.exit(EXIT_INTERRUPTED)
    except RegrowError as error:
        _complain(f"{error}")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _complain("Stopped. Give the same command to go on.")
        sys.exit(EXIT_INTERRUPTED)


def _complain(message: str) -> None:
    Console(stderr=True).print(f"regrow: {message}", markup=False, highlight=False, soft_wrap=True)


def _command() -> str:
    return shlex.join(["regrow", *sys.argv[1:]])


def _load_files(paths: Sequence[Path] | None) -> None:
    from regrow.registry import load_file

    for path in paths or ():
        load_file(path)


def _study(path: Path) -> "Study":
    from regrow.study import Study

    return Study.load(path)


def _open(store: Path, *, create: bool) -> "Store":
    from regrow.store import Store

    return Store.open(store, create=create)


def _run(
    path: Path,
    store: Path,
    out: Path | None,
    *,
    workers: int | None,
    command: str,
    checkpoint_seconds: float = 60.0,
    device: str = "cpu",
    as_json: bool = False,
) -> None:
    from regrow.run import run as run_jobs
    from regrow.run.display import display

    asked = _study(path)
    opened = _open(store, create=True)
    _check_writable(_out(asked, out))
    with display() as show:
        summary = run_jobs(
            asked.jobs(),
            opened,
            workers=workers,
            on_event=show,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
        )
    made, incomplete = _report(asked, opened, out, command=command)
    _show(made, as_json=as_json)
    if incomplete or not summary.complete:
        raise typer.Exit(EXIT_FAILED_JOBS)


def _out(asked: "Study", out: Path | None) -> Path:
    return out if out is not None else DEFAULT_OUT / asked.name


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours go into what it shall hold."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot write the report to '{folder}': {error.strerror or error}. Name a folder "
            "that you may write to."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"Cannot write the report to '{folder}': permission denied.")


def _report(
    asked: "Study", opened: "Store", out: Path | None, *, command: str
) -> "tuple[Report, bool]":
    from regrow.report import write
    from regrow.report.collect import collect

    runs, failures = collect(asked, opened)
    made = write(
        runs,
        _out(asked, out),
        title=asked.title,
        command=command,
        machine=_machine(),
        date=date.today().isoformat(),
        margin=asked.margin,
        failures=failures,
    )
    return made, any(run.status != "done" for run in runs)


def _show(made: "Report", *, as_json: bool) -> None:
    if as_json:
        rows = json.loads(made.frame.to_json(orient="records"))
        paths = [str(path) for path in made.paths]
        _print_json({"rows": rows, "answer": made.answer, "paths": paths})
        return
    print(made.text)
    print(f"Written to {made.paths[0].parent}: {', '.join(path.name for path in made.paths)}")


def _machine() -> str:
    """Describe the machine without naming it."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = named[0] if named else processor
    from regrow.run import num_cores

    return f"{num_cores()} cores, {processor}, {platform.system()}"


def _names() -> dict[str, dict[str, str]]:
    from regrow.arms import ARMS
    from regrow.data import DATASETS
    from regrow.models import MODELS
    from regrow.prune import ALLOCATIONS, CRITERIA, METHODS
    from regrow.train import RECIPES

    def first_line(value: object) -> str:
        return (getattr(value, "__doc__", None) or "").strip().partition("\n")[0]

    arms = {}
    for name in ARMS.names():
        arm = ARMS.get(name)
        amount = "" if arm.budget.amount is None else f" {arm.budget.amount:g}"
        budget = f"{arm.budget.kind}{amount}"
        arms[name] = f"starts {arm.start}, budget {budget}, schedule {arm.schedule}"
    methods = {}
    for name in METHODS.names():
        method = METHODS.get(name)
        methods[name] = f"{method.criterion} x {method.allocation}, unit {method.unit}"
        if method.targets:
            methods[name] += f"; targets {', '.join(method.targets)}"
    return {
        "models": {name: MODELS.get(name).family for name in MODELS.names()},
        "data": {name: first_line(DATASETS.get(name)) for name in DATASETS.names()},
        "methods": methods,
        "criteria": {name: first_line(CRITERIA.get(name)) for name in CRITERIA.names()},
        "allocations": {name: first_line(ALLOCATIONS.get(name)) for name in ALLOCATIONS.names()},
        "arms": arms,
        "recipes": {
            name: json.dumps(recipe.to_json()) if recipe.to_json() else "160 epochs, SGD 0.1"
            for name, recipe in RECIPES.items()
        },
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))
