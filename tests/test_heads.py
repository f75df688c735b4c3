"""Attention heads, equal parts of a split, and numbers that modules keep of their widths."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import random_mask
from regrow.surgery import shrink, trace, verify
from regrow.surgery.mask import Mask
from regrow.surgery.trial import Trials

TOKENS = (1, 6, 10)


class Attention(nn.Module):
    """Multi-head attention; ``form`` says how projections are laid out and heads are counted."""

    def __init__(self, form: str, width: int = 12, heads: int = 3, shared: int = 0) -> None:
        super().__init__()
        self.form, self.num_heads, self.head_dim = form, heads, width // heads
        self.all_head_size = width
        self.scale = self.head_dim**-0.5
        few = (shared or heads) * self.head_dim
        if "packed" in form:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (
                nn.Linear(width, width),
                nn.Linear(width, few),
                nn.Linear(width, few),
            )
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        inner = width if "of the stream" in self.form else self.all_head_size
        size = width // self.num_heads if "of the stream" in self.form else self.head_dim
        if "packed" in self.form:
            packed = self.qkv(x).reshape(batch, places, 3, self.num_heads, size)
            q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x).view(batch, places, -1, self.head_dim).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        if "rotary" in self.form:
            half = self.head_dim // 2
            q, k = (torch.cat([-t[..., half:], t[..., :half]], -1) + t * 0.5 for t in (q, k))
        if "complex" in self.form:
            angles = torch.arange(places)[:, None] * torch.ones(self.head_dim // 2)
            turns = torch.polar(torch.ones_like(angles), angles)
            q, k = (torch.view_as_complex(t.reshape(*t.shape[:3], -1, 2)) for t in (q, k))
            q, k = (torch.view_as_real(t * turns).flatten(-2).to(x.dtype) for t in (q, k))
        if k.shape[1] < q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        if "by hand" in self.form:
            met = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            met = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(met.transpose(1, 2).reshape(batch, places, inner))
        return result


class SharedKey(nn.Module):
    """Several queries' heads and one key and value for all, in one projection, as in Falcon."""

    def __init__(self, width: int = 16, heads: int = 4, *, by: str = "lists") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.by = heads, width // heads, by
        self.qkv, self.out = nn.Linear(width, width + 2 * self.head_dim), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).view(*x.shape[:2], self.num_heads + 2, self.head_dim)
        if self.by == "lists":
            q, k, v = packed[..., :-2, :], packed[..., [-2], :], packed[..., [-1], :]
        elif self.by == "numbers":
            q = packed[..., : self.num_heads, :]
            k, v = (packed[..., i, :].unsqueeze(2) for i in (-2, -1))
        else:  # a place that is another one without some heads
            q, k, v = packed[..., :4, :], packed[..., [4], :], packed[..., [5], :]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        met = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
        result: Tensor = self.out(met.transpose(1, 2).reshape(*x.shape[:2], -1))
        return result


