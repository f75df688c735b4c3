"""The images of one split: in memory as one tensor, or decoded from files while training runs.

Both kinds have the same interface. Training draws random numbers for a whole epoch, announces the
batches that it will need, and reads them::

    draws = images.draw(kind, generator)                       # int64 [N, ...]
    images.prefetch(later, later_draws, kind=kind)             # any number of batches ahead
    pixels = images.augmented(indices, draws[rows], kind=kind)  # uint8 [B, C, H, W]

For images in memory, ``prefetch`` does nothing and ``augmented`` equals
``augment(images.batch(indices), draws, kind=kind)``. Streamed images decode the announced batches
in a pool of threads. They crop for ``resized-crop-flip`` at the full size of the file, before
resizing. That size is known only once the image is opened, so the draw is a seed for each image.
Evaluation uses ``prefetch(indices)`` and ``batch(indices)``.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regrow.data.augment import augment, crop_boxes, draw, draw_crops
from regrow.data.decode import fit_for_scoring, num_threads, open_image, to_rgb
from regrow.data.named import NamedInputs

# The most announced batches that are kept; the oldest unread ones are dropped. 8 batches of 256
# images at 224 px are 300 MB.
BATCHES_AHEAD = 8


class Images(ABC):
    """Labelled images that are read in batches, by index."""

    def __init__(self, labels: Tensor) -> None:
        self._labels = labels

    @property
    def labels(self) -> Tensor:
        """The class of each image: int64 [N]."""
        return self._labels

    def __len__(self) -> int:
        """Count the images."""
        return len(self._labels)

    @abstractmethod
    def batch(self, indices: Tensor) -> Any:
        """Read images for evaluation: uint8 [B, C, H, W] for int64 indices [B]."""

    @abstractmethod
    def draw(self, kind: str, generator: torch.Generator) -> Tensor:
        """Draw the random numbers that ``augmented`` needs for an epoch: int64 [N, ...], on CPU."""

    @abstractmethod
    def augmented(self, indices: Tensor, draws: Tensor, *, kind: str) -> Tensor:
        """Read images for training, each augmented by its row of draws."""

    @abstractmethod
    def prefetch(self, indices: Tensor, draws: Tensor | None = None, *, kind: str = "none") -> None:
        """Announce a later call of ``augmented`` or (without draws) ``batch`` with these values."""


@final
class MemoryImages(Images):
    """Images in one uint8 tensor ``pixels`` [N, C, H, W], on any device.

    Also used for examples of other kinds: one tensor, or several by name.
    """

    def __init__(self, pixels: Tensor | NamedInputs, labels: Tensor) -> None:
        super().__init__(labels)
        self.pixels: Any = pixels
        self._copies: dict[torch.device, MemoryImages] = {}
        self._lock = Lock()

    def batch(self, indices: Tensor) -> Any:
        """Gather a copy of the images."""
        return self.pixels.index_select(0, indices)

    def draw(self, kind: str, generator: torch.Generator) -> Tensor:
        """Draw the random numbers that ``augment`` needs."""
        return draw(kind, len(self), size=self.pixels.shape[-1], generator=generator)

    def augmented(self, indices: Tensor, draws: Tensor, *, kind: str) -> Tensor:
        """Gather and augment."""
        return augment(self.batch(indices), draws, kind=kind)

    def prefetch(self, indices: Tensor, draws: Tensor | None = None, *, kind: str = "none") -> None:
        """Do nothing: the images are already in memory."""

    def to(self, device: torch.device | str) -> "MemoryImages":
        """Return the same images and labels on a device; all callers share one copy."""
        target = torch.empty(0, device=device).device  # "cuda" means the current one
        if target == self.pixels.device:
            return self
        with self._lock:
            if target not in self._copies:
                copy = MemoryImages(self.pixels.to(target), self._labels.to(target))
                if target.type == "cuda":
                    # The next caller may use another stream.
                    torch.cuda.synchronize(target)
                self._copies[target] = copy
            return self._copies[target]


_Key = tuple[bytes, bytes | None]
_Bytes = NDArray[np.uint8]  # [C, H, W]


class _DecodedBatch(NamedTuple):
    """A batch that is being decoded; it is ready when all its parts are."""

    pixels: Tensor
    parts: list[Future[None]]


@final
class StreamedImages(Images):
    """Images that are read and decoded by a pool of threads, batch by batch.

    ``read`` returns the encoded bytes of a row, ``where`` names it in errors, and ``rows`` are the
    rows of this split. Evaluation resizes the shorter side to ``shorter`` pixels, and crops the
    centre.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        where: Callable[[int], str],
        *,
        rows: Tensor,
        labels: Tensor,
        size: int,
        shorter: int,
        channels: int,
    ) -> None:
        super().__init__(labels)
        self._read = read
        self._where = where
        self._rows: list[int] = rows.tolist()
        self._size = size
        self._shorter = shorter
        self._channels = channels
        self._pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")
        self._announced: OrderedDict[_Key, _DecodedBatch] = OrderedDict()

    def batch(self, indices: Tensor) -> Tensor:
        """Return images for evaluation, decoded now or already announced."""
        return self._take(indices, None)

    def draw(self, kind: str, generator: torch.Generator) -> Tensor:
        """Draw the random numbers ``augment`` needs, or a seed for each image's resized crop."""
        if kind == "resized-crop-flip":
            return torch.randint(2**62, (len(self), 1), generator=generator)
        return draw(kind, len(self), size=self._size, generator=generator)

    def augmented(self, indices: Tensor, draws: Tensor, *, kind: str) -> Tensor:
        """Decode random resized crops, or decode as for evaluation and augment the batch."""
        if kind == "resized-crop-flip":
            return self._take(indices, draws)
        return augment(self.batch(indices), draws, kind=kind)

    def prefetch(self, indices: Tensor, draws: Tensor | None = None, *, kind: str = "none") -> None:
        """Start decoding a later batch."""
        seeds = draws if kind == "resized-crop-flip" else None
        key = _key(indices, seeds)
        if key in self._announced:
            return
        self._announced[key] = self._submit(indices, seeds)
        while len(self._announced) > BATCHES_AHEAD:
            for future in self._announced.popitem(last=False)[1].parts:
                future.cancel()

    def _take(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
        batch = self._announced.pop(_key(indices, seeds), None) or self._submit(indices, seeds)
        for part in batch.parts:
            part.result()
        return batch.pixels

    def _submit(self, indices: Tensor, seeds: Tensor | None) -> "_DecodedBatch":
        """Start decoding images, each into its place in one tensor."""
        rows = [self._rows[i] for i in indices.tolist()]
        image_seeds = [None] * len(rows) if seeds is None else seeds.flatten().tolist()
        shape = (len(rows), self._channels, self._size, self._size)
        # Pinned, so that the copy to a GPU is asynchronous.
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=_on_gpu())
        # As an array: in inference mode (scoring), other threads cannot write to its tensors.
        places = pixels.numpy()
        return _DecodedBatch(
            pixels,
            [
                self._pool.submit(self._decode, place, row, seed)
                for place, row, seed in zip(places, rows, image_seeds, strict=True)
            ],
        )

    def _decode(self, place: _Bytes, row: int, seed: int | None) -> None:
        place[:] = self._centre(row) if seed is None else self._crop(row, seed)

    def _centre(self, row: int) -> _Bytes:
        return self._bytes(
            fit_for_scoring(self._decoded(row), shorter=self._shorter, crop=self._size)
        )

    def _crop(self, row: int, seed: int) -> _Bytes:
        image = self._decoded(row)
        draws = draw_crops(1, torch.Generator().manual_seed(seed))
        x, y, width, height = crop_boxes(draws, *image.size)[0].tolist()
        image = image.resize(
            (self._size, self._size),
            Image.Resampling.BILINEAR,
            box=(x, y, x + width, y + height),
        )
        pixels = self._bytes(image)
        return pixels[:, :, ::-1] if draws[0, -1] < 0.5 else pixels

    def _decoded(self, row: int) -> Image.Image:
        where = self._where(row)
        return to_rgb(open_image(self._read(row), where=where), where=where)

    def _bytes(self, image: Image.Image) -> _Bytes:
        pixels = np.asarray(image).transpose(2, 0, 1)
        return pixels[: self._channels]  # of a grey image, red equals green and blue


def _on_gpu() -> bool:
    """Return whether this process uses a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _key(indices: Tensor, seeds: Tensor | None) -> _Key:
    return indices.numpy().tobytes(), None if seeds is None else seeds.numpy().tobytes()
