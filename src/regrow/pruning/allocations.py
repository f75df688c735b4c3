"""The built-in allocations: which units to keep, given scores by layer and a sparsity.

An allocation is a function of ``Layers`` and a sparsity. ``Layers`` is a mapping from names to
scores; an allocation that needs no more is written as ``(scores, sparsity) -> kept``, others also
use its weight shapes and costs (``pruning.layers``).
"""

from collections.abc import Mapping, Sequence
from math import floor, prod

import torch
from torch import Tensor

from regrow.core.units import UNITS
from regrow.errors import ConfigError
from regrow.pruning.layers import Layers
from regrow.pruning.method import allocation


@allocation("global")
def allocate_global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove the floor(N * sparsity) lowest scores of all groups together.

    The official code uses the score at that position as a threshold and also removes the units that
    equal it: one unit more, or several if scores are tied.
    """
    units = sum(score.numel() for score in scores.values())
    return keep_best(scores, units - whole_share(units, sparsity))


@allocation("independent")
def allocate_independent(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep every unit whose score is at least the sparsity: with random scores, independent draws.

    The number of kept units is therefore random too.
    """
    return {name: score >= sparsity for name, score in scores.items()}


@allocation("uniform")
def allocate_uniform(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - sparsity)) highest scores of every group."""
    return allocate_shares(scores, [sparsity] * len(scores))


@allocation("erk")
def allocate_erk(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep in each layer a share proportional to (out + in + kh + kw) / (out * in * kh * kw).

    The Erdos-Renyi kernel (Evci et al., 2020, arXiv:1911.11134): small layers stay denser. The
    total is that of ``global``; a layer whose share would exceed 1 stays whole.
    """
    shapes = {name: layers.weight_shape(name) for name in layers}
    wanted = {n: len(layers.scores[n]) * sum(s) / prod(s) for n, s in shapes.items()}
    sizes = {name: score.numel() for name, score in layers.items()}
    total = layers.num_units - whole_share(layers.num_units, sparsity)
    counts = divide(wanted, sizes, total)
    return {name: allocate_count(score, counts[name]) for name, score in layers.items()}


def divide(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide a total in proportion to ``wanted``, at most ``sizes`` each; the sum is exact."""
    whole: set[str] = set()
    while True:
        rest = total - sum(sizes[name] for name in whole)
        scale = rest / (sum(want for name, want in wanted.items() if name not in whole) or 1.0)
        over = {n for n in wanted if n not in whole and wanted[n] * scale > sizes[n]}
        if not over:
            break
        whole |= over
    counts, exact, given = {}, 0.0, 0
    for name, want in wanted.items():
        exact += sizes[name] if name in whole else want * scale
        counts[name] = round(exact + 1e-9) - given
        given += counts[name]
    return counts


@allocation("2:4", sparsity=0.5, block=4)
def allocate_2_of_4(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep the best 2 of every 4 consecutive weights along a layer's inputs.

    The pattern of GPUs' sparse tensor cores (Mishra et al., 2021, arXiv:2104.08378). Inputs that do
    not fill a block of 4 stay, such as the three colours of a first convolution.
    """
    return allocate_n_of_m(layers, 2, 4)


@allocation("4:8", sparsity=0.5, block=8)
def allocate_4_of_8(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep the best 4 of every 8 weights along a layer's inputs (arXiv:2104.08378); see 2:4."""
    return allocate_n_of_m(layers, 4, 8)


def allocate_n_of_m(layers: Layers, n: int, m: int) -> dict[str, Tensor]:
    """Keep the best n of every m weights along a layer's inputs; incomplete blocks stay."""
    if not UNITS.get(layers.unit).unstructured:
        raise ConfigError(
            f"A pattern of {n} in {m} applies to single weights, and this method removes "
            f"{layers.unit}s. Use it with a method of unit 'weight', such as magnitude."
        )
    masks = {}
    for name in layers:
        dim = layers.input_dim(name)
        scores = layers.whole(name).movedim(dim, -1)  # [..., inputs]
        filled = scores.shape[-1] // m * m
        blocks = scores[..., :filled].reshape(-1, m)
        best = torch.argsort(blocks, dim=1, stable=True, descending=True)[:, :n]
        stays = torch.ones_like(scores, dtype=torch.bool)
        chosen = torch.zeros_like(blocks, dtype=torch.bool).scatter_(1, best, True)
        stays[..., :filled] = chosen.reshape(scores[..., :filled].shape)
        masks[name] = stays.movedim(-1, dim).flatten()[layers.left[name]]
    return masks


def allocate_shares(scores: Mapping[str, Tensor], shares: Sequence[float]) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - share)) highest scores of each group, with one share each."""
    return {
        name: allocate_count(score, whole_share(score.numel(), 1.0 - share))
        for (name, score), share in zip(scores.items(), shares, strict=True)
    }


def keep_best(scores: Mapping[str, Tensor], num: int) -> dict[str, Tensor]:
    """Keep the ``num`` highest scores of all groups together."""
    kept = allocate_count(torch.cat([score.flatten() for score in scores.values()]), num)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.clone() for name, part in zip(scores, parts, strict=True)}


def allocate_count(scores: Tensor, num: int) -> Tensor:
    """Keep the ``num`` highest scores; among equal scores the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[torch.argsort(scores, stable=True, descending=True)[:num]] = True
    return kept


def whole_share(count: int, share: float) -> int:
    """Return floor(count * share)."""
    # Products may fall short by rounding: 10 x (1 - 0.3) as 7 - 1e-15, where 7 is meant.
    return floor(count * share + 1e-9)
