"""Nothing disappears: every parameter is in a group, or kept whole with a reason that is true."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

from cutting import random_mask
from regrow.errors import TraceError
from regrow.surgery import Trace, shrink, trace, verify

SHAPE = (1, 3, 8, 8)
EXACT = 1e-9
Made = Callable[[], nn.Module]


class Net(nn.Module):
    """A function of layers, parameters and buffers."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(a: int, b: int, **arguments: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **arguments)


def chain(first: nn.Module, second: nn.Module | None = None) -> Net:
    """Three layers with ReLUs; the first two may be something special."""
    return Net(
        lambda m, x: m.out(m.b(m.a(x).relu()).relu()),
        a=first,
        b=second or conv(8, 6),
        out=conv(6, 2),
    )


def tokens(part: nn.Module, forward: Callable[[Any, Tensor], Tensor], *, width: int = 8) -> Net:
    """An embedding of pixels, something over tokens, a classifier."""
    return Net(
        lambda m, x: m.out(forward(m.part, m.a(x).flatten(2).transpose(1, 2)).mean(1)),
        a=conv(3, 8), part=part, out=nn.Linear(width, 2),
    )  # fmt: skip


class Standardised(nn.Conv2d):
    """A convolution that standardises its weights, as timm's StdConv2d does."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Cumulated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumprod(1)


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def parametrized(layer: nn.Module, name: str = "weight") -> nn.Module:
    parametrize.register_parametrization(layer, name, Positive())
    return layer


def quietly(make: Made) -> Made:
    """Make a network by means that PyTorch calls deprecated, and that people have."""

    def made() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def after_a_step() -> nn.Module:
    net = chain(conv(3, 8))
    torch_prune.l1_unstructured(net.a, "weight", 0.3)  # type: ignore[no-untyped-call]
    net(torch.randn(2, *SHAPE[1:])).sum().backward()
    return net


def quantised() -> nn.Module:
    net = chain(conv(3, 8)).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[no-untyped-call]
    made: nn.Module = quantization.prepare_qat(net)  # type: ignore[no-untyped-call]
    return made


def compiled(net: nn.Module) -> nn.Module:
    made: nn.Module = torch.jit.trace(net, torch.zeros(SHAPE))  # type: ignore[no-untyped-call]
    return made


def in_autocast(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return m.out(m.n(m.b(m.a(x).relu())).relu())


def shared_blocks() -> nn.Module:
    shared = conv(8, 8)
    return Net(
        lambda m, x: m.out(m.c(m.b(m.a(x).relu()).relu()).relu()),
        a=conv(3, 8), b=nn.Sequential(shared, nn.BatchNorm2d(8)),
        c=nn.Sequential(shared, nn.BatchNorm2d(8)), out=conv(8, 2),
    )  # fmt: skip


def parameter(*shape: int, **arguments: Any) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, **arguments))


COMPUTED = "its weights go through"
PARAMETRIZED = "its weight is computed from other parameters"
OUT = {"out": "output"}

# Name -> network, its groups, what else than the last layer is kept whole and a part of why.
KINDS: dict[str, tuple[Made, dict[str, int], dict[str, str]]] = {
    "weight standardisation": (
        lambda: chain(Standardised(3, 8, 3), Standardised(8, 6, 3)),
        {}, {"a": COMPUTED, "b": COMPUTED},
    ),
    "weight_norm": (
        lambda: chain(parametrizations.weight_norm(conv(3, 8))), {"b": 6}, {"a": PARAMETRIZED},
    ),
    "weight_norm of a grouped convolution": (
        lambda: chain(conv(3, 8), parametrizations.weight_norm(conv(8, 6, groups=2))),
        {}, {"a": "computed or constant, not parameters", "b": PARAMETRIZED},
    ),
    "weight_norm of a transposed convolution": (
        lambda: chain(conv(3, 8), parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 2))),
        {}, {"a": "computed or constant, not parameters", "b": PARAMETRIZED},
    ),
    "weight_norm by hooks": (
        quietly(lambda: chain(nn.utils.weight_norm(conv(3, 8)))), {"b": 6}, {"a": PARAMETRIZED},
    ),
    "spectral_norm": (
        lambda: chain(parametrizations.spectral_norm(conv(3, 8))), {"b": 6}, {"a": PARAMETRIZED},
    ),
    "spectral_norm by hooks": (
        quietly(lambda: chain(nn.utils.spectral_norm(conv(3, 8)))), {"b": 6}, {"a": PARAMETRIZED},
    ),
    "parametrized norm": (
        lambda: chain(conv(3, 8), nn.Sequential(parametrized(nn.BatchNorm2d(8)), conv(8, 6))),
        {"a": 8, "b.1": 6}, {},
    ),
    "parametrized bias": (
        lambda: chain(parametrized(conv(3, 8), "bias")), {"a": 8, "b": 6}, {},
    ),
    "masks of nn.utils.prune, after a step": (after_a_step, {"b": 6}, {"a": COMPUTED}),
    "fake quantisation": (
        quietly(quantised), {}, {"a": COMPUTED, "b": COMPUTED, "out": COMPUTED},
    ),
    "autocast inside forward": (
        lambda: Net(in_autocast, a=conv(3, 8), b=conv(8, 6), n=nn.BatchNorm2d(6), out=conv(6, 2)),
        {"a": 8, "b": 6}, {},
    ),
    "torch.jit.trace": (
        quietly(lambda: compiled(chain(conv(3, 8)).eval())),
        {}, {"a": "torch.jit", "b": "torch.jit", "out": "torch.jit"},
    ),
    "torch.jit.script inside": (
        quietly(lambda: chain(conv(3, 8), torch.jit.script(nn.Sequential(conv(8, 6))))),
        {}, {"a": "it enters a module that torch.jit compiled", "b.0": "torch.jit"},
    ),
    "GRU": (
        lambda: tokens(nn.GRU(8, 6, batch_first=True), lambda m, t: m(t)[0], width=6),
        {"a": 8, "part.weight_ih_l0": 6}, {},
    ),
    "LSTM": (
        lambda: tokens(nn.LSTM(8, 6, batch_first=True), lambda m, t: m(t)[0], width=6),
        {"a": 8, "part.weight_ih_l0": 6}, {},
    ),
    "attention": (
        lambda: tokens(nn.MultiheadAttention(8, 2, batch_first=True), lambda m, t: m(t, t, t)[0]),
        {"a": 2, "part.out_proj": 8}, {},  # heads, each with the channels that count it
    ),
    "Embedding": (
        lambda: Net(lambda m, x: m.out(m.b(m.a((x[:, 0, 0] > 0).long())).relu()),
                    a=nn.Embedding(2, 8), b=nn.Linear(8, 6), out=nn.Linear(6, 2)),
        {"a": 8, "b": 6}, {},
    ),
    "tied embedding": (
        lambda: Net(lambda m, x: m.out(F.linear(m.b(m.a((x[:, 0, 0] > 0).long())).relu(),
                                                m.a.weight)),
                    a=nn.Embedding(2, 8), b=nn.Linear(8, 8), out=nn.Linear(2, 2)),
        {"a": 8}, {},
    ),
    "embedding whose rows are kept short": (
        lambda: Net(lambda m, x: m.out(m.a((x[:, 0, 0] > 0).long())),
                    a=nn.Embedding(2, 8, max_norm=1.0), out=nn.Linear(8, 2)),
        {}, {"a": "embedding_renorm_"},
    ),
    "EmbeddingBag": (
        lambda: Net(lambda m, x: m.out(m.b(m.a((x[:, 0, 0] > 0).long())).relu()),
                    a=nn.EmbeddingBag(2, 8), b=nn.Linear(8, 6), out=nn.Linear(6, 2)),
        {"a": 8, "b": 6}, {},
    ),
    "table of positions": (
        lambda: tokens(nn.Embedding(64, 8), lambda m, t: t + m(torch.arange(64))),
        {"a": 8}, {},
    ),
    "Bilinear": (
        lambda: tokens(nn.Bilinear(8, 8, 6), lambda m, t: m(t, t), width=6),
        {}, {"a": "cannot be followed", "part": "_trilinear"},
    ),
    "norm of the map": (
        lambda: chain(nn.Sequential(conv(3, 8), nn.LayerNorm([8, 8]))),
        {"a.0": 8, "b": 6}, {"a.1": "native_layer_norm"},
    ),
    "norm of the input": (
        lambda: chain(nn.Sequential(nn.BatchNorm2d(3), conv(3, 8))),
        {"a.1": 8, "b": 6}, {"a.0": "its input is kept whole: the network's input"},
    ),
    "norm of the output": (
        lambda: nn.Sequential(chain(conv(3, 8)), nn.BatchNorm2d(2)),
        {"0.a": 8, "0.b": 6}, {"0.out": "output", "1": "output"},
    ),
    "instance norm with a scale": (
        lambda: chain(nn.Sequential(conv(3, 8), nn.InstanceNorm2d(8, affine=True))),
        {"a.0": 8, "b": 6}, {},
    ),
    "one number": (
        lambda: chain(nn.Sequential(conv(3, 8), nn.PReLU())),
        {"a.0": 8, "b": 6}, {"a.1": "one number"},
    ),
    "sum with what cannot be followed": (
        lambda: Net(lambda m, x: m.out(m.b(m.a(x)) + m.p(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 6),
                    p=Cumulated(), out=conv(6, 2)),
        {"a": 8}, {"b": "'aten::cumprod' cannot be followed in 'p'"},
    ),
    "sum with a sum of those": (
        lambda: Net(lambda m, x: m.out(m.b(m.a(x)) + (m.p(m.a(x)[:, :6]) * 2).relu()),
                    a=conv(3, 8), b=conv(8, 6), p=Cumulated(), out=conv(6, 2)),
        {}, {"a": "", "b": "combined with data that is kept whole: the result of 'aten::slice'"},
    ),
    "token of its own": (
        lambda: Net(lambda m, x: m.out(torch.cat([m.cls.expand(len(x), -1, -1),
                                                  m.a(x).flatten(2).transpose(1, 2)], 2).mean(1)),
                    a=conv(3, 8), cls=parameter(1, 64, 4), out=nn.Linear(12, 2)),
        {"a": 8}, {"cls": "no layer produces the channels"},
    ),
    "list of parameters": (
        lambda: Net(lambda m, x: m.out(F.conv2d(F.conv2d(x, m.w[0]).relu(), m.w[1]) * m.w[2]),
                    w=nn.ParameterList([parameter(8, 3, 3, 3), parameter(6, 8, 3, 3),
                                        parameter(1)]), out=conv(6, 2)),
        {"w.0": 8, "w.1": 6}, {"w.2": "one number"},
    ),
    "product of parameters": (
        lambda: Net(lambda m, x: m.out(F.conv2d(m.a(x), (m.p @ m.q).view(6, 8, 3, 3))),
                    a=conv(3, 8), p=parameter(6, 4), q=parameter(4, 72), out=conv(6, 2)),
        {}, {"a": "computed or constant", "p": COMPUTED, "q": COMPUTED},
    ),
    "complex parameters": (
        lambda: Net(lambda m, x: m.out(m.b(m.a(x).to(torch.complex64)).real), a=conv(3, 8),
                    b=nn.Conv2d(8, 6, 3, dtype=torch.complex64), out=conv(6, 2)),
        {}, {"a": "computed or constant", "b": COMPUTED},
    ),
    "buffer for a weight": (
        lambda: Net(lambda m, x: m.out(F.conv2d(m.a(x).relu(), m.w)), a=conv(3, 8),
                    w=torch.randn(6, 8, 3, 3), out=conv(6, 2)),
        {}, {"a": "computed or constant", "w": "it is a buffer"},
    ),
    "checkpointed block": (
        lambda: Net(lambda m, x: m.out(checkpoint(m.b, m.a(x).relu(), use_reentrant=False)),
                    a=conv(3, 8), b=nn.Sequential(conv(8, 6), nn.ReLU()), out=conv(6, 2)),
        {"a": 8, "b.0": 6}, {},
    ),
    "half precision": (
        lambda: chain(conv(3, 8), nn.Sequential(conv(8, 6), nn.BatchNorm2d(6))).bfloat16(),
        {"a": 8, "b.0": 6}, {},
    ),
    "weight detached": (
        lambda: Net(lambda m, x: m.out(F.conv2d(x, m.a.weight.detach())), a=conv(3, 8),
                    out=conv(8, 2)),
        {"a": 8}, {"a.bias": "not used"},
    ),
    "convolution shared by blocks": (shared_blocks, {"a": 8}, {}),
    "layer that is never used": (
        lambda: Net(lambda m, x: m.out(m.a(x)), a=conv(3, 8), b=conv(8, 8), out=conv(8, 2)),
        {"a": 8}, {"b": "was not used when the network ran on the example"},
    ),
    "a view to a fixed width": (
        lambda: chain(nn.Sequential(conv(3, 8), nn.Unflatten(1, (8, 1)), nn.Flatten(1, 2))),
        {"a.0": 8, "b": 6}, {},  # which stands in an attribute, and follows
    ),
    "detections, of which the example has none": (
        lambda: Net(lambda m, x: (lambda y: torch.cat([y[y[:, 0] > 1e9]] * 2))(
                        m.out(m.a(x)).mean((2, 3))), a=conv(3, 8), out=conv(8, 2)),
        {"a": 8}, {"out": ""},
    ),
}  # fmt: skip


def made(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind][0]()


# Checkpoints import PyTorch's compiler: three seconds.
SLOW = [pytest.param("checkpointed block", marks=pytest.mark.slow)]
QUICK = [kind for kind in KINDS if kind != "checkpointed block"]


@pytest.mark.parametrize("kind", [*QUICK, *SLOW])
def test_every_parameter_is_in_a_group_or_kept_whole_for_a_reason(kind: str) -> None:
    _, groups, whole = KINDS[kind]
    net = made(kind)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    found = trace(net, SHAPE)
    assert {name: group.size for name, group in found.groups.items()} == groups
    expected = OUT | whole if "0.out" not in whole else whole
    assert found.whole.keys() == expected.keys()
    for layer, why in expected.items():
        assert why in found.whole[layer], layer
    check_complete(net, found)
    for name, buffer in net.named_buffers():  # observers wrote into theirs meanwhile
        assert torch.equal(buffer, buffers[name]), name


def check_complete(net: nn.Module, found: Trace) -> None:
    """Count anew, without the trace's own account of it."""
    held = {slot.tensor for group in found.groups.values() for slot in group.slots}
    for name, _ in net.named_parameters():
        outer = [name[:i] for i, letter in enumerate(name) if letter == "."]
        assert name in held or any(layer in found.whole for layer in (name, *outer)), name
    assert found.unaccounted(net) == ()


