"""Criteria on networks with frozen layers, layers without gradients, and in half precision; and
criteria whose scores are no floats.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.pruning.examples import examples_of
from regrow.pruning.method import CRITERIA, criterion, general_method
from regrow.pruning.probe import Probe
from regrow.pruning.select import select
from regrow.surgery import Group, trace
from small import forget_names

GRADIENTS = (
    *("taylor", "taylor-gate", "fisher", "obd"),
    *("connection-sensitivity", "gradient-flow", "synaptic-flow"),
)


class Net(nn.Module):
    """Two convolutions and two linear layers; the convolutions may run without gradients."""

    def __init__(self, *, graph: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.graph = graph
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.graph and torch.is_grad_enabled()):
            x = self.second(self.first(x).relu()).relu().mean((2, 3))
        out: Tensor = self.last(self.hidden(x).relu())
        return out


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, 8, 8, generator=draw), torch.randint(0, 4, (12,), generator=draw)
    return [(x[:8].to(dtype), y[:8]), (x[8:].to(dtype), y[8:])]


def chosen(net: nn.Module, criterion: str, *, keep: tuple[str, ...] = ()) -> dict[str, list[bool]]:
    found = trace(net, (1, 3, 8, 8), keep=keep)
    mask = select(net, found, general_method(criterion), sparsity=0.5, dataset=batches())
    return {name: kept.tolist() for name, kept in mask.kept.items()}


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_frozen_layers_are_scored_as_others_and_stay_frozen(criterion: str) -> None:
    net = Net()
    free = chosen(net, criterion)
    net.first.requires_grad_(False)
    net.get_parameter("second.bias").requires_grad_(False)
    asked = {name: p.requires_grad for name, p in net.named_parameters()}
    assert chosen(net, criterion) == free
    assert {name: p.requires_grad for name, p in net.named_parameters()} == asked
    assert all(p.grad is None for p in net.parameters())


def test_a_network_of_inference_mode_has_gradients_too() -> None:
    with torch.inference_mode():
        net = Net()
    assert chosen(net, "taylor") == chosen(Net(), "taylor")


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_layers_that_run_without_gradients_are_refused_unless_they_are_kept(criterion: str) -> None:
    with pytest.raises(ConfigError, match=r"'first.weight'.*while they are turned off"):
        chosen(Net(graph=False), criterion)
    kept = chosen(Net(graph=False), criterion, keep=("first", "second"))
    assert kept.keys() == {"hidden"}


def test_no_signal_flows_through_layers_that_do_not_run() -> None:
    net = Net()
    net.unused = nn.Linear(4, 4)
    found = trace(net, (1, 3, 8, 8))
    mask = select(net, found, "synflow", sparsity=0.5, dataset=batches())
    assert not mask.kept["unused.weight"].any()
    assert mask.kept["first.weight"].any()


def scores(criterion: str, net: nn.Module, *, loud: float = 1.0) -> Tensor:
    dtype = next(net.parameters()).dtype
    groups = trace(net, torch.randn(1, 3, 8, 8).to(dtype)).groups
    data = examples_of([(x * loud, y) for x, y in batches(dtype)], net, num=12)
    probe = Probe(net, data, groups=groups)
    return torch.cat([CRITERIA.get(criterion)(group, probe) for group in groups.values()])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("criterion", ["l1-norm", "l2-norm", "geometric-median", "lamp"])
def test_weights_in_half_precision_are_summed_as_in_float32(
    criterion: str, dtype: torch.dtype
) -> None:
    net = Net().to(dtype)
    half = scores(criterion, net)
    torch.testing.assert_close(half, scores(criterion, net.float()), rtol=0, atol=0)


@pytest.mark.parametrize("criterion", ["obd", "fisher"])
def test_squares_of_gradients_in_half_precision_do_not_vanish(criterion: str) -> None:
    net = Net().to(torch.float16)
    half = scores(criterion, net, loud=0.02)
    torch.testing.assert_close(half, scores(criterion, net.float(), loud=0.02), rtol=0.1, atol=1e-9)


def test_squares_of_inputs_in_half_precision_stay_finite() -> None:
    net = Net().to(torch.float16)
    half = scores("wanda", net, loud=300.0)
    torch.testing.assert_close(half, scores("wanda", net.float(), loud=300.0), rtol=0.01, atol=0.1)


def test_distances_of_a_later_round_are_to_the_units_that_are_left() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 32, 3)
    net = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
    vectors, left = first.weight.detach().flatten(1), torch.arange(32)
    for num in (16, 8):
        sums = torch.cdist(vectors[left], vectors[left]).sum(1)
        left = left[sums.topk(num).indices]
    mask = select(net, trace(net, (1, 3, 8, 8)), "fpgm", sparsity=0.75, rounds=2)
    assert torch.where(mask.kept["0"])[0].tolist() == sorted(left.tolist())


def mean_output(group: Group, probe: Probe) -> Tensor:
    return probe.activation(group).mean(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_are_measured_in_any_precision(dtype: torch.dtype) -> None:
    net = Net()
    expected = scores("mean-output", net)
    torch.testing.assert_close(scores("mean-output", net.to(dtype)), expected, rtol=0.1, atol=0.01)


def a_count(group: Group, probe: Probe) -> Tensor:
    return torch.arange(group.size) // 2


def yes_or_no(group: Group, probe: Probe) -> Tensor:
    return torch.arange(group.size) >= group.size // 2


OWN = {"mean-output": mean_output, "a-count": a_count, "yes-or-no": yes_or_no}


@pytest.fixture(autouse=True)
def own_criteria(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_names(monkeypatch)
    for name, function in OWN.items():
        criterion(name)(function)


@pytest.mark.parametrize("name", ["a-count", "yes-or-no"])
@pytest.mark.parametrize("normalise", ["group", None])
@pytest.mark.parametrize(
    "amount",
    [
        {"sparsity": 0.5},
        {"sparsity": 0.5, "multiple_of": 4},
        {"sparsity": 0.5, "rounds": 3},
        {"macs": 0.5},
    ],
    ids=lambda amount: "-".join(amount),
)
def test_counts_and_truths_are_scores_too(
    name: str, normalise: str | None, amount: dict[str, Any]
) -> None:
    net = Net()
    method = replace(general_method(name), normalise=normalise)
    mask = select(net, trace(net, (1, 3, 8, 8)), method, **amount)
    kept = torch.stack([*mask.kept.values()])
    if "sparsity" in amount:
        assert bool((kept == (torch.arange(8) >= 4)).all())
    assert bool(kept.any(dim=1).all())
    assert not bool(kept.all())
