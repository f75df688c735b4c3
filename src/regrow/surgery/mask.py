"""Masks of the units that a network keeps: how they combine, and how they zero weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.core.units import UNITS, Kept
from regrow.core.validation import check_kind
from regrow.errors import ConfigError, unknown


@dataclass(frozen=True, eq=False, kw_only=True)
class Mask:
    """The units of a network that are kept, as booleans by name.

    ``channel`` maps names of groups to ``[units]``, which are cut out. ``block`` maps names of
    residual blocks to ``[1]``; their branches are removed. ``weight`` maps names of parameters to
    tensors of their shape, and ``filter`` to ``[outputs]``; both are held at zero in a network of
    full size.

    A group or parameter that is not named stays whole. ``guarded`` names the groups that would have
    been emptied and kept one unit instead.

    >>> mask = Mask(unit="channel", kept={"conv1": torch.tensor([True, False, True, True])})
    >>> mask.sparsity, mask.widths()
    (0.25, {'conv1': 3})
    """

    unit: str  # the name of a registered unit
    kept: Kept
    guarded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = "A mask's 'kept' must be a mapping of names to tensors of booleans (True = kept)"
        check_kind(self.kept, Mapping, kinds)
        for name, kept in self.kept.items():
            check_kind(kept, Tensor, f"{kinds}, as torch.tensor([True, False]) for {name!r}")
            if kept.dtype != torch.bool:
                raise ConfigError(
                    f"The mask of {name!r} must hold booleans (True = kept). Got {kept.dtype}."
                )

    @property
    def num_units(self) -> int:
        """Count the units that the mask covers."""
        return sum(kept.numel() for kept in self.kept.values())

    @property
    def num_kept(self) -> int:
        """Count the units that are kept."""
        return sum(int(kept.sum()) for kept in self.kept.values())

    @property
    def sparsity(self) -> float:
        """Return the removed share of the units, in [0, 1)."""
        return 1.0 - self.num_kept / self.num_units if self.num_units else 0.0

    def widths(self) -> dict[str, int]:
        """Count the kept units of each group or parameter, in the mask's order."""
        return {name: int(kept.sum()) for name, kept in self.kept.items()}

    def indices(self, name: str) -> Tensor:
        """Return the positions of the kept units of one group."""
        return torch.nonzero(self.kept[name].flatten()).flatten()

    def __and__(self, other: "Mask") -> "Mask":
        """Keep what both keep."""
        if self.unit != other.unit:
            raise ConfigError(
                f"Cannot combine a mask over {self.unit}s with a mask over {other.unit}s."
            )
        both = {name: kept & other.kept.get(name, kept) for name, kept in self.kept.items()}
        guarded = tuple(dict.fromkeys(self.guarded + other.guarded))
        return Mask(unit=self.unit, kept={**other.kept, **both}, guarded=guarded)


def cut_groups(mask: Mask) -> list[str]:
    """Return the names of the groups from which a mask removes units."""
    return [name for name, kept in mask.kept.items() if not bool(kept.all())]


def keeping(names: Sequence[str]) -> str:
    """Return the call that keeps some groups whole, for messages."""
    return f"trace(..., keep={list(names)})"


def kept_weights(mask: Mask, model: nn.Module) -> dict[str, Tensor]:
    """Return which single weights are kept, by parameter; empty if units are cut out."""
    unit = UNITS.get(mask.unit)
    if unit.weights is None:
        return {}
    named = dict(model.named_parameters(remove_duplicate=False))
    weights = {}
    for name, kept in mask.kept.items():
        if name not in named:
            raise ConfigError(
                "The mask names a parameter that the network lacks. "
                f"{unknown('parameter', name, named)}"
            )
        weights[name] = unit.weights(kept, name, model).expand(named[name].shape)
    return weights


def apply_(model: nn.Module, mask: Mask) -> None:
    """Zero the masked weights of a model, in place."""
    _require_masked(mask)
    parameters, factors = _factors(mask, model)
    with torch.no_grad():
        for parameter, factor in zip(parameters, factors, strict=True):
            parameter.mul_(factor)


def filter_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that its filters (or outputs) lie in."""
    return 1 if getattr(layer, "transposed", False) else 0


def layer_of(parameter: str, model: nn.Module) -> nn.Module:
    """Return the layer that owns a parameter."""
    return model.get_submodule(parameter.rpartition(".")[0])


def check_shape(kept: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise a ``ConfigError`` if a parameter's entry in a mask has another shape than expected."""
    if tuple(kept.shape) != tuple(shape):
        raise ConfigError(
            f"The mask of {name!r} has the shape {tuple(kept.shape)}, but the parameter has "
            f"{tuple(shape)}. Use a mask made for this network."
        )


def _factors(mask: Mask, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that a mask names, and the mask as factors of 0 and 1 for each."""
    kept = kept_weights(mask, model)
    parameters: list[Tensor] = [model.get_parameter(name) for name in kept]
    return parameters, [k.to(p) for k, p in zip(kept.values(), parameters, strict=True)]


def _require_masked(mask: Mask) -> None:
    if not UNITS.get(mask.unit).masked:
        raise ConfigError(
            "Only a mask over weights or filters can be held at zero. Got one over "
            f"{mask.unit}s: use regrow.shrink to cut them."
        )
