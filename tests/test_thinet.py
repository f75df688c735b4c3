"""ThiNet's choice against brute force."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor, nn

from regrow.methods.thinet import greedy_order
from regrow.pruning.allocations import allocate_uniform
from regrow.pruning.method import CRITERIA, METHODS
from regrow.pruning.probe import Probe
from regrow.pruning.select import groups_in_scope
from regrow.surgery import trace
from small import SHAPE, digits, small


def removal_error(rows: Tensor, removed: tuple[int, ...]) -> float:
    """Return how far the outputs move without some channels: the objective itself, in a loop."""
    return sum(float(sum(row[c] for c in removed)) ** 2 for row in rows)


def greedy_by_hand(rows: Tensor) -> list[int]:
    """Write algorithm 1 of the paper out: try every channel that is left, take the best."""
    removed: tuple[int, ...] = ()
    while len(removed) < rows.shape[1]:
        left = [c for c in range(rows.shape[1]) if c not in removed]
        removed += (min(left, key=lambda c: removal_error(rows, (*removed, c))),)
    return list(removed)


def random_rows(seed: int, num_units: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(num_units, num_units, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, num_units, generator=generator, dtype=torch.float64)
    return noise @ (mix + 2 * torch.eye(num_units))  # channels that depend on each other


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_order_is_that_of_brute_force(seed: int) -> None:
    rows = random_rows(seed)
    assert greedy_order(rows.T @ rows).tolist() == greedy_by_hand(rows)


@pytest.mark.parametrize("label", ["vgg", "resnet"])
def test_scores_on_a_network_follow_the_greedy_choice_on_its_samples(label: str) -> None:
    model, found = small(label)
    probe = Probe(model, digits(), num_images=4)
    for group in groups_in_scope(model, found, METHODS.get("thinet")).values():
        if group.size > 8:
            continue  # brute force in Python loops
        rows = probe.contributions(group).double()
        scores = CRITERIA.get("thinet")(group, probe)
        heard = [c for c in greedy_by_hand(rows) if bool(rows[:, c].any())]
        assert sorted(heard, key=lambda c: float(scores[c])) == heard


@pytest.mark.parametrize("num_removed", range(1, 7))
def test_the_greedy_choice_is_the_best_of_all_where_channels_act_apart(num_removed: int) -> None:
    scales = torch.tensor([3.0, 0.5, 2.0, 1.0, 4.0, 0.25, 1.5], dtype=torch.float64)
    rows = torch.diag(scales)  # no sample holds two channels, so their errors add up
    greedy = greedy_order(rows.T @ rows)[:num_removed]
    best = min(combinations(range(7), num_removed), key=lambda c: removal_error(rows, c))
    assert sorted(greedy.tolist()) == list(best)


def test_channels_that_cancel_go_one_after_the_other() -> None:
    """What norms of single channels cannot see: large opposites add nothing together."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    rows = torch.stack([2 * signal[:, 0], 3 * signal[:, 1], -2 * signal[:, 0]], dim=1)
    assert greedy_order(rows.T @ rows).tolist() in ([0, 2, 1], [2, 0, 1])
    rows[:, 0] *= 3  # no longer opposites: the least of all goes first, and nothing makes up for it
    assert greedy_order(rows.T @ rows).tolist() == [2, 1, 0]


def test_a_channel_that_the_next_layer_ignores_goes_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten()
    )
    with torch.no_grad():
        model.get_parameter("0.weight")[2] *= 100.0  # the largest filter of all
        model.get_parameter("2.weight")[:, 2] = 0.0
        model.get_parameter("2.weight")[:, 4] *= 1e-3
    group = trace(model, SHAPE).groups["0"]
    scores = CRITERIA.get("thinet")(group, Probe(model, digits(), num_images=32))
    assert scores.argsort().tolist()[:2] == [2, 4]


def test_choices_are_nested_over_sparsities() -> None:
    model, found = small("vgg")
    groups = groups_in_scope(model, found, METHODS.get("thinet"))
    probe = Probe(model, digits(), num_images=32, groups=groups)
    scores = {name: CRITERIA.get("thinet")(group, probe) for name, group in groups.items()}
    kept = [allocate_uniform(scores, sparsity) for sparsity in (0.2, 0.5, 0.8)]
    for more, less in pairwise(kept):
        assert all(bool((more[name] | ~less[name]).all()) for name in groups)


def test_it_prunes_the_first_convolutions_of_residual_blocks() -> None:
    model, found = small("resnet")
    groups = groups_in_scope(model, found, METHODS.get("thinet"))
    assert list(groups) == [f"features.stage{stage}.0.conv1" for stage in (1, 2, 3)]
