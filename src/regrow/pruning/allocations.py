"""The built-in allocations: which units stay, given the scores of layers and a sparsity.

An allocation is a function of layers and a sparsity. Layers are a mapping from names to scores; one
that needs no more is written as ``(scores, sparsity) -> kept``, others ask them for the shapes of
weights and for costs (``pruning.layers``).
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

    The official code takes the score at that position for a threshold and removes it too, with all
    that equal it: one unit more.
    """
    units = sum(score.numel() for score in scores.values())
    return keep_best(scores, units - whole_share(units, sparsity))


@allocation("independent")
def allocate_independent(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep every unit whose score is at least the sparsity: of random scores, each by chance.

    No unit's fate depends on another's, so how many stay is left to chance too.
    """
    return {name: score >= sparsity for name, score in scores.items()}


@allocation("uniform")
def allocate_uniform(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - sparsity)) highest scores of every group."""
    return allocate_shares(scores, [sparsity] * len(scores))


@allocation("erk")
def allocate_erk(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep in each layer a share in proportion to (out + in + kh + kw) / (out * in * kh * kw).

    The Erdos-Renyi kernel (Evci et al., 2020, arXiv:1911.11134): small layers stay denser. As many
    units stay in all as with ``global``; a layer whose share would exceed 1 stays whole.
    """
    shapes = {name: layers.weight_shape(name) for name in layers}
    wanted = {n: len(layers.scores[n]) * sum(s) / prod(s) for n, s in shapes.items()}
    sizes = {name: score.numel() for name, score in layers.items()}
    total = layers.num_units - whole_share(layers.num_units, sparsity)
    counts = divide(wanted, sizes, total)
    return {name: allocate_count(score, counts[name]) for name, score in layers.items()}


def divide(wanted: Mapping[str, float], sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Divide a total in proportion to what is wanted, at most a size each; it comes out exact."""
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
    """Keep the best 2 of every 4 weights that follow one another along a layer's inputs.

    The pattern that sparse tensor cores of GPUs compute (Mishra et al., 2021, arXiv:2104.08378).
    Inputs that fill no block of 4 stay: the three colours of a first convolution.
    """
    return allocate_n_of_m(layers, 2, 4)


@allocation("4:8", sparsity=0.5, block=8)
def allocate_4_of_8(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep the best 4 of every 8 weights along a layer's inputs (arXiv:2104.08378); see 2:4."""
    return allocate_n_of_m(layers, 4, 8)


def allocate_n_of_m(layers: Layers, n: int, m: int) -> dict[str, Tensor]:
    """Keep the best n of every m weights along a layer's inputs; what fills no block stays."""
    if not UNITS.get(layers.unit).unstructured:
        raise ConfigError(
            f"A pattern of {n} in {m} is one of single weights, and this method removes "
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
    """Keep the floor(width * (1 - share)) highest scores of each group; a share for each."""
    return {
        name: allocate_count(score, whole_share(score.numel(), 1.0 - share))
        for (name, score), share in zip(scores.items(), shares, strict=True)
    }


def keep_best(scores: Mapping[str, Tensor], num: int) -> dict[str, Tensor]:
    """Keep so many of the highest scores of all groups together."""
    kept = allocate_count(torch.cat([score.flatten() for score in scores.values()]), num)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.clone() for name, part in zip(scores, parts, strict=True)}


def allocate_count(scores: Tensor, num: int) -> Tensor:
    """Keep so many of the highest scores; of equal ones the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[torch.argsort(scores, stable=True, descending=True)[:num]] = True
    return kept


def whole_share(count: int, share: float) -> int:
    """Return floor(count * share)."""
    # 10 x (1 - 0.3) is 7 - 1e-15 in floating point, and 7 is meant.
    return floor(count * share + 1e-9)
