"""Networks of several inputs, by position and by name: traced, cut, proven and measured."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import TraceError

SHAPE = (1, 3, 6, 6)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(3, 8, 3, padding=1)
        self.words = nn.Embedding(10, 5)
        self.head = nn.Linear(8 + 5, 4)

    def forward(self, x: Tensor, y: Tensor, tokens: Tensor) -> Tensor:
        seen = (self.image(x) + self.other(y)).relu().mean((2, 3))
        scores: Tensor = self.head(torch.cat([seen, self.words(tokens).mean(1)], dim=1))
        return scores


TENSORS = (torch.zeros(SHAPE), torch.zeros(SHAPE), torch.arange(4)[None])
NAMED = dict(zip(("x", "y", "tokens"), TENSORS, strict=True))


@pytest.mark.parametrize("example", [TENSORS, list(TENSORS), NAMED], ids=["tuple", "list", "dict"])
def test_a_network_of_several_inputs_is_cut_and_proven(example: Any) -> None:
    torch.manual_seed(0)
    net = TwoInputs()
    groups = regrow.trace(net, example)
    group, words = groups.groups.values()
    assert (words.name, words.size) == ("words", 5)
    assert {slot.tensor for slot in group.producers()} >= {"image.weight", "other.weight"}
    assert groups.unaccounted(net) == ()
    mask = regrow.Mask(unit="channel", kept={group.name: torch.arange(8) % 2 == 0})
    small = regrow.shrink(net, mask, groups)
    assert regrow.verify(net, mask, groups).ok
    inputs = [torch.randn(SHAPE), torch.randn(SHAPE), TENSORS[2]]
    silenced = regrow.silence(net, mask, groups)
    assert torch.allclose(small(*inputs), silenced(*inputs), atol=1e-5)
    before, after = regrow.measure(net, example), regrow.measure(small, groups.example)
    assert before.macs == 2 * 8 * 3 * 9 * 36 + 13 * 4
    assert after.macs == 2 * 4 * 3 * 9 * 36 + 9 * 4


@pytest.mark.parametrize("example", [TENSORS[:2], {"x": TENSORS[0]}])
def test_missing_inputs_are_told(example: tuple[Tensor, ...] | Mapping[str, Tensor]) -> None:
    with pytest.raises(TraceError, match=r"fails on an example of shape \(1, 3, 6, 6\).*missing"):
        regrow.trace(TwoInputs(), example)
