"""Read a study file: safe YAML, and replacements for parts of it.

The cost of reading a file is bounded: its bytes, its nesting, and the size of its expanded aliases.
Data sets are replaced (``--data NAME=OTHER``), and precisions that a study leaves open are filled
in. The values themselves are checked by the classes that own them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unicodedata import category

import yaml

from regrow.errors import ConfigError, short, shortened, unknown
from regrow.train import AUTO, Computing, Precision

Read = TypeVar("Read")

MOST_BYTES = 50_000  # takes a second to parse; the longest study here has 6 kB
MOST_DEPTH = 20
MOST_CHARACTERS = 1_000_000  # with every alias expanded
MOST_INT = 2**63 - 1  # what JSON, numpy and torch can hold
_MERGE = "tag:yaml.org,2002:merge"  # <<: *anchor
_SCIENTIFIC = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")


def read_file(path: str | Path, parse: Callable[[Any, str], Read]) -> Read:
    """Read a study file of any kind: ``parse`` takes its value and the file's name without suffix.

    Any error in it is a ``ConfigError`` that names the file.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
        content = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or short(error)
        raise ConfigError(
            f"Cannot read the study '{path}': {reason}. Give the path of a YAML file.{_meant(file)}"
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


def _meant(path: Path) -> str:
    """Return a hint at what a path that is not a study may have been meant for."""
    if (path / "study.yaml").is_file():
        return f" Do you mean {path / 'study.yaml'}?"
    if (path / "architecture.json").is_file():
        return (
            f" '{path}' holds a network: regrow.export(regrow.load('{path}'), INPUT, 'net.onnx') "
            "writes it in another format."
        )
    return ""


def read_value(content: str) -> Any:
    """Read a value as a study file may have it: a name, a number or a mapping.

    >>> read_value("hf:some/path"), read_value("{name: vgg-16, width: 0.25}")
    ('hf:some/path', {'name': 'vgg-16', 'width': 0.25})
    """
    try:
        return yaml.load(content, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{short(content)} is not YAML: {shortened(str(error))}") from error


class _Loader(yaml.SafeLoader):
    """A safe YAML loader to which 1e-3 is a number, and a repeated key an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._characters = 0
        self._sizes: dict[str, int] = {}  # by anchor

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Bound a node's depth and expanded characters, before it becomes a value."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        before, anchor = self._characters, event.anchor
        place: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise yaml.composer.ComposerError(
                    None, None, f"{short(anchor)} contains itself", place
                )
            self._characters += self._sizes.get(anchor, 1)
        else:
            self._characters += 1 + len(getattr(event, "value", ""))
        self._depth += 1
        if self._depth > MOST_DEPTH or self._characters > MOST_CHARACTERS:
            excess = f"nests more than {MOST_DEPTH} deep"
            if self._depth <= MOST_DEPTH:
                excess = f"expands to more than {MOST_CHARACTERS:,} characters"
            raise yaml.composer.ComposerError(None, None, f"the file {excess}", place)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._characters - before
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; one that does not fit its tag is an error that names its place."""
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
        """Construct a mapping; refuse repeated keys."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key_node.tag == _MERGE or not isinstance(key, str | int | float):
                continue  # other types are refused as keys below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {short(key)} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _is_control(character: str) -> bool:
    return category(character) in ("Cc", "Cs") and character not in "\t\n"


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


# Replacements for parts of a study ---------------------------------------------------------


def pairs(values: Sequence[str]) -> dict[str, str]:
    """Read replacements of data sets, each NAME=OTHER.

    >>> pairs(["cifar10=hf:images/cifar10"])
    {'cifar10': 'hf:images/cifar10'}
    """
    replacements: dict[str, str] = {}
    for value in values:
        name, equals, replacement = value.partition("=")
        if not name or not equals or not replacement or name in replacements:
            raise ConfigError(
                "--data must be NAME=OTHER, each name once, such as cifar10=hf:PATH. "
                f"Got {short(value)}."
            )
        replacements[name] = replacement
    return replacements


def replaced(value: Any, replacements: Mapping[str, str]) -> Any:
    """Return a study, as a file has it, with the named data sets replaced.

    Data sets are identified by name or label, anywhere in the study; their options are kept.
    """
    names: set[str] = set()
    study = _replaced(value, replacements, names)
    for name in replacements:
        if name not in names:
            raise ConfigError(
                f"--data replaces data that the study names: {unknown('data set', name, names)}"
            )
    return study


def _replaced(value: Any, replacements: Mapping[str, str], names: set[str]) -> Any:
    if isinstance(value, list):
        return [_replaced(entry, replacements, names) for entry in value]
    if not isinstance(value, Mapping):
        return value
    changed = {}
    for key, entry in value.items():
        if key != "data":
            changed[key] = _replaced(entry, replacements, names)
        elif isinstance(entry, list):
            changed[key] = [_other(data_set, replacements, names) for data_set in entry]
        else:
            changed[key] = _other(entry, replacements, names)
    return changed


def _other(data: Any, replacements: Mapping[str, str], names: set[str]) -> Any:
    """Return the replacement of a data set, or the data set itself."""
    fields = data if isinstance(data, Mapping) else {"name": data}
    names_here = [name for key in ("name", "label") if isinstance(name := fields.get(key), str)]
    names |= set(names_here)
    replacement = next((replacements[name] for name in names_here if name in replacements), None)
    if replacement is None:
        return data
    return {**fields, "name": replacement} if isinstance(data, Mapping) else replacement


Choose = Callable[[], Precision | Computing]


def decided(value: Any, choose: Choose) -> Any:
    """Return a study, as a file has it, with the precision and engine of its recipes filled in.

    ``choose`` returns them for recipes without a precision, or with ``auto`` for either; it is
    called only if there are such recipes.
    """
    if not isinstance(value, Mapping) or "train" in value:  # the user's own function decides
        return value
    study = _decided(value, choose)
    whole = {} if "backbone" in value else {"name": "cifar"}  # the default recipe
    if "recipe" not in value:
        study["recipe"] = _decided_recipe(whole, choose)
    if isinstance(value.get("backbone"), Mapping):
        study["backbone"] = decided(value["backbone"], choose)
    return study


def _decided(value: Any, choose: Choose) -> Any:
    if isinstance(value, list):
        return [_decided(entry, choose) for entry in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _decided_recipe(entry, choose) if key == "recipe" else _decided(entry, choose)
        for key, entry in value.items()
    }


def _decided_recipe(value: Any, choose: Choose) -> Any:
    recipe = {"name": value} if isinstance(value, str) else value
    if not isinstance(recipe, Mapping):
        return value
    is_open = recipe.get("precision", AUTO) == AUTO
    if not is_open and recipe.get("engine") != AUTO:
        return value
    chosen = choose()
    computing = chosen if isinstance(chosen, Computing) else Computing(precision=chosen)
    found = {**recipe, "precision": computing.precision if is_open else recipe["precision"]}
    if found["precision"] == "bf16":
        found.pop("engine", None)  # bf16 has only one engine
    elif recipe.get("engine", AUTO) == AUTO:
        found["engine"] = computing.engine
    return found
