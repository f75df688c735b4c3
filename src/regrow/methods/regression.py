"""Channel Pruning for Accelerating Very Deep Neural Networks (He et al., ICCV 2017).

arXiv:1707.06168; the paper's "regression based feature reconstruction". Channels are chosen by
LASSO, then the next layer's weights are refitted by least squares. All layers are scored on the
trained network and cut at once, then repaired in the order of computation.
"""

import numpy as np
import torch
from torch import Tensor, nn

from regrow.pruning.method import criterion, register_method, repair
from regrow.pruning.probe import Probe
from regrow.pruning.reconstruct import least_squares, reconstruct_
from regrow.surgery import Group, Trace
from regrow.surgery.mask import Mask

JITTER = 1e-9  # relative to the mean square of a channel


@criterion("lasso-path")
def lasso_path(group: Group, probe: Probe) -> Tensor:
    """Score a channel by the penalty at which it enters the LASSO path; the first scores highest.

    The path minimises |y - sum of b_c x_c|^2 / 2n + penalty * sum of |b_c|, where x_c is the
    contribution of channel c to the sampled outputs y of the next layer. The outputs are scaled to
    a mean square of 1, so that groups are comparable. A channel that never enters scores 0.
    """
    rows = probe.contributions(group).double()  # [samples, units]
    products = (rows.T @ rows).numpy() / len(rows)
    mean_square = float(products.sum())  # the outputs are the sums of the rows
    if mean_square <= 0.0:
        return torch.zeros(group.size)
    return torch.from_numpy(entry_penalties(products / mean_square)).float()


def entry_penalties(products: np.ndarray) -> np.ndarray:
    """Return the penalty at which each channel's factor first leaves zero.

    ``products``: the mean products of the channels' contributions, ``[units, units]``. The target
    of the regression is the sum of all contributions.
    """
    from sklearn.linear_model import lars_path_gram  # heavy, and needed by this method only

    units = len(products)
    # Without the jitter, duplicate channels would make the path degenerate.
    stable = products + np.eye(units) * JITTER * np.trace(products) / units
    penalties, _, factors = lars_path_gram(
        products.sum(1), stable, n_samples=1, method="lasso", max_iter=8 * units
    )
    entered = (factors != 0.0).argmax(axis=1)  # 0 for those that never do: the path starts at zero
    return np.where(entered > 0, penalties[entered - 1], 0.0)


@repair("least-squares")
def least_squares_(small: nn.Module, mask: Mask, trace: Trace, probe: Probe) -> None:
    """Refit each reader's weights to the uncut network's outputs (section 3.1), in place."""
    reconstruct_(small, mask, trace, observer=probe, solve=least_squares)


register_method(
    "regression",
    criterion=lasso_path,
    allocation="uniform",
    scope=("conv",),
    repair="least-squares",
    reference="He et al., Channel Pruning, ICCV 2017, arXiv:1707.06168",
)
