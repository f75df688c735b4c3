"""The commands for a user's own network: ``regrow inspect`` and ``regrow shrink``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regrow.cli import completion
from regrow.cli.inputs import load_extensions
from regrow.cli.options import (
    DeviceOption,
    JsonOption,
    OnnxOption,
    Pt2Option,
    WithOption,
    wanted_exports,
)
from regrow.cli.terminal import announce, print_json, say, say_written
from regrow.errors import ConfigError, Interrupted, TraceError, unknown

if TYPE_CHECKING:
    from torch import nn

    from regrow.data import Dataset
    from regrow.models.inputs import Inputs
    from regrow.models.origins import ModelOrigin

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        show_default=False,
        autocompletion=completion.MODELS,
        help="The network: package.module:build, file.py:build (a function or a class), timm/NAME, "
        "torchvision/NAME, hf/ID-or-FOLDER, or a model of `regrow list models`.",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME:]SHAPE[:KIND[:VALUES]]",
        help="Shape of an input: 1x3x224x224, input_ids:1x16:int64:30522, or a list "
        "'[3x64x64,3x80x64]'. Repeat it for several inputs, by name or in order.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Argument of the network's function or class."
    ),
]
ArgumentsOption = Annotated[
    str | None, typer.Option(metavar="JSON", help="All arguments of the network's code as JSON.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|published|random",
        help="The network's weights: a file (safetensors, or a state dict of torch.save), those "
        "published with a library's model, or random ones.",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Do not prune these modules, such as 'layer1.*'."),
]

NewFolderOption = Annotated[Path, typer.Option(help="New folder for the result.")]


def read_share(text: str) -> float:
    """Read a share, written as a number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a number. Write a share of 1, such as 0.5 for 50%."
        ) from None


_SHARE: dict[str, Any] = {"parser": read_share, "metavar": "SHARE"}
MacsOption = Annotated[
    float | None,
    typer.Option(help="Largest share of the MACs that may remain, such as 0.5.", **_SHARE),
]
ParametersOption = Annotated[
    float | None, typer.Option(help="Largest share of the parameters that may remain.", **_SHARE)
]
LatencyOption = Annotated[
    float | None,
    typer.Option(help="Largest share of the latency on this machine that may remain.", **_SHARE),
]
SparsityOption = Annotated[
    float | None, typer.Option(help="Share of the channels and heads to remove.", **_SHARE)
]
CriterionOption = Annotated[
    str, typer.Option(help="How channels are scored: one of `regrow list criteria`.")
]
AllocationOption = Annotated[
    str,
    typer.Option(
        help="How the removed channels are distributed over layers: uniform, global, or another "
        "of `regrow list allocations`."
    ),
]
ScopeOption = Annotated[
    list[str] | None,
    typer.Option(help="Kinds of groups to prune (`regrow list scopes`).", show_default="all"),
]
ExamplesOption = Annotated[
    str | None,
    typer.Option(
        help="Data for criteria that use gradients or activations: folder:PATH, or npz:FILE, "
        "parquet:PATH, safetensors:PATH with a column named after each input."
    ),
]
MultipleOption = Annotated[
    int, typer.Option(min=1, help="Keep a multiple of this number of channels in each layer.")
]
RoundsOption = Annotated[
    int, typer.Option(min=1, help="Prune in this number of steps, with new scores at each step.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of criteria that use randomness.")]


