"""Pruned networks saved as descriptions, not as pickles: a model, its arguments and its cuts.

``save`` writes ``architecture.json`` and ``weights.safetensors``; ``load`` builds the model with
its code, repeats the cuts, and loads the weights. ``architecture.json`` contains digests of itself
and of the weights. A user's code is run only if the caller of ``load`` names it, because a folder
may come from anywhere.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from regrow.core.digests import (
    digest_of,
    load_tensors,
    read_file,
    save_tensors,
    sealed,
    unsealed,
    write_synced,
)
from regrow.core.disk import why
from regrow.core.units import UNITS
from regrow.core.validation import check_kind, is_int, path_of, text
from regrow.errors import ConfigError, Damaged, RegrowError, StoreError, TraceError, short
from regrow.models import MODELS, ModelSpec, build, example_input, is_origin
from regrow.models.inputs import Inputs, inputs_of
from regrow.models.origins import ModelOrigin
from regrow.surgery import Trace, shrink, trace
from regrow.surgery.fold import fold
from regrow.surgery.mask import Mask
from regrow.surgery.sample import FAR, Sample, distance, is_sample, sample
from regrow.surgery.taken import check_keep, check_network

FORMAT = 1
ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"
MOST_VALUES = 2**27  # of one example: half a GB
MOST_UNITS = 2**24  # of a group: far more than any layer has, and little memory


@dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """A description from which a network can be rebuilt: a model and its cuts, in order.

    Attributes:
        model: a registered model, or the origin of any other network.
        shape: of one example: [1, C, H, W], [1, features], [1, tokens]; or its ``Inputs``.
        keep: the modules that must not be pruned (see ``trace``).
        folded: whether computed weights (such as weight norm) were made plain (see ``fold``).
    """

    model: ModelSpec | ModelOrigin
    shape: tuple[int, ...] | Inputs
    cuts: tuple[Mask, ...] = ()
    keep: tuple[str, ...] = ()
    folded: bool = False

    def __post_init__(self) -> None:
        model, shape = self.model, self.shape
        kinds = "An architecture's model must be a regrow.ModelSpec or a regrow.ModelOrigin"
        check_kind(model, (ModelSpec, ModelOrigin), kinds)
        check_keep(self.keep)
        cuts = "An architecture's cuts must be a list of masks, such as [mask]"
        check_kind(self.cuts, (list, tuple), cuts)
        for mask in self.cuts:
            check_kind(mask, Mask, cuts)
        if isinstance(model, ModelSpec):
            shape = shape if model.inputs is None else Inputs.read(model.inputs.split())
            if is_origin(model.name):  # its code is not run just because a file names it
                model = ModelOrigin(model.name, model.arguments)
        if isinstance(model, ModelOrigin):
            model, shape = model.spec() or model, inputs_of(shape)
        if not isinstance(shape, Inputs) and not _is_shape(shape):
            raise ConfigError(
                f"The shape of an example must be whole numbers of at least 1. Got {short(shape)}."
            )
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "cuts", tuple(self.cuts))

    @property
    def code(self) -> str | None:
        """The location of a user's code that builds it; None for models of regrow or a library."""
        model = self.model
        return model.text if isinstance(model, ModelOrigin) and model.kind == "code" else None

    def build(self, *, seed: int = 0) -> nn.Module:
        """Build the network with new weights: those of the uncut model for this seed, then cut."""
        if isinstance(self.model, ModelOrigin):
            return self.cut(self.model.build(seed=seed))
        return self.cut(build(self.model.untrained(), seed=seed))

    def cut(self, model: nn.Module) -> nn.Module:
        """Apply the cuts to a network of the uncut model."""
        model = fold(model) if self.folded else model
        for number, mask in enumerate(self.cuts):
            model = shrink(model, mask, self._traced(model, uncut=number == 0))
        return model

    def example(self) -> Any:
        """Return an example input of the model, or several inputs."""
        if isinstance(self.shape, Inputs):
            return self.shape.example()
        assert isinstance(self.model, ModelSpec)
        return example_input(self.model, self.shape)

    def _traced(self, model: nn.Module, *, uncut: bool) -> Trace:
        if isinstance(self.model, ModelOrigin) or isinstance(self.shape, Inputs) or self.keep:
            return trace(model, self.example(), keep=self.keep)
        if uncut:
            return traced(model, self.model, self.shape)
        return trace(model, self.example())

    def then(self, mask: Mask) -> "Architecture":
        """Return the architecture after one more cut."""
        return replace(self, cuts=(*self.cuts, mask))

    def to_json(self) -> dict[str, Any]:
        """Return the model, the example's shape, and for each cut the kept units of each group.

        ``units`` is present only if some cut is not of channels.
        """
        units = [mask.unit for mask in self.cuts]
        return {
            "format": FORMAT,
            **({"units": units} if set(units) - {"channel"} else {}),
            **({"keep": list(self.keep)} if self.keep else {}),
            **({"folded": True} if self.folded else {}),
            "origin" if isinstance(self.model, ModelOrigin) else "model": self.model.to_json(),
            **(
                {"inputs": self.shape.to_json()}
                if isinstance(self.shape, Inputs)
                else {"shape": list(self.shape)}
            ),
            "cuts": [
                {
                    name: {"of": stays.numel(), "kept": mask.indices(name).tolist()}
                    for name, stays in mask.kept.items()
                }
                for mask in self.cuts
            ],
        }

    @classmethod
    def read(cls, folder: str | Path, *, code: str | None = None) -> "Architecture":
        """Read the architecture of a network that ``save`` wrote: see ``load``."""
        return _read(path_of(folder, "The folder to read"), code)[0]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Architecture":
        """Read what ``to_json`` wrote; anything else is a ``StoreError``."""
        if not isinstance(value, Mapping):
            raise StoreError(f"An architecture must be a mapping. Got {short(value)}: save it.")
        if value.get("format") != FORMAT:
            raise StoreError(
                f"This architecture has format {short(value.get('format'))}, and this regrow reads "
                f"{FORMAT}. Use the version of regrow that wrote it."
            )
        try:
            units = value.get("units", ["channel"] * len(value["cuts"]))
            if any(UNITS.get(unit).masked for unit in units):
                raise ValueError(f"units {units}")
            cuts = tuple(
                Mask(unit=unit, kept={n: _stays(**g) for n, g in cut.items()})
                for unit, cut in zip(units, value["cuts"], strict=True)
            )
            return cls(
                model=(
                    ModelOrigin.from_json(value["origin"])
                    if "origin" in value
                    else ModelSpec.from_json(value["model"])
                ),
                shape=(
                    Inputs.read(value["inputs"]) if "inputs" in value else tuple(value["shape"])
                ),
                cuts=cuts,
                keep=tuple(value.get("keep", ())),
                folded=bool(value.get("folded", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ConfigError) as error:
            raise StoreError(
                f"This architecture is damaged ({short(error)}). Save it anew."
            ) from error


def traced(model: nn.Module, spec: ModelSpec, shape: tuple[int, ...]) -> Trace:
    """Return the trace of an uncut network of a registered model.

    For regrow's own models it is cached in each process: their code does not depend on the values
    of weights, so all networks of a model have the same trace. Of other models this is not known.
    """
    if not is_fixed(spec):
        return trace(model, example_input(spec, shape))
    known = _found(spec.untrained(), tuple(shape))
    if not known:
        known.append(trace(model, example_input(spec, shape)))
    return known[0]


def is_fixed(spec: ModelSpec) -> bool:
    """Return whether a model's structure is known not to depend on its weights."""
    return MODELS.is_own(spec.name)


@lru_cache(maxsize=8)  # a study has few models
def _found(spec: ModelSpec, shape: tuple[int, ...]) -> list[Trace]:
    """Return the cache of a model's trace: a list that is empty until the trace is added."""
    return []


def _is_shape(shape: object) -> bool:
    """Return whether a value is the shape of an example that fits in memory."""
    if not isinstance(shape, tuple) or not shape or not all(is_int(n, least=1) for n in shape):
        return False
    return math.prod(shape) <= MOST_VALUES


def _stays(of: int, kept: list[int]) -> Tensor:
    if not is_int(of, least=0) or of > MOST_UNITS:
        raise ValueError(f"a group of {short(of)} units")
    if not all(is_int(unit, least=0) and unit < of for unit in kept):
        raise ValueError(f"units outside 0 to {of - 1}")
    stays = torch.zeros(of, dtype=torch.bool)
    stays[kept] = True
    return stays


def save(folder: str | Path, model: nn.Module, architecture: Architecture) -> None:
    """Write a network's ``architecture.json`` and ``weights.safetensors`` into a folder.

    Raises:
        ConfigError: the network is not one of this architecture, or computes something else than
            what is built from it, or the folder cannot be written.
    """
    if not isinstance(architecture, Architecture):
        raise ConfigError(
            "The third argument of regrow.save says how the network is built: "
            "regrow.Architecture.read(FOLDER), or regrow.Architecture(model=regrow.ModelOrigin("
            f"'nets.py:build'), shape=(1, 3, 224, 224)). Got {short(architecture)}."
        )
    path = path_of(folder, "The first argument of regrow.save, a folder,")
    check_network(model)
    state = model.state_dict()
    if isinstance(architecture.model, ModelOrigin):
        architecture = replace(architecture, model=architecture.model.resolved())
    again = architecture.build()
    _check_fit(again, state)
    outputs = sample(model, architecture.example())
    again.load_state_dict(state)
    if _changed(again, architecture, outputs):
        raise ConfigError(
            f"This network computes other outputs than the one that is rebuilt from "
            f"{architecture.model!r} with its weights. It was changed after it was built (other "
            "activations, strides, hooks), or is built otherwise each time: make what differs an "
            "argument or a buffer of the code that builds it."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_tensors(path / WEIGHTS, state)
        sampled = {} if outputs is None else {"outputs": outputs}
        content = {**architecture.to_json(), "weights": digest_of(state), **sampled}
        write_synced(path / ARCHITECTURE, sealed(content, ARCHITECTURE))
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"Cannot write the network to '{folder}': {why(error, path)}. "
            "Name a folder that you may write to."
        ) from error


def load(folder: str | Path, *, code: str | None = None) -> nn.Module:
    """Rebuild a network from a folder that ``save`` wrote, in evaluation mode.

    Warns if it computes other outputs than when it was saved, because its code has changed.

    Args:
        folder: the folder that ``save`` wrote.
        code: the location of the network's own code, ``package.module:build`` or ``file.py:build``,
            if it is neither regrow's nor a library's. Code is run only if it is named here.

    Raises:
        StoreError: a file is missing or damaged, or the weights do not fit the architecture.
        ConfigError: its model is not registered (a user's file has to be loaded first), a library
            is missing, or the network is built by code that was not named.
    """
    path = path_of(folder, "The folder that regrow.load reads")
    if code is not None:
        text(code, "code")
    architecture, value, weights = _read(path, code)
    try:
        model = architecture.build()
    except TraceError as error:
        named = "" if code is None else f" Is {code} the code that it was cut from?"
        raise StoreError(
            f"The cuts in '{path / ARCHITECTURE}' do not fit its model: {error}{named}"
        ) from error
    except RegrowError:
        raise
    except Exception as error:  # from layers that cannot be built
        raise StoreError(
            f"The network in '{path / ARCHITECTURE}' cannot be built: {type(error).__name__}: "
            f"{short(error)}"
        ) from error
    try:
        _check_fit(model, weights)
    except ConfigError as error:
        raise StoreError(
            f"The weights in '{path / WEIGHTS}' do not fit its architecture. {error}"
        ) from error
    if digest_of(weights) != value.get("weights"):
        raise Damaged(
            f"'{path / WEIGHTS}' is damaged: its weights are not those that were saved with "
            f"{ARCHITECTURE}. Save the network anew."
        )
    model.load_state_dict(weights)
    if _changed(model, architecture, value.get("outputs")):
        warnings.warn(
            f"The network in '{path}' computes other outputs than when it was saved: its weights "
            f"are the same, so {architecture.code or 'the code of its library'} has changed since.",
            stacklevel=2,
        )
    return model.eval()


def _changed(model: nn.Module, architecture: Architecture, outputs: Sample | None) -> bool:
    """Return whether a network's outputs are far from a sample of them; False if there is none."""
    if outputs is None:
        return False
    found = sample(model, architecture.example())
    return found is None or distance(found, outputs) > FAR


def _read(path: Path, code: str | None) -> tuple[Architecture, dict[str, Any], dict[str, Tensor]]:
    """Return a folder's architecture, what its file holds, and the weights."""
    file = path / ARCHITECTURE
    try:
        value = unsealed(read_file(file), ARCHITECTURE)
        file = path / WEIGHTS
        weights, _ = load_tensors(file)
    except OSError as error:
        raise StoreError(
            f"No network can be read from '{path}': {unreadable(path, error)}. Expected "
            f"{ARCHITECTURE} and {WEIGHTS}, as regrow.save writes them."
        ) from error
    except ValueError as error:
        raise Damaged(f"'{file}' is damaged: {error}. Save the network anew.") from error
    architecture = _by_code(Architecture.from_json(value), code, path)
    if not is_sample(value.get("outputs", [])):
        raise Damaged(f"'{path / ARCHITECTURE}' is damaged: its 'outputs'. Save the network anew.")
    return architecture, value, weights


def unreadable(folder: Path, error: Exception) -> str:
    """Return what is missing in a folder that should hold a network, or what went wrong."""
    if folder.is_file():
        return "it is a file, not a folder"
    if not folder.exists():
        return f"there is no such folder in '{Path.cwd()}'"
    if missing := [name for name in (ARCHITECTURE, WEIGHTS) if not (folder / name).exists()]:
        saved = (folder / "config.json").is_file()
        of_others = f"; it holds a network of transformers: name it hf/{folder}" if saved else ""
        return f"it has no {' and no '.join(missing)}{of_others}"
    return why(error, folder) if isinstance(error, OSError) else short(error)


def _by_code(architecture: Architecture, code: str | None, folder: Path) -> Architecture:
    """Return the architecture, with the code that the caller named in place of its file's.

    Raises:
        ConfigError: the caller named no code, or the network needs none.
    """
    model = architecture.model
    if not isinstance(model, ModelOrigin) or model.kind != "code":
        if code is not None:
            raise ConfigError(
                f"The network in '{folder}' is built without code of yours. Leave out 'code'."
            )
        return architecture
    if code is None:
        raise ConfigError(
            f"The network in '{folder}' is built by the code {model.text!r}, which is not run "
            f"just because a file names it. If you trust it: regrow.load({str(folder)!r}, "
            f"code={model.text!r}), with the current path of that code."
        )
    return replace(architecture, model=ModelOrigin(code, model.arguments))


def _check_fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes; a ``ConfigError`` names the first that differs."""
    expected = model.state_dict()
    for name in (*expected, *state):
        shapes = [tuple(s[name].shape) if name in s else "nothing" for s in (expected, state)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"The architecture has {shapes[0]} for {name!r}, and the network {shapes[1]}."
            )
