"""Base class of all trainings: the count of steps, the state, and how it is restored."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import TrainingError
from regrow.train.recipe import Recipe


class Stepping(ABC):
    """A training of ``recipe.length`` epochs, after ``steps_done`` updates.

    ``history`` has a line for each finished epoch, and for a last one that is trained in part.
    """

    model: nn.Module
    recipe: Recipe
    steps_done: int
    history: list[dict[str, float]]
    notice: str | None

    @property
    @abstractmethod
    def samples(self) -> int:
        """Count the examples trained on so far, each as often as it was seen."""

    @abstractmethod
    def step(self) -> None:
        """Take one update."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore a state of the same training, to continue from it."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors that a step changes, without copying them."""

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Return what distinguishes this training from others, as JSON values."""

    @property
    def num_steps(self) -> int:
        """Count the updates of the whole training."""
        return self.recipe.num_steps(self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """Return the current epoch, counted from 0: the number of finished ones."""
        return self.steps_done // self.steps_per_epoch

    @property
    def done(self) -> bool:
        """Return whether every step has been taken."""
        return self.steps_done >= self.num_steps

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all that ``restore`` needs: tensors, and a record of JSON values."""
        copies = {
            name: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for name, value in self._tensors().items()
        }
        return copies, {
            "steps_done": self.steps_done,
            "history": [dict(line) for line in self.history],
            **self._identity(),
        }

    def _next(self) -> tuple[int, int]:
        """Return the epoch of the next step, and its place there."""
        if self.done:
            raise TrainingError(f"This training has taken all of its {self.num_steps} steps.")
        return divmod(self.steps_done, self.steps_per_epoch)

    def _check_loss(self, loss: float, epoch: int, place: int) -> None:
        if not math.isfinite(loss):
            lr = self.recipe.lr_at(epoch, place=place, steps=self.steps_per_epoch)
            raise TrainingError(
                f"The training diverged: its loss is {loss} in epoch {epoch + 1} of "
                f"{self.recipe.epochs}, step {place + 1} of {self.steps_per_epoch}, at a learning "
                f"rate of {lr:g}. Lower 'lr', or give a warm-up."
            )

    def _check_identity(self, meta: Mapping[str, Any]) -> None:
        for name, expected in self._identity().items():
            if meta.get(name) != expected:
                raise TrainingError(
                    f"This checkpoint is of another training: its {name} is {meta.get(name)!r}, "
                    f"where {expected!r} was expected. Remove it to start afresh."
                )

    def _restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Copy a state back, after checking that it is of this network."""
        targets = self._tensors()
        for name, target in targets.items():
            if name not in tensors or tensors[name].shape != target.shape:
                shape = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise TrainingError(
                    f"This checkpoint is of another network: for {name!r} it has {shape}, where "
                    f"{tuple(target.shape)} was expected. Remove it to start afresh."
                )
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])
        self.steps_done = int(meta["steps_done"])
        self.history = [dict(line) for line in meta["history"]]
