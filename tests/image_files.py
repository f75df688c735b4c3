"""Small Parquet files and image folders, generated for the tests of data sets."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image


def image(index: int, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(index)
    shape = (size[1], size[0]) if mode in ("L", "LA") else (size[1], size[0], 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode)


def png(index: int, *, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    image(index, size=size, mode=mode).save(stream, format="PNG")
    return stream.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[Any],
    *,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = [pa.array(structs, kind), pa.array(labels)]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    if names is not None:
        features: dict[str, Any] = {columns[0]: {"_type": "Image"}}
        features |= {columns[1]: {"_type": "ClassLabel", "names": names}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, row_group_size=7)


def parquet_folder(base: Path, *, test: str | None = "test", **options: Any) -> Path:
    """Write 20 training images of 2 classes, and 10 more in another split."""
    write_parquet(
        base / "data" / "train-00000-of-00001.parquet",
        [png(n) for n in range(20)],
        [n % 2 for n in range(20)],
        **options,
    )
    if test is not None:
        write_parquet(
            base / "data" / f"{test}-00000-of-00001.parquet",
            [png(n) for n in range(100, 110)],
            [n % 2 for n in range(10)],
            **options,
        )
    return base


def image_folder(base: Path, splits: tuple[str, ...] = ("train", "test"), num: int = 6) -> Path:
    for split in splits:
        first = 1000 * len(split) + 10_000 * (split[0] not in "tT")  # other images in each split
        for label, name in enumerate(("cat", "dog")):
            folder = base / split / name
            folder.mkdir(parents=True)
            for n in range(num):
                image(first + 100 * label + n).save(folder / f"{n}.png")
    return base


def expected_pixels(indices: list[int]) -> torch.Tensor:
    arrays = [np.asarray(image(n)).transpose(2, 0, 1) for n in indices]
    return torch.from_numpy(np.stack(arrays))
