"""The ImageNet networks: counts of the protocols, torchvision's weights, targets, and surgery."""

import math
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cutting import enliven_, error, random_mask
from regrow.cost import measure
from regrow.errors import ConfigError, DataError
from regrow.jobs.arms import Budget
from regrow.models import MODELS, ModelSpec, build, initialise_, pretrained
from regrow.models.imagenet_preresnet import First
from regrow.models.imagenet_resnet import (
    RESNET_50_2X,
    SELECTED_2X,
    Bottleneck,
    torchvision_name,
)
from regrow.models.imagenet_vgg import numbers
from regrow.models.layers import SelectChannels
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.surgery import shrink, trace
from regrow.surgery.architecture import Architecture, load, save
from regrow.surgery.mask import Mask
from small import assert_trains

BIAS = {"shortcut_bias": True}

# Protocols, sections 2.4, 4.2, 9.1, 9.2 and 9.3: parameters, billions of MACs, and of FLOPs by the
# official code's counter where it is printed.
TABLE: list[tuple[str, dict[str, Any], int, float, float | None]] = [
    ("imagenet-resnet-34", {}, 21_797_672, 3.664, 7.340),
    ("imagenet-vgg-16", {}, 138_357_544, 15.470, 30.974),
    ("imagenet-resnet-50", BIAS, 25_560_872, 4.089, 8.214),
    ("imagenet-resnet-50", {}, 25_557_032, 4.089, 8.212),
    ("imagenet-vgg-16-bn", {}, 138_365_992, 15.470, 31.001),
    ("imagenet-vgg-11-slimming", {}, 132_885_224, 7.609, 15.254),
    ("imagenet-preresnet-50", {}, 25_549_480, 4.089, None),
    ("resnet-34-a", {}, 20_151_764, 3.100, None),
    ("resnet-34-b", {}, 19_469_372, 2.782, None),
    ("vgg-conv", {}, 131_452_552, 4.791, None),
    ("vgg-gap", {}, 8_322_696, 4.668, None),
    ("vgg-tiny", {}, 1_325_368, 1.005, None),
    ("resnet-50-30", {}, 8_669_158, 1.166, None),
    ("resnet-50-50", {}, 12_385_704, 1.822, None),
    ("resnet-50-70", {}, 16_949_086, 2.601, None),
    ("vgg-16-5x", {}, 130_879_294, 3.515, None),
    ("resnet-50-2x", {}, 19_697_424, 2.730, None),
    ("preresnet-41", {}, 25_351_080, 3.473, None),
    ("preresnet-32", {}, 14_261_928, 2.818, None),
    ("preresnet-26", {}, 14_915_496, 2.278, None),
]
# Section 3.3 and 9.3: the unpruned network's FLOPs over the target's, and scratch-b's epochs of 90
# (of 100 for sparse structure selection), at most doubled.
RATIOS = [
    ("imagenet-resnet-34", "resnet-34-a", 1.182, 106),
    ("imagenet-resnet-34", "resnet-34-b", 1.316, 118),
    ("imagenet-vgg-16", "vgg-conv", 3.227, 180),
    ("imagenet-vgg-16", "vgg-gap", 3.312, 180),
    ("imagenet-vgg-16", "vgg-tiny", 15.35, 180),
    ("imagenet-resnet-50", "resnet-50-30", 3.479, 180),
    ("imagenet-resnet-50", "resnet-50-70", 1.569, 141),
    ("imagenet-vgg-16", "vgg-16-5x", 4.398, 180),
    ("imagenet-resnet-50", "resnet-50-2x", 1.495, 134),
    ("imagenet-preresnet-50", "preresnet-41", 1.178, 117),
    ("imagenet-preresnet-50", "preresnet-32", 1.451, 145),
    ("imagenet-preresnet-50", "preresnet-26", 1.795, 179),
]
NAMES = [name for name in MODELS.names() if MODELS.get(name).family.startswith("imagenet-")]
PARENTS = {
    "imagenet-resnet-34": "resnet34",
    "imagenet-resnet-50": "resnet50",
    "imagenet-resnext-50": "resnext50_32x4d",
    "imagenet-vgg-16": "vgg16",
    "imagenet-vgg-16-bn": "vgg16_bn",
}
TORCHVISION: dict[str, Any] = {"weights": "torchvision"}


def make(name: str, *, seed: int = 0, classes: int = 10, **arguments: Any) -> nn.Module:
    return build(ModelSpec(name, {"classes": classes, **arguments}), seed=seed)


