"""The proof of a cut: right cuts are proven, wrong ones named, and what is not known is said."""

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F

from cutting import random_mask
from mutants import KINDS, judged, wrongly
from regrow.errors import TraceError
from regrow.models import MODELS, ModelSpec, build
from regrow.surgery import Trace, blocks, outputs, proof, prove, sensitivities, trace, trial, verify
from regrow.surgery.alive import enlivened
from regrow.surgery.mask import Mask

SHAPE = (1, 3, 8, 8)


def conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


def half(found: Trace) -> Mask:
    kept = {name: torch.arange(g.size) % 2 == 0 for name, g in found.groups.items()}
    return Mask(unit="channel", kept=kept)


class Chain(nn.Module):
    """Three convolutions and a head; what a subclass does in between is under test."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = conv(3, 8), conv(8, 8), conv(8, 6), nn.Linear(6, 5)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).relu()).relu()
        result: Tensor = self.out(self.c(self.between(x)).relu().mean((2, 3)))
        return result


class ByWidth(Chain):
    def between(self, x: Tensor) -> Tensor:
        return x / math.sqrt(x.shape[1])


class Outputs(Chain):
    """A network whose output is whatever a function makes of two tensors."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return self.make(y, y.square())


def test_a_right_cut_is_proven_in_one_sentence() -> None:
    net = Chain()
    found = trace(net, SHAPE)
    proof = verify(net, half(found), found)
    assert proof.ok
    assert set(proof.sensitivity) == {"a", "b", "c"}
    assert float(proof) == proof.error < 1e-9
    assert proof < 1e-9
    assert str(proof).startswith("Proven: on inputs like the example, the cut network equals ")
    assert f"{proof:.1e}" == f"{proof.error:.1e}"
    nothing = verify(net, Mask(unit="channel", kept={"a": torch.ones(8, dtype=torch.bool)}), found)
    assert nothing.ok
    assert "nothing is cut" in str(nothing)


@pytest.mark.parametrize("weight", [0.0, 1e-9])
def test_parts_that_add_nothing_hide_nothing(
    weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6), conv(6, 4)
    )
    for norm in (net[1], net[4]):
        nn.init.constant_(norm.weight, weight)  # type: ignore[arg-type]
    found = trace(net, SHAPE)
    mask = random_mask(found)
    assert verify(net, mask, found).ok
    for kind in KINDS:
        mutant = wrongly(kind, found, mask, seed=0)
        assert mutant is not None
        with monkeypatch.context() as patch:
            mutant.at_work(patch)
            assert not verify(net, mask, found).ok, mutant


