"""Learning both Weights and Connections (Han et al., NeurIPS 2015, arXiv:1506.02626)."""

from regrow.methods.l1_filter import l1_norm
from regrow.pruning.method import register_method

# For a unit that is a single weight, the L1 norm is its magnitude.
register_method(
    "magnitude",
    criterion=l1_norm,
    allocation="global",
    unit="weight",
    scope=("conv",),
    reference="Han et al., Learning both Weights and Connections, NeurIPS 2015, arXiv:1506.02626",
)
