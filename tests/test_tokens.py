"""Kinds of code that networks over tokens have: what is cut there, and that it is exact."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import random_mask
from mutants import wrongly
from regrow.surgery import Trace, shrink, trace, verify
from regrow.surgery.mask import Mask

TOKENS = (1, 6, 10)


class Net(nn.Module):
    """An embedding of tokens, a function of some parts, and what reads it."""

    def __init__(
        self, call: Callable[[Any, Tensor], Tensor], width: int = 12, **parts: Any
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(10, 12), nn.Linear(width, 4)
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.call(self, self.embed(x)))
        return scores


class Heads(nn.Module):
    """Attention of several heads; ``bias`` makes what is added to the scores."""

    bias: Any

    def __init__(self, bias: Callable[[Any, Tensor], Tensor] | None = None, **parts: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.bias = 3, 4, bias
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        for name, part in parts.items():
            setattr(self, name, part)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(-2, -3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = q @ k.transpose(-1, -2) * 0.5
        if self.bias is not None:
            scores = scores + self.bias(self, q)
        met = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        result: Tensor = x + self.out(met)
        return result


class Table(nn.Module):
    """A table of positions, normalised as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.norm = nn.Embedding(6, 8), nn.LayerNorm(8)

    def forward(self) -> Tensor:
        rows: Tensor = self.norm(self.places.weight)
        return rows


def by_places(m: Any, q: Tensor) -> Tensor:
    keys: Tensor = m.split(m.project(m.table()))
    return q @ keys.transpose(-1, -2)


class Reduced(nn.Module):
    """A map that is made smaller, and laid out by the width of what came in, as in Segformer."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(12, 12, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        small = self.reduce(x.transpose(1, 2).reshape(batch, width, 2, places // 2))
        rows: Tensor = small.reshape(batch, width, -1).transpose(1, 2)
        return x + rows.repeat_interleave(places, 1)


class Settings:
    """Numbers of widths that several modules read."""

    def __init__(self) -> None:
        self.heads, self.widths, self.classes = 3, [12, 4], 4


class ByConfig(nn.Module):
    """Attention that counts its heads by settings, which are no module's own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.head_dim = config, 4
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.config.heads, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        met = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.out(met.transpose(1, 2).flatten(2))
        return result


class Last(nn.Module):
    """Lays tokens out by a width that stands in settings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.config.widths[0]).relu()


def by_config(config: Any) -> nn.Module:
    return Net(
        lambda m, x: m.last(m.second(m.first(x))),
        first=ByConfig(config), second=ByConfig(config), last=Last(config),
    )  # fmt: skip


def alone(m: Any, x: Tensor, **how: Any) -> Tensor:
    met: Tensor = F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), **how)
    return met


def single_head(**how: Any) -> nn.Module:
    layers: Any = {name: nn.Linear(12, 12) for name in "qkv"}
    return Net(lambda m, x: alone(m, x, **how), **layers)


# Groups as name -> (kind, size).
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, int]]]] = {
    "cache that begins empty": (
        lambda: Net(lambda m, x: torch.cat([torch.tensor([]), x], -2).relu()),
        {"embed": ("linear", 12)},
    ),
    "channel taken for its shape": (
        lambda: Net(lambda m, x: x.relu() * len(x[:, :, -1].shape)),
        {"embed": ("linear", 12)},
    ),
    "single head with a scale": (
        lambda: single_head(scale=0.5),
        {"embed": ("linear", 12), "q": ("linear", 12), "v": ("linear", 12)},
    ),
    "table that layers run on": (
        lambda: Net(
            lambda m, x: m.part(x),
            part=Heads(by_places, table=Table(), project=nn.Linear(8, 12)),
        ),
        {"embed": ("stream", 12), "part.q": ("head", 3), "part.table.places": ("linear", 8)},
    ),
    "map as wide as what came in": (
        lambda: Net(lambda m, x: m.part(x), part=Reduced()),
        {"embed": ("stream", 12)},
    ),
    "settings of several modules": (
        lambda: by_config(Settings()),
        {"embed": ("stream", 12), "first.q": ("head", 3), "second.q": ("head", 3)},
    ),
}  # fmt: skip


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind][0]().eval()


def groups(found: Trace) -> dict[str, tuple[str, int]]:
    return {name: (group.kind, group.size) for name, group in found.groups.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_network_is_cut_as_if_silenced(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = made(kind)
    found = trace(net, TOKENS)
    assert groups(found) == KINDS[kind][1]
    mask = random_mask(found, kinds=("linear", "stream", "head"))
    proof = verify(net, mask, found)
    assert proof.ok, str(proof)
    assert min(proof.sensitivity.values()) > 1e-3
    mutant = wrongly("reader", found, mask, seed=0)
    assert mutant is not None
    mutant.at_work(monkeypatch)
    assert not verify(net, mask, found, sensitivity=proof.sensitivity).ok


def test_scale_that_attention_computes_keeps_a_single_head_whole() -> None:
    found = trace(single_head(), TOKENS)
    assert groups(found) == {"embed": ("linear", 12), "v": ("linear", 12)}
    assert "the scale of attention counts it" in found.whole["q"]


@pytest.mark.parametrize("settings", [Settings, lambda: SimpleNamespace(**vars(Settings()))])
def test_settings_are_copied_for_the_module_that_is_cut(settings: Callable[[], Any]) -> None:
    config = settings()
    net: Any = by_config(config).eval()
    found = trace(net, TOKENS)
    kept = {"first.q": torch.tensor([True, False, True]), "embed": torch.arange(12) > 4}
    small: Any = shrink(net, Mask(unit="channel", kept=kept), found)
    assert (small.first.config.heads, small.second.config.heads) == (2, 3)
    assert small.last.config.widths == [7, 4]
    assert (config.heads, config.widths) == (3, [12, 4])
    assert net.first.config is net.second.config is config
    assert small.first.config.classes == 4  # which its code does not read
