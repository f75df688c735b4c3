"""SparseGPT's adaptive choice, against the published algorithm written directly, by inverses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import regrow
from regrow.core.units import UNITS
from regrow.errors import ConfigError
from regrow.jobs.base import all_jobs
from regrow.methods.sparsegpt import BLOCK, DAMPING
from regrow.pruning.examples import examples_of
from regrow.pruning.method import METHODS, REPAIRS, Method
from regrow.pruning.probe import Probe
from regrow.pruning.select import select
from regrow.studies.study import Study

Array = NDArray[Any]
INPUTS, HIDDEN, ROWS = 150, 12, 300  # more inputs than one block has


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4))


def inputs() -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    mixed = torch.randn(INPUTS, INPUTS, generator=draw)  # so that columns can stand in for others
    rows: torch.Tensor = torch.randn(ROWS, INPUTS, generator=draw) @ mixed / INPUTS**0.5
    return rows


def pruned(weight: Array, x: Array, *, share: float, n: int = 0, m: int = 0) -> Array:
    """Prune and solve a weight by algorithm 1, with an inverse for each column."""
    w, h = weight.copy(), x.T @ x / len(x)
    h += DAMPING * h.diagonal().mean() * np.eye(len(h))
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(len(h))]
    width = m or BLOCK
    going_before, gone = 0, w.size - int(w.size * (1 - share) + 1e-9)
    for start in range(0, w.shape[1], width):
        columns = range(start, min(start + width, w.shape[1]))
        cost = np.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in columns], axis=1)
        goes = np.zeros(cost.shape, dtype=bool)
        if m:
            if len(columns) == m:
                for row in range(len(w)):
                    goes[row, np.argsort(cost[row])[: m - n]] = True
        else:
            going = len(w) * (columns[-1] + 1) * gone // w.size
            goes.flat[np.argsort(cost.ravel())[: going - going_before]] = True
            going_before = going
        for j in columns:
            rows = goes[:, j - start]
            w[rows, j:] -= np.outer(w[rows, j] / inverses[j][0, 0], inverses[j][0])
            w[rows, j] = 0.0
    return w


CASES = [
    ("uniform", 0.5, {}),
    ("uniform", 0.7, {}),
    ("2:4", 0.5, {"n": 2, "m": 4}),
    ("4:8", 0.5, {"n": 4, "m": 8}),
]


@pytest.mark.parametrize(("allocation", "share", "pattern"), CASES)
def test_masks_and_weights_are_those_of_the_published_algorithm(
    allocation: str, share: float, pattern: dict[str, int]
) -> None:
    net, x = network(), inputs()
    method = replace(METHODS.get("sparsegpt"), allocation=allocation)
    found = regrow.trace(net, (1, INPUTS))
    mask = select(net, found, method, sparsity=share, dataset=[x])
    probe = Probe(net, examples_of([x], net, num=ROWS))
    REPAIRS.get("sparsegpt")(net, mask, found, probe)
    tensors = {n: p.detach().double().numpy() for n, p in network().named_parameters()}
    first, bias, second, _ = tensors.values()
    data = x.double().numpy()
    solved = pruned(first, data, share=share, **pattern)
    hidden = np.maximum(data @ solved.T + bias, 0)  # of the network as it is by then
    for name, weight in (
        ("0.weight", solved),
        ("2.weight", pruned(second, hidden, share=share, **pattern)),
    ):
        assert (mask.kept[name].numpy() == (weight != 0)).mean() > 0.995  # float32 may tie
        np.testing.assert_allclose(net.get_parameter(name).detach(), weight, atol=2e-3)


def test_what_is_chosen_in_blocks_differs_from_a_choice_at_once_and_serves_better() -> None:
    errors = {}
    x = inputs()
    for choice in (None, "sparsegpt"):
        net = network()
        method = replace(METHODS.get("sparsegpt"), choice=choice)
        found = regrow.trace(net, (1, INPUTS))
        mask = select(net, found, method, sparsity=0.6, dataset=[x])
        assert mask.num_kept == sum(int(k.numel() * 0.4 + 1e-9) for k in mask.kept.values())
        REPAIRS.get("sparsegpt")(net, mask, found, Probe(net, examples_of([x], net, num=ROWS)))
        errors[choice] = float((net(x) - network()(x)).square().mean().detach())
    assert errors["sparsegpt"] != errors[None]
    assert errors["sparsegpt"] < 1.1 * errors[None]


def test_each_layer_keeps_the_share_that_its_allocation_gives_it() -> None:
    net, x = network(), inputs()
    found = regrow.trace(net, (1, INPUTS))
    for allocation in ("erk", "global", "per-output"):
        method = replace(METHODS.get("sparsegpt"), allocation=allocation)
        masks = [
            select(net, found, m, sparsity=0.5, dataset=[x])
            for m in (method, replace(method, choice=None))
        ]
        assert masks[0].widths() == masks[1].widths()


def test_a_choice_is_among_single_weights_and_part_of_the_key() -> None:
    assert not UNITS.get("channel").unstructured
    with pytest.raises(ConfigError, match="'choice' is among single weights"):
        Method(name="x", criterion="sparsegpt", choice="sparsegpt")

    def prunings(**more: Any) -> list[Any]:
        study = Study.from_json(
            {
                "data": {"name": "digits", "subset": 40, "test_subset": 20},
                "models": "vgg-16",
                "methods": {"name": "sparsegpt", "sparsity": 0.5, **more},
                "seeds": 1,
                "arms": ["pruned"],
                "recipe": {"epochs": 1, "augmentation": "none"},
            }
        )
        jobs = all_jobs([cell.job for cell in study.cells()]).values()
        return [job.spec for job in jobs if job.kind == "prune"]

    assert prunings()[0]["choice"] == "sparsegpt"
    assert "choice" not in prunings(criterion="wanda")[0]