def small(name: str, *, size: int = 32, seed: int = 0, **arguments: Any) -> nn.Module:
    return make(name, width=0.125, input_size=size, seed=seed, **arguments)


def shape_only(name: str, **arguments: Any) -> nn.Module:
    """Build a network of full size without its numbers."""
    with torch.device("meta"):
        model = make(name, classes=1000, **arguments)
    return model.to("meta")  # the fixed choices of channels too


def cost_at_224(model: nn.Module) -> tuple[int, int, int]:
    cost = measure(model.to("meta"), torch.zeros(1, 3, 224, 224, device="meta"))
    return cost.parameters, cost.macs, cost.flops


def of_type(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# Counts


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join([row[0], *row[1]]))
def test_counts_are_those_of_the_protocols(
    row: tuple[str, dict[str, Any], int, float, float | None],
) -> None:
    name, arguments, parameters, billion_macs, billion_flops = row
    counted, macs, flops = cost_at_224(shape_only(name, **arguments))
    assert counted == parameters
    assert f"{macs / 1e9:.3f}" == f"{billion_macs:.3f}"
    if billion_flops is not None:
        assert f"{flops / 1e9:.3f}" == f"{billion_flops:.3f}"


@pytest.mark.parametrize(("parent", "target", "ratio", "epochs"), RATIOS)
def test_budgets_of_the_targets_are_those_of_the_protocols(
    parent: str, target: str, ratio: float, epochs: int
) -> None:
    # Bottlenecks of the official code's ThiNet and regression folders have biased shortcuts.
    arguments = BIAS if parent == "imagenet-resnet-50" else {}
    _, macs, flops = cost_at_224(shape_only(parent, **arguments))
    _, target_macs, target_flops = cost_at_224(shape_only(target))
    # Those of sparse structure selection are ratios of MACs: MXNet has no counter of its own.
    before, after = (macs, target_macs) if "pre" in parent else (flops, target_flops)
    assert before / after == pytest.approx(ratio, rel=5e-4)
    base = 100 if "pre" in parent else 90
    assert Budget(kind="equal-flops", cap=2).epochs(base, before / after) == epochs


def test_convolution_weights_and_prunable_units_are_those_of_the_protocols() -> None:
    def weights(name: str) -> int:
        return sum(conv.weight.numel() for conv in of_type(shape_only(name), nn.Conv2d))

    assert weights("imagenet-resnet-50") == 23_454_912
    assert weights("imagenet-vgg-16-bn") == 14_710_464
    slimming = shape_only("imagenet-vgg-11-slimming")
    assert sum(norm.num_features for norm in of_type(slimming, nn.BatchNorm2d)) == 2_752
    assert [norm.num_features for norm in of_type(slimming, nn.BatchNorm1d)] == [4096, 4096]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("imagenet-preresnet-50", 50),
        ("preresnet-41", 41),
        ("preresnet-32", 32),
        ("preresnet-26", 26),
    ],
)
def test_targets_of_structure_selection_have_the_depth_of_their_name(name: str, depth: int) -> None:
    convs = [n for n, m in small(name).named_modules() if isinstance(m, nn.Conv2d)]
    assert 1 + sum("shortcut" not in n for n in convs) == depth
    assert sum("shortcut" in n for n in convs) == 4


@pytest.mark.parametrize("target", ["resnet-34-a", "resnet-34-b"])
def test_l1_norm_pruning_cuts_resnet_34_to_its_targets(target: str) -> None:
    model = make("imagenet-resnet-34", classes=1000)
    aim = METHODS.get("l1-filter").targets[target]
    assert aim.model == "imagenet-resnet-34"
    found = trace(model, (1, 3, 32, 32))
    mask = select(model, found, "l1-filter", shares=aim.shares)
    num_blocks = enumerate((3, 4, 6, 3), start=1)
    inner = [f"features.stage{s}.{b}.conv1" for s, num in num_blocks for b in range(num)]
    assert list(mask.kept) == inner
    cut = shrink(model, mask, found)
    assert shapes(cut) == shapes(shape_only(target))
    parameters, macs, _ = cost_at_224(cut)
    row = next(row for row in TABLE if row[0] == target)
    assert (parameters, f"{macs / 1e9:.3f}") == (row[2], f"{row[3]:.3f}")


# Torchvision's layout and weights


