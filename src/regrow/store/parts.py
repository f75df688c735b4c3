"""Named parts of a job's tensors: the main one, such as weights, and others beside it."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAIN = ""
REPAIRED = "repaired"  # of a pruning: weights of the pruned network that a repair changed
MASKS = "masks"  # of a training that changed them: the masks at its end
_NAMED = re.compile(rf"({REPAIRED}|{MASKS}|after-epoch-[0-9]+)/")


def after_epoch(epoch: int) -> str:
    """Return the part of a training that holds its weights after so many epochs.

    >>> after_epoch(3)
    'after-epoch-3'
    """
    return f"after-epoch-{epoch}"


def joined(parts: "Mapping[str, Mapping[str, Tensor]]") -> "dict[str, Tensor]":
    """Return the tensors of named parts under their names in a file: ``part/name``."""
    return {
        f"{part}/{name}": value
        for part, tensors in parts.items()
        for name, value in tensors.items()
    }


def part_of(tensors: "Mapping[str, Tensor]", part: str = MAIN) -> "dict[str, Tensor]":
    """Return one part of a file's tensors, under their own names; empty if there is none."""
    if part == MAIN:
        return {name: value for name, value in tensors.items() if not _NAMED.match(name)}
    prefix = f"{part}/"
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
