"""The commands ``regrow export`` and ``regrow list``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from regrow.cli.hours import HoursOption, load_within
from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    OnnxOption,
    Pt2Option,
    StoreOption,
    StudyFile,
    WithOption,
    wanted_exports,
)
from regrow.cli.terminal import announce, console, print_json, say_written
from regrow.core.texts import one_line
from regrow.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regrow.store import Store
    from regrow.studies.expand import Cell
    from regrow.studies.export import Exported


def export(
    study: StudyFile,
    to: Annotated[Path, typer.Option(help="Folder to write the network to.", show_default=False)],
    data: Annotated[str | None, typer.Option(help="Select the row with this data set.")] = None,
    model: Annotated[str | None, typer.Option(help="Select the row with this model.")] = None,
    budget: Annotated[int | None, typer.Option(help="Select the row with this budget.")] = None,
    method: Annotated[str | None, typer.Option(help="Select the row with this method.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Select the row with this sparsity.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Select the row with this target.")] = None,
    arm: Annotated[str | None, typer.Option(help="Select the row with this arm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Select the run with this seed.")] = None,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    replace_data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=OTHER", help="The --data that `regrow run` was given."),
    ] = None,
    hours: HoursOption = None,
    onnx: OnnxOption = False,
    pt2: Pt2Option = False,
    as_json: JsonOption = False,
) -> None:
    """Write one trained network: architecture.json, weights.safetensors, result.json.

    The options select a run by its labels in the report's table; if they fit several, the message
    lists the choices. In Python, regrow.load(FOLDER) returns the network.
    """
    load_extensions(with_files)
    loaded, _, _ = load_within(hours, study, store, data=replace_data, measure=False)
    from regrow.studies.export import choose

    labels = {"data": data, "model": model, "budget": budget, "method": method, "arm": arm}
    labels |= {"target": target, "sparsity": None if sparsity is None else f"{sparsity:g}"}
    wanted = {axis: str(v) for axis, v in {**labels, "seed": seed}.items() if v is not None}
    opened = open_store(store, create=False)
    exports = _wanted(to, onnx=onnx, pt2=pt2)
    written, exported = _write(choose(loaded.cells(), wanted), opened, to, exports)
    if as_json:
        print_json(
            {
                "label": written.label,
                "folder": str(written.folder),
                written.metric.key: written.score,
                f"{written.metric.key}_unit": written.metric.unit_word,
                "parameters": written.parameters,
                "macs": written.macs,
                **({"exports": exported} if exported else {}),
            }
        )
        return
    print(
        f"{written.label}: {written.text} on the test set, {written.parameters:,} "
        f"parameters, {written.macs:,} MACs."
    )
    say_written(written.folder, f"; {one_line(written.call)} returns it.")
    for file, comparison in exported.items():
        print(f"{file}: {comparison}")


def _wanted(folder: Path, **formats: bool) -> list[str]:
    """Return the requested formats; refuse a folder that has exports of another network."""
    from regrow.own.exports import EXPORTS

    left = [f"model.{kind}" for kind in EXPORTS if (folder / f"model.{kind}").exists()]
    if left:
        raise ConfigError(
            f"'{folder}' has {' and '.join(left)} of an earlier export, which would be mixed with "
            "another network's files. Name another folder, or move it."
        )
    return wanted_exports(**formats)


def _write(
    cell: "Cell", store: "Store", folder: Path, kinds: Sequence[str]
) -> "tuple[Exported, dict[str, str]]":
    """Write a row's network into a folder, with all its exports or nothing."""
    from regrow.own.new_folder import added_to
    from regrow.studies.export import export as write

    with added_to(folder) as scratch:
        written = write(cell, store, scratch)
        exported = _exported(scratch, written.code, kinds)
    return replace(written, folder=folder), exported


def _exported(folder: Path, code: str | None, kinds: Sequence[str]) -> dict[str, str]:
    """Export a folder's network in other formats; return each file's comparison with it."""
    from regrow.own.exports import export as export_network
    from regrow.surgery.architecture import Architecture, load

    if not kinds:
        return {}
    announce("Writing its exports, and comparing their outputs")
    network = load(folder, code=code)
    example = Architecture.read(folder, code=code).example()
    return {
        f"model.{kind}": export_network(network, example, folder / f"model.{kind}")
        for kind in kinds
    }


def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            help="data, tasks, models, methods, criteria, allocations, scopes, normalisations, "
            "units, costs, arms, recipes, objectives, optimisers or schedules."
        ),
    ] = "all",
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the names that a study file can use."""
    load_extensions(with_files)
    announce("Reading the registered names")
    from regrow.studies.catalogue import catalogue

    kinds = catalogue(sizes=kind == "models")
    if kind != "all":
        if kind not in kinds:
            raise ConfigError(unknown("kind of name", kind, [*kinds, "all"]))
        kinds = {kind: kinds[kind]}
    if as_json:
        print_json(kinds)
        return
    for title, names in kinds.items():
        _print_names(title, names, brief=kind == "all")


def _print_names(kind: str, names: Mapping[str, str], *, brief: bool) -> None:
    """Print one line for each name; ``brief`` prints only the first sentence of its description."""
    out = console()
    out.print(Text(kind, style="bold"))
    texts = {name: about.partition(". ")[0] if brief else about for name, about in names.items()}
    if not out.is_terminal:
        width = max(map(len, texts), default=0)
        for name, about in texts.items():
            print(f"  {name.ljust(width)}  {about}".rstrip())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, about in texts.items():
        table.add_row(f"  {escape(name)}", Text(about))
    out.print(table)
