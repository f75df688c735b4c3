"""Load data sets, ready for training, and compute the fingerprint of their content."""

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from regrow.data.arrays import load_arrays
from regrow.data.augment import scaling
from regrow.data.base import Arrays, Boxes, Encoded, Normalisation, Raw, Split
from regrow.data.cache import altered_entries, data_root, decoded, digest, remembered
from regrow.data.copies import copies
from regrow.data.decode import Look, decode_all, look, look_at_all, resize_all
from regrow.data.held_out import hold_out
from regrow.data.images import Images, MemoryImages, StreamedImages
from regrow.data.normalisation import IMAGENET, computed, recognised
from regrow.data.readable import left_out as word_left_out
from regrow.data.readable import without_unreadable
from regrow.data.spec import DATASETS, IMAGE_TASK, DataSpec
from regrow.errors import ConfigError, DataError, unknown

# The ImageNet test transform: shorter side 256 for a crop of 224.
TEST_RESIZE = 256 / 224
VERSION = 1  # raise it when the same spec and files give other images
DECODED_VERSION = 2  # of decoded copies; 2: images are rotated upright
BOX_TASK = "detection"
BOXED_SIZE = 64  # of the images that a network is traced with


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The loaded, split examples of a spec, with the facts that training needs.

    Images are [channels, size, size]; ``mean`` and ``std`` are for pixels in [0, 1]. Other examples
    are inputs and targets ready for a network: ``mean`` and ``std`` (flattened) are those by which
    the inputs were standardised, ``target_mean`` and ``target_std`` those of the targets;
    ``vocabulary`` is the number of different tokens, if inputs are tokens; ``inputs`` describes an
    example of tokens or of several inputs, as text. Splits of images with boxes are ``Boxed``, and
    ``size`` is that of an image to trace a network with. ``augmentation`` is the kind that a recipe
    uses by default, ``task`` the name of the learning task, ``notices`` messages for the user.
    """

    spec: DataSpec
    train: Images
    validation: Images | None
    test: Images
    classes: tuple[str, ...]
    augmentation: str
    channels: int = 0
    size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    task: str = IMAGE_TASK
    vocabulary: int | None = None
    inputs: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def has_boxes(self) -> bool:
        """True if examples are images of any size with boxes; a detector scales them."""
        return not isinstance(self.train, Images)

    @property
    def of_images(self) -> bool:
        """True if examples are images; they are augmented and normalised when they are read."""
        return self.channels > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input of a network."""
        if self.of_images:
            return (self.channels, self.size, self.size)
        assert isinstance(self.train, MemoryImages)
        return tuple(self.train.pixels.shape[1:])


@dataclass(frozen=True, kw_only=True)
class _ReadyImages:
    """The images of a data set: their shape, and a function that selects rows of a split."""

    take: Callable[[Split, Tensor], Images]
    channels: int
    size: int
    streamed: bool


def load(spec: DataSpec) -> Dataset:
    """Read, check, split and decode a data set.

    Drawn in this order, each from a random stream of ``spec.seed``: the test split (a fifth, if
    none is published), the subset of the rest, the validation share of the subset. Decoded images
    are cached in the data folder. Missing, damaged or mislabelled data raises a ``DataError``, an
    option that does not fit the data a ``ConfigError``.
    """
    with altered_entries() as altered:
        dataset = _load(spec)
    return replace(dataset, notices=(*dataset.notices, *altered)) if altered else dataset


def _load(spec: DataSpec) -> Dataset:
    raw = DATASETS.get(spec.name).read(spec)
    if isinstance(raw, Arrays):
        return Dataset(**load_arrays(raw, spec))
    if isinstance(raw, Boxes):
        return _boxed(raw, spec)
    _check_of_images(spec)
    _check(raw, spec)
    left_out: list[str] = []
    if spec.on_error == "skip":
        raw, left_out = _readable(raw, spec)
        _check(raw, spec)
    splits = _splits(raw)
    rows = hold_out({n: part.labels for n, part in splits.items()}, raw.classes, spec)
    ready = _hold_streamed(raw, spec) or _hold_in_memory(raw, spec)
    train = ready.take(raw.train, rows.train)

    def take(rows: tuple[str, Tensor]) -> Images:
        return ready.take(splits[rows[0]], rows[1])

    statistics = _normalisation(raw, spec, ready=ready, train=train)
    test = take(rows.test)
    return Dataset(
        spec=spec,
        train=train,
        validation=None if rows.validation is None else take(rows.validation),
        test=test,
        classes=raw.classes,
        channels=ready.channels,
        size=ready.size,
        mean=statistics.mean,
        std=statistics.std,
        augmentation=raw.augmentation or _augmentation(ready),
        task=spec.task or IMAGE_TASK,
        notices=(
            *raw.notices,
            *_said_of(left_out, raw, spec),
            *rows.notices,
            *copies(train, test, spec, noun="image"),
        ),
    )


