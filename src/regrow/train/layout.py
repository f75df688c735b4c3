"""The memory layout of training: channels-last where a network's code allows it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regrow.core.global_rng import drawing

IMAGES = 2  # a batch norm learns from no fewer
REFUSAL = (
    "view size is not compatible"  # what PyTorch says of a view that the layout does not allow
)
NOTICE = (
    "It is trained in PyTorch's default memory layout rather than in channels-last, because its "
    "code calls view() on a map. With flatten(1) or reshape() instead, a step may take less time."
)


def lay_out_(model: nn.Module, example_shapes: Mapping[nn.Module, Sequence[int]]) -> bool:
    """Lay a network out in channels-last, if its code allows that; tell whether it does.

    ``shown``: the shape of an image, without the batch, for the network or each of its parts.
    """
    model.to(memory_format=torch.channels_last)
    if all(takes_channels_last(part, image) for part, image in example_shapes.items()):
        return True
    for parameter in model.parameters():
        # Copied, because of a 1x1 kernel PyTorch may keep strides that mean channels-last.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return False


def takes_channels_last(model: nn.Module, image: Sequence[int]) -> bool:
    """Tell whether a network, laid out as it is, computes on images in channels-last.

    By letting it. It stays as it is, and so do the default random generators.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.zeros(IMAGES, *image, device=device).contiguous(memory_format=torch.channels_last)
    with drawing(0, device=device), torch.no_grad(), unchanged(list(model.buffers())):
        try:
            model(x)
        except Exception as error:
            # Any other error is not the layout's: the first step will run into it, and tell.
            return REFUSAL not in str(error)
    return True


@contextmanager
def unchanged(tensors: list[Tensor]) -> Iterator[None]:
    """Give tensors their values back at the end, in place."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
