"""What a network costs: parameters, multiply-accumulates (MACs), FLOPs; and a training's FLOPs.

Conventions. ``macs`` counts the multiply-accumulates of convolutions and linear layers for one
image. ``flops`` is the counter with which the paper's budgets were computed: two for each
multiply-add, one for each output element with a bias, two for each input element of a BatchNorm2d,
one for each input element of a ReLU module, and the window's size for each output element of a
pooling module; functional operations, additions and concatenation are free. Weights held at zero
count nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from regrow.mask import Mask, over_weights
from regrow.surgery.tape import evaluating

# Backward costs about twice forward: once for the inputs' gradients, once for the weights'.
TRAINING_FACTOR = 3

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one image through a network (convention: this module's docstring)."""

    parameters: int
    macs: int
    flops: int

    def to_json(self) -> dict[str, int]:
        """Return plain numbers."""
        return asdict(self)

    def training_flops(self, samples: int) -> float:
        """Return the FLOPs of training on so many images (forward x 3)."""
        return float(TRAINING_FACTOR * self.flops * samples)


def measure(model: nn.Module, example: Tensor, mask: Mask | None = None) -> Cost:
    """Measure a network on one example ``[1, C, H, W]``; of masked weights count those kept."""
    kept = {} if mask is None or not mask.held else over_weights(mask, model).kept
    num_kept = {name: int(k.sum()) for name, k in kept.items()}
    removed = sum(k.numel() - num_kept[name] for name, k in kept.items())
    totals = {"macs": 0, "flops": 0}

    def count(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        weight = f"{name}.weight" if name else "weight"
        macs, flops = _count(module, inputs, output, num_kept.get(weight))
        totals["macs"] += macs
        totals["flops"] += flops

    with evaluating(model), _watched(model, count), torch.no_grad():
        model(example)
    parameters = sum(p.numel() for p in model.parameters()) - removed
    return Cost(parameters=parameters, macs=totals["macs"], flops=totals["flops"])


def _count(
    module: nn.Module, inputs: Tensor, output: Tensor, num_kept: int | None
) -> tuple[int, int]:
    """Return (macs, flops) of one call of one layer, of whose weights ``num_kept`` are not zero."""
    if isinstance(module, _WEIGHTED):
        num_weights = module.weight.numel() if num_kept is None else num_kept
        macs = _uses_of_a_weight(module, inputs, output) * num_weights
        return macs, 2 * macs + (output.numel() if module.bias is not None else 0)
    if isinstance(module, nn.BatchNorm2d):
        return 0, 2 * inputs.numel()
    if isinstance(module, nn.ReLU):
        return 0, inputs.numel()
    # A pooling window covers (input / output) positions: exact where windows tile the map, as here.
    if isinstance(
        module, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d
    ):
        return 0, _window(module, inputs, output) * output.numel()
    return 0, 0


def _uses_of_a_weight(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """Count how often each weight is multiplied: positions of the map, rows of the data."""
    if isinstance(module, nn.Linear):
        return output.numel() // module.out_features
    if isinstance(module, _TRANSPOSED):
        return inputs.numel() // module.in_channels
    assert isinstance(module, _CONVOLUTIONS)
    return output.numel() // module.out_channels


def _window(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, int):
        return kernel * kernel
    if isinstance(kernel, tuple):
        return int(kernel[0] * kernel[1])
    return (inputs.shape[-1] * inputs.shape[-2]) // (output.shape[-1] * output.shape[-2])


@contextmanager
def _watched(
    model: nn.Module, count: Callable[[str, nn.Module, Tensor, Tensor], None]
) -> Iterator[None]:
    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
            if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
                count(name, module, inputs[0], output)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
