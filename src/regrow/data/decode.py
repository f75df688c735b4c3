"""Decode images to pixels, with Pillow and a pool of threads."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from regrow.data.base import Encoded
from regrow.errors import DataError

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBa", "La")
ORIENTATION = 274  # the EXIF tag for how to rotate or flip an image to make it upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
ADVICE = "Restore the file, or leave such images out: on_error: skip."
NUM_SAMPLES = 64  # images inspected to decide whether a data set is streamed
T = TypeVar("T")
# Pillow releases the GIL while it decodes and resizes, but not all of the time.
MOST_THREADS = 32
MOST_PIXELS = 89_478_485  # Pillow's limit against decompression bombs: 270 MB as RGB
MOST_SCALED_PIXELS = 2**24  # of one image: 67 MB in Pillow's memory, in each thread
RESIZE_IMAGES = 4096  # images resized at once: 50 MB at 64 px in float32


@dataclass(frozen=True, kw_only=True)
class Look:
    """The size and colour of some or all images of a data set."""

    sizes: tuple[tuple[int, int], ...]  # distinct (width, height), in order of appearance
    grey: bool


def look(source: Encoded) -> Look:
    """Return the sizes and colour of up to 64 images, from their headers."""
    return _look(source, source.sample(NUM_SAMPLES))


def look_at_all(source: Encoded) -> Look:
    """Return the sizes and colour of all images, from their headers."""
    return _look(source, enumerate(data for chunk in source.chunks() for data in chunk))


def _look(source: Encoded, images: Iterable[tuple[int, bytes]]) -> Look:
    sizes: dict[tuple[int, int], None] = {}
    grey = True
    for index, data in images:
        image = open_image(data, where=source.where(index))
        sizes[upright_size(image)] = None
        grey = grey and image.mode in GREY_MODES
    return Look(sizes=tuple(sizes), grey=grey)


def num_threads() -> int:
    """Return the number of decoding threads: one per core this process may use, at most 32.

    If several ranks were launched on this machine, each uses its share of the cores.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_THREADS, len(usable) // ranks))


def open_image(data: bytes, *, where: str) -> Image.Image:
    """Read an image's header; anything but an 8-bit image raises a ``DataError`` that names it."""
    if not data:
        raise DataError(f"{where}: the image cannot be read (the file is empty). {ADVICE}")
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's readers raise many types on damaged bytes
        raise _unreadable(where, error) from error
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            f"{where}: the image has {image.width}x{image.height} pixels, and at most "
            f"{MOST_PIXELS:,} are read. Make it smaller, or leave such images out: on_error: skip."
        )
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise DataError(
            f"{where}: expected an 8-bit image, got mode {image.mode!r} ({image.format}). "
            "Convert it to 8 bits a channel, or leave such images out: on_error: skip."
        )
    return image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation (1: upright) of an image that is opened but not yet decoded."""
    if "exif" not in image.info or image.format == "TIFF":  # Pillow rotates the latter itself
        return 1
    try:
        tag = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF: taken as upright, as image viewers do
        return 1
    return tag if tag in TURNS else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height, once upright, of an image that is opened but not yet decoded."""
    width, height = image.size
    return (height, width) if orientation(image) in SWAPPED else (width, height)


def to_pixels(image: Image.Image, *, where: str) -> NDArray[np.uint8]:
    """Decode an opened image: uint8 [H, W, 3]; transparency is dropped."""
    return np.asarray(to_rgb(image, where=where))


def to_rgb(image: Image.Image, *, where: str) -> Image.Image:
    """Decode an opened image to upright RGB; transparency is dropped.

    Damaged bytes raise a ``DataError`` that names the image. An animation gives its first frame.
    """
    turn = TURNS.get(orientation(image))
    try:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns when palette transparency is dropped
        rgb = image if image.mode == "RGB" and image.load() else image.convert("RGB")
    except Exception as error:  # see open_image
        raise _unreadable(where, error) from error
    return rgb if turn is None else rgb.transpose(turn)


