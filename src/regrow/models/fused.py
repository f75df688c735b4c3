"""Batch norm and ReLU as one operation, where that is what a training step waits for.

A network says ``rectified(norm, relu, x)`` for ``relu(norm(x))``. In bfloat16 training on a CPU
the two, with what is added between them or branches off before them, are one operation of few
passes over memory (``kernels``); anywhere else they are the two modules, called one after another.
Both give the same numbers, but for the rounding of single results.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LONG = 256  # elements a row, at least, for the vector unit


def rectified(
    norm: nn.Module, relu: nn.Module, x: Tensor, *, added: Tensor | None = None
) -> Tensor:
    """Return ``relu(norm(x))``, or ``relu(norm(x) + added)``."""
    if _fusable(norm, relu, x) and (added is None or _alike(added, x)):
        y: Tensor = _fused(norm, x, added, passing=False)
        return y
    y = norm(x)
    result: Tensor = relu(y if added is None else y + added)
    return result


def branched(norm: nn.Module, relu: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``relu(norm(x))``, and x for what else reads it."""
    if _fusable(norm, relu, x):
        both: tuple[Tensor, Tensor] = _fused(norm, x, None, passing=True)
        return both
    return relu(norm(x)), x


def _fusable(norm: nn.Module, relu: nn.Module, x: Tensor) -> bool:
    """Tell whether these are a plain norm and ReLU in training, on a map that the kernels read."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and type(norm) is nn.BatchNorm2d
        and type(relu) is nn.ReLU
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and "forward" not in vars(norm)  # which ranks that train together replace
        and not (norm._forward_hooks or norm._forward_pre_hooks or relu._forward_hooks)
        and x.dim() == 4
        and x.numel() > x.shape[1]  # of one value there is no variance, which the norm says
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _alike(added: Tensor, x: Tensor) -> bool:
    return (
        added.dtype == x.dtype
        and added.shape == x.shape
        and added.is_contiguous(memory_format=torch.channels_last)
    )


def _fused(norm: nn.Module, x: Tensor, added: Tensor | None, *, passing: bool) -> Any:
    assert isinstance(norm, nn.BatchNorm2d)
    return _NormRelu.apply(x, norm.weight, norm.bias, added, norm, passing)


class _NormRelu(Function):
    """relu(norm(x) + added), and x itself where it is passed on."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        added: Tensor | None,
        norm: nn.BatchNorm2d,
        passing: bool,
    ) -> Any:
        from regrow import kernels

        repeats, rows = _rows(x)
        shift = x[0, :, 0, 0].float()  # any value near the mean keeps the sums small
        first, second = _sums(x, repeats)
        kernels.moments(_map(x, rows), _vector(shift, repeats), first.numpy(), second.numpy())
        num = x.numel() // x.shape[1]
        offset = _total(first, repeats) / num
        mean = shift + offset
        variance = (_total(second, repeats) / num - offset.square()).clamp_(min=0)
        _track(norm, mean, variance * (num / max(1, num - 1)))
        inverse = (variance + norm.eps).rsqrt()
        factor = weight.double() * inverse
        term = bias.double() - mean * factor
        y = torch.empty_like(x)
        affine = _vector(factor, repeats), _vector(term, repeats)
        if added is None:
            kernels.forward(_map(x, rows), *affine, _map(y, rows))
        else:
            kernels.forward_added(_map(x, rows), _map(added, rows), *affine, _map(y, rows))
        ctx.save_for_backward(x, *(() if added is None else (y,)))
        ctx.found = mean, inverse, factor, term
        return (y, x.view_as(x)) if passing else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, passed: Tensor | None = None) -> Any:
        from regrow import kernels

        x, *above = ctx.saved_tensors
        mean, inverse, factor, term = ctx.found
        grad = grad.contiguous(memory_format=torch.channels_last)
        repeats, rows = _rows(x)
        maps = [_map(t, rows) for t in (x, *above, grad)]
        first, second = _sums(x, repeats)
        sums = _vector(mean, repeats), first.numpy(), second.numpy()
        affine = _vector(factor, repeats), _vector(term, repeats)
        if above:
            kernels.backward_moments_added(*maps, *sums)
        else:
            kernels.backward_moments(*maps, *affine, *sums)
        num = x.numel() // x.shape[1]
        of_bias = _total(first, repeats)
        of_weight = _total(second, repeats) * inverse
        # factor * (g - mean of g - normalised x * mean of g * normalised x), as a line in x.
        per_x = -factor * inverse * of_weight / num
        constant = -factor * of_bias / num - per_x * mean
        line = _vector(per_x, repeats), _vector(constant, repeats)
        out, out_added = torch.empty_like(x), torch.empty_like(x) if above else None
        if out_added is not None:
            written = _map(out, rows), _map(out_added, rows)
            kernels.backward_added(*maps, affine[0], *line, *written)
        elif passed is not None:
            passed = passed.contiguous(memory_format=torch.channels_last)
            kernels.backward_passed(*maps, _map(passed, rows), *affine, *line, _map(out, rows))
        else:
            kernels.backward(*maps, *affine, *line, _map(out, rows))
        return out, of_weight.float(), of_bias.float(), out_added, None, None


def _track(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics on, as the norm itself does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.float(), norm.momentum)
    norm.running_var.lerp_(variance.float(), norm.momentum)


def _rows(x: Tensor) -> tuple[int, tuple[int, int]]:
    """Return how many pixels make a row, and the shape of the map as rows."""
    channels, num = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while channels * repeats < LONG and num % (2 * repeats) == 0:
        repeats *= 2
    return repeats, (num // repeats, channels * repeats)


def _map(x: Tensor, rows: tuple[int, int]) -> Any:
    """View a map's memory as rows of raw bfloat16."""
    return x.detach().permute(0, 2, 3, 1).reshape(rows).view(torch.uint16).numpy()


def _vector(values: Tensor, repeats: int) -> Any:
    """Return values of channels for each element of a row, as float32."""
    return values.float().repeat(repeats).numpy()


def _sums(x: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
    num = x.shape[1] * repeats
    return torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.float64)


def _total(sums: Tensor, repeats: int) -> Tensor:
    """Add up the pixels of a row: ``[channels]``."""
    return sums.view(repeats, -1).sum(0)
