"""Regression: numbers for each row, scored by R2, the explained share of their variance."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.data import Dataset
from regrow.errors import TrainingError
from regrow.tasks.base import of_arrays, register_task
from regrow.tasks.metric import R_SQUARED


def square_errors(outputs: Any, targets: Tensor) -> Tensor:
    """Sum 1, e, t, e^2, t^2, e t over rows, with squared error e and squared target t of a row.

    Targets are standardised by the training rows, so t is the error of predicting their mean.
    """
    if not isinstance(outputs, Tensor) or outputs.numel() != targets.numel():
        raise TrainingError(
            f"The network must return a number for each target, {tuple(targets.shape)}. Got "
            f"{tuple(getattr(outputs, 'shape', ()))}."
        )
    values = targets.double().flatten(1) if targets.dim() > 1 else targets.double()[:, None]
    e = (outputs.double().reshape(values.shape) - values).square().mean(1)
    t = values.square().mean(1)
    return torch.stack([torch.ones_like(e), e, t, e * e, t * t, e * t]).sum(1)


def r_squared(sums: Sequence[float]) -> tuple[float, float | None]:
    """Return 1 - (sum of e) / (sum of t), and its standard error over rows by the delta method."""
    num, e, t, ee, tt, et = sums
    if t == 0.0:
        raise TrainingError(
            "R2 is not defined: every test target is the mean of the training targets. Give test "
            "rows whose targets differ."
        )
    ratio = e / t
    variance = max(0.0, ee - 2 * ratio * et + ratio**2 * tt)
    return 1.0 - ratio, math.sqrt(variance) / t if num > 1 else None


def none_explained(dataset: Dataset) -> float:
    """Return the R2 of predicting the mean of the training targets."""
    return 0.0


register_task(
    "regression",
    metric=R_SQUARED,
    objective="mean-squared-error",
    model_arguments=of_arrays,
    tally=square_errors,
    conclude=r_squared,
    baseline=none_explained,
    targets=("numbers",),
    about="Numbers for each row of features; R2",
)
