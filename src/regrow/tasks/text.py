"""Text: a class for each token, or the byte that comes next, scored over whole sequences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regrow.data import Dataset
from regrow.data.arrays import IGNORED
from regrow.tasks.base import logits_of, of_arrays, register_task
from regrow.tasks.metric import BITS_PER_BYTE, TOKEN_ACCURACY


def count_tokens(outputs: Any, targets: Tensor) -> Tensor:
    """Sum over sequences: 1, c, n, c^2, n^2, c n; of c correct tokens among n that count."""
    labelled = targets != IGNORED
    correct = ((logits_of(outputs).argmax(dim=-1) == targets) & labelled).flatten(1).sum(1).double()
    return _moments(correct, labelled.flatten(1).sum(1).double())


def sum_bits(outputs: Any, targets: Tensor) -> Tensor:
    """Sum over sequences: 1, b, n, b^2, n^2, b n; of b bits for n tokens."""
    logits = logits_of(outputs)
    losses = functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    bits = losses.double().reshape(len(targets), -1).sum(1) / math.log(2)
    return _moments(bits, (targets != IGNORED).flatten(1).sum(1).double())


def _moments(a: Tensor, n: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(a), a, n, a * a, n * n, a * n]).sum(1)


def ratio(sums: Sequence[float]) -> tuple[float, float | None]:
    """Divide two sums over sequences; with the standard error that sequences, not tokens, give."""
    num, a, n, aa, nn, an = sums
    value = a / n
    variance = max(0.0, aa - 2 * value * an + value**2 * nn)
    return value, math.sqrt(variance) / n if num > 1 else None


def share_of_most_frequent_token(dataset: Dataset) -> float:
    """Return what naming the most frequent class for each token of the test split scores."""
    labels = dataset.test.labels
    labels = labels[labels != IGNORED]
    return int(torch.bincount(labels).max()) / len(labels)


def bits_by_frequency(dataset: Dataset) -> float:
    """Return the bits that the test split takes by the bytes' frequencies in training.

    Each byte is counted once more than it occurs, so that none is impossible.
    """
    num = len(dataset.classes)
    counts = torch.bincount(dataset.train.labels.flatten(), minlength=num).double() + 1
    bits = -(counts / counts.sum()).log2()
    return float(bits[dataset.test.labels.flatten()].mean())


# What a class for each token asks for.
BY_TOKEN: Mapping[str, Any] = {
    "objective": "token-cross-entropy",
    "model_arguments": of_arrays,
    "conclude": ratio,
    "targets": ("a class for each token",),
}
register_task(
    "token-classification",
    **BY_TOKEN,
    metric=TOKEN_ACCURACY,
    tally=count_tokens,
    baseline=share_of_most_frequent_token,
    about="A class for each token of a sequence; token accuracy",
)
register_task(
    "language-modelling",
    **BY_TOKEN,
    metric=BITS_PER_BYTE,
    tally=sum_bits,
    baseline=bits_by_frequency,
    inputs=("sequences of tokens",),
    about="The byte that follows each byte of a text; bits per byte",
)
