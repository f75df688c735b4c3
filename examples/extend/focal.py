"""The focal loss (Lin et al., ICCV 2017, arXiv:1708.02002) as a training objective."""

from torch import Tensor

from regrow.train import register_objective


@register_objective("focal")
def focal(outputs: Tensor, targets: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p)^gamma log p of each image, p being the probability of its class.

    With ``gamma`` 0 this is the cross-entropy; the larger ``gamma``, the less easy images count.
    """
    log_p = outputs.log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    return -((1.0 - log_p.exp()) ** gamma) * log_p