def _boxed(raw: Boxes, spec: DataSpec) -> Dataset:
    """Return the ``Dataset`` of images with boxes, which are already read and split."""
    known = ("name", "subset", "test_subset", "seed", "memory_limit_bytes", "on_error", "classes")
    for option in spec.to_json():
        if option not in (*known, "root", "task"):
            raise ConfigError(
                f"Data set {spec.name!r}: its images have boxes, so it takes no {option!r} "
                f"{getattr(spec, option)!r}. Leave it out."
            )
    return Dataset(
        spec=spec,
        train=cast(Any, raw.train),
        validation=None,
        test=cast(Any, raw.test),
        classes=raw.classes,
        channels=3,
        size=BOXED_SIZE,
        augmentation="none",
        task=spec.task or BOX_TASK,
        notices=raw.notices,
    )


def scaling_of(dataset: Dataset, device: torch.device | str) -> tuple[Tensor, Tensor] | None:
    """Return the factor and the offset that normalise images; None if examples are not images."""
    return scaling(dataset.mean, dataset.std, device) if dataset.of_images else None


def fingerprint(spec: DataSpec) -> str:
    """Return a digest that identifies what ``load`` would return: 32 hexadecimal digits.

    It depends on the content, so a copy of the files elsewhere gives the same: on file digests for
    Parquet (cached by path, size and modification time), relative paths and sizes for folders, the
    name for published sets (downloaded first, if necessary). It includes the options that are not
    at their defaults and, with ``on_error: skip``, which images are left out. Missing data raises a
    ``DataError``.
    """
    entry = DATASETS.get(spec.name)
    if entry.identity is not None:
        return entry.identity(spec)
    content = entry.content(spec) if entry.content is not None else entry.name
    options = {k: v for k, v in spec.to_json().items() if k not in ("name", "root")}
    key = DATASETS.identity(DATASETS.key(spec.name))
    identity = [VERSION, key, DATASETS.code(spec.name), content, options]
    if spec.on_error == "skip":
        raw = entry.read(spec)
        identity.append(_left_out(raw, spec) if isinstance(raw, Raw) else [])
    return digest(*identity)


def _left_out(raw: Raw, spec: DataSpec) -> dict[str, list[int]]:
    return {split: sorted(problems) for split, (_, problems) in _readable_splits(raw, spec).items()}


def _readable(raw: Raw, spec: DataSpec) -> tuple[Raw, list[str]]:
    """Return the data without the images that cannot be read, and the messages about those."""
    readable = _readable_splits(raw, spec)
    messages = [message for _, problems in readable.values() for message in problems.values()]
    remaining_parts = {name: part for name, (part, _) in readable.items()}
    remaining = replace(
        raw,
        train=remaining_parts["train"],
        test=remaining_parts.get("test"),
        validation=remaining_parts.get("validation"),
    )
    return remaining, messages


def _readable_splits(raw: Raw, spec: DataSpec) -> dict[str, tuple[Split, dict[int, str]]]:
    root = data_root(spec)
    return {name: without_unreadable(part, root=root) for name, part in _splits(raw).items()}


def _said_of(left_out: list[str], raw: Raw, spec: DataSpec) -> tuple[str, ...]:
    num = sum(len(part.labels) for part in _splits(raw).values()) + len(left_out)
    return (f"Data set {spec.name!r}: {word_left_out(left_out, num)}",) if left_out else ()


def _splits(raw: Raw) -> dict[str, Split]:
    splits = {"train": raw.train, "test": raw.test, "validation": raw.validation}
    return {name: part for name, part in splits.items() if part is not None}


