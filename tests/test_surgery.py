"""Surgery on the registered networks: the oracle, exact counts, and what must stay untouched."""

import copy
import hashlib
import math
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cutting import KINDS, enliven_, error, random_mask
from regrow.cost import measure
from regrow.errors import TraceError
from regrow.models import ModelSpec, build
from regrow.surgery import Kind, Select, Trace, shrink, silence, trace, verify
from regrow.surgery.mask import Mask
from small import image_models

EXACT = 1e-9  # of the largest output, in float64
BUILT_IN = image_models()
NARROW: dict[str, Any] = {"width": 0.25}
PLAN: dict[str, Any] = {"plan": [8, "M", 8, 8, "M", 16]}

# One small member of each family and variant.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vgg", PLAN),
    ("vgg", {**PLAN, "head": "two-layer"}),
    ("vgg", {**PLAN, "conv_bias": True}),
    ("resnet-56", {"depth": 14}),
    ("resnet-20", {"depth": 14}),
    ("resnet-50-lottery", {"depth": 14}),
    ("preresnet-56", {"depth": 20}),
    ("densenet-40", {"depth": 13}),
    ("densenet-bc-100", {"depth": 22}),
]
SMALL = VARIANTS[:]
VARIANTS += [
    ("resnet-110", {"depth": 14}),
    ("preresnet-110", {"depth": 20}),
    ("preresnet-164", {"depth": 20}),
    *[(name, {**NARROW, **(PLAN if name == "vgg" else {})}) for name in BUILT_IN],
]
# Many more of the same blocks: in the slow tests as deep as they are, else as above.
DEEP = {
    *("resnet-56", "resnet-110", "resnet-50-lottery", "densenet-40", "densenet-bc-100"),
    *("preresnet-56", "preresnet-110", "preresnet-164"),
}


def make(name: str, *, size: int = 8, **arguments: Any) -> tuple[nn.Module, Trace]:
    model = build(ModelSpec(name, {"classes": 10, "input_size": size, **arguments}))
    enliven_(model, (1, 3, size, size))
    return model, trace(model, (1, 3, size, size))


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def small_cases() -> dict[int, tuple[nn.Module, Trace]]:
    return {i: make(name, **arguments) for i, (name, arguments) in enumerate(SMALL)}


