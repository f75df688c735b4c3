"""A copy of a network with redrawn parameters, so that every channel affects its output.

Networks have parts that contribute nothing: last norms that start at zero, layer scales of 1e-6,
scales driven to zero by a penalty. They hide errors of the layers before them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_any, tree_map

from regrow.core.seeds import seeded
from regrow.errors import TraceError
from regrow.surgery.cut import copied, duplicate
from regrow.surgery.tape import call, evaluating, is_dense, worded

BIAS = 0.2
SAME = 1e-6  # relative mean square, up to which differences between values are rounding
FEW = 2  # values per channel, below which mean and variance are taken over all channels


def called(model: nn.Module, example: Any, *, graph: bool = False) -> Any:
    """Run a network in evaluation mode on one tensor, a sequence of inputs, or inputs by name.

    Raises:
        TraceError: the network fails, perhaps because its code branches on its data.
    """
    try:
        with torch.set_grad_enabled(graph), evaluating(model):
            return call(model, tree_map(copied, example))
    except Exception as error:
        raise TraceError(
            f"The network fails on an input like the example: {worded(error)}. "
            "Its code may branch on its data. Make it accept any input of that shape."
        ) from error


def enlivened(
    model: nn.Module, example: Any, *, silenced: Callable[[nn.Module], nn.Module] | None = None
) -> nn.Module:
    """Return a copy of a network with random parameters and statistics, none of them near zero.

    Magnitudes and signs are drawn; the scale is a tensor's own or, if that is near zero, one that
    suits its shape. During one pass of the example, each convolution and linear layer is centred
    and scaled by its output, so that few ReLUs are dead, and norms get statistics near those of
    their input: activations of deep networks neither overflow nor vanish. ``silenced`` makes a copy
    with some units at zero; if it is given, these adjustments are made on that copy, so that they
    suit the remaining units.
    """
    live = duplicate(model)
    draw = seeded(0, "alive")
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if is_dense(parameter) and parameter.is_floating_point():
                parameter.copy_(_alive(parameter, draw, small=name.endswith("bias")))
        for module in live.modules():
            if _has_statistics(module):
                _set_statistics_(module, torch.zeros(1), torch.ones(1), draw, silent_stays=False)
    quiet = live if silenced is None else silenced(live)
    with _settling(quiet, draw):
        called(quiet, example)
    with torch.no_grad():
        for tensor, quiet_tensor in zip(_tensors(live), _tensors(quiet), strict=True):
            # Only silenced entries are zero.
            tensor.copy_(torch.where(quiet_tensor == 0, tensor, quiet_tensor))
    return live


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if is_dense(t)]


def drawn_like(example: Any, draw: Generator) -> Any:
    """Draw inputs like an example: all-zero float tensors from a normal, others from its values.

    Sparse tensors stay the same.
    """

    def drawn(leaf: Any) -> Any:
        if not is_dense(leaf) or not leaf.numel():
            return leaf
        if _is_blank(leaf):
            return torch.randn(leaf.shape, generator=draw).to(leaf)
        chosen = torch.randint(leaf.numel(), leaf.shape, generator=draw)
        return leaf.flatten()[chosen.to(leaf.device)]

    return tree_map(drawn, example)


def is_blank(example: Any) -> bool:
    """Return whether an example has an all-zero float tensor, which stands for a shape."""
    return tree_any(lambda leaf: is_dense(leaf) and _is_blank(leaf), example)


def _is_blank(leaf: Tensor) -> bool:
    return leaf.is_floating_point() and not bool(leaf.any())


def _alive(tensor: Tensor, draw: Generator, *, small: bool) -> Tensor:
    """Draw values on a tensor's own scale, none near zero; nonnegative if all of its own are.

    Biases (``small``) get small values of either sign, so that no ReLU is dead.
    """
    values = tensor.detach().double().cpu()
    if not values.numel():
        return values
    size = float(values.square().mean().sqrt())
    # He initialisation; the fan-in is not known, so the longest dimension is taken for the outputs.
    least = 0.5 / (values.numel() / max(values.shape, default=1)) ** 0.5
    size = BIAS if small else size if size > least else least
    magnitude = (0.5 + torch.rand(values.shape, generator=draw)) * size
    if not small and bool((values >= 0).all()) and bool(values.any()):
        return magnitude
    return magnitude * _signs(values, draw)


def _signs(like: Tensor, draw: Generator) -> Tensor:
    return torch.where(torch.rand(like.shape, generator=draw) < 0.5, -1.0, 1.0)


def _has_statistics(module: nn.Module) -> bool:
    return all(
        isinstance(module._buffers.get(name), Tensor) for name in ("running_mean", "running_var")
    )


def _set_statistics_(
    norm: nn.Module, mean: Tensor, variance: Tensor, draw: Generator, *, silent_stays: bool
) -> None:
    """Set a norm's running statistics near a mean and a variance, differently for each channel."""
    running_mean, running_var = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert running_mean is not None
    assert running_var is not None
    shift = 0.3 * torch.randn(running_mean.shape, generator=draw).to(mean)
    stretch = 0.5 + torch.rand(running_var.shape, generator=draw).to(variance)
    heard = running_mean != 0 if silent_stays else torch.ones_like(running_mean, dtype=torch.bool)
    running_mean.copy_((mean + variance.sqrt() * shift) * heard)
    running_var.copy_(variance * stretch)