def _hold_streamed(raw: Raw, spec: DataSpec) -> _ReadyImages | None:
    """Return streamed images if they would exceed the memory limit once decoded, else None."""
    parts = _splits(raw).values()
    sources = [part.images for part in parts if not isinstance(part.images, Tensor)]
    if not sources:
        return None
    looks = [look(source) for source in sources]
    sizes = dict.fromkeys(size for seen in looks for size in seen.sizes)
    size = spec.size or _one_side(sizes, spec)
    channels = 1 if all(seen.grey for seen in looks) else 3
    num_bytes = sum(map(len, sources)) * channels * size * size
    if num_bytes <= spec.memory_limit_bytes:
        return None
    if spec.size is None or channels == 1:  # so far only a sample was inspected
        every = [_look_at_all(source, spec) for source in sources]
        channels = 1 if all(seen.grey for seen in every) else 3
        if spec.size is None:
            _one_side(dict.fromkeys(size for seen in every for size in seen.sizes), spec)
    # Images that already have the size would be enlarged, so blurred, and lose their borders.
    larger = median(min(seen) for seen in sizes) > size
    shorter = round(size * TEST_RESIZE) if larger else size
    readers = {id(source): source.reader(data_root(spec)) for source in sources}

    def take(part: Split, rows: Tensor) -> Images:
        assert not isinstance(part.images, Tensor)
        return StreamedImages(
            readers[id(part.images)],
            part.images.where,
            rows=rows,
            labels=part.labels[rows],
            size=size,
            shorter=shorter,
            channels=channels,
        )

    return _ReadyImages(take=take, channels=channels, size=size, streamed=True)


def _look_at_all(source: Encoded, spec: DataSpec) -> Look:
    """Return the sizes and colours of all images, from the cache if possible."""
    path = data_root(spec) / "looks" / f"{source.identity()}.json"
    sizes, grey = remembered(path, lambda: list(astuple(look_at_all(source))))
    return Look(sizes=tuple((width, height) for width, height in sizes), grey=grey)


def _one_side(sizes: Iterable[tuple[int, int]], spec: DataSpec) -> int:
    """Return the side of images that are squares of one size; raise a ``DataError`` otherwise."""
    sides = {side for size in sizes for side in size}
    if len(sides) > 1:
        examples = ", ".join(f"{width}x{height}" for width, height in list(sizes)[:3])
        raise DataError(
            f"Data set {spec.name!r}: the images must be squares of one size, got {examples} "
            f"(among others). Give `size`, e.g. size: {min(sides)}."
        )
    return sides.pop()


def _hold_in_memory(raw: Raw, spec: DataSpec) -> _ReadyImages:
    """Decode all images, check that sizes agree, and give all the same number of channels."""
    parts = _splits(raw).values()
    _check_memory(parts, spec)
    pixels = {id(part): _pixels(part, spec) for part in parts}
    shapes = {tuple(p.shape[2:]) for p in pixels.values()}
    height, width = next(iter(shapes))
    if len(shapes) > 1 or height != width:
        sizes = " and ".join(f"{w}x{h}" for h, w in sorted(shapes))
        raise DataError(
            f"Data set {spec.name!r}: the images must be squares of one size, got {sizes}. "
            f"Give `size`, e.g. size: {min(height, width)}."
        )
    channels = max(p.shape[1] for p in pixels.values())

    def take(part: Split, rows: Tensor) -> Images:
        images = pixels[id(part)]
        # A whole split is not copied: it may be a memory map that processes share.
        selection = images if len(rows) == len(images) else images.index_select(0, rows)
        if selection.shape[1] != channels:
            selection = selection.repeat(1, channels, 1, 1)  # a grey split beside a coloured one
        return MemoryImages(selection, part.labels[rows])

    return _ReadyImages(take=take, channels=channels, size=height, streamed=False)


def _check_memory(parts: Iterable[Split], spec: DataSpec) -> None:
    """Raise if images that cannot be streamed (tensors, not files) exceed the memory limit."""
    if spec.size is None:
        return
    tensors = [part.images for part in parts if isinstance(part.images, Tensor)]
    num_bytes = sum(len(tensor) * tensor.shape[1] for tensor in tensors) * spec.size**2
    if num_bytes > spec.memory_limit_bytes:
        raise ConfigError(
            f"Data set {spec.name!r}: with 'size' {spec.size} its images need "
            f"{num_bytes / 1e9:.1f} GB, and 'memory_limit_bytes' allows "
            f"{spec.memory_limit_bytes / 1e9:.1f}. Give a smaller size, or allow more."
        )


