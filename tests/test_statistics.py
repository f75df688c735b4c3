"""Statistics over channels in a network's own code: norms by hand, and what only looks like one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.surgery import oracle, shrink, silence, trace, verify
from regrow.surgery.mask import Mask

SHAPE = (1, 5, 3)
LOST = "something other than normalising them"


class Root(nn.Module):
    """The norm of T5 and LLaMA."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean + 1e-6)).to(x)


class First(nn.Module):
    """A layer norm over the first dimension behind the sample, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.zeros(8, 1))
        self.normalized_shape = (8,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        scaled = self.weight * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.bias
        return scaled.transpose(1, 2)


class Tokens(nn.Module):
    """Two layers, with a function of what passes between."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], part: nn.Module) -> None:
        super().__init__()
        self.a, self.part, self.out = nn.Linear(3, 8), part, nn.Linear(8, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.function(self.part, self.a(x)))
        return result


def root(x: Tensor) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + 1.0)


# Name -> what is between two layers, and why the first one stays whole, or "".
KINDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], nn.Module, str]] = {
    "nn.RMSNorm": (lambda m, x: m(x), nn.RMSNorm(8), ""),
    "nn.RMSNorm without a scale": (lambda m, x: m(x), nn.RMSNorm(8, elementwise_affine=False), ""),
    "root mean square": (lambda m, x: m(x), Root(), ""),
    "layer norm by hand": (lambda m, x: m(x), First(), ""),
    "standardised": (
        lambda m, x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5),
        nn.Identity(), "",
    ),
    "unit length": (lambda m, x: F.normalize(x, dim=-1), nn.Identity(), ""),
    "times a sum": (lambda m, x: x * x.sum(-1, keepdim=True).tanh(), nn.Identity(), ""),
    "sum of what is not zero": (
        lambda m, x: x * x.exp().sum(-1, keepdim=True), nn.Identity(), "'sum' over its channels",
    ),
    "gate of a mean": (lambda m, x: x * x.mean(-1, keepdim=True).sigmoid(), nn.Identity(), LOST),
    "share of a mean": (lambda m, x: x / x.abs().mean(-1, keepdim=True), nn.Identity(), LOST),
    "mean that leaves": (lambda m, x: x + m(x.mean(-1, keepdim=True)), nn.Linear(1, 8), LOST),
    "as many places as channels": (
        lambda m, x: x * root(x) + F.pad(x, (0, 0, 0, 3)).transpose(1, 2).mean(-1)[:, None],
        nn.Identity(), "also averages over as many positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_what_stays_or_nothing_is_cut(kind: str) -> None:
    function, part, why = KINDS[kind]
    torch.manual_seed(0)
    net = Tokens(function, part)
    found = trace(net, SHAPE)
    assert list(found.groups) == ([] if why else ["a"])
    assert why in found.whole.get("a", "")
    kept = {name: torch.arange(8) % 3 > 0 for name in found.groups}
    assert verify(net, Mask(unit="channel", kept=kept), found).ok


class Standardised(nn.Conv2d):
    """A convolution whose rows are standardised by a batch norm, as in NF-nets and BiT."""

    def __init__(self, a: int, b: int, groups: int = 1) -> None:
        super().__init__(a, b, 3, padding=1, groups=groups)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.3).view(-1)
        rows = F.batch_norm(rows, None, None, gain, None, training=True, momentum=0.0)
        weight = rows.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


def test_standardised_weights_have_statistics_over_what_they_read() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        Standardised(3, 8), nn.SiLU(), Standardised(8, 8), nn.Sigmoid(), Standardised(8, 6, 2),
        nn.ReLU(), Standardised(6, 6, 6), Standardised(6, 2),
    )  # fmt: skip
    found = trace(net, (1, 3, 6, 6))
    assert {name: group.kind for name, group in found.groups.items()} == {
        "0": "conv", "2": "grouped",
    }  # fmt: skip
    mask = Mask(
        unit="channel", kept={"0": torch.arange(8) % 3 > 0, "2": torch.tensor([False, True])}
    )
    assert verify(net, mask, found).ok
    small = shrink(net, mask, found)
    assert [tuple(small[i].weight.shape[:2]) for i in (0, 2, 4, 6, 7)] == [  # type: ignore[index]
        (5, 3), (4, 5), (3, 4), (3, 1), (2, 3),
    ]  # fmt: skip


def test_root_mean_square_of_what_stays_by_hand() -> None:
    net = Tokens(lambda m, x: m(x), Root())
    found = trace(net, SHAPE)
    kept = torch.arange(8) < 5
    mask = Mask(unit="channel", kept={"a": kept})
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        made = net.a(x)[..., :5]
        normed = made / (made.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = F.linear(normed * net.part.weight[:5], net.out.weight[:, :5], net.out.bias)  # type: ignore[index]
        assert torch.allclose(shrink(net, mask, found)(x), expected, atol=1e-5)
        assert torch.allclose(silence(net, mask, found)(x), expected, atol=1e-5)


def test_statistics_over_all_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Tokens(lambda m, x: m(x), Root())
    found = trace(net, SHAPE)
    monkeypatch.setattr(oracle._ByHand, "_is_over", lambda *_: False)
    mask = Mask(unit="channel", kept={"a": torch.arange(8) < 5})
    assert not verify(net, mask, found).ok


def test_statistics_inside_a_module_are_its_own() -> None:
    """Of two modules, one in the other, that take means over as many channels."""
    inner = Root()
    net = Tokens(lambda m, x: (lambda y: y * root(y))(m[1](m[0](x))),
                 nn.ModuleList([inner, nn.Linear(8, 8)]))  # fmt: skip
    found = trace(net, SHAPE)
    assert list(found.groups) == ["a", "part.1"]
    kept = {"a": torch.arange(8) < 3, "part.1": torch.arange(8) > 1}
    assert verify(net, Mask(unit="channel", kept=kept), found).ok
