"""No choice of channels empties a layer, whichever groups hold it."""

import pytest
import torch

from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS, Method
from regrow.pruning.select import select
from regrow.surgery import shrink, trace, verify
from regrow.units.keep_layers_alive import guard
from small import FIRST, FROM_DIGITS, NETWORKS, SHAPE, digits, small


@pytest.mark.parametrize("label", ["resnet", "preresnet", "densenet"])
@pytest.mark.parametrize("scope", [("stream",), ("view", "stream"), ("conv", "stream", "view")])
@pytest.mark.parametrize("criterion", ["random", "first"])
def test_next_to_nothing_of_streams_and_views_still_leaves_a_network(
    label: str, scope: tuple[str, ...], criterion: str
) -> None:
    model, found = small(label)
    method = Method(name="all", criterion=criterion, scope=scope)  # type: ignore[arg-type]
    if not any(group.kind in scope for group in found.groups.values()):
        pytest.skip("this network has no such groups")
    for seed in range(3):
        for sparsity in (0.5, 0.97):
            mask = select(model, found, method, sparsity=sparsity, dataset=digits(), seed=seed)
            assert verify(model, mask, found) < 1e-9
            assert shrink(model, mask, found)(torch.zeros(2, *SHAPE[1:])).shape == (2, 10)


def test_the_narrow_end_of_a_padded_shortcut_keeps_a_channel() -> None:
    """Its first convolution holds the first units of the stream only, and all of those may go."""
    arguments = {**FROM_DIGITS, "depth": 8, "width": 0.5, "shortcut": "subsample"}
    model = build(ModelSpec("resnet-20", arguments))
    found = trace(model, SHAPE)
    (name,) = [name for name, group in found.groups.items() if group.kind == "stream"]
    group = found.groups[name]
    scores = torch.arange(group.size, dtype=torch.float32)  # so the first go, which the stem holds
    kept, helped = guard({name: scores >= group.size - 4}, {name: scores}, found)
    assert helped == (name,)
    # The stem holds 8 units: its best is kept, and with it the layers of the next width have one.
    assert kept[name].nonzero().flatten().tolist() == [7, *range(group.size - 4, group.size)]


def test_a_view_and_its_stream_come_to_share_a_channel() -> None:
    _, found = small("preresnet")
    view = next(n for n, g in found.groups.items() if g.kind == "view")
    stream = next(
        n
        for n, g in found.groups.items()
        if g.kind != "view" and any(s.tensor == f"{view}.weight" for s in g.slots)
    )
    size = found.groups[view].size
    half = torch.arange(size) < size // 2
    scores = {view: torch.arange(size).float(), stream: torch.arange(found.groups[stream].size)}
    chosen = {view: half, stream: torch.arange(found.groups[stream].size) >= size // 2}
    kept, helped = guard(chosen, {n: s.float() for n, s in scores.items()}, found)
    assert helped
    assert int(kept[view].sum() + kept[stream].sum()) == int(half.sum() + chosen[stream].sum()) + 1


def test_a_choice_that_empties_nothing_is_left_alone() -> None:
    model, found = small("densenet")
    for method in ("network-slimming", "l1-filter"):
        mask = select(model, found, method, sparsity=0.3)
        groups = {name: found.groups[name] for name in mask.kept}
        scores = {name: torch.rand(group.size) for name, group in groups.items()}
        kept, helped = guard(mask.kept, scores, found)
        assert helped == ()
        assert all(torch.equal(kept[name], mask.kept[name]) for name in mask.kept)


# Normed linear layers -----------------------------------------------------------------------------


def test_slimming_prunes_normed_linear_layers_under_the_same_threshold() -> None:
    arguments = {"classes": 10, "in_channels": 3, "input_size": 32, "width": 0.02}
    model = build(ModelSpec("imagenet-vgg-11-slimming", arguments))
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
    found = trace(model, (1, 3, 32, 32))
    mask = select(model, found, "network-slimming", sparsity=0.5)
    linear = [name for name in mask.kept if found.groups[name].kind == "linear"]
    assert linear == ["head.linear1", "head.linear2"]
    assert len(mask.kept) == len(norms) == 10
    scales = torch.cat([norm.weight.detach().abs() for norm in norms])
    stays = torch.cat(list(mask.kept.values()))
    assert scales[~stays].max() <= scales[stays].min()
    assert verify(model, mask, found) < 1e-9
    how = METHODS.get("network-slimming").treatment
    assert how is not None
    penalty = how(0.01, 0.5).gradients
    assert penalty is not None
    for norm in norms:
        norm.weight.grad = torch.zeros_like(norm.weight)
    penalty(model, FIRST)
    for norm in norms:
        assert norm.weight.grad is not None
        assert torch.equal(norm.weight.grad, 0.01 * norm.weight.detach().sign())


def test_a_network_without_them_keeps_its_keys() -> None:
    from regrow.jobs.retrain import Retrain
    from regrow.studies.study import Study

    study = {
        "data": {"name": "digits", "subset": 128, "test_subset": 64},
        "models": {"name": NETWORKS["vgg"].name, "plan": [6, "M", 8, "M", 8]},
        "methods": {"name": "network-slimming", "sparsity": 0.5},
        "arms": ["pruned"],
        "seeds": 1,
    }
    job = Study.from_json(study).cells()[0].job
    assert isinstance(job, Retrain)
    assert job.prune.spec["scope"] == ["normed-conv", "view"]
