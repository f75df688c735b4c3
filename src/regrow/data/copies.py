"""Notice what makes scores mislead: test examples trained on, inputs that tell the target."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.data.images import Images, MemoryImages
from regrow.data.named import NamedInputs
from regrow.data.spec import DataSpec

LEAST = 0.01  # of the test examples; published sets have fewer copies


def copies(train: Images, test: Images, spec: DataSpec, *, noun: str) -> tuple[str, ...]:
    """Return a notice if many test examples equal a training example, with the same target.

    Examples that are not held in memory are not compared.
    """
    if not (isinstance(train, MemoryImages) and isinstance(test, MemoryImages)):
        return ()
    num = int(np.isin(_hashes(test), _hashes(train)).sum())
    if num < max(1, LEAST * len(test)):
        return ()
    return (
        f"Data set {spec.name!r}: {num} of the {len(test)} test {noun}s are also in the training "
        f"split, with the same target. A network can know these by heart, so scores are too high "
        f"for new {noun}s, and most for networks that fit the training {noun}s best. If they are "
        "copies, remove them.",
    )


def telling(inputs: Mapping[str, Tensor], targets: Tensor, spec: DataSpec) -> tuple[str, ...]:
    """Return a notice for each input that tells the target: equal to it, or one value per class.

    Args:
        inputs: [rows] each; inputs of more dimensions are not examined.
        targets: [rows] or [rows, 1], classes or numbers.
    """
    if targets.numel() != len(targets):
        return ()
    wanted = targets.flatten()
    return tuple(
        f"Data set {spec.name!r}: the column {name!r} tells the target of each row, and networks "
        "take it as an input. If it is another form of the target, remove it."
        for name, values in inputs.items()
        if values.dim() == 1 and _tells(values, wanted)
    )


def _tells(values: Tensor, targets: Tensor) -> bool:
    """Return whether values equal the targets, or are one for each class, with two rows or more."""
    if targets.is_floating_point():
        return torch.equal(values.to(targets.dtype), targets) and len(torch.unique(targets)) > 1
    _, of_value = torch.unique(values, return_inverse=True)
    kinds = of_value * (int(targets.max()) + 1) + targets
    num = len(torch.unique(kinds))
    return 1 < num <= len(targets) // 2 and num == int(of_value.max()) + 1 == len(
        torch.unique(targets)
    )


def _hashes(examples: MemoryImages) -> NDArray[np.int64]:
    """Return a hash of each example with its target: a sum of random multiples, modulo 2^64."""
    inputs = examples.pixels
    parts = [*inputs.values()] if isinstance(inputs, NamedInputs) else [inputs]
    draws = np.random.default_rng(0)
    hashes = np.zeros(len(examples), dtype=np.int64)
    for part in (*parts, examples.labels):
        rows = part.reshape(len(part), -1).contiguous().view(torch.uint8).numpy()
        whole = rows.shape[1] // 4 * 4
        # Of 4 bytes, because what is in the top bytes of 8 has little effect modulo 2^64.
        for values in (rows[:, :whole].view(np.int32), rows[:, whole:]):
            factors = draws.integers(2**62, size=values.shape[1]) * 2 + 1
            hashes += np.einsum("ij,j->i", values, factors)
    return hashes
