"""Read detection data sets in the layout of PASCAL VOC.

The layout is Annotations/NAME.xml, ImageSets/Main/{train,val,trainval,test}.txt and
JPEGImages/NAME.jpg, in PATH or anywhere below it. Boxes are [x1, y1, x2, y2] in pixels from the
left and top edge. The annotations count pixels from 1 and include both ends: a box that covers a
4x3 image is written 1, 1, 4, 3 and read as 0, 0, 4, 3, and a box of a single column has the same
xmin and xmax. Labels count from 1; 0 is the background.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from regrow.core.bounds import read_whole
from regrow.core.seeds import seeded
from regrow.core.texts import quoted
from regrow.data.annotations import Annotation, read
from regrow.data.base import Boxes, Split
from regrow.data.boxed_images import BoxedImageFiles, Truth
from regrow.data.cache import data_root, digest
from regrow.data.folder import ImageFiles
from regrow.data.readable import left_out as word_left_out
from regrow.data.readable import without_unreadable
from regrow.data.spec import DataSpec, register_data
from regrow.errors import ConfigError, DataError, short

PREFIX = "voc:"
VERSION = 1  # raise it when the same spec and files give other images or boxes
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
SHOWN = 3  # classes, in a notice
LONGEST_NAME = 250  # bytes; with the suffix, file systems allow 255
# The list of one class has a flag after each name: present (1), absent (-1) or difficult (0).
FLAG = re.compile(r"\s+(-1|0|1)$")


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A folder in VOC's layout: the image names of each split, and the locations of the files."""

    root: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    images: Mapping[str, Path]  # by name
    notices: tuple[str, ...]

    def annotation(self, name: str) -> Path:
        return _annotation(self.root, name)

    def image(self, name: str) -> Path:
        """Return the path of the image, or the path where it is expected."""
        return self.images.get(name, self.root / "JPEGImages" / f"{name}.jpg")


def _identity(spec: DataSpec) -> str:
    """Return a digest of splits, annotations' bytes, image file sizes and options, not of paths."""
    layout = _find(spec)
    content = [
        [(name, _digest(layout.annotation(name)), _size(layout.images.get(name))) for name in names]
        for names in (layout.train, layout.test)
    ]
    known = ("on_error", "classes", "subset", "test_subset", "seed")
    options = {key: value for key, value in spec.to_json().items() if key in known}
    return digest(VERSION, PREFIX, content, options)


@register_data("voc:", identity=_identity)
def voc(spec: DataSpec) -> Boxes:
    """Read a folder in the layout of PASCAL VOC: images of any sizes, with boxes.

    If images of ``test`` are annotated, it is the test split, and ``trainval`` (or ``train`` and
    ``val``) is trained on. Otherwise ``train`` (or ``trainval`` without ``val``) is trained on and
    ``val`` is the test split. All files are checked.
    """
    layout = _find(spec)
    left_out: list[str] = []
    splits = {
        split: _sound(layout, names, spec, left_out)
        for split, names in (("train", layout.train), ("test", layout.test))
    }
    if not all(splits.values()):
        raise DataError(f"{spec.name}: no image of a split is left. {left_out[0]}")
    classes = _classes(spec, splits["train"], splits["test"])
    num = len(layout.train) + len(layout.test)
    messages = [f"{spec.name}: {word_left_out(left_out, num)}"] if left_out else []
    messages += _unasked(spec, splits["test"], classes)
    train, test = (
        BoxedImageFiles(
            files=ImageFiles(tuple(annotation.image for annotation in part)),
            sizes=tuple(annotation.size for annotation in part),
            truths=tuple(_truth(annotation, classes) for annotation in part),
            keep_bytes=spec.memory_limit_bytes / num,
        )
        for part in splits.values()
    )
    return Boxes(classes=classes, train=train, test=test, notices=(*layout.notices, *messages))


# Finding ------------------------------------------------------------------------------------------


def _find(spec: DataSpec) -> _Layout:
    base = Path(spec.location).expanduser().absolute()
    if not base.is_dir():
        raise DataError(f"{spec.name}: there is no folder {base}. Give the path of one.")
    roots = sorted(path.parent for path in [base / "Annotations", *base.rglob("Annotations")])
    roots = list(dict.fromkeys(r for r in roots if (r / "ImageSets" / "Main").is_dir()))
    if not roots or not (roots[0] / "JPEGImages").is_dir():
        raise DataError(
            f"{spec.name}: expected Annotations, ImageSets/Main and JPEGImages in {base} or below. "
            "Give the folder of a data set in the layout of PASCAL VOC."
        )
    if len(roots) > 1:
        raise DataError(
            f"{spec.name}: {base} holds {len(roots)} data sets: {', '.join(map(str, roots))}. "
            "Give the folder of one of them."
        )
    root = roots[0]
    lists = {n: _names(root, n) for n in ("train", "val", "trainval", "test")}
    notices: tuple[str, ...] = ()
    if lists["test"] and not any(_annotation(root, name).is_file() for name in lists["test"]):
        notices = (
            f"{spec.name}: the test list is left out, for none of its {len(lists['test'])} images "
            "is annotated. The validation list is tested on.",
        )
        lists["test"] = ()
    both = lists["trainval"] or tuple(dict.fromkeys(lists["train"] + lists["val"]))
    train, test = (both, lists["test"]) if lists["test"] else (lists["train"], lists["val"])
    if not train:
        held_out = {*test}
        train = tuple(name for name in lists["trainval"] if name not in held_out)
    if not train or not test:
        raise DataError(
            f"{root / 'ImageSets' / 'Main'}: expected lists of images to train on (trainval.txt or "
            f"train.txt) and to test on (test.txt or val.txt). Got "
            f"{', '.join(n + '.txt' for n, names in lists.items() if names) or 'none'}."
        )
    if shared := set(train) & set(test):
        raise DataError(
            f"{root / 'ImageSets' / 'Main'}: {len(shared)} images are in the training and in the "
            f"test list, among them {min(shared)!r}. Remove them from one of the lists."
        )
    return _Layout(
        root=root,
        train=_drawn(train, spec, "subset"),
        test=_drawn(test, spec, "test_subset"),
        images=_images(root, {*train, *test}),
        notices=notices,
    )