# The contract, over every registered network


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(*one, marks=[pytest.mark.slow] if one[0] in DEEP and one[1] == NARROW else [])
        for one in VARIANTS
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_smaller_network_is_the_silenced_one_and_trains(
    name: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model, found = make(name, **arguments)
    mask = random_mask(found)
    assert all("output" in why for why in found.whole.values())
    assert found.unaccounted(model) == ()
    assert error(model, mask, found) < EXACT
    small = shrink(model, mask, found).train()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    nn.functional.cross_entropy(small(images), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    again = shrink(model, mask, found)
    again.load_state_dict(load_file(tmp_path / "small.safetensors"))
    assert same(again, small)


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_every_group_shows_in_the_output(
    small_cases: dict[int, tuple[nn.Module, Trace]], case: int
) -> None:
    """Without this the oracle would prove nothing."""
    model, found = small_cases[case]
    x = torch.randn(8, *found.example.shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.eval()(x)
        for name, group in found.groups.items():
            kept = torch.arange(group.size) % 2 == 0
            after = silence(model, Mask(unit="channel", kept={name: kept}), found)(x)
            change = float((after - before).abs().max() / before.abs().max())
            assert change > 1e-3, name
    model.train()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(len(SMALL)))
def test_each_kind_of_group_can_be_cut_alone(
    small_cases: dict[int, tuple[nn.Module, Trace]], case: int, kind: Kind
) -> None:
    model, found = small_cases[case]
    names = {name for name, group in found.groups.items() if group.kind == kind}
    for seed in range(2 if names else 0):
        mask = random_mask(found, seed=seed, kinds=[kind], keep=0.3)
        assert error(model, mask, found) < EXACT
        assert set(mask.kept) == names
        assert num_parameters(shrink(model, mask, found)) <= num_parameters(model)


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_one_unit_of_each_group_is_enough(
    small_cases: dict[int, tuple[nn.Module, Trace]], case: int
) -> None:
    model, found = small_cases[case]
    # A view and the stream that it reads must keep a unit in common: the views stay whole here.
    # The first units of a stream are those that all its stages have.
    kept = {
        name: torch.arange(group.size) == 0
        for name, group in found.groups.items()
        if group.kind != "view"
    }
    assert error(model, Mask(unit="channel", kept=kept), found) < EXACT


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_all_kept_is_the_same_network(
    small_cases: dict[int, tuple[nn.Module, Trace]], case: int
) -> None:
    model, found = small_cases[case]
    kept = {name: torch.ones(g.size, dtype=torch.bool) for name, g in found.groups.items()}
    assert same(shrink(model, Mask(unit="channel", kept=kept), found), model)


@pytest.mark.parametrize("case", range(len(SMALL)))
def test_cutting_twice_is_cutting_by_both_masks(
    small_cases: dict[int, tuple[nn.Module, Trace]], case: int
) -> None:
    model, found = small_cases[case]
    first = random_mask(found, seed=1, keep=0.8)
    second = random_mask(found, seed=2, keep=0.8)
    both = first & second
    for name, kept in both.kept.items():  # the second cut empties nothing
        kept[first.indices(name)[0]] = True
    once = shrink(model, both, found)

    middle = shrink(model, first, found)
    found_again = trace(middle, found.example)
    kept_again = {}
    for name in found_again.groups:
        original = name.removesuffix(".norm") if name not in found.groups else name
        units = first.kept[original]
        if found.groups[original].kind == "view":
            units = units & _stream_kept(found, original, first)
        kept_again[name] = both.kept[original][units]
    again = Mask(unit="channel", kept=kept_again)
    assert error(middle, again, found_again) < EXACT
    twice = shrink(middle, again, found_again)
    x = torch.randn(2, *found.example.shape[1:], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(once.eval()(x), twice.eval()(x), atol=1e-4, rtol=1e-4)
    assert num_parameters(once) == num_parameters(twice)


def _stream_kept(found: Trace, view: str, mask: Mask) -> Tensor:
    """Tell which units of a view are left by the cut of its stream."""
    left = torch.ones(found.groups[view].size, dtype=torch.bool)
    for other, kept in mask.kept.items():
        for slot in found.groups[other].slots:
            if other != view and slot.role == "norm" and slot.tensor == f"{view}.weight":
                left &= (slot.units < 0) | kept[slot.units.clamp(min=0)]
    return left


# Exact counts

# Protocols, section 4.2: widths of the first convolutions of each block.
RESNET_56_A = [*[14] * 7, 16, 14, 32, *[28] * 8, 64, *[57] * 7, 64]
RESNET_56_B = [*[6] * 7, 16, 16, 32, *[22] * 6, 32, 22, 64, *[57] * 7, 64]
RESNET_110_A = [*[8] * 17, 16, *[32] * 18, *[64] * 18]
RESNET_110_B = [*[8] * 17, 16, 32, *[19] * 17, 64, *[44] * 17]
VGG_16_A = [32, 64, 128, 128, 256, 256, 256, *[256] * 6]


@pytest.mark.parametrize(
    ("name", "arguments", "widths", "parameters", "mmacs"),
    [
        ("vgg-16", {"head": "two-layer"}, VGG_16_A, 5_397_034, 206.28),
        ("resnet-56", {}, RESNET_56_A, 773_336, 112.44),
        ("resnet-56", {}, RESNET_56_B, 735_712, 90.91),
        ("resnet-110", {}, RESNET_110_A, 1_688_522, 212.78),
        ("resnet-110", {}, RESNET_110_B, 1_168_424, 155.12),
    ],
    ids=["vgg-16-a", "resnet-56-a", "resnet-56-b", "resnet-110-a", "resnet-110-b"],
)
def test_counts_of_l1_norm_pruning_are_those_of_the_protocols(
    name: str, arguments: dict[str, Any], widths: list[int], parameters: int, mmacs: float
) -> None:
    model = build(ModelSpec(name, {"classes": 10, **arguments}))
    found = trace(model, (1, 3, 32, 32))
    groups = [g for g in found.groups.values() if g.kind == "conv"]
    assert len(groups) == len(widths)
    kept = {g.name: torch.arange(g.size) < width for g, width in zip(groups, widths, strict=True)}
    cost = measure(shrink(model, Mask(unit="channel", kept=kept), found), found.example)
    assert cost.parameters == parameters
    assert f"{cost.macs / 1e6:.2f}" == f"{mmacs:.2f}"


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("vgg-16", 10, [11.89, 9.39, 7.20, 5.29, 3.68, 2.34, 1.32]),
        ("vgg-19", 100, [16.21, 12.82, 9.83, 7.23, 5.04, 3.20, 1.80]),
    ],
)
def test_counts_of_uniform_pruning_are_those_of_the_protocols(
    name: str, classes: int, millions: list[float]
) -> None:
    model = build(ModelSpec(name, {"classes": classes}))
    found = trace(model, (1, 3, 32, 32))
    for tenths, expected in enumerate(millions, start=1):
        kept = {
            group.name: torch.arange(group.size) < group.size * (10 - tenths) // 10
            for group in found.groups.values()
        }
        small = shrink(model, Mask(unit="channel", kept=kept), found)
        assert f"{num_parameters(small) / 1e6:.2f}" == f"{expected:.2f}"


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("preresnet-164", {1: 1.396, 4: 0.733, 7: 0.281}),
        ("densenet-40", {1: 0.953, 4: 0.642, 7: 0.330}),
    ],
)
def test_counts_of_uniform_pruning_differ_by_the_norms_before_selections(
    name: str, millions: dict[int, float]
) -> None:
    """The protocols leave these norms at full width, two parameters for each channel not read."""
    model = build(ModelSpec(name, {"classes": 10}))
    found = trace(model, (1, 3, 32, 32))
    views = [g for g in found.groups.values() if g.kind == "view"]
    inner = [g for g in found.groups.values() if g.kind == "conv" and g.norms]
    cut = [*views, *(inner if name.startswith("preresnet") else [])]
    for tenths, expected in millions.items():
        kept = {g.name: torch.arange(g.size) < g.size * (10 - tenths) // 10 for g in cut}
        small = shrink(model, Mask(unit="channel", kept=kept), found)
        unread = sum(int((~kept[g.name]).sum()) for g in views)
        assert f"{(num_parameters(small) + 2 * unread) / 1e6:.3f}" == f"{expected:.3f}"


def test_parameters_of_a_cut_vgg_by_hand() -> None:
    model, found = make("vgg", plan=[4, "M", 6])
    mask = Mask(
        unit="channel",
        kept={
            "features.conv1": torch.tensor([True, False, True, True]),
            "features.conv2": torch.tensor([True, False, False, True, False, False]),
        },
    )
    small = shrink(model, mask, found)
    # conv 3 -> 3, norm, conv 3 -> 2, norm, linear 2 -> 10 with bias
    assert num_parameters(small) == 27 * 3 + 6 + 27 * 2 + 4 + 20 + 10


def test_parameters_of_a_resnet_with_a_cut_stream_by_hand() -> None:
    model, found = make("resnet-20", depth=8)
    (stream,) = [g for g in found.groups.values() if g.kind == "stream"]
    assert stream.size == 64  # the 16 of the first stage are among the 32, and these among the 64
    kept = torch.ones(64, dtype=torch.bool)
    kept[0] = kept[20] = kept[63] = False  # one of each stage: 15, 30 and 61 channels are left
    small = shrink(model, Mask(unit="channel", kept={stream.name: kept}), found)
    stem = 27 * 15 + 2 * 15
    blocks = [(15, 16, 15), (15, 32, 30), (30, 64, 61)]
    convs = sum(9 * (a * b + b * c) + 2 * (b + c) for a, b, c in blocks)
    assert num_parameters(small) == stem + convs + 61 * 10 + 10


# What is chosen is what stays


def test_kept_filters_stay_unchanged_and_in_order() -> None:
    model, found = make("vgg", **PLAN)
    mask = random_mask(found, seed=4)
    small = shrink(model, mask, found)
    before, after = model.state_dict(), small.state_dict()
    inputs = torch.arange(3)
    for name in [f"features.conv{i}" for i in (1, 2, 3, 4)]:
        kept = mask.indices(name)
        expected = before[f"{name}.weight"][kept][:, inputs]
        assert torch.equal(after[f"{name}.weight"], expected)
        norm = name.replace("conv", "norm")
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(after[f"{norm}.{part}"], before[f"{norm}.{part}"][kept])
        inputs = kept
    assert torch.equal(after["head.weight"], before["head.weight"][:, inputs])


def test_groups_of_a_preactivation_network_are_streams_convolutions_and_views() -> None:
    _, found = make("preresnet-56", depth=11)
    kinds = {name: group.kind for name, group in found.groups.items()}
    assert kinds["features.conv"] == "conv"  # read by the first norm and the projection
    assert kinds["features.stage1.0.norm1"] == "view"
    assert kinds["features.stage1.0.conv1"] == "conv"
    assert kinds["features.stage1.0.conv3"] == "stream"
    assert kinds["features.norm"] == "view"
    assert found.views == {name for name, kind in kinds.items() if kind == "view"}
    assert found.groups["features.stage1.0.conv1"].norms == ("features.stage1.0.norm2",)


def test_cut_view_selects_and_leaves_the_stream_alone() -> None:
    model, found = make("preresnet-56", depth=11)
    name = "features.stage2.0.norm1"
    kept = torch.arange(found.groups[name].size) % 2 == 1
    small = shrink(model, Mask(unit="channel", kept={name: kept}), found)
    chosen = small.get_submodule(name)
    assert isinstance(chosen, nn.Sequential)
    assert isinstance(chosen.select, Select)
    assert chosen.select.index.tolist() == kept.nonzero().flatten().tolist()
    assert repr(chosen.select) == f"Select(channels={int(kept.sum())})"
    assert small.get_submodule("features.stage2.0.shortcut").in_channels == 64


def test_view_cut_as_its_stream_needs_no_selection() -> None:
    model, found = make("preresnet-56", depth=11)
    kept = torch.arange(64) < 40
    views = ["features.stage2.0.norm1"]
    streams = ["features.stage1.0.conv3"]
    small = shrink(model, Mask(unit="channel", kept=dict.fromkeys([*views, *streams], kept)), found)
    assert not any(isinstance(m, Select) for m in small.modules())
    assert small.get_submodule(views[0]).num_features == 40


def test_norm_that_alone_reads_a_stream_is_no_view() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    found = trace(net, (1, 3, 8, 8))
    assert {n: g.kind for n, g in found.groups.items()} == {"0": "conv"}
    assert found.groups["0"].norms == ("2",)


# Nothing is touched


def test_trace_shrink_and_silence_leave_the_network_as_it_was() -> None:
    model, found = make("preresnet-56", depth=11)
    model.train()
    model.get_submodule("features.norm").eval()
    before = copy.deepcopy(model)
    modes = [m.training for m in model.modules()]
    mask = random_mask(found)
    small = shrink(model, mask, trace(model, found.example))
    silence(model, mask, found)
    verify(model, mask, found)
    assert same(model, before)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert small.training
    assert small.get_submodule("features.stage1").training


def test_networks_whose_weights_are_results_of_a_step_are_silenced_and_cut() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older of the two is still in use
        hooked = nn.utils.weight_norm(nn.Conv2d(6, 5, 3))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), normed, hooked, nn.Flatten())
    net(torch.randn(2, 3, 9, 9)).sum().backward()  # now its weights are no leaves
    x = torch.randn(2, 3, 9, 9)
    groups = trace(net, x)
    mask = random_mask(groups, seed=0)
    with torch.no_grad():
        found, wanted = shrink(net, mask, groups)(x), silence(net, mask, groups)(x)
    torch.testing.assert_close(found, wanted)


