"""The command line: ``regrow quickstart``, ``run``, ``plan``, ``status``, ``report``, ``export``,
``list``.

Only this module prints. Heavy imports stand inside the commands, so that ``regrow --help`` answers
at once.
"""

import errno
import json
import os
import platform
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from regrow.bench.command import app as bench_commands
from regrow.cli.once import refuse_repeats
from regrow.core.durations import clock, in_words
from regrow.errors import ConfigError, Interrupted, RanksLost, RegrowError, StoreError, unknown
from regrow.reproduce.command import app as paper_commands
from regrow.studies.data_overrides import pairs

if TYPE_CHECKING:
    from regrow.asked import Asked
    from regrow.jobs.base import Job
    from regrow.report import Report
    from regrow.run import Summary
    from regrow.run.precision import Choice
    from regrow.store import Snapshot, Store
    from regrow.studies.job_list import Planned
    from regrow.tasks.metric import Metric

EXIT_FAILED_JOBS = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
STOPPED = "Stopped. The same command goes on from here."
PIPE_WIDTH = 10_000  # where nobody looks, a line is a line: for grep and for logs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is a pruned network good because of the weights it inherits, or because of its "
    "architecture? Train, prune and retrain under every arm, and read the fair table.",
    epilog="Exit codes: 0 all is done; 1 some jobs failed, the report says which; 2 the input is "
    "at fault, nothing was lost; 130 stopped by Ctrl-C, the same command goes on.",
)

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
StoreOption = Annotated[Path, typer.Option(help="Folder of results; studies may share one.")]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the report.", show_default="regrow-report/<name>")
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Python file that registers methods, models, data sets or arms."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=OTHER",
        help="Put other data in the place of some that the study names, such as cifar10=hf:PATH.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=0, help="Worker processes; 0: none but this one.", show_default="one a core"),
]
CheckpointOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds between checkpoints of a training.")
]
DeviceOption = Annotated[str, typer.Option(help="Where networks are trained: cpu, cuda, ...")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")
]

app.add_typer(bench_commands, name="bench")
app.add_typer(paper_commands)

ChoiceOption = Annotated[str | None, typer.Option(help="Of the row to take, as in the table.")]

DEFAULT_STORE = Path("regrow-store")
DEFAULT_OUT = Path("regrow-report")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"regrow {version('regrow')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


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
    data: DataOption = None,
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
        data=data,
    )


