"""Masked weights during training: held at zero, and counted if their masks change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, TrainingError, unknown


class MaskedWeights:
    """The masks of a network's parameters, as factors of 1 (kept) and 0 on the same device.

    ``masks`` has booleans by parameter that broadcast over it. The factors are changed in place.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in masks:
            if name not in parameters:
                raise ConfigError(
                    "A mask names a parameter that the network lacks. "
                    f"{unknown('parameter', name, parameters)}"
                )
        self.parameters: list[Tensor] = [parameters[name] for name in masks]
        self.factors = {
            name: torch.empty_like(parameters[name])
            .copy_(stays.expand(parameters[name].shape))
            .detach()
            for name, stays in masks.items()
        }

    def zero_weights_(self) -> None:
        """Zero the masked weights and their gradients."""
        with torch.no_grad():
            torch._foreach_mul_(self.parameters, list(self.factors.values()))
        self.zero_gradients_()

    def zero_gradients_(self) -> None:
        """Zero the gradients of masked weights, so that they leave no optimiser state."""
        pairs = zip(self.parameters, self.factors.values(), strict=True)
        gradients = [(p.grad, f) for p, f in pairs if p.grad is not None]
        if gradients:
            with torch.no_grad():
                torch._foreach_mul_([grad for grad, _ in gradients], [f for _, f in gradients])

    def kept(self) -> dict[str, Tensor]:
        """Return copies of the masks as booleans, on the CPU."""
        return {
            name: factor.bool().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for name, factor in self.factors.items()
        }

    def num_kept(self) -> dict[str, int]:
        """Count the kept weights of each parameter; a mask of other numbers is an error."""
        for name, factor in self.factors.items():
            if not bool(((factor == 0) | (factor == 1)).all()):
                raise TrainingError(
                    f"The mask of {name!r} holds other numbers than 0 and 1. A treatment must "
                    "overwrite masks by booleans: masks[name].copy_(kept)."
                )
        return {name: int(factor.sum(dtype=torch.float64)) for name, factor in self.factors.items()}


@dataclass(kw_only=True)
class SparsePasses:
    """A count of the weights used in the passes of a training whose masks change.

    An image takes three passes: forward, and backward once for the inputs' gradients and once for
    the weights'. The last is dense if gradients of masked weights are used.

    Attributes:
        sizes: the number of weights of each masked parameter.
        num_kept: how many of them are kept at present.
        weights: the number of weights used, summed over images and passes, by parameter.
    """

    sizes: Mapping[str, int]
    num_kept: Mapping[str, int]
    weights: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, masked: MaskedWeights) -> "SparsePasses":
        """Start the count of a training that begins with these masks."""
        sizes = {name: factor.numel() for name, factor in masked.factors.items()}
        return cls(sizes=sizes, num_kept=masked.num_kept())

    def add(self, images: int, *, dense_gradients: bool) -> None:
        """Count one step."""
        for name, num in self.num_kept.items():
            last = self.sizes[name] if dense_gradients else num
            self.weights[name] = self.weights.get(name, 0) + images * (2 * num + last)

    def densities(self, images: int) -> dict[str, float]:
        """Return the mean share of each parameter's weights that was used, over all passes."""
        return {
            name: total / (3 * images * self.sizes[name]) for name, total in self.weights.items()
        }
