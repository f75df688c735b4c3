"""The images of one split: in memory as one tensor, or decoded from files while training runs.

Both kinds answer alike. A training announces what it will ask for, and asks::

    images.prefetch(later, seed=later_seed, kind=kind)      # any number of batches ahead
    pixels = images.augmented(indices, seed=seed, kind=kind)  # uint8 [B, C, H, W]

For images in memory, ``prefetch`` has nothing to do and ``augmented`` equals
``augment(images.batch(indices), torch.Generator().manual_seed(seed), kind=kind)``. Streamed images
decode the announced batches in a pool of threads, and cut a ``resized-crop-flip`` out of the image
as it is in its file, before it is scaled down. Evaluation uses ``prefetch(indices)`` and
``batch(indices)``.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regrow.data.augment import augment, crop_boxes, draw_crops
from regrow.data.decode import fit, num_threads, open_image, to_rgb

# The ImageNet test transform: shorter side 256 for a crop of 224.
TEST_RESIZE = 256 / 224
# Announced batches that are kept; older ones that nobody asked for are dropped. 8 batches of 256
# images at 224 px are 300 MB.
BATCHES_AHEAD = 8


class Images(ABC):
    """Labelled images that are read by batches of indices."""

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """The class of each image: int64 [N]."""

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Tensor:
        """Read images as they are evaluated: uint8 [B, C, H, W] for int64 indices [B]."""

    @abstractmethod
    def augmented(self, indices: Tensor, *, seed: int, kind: str) -> Tensor:
        """Read images as they are trained on: augmented by one seed for the whole batch."""

    @abstractmethod
    def prefetch(self, indices: Tensor, *, seed: int = 0, kind: str = "none") -> None:
        """Announce a later ``augmented`` of the same arguments, or ``batch`` if none are given."""


@final
class MemoryImages(Images):
    """Images in one uint8 tensor ``pixels`` [N, C, H, W], on whichever device that is."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels
        self._labels = labels

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [N]."""
        return self._labels

    def __len__(self) -> int:
        """Count the images."""
        return len(self._labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Gather a copy of the images."""
        return self.pixels.index_select(0, indices)

    def augmented(self, indices: Tensor, *, seed: int, kind: str) -> Tensor:
        """Gather and augment."""
        return augment(self.batch(indices), torch.Generator().manual_seed(seed), kind=kind)

    def prefetch(self, indices: Tensor, *, seed: int = 0, kind: str = "none") -> None:
        """Do nothing: the images are here already."""

    def to(self, device: torch.device | str) -> "MemoryImages":
        """Return the same images and labels on a device."""
        return MemoryImages(self.pixels.to(device), self._labels.to(device))


_Key = tuple[bytes, int | None]


@final
class StreamedImages(Images):
    """Images that are read and decoded by a pool of threads, batch by batch.

    ``read`` returns the encoded bytes of a row and ``where`` names it in errors; ``rows`` are those
    of this split. Evaluation resizes the shorter side to 256/224 of ``size`` (but enlarges no
    image beyond ``size``) and crops the centre.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        where: Callable[[int], str],
        *,
        rows: Tensor,
        labels: Tensor,
        size: int,
        channels: int,
    ) -> None:
        self._read = read
        self._where = where
        self._rows: list[int] = rows.tolist()
        self._labels = labels
        self._size = size
        self._channels = channels
        self._pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")
        self._announced: OrderedDict[_Key, list[Future[Tensor]]] = OrderedDict()

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [N]."""
        return self._labels

    def __len__(self) -> int:
        """Count the images."""
        return len(self._labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Decode images as they are evaluated, or take them as announced."""
        return self._take(indices, None)

    def augmented(self, indices: Tensor, *, seed: int, kind: str) -> Tensor:
        """Decode random resized crops, or decode as for evaluation and augment the batch."""
        if kind == "resized-crop-flip":
            return self._take(indices, seed)
        return augment(self.batch(indices), torch.Generator().manual_seed(seed), kind=kind)

    def prefetch(self, indices: Tensor, *, seed: int = 0, kind: str = "none") -> None:
        """Begin to decode a later batch."""
        crop_seed = seed if kind == "resized-crop-flip" else None
        key = _key(indices, crop_seed)
        if key in self._announced:
            return
        self._announced[key] = self._submit(indices, crop_seed)
        while len(self._announced) > BATCHES_AHEAD:
            for future in self._announced.popitem(last=False)[1]:
                future.cancel()

    def _take(self, indices: Tensor, crop_seed: int | None) -> Tensor:
        futures = self._announced.pop(_key(indices, crop_seed), None)
        if futures is None:
            futures = self._submit(indices, crop_seed)
        return torch.stack([future.result() for future in futures])

    def _submit(self, indices: Tensor, crop_seed: int | None) -> list[Future[Tensor]]:
        positions = indices.tolist()
        if crop_seed is None:
            return [self._pool.submit(self._centre, self._rows[i]) for i in positions]
        draws = draw_crops(len(positions), torch.Generator().manual_seed(crop_seed))
        return [
            self._pool.submit(self._crop, self._rows[i], draws[n]) for n, i in enumerate(positions)
        ]

    def _centre(self, row: int) -> Tensor:
        image = self._decoded(row)
        shorter = min(round(self._size * TEST_RESIZE), max(self._size, min(image.size)))
        return self._tensor(fit(image, shorter=shorter, crop=self._size))

    def _crop(self, row: int, draws: Tensor) -> Tensor:
        image = self._decoded(row)
        x, y, width, height = crop_boxes(draws[None], *image.size)[0].tolist()
        image = image.resize(
            (self._size, self._size),
            Image.Resampling.BILINEAR,
            box=(x, y, x + width, y + height),
        )
        pixels = self._tensor(image)
        return pixels.flip(2) if draws[-1] < 0.5 else pixels

    def _decoded(self, row: int) -> Image.Image:
        where = self._where(row)
        return to_rgb(open_image(self._read(row), where=where), where=where)

    def _tensor(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())
        return pixels[: self._channels]  # of a grey image, red equals green and blue


def _key(indices: Tensor, crop_seed: int | None) -> _Key:
    return indices.numpy().tobytes(), crop_seed
