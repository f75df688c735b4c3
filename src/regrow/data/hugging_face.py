"""Image classification in Parquet files, as Hugging Face data sets are published."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from regrow.data.base import Raw, Split, register_data
from regrow.data.cache import data_root, digest, file_digest, kept_file
from regrow.data.spec import DataSpec
from regrow.errors import ConfigError, DataError, unknown

# Preferred first: a set with several label columns (CIFAR-100's fine and coarse) means the finest.
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
IMAGE_COLUMNS = ("image", "img", "images")
SPLITS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
CHUNK_IMAGES = 256
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ParquetImages:
    """The image column of Parquet files, read in order or, for streaming, row by row."""

    files: tuple[Path, ...]
    column: str
    counts: tuple[int, ...]
    root: Path  # of the cache

    def __len__(self) -> int:
        """Count the images."""
        return sum(self.counts)

    def where(self, index: int) -> str:
        """Name an image by its file and row."""
        return _where(self.files, self.counts, index)

    def identity(self) -> str:
        """Digest the files."""
        return digest(self.column, [file_digest(file, root=self.root) for file in self.files])

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read the first images."""
        return list(enumerate(next(self._batches(num))))

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all images in order."""
        return self._batches(CHUNK_IMAGES)

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a function that reads one image from a memory map.

        Parquet can only be read in large pieces, so the images are first written, as they are, into
        one file of the cache from which any row can be taken.
        """
        path = kept_file(cache / "encoded" / f"{self.identity()}.arrow", self._write_rows)
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("image")
        return lambda index: bytes(column[index].as_buffer())

    def _write_rows(self, path: Path) -> None:
        schema = pa.schema([("image", pa.large_binary())])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for chunk in self.chunks():
                writer.write_batch(pa.record_batch([pa.array(chunk, pa.large_binary())], schema))

    def _batches(self, size: int) -> Iterator[Sequence[bytes]]:
        start = 0
        for path in self.files:
            with _reading(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(size, columns=[self.column]):
                    yield self._encoded(batch.column(0), start)
                    start += len(batch)

    def _encoded(self, column: Any, start: int) -> Sequence[bytes]:
        inner = column.field("bytes") if pa.types.is_struct(column.type) else column
        values: list[bytes | None] = inner.to_pylist()
        for index, value in enumerate(values, start):
            if value is None:
                raise DataError(
                    f"{self.where(index)}: there is no image (the bytes in column "
                    f"{self.column!r} are null). Embed the images in the Parquet files."
                )
        return [value for value in values if value is not None]


def _content(spec: DataSpec) -> str:
    root = data_root(spec)
    splits = _find(spec)
    return digest(
        [
            (split, [file_digest(file, root=root) for file in files])
            for split, files in sorted(splits.items())
        ]
    )


@register_data("hf:", content=_content)
def hugging_face(spec: DataSpec) -> Raw:
    """Read the Parquet files below a folder, or those of a data set on the Hugging Face hub.

    Files are told apart by name: ``train-*.parquet``, ``test-*``, ``validation-*`` (or folders
    ``train/*.parquet``). Without a test split the validation split serves as test; with both, it is
    the validation split, used unless a validation share is asked for; with neither, a fifth of the
    images is drawn for testing. Images are encoded bytes, alone or in a struct with ``bytes``;
    labels are integers, named by the schema's ClassLabel where there is one.
    """
    splits = {name: _read(spec, files) for name, files in _find(spec).items()}
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    train = splits["train"]
    for name, other in splits.items():
        _check_classes(train, other, name=name)
    return Raw(
        classes=train.classes,
        train=train.split,
        test=splits["test"].split if "test" in splits else None,
        validation=splits["validation"].split if "validation" in splits else None,
    )


@dataclass(frozen=True)
class _Part:
    """One split as read: its images, labels and class names."""

    split: Split
    classes: tuple[str, ...]
    where: str


def _find(spec: DataSpec) -> dict[str, tuple[Path, ...]]:
    """Find the Parquet files of each split."""
    base = _base(spec)
    files = sorted(base.rglob("*.parquet"))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        if (split := _split_of(file)) is not None:
            by_split.setdefault(split, []).append(file)
    if "train" not in by_split:
        found = f"got {', '.join(f.name for f in files[:3])}" if files else "there are none"
        raise DataError(
            f"Data set {spec.name!r}: expected Parquet files named train-*.parquet and "
            f"test-*.parquet (or validation-*) below {base}, {found}."
        )
    folders = {_configuration(file) for file in by_split["train"]}
    if len(folders) > 1:
        names = ", ".join(sorted(str(folder.relative_to(base)) for folder in folders))
        raise DataError(
            f"Data set {spec.name!r}: {base} holds several configurations ({names}). "
            "Add the name of one of them to the path."
        )
    return {split: tuple(paths) for split, paths in by_split.items()}


def _split_of(file: Path) -> str | None:
    for name in (file.stem, file.parent.name):
        head = re.split(r"[-_.]", name.lower(), maxsplit=1)[0]
        if head in SPLITS:
            return SPLITS[head]
    return None


def _configuration(file: Path) -> Path:
    return file.parent.parent if file.parent.name.lower() in SPLITS else file.parent


def _base(spec: DataSpec) -> Path:
    local = Path(spec.location).expanduser().absolute()
    if local.is_dir():
        return local
    if not HUB_ID.match(spec.location) or spec.location.startswith("."):
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}. Give a folder that holds Parquet "
            "files, or the id of a data set on the Hugging Face hub such as 'uoft-cs/cifar10'."
        )
    return _from_hub(spec, local)


