"""An arm that distils the unpruned network (Hinton et al., 2015, arXiv:1503.02531).

The loss is half the cross-entropy and half the distance to the unpruned network's outputs at a
temperature of 2; the unpruned network's forward passes count in the arm's training FLOPs.
"""

from regrow.core.choice import Choice
from regrow.jobs.arms import Arm, Budget, register_arm

register_arm(
    Arm(
        name="taught",
        start="inherited",
        budget=Budget(kind="share", amount=0.5),
        objective=Choice("distillation", temperature=2.0, weight=0.5),
    )
)
