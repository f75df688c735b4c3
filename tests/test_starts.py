"""Random starts of cut networks: drawn by the network's own code, at the widths that are left."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import kaiming_normal_, trunc_normal_

from cutting import half, random_mask
from regrow.core.global_rng import drawing
from regrow.core.seeds import derive
from regrow.models import ModelSpec, initialise_
from regrow.models.starts import Draws, Start, started
from regrow.surgery import shrink, trace

Make = Callable[[], nn.Module]


@dataclass(frozen=True)
class Code:
    """A network by a function that makes it."""

    make: Make

    def fresh(self, seed: int) -> nn.Module:
        with drawing(derive(seed, "init")):
            return self.make()

    def has_rule(self) -> bool:
        return False


def halved(shape: tuple[int, ...]) -> Callable[[nn.Module], nn.Module]:
    """Return what cuts every second unit of every group."""

    def cut(network: nn.Module) -> nn.Module:
        found = trace(network, torch.ones(shape))
        return shrink(network, half(found), found)

    return cut


def spread(value: Tensor) -> float:
    """Return the root of the mean square, without the few outliers that trunc_normal_ draws."""
    sizes = value.detach().double().abs()
    return float(sizes[sizes <= 20 * sizes.median()].square().mean().sqrt())


def assert_alike(one: nn.Module, other: nn.Module) -> None:
    """Check that two networks have the same tensors, of one spread and with the same constants."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in theirs.items()}
    for name, value in ours.items():
        slack = 4 / math.sqrt(2 * value.numel())
        assert spread(value) == pytest.approx(spread(theirs[name]), rel=slack), name
        assert (value == 0).sum() == (theirs[name] == 0).sum(), name


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)
        self.last = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.two(self.norm(self.one(x)).relu()))  # type: ignore[no-any-return]


def scaled_(weight: Tensor, gain: float) -> None:
    """Draw by a rule of one's own that reads the tensor's shape."""
    with torch.no_grad():
        weight.normal_(0, gain / math.sqrt(weight.shape[1]))


class Net(nn.Module):
    """A network whose code draws its weights in most of the ways that there are."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.token = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.drawn = nn.Parameter(0.3 * torch.randn(1, width, 1, 1))
        self.hidden = nn.Linear(width, 4 * width)
        self.head = nn.Linear(4 * width, 5)
        trunc_normal_(self.token, std=0.02)
        for depth, module in enumerate(self.modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Conv2d):
                fan = math.prod(module.kernel_size) * module.out_channels
                module.weight.data.normal_(0, math.sqrt(2.0 / fan))
                module.weight.data.div_(math.sqrt(2.0 * depth))
                module.bias.data.fill_(0.5)  # type: ignore[union-attr]
            elif isinstance(module, Block):
                nn.init.zeros_(module.last.weight)
        scaled_(self.hidden.weight, 0.5)
        self.head.weight.data.mul_(0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.token + self.drawn
        for block in self.blocks:
            x = block(x)
        return self.head(self.hidden(x.mean((2, 3))).relu())  # type: ignore[no-any-return]


def test_a_cut_network_starts_as_the_same_code_starts_one_of_those_widths() -> None:
    small, start = started(Code(Net), halved((1, 3, 8, 8)), seed=3)
    assert start == Start()
    assert_alike(small, Code(lambda: Net(16)).fresh(8))
    again, _ = started(Code(Net), halved((1, 3, 8, 8)), seed=3)
    other, _ = started(Code(Net), halved((1, 3, 8, 8)), seed=4)
    for name, value in small.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(
        small.get_parameter("hidden.weight"), other.get_parameter("hidden.weight")
    )


@pytest.mark.parametrize(
    "name", ["torchvision/shufflenet_v2_x0_5", "torchvision/mobilenet_v3_small"]
)
def test_a_network_that_is_not_cut_starts_bit_for_bit_as_its_code_starts_it(name: str) -> None:
    spec = ModelSpec(name, {"num_classes": 3})
    network, start = started(spec, lambda whole: whole, seed=5)
    assert start == Start()
    own = spec.fresh(derive(5, "reinit")).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in network.state_dict().items())


def test_a_vision_transformer_starts_as_one_of_half_its_width() -> None:
    from torchvision.models import VisionTransformer

    def make(width: int) -> nn.Module:
        net: nn.Module = VisionTransformer(16, 4, 2, 4, width, 2 * width, num_classes=3)
        return net

    small, start = started(Code(lambda: make(64)), halved((1, 3, 16, 16)), seed=0)
    assert start == Start()
    # The heads are narrower, and their number stays.
    own = dict(Code(lambda: make(32)).fresh(8).named_parameters())
    for name, value in small.named_parameters():
        if value.shape == own[name].shape:
            slack = 4 / math.sqrt(2 * value.numel())
            assert spread(value) == pytest.approx(spread(own[name]), rel=slack), name


class Recurrent(nn.Module):
    """The usual start of a forget gate, by a width that code holds as a number."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 3)
        bias = self.cells.get_parameter("bias_ih_l0")
        nn.init.zeros_(bias)
        bias.data[width : 2 * width].fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])  # type: ignore[no-any-return]


