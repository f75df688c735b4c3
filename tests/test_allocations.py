"""Allocations that look at shapes: the Erdos-Renyi kernel, and patterns of N in M weights."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.pruning.method import METHODS, Method
from regrow.pruning.select import select
from regrow.surgery import trace
from small import NETWORKS, small

MAGNITUDE = replace(METHODS.get("magnitude"), scope=("conv", "linear"))


def magnitude(allocation: str) -> Method:
    return replace(MAGNITUDE, allocation=allocation)


@pytest.mark.parametrize("label", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.97])
def test_erk_keeps_as_many_as_asked_in_proportion_to_the_kernel(
    sparsity: float, label: str
) -> None:
    model, found = small(label)
    mask = select(model, found, magnitude("erk"), sparsity=sparsity)
    assert mask.num_kept == mask.num_units - int(mask.num_units * sparsity + 1e-9)
    scales = []
    for name, kept in mask.kept.items():
        shape = kept.shape
        if not bool(kept.all()):
            scales.append(kept.sum() / sum(shape))  # density * numel / (in + out + kh + kw)
            # Within a layer the largest weights stay.
            weight = model.get_parameter(name).detach().abs()
            if bool(kept.any()):
                assert weight[kept].min() >= weight[~kept].max()
    assert not scales or max(scales) - min(scales) <= 1.5 / 12  # rounding, of sums from 12 up


def test_erk_follows_the_published_densities() -> None:
    """Of layers 64 x 32 x 3 x 3 and 128 x 64 x 3 x 3, with 10 % of the weights kept."""
    model = nn.Sequential(nn.Conv2d(32, 64, 3, bias=False), nn.Conv2d(64, 128, 3, bias=False))
    found = trace(model, (1, 32, 8, 8))
    mask = select(model, found, magnitude("erk"), sparsity=0.9)
    numel = [64 * 32 * 9, 128 * 64 * 9]
    raw = [(64 + 32 + 6) / numel[0], (128 + 64 + 6) / numel[1]]
    scale = 0.1 * sum(numel) / (raw[0] * numel[0] + raw[1] * numel[1])
    for kept, density, size in zip(mask.kept.values(), raw, numel, strict=True):
        assert int(kept.sum()) == pytest.approx(scale * density * size, abs=1.0)


def blocks_of(kept: Tensor, dim: int, m: int) -> Tensor:
    laid = kept.movedim(dim, -1)
    filled = laid.shape[-1] // m * m
    return laid[..., :filled].reshape(-1, m)


@pytest.mark.parametrize(("name", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("label", NETWORKS)
def test_n_of_every_m_inputs_stay(label: str, name: str, n: int, m: int) -> None:
    model, found = small(label)
    mask = select(model, found, magnitude(name))
    for tensor, kept in mask.kept.items():
        weight = model.get_parameter(tensor).detach().abs()
        blocks, sizes = blocks_of(kept, 1, m), blocks_of(weight, 1, m)
        assert bool((blocks.sum(1) == n).all())
        for stays, size in zip(blocks, sizes, strict=True):
            assert size[stays].min() >= size[~stays].max()
        rest = kept.movedim(1, -1)[..., kept.shape[1] // m * m :]
        assert bool(rest.all())  # inputs that fill no block


def test_inputs_of_a_transposed_convolution_lie_in_its_first_dimension() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2))
    found = trace(model, (1, 3, 8, 8))
    mask = select(model, found, magnitude("2:4"))
    assert bool((blocks_of(mask.kept["1.weight"], 0, 4).sum(1) == 2).all())
    assert bool(mask.kept["0.weight"].all())  # three colours


def test_a_pattern_of_weights_within_an_earlier_choice_keeps_the_pattern() -> None:
    model, found = small("vgg")
    half = select(model, found, MAGNITUDE, sparsity=0.7)
    mask = select(model, found, magnitude("2:4"), within=half)
    for name, kept in mask.kept.items():
        assert bool((kept <= half.kept[name]).all())
        assert bool((blocks_of(kept, 1, 4).sum(1) <= 2).all())


def test_a_pattern_is_refused_for_channels_and_for_another_sparsity() -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"removes channels.*unit 'weight'"):
        select(model, found, replace(METHODS.get("l1-filter"), allocation="2:4"))
    with pytest.raises(ConfigError, match=r"always has the sparsity 0.5"):
        select(model, found, magnitude("2:4"), sparsity=0.6)