@contextmanager
def _settling(model: nn.Module, draw: Generator) -> Iterator[None]:
    """Scale each layer, and set each norm's statistics, by the first data that it gets."""
    seen: set[nn.Module] = set()

    @torch.no_grad()
    def before(norm: nn.Module, args: tuple[Any, ...]) -> None:
        if norm not in seen and args and args[0].dim() > 1:
            seen.add(norm)
            _set_statistics_(norm, *_moments(args[0]), draw, silent_stays=True)

    @torch.no_grad()  # the network's own code may enable gradients
    def after(layer: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
        if layer in seen or not isinstance(output, Tensor) or not output.numel():
            return None
        seen.add(layer)
        channels = output.transpose(1 if isinstance(layer, nn.modules.conv._ConvNd) else -1, -1)
        weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
        heard = torch.ones(1) if bias is None else (bias != 0).to(bias)
        if bias is not None and channels.shape[-1] == len(bias) and _many(channels):
            mean = channels.flatten(0, -2).mean(0)
            if _differ(channels - mean, channels):
                bias.sub_(mean)
                channels = channels - mean
        size = float(channels.double().square().mean().sqrt())
        if weight is not None and 0.0 < size < math.inf:
            weight.div_(size)
            if bias is not None:
                shift = 0.3 * torch.randn(bias.shape, generator=draw).to(bias)
                bias.div_(size).add_(shift * heard)
        # Run again: the output need not scale with the weight, and hooks may be part of the layer.
        return layer(*args, **inputs)

    with ExitStack() as hooks:
        for module in model.modules():
            if _has_statistics(module):
                hooks.callback(module.register_forward_pre_hook(before).remove)
            elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


def _many(channels: Tensor) -> bool:
    return channels.numel() >= FEW * channels.shape[-1]


def _differ(centred: Tensor, channels: Tensor) -> bool:
    """Return whether values vary: an embedding of one time step is the same for all samples."""
    return float(centred.square().mean()) > SAME * float(channels.square().mean())


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of each channel, or of all if each has few or equal values."""
    channels = x.transpose(0, 1).flatten(1)
    mean, variance = channels.mean(1), channels.var(1, correction=0)
    if channels.shape[1] < FEW or not _differ(channels - mean[:, None], channels):
        variance = channels.square().mean().expand(len(channels))
        mean = channels.mean().expand(len(channels))
    least = variance.mean() / 10
    return mean, torch.where(variance > least, variance, least)
