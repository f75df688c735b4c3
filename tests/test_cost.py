"""Costs: layers by hand, the printed counts of the protocols, and masked weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torchvision.models import VisionTransformer

from regrow.cost import TRAINING_FACTOR, Cost, count, measure
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.surgery import shrink, trace
from regrow.surgery.mask import Mask, apply_

IMAGE = torch.zeros(1, 3, 32, 32)

# The soft-filter networks, whose ReLUs are functions and whose shortcuts have pooling modules.
SOFT = {"shortcut": "subsample", "fc_init": "kaiming"}
# Protocols, section 2.3, "Repo FLOPs", in millions with 10 classes.
MFLOPS: list[tuple[str, dict[str, Any], float]] = [
    ("vgg-16", {"head": "two-layer"}, 627.88),
    ("vgg-11", {}, 306.12),
    ("vgg-13", {}, 457.41),
    ("vgg-16", {}, 627.36),
    ("vgg-19", {}, 797.30),
    ("vgg-16", {"conv_bias": True}, 627.63),
    ("vgg-19", {"conv_bias": True}, 797.61),
    ("resnet-20", {}, 81.49),
    ("resnet-32", {}, 138.34),
    ("resnet-56", SOFT, 252.05),
    ("resnet-110", SOFT, 507.88),
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
    # Printed are two digits, rounded; those of VGG-19 (797.307, 797.615) are cut off.
    cut_off = 0.005 if name == "vgg-19" else 0.0
    assert abs(measure(model, IMAGE).flops / 1e6 - mflops - cut_off) <= 0.0051


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


class Computes(nn.Module):
    """A network given by what it computes, from its input and the layers it holds."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **held: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, module in held.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    return net


def standardised(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight - layer.weight.mean(), layer.bias)


def in_bfloat16(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = net.layer(x)
        return out


def pruned_by_torch() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    prune.identity(layer, "weight")  # type: ignore[no-untyped-call]
    return layer


LAYER = "layer.weight"
# Networks with a 4 x 4 weight of which 3 numbers stay, its name, and the MACs of [1, 4].
HELD: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "plain": (lambda: nn.Linear(4, 4), "weight", 3),
    "tied": (tied, "0.weight", 6),
    "function": (
        lambda: Computes(lambda m, x: x @ m.layer.weight.T, layer=nn.Linear(4, 4)),
        LAYER,
        3,
    ),
    "part": (  # the first row, of which one number stays
        lambda: Computes(lambda m, x: x @ m.layer.weight[:1].T, layer=nn.Linear(4, 4)),
        LAYER,
        1,
    ),
    "joined": (
        lambda: Computes(
            lambda m, x: x @ torch.cat([m.layer.weight, m.layer.weight]).T, layer=nn.Linear(4, 4)
        ),
        LAYER,
        6,
    ),
    "weight-norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        "parametrizations.weight.original1",
        3,
    ),
    "masked-by-torch": (pruned_by_torch, "weight_orig", 3),
    "autocast": (lambda: Computes(in_bfloat16, layer=nn.Linear(4, 4)), LAYER, 3),
    "recurrent": (  # of 4 x 4 and 4 x 4 numbers
        lambda: Computes(lambda m, x: m.layer(x[None])[0], layer=nn.RNN(4, 4, bias=False)),
        "layer.weight_ih_l0",
        3 + 16,
    ),
    "long-memory": (  # four gates; the mask is repeated for each
        lambda: Computes(lambda m, x: m.layer(x[None])[0], layer=nn.LSTM(4, 4, bias=False)),
        "layer.weight_ih_l0",
        4 * 3 + 4 * 16,
    ),
    "convolution": (
        lambda: Computes(lambda m, x: m.layer(x.view(1, 4, 1)), layer=nn.Conv1d(4, 4, 1)),
        LAYER,
        3,
    ),
    "transposed": (
        lambda: Computes(lambda m, x: m.layer(x.view(1, 4, 1)), layer=nn.ConvTranspose1d(4, 4, 1)),
        LAYER,
        3,
    ),
}


def three_kept(weight: Tensor) -> Tensor:
    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[[0, 1, 1], [2, 0, 3]] = True
    return kept.repeat(weight.shape[0] // 4, 1).view(weight.shape)


@pytest.mark.parametrize("name", HELD)
def test_weights_held_at_zero_count_nothing_wherever_they_are_used(name: str) -> None:
    make, parameter, macs = HELD[name]
    net = make()
    weight = dict(net.named_parameters())[parameter]
    mask = Mask(unit="weight", kept={parameter: three_kept(weight)})
    cost = measure(net, torch.ones(1, 4), mask)
    assert (cost.macs, cost.caveats) == (macs, ())


def test_held_weights_that_are_computed_on_count_whole_and_it_is_said() -> None:
    net = Computes(lambda m, x: standardised(m.layer, x), layer=nn.Linear(4, 4))
    mask = Mask(unit="filter", kept={LAYER: torch.arange(4) < 1})
    cost = measure(net, torch.ones(1, 4), mask)
    assert cost.macs == 16
    assert cost.caveats == ("masked weights (counted as if present)",)
    assert cost.to_json()["caveats"] == list(cost.caveats)
    assert Cost(**cost.to_json()).macs == 16


class ByNumpy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() @ self.weight.detach().numpy().T)


