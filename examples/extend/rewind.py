"""Learning-rate rewinding to a late epoch (Renda et al., ICLR 2020, arXiv:2003.02389), as an arm.

The pruned network keeps its trained weights and is trained again with the original schedule from
epoch 2 to its end. The built-in arm ``lr-rewind`` repeats the whole schedule; a study can define
this arm in one line: ``{name: lr-rewind-2, like: lr-rewind, schedule_epoch: 2}``.
"""

from regrow.jobs.arms import Arm, Budget, register_arm

register_arm(
    Arm(
        name="lr-rewind-2",
        start="inherited",
        budget=Budget(kind="equal-epochs"),
        schedule_epoch=2,
    )
)
