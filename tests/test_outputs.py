"""Outputs are compared where there is something to compare."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from cutting import half, without_trials
from regrow.errors import TraceError
from regrow.own.exports import largest_gap
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


@pytest.mark.parametrize("fill", [-1e9, -math.inf])
def test_what_a_mask_fills_in_does_not_hide_how_far_other_outputs_are(fill: float) -> None:
    masked = torch.tensor([1.0, 4.0, fill, fill])
    other = torch.tensor([2.0, 4.0, fill, fill])
    assert difference(other, masked) == largest_gap(other, masked) == 0.25
    assert difference(masked, masked) == largest_gap(masked, masked) == 0.0
    assert difference(torch.tensor([1.0, 4.0, fill, 2 * fill]), masked) >= 1 or fill == -math.inf
    assert largest_gap(masked[:3], masked) == math.inf


MASKED_SCORES = """
import threading
import torch

class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.a, self.out = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)

    def forward(self, x):
        with self.lock:
            scores = self.out(self.a(x).relu())
        return scores.masked_fill(torch.arange(4) > 1, FILL)
"""


@pytest.mark.parametrize("fill", [-1e9, -math.inf])
def test_a_network_that_masks_its_scores_and_holds_a_lock_is_cut_and_measured(
    fill: float, tmp_path: Path
) -> None:
    code = tmp_path / "masked_scores.py"
    code.write_text(MASKED_SCORES.replace("FILL", f"float('{fill}')"))
    origin = regrow.ModelOrigin(f"{code}:Scores")
    options = {"parameters": 0.6, "batches": (1,), "origin": origin}
    cut = regrow.compress(origin.build(), "1x6", **options)
    assert cut.proof.ok
    assert min(cut.proof.sensitivity.values()) > 1e-2
    card = cut.save(tmp_path / "small")
    assert [(speed.batch, speed.why) for speed in card.speeds] == [(1, None)]


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
