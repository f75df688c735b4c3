"""Sparse structure selection over the groups of a ResNeXt's convolutions.

As ``sparse_structure``, but each group of a grouped convolution within the branches has a factor.
A convolution that would lose all its groups keeps one, which contributes zero.
"""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from regrow.errors import ConfigError
from regrow.methods.sparse_structure import REFERENCE, Factor, learning, root_mean_square
from regrow.pruning.method import Target, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group, aggregations
from regrow.train import Treatment


def attach_to_paths_(model: nn.Module) -> None:
    """Attach a factor of 1 to every group of the grouped convolutions, in place."""
    sums = aggregations(model)
    if not sums:
        raise ConfigError(
            "sparse-structure-groups learns a factor for each group of the grouped convolutions, "
            "and this network declares none. Use a ResNeXt, or give the blocks of your network a "
            "method paths_end()."
        )
    for end, paths in sums.values():
        assert isinstance(end.weight, Tensor)
        parametrize.register_parametrization(end, "weight", Factor(end.weight, paths=paths))


def selecting_groups(strength: float, _sparsity: float) -> Treatment:
    """Return the treatment that learns a factor for each group of the grouped convolutions."""
    return learning(attach_to_paths_, strength)


@criterion("path-scale")
def path_scale(group: Group, probe: Probe) -> Tensor:
    """Score units by the root mean square of the weights that read them, factors included."""
    return root_mean_square(group, probe, "reader")


register_method(
    "sparse-structure-groups",
    criterion=path_scale,
    allocation="zeros",
    scope=("grouped",),
    treatment=selecting_groups,
    treatment_revision=2,  # as that of sparse_structure
    strength={"": 0.01},
    targets={"zeros": Target()},
    reference=REFERENCE,
)
