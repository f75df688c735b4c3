"""The setting of a job's training, and the measured speeds that its time estimate uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from regrow.jobs.material import Material
from regrow.models import ModelSpec
from regrow.train import Recipe

if TYPE_CHECKING:
    from regrow.jobs.prune import Prune

OF_A_STEP = ("batch", "precision", "channels_last", "optimiser", "ema", "clip")


@dataclass(frozen=True)
class Setting:
    """The network, data and recipe that the speed of a training depends on."""

    model: ModelSpec
    data: Material
    recipe: Recipe

    @classmethod
    def of(cls, model: ModelSpec, data: Material, recipe: Recipe) -> "Setting":
        """Keep of a recipe what a step's time and memory depend on."""
        speed = Recipe(**{name: getattr(recipe, name) for name in OF_A_STEP})
        return cls(model, data, speed)


class Pace(Protocol):
    """Speeds of this machine, measured or read off records, in seconds."""

    @property
    def seconds(self) -> float:
        """The longest rehearsal of a job for which no other measurement stands in, in seconds."""

    def ratio(self, prune: "Prune") -> float:
        """FLOPs of the unpruned network over those of the pruned one, known or guessed."""

    def pruning(self, model: ModelSpec, data: Material) -> float:
        """Choosing and cutting the units of a network."""

    def training(
        self, setting: Setting, *, epochs: int, ratio: float = 1.0, taught: bool = False
    ) -> float:
        """Training for so many epochs and scoring, at 1 / ratio of the network's FLOPs.

        ``taught``: the unpruned network is the teacher of each step.
        """
