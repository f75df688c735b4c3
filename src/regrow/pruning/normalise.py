"""Normalisations: how scores of groups of different kinds are made comparable.

A score is a sum over a unit's weights, and units differ in size: an attention head has thousands of
times the weights of a channel of a depthwise convolution. Where an allocation ranks groups
together, a method says how their scores are put on one scale:

- ``none``: unchanged, for criteria whose scores are comparable as they are;
- ``weight``: divided by the number of weights of the unit, so that a sum becomes a mean;
- ``group``: divided by the mean absolute score of the group, so that this is 1 in every group
  (Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900, in its published code).

None of them changes the order within a group whose units have equally many weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Scored:
    """The scores of a group's units ``[units]``, which units are left, and their weight counts."""

    scores: "Tensor"
    left: "Tensor"
    num_weights: "Callable[[], Tensor]"


def as_they_are(group: Scored) -> "Tensor":
    """Leave scores as the criterion gave them."""
    return group.scores


def per_weight(group: Scored) -> "Tensor":
    """Divide by the number of weights of each unit."""
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
