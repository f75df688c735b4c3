"""Pruning to a share of a cost: MACs, parameters, latency, and one's own."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.units import UNITS
from regrow.cost import measure
from regrow.errors import ConfigError, TraceError
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.models import ModelSpec, build
from regrow.pruning.costs import COST_TARGETS, CostShare, Measured, cost_target
from regrow.pruning.layers import Pruned
from regrow.pruning.method import METHODS
from regrow.pruning.select import allocated, layers_of, select
from regrow.pruning.targets import measure_cost, reach
from regrow.report.collect import collect
from regrow.report.extras import cost_targets
from regrow.run import run
from regrow.store import Store
from regrow.studies.expand import expanded
from regrow.studies.study import Study
from regrow.surgery import Trace, shrink, trace
from regrow.surgery.mask import Mask
from small import DIGITS, FROM_DIGITS, NETWORKS, SHAPE, digits, small

FULL = {
    "vgg": ModelSpec("vgg-16", {**FROM_DIGITS, "width": 0.25}),
    "resnet": ModelSpec("resnet-56", {**FROM_DIGITS, "width": 0.5}),
    "densenet": ModelSpec("densenet-40", {**FROM_DIGITS, "growth": 4}),
}


@cache
def full(label: str) -> tuple[nn.Module, Trace]:
    model = build(FULL[label], seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator))
    return model, trace(model, SHAPE)


def shares(model: nn.Module, found: Trace, mask: Mask) -> dict[str, float]:
    """Count the cut network, and divide by the uncut one."""
    small_one = model if UNITS.get(mask.unit).masked else shrink(model, mask, found)
    after, before = measure(small_one, found.example, mask), measure(model, found.example)
    return {
        "macs": after.macs / before.macs,
        "parameters": after.parameters / before.parameters,
    }


@pytest.mark.parametrize("label", FULL)
@pytest.mark.parametrize("method", ["l1-filter", "network-slimming", "random", "thinet"])
def test_half_of_the_macs_is_met_within_one_percent(method: str, label: str) -> None:
    model, found = full(label)
    mask = select(model, found, method, dataset=digits(), num_images=4, macs=0.5)
    assert 0.49 <= shares(model, found, mask)["macs"] <= 0.5


@pytest.mark.parametrize("cost", ["macs", "parameters"])
@pytest.mark.parametrize("method", ["l1-filter", "magnitude", "soft-filter", "network-slimming"])
@pytest.mark.parametrize("share", [0.9, 0.2])
def test_a_share_of_a_cost_is_met_from_below(method: str, share: float, cost: str) -> None:
    model, found = full("vgg")
    asked: dict[str, Any] = {cost: share}
    mask = select(model, found, method, **asked)
    assert share - 0.01 <= shares(model, found, mask)[cost] <= share


@pytest.mark.parametrize("label", NETWORKS)
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("l1-filter", {}),
        ("random", {"scope": ("conv", "stream", "view", "grouped", "linear")}),
        ("magnitude", {"scope": ("conv", "linear")}),
        ("soft-filter", {}),
        ("sparse-structure", {}),
    ],
)
def test_costs_counted_without_cutting_are_those_of_the_cut_network(
    method: str, changes: dict[str, Any], label: str
) -> None:
    model, found = small(label)
    try:
        layers = layers_of(model, found, replace(METHODS.get(method), **changes))
    except Exception:
        pytest.skip("nothing in scope")
    for sparsity in (0.0, 0.3, 0.8):
        kept = {name: scores >= scores.quantile(sparsity) for name, scores in layers.items()}
        quick = layers.pruned(kept)
        assert quick.counts is not None
        assert quick.mask is not None
        exact = shares(model, found, quick.mask)
        before = layers.unpruned
        assert quick.macs / before.macs == exact["macs"]
        assert quick.parameters / before.parameters == exact["parameters"]
        assert (layers.macs(kept), layers.parameters(kept)) == (quick.macs, quick.parameters)


class Computed(nn.Module):
    """A network that multiplies by weights computed from its own: not all MACs are a layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu()).relu().flatten(2)  # [N, 16, 64]
        mixed = (y @ y.transpose(1, 2)).softmax(-1) @ y
        logits: Tensor = self.head(mixed.mean(2))
        return logits


