"""Masked weights, followed through their views and copies.

Views are found by their memory: a parameter's memory has a map of what is kept, and any tensor in
that memory reads the map with its own shape and strides. Tensors computed from parameters alone are
followed through operations that keep zeros in place, or move them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regrow.cost.operations import Product, memory_of, name_of, tensors_in

# A zero in the first argument gives a zero at the same position; in products, one in any argument.
_KEEP_ZEROS = ("clone", "_to_copy", "copy", "neg", "abs", "div", "relu", "tanh", "contiguous")
_PRODUCTS = ("mul", "_weight_norm_interface")
# Numbers are only moved, so these operations can be run on the maps themselves.
_MOVES = ("cat", "stack", "index_select", "repeat", "flip", "roll")


class MaskFollower:
    """Masked weights, followed from operation to operation."""

    def __init__(self, model: nn.Module, kept_weights: Mapping[str, Tensor]) -> None:
        self._maps: dict[
            int, Tensor | None
        ] = {}  # memory -> what is kept; None: not known any more
        # Memory whose content does not depend on the input, kept alive so that it is not reused.
        self._constant: dict[int, Tensor] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.layout is torch.strided:
                self._constant[memory_of(tensor)] = tensor
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.removed = 0  # weights of the network that are held at zero
        for name, stays in kept_weights.items():
            self._enter(parameters[name], stays)
            self.removed += stays.numel() - int(stays.sum())

    def macs(self, product: Product) -> tuple[int, bool]:
        """Return the multiply-accumulates with kept weights, and whether that number is exact."""
        maps = [(x, self._map(x)) for x in product.operands if memory_of(x) in self._maps]
        if not maps:
            return product.macs, True
        (operand, stays), *further = maps
        if stays is None or further or not operand.numel():
            return product.macs, False
        return product.macs // operand.numel() * int(stays.sum()), True

    def follow(self, operation: Any, arguments: Sequence[Any], result: Any) -> None:
        """Record the memory of an operation's result, and which of its numbers are held at zero."""
        sources = [memory_of(x) for x in tensors_in(arguments)]
        constant = all(memory in self._constant for memory in sources)
        for out in tensors_in([result]):
            memory = memory_of(out)
            if not constant:
                self._constant.pop(memory, None)
                self._maps.pop(memory, None)
                continue
            has_masked = any(source in self._maps for source in sources)
            if memory not in sources:
                self._constant[memory] = out
                if has_masked:
                    self._enter(out, self._kept(operation, arguments, out))
            elif has_masked and operation._schema.is_mutable:
                self._enter(out, self._kept(operation, arguments, out))

    def _kept(self, operation: Any, arguments: Sequence[Any], out: Tensor) -> Tensor | None:
        name = name_of(operation)
        if name in _MOVES:
            known_maps = [self._map(x) for x in tensors_in(arguments) if memory_of(x) in self._maps]
            if any(stays is None for stays in known_maps):
                return None
            moved: Tensor = operation(*self._as_maps(arguments))
            return moved
        operands = list(tensors_in(arguments))
        if name == "copy":
            operands = operands[1:]
        if name not in _PRODUCTS:
            operands = operands[:1] if name in _KEEP_ZEROS else []
        maps = [self._map(x) for x in operands if memory_of(x) in self._maps]
        if not maps or any(stays is None for stays in maps):
            return None
        combined = torch.ones(out.shape, dtype=torch.bool)
        for stays in maps:
            assert stays is not None
            sides = zip(reversed(stays.shape), reversed(out.shape), strict=False)
            if stays.dim() > out.dim() or any(side not in (1, whole) for side, whole in sides):
                return None
            combined &= stays
        return combined

    def _as_maps(self, argument: Any) -> Any:
        """Replace float tensors by maps of what is kept of them; indices stay."""
        if isinstance(argument, Tensor) and argument.is_floating_point():
            stays = self._map(argument)
            return torch.ones(argument.shape, dtype=torch.bool) if stays is None else stays
        if isinstance(argument, list | tuple):
            return [self._as_maps(x) for x in argument]
        return argument

    def _enter(self, tensor: Tensor, stays: Tensor | None) -> None:
        memory = memory_of(tensor)
        if stays is None:
            self._maps[memory] = None
            return
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = self._maps.setdefault(memory, torch.ones(size, dtype=torch.bool))
        if whole is not None and len(whole) == size:
            _seen_by(tensor, whole).copy_(stays)
        else:
            self._maps[memory] = None

    def _map(self, tensor: Tensor) -> Tensor | None:
        """Return which of a tensor's numbers are kept; None if that is not known."""
        whole = self._maps.get(memory_of(tensor))
        if whole is None:
            return None
        if len(whole) * tensor.element_size() != tensor.untyped_storage().nbytes():
            return None  # a view with another type
        return _seen_by(tensor, whole)


def _seen_by(tensor: Tensor, whole: Tensor) -> Tensor:
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