@pytest.mark.parametrize("kind", [*[kind for kind in QUICK if KINDS[kind][1]], *SLOW])
def test_what_is_offered_can_be_cut(kind: str) -> None:
    net = made(kind)
    found = trace(net, SHAPE)
    for seed in range(2):
        mask = random_mask(found, seed=seed)
        small = shrink(net, mask, found)
        with torch.no_grad():
            old, new = net.eval()(found.example), small.eval()(found.example)
        assert old.shape == new.shape
        if old.numel():
            assert verify(net, mask, found) < EXACT


@pytest.mark.parametrize("kind", ["masks of nn.utils.prune, after a step", "weight_norm by hooks"])
def test_network_is_cut_after_a_step_that_left_results_in_it(kind: str) -> None:
    net = made(kind)
    found = trace(net, SHAPE)
    net(torch.randn(2, *SHAPE[1:])).sum().backward()
    weight = net.get_submodule("a").weight
    assert isinstance(weight, Tensor)
    assert not weight.is_leaf
    small = shrink(net, random_mask(found), found)
    assert small.get_submodule("out").in_channels == len(random_mask(found).indices("b"))


def test_unaccounted_names_what_another_network_has() -> None:
    found = trace(chain(conv(3, 8)), SHAPE)
    more = chain(conv(3, 8), nn.Sequential(conv(8, 6), nn.PReLU()))
    assert found.unaccounted(more) == ("b.0.weight", "b.0.bias", "b.1.weight")