def test_where_not_all_macs_are_a_layers_networks_are_cut_to_count() -> None:
    model = Computed()
    found = trace(model, SHAPE)
    mask = select(model, found, "l1-filter", macs=0.5)
    assert 0.45 <= shares(model, found, mask)["macs"] <= 0.5


def test_a_target_that_is_out_of_reach_says_what_can_be_reached() -> None:
    model, found = full("resnet")
    with pytest.raises(ConfigError, match=r"macs 0.01 cannot be reached.*0\.0\d+ of the unpruned"):
        select(model, found, "l1-filter", macs=0.01)
    _, least = str(_error(model, found)).split("Ask for a share from ")
    lowest = float(least.split(" ")[0])
    mask = select(model, found, "l1-filter", macs=lowest + 0.001)
    assert shares(model, found, mask)["macs"] <= lowest + 0.001


def _error(model: nn.Module, found: Trace) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        select(model, found, "l1-filter", macs=0.01)
    return caught.value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"macs": 1.5}, r"macs is the largest share .* between 0 and 1. Got 1.5"),
        ({"macs": "half"}, "Got 'half'"),
        ({"macs": 0.5, "sparsity": 0.5}, "one of sparsity and macs, not several"),
        ({"macs": 0.5, "parameters": 0.5}, "one of macs and parameters"),
        ({"mac": 0.5}, "cost target 'mac'.*macs"),
    ],
)
def test_a_share_that_is_none_is_refused(given: dict[str, Any], message: str) -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=message):
        select(model, found, "l1-filter", **given)


def test_weights_held_at_zero_save_no_latency() -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"weights are held at zero.*takes as long as before"):
        select(model, found, "magnitude", latency=0.5)


def test_a_latency_is_measured_and_names_the_machine() -> None:
    model, found = full("vgg")
    mask = select(model, found, "l1-filter", sparsity=0.9)
    measured = measure_cost(CostShare("latency", 0.5), model, found, mask=mask)
    assert 0.0 < measured.share < 0.9  # a tenth of the channels
    assert {"seconds", "unpruned_seconds", "device", "threads", "batch"} <= measured.how.keys()


def test_a_timed_target_is_searched_for_by_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(pruned: Pruned, unpruned: Pruned) -> Measured:
        return Measured(0.2 + 0.8 * pruned.macs / unpruned.macs)  # an overhead that stays

    cost_target("clock", timed=True)(clock)
    model, found = full("vgg")
    method = METHODS.get("l1-filter")
    layers = layers_of(model, found, method)
    mask = reach(layers, partial(allocated, method), CostShare("clock", 0.6))
    assert 0.57 <= measure_cost(CostShare("clock", 0.6), model, found, mask=mask).share <= 0.6
    with pytest.raises(ConfigError, match=r"clock 0\.1 cannot be reached"):
        reach(layers, partial(allocated, method), CostShare("clock", 0.1))


def study(**method: Any) -> dict[str, Any]:
    return {
        "data": {"name": "digits", "subset": 64, "test_subset": 32},
        "models": {"name": "vgg", "plan": [8, "M", 16, "M", 16]},
        "methods": method,
        "arms": ["pruned"],
        "seeds": 1,
        "recipe": {"name": "cifar", "epochs": 1, "batch": 32, "precision": "fp32"},
    }


def prunings(value: dict[str, Any]) -> list[Prune]:
    (experiment,) = Study.from_json(value).experiments
    jobs = [cell.job for cell in expanded(experiment)]
    return [job.prune for job in jobs if isinstance(job, Retrain)]


