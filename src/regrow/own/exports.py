"""Export of networks to other formats; each file is read back and compared with the network."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.core.texts import ended
from regrow.core.validation import path_of
from regrow.errors import ConfigError, TraceError, short, unknown
from regrow.models.inputs import inputs_of
from regrow.models.libraries import package
from regrow.own.export_inputs import BATCH_NAME, Exportable, named, nested, ways
from regrow.own.new_folder import check_new, scratch_beside
from regrow.surgery.alive import called
from regrow.surgery.outputs import largest, relative_gap
from regrow.surgery.taken import batch_hint, check_names, check_network

CLOSE = 1e-4  # largest error of an export, relative to the largest output, in float32 or finer
ROUNDINGS = 10  # its number of rounding errors, in a coarser type
MOST_INSIDE = 2**30  # bytes of weights; more go into a file beside the .onnx, which holds 2 GiB
Run = Callable[[Any], Any]  # runs an export: inputs -> outputs


def export_onnx(network: nn.Module, example: Any, path: Path) -> str:
    """Write a network as ONNX, and return in words its inputs and the error of its outputs."""
    check_packages(["onnx"])
    if nested(example):
        raise ConfigError(
            "--onnx: an input of this network is a list or a mapping of tensors, and ONNX takes "
            "tensors alone. Leave out that export, or give regrow.export a module that takes the "
            "tensors one by one and calls the network."
        )
    outputs = _output_names(network, example)
    return _exported(
        network, example, lambda program, way: _onnx(program, way, path, outputs), "--onnx"
    )


def export_pt2(network: nn.Module, example: Any, path: Path) -> str:
    """Write a network with ``torch.export``, and return in words its inputs and error."""
    return _exported(network, example, lambda program, _: _pt2(program, path), "--pt2")


def _output_names(network: nn.Module, example: Any) -> list[str] | None:
    """Return the names of a network's outputs, if it returns a mapping of tensors."""
    with _quiet("--onnx"):
        output = called(network, example)
    if not isinstance(output, Mapping) or not all(isinstance(x, Tensor) for x in output.values()):
        return None
    return [str(name) for name in output]


