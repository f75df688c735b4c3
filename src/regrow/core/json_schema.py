"""JSON schemas of values, derived from annotations, registries and the values' own checks.

A schema made here never refuses what the check itself accepts: bounds are found by calling the
check, and names are accepted in every spelling that a registry accepts.
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
Accepts = Callable[[Any], object]  # raises a ``ConfigError`` for a value that it does not accept

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
    """Return a schema for values that match one of several schemas."""
    distinct = [option for i, option in enumerate(options) if option not in options[:i]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def one_or_list(item: Schema, **of_list: Any) -> Schema:
    """Return a schema for a single value or a list of such values."""
    return any_of(item, {"type": "array", "items": item, **of_list})


def an_object(properties: Mapping[str, Schema], *, required: Iterable[str] = ()) -> Schema:
    """Return a schema for a mapping with these keys and no others."""
    needed = {"required": [*required]} if required else {}
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **needed,
    }


def described(forms: Mapping[str, Schema], about: Mapping[str, str]) -> dict[str, Schema]:
    """Return the schemas of keys, in the order of ``about``, each with its description.

    A key without a schema in ``forms`` accepts any value.
    """
    return {key: {"description": text, **forms.get(key, {})} for key, text in about.items()}


def of_type(hint: Any) -> Schema:
    """Return the schema of a type annotation; one for any value if it has no JSON equivalent.

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

    ``make`` builds the dataclass from keyword arguments, and is called to find the bounds of each
    number. ``forms`` has the schemas of fields whose annotation says too little; ``names`` limits
    the result to these fields.
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
    """Return a function that passes a value to ``make`` as one keyword argument, as a check."""
    return lambda value: make(**{name: value})


def with_bounds(hint: Any, accepts: Accepts) -> Schema:
    """Return the schema of an annotation, with the bounds of the numbers that are accepted."""
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
    """Return the lower bound of the integers accepted, if it is 0, 1 or 2."""
    for least in (0, 1, 2):
        if _fits(accepts, least):
            return {} if _fits(accepts, least - 1) else {"minimum": least}
    return {}


def _interval(accepts: Accepts) -> Schema:
    """Return the bounds of the numbers accepted, if these are 0 or 1, inclusive or exclusive."""
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
    """Return a schema for registered names, in every spelling that registries accept.

    That is in any case, with or without separators. A name that ends in a colon is a prefix. The
    exact names come first, so that editors suggest them.

    >>> [bool(re.search(spelled(["vgg-16"])["anyOf"][1]["pattern"], n)) for n in ("VGG_16", "vgg")]
    [True, False]
    """
    listed = [*names]
    whole = [name for name in listed if not name.endswith(":")]
    patterns = [rf"^\s*{_letters(name)}\s*$" for name in whole]
    patterns += [rf"^\s*{_letters(name[:-1])}\s*:\s*\S" for name in listed if name not in whole]
    return any_of({"enum": whole}, {"type": "string", "pattern": "|".join(patterns)})


def _letters(name: str) -> str:
    """Return a pattern for a name in any case, with or without separators."""
    letters = [letter for letter in name if letter != "-"]
    each = [
        f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else re.escape(letter)
        for letter in letters
    ]
    return "[-_ ]*".join(["", *each, ""])


def a_choice(functions: Mapping[str, Mapping[str, Any]]) -> Schema:
    """Return a schema for a registered name, or a mapping of it and arguments for its function.

    ``functions`` are the arguments of each name, with their defaults; an argument whose default is
    a number must be one.
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
    """Return a value as a type that JSON has."""
    if isinstance(value, Choice):
        return value.to_json()
    return [*value] if isinstance(value, tuple) else value
