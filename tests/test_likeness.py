"""A smaller network is known by its operations: values are compared only where those differ."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.surgery import trace, trial

SHAPE = (1, 3, 6, 6)


class Between(nn.Module):
    """Two layers, and a function of the first one's eight channels between them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.table = torch.full((1,), 8.0)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.function(self, self.norm(self.a(x))))
        return result


def joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def either(x: Tensor, y: Tensor) -> Tensor:
    return y + (x if x.shape[1] == 8 else y)


ALIKE = {
    "relu": lambda m, x: x.relu(),
    "a number of the code's own": lambda m, x: x / 8,
    "a mean over places": lambda m, x: x - x.mean((2, 3), keepdim=True),
    "halves": lambda m, x: joined(x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]),
    "a table": lambda m, x: x * m.table,
    "a view": lambda m, x: x.view(x.shape[0], -1, 36).view(x.shape),
    "a map whose channels come last": lambda m, x: x.permute(0, 2, 3, 1)[:, 2:].permute(0, 3, 1, 2),
}
NUMBERS = {
    "a number": lambda m, x: x / x.shape[1],
    "a power": lambda m, x: x.relu() ** x.shape[1],
    "places": lambda m, x: x.roll(x.shape[1], 3),
}
OTHERWISE = {
    "a new tensor": lambda m, x: x * torch.tensor([1.0 / x.shape[1]]),
    "a tensor filled with it": lambda m, x: x * torch.full((1,), float(x.shape[1])),
    "another operation": lambda m, x: x.relu() if x.shape[1] == 8 else x.sigmoid(),
    "more operations": lambda m, x: x if x.shape[1] == 8 else x + 1.0,
    "another value": lambda m, x: either(x, x.relu()),
    "fewer operations": lambda m, x: x + 1.0 if x.shape[1] == 8 else x,
}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note by which sets of groups values are compared."""
    noted: list[str] = []
    off = trial.Trials._off

    def noting(self: trial.Trials, masks: Any, found: Any) -> str | None:
        noted.extend(masks[0].kept)
        return off(self, masks, found)

    monkeypatch.setattr(trial.Trials, "_off", noting)
    return noted


@pytest.mark.parametrize("name", ALIKE)
def test_values_are_not_compared_where_the_same_is_done(name: str, compared: list[str]) -> None:
    assert set(trace(Between(ALIKE[name]).eval(), SHAPE).groups) == {"a"}
    assert compared == []


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("silent", [False, True])
def test_values_are_compared_where_something_else_is_done(
    name: str, silent: bool, compared: list[str]
) -> None:
    net = Between(OTHERWISE[name]).eval()
    if silent:  # what a trace finds does not depend on the weights
        nn.init.zeros_(net.b.weight)
    found = trace(net, SHAPE)
    assert set(compared) == {"a"}
    assert found.groups == {}
    assert "computes something else" in found.whole["a"]


@pytest.mark.parametrize("name", NUMBERS)
def test_another_number_is_something_else(name: str, compared: list[str]) -> None:
    found = trace(Between(NUMBERS[name]).eval(), SHAPE)
    assert compared == []
    assert found.groups == {}
    assert re.search(
        r"computes something else: 'aten::\w+' takes \d in place of 8", found.whole["a"]
    )


class Rolled(nn.Module):
    """Two heads, and places moved by two: a number of each sort equals the width."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.heads, self.far = 3, 3, (3, 3)
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(1, self.heads, 2, 6, 6).roll(self.far, (3, 4)).roll(self.step, 3)
        result: Tensor = self.b(y.reshape(1, -1, 6, 6))
        return result


def test_numbers_that_must_stay_are_found_by_what_takes_them(compared: list[str]) -> None:
    found = trace(Rolled().eval(), SHAPE)
    assert {name: group.size for name, group in found.groups.items()} == {"a": 3}
    assert compared == []
    assert {slot.tensor for slot in found.groups["a"].slots if ":" in slot.tensor} == {
        ":number.heads"
    }


def test_values_may_agree_where_operations_differ(compared: list[str]) -> None:
    net = Between(lambda m, x: x * 1.0 if x.shape[1] == 8 else x)
    assert set(trace(net.eval(), SHAPE).groups) == {"a"}
    assert set(compared) == {"a"}


class Heads(nn.Module):
    """Channels told apart as heads, by a number that stands in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        q, k, v = self.qkv(x).view(n, t, 3, 2, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        return result


def test_two_heads_that_are_one_of_half_the_width_are_no_cut(compared: list[str]) -> None:
    """The code runs for any number, with other sizes than a head less would have."""
    found = trace(Heads().eval(), torch.randn(1, 5, 6))
    assert found.groups == {}
    assert "qkv" in compared


class TwoGroups(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 2, self.weight, self.bias)


@pytest.mark.parametrize(("norm", "names"), [(nn.GroupNorm, {"0"}), (TwoGroups, set())])
def test_groups_of_a_norm_that_stand_in_code(
    norm: type[nn.GroupNorm], names: set[str], compared: list[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), norm(2, 8), nn.Conv2d(8, 2, 1))
    assert set(trace(net.eval(), SHAPE).groups) == names
    assert bool(compared) == (not names)


def test_groups_are_tried_at_numbers_of_their_own() -> None:
    sizes = [64, 512, 2, 64, 16, 16, 512, 3, 48, 64]
    nums = trial.apart(sizes)
    several = [num for num, size in zip(nums, sizes, strict=True) if size > 3]
    assert len(set(several)) == len(several)
    assert nums[2] == 1
    assert nums[7] == 2
    for num, size in zip(nums, sizes, strict=True):
        assert num < size
        assert num == 1 or all(num % n for n in range(2, num))


def test_many_groups_of_a_size_share_numbers_evenly() -> None:
    nums = trial.apart([512] * 33)
    assert max(nums) < 256
    assert max(nums.count(num) for num in nums) == 3


def test_objects_of_pytorch_are_no_numbers() -> None:
    # DataParallel hands a profiler's mark to an operation, another one each time that it runs.
    net = nn.DataParallel(Between(lambda net, x: x.relu()))
    assert [*trace(net, SHAPE).groups] == ["module.a"]
