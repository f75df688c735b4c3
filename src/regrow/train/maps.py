"""Feature maps in memory as the compiled kernels take them: a pixel's channels are adjacent."""

import threading
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_memory = threading.local()  # scratch memory of the kernels, one per thread


@dataclass(frozen=True)
class Map:
    """A range of channels of a map ``[images, height, width, all channels]``."""

    data: Tensor  # owns the memory
    size: tuple[int, int, int]  # images, height, width
    channels: int
    between: int  # distance from pixel to pixel, in channels
    first: int = 0

    @staticmethod
    def of(x: Tensor) -> "Map":
        """Return a tensor ``[images, channels, height, width]`` in channels-last as a map."""
        images, channels, height, width = x.shape
        return Map(x, (images, height, width), channels, channels)

    @staticmethod
    def empty(
        size: tuple[int, int, int], channels: int, dtype: torch.dtype = torch.float32
    ) -> "Map":
        """Return an uninitialised map, with room for a vector of channels at its end."""
        from regrow.models.vectors import LANES

        images, height, width = size
        memory = torch.empty(images * height * width * channels + LANES, dtype=dtype)
        return Map(memory, size, channels, channels)

    @staticmethod
    def copied(x: Tensor) -> "Map":
        """Return a copy of a tensor, with room for a vector of channels at its end."""
        images, channels, height, width = x.shape
        found = Map.empty((images, height, width), channels, x.dtype)
        found.tensor().copy_(x)
        return found

    def tensor(self) -> Tensor:
        """Return the map as ``[images, channels, height, width]``, in the same memory.

        To autograd it is not a view: only changes of this tensor itself are counted.
        """
        images, height, width = self.size
        row, image = width * self.between, height * width * self.between
        shape, strides = (images, self.channels, height, width), (image, 1, row, self.between)
        found = torch.empty(0, dtype=self.data.dtype)
        return found.set_(self.data.untyped_storage(), self.first, shape, strides)

    def part(self, first: int, channels: int) -> "Map":
        """Return the map of ``channels`` channels from ``first`` on."""
        return replace(self, first=self.first + first, channels=channels)

    @property
    def address(self) -> int:
        """Return the memory address of the first number."""
        return self.data.data_ptr() + self.data.element_size() * self.first

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Return images, height, width, channels, and the distance from pixel to pixel."""
        return *self.size, self.channels, self.between

    @property
    def pixels(self) -> int:
        """Count the pixels of all images."""
        images, height, width = self.size
        return images * height * width

    @property
    def rows(self) -> tuple[int, int, int]:
        """Return pixels, channels, and the distance from pixel to pixel."""
        return self.pixels, self.channels, self.between


def room(num: int) -> Tensor:
    """Return scratch memory for ``num`` numbers, reused from call to call."""
    found: Tensor | None = getattr(_memory, "room", None)
    if found is None or len(found) < num:
        found = _memory.room = torch.zeros(num)  # kernels compute on unused last rows too
    return found