def _onnx(program: Any, way: Exportable, path: Path, outputs: list[str] | None) -> Run:
    import onnxruntime

    num_bytes = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    names = [name for name, _ in named(way.example)]
    written = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=outputs, verbose=False
    )
    assert written is not None
    sizes: dict[Any, str] = {}  # the exporter names dynamic sizes s77 or the like
    for node, axes in zip(written.model.graph.inputs, way.axes(), strict=False):
        shape = [*(node.shape or ())]
        sizes |= {str(shape[i]): name for i, name in axes.items() if not isinstance(shape[i], int)}
    if sizes:
        written.rename_axes(sizes)
    written.save(str(path), external_data=num_bytes > MOST_INSIDE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = [node.name for node in session.get_inputs()]

    def run(inputs: Any) -> Any:
        feed = dict(named(inputs))
        fed = {name: feed[name].numpy() for name in taken if name in feed}
        return [torch.from_numpy(x) for x in session.run(None, fed)]

    return run


def _pt2(program: Any, path: Path) -> Run:
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(inputs: Any) -> Any:
        args, kwargs = _arguments(inputs)
        return module(*args, **kwargs)

    return run


def export(network: nn.Module, example: Any, path: str | Path) -> str:
    """Write a network as ``.onnx`` or ``.pt2``, and compare the file's outputs with the network's.

    Args:
        network: any network, such as one that was cut and fine-tuned.
        example: an input, its shape, several inputs, or their text form (``"1x3x224x224"``).
        path: a new file.

    Raises:
        ConfigError: the network cannot be exported, or a package is missing.
        TraceError: the export computes something else than the network, and is not written.
    """
    check_network(network)
    file = path_of(path, "The file to write")
    kind = file.suffix.removeprefix(".")
    if kind not in EXPORTS:
        raise ConfigError(f"{path}: {unknown('format', kind, EXPORTS)}")
    check_new(file)
    tensors = example if torch.is_tensor(example) else inputs_of(example).example()
    if isinstance(example, str):
        check_names(network, tensors)
    try:
        called(network, tensors)
    except Exception as error:  # its own code may raise anything
        raise ConfigError(
            f"The network fails on the input {inputs_of(example)}: {type(error).__name__}: "
            f"{ended(short(error))} Give the input that it takes.{batch_hint(network, example)}"
        ) from error
    with scratch_beside(file) as scratch:
        comparison = EXPORTS[kind](network, tensors, scratch / file.name)
        for written in scratch.iterdir():
            written.rename(file.parent / written.name)
    return comparison


EXPORTS: Mapping[str, Callable[[nn.Module, Any, Path], str]] = {
    "onnx": export_onnx,
    "pt2": export_pt2,
}


def check_packages(exports: Iterable[str]) -> None:
    """Raise a ``ConfigError`` if a package is missing that an export needs."""
    for name in ("onnx", "onnxscript", "onnxruntime") if "onnx" in exports else ():
        package(name, extra="onnx", wanted_for="--onnx")


def _exported(
    network: nn.Module, example: Any, write: Callable[[Any, Exportable], Run], what: str
) -> str:
    """Export a network in the first of the ``ways`` that works, and return it in words."""
    network, allowed = network.eval(), _allowed(network)
    failure: Exception | None = None
    for way in ways(network, example):
        try:
            with _quiet(what):
                run = write(_program(network, way), way)
                gap = max(largest_gap(run(x), called(network, x)) for x in way.checks())
        except ConfigError as error:  # its code depends on the number of examples, or of tokens
            failure = failure or error
            continue
        if gap <= allowed:
            return _told(way, gap, allowed)
        failure = TraceError(
            f"{what}: the exported network is off by {gap:.1e} of its largest output, and "
            f"{allowed:.2g} is allowed, so it is not written."
        )
    assert failure is not None
    raise failure


def _allowed(network: nn.Module) -> float:
    """Return the largest error that an export may have, by the network's coarsest type."""
    types = {p.dtype for p in network.parameters() if p.is_floating_point()}
    return max([CLOSE, *(ROUNDINGS * torch.finfo(kind).eps for kind in types)])


def _program(network: nn.Module, way: Exportable) -> Any:
    """Return a network as a program of ``torch.export``."""
    inputs = way.inputs()
    args, kwargs = _arguments(inputs)
    sizes = {BATCH_NAME: torch.export.Dim(BATCH_NAME)}  # a table may limit lengths, so not those
    free: list[Any] = [
        {i: sizes.get(name, torch.export.Dim.DYNAMIC) for i, name in axes.items()} or None
        for axes in way.axes()
    ]
    shapes: Any = dict(zip(kwargs, free, strict=True)) if kwargs else tuple(free)
    return torch.export.export(network, args, kwargs, dynamic_shapes=shapes if any(free) else None)


def _told(way: Exportable, gap: float, allowed: float) -> str:
    """Return in words the inputs that an export takes, and its error."""
    padded = ", on padded texts too" if way.padded else ""
    text = f"takes {way}; within {gap:.1e} of the network's outputs{padded} ({allowed:.2g} allowed)"
    if not way.dropped:
        return text
    return (
        f"{text}. It has no {' and no '.join(way.dropped)}, with which this network cannot be "
        "exported: texts must not be padded"
    )


def largest_gap(exported: Any, expected: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest number in the second.

    As ``relative_gap``, but infinite if it is NaN, or if the shapes differ.
    """
    found, wanted = (
        [x for x in tree_leaves(o) if isinstance(x, Tensor)] for o in (exported, expected)
    )
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return math.inf
    gap = largest([relative_gap(a, b) for a, b in zip(found, wanted, strict=True)])
    return math.inf if math.isnan(gap) else gap


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


@contextmanager
def _quiet(subject: str) -> Iterator[None]:
    """Silence the exporters' own messages, and turn their exceptions into a ``ConfigError``."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (TraceError, ConfigError):
        raise
    except Exception as error:
        line = " ".join(str(error).split())
        raise ConfigError(
            f"{subject}: this network cannot be exported ({type(error).__name__}: {line[:300]}). "
            "Leave out that export; the pruned network itself is correct."
        ) from error
    finally:
        logging.disable(disabled)
