"""An oracle for pruning tools: what a cut network should compute, found without the tool's records.

The network's parameters are drawn so that no two values of a tensor are equal; so the values in the
cut network show which rows and columns of each tensor are left. The original network, with zeros in
all others and norms that take their statistics over the remaining channels, must compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from regrow.surgery.alive import called, enlivened

RESPONSE_NORMS = ("ConvNextV2GRN", "GlobalResponseNorm")
Kept = list[Tensor]  # the remaining positions, for each dimension of a tensor


class UnmatchedError(Exception):
    """The values of the cut network do not show what was removed."""


def alive(net: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Return a copy of a network, with no two equal values in any tensor, and its example.

    Both in float64, or in float32 if the network's code does not run in float64.
    """
    live = enlivened(net, example)
    wide = tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, example
    )
    try:
        live = live.double()
        outputs = [x for x in tree_leaves(called(live, wide)) if isinstance(x, Tensor)]
        if not all(bool(torch.isfinite(x).all()) for x in outputs):
            raise ArithmeticError("a mask of the least float64, written as float32, is infinite")
    except Exception:
        live, wide = live.float(), example
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*live.parameters(), *live.buffers()):
            if tensor.is_floating_point():
                jitter = torch.rand(tensor.shape, generator=draw, dtype=torch.float64)
                tensor.copy_(_distinct(tensor * (1 + 1e-3 * jitter).to(tensor)))
    return live.train().eval(), wide  # train() clears what modules cache of their weights


def _distinct(tensor: Tensor) -> Tensor:
    """Return a tensor without equal values, by changing the last bits of those that were equal."""
    kind = torch.int64 if tensor.dtype == torch.float64 else torch.int32
    if tensor.dtype not in (torch.float64, torch.float32) or not tensor.numel():
        return tensor
    bits = tensor.flatten().clone().view(kind).to(torch.int64)
    least = torch.iinfo(kind).min
    ranks, order = torch.where(bits < 0, least - bits, bits).sort()  # ordered as the values
    steps = torch.arange(len(ranks))
    ranks = torch.cummax(ranks - steps, 0).values + steps
    bits[order] = torch.where(ranks < 0, least - ranks, ranks)
    return bits.to(kind).view(tensor.dtype).view(tensor.shape)


def compare(net: nn.Module, small: nn.Module, example: Any) -> tuple[float, float]:
    """Return the distances from cut to silenced network, and from silenced to original network."""
    quiet = _silenced(net, small)
    expected, before = called(quiet, example), called(net, example)
    return _distance(called(small, example), expected), _distance(expected, before)


def _norms_blindly(module: nn.Module) -> bool:
    """Return whether a norm over channels has no parameters to show which channels are left."""
    over_channels = (
        "LayerNorm" in type(module).__name__ or "rmsnorm" in type(module).__name__.lower()
    )
    return over_channels and not list(module.parameters())


