"""Data that stand in for those a study names: ``--data NAME=OTHER``."""

from collections.abc import Mapping, Sequence
from typing import Any

from regrow.errors import ConfigError, short, unknown


def pairs(values: Sequence[str]) -> dict[str, str]:
    """Read replacements of data sets, each NAME=OTHER.

    >>> pairs(["cifar10=hf:images/cifar10"])
    {'cifar10': 'hf:images/cifar10'}
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, other = value.partition("=")
        if not name or not equals or not other or name in found:
            raise ConfigError(
                "--data must be NAME=OTHER, each name once, such as cifar10=hf:PATH. "
                f"Got {short(value)}."
            )
        found[name] = other
    return found


def replaced(value: Any, others: Mapping[str, str]) -> Any:
    """Return a study, as a file has it, with other data in the place of those named.

    Data go by their name or their label, wherever the study speaks of them; their options stay.
    """
    names: set[str] = set()
    found = _replaced(value, others, names)
    for name in others:
        if name not in names:
            raise ConfigError(
                f"--data replaces data that the study names: {unknown('data set', name, names)}"
            )
    return found


def _replaced(value: Any, others: Mapping[str, str], names: set[str]) -> Any:
    if isinstance(value, list):
        return [_replaced(entry, others, names) for entry in value]
    if not isinstance(value, Mapping):
        return value
    found = {}
    for key, entry in value.items():
        if key != "data":
            found[key] = _replaced(entry, others, names)
        elif isinstance(entry, list):
            found[key] = [_other(each, others, names) for each in entry]
        else:
            found[key] = _other(entry, others, names)
    return found


def _other(data: Any, others: Mapping[str, str], names: set[str]) -> Any:
    """Return what stands in for one data set, or that itself."""
    given = data if isinstance(data, Mapping) else {"name": data}
    known = [name for key in ("name", "label") if isinstance(name := given.get(key), str)]
    names |= set(known)
    other = next((others[name] for name in known if name in others), None)
    if other is None:
        return data
    return {**given, "name": other} if isinstance(data, Mapping) else other