def test_places_that_code_counts_by_a_width_of_its_own_stay_where_they_are() -> None:
    small, start = started(Code(Recurrent), halved((1, 5, 8)), seed=0)
    gates = small.get_parameter("cells.bias_ih_l0").view(4, -1)
    assert gates.shape[1] < 32
    assert gates.tolist() == [[float(gate == 1)] * gates.shape[1] for gate in range(4)]
    assert start.cut == ("cells.bias_ih_l0",)


class Table(nn.Module):
    """Layers and a table, started as told."""

    def __init__(self, begin: Callable[["Table", int], None], width: int = 256) -> None:
        super().__init__()
        self.one = nn.Linear(8, width)
        self.table = nn.Parameter(torch.randn(width, width) / math.sqrt(width))
        self.two = nn.Linear(width, 3)
        begin(self, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(torch.relu(self.one(x)) @ self.table))  # type: ignore[no-any-return]


def read(net: Table, width: int) -> None:
    net.one.weight.data = torch.arange(8.0 * width).view(width, 8) / width
    net.table.data = torch.arange(float(width * width)).view(width, width) / width


def wide(net: Table, width: int) -> None:
    net.one.weight.data = torch.randn(width, 8)


def behind(net: Table, width: int) -> None:
    nn.init.normal_(net.table, std=0.1)
    weight = 0.01 * torch.randn(width, 8)
    net.one.weight = nn.Parameter(weight)
    weight.mul_(100)


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (lambda net, width: nn.init.normal_(net.table, std=0.1), Start()),
        (lambda net, width: None, Start(cut=("table",))),  # by the full width
        (read, Start(layered=("one.weight",), read=("table",))),
        (wide, Start(cut=("one.weight", "table"))),
        (behind, Start(cut=("one.weight",))),  # not through the parameter
    ],
)
def test_what_is_not_drawn_at_its_width_is_named(begin: Any, expected: Start) -> None:
    small, start = started(Code(lambda: Table(begin)), halved((1, 8)), seed=0)
    assert start == expected
    assert all(value.isfinite().all() for value in small.parameters())


def test_code_that_copies_tensors_of_the_full_width_gives_their_spread() -> None:
    def begin(net: Table, width: int) -> None:
        nn.init.normal_(net.table, std=0.1)
        net.one.weight.data.copy_(torch.randn(width, 8))

    small, start = started(Code(lambda: Table(begin)), halved((1, 8)), seed=0)
    assert start == Start()
    assert spread(small.get_parameter("one.weight")) == pytest.approx(1.0, rel=0.1)


def test_where_code_fails_with_narrower_tensors_layers_that_draw_alike_stand_in_for_it() -> None:
    def begin(net: Table, width: int) -> None:
        nn.init.normal_(net.table, std=0.1)
        net.one.weight.data.add_(torch.randn(width, 8))

    small, start = started(Code(lambda: Table(begin)), halved((1, 8)), seed=0)
    assert start == Start(cut=("one.weight", "table"))
    assert spread(small.get_parameter("one.weight")) == pytest.approx(1.0, rel=0.1)
    bound = 1 / math.sqrt(small.get_parameter("two.weight").shape[1])
    assert spread(small.get_parameter("two.weight")) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_layers_that_are_copied_are_drawn_by_the_layers_or_by_code_that_comes_after() -> None:
    class Encoder(nn.Module):
        def __init__(self, later: bool) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(32, 3)
            for parameter in self.layers.parameters() if later else ():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x).mean(1))  # type: ignore[no-any-return]

    for later in (False, True):
        code = Code(lambda: Encoder(later))  # noqa: B023
        small, start = started(code, halved((1, 5, 32)), seed=0)
        assert start == Start()
        weight = small.get_parameter("layers.layers.1.linear2.weight")
        assert weight.shape[1] == 32
        fan = sum(weight.shape) / 2 if later else 3 * weight.shape[1]
        assert spread(weight) == pytest.approx(1 / math.sqrt(fan), rel=0.1)


