"""Distributions of weights: the bins of Figure 8, and the share near zero."""

import pandas as pd

BIN = ("panel", "column", "low", "high", "value")
NEAR = 0.01  # "close to zero": half the std with which the widest layers of VGG are initialised


def near_zero(bins: pd.DataFrame) -> float:
    """Return the share of a network's weights that lie within ``NEAR`` of zero.

    A bin that extends beyond counts by the part of its width that lies within.

    >>> edges = pd.DataFrame({"low": [-0.03, -0.005, 0.005], "high": [-0.005, 0.005, 0.03]})
    >>> round(near_zero(edges.assign(value=[10, 6, 4])), 3)
    0.44
    """
    within = (bins["high"].clip(upper=NEAR) - bins["low"].clip(lower=-NEAR)).clip(lower=0)
    parts = within / (bins["high"] - bins["low"])
    return float((parts * bins["value"]).sum() / bins["value"].sum())
