"""Read a study file: YAML as people mean it, of a size that people write; and parts of studies.

What a file may cost to read is bounded here: its bytes, its nesting, and what its aliases unfold
to. What its values mean is checked by their owners.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category

import yaml

from regrow.errors import ConfigError, short, shortened, unknown

Read = TypeVar("Read")

MOST_BYTES = 50_000  # a second to read; the longest study here has 6 kB
MOST_DEPTH = 20
MOST_CHARACTERS = 1_000_000  # with every alias unfolded
MOST_INT = 2**63 - 1  # what JSON, numpy and torch can hold
_MERGE = "tag:yaml.org,2002:merge"  # <<: *anchor
_SCIENTIFIC = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def read_file(path: str | Path, parse: Callable[[Any, str], Read]) -> Read:
    """Read a study file of any kind: ``parse`` takes its content and the file's bare name.

    What is wrong is a ``ConfigError`` that names the file.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
        content = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short(error)
        raise ConfigError(
            f"Cannot read the study '{path}': {reason}. Give the path of a YAML file."
        ) from error
    if len(raw) > MOST_BYTES:
        raise ConfigError(
            f"The study '{path}' is longer than {MOST_BYTES:,} bytes. Divide it into several."
        )
    try:
        value = yaml.load(content, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"The study '{path}' is not YAML: {shortened(str(error))}") from error
    try:
        return parse(value, file.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {shortened(str(error))}") from error


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, and a key that stands twice is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._characters = 0
        self._sizes: dict[str, int] = {}  # by anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count what a node holds, before it becomes a value."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before, anchor = self._characters, event.anchor
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise yaml.composer.ComposerError(
                    None, None, f"{short(anchor)} stands within itself", place
                )
            self._characters += self._sizes.get(anchor, 1)
        else:
            self._characters += 1 + len(getattr(event, "value", ""))
        self._depth += 1
        if self._depth > MOST_DEPTH or self._characters > MOST_CHARACTERS:
            what = f"nests more than {MOST_DEPTH} deep"
            if self._depth <= MOST_DEPTH:
                what = f"unfolds to more than {MOST_CHARACTERS:,} characters"
            raise yaml.composer.ComposerError(None, None, f"the file {what}", place)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._characters - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make a value; one that is not what its tag says is an error at its place."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str) and any(map(_is_control, value)):
                raise ValueError("it has control characters")
            if isinstance(value, int) and abs(value) > MOST_INT:
                raise ValueError("it is too large")
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{short(node.value)} cannot be a {kind}", node.start_mark
            ) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping, each of whose keys stands once."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key_node.tag == _MERGE or not isinstance(key, str | int | float):
                continue  # what is no key at all is refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {short(key)} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _is_control(character: str) -> bool:
    return category(character) in ("Cc", "Cs") and character not in "\t\n"


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


# Parts of a study ---------------------------------------------------------------------------


def mapping(value: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    """Return a mapping that has no other keys than those known."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of {', '.join(known)}. Got {value!r}.")
    for key in value:
        if key not in known:
            raise ConfigError(f"{where}: {unknown('key', str(key), known)}")
    return dict(value)


def text(value: Any, field: str) -> str:
    """Return a text that is one."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"The {field!r} must be a text. Got {value!r}.")
    return value


def as_list(value: Any) -> list[Any]:
    """Return a list, of a single value if it is none."""
    return list(value) if isinstance(value, list | tuple) else [value]


def entry_of(value: Any, axis: str, known: Sequence[str]) -> dict[str, Any]:
    """Read an entry of an axis: a name alone, or a mapping with a name in it."""
    named = {"name": value} if isinstance(value, str) else value
    given = mapping(named, f"{axis}: an entry", known)
    if "name" not in given:
        raise ConfigError(f"{axis}: an entry needs a 'name'. Got {value!r}.")
    return given


def refuse_twice(axis: str, names: Sequence[str], remedy: str) -> None:
    """Refuse a name that stands twice in a list."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"{axis}: {name!r} stands there twice; {remedy}.")