@pytest.mark.parametrize(
    "lazy", [nn.LazyConv2d(8, 3), nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d())]
)
def test_lazy_layers_are_refused_and_left_as_they_were(lazy: nn.Module) -> None:
    net = chain(lazy)
    with pytest.raises(TraceError, match=r"lazy layers, .* 'a.*'. Run it once on an example"):
        trace(net, SHAPE)
    with pytest.raises(TraceError, match="lazy"):  # still
        trace(net, SHAPE)
    net(torch.zeros(SHAPE))
    assert len(trace(net, SHAPE).groups) == 2


def test_smaller_network_of_another_output_is_refused() -> None:
    """By a trial, so that it is no group."""
    net = Net(lambda m, x: (m.out(y := m.a(x)), torch.zeros(y.shape[1])), a=conv(3, 8),
              out=conv(8, 2))  # fmt: skip
    found = trace(net, SHAPE)
    assert not found.groups
    assert "returns another shape, (1, 2, 8, 8), (5,) in place of" in found.whole["a"]


@pytest.mark.parametrize("width", [5, 16])
def test_groups_at_fault_are_found_among_many(width: int) -> None:
    """One layer's width stands in the code; all others are groups all the same."""
    layers: list[nn.Module] = [conv(3, width)]
    layers += [conv(width, width) for _ in range(8)]
    fixed = Net(lambda m, x: x.view(len(x), width, 1, *x.shape[2:]).flatten(1, 2))
    net = nn.Sequential(*layers[:6], fixed, *layers[6:], conv(width, 2))
    found = trace(net, SHAPE)
    assert len(found.groups) == 8
    assert found.whole.keys() == {"5", str(len(net) - 1)}


