"""Surgery on networks of all sorts: each is cut right, or kept whole with a reason."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import enliven_, error, random_mask
from regrow.errors import TraceError
from regrow.surgery import rule, shrink, silence, trace, verify
from regrow.surgery.mask import Mask
from regrow.surgery.painter import Painter
from regrow.surgery.rules import RULES
from regrow.surgery.tape import Node
from regrow.units.keep_layers_alive import guard

EXACT = 1e-9
SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    """A network of some layers and a function of them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(a: int, b: int, **arguments: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **arguments)


def with_parameter(net: Net, name: str, value: Tensor) -> Net:
    net.register_parameter(name, nn.Parameter(value))
    return net


def nets() -> dict[str, tuple[nn.Module, dict[str, int], dict[str, str]]]:
    """Networks by name, with the groups they have and why other layers are whole."""
    out = {"out": "output"}
    r = F.relu
    cases: dict[str, tuple[nn.Module, dict[str, int], dict[str, str]]] = {}

    def add(name: str, net: nn.Module, groups: dict[str, int], whole: dict[str, str]) -> None:
        cases[name] = (net, groups, whole)

    add(
        "two readers of one producer",
        Net(
            lambda m, x: m.out(r(m.b(r(m.a(x)))) + r(m.c(r(m.a(x))))),
            a=conv(3, 8), b=conv(8, 6), c=conv(8, 6), out=conv(6, 2),
        ),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "groups of a convolution of what is kept whole",
        Net(lambda m, x: m.out(r(m.g(torch.cat([x, x[:, :1]], 1)))),
            g=conv(4, 8, groups=2), out=conv(8, 2)),
        {"g": 4}, out,
    )  # fmt: skip
    add(
        "residual addition",
        Net(lambda m, x: (lambda y: m.out(r(y + m.b(r(y)))))(m.a(x)),
            a=conv(3, 8), b=conv(8, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "concatenation",
        Net(lambda m, x: m.out(torch.cat([m.a(x), r(m.b(x)), m.a(x)], 1)),
            a=conv(3, 8), b=conv(3, 5), out=conv(21, 2)),
        {"a": 8, "b": 5}, out,
    )  # fmt: skip
    add(
        "depthwise convolution",
        Net(lambda m, x: m.out(r(m.n(m.d(r(m.a(x)))))),
            a=conv(3, 8), d=conv(8, 8, groups=8), n=nn.BatchNorm2d(8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "grouped convolution",
        Net(lambda m, x: m.out(r(m.b(r(m.g(r(m.a(x))))))),
            a=conv(3, 8), g=conv(8, 12, groups=4), b=conv(12, 6), out=conv(6, 2)),
        {"a": 4, "b": 6}, out,
    )  # fmt: skip
    add(
        "grouped convolutions one after another",
        Net(lambda m, x: m.out(r(m.h(r(m.n(m.g(m.a(x))))))),
            a=conv(3, 12), g=conv(12, 12, groups=6), n=nn.BatchNorm2d(12),
            h=conv(12, 12, groups=4), out=conv(12, 2)),
        {"a": 2}, out,  # the groups of two and of three channels meet in sixes
    )  # fmt: skip
    add(
        "grouped and depthwise convolution with more outputs, transposed, with biases",
        Net(lambda m, x: m.out(r(m.d(r(m.t(r(m.a(x))))))),
            a=conv(3, 8), t=nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4),
            d=conv(12, 24, groups=12), out=conv(24, 2)),
        {"a": 4}, out,
    )  # fmt: skip
    add(
        "grouped convolution on a stream",
        Net(lambda m, x: (lambda y: m.out(r(y + m.g(r(m.n(y))))))(m.a(x)),
            a=conv(3, 6), n=nn.BatchNorm2d(6), g=conv(6, 6, groups=2), out=conv(6, 2)),
        {"a": 2}, out,  # the norm is no view: what it passes is tied in threes
    )  # fmt: skip
    add(
        "grouped convolution of the input",
        Net(lambda m, x: m.out(r(m.g(x))), g=conv(3, 6, groups=3), out=conv(6, 2)),
        {}, {"g": "it is combined with data that is kept whole: the network's input", **out},
    )  # fmt: skip
    add(
        "group norms",
        Net(lambda m, x: m.out(r(m.n(m.b(r(m.k(m.a(x))))))),
            a=conv(3, 8), k=nn.GroupNorm(4, 8), b=conv(8, 6), n=nn.GroupNorm(3, 6, affine=False),
            out=conv(6, 2)),
        {"a": 4, "b": 3}, out,
    )  # fmt: skip
    add(
        "group norms of a single group",
        Net(lambda m, x: m.out(r(m.n(m.b(r(m.k(m.a(x))))))),
            a=conv(3, 8), k=nn.GroupNorm(1, 8), b=conv(8, 6), n=nn.GroupNorm(1, 6, affine=False),
            out=conv(6, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "squeeze and excite",
        Net(lambda m, x: (lambda y: m.out(
                y * torch.sigmoid(m.e(r(m.s(F.adaptive_avg_pool2d(y, 1)))))))(r(m.a(x))),
            a=conv(3, 8), s=nn.Conv2d(8, 4, 1), e=nn.Conv2d(4, 8, 1), out=conv(8, 2)),
        {"a": 8, "s": 4}, out,
    )  # fmt: skip
    add(
        "flattened map into a linear layer with bias",
        Net(lambda m, x: m.out(r(m.l(F.max_pool2d(r(m.a(x)), 4).flatten(1)))),
            a=conv(3, 8), l=nn.Linear(32, 6), out=nn.Linear(6, 2)),
        {"a": 8, "l": 6}, out,
    )  # fmt: skip
    add(
        "norms without affine parameters, or without statistics",
        Net(lambda m, x: m.out(r(m.n2(m.b(r(m.n1(m.a(x))))))),
            a=conv(3, 8), n1=nn.BatchNorm2d(8, affine=False), b=conv(8, 6),
            n2=nn.BatchNorm2d(6, track_running_stats=False), out=conv(6, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "norm without affine parameters on a stream",
        Net(lambda m, x: (lambda y: m.out(r(y + m.b(r(m.n(y))))))(m.a(x)),
            a=conv(3, 8), n=nn.BatchNorm2d(8, affine=False), b=conv(8, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "instance norm",
        Net(lambda m, x: m.out(r(m.n(m.a(x)))),
            a=conv(3, 8), n=nn.InstanceNorm2d(8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "sigmoid before a reader",
        Net(lambda m, x: m.out(r(m.b(torch.sigmoid(m.a(x))))),
            a=conv(3, 8), b=conv(8, 6), out=conv(6, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "sigmoid before a norm",
        Net(lambda m, x: m.out(r(m.n(torch.sigmoid(m.a(x))))),
            a=conv(3, 8), n=nn.BatchNorm2d(8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "sigmoid added in place through another view of the memory",
        Net(lambda m, x: (lambda y: (y.view(-1).add_(1.0), m.out(y))[1])(m.a(x)),
            a=conv(3, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "functions of several tensors, and of numbers",
        Net(lambda m, x: (lambda y: m.out(torch.where(y > 0, y, 0.1 * y).lerp(1 - y, 0.3)
                                          .masked_fill(y < -1, 2.0).addcmul(y, y).cumsum(2)))(
                m.a(x)),
            a=conv(3, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "gated and shuffled",
        Net(lambda m, x: m.out(F.pixel_unshuffle(F.pixel_shuffle(F.channel_shuffle(m.b(F.glu(
                m.a(x), 1)), 2), 2), 2).roll(1, 3).flip(2)),
            a=conv(3, 16), b=conv(8, 16), out=conv(16, 2)),
        {"a": 8, "b": 4}, out,
    )  # fmt: skip
    add(
        "mixer of places",
        Net(lambda m, x: (lambda t: m.out((t + m.m(t)).mean(2)))(m.a(x).flatten(2)),
            a=conv(3, 8), m=nn.Linear(64, 64), out=nn.Linear(8, 2)),
        {"a": 8}, {"m": "it mixes positions, not channels", **out},
    )  # fmt: skip
    add(
        "bias made of two parameters and a buffer",
        with_parameter(with_parameter(
            Net(lambda m, x: m.out(F.linear(m.a(x.flatten(1)).relu(), m.b.weight,
                                            torch.cat([m.p, m.n.running_mean, m.q])).relu()),
                a=nn.Linear(192, 8), b=nn.Linear(8, 12, bias=False), n=nn.BatchNorm1d(6),
                out=nn.Linear(12, 2)),
            "p", torch.randn(3)), "q", torch.randn(3)),
        {"a": 8, "b": 12}, {"n.weight": "not used", "n.bias": "not used", **out},
    )  # fmt: skip
    add(
        "position table that is cut to size, and turned",
        with_parameter(
            Net(lambda m, x: m.out(m.a(x).flatten(2) + m.t[:64].t()[None].exp()),
                a=conv(3, 8), out=nn.Conv1d(8, 2, 1)),
            "t", torch.randn(70, 8)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "zero to the power of -1",
        Net(lambda m, x: m.out(m.a(x).relu().reciprocal().clamp(max=9)), a=conv(3, 8),
            out=conv(8, 2)),
        {}, {"a": "of a channel that is zero is not finite", **out},
    )  # fmt: skip
    add(
        "constants that repeat one number, and one that does not",
        Net(lambda m, x: m.out(m.a(x) * torch.ones(8, 1, 1) + m.a.weight.new_zeros(8, 8, 8))
            + m.end(m.b(x) + torch.arange(6.0)[:, None, None]),
            a=conv(3, 8), b=conv(3, 6), out=conv(8, 2), end=conv(6, 2)),
        {}, {"a": "code depends on", "b": "constant of fixed width", "end": "output", **out},
    )  # fmt: skip
    add(
        "as many ones as there are channels, shared by two layers",
        Net(lambda m, x: (lambda y, z: (lambda ones: m.out(y + ones) + m.end(z * ones))(
                torch.ones(1, y.shape[1], 1, 1)))(m.a(x), m.b(x)),
            a=conv(3, 8), b=conv(3, 8), out=conv(8, 2), end=conv(8, 2)),
        {"a": 8}, {"end": "output", **out},
    )  # fmt: skip
    add(
        "halves",
        Net(lambda m, x: (lambda p: m.out(r(p[0]) * p[1]))(m.a(x).chunk(2, 1)),
            a=conv(3, 8), out=conv(4, 2)),
        {"a": 4}, out,
    )  # fmt: skip
    add(
        "slices",
        Net(lambda m, x: (lambda y: m.out(r(y[:, :4] - y[:, 4:])))(m.a(x)),
            a=conv(3, 8), out=conv(4, 2)),
        {}, {"a": "code depends on their number", **out},
    )  # fmt: skip
    add(
        "channel shuffle by view and transposition",
        Net(lambda m, x: m.out(r(m.a(x)).view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)),
            a=conv(3, 8), out=conv(8, 2)),
        {}, {"a": "code depends on their number", **out},
    )  # fmt: skip
    add(
        "channel shuffle by index",
        Net(lambda m, x: m.out(r(m.a(x))[:, [1, 0, 3, 2]]), a=conv(3, 4), out=conv(4, 2)),
        {}, {"a": "'index' divides it", **out},
    )  # fmt: skip
    add(
        "assembly in a buffer",
        Net(_assembled, a=conv(3, 4), b=conv(3, 4), c=conv(8, 6), out=conv(6, 2)),
        {"c": 6}, {"a": "code depends on their number", "b": "'aten::copy_' writes into", **out},
    )  # fmt: skip
    add(
        "PReLU of both kinds",
        Net(lambda m, x: m.out(m.p(m.b(m.q(m.a(x))))),
            a=conv(3, 8), q=nn.PReLU(), b=conv(8, 6), p=nn.PReLU(6), out=conv(6, 2)),
        {"a": 8, "b": 6}, {"q": "one number", **out},
    )  # fmt: skip
    add(
        "module used twice",
        Net(lambda m, x: m.out(r(m.b(r(m.b(r(m.a(x))))))),
            a=conv(3, 8), b=conv(8, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    twin = conv(8, 8)
    tied = conv(8, 8)
    tied.weight = twin.weight
    add(
        "tied weights",
        Net(lambda m, x: m.out(r(m.c(r(m.b(r(m.a(x))))))),
            a=conv(3, 8), b=twin, c=tied, out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "tied autoencoder",
        with_parameter(
            Net(lambda m, x: m.out(F.linear(r(F.linear(r(m.a(x.flatten(1))), m.w)), m.w.t())),
                a=nn.Linear(192, 8), out=nn.Linear(8, 2)),
            "w", torch.randn(5, 8)),
        {"a": 8, "w": 5}, out,
    )  # fmt: skip
    add(
        "scale and shift by hand",
        with_parameter(
            with_parameter(
                Net(lambda m, x: m.out(r(m.a(x) * m.g + m.h.view(1, -1, 1, 1))),
                    a=conv(3, 8), out=conv(8, 2)),
                "g", torch.randn(8, 1, 1)),
            "h", torch.randn(8)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "one number added to all channels",
        with_parameter(
            Net(lambda m, x: m.out(m.a(x) + m.g), a=conv(3, 8), out=conv(8, 2)),
            "g", torch.randn(1)),
        {"a": 8}, {"g": "one number", **out},
    )  # fmt: skip
    add(
        "division by a parameter",
        with_parameter(
            Net(lambda m, x: m.out(m.a(x) / m.g), a=conv(3, 8), out=conv(8, 2)),
            "g", torch.rand(8, 1, 1) + 1),
        {}, {"a": "would divide by zero", "g": "would divide by zero", **out},
    )  # fmt: skip
    add(
        "weight that also scales",
        Net(lambda m, x: m.out(r(m.a(x)) * m.a.weight.mean()), a=conv(3, 8), out=conv(8, 2)),
        {}, {"a": "its weights go through 'aten::mean' before they", **out},
    )  # fmt: skip
    add(
        "spatial gate",
        Net(lambda m, x: (lambda y: m.out(y * torch.sigmoid(m.g(y))))(r(m.a(x))),
            a=conv(3, 8), g=conv(8, 1), out=conv(8, 2)),
        {"a": 8}, {"g": "it is broadcast over other channels", **out},
    )  # fmt: skip
    add(
        "Conv1d",
        Net(lambda m, x: m.out(F.max_pool1d(r(m.n(m.a(x.flatten(2)))), 2)),
            a=nn.Conv1d(3, 8, 3), n=nn.BatchNorm1d(8), out=nn.Conv1d(8, 2, 3)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "ConvTranspose2d",
        Net(lambda m, x: m.out(r(m.d(r(m.b(r(m.a(x))))))),
            a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2),
            d=nn.ConvTranspose2d(6, 6, 2, groups=6), out=nn.ConvTranspose2d(6, 2, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "functional convolution with a parameter of the parent",
        with_parameter(
            Net(lambda m, x: m.out(r(F.conv2d(r(m.a(x)), m.w))), a=conv(3, 8), out=conv(6, 2)),
            "w", torch.randn(6, 8, 3, 3)),
        {"a": 8, "w": 6}, out,
    )  # fmt: skip
    add(
        "several outputs",
        Net(lambda m, x: (lambda y: {"y": [m.out(y), 3], "z": m.b(y)})(r(m.a(x))),
            a=conv(3, 8), b=conv(8, 4), out=conv(8, 2)),
        {"a": 8}, {"b": "output", **out},
    )  # fmt: skip
    add(
        "operations in place",
        Net(lambda m, x: m.out(m.a(x).relu_().add_(m.b(x)).mul_(2).clamp_(0, 6)),
            a=conv(3, 8), b=conv(3, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "layer norm over the channels",
        Net(lambda m, x: m.out(r(m.b(r(m.n(m.a(x.flatten(1))))))),
            a=nn.Linear(192, 8), n=nn.LayerNorm(8), b=nn.Linear(8, 6), out=nn.Linear(6, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "layer norms over channels and map, over the map, and after a sigmoid",
        Net(lambda m, x: m.out(m.s(torch.sigmoid(m.c(m.k(m.b(m.n(m.a(x)))))))),
            a=conv(3, 8), n=nn.LayerNorm([8, 8, 8]), b=conv(8, 6),
            k=nn.LayerNorm([8, 8], elementwise_affine=False), c=conv(6, 4),
            s=nn.GroupNorm(1, 4), out=conv(4, 2)),
        {"a": 8, "b": 6, "c": 4}, out,
    )  # fmt: skip
    add(
        "layer norm that shifts the map",
        Net(lambda m, x: m.out(m.n(m.a(x))), a=conv(3, 8), n=nn.LayerNorm([8, 8]), out=conv(8, 2)),
        {"a": 8}, {"n": "native_layer_norm' reads it in 'n'", **out},
    )  # fmt: skip
    add(
        "norms of a width that stands in the code",
        Net(lambda m, x: m.out(r(F.layer_norm(m.b(r(F.group_norm(m.a(x), 1))), (6, 8, 8)))),
            a=conv(3, 8), b=conv(8, 6), out=conv(6, 2)),
        {}, {"a": "'aten::native_group_norm' cannot", "b": "native_layer_norm' cannot", **out},
    )  # fmt: skip
    add(
        "transformer",
        with_parameter(with_parameter(_transformer(), "cls", torch.randn(1, 1, 8)),
                       "positions", torch.randn(1, 65, 8)),
        {"embed": 8, "up": 12},
        {**dict.fromkeys("qkv", "code depends on their number"), **out},
    )  # fmt: skip
    add(
        "attention whose inner width is that of the tokens",
        Net(_attention, embed=nn.Linear(3, 8), n=nn.LayerNorm(8), qkv=nn.Linear(8, 24),
            p=nn.Linear(8, 8), out=nn.Linear(8, 2)),
        {},
        {**dict.fromkeys(("embed", "n", "p"), "code depends"), "qkv": "scale of attention", **out},
    )  # fmt: skip
    add(
        "tokens",
        Net(lambda m, x: m.out(F.gelu(m.b(F.gelu(m.a(x.flatten(2).transpose(1, 2))))).softmax(1)
                               .mean(1)),
            a=nn.Linear(3, 8), b=nn.Linear(8, 6), out=nn.Linear(6, 2)),
        {"a": 8, "b": 6}, out,
    )  # fmt: skip
    add(
        "attention",
        Net(lambda m, x: (lambda t: m.out(m.p(m.v(t)) + (m.q(t) @ m.v(t).transpose(1, 2)).sum()))(
                x.flatten(2).transpose(1, 2)),
            q=nn.Linear(3, 8), v=nn.Linear(3, 8), p=nn.Linear(8, 6), out=nn.Linear(6, 2)),
        {"v": 8, "p": 6}, out,
    )  # fmt: skip
    add(
        "view whose width stands in the code",
        Net(lambda m, x: (lambda y: m.out(r(y)) + m.f(m.l(m.n(y)).reshape(-1, 512))[..., None, None]
                          )(m.a(x)),
            a=conv(3, 8), n=nn.BatchNorm2d(8), l=nn.LayerNorm([8, 8, 8]), f=nn.Linear(512, 2),
            out=conv(8, 2)),
        {}, {**dict.fromkeys("anl", "code depends on"), "f": "output", **out},
    )  # fmt: skip
    add(
        "padding with ones",
        Net(lambda m, x: m.out(F.pad(m.a(x), (1, 1, 1, 1), value=1.0)),
            a=conv(3, 8), out=conv(8, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "mirror, upsampling and standard deviation",
        Net(lambda m, x: m.out(torch.cat([
                (y := F.interpolate(F.pad(m.a(x), (1, 1, 1, 1), mode="reflect"),
                                    scale_factor=2)).std((2, 3)), y.amax((2, 3))], 1)),
            a=conv(3, 8), out=nn.Linear(16, 2)),
        {"a": 8}, out,
    )  # fmt: skip
    add(
        "norm under two names, on a stream",
        _shared_norm(),
        {"a": 8, "n": 8}, {"out": "output"},
    )  # fmt: skip
    return cases


def _assembled(m: Any, x: Tensor) -> Tensor:
    both = x.new_zeros(x.shape[0], 8, 8, 8)
    both[:, :4] = m.a(x)
    both[:, 4:] = m.b(x)
    result: Tensor = m.out(F.relu(m.c(both)))
    return result


def _transformer() -> Net:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.embed(x.flatten(2).transpose(1, 2))
        tokens = torch.cat([m.cls.expand(len(x), -1, -1), tokens], 1) + m.positions
        read = m.n1(tokens)
        q, k, v = (part(read).unflatten(-1, (2, 4)).transpose(1, 2) for part in (m.q, m.k, m.v))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + m.p(seen)
        tokens = tokens + m.down(F.gelu(m.up(m.n2(tokens))))
        result: Tensor = m.out(m.n3(tokens)[:, 0])
        return result

    return Net(
        forward,
        embed=nn.Linear(3, 8), n1=nn.LayerNorm(8), q=nn.Linear(8, 8), k=nn.Linear(8, 8),
        v=nn.Linear(8, 8), p=nn.Linear(8, 8), n2=nn.LayerNorm(8, bias=False), up=nn.Linear(8, 12),
        down=nn.Linear(12, 8), n3=nn.LayerNorm(8, elementwise_affine=False), out=nn.Linear(8, 2),
    )  # fmt: skip


def _attention(m: Any, x: Tensor) -> Tensor:
    tokens = m.embed(x.flatten(2).transpose(1, 2))
    images, places, width = tokens.shape
    q, k, v = m.qkv(m.n(tokens)).view(images, places, 3, width).unbind(2)
    tokens = tokens + m.p(F.scaled_dot_product_attention(q, k, v))
    result: Tensor = m.out(tokens.mean(1))
    return result


def _shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    return Net(
        lambda m, x: (lambda y: m.out(F.relu(y + m.b(F.relu(m.other.n(y))))))(m.a(x)),
        a=conv(3, 8), n=norm, other=nn.Sequential(OrderedDict(n=norm)), b=conv(8, 8),
        out=conv(8, 2),
    )  # fmt: skip


NETS = nets()


@pytest.mark.parametrize("name", NETS)
def test_network_is_cut_right_or_kept_whole_with_a_reason(name: str) -> None:
    net, sizes, whole = NETS[name]
    enliven_(net, SHAPE)
    found = trace(net, SHAPE)
    assert {n: g.size for n, g in found.groups.items()} == sizes
    assert found.whole.keys() == whole.keys()
    for layer, reason in whole.items():
        assert reason in found.whole[layer]
    assert found.unaccounted(net) == ()
    for seed in range(2):
        mask = random_mask(found, seed=seed, keep=0.5)
        assert error(net, mask, found) < EXACT


@pytest.mark.parametrize("name", NETS)
def test_guard_leaves_what_can_be_cut(name: str) -> None:
    """Of a mask that would keep next to nothing."""
    net, sizes, _ = NETS[name]
    found = trace(net, SHAPE)
    scores = {n: torch.randn(size) for n, size in sizes.items()}
    nothing = {n: torch.zeros(size, dtype=torch.bool) for n, size in sizes.items()}
    kept, helped = guard(nothing, scores, found)
    assert helped == tuple(found.groups)
    proof = verify(net, Mask(unit="channel", kept=kept), found)
    assert proof.error <= proof.tolerance < 10 * EXACT  # the tolerance is what rounding explains


# Statistics over channels, and groups, by hand


def test_norm_takes_its_statistics_over_the_channels_that_stay() -> None:
    net, _, _ = NETS["layer norm over the channels"]
    found = trace(net, SHAPE)
    assert found.measured == {"n"}
    kept = torch.tensor([True, False, True, True, False, True, True, True])
    mask = Mask(unit="channel", kept={"a": kept})
    quiet, small = silence(net, mask, found), shrink(net, mask, found)
    norm = small.get_submodule("n")
    assert isinstance(norm, nn.LayerNorm)
    assert norm.normalized_shape == (6,)
    x = torch.randn(2, *SHAPE[1:])
    with torch.no_grad():
        made = net.a(x.flatten(1))[:, kept]  # type: ignore[operator]
        deviation = (made.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
        expected = (made - made.mean(1, keepdim=True)) / deviation * norm.weight + norm.bias
        passed = quiet.n(quiet.a(x.flatten(1)))  # type: ignore[operator]
    torch.testing.assert_close(passed[:, kept], expected)
    assert not bool(passed[:, ~kept].any())
    assert quiet.state_dict().keys() == net.state_dict().keys()


def test_parameters_without_some_groups_of_a_convolution_by_hand() -> None:
    net, _, _ = NETS["grouped convolution"]
    found = trace(net, SHAPE)
    assert (found.groups["a"].kind, found.groups["b"].kind) == ("grouped", "conv")
    small = shrink(net, Mask(unit="channel", kept={"a": torch.arange(4) > 0}), found)
    layer = small.get_submodule("g")
    assert isinstance(layer, nn.Conv2d)
    assert (layer.groups, layer.in_channels, layer.out_channels) == (3, 6, 9)
    # 3 -> 6, then three groups of 2 -> 3, then 9 -> 6 and 6 -> 2, each 3x3 with a bias
    expected = 6 * (27 + 1) + 9 * (18 + 1) + 6 * (81 + 1) + 2 * (54 + 1)
    assert sum(p.numel() for p in small.parameters()) == expected


def test_convolution_with_one_group_left_is_an_ordinary_one() -> None:
    net, _, _ = NETS["grouped convolution"]
    found = trace(net, SHAPE)
    once = shrink(net, Mask(unit="channel", kept={"a": torch.arange(4) == 2}), found)
    again = trace(once, SHAPE)
    assert {n: (g.kind, g.size) for n, g in again.groups.items()} == {
        "a": ("conv", 2), "g": ("conv", 3), "b": ("conv", 6),
    }  # fmt: skip
    assert error(once, random_mask(again), again) < EXACT


def test_group_norm_loses_whole_groups_or_is_narrowed() -> None:
    for name, left in (("group norms", (3, 6)), ("group norms of a single group", (1, 7))):
        net, _, _ = NETS[name]
        found = trace(net, SHAPE)
        kept = {"a": torch.arange(found.groups["a"].size) > 0}
        norm = shrink(net, Mask(unit="channel", kept=kept), found).get_submodule("k")
        assert isinstance(norm, nn.GroupNorm)
        assert (norm.num_groups, norm.num_channels) == left


def test_silenced_norm_is_usable_after_an_error() -> None:
    net, _, _ = NETS["layer norm over the channels"]
    found = trace(net, SHAPE)
    mask = random_mask(found)
    quiet = silence(net, mask, found)
    with pytest.raises(IndexError, match="out of bounds"):
        quiet.n(torch.zeros(2, 5))  # type: ignore[operator]
    x = torch.ones(1, 5)
    assert torch.equal(F.layer_norm(x, (5,)), torch.zeros(1, 5))  # for others as ever
    small = shrink(net, mask, found)
    y = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(quiet(y), small(y), rtol=1e-4, atol=1e-5)


# Networks of torchvision, without weights

QUICK = {
    "resnet18": 12,
    "squeezenet1_0": 25,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "mnasnet0_5": 25,
    "shufflenet_v2_x0_5": 21,
    "googlenet": 57,
}
SLOW = {
    "vgg11_bn": 10,
    "regnet_x_400mf": 27,
    "regnet_y_400mf": 37,
    "densenet121": 182,
    "efficientnet_b0": 40,
    "resnext50_32x4d": 21,
    "inception_v3": 94,
    "convnext_tiny": 22,
    "swin_t": 14,
    "vit_b_16": 13,
}
REASONS = (
    "network's output",
    "is combined with data that is kept whole",
    "new_zeros' cannot be followed",  # the shifted windows of a Swin
    "the network's own code depends on their number",
)


@pytest.mark.parametrize(
    ("name", "num_groups"),
    [*QUICK.items(), *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items()]],
)
def test_networks_of_torchvision(name: str, num_groups: int) -> None:
    arguments: dict[str, Any] = {"weights": None, "num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": False}
    if name == "vit_b_16":
        arguments |= {"image_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)(**arguments)
    size = {"inception_v3": 96, "vit_b_16": 32}.get(name, 64)
    shape = (1, 3, size, size)
    enliven_(net, shape)
    found = trace(net, shape)
    assert len(found.groups) == num_groups
    assert found.unaccounted(net) == ()
    assert all(any(known in reason for known in REASONS) for reason in found.whole.values())
    for seed, keep in enumerate((0.6, 0.2)):
        assert error(net, random_mask(found, seed=seed, keep=keep), found) < EXACT


def test_layers_that_only_train_are_not_forgotten() -> None:
    net = Net(_with_auxiliary, a=conv(3, 8), aux=conv(8, 2), out=conv(8, 2))
    found = trace(net, SHAPE)
    assert found.idle == ("aux.weight", "aux.bias")
    assert not found.groups
    assert "(with 5 of 8 it does not run in training: Given groups=1" in found.whole["a"]
    assert found.whole["aux"] == "it was not used when the network ran on the example"


def _with_auxiliary(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.a(x))
    result: Tensor = m.out(y)
    return result + m.aux(y) if m.training else result


# Errors


def test_code_that_fixes_a_number_of_channels_is_no_group_and_is_named() -> None:
    net = Net(
        lambda m, x: m.out(F.adaptive_avg_pool2d(m.b(m.a(x)), 1).view(-1, 8)),
        a=conv(3, 6),
        b=conv(6, 8),
        out=nn.Linear(8, 2),
    )
    found = trace(net, SHAPE)
    assert list(found.groups) == ["a"]
    assert "depends on their number (with 5 of 8 it does not run: shape" in found.whole["b"]
    free = Net(lambda m, x: m.out(F.adaptive_avg_pool2d(m.b(m.a(x)), 1).flatten(1)))
    free._modules = net._modules
    with pytest.raises(TraceError, match=r"fixes a number of channels.*\(\.\.\., keep=\['b'\]\)"):
        shrink(net, Mask(unit="channel", kept={"b": torch.arange(8) < 4}), trace(free, SHAPE))


class Answer:
    def __init__(self, logits: Tensor | None, more: Any = None) -> None:
        self.logits, self.more = logits, more


class SomeCache(Answer):
    pass


def test_output_without_tensors_is_refused() -> None:
    net = Net(lambda m, x: Answer(None, m.a(x).shape[1]), a=conv(3, 8))
    with pytest.raises(TraceError, match="returns a Answer, in which no tensor can be found"):
        trace(net, SHAPE)


def test_outputs_in_objects_are_found_and_caches_are_passed_over() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.b(m.a(x).relu())
        return {"answer": Answer(m.out(y.relu()), [y, object()]), "state": SomeCache(m.a(x))}

    net = Net(forward, a=conv(3, 8), b=conv(8, 6), out=conv(6, 2))
    found = trace(net, SHAPE)
    assert list(found.groups) == ["a"]
    assert {name for name, why in found.whole.items() if "output" in why} == {"b", "out"}
    assert verify(net, random_mask(found), found).ok


class Turn(nn.Module):
    """A mover that does not keep its channels in one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def narrow_(self, *, kept_in: Tensor, kept_out: Tensor) -> None:
        raise AssertionError


def test_mover_whose_channels_vary_over_its_map_is_refused() -> None:
    net = Net(lambda m, x: m.out(m.t(m.a(x))), a=conv(3, 8), t=Turn(), out=conv(8, 2))
    with pytest.raises(TraceError, match=r"of 't' vary over its map, .* Remove that method"):
        trace(net, SHAPE)


class Drop(nn.Module):
    """A mover that drops every second channel."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.kept = torch.arange(0, num, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.kept]

    def narrow_(self, *, kept_in: Tensor, kept_out: Tensor) -> None:
        place = {old: new for new, old in enumerate(kept_in.tolist())}
        self.kept = torch.tensor([place[int(self.kept[i])] for i in kept_out])


def test_any_module_that_can_narrow_itself_is_followed() -> None:
    net = Net(lambda m, x: m.out(m.d(F.relu(m.a(x)))), a=conv(3, 8), d=Drop(8), out=conv(4, 2))
    found = trace(net, SHAPE)
    assert {n: g.size for n, g in found.groups.items()} == {"a": 8}
    for seed in range(4):
        assert error(net, random_mask(found, seed=seed), found) < EXACT


def test_a_rule_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(lambda m, x: m.out(m.a(x).rad2deg()), a=conv(3, 8), out=conv(8, 2))
    assert "'aten::rad2deg' cannot be followed" in trace(net, SHAPE).whole["a"]
    monkeypatch.setitem(RULES, "aten::rad2deg", RULES["aten::relu"])  # gone after the test

    @rule("aten::rad2deg")
    def keep_colours(painter: Painter, node: Node) -> None:
        painter.put(node, painter.of(node.args[0]))

    found = trace(net, SHAPE)
    assert list(found.groups) == ["a"]
    assert error(net, random_mask(found), found) < EXACT


def test_mask_over_one_unit_of_a_shared_weight_cuts_all_its_uses() -> None:
    net, _, _ = NETS["tied weights"]
    found = trace(net, SHAPE)
    kept = {"a": torch.arange(8) != 3}
    small = shrink(net, Mask(unit="channel", kept=kept), found)
    assert small.get_parameter("b.weight") is small.get_parameter("c.weight")
    assert small.get_submodule("c").in_channels == 7
