"""CIFAR-10, CIFAR-100 and Fashion-MNIST, read and downloaded by torchvision.

They are read from the data folder (the option ``root``, else ``REGROW_DATA``, else
``~/.cache/regrow/data``), and downloaded into it if they are missing.
"""

import tarfile
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from regrow.data.base import Normalisation, Raw, Split
from regrow.data.cache import data_root
from regrow.data.normalisation import CIFAR10_NORMALISATIONS, CIFAR100_NORMALISATIONS
from regrow.data.spec import DATASETS, DataSpec, register_data
from regrow.errors import DataError

# Over all pixels of the 60,000 training images: the usual published values.
FASHION_MNIST = Normalisation(mean=(0.2860,), std=(0.3530,))
# Bytes of header and content of the unpacked files, for which no checksums are published.
FASHION_BYTES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}


def _cifar_content(spec: DataSpec) -> str:
    _fetch_cifar(spec)
    return DATASETS.key(spec.name)


@register_data("cifar10", content=_cifar_content)
def cifar10(spec: DataSpec) -> Raw:
    """Read 50,000 training and 10,000 test images [3, 32, 32] of 10 classes.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _read_cifar(spec, CIFAR10_NORMALISATIONS)


@register_data("cifar100", content=_cifar_content)
def cifar100(spec: DataSpec) -> Raw:
    """Read 50,000 training and 10,000 test images [3, 32, 32] of 100 (fine) classes.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _read_cifar(spec, CIFAR100_NORMALISATIONS)


def _fashion_content(spec: DataSpec) -> str:
    _fetch_fashion(spec)
    return "fashion-mnist"


@register_data("fashion-mnist", content=_fashion_content)
def fashion_mnist(spec: DataSpec) -> Raw:
    """Read 60,000 training and 10,000 test images [1, 28, 28] of 10 kinds of clothing.

    Reference: Xiao et al., Fashion-MNIST, 2017, arXiv:1708.07747.
    """
    from torchvision.datasets import FashionMNIST

    root = data_root(spec)
    _fetch_fashion(spec)
    for file in _fashion_files(root):
        if (num_bytes := file.stat().st_size) != FASHION_BYTES[file.name]:
            raise _damaged(file, f"{FASHION_BYTES[file.name]} bytes", f"{num_bytes} bytes")
    halves = [FashionMNIST(root, train=train) for train in (True, False)]
    train, test = (
        Split(images=half.data.unsqueeze(1), labels=half.targets.to(torch.int64)) for half in halves
    )
    return Raw(
        classes=tuple(halves[0].classes),
        train=train,
        test=test,
        normalisations={"fashion-mnist": FASHION_MNIST},
    )


def _fetch_fashion(spec: DataSpec) -> None:
    from torchvision.datasets import FashionMNIST

    root = data_root(spec)
    _fetch(
        "fashion-mnist",
        _fashion_files(root),
        root=root,
        download=lambda: FashionMNIST(root, download=True),
    )


def _fashion_files(root: Path) -> list[Path]:
    return [root / "FashionMNIST" / "raw" / name for name in FASHION_BYTES]


def _cifar(spec: DataSpec) -> Any:
    """Return torchvision's class of CIFAR-10 or CIFAR-100."""
    import torchvision.datasets

    return getattr(torchvision.datasets, DATASETS.key(spec.name).upper())


def _fetch_cifar(spec: DataSpec) -> None:
    root, kind = data_root(spec), _cifar(spec)
    _fetch(
        kind.__name__.lower(),
        [file for file, _ in _cifar_files(kind, root)],
        root=root,
        download=lambda: kind(root, download=True),
    )


def _read_cifar(spec: DataSpec, normalisations: Mapping[str, Normalisation]) -> Raw:
    from torchvision.datasets.utils import calculate_md5

    root, kind = data_root(spec), _cifar(spec)
    _fetch_cifar(spec)
    for file, md5 in _cifar_files(kind, root):
        if (checksum := calculate_md5(file)) != md5:
            raise _damaged(file, f"the MD5 checksum {md5}", checksum)
    halves = [kind(root, train=train) for train in (True, False)]
    train, test = (
        Split(
            images=torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(),
            labels=torch.tensor(half.targets, dtype=torch.int64),
        )
        for half in halves
    )
    return Raw(
        classes=tuple(halves[0].classes), train=train, test=test, normalisations=normalisations
    )


def _cifar_files(kind: Any, root: Path) -> list[tuple[Path, str]]:
    """List the files of a CIFAR, each with its published MD5 checksum."""
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return [(root / kind.base_folder / name, md5) for name, md5 in listed]


def _fetch(name: str, files: Iterable[Path], *, root: Path, download: Callable[[], object]) -> None:
    """Download a data set unless all of its files exist."""
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return
    try:
        download()
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DataError(
            f"The data set '{name}' is not in {root} (no {missing[0].relative_to(root)}) and "
            f"cannot be downloaded ({type(error).__name__}: {error}). Set REGROW_DATA or the "
            "option 'root' to the folder that holds it, or name another copy of the images: "
            "'hf:PATH' for Parquet files, 'folder:PATH' for a folder of each class."
        ) from error


def _damaged(file: Path, expected: str, actual: str) -> DataError:
    return DataError(
        f"{file} is damaged or truncated: expected {expected}, got {actual}. "
        "Delete it, and the next run downloads it again."
    )
