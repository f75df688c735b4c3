"""Parts that code divides channels into, numbers that modules hold, and biases that code writes."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import half, is_caught, without_trials
from regrow.errors import TraceError
from regrow.surgery import rules, shrink, trace, verify
from regrow.surgery.assumptions import Followed
from regrow.surgery.mask import Mask

SHAPE = (1, 3, 8, 8)
OUT = {"out": "output"}


class Sliced(nn.Module):
    """Two paths of unequal widths in one convolution, as in dual path networks."""

    def __init__(self, first: int = 6, rest: int = 4) -> None:
        super().__init__()
        self.first = first
        self.make = nn.Conv2d(3, first + rest, 3)
        self.a, self.b = nn.Conv2d(first, 6, 1), nn.Conv2d(rest, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x).relu()
        scores: Tensor = self.out((self.a(x[:, : self.first]) + self.b(x[:, self.first :])).relu())
        return scores


class Partial(nn.Module):
    """A convolution of some of a stream's channels, as in FasterNet."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [3, 7]
        self.make, self.out = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 2, 1)
        self.some = nn.Conv2d(3, 3, 3, padding=1)
        self.mix = nn.Conv2d(10, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        one, other = torch.split(x, self.sizes, dim=1)
        scores: Tensor = self.out((x + self.mix(torch.cat([self.some(one), other], 1))).relu())
        return scores


class Cascade(nn.Module):
    """Parts of several layers, all of which are counted by the same two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = 4, 6
        self.layers = nn.ModuleList(nn.Conv2d(3, 4 + 6, 1) for _ in range(2))
        self.scale, self.out = nn.Conv2d(4, 6, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for layer in self.layers:
            keys, values = torch.split(layer(x), [self.key, self.value], dim=1)
            parts.append(values * self.scale(keys).relu())
        scores: Tensor = self.out(torch.cat(parts, 1))
        return scores


class Remainder(Partial):
    """Parts of which one is what a number leaves of another."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.part, self.width = [], 3, 10

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        one, other = torch.split(x, [self.part, self.width - self.part], dim=1)
        scores: Tensor = self.out((x + self.mix(torch.cat([self.some(one), other], 1))).relu())
        return scores


class Constants(Partial):
    """Parts whose sizes stand in code."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        one, other = torch.split(x, [3, 7], dim=1)
        scores: Tensor = self.out((x + self.mix(torch.cat([self.some(one), other], 1))).relu())
        return scores


class Gains(nn.Module):
    """A module of which a method is called, and never itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = (width, 1, 1)
        self.gains = nn.Parameter(torch.ones(width))

    def of(self) -> Tensor:
        return self.gains.view(self.shape)


class ByMethod(nn.Module):
    """Channels whose gains another module's method lays out."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1)
        self.gains = Gains(9)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out((self.make(x) * self.gains.of()).relu())
        return scores


class Written(nn.Module):
    """A bias of which code overwrites a half, and a border that code makes anew."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number
        self.make, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.make.bias.clone()
        bias[len(bias) // 2 :].fill_(self.number)
        x = nn.functional.linear(x.flatten(2).transpose(1, 2), self.make.weight, bias)
        border = x.new_zeros(x.shape[1], 1)
        border[4:] = 0.5
        scores: Tensor = self.out((x * border).relu())
        return scores


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, str]]] = {
    "slices": (Sliced, {"make": 10, "a": 6}, OUT),
    "split": (Partial, {"make": 10, "some": 3}, OUT),
    "one number for several layers": (Cascade, {"layers.0": 10}, OUT),
    "what is left": (Remainder, {"make": 10, "some": 3}, OUT),
    "sizes in code": (
        Constants,
        {"some": 3},
        {
            "make": "'split_with_sizes' divides it at fixed positions",
            "mix": "fixed positions",
            **OUT,
        },
    ),
    "method": (ByMethod, {"make": 9}, OUT),
    "zeros in a bias": (lambda: Written(0.0), {"make": 4}, OUT),
    "ones in a bias": (lambda: Written(1.0), {"make": 4}, OUT),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_are_cut_right_or_kept_whole_with_a_reason(name: str) -> None:
    make, sizes, whole = CASES[name]
    torch.manual_seed(0)
    net = make().eval()
    found = trace(net, torch.randn(SHAPE))
    assert {n: g.size for n, g in found.groups.items()} == sizes
    assert found.whole.keys() == whole.keys()
    for layer, reason in whole.items():
        assert reason in found.whole[layer]
    for first in range(2):
        proof = verify(net, half(found, first), found)
        assert proof.ok, str(proof)


@pytest.mark.parametrize(
    "name", ["slices", "split", "what is left", "one number for several layers", "method"]
)
def test_the_proof_catches_numbers_that_do_not_follow(name: str) -> None:
    net = CASES[name][0]().eval()
    with without_trials() as patch:
        assert not is_caught(net, SHAPE)
        patch.setattr(sys.modules["regrow.surgery.trace"], "followed", lambda found, *_: found)
        assert is_caught(net, SHAPE)


def test_the_proof_catches_a_bias_that_is_taken_for_zero() -> None:
    net = Written(1.0).eval()
    with without_trials() as patch:
        assert not is_caught(net, SHAPE)
        rule: Any = rules.RULES["aten::zero_"]

        def as_zero(painter: Any, node: Any) -> None:
            rule(painter, replace(node, args=node.args[:1]))

        patch.setitem(rules.RULES, "aten::fill_", as_zero)
        assert is_caught(net, SHAPE)


class Halved(nn.Module):
    """The larger of two tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 2, -1, x.shape[-1]).amax(1)


class Widened(nn.Module):
    """A layer whose code asks whether it widens, by a number that it uses for nothing else."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.width, self.width_out = width, width_out
        wider = width != width_out
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width_out)
        self.widen = nn.Linear(width, width_out) if wider else nn.Identity()
        self.halve = Halved() if wider else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.width != self.width_out:
            x = self.widen(y).view(len(x), 2, -1, self.width_out).amax(1)
        scores: Tensor = x + self.fc(self.halve(y))
        return scores