TIMM = (
    *("byobnet", "coatnet", "convnext", "convnext2", "convnext3", "efficientnet", "mambaout"),
    *("efficientnet_evos", "efficientnet_gn", "efficientnet_ln", "nfnet", "resnet", "vit", "vit2"),
)
LONG_TIMM = ("maxvit", "vit3", "vit4", "vit_relpos")


@pytest.mark.parametrize(
    "name", [*TIMM, *[pytest.param(name, marks=pytest.mark.slow) for name in LONG_TIMM]]
)
def test_networks_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm, of the development extras, is missing")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(f"test_{name}", num_classes=10).eval()
    size = 96 if "vit" not in name and "coat" not in name else 160
    found = trace(net, (1, 3, size, size))
    check_complete(net, found)
    shrink(net, random_mask(found), found)


class Experts(nn.Module):
    """Experts as one parameter of three dimensions, all of which see every token."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 16, 32) / 4)
        self.down = nn.Parameter(torch.randn(4, 32, 16) / 5)
        self.gate = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        each = x.t().expand(4, -1, -1)
        y = torch.bmm(torch.bmm(self.up.mT, each).relu().mT, self.down)
        y = y * self.gate(x).softmax(-1).t().unsqueeze(-1)
        return torch.add(x, y.sum(0))


def test_data_that_is_kept_whole_is_named_where_only_an_operation_is_known() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), Experts(), nn.Linear(16, 4)).eval()
    reasons = trace(net, torch.randn(5, 8)).whole
    assert (
        reasons["0"]
        == "it is combined with data that is kept whole: an input of 'aten::bmm' in '1'"
    )
    assert not [r for r in reasons.values() if r.endswith(("kept whole", ": "))]