def test_code_that_takes_its_width_as_a_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ByWidth()
    found = trace(net, SHAPE)
    assert set(found.groups) == {"a", "c"}
    assert "depends on their number (with 5 of 8 it computes something else" in found.whole["b"]
    monkeypatch.setattr(trial.Trials, "wrong", lambda *_: None)
    found = trace(net, SHAPE)
    result = verify(net, half(found), found)
    assert not result.ok
    assert result.wrong == ("b",)
    assert "Wrong" in str(result)
    assert "trace(..., keep=['b'])" in str(result)
    with pytest.raises(
        TraceError, match=r"was not cut, because the cut could not be proven correct\..*'b'"
    ):
        prove(net, half(found), found)
    kept = trace(net, SHAPE, keep=["b"])
    assert verify(net, half(kept), kept).ok


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("last", [False, True])
def test_what_is_not_finite_never_passes(value: float, last: bool) -> None:
    def make(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        spoilt = z + value
        return (y, spoilt) if last else (spoilt, y)

    net = Outputs(make)
    found = trace(net, SHAPE)
    result = verify(net, half(found), found)
    assert math.isnan(result.error)
    assert not result.ok
    assert not result < 1e-9
    assert "not finite" in str(result)


@pytest.mark.parametrize(
    "make",
    [
        lambda y, z: (y, z),
        lambda y, z: {"logits": y, "rest": [z, None, "text", 3]},
        lambda y, z: (y, z[:0]),
        lambda y, z: (y, z.argmax(1), z > 0),
        lambda y, z: (y, torch.complex(y, z)),
    ],
)
def test_outputs_of_all_sorts_are_compared(make: Any) -> None:
    net = Outputs(make)
    found = trace(net, SHAPE)
    assert verify(net, half(found), found).ok


def test_outputs_that_show_nothing_prove_nothing() -> None:
    for make in (lambda y, z: y[:0], lambda y, z: 0.0 * y + 1.0):
        net = Outputs(make)
        found = trace(net, SHAPE)
        result = verify(net, half(found), found)
        assert not result.ok
        assert set(result.unproven) == set(found.groups)
        assert "Not proven" in str(result)


@pytest.mark.parametrize(
    ("output", "expected", "words"),
    [
        ((torch.zeros(2), torch.zeros(2)), torch.zeros(2), "[2], [2]) in place of [2]"),
        (torch.zeros(3), torch.zeros(2), "shape (3,) where the network itself returns (2,)"),
        (("a",), ("b",), "returns 'a' where the network itself returns 'b'"),
    ],
)
def test_outputs_of_another_structure_are_infinitely_different(
    output: Any, expected: Any, words: str
) -> None:
    assert words in str(outputs.unlike(output, expected))
    assert outputs.difference(output, expected) == math.inf
    assert outputs.unlike(expected, expected) is None


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.l, self.o = nn.Embedding(50, 16), nn.Linear(16, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Any:
        return self.o(self.l(self.e(x)).relu())


class OneOnly(Chain):
    """Takes no batches."""

    def between(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        return x


class FixedPrecision(Chain):
    def between(self, x: Tensor) -> Tensor:
        return x.float()


class FixedByTable(Chain):
    """Meets a table of float32, which no cast makes."""

    def between(self, x: Tensor) -> Tensor:
        return x @ torch.eye(x.shape[-1])


def test_integer_inputs_batches_of_one_and_fixed_precision() -> None:
    cases: list[tuple[nn.Module, Any]] = [
        (Ids(), torch.randint(0, 50, (1, 6), generator=torch.Generator().manual_seed(0))),
        (OneOnly(), SHAPE),
        (FixedPrecision(), SHAPE),
        (FixedByTable(), SHAPE),
    ]
    for net, example in cases:
        found = trace(net, example)
        assert verify(net, half(found), found).ok
    for net, tolerance in ((FixedPrecision(), 1e-9), (FixedByTable(), 1e-5)):
        found = trace(net, SHAPE)
        assert verify(net, half(found), found).tolerance == tolerance


class MaskedInFloat32(Chain):
    """Hides nothing, by a mask of float32 times the least number of the data's own type."""

    def between(self, x: Tensor) -> Tensor:
        return x + (1.0 - torch.ones(1)) * torch.finfo(x.dtype).min


def test_code_that_is_not_finite_in_float64_is_proven_in_its_own_precision() -> None:
    net = MaskedInFloat32()
    assert not bool(torch.isfinite(net.double()(torch.ones(SHAPE).double())).all())
    net = net.float()
    found = trace(net, SHAPE)
    result = verify(net, half(found), found)
    assert result.ok, str(result)
    assert result.tolerance == 1e-5


class Amplifying(nn.Module):
    """Sums of many numbers, of which a rounding is made large."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain, self.a, self.out = gain, nn.Linear(192, 500), nn.Linear(500, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.sin(self.gain * self.out(self.a(x.flatten(1)).relu()))
        return result


@pytest.mark.parametrize(("gain", "right"), [(1.0, True), (3e7, True), (1e13, False)])
def test_a_network_that_amplifies_roundings_is_allowed_what_they_do(
    gain: float, right: bool
) -> None:
    net = Amplifying(gain)
    found = trace(net, SHAPE)
    result = verify(net, random_mask(found), found)
    assert result.ok == right
    if right:
        assert result.tolerance == max(1e-9, result.rounded or 0.0) <= 1e-6
    else:
        assert not result.wrong
        assert result.tolerance == 1e-9
        assert "rounding alone changes the network's output" in str(result)


class ByItsNorm(Amplifying):
    """Divides by a norm that is computed in float32."""

    by_width = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x.flatten(1)).relu()
        size = self.norm(hidden.float()).to(x)
        if self.by_width:
            size = size * hidden.shape[1] / 500
        return torch.sin(self.gain * self.out(hidden / size))

    def norm(self, x: Tensor) -> Tensor:
        return x.square().sum(1, keepdim=True).sqrt()


class ByTable(ByItsNorm):
    """Computes the norm by a table of float32, with which only float32 can be multiplied."""

    def norm(self, x: Tensor) -> Tensor:
        return (x.square().sum(1, keepdim=True) @ torch.ones(1, 1)).sqrt()


def test_casts_to_float32_are_left_out_where_a_network_amplifies_their_rounding() -> None:
    net = ByItsNorm(1e5)
    found = trace(net, SHAPE)
    mask = random_mask(found)
    result = verify(net, mask, found)
    assert result.ok, str(result)
    assert result.error <= result.tolerance == 1e-9
    net.by_width = True
    wrong = verify(net, mask, found)
    assert not wrong.ok
    assert wrong.wrong == ("a",)


@pytest.mark.parametrize(("gain", "right"), [(1.0, True), (1e5, False)])
def test_code_that_runs_in_float32_alone_is_compared_in_float32(gain: float, right: bool) -> None:
    net = ByTable(gain)
    found = trace(net, SHAPE)
    result = verify(net, random_mask(found), found)
    assert result.ok == right
    assert result.wrong == ()
    assert result.tolerance == 1e-5
    assert right or "Such a network cannot be compared" in str(result)


class Tied(nn.Module):
    """Returns the numbers that a sum in another order makes larger, as a detector's tied boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(192, 500), nn.Linear(500, 50)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.a(x.flatten(1)).relu())
        return y[(0.1 + y) + 0.2 > 0.1 + (y + 0.2)]


def test_a_network_whose_shape_depends_on_roundings_cannot_be_compared() -> None:
    net = Tied()
    found = trace(net, SHAPE)
    result = verify(net, random_mask(found), found)
    assert not result.ok
    assert not result.wrong
    assert result.rounded == math.inf
    assert "rounding alone changes the shape" in str(result)
    assert "in the shape of its output" in str(replace(result, error=math.inf))


def test_another_shape_that_rounding_does_not_cause_is_an_error() -> None:
    class Counted(Tied):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x.flatten(1)).relu()
            y: Tensor = self.out(hidden)
            return y if len(x) == 1 else y[:, : hidden.shape[1] // 20]

    net = Counted()
    found = trace(net, SHAPE)
    with pytest.raises(
        TraceError, match=r"a tensor of shape \(\d+, \d+\) where the network itself"
    ):
        verify(net, random_mask(found), found)


def test_casts_to_float32_are_left_out_where_they_keep_code_from_running_in_float64() -> None:
    class Cast(Amplifying):
        by_width = False

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x.flatten(1)).relu().float()
            if self.by_width:
                hidden = hidden * torch.tensor(500.0 / hidden.shape[1])
            result: Tensor = torch.sin(self.gain * self.out(hidden))
            return result

    net = Cast(1e5)  # of which rounding in float32 leaves nothing to compare
    found = trace(net, SHAPE)
    result = verify(net, random_mask(found), found)
    assert result.ok, str(result)
    assert result.tolerance == 1e-9
    net.by_width = True
    assert not verify(net, random_mask(found), found).ok
    assert "computes something else, by" in trace(net, SHAPE).whole["a"]


class InFloat32(Chain):
    """Normalises in float32 whatever comes in, as norms of language models do."""

    def between(self, x: Tensor) -> Tensor:
        return F.instance_norm(x.to(torch.float32)).to(x.dtype)


def test_wrong_cuts_show_in_code_that_casts_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    net = InFloat32()
    found = trace(net, SHAPE)
    mask = half(found)
    live = enlivened(net, torch.randn(SHAPE))
    result = verify(live, mask, found)
    assert result.ok, str(result)
    assert result.tolerance == 1e-9
    for kind in ("shifted", "swapped", "reader", "noise"):
        mutant = wrongly(kind, found, mask, seed=0)
        assert mutant is not None
        with monkeypatch.context() as patch:
            mutant.at_work(patch)
            assert not verify(net, mask, found).ok, mutant


def test_a_network_brought_to_life_neither_fades_nor_overflows() -> None:
    deep = nn.Sequential(conv(3, 8), *[m for _ in range(100) for m in (conv(8, 8), nn.ReLU())])
    for parameter in deep.parameters():
        nn.init.constant_(parameter, 0.0)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in deep.state_dict().items()}
    with torch.no_grad():
        size = float(enlivened(deep, x)(x).square().mean().sqrt())
    assert 0.01 < size < 100
    assert all(torch.equal(v, before[k]) for k, v in deep.state_dict().items())


def test_hooks_are_part_of_what_is_brought_to_life() -> None:
    """The oracle measures norms and standardised weights by hooks: without them a gate is shut."""
    net = nn.Sequential(conv(3, 8), conv(8, 8))
    net[0].register_forward_hook(lambda module, args, output: 100.0 * output + 1.0)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        size = float(enlivened(net, x)(x).square().mean().sqrt())
    assert 0.5 < size < 2.0


def test_what_is_the_same_for_all_samples_stays_alive() -> None:
    """The embedding of one time step for a whole batch: centred, nothing but rounding is left."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6)).eval()
    same = torch.rand(1, 4, generator=torch.Generator().manual_seed(0)).expand(7, 4)
    live = enlivened(net, same)
    for name, tensor in live.state_dict().items():
        assert float(tensor.abs().max()) < 100, name
    assert float(live.state_dict()["1.running_var"].min()) > 0.01
    assert float(live(same)[0].detach().std()) > 0.1


def test_blocks_are_proven_too() -> None:
    net = build(ModelSpec("resnet-20", {"classes": 10, "input_size": 8, "depth": 14}))
    found = trace(net, SHAPE)
    names = list(blocks(net))
    mask = Mask(
        unit="block",
        kept={name: torch.tensor([i % 2 == 0]) for i, name in enumerate(names)},
    )
    result = verify(net, mask, found)
    assert result.ok
    assert set(result.sensitivity) == set(names[1::2])
    assert sensitivities(net, found, names, unit="block").keys() == set(names)


# Wrong cuts on purpose, over many networks

OURS: list[tuple[str, dict[str, Any]]] = [
    ("vgg", {"plan": [8, "M", 8, 8, "M", 16]}),
    ("resnet-20", {"depth": 8}),
    ("preresnet-56", {"depth": 11}),
    ("densenet-40", {"depth": 7}),
]
BUILT_IN = [
    (n, {"width": 0.25})
    for n in MODELS.names()
    if MODELS.code(n) is None and n not in ("vgg", "mlp", "transformer")
]
TORCHVISION = [
    "resnet18", "squeezenet1_0", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "shufflenet_v2_x0_5", "googlenet", "regnet_x_400mf", "regnet_y_400mf",
    "densenet121", "efficientnet_b0", "resnext50_32x4d", "convnext_tiny", "swin_t",
]  # fmt: skip
ATTENTIVE = [
    f"timm/{name}"
    for name in (
        "deit_tiny_patch16_224", "efficientformerv2_s0", "halonet26t", "levit_128s", "volo_d1_224",
    )
]  # fmt: skip


def ours(name: str, arguments: dict[str, Any]) -> nn.Module:
    return build(ModelSpec(name, {"classes": 10, "input_size": 8, **arguments}))


def networks() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Networks of this package, of torchvision, and where it is installed of timm, as built."""
    for name, arguments in (*OURS, *BUILT_IN):
        yield name, ours(name, arguments), SHAPE
    for name in TORCHVISION:
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        net = getattr(torchvision.models, name)(weights=None, num_classes=10, **extra)
        yield f"torchvision {name}", net, (1, 3, 64, 64)
    try:
        import timm
    except ImportError:
        return
    for name in timm.list_models("test_*"):
        made: Any = timm.create_model(name, num_classes=10)
        yield f"timm {name}", made, (1, *made.default_cfg["input_size"])


def benchmark(name: str) -> Any:
    """Import a file of the benchmarks, which are no package."""
    place = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ours", "theirs", "distance"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, math.nan], [1.0, 4.0], math.inf),
        ([1.0, math.nan], [1.0, math.nan], math.inf),
        ([1.0, math.inf], [1.0, 4.0], math.inf),
        ([1.0, -math.inf], [2.0, -math.inf], 0.5),
        ([1.0], [1.0, 4.0], math.inf),
    ],
)
def test_no_oracle_takes_what_is_not_a_number_for_equal(
    ours: list[float], theirs: list[float], distance: float
) -> None:
    found = benchmark("oracle")._distance(torch.tensor(ours), torch.tensor(theirs))
    assert found == distance


