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
from regrow.surgery.assumptions import Assumptions
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

    def __init__(self, bias: Any = None, **parts: Any) -> None:
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


class Shifted(nn.LayerNorm):
    """A layer norm whose weight is how far its scale is from one, as in Nemotron."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Places(nn.Module):
    """A table of positions, of which all but the first are resized, as for larger images."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 9, 12))

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.table[:, :1], self.table[:, 1:].reshape(1, 2, 4, -1)
        rest = F.interpolate(rest.permute(0, 3, 1, 2), size=(1, 5), mode="bilinear")
        return x + torch.cat([first, rest.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def added_at_once(m: Any, x: Tensor, bias: Tensor) -> Tensor:
    """Attend with scores that are added to something in the same operation, as in BLOOM."""
    q, k, v = (m.split(layer(x)).flatten(0, 1) for layer in (m.q, m.k, m.v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(-1)
    met = (scores @ v).view(len(x), -1, x.shape[1], m.head_dim)
    result: Tensor = x + m.out(met.transpose(1, 2).flatten(2))
    return result


class Packed(nn.Module):
    """Packed projections with fewer keys than queries, sliced where settings say, as in Phi-3."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.head_dim, self.few = SimpleNamespace(heads=6), 2, 3
        self.qkv, self.out = nn.Linear(12, 24), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        packed, first = self.qkv(x), self.config.heads * self.head_dim
        second = first + self.few * self.head_dim
        parts = packed[..., :first], packed[..., first:second], packed[..., second:]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        q = torch.cat([q[..., :2] * 2, q[..., 2:]], -1)  # of which none are left
        k, v = (part.repeat_interleave(2, 1) for part in (k, v))
        met = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = x + self.out(met.transpose(1, 2).flatten(2))
        return result


class Remembers(nn.Module):
    """Attention with a bias for each head and distance, kept once it is looked up, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.biases, self.bias_cache = nn.Parameter(torch.randn(3, 6)), dict[str, Tensor]()
        self.register_buffer("places", (torch.arange(6) - torch.arange(6)[:, None]).abs())

    def forward(self) -> Tensor:
        if "cpu" not in self.bias_cache:
            self.bias_cache["cpu"] = self.biases[:, self.places]  # type: ignore[index]
        return self.bias_cache["cpu"]


class Einsums(nn.Module):
    """Attention whose weights have a dimension for heads, and keys of positions, as in XLNet."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "r", "v", "out"):
            setattr(self, name, nn.Parameter(torch.randn(12, 3, 4)))
        self.bias = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("places", torch.randn(6, 12))

    def forward(self, x: Tensor) -> Tensor:
        m: Any = self
        q, k, v = (torch.einsum("bth,hnd->btnd", x, weight) for weight in (m.q, m.k, m.v))
        keys = k + torch.einsum("bth,hnd->btnd", m.places[None], m.r)
        scores = torch.einsum("bqnd,bknd->bnqk", q + m.bias, keys) * 0.5
        met = torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), v)
        return x + torch.einsum("bqnd,hnd->bqh", met, m.out)


class AtMost(nn.Module):
    """Cuts off places beyond the most there may be, of which there are as many as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.lists = 12, [12, 7]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.most].relu()[:, : self.lists[0]]


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
    "scale that is computed": (
        lambda: Net(lambda m, x: m.norm(x), norm=Shifted(12)),
        {"embed": ("linear", 12)},
    ),
    "positions that are resized": (
        lambda: Net(lambda m, x: m.places(x).relu(), places=Places()),
        {"embed": ("linear", 12)},
    ),
    "scores added at once": (
        lambda: Net(
            lambda m, x: added_at_once(m.part, x, m.part.bias),
            part=Heads(bias=nn.Parameter(torch.randn(3, 1, 6))),
        ),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
    ),
    "parts as wide as settings say": (
        lambda: Net(lambda m, x: m.part(x), part=Packed()),
        {"embed": ("stream", 12), "part.qkv": ("head", 3)},
    ),
    "biases that are remembered": (
        lambda: Net(
            lambda m, x: m.part(x), part=Heads(lambda m, q: m.remembered(), remembered=Remembers())
        ),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
    ),
    "weights with a dimension for heads": (
        lambda: Net(lambda m, x: m.part(x), part=Einsums()),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
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
    assert "the scale of attention depends on its width" in found.whole["q"]


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


def test_bias_that_hangs_on_the_number_of_heads_keeps_them_whole() -> None:
    """Slopes that are another constant for each head, as those of ALiBi are."""
    slopes = torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1)
    found = trace(Net(lambda m, x: added_at_once(m.part, x, slopes), part=Heads()), TOKENS)
    assert groups(found) == {"embed": ("stream", 12)}
    assert "it is combined with data that is kept whole" in found.whole["part.q"]


def test_number_that_equals_a_width_by_chance_stays() -> None:
    net: Any = Net(lambda m, x: m.part(x), part=AtMost()).eval()
    found = trace(net, TOKENS)
    small: Any = shrink(net, Mask(unit="channel", kept={"embed": torch.arange(12) < 3}), found)
    assert (small.part.most, small.part.lists) == (12, [12, 7])
    long = torch.randn(1, 14, 10)
    assert small(long).shape == net(long).shape


def test_guess_that_keeps_heads_whole_is_undone() -> None:
    """All fits that goes with what is whole: heads that read a stream which is returned."""
    rows = frozenset({"q.weight"})
    assumed = Assumptions(frozenset(), coupled=rows, guesses=[], guessed=rows)
    trials: Any = SimpleNamespace(wrong=lambda *_: None)
    found: Any = SimpleNamespace(follow=lambda _: SimpleNamespace(groups={}))
    assert assumed.hold(trials, found) is None
    assert not assumed.coupled


def test_what_was_remembered_before_the_trace_is_left_alone() -> None:
    net: Any = made("biases that are remembered")
    expected = net(torch.ones(TOKENS))
    known = net.part.remembered.bias_cache
    found = trace(net, TOKENS)
    assert groups(found) == KINDS["biases that are remembered"][1]
    assert net.part.remembered.bias_cache is known
    assert torch.equal(net(torch.ones(TOKENS)), expected)
