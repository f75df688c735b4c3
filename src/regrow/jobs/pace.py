"""The speed of a machine, from which jobs estimate how long they will take."""

from typing import TYPE_CHECKING, Protocol

from regrow.models import ModelSpec
from regrow.train.material import Material, Setting

if TYPE_CHECKING:
    from regrow.jobs.prune import Prune


class Pace(Protocol):
    """Speeds of this machine, measured or read off records, in seconds."""

    @property
    def seconds(self) -> float:
        """The longest rehearsal of a job for which no other measurement stands in, in seconds."""

    def ratio(self, prune: "Prune") -> float:
        """FLOPs of the unpruned network over those of the pruned one, known or guessed."""

    def cutting(self, model: ModelSpec, data: Material) -> float:
        """Choosing and cutting the units of a network."""

    def pruning(self, model: ModelSpec, data: Material) -> float:
        """The same, with the proof of the cut."""

    def training(
        self, setting: Setting, *, epochs: float, ratio: float = 1.0, taught: bool = False
    ) -> float:
        """Training for so many epochs and scoring, at 1 / ratio of the network's FLOPs.

        ``taught``: the unpruned network is the teacher of each step.
        """
