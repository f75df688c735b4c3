"""Costs: layers by hand, the printed counts of the protocols, and masked weights."""

from typing import Any

import pytest
import torch
from torch import nn

from regrow.cost import TRAINING_FACTOR, Cost, measure
from regrow.mask import Mask, apply_
from regrow.models import ModelSpec, build

IMAGE = torch.zeros(1, 3, 32, 32)

# Protocols, section 2.3, "Repo FLOPs", in millions with 10 classes.
MFLOPS: list[tuple[str, dict[str, Any], float]] = [
    ("vgg-16", {"head": "two-layer"}, 627.88),
    ("vgg-11", {}, 306.12),
    ("vgg-13", {}, 457.41),
    ("vgg-16", {}, 627.36),
    ("vgg-19", {}, 797.30),
    ("vgg-16", {"conv_bias": True}, 627.63),
    ("vgg-19", {"conv_bias": True}, 797.61),
    ("resnet-56", {}, 252.57),
    ("resnet-110", {}, 508.93),
    ("resnet-50-lottery", {}, 224.64),
    ("preresnet-56", {}, 177.70),
    ("preresnet-110", {}, 341.23),
    ("preresnet-164", {}, 504.76),
    ("densenet-40", {}, 573.05),
    ("densenet-bc-100", {}, 588.71),
]


def two_layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


def test_two_layers_by_hand() -> None:
    cost = measure(two_layers(), torch.zeros(1, 3, 8, 8))
    conv, linear = 27 * 8 * 64, 128 * 10
    assert cost.parameters == 27 * 8 + 16 + 1280 + 10
    assert cost.macs == conv + linear
    extra = 2 * 8 * 64 + 8 * 64 + 4 * 8 * 16 + 10  # norm, ReLU, pool, bias of the linear layer
    assert cost.flops == 2 * cost.macs + extra
    assert cost.to_json() == {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "flops": cost.flops,
    }


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, stride=2), (1, 4, 9, 9), 6 * 16 * 2 * 9),
        (nn.Conv1d(4, 6, 3), (1, 4, 9), 6 * 7 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
        (nn.Linear(4, 6), (1, 7, 4), 7 * 24),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    x = torch.zeros(shape)
    cost = measure(layer, x)
    assert cost.macs == macs
    assert cost.flops == 2 * macs + layer(x).numel()  # a bias for each output element


@pytest.mark.parametrize(
    ("name", "arguments", "mflops"), MFLOPS, ids=lambda v: v if isinstance(v, str) else None
)
def test_flops_are_those_of_the_protocols(
    name: str, arguments: dict[str, Any], mflops: float
) -> None:
    model = build(ModelSpec(name, {"classes": 10, **arguments}))
    # One unit of the last digit: VGG-19's 797.307 is printed cut off, the others rounded.
    assert measure(model, IMAGE).flops / 1e6 == pytest.approx(mflops, abs=0.01)


def test_masked_weights_count_nothing() -> None:
    model = two_layers()
    generator = torch.Generator().manual_seed(0)
    kept = {
        name: torch.rand(dict(model.named_parameters())[name].shape, generator=generator) < 0.3
        for name in ("0.weight", "5.weight")
    }
    mask = Mask(unit="weight", kept=kept)
    apply_(model, mask)
    full, sparse = (
        measure(model, torch.zeros(1, 3, 8, 8)),
        measure(model, torch.zeros(1, 3, 8, 8), mask),
    )
    conv, linear = int(kept["0.weight"].sum()), int(kept["5.weight"].sum())
    assert sparse.macs == conv * 64 + linear
    assert sparse.parameters == full.parameters - (216 - conv) - (1280 - linear)
    assert full.flops - sparse.flops == 2 * (full.macs - sparse.macs)
    channels = Mask(unit="channel", kept={"0": torch.ones(8, dtype=torch.bool)})
    assert measure(model, torch.zeros(1, 3, 8, 8), channels) == full


def test_a_mask_over_a_network_of_one_layer_counts() -> None:
    mask = Mask(unit="weight", kept={"weight": torch.eye(4, dtype=torch.bool)})
    assert measure(nn.Linear(4, 4), torch.zeros(1, 4), mask).macs == 4


def test_counts_of_many_masked_weights_are_exact() -> None:
    # 2^24 + 1 is the first integer that a float32 cannot hold.
    layer = nn.Linear(4097, 4100, bias=False)
    kept = torch.ones(4100, 4097, dtype=torch.bool)
    kept[0, 0] = False
    mask = Mask(unit="weight", kept={"weight": kept})
    assert measure(layer, torch.zeros(1, 4097), mask).macs == 4100 * 4097 - 1


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = two_layers()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, torch.ones(1, 3, 8, 8))
    assert model.training
    assert not model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_training_flops_are_three_forwards_for_each_sample() -> None:
    assert TRAINING_FACTOR == 3
    assert Cost(parameters=1, macs=2, flops=5).training_flops(1000) == 15_000.0
