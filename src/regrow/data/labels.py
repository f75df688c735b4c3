"""Number the classes of the labels in a column of a table.

Class names come from the file's metadata or from the labels: integers from 0 or 1, or the distinct
texts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from regrow.core.texts import quoted
from regrow.errors import DataError

NO_LABEL = -1  # marks a missing label in published test splits whose labels are withheld
# With more classes than this, and fewer than two images per class, a column is taken for ids.
MOST_CLASSES_OF_ONE = 1000
SHOWN = 5  # classes, in a message


@dataclass(frozen=True, kw_only=True)
class LabelColumn:
    """The labels of one split as stored in its files, and the class names, if any."""

    column: str
    values: pa.Array  # as ``plain`` returns them
    names: tuple[str, ...] | None
    where: Callable[[int], str]  # names a row


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Classes, and the labels of each split as int64 tensors of class numbers."""

    classes: tuple[str, ...]
    labels: Mapping[str, Tensor]
    notices: tuple[str, ...]


def kind_of(type_: Any) -> str | None:
    """Return the kind of labels that an Arrow type holds, or None if it cannot hold labels.

    >>> kind_of(pa.int32()), kind_of(pa.list_(pa.int64()))
    ('integer', None)
    """
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    checks = {
        "integer": pa.types.is_integer,
        "boolean": pa.types.is_boolean,
        "text": lambda t: (
            pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)
        ),
        "number": pa.types.is_floating,
    }
    return next((kind for kind, check in checks.items() if check(type_)), None)


def is_labelled(labels: LabelColumn) -> bool:
    """Return whether a split has labels; one that lacks only some raises a ``DataError``.

    A label is missing if it is null, NaN, -1 or an empty text.
    """
    values = labels.values
    missing = pc.is_null(values, nan_is_null=True)
    none = "null"
    nothing = {"integer": NO_LABEL, "number": NO_LABEL, "text": ""}.get(kind_of(values.type) or "")
    if nothing is not None and not pa.types.is_unsigned_integer(values.type):
        marked = pc.fill_null(pc.equal(values, nothing), False)
        if pc.any(marked).as_py() and not pc.any(missing).as_py():
            none = f"{nothing!r}, which stands for no label"
        missing = pc.or_(missing, marked)
    num = pc.sum(missing).as_py() or 0
    if num == len(values):
        return False
    if num:
        raise DataError(
            f"{labels.where(missing.index(True).as_py())}: the label is {none} ({num} in all). "
            "Label these images or remove them."
        )
    return True


def code(columns: Mapping[str, LabelColumn]) -> Coded:
    """Number the classes of ``train``, and convert the labels of all splits to these numbers.

    Labels that cannot be classes, or differ in meaning between splits, raise a ``DataError``.
    """
    values = {split: _whole(column) for split, column in columns.items()}
    train = columns["train"]
    for split, column in columns.items():
        if kind_of(values[split].type) != kind_of(values["train"].type):
            raise DataError(
                f"{column.where(0)}: the labels of {split} are of the type {column.values.type}, "
                f"those of train of {train.values.type}. Use the same type in both."
            )
    if kind_of(values["train"].type) == "text":
        return _code_texts(columns, values)
    return _code_numbers(columns, values)


def _code_texts(columns: Mapping[str, LabelColumn], values: Mapping[str, pa.Array]) -> Coded:
    train = columns["train"]
    distinct = pc.unique(values["train"])
    _check_count(len(distinct), train)
    classes = tuple(sorted(distinct.to_pylist()))
    order = pa.array(classes, distinct.type)
    labels = {}
    for split, split_values in values.items():
        numbers = pc.index_in(split_values, order)
        if numbers.null_count:
            row = numbers.is_null().index(True).as_py()
            raise DataError(
                f"{columns[split].where(row)}: the classes differ: no training image is labelled "
                f"{split_values[row].as_py()!r}. Labels must mean the same in both splits."
            )
        labels[split] = torch.tensor(numbers.to_numpy(zero_copy_only=False).astype("int64"))
    kind = "true or false" if kind_of(train.values.type) == "boolean" else "texts"
    notice = (
        f"The labels in the column {train.column!r} are {kind}; the classes are these, sorted: "
        f"{quoted(classes, SHOWN)}."
    )
    return Coded(classes=classes, labels=labels, notices=(notice,))