def _images(root: Path, names: set[str]) -> dict[str, Path]:
    """Find the image file of each name; two files for one name raise a ``DataError``."""
    by_stem: dict[str, Path] = {}
    for path in sorted((root / "JPEGImages").iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.stem not in names:
            continue
        if (first := by_stem.setdefault(path.stem, path)) != path:
            raise DataError(f"{path}: it has the same name as {first.name}. Remove one of them.")
    return by_stem


def _annotation(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _names(root: Path, split: str) -> tuple[str, ...]:
    """Read the image names of a split; none if it has no list."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        return ()
    try:
        lines = read_whole(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: the list is not in UTF-8 ({error.reason}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{file}: the list cannot be read ({error.strerror}).") from error
    names = [line.strip() for line in lines if line.strip()]
    if long := next((name for name in names if len(name.encode()) > LONGEST_NAME), None):
        raise DataError(f"{file}: no file can be called {short(long)}. Correct the list.")
    return tuple(
        dict.fromkeys(n if _annotation(root, n).is_file() else FLAG.sub("", n) for n in names)
    )


def _drawn(names: tuple[str, ...], spec: DataSpec, option: str) -> tuple[str, ...]:
    num: int | None = getattr(spec, option)
    if num is None:
        return names
    if num > len(names):
        raise ConfigError(
            f"{spec.name}: the {option!r} must be at most {len(names)}, all there are. Got {num}."
        )
    order = torch.randperm(len(names), generator=seeded(spec.seed, "detection", option))
    return tuple(names[i] for i in sorted(order[:num].tolist()))


def _digest(file: Path) -> str:
    return hashlib.sha256(read_whole(file)).hexdigest() if file.is_file() else "missing"


def _size(file: Path | None) -> int | None:
    return None if file is None or not file.exists() else file.stat().st_size


# Reading ------------------------------------------------------------------------------------------


def _sound(
    layout: _Layout, names: Sequence[str], spec: DataSpec, left_out: list[str]
) -> list[Annotation]:
    """Read a split's annotations; a broken one raises, or with ``skip`` adds to ``left_out``."""
    sound = []
    for name in names:
        try:
            sound.append(read(layout.annotation(name), layout.image(name), classes=spec.classes))
        except DataError as error:
            if spec.on_error == "stop":
                raise
            left_out.append(str(error))
    if not sound:
        return sound
    images = ImageFiles(tuple(annotation.image for annotation in sound))
    split = Split(images=images, labels=torch.arange(len(sound)))
    readable, problems = without_unreadable(split, root=data_root(spec))
    if problems and spec.on_error == "stop":
        raise DataError(next(iter(problems.values())))
    left_out += problems.values()
    return [sound[row] for row in readable.labels.tolist()]


def _classes(
    spec: DataSpec, train: Iterable[Annotation], test: Iterable[Annotation]
) -> tuple[str, ...]:
    seen = {item.name for annotation in train for item in annotation.objects}
    wanted = spec.classes or tuple(
        sorted(seen | {item.name for annotation in test for item in annotation.objects})
    )
    if missing := [name for name in wanted if name not in seen]:
        raise DataError(
            f"{spec.name}: no training image has a box of the class {missing[0]!r}. Raise "
            "'subset', or take the class out of the data set."
        )
    if not wanted:
        raise DataError(f"{spec.name}: no training image has a box. Annotate some.")
    return wanted


def _unasked(spec: DataSpec, test: Iterable[Annotation], classes: Sequence[str]) -> list[str]:
    """Return a notice if classes have no object that is scored; raise if none has."""
    asked = {o.name for annotation in test for o in annotation.objects if not o.difficult}
    if not asked:
        raise DataError(
            f"{spec.name}: no test image has a box, except around difficult objects, so every "
            "detector would score 0. Annotate some, or raise 'test_subset'."
        )
    missing = [name for name in classes if name not in asked]
    if not missing:
        return []
    return [
        f"{spec.name}: no test image has an object of {len(missing)} of the {len(classes)} classes "
        f"({quoted(missing, SHOWN)}), except difficult ones. They are not in the mean AP."
    ]


def _truth(annotation: Annotation, classes: Sequence[str]) -> Truth:
    objects = annotation.objects
    return Truth(
        boxes=torch.tensor([item.box for item in objects]).reshape(-1, 4),
        labels=torch.tensor([classes.index(item.name) + 1 for item in objects]).long(),
        difficult=torch.tensor([item.difficult for item in objects], dtype=torch.bool),
    )
