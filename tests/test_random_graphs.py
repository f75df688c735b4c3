"""Random networks of all supported operators: whatever is offered can be cut, and rightly."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import random_mask
from regrow.surgery import Kind, trace, verify
from regrow.surgery.mask import Mask
from regrow.units.keep_layers_alive import guard

WIDTHS = (4, 6, 8, 12)
SIDE = 6
Forward = Callable[..., Tensor]


class Step(nn.Module):
    """A function of some layers and of what comes in."""

    def __init__(self, forward: Forward, *layers: nn.Module, **parameters: Tensor) -> None:
        super().__init__()
        self.function = forward
        self.layers = nn.ModuleList(layers)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self, x)
        return result


class Attention(nn.Module):
    """Attention as timm and Hugging Face write it: packed or in three, fused or by hand."""

    def __init__(self, width: int, heads: int, *, packed: bool, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = heads, width // heads, fused
        self.scale = self.head_dim**-0.5
        if packed:
            self.qkv: nn.Module = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.packed = packed
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        if self.packed:
            q, k, v = (
                self.qkv(x)
                .reshape(n, t, 3, self.num_heads, self.head_dim)
                .permute(2, 0, 3, 1, 4)
                .unbind(0)
            )
        else:
            shape = (n, t, self.num_heads, self.head_dim)
            q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, t, -1))
        return result


Made = tuple[nn.Module, int]  # a step, and the width that it puts out


def activation(draw: Random) -> nn.Module:
    kinds: Sequence[Callable[[], nn.Module]] = (
        *(nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Softplus),
        *(nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.Identity, nn.PReLU, nn.Mish),
    )
    return draw.choice(kinds)()


def norm(draw: Random, width: int) -> nn.Module:
    kinds: Sequence[Callable[[], nn.Module]] = (
        lambda: nn.BatchNorm2d(width),
        lambda: nn.BatchNorm2d(width, affine=False),
        lambda: nn.GroupNorm(1, width),
        lambda: nn.GroupNorm(1 + (width % 2 == 0), width),
        lambda: nn.InstanceNorm2d(width, affine=draw.random() < 0.5),
        nn.Identity,
    )
    return draw.choice(kinds)()


def convolution(draw: Random, a: int, b: int, **more: Any) -> nn.Module:
    size = draw.choice((1, 3))
    return nn.Conv2d(a, b, size, padding=size // 2, bias=draw.random() < 0.5, **more)


def layer(draw: Random, a: int, b: int) -> nn.Module:
    return nn.Sequential(convolution(draw, a, b), norm(draw, b), activation(draw))


def plain(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    return layer(draw, width, out), out


def grouped(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    return nn.Sequential(convolution(draw, width, out, groups=2), norm(draw, out)), out


def depthwise(draw: Random, width: int) -> Made:
    return nn.Sequential(convolution(draw, width, width, groups=width), activation(draw)), width


def transposed(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    return nn.ConvTranspose2d(width, out, 3, padding=1), out


def residual(draw: Random, width: int) -> Made:
    middle = draw.choice(WIDTHS)
    branch = nn.Sequential(layer(draw, width, middle), convolution(draw, middle, width))
    return Step(lambda m, x: m.layers[1](x + m.layers[0](x)), branch, activation(draw)), width


def preactivated(draw: Random, width: int) -> Made:
    branch = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), layer(draw, width, width))
    return Step(lambda m, x: x + m.layers[0](x), branch), width


def dense(draw: Random, width: int) -> Made:
    more = draw.choice(WIDTHS)
    joined = Step(lambda m, x: torch.cat([x, m.layers[0](x)], 1), layer(draw, width, more))
    return nn.Sequential(joined, norm(draw, width + more)), width + more


def split(draw: Random, width: int) -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([a, m.layers[0](b)], 1)

    return Step(forward, layer(draw, width // 2, width // 2)), width


def gate(draw: Random, width: int) -> Made:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.layers[0](x).chunk(2, 1)
        gated: Tensor = a * b.sigmoid()
        return gated

    return Step(forward, convolution(draw, width, 2 * width)), width


def excite(draw: Random, width: int) -> Made:
    middle = draw.choice(WIDTHS)
    inner = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, middle, 1), activation(draw),
        nn.Conv2d(middle, width, 1), draw.choice((nn.Sigmoid, nn.Hardsigmoid))(),
    )  # fmt: skip
    return Step(lambda m, x: x * m.layers[0](x), inner), width


def pool(draw: Random, width: int) -> Made:
    return draw.choice((nn.AvgPool2d, nn.MaxPool2d))(3, 1, 1), width


def multiply(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    both = (layer(draw, width, out), layer(draw, width, out))
    return Step(lambda m, x: m.layers[0](x) * m.layers[1](x), *both), out


def scale(draw: Random, width: int) -> Made:
    return Step(lambda m, x: x * m.gamma, gamma=torch.rand(width, 1, 1) + 0.5), width


def shift(draw: Random, width: int) -> Made:
    return Step(lambda m, x: (x + m.beta).relu(), beta=torch.rand(1, width, 1, 1)), width


def shuffle(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    return nn.Sequential(nn.Conv2d(width, 4 * out, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), out


def moved(draw: Random, width: int) -> Made:
    moves: Sequence[Forward] = (
        lambda m, x: x.roll((1, 2), (2, 3)),
        lambda m, x: x.flip(3),
        lambda m, x: x + x.cumsum(2) / 6,
        lambda m, x: x.transpose(2, 3).contiguous(),
    )
    return Step(draw.choice(moves)), width


def mixed(draw: Random, width: int) -> Made:
    mixes: Sequence[Forward] = (
        lambda m, x: torch.where(x > 0, x, m.layers[0](x)),
        lambda m, x: torch.addcmul(x, m.layers[0](x), x),
        lambda m, x: torch.lerp(x, m.layers[0](x), 0.3),
        lambda m, x: x * F.softplus(m.layers[0](x)),
        lambda m, x: torch.maximum(x, m.layers[0](x)),
        lambda m, x: m.layers[0](x).sigmoid() * x,
    )
    return Step(draw.choice(mixes), convolution(draw, width, width)), width


MAPS = (
    *(plain, plain, grouped, depthwise, transposed, residual, preactivated, dense, split, gate),
    *(excite, pool, multiply, scale, shift, shuffle, moved, mixed),
)


def linear(draw: Random, width: int) -> Made:
    out = draw.choice(WIDTHS)
    return nn.Sequential(nn.Linear(width, out, bias=draw.random() < 0.5), activation(draw)), out


def token_norm(draw: Random, width: int) -> Made:
    return draw.choice((nn.LayerNorm, nn.RMSNorm))(width), width


def feed_forward(draw: Random, width: int) -> Made:
    middle = draw.choice(WIDTHS)
    inner = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, middle), activation(draw), nn.Linear(middle, width)
    )
    return Step(lambda m, x: x + m.layers[0](x), inner), width


def gated(draw: Random, width: int) -> Made:
    middle = draw.choice(WIDTHS)
    layers = (nn.Linear(width, middle), nn.Linear(width, middle), nn.Linear(middle, width))
    return Step(
        lambda m, x: x + m.layers[2](F.silu(m.layers[0](x)) * m.layers[1](x)), *layers
    ), width


def halves(draw: Random, width: int) -> Made:
    return Step(lambda m, x: F.glu(m.layers[0](x), -1), nn.Linear(width, 2 * width)), width


def attention(draw: Random, width: int) -> Made:
    inner = Attention(width, 2, packed=draw.random() < 0.5, fused=draw.random() < 0.5)
    return Step(lambda m, x: x + m.layers[1](m.layers[0](x)), nn.LayerNorm(width), inner), width


def own_attention(draw: Random, width: int) -> Made:
    inner = nn.MultiheadAttention(width, 2, batch_first=True)
    return Step(lambda m, x: x + m.layers[0](x, x, x, need_weights=False)[0], inner), width


def positions(draw: Random, width: int) -> Made:
    if draw.random() < 0.5:
        return Step(lambda m, x: x + m.table, table=torch.randn(1, SIDE * SIDE, width)), width
    table = nn.Embedding(SIDE * SIDE, width)
    return Step(lambda m, x: x + m.layers[0](torch.arange(SIDE * SIDE)), table), width


def mix(draw: Random, width: int) -> Made:
    return Step(
        lambda m, x: x + m.layers[0](x.transpose(1, 2)).transpose(1, 2),
        nn.Linear(SIDE * SIDE, SIDE * SIDE),
    ), width


TOKENS = (
    *(linear, token_norm, feed_forward, gated, halves, attention, own_attention, positions, mix),
)


def network(seed: int, maps: Sequence[int], tokens: Sequence[int]) -> tuple[nn.Module, Any]:
    """Chain steps over a map, or from token ids, then steps over tokens, and a classifier."""
    draw = Random(seed)
    torch.manual_seed(seed)
    example: Any = torch.randn(1, 3, SIDE, SIDE)
    if maps:
        first, width = plain(draw, 3)
    else:
        width = draw.choice(WIDTHS)
        first, example = nn.Embedding(20, width), torch.randint(0, 20, (1, SIDE * SIDE))
    steps = [first]
    for number in maps:
        step, width = MAPS[number](draw, width)
        steps.append(step)
    if maps:
        steps.append(nn.Flatten(2))
        steps.append(Step(lambda m, x: x.transpose(1, 2)))
    for number in tokens:
        step, width = TOKENS[number](draw, width)
        steps.append(step)
    steps.append(Step(lambda m, x: m.layers[0](x.mean(1)), nn.Linear(width, 3)))
    return nn.Sequential(*steps).eval(), example


def check(seed: int, maps: Sequence[int], tokens: Sequence[int]) -> None:
    with torch.random.fork_rng():
        net, example = network(seed, maps, tokens)
    found = trace(net, example)
    assert found.unaccounted(net) == ()
    drawn = random_mask(found, seed=seed, kinds=get_args(Kind)).kept
    mask = Mask(
        unit="channel", kept=guard(drawn, {n: k.float() for n, k in drawn.items()}, found)[0]
    )
    result = verify(net, mask, found, sensitivity=dict.fromkeys(found.groups, 1.0))
    assert result.ok, str(result)


graphs = given(
    seed=st.integers(0, 2**31),
    maps=st.lists(st.integers(0, len(MAPS) - 1), max_size=6),
    tokens=st.lists(st.integers(0, len(TOKENS) - 1), max_size=4),
)
checks = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
)


@settings(checks, max_examples=30)
@graphs
def test_what_is_offered_of_random_networks_is_cut_rightly(
    seed: int, maps: list[int], tokens: list[int]
) -> None:
    check(seed, maps, tokens)


@pytest.mark.slow
@settings(checks, max_examples=1000, derandomize=False)
@graphs
def test_1000_random_networks(seed: int, maps: list[int], tokens: list[int]) -> None:
    check(seed, maps, tokens)