def test_trace_is_deterministic() -> None:
    model, first = make("densenet-40", depth=13)
    second = trace(model, first.example)
    assert list(first.groups) == list(second.groups)
    for a, b in zip(first.groups.values(), second.groups.values(), strict=True):
        assert (a.name, a.kind, a.size, a.norms) == (b.name, b.kind, b.size, b.norms)
        for s, t in zip(a.slots, b.slots, strict=True):
            assert (s.tensor, s.dim, s.role) == (t.tensor, t.dim, t.role)
            assert torch.equal(s.units, t.units)


# Where units lie in the tensors of each group. Stored masks and pruned networks speak of units by
# number, so a change here makes them others.
UNITS = {
    "vgg-16": "0d144ac4b54f6744",
    "resnet-56": "ec9e79b97f349237",
    "resnet-50-lottery": "f29f00cb183ec200",
    "preresnet-56": "1d51d37dd5901ef8",
    "densenet-40": "31d328c13ddef0d3",
}


@pytest.mark.parametrize("name", UNITS)
def test_units_of_the_papers_networks_keep_their_numbers(name: str) -> None:
    found = trace(build(ModelSpec(name, {"classes": 10})), (1, 3, 32, 32))
    lines = [f"{group.name} {group.kind} {group.size}" for group in found.groups.values()]
    for group in found.groups.values():
        lines += sorted(f"{slot.tensor} {slot.dim} {slot.units.tolist()}" for slot in group.slots)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == UNITS[name]


