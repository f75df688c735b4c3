"""SparseGPT: linear layers pruned one by one, with compensation (Frantar and Alistarh, ICML 2023).

arXiv:2301.00774. For each layer, H is the damped mean of x x^T over its inputs x, and U the upper
Cholesky factor of the inverse of H; its squared diagonal is that of the inverse once the earlier
columns are fixed. Removing a weight in column j costs w^2 / U_jj^2. Column by column, the later
columns are updated to compensate for the removed weights (algorithm 1).

The weights to remove are chosen in blocks of 128 columns (for N:M patterns, in blocks of M), after
the updates from earlier columns. The criterion, which scores the weights as trained, decides only
how many each layer loses. Layers are pruned in the order of computation, and each takes its inputs
from the network as pruned so far, as published.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.pruning.layers import Layers
from regrow.pruning.method import Allocation, choice, criterion, register_method, repair
from regrow.pruning.probe import Probe
from regrow.surgery import Group, Trace
from regrow.surgery.mask import Mask, kept_weights

BLOCK = 128  # columns, as published
DAMPING = 0.01  # relative to the mean of the diagonal, as published


def inverse_factor(gram: Tensor) -> Tensor:
    """Return U, upper triangular, with U^T U the inverse of the damped matrix."""
    mean = gram.diagonal().mean().clamp(min=1e-30)  # above zero, in case all inputs are zero
    damped = gram + torch.eye(len(gram), dtype=gram.dtype) * DAMPING * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


@criterion("sparsegpt")
def sparsegpt(group: Group, probe: Probe) -> Tensor:
    """Score a weight of a linear layer by the cost of removing it: weight^2 / U_jj^2."""

    def costs(name: str) -> Tensor:
        weight, gram = probe.weight(name).double(), _gram(probe, name)
        return (weight.square() / inverse_factor(gram).diagonal().square()).float()

    return group.sum(costs)


def _gram(probe: Probe, name: str, model: nn.Module | None = None) -> Tensor:
    """Return the mean of x x^T over a linear layer's inputs; other layers are a ``ConfigError``."""
    shape = probe.weight(name).shape
    gram = probe.gram(name, model=model) if len(shape) == 2 else torch.empty(0, 0)
    if shape[-1:] != gram.shape[:1]:
        raise ConfigError(
            f"sparsegpt prunes linear layers, and {name!r} has the shape {list(shape)}. Leave such "
            "layers out of the method's scope: scope: linear."
        )
    return gram


def compensated(weight: Tensor, kept: Tensor, factor: Tensor) -> Tensor:
    """Return a weight ``[out, in]`` with removed entries zeroed and compensated by later columns.

    For each column j: error = removed entries / U_jj, and columns k >= j lose error x U_jk.
    """
    solved = weight.double().clone()
    for j in range(solved.shape[1]):
        _make_up_(solved, kept[:, j], factor, j)
    return solved.to(weight)


def _make_up_(solved: Tensor, kept: Tensor, factor: Tensor, j: int) -> None:
    """Zero a column's removed entries and update the later columns to compensate, in place."""
    error = torch.where(kept, 0.0, solved[:, j]) / factor[j, j]
    solved[:, j:] -= torch.outer(error, factor[j, j:])
    solved[~kept, j] = 0.0


def chosen_in_blocks(
    weight: Tensor, factor: Tensor, choose: Callable[[int, Tensor], Tensor], *, width: int
) -> tuple[Tensor, Tensor]:
    """Return a weight ``[out, in]`` pruned and compensated block by block, and its kept entries.

    ``choose`` is given a block's first column and the costs of its weights after the updates so
    far, ``[out, columns]``, and returns which of them stay.
    """
    solved, kept = weight.double().clone(), torch.ones(weight.shape, dtype=torch.bool)
    for start in range(0, solved.shape[1], width):
        block = slice(start, start + width)
        costs = solved[:, block].square() / factor.diagonal()[block].square()
        kept[:, block] = choose(start, costs)
        for j in range(*block.indices(solved.shape[1])):
            _make_up_(solved, kept[:, j], factor, j)
    return solved.to(weight), kept


@choice("sparsegpt")
def choose_in_blocks(
    layers: Layers, mask: Mask, probe: Probe, allocate: Allocation
) -> dict[str, Tensor]:
    """Choose each layer's weights block by block, as many as the mask keeps (algorithm 1)."""
    network, kept = probe.network(), {}
    width = allocate.block or BLOCK
    for name, first in mask.kept.items():
        weight = network.get_parameter(name)
        factor = inverse_factor(_gram(probe, name, network))
        choose = _chooser(layers, name, first, allocate)
        solved, stays = chosen_in_blocks(weight.detach(), factor, choose, width=width)
        with torch.no_grad():
            weight.copy_(solved)
        kept[name] = stays.flatten()[layers.left[name]]
    return kept


def _chooser(
    layers: Layers, name: str, first: Tensor, allocate: Allocation
) -> Callable[[int, Tensor], Tensor]:
    """Return a function that allocates within blocks of a layer and keeps as many as ``first``."""
    left = layers.left[name].reshape(first.shape)
    total, gone = int(left.sum()), int((left & ~first).sum())
    done = [0, 0]  # weights in the blocks so far, and how many of them were removed

    def choose(start: int, costs: Tensor) -> Tensor:
        block = slice(start, start + costs.shape[1])
        units, scores = torch.zeros_like(left), torch.zeros(left.shape)
        units[:, block], scores[:, block] = True, costs.float()
        here = replace(layers, scores={name: scores.flatten()}).part(name, units.flatten())
        num = int(here.left[name].sum())
        going = (done[0] + num) * gone // max(total, 1) - done[1]
        done[0], done[1] = done[0] + num, done[1] + going
        stays = torch.zeros_like(left).flatten()
        stays[here.left[name]] = allocate(here, going / num if num else 0.0)[name]
        return stays.reshape(left.shape)[:, block]

    return choose


@repair("sparsegpt")
def solve_(small: nn.Module, mask: Mask, trace: Trace, probe: Probe) -> None:
    """Update each layer's remaining weights to compensate for the removed ones, in place."""
    for name, kept in kept_weights(mask, small).items():
        weight = small.get_parameter(name)
        factor = inverse_factor(_gram(probe, name, small))
        with torch.no_grad():
            weight.copy_(compensated(weight.detach().cpu(), kept.cpu(), factor))


register_method(
    "sparsegpt",
    criterion=sparsegpt,
    allocation="uniform",
    unit="weight",
    scope=("linear",),
    repair="sparsegpt",
    choice="sparsegpt",
    reference="Frantar and Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774",
)
