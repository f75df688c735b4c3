"""From encoded bytes to pixels, with Pillow and a pool of threads."""

import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regrow.data.base import Encoded
from regrow.errors import DataError

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBa", "La")
NUM_SAMPLES = 64  # images looked at before deciding how to hold a data set
# Pillow lets other threads run while it decodes and scales, but not all of the time.
MOST_THREADS = 32
RESIZE_IMAGES = 4096  # images resized at once: 50 MB at 64 px in float32


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a sample of a data set's images looks like."""

    sizes: tuple[tuple[int, int], ...]  # distinct (width, height), first seen first
    grey: bool


def look(source: Encoded) -> Look:
    """Read the headers of some images."""
    sizes: dict[tuple[int, int], None] = {}
    grey = True
    for index, data in source.sample(NUM_SAMPLES):
        image = open_image(data, where=source.where(index))
        sizes[image.size] = None
        grey = grey and image.mode in GREY_MODES
    return Look(sizes=tuple(sizes), grey=grey)


def num_threads() -> int:
    """Return how many threads decode: one for each core this process may use, at most 32.

    Where several ranks were launched on this machine, each takes its share of the cores.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_THREADS, len(usable) // ranks))


def open_image(data: bytes, *, where: str) -> Image.Image:
    """Read an image's header; what is no 8-bit image is a ``DataError`` that names it."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's readers raise many types on damaged bytes
        raise _unreadable(where, error) from error
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise DataError(
            f"{where}: expected an 8-bit image, got mode {image.mode!r} ({image.format}). "
            "Convert it to 8 bits a channel."
        )
    return image


def to_pixels(image: Image.Image, *, where: str) -> NDArray[np.uint8]:
    """Decode an opened image: uint8 [H, W, 3]; transparency is dropped."""
    return np.asarray(to_rgb(image, where=where))


def to_rgb(image: Image.Image, *, where: str) -> Image.Image:
    """Decode an opened image to RGB; damaged bytes are a ``DataError`` that names the image."""
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns when palette transparency is dropped
        return image if image.mode == "RGB" and image.load() else image.convert("RGB")
    except Exception as error:  # see open_image
        raise _unreadable(where, error) from error


def fit(image: Image.Image, *, shorter: int, crop: int) -> Image.Image:
    """Resize so that the shorter side has ``shorter`` pixels, then crop the centre square."""
    width, height = image.size
    scale = shorter / min(width, height)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return image.crop((left, top, left + crop, top + crop)) if size != (crop, crop) else image


def fit_for_scoring(image: Image.Image, *, shorter: int, crop: int) -> Image.Image:
    """Do the same by the very pixels of torchvision's ``Resize`` and ``CenterCrop``.

    They cut the longer side's fraction off, and round the place of the crop.
    """
    width, height = image.size
    least = min(width, height)
    size = (int(shorter * width / least), int(shorter * height / least))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in size)
    return image.crop((left, top, left + crop, top + crop)) if size != (crop, crop) else image


def decode_all(source: Encoded, *, size: int | None) -> NDArray[np.uint8]:
    """Decode every image once: uint8 [N, C, S, S], with one channel if all are grey.

    Without ``size`` all images must be squares of one size; else that is a ``DataError``.
    """
    first = look(source).sizes[0]
    side = size or first[0]
    pixels = np.empty((len(source), 3, side, side), dtype=np.uint8)
    grey = np.zeros(len(source), dtype=np.bool_)

    def decode_chunk(start: int, chunk: Sequence[bytes]) -> None:
        for index, data in enumerate(chunk, start):
            where = source.where(index)
            image = open_image(data, where=where)
            grey[index] = image.mode in GREY_MODES
            if size is None:
                _check_size(image.size, first=first, where=where, first_where=source.where(0))
                decoded = to_pixels(image, where=where)
            else:
                decoded = np.asarray(fit(to_rgb(image, where=where), shorter=size, crop=size))
            pixels[index] = decoded.transpose(2, 0, 1)

    with ThreadPoolExecutor(num_threads()) as pool:
        waiting: deque[Future[None]] = deque()
        start = 0
        try:
            for chunk in source.chunks():
                waiting.append(pool.submit(decode_chunk, start, chunk))
                start += len(chunk)
                # Bounded, because the encoded images need not fit into memory at once.
                while len(waiting) > 2 * num_threads():
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    return np.ascontiguousarray(pixels[:, :1]) if grey.all() else pixels


def resize_all(pixels: Tensor, *, size: int) -> Tensor:
    """Resize decoded images [N, C, H, W] so that the shorter side fits, then crop the centre."""
    height, width = pixels.shape[2:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    if (height, width) == (size, size):
        return pixels
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    parts = []
    for start in range(0, len(pixels), RESIZE_IMAGES):
        part = pixels[start : start + RESIZE_IMAGES].float()
        scaled = F.interpolate(part, shape, mode="bilinear", antialias=True)
        cropped = scaled[:, :, top : top + size, left : left + size]
        parts.append(cropped.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _check_size(
    size: tuple[int, int], *, first: tuple[int, int], where: str, first_where: str
) -> None:
    if size != first:
        raise DataError(
            f"The images are not of one size: {first[0]}x{first[1]} in {first_where}, "
            f"{size[0]}x{size[1]} in {where}. Give `size`, e.g. size: {min(first)}."
        )
    if size[0] != size[1]:
        raise DataError(
            f"{where}: the images must be square, got {size[0]}x{size[1]}. "
            f"Give `size`, e.g. size: {min(size)}, which crops the centre."
        )


def _unreadable(where: str, error: Exception) -> DataError:
    return DataError(
        f"{where}: the image cannot be read ({type(error).__name__}: {error}). "
        "Restore the file, or remove the image."
    )
