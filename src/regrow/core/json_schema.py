"""JSON schemas of values: from annotations, from registries, and from what a check accepts.

A schema made here never refuses what the check itself accepts: bounds are found by asking it, and
names are taken in each spelling in which a registry knows them.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from regrow.core.choice import Choice
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Schema = dict[str, Any]
Accepts = Callable[[Any], object]  # raises a ``ConfigError`` for what it does not accept

NOTHING: Schema = {"type": "null"}
TEXT: Schema = {"type": "string", "pattern": r"\S"}
_PLAIN: Mapping[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    type(None): NOTHING,
}
TINY = 1e-9


def any_of(*options: Schema) -> Schema:
    """Return what fits one of several schemas."""
    distinct = [option for i, option in enumerate(options) if option not in options[:i]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def one_or_list(item: Schema, **of_list: Any) -> Schema:
    """Return what fits a value, or a list of such values."""
    return any_of(item, {"type": "array", "items": item, **of_list})


def an_object(properties: Mapping[str, Schema], *, required: Iterable[str] = ()) -> Schema:
    """Return what fits a mapping of known keys."""
    needed = {"required": [*required]} if required else {}
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **needed,
    }


def described(forms: Mapping[str, Schema], about: Mapping[str, str]) -> dict[str, Schema]:
    """Return the schemas of keys, in the order of ``about``, each with its line.

    A key whose form is not known may be anything.
    """
    return {key: {"description": text, **forms.get(key, {})} for key, text in about.items()}


def of_type(hint: Any) -> Schema:
    """Return what fits a type annotation; anything for those that say nothing about JSON.

    >>> of_type(tuple[float, ...] | None)
    {'anyOf': [{'type': 'array', 'items': {'type': 'number'}}, {'type': 'null'}]}
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any_of(*map(of_type, inner))
    if origin is Literal:
        return {"enum": [*inner]}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": of_type(inner[0])}
    return dict(_PLAIN.get(hint, {}))


def of_fields(
    cls: "type[DataclassInstance]",
    make: Callable[..., object],
    *,
    forms: Mapping[str, Schema] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Schema]:
    """Return the schemas of a dataclass's fields: type, bounds and default.

    ``make`` builds it from keyword arguments, and is asked for the bounds of each number. ``forms``
    are those that say more than the annotation does; ``names`` those wanted, else all.
    """
    hints = get_type_hints(cls)
    properties = {}
    for field in fields(cls):
        if names is not None and field.name not in names:
            continue
        form = (forms or {}).get(field.name)
        if form is None:
            form = with_bounds(hints[field.name], asking(make, field.name))
        default = field.default
        known = default is not MISSING and default is not None
        properties[field.name] = {"default": plain(default), **form} if known else form
    return properties


def asking(make: Callable[..., object], name: str) -> Accepts:
    """Return what asks ``make`` whether it accepts a value for one keyword argument."""
    return lambda value: make(**{name: value})


def with_bounds(hint: Any, accepts: Accepts) -> Schema:
    """Return what fits an annotation, its numbers within what is accepted of them."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any_of(*(with_bounds(option, accepts) for option in inner))
    if origin in (list, tuple, Sequence):
        items = with_bounds(inner[0], lambda value: accepts((value,)))
        return {"type": "array", "items": items}
    form = of_type(hint)
    kind = form.get("type")
    if kind == "integer":
        return {**form, **_least_int(accepts)}
    return {**form, **_interval(accepts)} if kind == "number" else form


def _least_int(accepts: Accepts) -> Schema:
    """Return the least number accepted, where it is one of the first few."""
    for least in (0, 1, 2):
        if _fits(accepts, least):
            return {} if _fits(accepts, least - 1) else {"minimum": least}
    return {}


def _interval(accepts: Accepts) -> Schema:
    """Return the ends at 0 and at 1 of the numbers accepted, and whether these belong to them."""
    inside = _fits(accepts, 0.5) or _fits(accepts, 2.0)
    bounds: Schema = {}
    if inside and not _fits(accepts, -TINY):
        bounds |= {"minimum": 0} if _fits(accepts, 0.0) else {"exclusiveMinimum": 0}
        if not _fits(accepts, 0.5):
            bounds = {"minimum": 1} if _fits(accepts, 1.0) else {"exclusiveMinimum": 1}
    if _fits(accepts, 0.5) and not _fits(accepts, 1 + TINY):
        bounds |= {"maximum": 1} if _fits(accepts, 1.0) else {"exclusiveMaximum": 1}
    return bounds


def _fits(accepts: Accepts, value: Any) -> bool:
    try:
        accepts(value)
    except ConfigError:
        return False
    return True


def spelled(names: Iterable[str]) -> Schema:
    """Return what fits registered names as registries take them: in any case, dashes or none.

    A name that ends in a colon is a prefix. The names come first, for editors to offer.

    >>> [bool(re.search(spelled(["vgg-16"])["anyOf"][1]["pattern"], n)) for n in ("VGG_16", "vgg")]
    [True, False]
    """
    listed = [*names]
    whole = [name for name in listed if not name.endswith(":")]
    patterns = [rf"^\s*{_letters(name)}\s*$" for name in whole]
    patterns += [rf"^\s*{_letters(name[:-1])}\s*:\s*\S" for name in listed if name not in whole]
    return any_of({"enum": whole}, {"type": "string", "pattern": "|".join(patterns)})


def _letters(name: str) -> str:
    """Return a pattern for a name in any case, with or without what separates its parts."""
    letters = [letter for letter in name if letter != "-"]
    each = [
        f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else re.escape(letter)
        for letter in letters
    ]
    return "[-_ ]*".join(["", *each, ""])


def a_choice(functions: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return what fits a registered name, or a mapping with arguments for its function.

    ``functions`` are the arguments of each name, with their defaults; where these are numbers,
    numbers are taken.
    """
    options = [
        an_object(
            {"name": spelled([name])} | {key: _like(default) for key, default in arguments.items()},
            required=["name"],
        )
        for name, arguments in functions.items()
    ]
    return any_of(spelled(functions), *options)


def _like(default: Any) -> Schema:
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return {"type": "number", "default": default} if number else {}


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Choice):
        return value.to_json()
    return [*value] if isinstance(value, tuple) else value
