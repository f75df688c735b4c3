"""Units: what a pruning method removes."""

from typing import Literal

Unit = Literal["channel", "weight", "filter", "block"]
HELD: tuple[Unit, ...] = ("weight", "filter")  # masked at zero in a network of full size, not cut
