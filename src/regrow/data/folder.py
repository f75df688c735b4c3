"""Images in folders named after their classes (torchvision's ImageFolder layout)."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from regrow.core.bounds import read_whole
from regrow.data.base import Raw, Split
from regrow.data.cache import digest
from regrow.data.decode import ADVICE
from regrow.data.files import files_below, folders_in, in_words, is_junk
from regrow.data.spec import DataSpec, register_data
from regrow.data.splits import split_called, split_within
from regrow.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {
        *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tif", ".tiff", ".webp"),
    }
)
READING_ORDER = ("train", "test", "validation")
SHOWN = 5  # names, in a message
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
        return in_words(self.paths[index])

    def identity(self) -> str:
        """Return a digest of paths, sizes and modification times."""
        return digest([(str(path), *_stat(path)) for path in self.paths])

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read evenly spaced files, to cover many classes."""
        num = min(num, len(self))
        indices = (n * len(self) // num for n in range(num))
        return [(index, self._read_or_nothing(index)) for index in indices]

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all files in order; a file that cannot be read gives b""."""
        for start in range(0, len(self), CHUNK_IMAGES):
            stop = min(start + CHUNK_IMAGES, len(self))
            yield [self._read_or_nothing(index) for index in range(start, stop)]

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a function that reads one file; it does not use the cache."""
        return self._read

    def _read(self, index: int) -> bytes:
        try:
            return read_whole(self.paths[index])
        except OSError as error:
            raise DataError(
                f"{self.where(index)}: the image cannot be read ({error.strerror}). {ADVICE}"
            ) from error

    def _read_or_nothing(self, index: int) -> bytes:
        try:
            return read_whole(self.paths[index])
        except OSError:
            return b""


@dataclass(frozen=True)
class _Half:
    """One folder of class folders."""

    root: Path
    files: dict[str, tuple[Path, ...]]  # class name -> image files, both sorted


@dataclass(frozen=True)
class _SplitFolders:
    """The folder of each split, and notices about what was not read."""

    halves: dict[str, _Half]
    notices: tuple[str, ...]


def _content(spec: DataSpec) -> str:
    """Return a digest of the images' relative paths and sizes; reading them all would be slow."""
    base = _base(spec)
    return digest(
        [
            [(str(path.relative_to(base)), _stat(path)[0]) for path in paths]
            for half in _find(spec).halves.values()
            for paths in half.files.values()
        ]
    )


@register_data("folder:", content=_content)
def folder(spec: DataSpec) -> Raw:
    """Read PATH/train/CLASS/* and PATH/test/CLASS/*, images at any depth below their class.

    The folders may also be called training and testing, in upper or lower case, and a validation
    split val, validation, valid, eval or dev. Without a test split, the validation split is used
    for testing; with one, it is used for validation, unless a validation share is given. With
    PATH/CLASS/* alone, or neither split, a fifth of the images is drawn for testing.
    """
    folders = _find(spec)
    train = folders.halves["train"]
    for half in folders.halves.values():
        _check_classes(train, half)
    splits = {split: _split(half) for split, half in folders.halves.items()}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    return Raw(
        classes=tuple(train.files),
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        notices=tuple(f"Data set {spec.name!r}: {notice}" for notice in folders.notices),
    )


def _base(spec: DataSpec) -> Path:
    base = Path(spec.location).expanduser().absolute()
    if not base.is_dir():
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {base}. Give the folder that holds "
            "train/CLASS/* and test/CLASS/*, or CLASS/*."
        )
    return base


def _find(spec: DataSpec) -> _SplitFolders:
    """Find the class folders of each split, with notices about what is not read."""
    base = _base(spec)
    folders = folders_in(base)
    splits = _splits(spec, base, folders)
    if not splits:
        return _half_alone(base, folders)
    notices = []
    halves = {}
    for split in READING_ORDER:
        if split not in splits:
            continue
        if split != "train" and not folders_in(splits[split]):
            notices.append(
                f"The {split} split is left out: {splits[split]} holds no class folders, so "
                "its images have no labels."
            )
            continue
        halves[split], ignored = _half(splits[split])
        notices += ignored
    if "test" not in halves and "test" in splits and "validation" in halves:
        notices.append("The validation split is used for testing.")
    ignored_folders = [path.name for path in folders if path not in splits.values()]
    if ignored_folders:
        notices.append(
            "These folders are not read, because their names match no split: "
            f"{_shown(ignored_folders)}."
        )
    return _SplitFolders(halves, tuple(notices))