@pytest.mark.parametrize(("name", "theirs"), PARENTS.items())
def test_layers_are_torchvisions(name: str, theirs: str) -> None:
    model = shape_only(name)
    with torch.device("meta"):
        other = torchvision.models.get_model(theirs, weights=None)
    rename = numbers(model) if "vgg" in name else torchvision_name
    assert {rename(key): shape for key, shape in shapes(model).items()} == shapes(other)
    assert cost_at_224(model)[:2] == cost_at_224(other)[:2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of torchvision's without files, and no network."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def publish(theirs: str, folder: Path) -> nn.Module:
    """Put the weights of a model of torchvision's own making into its cache, and return it."""
    torch.manual_seed(5)
    model: nn.Module = torchvision.models.get_model(theirs, weights=None)
    enliven_(model, (1, 3, 32, 32))
    url = torchvision.models.get_model_weights(theirs)["IMAGENET1K_V1"].url
    old = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save(old, folder / url.rpartition("/")[2])
    model.eval()
    return model


@pytest.mark.parametrize(
    "name", ["imagenet-resnet-34", "imagenet-resnet-50", "imagenet-resnext-50"]
)
def test_torchvisions_weights_give_torchvisions_outputs(name: str, cache: Path) -> None:
    theirs = publish(PARENTS[name], cache)
    model = make(name, classes=1000, **TORCHVISION)
    assert model.training
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), theirs(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet-vgg-16", "imagenet-vgg-16-bn"])
def test_torchvisions_weights_give_torchvisions_outputs_at_full_size(
    name: str, cache: Path
) -> None:
    theirs = publish(PARENTS[name], cache)
    model = make(name, classes=1000, **TORCHVISION).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))


def test_other_classes_draw_their_own_head_over_the_published_features(cache: Path) -> None:
    theirs = publish("resnet34", cache)
    model = make("imagenet-resnet-34", classes=7, seed=3, **TORCHVISION)
    plain = make("imagenet-resnet-34", classes=7, seed=3)
    assert torch.equal(
        model.get_parameter("features.conv.weight"), theirs.get_parameter("conv1.weight")
    )
    for name in ("head.weight", "head.bias"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name))


def test_drawing_anew_forgets_the_published_weights(cache: Path) -> None:
    publish("resnet34", cache)
    model = make("imagenet-resnet-34", **TORCHVISION)
    plain = make("imagenet-resnet-34")
    for network in (model, plain):
        initialise_(network, seed=1)
    for (key, value), other in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


@pytest.mark.usefixtures("cache")
def test_a_saved_network_is_loaded_without_the_published_weights(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"classes": 5, "width": 0.125, "input_size": 32}
    model = make("imagenet-resnet-34", **arguments)
    # As a study leaves it that started from published weights (those of a narrow network are not).
    spec = ModelSpec("imagenet-resnet-34", arguments | TORCHVISION)
    save(tmp_path, model, Architecture(model=spec, shape=(1, 3, 32, 32)))
    again = load(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))
    assert spec.untrained() == ModelSpec("imagenet-resnet-34", arguments)


@pytest.mark.usefixtures("cache")
def test_weights_that_cannot_be_had_say_where_they_were_looked_for() -> None:
    message = (
        r"ResNet34_Weights.IMAGENET1K_V1 cannot be loaded: neither from '.*checkpoints' nor from "
        r"https://download.pytorch.org/models/resnet34.*\(.*no route to host.*"
        r"put the file into the folder"
    )
    with pytest.raises(DataError, match=message):
        make("imagenet-resnet-34", **TORCHVISION)


