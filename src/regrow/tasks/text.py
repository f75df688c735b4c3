"""Tasks on sequences: a class for each token, or the next token or byte."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regrow.data import Dataset
from regrow.data.arrays import IGNORED
from regrow.tasks.base import logits_of, of_arrays, register_task
from regrow.tasks.metric import BITS_PER_BYTE, PERPLEXITY, TOKEN_ACCURACY

MOST_BITS = 1024  # 2 to this power exceeds every float


def count_tokens(outputs: Any, targets: Tensor) -> Tensor:
    """Sum 1, c, n, c^2, n^2, c n over sequences, with c correct of n labelled tokens in each."""
    labelled = targets != IGNORED
    correct = ((logits_of(outputs).argmax(dim=-1) == targets) & labelled).flatten(1).sum(1).double()
    return _moments(correct, labelled.flatten(1).sum(1).double())


def sum_bits(outputs: Any, targets: Tensor) -> Tensor:
    """Sum 1, b, n, b^2, n^2, b n over sequences, with b bits of loss for n tokens in each."""
    logits = logits_of(outputs)
    losses = functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    bits = losses.double().reshape(len(targets), -1).sum(1) / math.log(2)
    return _moments(bits, (targets != IGNORED).flatten(1).sum(1).double())


def _moments(a: Tensor, n: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(a), a, n, a * a, n * n, a * n]).sum(1)


def ratio(sums: Sequence[float]) -> tuple[float, float | None]:
    """Return a ratio of two sums over sequences, and its standard error over sequences."""
    num, a, n, aa, nn, an = sums
    value = a / n
    variance = max(0.0, aa - 2 * value * an + value**2 * nn)
    return value, math.sqrt(variance) / n if num > 1 else None


def share_of_most_frequent_token(dataset: Dataset) -> float:
    """Return the share of the most frequent class among the labelled tokens of the test split."""
    labels = _labelled(dataset.test.labels)
    return int(torch.bincount(labels).max()) / len(labels)


def bits_by_frequency(dataset: Dataset) -> float:
    """Return the bits per token of the test split under the token frequencies of training.

    Each count is raised by one, so that no token has probability 0.
    """
    num = len(dataset.classes)
    counts = torch.bincount(_labelled(dataset.train.labels), minlength=num).double() + 1
    bits = -(counts / counts.sum()).log2()
    return float(bits[_labelled(dataset.test.labels)].mean())


def _labelled(labels: Tensor) -> Tensor:
    return labels[labels != IGNORED]


def perplexity(sums: Sequence[float]) -> tuple[float, float | None]:
    """Return 2 to the power of the bits per token, and its standard error by the delta method."""
    bits, error = ratio(sums)
    value = math.exp2(bits) if bits < MOST_BITS else math.inf
    return value, None if error is None else value * math.log(2) * error


def perplexity_by_frequency(dataset: Dataset) -> float:
    """Return the perplexity of the test split under the token frequencies of training."""
    return math.exp2(bits_by_frequency(dataset))


# Shared by the tasks that have a class for each token.
BY_TOKEN: Mapping[str, Any] = {
    "objective": "token-cross-entropy",
    "model_arguments": of_arrays,
    "targets": ("a class for each token",),
}
register_task(
    "token-classification",
    **BY_TOKEN,
    metric=TOKEN_ACCURACY,
    tally=count_tokens,
    conclude=ratio,
    baseline=share_of_most_frequent_token,
    about="A class for each token of a sequence; token accuracy",
)
register_task(
    "language-modelling",
    **BY_TOKEN,
    metric=BITS_PER_BYTE,
    tally=sum_bits,
    conclude=ratio,
    baseline=bits_by_frequency,
    inputs=("sequences of tokens",),
    about="The byte that follows each byte of a text; bits per byte",
)
register_task(
    "next-token",
    **BY_TOKEN,
    metric=PERPLEXITY,
    tally=sum_bits,
    conclude=perplexity,
    baseline=perplexity_by_frequency,
    inputs=("sequences of tokens",),
    about="The token that follows each token of a sequence; perplexity",
)