def widened() -> nn.Module:
    torch.manual_seed(0)
    layers = [Widened(8, 8), Widened(8, 16), Widened(16, 16)]
    return nn.Sequential(nn.Linear(3, 8), *layers, nn.Flatten(), nn.Linear(64, 5)).eval()


def test_numbers_that_are_only_compared_follow_what_the_parts_hold() -> None:
    net = widened()
    found = trace(net, (1, 8, 3))
    assert {n: g.size for n, g in found.groups.items()} == {"0": 8, "2.widen": 16}
    for first in range(2):
        mask = half(found, first)
        proof = verify(net, mask, found)
        assert proof.ok, str(proof)
    assert shrink(net, mask, found).get_submodule("2").width == 4


def test_numbers_that_meet_by_a_cut_are_named() -> None:
    net = widened()
    found = trace(net, (1, 8, 3))
    only = {"2.widen": torch.arange(16) < 8}
    with pytest.raises(TraceError, match=r"'width' and 'width_out' of '2' are both 8, and its"):
        shrink(net, Mask(unit="channel", kept=only), found)


def test_groups_that_cannot_go_to_half_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = sys.modules["regrow.surgery.numbers"]
    monkeypatch.setattr(numbers, "_widths_inside", lambda *_: {})  # so that one does not follow
    monkeypatch.setattr(Followed, "are_compared", True)
    found = trace(widened(), (1, 8, 3))
    assert "2.widen" not in found.groups
    assert "depends on their number (with 8 of 16 it does not run" in found.whole["2.fc"]


class Beside(nn.Module):
    """Channels and as much of the input beside each other, told apart for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read, self.out = (nn.Conv2d(a, b, 1) for a, b in ((3, 3), (6, 5), (5, 2)))

    def forward(self, x: Tensor) -> Tensor:
        pair = torch.cat([self.make(x), x], 1)
        pair = pair.view(len(x), 2, 3, *x.shape[2:]).relu().flatten(1, 2)
        scores: Tensor = self.out(self.read(pair).relu())
        return scores


def test_channels_beside_data_that_is_whole_come_to_an_end() -> None:
    """Colours along two dimensions that never become one must not be tried for ever."""
    net = Beside()
    found = trace(net, SHAPE)
    assert set(found.groups) == {"read"}
    assert "data that is kept whole" in found.whole["make"]
    assert verify(net, half(found), found).ok
