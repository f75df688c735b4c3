"""Dense and residual blocks fused into one operation each, with few passes over memory.

A norm that is followed by a ReLU in a sequence is fused with it, too.

The layers of a dense block all read what earlier layers wrote, and a pre-activation block adds to
its input: both work on a stream. Operation by operation, a layer's training step reads and writes
the whole stream 16 times (norm, ReLU, convolution, the copy into a longer stream, and the gradients
of all these). Here a layer reads it once in the forward pass and three to four times in the
backward pass: norm and ReLU are computed while the convolution reads its input, and again in the
backward pass; a channel's statistics are computed once; a layer's output is written into the stream
in place, and the gradient of its input is added in place.

Of the gradient of a norm's input, the part that needs no sums over the batch (see ``units``) is
added to the stream's gradient at once; the rest, a line in the input, is summed over all layers
that read a channel and applied when the channel's own gradient is needed.

On a CPU, in float32 (``units``), dense blocks also in bfloat16 (``short_units``). The modules are
not changed; results equal theirs up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from regrow.models import densenet, preresnet
from regrow.models.fused import fusable, has_hooks, moments_of, rectified, unwatched
from regrow.train import short_units, units
from regrow.train.fast_convolutions import TILED_PIXELS, is_fast
from regrow.train.maps import Map
from regrow.train.small_maps import computed_by
from regrow.train.units import Chain, Missing, NormedConvolution

# Layers and blocks -> the suffixes of their units' modules (norm1, relu1, conv1, ...).
UNITS: dict[type[nn.Module], tuple[str, ...]] = {
    densenet.BasicLayer: ("",),
    densenet.BottleneckLayer: ("1", "2"),
    preresnet.Bottleneck: ("1", "2", "3"),
}


@contextmanager
def whole_blocks(model: nn.Module) -> Iterator[None]:
    """Compute a network's blocks, and norms before a ReLU, as fused operations while active."""
    found = [(module, _last_parts(module)) for module in model.modules()]
    between = [(module,) for module, _ in found if _is_transition(module)]
    sequences = [(module,) for module, parts in found if not parts and _has_pairs(module)]
    with (
        computed_by(_computed, [(module, parts) for module, parts in found if parts]),
        computed_by(_pooled_first, between),
        computed_by(_in_pairs, sequences),
    ):
        yield


def _has_pairs(module: nn.Module) -> bool:
    parts = list(module) if type(module) is nn.Sequential else []
    return any(map(_is_pair, parts, parts[1:]))


def _is_pair(part: nn.Module, following: nn.Module) -> bool:
    return type(part) is nn.BatchNorm2d and type(following) is nn.ReLU


def _in_pairs(sequence: nn.Sequential, x: Tensor) -> Tensor:
    """Run a sequence, norm and ReLU as one operation where possible."""
    waiting = list(sequence)
    while waiting:
        part, *waiting = waiting
        if waiting and _is_pair(part, waiting[0]):
            relu, *waiting = waiting
            x = rectified(part, relu, x)
        else:
            x = part(x)
    return x


def _is_transition(module: nn.Module) -> bool:
    return (
        type(module) is densenet.Transition
        and module.conv.kernel_size == (1, 1)
        and not any(map(has_hooks, module.modules()))
    )


def _pooled_first(transition: densenet.Transition, x: Tensor) -> Tensor:
    """Run a transition with pooling before its 1x1 convolution, at a quarter of the products."""
    if not fusable(transition.norm, transition.relu, x) or min(x.shape[2:]) < 2:
        return type(transition).forward(transition, x)
    y = rectified(transition.norm, transition.relu, x)
    found: Tensor = transition.conv(F.avg_pool2d(y, 2))
    return found


def _last_parts(block: nn.Module) -> list[nn.Module]:
    """Return the last parts of a sequence whose modules allow them to be one operation."""
    found: list[nn.Module] = []
    if type(block) is nn.Sequential:
        for part in reversed(list(block)):
            if not _is_plain(part) or (found and type(part) is not type(found[0])):
                break
            found.insert(0, part)
    return found


def _is_plain(part: nn.Module) -> bool:
    return (
        type(part) in UNITS
        and type(getattr(part, "shortcut", None)) in (nn.Identity, type(None))
        and all(not has_hooks(module) for module in part.modules())
        and all("forward" not in vars(module) for module in part.modules())
        and all(
            type(unit.conv) is nn.Conv2d
            and is_fast(unit.conv)
            and unit.conv.bias is None
            and unit.conv.weight.dtype == torch.float32
            for unit in _chain(part)
        )
    )


def _chain(part: nn.Module) -> Chain:
    names = UNITS[type(part)]
    return tuple(
        NormedConvolution(*(getattr(part, kind + name) for kind in ("norm", "relu", "conv")))
        for name in names
    )