def unreadable(source: Encoded) -> dict[int, str]:
    """Try to decode all images; return an error message for each that cannot be read, by index."""

    def problem(index: int, data: bytes) -> str | None:
        where = source.where(index)
        try:
            to_rgb(open_image(data, where=where), where=where)
        except DataError as error:
            return str(error)
        return None

    problems = enumerate(_in_threads(source, problem))
    return {index: message for index, message in problems if message is not None}


def fit(image: Image.Image, *, shorter: int, crop: int) -> Image.Image:
    """Resize so that the shorter side has ``shorter`` pixels, then crop the centre square."""
    image = _middle(image, shorter)
    width, height = image.size
    scale = shorter / min(width, height)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - crop) // 2, (size[1] - crop) // 2
    return image.crop((left, top, left + crop, top + crop)) if size != (crop, crop) else image


def fit_for_scoring(image: Image.Image, *, shorter: int, crop: int) -> Image.Image:
    """Resize and crop like ``fit``, to exactly the pixels of torchvision's transforms.

    Its ``Resize`` truncates the longer side, and its ``CenterCrop`` rounds the crop's offset.
    """
    image = _middle(image, shorter)
    width, height = image.size
    least = min(width, height)
    size = (int(shorter * width / least), int(shorter * height / least))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2) for side in size)
    return image.crop((left, top, left + crop, top + crop)) if size != (crop, crop) else image


def decode_all(source: Encoded, *, size: int | None) -> NDArray[np.uint8]:
    """Decode every image: uint8 [N, C, S, S], with one channel if all are grey.

    Without ``size``, images that are not all squares of one size raise a ``DataError``.
    """
    first = look(source).sizes[0]
    side = size or first[0]
    pixels = np.empty((len(source), 3, side, side), dtype=np.uint8)
    grey = np.zeros(len(source), dtype=np.bool_)

    def decode(index: int, data: bytes) -> None:
        where = source.where(index)
        image = open_image(data, where=where)
        grey[index] = image.mode in GREY_MODES
        if size is None:
            seen = upright_size(image)
            _check_size(seen, first=first, where=where, first_where=source.where(0))
            decoded = to_pixels(image, where=where)
        else:
            decoded = np.asarray(fit(to_rgb(image, where=where), shorter=size, crop=size))
        pixels[index] = decoded.transpose(2, 0, 1)

    for _ in _in_threads(source, decode):
        pass
    return np.ascontiguousarray(pixels[:, :1]) if grey.all() else pixels


def _in_threads(source: Encoded, act: Callable[[int, bytes], T]) -> Iterator[T]:
    """Call ``act`` on every image, one chunk per task of a thread pool; yield results in order."""

    def act_on(start: int, chunk: Sequence[bytes]) -> list[T]:
        return [act(index, data) for index, data in enumerate(chunk, start)]

    with ThreadPoolExecutor(num_threads()) as pool:
        waiting: deque[Future[list[T]]] = deque()
        start = 0
        try:
            for chunk in source.chunks():
                waiting.append(pool.submit(act_on, start, chunk))
                start += len(chunk)
                # Bounded, because the encoded images need not fit into memory at once.
                while len(waiting) > 2 * num_threads():
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _middle(image: Image.Image, shorter: int) -> Image.Image:
    """Crop an extremely long image to its middle, as resizing all of it would take gigabytes."""
    least, most = sorted(image.size)
    if most / least * shorter**2 <= MOST_SCALED_PIXELS:
        return image
    width, height = (min(side, 2 * least) for side in image.size)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


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
    # Pillow's message contains a memory address, which differs each time.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "its bytes are of no known image format" if unknown else error
    return DataError(
        f"{where}: the image cannot be read ({type(error).__name__}: {reason}). {ADVICE}"
    )
