"""Random generators derived from a seed and a named purpose, never from global state."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed from a study's seed and a purpose.

    >>> derive(0, "shuffle", 3) == derive(0, "shuffle", 3)
    True
    >>> derive(0, "shuffle") == derive(0, "init")
    False
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded(seed: int, *purpose: str | int) -> "torch.Generator":
    """Make a CPU generator for one purpose, e.g. ``seeded(seed, "shuffle", epoch)``."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
