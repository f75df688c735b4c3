"""Compare outputs of two networks: structures, shapes and numbers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from regrow.surgery.tape import leaves

FILL = 1e4  # how many times larger than all other numbers a number is that only marks a place
_NUMBERS = (Tensor, bool, int, float)


def difference(output: Any, expected: Any) -> float:
    """Return the largest relative difference of two outputs; equal infinities are left out.

    NaN if other numbers are not finite, or none of an output is, and infinity if the outputs have
    other structures or shapes.
    """
    if unlike(output, expected) is not None:
        return math.inf
    pairs = zip(leaves(output), leaves(expected), strict=True)
    return largest([relative_gap(a, b) for (_, a), (_, b) in pairs])


def unlike(output: Any, expected: Any) -> str | None:
    """Say how the structures, shapes or other values of two outputs differ; None if they do not."""
    actual, wanted = leaves(output), leaves(expected)
    if [place for place, _ in actual] != [place for place, _ in wanted]:
        return (
            "The cut network returns something else than the network itself: "
            f"{_shape(output)} in place of {_shape(expected)}."
        )
    for (_, a), (_, b) in zip(actual, wanted, strict=True):
        if not isinstance(b, _NUMBERS):
            if type(a) is not type(b) or a != b:
                return f"The cut network returns {a!r} where the network itself returns {b!r}."
        elif torch.as_tensor(a).shape != torch.as_tensor(b).shape:
            return (
                f"The cut network returns a tensor of shape {tuple(torch.as_tensor(a).shape)} "
                f"where the network itself returns {tuple(torch.as_tensor(b).shape)}."
            )
    return None


def relative_gap(actual: Any, wanted: Any) -> float:
    """Return the largest difference of two numbers, or tensors of one shape, over the largest.

    Equal infinities are left out, and so is an equal number over ``FILL`` times larger than all
    others: masks set scores to -1e9, beside which no difference would show. NaN if other numbers
    are not finite, or none of ``wanted`` is.
    """
    if not isinstance(wanted, _NUMBERS):
        return 0.0
    a, b = (torch.as_tensor(x).detach() for x in (actual, wanted))
    if not b.numel():
        return 0.0
    a, b = (torch.view_as_real(x) if x.is_complex() else x for x in (a, b))
    a, b = a.double(), b.double()
    if not is_comparable(b):
        return math.nan
    if bool(b.isinf().any()):
        same = b.isinf() & (a == b)
        a, b = a.masked_fill(same, 0.0), b.masked_fill(same, 0.0)
    gap = (a - b).abs().max()
    if not bool(torch.isfinite(gap)):
        return math.nan
    return float(gap) and float(gap / _scale(a, b).clamp(min=1e-300))


def _scale(a: Tensor, b: Tensor) -> Tensor:
    """Return the largest number of ``b``, but of those below a fill that both tensors have."""
    sizes = b.abs()
    largest = sizes.max()
    rest = sizes.masked_fill((a == b) & (sizes == largest), 0.0).max()
    return rest if largest > FILL * rest else largest


def is_comparable(output: Tensor) -> bool:
    """Return whether an output holds no NaN, and not only infinities (a mask sets some to -inf)."""
    some = not output.numel() or bool(output.isfinite().any())
    return some and not bool(output.isnan().any())


def largest(values: Sequence[float]) -> float:
    """Return the largest value, and NaN if any is: ``max`` would hide it."""
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def as_type(example: Any, dtype: torch.dtype) -> Any:
    """Convert the floating-point tensors of an example to a type."""

    def cast(leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if floats else leaf

    return tree_map(cast, example)


def _shape(output: Any) -> str:
    def worded(leaf: Any) -> str:
        return f"{list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__

    return str(tree_map(worded, output)).replace("'", "")