def _splits(spec: DataSpec, base: Path, folders: list[Path]) -> dict[str, Path]:
    """Return the folder of each split; none if all folders are classes.

    A folder called train that contains class folders is a split, so the others named like splits
    are too. Without one, folders are splits if every name contains a split's (training_set).
    """
    by_name = {path: split_called(path.name) for path in folders}
    by_folder = {path: split for path, split in by_name.items() if split and folders_in(path)}
    if "train" in by_folder.values():
        # Then a folder named like a split that holds images directly is a split without labels.
        by_folder = {path: split for path, split in by_name.items() if split}
    else:
        words = {path: named.split for path in folders if (named := split_within(path.name))}
        distinct = len(set(words.values())) == len(words) == len(folders)
        if distinct and "train" in words.values():
            if not all(split != "train" or folders_in(path) for path, split in words.items()):
                raise DataError(
                    f"Data set {spec.name!r}: the folders in {base} are named like splits "
                    f"({_shown([path.name for path in folders])}), and the one to train on holds "
                    "no class folders. Expected train/CLASS/* and test/CLASS/*, or CLASS/*."
                )
            by_folder = words
    if by_folder and "train" not in by_folder.values():
        name = next(iter(by_folder)).name
        raise DataError(
            f"Data set {spec.name!r}: {base} has a folder {name!r} but no 'train'. "
            "Expected train/CLASS/* and test/CLASS/*, or CLASS/*."
        )
    splits: dict[str, Path] = {}
    for path, split in by_folder.items():
        if (first := splits.setdefault(split, path)) != path:
            raise DataError(
                f"Data set {spec.name!r}: {base} has two folders for the {split} split, "
                f"{first.name!r} and {path.name!r}. Move one of them elsewhere."
            )
    return splits


def _half_alone(base: Path, folders: list[Path]) -> _SplitFolders:
    """Read a folder whose folders are all classes; some may be named like a split."""
    _check_unlike_splits(base, folders)
    split_names = [path.name for path in folders if split_called(path.name)]
    if len(split_names) > 1 and "train" in map(split_called, split_names):
        raise DataError(
            f"{base}: {_shown(split_names)} are named like splits, but hold images instead of "
            "class folders. Expected train/CLASS/* and test/CLASS/*, or CLASS/*."
        )
    half, notices = _half(base)
    if split_names:
        notices.append(
            f"{_shown(split_names)} holds images and no class folders, like the other folders, so "
            "it is read as a class."
        )
    return _SplitFolders({"train": half}, tuple(notices))


def _check_unlike_splits(base: Path, folders: list[Path]) -> None:
    """Refuse folders such as train2014, train2017 and val2017 that hold the same class folders."""
    named = [path for path in folders if split_within(path.name) is not None]
    inner = [{inside.name for inside in folders_in(path)} for path in named]
    if len(named) > 1 and all(len(names) > 1 and names == inner[0] for names in inner):
        raise DataError(
            f"{base}: {_shown([path.name for path in named])} are named like splits and hold the "
            "same folders, so they are no classes. Call the one to train on train and the one to "
            "test on test, and move others elsewhere."
        )


def _half(root: Path) -> tuple[_Half, list[str]]:
    """Read the class folders of a split; return them with notices about what was not read."""
    folders = folders_in(root)
    if len(folders) < 2:
        inner = [path for path in folders if any(split_called(p.name) for p in folders_in(path))]
        hint = (
            f"Its folder {inner[0].name!r} has folders of splits: give the path of that folder."
            if inner
            else "Put each class's images into a folder of its name."
        )
        raise DataError(
            f"{root}: expected a folder for each of at least 2 classes, got {len(folders)}. {hint}"
        )
    files: dict[str, tuple[Path, ...]] = {}
    loose = [path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    ignored: list[Path] = []
    for path in folders:
        below = files_below(path)
        images = tuple(file for file in below if file.suffix.lower() in IMAGE_SUFFIXES)
        ignored += [file for file in below if file.suffix.lower() not in IMAGE_SUFFIXES]
        if not images:
            raise DataError(
                f"{path}: the class has no image (looked for files ending in "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}). Add its images, or remove the folder."
            )
        # Unicode has two encodings of accented letters; archives from macOS use the other one.
        name = unicodedata.normalize("NFC", in_words(path.name))
        if name in files:
            raise DataError(f"{path}: a second folder of the class {name!r}. Put both into one.")
        files[name] = images
    notices = []
    if loose := [path for path in loose if path.is_file() and not is_junk(path.name)]:
        notices.append(f"{root}: {len(loose)} images outside the class folders are not read.")
    if ignored:
        kinds = Counter(file.suffix.lower() or "no ending" for file in ignored)
        counts = [f"{kind} ({num})" for kind, num in sorted(kinds.items())]
        notices.append(f"{root}: files without an image's suffix are not read: {_shown(counts)}.")
    return _Half(root=root, files=dict(sorted(files.items()))), notices


def _stat(path: Path) -> tuple[int, int]:
    """Return size and modification time; -1 each for a broken link, which fails when it is read."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _shown(names: list[str]) -> str:
    return in_words(f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}")


def _check_classes(train: _Half, second: _Half) -> None:
    unmatched = sorted(set(train.files) ^ set(second.files))
    if unmatched:
        raise DataError(
            f"The classes differ: {train.root} has {len(train.files)}, {second.root} has "
            f"{len(second.files)}; only one of them has {', '.join(map(repr, unmatched[:5]))}. "
            "Give both the same class folders."
        )


def _split(half: _Half) -> Split:
    counts = torch.tensor([len(paths) for paths in half.files.values()])
    return Split(
        images=ImageFiles(tuple(path for paths in half.files.values() for path in paths)),
        labels=torch.arange(len(counts)).repeat_interleave(counts),
    )
