"""A study's request for data (``DataSpec``), and the registry of data sets that it names.

A data set is one file with one function, which returns images and labels; ``load`` does the
splitting, decoding, resizing, caching, checking and augmenting::

    @register_data("two-greys")
    def two_greys(spec: DataSpec) -> Raw:
        pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(50).view(100, 1, 1, 1)
        labels = torch.tensor([0, 1]).repeat(50)
        images = pixels.expand(100, 1, 8, 8)
        return Raw(classes=("black", "white"), train=Split(images=images, labels=labels))
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from regrow.core.registry import Registry
from regrow.core.validation import changed_fields, is_int, is_number, refuse_unknown, tuples
from regrow.data.base import Arrays, Boxes, Raw
from regrow.errors import ConfigError, unknown

# Described in ``augment``. FLIPPING: those that flip images left to right.
AUGMENTATIONS = (
    *("none", "flip", "shift", "pad-crop-flip", "resized-crop-flip"),
    *("reflect-shift", "reflect-shift-flip"),
)
FLIPPING = ("flip", "pad-crop-flip", "resized-crop-flip", "reflect-shift-flip")
IMAGE_TASK = "image-classification"
DATA_NAMES = "regrow.data"  # the package and the entry point group with data sets

# 4 GB hold CIFAR-10 twenty times over; ImageNet exceeds it from 32 px upwards (3.9 GB) and streams.
MEMORY_LIMIT_BYTES = 4_000_000_000
# 64 images of this size take 3 GB as bytes, and four times that in float32.
MOST_PIXELS = 4096

OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class DataSpec:
    """A data set by name, and the options for loading it.

    ``subset``, ``test_subset``: numbers of training and test images, drawn at random, stratified by
    class; a larger subset of the same seed contains a smaller one.
    ``validation``: share of these training images, in [0, 1), that is held out for validation.
    ``size``: resize so that the shorter side has this many pixels, then crop the centre.
    ``seed``: of every draw above, and of the test split if none is published. It belongs to the
    data, not to a training run: all runs of a study use the same split.
    ``image_column``, ``label_column``: columns of a Parquet data set, if not recognised.
    ``normalisation``: a name that fits the data set (``cifar``, ``sfp``, ``imagenet``, ...) or
    ``computed``. Instead, ``mean`` and ``std`` may be given (both, for pixels in [0, 1]).
    ``root``: folder for downloads and caches; by default ``REGROW_DATA``, if set, or
    ``~/.cache/regrow/data``.
    ``memory_limit_bytes``: images that need more than this once decoded are streamed.
    ``on_error``: what to do with unreadable images: ``stop``, or ``skip`` to leave them out with a
    notice.
    ``task``: the learning task, if the data allow several (see ``regrow.tasks``).
    ``target``: the column of a table that is to be predicted; by default the last one.
    ``length``: bytes per window of a text, by default 128.
    ``classes``: the classes that boxes may have; any other makes the annotation invalid.

    An invalid value raises a ``ConfigError``.
    """

    name: str
    subset: int | None = None
    test_subset: int | None = None
    validation: float = 0.0
    size: int | None = None
    seed: int = 0
    image_column: str | None = None
    label_column: str | None = None
    normalisation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    root: str | None = None
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    on_error: OnError = "stop"
    task: str | None = None
    target: str | None = None
    length: int | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        key = DATASETS.key(self.name)
        name = key + self.name.strip().partition(":")[2] if key.endswith(":") else key
        if name.endswith(":"):
            raise ConfigError(f"The data set {name!r} needs a path after the colon.")
        object.__setattr__(self, "name", name)
        for option in ("subset", "test_subset", "size", "length"):
            self._check_int(option, low=1, optional=True)
        if self.size is not None and self.size > MOST_PIXELS:
            raise self._error("size", f"at most {MOST_PIXELS} pixels")
        self._check_int("seed", low=0)
        self._check_int("memory_limit_bytes", low=0)
        for option in ("image_column", "label_column", "normalisation", "root", "task", "target"):
            self._check_text(option)
        if self.on_error not in get_args(OnError):
            choices = get_args(OnError)
            raise ConfigError(
                f"Data set {self.name!r}: {unknown('on_error', str(self.on_error), choices)}"
            )
        if not is_number(self.validation) or not 0 <= self.validation < 1:
            raise self._error("validation", "a share in [0, 1)")
        self._check_statistics()
        if self.classes is not None and (
            not self.classes
            or len(set(self.classes)) != len(self.classes)
            or not all(isinstance(name, str) and name for name in self.classes)
        ):
            raise self._error("classes", "a list of different names")

    @property
    def location(self) -> str:
        """The part of the name after its prefix, e.g. the path in ``folder:PATH``."""
        return self.name.partition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """Return the name and the options that differ from their defaults."""
        return changed_fields(self)

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> "DataSpec":
        """Read a name, or a mapping of ``name`` and options; raise for unknown options."""
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"A data set must be a name or a mapping. Got {value!r}.")
        known = [f.name for f in fields(cls)]
        refuse_unknown(value, known, kind="option", where="Data set")
        if "name" not in value:
            raise ConfigError(f"A data set needs a 'name'. Got {dict(value)!r}.")
        return cls(**tuples(value))

    def _check_int(self, option: str, *, low: int, optional: bool = False) -> None:
        value = getattr(self, option)
        if optional and value is None:
            return
        if not is_int(value, least=low):
            raise self._error(option, f"an int of at least {low}")

    def _check_text(self, option: str) -> None:
        value = getattr(self, option)
        if value is not None and (not isinstance(value, str) or not value):
            raise self._error(option, "a text")

    def _check_statistics(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ConfigError(
                f"Data set {self.name!r}: give 'mean' and 'std' together, or neither. "
                f"Got mean {self.mean!r} and std {self.std!r}."
            )
        for option, least in (("mean", -math.inf), ("std", 0.0)):
            value = getattr(self, option)
            if value is None:
                continue
            if not isinstance(value, tuple) or not all(is_number(v) and v > least for v in value):
                positive = " above 0" if option == "std" else ""
                raise self._error(option, f"a list of numbers{positive}, one for each channel")
        if self.mean is not None and self.normalisation is not None:
            raise ConfigError(
                f"Data set {self.name!r}: 'normalisation' and 'mean' contradict each other. "
                "Give one of them."
            )

    def _error(self, option: str, expected: str) -> ConfigError:
        return ConfigError(
            f"Data set {self.name!r}: the {option!r} must be {expected}. "
            f"Got {getattr(self, option)!r}."
        )


@dataclass(frozen=True, kw_only=True)
class DataEntry:
    """A registered data set: the functions that read it and identify its content."""

    name: str
    read: Callable[[DataSpec], Raw | Arrays | Boxes]
    content: Callable[[DataSpec], str] | None
    identity: Callable[[DataSpec], str] | None = None


OF_ROWS = ("csv", "npz", "parquet", "safetensors", "text")  # prefixes of data that is not images
DATASETS: Registry[DataEntry] = Registry("data set", DATA_NAMES, register="register_data")

F = TypeVar("F", bound=Callable[[DataSpec], Raw | Arrays | Boxes])


def register_data(
    name: str,
    *,
    content: Callable[[DataSpec], str] | None = None,
    identity: Callable[[DataSpec], str] | None = None,
    revision: int = 1,
) -> Callable[[F], F]:
    """Register a function under a name, or a prefix such as ``folder:``.

    ``content`` returns a text that identifies the images and is cheap to compute; it becomes part
    of the keys of results. Without it, the name and the code of the registering file identify the
    content, so a data set that reads files should have one. ``identity`` instead returns the whole
    fingerprint, including the options that matter. Raise the ``revision`` of a built-in name when
    it reads other examples from the same files.
    """

    def register(read: F) -> F:
        entry = DataEntry(name=name, read=read, content=content, identity=identity)
        DATASETS.add(name, entry, origin=read, revision=revision)
        return read

    return register
