"""Rounds within one pruning: on their schedule, each on the network that is left."""

from math import floor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.cost import measure
from regrow.errors import ConfigError
from regrow.jobs.base import all_jobs
from regrow.jobs.prune import Prune
from regrow.pruning.method import CRITERIA, METHODS, Method, criterion
from regrow.pruning.probe import Probe
from regrow.pruning.select import left_by, select
from regrow.studies.study import Study
from regrow.surgery import Group, shrink
from small import digits, equal, small, snapshot

SEEN: list[dict[str, int]] = []  # by round: how many weights of each group the criterion saw


@pytest.fixture(autouse=True)
def _watching() -> None:
    SEEN.clear()

    @criterion("watched")
    def watched(group: Group, probe: Probe) -> Tensor:
        """Score as l1-norm does; scores of what is gone would be the highest."""
        if not SEEN or group.name in SEEN[-1]:
            SEEN.append({})
        sizes = CRITERIA.get("l1-norm")(group, probe)
        SEEN[-1][group.name] = int((sizes > 0).sum())
        return torch.where(sizes > 0, sizes, 1e6)


def watched(unit: str, allocation: str = "global") -> Method:
    return Method(name="w", criterion="watched", allocation=allocation, unit=unit)


@pytest.mark.parametrize(
    ("unit", "allocation"),
    [(unit, how) for unit in ("weight", "filter") for how in ("global", "uniform")]
    + [("channel", "uniform")],
)
def test_each_round_sees_what_the_one_before_left(unit: str, allocation: str) -> None:
    model, trace = small("vgg")
    before = snapshot(model)
    mask = select(model, trace, watched(unit, allocation), sparsity=0.6, rounds=4)
    assert len(SEEN) == 4
    sizes = SEEN[0]
    for number, seen in enumerate(SEEN):
        share = 1 - 0.4 ** (number / 4)
        if allocation == "global":
            total = sum(sizes.values())
            assert sum(seen.values()) == total - floor(total * share + 1e-9)
        else:
            assert seen == {n: floor(size * (1 - share) + 1e-9) for n, size in sizes.items()}
    # The scores of what is left do not change, so rounds end where one ends.
    once = Method(name="o", criterion="l1-norm", allocation=allocation, unit=unit)
    assert equal(dict(mask.kept), dict(select(model, trace, once, sparsity=0.6).kept))
    assert equal(snapshot(model), before)


def test_rounds_lead_to_a_share_of_a_cost() -> None:
    model, trace = small("vgg")
    mask = select(model, trace, watched("channel"), macs=0.5, rounds=3)
    assert len(SEEN) == 3
    before, after = (
        measure(net, trace.example).macs for net in (model, shrink(model, mask, trace))
    )
    assert 0.45 < after / before <= 0.5


def test_rounds_go_on_from_an_earlier_choice() -> None:
    model, trace = small("vgg")
    first = select(model, trace, watched("weight"), sparsity=0.5)
    both = select(model, trace, watched("weight"), sparsity=0.5, rounds=3, within=first)
    assert both.num_kept == first.num_kept - floor(first.num_kept * 0.5 + 1e-9)
    assert all(bool((first.kept[name] | ~stays).all()) for name, stays in both.kept.items())


def test_what_is_left_computes_as_the_pruned_network() -> None:
    model, trace = small("vgg")
    mask = select(model, trace, "magnitude", sparsity=0.5)
    left = left_by(mask, model, trace)
    assert all(not bool(left.get_parameter(n)[~k].any()) for n, k in mask.kept.items())


def test_a_probe_measures_once_for_all_groups_and_gives_copies() -> None:
    model, _ = small("vgg")
    probe, calls = Probe(model, digits(), num_images=32), []

    def measure(asked: Probe) -> int:
        calls.append(asked)
        return 7

    assert [probe.once(measure), probe.once(measure)] == [7, 7]
    assert calls == [probe]
    network = probe.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert isinstance(network, nn.Module)
    assert bool(model.get_parameter("features.conv1.weight").any())
    ((images, targets),) = probe.batches()
    assert (len(images), len(targets)) == (32, 32)
    assert bool(probe.mask("features.conv1.weight").all())


STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "vgg", "plan": [6, "M", 8], "label": "net"},
    "arms": ["pruned"],
    "seeds": 1,
    "recipe": {"epochs": 2},
}


def prunings(**method: Any) -> list[Prune]:
    jobs = all_jobs(Study.from_json({**STUDY, "methods": method}).jobs())
    return [job for job in jobs.values() if isinstance(job, Prune)]


def test_rounds_without_training_are_one_job_for_each_sparsity() -> None:
    jobs = prunings(name="magnitude", sparsity=[0.5, 0.8], rounds=10, ticket="none")
    assert sorted((job.sparsity, job.rounds) for job in jobs) == [(0.5, 10), (0.8, 10)]
    (once,) = prunings(name="magnitude", sparsity=0.5)
    assert "rounds" not in once.spec
    (one,) = prunings(name="magnitude", sparsity=0.5, rounds=1, ticket="none")
    assert one.key == once.key
    assert len(prunings(name="magnitude", sparsity=0.5, rounds=3)) == 3  # with training in between


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "random", "rounds": 101, "sparsity": 0.5}, "an int from 1 to 100. Got 101"),
        ({"name": "l1-filter", "rounds": 2, "sparsity": 0.5}, "or 'ticket: none'"),
        (
            {"name": "l1-filter", "rounds": 2, "ticket": "none", "shares": [0.5, 0.5]},
            "steps to a 'sparsity' or to a share of a cost",
        ),
    ],
)
def test_rounds_that_cannot_be_meant_are_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prunings(**method)


def test_rounds_to_given_shares_are_refused() -> None:
    model, trace = small("vgg")
    with pytest.raises(ConfigError, match="Rounds are steps to a sparsity or a cost"):
        select(model, trace, METHODS.get("l1-filter"), shares=[0.5] * 3, rounds=2)
