"""Kinds of user inputs, changed at random and in ways that are known to break parsers."""

import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file

import changed_studies
import image_files
import regrow
import small
from cutting import random_mask
from regrow.core.digests import sealed
from regrow.data import load
from regrow.data.spec import DataSpec
from regrow.errors import RegrowError
from regrow.models import build
from regrow.models.weights import read_weights
from regrow.pruning.adapters import mask_file
from regrow.report.collect import results_of
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery import shrink, trace
from regrow.surgery.architecture import Architecture

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 0.5, 1e308, -1e308, 10**9, 10**18, 2**63, 2**64, 10**400),
    *(float("nan"), float("inf"), "", "x" * 3000, "resnet-20", "\u00e9\n", [], {}, [[]], {"a": 1}),
    *([10**9], [[0] * 50], "../../x", "/etc/passwd", "nets.py:build", [1, "a", None], "1e309"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of input: its share of all inputs, and a function that makes and tries number n."""

    share: int
    use: Callable[[int], object]


def changed(content: bytes, rng: random.Random) -> bytes:
    """Change, cut, repeat or insert some bytes."""
    whole = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(whole) + 1)
        length = rng.choice((1, 1, 1, 4, 8, 64, 1000))
        way = rng.randrange(5)
        if way == 0:
            del whole[place : place + length]
        elif way == 1:
            whole[place:place] = rng.randbytes(length)
        elif way == 2:
            whole[place : place + length] = rng.choice((b"\xff", b"\0", b"\x7f")) * length
        elif way == 3:
            whole[place:place] = whole[place : place + length]
        elif place < len(whole):
            whole[place] ^= 1 << rng.randrange(8)
    return bytes(whole[: rng.choice((len(whole), len(whole), rng.randrange(len(whole) + 1)))])


def changed_value(value: Any, rng: random.Random) -> Any:
    """Change, rename or delete one or two values of a JSON value, whole branches included."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 2)):
        inner = value
        while isinstance(inner, dict | list) and inner:
            key: Any = rng.choice([*inner] if isinstance(inner, dict) else range(len(inner)))
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
                inner = inner[key]
                continue
            way = rng.random()
            if way < 0.1:
                del inner[key]
            elif way < 0.2 and isinstance(inner, dict):
                inner[rng.choice(("x", "of", "kept", "name"))] = inner[key]
            else:
                inner[key] = rng.choice(VALUES)
            break
    return value


# Studies ----------------------------------------------------------------------------------------

DIGITS = """\
name: small
data: {name: digits, subset: 60, test_subset: 40}
models: {name: vgg, plan: [4, M, 8], label: tiny}
methods: [{name: l1-filter, sparsity: 0.5}, {name: magnitude, sparsity: [0.5, 0.75]}]
arms: [unpruned, fine-tune, scratch-e, {name: scratch-b, cap: 2}]
seeds: 2
recipe: {name: cifar, epochs: 1, batch: 20, lr: 0.05, precision: fp32}
"""
BOMBS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n"
    + "".join(
        f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n"
        for x, y in zip("cdefghij", "defghijk", strict=True)
    ),
    "[" * 10_000,
    "{a: " * 10_000,
    "- " * 20_000,
    "a: " + "9" * 40_000,
    "a: 0x" + "f" * 40_000,
    "a: 1e" + "9" * 1000,
    "a: 190:20:30:40:50:60:61.5",
    "a: " + "1:" * 20_000 + "1",
    "a: 2021-01-01T" + "0" * 1000,
    "? " * 5000,
    "a: !!python/object/apply:os.system ['true']",
    "a: !!binary " + "A" * 40_000,
    "<<: [" + ", ".join(["{a: 1}"] * 5000) + "]",
    "&a a: *a",
    "a: &x {<<: *x}",
    "%YAML 9.9\n---\na: 1",
    "a: |\n" + " x\n" * 10_000,
    '"' + "\\x41" * 10_000 + '": 1',
    "a: " + "!" * 40_000,
    "#" * 49_000,
    "\ufeff" * 100 + "a: 1",
    "a: 'it''s" + "''" * 20_000 + "'",
)
LARGE = ("1e308", "1000000000", "9223372036854775807", ".nan", "-.inf", "1e-300", "100000", "40000")


