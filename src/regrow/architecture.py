"""Pruned networks are recipes, not pickles: a model's name, its arguments and what was kept.

``save`` writes ``architecture.json`` and ``weights.safetensors``; ``load`` builds the model by
code, cuts it as it was cut, and fills in the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from regrow.errors import ConfigError, StoreError
from regrow.mask import Mask
from regrow.models import ModelSpec, build
from regrow.surgery import shrink, trace

FORMAT = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """A network as code can rebuild it: a registered model and the cuts made, one after another."""

    model: ModelSpec
    shape: tuple[int, ...]  # of one example, [1, C, H, W]
    cuts: tuple[Mask, ...] = ()

    def build(self, *, seed: int = 0) -> nn.Module:
        """Build the network with fresh weights (those of the uncut model's seed, then cut)."""
        return self.cut(build(self.model, seed=seed))

    def cut(self, model: nn.Module) -> nn.Module:
        """Cut a network of the uncut model."""
        for mask in self.cuts:
            model = shrink(model, mask, trace(model, self.shape))
        return model

    def then(self, mask: Mask) -> "Architecture":
        """Return the architecture after one more cut."""
        return Architecture(model=self.model, shape=self.shape, cuts=(*self.cuts, mask))

    def to_json(self) -> dict[str, Any]:
        """Return the model, the example's shape, and for each cut the kept units of each group."""
        return {
            "format": FORMAT,
            "model": self.model.to_json(),
            "shape": list(self.shape),
            "cuts": [
                {
                    name: {"of": stays.numel(), "kept": mask.indices(name).tolist()}
                    for name, stays in mask.kept.items()
                }
                for mask in self.cuts
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Architecture":
        """Read what ``to_json`` wrote."""
        if value.get("format") != FORMAT:
            raise StoreError(
                f"This architecture has format {value.get('format')!r}, and this regrow reads "
                f"{FORMAT}. Use the regrow that wrote it."
            )
        try:
            cuts = tuple(
                Mask(unit="channel", kept={n: _stays(**g) for n, g in cut.items()})
                for cut in value["cuts"]
            )
            return cls(
                model=ModelSpec.from_json(value["model"]), shape=tuple(value["shape"]), cuts=cuts
            )
        except (KeyError, TypeError, IndexError) as error:
            raise StoreError(f"This architecture is damaged ({error!r}). Save it anew.") from error


def _stays(of: int, kept: list[int]) -> Tensor:
    stays = torch.zeros(of, dtype=torch.bool)
    stays[kept] = True
    return stays


def save(folder: str | Path, model: nn.Module, architecture: Architecture) -> None:
    """Write a network's ``architecture.json`` and ``weights.safetensors`` into a folder."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(state, path / "weights.safetensors")
        text = json.dumps(architecture.to_json(), indent=1)
        (path / "architecture.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write the network to '{folder}': {error.strerror or error}. Name a folder "
            "that you may write to."
        ) from error


def load(folder: str | Path) -> nn.Module:
    """Rebuild a network that ``save`` (or a study) left in a folder, in evaluation mode.

    Raises:
        StoreError: a file is missing or damaged, or the weights do not fit the architecture.
    """
    path = Path(folder)
    try:
        text = (path / "architecture.json").read_text(encoding="utf-8")
        weights = load_file(path / "weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"No network can be read from '{folder}': {error}. Expected architecture.json and "
            "weights.safetensors, as regrow.save writes them."
        ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise StoreError(f"'{path / 'architecture.json'}' is damaged ({error}).") from error
    model = Architecture.from_json(value).build()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise StoreError(
            f"The weights in '{folder}' do not fit its architecture: {error}"
        ) from error
    return model.eval()
