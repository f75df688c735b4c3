"""The speed of a machine, from which jobs estimate how long they will take."""

from typing import TYPE_CHECKING, Protocol

from regrow.models import ModelSpec
from regrow.train.material import Material, Setting

if TYPE_CHECKING:
    from regrow.jobs.prune import Prune


class Pace(Protocol):
    """Times on this machine, measured or taken from records, in seconds."""

    @property
    def seconds(self) -> float:
        """The maximum time for a trial of a job that is not estimated otherwise, in seconds."""

    def ratio(self, prune: "Prune") -> float:
        """Return the unpruned network's FLOPs over the pruned one's, known or guessed."""

    def cutting(self, model: ModelSpec, data: Material) -> float:
        """Return the seconds of choosing and cutting a network's units."""

    def pruning(self, model: ModelSpec, data: Material) -> float:
        """Return the seconds of choosing and cutting units, and of proving the cut."""

    def training(
        self, setting: Setting, *, epochs: float, ratio: float = 1.0, taught: bool = False
    ) -> float:
        """Return the seconds of training and scoring, at 1 / ratio of the network's FLOPs.

        ``taught``: the unpruned network is the teacher in each step.
        """
