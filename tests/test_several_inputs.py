"""Networks of several inputs, by position and by name: traced, cut, proven and measured."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import ConfigError, TraceError
from regrow.models.inputs import Inputs, inputs_of

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


class Pictures(nn.Module):
    """Takes a list of images of any sizes, and settings by name, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, images: list[Tensor], more: Mapping[str, Tensor] | None = None) -> Tensor:
        seen = torch.stack([self.body(image[None]).relu().mean((0, 2, 3)) for image in images])
        scale = 1.0 if more is None else more["scale"]
        scores: Tensor = self.head(seen) * scale
        return scores


@pytest.mark.parametrize(
    "texts",
    [
        ["[3x8x8,3x9x7]"],
        ["images:[3x8x8,3x9x7]"],
        ["images:[3x8x8]", "more:[scale:1x1,other:2x3:int64:6]"],
    ],
)
def test_lists_and_mappings_are_stated_and_a_network_of_them_is_cut(texts: list[str]) -> None:
    inputs = Inputs.read(texts)
    assert inputs.to_json() == texts
    example = inputs.example()
    assert str(inputs_of(example)) == " ".join(texts)
    small = regrow.compress(Pictures(), " ".join(texts), sparsity=0.5, batches=(3,))
    assert small.proof.ok
    assert small.card.speeds[0].before is not None
    assert small.network.body.out_channels == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[3x8x8,", "--input must be"),
        ("[3x8x8]]", "--input must be"),
        ("[]", "--input must be"),
        ("[3x8x8,,3x8x8]", "--input must be"),
        ("[a:3x8x8,3x8x8]", "either all must have different names"),
        ("x:[a:1x2,a:1x3]", "either all must have different names"),
        ("[3x8x8:float31]", "Unknown kind of number"),
    ],
)
def test_a_list_that_is_none_is_one_message(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inputs.read(text)
