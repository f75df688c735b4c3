"""The memory layout of training: channels-last where a network's code allows it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regrow.core.global_rng import drawing

IMAGES = 2  # the fewest that a batch norm can train on
REFUSAL = (
    "view size is not compatible"  # in PyTorch's error for a view that the layout does not allow
)
NOTICE = (
    "It is trained in PyTorch's default memory layout rather than in channels-last, because its "
    "code calls view() on a map. With flatten(1) or reshape() instead, a step may take less time."
)


def lay_out_(model: nn.Module, example_shapes: Mapping[nn.Module, Sequence[int]]) -> bool:
    """Convert a network to channels-last if its code allows it; return whether it does.

    ``example_shapes``: the shape of an image, without the batch, for the network or each part.
    """
    model.to(memory_format=torch.channels_last)
    if all(takes_channels_last(part, image) for part, image in example_shapes.items()):
        return True
    for parameter in model.parameters():
        # Cloned, because PyTorch may keep channels-last strides for a 1x1 kernel.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return False


def takes_channels_last(model: nn.Module, image: Sequence[int]) -> bool:
    """Return whether a network, in its present layout, accepts images in channels-last.

    By trying it; the network and the default random generators are left unchanged.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.zeros(IMAGES, *image, device=device).contiguous(memory_format=torch.channels_last)
    with drawing(0, device=device), torch.no_grad(), unchanged(list(model.buffers())):
        try:
            model(x)
        except Exception as error:
            # Any other error is not about the layout: the first step will raise it again.
            return REFUSAL not in str(error)
    return True


@contextmanager
def unchanged(tensors: list[Tensor]) -> Iterator[None]:
    """Restore the values of tensors at the end, in place."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