def test_a_norm_before_which_channels_are_selected_is_found_under_its_name() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 64, 3, padding=1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(64), nn.BatchNorm2d(64)])
            self.convs = nn.ModuleList([nn.Conv2d(64, 64, 3, padding=1) for _ in range(2)])
            self.head = nn.Linear(64, 3)
            for norm in self.norms:
                nn.init.normal_(norm.get_parameter("weight"), std=0.2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for norm, conv in zip(self.norms, self.convs, strict=True):
                x = x + conv(norm(x).relu())
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def cut(network: nn.Module) -> nn.Module:
        found = trace(network, torch.ones(1, 3, 8, 8))
        return shrink(network, random_mask(found, kinds=("view",)), found)

    small, start = started(Code(Steps), cut, seed=0)
    assert "norms.0.norm.weight" in dict(small.named_parameters())
    assert start == Start()
    assert spread(small.get_parameter("norms.0.norm.weight")) == pytest.approx(0.2, rel=0.5)


def test_a_network_that_was_made_before_starts_by_its_layers_and_is_named() -> None:
    made = Net()
    source = Code(lambda: made)
    small, start = started(source, halved((1, 3, 8, 8)), seed=0)
    assert "blocks.0.one.weight" in start.layered
    assert not set(start.cut) & set(start.layered)
    fan = small.get_parameter("blocks.0.one.weight")[0].numel()
    assert spread(small.get_parameter("blocks.0.one.weight")) == pytest.approx(
        1 / math.sqrt(3 * fan), rel=0.1
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mlp", {"features": 64, "outputs": 3}),
        ("transformer", {"vocabulary": 100, "length": 8, "outputs": 3}),
        ("resnet-20", {"classes": 3}),
    ],
)
def test_regrows_own_models_start_by_initialise_as_they_ever_did(
    name: str, data: dict[str, int]
) -> None:
    spec = ModelSpec(name, data)
    assert spec.has_rule()
    small, start = started(spec, lambda whole: whole, seed=2)
    assert start == Start()
    again = spec.fresh(9)
    initialise_(again, seed=2)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in small.named_parameters())
    assert_alike(small, spec.fresh(1))


@pytest.mark.parametrize(("variance", "suspected"), [(0.02**2, False), (1 / (3 * 576), True)])
def test_a_spread_of_no_width_is_not_taken_for_that_of_one_which_is_near(
    variance: float, suspected: bool
) -> None:
    # 0.02 of PoolFormer's [128, 64, 3, 3] is within 4 % of what a usual rule says of 864, the mean
    # of inputs and outputs; the other one is what a convolution draws by its 576 inputs.
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = math.sqrt(variance) * torch.randn(4, 64, 32, 3, 3, generator=draw)
        one, two, new, again = values.unbind()
        found = Draws(one, two, new, again, torch.Size((128, 64, 3, 3)))
        assert found.are_understood
        assert found.may_be_of_full_width == suspected


SMALLER: list[tuple[str, int, dict[str, Any] | None]] = [
    ("torchvision/resnet50", 64, None),
    ("torchvision/vgg11_bn", 32, None),
    ("torchvision/densenet121", 64, None),
    ("torchvision/mobilenet_v2", 64, None),
    ("torchvision/convnext_tiny", 64, None),
    ("torchvision/swin_t", 64, None),
    ("torchvision/regnet_y_400mf", 64, None),
    ("torchvision/efficientnet_b0", 64, None),
    ("timm/vit_tiny_patch16_224", 224, {"embed_dim": 96}),
    ("timm/deit_tiny_patch16_224", 224, {"embed_dim": 96}),
    ("timm/convnext_atto", 64, {"dims": [20, 40, 80, 160]}),
    ("timm/swin_tiny_patch4_window7_224", 224, {"embed_dim": 48}),
    ("timm/resnetv2_50", 64, {"channels": [128, 256, 512, 1024], "stem_chs": 32}),
    ("timm/nf_resnet26", 64, None),
    ("timm/mixer_s32_224", 224, None),
    ("timm/regnetx_002", 64, None),
    ("timm/efficientnet_b0", 64, None),
    ("timm/mobilenetv3_small_050", 64, None),
    ("timm/beit_base_patch16_224", 224, None),
    ("timm/cait_xxs24_224", 224, None),
    ("timm/pvt_v2_b0", 64, None),
    ("timm/poolformer_s12", 64, None),
    ("timm/levit_128s", 224, None),
    ("timm/test_vit", 160, {"embed_dim": 32}),
    ("timm/test_byobnet", 64, None),
    ("timm/test_nfnet", 64, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "smaller"), SMALLER)
def test_published_networks_start_as_their_code_starts_them(
    name: str, size: int, smaller: dict[str, Any] | None
) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    spec = ModelSpec(name)
    whole, start = started(spec, lambda network: network, seed=1)
    assert start == Start()
    own = spec.fresh(derive(1, "reinit")).state_dict()
    assert all(torch.equal(value, own[n]) for n, value in whole.state_dict().items())
    small, start = started(spec, halved((1, 3, size, size)), seed=1)
    assert start == Start()
    theirs = {} if smaller is None else dict(ModelSpec(name, smaller).fresh(8).named_parameters())
    for n, value in small.named_parameters():
        if n in theirs and value.shape == theirs[n].shape:
            slack = 7 / math.sqrt(2 * value.numel())  # five times the error of their difference
            assert spread(value) == pytest.approx(spread(theirs[n]), rel=slack), n
