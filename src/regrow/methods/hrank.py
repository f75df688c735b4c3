"""HRank: remove channels with low-rank feature maps (Lin et al., CVPR 2020, arXiv:2002.10179)."""

import torch
from torch import Tensor

from regrow.errors import ConfigError
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group

CHUNK = 64  # images whose maps are decomposed at a time


@criterion("hrank")
def hrank(group: Group, probe: Probe) -> Tensor:
    """Score a channel by the mean rank of its feature maps over the images (equation 4).

    The maps are taken after the layer's norm and a ReLU, as in the published code: before the ReLU,
    nearly all maps have full rank.
    """

    def ranks(maps: Tensor) -> Tensor:
        if maps.dim() != 4:
            raise ConfigError(
                f"hrank takes the rank of two-dimensional feature maps, and {group.name!r} "
                f"({group.kind}) outputs {list(maps.shape[1:])} for an image. Use another "
                f"criterion, or leave {group.kind!r} out of the method's scope."
            )
        parts = torch.split(maps.clamp(min=0).float(), CHUNK)
        return torch.cat([torch.linalg.matrix_rank(part).float() for part in parts])

    return probe.activation(group, reduce=ranks).mean(0)


register_method(
    "hrank",
    criterion=hrank,
    allocation="uniform",
    scope=("conv", "stream"),
    reference="Lin et al., HRank, CVPR 2020, arXiv:2002.10179",
)
