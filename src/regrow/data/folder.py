"""Images in folders named after their classes (torchvision's ImageFolder layout)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from regrow.data.base import Raw, Split, register_data
from regrow.data.cache import digest
from regrow.data.spec import DataSpec
from regrow.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
TEST_FOLDERS = ("test", "val", "validation", "valid")
CHUNK_IMAGES = 256


@dataclass(frozen=True)
class ImageFiles:
    """Image files, in the order of their labels."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def where(self, index: int) -> str:
        """Name an image by its file."""
        return str(self.paths[index])

    def identity(self) -> str:
        """Digest paths, sizes and times of change."""
        stats = ((str(path), path.stat()) for path in self.paths)
        return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read evenly spaced files, so from many classes."""
        num = min(num, len(self))
        return [(index, self._read(index)) for index in (n * len(self) // num for n in range(num))]

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all files in order."""
        for start in range(0, len(self), CHUNK_IMAGES):
            stop = min(start + CHUNK_IMAGES, len(self))
            yield [self._read(index) for index in range(start, stop)]

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return the reading of one file; nothing needs to be cached."""
        return self._read

    def _read(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.paths[index]}: the image cannot be read ({error.strerror}). "
                "Restore the file, or remove the image."
            ) from error


@dataclass(frozen=True)
class _Half:
    """One folder of class folders."""

    root: Path
    files: dict[str, tuple[Path, ...]]  # class name -> image files, both sorted


def _content(spec: DataSpec) -> str:
    """Digest the relative paths and sizes of all images; reading them all would not be cheap."""
    base = _base(spec)
    return digest(
        [
            [(str(path.relative_to(base)), path.stat().st_size) for path in paths]
            for half in _halves(spec)
            for paths in half.files.values()
        ]
    )


@register_data("folder:", content=_content)
def folder(spec: DataSpec) -> Raw:
    """Read PATH/train/CLASS/* and PATH/test/CLASS/*, images at any depth below their class.

    The test folder may also be called val, validation or valid (looked for in this order); a
    second one of them is the validation split, used unless a validation share is asked for. With
    PATH/CLASS/* alone, or no test folder, a fifth of the images is drawn for testing.
    """
    train, *others = _halves(spec)
    for other in others:
        _check_classes(train, other)
    splits = [_split(half) for half in (train, *others)]
    return Raw(
        classes=tuple(train.files),
        train=splits[0],
        test=splits[1] if len(splits) > 1 else None,
        validation=splits[2] if len(splits) > 2 else None,
    )


def _base(spec: DataSpec) -> Path:
    base = Path(spec.location).expanduser().absolute()
    if not base.is_dir():
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {base}. Give the folder that holds "
            "train/CLASS/* and test/CLASS/*, or CLASS/*."
        )
    return base


def _halves(spec: DataSpec) -> list[_Half]:
    """Find the folders of classes: training, then testing and validation where there are any."""
    base = _base(spec)
    tests = [base / name for name in TEST_FOLDERS if _subfolders(base / name)]
    if (base / "train").is_dir():
        return [_half(path) for path in (base / "train", *tests[:2])]
    if tests:
        raise DataError(
            f"Data set {spec.name!r}: {base} has a folder {tests[0].name!r} but no 'train'. "
            "Expected train/CLASS/* and test/CLASS/*, or CLASS/*."
        )
    return [_half(base)]


def _half(root: Path) -> _Half:
    folders = _subfolders(root)
    if len(folders) < 2:
        raise DataError(
            f"{root}: expected a folder for each of at least 2 classes, got {len(folders)}. "
            "Put each class's images into a folder of its name."
        )
    files = {path.name: _images(path) for path in folders}
    for name, paths in files.items():
        if not paths:
            raise DataError(
                f"{root / name}: the class has no image (looked for files ending in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}). Add its images, or remove the folder."
            )
    return _Half(root=root, files=files)


def _subfolders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(root: Path) -> tuple[Path, ...]:
    return tuple(
        sorted(
            path
            for path in root.rglob("*")
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        )
    )


def _check_classes(train: _Half, other: _Half) -> None:
    unmatched = sorted(set(train.files) ^ set(other.files))
    if unmatched:
        raise DataError(
            f"The classes differ: {train.root} has {len(train.files)}, {other.root} has "
            f"{len(other.files)}; only one of them has {', '.join(map(repr, unmatched[:5]))}. "
            "Give both the same class folders."
        )


def _split(half: _Half) -> Split:
    counts = torch.tensor([len(paths) for paths in half.files.values()])
    return Split(
        images=ImageFiles(tuple(path for paths in half.files.values() for path in paths)),
        labels=torch.arange(len(counts)).repeat_interleave(counts),
    )
