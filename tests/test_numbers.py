"""Numbers in modules: which of them change with a width, and which only equal it."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutting import half
from regrow.surgery import Trace, shrink, silence, trace, verify
from regrow.surgery.mask import Mask

SEQUENCE = (1, 5, 6)


def cut(net: nn.Module, example: Any, mask: Mask | None = None) -> tuple[Any, Any, Trace]:
    """Return the cut network, the silenced one and the trace, and check that the cut is proven."""
    found = trace(net.eval(), example)
    mask = mask or half(found)
    assert verify(net, mask, found).ok
    return shrink(net, mask, found), silence(net, mask, found), found


class Detector(nn.Module):
    """Two of its strides equal widths, and only ``decode`` reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.strides, self.inner = [8, 16, 32], 32
        self.a, self.b, self.out = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        result: Tensor = self.out(_flat(self, x).view(x.shape))
        return result

    def decode(self, boxes: Tensor) -> list[Tensor]:
        return [boxes * stride for stride in self.strides]


def _flat(module: Any, x: Tensor) -> Tensor:
    """Read a width of a module in code that is not the module's own."""
    flat: Tensor = x.view(len(x), module.inner, -1)
    return flat


def test_number_that_no_run_needs_stays_although_it_equals_a_width() -> None:
    small, silenced, _ = cut(Detector(), (1, 3, 4, 4))
    assert small.strides == [8, 16, 32]
    assert small.inner == 16  # needed by code that the class does not show
    boxes = torch.ones(2)
    for mine, its in zip(small.decode(boxes), silenced.decode(boxes), strict=True):
        assert torch.equal(mine, its)


class Most(nn.Module):
    """Its largest length is read by the module that contains it."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.layer = 8, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layer(x).relu()
        return result


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(11, 8), Most(), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens[:, -self.inner.most :])
        result: Tensor = self.out(self.inner(x).cumsum(1))
        return result


def test_number_that_an_outer_module_reads_stays_if_the_example_does_not_need_it() -> None:
    small, silenced, _ = cut(Text(), torch.ones(1, 4, dtype=torch.long))
    assert small.inner.most == 8
    tokens = torch.arange(7)[None]
    assert torch.allclose(small(tokens), silenced(tokens), atol=1e-5)


class OfTorch(nn.Module):
    """Modules of PyTorch, each of which holds the sizes of its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed = nn.Linear(6, 16), nn.Embedding(7, 16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.cells = nn.GRU(16, 8, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) + self.embed(torch.arange(5))
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        result: Tensor = self.out(self.cells(x)[0])
        return result


def test_numbers_of_pytorchs_modules_describe_their_parameters() -> None:
    small, _, _ = cut(OfTorch(), SEQUENCE)
    cells, attend = small.cells, small.attend
    assert (cells.input_size, cells.hidden_size) == (8, 4)
    assert (small.embed.embedding_dim, small.norm.normalized_shape) == (8, (8,))
    assert (attend.embed_dim, attend.num_heads, attend.head_dim) == (8, 2, 4)


class Attention(nn.Module):
    """Attention that counts by settings, which it shares with others."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.q, self.out = config, nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], self.config.heads, -1).transpose(1, 2)
        met = F.scaled_dot_product_attention(q, q, q, scale=self.config.scale)
        result: Tensor = self.out(met.transpose(1, 2).reshape(*x.shape[:2], self.config.dim))
        return result


class Shares(nn.Module):
    """Three attentions in a row that share settings with it, which other settings hold as well."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.outer = config, SimpleNamespace(inner=config)
        self.a, self.b, self.c = Attention(config), Attention(config), Attention(config)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 50:
            x = x[:, : self.config.dim * self.config.heads]
        result: Tensor = self.c(self.b(self.a(x)))
        return result


@dataclass(frozen=True)
class Frozen:
    """Settings that cannot be set."""

    dim: int = 8
    heads: int = 2
    scale: float = 1.0


class Kept:
    """Settings that have their own way of being copied: there is only one of them."""

    def __init__(self) -> None:
        self.dim, self.heads, self.scale = 8, 2, 1.0

    def __deepcopy__(self, memo: object) -> "Kept":
        return self


def plain() -> Any:
    return SimpleNamespace(**vars(Frozen()))


@pytest.mark.parametrize("settings", [plain, Frozen, Kept])
def test_modules_that_share_settings_still_share_them(settings: Callable[[], Any]) -> None:
    config = settings()
    small, _, _ = cut(Shares(config), SEQUENCE)
    assert small.config is small.a.config is small.b.config is small.c.config
    assert (small.config.dim, small.config.heads) == (4, 1)
    assert (config.dim, config.heads) == (8, 2)


def test_settings_that_a_setting_holds_are_shared_too() -> None:
    small, silenced, _ = cut(Shares(plain()), SEQUENCE)
    x = torch.randn(SEQUENCE)
    before = small(x)
    for net in (small, silenced):
        net.outer.inner.scale = 0.1
    assert not torch.allclose(small(x), before)
    assert torch.allclose(small(x), silenced(x), atol=1e-5)


def test_only_modules_that_need_other_numbers_get_their_own_settings() -> None:
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    mask = Mask(unit="channel", kept={"a.q": first, "b.q": second})
    small, _, _ = cut(Shares(plain()), SEQUENCE, mask)
    assert small.a.config is small.b.config
    assert small.config is small.c.config is small.outer.inner
    assert (small.a.config.dim, small.a.config.heads) == (4, 1)
    assert (small.c.config.dim, small.c.config.heads) == (8, 2)


class Constant(Attention):
    """An attention whose attributes cannot be replaced, before another one."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.inner = Attention(config)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" and name in vars(self):
            raise AttributeError(f"{name!r} is constant")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(super().forward(x))
        return result


class Scaled(nn.Module):
    """Multiplies by a setting that its attention counts heads by."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.inner = config, Attention(config)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) * self.config.heads
        return result


def test_module_that_computes_with_a_setting_keeps_it() -> None:
    small, _, _ = cut(Scaled(plain()), SEQUENCE)
    assert (small.config.heads, small.inner.config.heads) == (2, 1)


def test_module_that_refuses_other_settings_is_cut() -> None:
    small, _, _ = cut(Constant(plain()), SEQUENCE)
    assert small.config is small.inner.config
    mask = Mask(unit="channel", kept={"q": torch.tensor([True, False])})
    small, _, _ = cut(Constant(plain()), SEQUENCE, mask)
    assert (small.config.heads, small.inner.config.heads) == (1, 2)


class Size(enum.Enum):
    """Settings of which no copy can be made."""

    SMALL = 8

    def __init__(self, dim: int) -> None:
        self.dim, self.heads, self.scale = dim, 2, 1.0


class Derived:
    """Settings one of which cannot be set."""

    def __init__(self) -> None:
        self.width, self.heads, self.scale = 8, 2, 1.0

    @property
    def dim(self) -> int:
        return self.width


@pytest.mark.parametrize("settings", [lambda: Size.SMALL, Derived])
def test_settings_that_cannot_change_keep_a_layer_whole(settings: Callable[[], Any]) -> None:
    config = settings()
    found = trace(Attention(config).eval(), SEQUENCE)
    assert not found.groups
    assert "the network's own code depends on their number" in found.whole["q"]
    assert (config.dim, config.heads) == (8, 2)
