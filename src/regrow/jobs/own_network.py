"""A user's network, as part of jobs: its code, its inputs and its weights."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from regrow.core.digests import canonical_json, digest_of, load_tensors, read_file, unsealed
from regrow.core.source import digest_of_source
from regrow.core.validation import is_int
from regrow.cost import Cost, measure
from regrow.errors import ConfigError, StoreError
from regrow.jobs.base import without_none
from regrow.models import ModelSpec
from regrow.models.inputs import Inputs
from regrow.models.origins import ModelOrigin, code_at, file_named, open_network
from regrow.models.weights import read_weights
from regrow.surgery.architecture import ARCHITECTURE, WEIGHTS, Architecture, unreadable

CARD = "card.json"  # in a folder written by ``shrink``
IN_CODE, PUBLISHED = "code", "published"  # weights that do not come from a file


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """A user's network: its origin, its inputs, and its given weights, if any.

    Attributes:
        weights: a file, ``published`` (by a library), ``code`` (set by its own code), or None: it
            is initialised and trained here.
        content: digests of its code and of its given weights, which its results depend on.
        keep: modules that are not cut.
    """

    origin: ModelOrigin
    inputs: Inputs
    weights: str | None = None
    content: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    checkpoint: ClassVar[None] = None  # as in ``ModelSpec``; how given weights trained is unknown

    @classmethod
    def of(
        cls,
        origin: ModelOrigin,
        inputs: Inputs,
        *,
        weights: str | None = None,
        keep: tuple[str, ...] = (),
    ) -> "OwnNetwork":
        """Make the value, computing the digests of the network's files."""
        content = [digest_of_source(code_at(origin.text)[1])] if origin.kind == "code" else []
        if weights not in (None, IN_CODE, PUBLISHED):
            content.append(digest_of(read_weights(Path(weights))))
        elif weights == IN_CODE or (weights == PUBLISHED and origin.folder is not None):
            # Weights that code reads, or in a folder, can change while the name stays the same.
            content.append(digest_of(_with_weights(origin, weights).state_dict()))
        return cls(
            origin=origin.resolved(),
            inputs=inputs,
            weights=weights,
            content=tuple(content),
            keep=keep,
        )

    @property
    def is_given(self) -> bool:
        """True if it has given weights, so that it is not trained before it is cut."""
        return self.weights is not None

    @property
    def files(self) -> tuple[str, ...]:
        """The files of its code and of its weights."""
        in_file = self.weights not in (None, IN_CODE, PUBLISHED)
        return (*file_named(self.origin.text), *((str(self.weights),) if in_file else ()))

    @property
    def example(self) -> Any:
        """An example input, or several if it takes several."""
        return self.inputs.example()

    def fresh(self, seed: int) -> nn.Module:
        """Build it with weights initialised from a seed."""
        return self.origin.build(seed=seed)

    def given(self) -> nn.Module:
        """Build it with its given weights."""
        return _with_weights(self.origin, self.weights)

    def cost(self) -> Cost:
        """Return its cost, which is measured once and cached."""
        return _cost(self)

    def has_rule(self) -> bool:
        """Return whether ``models.initialise_`` initialises it as its own code intends."""
        spec = self.origin.spec()
        return _has_method(self) if spec is None else spec.has_rule()

    def architecture(self) -> Architecture:
        """Return its architecture, from which it can be rebuilt, without cuts."""
        return Architecture(model=self.origin, shape=self.inputs, keep=self.keep)

    def to_json(self) -> dict[str, Any]:
        """Return what results depend on, without the paths of the user's code and weights."""
        origin = self.origin.to_json()
        if self.origin.kind == "code":
            origin["text"] = self.origin.text.rpartition(":")[2]
        in_file = self.weights not in (None, IN_CODE, PUBLISHED)
        return without_none(
            origin=origin,
            inputs=self.inputs.to_json(),
            weights="file" if in_file else self.weights,
            content=list(self.content),
            keep=list(self.keep) or None,
        )


