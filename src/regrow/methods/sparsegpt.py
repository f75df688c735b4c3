"""SparseGPT: linear layers pruned one by one, and solved anew (Frantar and Alistarh, ICML 2023).

arXiv:2301.00774. Of each layer H is the sum of x x^T over its inputs x, damped, and U the upper
Cholesky factor of the inverse of H, whose squared diagonal is that of the inverse once the columns
before are fixed. A weight in column j costs w^2 / U_jj^2 to remove. Then, column by column, what
the removed weights did is put into the columns after (algorithm 1).

The paper chooses what goes in blocks of 128 columns, of weights that were updated by the blocks
before; here all of a layer is chosen at once, from the weights as they were trained (the paper's
ablation of the block size has this as its largest). The repair follows the order of computation,
and each layer takes its inputs from the network as it is by then, as published.
"""

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.pruning.method import criterion, register_method, repair
from regrow.pruning.probe import Probe
from regrow.surgery import Group, Trace
from regrow.surgery.mask import Mask, kept_weights

DAMPING = 0.01  # share of the mean of the diagonal, as published


def inverse_factor(gram: Tensor) -> Tensor:
    """Return U, upper triangular, with U^T U the inverse of the damped matrix."""
    mean = gram.diagonal().mean().clamp(min=1e-30)  # inputs that are all zero change nothing
    damped = gram + torch.eye(len(gram), dtype=gram.dtype) * DAMPING * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


@criterion("sparsegpt")
def sparsegpt(group: Group, probe: Probe) -> Tensor:
    """Score a weight of a linear layer by what removing it costs: weight^2 / U_jj^2."""

    def costs(name: str) -> Tensor:
        weight, gram = probe.weight(name).double(), _gram(probe, name)
        return (weight.square() / inverse_factor(gram).diagonal().square()).float()

    return group.sum(costs)


def _gram(probe: Probe, name: str, model: nn.Module | None = None) -> Tensor:
    """Return x x^T of what a linear layer reads; a ``ConfigError`` for any other layer."""
    shape = probe.weight(name).shape
    gram = probe.gram(name, model=model) if len(shape) == 2 else torch.empty(0, 0)
    if shape[-1:] != gram.shape[:1]:
        raise ConfigError(
            f"sparsegpt solves linear layers, and {name!r} has the shape {list(shape)}. Leave such "
            "layers out of the method's scope: scope: linear."
        )
    return gram


def compensated(weight: Tensor, kept: Tensor, factor: Tensor) -> Tensor:
    """Return a weight ``[out, in]`` whose removed entries are zero, and made up for by later ones.

    For each column j: error = (what goes of it) / U_jj, and columns k >= j lose error x U_jk.
    """
    solved = weight.double().clone()
    for j in range(solved.shape[1]):
        error = torch.where(kept[:, j], 0.0, solved[:, j]) / factor[j, j]
        solved[:, j:] -= torch.outer(error, factor[j, j:])
        solved[~kept[:, j], j] = 0.0
    return solved.to(weight)


@repair("sparsegpt")
def solve_(small: nn.Module, mask: Mask, trace: Trace, probe: Probe) -> None:
    """Make up for the removed weights of each layer with those that stay, in place."""
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
    reference="Frantar and Alistarh, SparseGPT, ICML 2023, arXiv:2301.00774",
)
