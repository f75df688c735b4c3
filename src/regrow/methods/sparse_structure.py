"""Data-Driven Sparse Structure Selection (Huang and Wang, ECCV 2018, arXiv:1707.01213).

Each residual branch (``sparse-structure``), or each group of a grouped convolution within the
branches (``sparse-structure-groups``, for ResNeXt), is multiplied by a factor that is learnt with
the weights, by accelerated proximal gradient under an L1 penalty. What has a factor of exactly zero
at the end is dropped, which changes nothing (``target: zeros``); a sparsity drops more of the
smallest. Of a convolution that lost all its groups one stays, adding zero.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regrow.errors import ConfigError
from regrow.probe import Probe
from regrow.prune import Target, allocate_count, allocation, criterion, register_method, whole_share
from regrow.surgery import Group, Role, aggregations, blocks
from regrow.train import Treatment

MOMENTUM = 0.9  # as for the weights


class Factor(nn.Module):
    """A factor on the last layer of a branch, with what its update remembers.

    Or one for each of several ``paths``, which are equal parts of the layer's inputs.
    """

    velocity: Tensor

    def __init__(self, like: Tensor, *, paths: int | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(like.new_ones(paths or 1))
        self.register_buffer("velocity", torch.zeros_like(self.value))
        self.gradient: Tensor | None = None
        self.paths = paths

    def forward(self, tensor: Tensor) -> Tensor:
        """Return a weight or a bias times the factor."""
        if self.paths is None:
            return tensor * self.value
        num_out, num_in, *kernel = tensor.shape
        parts = tensor.reshape(num_out, self.paths, num_in // self.paths, *kernel)
        return (parts * self.value.view(-1, *[1] * (tensor.dim() - 1))).reshape(tensor.shape)


def factors(model: nn.Module) -> Iterator[Factor]:
    """Yield the factors of a network, in the order of its blocks."""
    return (module for module in model.modules() if isinstance(module, Factor))


def attach_(model: nn.Module) -> None:
    """Give every branch a factor of 1, in place."""
    for block in blocks(model).values():
        end = block.branch_end()
        assert isinstance(end, nn.Module)
        assert isinstance(end.weight, Tensor)
        factor = Factor(end.weight)
        for name in _linear_in(end):
            parametrize.register_parametrization(end, name, factor)


def attach_to_paths_(model: nn.Module) -> None:
    """Give every group of the grouped convolutions a factor of 1, in place."""
    found = aggregations(model)
    if not found:
        raise ConfigError(
            "sparse-structure-groups learns a factor for each group of the grouped convolutions, "
            "and this network declares none. Use a ResNeXt, or give the blocks of your network a "
            "method paths_end()."
        )
    for end, paths in found.values():
        assert isinstance(end.weight, Tensor)
        parametrize.register_parametrization(end, "weight", Factor(end.weight, paths=paths))


def fold_(model: nn.Module) -> None:
    """Multiply the factors into the weights and take them away, in place."""
    with torch.no_grad():
        for factor in factors(model):
            factor.value.sub_(MOMENTUM * factor.velocity)  # back from where the next step looks
    for end in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        for name in list(end.parametrizations):  # type: ignore[arg-type]
            if isinstance(end.parametrizations[name][0], Factor):  # type: ignore[index]
                parametrize.remove_parametrizations(end, name)


def _linear_in(end: nn.Module) -> list[str]:
    """Name the parameters that a layer's output is linear in."""
    return [name for name in ("weight", "bias") if getattr(end, name, None) is not None]


def set_gradients_aside(model: nn.Module) -> None:
    """Keep the gradients of the factors from the update of the weights."""
    for factor in factors(model):
        factor.gradient, factor.value.grad = factor.value.grad, None


def accelerated_proximal_step_(model: nn.Module, lr: float | Tensor, *, strength: float) -> None:
    """Update the factors (section 3.3), in place, where ``value`` is the point looked ahead to.

    z = value - lr * gradient, s = soft threshold of z at lr * strength,
    velocity = s - value + momentum * velocity, value = s + momentum * velocity.
    """
    with torch.no_grad():
        for factor in factors(model):
            assert factor.gradient is not None
            z = factor.value - lr * factor.gradient
            s = z.sign() * (z.abs() - lr * strength).clamp(min=0)
            factor.velocity.mul_(MOMENTUM).add_(s - factor.value)
            factor.value.copy_(s + MOMENTUM * factor.velocity)


def selecting(strength: float, _sparsity: float) -> Treatment:
    """Learn a factor for each branch."""
    return _learning(attach_, strength)


def selecting_groups(strength: float, _sparsity: float) -> Treatment:
    """Learn a factor for each group of the grouped convolutions."""
    return _learning(attach_to_paths_, strength)


def _learning(attach: Callable[[nn.Module], None], strength: float) -> Treatment:
    return Treatment(
        begin=attach,
        gradients=set_gradients_aside,
        updated=partial(accelerated_proximal_step_, strength=strength),
        end=fold_,
    )


@criterion("branch-scale")
def branch_scale(group: Group, probe: Probe) -> Tensor:
    """Score a branch by the root mean square of its last layer, which its factor is part of.

    The network sees only their product: the factor alone could be moved into the layer.
    """
    return _root_mean_square(group, probe, "producer")


@criterion("path-scale")
def path_scale(group: Group, probe: Probe) -> Tensor:
    """Score units by the root mean square of the weights that read them, factors included."""
    return _root_mean_square(group, probe, "reader")


def _root_mean_square(group: Group, probe: Probe, role: Role) -> Tensor:
    squares = group.sum(lambda name: probe.weight(name).square(), role=role)
    return (squares / group.sum(lambda name: torch.ones_like(probe.weight(name)), role=role)).sqrt()


@allocation("zeros")
def allocate_zeros(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove every unit that scores zero, and of the lowest as many as the sparsity asks for."""
    flat = torch.cat(list(scores.values()))
    num = min(len(flat) - whole_share(len(flat), sparsity), int(flat.count_nonzero()))
    parts = torch.split(allocate_count(flat, num), [score.numel() for score in scores.values()])
    return {name: part.clone() for name, part in zip(scores, parts, strict=True)}


def _imagenet(gone: tuple[str, str, str, str]) -> Target:
    """Say for each stage of the pre-activation ResNet-50 which blocks go (1)."""
    return Target(model="imagenet-preresnet-50", shares=tuple(float(b) for b in "".join(gone)))


register_method(
    "sparse-structure",
    criterion=branch_scale,
    allocation="zeros",
    unit="block",
    scope=("block",),
    treatment=selecting,
    strength={"": 0.01},
    # How many go of each stage, and whether the first does, are published; of the others, the last.
    targets={
        "zeros": Target(),
        "resnet-41": _imagenet(("111", "0000", "000000", "000")),
        "resnet-32": _imagenet(("101", "0000", "000011", "011")),
        "resnet-26": _imagenet(("111", "1001", "100000", "011")),
    },
    reference="Huang and Wang, Data-Driven Sparse Structure Selection, ECCV 2018, arXiv:1707.01213",
)
register_method(
    "sparse-structure-groups",
    criterion=path_scale,
    allocation="zeros",
    scope=("grouped",),
    treatment=selecting_groups,
    strength={"": 0.01},
    targets={"zeros": Target()},
    reference="Huang and Wang, Data-Driven Sparse Structure Selection, ECCV 2018, arXiv:1707.01213",
)
