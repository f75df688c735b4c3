"""The oracle of surgery: a network whose cut units are silent, which the cut one has to equal.

Layer norms, and group norms of a single group, take statistics over the channels of each sample; in
the oracle they take them over the channels that stay.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regrow.core.units import UNITS
from regrow.errors import TraceError
from regrow.surgery.cut import check, duplicate, is_cut, kept_positions, not_cut
from regrow.surgery.groups import WIDTH, Trace
from regrow.surgery.mask import Mask


def silence(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Return a copy of a network whose cut units are exactly zero: the reference for ``shrink``.

    Producers' weights and biases, and norms' affine parameters and running means, are zeroed there,
    and what reads the units where they are not zero for all that (after a sigmoid);
    of a block that goes, the last layer of the branch. Norms that take statistics over channels get
    hooks that leave out those of the cut units.
    """
    silence = UNITS.get(mask.unit).silence
    if silence is None:
        raise TraceError(not_cut(mask))
    quiet = duplicate(model)
    silence(quiet, mask, trace)
    return quiet


def silence_channels_(quiet: nn.Module, mask: Mask, trace: Trace) -> None:
    """Set the channels that a mask cuts to zero, in place."""
    check(mask, trace)
    tensors = dict(quiet.named_parameters()) | dict(quiet.named_buffers())
    with torch.no_grad():
        for name, stays in mask.kept.items():
            for slot in trace.groups[name].slots:
                if slot.zeroed:
                    tensor = tensors[slot.tensor]
                    cut = is_cut(slot.units, stays).nonzero().flatten()
                    tensor.index_fill_(slot.dim, cut.to(tensor.device), 0.0)
    if trace.measured:
        for (tensor_name, dim), kept in kept_positions(mask, trace).items():
            norm = tensor_name.removesuffix(WIDTH)
            if tensor_name != norm and norm in trace.measured:
                _measure_only_(quiet.get_submodule(norm), dim, kept)


def _measure_only_(norm: nn.Module, dim: int, kept: Tensor) -> None:
    """Let a norm take its statistics over some positions of the dimensions it is over, in place."""
    statistics = _OverKept(dim, kept)

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        statistics.__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        statistics.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    norm.register_forward_pre_hook(enter)
    norm.register_forward_hook(leave, always_call=True)


class _OverKept(TorchFunctionMode):
    """Compute layer norms, and group norms of one group, over the kept channels alone."""

    def __init__(self, dim: int, kept: Tensor) -> None:
        super().__init__()
        self.dim, self.kept = dim, kept

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, torch.layer_norm):
            return self._layer_norm(*args, **kwargs)
        if func in (F.group_norm, torch.group_norm):
            return self._group_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        over = tuple(range(-len(normalized_shape), 0))
        result = self._normalised(input, over, over[self.dim], eps)
        return _affine(result, weight, bias)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        *_: Any,
    ) -> Tensor:
        assert num_groups == 1
        result = self._normalised(input, tuple(range(1, input.dim())), 1, eps)
        shape = (-1, *[1] * (input.dim() - 2))
        return _affine(result, *(t if t is None else t.view(shape) for t in (weight, bias)))

    def _normalised(self, x: Tensor, over: tuple[int, ...], channels: int, eps: float) -> Tensor:
        counts = torch.zeros_like(x).index_fill(channels, self.kept.to(x.device), 1.0)
        num = counts.sum(over, keepdim=True)
        mean = (x * counts).sum(over, keepdim=True) / num
        variance = ((x - mean).square() * counts).sum(over, keepdim=True) / num
        return (x - mean) * torch.rsqrt(variance + eps) * counts


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = x if weight is None else x * weight
    return scaled if bias is None else scaled + bias