def test_damaged_weights_are_refused(cache: Path) -> None:
    publish("resnet34", cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"cannot be loaded.*delete it first if it is damaged"):
        make("imagenet-resnet-34", **TORCHVISION)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(DataError, match=r"'resnet34' lack .*Delete the file"):
        make("imagenet-resnet-34", **TORCHVISION)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("imagenet-resnet-34", {"width": 0.5}, r"'resnet34' only.*\[32, 3, 7, 7\] here and \[64"),
        ("imagenet-resnet-34", {"in_channels": 1}, r"'features.conv.weight' is \[64, 1, 7, 7\]"),
        ("imagenet-resnet-50", BIAS, r"4 places: .*shortcut.conv.bias' is .* here and missing"),
        ("resnet-50-50", {"shortcut_bias": False}, r"'resnet50' only"),
        ("imagenet-vgg-16", {"input_size": 64}, r"\[4096, 2048\] here and \[4096, 25088\] there"),
        ("vgg-tiny", {}, r"'vgg16' only.*\[16, 3, 3, 3\] here"),
        ("vgg-tiny", {"plan": [64, "M"], "width": 0.1}, r"torchvision has no 'vgg4'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_fetched(
    name: str, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_fetch", lambda _: pytest.fail("fetched"))
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        make(name, **arguments, **TORCHVISION)


# Initialisation


@pytest.mark.parametrize(
    ("name", "fan", "scale", "head"),
    [
        ("imagenet-resnet-34", "out", 1.0, None),
        ("imagenet-resnext-50", "out", 1.0, None),
        ("imagenet-preresnet-50", "in", 1.0, "kaiming"),
        ("imagenet-vgg-11-slimming", "out", 0.5, "normal"),
        ("imagenet-vgg-16", "out", 1.0, "normal"),
        ("vgg-gap", "out", 1.0, "normal"),
    ],
)
def test_initialisation_follows_the_protocols(
    name: str, fan: str, scale: float, head: str | None
) -> None:
    model = make(name, classes=400, width=0.25, input_size=32)
    for conv in of_type(model, nn.Conv2d):
        channels = conv.out_channels if fan == "out" else conv.in_channels // conv.groups
        std = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * channels))
        # The standard error of a sample's std is std / sqrt(2 n); five of them.
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(std, rel=tolerance)
        assert conv.bias is None or not conv.bias.any()
    for norm in of_type(model, nn.BatchNorm2d) + of_type(model, nn.BatchNorm1d):
        assert (norm.weight == scale).all()
        assert not norm.bias.any()
    for linear in of_type(model, nn.Linear):
        # PyTorch's own is uniform between -1 / sqrt(inputs) and +1 / sqrt(inputs).
        own = 1 / math.sqrt(3 * linear.in_features)
        std = {"normal": 0.01, "kaiming": math.sqrt(2 / linear.in_features)}.get(head or "", own)
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05)
        assert bool(linear.bias.any()) == (head is None)


@pytest.mark.parametrize("name", NAMES)
def test_drawing_anew_covers_everything_but_fixed_choices(name: str) -> None:
    model = small(name)
    chosen = {key for key in model.state_dict() if key.endswith(".index")}
    before = {key: model.state_dict()[key].clone() for key in chosen}
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key not in chosen:
                value.fill_(math.nan if value.is_floating_point() else 5)
    initialise_(model, seed=0)
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        assert "num_batches" not in key or value == 0
        assert key not in chosen or torch.equal(value, before[key])


# Inputs, surgery


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 70), (2, 4)])
def test_any_input_trains_and_is_classified(name: str, channels: int, size: int) -> None:
    model = small(name, classes=7, in_channels=channels, size=size)
    assert_trains(model, torch.randn(2, channels, size, size), outputs=7)


def test_every_network_takes_the_smallest_width() -> None:
    for name in NAMES:
        model = make(name, input_size=32, width=0.001).eval()
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("name", NAMES)
def test_smaller_network_is_the_silenced_one(name: str) -> None:
    model = small(name)
    enliven_(model, (1, 3, 32, 32))
    found = trace(model, (1, 3, 32, 32))
    assert all("output" in why or "grouped" in why for why in found.whole.values())
    mask = random_mask(found, seed=1, keep=0.7)  # another is in test_surgery.py
    assert set(mask.kept) == set(found.groups)
    assert error(model, mask, found) < 1e-9


# Selected inputs


def test_selection_is_fixed_by_its_own_seed_alone() -> None:
    def chosen(**arguments: Any) -> list[list[int]]:
        model = make("resnet-50-2x", width=0.25, **arguments)
        return [select.index.tolist() for select in of_type(model, SelectChannels)]

    first = chosen()
    assert [len(index) for index in first] == [round(0.25 * block[0]) for block in RESNET_50_2X]
    assert all(index == sorted(set(index)) for index in first)
    assert chosen(seed=4) == first
    assert chosen(selection_seed=1) != first


def test_selections_are_the_published_ones_at_the_published_width() -> None:
    """Block by block: how many, the first and the last of the official code's 16 vectors."""

    def chosen(**arguments: Any) -> list[list[int]]:
        with torch.device("meta"):
            model = make("resnet-50-2x", **arguments)
        return [select.index.tolist() for select in of_type(model, SelectChannels)]

    published = chosen()
    assert published == SELECTED_2X
    assert [len(index) for index in published] == [block[0] for block in RESNET_50_2X]
    assert published[0][:12] == [0, 4, 9, 10, 11, 12, 13, 14, 15, 18, 19, 20]
    last = [63, 253, 250, 255, 511, 511, 510, 511, 1021, 1021, 1023, 1023, 1019, 1021, 2047, 2047]
    assert [index[-1] for index in published] == last
    # Who asks for a draw gets one.
    assert chosen(selection_seed=0) != published


