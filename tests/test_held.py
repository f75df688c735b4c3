"""Weights and filters held at zero: of every kind of layer right, or refused in a sentence."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from regrow.errors import TraceError
from regrow.jobs.retrain import _draw_sparse_
from regrow.methods.network_slimming import push_scales_to_zero
from regrow.methods.soft_filter import zero_smallest_filters_
from regrow.pruning.method import METHODS
from regrow.pruning.select import left_out, select
from regrow.surgery import trace
from regrow.surgery.mask import Mask, apply_, kept_weights
from regrow.train.masks import MaskedWeights
from test_whole import Net, Standardised, chain, conv, quantised, quietly

SHAPE = (1, 3, 8, 8)
HELD = ("magnitude", "soft-filter", "uniform-sparsification")


def held(net: nn.Module, method: str, *, sparsity: float = 0.5) -> Mask:
    return select(net, trace(net, SHAPE), method, sparsity=sparsity)


def pruned_by_torch() -> nn.Module:
    layer = conv(3, 8)
    torch_prune.l1_unstructured(layer, "weight", 0.3)  # type: ignore[no-untyped-call]
    return layer


COMPUTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "weight_norm": (
        lambda: chain(parametrizations.weight_norm(conv(3, 8))),
        r"first, by torch.nn.utils.parametrize.remove_parametrizations\(layer, 'weight'\)",
    ),
    "spectral_norm": (
        lambda: chain(parametrizations.spectral_norm(conv(3, 8))), "remove_parametrizations",
    ),
    "weight_norm by hooks": (
        quietly(lambda: chain(nn.utils.weight_norm(conv(3, 8)))), "remove_weight_norm",
    ),
    "spectral_norm by hooks": (
        quietly(lambda: chain(nn.utils.spectral_norm(conv(3, 8)))), "remove_spectral_norm",
    ),
    "masks of nn.utils.prune": (lambda: chain(pruned_by_torch()), "torch.nn.utils.prune.remove"),
    "weight standardisation": (
        lambda: chain(Standardised(3, 8, 3)), "its weights go through 'aten::",
    ),
    "fake quantisation": (quietly(quantised), "its weights go through 'aten::_fused_moving"),
}  # fmt: skip


@pytest.mark.parametrize("method", HELD)
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_layer_whose_weight_is_computed_is_refused_by_name(kind: str, method: str) -> None:
    make, way = COMPUTED[kind]
    net = make()
    with pytest.raises(TraceError, match=rf"weights of 'a' cannot be held at zero.*{way}") as told:
        held(net, method)
    assert "rune channels" in str(told.value)
    if kind != "fake quantisation":
        assert held(net, "l1-filter").widths() == {"b": 3}  # which is the other way out


def test_the_way_out_leads_out() -> None:
    net = chain(parametrizations.weight_norm(conv(3, 8)))
    torch.nn.utils.parametrize.remove_parametrizations(net.a, "weight")  # type: ignore[arg-type]
    assert held(net, "soft-filter").widths() == {"a.weight": 4, "b.weight": 3, "out.weight": 1}


def up(*, groups: int = 1) -> nn.Module:
    return chain(conv(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=groups))


def test_filters_of_a_transposed_convolution_are_its_outputs() -> None:
    net = up()
    with torch.no_grad():
        net.get_parameter("b.weight")[:, 1:] += 3.0
    mask = held(net, "soft-filter", sparsity=0.3)
    assert mask.kept["b.weight"].tolist() == [False, True, True, True, True, True]
    assert kept_weights(mask, net)["b.weight"].shape == (8, 6, 2, 2)
    zeroed = up()
    zeroed.load_state_dict(net.state_dict())
    zero_smallest_filters_(zeroed, sparsity=0.3)
    apply_(net, mask)
    for name in ("a.weight", "b.weight", "out.weight"):
        assert torch.equal(net.get_parameter(name), zeroed.get_parameter(name))
    put_out = net.get_submodule("b")(torch.randn(1, 8, 4, 4))
    assert torch.equal(put_out[0, 0], net.get_parameter("b.bias")[0].expand(8, 8))
    net(torch.randn(SHAPE)).sum().backward()
    MaskedWeights(net, kept_weights(mask, net)).zero_weights_()
    gradient = net.get_parameter("b.weight").grad
    assert gradient is not None
    assert (gradient == 0).all(dim=(0, 2, 3)).tolist() == [True, *[False] * 5]


def test_sparse_draws_take_the_fan_of_a_transposed_convolution() -> None:
    net = chain(conv(3, 8), nn.ConvTranspose2d(8, 64, 5))
    everything = torch.ones(8, 64, 5, 5, dtype=torch.bool)
    _draw_sparse_(net, {"b.weight": everything}, seed=0)
    fan_out = 64 * 25  # of each input
    assert float(net.get_parameter("b.weight").detach().std()) == pytest.approx(
        (2 / fan_out) ** 0.5, rel=0.1
    )


def test_filters_of_a_transposed_convolution_of_groups_are_refused() -> None:
    with pytest.raises(TraceError, match="'b' is a transposed convolution of 2 groups"):
        held(up(groups=2), "soft-filter")
    assert held(up(groups=2), "magnitude").kept["b.weight"].shape == (8, 3, 2, 2)


def tied(layer: nn.Module) -> Net:
    net = Net(
        lambda m, x: m.out(m.c(m.b(m.a(x).relu()).relu()).relu()),
        a=conv(3, 8), b=conv(8, 8), c=layer, out=conv(8, 2),
    )  # fmt: skip
    layer.weight = net.get_parameter("b.weight")
    return net


@pytest.mark.parametrize("method", HELD)
def test_a_weight_that_layers_share_is_one_group(method: str) -> None:
    net = tied(conv(8, 8))
    mask = held(net, method)
    assert list(mask.kept) == ["a.weight", "b.weight", "out.weight"]
    apply_(net, mask)
    weights = kept_weights(mask, net)["b.weight"]
    assert bool((net.get_parameter("c.weight")[~weights] == 0).all())
    if method == "magnitude":
        total = 8 * 27 + 64 * 9 + 2 * 72
        assert mask.num_kept == total - total // 2


def test_a_weight_that_is_shared_the_other_way_round_has_no_filters() -> None:
    net = tied(nn.ConvTranspose2d(8, 8, 3, padding=1))
    with pytest.raises(TraceError, match="'b' and 'c' share a weight whose filters are the out"):
        held(net, "soft-filter")


# Norms without a scale


def normed() -> nn.Module:
    return chain(
        nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)),
        nn.Sequential(conv(8, 6), nn.BatchNorm2d(6, affine=False)),
    )


@pytest.mark.parametrize("method", ["network-slimming", "random", "uniform"])
def test_a_norm_without_a_scale_leaves_its_group_out_of_scope(method: str) -> None:
    net = normed()
    nn.init.uniform_(net.get_parameter("a.1.weight"))  # as if it were trained
    mask = held(net, method)
    assert mask.widths() == {"a.0": 4}
    assert left_out(trace(net, SHAPE), method) == {
        "b.0": "its kind is conv, and its norm 'b.1' has no scale"
    }


def test_what_a_method_leaves_out_is_named_with_why() -> None:
    found = trace(normed(), SHAPE)
    assert left_out(found, "l1-filter") == {}
    assert left_out(found, METHODS.get("thinet")) == {}
    plain = trace(chain(conv(3, 8)), SHAPE)
    why = "its kind is conv, without a norm of its own"
    assert left_out(plain, "network-slimming") == {"a": why, "b": why}


def test_the_penalty_passes_norms_without_a_scale() -> None:
    net = normed()
    net(torch.randn(2, *SHAPE[1:])).sum().backward()
    scale = net.get_parameter("a.1.weight")
    assert scale.grad is not None
    before = scale.grad.clone()
    push_scales_to_zero(net, 0.1)
    assert torch.equal(scale.grad, before + 0.1 * scale.detach().sign())


# What is said where nothing can be cut


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(chain, Standardised(3, 8, 3), Standardised(8, 6, 3)),
            r"none that can be cut. Kept whole: 'a' and 'b' \(its weights go through 'aten::mean' "
            r"before they are used\); 'out' \(it is the network's output\).$",
        ),
        (
            partial(nn.Sequential, nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2)),
            r"none that can be cut. Its groups: '1' \(its kind is linear\). Give the method a "
            r"scope that includes them: all. Kept whole: '3' \(it is the network's output\).$",
        ),
    ],
)
def test_what_holds_everything_is_quoted(make: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        held(make(), "l1-filter")


def test_many_reasons_are_cut_short() -> None:
    layers = [conv(3, 3), *[Standardised(3, 3, 1) for _ in range(7)]]
    with pytest.raises(
        TraceError, match=r"Kept whole: .*'1', '2', '3', '4' and 3 more \(its weights go through"
    ):
        held(nn.Sequential(*layers), "l1-filter")
