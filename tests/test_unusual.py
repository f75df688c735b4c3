"""Networks that hold what most do not: locks, results of a step, sparse tensors."""

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import half
from regrow.errors import TraceError
from regrow.surgery import Trace, shrink, trace, verify


def proven(net: nn.Module, example: Any) -> Trace:
    """Trace a network, and cut half of each of its groups with a proof."""
    found = trace(net, example)
    result = verify(net, half(found), found)
    assert result.ok, str(result)
    return found


class Keeping(nn.Module):
    """A network that keeps something."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.a(x).relu())
        return result


@pytest.mark.parametrize(
    "wrapped", [lambda x: x, lambda x: {"last": [x]}, lambda x: SimpleNamespace(last=x)]
)
def test_what_a_step_left_behind_is_copied_by_its_values(wrapped: Callable[[Any], Any]) -> None:
    net = Keeping()
    net.kept = wrapped(net(torch.ones(2, 6)).sum())
    assert list(proven(net, (1, 6)).groups) == ["a"]


@pytest.mark.parametrize(
    "held", [threading.Lock(), threading.Condition(), sys.__stderr__, (i for i in range(3)), torch]
)
def test_what_cannot_be_copied_is_shared(held: Any) -> None:
    net = Keeping({"one": held, "size": 2})
    found = proven(net, (1, 6))
    small: Any = shrink(net, half(found), found)
    assert small.kept["one"] is held


def test_what_cannot_be_copied_with_tensors_is_named() -> None:
    net = Keeping([threading.Lock(), torch.ones(2)])
    with pytest.raises(TraceError, match=r"attribute 'kept' of Keeping cannot be copied.* pickle"):
        trace(net, (1, 6))
