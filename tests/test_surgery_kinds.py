"""Layers that networks for images have, each in the smallest network that holds one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import half, is_caught, without_trials
from regrow.surgery import Trace, rules, statistics, trace, verify
from regrow.surgery.assumptions import Assumptions, Followed
from regrow.surgery.colours import Paint
from regrow.surgery.painter import Painter
from regrow.surgery.tape import Ref

SHAPE = (1, 3, 8, 8)
OUT = {"out": "output"}


class Between(nn.Module):
    """A convolution, something, and a convolution."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.make, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.between(self.make(x)))
        return scores

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ByItsMean(Between):
    """Responses divided by their mean over channels, as in ConvNeXt V2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(0.1 * torch.randn(8)) for _ in range(2))

    def between(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        size = size / (size.mean(dim=1, keepdim=True) + 1e-6)
        shape = (1, -1, 1, 1)
        return x + torch.addcmul(self.bias.view(shape), self.weight.view(shape), x * size)


class ByAnothersMean(Between):
    """Responses divided by a mean of something else."""

    def between(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(dim=1, keepdim=True) + 1.0)


class Heads(nn.Module):
    """Heads that are a batch to a convolution and a pool, as in MViT."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.make, self.out = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 2, 1)
        self.each = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        n, _, h, w = x.shape
        x = x.reshape(n * self.heads, -1, h, w)
        x = nn.functional.max_pool2d(self.each(x), 2)
        scores: Tensor = self.out(x.reshape(n, -1, h // 2, w // 2))
        return scores


class Stacked(nn.Module):
    """Tokens of several sources, added up by filters of size 1 along their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 2)
        self.sum = nn.Conv1d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[:, 0]
        both = torch.stack([self.a(x), self.b(x)], 1)
        scores: Tensor = self.out(self.sum(both).squeeze(1).relu())
        return scores


class Neighbours(Stacked):
    """Filters that take several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Conv1d(2, 1, 3, padding=1)


class WrittenOver(Between):
    """Channels of which some places are overwritten with others'."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x)
        y[:, :, 2:] = self.other(x)[:, :, 2:].sigmoid()
        scores: Tensor = self.out(y)
        return scores


class Radix(nn.Module):
    """Groups of a convolution whose outputs are added up, as in ResNeSt."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Conv2d(3, 12, 3), nn.Conv2d(8, 2, 1)
        self.each, self.norm = nn.Conv2d(12, 16, 3, groups=2), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.each(self.make(x).relu())).relu()
        scores: Tensor = self.out(x.view(len(x), 2, -1, *x.shape[2:]).sum(1))
        return scores


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones, which reads rows of an image."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.make, self.layer = nn.Linear(24, layer.input_size), layer
        width = layer.proj_size or layer.hidden_size
        self.out = nn.Linear(width * (1 + layer.bidirectional), 2)
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        places, states = self.layer(self.make(x.transpose(1, 2).flatten(2)).relu())
        last = states[0] if isinstance(states, tuple) else states
        scores: Tensor = self.out(places) + self.last(last[-1])[:, None]
        return scores


class Remembering(Recurrent):
    """A recurrent layer whose first state is given."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(6, 8, batch_first=True))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.make(x.transpose(1, 2).flatten(2))
        first = torch.ones(1, len(x), 8)
        scores: Tensor = self.out(self.layer(rows, first)[0])
        return scores


def _recurrent(kind: type[nn.LSTM] | type[nn.GRU], **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: Recurrent(kind(6, 8, batch_first=True, **arguments))


ENDS = {"last": "output", **OUT}
UNITS = {"make": 6, "layer.weight_ih_l0": 8}
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, str]]] = {
    "divided by its mean": (ByItsMean, {"make": 8}, OUT),
    "divided by another mean": (ByAnothersMean, {}, {"make": "mean or variance over its", **OUT}),
    "heads in the batch": (Heads, {"make": 4}, {"each": "the same for all channels", **OUT}),
    "filters along channels": (
        Stacked,
        {"a": 8},
        {"sum": "the same for all channels", **OUT},
    ),
    "filters over channels": (
        Neighbours,
        {},
        {**dict.fromkeys("ab", "slides along the channels"), "sum": "slides along", **OUT},
    ),
    "written over": (WrittenOver, {"make": 8}, OUT),
    "groups that are added up": (Radix, {"make": 6, "each": 8}, OUT),
    "LSTM": (_recurrent(nn.LSTM, bidirectional=True, num_layers=2), UNITS, ENDS),
    "LSTM with projections": (
        _recurrent(nn.LSTM, proj_size=4, num_layers=2),
        {**UNITS, "layer.weight_hr_l0": 4},
        ENDS,
    ),
    "GRU": (_recurrent(nn.GRU, bias=False), UNITS, ENDS),
    "RNN": (lambda: Recurrent(nn.RNN(8, 8, batch_first=True)), UNITS | {"make": 8}, ENDS),
    "first state": (
        Remembering,
        {},
        {"make": "initial state", "layer": "initial state", "last": "not used", **OUT},
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # which oneDNN does not know
@pytest.mark.parametrize("name", CASES)
def test_kind_is_cut_right_or_kept_whole_with_a_reason(name: str) -> None:
    make, sizes, whole = CASES[name]
    torch.manual_seed(0)
    net = make().eval()
    found = trace(net, torch.randn(SHAPE))
    assert {n: g.size for n, g in found.groups.items()} == sizes
    assert found.whole.keys() == whole.keys()
    for layer, reason in whole.items():
        assert reason in found.whole[layer]
    for first in range(2) if sizes else ():
        proof = verify(net, half(found, first), found)
        assert proof.ok, str(proof)


def _any_mean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(statistics, "_note", lambda *_: None)


def _silent(patch: pytest.MonkeyPatch) -> None:
    """Take what a filter or a copy leaves of silent channels for zero."""
    rule = rules.RULES["aten::copy_"]

    def copy(painter: Any, node: Any) -> None:
        rule(painter, node)
        painter.put(node, replace(painter.of(Ref(node.outputs[0])), clean=True))

    patch.setitem(rules.RULES, "aten::copy_", copy)


def _along_all(patch: pytest.MonkeyPatch) -> None:
    def beside(painter: Any, node: Any, source: Paint) -> bool:
        painter.put(node, Paint(source.ids, painter.shape(node.outputs[0])))
        for ref in node.args[1:3]:
            painter.fix(ref, "")
        return True

    patch.setattr(rules, "_filter_beside", beside)


def _divides(assumed: Assumptions, _: Any, found: Followed) -> Trace | None:
    """Assume that no group of a convolution goes, and believe all else."""
    divided = assumed.divide(found.trace, found.trace.groups)
    return None if divided else found.follow(assumed.choices)


def _other_parts(patch: pytest.MonkeyPatch) -> None:
    """Cut other channels of one group than of another."""
    read = Painter.read

    def turned(painter: Painter, weight: Any, dim: int, ids: Tensor, source: Paint) -> None:
        read(painter, weight, dim, ids.flip(0) if weight.name == "each.weight" else ids, source)

    patch.setattr(Painter, "read", turned)
    patch.setattr(Assumptions, "hold", _divides)


def _other_rows(patch: pytest.MonkeyPatch) -> None:
    """Cut rows of other units than those that are read."""
    unite = Painter.unite

    def turned(painter: Painter, a: Tensor, b: Tensor) -> Tensor:
        return unite(painter, a, b.flip(0) if a.dim() == 2 else b)

    patch.setattr(Painter, "unite", turned)


@pytest.mark.parametrize(
    ("make", "mutate"),
    [
        (ByItsMean, _any_mean),
        (WrittenOver, _silent),
        (Heads, _along_all),
        (Neighbours, _along_all),
        (_recurrent(nn.LSTM), _other_rows),
        (Radix, _other_parts),
    ],
)
def test_the_proof_catches_wrong_rules(
    make: Callable[[], nn.Module], mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    torch.manual_seed(0)
    net = make().eval()
    with without_trials() as patch:
        mutate(patch)
        assert is_caught(net, SHAPE)
