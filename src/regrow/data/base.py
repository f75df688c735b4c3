"""Examples as a data set's module returns them, before ``load`` prepares them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from regrow.data.boxed_images import BoxedImages


@runtime_checkable
class Encoded(Protocol):
    """Images stored as files or bytes (JPEG, PNG, ...) and decoded when needed."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def where(self, index: int) -> str:
        """Name an image for a message: its file, and its row if it has one."""
        ...

    def identity(self) -> str:
        """Return a digest of the current bytes; decoded copies are cached under it."""
        ...

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read up to ``num`` images, to find sizes and colours before all are decoded."""
        ...

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all images in order, a few hundred at a time; b"" if an image has no bytes."""
        ...

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a thread-safe function that reads one image by its index; it may use the cache."""
        ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images and their labels.

    ``images``: a uint8 tensor [N, C, H, W] with C of 1 or 3, or an ``Encoded`` source.
    ``labels``: an int64 tensor [N].
    """

    images: "Tensor | Encoded"
    labels: "Tensor"

    def where(self, index: int) -> str:
        """Name an image for a message."""
        return self.images.where(index) if isinstance(self.images, Encoded) else f"image {index}"


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Per-channel mean and standard deviation, for pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Raw:
    """An image data set as its module returns it.

    Without a ``test`` split, one is drawn from ``train``. The first of ``normalisations`` is the
    default; without any, mean and std are computed. If ``augmentation`` is None, ``load`` chooses.
    ``notices`` are messages about anything unexpected, such as a split that was left out.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split | None = None
    validation: Split | None = None
    normalisations: Mapping[str, Normalisation] = field(default_factory=dict)
    augmentation: str | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Examples in memory, as two tensors with one row per example.

    ``inputs``: float32 [N, ...], numbers; or int64 [N, length], tokens; or several by name
    (``NamedInputs``), which the network receives as keyword arguments. ``targets``: int64 [N] or
    [N, length], classes (-100: ignored); or float32 [N, ...], numbers.
    """

    inputs: Any
    targets: "Tensor"


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """A data set without images, as its module returns it.

    Without a ``test`` split, one is drawn from ``train``. ``task`` names the task (see
    ``regrow.tasks``); ``classes`` are the names of the classes, if targets are classes;
    ``vocabulary`` is the number of different tokens, if inputs are tokens. ``load`` standardises
    numbers, except in named inputs.
    """

    task: str
    train: Rows
    test: Rows | None = None
    validation: Rows | None = None
    classes: tuple[str, ...] = ()
    vocabulary: int | None = None
    notices: tuple[str, ...] = ()


class Boxed(Protocol):
    """Images of any sizes with boxes, to be scaled to the size that a detector needs."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def fitted(self, short_side: int, long_side: int) -> "BoxedImages":
        """Return the images scaled so that their sides fit."""
        ...


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """A data set of images with boxes, as its module returns it.

    ``classes[i]`` has the label i + 1; 0 is the background. Splits and subsets are already drawn.
    """

    classes: tuple[str, ...]
    train: Boxed
    test: Boxed
    notices: tuple[str, ...] = ()