@app.command()
def plan(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    workers: WorkersOption = None,
    with_files: WithOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the jobs of a study, which are done, and what the rest will take on this machine."""
    _load_files(with_files)
    asked, _ = _study(study, store, data=data)
    from regrow.run import num_cores
    from regrow.run.estimate import estimate

    jobs = asked.jobs()
    opened = _open(store, create=False) if store.exists() else None
    done = _stored(opened, jobs).done if opened else frozenset[str]()
    num_workers = max(workers if workers is not None else num_cores(), 1)
    _say_notices(jobs)
    found = estimate(jobs, done, workers=num_workers, store=opened)
    if as_json:
        _print_json(
            {
                "study": asked.name,
                "jobs": found.jobs,
                "done": found.done,
                "by_kind": found.by_kind,
                "training_flops": found.training_flops,
                "seconds": found.seconds,
                "compute_seconds": found.compute_seconds,
                "workers": num_workers,
            }
        )
        return
    console = _console()
    table = Table("jobs", "in all", "done", "to do", title=Text(f"Plan of {asked.title}"))
    for kind, (total, ready) in found.by_kind.items():
        table.add_row(kind, str(total), str(ready), str(total - ready))
    table.add_row("all", str(found.jobs), str(found.done), str(found.jobs - found.done))
    console.print(table)
    if found.done == found.jobs:
        console.print("All of it is done: `regrow report` shows it.")
        return
    source = "the jobs done so far" if found.from_records else "a short calibration"
    console.print(
        f"Still to train: {found.training_flops:.3g} FLOPs, about {in_words(found.seconds)} with "
        f"{_count(num_workers, 'worker')} on this machine as it is now (from {source}; networks "
        "that are yet to be pruned are guessed).",
        highlight=False,
    )


@app.command()
def status(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far a study is: done, running, waiting to go on, failed, missing."""
    _load_files(with_files)
    from regrow.studies.job_list import recall

    opened = _open(store, create=False)
    planned = recall(opened, study, data=pairs(data or ())) or _planned(study, store, data)
    snapshot = _checked(opened, planned.specs)
    groups: dict[str, list[str]] = {k: [] for k in ("done", "running", "paused", "failed")}
    missing = []
    for key in planned.labels:
        for name, keys in groups.items():
            if key in getattr(snapshot, name):
                keys.append(key)
                break
        else:
            missing.append(key)
    failures = {key: opened.failure(key) or {} for key in groups["failed"]}
    running = {key: opened.progress(key) for key in groups["running"]}
    if as_json:
        counts = {name: len(keys) for name, keys in groups.items()} | {"missing": len(missing)}
        _print_json(
            {
                "study": planned.name,
                "jobs": len(planned.labels),
                "counts": counts,
                "running": [
                    {"job": planned.labels[key], **progress} for key, progress in running.items()
                ],
                "failed": [
                    {"job": planned.labels[key], "message": failure.get("message")}
                    for key, failure in failures.items()
                ],
            }
        )
        return
    words = {"done": "done", "running": "running", "paused": "stopped half-way", "failed": "failed"}
    parts = [f"{len(groups['done'])} of {_count(len(planned.labels), 'job')} done"]
    parts += [f"{len(groups[k])} {word}" for k, word in words.items() if groups[k] and k != "done"]
    parts += [f"{len(missing)} not begun"] if missing else []
    lines = [f"{planned.title}: {', '.join(parts)}."]
    for key, progress in running.items():
        share, note = progress.get("fraction", 0.0), progress.get("note", "")
        lines.append(f"  running {planned.labels[key]}: {share:.0%} {note}".rstrip())
    for key, failure in failures.items():
        lines.append(f"  failed {planned.labels[key]}: {failure.get('message')}")
    if failures:
        lines.append("`regrow run` tries again what failed.")
    for line in lines:
        _console().print(line, markup=False, highlight=False)


@app.command()
def report(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    with_files: WithOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of what a study has so far, and show its table and answer."""
    _load_files(with_files)
    asked, choice = _study(study, store, data=data, measure=False)
    opened = _open(store, create=False)
    made, statuses = _report(asked, opened, out, command=_command(), choice=choice)
    _show(made, as_json=as_json)
    if "failed" in statuses:
        raise typer.Exit(EXIT_FAILED_JOBS)


@app.command()
def export(
    study: StudyFile,
    to: Annotated[Path, typer.Option(help="Folder to write the network to.", show_default=False)],
    data: ChoiceOption = None,
    model: ChoiceOption = None,
    method: ChoiceOption = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Of the row to take, as in the table.")
    ] = None,
    target: ChoiceOption = None,
    arm: ChoiceOption = None,
    seed: Annotated[int | None, typer.Option(help="Of the row to take.")] = None,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    replace_data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=OTHER", help="What `regrow run` was given as --data."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the network of one finished row: architecture.json, weights.safetensors, result.json.

    In Python, regrow.load(FOLDER) returns it. Without enough options to choose one row, the message
    lists what there is.
    """
    _load_files(with_files)
    asked, _ = _study(study, store, data=replace_data, measure=False)
    from regrow.studies.export import choose
    from regrow.studies.export import export as write

    given = {
        "data": data,
        "model": model,
        "method": method,
        "sparsity": None if sparsity is None else f"{sparsity:g}",
        "target": target,
        "arm": arm,
        "seed": None if seed is None else str(seed),
    }
    wanted = {axis: value for axis, value in given.items() if value is not None}
    opened = _open(store, create=False)
    made = write(choose(asked.cells(), wanted), opened, to)
    if as_json:
        _print_json(
            {
                "label": made.label,
                "folder": str(made.folder),
                "accuracy": made.accuracy,
                "accuracy_unit": "percent",
                "parameters": made.parameters,
                "macs": made.macs,
            }
        )
        return
    print(
        f"{made.label}: {made.accuracy:.2f} % on the test set, {made.parameters:,} "
        f"parameters, {made.macs:,} MACs.\n"
        f"Written to {made.folder}; regrow.load({str(made.folder)!r}) returns it."
    )


@app.command(name="list")
def list_names(
    what: Annotated[
        str, typer.Argument(help="data, models, methods, criteria, allocations, arms, recipes.")
    ] = "all",
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what can be named in a study."""
    _load_files(with_files)
    from regrow.studies.catalogue import catalogue

    found = catalogue()
    if what != "all":
        if what not in found:
            raise ConfigError(unknown("kind of name", what, [*found, "all"]))
        found = {what: found[what]}
    if as_json:
        _print_json(found)
        return
    for kind, names in found.items():
        _print_names(kind, names, brief=what == "all")


def _print_names(kind: str, names: Mapping[str, str], *, brief: bool) -> None:
    """Print one line for each name; brief ones end with their first sentence."""
    console = _console()
    console.print(Text(kind, style="bold"))
    texts = {name: about.partition(". ")[0] if brief else about for name, about in names.items()}
    if not console.is_terminal:
        width = max(map(len, texts), default=0)
        for name, about in texts.items():
            print(f"  {name.ljust(width)}  {about}".rstrip())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in texts.items():
        table.add_row(f"  {escape(name)}", Text(about))
    console.print(table)


refuse_repeats(app)


def main() -> None:
    """Run the command line; errors for people end in exit code 2 without a traceback."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _main()
        return
    from regrow.run.torchrun import take_part

    take_part(_main, _complain)


def _main() -> None:
    try:
        app()
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # Ctrl-C, as typer hands it on
            _complain(STOPPED)
        _flush()
        raise
    except RanksLost as error:
        _complain(f"{error}")
        _flush()
        os._exit(EXIT_INTERRUPTED)  # the connections to ranks that wait would wait too
    except Interrupted as error:
        _complain(f"{error}")
        sys.exit(EXIT_INTERRUPTED)
    except RegrowError as error:
        _complain(f"{error}")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _complain(STOPPED)
        sys.exit(EXIT_INTERRUPTED)


def _flush() -> None:
    """Write what is buffered now, because a reader that has gone must not end in a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED_JOBS)


def _say(line: str) -> None:
    """Print a line on standard error, where progress goes too."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def _complain(message: str) -> None:
    _say(f"regrow: {message}")


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _command() -> str:
    return shlex.join(["regrow", *sys.argv[1:]])


def _load_files(paths: Sequence[Path] | None) -> None:
    from regrow.core.registry import load_file

    for path in paths or ():
        load_file(path)


def _study(
    path: Path,
    store: Path,
    *,
    data: Sequence[str] | None = None,
    device: str = "cpu",
    measure: bool = True,
) -> "tuple[Asked, Choice]":
    """Read a study, and what decides on ``precision: auto``, by a store that there may be."""
    from regrow.asked import load

    others = pairs(data or ())
    load(
        path, data=others
    )  # says what is wrong with the file before PyTorch, which takes seconds, is imported
    if sys.stderr.isatty():  # whoever watches sees at once that something happens
        _say(f"Reading {path} ...")
    from regrow.run.precision import Choice

    choice = Choice(_there(store), device=device, measure=measure)
    return load(path, choice, data=others), choice


def _there(store: Path) -> "Store | None":
    """Return a store that there may be; what is wrong with it, who opens it to work with says."""
    with suppress(StoreError):
        return _open(store, create=False)
    return None


def _open(store: Path, *, create: bool) -> "Store":
    from regrow.store import Store

    return Store.open(store, create=create)


def _planned(study: Path, store: Path, data: Sequence[str] | None) -> "Planned":
    """Expand a study that no run has expanded as it is now."""
    asked, _ = _study(study, store, data=data, measure=False)
    from regrow.jobs.base import all_jobs
    from regrow.studies.job_list import Planned

    return Planned.of(asked.name, asked.title, all_jobs(asked.jobs()))


def _stored(opened: "Store", jobs: "Iterable[Job]") -> "Snapshot":
    """Look up what is stored of some jobs, and name on standard error what of it is damaged."""
    from regrow.jobs.base import specs

    return _checked(opened, specs(jobs))


def _checked(opened: "Store", specs: "Mapping[str, Mapping[str, Any]]") -> "Snapshot":
    snapshot = opened.snapshot(specs)
    for problem in snapshot.damaged.values():
        _complain(problem)
    return snapshot


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
    data: Sequence[str] | None = None,
) -> None:
    asked, choice = _study(path, store, data=data, device=device)
    from regrow.jobs.base import all_jobs
    from regrow.run import check_device
    from regrow.run import run as run_jobs
    from regrow.run.display import display
    from regrow.studies.job_list import Planned, remember

    jobs = asked.jobs()  # looks at data and networks: nothing is written for a study that cannot be
    check_device(device)
    _say_notices(jobs, device=device)
    opened = _open(store, create=True)
    choice.keep(opened)
    planned = Planned.of(asked.name, asked.title, all_jobs(jobs))
    remember(opened, path, planned, data=pairs(data or ()))
    _check_writable(_out(asked, out))
    with display() as show:
        summary = run_jobs(
            jobs,
            opened,
            workers=workers,
            on_event=show,
            checkpoint_seconds=checkpoint_seconds,
            device=device,
        )
    made, statuses = _report(asked, opened, out, command=command, choice=choice)
    _show(made, as_json=as_json, summary=summary)
    _sum_up(summary, made.paths[0])
    if set(statuses) != {"done"} or not summary.complete:
        raise typer.Exit(EXIT_FAILED_JOBS)


def _say_notices(jobs: "Iterable[Job]", *, device: str = "cpu") -> None:
    """Say on standard error what people should know of the data, and of the precision."""
    from regrow.asked import notices
    from regrow.run.precision import slow_bf16

    for notice in (*notices(jobs), slow_bf16(jobs, device)):
        if notice is not None:
            _complain(notice)


def _sum_up(summary: "Summary", page: Path) -> None:
    """Say how the run went, on standard error, where its progress went too."""
    line = f"{_count(len(summary.done), 'job')} done in {clock(summary.seconds)}"
    if summary.reused:
        line += f", {len(summary.reused)} were done before"
    if summary.failed:
        line += f"; {len(summary.failed)} FAILED"
        if summary.blocked:
            line += f" and {_count(len(summary.blocked), 'other')} cannot be done without them"
        line += f": see 'Failures' in {page}. The same command tries them again"
    _say(f"{line}.")


def _out(asked: "Asked", out: Path | None) -> Path:
    return out if out is not None else DEFAULT_OUT / asked.name


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written before hours go into what it shall hold."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"Cannot write the report to '{folder}': {error.strerror or error}. Name a folder "
            "that you may write to with --out."
        ) from error


def _report(
    asked: "Asked", opened: "Store", out: Path | None, *, command: str, choice: "Choice"
) -> "tuple[Report, list[str]]":
    from regrow.asked import collect, notices
    from regrow.report import write

    found = collect(asked, opened)
    made = write(
        found.runs,
        _out(asked, out),
        title=asked.title,
        command=command,
        machine=_machine(),
        date=date.today().isoformat(),
        margin=asked.margin,
        failures=found.failures,
        extras=found.extras,
        notes=notices(asked.jobs()),
        precision=str(choice.decision) if choice.decision is not None else None,
    )
    return made, [run.status for run in found.runs]


def _show(made: "Report", *, as_json: bool, summary: "Summary | None" = None) -> None:
    if not as_json:
        print(made.text)
        print(f"Written to {made.paths[0].parent}:")
        print(_columns(path.name for path in made.paths))
        return
    found: dict[str, Any] = {
        **{f"{metric.key}_unit": _unit(metric) for metric in made.metrics},
        "rows": json.loads(made.frame.to_json(orient="records")),
        "answer": made.answer,
        "paths": [str(path) for path in made.paths],
    }
    if summary is not None:
        found["jobs"] = _describe(summary)
    _print_json(found)


def _unit(metric: "Metric") -> str:
    return "percent" if metric.unit == "%" else metric.difference_unit


def _describe(summary: "Summary") -> Mapping[str, Any]:
    return {
        "done": len(summary.done),
        "reused": len(summary.reused),
        "failed": list(summary.failed),
        "blocked": list(summary.blocked),
        "seconds": round(summary.seconds, 3),
    }


def _columns(names: Iterable[str]) -> str:
    return textwrap.fill(
        ", ".join(names), 79, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


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


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))