def test_a_study_asks_for_costs_beside_sparsities_and_records_what_is_left(tmp_path: Path) -> None:
    found = prunings(study(name="l1-filter", macs=[0.5, 0.3], sparsity=0.5))
    assert [job.cost and job.cost.to_json() for job in found] == [
        None,
        {"macs": 0.5},
        {"macs": 0.3},
    ]
    assert "cost" not in found[0].spec  # so its key is as ever
    assert found[1].spec["cost"] == {"macs": 0.5}
    assert len({job.key for job in found}) == 3
    store = Store.open(tmp_path / "store", create=True)
    assert run(found[1:2], store, workers=0).complete
    record = store.record(found[1].key)
    assert 0.45 < record["cost"]["share"] <= 0.5
    assert record["cost"]["share"] == record["after"]["macs"] / record["before"]["macs"]


def test_a_latency_leaves_the_key_free_of_the_machine(tmp_path: Path) -> None:
    (job,) = prunings(study(name="l1-filter", latency=0.9))
    assert job.spec["cost"] == {"latency": 0.9}
    assert job.data.spec != DIGITS


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "l1-filter", "macs": 0.0}, "between 0 and 1. Got 0.0"),
        ({"name": "l1-filter", "macs": 0.00001}, "vgg, l1-filter: macs 1e-05 cannot be reached"),
        ({"name": "magnitude", "latency": 0.5}, "held at zero"),
        ({"name": "soft-filter", "macs": 0.5}, "needs a 'sparsity', because it trains for it"),
        ({"name": "lottery", "macs": 0.5}, "'sparsity'|A sparsity"),
        ({"name": "guided-pruning", "macs": 0.5}, "because it follows networks"),
        ({"name": "magnitude", "allocation": "2:4", "macs": 0.5}, "always has the sparsity 0.5"),
        ({"name": "magnitude", "allocation": "2:4", "sparsity": 0.3}, "always has the sparsity"),
        ({"name": "lottery", "allocation": "2:4"}, "rounds"),
        (
            {"name": "l1-filter"},
            "share of a cost that may remain: .*'macs', 'parameters'",
        ),
    ],
)
def test_a_study_is_refused_where_a_cost_cannot_be_meant(
    method: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prunings(study(**method))


def test_a_report_shows_what_was_asked_and_what_is_left(tmp_path: Path) -> None:
    asked = Study.from_json(study(name="l1-filter", macs=[0.5, 0.3], latency=0.9))
    store = Store.open(tmp_path / "store", create=True)
    assert run(asked.jobs(), store, workers=0).complete
    runs, _ = collect(asked, store)
    (table,) = cost_targets(runs)
    assert [row[1] for row in table.rows] == ["0.5", "0.3", "0.9"]
    for name, _, left, place in table.rows:
        assert left in table.csv or float(left) < 1.0
        assert ("batch 32" in place) == ("latency" in name)
    assert cost_targets([replace(each, cost_left=None) for each in runs]) == ()


def test_built_in_costs_are_listed() -> None:
    assert {"latency", "macs", "parameters"} <= set(COST_TARGETS.names())


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised when it is used; of one number that fails."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution by the standardised weight."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).view_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_a_cost_of_products_with_computed_weights_is_found_by_cutting() -> None:
    torch.manual_seed(0)
    layers = (Standardised(1, 8, 3), nn.ReLU(), Standardised(8, 8, 1), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(288, 10))
    found = trace(model, SHAPE)
    assert found.groups.keys() == {"0", "2"}
    # With one channel left of the first layer the second, 1x1, has weights of a single number.
    with pytest.raises(TraceError, match="does not run"):
        select_and_cut(model, found, 0.9)
    mask = select(model, found, "l1", macs=0.4)
    assert 0.3 < shares(model, found, mask)["macs"] <= 0.4
    with pytest.raises(TraceError, match="does not run"):
        select(model, found, "l1", macs=0.12)


def select_and_cut(model: nn.Module, found: Trace, sparsity: float) -> nn.Module:
    return shrink(model, select(model, found, "l1", sparsity=sparsity), found)