def study_text(rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.02:
        return rng.choice(BOMBS).encode()
    base = rng.choice([*changed_studies.BASES.values(), DIGITS])
    make = rng.choice(
        (changed_studies.changed_text, changed_studies.changed_values, changed_studies.changed_keys)
    )
    return make(rng, base)


def digits_text(rng: random.Random) -> bytes:
    """Change a number, or other values, of a study that is quick to expand."""
    if rng.random() < 0.4:
        return changed_studies.changed_values(rng, DIGITS)
    words = DIGITS.split(" ")
    places = [n for n, word in enumerate(words) if any(letter.isdigit() for letter in word)]
    place = rng.choice(places)
    number = "".join(x for x in words[place] if x.isdigit() or x == ".").strip(".")
    words[place] = words[place].replace(number, rng.choice(LARGE), 1)
    return " ".join(words).encode()


def _studies(folder: Path, seed: int) -> dict[str, Kind]:
    def read(number: int) -> object:
        file = folder / "study.yaml"
        file.write_bytes(study_text(random.Random(f"{seed} study {number}")))
        return Study.load(file)

    torch_bomb()  # cached here, where no limits apply
    (folder / "study.yaml").write_text(DIGITS)
    Study.load(folder / "study.yaml").jobs()  # warm up, once for all children
    for base in changed_studies.BASES.values():
        (folder / "study.yaml").write_text(base)
        with suppress(RegrowError):
            Study.load(folder / "study.yaml")

    def expand(number: int) -> object:
        file = folder / "digits.yaml"
        file.write_bytes(digits_text(random.Random(f"{seed} digits {number}")))
        return Study.load(file).jobs()

    return {"studies": Kind(36, read), "studies expanded": Kind(8, expand)}


# Networks and masks -----------------------------------------------------------------------------


def _networks(folder: Path, seed: int) -> dict[str, Kind]:
    spec = small.NETWORKS["vgg"]
    model = build(spec)
    found = trace(model, small.SHAPE)
    cut = random_mask(found)
    network = folder / "network"
    architecture = Architecture(model=spec, shape=small.SHAPE, cuts=(cut,))
    regrow.save(network, shrink(model, cut, found), architecture)
    value = json.loads((network / "architecture.json").read_text())
    del value["digest"]
    weights = (network / "weights.safetensors").read_bytes()

    def read(number: int) -> object:
        rng = random.Random(f"{seed} network {number}")
        try:
            text = sealed(changed_value(value, rng), "architecture.json").encode()
        except ValueError:  # a number that is not finite
            text = json.dumps(changed_value(value, rng)).encode()
        way = rng.random()
        if way < 0.15:
            text = changed(text, rng)
        elif way < 0.17:
            text = rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b""))
        (network / "architecture.json").write_bytes(text)
        hurt = changed(weights, rng) if rng.random() < 0.2 else weights
        (network / "weights.safetensors").write_bytes(_tensors_bomb(rng) if way > 0.97 else hurt)
        return regrow.load(network)

    return {"networks": Kind(12, read)}


def _tensors_bomb(rng: random.Random) -> bytes:
    """Return a safetensors file whose header declares more data than there is."""
    shape = rng.choice(([10**9, 10**9], [2**62, 4], [-1], [10**6], [0, 10**18]))
    end = rng.choice((8, 10**18, 4 * 10**6, -1))
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    length = rng.choice((len(header), len(header), 2**63, 10**9))
    return struct.pack("<Q", length) + header + b"\0" * 8