def rounding(net: nn.Module, example: Any) -> float:
    """Return how much a network's output changes if the last bits of its inputs do."""
    draw = torch.Generator().manual_seed(0)

    def nudged(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        down = (torch.rand(x.shape, generator=draw) < 0.5).to(x)
        return x * (1 - 4 * torch.finfo(x.dtype).eps * down)

    return _distance(called(net, tree_map(nudged, example)), called(net, example))


def rounds_to_float32(net: nn.Module, example: Any) -> bool:
    """Return whether a network in float64 casts some of its numbers to float32."""

    class Casts(TorchDispatchMode):
        found = False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and result.dtype == torch.float32:
                self.found |= args[0].dtype == torch.float64
            return result

    with Casts() as casts:  # type: ignore[no-untyped-call]
        called(net, example)
    return bool(casts.found)


def shapes(output: Any) -> list[tuple[int, ...]]:
    """Return the shapes of an output's tensors."""
    return [tuple(x.shape) for x in tree_leaves(output) if isinstance(x, Tensor)]


def _distance(ours: Any, theirs: Any) -> float:
    """Return the largest difference over output tensors, each relative to its largest finite value.

    Infinite if shapes differ, or if a value is not finite and not equal in both (NaN is never
    equal).
    """
    if shapes(ours) != shapes(theirs):
        return math.inf
    gaps = [0.0]
    pairs = zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
    for a, b in pairs:
        if isinstance(b, Tensor) and b.numel():
            a, b = a.double(), b.double()
            gap = torch.where(a == b, 0.0, (a - b).abs()).max()
            largest = torch.where(b.isfinite(), b.abs(), 0.0).max().clamp(min=1e-300)
            share = float(gap / largest)
            gaps.append(math.inf if math.isnan(share) else share)
    return max(gaps)


def _silenced(net: nn.Module, small: nn.Module) -> nn.Module:
    """Copy a network with zeros for all parameters that the cut network lacks."""
    import copy

    quiet = copy.deepcopy(net)
    quiet.train().eval()  # train() clears what modules cache of their weights
    own = _numbers(quiet)
    left: dict[str, Kept] = {}
    # regrow wraps a norm in a module if it selects channels before it.
    cut = {name.replace(".norm.", ".") if name not in own else name: tensor
           for name, tensor in _numbers(small).items()}  # fmt: skip
    for name, tensor in own.items():
        if name not in cut:
            continue
        kept = _kept(tensor, cut[name])
        left[name] = kept
        if not name.endswith("running_var"):
            for dim, positions in enumerate(kept):
                gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
                gone[positions] = False
                with torch.no_grad():
                    tensor.index_fill_(dim, gone.nonzero().flatten(), 0.0)
    for name, module in quiet.named_modules():
        if _norms_blindly(module):
            _measure_heard(module, small.get_submodule(name))
        kept_scale = left.get(f"{name}.weight")
        if kept_scale is None:
            continue
        if type(module).__name__ in RESPONSE_NORMS:
            _respond_only(module, kept_scale[-1])
        elif len(kept_scale[0]) < len(own[f"{name}.weight"]):
            _measure_only(module, kept_scale[0])
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d:
            _standardise_only(module, kept_scale[1])
    return quiet


def _numbers(net: nn.Module) -> dict[str, Tensor]:
    both = dict(net.named_parameters()) | dict(net.named_buffers())
    return {name: tensor for name, tensor in both.items() if tensor.is_floating_point()}


def _kept(tensor: Tensor, cut: Tensor) -> Kept:
    """Find the positions of a cut tensor's values in the original, for each dimension."""
    if tensor.shape == cut.shape:
        return [torch.arange(size) for size in tensor.shape]
    if tensor.dim() != cut.dim() or not cut.numel():
        raise UnmatchedError
    values, order = tensor.detach().flatten().sort()
    kept = []
    for dim in range(tensor.dim()):
        line = cut.detach()[tuple(slice(None) if d == dim else 0 for d in range(cut.dim()))]
        place = order[torch.searchsorted(values, line).clamp(max=len(values) - 1)]
        kept.append(torch.unravel_index(place, tensor.shape)[dim])
    found = tensor.detach()
    for dim, positions in enumerate(kept):
        found = found.index_select(dim, positions)
    if not torch.equal(found, cut.detach()):
        raise UnmatchedError
    return kept


def _standardise_only(layer: nn.Module, kept: Tensor) -> None:
    """Standardise a convolution's weights (by a batch norm) over the remaining inputs only."""

    class Rows(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is not F.batch_norm:
                return func(*args, **(kwargs or {}))
            rows, _, _, *rest = args
            given = dict(zip(("weight", "bias"), rest, strict=False)) | (kwargs or {})
            shaped = rows[0].view(layer.weight.shape)  # type: ignore[arg-type, union-attr]
            part = shaped[:, kept]
            mean = part.mean((1, 2, 3), keepdim=True)
            variance = (part - mean).square().mean((1, 2, 3), keepdim=True)
            result = torch.zeros_like(shaped)
            result[:, kept] = (part - mean) / (variance + given.get("eps", 1e-5)).sqrt()
            gain = given.get("weight")
            return (result if gain is None else result * gain.view(-1, 1, 1, 1)).view(rows.shape)

    run = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Rows():  # type: ignore[no-untyped-call]
            return run(*args, **kwargs)

    layer.forward = forward  # type: ignore[method-assign]


def _respond_only(norm: nn.Module, kept: Tensor) -> None:
    """Make a global response norm take its mean over the remaining channels."""
    channels = getattr(norm, "channel_dim", -1)
    places, shape = getattr(norm, "spatial_dim", (1, 2)), getattr(norm, "wb_shape", (1, 1, 1, -1))

    def forward(x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=tuple(places), keepdim=True)
        mean = size.index_select(channels, kept).mean(channels, keepdim=True)
        result = x * (size / (mean + getattr(norm, "eps", 1e-6)))
        return x + norm.bias.view(shape) + norm.weight.view(shape) * result

    norm.forward = forward  # type: ignore[method-assign]


def _measure_only(norm: nn.Module, kept: Tensor) -> None:
    """Make a norm over channels take its statistics over the remaining ones."""
    kind = type(norm).__name__
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", 1e-6))
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == 1:
        dims: Any = "map"
    elif isinstance(norm, nn.LayerNorm) or "LayerNorm" in kind or "rmsnorm" in kind.lower():
        dims = "last"
    else:
        return
    plain = "rmsnorm" in kind.lower() or kind == "T5LayerNorm"
    first = isinstance(norm, nn.GroupNorm) or "2d" in kind
    first = first or getattr(norm, "data_format", "") == "channels_first"

    scaled_before = "InputScaled" in kind
    run = norm.forward

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        channels = 1 if first or _takes_maps(norm, run, x) else x.dim() - 1
        over = tuple(range(1, x.dim())) if dims == "map" else (channels,)
        wide = [1] * x.dim()
        wide[channels] = -1
        weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
        scale = torch.ones(1)
        if weight is not None:
            gone = torch.zeros_like(weight)
            gone[kept] = _offset(norm, run, x)
            scale = (weight + gone).view(wide)
        x = x * scale if scaled_before else x
        part = x.index_select(channels, kept)
        mean = 0.0 if plain else part.mean(over, keepdim=True)
        variance = (part - mean).square().mean(over, keepdim=True)
        result = (x - mean) * torch.rsqrt(variance + eps)
        result = result if scaled_before else result * scale
        result = result if bias is None else result + bias.view(wide)
        return norm.act(result) if isinstance(getattr(norm, "act", None), nn.Module) else result

    norm.forward = forward  # type: ignore[method-assign]


def _offset(norm: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return what a norm adds to its weight: some multiply by one more than it."""
    own = [p for name in ("weight", "bias") if (p := getattr(norm, name, None)) is not None]
    before = [p.detach().clone() for p in own]
    with torch.no_grad():
        for p in own:
            p.zero_()
        offset = float(bool(run(x).abs().max() > 0))
        for p, values in zip(own, before, strict=True):
            p.copy_(values)
    return offset


def _measure_heard(norm: nn.Module, small: nn.Module) -> None:
    """Make a norm without parameters take its statistics over the channels that are not all zero.

    Raises:
        UnmatchedError: their number is not that of the channels in the cut network.
    """
    width = getattr(small, "normalized_shape", None)
    plain = "rmsnorm" in type(norm).__name__.lower()
    run = norm.forward

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        heard = x.flatten(0, -2).abs().amax(0) > 0
        if width is not None and tuple(width) != (int(heard.sum()),):
            raise UnmatchedError
        part = x[..., heard]
        mean = 0.0 if plain else part.mean(-1, keepdim=True)
        variance = (part - mean).square().mean(-1, keepdim=True)
        factor = torch.rsqrt(variance + getattr(norm, "eps", 1e-5))
        return factor if run(x).shape == factor.shape else (x - mean) * factor * heard

    norm.forward = forward  # type: ignore[method-assign]


def _takes_maps(norm: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether a layer norm takes maps [N, C, H, W], and moves the channels last itself."""
    if type(norm) is nn.LayerNorm or not isinstance(norm, nn.LayerNorm) or x.dim() != 4:
        return False
    plain = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    fits = x.shape[-1] == norm.normalized_shape[0]
    return not fits or not torch.allclose(run(x), F.layer_norm(x, *plain))
