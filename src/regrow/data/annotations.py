"""Read and check one annotation file in the PASCAL VOC format: an image's objects and boxes."""

import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from regrow.core.bounds import read_whole
from regrow.data.decode import open_image, orientation
from regrow.errors import DataError, short, unknown

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Object:
    """An object and its box: x1, y1, x2, y2 in pixels, where an image spans 0 to its width."""

    name: str
    box: Corners
    difficult: bool


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A checked annotation file and the path of its image."""

    file: Path
    image: Path
    size: tuple[int, int]  # width, height
    objects: tuple[Object, ...]


def read(file: Path, image: Path, *, classes: tuple[str, ...] | None) -> Annotation:
    """Read and check an annotation file; any fault raises a ``DataError`` that names the file."""
    try:
        root = ElementTree.fromstring(read_whole(file))
    except OSError as error:
        raise _broken(file, f"the annotation cannot be read ({error.strerror})") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also unknown encodings
        raise _broken(file, f"the annotation is not valid XML, best in UTF-8 ({error})") from error
    if not image.is_file():
        raise _broken(file, f"expected its image {image}, got none")
    width, height = (_number(root, f"size/{side}", file) for side in ("width", "height"))
    if width < 1 or height < 1:
        raise _broken(file, f"the size of the image is unknown (got {width:g}x{height:g})")
    size = _image_size(image)
    if size[0] != width or size[1] != height:
        raise _broken(
            file,
            f"it gives the size {width:g}x{height:g}, its image has {size[0]}x{size[1]} ({image})",
        )
    objects = tuple(
        _object(element, number, size, file)
        for number, element in enumerate(root.findall("object"), 1)
    )
    for item in objects:
        if classes is not None and item.name not in classes:
            raise _broken(file, unknown("class", item.name, classes).rstrip("."))
    return Annotation(file=file, image=image, size=size, objects=objects)


def _object(element: ElementTree.Element, number: int, size: tuple[int, int], file: Path) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise _broken(file, f"object {number} has no name")
    if (num := len(element.findall("bndbox"))) != 1:
        raise _broken(file, f"object {number} ({name}) must have one box, got {num}")
    sides = ("xmin", "ymin", "xmax", "ymax")
    x1, y1, x2, y2 = (_number(element, f"bndbox/{side}", file) for side in sides)
    if problem := _problem((x1, y1, x2, y2), size):
        got = f"{x1:g}, {y1:g}, {x2:g}, {y2:g}"
        raise _broken(file, f"the box of object {number} ({name}) {problem} (got {got})")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult.lower() not in ("0", "1", "false"):
        got = short(difficult)
        raise _broken(file, f"expected <difficult> of object {number} as 0 or 1, got {got}")
    # Clamped at 0, because tools that count pixels from 0 write such boxes; these lose a row.
    return Object(
        name=name, box=(max(x1 - 1, 0), max(y1 - 1, 0), x2, y2), difficult=difficult == "1"
    )


def _problem(corners: Corners, size: tuple[int, int]) -> str | None:
    """Return why corners (pixels from 1, both ends included) are not a valid box, or None."""
    x1, y1, x2, y2 = corners
    if x1 > x2 or y1 > y2:
        return "ends before it begins"
    if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1]:
        return f"leaves the image of {size[0]}x{size[1]}"
    if x2 == 0 or y2 == 0:
        return "has no area: it ends at 0, and pixels are counted from 1"
    if x2 <= 1 and y2 <= 1 and corners != (1, 1, 1, 1):
        return "is given in shares of the image, not in pixels"
    # A single row of pixels is a box, as both ends are included; a point comes from a stray click.
    return "has no area: it is one point" if (x1, y1) == (x2, y2) else None


def _number(element: ElementTree.Element, path: str, file: Path) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _broken(file, f"expected a number in <{path}>, got {text!r}")
    return value


def _image_size(image: Path) -> tuple[int, int]:
    where = str(image)
    try:
        opened = open_image(read_whole(image), where=where)
    except OSError as error:
        raise DataError(
            f"{where}: the image cannot be read ({error.strerror}). Restore the file."
        ) from error
    if orientation(opened) != 1:
        raise DataError(
            f"{where}: by its EXIF the image is stored rotated or mirrored; its boxes may or may "
            "not be. Save it upright and check them, or leave such images out: on_error: skip."
        )
    return opened.size


def _broken(file: Path, problem: str) -> DataError:
    return DataError(
        f"{file}: {problem}. Correct the file, or leave such images out: on_error: skip."
    )
