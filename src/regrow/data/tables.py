"""Read tables and arrays from files: ``csv:FILE`` and ``npz:FILE``."""

import csv
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.core.bounds import read_npz, read_whole
from regrow.core.texts import quoted
from regrow.data.base import Arrays, Rows
from regrow.data.columns import (
    CLASSIFICATION,
    REGRESSION,
    arrays_of,
    labelled,
    split_columns,
)
from regrow.data.copies import telling
from regrow.data.spec import DataSpec, register_data
from regrow.errors import ConfigError, DataError, short, unknown

# Names of the two arrays of a split in an .npz file, the most common first.
PAIRS = (("inputs", "targets"), ("x", "y"), ("X", "y"))
TARGETS = "iufbUS"  # the kinds of numpy that targets may have
SPLITS = ("train", "test", "validation", "val", "valid")
UNNAMED = re.compile(r"\s*(Unnamed: \d+)?\s*")  # an index as pandas writes it, or reads it again
SHOWN = 5  # arrays, in a notice
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


@register_data("csv:", content=_digest, revision=2)  # without an index
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
    unnamed = [name for name in head if name != target and UNNAMED.fullmatch(name)]
    names = [name for name in head if name not in (target, *unnamed)]
    if not names:
        raise DataError(f"Data set {spec.name!r}: it has no column beside {target!r}.")
    columns = [(head.index(name), name) for name in names]
    inputs = [
        [_number(row[i], spec, number, name) for i, name in columns]
        for number, row in _numbered(body)
    ]
    wanted = [row[place].strip() for row in body]
    task = spec.task or _task_of(wanted, target, spec)
    _check_present(wanted, target, spec)
    if task == REGRESSION:
        classes: tuple[str, ...] = ()
        numbers = [[_number(row[place], spec, number, target)] for number, row in _numbered(body)]
        targets = torch.tensor(numbers)
    else:
        targets, classes = _classes(wanted)
    rows = Rows(inputs=torch.tensor(inputs), targets=targets)
    named = dict(zip(names, rows.inputs.T, strict=True))
    notices = (*_notices(spec, unnamed, named), *telling(named, targets, spec))
    return Arrays(task=task, train=rows, classes=classes, notices=notices)


def _notices(spec: DataSpec, unnamed: list[str], inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return messages about columns that are an index, and inputs that may be one."""
    left_out = (f"the column {name!r} is left out: it has no name, as an index" for name in unnamed)
    counting = (
        f"the column {name!r} numbers the rows, and networks take it as an input. If it is an "
        "index, remove it: where rows are sorted, it tells their targets"
        for name, values in inputs.items()
        if float(values[0]).is_integer() and bool((values.diff() == 1).all())
    )
    return tuple(f"Data set {spec.name!r}: {notice}." for notice in (*left_out, *counting))


def _task_of(targets: list[str], name: str, spec: DataSpec) -> str:
    """Return the task for a column of targets; refuse one that may be numbers or classes."""
    numbers = [_is_number(text) for text in targets]
    present = [number for number, text in zip(numbers, targets, strict=True) if text]
    if all(present):
        return REGRESSION
    if any(present):
        row = numbers.index(False)
        raise DataError(
            f"Data set {spec.name!r}, row {row + 2}: the target {name!r} is {short(targets[row])}, "
            f"and a number in {sum(present)} of {len(targets)} rows. Correct or remove such rows, "
            "or give 'task: classification', which takes each value as a class."
        )
    return CLASSIFICATION


def _check_present(targets: list[str], name: str, spec: DataSpec) -> None:
    if "" in targets:
        raise DataError(
            f"Data set {spec.name!r}, row {targets.index('') + 2}: the target {name!r} is missing "
            f"({targets.count('')} in all). Fill it in, or remove such rows."
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


@register_data("npz:", content=_digest, revision=3)  # input_ids; x_valid
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
    names = _names_of_splits(arrays, pair, spec)
    splits = {split: (arrays[x], arrays[y]) for split, (x, y) in names.items()}
    of = [str(y.dtype) for _, y in splits.values()]
    if not all(y.dtype.kind in TARGETS and y.ndim for _, y in splits.values()):
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
    unread = sorted({*arrays}.difference(*names.values()))
    notice = f"Data set {spec.name!r}: these arrays are not read: {quoted(unread, SHOWN)}."
    examples = labelled(inputs, targets, spec, vocabulary=vocabulary)
    return replace(examples, notices=(*examples.notices, notice)) if unread else examples


def _names_of_splits(
    arrays: Mapping[str, Any], pair: tuple[str, str], spec: DataSpec
) -> dict[str, tuple[str, str]]:
    """Return the names of the inputs and targets of each split; two for one are refused."""
    names: dict[str, tuple[str, str]] = {}
    for suffix in ("", *SPLITS):
        x, y = (f"{name}_{suffix}" if suffix else name for name in pair)
        if not {x, y} & {*arrays}:
            continue
        if not {x, y} <= {*arrays}:
            there, missing = (x, y) if x in arrays else (y, x)
            raise DataError(
                f"Data set {spec.name!r}: it has {there!r} and no {missing!r}. Add that array, or "
                f"remove {there!r}."
            )
        split = {"": "train", "val": "validation", "valid": "validation"}.get(suffix, suffix)
        if split in names:
            raise DataError(
                f"Data set {spec.name!r}: it has {names[split][0]!r} and {x!r}, and both are its "
                f"{split} split. Remove one of them, or give it the name of another split."
            )
        names[split] = (x, y)
    if "train" not in names:
        raise DataError(f"Data set {spec.name!r}: it has no arrays to train on.")
    return names


def _read_npz(spec: DataSpec) -> dict[str, NDArray[Any]]:
    try:
        return read_npz(Path(spec.location).expanduser())
    except (OSError, ValueError) as error:
        raise DataError(
            f"Data set {spec.name!r}: the file cannot be read ({error}). Write it with "
            "numpy.savez, without objects."
        ) from error
