"""Tensors by name: the several inputs of each example, moved and picked together.

No data set is registered here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class NamedInputs(dict[str, Tensor]):
    """Inputs by name, each with a row for each example; the first gives their shape.

    It has of a tensor what is asked of a batch of inputs, so that both are handled alike.
    """

    @property
    def shape(self) -> torch.Size:
        """The shape of the first."""
        return self._first.shape

    @property
    def device(self) -> torch.device:
        """The device of the first."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        return next(iter(self.values()))

    def to(self, *args: Any, **kwargs: Any) -> "NamedInputs":
        """Move each."""
        return self._each(lambda value: value.to(*args, **kwargs))

    def index_select(self, dim: int, index: Tensor) -> "NamedInputs":
        """Pick from each."""
        return self._each(lambda value: value.index_select(dim, index))

    def contiguous(self, *, memory_format: torch.memory_format) -> "NamedInputs":
        """Return them as they are: only images have layouts."""
        return self

    def is_floating_point(self) -> bool:
        """Tell whether all are numbers rather than ids."""
        return all(value.is_floating_point() for value in self.values())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "NamedInputs":
        return NamedInputs({name: change(value) for name, value in self.items()})


def text_of(inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Write what one example of some inputs is, as ``models.inputs`` reads it.

    The number of values of ids is that of the largest; a mask of ones and zeros has none.
    """
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    return " ".join(_text(name, value) for name, value in named.items())


def _text(name: str, value: Tensor) -> str:
    shape = "x".join(map(str, (1, *value.shape[1:])))
    prefix = f"{name}:" if name else ""
    if value.is_floating_point():
        return prefix + shape
    most = int(value.max()) if value.numel() else 0
    return f"{prefix}{shape}:int64" + ("" if most == 1 else f":{most + 1}")
