"""Checks of user input: numbers, texts, lists and mappings."""

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
    """Return whether a value is an int, but not a bool, of at least ``least``.

    >>> is_int(0), is_int(0, least=1), is_int(2.0), is_int(True)
    (True, False, False, False)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def check_kind(value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise ``ConfigError``, with the message ``wanted``, unless a value is of a type ``kind``.

    >>> check_kind(3, str, "'code' must be a text")
    Traceback (most recent call last):
    regrow.errors.ConfigError: 'code' must be a text. Got 3.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{wanted}. Got {short(value)}.")


def path_of(value: object, what: str) -> Path:
    """Convert a text or path to a ``Path``; raise ``ConfigError`` for anything else.

    >>> path_of("small", "A folder").name
    'small'
    """
    named = isinstance(value, str | PathLike)
    path = Path(value) if named else None  # type: ignore[arg-type]
    if path is None or value == "" or "\0" in str(path):
        raise ConfigError(f"{what} is a path, such as 'small'. Got {short(value)}.")
    return path


def percent(value: object) -> str:
    """Return a hint for a number that looks like a percentage, where a share is expected.

    >>> percent(50.0), percent(-1), percent(1.5)
    (' For 50 % write 0.5.', '', '')
    """
    if not is_number(value) or not 5.0 <= value < 100.0:
        return ""
    return f" For {value:g} % write {value / 100:g}."


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number, but not a bool, that a float can represent.

    >>> is_number(1), is_number(float("nan")), is_number("1"), is_number(10**400)
    (True, False, False, False)
    """
    if isinstance(value, float):
        return math.isfinite(value)
    return is_int(value) and abs(value) <= sys.float_info.max


def whole_as_floats_(value: "DataclassInstance") -> None:
    """Convert ints in a frozen dataclass's float fields to floats, in place.

    So ``lr: 1`` and ``lr: 1.0`` are the same value, with the same digest.
    """
    for field in fields(value):
        number = getattr(value, field.name)
        if type(number) is int and field.type in (float, float | None):
            object.__setattr__(value, field.name, float(number))


def mapping(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    """Return the mapping as a dict; raise ``ConfigError`` if it is none or has unknown keys."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(known)}. Got {value!r}.")
    refuse_unknown(value, known, kind="key", where=where)
    return dict(value)


def refuse_unknown(
    names: Iterable[object], known: Collection[str], *, kind: str, where: str
) -> None:
    """Raise ``ConfigError`` for a name that is not known, suggesting similar ones."""
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
    """Return the mapping with its lists converted to tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}


def text(value: Any, field: str) -> str:
    """Return the text; raise ``ConfigError`` if it is not a text or is blank."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"The {field!r} must be a text. Got {short(value)}.")
    return value


def as_list(value: Any) -> list[Any]:
    """Return a list or tuple as a list; wrap any other value in one."""
    return list(value) if isinstance(value, list | tuple) else [value]


def entry_of(value: Any, axis: str, known: Collection[str]) -> dict[str, Any]:
    """Return an axis's entry, a name or a mapping with a name, as a mapping."""
    value_named = {"name": value} if isinstance(value, str) else value
    entry = mapping(value_named, f"{axis}: an entry", known)
    if "name" not in entry:
        raise ConfigError(f"{axis}: an entry needs a 'name'. Got {value!r}.")
    return entry


def refuse_twice(axis: str, names: Sequence[str], remedy: str) -> None:
    """Raise ``ConfigError`` if a name occurs twice in a list."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"{axis}: {name!r} occurs twice; {remedy}.")
