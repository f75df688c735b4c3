"""Classification: one class for each image, row or sequence, scored by accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.data import Dataset
from regrow.tasks.base import logits_of, of_arrays, of_images, register_task
from regrow.tasks.metric import ACCURACY, EXAMPLE_ACCURACY


def count_correct(outputs: Any, targets: Tensor) -> Tensor:
    """Return the number of examples classified correctly and the number of all: float64 [2]."""
    correct = (logits_of(outputs).argmax(dim=1) == targets).sum()
    return torch.stack([correct.double(), torch.full_like(correct, len(targets)).double()])


def share(sums: Sequence[float]) -> tuple[float, None]:
    """Return the share of correct answers; the standard error (None) follows from the count."""
    return sums[0] / sums[1], None


def share_of_most_frequent(dataset: Dataset) -> float:
    """Return the share of the test split's most frequent class."""
    labels = dataset.test.labels
    return int(torch.bincount(labels).max()) / len(labels)


# Shared by the tasks that have one class per example.
BY_CLASS: Mapping[str, Any] = {
    "objective": "cross-entropy",
    "tally": count_correct,
    "conclude": share,
    "baseline": share_of_most_frequent,
    "targets": ("a class",),
}
register_task(
    "image-classification",
    **BY_CLASS,
    metric=ACCURACY,
    model_arguments=of_images,
    inputs=("images",),
    about="One class for each image; accuracy",
)
register_task(
    "classification",
    **BY_CLASS,
    metric=EXAMPLE_ACCURACY,
    model_arguments=of_arrays,
    about="One class for each row of features, or sequence of tokens; accuracy",
)
