"""Digests of code that is in no file, such as a notebook's, with everything of the session it uses.

A function of a notebook looks up the functions and numbers of other cells when it is called. They
belong to what identifies it as much as its own text.
"""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from regrow.core.source import digests_noted, is_installed

PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, range, slice)
LOADS = ("LOAD_GLOBAL", "LOAD_NAME")
OF_EVERY_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__"}
OF_A_COMPILER = {"__firstlineno__", "__static_attributes__"}


def digest_of_session_code(value: object) -> str:
    """Return the digest of a value and of what of this session its code refers to.

    Functions and classes of the session are followed into the names that they look up; those of a
    user's file count by the file, those of installed packages by their names. Numbers, texts,
    containers, arrays and the attributes of the session's objects count by their values, other
    objects by their types alone.

    Raises:
        ConfigError: a user's file that it uses was edited after this process imported it.
    """
    walk = _Walk()
    return hashlib.sha256("\n".join(walk.parts(value)).encode()).hexdigest()[:16]


class _Walk:
    """Walks through the objects that a value refers to, each once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, object]] = {}  # the object too, or its id is used again

    def parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, PLAIN):
            yield f"{type(value).__name__} {value!r}"
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]}"
            return
        self._seen[id(value)] = len(self._seen), value
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, FunctionType | type | ModuleType):
            yield from self._code(value)
        elif isinstance(value, BuiltinFunctionType):
            yield value.__qualname__
        elif isinstance(value, MethodType):
            yield from self._each(value.__func__, value.__self__)
        elif isinstance(value, partial):
            yield from self._each(value.func, value.args, value.keywords)
        elif isinstance(value, staticmethod | classmethod):
            yield from self.parts(value.__func__)
        elif isinstance(value, property):
            yield from self._each(value.fget, value.fset, value.fdel)
        elif isinstance(value, Mapping):
            yield from self._each(*(part for item in value.items() for part in item))
        elif isinstance(value, list | tuple):
            yield from self._each(*value)
        elif isinstance(value, set | frozenset):
            yield from self._each(*sorted(value, key=_name_or_value))
        else:
            yield from self._object(value)

    def _each(self, *values: object) -> Iterator[str]:
        for value in values:
            yield from self.parts(value)

    def _code(self, value: "FunctionType | type | ModuleType") -> Iterator[str]:
        """Yield a function's, class's or module's part: its own if it is of the session."""
        name = f"{value.__module__}." if not isinstance(value, ModuleType) else ""
        yield name + getattr(value, "__qualname__", value.__name__)
        file = _file_of(value)
        if file is not None:
            if not is_installed(file):
                yield from sorted(digests_noted(Path(file)).values())
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._each(*value.__bases__)
            for attribute, member in sorted(vars(value).items()):
                if attribute not in OF_EVERY_CLASS | OF_A_COMPILER:
                    yield attribute
                    yield from self.parts(member)

    def _function(self, function: FunctionType) -> Iterator[str]:
        try:
            yield inspect.getsource(function)
        except (OSError, SyntaxError):  # typed at a prompt
            yield from _bytecode(function.__code__)
        yield from self._each(function.__defaults__, function.__kwdefaults__, vars(function))
        for cell in function.__closure__ or ():
            yield from self.parts(_content(cell))
        for name in sorted(_looked_up(function.__code__)):
            if name in function.__globals__:
                yield name
                yield from self.parts(function.__globals__[name])

    def _object(self, value: Any) -> Iterator[str]:
        torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
        if torch is not None and isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            yield f"{value.dtype} {tuple(value.shape)}"
            yield hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
        elif numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            yield f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        elif torch is not None and isinstance(value, torch.nn.Module):
            yield from self._each(type(value), dict(value.state_dict()))
        elif is_dataclass(value):
            yield from self.parts(type(value))
            yield from self._each(*(getattr(value, field.name, None) for field in fields(value)))
        else:
            yield from self.parts(type(value))
            kept, file = getattr(value, "__dict__", {}), _file_of(type(value))
            if file is None or not is_installed(file):
                yield from self.parts(kept)
            elif "__wrapped__" in kept:  # a cache
                yield from self.parts(kept["__wrapped__"])


def _file_of(value: "FunctionType | type | ModuleType") -> str | None:
    """Return the file of code; None if it is of the session, such as a notebook's."""
    members = vars(value).values() if isinstance(value, type) else (value,)
    files = [member.__code__.co_filename for member in members if isinstance(member, FunctionType)]
    written = [file for file in files if file != "<string>"]  # the others are generated
    if written:
        file = written[0]
    else:
        module = value.__name__ if isinstance(value, ModuleType) else value.__module__
        found = sys.modules.get(module)
        file = getattr(found, "__file__", None) or ""
        if found is not None and module != "__main__" and not file:
            return sys.executable  # built into Python
    return file if Path(file).is_file() else None


def _name_or_value(part: object) -> str:
    """Return a text to sort by that is the same in every process."""
    return str(getattr(part, "__qualname__", None) or repr(part))


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _looked_up(code: CodeType) -> set[str]:
    """Return the global names that code looks up, including that of functions in it."""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in LOADS}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names |= _looked_up(const)
    return names


def _bytecode(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _bytecode(const)
        elif not isinstance(const, frozenset):  # its order differs between processes
            yield repr(const)
        else:
            yield repr(sorted(map(repr, const)))
