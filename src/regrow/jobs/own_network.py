"""A network of one's own as jobs are given it: its code, what it takes, and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from regrow.core.digests import digest_of, load_tensors, read_file, unsealed
from regrow.core.source import digest_of_source
from regrow.cost import Cost, measure
from regrow.errors import ConfigError, StoreError
from regrow.jobs.base import without_none
from regrow.models.inputs import Inputs
from regrow.models.origins import ModelOrigin, code_at, file_named, open_network
from regrow.models.weights import read_weights
from regrow.surgery.architecture import ARCHITECTURE, WEIGHTS, Architecture

IN_CODE, PUBLISHED = "code", "published"  # weights that are in no file


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    """A network by its origin, the inputs it takes, and the weights that it comes with, if any.

    Attributes:
        weights: a file, ``published`` (by a library), ``code`` (its own code gives it some), or
            None: it is drawn, and trained here.
        content: digests of its code and of the file of weights, which its results hang on.
        keep: modules that are not cut.
    """

    origin: ModelOrigin
    inputs: Inputs
    weights: str | None = None
    content: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    checkpoint: ClassVar[None] = None  # of registered models; how long these trained nobody said

    @classmethod
    def of(
        cls,
        origin: ModelOrigin,
        inputs: Inputs,
        *,
        weights: str | None = None,
        keep: tuple[str, ...] = (),
    ) -> "OwnNetwork":
        """Look at the files that the network comes from."""
        content = [digest_of_source(code_at(origin.text)[1])] if origin.kind == "code" else []
        if weights not in (None, IN_CODE, PUBLISHED):
            content.append(digest_of(read_weights(Path(weights))))
        return cls(
            origin=origin.resolved(),
            inputs=inputs,
            weights=weights,
            content=tuple(content),
            keep=keep,
        )

    @property
    def is_given(self) -> bool:
        """True if it comes with weights, so that it is not trained before it is cut."""
        return self.weights is not None

    @property
    def files(self) -> tuple[str, ...]:
        """The files of its code and of its weights."""
        in_file = self.weights not in (None, IN_CODE, PUBLISHED)
        return (*file_named(self.origin.text), *((str(self.weights),) if in_file else ()))

    @property
    def example(self) -> Any:
        """An input, or several."""
        return self.inputs.example()

    def fresh(self, seed: int) -> nn.Module:
        """Build it as drawn from a seed."""
        return self.origin.build(seed=seed)

    def given(self) -> nn.Module:
        """Build it with the weights that it comes with."""
        return open_network(self.origin, None if self.weights == IN_CODE else self.weights)[0]

    def cost(self) -> Cost:
        """Measure it, once."""
        return _cost(self)

    def has_rule(self) -> bool:
        """Tell whether ``initialise_`` draws it as its code means it to start."""
        spec = self.origin.spec()
        return _has_method(self) if spec is None else spec.has_rule()

    def architecture(self) -> Architecture:
        """Return it as code can rebuild it, uncut."""
        return Architecture(model=self.origin, shape=self.inputs, keep=self.keep)

    def to_json(self) -> dict[str, Any]:
        """Return what results hang on: no path of one's own code or weights."""
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


@cache
def _cost(network: OwnNetwork) -> Cost:
    return measure(network.fresh(0), network.example)


@cache
def _has_method(network: OwnNetwork) -> bool:
    return callable(getattr(network.fresh(0), "initialise_", None))


@dataclass(frozen=True, kw_only=True)
class CutFolder:
    """A smaller network that ``shrink`` wrote: how it was cut, and the weights it inherited."""

    path: str
    content: str = field(repr=False)

    @classmethod
    def of(cls, path: str) -> "CutFolder":
        """Look at the folder; a ``StoreError`` says what is wrong with it."""
        folder = Path(path)
        try:
            value = unsealed(read_file(folder / ARCHITECTURE), ARCHITECTURE)
            weights, _ = load_tensors(folder / WEIGHTS)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"No smaller network can be read from '{path}': {error}. Give a folder that "
                "regrow shrink wrote."
            ) from error
        if value.get("weights") != digest_of(weights):
            raise StoreError(
                f"'{path}': its weights are not those that were saved. Write it again."
            )
        return cls(path=path, content=f"{value['weights']}-{_cuts_digest(value)}")

    def read(self, network: OwnNetwork) -> tuple[Architecture, Mapping[str, torch.Tensor]]:
        """Return the cut architecture, built by the network's own code, and its weights."""
        folder = Path(self.path)
        value = unsealed(read_file(folder / ARCHITECTURE), ARCHITECTURE)
        read = Architecture.from_json(value)
        if not isinstance(read.model, ModelOrigin) or _named(read.model) != _named(network.origin):
            raise ConfigError(
                f"'{self.path}' was cut from {read.model!r}, and the network compared is "
                f"{network.origin!r}. Name the one that it was cut from, with its arguments."
            )
        weights, _ = load_tensors(folder / WEIGHTS)
        return replace(read, model=network.origin, shape=network.inputs), weights


def _cuts_digest(value: Mapping[str, Any]) -> str:
    import hashlib

    from regrow.core.digests import canonical_json

    return hashlib.sha256(canonical_json(value.get("cuts")).encode()).hexdigest()[:16]


def _named(origin: ModelOrigin) -> tuple[str, str]:
    """Return what of an origin says which network it is, wherever its file lies."""
    text = origin.text.rpartition(":")[2] if origin.kind == "code" else origin.text
    return text, repr(origin.arguments)