def _code_numbers(columns: Mapping[str, LabelColumn], values: Mapping[str, pa.Array]) -> Coded:
    train = columns["train"]
    bounds = {split: pc.min_max(split_values).as_py() for split, split_values in values.items()}
    first = 1 if train.names is None and bounds["train"]["min"] == 1 else 0
    if train.names is None:
        _check_gaps(values["train"], first, train)
        _check_count(bounds["train"]["max"] + 1 - first, train)
    classes = train.names or _numbered(first, bounds["train"]["max"] + 1 - first)
    numbered = _numbered(first, len(classes))
    for split, column in columns.items():
        least, most = bounds[split]["min"], bounds[split]["max"]
        if least < first:
            raise DataError(
                f"{column.where(pc.index(values[split], least).as_py())}: the label is {least}, "
                f"and the first class is {first}. Number all splits' classes from 0 or from 1."
            )
        if column.names is None and most - first >= len(classes):
            raise DataError(
                f"{column.where(pc.index(values[split], most).as_py())}: the classes differ: train "
                f"has {len(classes)}, and here the label is {most}. Labels must mean the same in "
                "both splits."
            )
        # Without names, labels are places among the classes of train, unless these are numbers.
        unnamed = numbered if {*numbered} & {*classes} else classes
        _check_same(classes, column.names or unnamed, split=split, where=column.where(0))
    labels = {
        split: torch.tensor(split_values.to_numpy(zero_copy_only=False).astype("int64")) - first
        for split, split_values in values.items()
    }
    notice = (
        f"The labels in the column {train.column!r} begin at 1: the class '1' is the first of "
        f"{len(classes)}.",
    )
    return Coded(classes=classes, labels=labels, notices=notice if first else ())


def _check_gaps(values: Any, first: int, labels: LabelColumn) -> None:
    """Raise if numbers are left out between those of the classes; ids, which differ, may be."""
    distinct = pc.unique(values)
    numbers = distinct.take(pc.sort_indices(distinct))
    least, most = numbers[0].as_py(), numbers[-1].as_py()
    if least < first or most - first + 1 == len(numbers) or len(numbers) == len(values):
        return
    shown = ", ".join(map(str, numbers[:SHOWN].to_pylist()))
    raise DataError(
        f"{labels.where(0)}: the labels in the column {labels.column!r} are {shown}"
        f"{f', ... and {most}' if len(numbers) > SHOWN else ''} ({len(numbers)} values), and other "
        f"numbers from {first} to {most} have no training image. Number the classes without gaps, "
        "or store them as texts; if these are no classes, name the column of classes in the option "
        "'label_column'."
    )


def _numbered(first: int, num: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(first, first + num))


def _check_count(num: int, labels: LabelColumn) -> None:
    """Raise for a column of ids, before a class name is created for each of its numbers."""
    images = len(labels.values)
    if num > images or (num > MOST_CLASSES_OF_ONE and 2 * num > images):
        raise DataError(
            f"{labels.where(0)}: the column {labels.column!r} would give {num} classes for "
            f"{images} images, so it seems to hold ids. Name the column of classes in the option "
            "'label_column'."
        )


def _check_same(
    train: tuple[str, ...], classes: tuple[str, ...], *, split: str, where: str
) -> None:
    if classes == train:
        return
    differing = sorted(set(train) ^ set(classes))
    detail = (
        f"only one of them has {quoted(differing, SHOWN)}" if differing else "their order differs"
    )
    raise DataError(
        f"{where}: the classes differ: train has {len(train)}, {split} has {len(classes)}; "
        f"{detail}. Labels must mean the same in both splits."
    )


def plain(values: Any) -> Any:
    """Convert labels to a type that Arrow's compute functions support."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    wider = {"text": pa.string(), "number": pa.float64()}.get(kind_of(values.type) or "")
    return values if wider is None else values.cast(wider)


def _whole(labels: LabelColumn) -> Any:
    """Convert labels to texts or int64; other numbers raise a ``DataError``."""
    values = labels.values
    kind = kind_of(values.type)
    if kind == "boolean":
        return values.cast(pa.string())
    if kind == "number":
        split = pc.not_equal(values, pc.floor(values))
        if pc.any(split).as_py():
            row = split.index(True).as_py()
            raise DataError(
                f"{labels.where(row)}: the label is {values[row].as_py()}, not a whole number. "
                "Labels must be classes; name their column in the option 'label_column'."
            )
        return _integers(labels, values)
    return values if kind == "text" else _integers(labels, values)


def _integers(labels: LabelColumn, values: Any) -> Any:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{labels.where(0)}: the column {labels.column!r} has numbers beyond 64 bits, which "
            "cannot be classes. Name the column of classes in the option 'label_column'."
        ) from error