def networks_of_the_table() -> Iterator[tuple[str, nn.Module, Any]]:
    """Networks with attention that docs/coverage.md shows, of packages that are installed."""
    table = benchmark("networks")
    for name in table.names():
        if name.startswith(("transformers/", "torch/", "diffusers/")) or name in ATTENTIVE:
            yield name, *table.build(name)


@pytest.mark.parametrize(("name", "arguments"), OURS)
def test_wrong_cuts_are_caught(name: str, arguments: dict[str, Any]) -> None:
    result = judged(ours(name, arguments), SHAPE, num=len(KINDS), seed=1)
    assert result.made == len(KINDS)
    assert not result.missed
    assert not result.refused


# Parts of these hardly affect the output, or do not run: their cuts are refused.
REFUSED = {
    "transformers/DeepseekV4Model",
    "transformers/FlavaModel",
    "transformers/HiggsAudioV2ForConditionalGeneration",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made_of", "least"), [(networks, 200), (networks_of_the_table, 12)], ids=["built", "table"]
)
def test_wrong_cuts_of_many_networks_are_caught(made_of: Any, least: int) -> None:
    results = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for seed, (name, net, shape) in enumerate(made_of()):
            results[name] = judged(net, shape, num=6, seed=seed)
    made = sum(result.made for result in results.values())
    print(f"{made} wrong cuts of {sum(bool(x.made) for x in results.values())} networks")
    assert {name: x.missed for name, x in results.items() if x.missed} == {}
    assert {name for name, x in results.items() if x.refused} <= REFUSED
    assert made >= least


class Best(Chain):
    """The best three of many candidates, of which one alone comes through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.many, self.few, self.last = nn.Linear(6, 400), nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3))
        rare = self.last(self.few(x).relu()).abs() - 20.0
        return torch.cat([self.many(x), rare], 1).topk(3).values


def test_what_is_never_among_the_best_is_compared_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net = Best().eval()
    found = trace(net, SHAPE)
    quiet = sensitivities(net, found, ["few"])
    assert quiet["few"] < proof.LEAST_SHOWN
    assert verify(net, half(found), found).ok
    right: Any = proof.__dict__["shrink"]

    def off(*args: Any) -> Any:
        small = right(*args)
        with torch.no_grad():
            small.few.weight.mul_(1.01)
        return small

    monkeypatch.setattr(proof, "shrink", off)
    assert not verify(net, half(found), found).ok