def npz(arrays: dict[str, Any], rng: random.Random) -> bytes:
    """Return an npz file, sometimes one that unpacks to gigabytes or whose header declares them."""
    way = rng.random()
    stream = io.BytesIO()
    if way < 0.05:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            for name in arrays:
                head = _npy_head((rng.choice((10**9, 3 * 10**8)),), "<f4")
                with file.open(f"{name}.npy", "w") as entry:
                    entry.write(head)
                    for _ in range(rng.choice((0, 2, 30))):
                        entry.write(bytes(1 << 20))
        return stream.getvalue()
    if way < 0.15:
        with zipfile.ZipFile(stream, "w") as file:
            for name in arrays:
                shape = rng.choice(((10**12,), (2**62, 8), (-1,), (10**5, 10**5), (0, 10**15)))
                kind = rng.choice(("<f4", "<i8", "|O", "<U100000000", "|V1000000000"))
                file.writestr(f"{name}.npy", _npy_head(shape, kind) + b"\0" * 64)
        return stream.getvalue()
    np.savez_compressed(stream, **arrays) if rng.random() < 0.5 else np.savez(stream, **arrays)
    return changed(stream.getvalue(), rng) if way < 0.9 else stream.getvalue()


def _npy_head(shape: tuple[int, ...], kind: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@cache
def torch_bomb() -> bytes:
    """Return a torch.save file with compressed storages, which unpack to 600 MB each."""
    stream = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(8)}, stream)
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(stream) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in old.infolist():
            with new.open(entry.filename, "w") as written:
                written.write(old.read(entry))
                for _ in range(600 if "/data/" in entry.filename else 0):
                    written.write(bytes(1 << 20))
    return packed.getvalue()


def torch_file(value: Any, rng: random.Random) -> bytes:
    """Return a torch.save file, in the old or new format, damaged or with compressed storages."""
    stream = io.BytesIO()
    way = rng.random()
    torch.save(value, stream, _use_new_zipfile_serialization=way > 0.3)
    content = stream.getvalue()
    if way > 0.97:
        return torch_bomb()
    return changed(content, rng) if rng.random() < 0.9 else content


def _masks(folder: Path, seed: int) -> dict[str, Kind]:
    entries = {
        "conv.weight": torch.arange(72).reshape(1, 8, 3, 3) % 2,
        "fc.weight": torch.ones(2, 4),
    }
    save_file(entries, folder / "sound.safetensors")
    sound = (folder / "sound.safetensors").read_bytes()
    arrays = {name: value.numpy() for name, value in entries.items()}

    def content(rng: random.Random, suffix: str) -> bytes:
        if suffix == ".safetensors":
            return _tensors_bomb(rng) if rng.random() < 0.1 else changed(sound, rng)
        return npz(arrays, rng) if suffix == ".npz" else torch_file(entries, rng)

    def masks(number: int) -> object:
        rng = random.Random(f"{seed} masks {number}")
        suffix = rng.choice((".safetensors", ".npz", ".pt"))
        file = folder / f"masks{number % 7}{suffix}"
        file.write_bytes(content(rng, suffix))
        return mask_file.allocation(str(file))

    def weights(number: int) -> object:
        rng = random.Random(f"{seed} weights {number}")
        file = folder / f"weights{number % 7}{rng.choice(('.safetensors', '.pt'))}"
        file.write_bytes(content(rng, file.suffix))
        return read_weights(file)

    return {"masks": Kind(8, masks), "weights": Kind(4, weights)}


# Stores -----------------------------------------------------------------------------------------