@pytest.mark.parametrize(
    ("selections", "wrong"),
    [
        ([*SELECTED_2X[:-1], SELECTED_2X[-1][:-1]], "as many as its 'widths' say"),
        ([SELECTED_2X[0][::-1], *SELECTED_2X[1:]], "of which one is not rising"),
        ([[*SELECTED_2X[0][:-1], 64], *SELECTED_2X[1:]], "select channel 64 of a block with 64"),
    ],
)
def test_selections_that_do_not_fit_are_refused(selections: list[list[int]], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong), torch.device("meta"):
        make("resnet-50-2x", selections=selections)


def test_first_convolution_reads_selected_channels_only_and_the_shortcut_all() -> None:
    block = of_type(small("resnet-50-2x"), Bottleneck)[1].eval()
    select, seen = block.select, list[Tensor]()
    block.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 32, 4, 4)
    with torch.no_grad():
        out = block(x)
        others = torch.ones(32, dtype=torch.bool)
        others[select.index] = False
        x[:, others] += 1
        changed = block(x)
    assert torch.equal(seen[0], x[:, select.index])
    assert torch.equal(seen[1], seen[0])
    assert (changed - out)[:, others].abs().sum() > 0


def test_selection_follows_a_cut_of_the_stream() -> None:
    model = small("resnet-50-2x")
    found = trace(model, (1, 3, 32, 32))
    index = of_type(model, SelectChannels)[1].index
    stays = torch.ones(32, dtype=torch.bool)
    stays[index[0]] = stays[(index[0] + 1) % 32] = False
    stream = next(name for name, g in found.groups.items() if g.kind == "stream")
    cut = shrink(model, Mask(unit="channel", kept={stream: stays}), found)
    left = [i for i in index.tolist() if stays[i]]
    positions = stays.nonzero().flatten().tolist()
    assert [positions[i] for i in of_type(cut, SelectChannels)[1].index.tolist()] == left


# Structure selection


def test_first_unit_projects_what_its_norm_and_relu_make() -> None:
    x = torch.randn(2, 4, 6, 6)
    bare = First([4, 2, 8], stride=2, has_branch=False).eval()
    kept = First([4, 2, 8], stride=2, has_branch=True).eval()
    kept.load_state_dict(bare.state_dict(), strict=False)
    with torch.no_grad():
        activated = bare.norm1(x).relu()
        assert torch.equal(bare(x), bare.shortcut(activated))
        assert kept.branch is not None
        assert torch.allclose(kept(x), bare(x) + kept.branch(activated))


# What cannot be meant


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("imagenet-resnet-34", {"depth": 35}, r"'depth' must be 18 or 34 or .*Got 35"),
        ("imagenet-resnet-34", {"widths": [[8]] * 15}, r"each of its 16 blocks, of 1 numb.*Got 15"),
        ("imagenet-resnet-34", {"widths": [[8, 8]] * 16}, r"with \[8, 8\] among them"),
        ("imagenet-resnet-50", {"widths": [[8, 0]] * 16}, r"of 2 or 3 numbers.*\[8, 0\] among"),
        ("imagenet-resnet-50", {"widths": [[65, 8, 8]] * 16}, r"select 65 of a block.s 64 input"),
        ("imagenet-resnet-50", {"widths": "thin"}, r"'widths' must be a list, .*Got 'thin'"),
        ("imagenet-resnet-34", {"groups": 2}, r"'groups' of a ResNet .*1 in basic.*Got 2"),
        ("imagenet-resnet-50", {"groups": 0}, r"'groups' of a ResNet .*at least 1.*Got 0"),
        ("imagenet-resnet-50", {"weights": "torchvison"}, r"Did you mean 'torchvision'"),
        ("imagenet-vgg-16", {"plan": ["M"]}, r"'plan' of a VGG .*Got \['M'\]"),
        ("imagenet-vgg-16", {"head": "norm"}, r"Did you mean 'normed'"),
        ("imagenet-preresnet-50", {"branches": [3, 4, 6]}, r"must have 4 stages each.*\[3, 4, 6\]"),
        ("imagenet-preresnet-50", {"branches": [0, 4, 6, 3]}, r"Stage 1 keeps its first.*Got 0"),
        ("preresnet-41", {"branches": [-1, 4, 6, 3]}, r"'branches' of stage 1 .*at least 0.*-1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **arguments)
