"""A registered name with its arguments, as written in a study file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regrow.core.registry import canonical
from regrow.errors import ConfigError


def frozen(arguments: Mapping[str, Any], *, of: str) -> str:
    """Return arguments as canonical JSON, which is hashable and immutable."""
    try:
        return json.dumps(dict(arguments), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The arguments of {of} must map names to numbers, texts, true or false, or lists of "
            f"these. Got {arguments!r} ({error})."
        ) from error


@dataclass(frozen=True, init=False, repr=False)
class Choice:
    """A name and keyword arguments; hashable, and compared by value.

    >>> Choice.from_json({"name": "Cross_Entropy", "label_smoothing": 0.1})
    Choice('cross-entropy', label_smoothing=0.1)
    """

    name: str
    _arguments: str  # as ``frozen`` returns them

    def __init__(self, name: str, **arguments: Any) -> None:
        if not isinstance(name, str):
            raise ConfigError(f"A name must be a text. Got {name!r}.")
        object.__setattr__(self, "name", canonical(name))
        object.__setattr__(self, "_arguments", frozen(arguments, of=repr(name)))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments, sorted by name; a copy."""
        arguments: dict[str, Any] = json.loads(self._arguments)
        return arguments

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"Choice({self.name!r}{arguments})"

    def to_json(self) -> str | dict[str, Any]:
        """Return the name alone, or a mapping of name and arguments if there are any."""
        return {"name": self.name, **self.arguments} if self.arguments else self.name

    @classmethod
    def from_json(cls, value: Any) -> "Choice":
        """Read a name, or a mapping with a ``name`` and arguments."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            if all(isinstance(key, str) for key in value):
                return cls(**value)
        elif isinstance(value, str):
            return cls(value)
        raise ConfigError(
            f"Give a name, or a mapping of a 'name' and its arguments. Got {value!r}."
        )
