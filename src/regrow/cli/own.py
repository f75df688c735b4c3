"""The commands for a network of one's own: ``regrow inspect`` and ``regrow shrink``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from regrow.cli.inputs import load_extensions
from regrow.cli.options import JsonOption, WithOption
from regrow.cli.terminal import print_json, say
from regrow.errors import ConfigError, Interrupted, unknown

if TYPE_CHECKING:
    from torch import nn

    from regrow.models.inputs import Inputs
    from regrow.models.origins import ModelOrigin

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NET",
        show_default=False,
        help="The network: package.module:build, file.py:build (a function or a class), timm/NAME, "
        "torchvision/NAME, hf/ID-or-FOLDER, or a model of `regrow list models`.",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME:]SHAPE[:KIND[:VALUES]]",
        help="An input: 1x3x224x224, or input_ids:1x16:int64:30522. Several by name, or in order.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An argument for the network's code."),
]
ArgumentsOption = Annotated[
    str | None, typer.Option(metavar="JSON", help="All arguments for the network's code at once.")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|published|random",
        help="Weights: a file (safetensors, or a state dict of torch.save), those that a library "
        "publishes, or none.",
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Keep modules whole by name, such as 'layer1.*'."),
]


def inspect(
    net: NetworkArgument,
    inputs: InputOption = None,
    settings: SetOption = None,
    arguments: ArgumentsOption = None,
    keep: KeepOption = None,
    with_files: WithOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what of a network can be cut, what it costs, and what stays whole and why."""
    load_extensions(with_files)
    with quiet("Stopped."):
        origin = _origin(net, settings, arguments)
        network = origin.build()
        given = _inputs(inputs, origin, network)
        from regrow.own.inspection import inspect as inspect_network

        found = inspect_network(network, given, keep=kept_modules(network, keep))
    if as_json:
        print_json(found.to_json())
    else:
        print(found)


@contextmanager
def quiet(stopped: str) -> Iterator[None]:
    """Send what a user's code prints to standard error, and word what Ctrl-C leaves behind."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(stopped) from error


def _origin(net: str, settings: Sequence[str] | None, arguments: str | None) -> "ModelOrigin":
    from regrow.models.origins import read_arguments, read_origin

    return read_origin(net, read_arguments([*(settings or ())], arguments))


def _inputs(texts: Sequence[str] | None, origin: "ModelOrigin", network: "nn.Module") -> "Inputs":
    """Return the inputs that were given, or the one that the network says it takes."""
    from regrow.models.inputs import Inputs

    known = origin.inputs(network) if not texts else None
    if known is not None:
        say(f"No --input is given, so it is the one that {origin.text} names: {known}.")
        texts = [known]
    return Inputs.read(texts or ())


def kept_modules(network: "nn.Module", patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of modules that patterns stand for; each must stand for some."""
    names = [name for name, _ in network.named_modules() if name]
    kept: dict[str, None] = {}
    for pattern in patterns or ():
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(f"--keep: {unknown('module', pattern, names[:200])}")
        kept |= dict.fromkeys(found)
    return tuple(kept)
