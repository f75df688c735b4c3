"""The keys of an arm in a study file, with a line on what each says."""

from collections.abc import Mapping

ARM_KEYS: Mapping[str, str] = {
    "name": "a registered arm, or a name of its own",
    "like": "the registered arm that it differs from",
    "start": "the weights that it starts from",
    "epoch": "of the start rewound: the epoch of training whose weights it starts from",
    "schedule": "full (the recipe's), last-rate, or another schedule of recipes",
    "epoch_share": "the same, after this share of the unpruned network's epochs",
    "drop_at": "of the schedule drops: other shares of training than the recipe's",
    "schedule_epoch": "the epoch at which it enters its schedule",
    "schedule_share": "the same, after this share of the unpruned network's epochs",
    "lr": "another learning rate than the recipe's (or its last)",
    "last_rates": "the learning rate as a multiple of the recipe's last",
    "peak_rates": "the learning rate as a multiple of the recipe's lr, its highest",
    "warmup_share": "the share of the arm over which its rate rises, in place of the recipe's "
    "warm-up; 0 for none",
    "treatment": "the method whose treatment acts while it trains",
    "strength": "of that treatment, in place of the method's own",
    "epochs": "a budget of so many epochs",
    "share": "a budget of this share of the unpruned network's epochs",
    "budget": "another kind of budget",
    "cap": "of a budget of FLOPs: the most that the epochs are stretched by",
    "objective": "the loss that it descends, in place of the recipe's",
}
