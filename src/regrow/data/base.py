"""The raw form of a data set, as its loader returns it, and the registry of loaders.

A data set is one file with one function. It says where its images are and what their labels are;
splitting, decoding, resizing, caching, checking and augmenting are done for it by ``load``::

    @register_data("two-greys")
    def two_greys(spec: DataSpec) -> Raw:
        pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(50).view(100, 1, 1, 1)
        labels = torch.tensor([0, 1]).repeat(50)
        images = pixels.expand(100, 1, 8, 8)
        return Raw(classes=("black", "white"), train=Split(images=images, labels=labels))
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from regrow.core.registry import Registry
from regrow.data.spec import DATA_NAMES, DataSpec

if TYPE_CHECKING:
    from torch import Tensor


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
class DataEntry:
    """A registered data set: how to read it, and how to tell its content."""

    name: str
    read: Callable[[DataSpec], Raw]
    content: Callable[[DataSpec], str] | None


DATASETS: Registry[DataEntry] = Registry("data set", DATA_NAMES, register="register_data")

F = TypeVar("F", bound=Callable[[DataSpec], Raw])


def register_data(
    name: str, *, content: Callable[[DataSpec], str] | None = None
) -> Callable[[F], F]:
    """Register a function under a name, or a prefix such as ``folder:``.

    ``content`` returns a text that is equal where the images are equal, cheaply: results are kept
    under it. Without it, the name and the code of the registering file stand for the content, so
    a data set that reads files of its own should give one.
    """

    def register(read: F) -> F:
        DATASETS.add(name, DataEntry(name=name, read=read, content=content), origin=read)
        return read

    return register
