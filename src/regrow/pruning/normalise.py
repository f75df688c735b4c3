"""Normalisations: how scores of groups of different kinds are made to compare.

A score is a sum over what a unit owns, and units differ: an attention head owns thousands of times
the weights of a channel of a depthwise convolution. Where an allocation ranks groups together, a
method says how their scores are put on one scale:

- ``none``: they stay as the criterion gave them, for criteria whose scores compare by themselves;
- ``weight``: divided by the number of weights that the unit owns, so that a sum becomes a mean;
- ``group``: divided by the mean size of the group's scores, so that every group has a mean of 1
  (Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900, in its published code).

None of them changes the order within a group whose units own equally many weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """The scores of a group's units ``[units]``, which of them are left, and what each owns."""

    scores: "Tensor"
    left: "Tensor"
    num_weights: "Callable[[], Tensor]"


def as_they_are(group: Scored) -> "Tensor":
    """Leave scores as the criterion gave them."""
    return group.scores


def per_weight(group: Scored) -> "Tensor":
    """Divide by the number of weights that each unit owns."""
    return group.scores / group.num_weights().clamp(min=1.0)


def per_group(group: Scored) -> "Tensor":
    """Divide by the mean absolute score of the units that are left."""
    sizes = group.scores[group.left].abs()
    mean = float(sizes.mean()) if len(sizes) else 0.0
    return group.scores / mean if mean > 0.0 else group.scores


UNCHANGED = "none"
NORMALISATIONS: Mapping[str, "Callable[[Scored], Tensor]"] = {
    UNCHANGED: as_they_are,
    "weight": per_weight,
    "group": per_group,
}
