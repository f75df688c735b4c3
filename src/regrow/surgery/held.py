"""Numbers that modules hold: attributes, entries of lists, and settings that their code reads."""

import dis
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

from torch import Tensor, nn

from regrow.surgery.groups import NUMBER

# A number's place: attribute (``config.width`` in settings), entry of a list or tuple, the number.
Held = tuple[str, int | None, int]
Numbers = dict[tuple[str, int], int]  # numbers by attribute and entry (0 if it is no list)


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
                    counts = list(_counts(_setting(value, name)))
                    if counts and _can_change(value, name):
                        yield from ((f"{attribute}.{name}", *count) for count in counts)


def holder(module: nn.Module, attribute: str) -> Any:
    """Return what holds a number of a module: the module, or the settings object of its place."""
    settings = attribute.rpartition(".")[0]
    return getattr(module, settings) if settings else module


def set_held_(
    model: nn.Module,
    numbers: Mapping[tuple[str, int], int],
    unneeded: Collection[tuple[str, int]],
) -> None:
    """Set numbers that modules hold, in a copy of a network, by ``tensor`` and ``dim`` of slots.

    Modules that share a settings object still share it afterwards, unless one of them needs another
    number in it: then those whose numbers change share copies as far as they agree. ``unneeded``
    numbers may change or stay.
    """
    shared: dict[int, list[_Use]] = {}
    in_settings = False
    for (tensor, entry), number in numbers.items():
        name, _, attribute = tensor.partition(NUMBER)
        if "." in attribute:
            in_settings = True
        else:
            _set(model.get_submodule(name), attribute, entry, number)
    for name, module in model.named_modules() if in_settings else ():
        for use in _uses(name, module, numbers, unneeded):
            shared.setdefault(id(use.settings), []).append(use)
    for uses in shared.values():
        changed = [use for use in uses if use.new]
        together = len(_agreeing(uses)) == 1
        for part in _agreeing(uses if together else changed) if changed else ():
            settings = part[0].settings
            # One with its own way of copying may be the original network's too.
            if not together or hasattr(settings, "__deepcopy__"):
                settings = copy(settings)
            for use in part:
                vars(use.module)[use.attribute] = settings
                for (attribute, entry), number in use.new.items():
                    _set(settings, attribute, entry, number)


@dataclass(frozen=True)
class _Use:
    """A settings object in a module's attribute, the numbers that it needs there, and new ones."""

    module: nn.Module
    attribute: str
    settings: Any
    needs: Numbers
    new: Numbers


def _uses(
    name: str,
    module: nn.Module,
    numbers: Mapping[tuple[str, int], int],
    unneeded: Collection[tuple[str, int]],
) -> Iterator[_Use]:
    """Yield the settings objects of a module, with the numbers that its code reads."""
    for attribute, value in vars(module).items():
        if _is_settings(value):
            use = _Use(module, attribute, value, {}, {})
            for place, entry, number in held(module):
                settings, _, short = place.rpartition(".")
                slot = (f"{name}{NUMBER}{place}", entry or 0)
                if settings == attribute and slot not in unneeded:
                    use.needs[short, slot[1]] = numbers.get(slot, number)
                    if slot in numbers:
                        use.new[short, slot[1]] = numbers[slot]
            yield use


def _agreeing(uses: Sequence[_Use]) -> list[list[_Use]]:
    """Divide uses of one object into parts, in each of which no two need different numbers."""
    parts: list[tuple[Numbers, list[_Use]]] = []
    for use in uses:
        for needs, part in parts:
            if all(needs.get(place, number) == number for place, number in use.needs.items()):
                needs.update(use.needs)
                part.append(use)
                break
        else:
            parts.append((dict(use.needs), [use]))
    return [part for _, part in parts]


def _set(holder: Any, attribute: str, entry: int, number: int) -> None:
    """Set a number, or one entry of a list or tuple, even if ``holder`` is meant to be constant."""
    old = getattr(holder, attribute)
    new: Any = (
        number if isinstance(old, int) else type(old)((*old[:entry], number, *old[entry + 1 :]))
    )
    try:
        setattr(holder, attribute, new)
    except Exception:  # a frozen dataclass
        vars(holder)[attribute] = new


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


def _can_change(settings: Any, name: str) -> bool:
    """Return whether a copy can have another number there: a property may not, nor an enum."""
    try:
        other = copy(settings)
        if name not in vars(settings):
            setattr(other, name, getattr(settings, name))
    except Exception:
        return False
    return other is not settings


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
        name = wanted.pop()
        for base in kind.__mro__:
            code = getattr(inspect.unwrap(vars(base).get(name, base)), "__code__", None)
            if not isinstance(code, CodeType):
                continue
            codes.append(code)
            new = set(_names(code)) - known
            known |= new
            wanted |= {n for n in new if n != "forward" and not hasattr(nn.Module, n)}
            if "super" not in code.co_names:
                break
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
