"""Places that the data chooses: channels pass, and are kept whole where they are chosen among."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.surgery import shrink, trace, verify
from regrow.surgery.mask import Mask

SHAPE = (1, 6, 3)


class Tokens(nn.Module):
    """Two layers, with a function of what passes between and of the input."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.function(self, self.a(x).relu(), x))
        return result


def experts(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Send each token to one of two experts, and add up what comes back."""
    rows = y[0]
    chosen = (x[0, :, 0] > 0).long()
    total = torch.zeros_like(rows)
    for number in range(2):
        own = torch.where(chosen == number)[0]
        hidden = F.linear(rows[own], m.up[number]).relu()
        total.index_add_(0, own, F.linear(hidden, m.down[number]))
    return total


def filled(m: Any, y: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[x[..., 0] > 0] = m.empty
    return y


def edges(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a graph's nodes send, along edges that the data names, and where it goes to."""
    ends = (x[0, :, :2] > 0).long()
    sent = y[0].index_select(0, ends[:, 0])
    return sent, ends[:, 1].view(-1, 1).expand_as(sent)


def messages(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Take the mean of messages, as a graph network does."""
    sent, places = edges(y, x)
    total = sent.new_zeros(2, sent.shape[1]).scatter_add_(0, places, sent)
    num = sent.new_zeros(2).scatter_add_(0, places[:, 0], sent.new_ones(len(sent)))
    return total * num.clamp(min=1).pow(-0.5).view(-1, 1)


def largest(m: Any, y: Tensor, x: Tensor) -> Tensor:
    sent, places = edges(y, x)
    result = sent.new_zeros(2, sent.shape[1])
    return result.scatter_reduce_(0, places, sent, "amax", include_self=False)


def filled_before(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Add messages to what is one in a fixed number of channels."""
    sent, places = edges(y, x)
    total = sent.new_zeros(2, sent.shape[1])
    total[:, :2].fill_(1.0)
    return total.scatter_add_(0, places, sent)


def scattered_apart(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Send each channel to a place of its own."""
    sent, places = edges(y, x)
    apart = (places + torch.arange(8)) % 2
    return sent.new_zeros(2, 8).scatter_add_(0, apart, sent)


def by_segments(m: Any, y: Tensor, x: Tensor) -> Tensor:
    return torch.segment_reduce(y[0], "mean", lengths=torch.tensor([2, 4]), axis=0)


def none_found(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Add the best tokens above a score that no token reaches, as a detector looks for objects."""
    scores = m.score(y)[0, :, 0]
    places = torch.where(scores > 1e9)[0]
    best = places[scores[places].topk(min(2, len(places)))[1]]
    return y + y[0][best].sum(0)


def none_to_classify(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Add a score of tokens that are looked for, and of which there are none."""
    found = y[0][torch.where(m.score(y)[0, :, 0] > 1e9)[0]]
    turned = found.unsqueeze(0).transpose(0, 1).flatten(1)
    added: Tensor = m.head(turned[:, None].select(1, 0)).sum(0)
    return y + added


def state_space(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Multiply each channel by each of four numbers, and sum over these, as Mamba does."""
    state = torch.zeros(1, y.shape[-1], 4)
    read = []
    for at in range(y.shape[1]):
        state = 0.5 * state + y[:, at, :, None] * m.write(x)[:, at, None, :]
        read.append((state @ m.read(x)[:, at, :, None])[..., 0])
    return torch.stack(read, 1)


def cached(m: Any, y: Tensor, x: Tensor) -> Tensor:
    """Copy channels into a cache, and read them there."""
    cache = torch.zeros(*y.shape).detach()
    cache.copy_(y)
    return cache


# Name -> what is between two layers, what it needs, the groups, and why 'a' is whole, or "".
KINDS: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, int], str]] = {
    "a token that is looked for": (
        lambda m, y, x: y[torch.arange(len(y)), x[..., 0].argmax(1)], {}, {"a": 8}, "",
    ),
    "messages of a graph": (messages, {}, {"a": 8}, ""),
    "the largest of messages": (largest, {}, {"a": 8}, ""),
    "messages added to no zeros": (filled_before, {}, {}, "kept whole"),
    "messages of each channel": (scattered_apart, {}, {}, "cannot be followed"),
    "the mean of segments": (by_segments, {}, {"a": 8}, ""),
    "messages by number": (
        lambda m, y, x: torch.zeros_like(y[0][:2]).index_reduce_(
            0, (x[0, :, 0] > 0).long(), y[0], "mean"
        ),
        {}, {"a": 8}, "",
    ),
    "tokens by a mask": (lambda m, y, x: y[x[..., 0] < 9], {}, {"a": 8}, ""),
    "tokens in order": (
        lambda m, y, x: y.gather(1, x[..., :1].argsort(1).expand(-1, -1, y.shape[-1])),
        {}, {"a": 8}, "",
    ),
    "token of its own where nothing is seen": (
        filled, {"empty": nn.Parameter(torch.randn(8))}, {"a": 8}, "",
    ),
    "experts in one parameter": (
        experts,
        {"up": nn.Parameter(torch.randn(2, 5, 8)), "down": nn.Parameter(torch.randn(2, 8, 5))},
        {"a": 8, "up": 5}, "",
    ),
    "objects of which none is found": (
        none_found, {"score": nn.Linear(8, 1)}, {"a": 8}, "",
    ),
    "objects to classify of which none is found": (
        none_to_classify, {"score": nn.Linear(8, 1), "head": nn.Linear(8, 8)}, {"a": 8}, "",
    ),
    "all experts at once": (
        lambda m, y, x: torch.bmm(torch.bmm(y.expand(2, -1, -1), m.up).relu(), m.down).mean(0),
        {"up": nn.Parameter(torch.randn(2, 8, 5)), "down": nn.Parameter(torch.randn(2, 5, 8))},
        {"a": 8, "up": 5, "down": 8}, "",
    ),
    "all experts at once, beside what they read": (
        lambda m, y, x: y + torch.bmm((y @ m.up).relu(), m.down).mean(0),
        {"up": nn.Parameter(torch.randn(2, 8, 5)), "down": nn.Parameter(torch.randn(2, 5, 8))},
        {"a": 8, "up": 5}, "",
    ),
    "product of two": (
        lambda m, y, x: torch.mm(y[0], m.b(x)[0].t()) @ torch.ones(6, 8),
        {"b": nn.Linear(3, 8)}, {"a": 8}, "",
    ),
    "channels that are looked for": (
        lambda m, y, x: y[..., x[0, :, 0].argsort() % 8][..., [0, 1, 2, 3, 4, 5, 0, 1]],
        {}, {}, "cannot be followed",
    ),
    "channels of a state space": (
        state_space, {"write": nn.Linear(3, 4), "read": nn.Linear(3, 4)}, {"a": 8}, "",
    ),
    "channels in a cache": (cached, {}, {"a": 8}, ""),
    "biases of experts": (
        lambda m, y, x: y + m.bias[(x[0, :, 0] > 0).long()],
        {"bias": nn.Parameter(torch.randn(2, 8))}, {"a": 8}, "",
    ),
    "gates beside what they open": (
        lambda m, y, x: m.up(y)[..., ::2] * m.up(y)[..., 1::2].sigmoid(),
        {"up": nn.Linear(8, 16)}, {"a": 8, "up": 8}, "",
    ),
    "pairs of channels as complex numbers": (
        lambda m, y, x: torch.view_as_real(torch.view_as_complex(m.up(y).unflatten(-1, (-1, 2)))
                                           * (0.5 + 2j)).sum(-1),
        {"up": nn.Linear(8, 16)}, {"a": 8, "up": 8}, "",
    ),
    "every second channel": (
        lambda m, y, x: m.up(y)[..., 1::2], {"up": nn.Linear(8, 16)}, {"a": 8, "up": 8}, "",
    ),
    "the largest channel": (
        lambda m, y, x: y * (y.argmax(-1, keepdim=True) + 1), {}, {}, "'argmax' over its channels",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:index_reduce")  # which is in beta
@pytest.mark.parametrize("kind", KINDS)
def test_places_that_data_chooses(kind: str) -> None:
    function, parts, groups, why = KINDS[kind]
    torch.manual_seed(0)
    net = Tokens(function, **parts)
    found = trace(net, torch.randn(SHAPE))
    assert {name: group.size for name, group in found.groups.items()} == groups
    assert why in found.whole.get("a", "")
    kept = {name: torch.arange(size) % 3 > 0 for name, size in groups.items()}
    assert verify(net, Mask(unit="channel", kept=kept), found).ok
    assert found.unaccounted(net) == ()


class Experts(nn.Module):
    """Rows that go to their experts in one product, which takes weights in rows of 16 bytes."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(3, width), nn.Linear(width, 2)
        self.up = nn.Parameter(torch.randn(2, width, hidden))
        self.down = nn.Parameter(torch.randn(2, hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.a(x)[0]
        ends = torch.tensor([2, len(rows)], dtype=torch.int32)
        hidden = torch._grouped_mm(rows, self.up, offs=ends).relu()
        scores: Tensor = self.out(rows + torch._grouped_mm(hidden, self.down, offs=ends))
        return scores


def test_experts_in_one_product_lose_rows_that_are_aligned() -> None:
    torch.manual_seed(0)
    net = Experts(16, 32).eval()
    found = trace(net, torch.randn(1, 6, 3))
    assert {n: g.size for n, g in found.groups.items()} == {"a": 2, "up": 4}
    mask = Mask(unit="channel", kept={"a": torch.arange(2) > 0, "up": torch.arange(4) % 2 == 0})
    assert shrink(net, mask, found).get_parameter("up").shape == (2, 8, 16)
    proof = verify(net, mask, found)
    assert proof.ok, str(proof)
