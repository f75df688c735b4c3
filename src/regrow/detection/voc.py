"""Any folder in the layout of PASCAL VOC: annotations checked, splits found, content identified.

    data = load(DetectionSpec("voc:VOCdevkit/VOC2007"), short_side=600, long_side=1000)
    pixels, truth = data.train.pixels(0), data.train.truths[0]

The layout is Annotations/NAME.xml, ImageSets/Main/{train,val,trainval,test}.txt and
JPEGImages/NAME.jpg, in PATH or anywhere below it. Boxes are in pixels from the left and the top
edge, [x1, y1, x2, y2]; the annotations count pixels from 1 and include both ends, so a box over all
of a 4x3 image is written 1, 1, 4, 3 and read 0, 0, 4, 3, and one of a single column has the same
left and right end. Labels count from 1; 0 is the background.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from regrow.core.seeds import seeded
from regrow.data.cache import digest
from regrow.data.readable import left_out as word_left_out
from regrow.data.shapes import CLASSES
from regrow.detection import shapes
from regrow.detection.annotations import Annotation, read
from regrow.detection.pictures import Pictures, Truth, fitted
from regrow.detection.spec import PREFIX, SHAPES, DetectionSpec
from regrow.errors import ConfigError, DataError

VERSION = 1  # raise it when the same spec and files come to mean other images or boxes
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
# A list of one class says beside each name whether the class is there: 1, not (-1), or hardly (0).
FLAG = re.compile(r"\s+(-1|0|1)$")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionData:
    """The pictures of a spec: ``classes[i]`` has the label i + 1; ``notices`` are for people."""

    spec: DetectionSpec
    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    num_left_out: int
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A folder in VOC's layout: the names of each split, and where the files are."""

    root: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    images: Mapping[str, Path]  # by name
    notices: tuple[str, ...]

    def annotation(self, name: str) -> Path:
        return _annotation(self.root, name)

    def image(self, name: str) -> Path:
        """Return where it is, or where it is expected."""
        return self.images.get(name, self.root / "JPEGImages" / f"{name}.jpg")


def load(spec: DetectionSpec, *, short_side: int, long_side: int) -> DetectionData:
    """Read and check all annotations, and resize the images.

    Trained on is ``trainval``, or ``train`` (and ``val``) where there is none; tested on is
    ``test``, or else, and where no image of ``test`` is annotated, ``val``. Images are scaled so
    that their short side has ``short_side`` pixels, but the long one at most ``long_side``.

    Raises:
        DataError: names the file that is missing or broken.
    """
    if spec.name == SHAPES:
        train, test = (shapes.draw(spec, s, (short_side, long_side)) for s in ("train", "test"))
        return DetectionData(
            spec=spec, train=train, test=test, classes=CLASSES, num_left_out=0, notices=()
        )
    layout = _find(spec)
    found: dict[str, dict[str, Annotation]] = {"train": {}, "test": {}}
    left_out: list[str] = []
    for split, names in (("train", layout.train), ("test", layout.test)):
        for name in names:
            try:
                found[split][name] = read(
                    layout.annotation(name), layout.image(name), classes=spec.classes
                )
            except DataError as error:
                if spec.on_error == "stop":
                    raise
                left_out.append(str(error))
    if not all(found.values()):
        raise DataError(f"{spec.name}: no image of a split is left. {left_out[0]}")
    classes = _classes(spec, found["train"].values(), found["test"].values())
    sides = (short_side, long_side)
    num_bytes = sum(
        3 * width * height
        for part in found.values()
        for width, height in (fitted(a.size, *sides) for a in part.values())
    )
    pictures = {
        split: _pictures(
            part, classes, sides, spec=spec, in_memory=num_bytes <= spec.memory_limit_bytes
        )
        for split, part in found.items()
    }
    left_out += [message for _, messages in pictures.values() for message in messages]
    num = len(layout.train) + len(layout.test)
    said = (f"{spec.name}: {word_left_out(left_out, num)}",) if left_out else ()
    return DetectionData(
        spec=spec,
        train=pictures["train"][0],
        test=pictures["test"][0],
        classes=classes,
        num_left_out=len(left_out),
        notices=(*layout.notices, *said),
    )


def loaded(spec: DetectionSpec, short_side: int, long_side: int) -> DetectionData:
    """Return what ``load`` gives, loaded once in each process; the last two stay in memory."""
    with _LOADING:
        return _load(spec, short_side, long_side)


_LOADING = Lock()


@lru_cache(maxsize=2)
def _load(spec: DetectionSpec, short_side: int, long_side: int) -> DetectionData:
    return load(spec, short_side=short_side, long_side=long_side)


