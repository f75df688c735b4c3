"""The commands ``regrow store verify``, ``list``, ``gc``, ``export``, ``import`` and ``diff``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import DEFAULT_STORE, DataOption, JsonOption, StoreOption, WithOption
from regrow.cli.plan import planned_of
from regrow.cli.terminal import EXIT_FAILED_JOBS, console, count, print_json
from regrow.core.texts import one_line
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from regrow.store import Store

MOST_LINES = 20  # printed of each part of a listing
KEY_LETTERS = 12  # printed of each key; `compare-runs` accepts such a prefix
app = typer.Typer(no_args_is_help=True, help="Inspect, check, clean, copy and compare stores.")
Studies = Annotated[
    list[Path] | None, typer.Argument(help="Study files (YAML).", show_default=False)
]


@app.command()
def verify(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Check every record, tensor and checkpoint against its digest; exit code 1 if any is damaged.

    `regrow run` moves damaged results of its study aside and computes them again.
    """
    from regrow.store.check import verify as check

    found = check(open_store(store, create=False))
    if as_json:
        damaged = [{"file": file, "damage": why} for file, why in found.damaged.items()]
        print_json({"records": found.records, "bytes": found.num_bytes, "damaged": damaged})
    else:
        for file, why in found.damaged.items():
            _say(f"{file} is damaged: {why}")
        state = f"{count(len(found.damaged), 'file')} damaged" if found.damaged else "all sound"
        _say(f"{count(found.records, 'record')}, {in_bytes(found.num_bytes)} read: {state}.")
    if found.damaged:
        raise typer.Exit(EXIT_FAILED_JOBS)


@app.command("list")
def list_jobs(
    store: StoreOption = DEFAULT_STORE,
    study: Annotated[str | None, typer.Option(help="Only jobs of the study of this name.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this label.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, such as train.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the results of a store: kind, label, size, and when they were saved."""
    from regrow.store.check import stored_jobs
    from regrow.studies.job_list import labels, plans

    opened = open_store(store, create=False)
    known = labels(opened)
    of_study = {key for plan in plans(opened) if plan.name == study for key in plan.labels}
    jobs = [
        job
        for job in stored_jobs(opened)
        if (study is None or job.key in of_study)
        and (label is None or label.lower() in known.get(job.key, "").lower())
        and kind in (None, job.kind)
    ]
    if as_json:
        print_json([{**vars(job), "label": known.get(job.key)} for job in jobs])
        return
    table = Table("key", "kind", "label", "size", "saved")
    for job in jobs:
        size = in_bytes(job.num_bytes) + ("" if job.has_tensors else ", no tensors")
        cells = (job.key[:KEY_LETTERS], job.kind, known.get(job.key, ""), size, job.saved)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    console().print(table)
    _say(f"{count(len(jobs), 'result')}, {in_bytes(sum(job.num_bytes for job in jobs))}.")


@app.command()
def gc(
    studies: Studies = None,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    data: DataOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove the files; otherwise they are only listed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the files, which is the default.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove tensors and checkpoints that no named study needs, and leftovers of killed processes.

    Records are kept, so reports stay possible; `regrow run` recomputes tensors that it needs.
    Without a study, only files left by killed processes are removed.
    """
    from regrow.store.garbage import find_garbage, remove_garbage
    from regrow.studies.job_list import labels

    load_extensions(with_files)
    opened = open_store(store, create=False)
    found = find_garbage(opened, _keys(opened, store, studies, data) if studies else None)
    removed = yes and not dry_run
    if removed:
        remove_garbage(opened, found)
    if as_json:
        print_json({**vars(found), "litter": [*map(str, found.litter)], "removed": removed})
        return
    known = labels(opened)
    for name, keys in (("tensors", found.tensors), ("checkpoint", found.checkpoints)):
        _say_some(f"  {name} of {known.get(key, key[:KEY_LETTERS])}" for key in keys)
    _say_some(f"  {path}" for path in found.litter)
    number = len(found.tensors) + len(found.checkpoints) + len(found.litter)
    what = "removed" if removed else "would be removed (--yes removes them)"
    _say(f"{count(number, 'file')} of {in_bytes(found.num_bytes)} {what}.")


@app.command("export")
def export_store(
    to: Annotated[Path, typer.Option(help="New folder, or new .tar file.", show_default=False)],
    studies: Studies = None,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    data: DataOption = None,
    tensors: Annotated[
        bool, typer.Option("--tensors/--no-tensors", help="Include weights and masks.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Write the results of studies, or all results, to a folder (itself a store) or a tar file."""
    from regrow.store.transfer import export_records
    from regrow.studies.job_list import plan_files

    load_extensions(with_files)
    opened = open_store(store, create=False)
    done = opened.keys()
    wanted = _keys(opened, store, studies, data) if studies else None
    keys = [key for key in done if wanted is None or key in wanted]
    number = export_records(opened, keys, to, plans=plan_files(opened, keys), tensors=tensors)
    if as_json:
        print_json({"records": number, "to": str(to)})
        return
    _say(f"{count(number, 'record')} written to {to}.")


@app.command("import")
def import_store(
    source: Annotated[Path, typer.Argument(help="Folder or .tar file.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Import the results of an exported folder or tar file; each is checked, none is replaced.

    Exit code 1 if a record was refused.
    """
    from regrow.store.transfer import import_records

    if not source.exists():
        raise ConfigError(
            f"'{source}' does not exist. Name a folder or .tar file written by `regrow store "
            "export`."
        )
    taken = import_records(open_store(store, create=True), source)
    if as_json:
        print_json(vars(taken))
    else:
        _say_some(f"  refused {key[:KEY_LETTERS]}: {why}" for key, why in taken.refused.items())
        refused = f", {len(taken.refused)} refused" if taken.refused else ""
        _say(
            f"{count(len(taken.new), 'record')} imported, {len(taken.known)} already "
            f"present{refused}."
        )
    if taken.refused:
        raise typer.Exit(EXIT_FAILED_JOBS)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A store.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another store.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show the results that only one of two stores has, and keys whose content differs.

    `regrow compare-runs` shows how results differ, also for different settings.
    """
    from regrow.store.check import contrast
    from regrow.studies.job_list import labels

    first, second = open_store(a, create=False), open_store(b, create=False)
    found = contrast(first, second)
    if as_json:
        print_json(vars(found))
        return
    known = {**labels(second), **labels(first)}
    parts = (
        (f"Only in {a}", found.only_a),
        (f"Only in {b}", found.only_b),
        ("Same key, different content", found.other),
    )
    for title, keys in parts:
        if keys:
            _say(f"{title}: {len(keys)}")
            _say_some(f"  {key[:KEY_LETTERS]} {known.get(key, '')}" for key in keys)
    _say(f"The same in both: {found.same}.")


def in_bytes(number: float) -> str:
    """Format a number of bytes.

    >>> in_bytes(12), in_bytes(3_400_000), in_bytes(2.5e9)
    ('12 B', '3.4 MB', '2.5 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f} B"


def _keys(
    opened: "Store", store: Path, studies: Sequence[Path], data: Sequence[str] | None
) -> set[str]:
    """Return the keys of all jobs of these studies."""
    return {key for path in studies for key in planned_of(opened, path, store, data).labels}


def _say_some(lines: Iterable[str]) -> None:
    texts = [*lines]
    for text in texts[:MOST_LINES]:
        _say(text)
    if len(texts) > MOST_LINES:
        _say(f"  and {len(texts) - MOST_LINES} more (--json has all)")


def _say(line: str) -> None:
    console().print(Text(one_line(line)), soft_wrap=True)
