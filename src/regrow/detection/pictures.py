"""Pictures of different shapes with boxes: kept in memory, or decoded ahead of their use."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regrow.data.decode import num_threads, open_image, to_rgb
from regrow.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What stands on a picture.

    ``boxes``: float32 [n, 4], x1, y1, x2, y2 in its pixels. ``labels``: int64 [n], from 1.
    ``difficult``: bool [n]; trained on, but neither asked for nor punished in a test.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor

    def flipped(self, width: int) -> "Truth":
        """Return the same on the picture's mirror image."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        return Truth(boxes=boxes, labels=self.labels, difficult=self.difficult)


class Pictures:
    """Image files, resized to ``sizes`` (width, height), and what stands on them.

    ``files`` is empty for pictures that come from none.
    """

    def __init__(
        self,
        files: Sequence[Path],
        truths: Sequence[Truth],
        *,
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        self.files = list(files)
        self.truths = list(truths)
        self.sizes = list(sizes)
        self._kept: list[Tensor] | None = None
        self._announced: dict[int, Future[Tensor]] = {}
        self._pool = ThreadPoolExecutor(num_threads(), thread_name_prefix="decode")

    @classmethod
    def drawn(cls, images: Sequence[Tensor], truths: Sequence[Truth]) -> "Pictures":
        """Take pictures that are there: uint8 [3, height, width]."""
        made = cls([], truths, sizes=[(image.shape[2], image.shape[1]) for image in images])
        made._kept = list(images)
        return made

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.truths)

    def pixels(self, index: int) -> Tensor:
        """Return a picture: uint8 [3, height, width]; an unreadable one is a ``DataError``."""
        if self._kept is not None:
            return self._kept[index]
        future = self._announced.pop(index, None)
        return self._decode(index) if future is None else future.result()

    def announce(self, indices: Iterable[int]) -> None:
        """Begin to decode what will be asked for soon; nothing to do for pictures in memory."""
        if self._kept is None:
            for index in indices:
                if index not in self._announced:
                    self._announced[index] = self._pool.submit(self._decode, index)

    def decode(self, *, skip: bool) -> list[str]:
        """Decode all pictures and keep them.

        One that is unreadable is a ``DataError``, or (``skip``) is left out; returns the messages.
        """
        futures = [self._pool.submit(self._decode, index) for index in range(len(self))]
        kept: dict[int, Tensor] = {}
        messages = []
        for index, future in enumerate(futures):
            try:
                kept[index] = future.result()
            except DataError as error:
                if not skip:
                    for later in futures:
                        later.cancel()
                    raise
                messages.append(str(error))
        self._keep_only(list(kept))
        self._kept = list(kept.values())
        return messages

    def drop_unreadable(self) -> list[str]:
        """Decode all pictures once, keep none, leave out what is unreadable; return messages."""
        problems = list(self._pool.map(self._problem, range(len(self))))
        self._keep_only([index for index, problem in enumerate(problems) if problem is None])
        return [problem for problem in problems if problem is not None]

    def _problem(self, index: int) -> str | None:
        try:
            self._decode(index)
        except DataError as error:
            return str(error)
        return None

    def _keep_only(self, indices: list[int]) -> None:
        self.files = [self.files[i] for i in indices]
        self.truths = [self.truths[i] for i in indices]
        self.sizes = [self.sizes[i] for i in indices]

    def _decode(self, index: int) -> Tensor:
        file = self.files[index]
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(
                f"{file}: the image cannot be read ({error.strerror}). Restore the file."
            ) from error
        image = to_rgb(open_image(data, where=str(file)), where=str(file))
        if image.size != self.sizes[index]:
            image = image.resize(self.sizes[index], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def fitted(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Scale (width, height) to the short side, unless the long side becomes too long.

    >>> fitted((500, 375), 600, 1000), fitted((500, 200), 600, 1000)
    ((800, 600), (1000, 400))
    """
    scale = min(short_side / min(size), long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
