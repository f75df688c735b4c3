"""Observe the inputs of weights while a network runs, whichever code multiplies by them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regrow.pruning.examples import counted_rows
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.mask import layer_of
from regrow.surgery.tape import call, evaluating

See = Callable[[str, Tensor], None]
LOOK_UP = "aten::embedding"
# Operations that multiply data by a weight -> the positions of both among the arguments.
_MULTIPLY: Mapping[str, tuple[int, int]] = {
    "aten::convolution": (0, 1),
    "aten::linear": (0, 1),
    "aten::addmm": (1, 2),
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
}


class _Watching(OperationMode):
    """Pass the inputs that are multiplied by some weights to a function.

    A weight is recognised by its memory, because layers transpose it, attention uses it without
    calling its layer, and a user's code may use it in any function.
    """

    def __init__(self, weights: Mapping[str, Tensor], see: See, see_ids: See | None) -> None:
        super().__init__()
        self._see_ids = see_ids
        self.seen: Counter[str] = Counter()  # number of products with each weight
        self._names: dict[tuple[int, int], list[str]] = {}
        for name, weight in weights.items():
            self._names.setdefault(_place(weight), []).append(name)
        self._see = see

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, after passing its input on if it multiplies by a weight."""
        name = operation._schema.name
        if name in _MULTIPLY:
            data, factor = (args[place] for place in _MULTIPLY[name])
            for weight in self._names.get(_place(factor), ()):
                self.seen[weight] += 1
                self._see(weight, _rows(data, is_map=name == "aten::convolution"))
        elif name == LOOK_UP and self._see_ids is not None:
            for weight in self._names.get(_place(args[0]), ()):
                self._see_ids(weight, args[1].flatten())
        return super().run(operation, args, kwargs)


def _place(weight: Tensor) -> tuple[int, int]:
    """Return a weight's address in memory and its number of elements, without expanded ones."""
    sizes = (size for size, step in zip(weight.shape, weight.stride(), strict=True) if step)
    num = 1
    for size in sizes:
        num *= size
    return weight.data_ptr(), num


def _rows(data: Tensor, *, is_map: bool) -> Tensor:
    """Return the input of a product as ``[samples, channels]``."""
    if is_map:
        data = data.movedim(1, -1)
    return data.reshape(-1, data.shape[-1])


@contextmanager
def _computed(
    model: nn.Module, weights: Iterable[str], watching: _Watching, see: See
) -> Iterator[None]:
    """Pass on the inputs of layers that multiply by a weight computed from their own.

    Such as a standardised weight, which lies elsewhere in memory.
    """
    before: dict[str, int] = {}

    def entering(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Any, ...]) -> None:
            before[name] = watching.seen[name]

        return hook

    def leaving(name: str, *, is_map: bool) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
            if watching.seen[name] == before[name]:
                see(name, _rows(args[0], is_map=is_map))

        return hook

    handles = []
    for name in weights:
        layer = layer_of(name, model)
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and name.endswith("weight"):
            is_map = not isinstance(layer, nn.Linear)
            handles.append(layer.register_forward_pre_hook(entering(name)))
            handles.append(layer.register_forward_hook(leaving(name, is_map=is_map)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(
    model: nn.Module,
    weights: Iterable[str],
    batches: Iterable[Any],
    see: See,
    *,
    see_ids: See | None = None,
) -> None:
    """Run a network in evaluation mode, and pass the inputs of some of its weights to a function.

    Args:
        model: any network; it is left unchanged.
        weights: names of parameters.
        batches: inputs of the network.
        see: called with a weight's name and rows ``[samples, channels]``, once for each use in each
            batch. The rows are the positions of a convolution's input, or the tokens of sequences
            without padding (by their attention mask).
        see_ids: called likewise with the ids that an embedding looks up.
    """
    named = {name: model.get_parameter(name).detach() for name in weights}
    counted: list[Tensor | None] = [None]  # which tokens of the current batch are not padding

    def of_tokens(see: See) -> See:
        def see_tokens(name: str, rows: Tensor) -> None:
            tokens = counted[0]
            see(name, rows if tokens is None or len(tokens) != len(rows) else rows[tokens])

        return see_tokens

    see_tokens = of_tokens(see)
    watching = _Watching(named, see_tokens, None if see_ids is None else of_tokens(see_ids))
    hooks = _computed(model, named, watching, see_tokens)
    with evaluating(model), torch.no_grad(), hooks, watching:
        for x in batches:
            counted[0] = counted_rows(x)
            call(model, x)