def _from_hub(spec: DataSpec, local: Path) -> Path:
    """Download (or find in the hub's own cache) OWNER/NAME, or OWNER/NAME/FOLDER of it."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"Data set {spec.name!r}: there is no folder {local}, and reading from the Hugging "
            "Face hub needs the package huggingface-hub. Install it: pip install 'regrow[hub]'."
        ) from error
    owner, name, *inner = spec.location.split("/")
    within = "/".join(inner)
    try:
        snapshot = snapshot_download(
            f"{owner}/{name}",
            repo_type="dataset",
            allow_patterns=[f"{within}/*.parquet" if within else "*.parquet"],
        )
    except Exception as error:  # the hub's client raises its own, its HTTP library's and OSErrors
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}, and '{owner}/{name}' cannot be "
            f"fetched from the Hugging Face hub ({type(error).__name__}: {reason}). Check the name "
            "and the network, or give the folder of a copy."
        ) from error
    return Path(snapshot) / within


def _read(spec: DataSpec, files: tuple[Path, ...]) -> _Part:
    """Read the labels of a split's files, and where its images are."""
    schema, counts = _schema(files)
    features = _features(schema)
    image = _image_column(spec, schema, where=files[0])
    label = _label_column(spec, schema, features=features, where=files[0])
    labels = torch.cat([_labels(file, label) for file in files])
    names = features.get(label, {}).get("names")
    classes = tuple(map(str, names or range(int(labels.max()) + 1 if len(labels) else 0)))
    images = ParquetImages(files=files, column=image, counts=counts, root=data_root(spec))
    return _Part(Split(images=images, labels=labels), classes=classes, where=str(files[0].parent))


def _schema(files: tuple[Path, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return the schema of the first file, which all must share, and the rows of each."""
    schemas, counts = [], []
    for path in files:
        with _reading(path), pq.ParquetFile(path) as file:
            schemas.append(file.schema_arrow)
            counts.append(file.metadata.num_rows)
        if not schemas[-1].equals(schemas[0]):
            raise DataError(
                f"{path}: the columns differ from those of {files[0].name}. "
                "Files of one split must have the same columns and types."
            )
    return schemas[0], tuple(counts)


def _features(schema: Any) -> dict[str, Any]:
    """Read the column descriptions that Hugging Face keeps in the schema, if any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):  # other versions describe less: columns go by type
        return {}
    described = features.items() if isinstance(features, dict) else ()
    return {name: value for name, value in described if isinstance(value, dict)}


def _image_column(spec: DataSpec, schema: Any, *, where: Path) -> str:
    fitting = [field.name for field in schema if _holds_images(field.type)]
    return _column(
        fitting, given=spec.image_column, preferred=IMAGE_COLUMNS, kind="image", where=where
    )


def _label_column(spec: DataSpec, schema: Any, *, features: dict[str, Any], where: Path) -> str:
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    named = [n for n in integers if features.get(n, {}).get("_type") == "ClassLabel"]
    likely = named or [n for n in integers if n in LABEL_COLUMNS]
    fitting = integers if spec.label_column is not None else likely
    return _column(
        fitting, given=spec.label_column, preferred=LABEL_COLUMNS, kind="label", where=where
    )


def _column(
    fitting: list[str], *, given: str | None, preferred: tuple[str, ...], kind: str, where: Path
) -> str:
    """Choose the column given, else the preferred or only one of those that fit."""
    if given is not None:
        if given not in fitting:
            raise ConfigError(f"{where}: {unknown(f'{kind} column', given, fitting)}")
        return given
    likely = [name for name in preferred if name in fitting] or fitting
    if not likely or (len(likely) > 1 and likely[0] not in preferred):
        holds = "images (bytes)" if kind == "image" else "class labels (integers)"
        raise DataError(
            f"{where}: expected one column of {holds}, got {', '.join(fitting) or 'none'}. "
            f"Name it by the option '{kind}_column'."
        )
    return likely[0]


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and _is_bytes(kind.field(index).type))
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _labels(path: Path, column: str) -> torch.Tensor:
    with _reading(path), pq.ParquetFile(path) as file:
        values = file.read(columns=[column]).column(0).combine_chunks()
    if values.null_count:
        row = values.is_null().index(True).as_py()
        raise DataError(
            f"{path}, row {row}: the label is null ({values.null_count} in all). "
            "Label these images or remove them."
        )
    return torch.tensor(values.to_numpy(zero_copy_only=False).astype("int64"))


def _check_classes(train: _Part, other: _Part, *, name: str) -> None:
    if other.classes != train.classes:
        differing = sorted(set(train.classes) ^ set(other.classes))
        detail = (
            f"only one of them has {', '.join(map(repr, differing[:5]))}"
            if differing
            else "their order differs"
        )
        raise DataError(
            f"{other.where}: the classes differ: train has {len(train.classes)}, {name} has "
            f"{len(other.classes)}; {detail}. The labels of both must mean the same."
        )


def _where(files: tuple[Path, ...], counts: tuple[int, ...], index: int) -> str:
    ends = list(accumulate(counts))
    file = bisect_right(ends, index)
    return f"{files[file]}, row {index - ends[file] + counts[file]}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into one message."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path}: the Parquet file cannot be read ({reason}). It may be cut short: "
            "copy or download it again."
        ) from error
