"""What methods do while a network trains, against formulas by hand: penalties, and moving masks."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.cost import count
from regrow.jobs.train import masked_costs
from regrow.methods.growing_regularisation import CHOSEN
from regrow.methods.rigl import layers_of
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.surgery import trace
from regrow.surgery.mask import Mask, apply_, kept_weights
from regrow.train import Treatment
from regrow.train.masks import MaskedWeights, SparsePasses
from small import FIRST, small


def treatment(name: str, *, strength: float = 0.1, sparsity: float = 0.5) -> Treatment:
    make = METHODS.get(name).treatment
    assert make is not None
    return make(strength, sparsity)


def with_gradients(model: nn.Module) -> dict[str, Tensor]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_group_lasso_descends_the_sum_of_the_norms_of_filters() -> None:
    model, _ = small("resnet")
    with_gradients(model)
    how = treatment("group-lasso").gradients
    assert how is not None
    how(model, FIRST)
    mine = {name: p.grad for name, p in model.named_parameters()}
    norms = [f.norm() for conv in convolutions(model).values() for f in conv.weight]
    weights = [conv.weight for conv in convolutions(model).values()]
    expected = torch.autograd.grad(0.1 * torch.stack(norms).sum(), weights)
    for name, gradient in zip(convolutions(model), expected, strict=True):
        torch.testing.assert_close(mine.pop(f"{name}.weight"), gradient)
    assert all(g is not None and not bool(g.any()) for g in mine.values())


def test_group_lasso_leaves_a_filter_of_zeros_there() -> None:
    model, _ = small("vgg")
    conv = convolutions(model)["features.conv1"]
    with torch.no_grad():
        conv.weight[0].zero_()
    with_gradients(model)
    how = treatment("group-lasso").gradients
    assert how is not None
    how(model, FIRST)
    assert conv.weight.grad is not None
    assert bool(torch.isfinite(conv.weight.grad).all())
    assert not conv.weight.grad[0].any()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_slimming_pushes_the_scales_of_batch_norms_of_any_dimension(norm: type[nn.Module]) -> None:
    model = nn.Sequential(norm(3), nn.LayerNorm(3))
    with_gradients(model)
    how = treatment("network-slimming").gradients
    assert how is not None
    how(model, FIRST)
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert {name for name, grad in grads.items() if grad is not None and grad.any()} == {"0.weight"}
    torch.testing.assert_close(grads["0.weight"], torch.full((3,), 0.1))


class Tokens(nn.Module):
    """A network of tokens: an embedding, a token and positions of its own, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.token, self.places = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(5, 4))
        self.last = nn.Linear(4, 3)


@pytest.mark.parametrize("name", ["rigl", "set", "agp"])
def test_masks_of_a_training_are_of_the_weights_that_the_method_prunes(name: str) -> None:
    updates = treatment(name).masks
    assert updates is not None
    assert [*updates.start(Tokens(), FIRST)] == ["mix.weight", "last.weight"]


TOLD = {"vocabulary": 9, "length": 6, "outputs": 9}
SIZES = {"dim": 8, "depth": 1, "heads": 2, "hidden": 16}
TRANSFORMER = ModelSpec("transformer", {**TOLD, **SIZES})


