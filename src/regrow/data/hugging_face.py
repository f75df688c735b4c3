"""Read image classification data sets from Parquet files, the format of the Hugging Face hub."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regrow.core.bounds import check_plain, check_room
from regrow.data.base import Raw, Split
from regrow.data.cache import data_root, digest, file_digest, kept_file
from regrow.data.labels import LabelColumn, code, is_labelled, kind_of, plain
from regrow.data.parquet import find
from regrow.data.spec import DataSpec, register_data
from regrow.errors import ConfigError, DataError, unknown

# In order of preference. Of CIFAR-100's two label columns, the fine one is its usual task.
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
IMAGE_COLUMNS = ("image", "img", "images")
HOLDS = {
    "image": "images (bytes)",
    "label": "class labels (whole numbers, texts or truths)",
}
BYTES_A_LABEL = 64  # including Python objects
CHUNK_IMAGES = 256
DIGEST = pa.binary(32)
ROWS = pa.schema([("image", pa.large_binary()), ("digest", DIGEST)])  # of the cached copy


@dataclass(frozen=True)
class ParquetImages:
    """The image column of Parquet files, read in order or, for streaming, by row."""

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
        """Return a digest of the files and the column's name."""
        return digest(self.column, [file_digest(file, root=self.root) for file in self.files])

    def sample(self, num: int) -> list[tuple[int, bytes]]:
        """Read the first images."""
        images = list(enumerate(next(self._batches(num))))
        if not any(data for _, data in images):
            raise DataError(
                f"{self.where(0)}: neither this row nor those after it have an image (the bytes in "
                f"column {self.column!r} are null). Embed the images in the Parquet files."
            )
        return images

    def chunks(self) -> Iterator[Sequence[bytes]]:
        """Read all images in order."""
        return self._batches(CHUNK_IMAGES)

    def reader(self, cache: Path) -> Callable[[int], bytes]:
        """Return a function that reads one image from a memory map.

        Parquet can only be read in large blocks, so the encoded images are first copied to one
        file in the cache that allows random access. Each is stored with a digest, which is checked
        when it is read.
        """
        name = cache / "encoded" / f"{self.identity()}.arrow"
        path = kept_file(name, self._write_rows, sound=lambda file: _rows(file) is not None)
        rows = _rows(path)
        assert rows is not None, "written a moment ago"
        images, digests = rows.column("image"), rows.column("digest")

        def read(index: int) -> bytes:
            image = bytes(images[index].as_buffer())
            if sha256(image).digest() != digests[index].as_py():
                path.unlink(missing_ok=True)
                raise DataError(
                    f"{path} is damaged: its row {index} was altered after it was written. It was "
                    "removed, and is written again by the next command that needs it."
                )
            return image

        return read

    def _write_rows(self, path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, ROWS) as writer:
            for chunk in self.chunks():
                digests = [sha256(image).digest() for image in chunk]
                columns = [pa.array(chunk, pa.large_binary()), pa.array(digests, DIGEST)]
                writer.write_batch(pa.record_batch(columns, ROWS))

    def _batches(self, size: int) -> Iterator[Sequence[bytes]]:
        for path in self.files:
            with _reading(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(size, columns=[self.column]):
                    yield self._encoded(batch.column(0))

    def _encoded(self, column: Any) -> Sequence[bytes]:
        inner = column.field("bytes") if pa.types.is_struct(column.type) else column
        return [value or b"" for value in inner.to_pylist()]


def _rows(path: Path) -> Any:
    """Memory-map the images of a cached file; None if it is damaged."""
    try:
        rows = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        rows.validate(full=True)  # offsets, as Arrow would otherwise read wherever they point
    except (pa.ArrowException, OSError, ValueError):
        return None
    return rows if rows.schema == ROWS else None


def _content(spec: DataSpec) -> str:
    root = data_root(spec)
    splits = find(spec).splits
    return digest(
        [
            (split, [_digest(file, root) for file in files])
            for split, files in sorted(splits.items())
        ]
    )


def _digest(file: Path, root: Path) -> str:
    with _reading(file):
        return file_digest(file, root=root)


@register_data("hf:", content=_content)
def hugging_face(spec: DataSpec) -> Raw:
    """Read the Parquet files below a folder, or those of a data set on the Hugging Face hub.

    File names determine the split: ``train-*.parquet``, ``test-*``, ``validation-*`` (or folders
    ``train/*.parquet``), also ``training``, ``testing``, ``val``, ``valid``, ``eval``, ``dev``, in
    upper or lower case. Without a test split that has labels, the validation split is used for
    testing; with one, it is used for validation, unless a validation share is given; without
    either, a fifth of the images is drawn for testing. Files of several splits of one kind, such as
    ``train`` and ``train_extra``, are refused. Images are encoded bytes, alone or in a
    struct with the field ``bytes``; labels are integers (with the names of the schema's ClassLabel,
    if any), texts or booleans.
    """
    split_files = find(spec)
    parts: dict[str, _ReadSplit] = {}
    notices = list(split_files.notices)
    for split, files in split_files.splits.items():
        part = _read(spec, files, train=parts.get("train"))
        if reason := _left_out(part):
            if split == "train":
                raise DataError(f"{part.where}: nothing is left of the training split: {reason}.")
            notices.append(f"The {split} split is left out: {reason}.")
        else:
            parts[split] = part
    notices += parts["train"].notices
    coded = code({split: part.labels for split, part in parts.items() if part.labels})
    notices += coded.notices
    splits = {
        split: Split(images=part.images, labels=coded.labels[split])
        for split, part in parts.items()
    }
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notices += (
            ["The validation split is used for testing."] if "test" in split_files.splits else []
        )
    return Raw(
        classes=coded.classes,
        train=splits["train"],
        test=splits.get("test"),
        validation=splits.get("validation"),
        notices=tuple(f"Data set {spec.name!r}: {notice}" for notice in notices),
    )


# Reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ReadSplit:
    """One split as read: its images, and its labels if it has a label column."""

    images: ParquetImages
    label: str  # the name of the label column
    labels: LabelColumn | None
    notices: tuple[str, ...]

    @property
    def where(self) -> Path:
        return self.images.files[0]


def _read(spec: DataSpec, files: tuple[Path, ...], *, train: _ReadSplit | None) -> _ReadSplit:
    """Read a split: its labels, and a source of its images.

    Splits other than ``train`` use the label column of ``train``, or have no labels.
    """
    schema, counts = _schema(files)
    image, other_images = _image_column(spec, schema, where=files[0])
    other_labels: tuple[str, ...] = ()
    if train is None:
        label, other_labels = _label_column(spec, schema, where=files[0])
    else:
        label = train.label
    images = ParquetImages(files=files, column=image, counts=counts, root=data_root(spec))
    notices = tuple(
        f"The column {column!r} is read; others hold {kind}s too ({', '.join(alternatives)}). To "
        f"use another, name it in the option '{kind}_column'."
        for kind, column, alternatives in (
            ("image", image, other_images),
            ("label", label, other_labels),
        )
        if alternatives
    )
    if label not in schema.names or pa.types.is_null(schema.field(label).type):
        return _ReadSplit(images, label, None, notices)
    labels = LabelColumn(
        column=label,
        values=pa.concat_arrays([_values(file, label) for file in files]),
        names=_class_names(files, label),
        where=images.where,
    )
    return _ReadSplit(images, label, labels, notices)


def _left_out(part: _ReadSplit) -> str | None:
    """Return why a split cannot be used, or None if it can."""
    if not len(part.images):
        return "it is empty"
    if part.labels is None:
        return f"its {len(part.images)} images have no labels (in a column {part.label!r})"
    return None if is_labelled(part.labels) else f"its {len(part.images)} images have no labels"


def _class_names(files: tuple[Path, ...], column: str) -> tuple[str, ...] | None:
    """Return the class names in the files' metadata, or None; those of all files must agree."""
    by_names: dict[tuple[str, ...], Path] = {}
    for file in files:
        with _reading(file):
            described = _features(pq.read_schema(file)).get(column, {}).get("names")
        if isinstance(described, list) and described:
            by_names.setdefault(tuple(map(str, described)), file)
    if len(by_names) > 1:
        first, second = list(by_names.values())[:2]
        raise DataError(
            f"{second}: its classes differ from those of {first.name}, or have another order, so "
            "one label would mean two classes. Files of one split must list the same classes."
        )
    return next(iter(by_names), None)


def _schema(files: tuple[Path, ...]) -> tuple[Any, tuple[int, ...]]:
    """Return the schema that all files must share, and the number of rows of each file."""
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
    names = schemas[0].names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{files[0]}: two columns are called {twice!r}. Rename one of them.")
    return schemas[0], tuple(counts)


def _features(schema: Any) -> dict[str, Any]:
    """Read Hugging Face's column descriptions from the schema's metadata, if any."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):  # other versions: columns are chosen by type
        return {}
    described = features.items() if isinstance(features, dict) else ()
    return {name: value for name, value in described if isinstance(value, dict)}


def _image_column(spec: DataSpec, schema: Any, *, where: Path) -> tuple[str, tuple[str, ...]]:
    """Choose the image column; return it and the other columns that could be meant."""
    fitting = [field.name for field in schema if _holds_images(field.type)]
    column = _column(
        fitting, wanted=spec.image_column, preferred=IMAGE_COLUMNS, kind="image", where=where
    )
    if column is None:
        raise DataError(_no_column(schema, "image", where=where))
    return column


def _label_column(spec: DataSpec, schema: Any, *, where: Path) -> tuple[str, tuple[str, ...]]:
    """Choose the label column; return it and the other columns that could be meant."""
    kinds = {field.name: kind_of(field.type) for field in schema}
    labels = [name for name, kind in kinds.items() if kind is not None]
    wanted, features = spec.label_column, _features(schema)
    several = [n for n in (wanted, *LABEL_COLUMNS) if n in kinds and kinds[n] is None]
    integers = [name for name in labels if kinds[name] == "integer"]
    class_labels = [n for n in integers if features.get(n, {}).get("_type") == "ClassLabel"]
    named = [name for name in labels if name in LABEL_COLUMNS]
    likely = class_labels or [name for name in named if name in integers] or named
    if several and (wanted in several or not likely):
        kind = schema.field(several[0]).type
        raise DataError(
            f"{where}: the column {several[0]!r} holds {kind}, not one class for each image. Name "
            "a column of whole numbers or texts in the option 'label_column'."
        )
    candidates = [*dict.fromkeys([*class_labels, *named])]
    if wanted is None and class_labels and named and not {*class_labels} & {*named}:
        raise DataError(_several("label", candidates, where=where))
    fitting = labels if wanted is not None else likely
    column = _column(fitting, wanted=wanted, preferred=LABEL_COLUMNS, kind="label", where=where)
    if column is None:
        raise DataError(_no_column(schema, "label", where=where))
    others = () if wanted is not None else tuple(n for n in candidates if n != column[0])
    return column[0], others


def _column(
    fitting: list[str], *, wanted: str | None, preferred: tuple[str, ...], kind: str, where: Path
) -> tuple[str, tuple[str, ...]] | None:
    """Choose ``wanted``, else the preferred or only fitting column; return the other ones too.

    None if no column fits.
    """
    if wanted is not None:
        if wanted not in fitting:
            raise ConfigError(f"{where}: {unknown(f'{kind} column', wanted, fitting)}")
        return wanted, ()
    likely = [name for name in preferred if name in fitting] or fitting
    if len(likely) > 1 and likely[0] not in preferred:
        raise DataError(_several(kind, fitting, where=where))
    return (likely[0], tuple(n for n in fitting if n != likely[0])) if likely else None


def _several(kind: str, columns: list[str], *, where: Path) -> str:
    return (
        f"{where}: expected one column of {HOLDS[kind]}, got {', '.join(columns)}. "
        f"Name it in the option '{kind}_column'."
    )


def _no_column(schema: Any, kind: str, *, where: Path) -> str:
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    return (
        f"{where}: expected one column of {HOLDS[kind]}, got none. "
        f"Name it in the option '{kind}_column'; the columns are {columns}."
    )


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and _is_bytes(kind.field(index).type))
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _values(path: Path, column: str) -> Any:
    with _reading(path), pq.ParquetFile(path) as file:
        check_room(BYTES_A_LABEL * file.metadata.num_rows, "its labels")
        values = file.read(columns=[column]).column(0).combine_chunks()
    return plain(values)


def _where(files: tuple[Path, ...], counts: tuple[int, ...], index: int) -> str:
    ends = list(accumulate(counts))
    file = bisect_right(ends, index)
    return f"{files[file]}, row {index - ends[file] + counts[file]}"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert pyarrow's exceptions for damaged files to a ``DataError``."""
    try:
        check_plain(path)
        yield
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path}: the Parquet file cannot be read ({reason}). It may be truncated: "
            "copy or download it again."
        ) from error