def _stores(folder: Path, seed: int) -> dict[str, Kind]:
    from test_damage import filled

    study, store = filled(folder / "store")
    files = sorted(store.root.glob("records/*/*/*"))
    contents = {file: file.read_bytes() for file in files}

    def read(number: int) -> object:
        rng = random.Random(f"{seed} record {number}")
        file = rng.choice(files)
        if file.suffix == ".json" and rng.random() < 0.5:
            value = changed_value(json.loads(contents[file]), rng)
            if isinstance(value.get("timing"), dict):  # with a valid digest
                value["timing"].pop("digest", None)
                content = _sealed(value, file.parent.name) or b"{}"
            else:
                content = json.dumps(value).encode()
        elif file.suffix == ".safetensors" and rng.random() < 0.1:
            content = _tensors_bomb(rng)
        else:
            content = changed(contents[file], rng)
        file.write_bytes(content)
        try:
            store.snapshot({job.key: job.spec for job in study.jobs()})
            results = results_of(study, Store.open(store.root))
            if file.suffix == ".safetensors":
                store.tensors(file.parent.name)
            return results
        finally:
            file.write_bytes(contents[file])

    return {"records": Kind(8, read)}


def _sealed(value: Any, key: str) -> bytes | None:
    try:
        return sealed(value, key, under="timing").encode()
    except (ValueError, TypeError):  # not finite, or no mapping
        return None


# Data -------------------------------------------------------------------------------------------


def _data(folder: Path, seed: int) -> dict[str, Kind]:
    root = folder / "cache"
    parquet_bombs()  # cached here, where no limits apply

    def reading(
        name: str, share: int, make: Callable[[random.Random, Path], str]
    ) -> dict[str, Kind]:
        def use(number: int) -> object:
            place = folder / "data" / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            spec = make(random.Random(f"{seed} {name} {number}"), place)
            size = 8 if spec.startswith(("hf:", "folder:")) else None
            return load(DataSpec(name=spec, root=str(root), size=size))

        return {name: Kind(share, use)}

    return {
        **reading("csv", 5, _csv),
        **reading("npz", 5, _npz),
        **reading("safetensors", 2, _safetensors),
        **reading("parquet tables", 3, _parquet_table),
        **reading("parquet images", 4, _parquet_images),
        **reading("image folders", 4, _images),
    }


def _csv(rng: random.Random, place: Path) -> str:
    rows = [["a", "b", "kind"]]
    rows += [[f"{rng.random():.3f}", str(n), rng.choice("xyz")] for n in range(20)]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(
            (
                "",
                "nan",
                "inf",
                "1e400",
                '"',
                '"x\n',
                "\0",
                "9" * 5000,
                "x" * 200_000,
                ",",
                "-",
                "\u00e9",
            )
        )
    content = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        content = changed(content, rng)
    if rng.random() < 0.02:
        content = (",".join(f"c{n}" for n in range(200_000)) + "\n").encode() * 3
    (place / "table.csv").write_bytes(content)
    return f"csv:{place / 'table.csv'}"


def _npz(rng: random.Random, place: Path) -> str:
    arrays: dict[str, Any] = {
        "x_train": np.arange(80.0).reshape(20, 4),
        "y_train": np.arange(20) % 2,
        "x_test": np.arange(40.0).reshape(10, 4),
        "y_test": np.arange(10) % 2,
    }
    name = rng.choice([*arrays])
    arrays[name] = rng.choice(
        (
            np.array(3),
            np.array([]),
            np.full((20, 4), np.nan),
            np.array(["a", "b"] * 10),
            np.array([2**62, -(2**62)] * 10),
            np.array([1 + 2j] * 20),
            np.zeros((20, 0)),
            np.array(["2020-01-01"] * 20, dtype="datetime64[D]"),
            np.zeros((20, 2, 2), dtype=bool),
            arrays[name],
            np.array([10**9] * 20),
            np.zeros(20, dtype=[("a", "f4")]),
        )
    )
    (place / "data.npz").write_bytes(npz(arrays, rng))
    return f"npz:{place / 'data.npz'}"


def _safetensors(rng: random.Random, place: Path) -> str:
    file = place / "data.safetensors"
    save_file({"x": torch.rand(20, 4), "target": torch.arange(20) % 2}, file)
    file.write_bytes(_tensors_bomb(rng) if rng.random() < 0.2 else changed(file.read_bytes(), rng))
    return f"safetensors:{file}"


