"""Checks of values from users: numbers, texts, lists and mappings."""

import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from regrow.errors import ConfigError, short, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def is_int(value: object, *, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is a whole number (true and false are none), of at least ``least``.

    >>> is_int(0), is_int(0, least=1), is_int(2.0), is_int(True)
    (True, False, False, False)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def check_kind(value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a ``ConfigError`` if an argument is of another kind than is ``wanted``.

    >>> check_kind(3, str, "'code' must be a text")
    Traceback (most recent call last):
    regrow.errors.ConfigError: 'code' must be a text. Got 3.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{wanted}. Got {short(value)}.")


def path_of(value: object, what: str) -> Path:
    """Return the path that a text or a path names; anything else is a ``ConfigError``.

    >>> path_of("small", "A folder").name
    'small'
    """
    named = isinstance(value, str | PathLike)
    path = Path(value) if named else None  # type: ignore[arg-type]
    if path is None or value == "" or "\0" in str(path):
        raise ConfigError(f"{what} is a path, such as 'small'. Got {short(value)}.")
    return path


def percent(value: object) -> str:
    """Say how a number that looks like percents is written as a share; else nothing.

    >>> percent(50.0), percent(-1), percent(1.5)
    (' For 50 % write 0.5.', '', '')
    """
    if not is_number(value) or not 5.0 <= value < 100.0:
        return ""
    return f" For {value:g} % write {value / 100:g}."


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number (true and false are none) that a float can hold.

    >>> is_number(1), is_number(float("nan")), is_number("1"), is_number(10**400)
    (True, False, False, False)
    """
    if isinstance(value, float):
        return math.isfinite(value)
    return is_int(value) and abs(value) <= sys.float_info.max


def whole_as_floats_(value: "DataclassInstance") -> None:
    """Turn whole numbers in a frozen dataclass's fields of floats into floats, in place.

    So ``lr: 1`` and ``lr: 1.0`` are one value, with one digest.
    """
    for field in fields(value):
        number = getattr(value, field.name)
        if type(number) is int and field.type in (float, float | None):
            object.__setattr__(value, field.name, float(number))


def mapping(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    """Return a mapping that has no other keys than those known."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(known)}. Got {value!r}.")
    refuse_unknown(value, known, kind="key", where=where)
    return dict(value)


def refuse_unknown(
    names: Iterable[object], known: Collection[str], *, kind: str, where: str
) -> None:
    """Refuse a name that is not known, offering the nearest of those that are."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{where}: {unknown(kind, str(name), known)}")


def changed_fields(value: "DataclassInstance") -> dict[str, Any]:
    """Return the fields of a dataclass that differ from their defaults, as JSON."""
    return {
        field.name: _as_json(current)
        for field in fields(value)
        if (current := getattr(value, field.name)) != field.default
    }


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value


def tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with tuples in place of lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}


def text(value: Any, field: str) -> str:
    """Return a text that is one."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"The {field!r} must be a text. Got {short(value)}.")
    return value


def as_list(value: Any) -> list[Any]:
    """Return a list, of a single value if it is none."""
    return list(value) if isinstance(value, list | tuple) else [value]


def entry_of(value: Any, axis: str, known: Collection[str]) -> dict[str, Any]:
    """Read an entry of an axis: a name alone, or a mapping with a name in it."""
    value_named = {"name": value} if isinstance(value, str) else value
    entry = mapping(value_named, f"{axis}: an entry", known)
    if "name" not in entry:
        raise ConfigError(f"{axis}: an entry needs a 'name'. Got {value!r}.")
    return entry


def refuse_twice(axis: str, names: Sequence[str], remedy: str) -> None:
    """Refuse a name that stands twice in a list."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"{axis}: {name!r} occurs twice; {remedy}.")