def _computed(block: nn.Sequential, last: list[nn.Module], x: Tensor) -> Tensor:
    """Run a sequence, its last parts as one operation where possible."""
    parts = list(block)
    for part in parts[: len(parts) - len(last)]:
        x = part(x)
    with unwatched():
        y = _as_one(
            [_chain(part) for part in last], x, adding=type(last[0]) is preresnet.Bottleneck
        )
    if y is None:
        y = x
        for part in last:
            y = part(y)
    return y


def _as_one(chains: list[Chain], x: Tensor, *, adding: bool) -> Tensor | None:
    """Run layers or blocks on a map as one operation; None if that is not possible."""
    if not _fit(chains, x, adding=adding):
        return None
    grown = 0 if adding else sum(chain[-1].conv.out_channels for chain in chains)
    moments = np.empty((3, x.shape[1] + grown))
    weights = [
        weight
        for chain in chains
        for unit in chain
        for weight in (unit.norm.weight, unit.norm.bias, unit.conv.weight)
    ]
    operation = _Adding if adding else _Appending
    out: Tensor = operation.apply(x, chains, moments, *weights)
    out.moments = out._version, moments  # type: ignore[attr-defined]
    return out


def _fit(chains: Sequence[Chain], x: Tensor, *, adding: bool) -> bool:
    """Return whether these layers or blocks can be one operation on a map."""
    if x.dim() != 4 or max(x.shape[2:]) < TILED_PIXELS:
        return False
    if adding and x.dtype != torch.float32:
        return False
    stream = x.shape[1]
    for chain in chains:
        channels = stream
        for unit in chain:
            if not (
                fusable(unit.norm, unit.relu, x)
                and channels == unit.norm.num_features == unit.conv.in_channels
            ):
                return False
            channels = unit.conv.out_channels
        if adding and (channels != stream or chain[-1].conv.kernel_size != (1, 1)):
            return False
        stream += 0 if adding else channels
    return True


class _Appending(Function):
    """Dense layers, whose outputs are appended to their input one after another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chains: list[Chain], moments: Any, *weights: Tensor) -> Tensor:
        ctx.ways = ways = units if x.dtype == torch.float32 else short_units
        stream = Map.empty(Map.of(x).size, moments.shape[1], x.dtype)
        channels = x.shape[1]
        moments[:, :channels] = ways.place(x, stream.part(0, channels))
        ctx.layers = []
        for chain in chains:
            grown = chain[-1].conv.out_channels
            out = stream.part(channels, grown)
            read = stream.part(0, channels), moments[:, :channels]
            steps, moments[:, channels : channels + grown] = ways.forward(chain, *read, out)
            ctx.layers.append(steps)
            channels += grown
        y = stream.tensor()
        ctx.save_for_backward(y, *weights)
        ctx.stream = stream
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        ways: Any = ctx.ways
        _ = ctx.saved_tensors  # raises if they were modified in place
        total = Map.copied(grad)
        missing = np.zeros((2, total.channels))  # slope and constant
        gradients: list[Tensor] = []
        for steps in reversed(ctx.layers):
            read = steps[0].x.channels
            grown = len(steps[-1].weight)
            line = Missing(ctx.stream.part(read, grown), *missing[:, read : read + grown])
            found, line = ways.backward(steps, total.part(read, grown), line, total.part(0, read))
            missing[:, :read] += line.slope, line.constant
            gradients = found + gradients
        x = ctx.layers[0][0].x
        of_x = Map.empty(total.size, x.channels, grad.dtype)
        line = Missing(x, *missing[:, : x.channels])
        units.straighten(total.part(0, x.channels), line, of_x)
        return of_x.tensor(), None, None, *gradients


class _Adding(Function):
    """Residual blocks, whose outputs are added to their input one after another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chains: list[Chain], moments: Any, *weights: Tensor) -> Tensor:
        stream = Map.copied(x)
        known = moments_of(x)
        if len(known):
            moments[:] = known
        else:
            units.find_moments(stream, moments)
        ctx.blocks = []
        for chain in chains:
            out = Map.empty(stream.size, stream.channels)
            steps, moments[:] = units.forward(chain, stream, moments, out, added=stream)
            ctx.blocks.append(steps)
            stream = out
        y = stream.tensor()
        ctx.save_for_backward(y, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        _ = ctx.saved_tensors
        total, line = Map.copied(grad), None
        gradients: list[Tensor] = []
        for steps in reversed(ctx.blocks):
            found, line = units.backward(steps, total, line, total)
            gradients = found + gradients
        assert line is not None
        units.straighten(total, line, total)
        return total.tensor(), None, None, *gradients
