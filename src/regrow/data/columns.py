"""Examples with several inputs, as named columns: ``npz:``, ``parquet:`` and ``safetensors:``.

The column named ``labels`` (or ``label``, ``targets``, ``target``, ``y``, or by the option
``target``) holds the targets; every other column is an input of the network, under its name.
Without labels, or with labels that repeat the tokens as in transformers, the task is to predict the
next token.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.core.bounds import check_room, read_whole
from regrow.core.texts import quoted
from regrow.data.arrays import IGNORED
from regrow.data.base import Arrays, Rows
from regrow.data.copies import telling
from regrow.data.files import files_below
from regrow.data.named import NamedInputs
from regrow.data.spec import DataSpec, register_data
from regrow.data.split_files import SplitFiles, split_files
from regrow.errors import ConfigError, DataError, short, unknown

Columns = Mapping[str, NDArray[Any]]
CLASSIFICATION, REGRESSION, TOKENS = "classification", "regression", "token-classification"
BATCH_ROWS = 4096
BYTES_A_VALUE = 24  # one copy each: as read, as int64 or float64, and as a tensor
MOST_CLASSES = 2**22  # more than any vocabulary has
NEXT = "next-token"
TARGETS = ("labels", "label", "targets", "target", "y")
# Names in transformers; the mask is 0 where a token is padding.
IDS, MASK = "input_ids", "attention_mask"
KINDS = {"i": "whole numbers", "u": "whole numbers", "f": "numbers", "b": "truths"}
SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}


def arrays_of(
    splits: Mapping[str, Columns], spec: DataSpec, *, notices: tuple[str, ...] = ()
) -> Arrays:
    """Convert the columns of each split to examples; a single input is a plain tensor."""
    if "train" not in splits:
        raise DataError(f"Data set {spec.name!r}: it has no rows to train on.")
    target = _target(splits["train"], spec)
    for name, columns in splits.items():
        if {*columns} != {*splits["train"]}:
            raise DataError(
                f"Data set {spec.name!r}: its splits differ in their columns: train has "
                f"{', '.join(splits['train'])}, and {name} {', '.join(columns)}."
            )
    inputs = {
        split: NamedInputs({n: _input(n, c[n], spec) for n in c if n != target})
        for split, c in splits.items()
    }
    if not inputs["train"]:
        raise DataError(f"Data set {spec.name!r}: it has no column beside {target!r}.")
    tokens = _tokens(inputs["train"])
    if tokens is not None:  # first, because ``NamedInputs`` has the shape of its first input
        inputs = {s: NamedInputs({tokens: named[tokens], **named}) for s, named in inputs.items()}
    targets = {split: None if target is None else c[target] for split, c in splits.items()}
    if tokens is not None and all(_repeats(targets[s], inputs[s][tokens]) for s in splits):
        return replace(_next_token(inputs, targets, spec, tokens=tokens), notices=notices)
    if target is None:
        raise DataError(
            f"Data set {spec.name!r}: expected 'inputs' and 'targets', or a column for each input "
            f"and the targets as one of {', '.join(TARGETS)}, or under the name "
            f"given as 'target'. Got {', '.join(inputs['train'])}."
        )
    values = {split: columns[target] for split, columns in splits.items()}
    examples = {split: _alone(named) for split, named in inputs.items()}
    arrays = labelled(examples, values, spec, vocabulary=_vocabulary(inputs, tokens))
    told = telling(inputs["train"], arrays.train.targets, spec)
    return replace(arrays, notices=(*notices, *told))


def labelled(
    inputs: Mapping[str, Any],
    targets: Columns,
    spec: DataSpec,
    *,
    vocabulary: int | None,
) -> Arrays:
    """Join the inputs and the targets of each split; targets are numbers or classes.

    They are numbers if all are floats or the task is regression.
    """
    for split, y in targets.items():
        _check_present(y, of=f"the {split} split of {spec.name!r}")
    _check_kinds(targets, spec)
    numbers = spec.task == REGRESSION or all(y.dtype.kind == "f" for y in targets.values())
    names = () if numbers else class_names([*targets.values()])
    task = REGRESSION if numbers else TOKENS if targets["train"].ndim > 1 else CLASSIFICATION
    rows = {
        split: Rows(inputs=inputs[split], targets=targets_of(y, names, numbers=numbers))
        for split, y in targets.items()
    }
    return Arrays(
        task=spec.task or task,
        train=rows["train"],
        test=rows.get("test"),
        validation=rows.get("validation"),
        classes=names,
        vocabulary=vocabulary,
    )


def _check_present(targets: NDArray[Any], *, of: str) -> None:
    """Raise a ``DataError`` if a target is missing; numbers are checked with the inputs."""
    if targets.dtype.kind not in "OU":
        return
    missing = np.array([value is None or value == "" for value in np.ravel(targets)], dtype=bool)
    if missing.any():
        row = int(missing.argmax()) * len(targets) // targets.size
        raise DataError(
            f"{of}: the target of row {row} is missing ({int(missing.sum())} in all). Fill it in, "
            "or remove such rows."
        )


def _check_kinds(targets: Columns, spec: DataSpec) -> None:
    """Raise a ``DataError`` for targets of other kinds in another split: they would differ."""
    kinds = {split: KINDS.get(y.dtype.kind, "texts") for split, y in targets.items()}
    found = {*kinds.values()}
    said = " and ".join(f"{kind} in {split}" for split, kind in kinds.items())
    if spec.task == REGRESSION:
        if not found <= {"numbers", "whole numbers"}:
            raise DataError(
                f"Data set {spec.name!r}: the task is regression, and the targets are {said}. "
                "Give the column of numbers as 'target', or another task."
            )
    elif len(found) > 1:
        raise DataError(
            f"Data set {spec.name!r}: the targets are {said}. Store the same type in each split; "
            "a missing value makes numbers of whole numbers."
        )


def _target(columns: Columns, spec: DataSpec) -> str | None:
    if spec.target is not None and spec.target not in columns:
        raise ConfigError(f"Data set {spec.name!r}: {unknown('target', spec.target, [*columns])}")
    likely = [name for name in TARGETS if name in columns]
    if spec.target is None and len(likely) > 1:
        raise ConfigError(
            f"Data set {spec.name!r}: {quoted(likely, len(likely))} may each be the targets. Name "
            "them in the option 'target'. The other columns are inputs: remove those that are not."
        )
    return spec.target or next(iter(likely), None)


def _input(name: str, values: NDArray[Any], spec: DataSpec) -> Tensor:
    if values.dtype.kind in "iub":
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float32))
    first = short(values.flat[0] if values.size else values)
    raise DataError(
        f"Data set {spec.name!r}: the column {name!r} must be numbers, of one shape in each row, "
        f"and is {values.dtype}, such as {first}. Pad sequences to one length, with a column "
        f"{MASK!r} of ones and zeros, and leave out columns that the network does not take."
    )


def _tokens(inputs: Mapping[str, Tensor]) -> str | None:
    """Return the input that holds tokens: ``input_ids``, else the first that can hold some.

    Those are 2-d integers that are not a mask of 0 and 1.
    """
    ids = [n for n, v in inputs.items() if not v.is_floating_point() and v.dim() == 2]
    able = [name for name in ids if int(inputs[name].max()) > 1]
    return IDS if IDS in able else next(iter(able), None)


def _vocabulary(inputs: Mapping[str, Mapping[str, Tensor]], tokens: str | None) -> int | None:
    if tokens is None:
        return None
    return 1 + max(int(named[tokens].max()) for named in inputs.values())


def _alone(inputs: NamedInputs) -> Any:
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _repeats(targets: NDArray[Any] | None, tokens: Tensor) -> bool:
    """Return whether there are no targets, or they repeat the tokens (or are ignored)."""
    if targets is None:
        return True
    same = targets.shape == tokens.shape and targets.dtype.kind in "iu"
    return same and bool(((targets == tokens.numpy()) | (targets == IGNORED)).all())


def _next_token(
    inputs: Mapping[str, NamedInputs],
    targets: Mapping[str, NDArray[Any] | None],
    spec: DataSpec,
    *,
    tokens: str,
) -> Arrays:
    """Make each token the target of the one before it, except for padding and ignored ones."""
    rows = {}
    for split, named in inputs.items():
        ids, given = named[tokens], targets[split]
        wanted = ids if given is None else torch.from_numpy(given.astype(np.int64))
        wanted = wanted[:, 1:].clone()
        if MASK in named:
            wanted[named[MASK][:, 1:] == 0] = IGNORED
        short_ones = {n: v[:, :-1] if v.shape == ids.shape else v for n, v in named.items()}
        rows[split] = Rows(inputs=_alone(NamedInputs(short_ones)), targets=wanted)
    vocabulary = _vocabulary(inputs, tokens)
    return Arrays(
        task=spec.task or NEXT,
        train=rows["train"],
        test=rows.get("test"),
        validation=rows.get("validation"),
        classes=tuple(map(str, range(vocabulary or 0))),
        vocabulary=vocabulary,
    )


def class_names(targets: list[NDArray[Any]]) -> tuple[str, ...]:
    """Return the names of classes: for integers 0 up to the largest, else the distinct values."""
    values = np.unique(np.concatenate([np.ravel(y) for y in targets]))
    if values.dtype.kind in "iu":
        if int(values.max()) > MOST_CLASSES:
            raise DataError(
                f"The targets hold labels up to {int(values.max()):,}, but classes are numbered "
                f"from 0 to at most {MOST_CLASSES:,}. Renumber them, or use texts."
            )
        return tuple(str(k) for k in range(max(int(values.max()) + 1, 2)))
    return tuple(str(value) for value in values)


def targets_of(y: NDArray[Any], names: tuple[str, ...], *, numbers: bool) -> Tensor:
    """Return targets as numbers, or as indices of classes."""
    if numbers:
        return torch.from_numpy(y.astype(np.float32))
    if y.dtype.kind in "iu":
        return torch.from_numpy(y.astype(np.int64))
    place = {name: i for i, name in enumerate(names)}
    flat = [place[str(value)] for value in np.ravel(y)]
    return torch.tensor(flat).reshape(y.shape)


# Files --------------------------------------------------------------------------------------------


def split_columns(arrays: Columns) -> dict[str, dict[str, NDArray[Any]]]:
    """Group arrays by split, the suffix of their names (``input_ids_test``); by default train."""
    splits: dict[str, dict[str, NDArray[Any]]] = {}
    for name, values in arrays.items():
        stem, _, last = name.rpartition("_")
        split = SPLITS.get(last) if stem else None
        columns = splits.setdefault(split or "train", {})
        column = stem if split else name
        if column in columns:
            raise DataError(
                f"The array {name!r} is a second {column!r} of the {split or 'train'} split. "
                "Remove one of them, or give it the name of another split."
            )
        columns[column] = values
    return splits


def _files(spec: DataSpec, suffix: str) -> list[Path]:
    path = Path(spec.location).expanduser()
    files = [path] if path.is_file() else []
    if path.is_dir():
        below = (file for file in files_below(path) if file.suffix.lower() == suffix)
        files = [file for file in below if file.is_file()]  # not pipes: reading may never end
    if not files:
        raise DataError(
            f"Data set {spec.name!r}: no {suffix} file there. Give the path of a file, or of a "
            f"folder that holds train{suffix} and, optionally, test{suffix}."
        )
    return files


def _by_split(spec: DataSpec, suffix: str) -> SplitFiles:
    """Return the files of each split; without a split's name, all are the training split."""
    files = _files(spec, suffix)
    if len(files) > 1:
        found = split_files(spec, Path(spec.location).expanduser(), files)
        if found.splits:
            return found
    return SplitFiles({"train": tuple(files)}, ())


