"""CIFAR and Fashion-MNIST: read from files made here, checked, and never fetched by a test."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from regrow.data import DataSpec, fingerprint, load
from regrow.data.torchvision_sets import FASHION_BYTES
from regrow.errors import DataError


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data-root"
    monkeypatch.setenv("REGROW_DATA", str(root))
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10, FashionMNIST

    def refuse(self: object) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    monkeypatch.setattr(FashionMNIST, "download", refuse)


def write_pickle(path: Path, value: dict[str, Any]) -> list[str]:
    path.write_bytes(pickle.dumps(value))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.fixture
def small_cifar(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """Write a CIFAR-10 of 40 training and 20 test images; return its training bytes."""
    from torchvision.datasets import CIFAR10

    folder = data_folder / CIFAR10.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
    labels = [n % 10 for n in range(60)]
    files = [
        write_pickle(folder / name, {"data": data[part], "labels": labels[part]})
        for name, part in (
            ("data_batch_1", slice(0, 20)),
            ("data_batch_2", slice(20, 40)),
            ("test_batch", slice(40, 60)),
        )
    ]
    names = [f"class-{n}" for n in range(10)]
    name, md5 = write_pickle(folder / "batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "train_list", files[:2])
    monkeypatch.setattr(CIFAR10, "test_list", files[2:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return data


def test_cifar10_is_read_and_normalised_as_in_the_paper(
    small_cifar: np.ndarray[Any, Any],
) -> None:
    dataset = load(DataSpec("cifar10"))
    assert (len(dataset.train), len(dataset.test), dataset.size) == (40, 20, 32)
    expected = torch.from_numpy(small_cifar[:40]).view(40, 3, 32, 32)
    assert torch.equal(dataset.train.batch(torch.arange(40)), expected)
    assert (dataset.mean, dataset.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert dataset.augmentation == "pad-crop-flip"
    sfp = load(DataSpec("cifar10", normalisation="sfp"))
    assert sfp.mean == (125.3 / 255, 123.0 / 255, 113.9 / 255)


@pytest.mark.usefixtures("small_cifar")
def test_cut_short_cifar_names_the_file_to_delete(data_folder: Path) -> None:
    file = data_folder / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(file.read_bytes()[:-1])
    message = r"data_batch_2 is damaged or truncated: expected the MD5 .*Delete it"
    with pytest.raises(DataError, match=message):
        load(DataSpec("cifar10"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_missing_set_names_the_folder_and_what_to_do(name: str, tmp_path: Path) -> None:
    message = rf"'{name}' is not in .*elsewhere.*cannot be downloaded .*'hf:PATH'"
    for act in (load, fingerprint):
        with pytest.raises(DataError, match=message):
            act(DataSpec(name, root=str(tmp_path / "elsewhere")))


@pytest.mark.usefixtures("small_cifar")
def test_identity_of_a_published_set_is_its_name(data_folder: Path) -> None:
    first = fingerprint(DataSpec("cifar10"))
    moved = data_folder.rename(data_folder.parent / "moved")
    assert fingerprint(DataSpec("cifar10", root=str(moved))) == first


@pytest.fixture
def small_fashion(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a Fashion-MNIST of 20 images in each split."""
    raw = data_folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8).tobytes()
        labels = bytes(n % 10 for n in range(20))
        head = struct.pack(">IIII", 0x803, 20, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 20) + labels)
    for name in FASHION_BYTES:
        monkeypatch.setitem(FASHION_BYTES, name, (raw / name).stat().st_size)
    return raw


@pytest.mark.usefixtures("small_fashion")
def test_fashion_mnist_is_read() -> None:
    dataset = load(DataSpec("Fashion_MNIST"))
    assert (dataset.channels, dataset.size, dataset.classes[0]) == (1, 28, "T-shirt/top")
    assert (dataset.mean, dataset.std, dataset.augmentation) == ((0.286,), (0.353,), "shift")
    assert dataset.train.labels.tolist() == [n % 10 for n in range(20)]


def test_cut_short_fashion_mnist_names_the_file(small_fashion: Path) -> None:
    file = small_fashion / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    message = r"t10k-images-idx3-ubyte is damaged or truncated: expected 15696 bytes, got 15691"
    with pytest.raises(DataError, match=message):
        load(DataSpec("fashion-mnist"))
