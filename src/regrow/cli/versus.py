"""The command ``regrow versus``: the fair table of one's own method against built-in ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from regrow.cli.inputs import load_extensions
from regrow.cli.options import (
    DEFAULT_REPORT,
    DEFAULT_STORE,
    DeviceOption,
    JsonOption,
    OutOption,
    StoreOption,
    WithOption,
    WorkersOption,
)
from regrow.cli.plan import plan
from regrow.cli.run import run
from regrow.cli.terminal import command_line, complain, say
from regrow.errors import ConfigError

METHOD_HELP = "Python file that registers your methods, or the name of a registered one."
VALUE = "A name, or a mapping as in a study: "


def versus(
    method: Annotated[str, typer.Argument(help=METHOD_HELP, show_default=False)],
    model: Annotated[str, typer.Option(help=f"{VALUE}'{{name: vgg-16, width: 0.25}}'.")],
    data: Annotated[str, typer.Option(help=f"{VALUE}'{{name: cifar10, subset: 5000}}'.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COST:SHARE",
            help="Share of a cost that is left: macs, parameters or latency; several if repeated.",
            show_default="macs:0.5",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Methods to compare with, with commas between.",
            show_default="published methods and controls that remove the same kind of unit",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every row.")] = 3,
    recipe: Annotated[str, typer.Option(help=f"{VALUE}'{{name: cifar, epochs: 40}}'.")] = "cifar",
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    workers: WorkersOption = None,
    with_files: WithOption = None,
    device: DeviceOption = "cpu",
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Write the study and show its jobs; train nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare your method with others at equal cost: same seeds, retrainings and budgets.

    Writes an ordinary study, study.yaml in the report's folder, and runs it; results in the store
    are used again.
    """
    load_extensions(with_files)
    own, files = _own(method)
    path = _written(
        own,
        model=model,
        data=data,
        targets=target or ["macs:0.5"],
        against=against,
        seeds=seeds,
        recipe=recipe,
        out=out,
        again=[*files, *(with_files or ())],
    )
    if only_plan:
        plan(path, store, workers, None, None, as_json)
        return
    run(path, store, path.parent, workers, None, None, device=device, as_json=as_json)


def _own(method: str) -> tuple[list[str], list[Path]]:
    """Return the methods to test, and the file that they come from."""
    from regrow.core.registry import load_file
    from regrow.pruning.method import CRITERIA, METHODS

    if not method.endswith(".py"):
        return [METHODS.key(method)], []
    known, criteria = set(METHODS.names()), set(CRITERIA.names())
    load_file(method)
    own = [name for name in METHODS.names() if name not in known]
    if own:
        return own, [Path(method)]
    scored = [name for name in CRITERIA.names() if name not in criteria]
    remedy = (
        f'register_method("{scored[0]}", criterion="{scored[0]}")'
        if scored
        else ("register_method(name, criterion=...)")
    )
    raise ConfigError(
        f"{method} registers no method, so there is nothing to compare. Add: regrow.{remedy}"
    )


def _written(
    own: Sequence[str],
    *,
    model: str,
    data: str,
    targets: Sequence[str],
    against: str | None,
    seeds: int,
    recipe: str,
    out: Path | None,
    again: Sequence[Path],
) -> Path:
    """Write the study into the folder of its report."""
    import yaml

    from regrow.pruning.method import METHODS
    from regrow.studies import versus as studies
    from regrow.studies.yaml_file import read_value

    first = METHODS.get(own[0])
    rivals = studies.default_rivals(first) if against is None else _names(against)
    network = read_value(model)
    value: dict[str, Any] = studies.study_of(
        own,
        name=f"versus-{own[0]}",
        model=network,
        data=read_value(data),
        targets=[studies.read_target(text) for text in targets],
        rivals=rivals,
        seeds=seeds,
        recipe=read_value(recipe),
    )
    if against is None:
        value, reasons = studies.without_impossible(value, set(rivals) - set(own))
        for name, reason in reasons.items():
            complain(f"Not compared with {name}: {reason}")
    folder = out if out is not None else DEFAULT_REPORT / value["name"]
    path = folder / "study.yaml"
    options = "".join(f" --with {file}" for file in again)
    head = (
        f"# Written by: {command_line()}\n# Run it, or a changed copy: regrow run {path}{options}\n"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(head + yaml.safe_dump(value, sort_keys=False, allow_unicode=True), "utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write the study to '{path}': {error.strerror or error}. Name a folder that "
            "you may write to with --out."
        ) from error
    say(f"The study is {path}.")
    return path


def _names(against: str) -> list[str]:
    """Read the methods to compare with."""
    from regrow.pruning.method import METHODS

    names = [METHODS.key(name.strip()) for name in against.split(",") if name.strip()]
    if not names:
        raise ConfigError("--against needs at least one method, such as l1-filter,random.")
    return names