def _with_weights(origin: ModelOrigin, weights: str | None) -> nn.Module:
    return open_network(origin, None if weights == IN_CODE else weights)[0]


@cache
def _cost(network: OwnNetwork) -> Cost:
    return measure(network.fresh(0), network.example)


@cache
def _has_method(network: OwnNetwork) -> bool:
    return callable(getattr(network.fresh(0), "initialise_", None))


@dataclass(frozen=True, kw_only=True)
class CutFolder:
    """A smaller network written by ``shrink``: how it was cut, and the weights it inherited."""

    path: str
    content: str = field(repr=False)
    multiple_of: int = 1  # requested divisor of its widths, from its card
    inputs: tuple[str, ...] = field(default=(), compare=False)  # that it was traced with

    @classmethod
    def of(cls, path: str) -> "CutFolder":
        """Read the folder's digests; raise ``StoreError`` if it is invalid."""
        folder = Path(path)
        try:
            value = unsealed(read_file(folder / ARCHITECTURE), ARCHITECTURE)
            weights, _ = load_tensors(folder / WEIGHTS)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"No smaller network can be read from '{path}': {unreadable(folder, error)}. Give "
                "a folder written by regrow shrink."
            ) from error
        if value.get("weights") != digest_of(weights):
            raise StoreError(
                f"'{path}': its weights are not those that were saved. Write it again."
            )
        content = f"{value['weights']}-{_cuts_digest(value)}"
        inputs = [text for text in value.get("inputs", ()) if isinstance(text, str)]
        return cls(
            path=path,
            content=content,
            multiple_of=_multiple_of(folder),
            inputs=tuple(inputs),
        )

    def read(self, network: OwnNetwork) -> tuple[Architecture, Mapping[str, torch.Tensor]]:
        """Return the cut architecture, built by the network's own code, and its weights."""
        folder = Path(self.path)
        value = unsealed(read_file(folder / ARCHITECTURE), ARCHITECTURE)
        read = Architecture.from_json(value)
        if not isinstance(read.model, ModelOrigin) or _named(read.model) != _named(network.origin):
            cut, compared = _in_words(read.model), _in_words(network.origin)
            raise ConfigError(
                f"'{self.path}' was cut from {cut}, and the network compared is {compared}"
                + (", which has other settings" if cut == compared else "")
                + ". Name the one that it was cut from, with its arguments."
            )
        weights, _ = load_tensors(folder / WEIGHTS)
        return replace(read, model=network.origin, shape=network.inputs), weights


def _multiple_of(folder: Path) -> int:
    """Return the requested divisor of widths from a folder's card; 1 without such a card."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        asked = json.loads(read_file(folder / CARD))["asked"].get("multiple_of", 1)
        return int(asked) if is_int(asked, least=1) else 1
    return 1


def _cuts_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value.get("cuts")).encode()).hexdigest()[:16]


NO_STRUCTURE = ("_name_or_path", "transformers_version")  # fields that do not affect the network


def _named(origin: ModelOrigin) -> tuple[str, str]:
    """Return what identifies an origin's network, independent of its file's or folder's path."""
    text, settings = origin.text, origin.settings
    if origin.kind == "code":
        text = text.rpartition(":")[2]
    elif config := settings.get("config"):  # identified by its configuration, not by its name
        known = {name: value for name, value in config.items() if name not in NO_STRUCTURE}
        text = canonical_json({**settings, "config": known})
    return text, repr(origin.arguments)


def _in_words(model: ModelSpec | ModelOrigin) -> str:
    """Describe a network as on the command line: ``nets.py:MobileNet --set width=8``."""
    name = model.name if isinstance(model, ModelSpec) else model.text
    given = [f"--set {key}={json.dumps(value)}" for key, value in model.arguments.items()]
    return " ".join([name, *given])
