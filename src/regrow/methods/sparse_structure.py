"""Data-Driven Sparse Structure Selection (Huang and Wang, ECCV 2018, arXiv:1707.01213).

Each residual branch is multiplied by a factor that is learnt along with the weights, by accelerated
proximal gradient under an L1 penalty. After each update negative factors are set to zero, as in the
published optimiser; the paper does not mention it. Branches whose factor is zero are removed
(``target: zeros``), or a share of all branches.

The method alternates between two points: the proximal point, after the soft threshold, and the
look-ahead point, where the next gradient is taken. The published code keeps, projects, saves and
tests the latter, so that is what is folded into the weights here: the pruned network is one whose
loss the training computes.

The published trainings apply no weight decay to norm shifts and biases, with or without factors:
see the recipe ``imagenet-sss``. The weights' decay and momentum do not apply to factors.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regrow.pruning.allocations import keep_best, whole_share
from regrow.pruning.method import Target, allocation, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group, Role, blocks
from regrow.train import Treatment

REFERENCE = "Huang and Wang, Sparse Structure Selection, ECCV 2018, arXiv:1707.01213"
MOMENTUM = 0.9  # of the factors; equal to that of the weights


class Factor(nn.Module):
    """A factor on a layer, or on each of ``paths`` equal parts of its inputs, and its velocity."""

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
        parts = tensor.reshape(len(tensor), self.paths, -1, *tensor.shape[2:])
        return (parts * self.value.view(-1, *[1] * (tensor.dim() - 1))).reshape(tensor.shape)


def factors(model: nn.Module) -> Iterator[Factor]:
    """Yield the factors of a network, in the order of its blocks."""
    return (module for module in model.modules() if isinstance(module, Factor))


def attach_(model: nn.Module) -> None:
    """Attach a factor of 1 to every branch, in place."""
    for block in blocks(model).values():
        end = block.branch_end()
        assert isinstance(end, nn.Module)
        assert isinstance(end.weight, Tensor)
        factor = Factor(end.weight)
        for name in ("weight", "bias"):  # the output is linear in both
            if getattr(end, name, None) is not None:
                parametrize.register_parametrization(end, name, factor)


def fold_(model: nn.Module) -> None:
    """Multiply the factors into the weights and remove them, in place."""
    for end in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        for name in list(end.parametrizations):  # type: ignore[arg-type]
            if isinstance(end.parametrizations[name][0], Factor):  # type: ignore[index]
                parametrize.remove_parametrizations(end, name)


def set_gradients_aside(model: nn.Module) -> None:
    """Set the factors' gradients aside, so that the weights' optimiser does not update them."""
    for factor in factors(model):
        factor.gradient, factor.value.grad = factor.value.grad, None


def accelerated_proximal_step_(model: nn.Module, lr: float | Tensor, *, strength: float) -> None:
    """Update the factors in place (section 3.3); ``value`` is the look-ahead point.

    z = value - lr * gradient, s = soft threshold of z at lr * strength,
    velocity = s - value + momentum * velocity, value = max(0, s + momentum * velocity).
    """
    with torch.no_grad():
        for factor in factors(model):
            assert factor.gradient is not None
            z = factor.value - lr * factor.gradient
            s = z.sign() * (z.abs() - lr * strength).clamp(min=0)
            factor.velocity.mul_(MOMENTUM).add_(s - factor.value)
            factor.value.copy_((s + MOMENTUM * factor.velocity).clamp(min=0))


def selecting(strength: float, _sparsity: float) -> Treatment:
    """Return the treatment that learns a factor for each branch."""
    return learning(attach_, strength)


def learning(attach: Callable[[nn.Module], None], strength: float) -> Treatment:
    """Return the treatment that learns the factors of ``attach`` and folds them in at the end."""
    return Treatment(
        begin=lambda model, _: attach(model),
        gradients=lambda model, _: set_gradients_aside(model),
        updated=lambda model, moment: accelerated_proximal_step_(
            model, moment.lr, strength=strength
        ),
        end=lambda model, _: fold_(model),
    )


@criterion("branch-scale")
def branch_scale(group: Group, probe: Probe) -> Tensor:
    """Score a branch by the root mean square of its last layer's weights, factor included.

    Only their product matters: scale could be moved from the factor into the layer.
    """
    return root_mean_square(group, probe, "producer")


def root_mean_square(group: Group, probe: Probe, role: Role) -> Tensor:
    """Score units by the root mean square of the weights that produce or read them."""
    squares = group.sum(lambda name: probe.weight(name).square(), role=role)
    return (squares / group.sum(lambda name: torch.ones_like(probe.weight(name)), role=role)).sqrt()


@allocation("zeros")
def allocate_zeros(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove the lowest scores: all that are zero, and at least floor(N * sparsity) units."""
    flat = torch.cat(list(scores.values()))
    num = min(len(flat) - whole_share(len(flat), sparsity), int(flat.count_nonzero()))
    return keep_best(scores, num)


def _imagenet(gone: tuple[str, str, str, str]) -> Target:
    """Make a target of the pre-activation ResNet-50; 1 marks the blocks of a stage to remove."""
    return Target(model="imagenet-preresnet-50", shares=tuple(float(b) for b in "".join(gone)))


register_method(
    "sparse-structure",
    criterion=branch_scale,
    allocation="zeros",
    unit="block",
    scope=("block",),
    treatment=selecting,
    treatment_revision=2,  # with the projection, and folded at the look-ahead point
    strength={"": 0.01},
    # The number of blocks removed per stage, and whether the first is one, are published. Otherwise
    # the last blocks of a stage are removed.
    targets={
        "zeros": Target(),
        "resnet-41": _imagenet(("111", "0000", "000000", "000")),
        "resnet-32": _imagenet(("101", "0000", "000011", "011")),
        "resnet-26": _imagenet(("111", "1001", "100000", "011")),
    },
    reference=REFERENCE,
)
