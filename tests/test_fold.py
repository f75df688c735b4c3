"""Weights that norms of PyTorch compute: written as plain weights, cut, saved and loaded."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import regrow
from cutting import half

SHAPE = (1, 3, 8, 8)
Norm = Callable[[nn.Module], Any]


def by_hooks(norm: Any) -> Norm:
    def apply(layer: nn.Module) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer)

    return apply


NORMS: dict[str, Norm] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of all at once": lambda layer: parametrizations.weight_norm(layer, dim=-1),
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm by hooks": by_hooks(nn.utils.weight_norm),
    "spectral_norm by hooks": by_hooks(nn.utils.spectral_norm),
}


def normed(norm: Norm) -> nn.Module:
    """Build layers of several kinds, whose weights a norm computes, after a step of training."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), norm(nn.ConvTranspose2d(8, 6, 3)), nn.ReLU()),
        *(norm(nn.Conv2d(6, 6, 3, groups=2)), nn.Flatten(), norm(nn.Linear(216, 10)), nn.Tanh()),
        norm(nn.Linear(10, 4)),
    )
    net(torch.randn(2, *SHAPE[1:]))
    return net.eval()


def build() -> nn.Module:
    return normed(parametrizations.weight_norm)


@pytest.mark.parametrize("name", NORMS)
def test_why_a_layer_with_a_norm_stays_whole_says_what_to_do(name: str) -> None:
    whole = regrow.trace(normed(NORMS[name]), torch.randn(SHAPE)).whole
    assert "its weight is computed from other parameters" in whole["0"]
    assert "regrow.fold(network) makes it a plain parameter" in whole["0"]


@pytest.mark.parametrize("name", NORMS)
def test_a_folded_network_computes_the_same_and_is_cut_exactly(name: str) -> None:
    net, x = normed(NORMS[name]), torch.randn(2, *SHAPE[1:])
    before, state = net(x), {n: t.clone() for n, t in net.state_dict().items()}
    folded = regrow.fold(net)
    assert torch.equal(folded(x), before)
    assert torch.equal(net(x), before)  # it stays as it was
    assert {n: torch.equal(t, state[n]) for n, t in net.state_dict().items()} == dict.fromkeys(
        state, True
    )
    found = regrow.trace(folded, SHAPE)
    assert list(found.groups) == ["0", "2", "6"]
    assert list(found.whole) == ["8"]
    proof = regrow.verify(folded, half(found), found)
    assert proof.ok, str(proof)
    folded.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in folded.parameters())


def test_what_no_norm_computes_is_returned_as_it_is() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    net = nn.Sequential(nn.Linear(3, 2))
    assert regrow.fold(net) is net
    nn.utils.parametrize.register_parametrization(net[0], "weight", Doubled())
    assert regrow.fold(net) is net
    frozen = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in regrow.fold(frozen).parameters())
    alone = parametrizations.spectral_norm(nn.Linear(3, 2))
    assert type(regrow.fold(alone)) is nn.Linear


def test_inspect_and_compress_fold_and_the_small_network_loads(tmp_path: Path) -> None:
    net = build()
    assert [group.name for group in regrow.inspect(net, SHAPE).groups] == ["0", "2", "6"]
    origin = regrow.ModelOrigin(f"{__file__}:build")
    cut = regrow.compress(net, "1x3x8x8", sparsity=0.5, origin=origin, batches=())
    assert cut.proof.ok
    assert cut.network[0].weight.shape[0] == 4
    cut.save(tmp_path / "small")
    x = torch.randn(SHAPE)
    small = regrow.load(tmp_path / "small", code=origin.text)
    assert torch.equal(small(x), cut.network(x))