def _pixels(part: Split, spec: DataSpec) -> Tensor:
    source = part.images
    if isinstance(source, Tensor):
        return source if spec.size is None else resize_all(source, size=spec.size)
    name = digest(DECODED_VERSION, source.identity(), spec.size)
    array = decoded(
        name,
        lambda: decode_all(source, size=spec.size),
        root=data_root(spec),
        num=len(source),
    )
    return torch.from_numpy(array)


def _augmentation(ready: _ReadyImages) -> str:
    if ready.streamed:
        return "resized-crop-flip"
    # Grey images are mostly digits and letters, which a flip would change.
    return "shift" if ready.channels == 1 else "pad-crop-flip"


def _normalisation(
    raw: Raw, spec: DataSpec, *, ready: _ReadyImages, train: Images
) -> Normalisation:
    """Choose mean and std: by value, else by name, else the data set's published, else computed."""
    if spec.mean is not None and spec.std is not None:
        given_values = Normalisation(mean=spec.mean, std=spec.std)
        for option, values in (("mean", spec.mean), ("std", spec.std)):
            if len(values) != ready.channels:
                raise ConfigError(
                    f"Data set {spec.name!r}: {option!r} must have {ready.channels} value(s), one "
                    f"for each channel. Got {len(values)}."
                )
        return given_values
    published = raw.normalisations or recognised(raw.classes, ready.size)
    # A grey copy of a colour data set has no published values.
    published = {name: n for name, n in published.items() if len(n.mean) == ready.channels}
    available = {"imagenet": IMAGENET, **published} if ready.channels == 3 else published
    wanted = spec.normalisation or next(iter(published), "computed")
    if wanted == "computed":
        return computed(train)
    if wanted not in available:
        raise ConfigError(
            f"Data set {spec.name!r}: {unknown('normalisation', wanted, [*available, 'computed'])}"
        )
    return available[wanted]


def _check_of_images(spec: DataSpec) -> None:
    for option in ("target", "length", "classes"):
        if getattr(spec, option) is not None:
            raise ConfigError(
                f"Data set {spec.name!r}: its examples are images, so it takes no {option!r}."
            )


def _check(raw: Raw, spec: DataSpec) -> None:
    """Raise a ``DataError`` for invalid classes, images or labels."""
    if len(raw.classes) < 2:
        raise DataError(
            f"Data set {spec.name!r}: expected at least 2 classes, got {len(raw.classes)}."
        )
    if len(set(raw.classes)) < len(raw.classes):
        twice = next(name for name in raw.classes if raw.classes.count(name) > 1)
        raise DataError(
            f"Data set {spec.name!r}: two classes are called {twice!r}. Name them differently."
        )
    for name, part in _splits(raw).items():
        _check_split(part, raw.classes, of=f"the {name} split of {spec.name!r}")
    counts = torch.bincount(raw.train.labels, minlength=len(raw.classes))
    if (counts == 0).any():
        empty = raw.classes[int(counts.argmin())]
        raise DataError(
            f"Data set {spec.name!r}: the class {empty!r} has no training image. "
            "Add its images, or remove the class."
        )


def _check_split(part: Split, classes: tuple[str, ...], *, of: str) -> None:
    labels, images = part.labels, part.images
    if not isinstance(images, (Tensor, Encoded)):
        raise DataError(f"{of}: expected images as a tensor or Encoded. Got {type(images)}.")
    if labels.dtype != torch.int64 or labels.shape != (len(images),) or len(images) == 0:
        raise DataError(
            f"{of}: expected one int64 label for each of its {len(images)} images, at least one. "
            f"Got {labels.dtype} {list(labels.shape)}."
        )
    if isinstance(images, Tensor) and (
        images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3)
    ):
        raise DataError(
            f"{of}: expected images as uint8 [N, 1 or 3, H, W]. "
            f"Got {images.dtype} {list(images.shape)}."
        )
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        index = int(outside.int().argmax())
        from_one = int(labels.min()) == 1 and int(labels.max()) == len(classes)
        advice = "They begin at 1: subtract 1." if from_one else "Correct the labels."
        raise DataError(
            f"{part.where(index)}: the label {int(labels[index])} is outside the {len(classes)} "
            f"classes (0 to {len(classes) - 1}) of {of}. {advice}"
        )
