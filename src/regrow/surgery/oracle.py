"""The oracle of surgery: a network with its cut units at zero, which the cut one must equal.

Layer norms, and group norms with a single group, compute statistics over the channels of each
sample; in the oracle these run over the kept channels only.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regrow.core.units import UNITS
from regrow.errors import TraceError
from regrow.surgery.cut import check, duplicate, is_cut, kept_positions, not_cut
from regrow.surgery.groups import OVER, WIDTH, Trace
from regrow.surgery.mask import Mask
from regrow.surgery.taken import check_cut
from regrow.surgery.tape import eagerly


@eagerly()
def silence(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Return a copy of a network whose cut units are exactly zero: the reference for ``shrink``.

    Zeroed are the producers' weights and biases, the norms' affine parameters and running means,
    the weights that read the units where these are still nonzero (after a sigmoid), and the last
    layer in the branch of a removed block. Norms with statistics over channels get hooks that
    leave out the cut units.
    """
    check_cut(model, mask, trace)
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
            norm, _, size = tensor_name.rpartition(":")
            module = quiet.get_submodule(norm) if size else quiet
            if f":{size}" == WIDTH and norm in trace.measured:
                _measure_only_(module, _OverKept(dim, kept))
            elif f":{size}".startswith(OVER):
                num = int(size.removeprefix(OVER[1:]))
                _measure_only_(module, _ByHand(dim, kept, num))


def _measure_only_(norm: nn.Module, statistics: "_OverKept | _ByHand") -> None:
    """Make a module, but not its children, compute statistics over some positions, in place."""

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        statistics.inside = 0
        statistics.__enter__()  # type: ignore[no-untyped-call]

    def leave(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        statistics.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def deeper(module: nn.Module, args: tuple[Any, ...]) -> None:
        statistics.inside += 1

    def back(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        statistics.inside -= 1

    norm.register_forward_pre_hook(enter)
    norm.register_forward_hook(leave, always_call=True)
    for module in norm.modules():
        if module is not norm:
            module.register_forward_pre_hook(deeper)
            module.register_forward_hook(back, always_call=True)


class _ByHand(TorchFunctionMode):
    """Computes means and variances over channels from the kept ones only."""

    def __init__(self, dim: int, kept: Tensor, size: int) -> None:
        super().__init__()
        self.dim, self.kept, self.size = dim, kept, size
        self.inside = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.inside == 0 and func in (F.rms_norm, torch.rms_norm):
            return self._rms_norm(*args, **kwargs)
        if self.inside == 0 and func in (F.batch_norm, torch.batch_norm):
            return self._batch_norm(func, *args, **kwargs)
        if self.inside == 0 and getattr(func, "__name__", "") in _STATISTICS and args:
            x, *rest = args
            given = rest[0] if rest else kwargs.get("dim")
            dims = [given] if isinstance(given, int) else given
            if isinstance(x, Tensor) and self._is_over(x, dims):
                args = (x.index_select(self.dim, self.kept.to(x.device)), *rest)
        return func(*args, **kwargs)

    def _is_over(self, x: Tensor, dims: Any) -> bool:
        return (
            x.dim() >= -self.dim
            and x.shape[self.dim] == self.size
            and isinstance(dims, list | tuple)
            and self.dim % x.dim() in [d % x.dim() for d in dims]
        )

    def _batch_norm(self, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Standardise a weight's rows over the kept channels; the others are zero."""
        if input.dim() != 3 or input.shape[-1] != self.size or self.dim != -1:
            return cast(Tensor, func(input, *args, **kwargs))
        kept = self.kept.to(input.device)
        result = func(input.index_select(-1, kept), *args, **kwargs)
        return torch.zeros_like(input).index_copy(-1, kept, result)

    def _rms_norm(
        self, input: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        over = tuple(range(-len(shape), 0))
        heard = input.index_select(self.dim, self.kept.to(input.device))
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        result = input * torch.rsqrt(heard.square().mean(over, keepdim=True) + eps)
        return result if weight is None else result * weight


_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean")


class _OverKept(TorchFunctionMode):
    """Computes layer norms, and group norms of one group, over the kept channels only."""

    def __init__(self, dim: int, kept: Tensor) -> None:
        super().__init__()
        self.dim, self.kept = dim, kept
        self.inside = 0

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
