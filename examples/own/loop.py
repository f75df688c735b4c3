"""A training function for `regrow compare`: a plain loop on the digits of data.py."""

from typing import Any

from data import accuracy_of, train
from torch import nn


def train_digits(model: nn.Module, budget: Any, seed: int) -> dict[str, float]:
    """Train a network in place for a budget of epochs (0: only evaluate); return its accuracy."""
    if budget.epochs:
        train(model, budget.epochs, lr=0.003 if budget.inherited else 0.01, seed=seed)
    return {"accuracy": accuracy_of(model)}