class Tied(nn.Module):
    """Predicts tokens by the table that it looks them up in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.tokens(ids))
        return scores


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_a_table_that_is_also_a_layer_has_one_mask(name: str) -> None:
    torch.manual_seed(0)
    model, how = Tied(), treatment(name).masks
    assert how is not None
    masked = MaskedWeights(model, how.start(model, FIRST))
    assert masked.num_kept() == {"head.weight": 18}
    masked.zero_weights_()
    assert int((model.tokens.weight != 0).sum()) == 18
    model(torch.arange(9)).logsumexp(1).sum().backward()
    before = masked.kept()["head.weight"]
    how.change(model, masked.factors, replace(FIRST, step=1))
    after = masked.kept()["head.weight"]
    assert int(after.sum()) == 18
    assert not after.equal(before)
    parts = kept_weights(Mask(unit="weight", kept={"head.weight": after}), model)
    assert parts["head.weight"].equal(after)


@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_weights_of_a_table_that_is_also_a_layer_can_be_pruned(allocation: str) -> None:
    model, ids = Tied(), torch.arange(6)[None]
    method = replace(METHODS.get("magnitude").within("linear"), allocation=allocation)
    mask = select(model, trace(model, ids), method, sparsity=0.5)
    apply_(model, mask)
    assert int((model.tokens.weight != 0).sum()) == mask.num_kept == 18
    assert count(model, ids, mask).cost.parameters == 18


@pytest.mark.parametrize("make", [Tied, partial(build, TRANSFORMER)])
def test_costs_of_moving_masks_are_counted_on_tokens_and_shared_weights(make: Any) -> None:
    model = make()
    masks = {name: torch.zeros(p.shape).bool() for name, p in layers_of(model).items()}
    passes = SparsePasses.of(MaskedWeights(model, masks))
    passes.add(5, dense_gradients=False)
    training: Any = SimpleNamespace(
        model=model, device="cpu", samples=5, passes=passes, kept=lambda: masks
    )
    found = masked_costs(training, TRANSFORMER, (1, 6))
    dense = count(model, torch.arange(6)[None])
    weights = sum(dense.by_parameter.values())
    assert weights > 0
    left = dense.cost.flops - 2 * weights
    assert found["training_flops"] == pytest.approx(3 * 5 * left)
    assert found["sparsity"] == 1.0


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (25, 1 / 3), (75, 1.0), (90, 1.0)])
def test_regularisation_grows_on_the_smallest_filters_alone(step: int, share: float) -> None:
    model, _ = small("vgg")
    how = treatment("growing-regularisation", strength=2.0)
    assert how.begin is not None
    assert how.gradients is not None
    assert how.end is not None
    how.begin(model, FIRST)
    before = with_gradients(model)
    moment = replace(FIRST, step=step, steps_per_epoch=100, recipe=replace(FIRST.recipe, epochs=1))
    how.gradients(model, moment)
    for name, conv in convolutions(model).items():
        sums = before[f"{name}.weight"].abs().sum((1, 2, 3))
        going = sums.argsort()[: len(sums) // 2]
        expected = torch.zeros_like(conv.weight)
        expected[going] = 2.0 * share * before[f"{name}.weight"][going]
        assert conv.weight.grad is not None
        torch.testing.assert_close(conv.weight.grad, expected)
    assert any(CHOSEN in name for name, _ in model.named_buffers())
    how.end(model, FIRST)
    assert not any(CHOSEN in name for name, _ in model.named_buffers())


def test_set_starts_with_erdos_renyi_masks_and_moves_them_at_random() -> None:
    model, _ = small("vgg")
    updates = treatment("set", sparsity=0.6).masks
    assert updates is not None
    masks = {n: m.float() for n, m in updates.start(model, FIRST).items()}
    sizes = {n: m.numel() for n, m in masks.items()}
    total = sum(sizes.values())
    assert sum(int(m.sum()) for m in masks.values()) == total - int(0.6 * total)
    # Before a layer is full, layers keep numbers in proportion to the sums of their shapes.
    shares = {n: float(m.sum()) / sum(m.shape) for n, m in masks.items() if float(m.mean()) < 1}
    assert max(shares.values()) - min(shares.values()) < 0.1
    moment = replace(FIRST, step=7, steps_per_epoch=7)
    assert [updates.when(replace(moment, step=s)) for s in (0, 6, 7, 8, 14)] == [
        *(False, False, True, False, True)
    ]
    before = {n: m.clone() for n, m in masks.items()}
    updates.change(model, masks, moment)
    for name, mask in masks.items():
        weight, was = model.get_parameter(name).detach().abs(), before[name].bool()
        assert mask.sum() == was.sum()
        num_moved = min(int(0.3 * int(was.sum())), int((~was).sum()))
        dropped = was & (mask == 0)
        assert int(dropped.sum()) == num_moved == int((~was & (mask == 1)).sum())
        if num_moved:
            assert weight[dropped].max() <= weight[was & (mask == 1)].min()
    again = {n: m.clone() for n, m in before.items()}
    updates.change(model, again, moment)
    assert all(torch.equal(again[n], masks[n]) for n in masks)
    other = {n: m.clone() for n, m in before.items()}
    updates.change(model, other, replace(moment, step=14))
    assert any(not torch.equal(other[n], masks[n]) for n in masks)