@cache
def parquet_bombs() -> tuple[bytes, ...]:
    """Return Parquet files of a few kB that unpack to gigabytes."""
    num = 10**6
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, "i4")), pa.array(["x" * 2000]))
    many = pa.array(np.zeros(10**8, "i1"))
    written = []
    for columns in (
        {"x": texts, "target": pa.array(np.zeros(num, "i1"))},
        {"x": many, "target": many},
    ):
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream, compression="zstd")
        written.append(stream.getvalue())
    return tuple(written)


def _parquet_table(rng: random.Random, place: Path) -> str:
    file = place / "data.parquet"
    columns: dict[str, Any] = {
        "x": rng.choice(
            (
                pa.array([[1.0, 2.0]] * 20),
                pa.array([[1.0], [1.0, 2.0]] * 10),
                pa.array([None, 1.0] * 10),
                pa.array([{"a": 1}] * 20),
                pa.array([b"x"] * 20),
                pa.array(["x"] * 20).dictionary_encode(),
                pa.array([[["a"]]] * 20),
            )
        ),
        "target": pa.array([0, 1] * 10),
    }
    way = rng.random()
    if way < 0.05:
        file.write_bytes(rng.choice(parquet_bombs()))
        return f"parquet:{file}"
    pq.write_table(pa.table(columns), file, compression="zstd")
    if way < 0.9:
        file.write_bytes(changed(file.read_bytes(), rng))
    return f"parquet:{file}"


SIDES = ((100_000, 100_000), (2**31 - 1, 1), (12_000, 12_000), (30_000, 2900), (1, 10**6), (0, 5))


def picture(rng: random.Random) -> bytes:
    """Return an image file, mostly damaged, or a small PNG whose header declares a large image."""
    way = rng.random()
    if way < 0.1:
        return png_of_zeros(*rng.choice(SIDES))
    stream = io.BytesIO()
    form = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX"))
    image_files.image(rng.randrange(100)).save(stream, format=form)
    content = stream.getvalue()
    return changed(content, rng) if way < 0.95 else content


def png_of_zeros(width: int, height: int) -> bytes:
    """Return an all-black PNG, with at most 150 MB of data, compressed to a thousandth."""

    def part(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packer = zlib.compressobj(9)
    left = min((width + 1) * height, 150 << 20)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(left >> 20))
    data += packer.compress(bytes(left % (1 << 20))) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


def _parquet_images(rng: random.Random, place: Path) -> str:
    pictures: list[bytes | None] = [image_files.png(n) for n in range(20)]
    if rng.random() < 0.5:
        pictures[rng.randrange(20)] = rng.choice((picture(rng), None, b""))
    labels = rng.choice(
        ([n % 2 for n in range(20)], ["a", "b"] * 10, [None] * 20, [0.5] * 20, [10**18, -1] * 10)
    )
    names = rng.choice((None, ["a", "b"], ["a"], ["a", "a"]))
    file = place / "train-0.parquet"
    image_files.write_parquet(file, pictures, labels, names=names)
    if rng.random() < 0.5:
        file.write_bytes(changed(file.read_bytes(), rng))
    return f"hf:{place}"


def _images(rng: random.Random, place: Path) -> str:
    image_files.image_folder(place, num=3)
    files = sorted(place.rglob("*.png"))
    for file in rng.sample(files, rng.randint(1, 2)):
        file.write_bytes(picture(rng))
    return f"folder:{place}"


def kinds(folder: Path, *, seed: int) -> dict[str, Kind]:
    """Return every kind of input by name; their files are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        **_studies(folder, seed),
        **_networks(folder, seed),
        **_masks(folder, seed),
        **_stores(folder, seed),
        **_data(folder, seed),
    }


_ = Image  # imported to register its file formats
