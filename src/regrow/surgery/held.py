"""Numbers that modules hold: attributes, entries of lists, and settings that their code reads."""

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

from torch import Tensor, nn

# A number's place: attribute (``config.width`` in settings), entry of a list or tuple, the number.
Held = tuple[str, int | None, int]


def held(module: nn.Module) -> Iterator[Held]:
    """Yield the numbers that a module holds and that may be counts, with their places.

    Of a settings object, which modules share, only those that the module's code reads.
    """
    kind: Any = type(module)
    read = names_in_code(kind)
    for attribute, value in vars(module).items():
        if not attribute.startswith("_"):
            yield from ((attribute, *count) for count in _counts(value))
            if attribute in read and _is_settings(value):
                for name in sorted(read):
                    counts = _counts(_setting(value, name))
                    yield from ((f"{attribute}.{name}", *count) for count in counts)


def _counts(value: Any) -> Iterator[tuple[int | None, int]]:
    """Yield the integers above 1 in a value, with their index in a list or tuple (else None)."""
    if type(value) is int and value > 1:
        yield None, value
    elif type(value) in (list, tuple):
        for entry, number in enumerate(value):
            if type(number) is int and number > 1:
                yield entry, number


def _is_settings(value: Any) -> bool:
    """Return whether a value is a settings object rather than a part of a network."""
    return (
        hasattr(value, "__dict__")
        and not callable(value)
        and not isinstance(value, Tensor)
        and not type(value).__module__.startswith("torch.")
    )


def _setting(settings: Any, name: str) -> Any:
    """Return a setting; None if it is missing, or if it is a property that fails."""
    try:
        return getattr(settings, name, None)
    except Exception:
        return None


@cache
def names_in_code(kind: Any) -> frozenset[str]:
    """Return all names in the code of a module's ``forward`` and of the methods it calls."""
    return frozenset(name for code in _codes(kind) for name in _names(code))


@cache
def compared_in_code(kind: Any) -> frozenset[frozenset[str]]:
    """Return the pairs of attributes that this code compares with each other."""
    pairs: set[frozenset[str]] = set()
    for code in _codes(kind):
        loaded: list[str] = []  # top of the stack: names of attributes, "" for other values
        for step in dis.get_instructions(code):
            if step.opname == "COMPARE_OP" and len(loaded) > 1 and all(loaded[-2:]):
                pairs.add(frozenset(loaded[-2:]))
            if step.opname == "LOAD_ATTR" and loaded:
                loaded[-1] = step.argval
            else:
                loaded = [*loaded, ""] if step.opname.startswith("LOAD_") else []
    return frozenset(pairs)


@cache
def _codes(kind: Any) -> tuple[CodeType, ...]:
    """Return the code of a module's ``forward`` and of the methods that it calls."""
    codes: list[CodeType] = []
    known: set[str] = set()
    wanted = {"forward"}
    while wanted:
        method = inspect.unwrap(getattr(kind, wanted.pop(), kind))
        code = getattr(method, "__code__", None)
        if not isinstance(code, CodeType):
            continue
        codes.append(code)
        new = set(_names(code)) - known
        known |= new
        wanted |= {name for name in new if name != "forward" and not hasattr(nn.Module, name)}
    return tuple(codes)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def is_memory(attribute: str, value: Any) -> bool:
    """Return whether an attribute is a cache: a dict of tensors that a module has computed."""
    return (
        "cache" in attribute
        and type(value) is dict
        and bool(value)
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )
