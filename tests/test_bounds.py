"""What a file promises is compared with what it holds, and with memory, before it is read."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

import regrow
from cutting import random_mask
from image_files import image_folder, parquet_folder
from regrow.core import bounds
from regrow.core.digests import sealed
from regrow.data import load
from regrow.data.spec import DataSpec
from regrow.errors import ConfigError, DataError, StoreError
from regrow.models import ModelSpec, build
from regrow.models.weights import read_weights
from regrow.pruning.adapters import mask_file
from regrow.surgery import shrink, trace
from regrow.surgery.architecture import Architecture
from small import NETWORKS, SHAPE
from test_voc import annotation, box
from test_voc import folder as voc_folder


def npy(shape: tuple[int, ...], kind: str = "<f4", held: int = 64) -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(held)


def archive(path: Path, content: bytes, *, times: int = 1) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("x_train.npy", "y_train.npy"):
            with file.open(name, "w") as entry:
                for _ in range(times):
                    entry.write(content)
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "free_memory", lambda: 100_000)


NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "promises more": (lambda path: archive(path, npy((10**12,))), "but its size differs"),
    "negative": (lambda path: archive(path, npy((-1,))), "but its size differs"),
    "objects": (lambda path: archive(path, npy((8,), "|O")), "could run code"),
    "no head": (lambda path: archive(path, b"x" * 99), "magic"),
    "no archive": (lambda path: path.write_bytes(b"PK\x03\x04" + b"x" * 99), "zip"),
    "unfolds": (lambda path: archive(path, npy((1 << 20,), "<i1", 1 << 20)), "GB are free"),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", NPZ)
def test_arrays_that_are_not_what_they_promise_are_refused(name: str, tmp_path: Path) -> None:
    make, message = NPZ[name]
    make(tmp_path / "x.npz")
    with pytest.raises(DataError, match=message):
        load(DataSpec(name=f"npz:{tmp_path / 'x.npz'}"))
    with pytest.raises(ConfigError, match=message):
        mask_file.allocation(str(tmp_path / "x.npz"))


@pytest.mark.usefixtures("little_memory")
def test_weights_that_unfold_to_more_than_memory_are_refused(tmp_path: Path) -> None:
    sound = io.BytesIO()
    torch.save({"w": torch.zeros(1 << 20)}, sound)
    with (
        zipfile.ZipFile(sound) as old,
        zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(DataError, match=r"would take .* GB of memory"):
        read_weights(tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"would take .* GB of memory"):
        mask_file.allocation(str(tmp_path / "w.pt"))


@pytest.mark.usefixtures("little_memory")
def test_a_network_larger_than_memory_is_refused_before_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"'vgg' cannot be built here \(its weights would take"):
        build(ModelSpec("vgg", {"plan": [5000], "classes": 10, "in_channels": 3, "input_size": 8}))


@pytest.mark.parametrize(
    "shape", [[1, 1, 8, "8"], [1, -1, 8, 8], [1, 1, 8.5, 8], [], [1, 1, 10**6, 10**6], [[1], 8]]
)
def test_an_architecture_of_an_impossible_shape_is_refused(shape: object, tmp_path: Path) -> None:
    model = build(NETWORKS["vgg"])
    found = trace(model, SHAPE)
    mask = random_mask(found)
    spec = Architecture(model=NETWORKS["vgg"], shape=SHAPE, cuts=(mask,))
    regrow.save(tmp_path, shrink(model, mask, found), spec)
    file = tmp_path / "architecture.json"
    value = json.loads(file.read_text())
    del value["digest"]
    file.write_text(sealed(value | {"shape": shape}, file.name))
    with pytest.raises(StoreError, match="The shape of an example must be whole numbers"):
        regrow.load(tmp_path)


@pytest.mark.usefixtures("little_memory")
def test_tables_that_unfold_to_more_than_memory_are_refused(tmp_path: Path) -> None:
    for x in (pa.array(["x" * 999] * 5000), pa.array(np.zeros(10**6))):
        pq.write_table(pa.table({"x": x, "target": np.zeros(len(x))}), tmp_path / "x.parquet")
        with pytest.raises(DataError, match="rows would take"):
            load(DataSpec(name=f"parquet:{tmp_path / 'x.parquet'}"))


def test_labels_without_end_are_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 2)), y=np.array([0, 1, 2, 10**9]))
    with pytest.raises(DataError, match="labels up to 1,000,000,000"):
        load(DataSpec(name=f"npz:{tmp_path / 'x.npz'}"))


def test_inputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([["a"], ["b"]]), y=np.array([0, 1]))
    with pytest.raises(DataError, match="must be numbers, one row per example"):
        load(DataSpec(name=f"npz:{tmp_path / 'x.npz'}"))


@pytest.mark.parametrize(
    "y", [np.array(3), np.array(["2020-01-01"] * 4, "M8[D]"), np.zeros(4, "c8")]
)
def test_targets_of_no_kind_are_refused(y: NDArray[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 2)), y=y)
    with pytest.raises(DataError, match="the targets of all splits must be numbers, or all texts"):
        load(DataSpec(name=f"npz:{tmp_path / 'x.npz'}"))


def test_a_cell_without_end_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n" + '"' + "9" * 200_000 + '",3\n')
    with pytest.raises(DataError, match="the file is not valid CSV"):
        load(DataSpec(name=f"csv:{tmp_path / 'x.csv'}"))


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_picture_that_promises_too_many_pixels_is_refused(tmp_path: Path) -> None:
    def part(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 0, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(b""))
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png"):
            (tmp_path / "train" / label / name).write_bytes(picture + part(b"IEND", b""))
    with pytest.raises(DataError, match="10000x10000 pixels, and at most 89,478,485 are read"):
        load(DataSpec(name=f"folder:{tmp_path}", size=8))


# Places of files ----------------------------------------------------------------------------------


def pipe(file: Path) -> None:
    os.mkfifo(file)


def zeros(file: Path) -> None:
    file.symlink_to("/dev/zero")


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def endless(file: Path) -> None:
    with file.open("wb") as written:
        written.truncate(1 << 42)


@pytest.mark.parametrize("make", [pipe, zeros, loop, endless])
@pytest.mark.parametrize(
    "name", ["csv:x.csv", "npz:x.npz", "text:x.txt", "text:.", "safetensors:.", "parquet:."]
)
def test_what_never_ends_is_no_data(
    name: str, make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, _, place = name.partition(":")
    suffix = {"text": "txt"}.get(kind, kind)
    make(tmp_path / (place if place != "." else f"train.{suffix}"))
    with pytest.raises(DataError):
        load(DataSpec(name=name, root=str(tmp_path / "cache")))


@pytest.mark.parametrize("make", [pipe, zeros, endless])
@pytest.mark.parametrize(
    "file", ["JPEGImages/a.jpg", "Annotations/a.xml", "ImageSets/Main/val.txt"]
)
def test_what_never_ends_is_no_annotation(
    file: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    texts = {name: annotation(box(1, 1, 48, 40)) for name in "ab"}
    place = voc_folder(tmp_path / "data", texts, train="a", val="b") / "VOC2007" / file
    place.unlink()
    make(place)
    with pytest.raises(DataError):
        load(DataSpec(name=f"voc:{tmp_path / 'data'}", root=str(tmp_path / "cache")))


@pytest.mark.parametrize("make", [pipe, zeros, endless])
def test_what_never_ends_is_no_image(make: Callable[[Path], None], tmp_path: Path) -> None:
    place = image_folder(tmp_path / "data", num=2) / "train" / "cat" / "0.png"
    place.unlink()
    make(place)
    with pytest.raises(DataError, match=r"0\.png"):
        load(DataSpec(name=f"folder:{tmp_path / 'data'}", size=8, root=str(tmp_path / "cache")))


@pytest.mark.parametrize("make", [pipe, zeros, endless])
def test_what_never_ends_is_no_parquet_of_images(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    place = parquet_folder(tmp_path / "data") / "data" / "train-00000-of-00001.parquet"
    place.unlink()
    make(place)
    with pytest.raises(DataError, match=r"train-00000"):
        load(DataSpec(name=f"hf:{tmp_path / 'data'}", size=8, root=str(tmp_path / "cache")))


@pytest.mark.parametrize("make", [pipe, zeros])
def test_what_never_ends_is_no_mask(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="a pipe or a device"):
        mask_file.allocation(str(tmp_path / "x.npz"))


def test_a_list_with_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    texts = {name: annotation(box(1, 1, 48, 40)) for name in "ab"}
    folder = voc_folder(tmp_path / "data", texts, train="a", val="b")
    (folder / "VOC2007" / "ImageSets" / "Main" / "val.txt").write_text("b\n" + "x" * 5000)
    with pytest.raises(DataError, match="no file can be called"):
        load(DataSpec(name=f"voc:{folder}", root=str(tmp_path / "cache")))