@pytest.mark.parametrize(
    ("forward", "caveat"),
    [
        (lambda m, x: torch.fft.rfft(x).real, "aten::_fft_r2c"),
        (lambda m, x: torch.cdist(x, x), "aten::_cdist_forward"),
        (lambda m, x: torch.linalg.inv(x.T @ x + torch.eye(4)), "aten::linalg_inv_ex"),
        (
            lambda m, x: torch.ops.torchvision.deform_conv2d(
                *(x.view(1, 4, 1, 1), torch.ones(2, 4, 1, 1), torch.zeros(1, 2, 1, 1)),
                *(torch.ones(1, 1, 1, 1), torch.zeros(2), 1, 1, 0, 0, 1, 1, 1, 1, False),
            ),
            "torchvision::deform_conv2d",
        ),
        (lambda m, x: m.layer(x), "weight in 'layer', which no operation was seen to read"),
    ],
)
def test_what_cannot_be_counted_is_said(forward: Callable[..., Tensor], caveat: str) -> None:
    pytest.importorskip("torchvision.ops")
    net = Computes(forward, layer=ByNumpy(4, 4))
    assert measure(net, torch.ones(1, 4)).caveats == (caveat,)


def test_a_caveat_names_the_module_that_runs() -> None:
    inner = Computes(lambda m, x: torch.fft.fft(x).real)
    cost = measure(nn.Sequential(nn.Linear(4, 4), nn.Sequential(inner)), torch.ones(1, 4))
    assert cost.caveats == ("aten::_fft_r2c in '1.0'",)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_torchscript_says_that_its_norms_are_hidden() -> None:
    example = torch.zeros(1, 3, 8, 8)
    net = torch.jit.trace(two_layers().eval(), example)  # type: ignore[no-untyped-call]
    cost, plain = (
        measure(net, torch.zeros(1, 3, 8, 8)),
        measure(two_layers(), torch.zeros(1, 3, 8, 8)),
    )
    assert cost.macs == plain.macs
    assert cost.caveats == ("norms, ReLUs and pools in TorchScript",)


def test_layers_called_by_keyword_count() -> None:
    layers = two_layers()
    net = Computes(lambda m, x: m.b(input=m.a(input=x)), a=layers[:3], b=layers[3:])
    example = torch.zeros(1, 3, 8, 8)
    assert measure(net, example) == measure(layers, example)
    assert count(layers, example).as_first
    keyword = Computes(lambda m, x: m.relu(input=x), relu=nn.ReLU())
    assert not count(keyword, example).as_first


@pytest.mark.slow
def test_a_compiled_network_counts_like_itself() -> None:
    layers, example = two_layers().eval(), torch.zeros(1, 3, 8, 8)
    expected = measure(layers, example)
    compiled: Any = torch.compile(layers, backend="eager")
    with torch.no_grad():
        compiled(example)
    assert measure(compiled, example) == expected


def test_a_half_cut_transformer_has_its_true_ratio() -> None:
    net = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64
    )
    found = trace(net, (1, 3, 32, 32))
    uniform = replace(METHODS.get("uniform"), scope=("linear",))
    small = shrink(net, select(net, found, uniform, sparsity=0.5), found)
    whole, half = measure(net, torch.zeros(1, 3, 32, 32)), measure(small, torch.zeros(1, 3, 32, 32))
    tokens, width = 17, 16
    # Of both blocks half of both layers after attention goes.
    assert whole.macs - half.macs == 2 * 2 * tokens * width * 32
    attention = 2 * (tokens * 4 * width * width + 2 * tokens * tokens * width)
    rest = 16 * 192 * width + width * 1000
    assert half.macs == attention + rest + 2 * 2 * tokens * width * 32


@pytest.mark.parametrize("name", ["preresnet-56", "densenet-40"])
def test_a_norm_behind_a_selection_counts_as_the_published_code_has_it(name: str) -> None:
    model = build(ModelSpec(name, {"classes": 10}))
    found = trace(model, IMAGE)
    small = shrink(model, select(model, found, "uniform", sparsity=0.6), found)
    ours = measure(small, IMAGE)
    cut = [name for name in found.views if isinstance(small.get_submodule(name), nn.Sequential)]
    assert len(cut) == 19 if name == "preresnet-56" else 39
    for name in cut:  # there the norm is of full width, and what is behind it selects
        parent, _, own = name.rpartition(".")
        select_layer = small.get_submodule(f"{name}.select")
        norm = nn.BatchNorm2d(found.groups[name].size)
        setattr(small.get_submodule(parent), own, nn.Sequential(norm, select_layer))
    published = measure(small, IMAGE)
    assert published.flops == ours.flops
    assert published.macs == ours.macs


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
