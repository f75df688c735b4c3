"""The keys of an arm in a study file, with a one-line description of each."""

from collections.abc import Mapping

ARM_KEYS: Mapping[str, str] = {
    "name": "a registered arm, or a new name",
    "like": "the registered arm that it differs from",
    "start": "the weights that it starts from",
    "epoch": "with start: rewound, the epoch of training whose weights it starts from",
    "schedule": "full (the recipe's), last-rate, or another schedule that recipes can have",
    "epoch_share": "the same as epoch, as a share of the unpruned network's epochs",
    "drop_at": "with schedule: drops, other shares of training than the recipe's",
    "schedule_epoch": "the epoch at which it enters its schedule",
    "schedule_share": "the same as schedule_epoch, as a share of the unpruned network's epochs",
    "lr": "the learning rate, in place of the recipe's (or of its last)",
    "last_rates": "the learning rate as a multiple of the recipe's last",
    "peak_rates": "the learning rate as a multiple of the recipe's lr, its highest",
    "warmup_share": "the share of the arm's training over which its learning rate rises, in place "
    "of the recipe's warm-up; 0 for none",
    "treatment": "the method whose changes to training (such as a penalty) apply to the arm",
    "strength": "the strength of that treatment, in place of the method's own",
    "epochs": "the number of epochs",
    "share": "the length as a share of the unpruned network's epochs",
    "budget": "the kind of budget: equal-epochs, equal-flops, pipeline, ...",
    "cap": "for budgets of FLOPs: the largest factor on the epochs",
    "objective": "the loss to minimise, in place of the recipe's",
}
