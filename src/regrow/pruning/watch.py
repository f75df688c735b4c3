"""Watching a network run: rows of channels that weights read, whichever code multiplies."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.surgery.dispatch import OperationMode
from regrow.surgery.tape import evaluating

See = Callable[[str, Tensor], None]
# Operations that multiply data with a weight -> where the data and the weight stand.
_MULTIPLY: Mapping[str, tuple[int, int]] = {
    "aten::convolution": (0, 1),
    "aten::linear": (0, 1),
    "aten::addmm": (1, 2),
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
}


class _Watching(OperationMode):
    """Hand what enters products with some weights to a function.

    A weight is known by its memory, since layers transpose it, attention uses it without calling
    its layer, and code of one's own may use it in any function.
    """

    def __init__(self, weights: Mapping[str, Tensor], see: See) -> None:
        super().__init__()
        self._names: dict[tuple[int, int], list[str]] = {}
        for name, weight in weights.items():
            self._names.setdefault(_place(weight), []).append(name)
        self._see = see

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name_of_operation = operation._schema.name
        places = _MULTIPLY.get(name_of_operation)
        if places is not None:
            data, weight = (args[place] for place in places)
            for name in self._names.get(_place(weight), ()):
                self._see(name, _rows(name_of_operation, data))
        return super().run(operation, args, kwargs)


def _place(weight: Tensor) -> tuple[int, int]:
    """Return where a weight lies in memory, and how many numbers it has, repeated ones once."""
    sizes = (size for size, step in zip(weight.shape, weight.stride(), strict=True) if step)
    num = 1
    for size in sizes:
        num *= size
    return weight.data_ptr(), num


def _rows(operation: str, data: Tensor) -> Tensor:
    """Write what enters a product as ``[samples, channels]``."""
    if operation == "aten::convolution":
        data = data.movedim(1, -1)
    return data.reshape(-1, data.shape[-1])


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Let attention compute its products one by one, as it does in training."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def watch(model: nn.Module, weights: Iterable[str], batches: Iterable[Any], see: See) -> None:
    """Run a network in evaluation mode, and hand on what some of its weights read.

    Args:
        model: any network; it is left as it was.
        weights: names of parameters.
        batches: inputs of the network.
        see: is given a name and rows ``[samples, channels]``, once for each use in each batch; of
            a convolution, a row for each place of its inputs.
    """
    named = {name: model.get_parameter(name).detach() for name in weights}
    with evaluating(model), torch.no_grad(), _no_fast_path(), _Watching(named, see):
        for x in batches:
            model(x)
