"""A trace ends whatever a network's code counts on, and keeps no more whole than it must."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.surgery import trace
from regrow.surgery.assumptions import Assumptions

SHAPE = (1, 3, 6, 6)


class Pair(nn.Module):
    """Two layers side by side, whose code asks how many channels they have, and a third one."""

    def __init__(self, asks: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.asks = asks
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(24, 12, 1)
        self.out = nn.Conv2d(12, 2, 1)
        self.width = 16  # as many as b makes: a number that may follow its cut, or stay

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        as_built = self.asks(a.shape[1], b.shape[1])
        y = self.c(torch.cat([a, b], 1)[:, : a.shape[1] + self.width])
        result: Tensor = self.out(y if as_built else y.sin())
        return result


ASKED = {
    "of one": (lambda a, b: a == 8, {"b", "c"}),
    "of either": (lambda a, b: a == 8 or b == 16, {"b", "c"}),
    "of both": (lambda a, b: a == 8 and b == 16, {"c"}),
}


@pytest.mark.parametrize("name", ASKED)
def test_of_groups_that_fail_together_one_is_kept_whole(name: str) -> None:
    asks, cut = ASKED[name]
    found = trace(Pair(asks).eval(), SHAPE)
    assert set(found.groups) == cut
    assert "computes something else" in found.whole["a"]


def test_assumptions_that_repeat_end_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    asks, _ = ASKED["of either"]
    monkeypatch.setattr(Assumptions, "_is_new", lambda self, choices: True)
    monkeypatch.setattr(Assumptions, "_state", lambda self, choices: "always the same")
    with pytest.raises(TraceError, match="assumptions about its code repeat"):
        trace(Pair(asks).eval(), SHAPE)


class Amplifier(nn.Module):
    """A layer, a number that meets its channels, and steps that amplify the last bit to all."""

    def __init__(self, number: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.number = number
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        y = self.b(y * torch.tensor(self.number(y))).sigmoid()
        for _ in range(80):
            y = 3.9 * y * (1.0 - y)
        return y


def test_a_cut_that_rounding_hides_is_not_taken_for_right() -> None:
    assert set(trace(Amplifier(lambda y: 2.0).eval(), SHAPE).groups) == {"a"}
    found = trace(Amplifier(lambda y: 1.0 / y.shape[1]).eval(), SHAPE)
    assert found.groups == {}
    assert "whether it computes the same cannot be told" in found.whole["a"]


def test_a_network_that_never_runs_twice_alike_is_not_judged_by_that() -> None:
    assert set(trace(Amplifier(lambda y: random.random()).eval(), SHAPE).groups) == {"a"}
