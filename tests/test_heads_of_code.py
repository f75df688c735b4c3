"""Attention heads that code counts in its own ways, and numbers beside them that count others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import random_mask
from regrow.surgery import Trace, trace, verify

TOKENS = (1, 6, 10)


class HeadsFirst(nn.Module):
    """Each head's query, key and value lie side by side, and the result is as wide as the input."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).view(*x.shape[:2], self.num_heads, 3 * self.head_dim)
        q, k, v = packed.transpose(1, 2).chunk(3, -1)
        met = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(met.transpose(1, 2).reshape(x.shape))
        return result


class Blocks(nn.Module):
    """Attention within blocks of as many places as there are heads, each told by numbers."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.block, self.rows, self.inner = heads, heads, heads, width
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        blocks = x.reshape(batch * (places // self.block), self.rows, -1)
        packed = self.qkv(blocks).view(len(blocks), self.block, 3, self.num_heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        met = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        result: Tensor = self.out(met.reshape(batch, places, self.inner))
        return result


class Biased(nn.Module):
    """A table of biases whose shape stands in a list, beside as many places as a head is wide."""

    def __init__(self, width: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.bias_shape = heads, (6, 6, heads)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(36, heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, places, _ = x.shape
        packed = self.qkv(x).view(batch, places, 3, self.num_heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table.view(self.bias_shape).permute(2, 0, 1)
        met = ((q @ k.transpose(-2, -1)) * 0.4 + bias).softmax(-1) @ v
        result: Tensor = self.out(met.transpose(1, 2).flatten(2))
        return result


class Talking(nn.Module):
    """Probabilities of heads are mixed, so that queries and values have heads of their own."""

    def __init__(self, width: int = 12, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.inner = heads, width
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.before, self.after = nn.Conv2d(heads, heads, 1), nn.Conv2d(heads, heads, 1)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        likely = self.after(self.before((q @ k.transpose(-2, -1)) * 0.6).softmax(-1))
        met = (likely @ v).transpose(1, 2).reshape(*x.shape[:2], self.inner)
        result: Tensor = self.out(met)
        return result


class Outlook(nn.Module):
    """Each place attends to its neighbours, which are laid beside each other and added up again."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads = heads
        self.v, self.attend = nn.Linear(width, width), nn.Linear(width, 81 * heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        maps = self.v(x).transpose(1, 2).reshape(batch, width, 2, 3)
        v = F.unfold(maps, 3, padding=1).reshape(batch, self.num_heads, -1, 9, places)
        likely = self.attend(x).reshape(batch, places, self.num_heads, 9, 9).transpose(1, 2)
        met = likely.softmax(-1) @ v.permute(0, 1, 4, 3, 2)
        met = met.permute(0, 1, 4, 3, 2).reshape(batch, width * 9, places)
        met = F.fold(met, (2, 3), 3, padding=1).flatten(2).transpose(1, 2)
        result: Tensor = self.out(met)
        return result


class Single(nn.Module):
    """One head, whose queries, keys and values are laid out by a number of its width."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.head_dim, self.scaling = width, width**-0.5
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        met = (q @ k.transpose(2, 3) * self.scaling).softmax(-1) @ v
        result: Tensor = self.out(met.transpose(1, 2).reshape(*x.shape[:-1], -1))
        return result


class Residual(nn.Module):
    """Tokens go into a stream, which an attention is added to."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.embed, self.part, self.head = nn.Linear(10, 12), part, nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        result: Tensor = self.head(x + self.part(x))
        return result


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, int]]]] = {
    "heads first, of the stream": (HeadsFirst, {"embed": ("stream", 3)}),
    "blocks of as many places": (
        Blocks, {"embed": ("stream", 12), "part.qkv": ("head", 3)},
    ),
    "a shape in a list": (Biased, {"embed": ("stream", 12), "part.qkv": ("head", 2)}),
    "talking heads": (Talking, {"embed": ("stream", 12), "part.q": ("head", 4)}),
    "neighbours": (Outlook, {"embed": ("stream", 3)}),
    "one head": (Single, {"embed": ("stream", 12), "part.q": ("linear", 12)}),
}  # fmt: skip


def cut(kind: str) -> tuple[nn.Module, Trace]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Residual(KINDS[kind][0]()).eval()
    return net, trace(net, TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_cut_as_if_silenced(kind: str) -> None:
    net, found = cut(kind)
    groups: Any = {name: (g.kind, g.size) for name, g in found.groups.items()}
    assert groups == KINDS[kind][1]
    for seed in range(2):
        mask = random_mask(found, seed=seed, kinds=("stream", "head", "linear"))
        proof = verify(net, mask, found)
        assert proof.ok, str(proof)
