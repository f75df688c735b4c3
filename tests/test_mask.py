"""Masks: their algebra, and weights held at exactly zero while the others train."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError
from regrow.surgery.mask import Mask, apply_, kept_weights
from regrow.train.masks import MaskedWeights

bits = st.lists(st.booleans(), min_size=4, max_size=4).map(torch.tensor)
masks = st.dictionaries(st.sampled_from("abc"), bits, max_size=3).map(
    lambda kept: Mask(unit="channel", kept=kept)
)


def same(a: Mask, b: Mask) -> bool:
    return a.kept.keys() == b.kept.keys() and all(torch.equal(a.kept[k], b.kept[k]) for k in a.kept)


@given(masks, masks, masks)
def test_and_is_commutative_associative_and_idempotent(a: Mask, b: Mask, c: Mask) -> None:
    assert same(a & b, b & a)
    assert same((a & b) & c, a & (b & c))
    assert same(a & a, a)
    assert same(a & Mask(unit="channel", kept={}), a)


@given(masks, masks)
def test_and_keeps_what_both_keep(a: Mask, b: Mask) -> None:
    both = a & b
    for name, kept in both.kept.items():
        for mask in (a, b):
            if name in mask.kept:
                assert not bool((kept & ~mask.kept[name]).any())
    for mask in (a, b):
        removed = sum(int((~both.kept[name]).sum()) for name in mask.kept)
        assert removed >= mask.num_units - mask.num_kept


@given(masks)
def test_counts_add_up(mask: Mask) -> None:
    assert mask.num_kept == sum(mask.widths().values())
    assert mask.num_units == 4 * len(mask.kept)
    removed = mask.num_units - mask.num_kept
    assert mask.sparsity == pytest.approx(removed / mask.num_units if mask.num_units else 0.0)
    for name, kept in mask.kept.items():
        rebuilt = torch.zeros(4, dtype=torch.bool).index_fill(0, mask.indices(name), True)
        assert torch.equal(rebuilt, kept)


def test_and_remembers_what_was_guarded() -> None:
    kept = {"a": torch.ones(2, dtype=torch.bool)}
    a = Mask(unit="channel", kept=kept, guarded=("a", "b"))
    b = Mask(unit="channel", kept=kept, guarded=("b", "c"))
    assert (a & b).guarded == ("a", "b", "c")


def test_masks_over_other_units_do_not_combine() -> None:
    channel, weight = Mask(unit="channel", kept={}), Mask(unit="weight", kept={})
    with pytest.raises(ConfigError, match="a mask over channels with a mask over weights"):
        channel & weight


def test_masks_hold_booleans() -> None:
    with pytest.raises(ConfigError, match=r"mask of 'a' must hold booleans .* Got torch.int64"):
        Mask(unit="channel", kept={"a": torch.tensor([0, 1])})


# Holding


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def weight_mask(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(1)
    named = dict(model.named_parameters())
    return Mask(
        unit="weight",
        kept={
            name: torch.rand(named[name].shape, generator=generator) < 0.5
            for name in ("0.weight", "2.weight")
        },
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator))
        for _ in range(20)
    ]


def holder(mask: Mask) -> Callable[[nn.Module], None]:
    """Return what a training does before and after each update."""

    def hold_(model: nn.Module) -> None:
        MaskedWeights(model, kept_weights(mask, model)).zero_weights_()

    return hold_


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True
    )


def test_held_weights_stay_exactly_zero_and_the_others_train_as_if_alone() -> None:
    model = network()
    mask = weight_mask(model)
    hold_ = holder(mask)
    hold_(model)
    optimiser = sgd(model)
    # The reference multiplies its weights by the mask, and so has no masked weights at all.
    free = copy.deepcopy(model)
    reference = sgd(free)
    for x, y in batches():
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        hold_(model)
        optimiser.step()
        hold_(model)

        reference.zero_grad()
        w = dict(free.named_parameters())
        first = F.linear(x, w["0.weight"] * mask.kept["0.weight"], w["0.bias"])
        last = F.linear(first.tanh(), w["2.weight"] * mask.kept["2.weight"], w["2.bias"])
        F.cross_entropy(last, y).backward()  # type: ignore[no-untyped-call]
        reference.step()
        for name, kept in mask.kept.items():
            assert not bool(model.get_parameter(name)[~kept].any())
            momentum = optimiser.state[model.get_parameter(name)]["momentum_buffer"]
            assert not bool(momentum[~kept].any())
    for (name, held), alone in zip(model.named_parameters(), free.parameters(), strict=True):
        kept = mask.kept.get(name, torch.ones_like(held, dtype=torch.bool))
        assert torch.allclose(held[kept], alone[kept], atol=1e-6)


def test_holding_leaves_unmasked_weights_and_gradients_bitwise_alone() -> None:
    model = network()
    mask = weight_mask(model)
    x, y = batches()[0]
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    before = {n: (p.detach().clone(), p.grad) for n, p in model.named_parameters()}
    gradients = {n: g.clone() for n, (_, g) in before.items() if g is not None}
    holder(mask)(model)
    for name, parameter in model.named_parameters():
        kept = mask.kept.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert parameter.grad is not None
        assert torch.equal(parameter[kept], before[name][0][kept])
        assert torch.equal(parameter.grad[kept], gradients[name][kept])
        assert not bool(parameter.grad[~kept].any())


def test_every_gradient_is_held_when_some_parameters_have_none() -> None:
    model = network()
    mask = weight_mask(model)
    weight = model.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    holder(mask)(model)
    assert not bool(weight.grad[~mask.kept["0.weight"]].any())


def test_apply_zeroes_what_a_training_holds_at_zero() -> None:
    mask, model, applied = weight_mask(network()), network(), network()
    holder(mask)(model)
    apply_(applied, mask)
    for a, b in zip(model.parameters(), applied.parameters(), strict=True):
        assert torch.equal(a, b)


def test_masks_that_cannot_be_held_are_refused() -> None:
    channels = Mask(unit="channel", kept={})
    with pytest.raises(
        ConfigError, match="Only a mask over weights or filters can be held at zero"
    ):
        apply_(network(), channels)
    other = Mask(unit="weight", kept={"9.weight": torch.ones(2, dtype=torch.bool)})
    for act in (holder(other), lambda model: apply_(model, other)):
        with pytest.raises(ConfigError, match=r"the network lacks\. Unknown parameter '9.weight'"):
            act(network())
    wide = Mask(unit="weight", kept={"0.weight": torch.ones(8, 5, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"'0.weight' has the shape \(8, 5\), .* has \(8, 6\)"):
        holder(wide)(network())
