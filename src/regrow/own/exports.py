"""Networks in other formats, each read back and compared with the network that it was made of."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.cost.latency import batched
from regrow.errors import ConfigError, TraceError, unknown
from regrow.models.inputs import inputs_of
from regrow.models.libraries import package
from regrow.own.new_folder import check_new, scratch_beside
from regrow.surgery.alive import called

CLOSE = 1e-4  # of the largest output, by which an export may be off
BATCH, BATCH_NAME = 2, "batch"
MOST_INSIDE = 2**30  # bytes of weights; more lie beside the .onnx file, which holds 2 GiB at most


def export_onnx(network: nn.Module, example: Any, path: Path) -> str:
    """Write a network as ONNX, and return how far its outputs are from the network's."""
    check_packages(["onnx"])
    import onnxruntime

    program, free = _exported(network, example)
    num_bytes = sum(x.numel() * x.element_size() for x in network.state_dict().values())
    with _quiet("--onnx"):
        names = [name for name, _ in _named(example)]
        written = torch.onnx.export(program, dynamo=True, input_names=names, verbose=False)
        assert written is not None
        if free:  # the exporter calls what is free s77 or so
            sizes = [node.shape[0] for node in written.model.graph.inputs if node.shape]
            named: dict[Any, str] = {
                str(size): BATCH_NAME for size in sizes if not isinstance(size, int)
            }
            written.rename_axes(named)
        written.save(str(path), external_data=num_bytes > MOST_INSIDE)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = [node.name for node in session.get_inputs()]

    def run(inputs: Any) -> Any:
        feed = dict(_named(inputs))
        fed = {name: feed[name].numpy() for name in taken if name in feed}
        return [torch.from_numpy(x) for x in session.run(None, fed)]

    return _compared(network, example, run, free=free, what="--onnx")


def export_pt2(network: nn.Module, example: Any, path: Path) -> str:
    """Write a network as ``torch.export`` does, and return how far its outputs are."""
    program, free = _exported(network, example)
    with _quiet("--pt2"):
        torch.export.save(program, path)
        module = torch.export.load(path).module()

    def run(inputs: Any) -> Any:
        args, kwargs = _arguments(inputs)
        return module(*args, **kwargs)

    return _compared(network, example, run, free=free, what="--pt2")


def export(network: nn.Module, example: Any, path: str | Path) -> str:
    """Write a network as ``.onnx`` or ``.pt2``, and return how far its outputs are from its own.

    Args:
        network: any network, such as one that was cut and fine-tuned.
        example: an input, its shape, several inputs, or their texts (``"1x3x224x224"``).
        path: a file that is not there yet.

    Raises:
        ConfigError: the network cannot be exported, or a package is missing.
        TraceError: the export does not compute what the network does, and is not written.
    """
    file = Path(path)
    kind = file.suffix.removeprefix(".")
    if kind not in EXPORTS:
        raise ConfigError(f"{path}: {unknown('format', kind, EXPORTS)}")
    check_new(file)
    tensors = example if torch.is_tensor(example) else inputs_of(example).example()
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


def _exported(network: nn.Module, example: Any) -> tuple[Any, bool]:
    """Return a network as ``torch.export`` reads it, and whether it takes batches of any size."""
    network = network.eval()
    inputs = batched(example, BATCH)
    args, kwargs = _arguments(inputs)
    batch = torch.export.Dim(BATCH_NAME)

    def free(leaf: Any) -> Any:
        return {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None

    shapes: Any = {name: free(x) for name, x in kwargs.items()} or tuple(map(free, args))
    with _quiet("export"):
        try:
            return torch.export.export(network, args, kwargs, dynamic_shapes=shapes), True
        except Exception:  # its code counts on the number of examples
            args, kwargs = _arguments(batched(example, 1))
            return torch.export.export(network, args, kwargs), False


def _compared(
    network: nn.Module, example: Any, run: Callable[[Any], Any], *, free: bool, what: str
) -> str:
    """Compare an export with its network on other inputs; a ``TraceError`` if it is off."""
    sizes = (1, 3) if free else (1,)
    gap = 0.0
    for size in sizes:
        inputs = batched(example, size)
        with _quiet(what):
            output = run(inputs)
        gap = max(gap, largest_gap(output, called(network, inputs)))
    if not gap <= CLOSE:
        raise TraceError(
            f"{what}: the exported network is off by {gap:.1e} of its largest output, and "
            f"{CLOSE:g} is allowed, so it is not written."
        )
    batches = "batches of any size" if free else "one example at a time, as its code counts on it"
    return f"takes {batches}; within {gap:.1e} of the network's outputs ({CLOSE:g} allowed)"


def largest_gap(exported: Any, expected: Any) -> float:
    """Return the largest difference of two outputs, relative to the largest number in the second.

    Infinite where one is not finite, or where they are not of the same shapes.
    """
    pairs = [[x for x in tree_leaves(o) if isinstance(x, Tensor)] for o in (exported, expected)]
    if [x.shape for x in pairs[0]] != [x.shape for x in pairs[1]]:
        return float("inf")
    gap = 0.0
    for a, b in zip(*pairs, strict=True):
        if b.numel():
            a, b = a.detach().double(), b.detach().double()
            off = float((a - b).abs().max() / b.abs().max().clamp(1e-30))
            gap = max(gap, off) if off == off else float("inf")
    return gap


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def _named(inputs: Any) -> list[tuple[str, Tensor]]:
    args, kwargs = _arguments(inputs)
    if len(args) == 1:
        return [("input", args[0])]
    return [*((f"input_{i}", x) for i, x in enumerate(args)), *kwargs.items()]


@contextmanager
def _quiet(subject: str) -> Iterator[None]:
    """Keep the exporters' own messages away; what they raise becomes a ``ConfigError``."""
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
