"""The peak memory of a forward pass: the bytes of all tensors that are alive at once."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.cost.operations import tensors_in
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.tape import call, evaluating


def peak_bytes(network: nn.Module, inputs: Any) -> int:
    """Return the largest number of bytes that weights, inputs and activations take at once.

    Memory that operations use internally is not seen.
    """
    watch = _Alive()
    for tensor in (*network.parameters(), *network.buffers(), *tree_leaves(inputs)):
        if isinstance(tensor, Tensor):
            watch.enter(tensor)
    with evaluating(network), torch.no_grad(), watch:
        call(network, inputs)
    return watch.most


class _Alive(OperationMode):
    """Counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: set[int] = set()

    def enter(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._known:
            return
        self._known.add(place)
        size = storage.nbytes()
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._leave, place, size)

    def _leave(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        for tensor in tensors_in([result]):
            self.enter(tensor)
        return result