def fingerprint(spec: DetectionSpec) -> str:
    """Return the identity of what ``load`` would give: 32 hexadecimal digits, free of the path.

    From the splits, the bytes of the annotations, the sizes of the image files, and the options.
    """
    if spec.name == SHAPES:
        return shapes.content(spec)
    layout = _find(spec)
    content = [
        [(name, _digest(layout.annotation(name)), _size(layout.images.get(name))) for name in names]
        for names in (layout.train, layout.test)
    ]
    options = {k: v for k, v in spec.to_json().items() if k not in ("name", "memory_limit_bytes")}
    return digest(VERSION, PREFIX, content, options)


# Finding ------------------------------------------------------------------------------------------


def _find(spec: DetectionSpec) -> _Layout:
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
    if not train or not test:
        raise DataError(
            f"{root / 'ImageSets' / 'Main'}: expected lists of images to train on (trainval.txt or "
            f"train.txt) and to test on (test.txt or val.txt). Got "
            f"{', '.join(n + '.txt' for n, names in lists.items() if names) or 'none'}."
        )
    if shared := set(train) & set(test):
        raise DataError(
            f"{root / 'ImageSets' / 'Main'}: {len(shared)} images are in the training and in the "
            f"test list, among them {min(shared)!r}. Take them out of one."
        )
    return _Layout(
        root=root,
        train=_drawn(train, spec, "subset"),
        test=_drawn(test, spec, "test_subset"),
        images=_images(root, {*train, *test}),
        notices=notices,
    )


def _images(root: Path, names: set[str]) -> dict[str, Path]:
    """Find the images of names, each in one file."""
    found: dict[str, Path] = {}
    for path in sorted((root / "JPEGImages").iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.stem not in names:
            continue
        if (other := found.setdefault(path.stem, path)) != path:
            raise DataError(f"{path}: a second image of the name of {other.name}. Remove one.")
    return found


def _annotation(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _names(root: Path, split: str) -> tuple[str, ...]:
    """Read the names of a split; none where it has no file."""
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        return ()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: the list is not in UTF-8 ({error.reason}). Save it so."
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    return tuple(
        dict.fromkeys(n if _annotation(root, n).is_file() else FLAG.sub("", n) for n in names)
    )


def _drawn(names: tuple[str, ...], spec: DetectionSpec, option: str) -> tuple[str, ...]:
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
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def _size(file: Path | None) -> int | None:
    return None if file is None or not file.exists() else file.stat().st_size


# Reading ------------------------------------------------------------------------------------------


def _classes(
    spec: DetectionSpec, train: Iterable[Annotation], test: Iterable[Annotation]
) -> tuple[str, ...]:
    seen = {one.name for annotation in train for one in annotation.objects}
    wanted = spec.classes or tuple(
        sorted(seen | {one.name for annotation in test for one in annotation.objects})
    )
    if missing := [name for name in wanted if name not in seen]:
        raise DataError(
            f"{spec.name}: no training image has a box of the class {missing[0]!r}. Raise "
            "'subset', or take the class out of the data set."
        )
    if not wanted:
        raise DataError(f"{spec.name}: no training image has a box. Annotate some.")
    return wanted


def _pictures(
    annotations: Mapping[str, Annotation],
    classes: tuple[str, ...],
    sides: tuple[int, int],
    *,
    spec: DetectionSpec,
    in_memory: bool,
) -> tuple[Pictures, list[str]]:
    chosen = list(annotations.values())
    pictures = Pictures(
        [a.image for a in chosen],
        [_truth(a, classes, sides) for a in chosen],
        sizes=[fitted(a.size, *sides) for a in chosen],
    )
    skip = spec.on_error == "skip"
    messages: list[str] = []
    if in_memory:
        messages = pictures.decode(skip=skip)
    elif skip:  # now, for a training cannot leave a picture out half-way
        messages = pictures.drop_unreadable()
    if not len(pictures):
        raise DataError(f"{spec.name}: no image of a split is left. Correct the annotations.")
    return pictures, messages


def _truth(annotation: Annotation, classes: Sequence[str], sides: tuple[int, int]) -> Truth:
    width, height = fitted(annotation.size, *sides)
    scale = torch.tensor([width / annotation.size[0], height / annotation.size[1]]).repeat(2)
    boxes = torch.tensor([one.box for one in annotation.objects]).reshape(-1, 4)
    return Truth(
        boxes=boxes * scale,
        labels=torch.tensor([classes.index(o.name) + 1 for o in annotation.objects]).long(),
        difficult=_flags([one.difficult for one in annotation.objects]),
    )


def _flags(values: list[bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)
