"""Scores that are all alike do not say what to remove: no choice is made by the units' order."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import ConfigError
from regrow.pruning.method import Method, criterion
from regrow.pruning.probe import Probe
from regrow.pruning.select import select
from regrow.surgery import Group
from small import small


@pytest.fixture(autouse=True)
def _scores() -> None:
    @criterion("alike")
    def alike(group: Group, probe: Probe) -> Tensor:
        return torch.ones(group.size)

    @criterion("alike in one group")
    def alike_in_one_group(group: Group, probe: Probe) -> Tensor:
        first = next(iter(probe._groups)) == group.name
        return torch.ones(group.size) if first else torch.arange(group.size).float()


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5}, {"macs": 0.5}, {"sparsity": 0.5, "rounds": 2}]
)
@pytest.mark.parametrize("unit", ["channel", "filter", "weight"])
def test_a_choice_that_no_score_decides_is_refused(unit: str, options: dict[str, Any]) -> None:
    model, trace = small("vgg")
    method = Method(name="m", criterion="alike", allocation="uniform", unit=unit)
    with pytest.raises(ConfigError, match="'alike' gives all units of each group the same score"):
        select(model, trace, method, **options)


def test_shares_of_each_group_are_no_choice_either() -> None:
    model, trace = small("vgg")
    method = Method(name="m", criterion="alike", allocation="uniform")
    shares = [0.5] * len(select(model, trace, "l1-filter", sparsity=0.5).kept)
    with pytest.raises(ConfigError, match="the same score"):
        select(model, trace, method, shares=shares)


def test_scores_that_decide_somewhere_are_taken() -> None:
    model, trace = small("vgg")
    method = Method(name="m", criterion="alike in one group", allocation="uniform")
    assert select(model, trace, method, sparsity=0.5).num_kept > 0


def test_nothing_is_refused_where_nothing_is_removed() -> None:
    model, trace = small("vgg")
    method = Method(name="m", criterion="alike", allocation="uniform")
    assert select(model, trace, method, sparsity=0.0).sparsity == 0.0
    whole = Method(name="m", criterion="alike", allocation="nonzero", unit="weight")
    assert select(model, trace, whole, sparsity=0.5).sparsity == 0.0


@pytest.mark.parametrize("name", ["trained-mask", "norm-scale"])
def test_what_an_untrained_network_lacks_does_not_choose(name: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    with pytest.raises(ConfigError, match=f"{name}.*such as the scales or masks"):
        regrow.compress(net.eval(), "1x3x8x8", criterion=name, sparsity=0.5, batches=())


def test_blocks_are_compared_with_each_other_unless_shares_name_them() -> None:
    model, trace = small("resnet")
    method = Method(name="m", criterion="alike", allocation="global", unit="block")
    with pytest.raises(ConfigError, match="the same score"):
        select(model, trace, method, sparsity=0.4)
    blocks = select(model, trace, "sparse-structure", sparsity=0.0).kept
    mask = select(model, trace, method, shares=[1.0, *[0.0] * (len(blocks) - 1)])
    assert mask.num_kept == len(blocks) - 1
