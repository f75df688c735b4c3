"""Named tensors: the several inputs of each example, moved and indexed together.

No data set is registered here.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class NamedInputs(dict[str, Tensor]):
    """Inputs by name, each with one row per example; ``shape`` is that of the first.

    It has the methods of a tensor that are used on batches of inputs, so that both can be passed.
    """

    @property
    def shape(self) -> torch.Size:
        """The shape of the first input."""
        return self._first.shape

    @property
    def device(self) -> torch.device:
        """The device of the first input."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        return next(iter(self.values()))

    def to(self, *args: Any, **kwargs: Any) -> "NamedInputs":
        """Apply ``Tensor.to`` to each input."""
        return self._each(lambda value: value.to(*args, **kwargs))

    def index_select(self, dim: int, index: Tensor) -> "NamedInputs":
        """Apply ``Tensor.index_select`` to each input."""
        return self._each(lambda value: value.index_select(dim, index))

    def contiguous(self, *, memory_format: torch.memory_format) -> "NamedInputs":
        """Return the inputs unchanged: memory formats matter only for images."""
        return self

    def is_floating_point(self) -> bool:
        """Return whether all inputs are floats, not ids."""
        return all(value.is_floating_point() for value in self.values())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "NamedInputs":
        return NamedInputs({name: change(value) for name, value in self.items()})


def text_of(inputs: Tensor | Mapping[str, Tensor]) -> str:
    """Describe one example of a batch of inputs, as text that ``models.inputs`` parses.

    For ids it ends with their number, the largest plus 1; for a mask of ones and zeros without.
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
