"""Leave out images that cannot be read (``on_error: skip``)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regrow.data.base import Encoded, Split
from regrow.data.cache import digest, remembered
from regrow.data.decode import unreadable
from regrow.errors import DataError

SHOWN = 3  # of the images left out, in a notice


@dataclass(frozen=True)
class ChosenImages:
    """Some rows of encoded images, in their order."""

    source: Encoded
    rows: tuple[int, ...]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.rows)

    def where(self, index: int) -> str:
        """Name an image as its source does."""
        return self.source.where(self.rows[index])

    def identity(self) -> str:
        """Return a digest of the source and the rows."""
        return digest(self.source.identity(), self.rows)

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read the chosen images of the source's sample, or the first chosen ones if none."""
        places = {row: index for index, row in enumerate(self.rows)}
        images = [(places[row], data) for row, data in self.source.sample(num) if row in places]
        return images or list(enumerate(next(self.chunks())))[:num]

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all chosen images in order."""
        rows, start = set(self.rows), 0
        for chunk in self.source.chunks():
            images = [data for row, data in enumerate(chunk, start) if row in rows]
            start += len(chunk)
            if images:
                yield images

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a function that reads one chosen image from the source."""
        read = self.source.reader(cache)
        return lambda index: read(self.rows[index])


def without_unreadable(part: Split, *, root: Path) -> tuple[Split, dict[int, str]]:
    """Return the split without unreadable images, and the error of each row left out.

    For this, every image is decoded once; the result is cached at ``root``.
    """
    source = part.images
    if isinstance(source, Tensor):
        return part, {}

    def find() -> list[tuple[int, str]]:
        # Without the location, which differs for another copy of the same images.
        return [(i, m.removeprefix(source.where(i))) for i, m in unreadable(source).items()]

    messages: list[tuple[int, str]] = remembered(
        root / "unreadable" / f"{source.identity()}.json", find
    )
    if not messages:
        return part, {}
    problems = {index: f"{source.where(index)}{message}" for index, message in messages}
    rows = tuple(row for row in range(len(source)) if row not in problems)
    if not rows:
        raise DataError(f"{source.where(0)}: no image of its split can be read. Restore the files.")
    readable = Split(images=ChosenImages(source, rows), labels=part.labels[torch.tensor(rows)])
    return readable, problems


def left_out(messages: Sequence[str], num: int) -> str:
    """Write the notice about left-out images: their number, and why the first few are left out.

    >>> left_out(["a.png: it is damaged. Restore it.", "b.png: it is damaged. Restore it."], 9)
    '2 of 9 images are left out. a.png: it is damaged. b.png: it is damaged.'
    """
    reasons = " ".join(f"{message.rpartition('. ')[0]}." for message in messages[:SHOWN])
    more = f" And {len(messages) - SHOWN} more." if len(messages) > SHOWN else ""
    return f"{len(messages)} of {num} images are left out. {reasons}{more}"
