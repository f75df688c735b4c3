"""Outputs are compared number by number, and their structures too."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import half
from regrow.surgery import trace, verify
from regrow.surgery.outputs import difference, unlike


@pytest.mark.parametrize(
    ("output", "expected", "words"),
    [
        ((torch.zeros(2), torch.zeros(2)), torch.zeros(2), "[2], [2]) in place of [2]"),
        (torch.zeros(3), torch.zeros(2), "shape (3,) where the network itself returns (2,)"),
        (("a",), ("b",), "returns 'a' where the network itself returns 'b'"),
    ],
)
def test_outputs_of_another_structure_are_infinitely_different(
    output: Any, expected: Any, words: str
) -> None:
    assert words in str(unlike(output, expected))
    assert difference(output, expected) == math.inf
    assert unlike(expected, expected) is None


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