def test_network_that_fails_is_left_as_it_was() -> None:
    model, _ = make("vgg", **PLAN)
    model.train()
    with pytest.raises(TraceError, match=r"fails on an example of shape \(1, 5, 8, 8\) in 'feat"):
        trace(model, (1, 5, 8, 8))
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_example_may_be_a_batch_and_is_copied() -> None:
    model, found = make("vgg", **PLAN)
    x = torch.randn(3, 3, 8, 8)
    traced = trace(model, x)
    assert traced.example.shape == (1, 3, 8, 8)
    assert torch.equal(traced.example, x[:1])
    assert traced.example.data_ptr() != x.data_ptr()
    assert list(traced.groups) == list(found.groups)


# Errors


def test_keep_leaves_channels_whole() -> None:
    model, _ = make("vgg", **PLAN)
    found = trace(model, (1, 3, 8, 8), keep=["features.conv2", "features.norm3"])
    assert list(found.groups) == ["features.conv1", "features.conv4"]
    assert found.whole["features.conv2"] == "asked to be kept"
    with pytest.raises(TraceError, match="keep: the network has no module 'conv9'"):
        trace(model, (1, 3, 8, 8), keep=["conv9"])


def test_masks_that_cannot_be_cut_are_refused() -> None:
    model, found = make("preresnet-56", depth=11)
    name = "features.stage1.0.conv1"
    cases = [
        ({"nothing": torch.ones(3, dtype=torch.bool)}, "No group 'nothing' in this network"),
        ({name: torch.ones(3, dtype=torch.bool)}, r"has 3 units, but the group has 16"),
        ({name: torch.ones(4, 4, dtype=torch.bool)}, r"shape \(4, 4\). Give one boolean for each"),
        ({name: torch.zeros(16, dtype=torch.bool)}, f"would empty '{name}'. Keep at least one"),
        (
            {
                "features.stage1.0.conv3": torch.arange(64) < 32,
                "features.stage2.0.norm1": torch.arange(64) >= 32,
            },
            "would empty 'features.stage2.0.norm1.weight', which holds some of the units",
        ),
    ]
    for kept, message in cases:
        for act in (shrink, silence) if "holds" not in message else (shrink,):
            with pytest.raises(TraceError, match=message):
                act(model, Mask(unit="channel", kept=kept), found)
    weights = Mask(unit="weight", kept={"head.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(TraceError, match="Got a mask over weights"):
        shrink(model, weights, found)


@pytest.mark.parametrize("act", [shrink, silence, verify])
def test_a_trace_of_another_network_is_refused(act: Any) -> None:
    def chain(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

    net = chain(8)
    found = trace(net, (1, 6))
    mask = Mask(unit="channel", kept={"0": torch.arange(8) < 3})
    cut = shrink(net, mask, found)
    named = nn.Sequential(OrderedDict(a=nn.Linear(6, 8), b=nn.Linear(8, 3)))
    for other, why in (
        (chain(12), r"'0.weight' had 8 in dimension 0, and has the shape \(12, 6\)"),
        (cut, r"'0.weight' had 8 in dimension 0, and has the shape \(3, 6\)"),
        (named, "this network has no '0.weight'"),
    ):
        with pytest.raises(TraceError, match=f"before it was cut: {why}. Trace the network that"):
            act(other, mask, found)


def test_group_sums_what_each_unit_owns() -> None:
    model, found = make("resnet-20", depth=8)
    weights = dict(model.named_parameters())
    group = found.groups["features.stage1.0.conv1"]
    expected = weights["features.stage1.0.conv1.weight"].abs().sum((1, 2, 3))
    assert torch.allclose(group.sum(lambda name: weights[name].abs()), expected)
    scales = group.sum(lambda name: weights[name].abs(), role="norm")
    assert torch.allclose(scales, weights["features.stage1.0.norm1.weight"].abs())
    bare = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), (1, 3, 2, 2)).groups["0"]
    with pytest.raises(TraceError, match=r"The group '0' \(conv\) has no norm weights to score"):
        bare.sum(lambda name: weights[name], role="norm")
    assert math.isclose(float(group.sum(lambda n: torch.ones(16, 16, 3, 3)).sum()), 16 * 144)
