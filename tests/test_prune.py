"""Criteria and allocations against hand computations; the probe against plain PyTorch."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.data import normalise
from regrow.errors import ConfigError, TraceError
from regrow.models import ModelSpec, build
from regrow.pruning.allocations import allocate_global, allocate_shares, allocate_uniform
from regrow.pruning.method import (
    CRITERIA,
    METHODS,
    Method,
    allocation,
    checked_sparsity,
    criterion,
    register_method,
)
from regrow.pruning.probe import BATCH, Probe
from regrow.pruning.select import groups_in_scope, select
from regrow.surgery import trace
from regrow.train import Recipe, Training, Treatment
from regrow.units.masked import weight_groups
from small import FIRST, NETWORKS, SHAPE, digits, equal, small, snapshot

# Criteria ---------------------------------------------------------------------------------------


def test_l1_norm_is_the_sum_of_absolute_weights_of_a_filter() -> None:
    model, found = small("vgg")
    score = CRITERIA.get("l1-norm")
    for name, group in found.groups.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        by_hand = torch.tensor([sum(abs(w) for w in f.flatten().tolist()) for f in layer.weight])
        torch.testing.assert_close(score(group, Probe(model)), by_hand)


def test_l1_norm_of_a_single_weight_is_its_magnitude() -> None:
    model, _ = small("vgg")
    groups = weight_groups(model, ("conv",))
    for name, group in groups.items():
        scores = CRITERIA.get("l1-norm")(group, Probe(model))
        assert torch.equal(scores, model.get_parameter(name).detach().abs().flatten())


def test_magnitude_ranks_all_convolution_weights_together_and_nothing_else() -> None:
    model, found = small("resnet")
    mask = select(model, found, "magnitude", sparsity=0.37)
    weights = {
        f"{name}.weight": m.weight.detach().abs()
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d)
    }
    assert mask.kept.keys() == weights.keys()
    pooled = torch.cat([w.flatten() for w in weights.values()]).sort().values
    num_removed = math.floor(0.37 * len(pooled))
    threshold = pooled[num_removed - 1]
    for name, kept in mask.kept.items():
        assert torch.equal(kept, weights[name] > threshold)
    assert mask.num_units - mask.num_kept == num_removed


def test_slimming_keeps_what_the_papers_procedure_keeps_and_the_unit_at_its_threshold() -> None:
    model, found = small("vgg")
    share = 0.4
    # Section 5.2 of the protocols: the entry at floor(total x share), and keep what is larger.
    norms = {f"features.conv{i}": model.get_submodule(f"features.norm{i}") for i in (1, 2, 3)}
    scales: dict[str, Tensor] = {
        n: m.weight.detach().abs() for n, m in norms.items() if isinstance(m, nn.BatchNorm2d)
    }
    pooled = torch.cat(list(scales.values())).sort().values
    threshold = pooled[math.floor(len(pooled) * share)]
    mask = select(model, found, "network-slimming", sparsity=share)
    assert not mask.guarded
    for name, kept in mask.kept.items():
        assert torch.equal(kept, scales[name] >= threshold)
    assert mask.num_units - mask.num_kept == math.floor(len(pooled) * share)


def slimming(strength: float) -> Treatment:
    treatment = METHODS.get("network-slimming").treatment
    assert treatment is not None
    return treatment(strength, 0.5)


def test_slimming_penalty_adds_strength_times_sign_and_passes_through_the_update() -> None:
    penalty = slimming(0.01).gradients
    assert penalty is not None
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -0.25, 0.0]))
    F.cross_entropy(model(x), torch.tensor([0, 1, 0, 1])).backward()  # type: ignore[no-untyped-call]
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    penalty(model, FIRST)
    expected = grads["1.weight"] + 0.01 * torch.tensor([1.0, -1.0, 0.0])
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected if name == "1.weight" else grads[name])
    torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4).step()
    before = torch.tensor([0.5, -0.25, 0.0])
    torch.testing.assert_close(norm.weight.detach(), before - 0.1 * (expected + 1e-4 * before))


def test_slimming_penalty_acts_in_every_step_of_a_training() -> None:
    recipe = Recipe(epochs=1, batch=64, lr=0.1, momentum=0.0, weight_decay=0.0)
    plain, pushed = (build(NETWORKS["vgg"]) for _ in range(2))
    Training(plain, digits(), recipe, seed=0).step()
    Training(pushed, digits(), recipe, seed=0, treatment=slimming(0.01)).step()
    for (name, a), b in zip(plain.named_parameters(), pushed.parameters(), strict=True):
        shift = 0.1 * 0.01 if "norm" in name and name.endswith("weight") else 0.0  # scales are 0.5
        torch.testing.assert_close(a - b, torch.full_like(a, shift), atol=1e-7, rtol=0)


def test_slimming_strengths_are_those_of_the_official_code() -> None:
    method = METHODS.get("network-slimming")
    families = ("vgg", "preresnet", "densenet")
    assert [method.strength_for(f) for f in families] == [1e-4, 1e-5, 1e-5]
    assert METHODS.get("l1-filter").strength_for("vgg") == 0.0


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    model, found = small("vgg")
    other, _ = small("vgg", seed=5)
    score = CRITERIA.get("random")
    one, two, *_ = (g for g in found.groups.values() if g.size == 8)
    assert torch.equal(score(one, Probe(model, seed=3)), score(one, Probe(other, seed=3)))
    assert not torch.equal(score(one, Probe(model, seed=3)), score(one, Probe(model, seed=4)))
    assert not torch.equal(score(one, Probe(model, seed=3)), score(two, Probe(model, seed=3)))


# The probe --------------------------------------------------------------------------------------


def _probe_images(seed: int, num: int) -> tuple[Tensor, Tensor]:
    data = digits()
    order = torch.randperm(len(data.train), generator=seeded(seed, "probe"))[:num]
    return normalise(data.train.batch(order), data.mean, data.std), data.train.labels[order]


def test_probe_gradient_is_that_of_the_mean_loss_over_its_images() -> None:
    model, _ = small("vgg")
    num = BATCH - 28  # the data has 128 images; this is a part of them
    probe = Probe(model, digits(), seed=1, num_images=num)
    mine = {name: probe.gradient(name) for name, _ in model.named_parameters()}
    x, labels = _probe_images(1, num)
    model.eval()
    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(mine[name], p.grad)


def test_probe_adds_up_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = small("vgg")
    group = next(iter(found.groups.values()))
    whole = Probe(model, digits())
    at_once = whole.gradient("head.weight"), whole.activation(group)
    monkeypatch.setattr("regrow.pruning.probe.BATCH", 50)  # 128 images in 50, 50 and 28
    parts = Probe(model, digits())
    torch.testing.assert_close(parts.gradient("head.weight"), at_once[0])
    torch.testing.assert_close(parts.activation(group), at_once[1])


def test_probe_gradient_of_what_is_not_trained_is_that_of_the_loss() -> None:
    model, _ = small("vgg")
    expected = Probe(model, digits(), num_images=16).gradient("features.conv1.weight")
    frozen = model.get_parameter("features.conv1.weight").requires_grad_(False)
    probe = Probe(model, digits(), num_images=16)
    torch.testing.assert_close(probe.gradient("features.conv1.weight"), expected)
    assert not frozen.requires_grad


def _after(model: nn.Module, name: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _m, _i, y: seen.append(y))
    with torch.no_grad():
        model.eval()(x)
    hook.remove()
    return seen[0].mean((2, 3))


@pytest.mark.parametrize("label", NETWORKS)
def test_probe_activation_is_the_mean_map_after_the_groups_norm(label: str) -> None:
    model, found = small(label)
    x, _ = _probe_images(0, 32)
    probe = Probe(model, digits(), num_images=32)
    for group in found.groups.values():
        source = group.norms[0] if group.norms else group.name
        slot = next(s for s in group.slots if s.tensor.startswith(f"{source}."))
        mine = probe.activation(group)
        by_hand = _after(model, source, x)
        assert mine.shape == (32, group.size)
        for unit in range(group.size):
            expected = by_hand[:, slot.units == unit].sum(1)
            torch.testing.assert_close(mine[:, unit], expected)


def test_probe_activation_finds_the_channels_of_layer_norms() -> None:
    class Maps(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    norms: dict[str, tuple[nn.Module, ...]] = {
        "channels first": (Maps(6),),
        "channels and map": (nn.LayerNorm([6, 6, 6]),),
        "channels last": (Turn(), nn.LayerNorm(6)),
    }
    x, _ = _probe_images(0, 16)
    for name, layers in norms.items():
        model = nn.Sequential(nn.Conv2d(1, 6, 3), *layers, nn.Flatten(), nn.Linear(6 * 36, 10))
        group = trace(model, SHAPE).group("0")
        assert group.norms == (("2",) if name == "channels last" else ("1",))
        with torch.no_grad():
            out = model[: int(group.norms[0]) + 1](x)
        expected = out.mean((1, 2) if name == "channels last" else (2, 3))
        probe = Probe(model, digits(), num_images=16)
        torch.testing.assert_close(probe.activation(group), expected)


def test_probe_activation_takes_a_groups_own_part_of_a_norm_that_several_share() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 4, 3)
            self.norm, self.last = nn.BatchNorm2d(7), nn.Conv2d(7, 10, 6)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.left(x), self.right(x)], dim=1)
            result: Tensor = self.last(F.relu(self.norm(joined))).flatten(1)
            return result

    model = Joined()
    found = trace(model, SHAPE)
    by_hand = _after(model, "norm", _probe_images(0, 16)[0])
    probe = Probe(model, digits(), num_images=16)
    torch.testing.assert_close(probe.activation(found.group("left")), by_hand[:, :3])
    torch.testing.assert_close(probe.activation(found.group("right")), by_hand[:, 3:])


def test_probe_activation_of_tokens_averages_over_the_tokens() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grow, self.shrink = nn.Linear(8, 5), nn.Linear(5, 10)

        def forward(self, x: Tensor) -> Tensor:  # [N, 1, 8, 8]: 8 tokens of 8 numbers
            result: Tensor = self.shrink(F.gelu(self.grow(x.squeeze(1)))).mean(1)
            return result

    model = Tokens()
    group = trace(model, SHAPE).group("grow")
    x, _ = _probe_images(0, 16)
    by_hand = model.grow(x.squeeze(1)).mean(1).detach()
    torch.testing.assert_close(Probe(model, digits(), num_images=16).activation(group), by_hand)


def test_probe_activation_of_single_weights_is_refused() -> None:
    model, _ = small("vgg")
    group = weight_groups(model, ("conv",))["features.conv2.weight"]
    with pytest.raises(ConfigError, match=r"group of single weights. Use unit 'channel'"):
        Probe(model, digits()).activation(group)


def test_probe_without_images_says_what_to_give() -> None:
    model, found = small("vgg")
    probe = Probe(model)
    with pytest.raises(ConfigError, match=r"needs data: give select\(..., dataset=...\)"):
        probe.gradient("head.weight")
    with pytest.raises(ConfigError, match="needs data"):
        probe.activation(next(iter(found.groups.values())))


def test_what_a_probe_shows_can_be_written_to_without_harm() -> None:
    model, found = small("vgg")
    before = snapshot(model)
    probe = Probe(model, digits(), num_images=16)
    first = probe.gradient("head.weight").clone()
    probe.weight("head.weight").zero_()
    probe.gradient("head.weight").zero_()
    probe.activation(next(iter(found.groups.values()))).zero_()
    assert equal(snapshot(model), before)
    assert torch.equal(probe.gradient("head.weight"), first)


# Allocations ------------------------------------------------------------------------------------


def _scores(*sizes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"g{i}": torch.rand(size, generator=generator) for i, size in enumerate(sizes)}


@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.2, 0.29, 0.3, 0.5, 0.999])
def test_global_removes_exactly_the_floor_of_the_share(sparsity: float) -> None:
    scores = _scores(30, 50, 20)
    kept = allocate_global(scores, sparsity)
    removed = torch.cat([s[~kept[n]] for n, s in scores.items()])
    left = torch.cat([s[kept[n]] for n, s in scores.items()])
    assert len(removed) == int(round(sparsity * 1000) // 10)
    assert not len(removed) or removed.max() <= left.min()


@pytest.mark.parametrize(("width", "sparsity", "left"), [(10, 0.3, 7), (16, 0.1, 14), (64, 0.3, 44),
                                                         (32, 0.4, 19), (3, 0.99, 0)])  # fmt: skip
def test_uniform_keeps_the_floor_of_what_is_left_of_each_group(
    width: int, sparsity: float, left: int
) -> None:
    for name, kept in allocate_uniform(scores := _scores(width, width), sparsity).items():
        assert int(kept.sum()) == left
        assert torch.equal(kept.nonzero().flatten(), scores[name].topk(left).indices.sort().values)


def test_shares_give_each_group_its_own() -> None:
    kept = allocate_shares(_scores(10, 10, 4), [0.0, 0.5, 0.75])
    assert [int(k.sum()) for k in kept.values()] == [10, 5, 1]


def test_of_equal_scores_the_first_stay() -> None:
    scores = {"a": torch.ones(3), "b": torch.ones(2)}
    assert {n: k.tolist() for n, k in allocate_global(scores, 0.6).items()} == {
        "a": [True, True, False],
        "b": [False, False],
    }
    assert allocate_uniform(scores, 0.5)["a"].tolist() == [True, False, False]


# Select -----------------------------------------------------------------------------------------


def _method(**parts: Any) -> Method:
    return replace(METHODS.get("l1-filter"), name="own", **parts)


def test_an_emptied_group_keeps_its_highest_unit_and_is_listed() -> None:
    model, found = small("vgg")
    with torch.no_grad():
        model.get_parameter("features.conv2.weight").mul_(1e-6)
    mask = select(model, found, _method(allocation="global"), sparsity=0.5)
    scores = CRITERIA.get("l1-norm")(found.groups["features.conv2"], Probe(model))
    assert mask.guarded == ("features.conv2",)
    assert mask.indices("features.conv2").tolist() == [int(scores.argmax())]


def test_single_weights_are_not_guarded() -> None:
    model, found = small("vgg")
    with torch.no_grad():
        model.get_parameter("features.conv2.weight").mul_(1e-6)
    mask = select(model, found, "magnitude", sparsity=0.9)
    assert mask.widths()["features.conv2.weight"] == 0
    assert mask.guarded == ()


@pytest.mark.parametrize("scope", ["normed-conv", ["normed-conv"], ("normed-conv",)])
def test_one_scope_may_be_given_as_a_text(scope: Any) -> None:
    registered = register_method("test-own", criterion="l1-norm", scope=scope)
    directly = Method(name="test-own", criterion="l1-norm", scope=scope)
    assert registered == directly
    assert directly.scope == ("normed-conv",)


def test_scopes_choose_kinds_of_groups() -> None:
    counts = {}
    for label in NETWORKS:
        model, found = small(label)
        for scope in ("conv", "normed-conv", "linear", "stream", "view"):
            try:
                groups = groups_in_scope(model, found, _method(scope=(scope,)))
                counts[label, scope] = len(groups)
            except TraceError:
                counts[label, scope] = 0
    by_label = {label: [n for (of, _), n in counts.items() if of == label] for label in NETWORKS}
    assert by_label["vgg"] == [3, 3, 0, 0, 0]
    assert by_label["resnet"][:2] == [3, 3]  # the first convolution of each of three blocks
    assert by_label["preresnet"][4] == 4  # three blocks' first norms and the last norm
    assert by_label["densenet"][4] == 6  # three layers', two transitions' and the last norm


def test_weights_of_linear_layers_are_pruned_where_the_scope_says_so() -> None:
    model, found = small("vgg")
    method = replace(METHODS.get("magnitude"), scope=("conv", "linear"))
    mask = select(model, found, method, sparsity=0.5)
    assert list(mask.kept)[-1] == "head.weight"
    assert mask.kept["head.weight"].shape == model.get_parameter("head.weight").shape


def test_a_method_at_initialisation_sees_images_too() -> None:
    model, found = small("vgg")
    CRITERIA.add("test-gradient", lambda g, p: g.sum(p.gradient).abs())
    method = _method(criterion="test-gradient", trained=False)
    assert 0.4 < select(model, found, method, sparsity=0.5, dataset=digits()).sparsity <= 0.5


BAD_SCORES: dict[str, tuple[Callable[..., Any], str]] = {
    "short": (lambda g, p: torch.zeros(2), r"one score for each of the 6 units.*Got shape \(2,\)"),
    "list": (lambda g, p: [0.0] * g.size, "Got shape list"),
    "nan": (lambda g, p: torch.full((g.size,), math.nan), "not all finite"),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_scores_that_are_none_are_refused(name: str) -> None:
    model, found = small("vgg")
    function, message = BAD_SCORES[name]
    CRITERIA.add(f"test-{name}", function)
    with pytest.raises(ConfigError, match=message):
        select(model, found, _method(criterion=f"test-{name}"), sparsity=0.5)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda scores, _: {}, "nothing"),
        (lambda scores, _: {n: s > 0.5 for n, s in list(scores.items())[:1]}, "nothing"),
        (lambda scores, _: scores, "torch.float32"),
        (
            lambda scores, _: {n: torch.ones(2, dtype=torch.bool) for n in scores},
            r".*\[2\]",
        ),
    ],
)
def test_an_allocation_that_returns_no_mask_is_refused(function: Any, got: str) -> None:
    model, found = small("vgg")
    allocation("test-allocation")(function)
    with pytest.raises(ConfigError, match=f"'test-allocation' must return a boolean.*Got {got}"):
        select(model, found, _method(allocation="test-allocation"), sparsity=0.5)


@pytest.mark.parametrize("sparsity", [None, -0.1, 1.0, 1.5, "0.5", True, math.nan])
def test_a_sparsity_that_is_none_is_refused(sparsity: Any) -> None:
    with pytest.raises(ConfigError, match=r"a number in \[0, 1\). Got"):
        checked_sparsity(sparsity)
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"a number in \[0, 1\). Got"):
        select(model, found, "l1-filter", sparsity=sparsity)


def test_shares_must_be_one_for_each_group() -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"each of the network's 3 groups. Got 2"):
        select(model, found, "l1-filter", shares=[0.5, 0.5])
    with pytest.raises(ConfigError, match=r"a number in \[0, 1\). Got 1.5"):
        select(model, found, "l1-filter", shares=[0.5, 1.5, 0.0])


def test_an_empty_scope_names_the_groups_there_are() -> None:
    model, found = small("vgg")
    message = r"own prunes channels of residual streams \(scope stream\).*'features.conv1', 'fea"
    with pytest.raises(TraceError, match=message):
        select(model, found, _method(scope=("stream",)), sparsity=0.5)


def test_a_name_that_is_unknown_offers_the_nearest() -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"Unknown method 'l1-fliter'. Did you mean 'l1-filter'"):
        select(model, found, "l1-fliter", sparsity=0.5)


def test_a_method_is_checked_when_it_is_registered() -> None:
    with pytest.raises(ConfigError, match=r"'own': Unknown unit 'filters'. Did you mean 'filter'"):
        _method(unit="filters")
    with pytest.raises(ConfigError, match=r"The method 'own': Unknown scope 'convs'. Did you mean"):
        _method(scope=("convs",))
    with pytest.raises(ConfigError, match="The 'scope' must name one of conv, normed-conv"):
        _method(scope=())
    with pytest.raises(ConfigError, match=r"'stray' is not registered. Put @criterion"):
        register_method("own", criterion=stray)


def stray(group: Any, probe: Any) -> Tensor:
    return torch.zeros(group.size)


def test_a_registered_criterion_may_be_given_itself() -> None:
    criterion("test-stray")(stray)
    method = register_method("test-stray", criterion=stray, scope=["stream"])
    assert (method.criterion, method.scope) == ("test-stray", ("stream",))


# Targets ----------------------------------------------------------------------------------------

TWO_LAYER = {"head": "two-layer"}
WIDTHS = {
    "vgg-16-a": (TWO_LAYER, [32, 64, 128, 128, 256, 256, 256, *[256] * 6], 5_397_034, 206.28),
    "resnet-56-a": ({}, [*[14] * 7, 16, 14, 32, *[28] * 8, 64, *[57] * 7, 64], 773_336, 112.44),
    "resnet-56-b": (
        {}, [*[6] * 7, 16, 16, 32, *[22] * 6, 32, 22, 64, *[57] * 7, 64], 735_712, 90.91
    ),
    "resnet-110-a": ({}, [*[8] * 17, 16, *[32] * 18, *[64] * 18], 1_688_522, 212.78),
    "resnet-110-b": (
        {}, [*[8] * 17, 16, 32, *[19] * 17, 64, *[44] * 17], 1_168_424, 155.12
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDTHS)
def test_targets_have_the_published_widths_parameters_and_macs(name: str) -> None:
    from regrow.cost import measure
    from regrow.surgery.architecture import Architecture

    arguments, widths, parameters, macs = WIDTHS[name]
    method = METHODS.get("l1-filter")
    target = method.targets[name]
    spec = ModelSpec(target.model, {"classes": 10, **arguments})
    model, shape = build(spec), (1, 3, 32, 32)
    mask = select(model, trace(model, shape), method, shares=target.shares)
    assert list(mask.widths().values()) == widths
    cost = measure(Architecture(model=spec, shape=shape, cuts=(mask,)).build(), torch.zeros(shape))
    assert cost.parameters == parameters
    assert round(cost.macs / 1e6, 2) == macs


def test_targets_fit_networks_of_another_width() -> None:
    method = METHODS.get("l1-filter")
    model = build(ModelSpec("resnet-56", {"classes": 10, "width": 0.5}))
    mask = select(
        model, trace(model, (1, 3, 32, 32)), method, shares=method.targets["resnet-56-b"].shares
    )
    assert list(mask.widths().values()) == [
        *[3] * 7,
        8,
        8,
        16,
        *[11] * 6,
        16,
        11,
        32,
        *[28] * 7,
        32,
    ]