def inspect(
    net: NetworkArgument,
    inputs: InputOption = None,
    settings: SetOption = None,
    arguments: ArgumentsOption = None,
    keep: KeepOption = None,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which parts of a network can be pruned, their costs, and why others cannot."""
    announce(f"Reading {net}")
    load_extensions(with_files)
    with quiet("Stopped."):
        origin = _origin(net, settings, arguments)
        network = origin.build()
        example = _inputs(inputs, origin, network)
        from regrow.own.inspection import inspect as inspect_network

        modules = kept_modules(network, keep)
        with _saying_what_was_guessed(inputs, example):
            inspection = inspect_network(network, example, keep=modules)
    if as_json:
        print_json(inspection.to_json())
    else:
        print(inspection)


def shrink(
    net: NetworkArgument,
    out: NewFolderOption,
    inputs: InputOption = None,
    macs: MacsOption = None,
    parameters: ParametersOption = None,
    latency: LatencyOption = None,
    sparsity: SparsityOption = None,
    criterion: CriterionOption = "l1",
    allocation: AllocationOption = "uniform",
    scope: ScopeOption = None,
    data: ExamplesOption = None,
    multiple_of: MultipleOption = 1,
    keep: KeepOption = None,
    rounds: RoundsOption = 1,
    weights: WeightsOption = None,
    settings: SetOption = None,
    arguments: ArgumentsOption = None,
    onnx: OnnxOption = False,
    pt2: Pt2Option = False,
    device: DeviceOption = "cpu",
    seed: SeedOption = 0,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prune a network to a share of its cost, check the result, measure it, and write it.

    In Python, regrow.load(FOLDER) returns the network.
    """
    announce(f"Reading {net}")
    load_extensions(with_files)
    amount = _amount(macs=macs, parameters=parameters, latency=latency, sparsity=sparsity)
    exports = wanted_exports(onnx=onnx, pt2=pt2)
    with quiet(f"Stopped; nothing was written to '{out}'."):
        _check(out, device)
        from regrow.models.origins import open_network
        from regrow.own.compression import check_amount, compress

        check_amount(amount)
        origin = _origin(net, settings, arguments)
        network, about = open_network(origin, weights)
        example = _inputs(inputs, origin, network)
        options: dict[str, Any] = {"criterion": criterion, "allocation": allocation, "seed": seed}
        options |= {"scope": _scopes(scope or ["all"]), "multiple_of": multiple_of, **amount}
        options |= {"keep": kept_modules(network, keep), "rounds": rounds, "device": device}
        options |= {"dataset": data and _examples(data, example, network), "on_step": announce}
        with _saying_what_was_guessed(inputs, example):
            small = compress(network, example, origin=origin, weights=about, **options)
        announce("Writing it, and comparing its exports" if exports else "Writing it")
        card = small.save(out, exports=exports)
    if as_json:
        print_json(card.to_json())
        return
    print(card)
    files = ", ".join(sorted(file.name for file in out.iterdir()))
    say_written(out, f": {files}.")


def _amount(**amounts: float | None) -> dict[str, float]:
    """Return the one amount that was given; raise ``ConfigError`` for none or several."""
    amount = {name: value for name, value in amounts.items() if value is not None}
    if len(amount) != 1:
        raise ConfigError(
            "Give the amount of pruning by exactly one of --macs, --parameters, --latency and "
            f"--sparsity. Got {' and '.join(f'--{name}' for name in amount) or 'none'}."
        )
    return amount


def _check(out: Path, device: str) -> None:
    """Check the folder and the device before anything is built, rather than fail at the end."""
    from regrow.own.new_folder import check_new
    from regrow.run import check_device

    check_new(out)
    check_device(device)


def _scopes(texts: Sequence[str]) -> "list[Any]":
    """Split lists of scopes at commas; the method checks each name."""
    return [part.strip() for text in texts for part in text.split(",")]


@contextmanager
def quiet(stopped: str) -> Iterator[None]:
    """Send what a user's code prints to standard error; turn Ctrl-C and ``SystemExit`` into errors.

    ``stopped`` is the message on Ctrl-C.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(stopped) from error
    except SystemExit as error:
        raise ConfigError(
            f"The network's code ended the program (SystemExit: {error.code}). It must return, or "
            "raise an error that says what is wrong."
        ) from error


def _origin(net: str, settings: Sequence[str] | None, arguments: str | None) -> "ModelOrigin":
    from regrow.models.origins import read_arguments, read_origin

    return read_origin(net, read_arguments([*(settings or ())], arguments))


def _inputs(texts: Sequence[str] | None, origin: "ModelOrigin", network: "nn.Module") -> "Inputs":
    """Return the inputs that were given, or else those that the network's source declares."""
    from regrow.models.inputs import Inputs

    known = origin.inputs(network) if not texts else None
    if known is not None:
        say(f"No --input is given, so {origin.text} gets {known}.")
        texts = [known]
    return Inputs.read(texts or ())


def _examples(name: str, inputs: "Inputs", network: "nn.Module") -> "Dataset":
    from regrow.own.examples import read_examples, spec_of

    return read_examples(spec_of(name, inputs), inputs, network, where=f"--data {name}")


@contextmanager
def _saying_what_was_guessed(given: Sequence[str] | None, inputs: "Inputs") -> Iterator[None]:
    """Add to a ``TraceError`` that the input was guessed, unless it was given."""
    try:
        yield
    except TraceError as error:
        if given:
            raise
        raise TraceError(f"{error} {guessed(inputs)}") from error


def guessed(inputs: object) -> str:
    """Return a remark that an input was guessed, for a network's failure on it."""
    return f"(The input {inputs} was guessed: give the network's own with --input.)"


def kept_modules(network: "nn.Module", patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the modules that match any pattern; each pattern must match some."""
    names = [name for name, _ in network.named_modules() if name]
    modules: dict[str, None] = {}
    for pattern in patterns or ():
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise ConfigError(f"--keep: {unknown('module', pattern, names[:200])}")
        modules |= dict.fromkeys(matches)
    return tuple(modules)