class Windowed(nn.Module):
    """Attention within windows of as many places as there are heads, as in a small Swin."""

    def __init__(self, heads: int = 3) -> None:
        super().__init__()
        self.num_heads, self.all_head_size = heads, 12
        self.window_size = [heads, heads]
        self.q, self.k, self.v = (nn.Linear(10, 12) for _ in range(3))
        self.out = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, self.window_size[0], x.shape[-1])
        q, k, v = (
            layer(x).view(len(x), self.window_size[1], self.num_heads, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        met = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        scores: Tensor = self.out(met.reshape(1, -1, self.all_head_size))
        return scores


class Counting(nn.Module):
    """Scales channels by a vector that it views as an attribute says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = [width, 1]
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x.transpose(1, 2) * self.scale.view(self.shape)).transpose(1, 2)


class Transposed(nn.Module):
    """Linear layer whose weight lies the other way round, as in GPT-2."""

    def __init__(self, features: int, inputs: int) -> None:
        super().__init__()
        self.features = features
        self.weight = nn.Parameter(torch.randn(inputs, features))
        self.bias = nn.Parameter(torch.randn(features))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.features)


class Powers(nn.Module):
    """Scales by a number that is, by chance, that of the channels."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh() * self.power


class Halves(nn.Module):
    """Keeps one half of the channels and works on the other, as in C2f and Res2Net."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.size, self.how = width // 2, how
        self.inner = nn.Linear(width // 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            first, second = x.chunk(2, -1)
        elif self.how == "split":
            first, second = torch.split(x, self.size, -1)
        else:
            first, second = x[..., : self.size], x[..., self.size :]
        return torch.cat([first, self.inner(second)], -1)


class Tokens(nn.Module):
    """An embedding of tokens, a function of a part, and what reads it."""

    def __init__(
        self, part: nn.Module, call: Callable[[Any, Tensor], Tensor], width: int = 12
    ) -> None:
        super().__init__()
        self.embed, self.part, self.head = nn.Linear(10, 12), part, nn.Linear(width, 4)
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.head(self.call(self.part, self.embed(x))).mean(1)


def residual(part: Any, x: Tensor) -> Tensor:
    result: Tensor = x + part(x)
    return result


def of_itself(part: Any, x: Tensor) -> Tensor:
    result: Tensor = x + part(x, x, x)[0]
    return result


def plain(part: Any, x: Tensor) -> Tensor:
    result: Tensor = part(x)
    return result


# Groups as name -> (kind, size).
KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, int]]]] = {
    "separate projections": (
        lambda: Tokens(Attention("separate"), residual),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
    ),
    "packed projections": (
        lambda: Tokens(Attention("packed"), residual),
        {"embed": ("stream", 12), "part.qkv": ("head", 3)},
    ),
    "attention by hand": (
        lambda: Tokens(Attention("packed by hand"), residual),
        {"embed": ("stream", 12), "part.qkv": ("head", 3)},
    ),
    "rotated by halves": (
        lambda: Tokens(Attention("rotary"), residual),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
    ),
    "rotated as complex numbers": (
        lambda: Tokens(Attention("complex"), residual),
        {"embed": ("stream", 12), "part.q": ("head", 3)},
    ),
    "as many heads as channels in each": (
        lambda: Tokens(nn.Sequential(nn.Linear(12, 16), Attention("packed", 16, 4)), plain, 16),
        {"embed": ("linear", 12), "part.0": ("linear", 16), "part.1.qkv": ("head", 4),
         "part.1.out": ("linear", 16)},
    ),
    "grouped queries": (
        lambda: Tokens(nn.Sequential(nn.Linear(12, 24), Attention("grouped", 24, 4, 2)), plain, 24),
        {"embed": ("linear", 12), "part.0": ("linear", 24), "part.1.q": ("head", 2),
         "part.1.out": ("linear", 24)},
    ),
    "heads counted by the width of the stream": (
        lambda: Tokens(Attention("packed of the stream by hand"), residual),
        {"embed": ("stream", 3)},
    ),
    "MultiheadAttention": (
        lambda: Tokens(nn.MultiheadAttention(12, 3, batch_first=True), of_itself),
        {"embed": ("stream", 3)},
    ),
    "TransformerEncoder": (
        lambda: Tokens(nn.TransformerEncoder(
            nn.TransformerEncoderLayer(12, 3, 20, batch_first=True), 2,
            enable_nested_tensor=False), plain),
        {"embed": ("stream", 3), "part.layers.0.linear1": ("linear", 20),
         "part.layers.1.linear1": ("linear", 20)},
    ),
    "attention to other tokens": (
        lambda: Tokens(nn.MultiheadAttention(12, 3, batch_first=True),
                       lambda m, x: x + m(x, x.flip(1), x.flip(1))[0]),
        {"embed": ("stream", 3)},
    ),
    "queries, keys and values of three sources": (
        lambda: Tokens(nn.MultiheadAttention(12, 3, batch_first=True, bias=False),
                       lambda m, x: x + m(x, x.flip(1), x * 2.0)[0]),
        {"embed": ("stream", 3)},
    ),
    "TransformerDecoder": (
        lambda: Tokens(nn.TransformerDecoder(
            nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), 1),
            lambda m, x: m(x, x.flip(1))),
        {"embed": ("stream", 3), "part.layers.0.linear1": ("linear", 20)},
    ),
    "Transformer": (
        lambda: Tokens(nn.Transformer(12, 4, 1, 1, 20, batch_first=True),
                       lambda m, x: m(x, x.flip(1))),
        {"embed": ("stream", 4), "part.encoder.layers.0.linear1": ("linear", 20),
         "part.decoder.layers.0.linear1": ("linear", 20)},
    ),
    "one key for all heads": (
        lambda: Tokens(nn.Sequential(nn.Linear(12, 16), SharedKey()), plain, 16),
        {"embed": ("linear", 12), "part.0": ("linear", 16), "part.1.qkv": ("head", 4),
         "part.1.out": ("linear", 16)},
    ),
    "one key for all heads, by numbers": (
        lambda: Tokens(nn.Sequential(nn.Linear(12, 16), SharedKey(by="numbers")), plain, 16),
        {"embed": ("linear", 12), "part.0": ("linear", 16), "part.1.qkv": ("head", 4),
         "part.1.out": ("linear", 16)},
    ),
    "one key for all heads, at a fixed place": (
        lambda: Tokens(nn.Sequential(nn.Linear(12, 16), SharedKey(by="places")), plain, 16),
        {"embed": ("linear", 12), "part.0": ("linear", 16), "part.1.out": ("linear", 16)},
    ),
    "windows of as many places as heads": (Windowed, {"q": ("head", 3)}),
    "chunk": (lambda: Tokens(Halves(12, "chunk"), plain),
              {"embed": ("linear", 6), "part.inner": ("linear", 6)}),
    "split by an attribute": (lambda: Tokens(Halves(12, "split"), plain),
                              {"embed": ("linear", 6), "part.inner": ("linear", 6)}),
    "slices by an attribute": (lambda: Tokens(Halves(12, "slice"), plain),
                               {"embed": ("linear", 6), "part.inner": ("linear", 6)}),
    "gate of two packed halves": (
        lambda: Tokens(nn.Linear(12, 16),
                       lambda m, x: (lambda a, b: F.silu(a) * b)(*m(x).chunk(2, -1)), 8),
        {"embed": ("linear", 12), "part": ("linear", 8)},
    ),
    "gate of two layers": (
        lambda: Tokens(nn.ModuleDict({"up": nn.Linear(12, 8), "gate": nn.Linear(12, 8)}),
                       lambda m, x: F.silu(m["gate"](x)) * m["up"](x), 8),
        {"embed": ("linear", 12), "part.gate": ("linear", 8)},
    ),
    "width in a list": (lambda: Tokens(Counting(12), plain), {"embed": ("linear", 12)}),
    "width in a number": (
        lambda: Tokens(nn.Sequential(Transposed(12, 12), nn.ReLU(), Transposed(8, 12)), plain, 8),
        {"embed": ("linear", 12), "part.0": ("linear", 12), "part.2": ("linear", 8)},
    ),
    "GRU that reads": (
        lambda: Tokens(nn.GRU(12, 12, batch_first=True), lambda m, x: m(x)[0]),
        {"embed": ("linear", 12), "part.weight_ih_l0": ("linear", 12)},
    ),
}  # fmt: skip


def made(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind][0]().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_network_is_cut_as_if_silenced(kind: str) -> None:
    net = made(kind)
    found = trace(net, TOKENS)
    assert {n: (g.kind, g.size) for n, g in found.groups.items()} == KINDS[kind][1]
    for seed in range(2):
        proof = verify(net, random_mask(found, seed=seed), found)
        assert proof.ok, str(proof)


@pytest.mark.parametrize(("width", "num_heads"), [(16, 4), (32, 4), (8, 2), (9, 3)])
def test_heads_are_counted_where_the_first_dimension_is_the_place(
    width: int, num_heads: int
) -> None:
    # Traced on one place, where attention chooses nothing: a trial has to see several.
    net = Tokens(nn.MultiheadAttention(width, num_heads), of_itself, width)
    net.embed = nn.Linear(10, width)
    found = trace(net, torch.randn(5, 2, 10))
    assert found.groups["embed"].size == num_heads
    kept = torch.arange(num_heads) > 0
    mask = Mask(unit="channel", kept={"embed": kept})
    assert shrink(net, mask, found).get_submodule("part").num_heads == num_heads - 1
    proof = verify(net, mask, found)
    assert proof.ok, str(proof)


def test_heads_and_what_counts_them_follow_and_the_scale_stays() -> None:
    net = made("packed projections")
    found = trace(net, TOKENS)
    part: Any = shrink(
        net, Mask(unit="channel", kept={"part.qkv": torch.tensor([True, False, True])}), found
    ).part
    assert (part.num_heads, part.head_dim, part.all_head_size) == (2, 4, 8)
    assert part.scale == 4**-0.5
    assert part.qkv.weight.shape == (24, 12)
    assert part.out.weight.shape == (12, 8)


def test_head_has_rows_of_all_three_projections_and_columns_of_the_last() -> None:
    (head,) = [g for g in trace(made("separate projections"), TOKENS).groups.values()
               if g.kind == "head"]  # fmt: skip
    assert [s.tensor for s in head.producers()] == [
        "part.q.weight",
        "part.k.weight",
        "part.v.weight",
    ]
    assert [s.units.tolist() for s in head.readers()] == [[0] * 4 + [1] * 4 + [2] * 4]


def test_key_value_head_goes_with_the_heads_of_its_queries() -> None:
    net = made("grouped queries")
    found = trace(net, TOKENS)
    small: Any = shrink(
        net, Mask(unit="channel", kept={"part.1.q": torch.tensor([False, True])}), found
    )
    assert small.part[1].q.out_features == 12
    assert small.part[1].k.out_features == small.part[1].v.out_features == 6


def test_numbers_that_are_no_widths_stay_as_they_are() -> None:
    """Whatever they equal: a kernel of three beside three channels, a table that code looks up."""
    pooled = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3), nn.Conv2d(3, 4, 1))
    found = trace(pooled, (1, 3, 8, 8))
    assert verify(pooled, random_mask(found), found).ok
    net = Tokens(Powers(12), plain)
    found = trace(net, TOKENS)
    assert {n: g.size for n, g in found.groups.items()} == {"embed": 12}
    small: Any = shrink(net, random_mask(found), found)
    assert small.part.power == 12
    assert verify(net, random_mask(found), found).ok


def test_parts_of_unequal_sizes_and_numbers_in_code_are_kept_whole() -> None:
    unequal = trace(Tokens(nn.Identity(), lambda m, x: x[..., :5].mean(-1, True) * x, 12), TOKENS)
    assert "'slice' divides it at fixed positions" in unequal.whole["embed"]
    fixed = trace(Tokens(nn.Identity(), lambda m, x: x[..., :6] * x[..., 6:], 6), TOKENS)
    assert "the network's own code depends on their number" in fixed.whole["embed"]


class Fixed(nn.Module):
    """Counts on sixteen channels, by a number that stands in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, 16)


def test_heads_of_one_code_are_found_together_beside_another_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []
    once = Trials._wrong

    def counted(*args: Any) -> Any:
        tried.append(len(args[2]))
        return once(*args)

    monkeypatch.setattr(Trials, "_wrong", counted)
    bound = [Attention("packed projections of the stream") for _ in range(8)]
    free = [Attention("packed projections") for _ in range(2)]
    fixed = [nn.Linear(12, 16), Fixed(), nn.Linear(16, 12)]
    net = nn.Sequential(nn.Linear(10, 12), *bound, *fixed, *free, nn.Linear(12, 7)).eval()
    found = trace(net, TOKENS)
    kinds = {name: (group.kind, group.size) for name, group in found.groups.items()}
    assert kinds.pop("0") == ("stream", 3)
    assert {name for name, kind in kinds.items() if kind == ("head", 3)} == {"12.qkv", "13.qkv"}
    assert len(tried) <= 25
    proof = verify(net, random_mask(found), found)
    assert proof.ok, str(proof)
