"""Jobs as JSON, to send them to worker processes, other ranks and other machines.

A job is a frozen dataclass of frozen dataclasses, down to numbers and texts. Each value is in a
list once, with the name of its class and its fields; others refer to its index:

    {"root": 2, "values": [["regrow.jobs.train:Train", {"seed": 0, "data": {"at": 1}, ...}], ...]}

Reading calls no constructors: it imports the modules of the classes and sets the fields of frozen
dataclasses. Readers then compare the job's key, to be sure that it is the job that was written.
"""

import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from regrow.errors import ConfigError, RegrowError, short
from regrow.jobs.base import Job

PLAIN = (str, bool, int, float)


def job_to_json(job: Job) -> str:
    """Return a job, with all that it depends on, as JSON; raise ``ConfigError`` if that fails.

    >>> from regrow.data.spec import DataSpec
    >>> job_to_json(DataSpec("digits"))[:45]  # any value that jobs are made of
    '{"root":0,"values":[["regrow.data.spec:DataSp'
    """
    writer = _Writer()
    root = writer.place(job)
    return json.dumps(
        {"root": root, "values": writer.values}, separators=(",", ":"), allow_nan=False
    )


def job_from_json(text: str, *, key: str) -> Job:
    """Read a job; raise ``ConfigError`` unless it has the given key."""
    try:
        value = json.loads(text)
        made: list[Any] = []
        for name, given in value["values"]:
            made.append(_make(name, {field: _read(part, made) for field, part in given.items()}))
        job: Job = made[value["root"]]
        found = job.key
    except RegrowError:
        raise
    except ImportError as error:
        raise ConfigError(
            f"A part of a job cannot be imported here: {short(error)}. Give the file that defines "
            "it by --with."
        ) from error
    except Exception as error:  # invalid values may raise anything, in any class
        raise ConfigError(f"This is not a job written as JSON: {short(error)}.") from error
    if found != key:
        raise ConfigError(
            f"The job {job.label} has another key here ({found[:12]} in place of {key[:12]}): "
            "regrow, or a file that the job depends on, was changed since the command began, or "
            "has another version on this machine."
        )
    return job


class _Writer:
    """Collects values in a list, each once, after the values that it contains."""

    def __init__(self) -> None:
        self.values: list[tuple[str, dict[str, Any]]] = []
        self._places: dict[int, int] = {}

    def place(self, value: Any) -> int:
        """Return the index of a frozen value in the list, adding it if needed."""
        if id(value) not in self._places:
            kind = type(value)
            given = {f.name: self._write(getattr(value, f.name), f.name) for f in fields(value)}
            self.values.append((f"{kind.__module__}:{kind.__qualname__}", given))
            self._places[id(value)] = len(self.values) - 1
        return self._places[id(value)]

    def _write(self, value: Any, where: str) -> Any:
        if value is None or type(value) in PLAIN:
            return value
        if is_dataclass(value) and not isinstance(value, type) and _is_frozen(type(value)):
            return {"at": self.place(value)}
        if isinstance(value, tuple | list | frozenset):
            kind = next(k for k in (tuple, list, frozenset) if isinstance(value, k)).__name__
            parts = sorted(value) if kind == "frozenset" else value
            return {kind: [self._write(part, where) for part in parts]}
        if isinstance(value, Mapping):
            pairs = value.items()
            return {"dict": [[self._write(k, where), self._write(v, where)] for k, v in pairs]}
        if isinstance(value, Path):
            return {"path": str(value)}
        raise ConfigError(
            f"This job cannot be sent to another process: its {where!r} is {short(value)}, which "
            "cannot be written as JSON. Run it with --workers 0."
        )


def _read(value: Any, made: list[Any]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "at":
        return made[content]
    if kind == "path":
        return Path(content)
    if kind == "dict":
        return {_read(name, made): _read(part, made) for name, part in content}
    parts = [_read(part, made) for part in content]
    return {"tuple": tuple, "list": list, "frozenset": frozenset}[kind](parts)


def _make(name: str, given: Mapping[str, Any]) -> Any:
    module, _, place = name.partition(":")
    kind: Any = sys.modules[module] if module in sys.modules else importlib.import_module(module)
    for part in place.split("."):
        kind = getattr(kind, part)
    if not (isinstance(kind, type) and is_dataclass(kind) and _is_frozen(kind)):
        raise ValueError(f"{name} is not a frozen dataclass")
    if {field.name for field in fields(kind)} != given.keys():
        raise ValueError(f"{name} has other fields here")
    value = object.__new__(kind)
    for field, part in given.items():
        object.__setattr__(value, field, part)
    return value


def _is_frozen(kind: Any) -> bool:
    return bool(kind.__dataclass_params__.frozen)
