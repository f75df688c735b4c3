"""Images of different sizes with boxes: kept in memory, or decoded before they are needed."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regrow.data.decode import num_threads, open_image, to_rgb
from regrow.data.folder import ImageFiles

Size = tuple[int, int]  # width, height


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The objects on an image.

    ``boxes``: float32 [n, 4], x1, y1, x2, y2 in its pixels. ``labels``: int64 [n], from 1.
    ``difficult``: bool [n]; such objects are trained on, but ignored in evaluation.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def flipped(self, width: int) -> "Truth":
        """Return the objects of the image flipped left to right."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        return Truth(boxes=boxes, labels=self.labels, difficult=self.difficult)

    def resized(self, before: Size, after: Size) -> "Truth":
        """Return the objects of the image at another size."""
        scale = torch.tensor([after[0] / before[0], after[1] / before[1]]).repeat(2)
        return Truth(boxes=self.boxes * scale, labels=self.labels, difficult=self.difficult)


class BoxedImages:
    """Images and their ``truths``; ``read`` returns one image: uint8 [3, height, width].

    If ``kept``, all images are read at once and stay in memory.
    """

    def __init__(
        self, read: Callable[[int], Tensor], truths: Sequence[Truth], *, kept: bool
    ) -> None:
        self.truths = tuple(truths)
        self._read = read
        self._announced: dict[int, Future[Tensor]] = {}
        self._pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")
        self._kept = list(self._pool.map(read, range(len(truths)))) if kept else None

    def __len__(self) -> int:
        """Count the images."""
        return len(self.truths)

    def pixels(self, index: int) -> Tensor:
        """Return an image: uint8 [3, height, width]; an unreadable one raises a ``DataError``."""
        if self._kept is not None:
            return self._kept[index]
        future = self._announced.pop(index, None)
        return self._read(index) if future is None else future.result()

    def announce(self, indices: Iterable[int]) -> None:
        """Start decoding images that are needed soon; does nothing for images in memory."""
        if self._kept is None:
            for index in indices:
                if index not in self._announced:
                    self._announced[index] = self._pool.submit(self._read, index)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxedImageFiles:
    """Image files of any sizes, and the objects on each.

    ``keep_bytes``: images stay in memory if they take at most this many bytes each, on average.
    """

    files: ImageFiles
    sizes: tuple[Size, ...]
    truths: tuple[Truth, ...]
    keep_bytes: float

    def __len__(self) -> int:
        """Count the images."""
        return len(self.truths)

    def fitted(self, short_side: int, long_side: int) -> BoxedImages:
        """Return the images scaled so that their sides fit."""
        sizes = [fitted(size, short_side, long_side) for size in self.sizes]
        together = zip(self.truths, self.sizes, sizes, strict=True)
        num_bytes = sum(3 * width * height for width, height in sizes)
        return BoxedImages(
            lambda index: decoded_image(self.files, index, sizes[index]),
            [truth.resized(before, after) for truth, before, after in together],
            kept=num_bytes <= self.keep_bytes * len(self),
        )


def decoded_image(files: ImageFiles, index: int, size: Size) -> Tensor:
    """Decode a file at a size: uint8 [3, height, width]; a ``DataError`` if it is unreadable."""
    where = files.where(index)
    image = to_rgb(open_image(files.reader(Path())(index), where=where), where=where)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def fitted(size: Size, short_side: int, long_side: int) -> Size:
    """Scale (width, height) to the short side, unless the long side becomes too long.

    >>> fitted((500, 375), 600, 1000), fitted((500, 200), 600, 1000)
    ((800, 600), (1000, 400))
    """
    scale = min(short_side / min(size), long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
