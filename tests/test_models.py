"""The networks: counts of the protocols, initialisation, arguments, and what users get wrong."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.core import registry
from regrow.errors import ConfigError
from regrow.models import (
    MODELS,
    ModelSpec,
    build,
    initialise_,
    register_model,
    resolve,
)
from regrow.models.layers import AveragePoolShortcut, SubsampleShortcut, ZeroPad
from small import assert_trains

L1 = {"head": "two-layer"}
UNSTRUCTURED = {"conv_bias": True, "init_fan": "in", "norm_scale": 1.0}
SFP = {"shortcut": "subsample", "fc_init": "kaiming"}
N18 = {"depth": 164}
NOT_BC = {"bottleneck": False, "compression": 0.5}  # what the official command builds

# Protocols, section 2.3: parameters with 10 and 100 classes, convolution weights, millions of MACs,
# millions of FLOPs by the official code's counter, BatchNorm2d channels; None where it has none.
# Soft filter pruning's FLOPs are left out: its ReLUs were functions, which that counter misses.
Row = tuple[str, dict[str, Any], int, int | None, int | None, float, float | None, int | None]
TABLE: list[Row] = [
    ("vgg-16", L1, 14_987_722, None, 14_710_464, 313.46, 627.88, 4_224),
    ("vgg-11", {}, 9_228_362, None, 9_217_728, 152.77, 306.12, 2_752),
    ("vgg-13", {}, 9_413_066, None, 9_402_048, 228.27, 457.41, 2_944),
    ("vgg-16", {}, 14_724_042, 14_770_212, 14_710_464, 313.20, 627.36, 4_224),
    ("vgg-19", {}, 20_035_018, 20_081_188, 20_018_880, 398.14, 797.30, 5_504),
    ("vgg-16", UNSTRUCTURED, 14_728_266, 14_774_436, 14_710_464, 313.20, 627.63, None),
    ("vgg-19", UNSTRUCTURED, 20_040_522, 20_086_692, 20_018_880, 398.14, 797.61, None),
    ("resnet-20", {}, 269_722, None, None, 40.55, None, None),
    ("resnet-32", {}, 464_154, None, None, 68.86, None, None),
    ("resnet-56", {}, 853_018, None, None, 125.49, 252.57, None),
    ("resnet-56", SFP, 853_018, None, None, 125.49, None, None),
    ("resnet-110", {}, 1_727_962, None, None, 252.89, 508.93, None),
    ("resnet-110", SFP, 1_727_962, None, None, 252.89, None, None),
    ("resnet-50-lottery", {}, 758_554, None, 754_096, 111.59, 224.64, None),
    ("preresnet-56", {}, 590_426, 613_556, 579_760, 87.21, 177.70, 4_048),
    ("preresnet-110", {}, 1_146_842, 1_169_972, 1_128_112, 167.43, 341.23, 8_080),
    ("preresnet-110", N18, 1_703_258, 1_726_388, 1_676_464, 247.65, 504.76, 12_112),
    ("preresnet-164", {}, 1_703_258, 1_726_388, 1_676_464, 247.65, 504.76, 12_112),
    ("densenet-40", {}, 1_059_298, 1_100_428, 1_036_008, 282.92, 573.05, 9_360),
    ("densenet-bc-100", {}, 769_162, 800_032, 741_744, 287.93, 588.71, None),
    ("densenet-bc-100", NOT_BC, 4_068_490, 4_129_600, 3_989_232, 1_324.55, 2_684.15, None),
]

# One small member of each family and variant, for what needs no real size.
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("vgg", {"plan": [8, "M", 8, 8, "M", 16, "M", 16, "M", 16]}),
    ("vgg", {"plan": [8, "M", 16], "head": "two-layer", "width": 0.5}),
    ("vgg", {"plan": [8, "M", 16], **UNSTRUCTURED}),
    ("resnet-56", {"depth": 8}),
    ("resnet-20", {"depth": 8}),
    ("resnet-50-lottery", {"depth": 8}),
    ("preresnet-56", {"depth": 11}),
    ("densenet-40", {"depth": 10}),
    ("densenet-bc-100", {"depth": 16}),
]
NAMES = [
    *("densenet-40", "densenet-bc-100", "preresnet-110", "preresnet-164", "preresnet-56"),
    *("resnet-110", "resnet-20", "resnet-32", "resnet-50-lottery", "resnet-56"),
    *("vgg", "vgg-11", "vgg-13", "vgg-16", "vgg-19"),
]


def make(name: str, *, seed: int = 0, classes: int = 10, **arguments: Any) -> nn.Module:
    return build(ModelSpec(name, {"classes": classes, **arguments}), seed=seed)


def count(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Count MACs (convolutions, linear layers) and FLOPs (protocols, section 3.2) on one image."""
    macs, extra = 0, 0

    def add(module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal macs, extra
        if isinstance(module, nn.Conv2d):
            macs += module.weight.numel() * out.shape[2] * out.shape[3]
            extra += out.numel() if module.bias is not None else 0
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()
            extra += module.bias.numel()
        elif isinstance(module, nn.BatchNorm2d):
            extra += 2 * inputs[0].numel()
        elif isinstance(module, nn.ReLU | nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            extra += inputs[0].numel()  # pools do not overlap here: one operation per input

    for module in model.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        model.eval()(x)
    return macs, 2 * macs + extra


def of_type(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register names and load files that are gone after it."""
    MODELS.names()
    monkeypatch.setattr(registry, "_LOADED", list(registry.loaded_files()))
    monkeypatch.setattr(MODELS, "_values", dict(MODELS._values))
    monkeypatch.setattr(MODELS, "_origins", dict(MODELS._origins))


# Counts


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join([row[0], *map(str, row[1])]))
def test_counts_are_those_of_the_protocols(row: Row) -> None:
    name, arguments, parameters, parameters_100, weights, mmacs, mflops, norm_channels = row
    model = make(name, **arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters
    if parameters_100 is not None:
        wider = make(name, classes=100, **arguments)
        assert sum(p.numel() for p in wider.parameters()) == parameters_100
    if weights is not None:
        assert sum(conv.weight.numel() for conv in of_type(model, nn.Conv2d)) == weights
    if norm_channels is not None:
        assert sum(norm.num_features for norm in of_type(model, nn.BatchNorm2d)) == norm_channels
    macs, flops = count(model, torch.zeros(1, 3, 32, 32))
    assert f"{macs / 1e6:.2f}" == f"{mmacs:.2f}"
    if mflops is not None:
        # One unit of the last digit: VGG-19's 797.307 is printed cut off, the others rounded.
        assert flops / 1e6 == pytest.approx(mflops, abs=0.01)


def test_norm_channels_of_each_stage_are_those_of_the_protocols() -> None:
    def by_part(model: nn.Module) -> list[int]:
        features = model.get_submodule("features").children()
        sums = [sum(n.num_features for n in of_type(p, nn.BatchNorm2d)) for p in features]
        return [total for total in sums if total]

    assert by_part(make("preresnet-164")) == [1_680, 3_392, 6_784, 256]
    assert by_part(make("densenet-40")) == [1_080, 168, 2_808, 312, 4_536, 456]


def test_lottery_resnet_has_51_convolutions() -> None:
    assert len(of_type(make("resnet-50-lottery"), nn.Conv2d)) == 51


def test_resnets_of_both_shortcuts_hold_the_same_parameters_by_name() -> None:
    names = [name for name, _ in make("resnet-20").named_parameters()]
    pooled = make("resnet-20", shortcut="average-pool")
    assert [name for name, _ in pooled.named_parameters()] == names


# Initialisation


@pytest.mark.parametrize(
    ("name", "arguments", "fan", "scale"),
    [
        ("vgg-11", {}, "out", 0.5),
        ("vgg-11", L1, "out", 0.5),
        ("vgg-11", UNSTRUCTURED, "in", 1.0),
        ("resnet-56", {}, "out", 1.0),
        ("resnet-20", {}, "out", 1.0),
        ("resnet-50-lottery", {}, "out", 1.0),
        ("preresnet-56", {}, "out", 0.5),
        ("preresnet-56", {"norm_scale": 1.0}, "out", 1.0),
        ("densenet-40", {}, "out", 0.5),
        ("densenet-40", {"norm_scale": 1.0}, "out", 1.0),
        ("densenet-bc-100", {}, "out", 1.0),
    ],
)
def test_initialisation_follows_the_protocols(
    name: str, arguments: dict[str, Any], fan: str, scale: float
) -> None:
    model = make(name, **arguments)
    for conv in of_type(model, nn.Conv2d):
        channels = conv.out_channels if fan == "out" else conv.in_channels
        std = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * channels))
        # The standard error of a sample's std is std / sqrt(2 n); five of them.
        tolerance = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(std, rel=tolerance)
        assert conv.bias is None or not conv.bias.any()
    for norm in of_type(model, nn.BatchNorm2d):
        assert (norm.weight == scale).all()
        assert not norm.bias.any()
    for norm in of_type(model, nn.BatchNorm1d):
        assert (norm.weight == 1).all()


@pytest.mark.parametrize(
    ("name", "std", "bias"),
    [
        ("vgg-16", 0.01, 0.0),
        ("resnet-20", math.sqrt(2 / 64), 0.0),  # kaiming normal, fan-in
        ("resnet-56", 1 / math.sqrt(3 * 64), 1 / math.sqrt(3 * 64)),  # U(-1/8, 1/8)
        ("preresnet-56", 1 / math.sqrt(3 * 256), 1 / math.sqrt(3 * 256)),
    ],
)
def test_last_layer_is_initialised_as_the_protocols_say(name: str, std: float, bias: float) -> None:
    head = of_type(make(name, classes=400), nn.Linear)[-1]
    assert head.weight.std().item() == pytest.approx(std, rel=0.05)
    assert head.bias.std().item() == pytest.approx(bias, rel=0.2)


def test_l1_vgg_head_is_linear_norm_relu_linear() -> None:
    head = make("vgg-16", head="two-layer").get_submodule("head")
    assert [type(m) for m in head.children()] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert of_type(head, nn.Linear)[0].weight.shape == (512, 512)


@pytest.mark.parametrize(("name", "arguments"), SMALL)
def test_build_is_determined_by_the_seed(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (make(name, seed=seed, **arguments) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.training
    for (key, value), same in zip(
        first.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(value, same), key
    for a, b in zip(of_type(first, nn.Conv2d), of_type(other, nn.Conv2d), strict=True):
        assert not torch.equal(a.weight, b.weight)


@pytest.mark.parametrize(("name", "arguments"), SMALL)
def test_initialise_draws_every_parameter_and_statistic(
    name: str, arguments: dict[str, Any]
) -> None:
    model = make(name, **arguments)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(math.nan if value.is_floating_point() else 5)
    initialise_(model, seed=0)
    for key, value in model.state_dict().items():
        assert value.isfinite().all(), key
        assert "num_batches" not in key or value == 0
        assert "running_mean" not in key or not value.any()
        assert "running_var" not in key or (value == 1).all()
    again = copy.deepcopy(model)
    initialise_(again, seed=0)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    initialise_(again, seed=1)
    assert not torch.equal(of_type(again, nn.Conv2d)[0].weight, of_type(model, nn.Conv2d)[0].weight)


def test_initialise_reads_the_sizes_of_a_narrowed_layer_and_looks_into_wrapped_norms() -> None:
    model = make("vgg", plan=[512, "M", 512])
    conv1, conv2 = of_type(model, nn.Conv2d)
    conv1.out_channels = conv2.in_channels = 32
    conv1.weight = nn.Parameter(conv1.weight[:32])
    conv2.weight = nn.Parameter(conv2.weight[:, :32])
    features = model.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    norm = nn.BatchNorm2d(32)
    features.norm1 = nn.Sequential(norm)
    initialise_(model, seed=0)
    assert conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.1)
    assert (norm.weight == 0.5).all()
    model(torch.zeros(2, 3, 32, 32))


def test_initialise_resets_the_layers_of_a_model_without_its_own_rule() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = copy.deepcopy(model)
    initialise_(model, seed=0)
    initialise_(before, seed=0)
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_initialise_names_a_parameter_that_nothing_draws() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(ConfigError, match=r"Nothing initialises 'factor' of Scaled.*initialise_"):
        initialise_(Scaled(), seed=0)


# Shortcuts


@pytest.mark.parametrize(("shortcut", "flows"), [("average-pool", False), ("subsample", True)])
def test_gradient_through_the_shortcut_at_a_transition(shortcut: str, flows: bool) -> None:
    model = make("resnet-56", depth=8, shortcut=shortcut)
    block = model.get_submodule("features.stage2.0")
    with torch.no_grad():
        block.get_submodule("norm2").weight.zero_()  # type: ignore[operator]
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    block(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any()) is flows


def test_shortcuts_shrink_the_map_and_append_zeros() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled, sampled = AveragePoolShortcut(2)(x), SubsampleShortcut(2)(x)
    assert pooled.shape == sampled.shape == (1, 3, 2, 2)
    assert pooled[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert sampled[0, 0].tolist() == [[0, 2], [8, 10]]
    assert not pooled[0, 1:].any()
    assert not sampled[0, 1:].any()


def test_zero_pad_narrows_to_the_channels_that_stay() -> None:
    pad = ZeroPad(16)
    pad.narrow_(kept_in=torch.arange(12), kept_out=torch.arange(20))
    out = pad(torch.ones(1, 12, 2, 2))
    assert out.shape == (1, 20, 2, 2)
    assert not out[:, 12:].any()
    assert "channels=8" in repr(pad)


# Inputs and widths


@pytest.mark.parametrize(("name", "arguments"), SMALL)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8), (3, 64), (2, 4), (1, 28), (1, 7)])
def test_any_input_trains_and_is_classified(
    name: str, arguments: dict[str, Any], channels: int, size: int
) -> None:
    model = make(name, classes=7, in_channels=channels, input_size=size, **arguments)
    assert_trains(model, torch.randn(2, channels, size, size), outputs=7)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "vgg"])
def test_every_named_model_takes_the_smallest_input_and_width(name: str) -> None:
    model = make(name, in_channels=1, input_size=4, width=0.01).eval()
    assert model(torch.zeros(1, 1, 4, 4)).shape == (1, 10)
    assert of_type(model, nn.Conv2d)[0].out_channels in (1, 2)  # 2: twice DenseNet's growth of 1


def test_width_scales_every_channel_number() -> None:
    def outputs(name: str, **arguments: Any) -> list[int]:
        return [conv.out_channels for conv in of_type(make(name, **arguments), nn.Conv2d)]

    for name in ("vgg-16", "resnet-56", "resnet-50-lottery", "preresnet-56", "densenet-bc-100"):
        assert outputs(name, width=0.5) == [width // 2 for width in outputs(name)], name
    assert outputs("vgg", plan=[10, "M", 15], width=0.25) == [2, 4]  # 2.5 and 3.75
    assert outputs("densenet-40", width=0.5)[:2] == [12, 6]


def test_every_layer_is_a_module_of_one_use() -> None:
    for name, arguments in SMALL:
        model, calls = make(name, **arguments), dict[str, int]()

        def note(module: nn.Module, *_: Any, calls: dict[str, int] = calls) -> None:
            calls[str(id(module))] = calls.get(str(id(module)), 0) + 1

        leaves = [m for m in model.modules() if not list(m.children())]
        for leaf in leaves:
            leaf.register_forward_hook(note)
        model(torch.zeros(2, 3, 32, 32))
        assert len(calls) == len(leaves)
        assert set(calls.values()) == {1}


# Names and arguments


def test_the_networks_of_the_paper_are_registered() -> None:
    assert set(NAMES) <= set(MODELS.names())
    assert {MODELS.get(name).family for name in NAMES} == {
        *("vgg", "resnet", "preresnet", "densenet"),
    }
    for name in NAMES:
        assert "arXiv" in MODELS.get(name).reference


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vgg-17", {}, r"Unknown model 'vgg-17'\. Did you mean 'vgg-1"),
        ("resnet-56", {"shortcuts": "projection"}, r"model 'resnet-56'.*Did you mean 'shortcut'"),
        ("resnet-56", {"depth": "x"}, r"model 'resnet-56': 'depth' must be an int\. Got 'x'"),
        ("resnet-56", {"depth": True}, r"'depth' must be an int\. Got True"),
        ("resnet-56", {"depth": 57}, r"must be 6n \+ 2.*Got 57; the nearest is 56"),
        ("resnet-56", {"depth": 2}, r"n of at least 1\. Got 2; the nearest is 8"),
        ("preresnet-56", {"depth": 57}, r"PreResNet must be 9n \+ 2.*the nearest is 56"),
        ("densenet-bc-100", {"depth": 43}, r"DenseNet-BC must be 6n \+ 4.*the nearest is 40"),
        ("densenet-40", {"growth": 0}, r"'growth' of a DenseNet.*at least 1\. Got 0"),
        ("densenet-40", {"compression": 2}, r"'compression'.*at most 1\. Got 2"),
        ("densenet-40", {"bottleneck": 1}, r"'bottleneck' must be true or false\. Got 1"),
        ("resnet-56", {"shortcut": "subsampel"}, r"Unknown value.*Did you mean 'subsample'"),
        ("resnet-56", {"shortcut": 3}, r"must be 'average-pool' or .*Got 3"),
        ("vgg-16", {"width": 0}, r"'width' is a factor and must be above 0\. Got 0"),
        ("vgg-16", {"width": "half"}, r"'width' must be a number\. Got 'half'"),
        ("vgg-16", {"classes": 0}, r"'classes' must be an int of at least 1\. Got 0"),
        ("vgg-16", {"in_channels": 0}, r"'in_channels' must be an int of at least 1\. Got 0"),
        ("vgg-16", {"input_size": 3}, r"'input_size' must be an int of at least 4\. Got 3"),
        ("vgg", {}, r"model 'vgg': the argument 'plan' is missing"),
        ("vgg", {"plan": []}, r"'plan' of a VGG must be a list of widths"),
        ("vgg", {"plan": ["M"]}, r"with one width or more"),
        ("vgg", {"plan": [8, 0]}, r"'plan' of a VGG must be .*Got \[8, 0\]"),
        ("vgg", {"plan": [8, "P"]}, r"'plan' must be a list, each item an int or 'M'"),
        ("vgg", {"plan": "8 M"}, r"'plan' must be a list.*Got '8 M'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **arguments)


def test_classes_must_be_given() -> None:
    with pytest.raises(ConfigError, match="the argument 'classes' is missing"):
        build(ModelSpec("vgg-16"))


def test_reserved_arguments_may_be_neither_given_nor_missed() -> None:
    reserved = ("classes", "in_channels", "input_size")
    assert "classes" not in resolve(ModelSpec("resnet-20"), reserved=reserved)
    with pytest.raises(ConfigError, match="'classes' comes from the data set"):
        resolve(ModelSpec("resnet-20", {"classes": 10}), reserved=reserved)


def test_resolve_fills_in_what_the_name_and_the_factory_add() -> None:
    resolved = resolve(ModelSpec("resnet-20", {"classes": 10, "width": 1, "fc_init": "default"}))
    assert resolved == {
        "classes": 10,
        "depth": 20,
        "in_channels": 3,
        "input_size": 32,
        "width": 1.0,
        "shortcut": "subsample",
        "fc_init": "default",
        "norm_scale": 1.0,
    }
    assert isinstance(resolved["width"], float)


def test_spec_goes_through_json_hashes_and_pickles() -> None:
    plan = [16, "M", 32]
    spec = ModelSpec("VGG", {"plan": plan, "classes": 10})
    plan.append(64)
    same = ModelSpec("vgg", {"classes": 10, "plan": (16, "M", 32)})
    assert spec == same
    assert hash(spec) == hash(same)
    assert spec.arguments == {"classes": 10, "plan": [16, "M", 32]}
    assert ModelSpec.from_json(spec.to_json()) == spec == pickle.loads(pickle.dumps(spec))
    assert spec != ModelSpec("vgg", {"classes": 10, "plan": [16]})
    assert repr(spec) == "ModelSpec('vgg', {'classes': 10, 'plan': [16, 'M', 32]})"
    spec.arguments["classes"] = 3
    assert spec.arguments["classes"] == 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("vgg", "must map 'name' and 'arguments'. Got 'vgg'"),
        ({"arguments": {}}, "needs a 'name'"),
        ({"name": "vgg", "argument": {}}, "Unknown key 'argument'. Did you mean 'arguments'"),
        ({"name": 3}, "model name must be a text. Got 3"),
        ({"name": "vgg", "arguments": [1]}, "arguments of model 'vgg' must map names"),
        ({"name": "vgg", "arguments": {"width": math.nan}}, "arguments of model 'vgg' must map"),
    ],
)
def test_damaged_specs_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSpec.from_json(value)


@pytest.mark.usefixtures("own_names")
def test_a_model_is_added_by_one_file(tmp_path: Path) -> None:
    file = tmp_path / "my model.py"
    file.write_text(
        '''
from torch import nn
from regrow.models import register_model


@register_model("tiny", family="linear", hidden=4)
@register_model("tiny-wide", family="linear", hidden=64)
def tiny(*, classes: int, hidden: int, in_channels: int = 3, input_size: int = 32) -> nn.Module:
    """Build a perceptron.

    Reference: Rosenblatt,
    1958.
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * input_size**2, hidden), nn.Linear(hidden, classes)
    )
'''
    )
    registry.load_file(file)
    assert MODELS.get("tiny").reference == "Rosenblatt, 1958."
    assert MODELS.origin("tiny") == str(file)
    model = make("tiny_wide", input_size=8)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    assert of_type(model, nn.Linear)[0].out_features == 64
    initialise_(model, seed=0)
    with pytest.raises(ConfigError, match=r"Unknown argument 'hiden'\. Did you mean 'hidden'"):
        make("tiny", hiden=3)
    with pytest.raises(ConfigError, match="Unknown argument 'width'"):
        make("tiny", width=0.5)


@pytest.mark.usefixtures("own_names")
def test_factories_that_cannot_serve_are_refused() -> None:
    def no_size(*, classes: int, in_channels: int) -> nn.Module:
        return nn.Linear(in_channels, classes)

    def no_module(*, classes: int, in_channels: int = 3, input_size: int = 32) -> int:
        return classes

    with pytest.raises(ConfigError, match=r"register_model\('a'\).*Missing: input_size"):
        register_model("a", family="x")(no_size)
    with pytest.raises(ConfigError, match=r"register_model\('b'\): Unknown argument 'depth'"):
        register_model("b", family="x", depth=3)(no_module)  # type: ignore[type-var]
    register_model("c", family="x")(no_module)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match=r"must return a torch.nn.Module. Got int"):
        make("c")
