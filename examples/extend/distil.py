"""An arm that learns from the unpruned network (Hinton et al., 2015, arXiv:1503.02531).

The loss is half the cross-entropy and half the distance to what the unpruned network answers at a
temperature of 2; what that network computes is part of the arm's training FLOPs.
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