def _digest_of(suffix: str) -> Any:
    def digest(spec: DataSpec) -> str:
        sha = hashlib.sha256()
        for split, files in sorted(_by_split(spec, suffix).splits.items()):
            for file in files:
                try:
                    content = read_whole(file)
                except OSError as error:
                    raise DataError(f"{file} cannot be read: {error.strerror}") from error
                sha.update(f"{split} {len(content)}\n".encode() + content)
        return sha.hexdigest()

    return digest


@register_data("safetensors:", content=_digest_of(".safetensors"), revision=3)  # input_ids
def safetensors_columns(spec: DataSpec) -> Arrays:
    """Read named tensors as columns, from one file or from a folder with a file for each split."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    found = _by_split(spec, ".safetensors")
    splits: dict[str, dict[str, list[NDArray[Any]]]] = {}
    for split, files in found.splits.items():
        for file in files:
            try:
                arrays = load_file(file)
            except (SafetensorError, OSError, TypeError, MemoryError) as error:
                raise DataError(f"{file} cannot be read: {error}") from error
            parts = split_columns(arrays)
            alone = {split: parts["train"]} if {*parts} == {"train"} else parts
            for name, columns in alone.items():
                for column, values in columns.items():
                    splits.setdefault(name, {}).setdefault(column, []).append(values)
    try:
        joined = {s: {n: _joined(parts) for n, parts in c.items()} for s, c in splits.items()}
    except ValueError as error:
        raise DataError(
            f"Data set {spec.name!r}: a column differs between files of one split ({error})."
        ) from error
    return arrays_of(joined, spec, notices=_said(found, spec))


def _said(found: SplitFiles, spec: DataSpec) -> tuple[str, ...]:
    return tuple(f"Data set {spec.name!r}: {notice}" for notice in found.notices)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the rows of several files, one after the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@register_data("parquet:", content=_digest_of(".parquet"), revision=3)  # input_ids
def parquet_columns(spec: DataSpec) -> Arrays:
    """Read the columns of one Parquet file, or of a folder with files for each split."""
    import pyarrow as pa

    found = _by_split(spec, ".parquet")
    splits, indices = {}, set()
    for split, files in found.splits.items():
        try:
            table = pa.concat_tables([_table(file) for file in files])
            indices |= (index := _indices(table, spec))
            table = table.drop_columns(sorted(index))
            splits[split] = {name: _stacked(table.column(name)) for name in table.column_names}
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise DataError(
                f"Data set {spec.name!r} cannot be read: {short(error) or 'memory ran out'}"
            ) from error
    notices = (
        f"Data set {spec.name!r}: the column {name!r} is left out: it is an index of pandas."
        for name in sorted(indices)
    )
    return arrays_of(splits, spec, notices=(*_said(found, spec), *notices))


def _indices(table: Any, spec: DataSpec) -> set[str]:
    """Return the columns of the index of a data frame, except for the target."""
    described = (table.schema.pandas_metadata or {}).get("index_columns", ())
    named = {name for name in described if isinstance(name, str)}  # others are ranges
    return (named & {*table.column_names}) - {spec.target}


def _table(file: Path) -> Any:
    """Read a Parquet file; a ``ValueError`` if it would expand to more than fits into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        rows = opened.metadata.num_rows
        wanted = BYTES_A_VALUE * rows * _num_of_fixed_width(opened)
        check_room(wanted, f"{file.name}: its {rows:,} rows")
        batches, taken, done = [], 0, 0
        for batch in opened.iter_batches(BATCH_ROWS):
            batches.append(batch)
            taken, done = taken + batch.nbytes, done + len(batch)
            left = max(0, rows - done)
            # The rest at the same bytes per row, and a second copy of what is read, as arrays.
            check_room(taken * left / max(1, done) + taken, f"{file.name}: its {rows:,} rows")
        return pa.Table.from_batches(batches, schema=opened.schema_arrow)


def _num_of_fixed_width(opened: Any) -> int:
    import pyarrow as pa

    return sum(pa.types.is_primitive(field.type) for field in opened.schema_arrow)


def _stacked(column: Any) -> NDArray[Any]:
    """Return a column as an array with one row per example; of objects if their shapes differ."""
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype != object or not len(values) or isinstance(values[0], str):
        return np.asarray(values)
    rows = [np.asarray(value.tolist() if hasattr(value, "tolist") else value) for value in values]
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else values
