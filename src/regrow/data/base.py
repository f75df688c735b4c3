"""Images and labels as a data set returns them (``Raw``), before ``load`` prepares them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from regrow.data.boxed_images import BoxedImages


@runtime_checkable
class Encoded(Protocol):
    """Images that lie as files or bytes (JPEG, PNG, ...) and are decoded when needed."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def where(self, index: int) -> str:
        """Name an image for a message: its file, and its row if it has one."""
        ...

    def identity(self) -> str:
        """Digest the bytes as they lie here now; decoded copies are cached under it."""
        ...

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read some images, to learn sizes and colours before all are decoded."""
        ...

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all images in order, a few hundred at a time; b"" where there are no bytes."""
        ...

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a function, safe in threads, that reads any one image; may use the cache."""
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
    """Everything a data set's file knows.

    Without a ``test`` split, one is drawn from ``train``. The first of ``normalisations`` is the
    default; without any, mean and std are computed. ``augmentation`` None is chosen by ``load``.
    ``notices`` tell people what they may not expect, such as a split that was left out.
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
    """Examples that lie in memory as two tensors, one row an example.

    ``inputs``: float32 [N, ...], numbers; or int64 [N, length], tokens; or several by name
    (``NamedInputs``), which are handed to the network by these. ``targets``: int64 [N] or
    [N, length], classes (-100: none is asked for); or float32 [N, ...], numbers.
    """

    inputs: Any
    targets: "Tensor"


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Everything a data set's file knows whose examples are not images.

    Without a ``test`` split, one is drawn from ``train``. ``task`` names what is learnt of them
    (see ``regrow.tasks``), ``classes`` the targets that are classes; ``vocabulary`` counts the
    tokens there are, where inputs are tokens. Numbers are standardised by ``load``, but for those
    of inputs by name.
    """

    task: str
    train: Rows
    test: Rows | None = None
    validation: Rows | None = None
    classes: tuple[str, ...] = ()
    vocabulary: int | None = None
    notices: tuple[str, ...] = ()


class Boxed(Protocol):
    """Images of any sizes with boxes, which are scaled to the sides that a detector wants."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def fitted(self, short_side: int, long_side: int) -> "BoxedImages":
        """Return them at such a size."""
        ...


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Everything a data set's file knows whose examples are images with boxes.

    ``classes[i]`` has the label i + 1; 0 is the background. Splits and subsets are drawn already.
    """

    classes: tuple[str, ...]
    train: Boxed
    test: Boxed
    notices: tuple[str, ...] = ()
