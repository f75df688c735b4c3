"""Outputs are compared where there is something to compare."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import half, without_trials
from regrow.errors import TraceError
from regrow.surgery import trace, verify
from regrow.surgery.outputs import difference


class Masked(nn.Module):
    """Scores of actions, of which some are forbidden."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        scores: Tensor = self.out(self.a(x).relu())
        return scores.masked_fill(~allowed, -math.inf)


def test_infinities_that_both_outputs_have_are_left_out() -> None:
    net = Masked().eval()
    found = trace(net, (torch.ones(1, 6), torch.tensor([[True, False, True, True]])))
    result = verify(net, half(found), found)
    assert result.ok, str(result)
    assert result.tolerance == 1e-9
    masked = torch.tensor([1.0, 4.0, -math.inf])
    assert difference(masked, masked) == 0.0
    assert difference(torch.tensor([2.0, 4.0, -math.inf]), masked) == 0.25
    for value in (math.inf, math.nan, 1.0):
        other = torch.tensor([1.0, 4.0, value])
        assert math.isnan(difference(other, masked))
        assert math.isnan(difference(masked, other))


class Labelled(Masked):
    """Returns the shape of what it computes inside, as a text."""

    def forward(self, x: Tensor, allowed: Tensor) -> Any:
        return super().forward(x, allowed), str(self.a(x).shape)


def test_other_outputs_are_told_with_the_groups_that_are_cut() -> None:
    net = Labelled().eval()
    with without_trials():
        found = trace(net, (torch.ones(1, 6), torch.ones(1, 4, dtype=torch.bool)))
    with pytest.raises(TraceError, match=r"returns '.*8\]\)'\. Make .* keep=\['a'\]\)\."):
        verify(net, half(found), found)
