"""Read tables and arrays from files: ``csv:FILE`` and ``npz:FILE``."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.core.bounds import read_npz, read_whole
from regrow.data.base import Arrays, Rows
from regrow.data.columns import (
    CLASSIFICATION,
    REGRESSION,
    arrays_of,
    labelled,
    split_columns,
)
from regrow.data.spec import DataSpec, register_data
from regrow.errors import ConfigError, DataError, short, unknown

# Names of the two arrays of a split in an .npz file, the most common first.
PAIRS = (("inputs", "targets"), ("x", "y"), ("X", "y"))
TARGETS = {
    "i": "numbers",
    "u": "numbers",
    "f": "numbers",
    "b": "truths",
    "U": "texts",
    "S": "texts",
}
SPLITS = ("train", "test", "validation", "val")
LARGER = 10  # memory over file size, for a table of short cells


def _digest(spec: DataSpec) -> str:
    return hashlib.sha256(_bytes(spec)).hexdigest()


def _bytes(spec: DataSpec) -> bytes:
    path = Path(spec.location).expanduser()
    try:
        return read_whole(path, times=LARGER)
    except OSError as error:
        raise DataError(
            f"Data set {spec.name!r}: the file cannot be read ({error.strerror}). Give the path of "
            f"a {spec.name.partition(':')[0]} file."
        ) from error


@register_data("csv:", content=_digest)
def csv_table(spec: DataSpec) -> Arrays:
    """Read a table of numbers with a header; the target is the last column or ``target``.

    The task is regression if the target is numbers, else classification; ``task: classification``
    takes numbers as classes.
    """
    try:
        lines = _bytes(spec).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"Data set {spec.name!r}: the file is not UTF-8 ({error.reason})."
        ) from error
    try:
        head, *body = [row for row in csv.reader(lines) if row] or [[]]
    except csv.Error as error:
        raise DataError(f"Data set {spec.name!r}: the file is not valid CSV ({error}).") from error
    if len(head) < 2 or len(set(head)) < len(head) or len(body) < 2:
        raise DataError(
            f"Data set {spec.name!r}: expected a header of at least two different names, and "
            f"below it at least two rows. Got {len(body)} below {short(head)}."
        )
    for number, row in enumerate(body, start=2):
        if len(row) != len(head):
            raise DataError(
                f"Data set {spec.name!r}, row {number}: expected {len(head)} values, as in the "
                f"header. Got {len(row)}."
            )
    target = head[-1] if spec.target is None else spec.target
    if target not in head:
        raise ConfigError(f"Data set {spec.name!r}: {unknown('target', target, head)}")
    place = head.index(target)
    columns = [i for i in range(len(head)) if i != place]
    inputs = [
        [_number(row[i], spec, number, head[i]) for i in columns] for number, row in _numbered(body)
    ]
    wanted = [row[place].strip() for row in body]
    task = spec.task or (REGRESSION if all(map(_is_number, wanted)) else CLASSIFICATION)
    if task == REGRESSION:
        classes: tuple[str, ...] = ()
        numbers = [[_number(row[place], spec, number, target)] for number, row in _numbered(body)]
        targets = torch.tensor(numbers)
    else:
        targets, classes = _classes(wanted)
    return Arrays(
        task=task, train=Rows(inputs=torch.tensor(inputs), targets=targets), classes=classes
    )


def _numbered(body: list[list[str]]) -> Any:
    return enumerate(body, start=2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, spec: DataSpec, row: int, column: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(
            f"Data set {spec.name!r}, row {row}: {column!r} must be a number. Got {short(text)}. "
            "Leave the column out, or write its categories as columns of 0 and 1."
        ) from error


def _classes(values: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    names = sorted(set(values), key=lambda name: (not _is_number(name), _order(name), name))
    place = {name: i for i, name in enumerate(names)}
    return torch.tensor([place[value] for value in values]), tuple(names)


def _order(name: str) -> float:
    return float(name) if _is_number(name) else 0.0


@register_data("npz:", content=_digest)
def npz_arrays(spec: DataSpec) -> Arrays:
    """Read arrays ``inputs`` and ``targets`` (or ``x`` and ``y``, or ``x_train``, ``x_test`` ...).

    Integer inputs are tokens, others features. Targets that are integers or texts are classes, one
    per row or per token; others are numbers to predict. Arrays with other names are named inputs:
    see ``regrow.data.columns``.
    """
    arrays = _read_npz(spec)
    pair = next((p for p in PAIRS if {*p} <= {n.partition("_")[0] for n in arrays}), None)
    if pair is None:
        return arrays_of(split_columns(arrays), spec)
    splits: dict[str, tuple[Any, Any]] = {}
    for split in ("", *SPLITS):
        x, y = (f"{name}_{split}" if split else name for name in pair)
        if x in arrays and y in arrays:
            name = {"": "train", "val": "validation"}.get(split, split)
            splits[name] = (arrays[x], arrays[y])
    if "train" not in splits:
        raise DataError(f"Data set {spec.name!r}: it has no arrays to train on.")
    of = [str(y.dtype) for _, y in splits.values()]
    sorts = {TARGETS.get(y.dtype.kind) for _, y in splits.values()}
    if len(sorts) > 1 or None in sorts or not all(y.ndim for _, y in splits.values()):
        raise DataError(
            f"Data set {spec.name!r}: the targets of all splits must be numbers, or all texts, or "
            f"all booleans, one or several per row. Got {', '.join(of)}."
        )
    for name, (x, _) in splits.items():
        if x.dtype.kind not in "biuf" or not x.size or not x.ndim:
            raise DataError(
                f"Data set {spec.name!r}: the inputs of its {name} split must be numbers, one row "
                f"per example. Got {x.dtype} of shape {x.shape}."
            )
    tokens = splits["train"][0].dtype.kind in "iu"
    inputs = {
        name: torch.from_numpy(x.astype(np.int64 if tokens else np.float32))
        for name, (x, _) in splits.items()
    }
    vocabulary = 1 + max(int(x.max()) for x, _ in splits.values()) if tokens else None
    targets = {name: y for name, (_, y) in splits.items()}
    return labelled(inputs, targets, spec, vocabulary=vocabulary)


def _read_npz(spec: DataSpec) -> dict[str, NDArray[Any]]:
    try:
        return read_npz(Path(spec.location).expanduser())
    except (OSError, ValueError) as error:
        raise DataError(
            f"Data set {spec.name!r}: the file cannot be read ({error}). Write it with "
            "numpy.savez, without objects."
        ) from error
