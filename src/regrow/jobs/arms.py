"""Arms: retraining regimes - the weights that a pruned network starts from, and how it is trained.

An arm is a value with a few fields, so that a few lines (``register_arm``) replace the paper's 36
training scripts. A study file names arms, and can change their fields (``read_arm``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import Any, Literal, get_args

from regrow.core.choice import Choice
from regrow.core.registry import Registry, calling_file
from regrow.core.validation import entry_of, is_int, is_number, text, whole_as_floats_
from regrow.errors import ConfigError, short
from regrow.jobs.arm_keys import ARM_KEYS
from regrow.pruning.method import METHODS
from regrow.train import Recipe, make_objective
from regrow.train.schedules import SCHEDULES

RATES = ("lr", "last_rates", "peak_rates")  # alternative fields for an arm's learning rate
Start = Literal["inherited", "random", "initial", "redrawn", "rewound"]
OWN_SCHEDULES = ("full", "last-rate")  # of arms, in addition to those of recipes
BudgetKind = Literal["none", "epochs", "share", "equal-epochs", "equal-flops", "pipeline"]
BUDGET_NAMES = ("kind", "amount", "cap")  # part of keys; the rounding only if not the paper's
WITH_AMOUNT: tuple[BudgetKind, ...] = ("epochs", "share", "pipeline")
Rounding = Literal["epochs", "updates"]
FOLLOWS: tuple[BudgetKind, ...] = ("share", "equal-flops", "pipeline")  # may have partial epochs
OF_FLOPS: tuple[BudgetKind, ...] = ("equal-flops", "pipeline")  # may have a cap


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of an arm's training.

    ``epochs``: a number of epochs (``amount``); ``share``: a share (``amount``) of the unpruned
    network's epochs; ``equal-epochs``: as many epochs as the unpruned network; ``equal-flops``: as
    many epochs as cost the same, floor(epochs x FLOPs unpruned / FLOPs pruned), but at most ``cap``
    times the unpruned network's; ``pipeline``: those of ``equal-flops`` plus a share (``amount``)
    of the unpruned network's epochs, which cost the same as its training and a retraining of the
    pruned network for that share; ``none``: no training.

    ``rounding``: fractions are rounded down to whole epochs, as in the paper, or to whole
    ``updates``, so that the last epoch is trained in part.
    """

    kind: BudgetKind
    amount: float | None = None
    cap: float | None = None
    rounding: Rounding = "epochs"

    def __post_init__(self) -> None:
        if self.rounding not in get_args(Rounding):
            raise ConfigError(
                f"The 'rounding' of budgets must be {' or '.join(get_args(Rounding))}. "
                f"Got {short(self.rounding)}."
            )
        if self.kind not in get_args(BudgetKind):
            raise ConfigError(
                f"A budget must be one of {', '.join(get_args(BudgetKind))}. Got {self.kind!r}."
            )
        if self.kind not in WITH_AMOUNT and self.amount is not None:
            raise ConfigError(
                f"A budget of {self.kind} takes no 'amount'. Got {self.amount!r}: leave it out, or "
                "take a budget of epochs or of a share."
            )
        if self.kind not in OF_FLOPS and self.cap is not None:
            raise ConfigError(
                f"Only a budget of equal FLOPs can have a 'cap'. Got {self.cap!r} for a budget of "
                f"{self.kind}."
            )
        if self.kind == "epochs" and not is_int(self.amount, least=1):
            raise ConfigError(
                f"A budget's epochs must be an int of at least 1. Got {self.amount!r}."
            )
        if self.kind in ("share", "pipeline") and not (is_number(self.amount) and self.amount > 0):
            raise ConfigError(f"A budget's share must be a number above 0. Got {self.amount!r}.")
        if self.cap is not None and not (is_number(self.cap) and self.cap >= 1):
            raise ConfigError(f"A budget's cap must be a number of at least 1. Got {self.cap!r}.")

    def epochs(self, base: float, ratio: float) -> float:
        """Return the number of epochs, as an int if it is whole.

        Args:
            base: epochs of the unpruned network.
            ratio: its FLOPs for one image divided by the pruned network's.

        >>> Budget(kind="equal-flops").epochs(160, 1.519)  # VGG-16-A in the paper's Table 1
        243
        >>> Budget(kind="pipeline", amount=0.25).epochs(160, 1.519)
        283
        >>> Budget(kind="equal-flops", rounding="updates").epochs(2, 1.9)
        3.8
        """
        if self.kind == "none":
            return 0
        if self.kind == "epochs":
            assert self.amount is not None
            return int(self.amount)
        if self.kind == "equal-epochs":
            return base
        if self.kind == "share":
            assert self.amount is not None
            exact = base * self.amount
        else:
            retraining = base * (self.amount or 0.0) if self.kind == "pipeline" else 0.0
            exact = base * min(ratio, self.cap or ratio) + retraining
        if self.rounding == "updates" and abs(exact - round(exact)) > 1e-9:
            return exact
        return max(1, floor(exact + 1e-9))

    def rounded_to(self, rounding: Rounding, base: float) -> "Budget":
        """Return the same budget with a rounding, if that can change its epochs for this base."""
        fine = replace(self, rounding=rounding)  # checks the rounding
        is_whole = self.kind == "share" and isinstance(fine.epochs(base, 1.0), int)
        return fine if self.kind in FOLLOWS and not is_whole else replace(self, rounding="epochs")

    def is_capped(self, ratio: float) -> bool:
        """Return whether the cap limits the epochs."""
        return self.kind in OF_FLOPS and self.cap is not None and ratio > self.cap


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A retraining regime: starting weights, length, and learning-rate schedule.

    Weights and schedule are set separately. Rewinding weights is the start ``rewound``;
    rewinding the learning rate (Renda et al., 2020, arXiv:2003.02389) is the start ``inherited``
    with the ``full`` schedule, or from ``schedule_epoch`` on. Shares of training and multiples of a
    recipe's learning rates adapt to recipes of other lengths and rates.

    Attributes:
        start: ``inherited``: the weights of the pruned network; ``random``: reinitialised by the
            small network's own rule; ``initial``: the unpruned network's weights before training;
            ``redrawn``: another initialisation of the unpruned network, cut in the same way;
            ``rewound``: the unpruned network's weights after ``epoch`` epochs of its training.
        budget: how long it trains.
        schedule: ``full``: the recipe's schedule, stretched over the budget; ``last-rate``: the
            recipe's last learning rate throughout; or a schedule that recipes can have
            (``cosine``, ``drops``, ...), in place of the recipe's, over the budget.
        drop_at: for the schedule ``drops``, shares of training that replace the recipe's.
        lr: the learning rate, instead of the recipe's (or of its last).
        last_rates: instead of ``lr``, the learning rate as a multiple of the recipe's last.
        peak_rates: instead of ``lr``, a multiple of the recipe's ``lr``, the highest of its
            schedule; for schedules that end at zero.
        warmup_share: instead of the recipe's warm-up, one over this share of the arm; 0 for none.
        epoch: for the start ``rewound``, the epoch after which the weights were saved.
        epoch_share: the same as a share of the unpruned network's epochs (see ``within``).
        objective: the training objective, if it is not the recipe's; one with a teacher
            (``distillation``) learns from the trained unpruned network.
        schedule_epoch: the epoch of the ``full`` schedule at which the arm starts, in the schedule
            and in the order of images; by default the ``epoch`` of the weights, or the beginning.
        schedule_share: the same as a share of the unpruned network's epochs, rounded down.
        treatment: the name of a method whose treatment is applied while the arm trains.
        strength: the strength of that treatment; by default the method's own.
        trial_of: the name of the tuned arm of which this is a trial, if any (``jobs.trials``).
    """

    name: str
    start: Start
    budget: Budget
    schedule: str = "full"
    drop_at: tuple[float, ...] | None = None
    lr: float | None = None
    last_rates: float | None = None
    epoch: int | None = None
    schedule_epoch: int | None = None
    treatment: str | None = None
    strength: float | None = None
    objective: Choice | None = None
    trial_of: str | None = None
    peak_rates: float | None = None
    warmup_share: float | None = None
    epoch_share: float | None = None
    schedule_share: float | None = None

    def __post_init__(self) -> None:
        whole_as_floats_(self)
        if self.start not in get_args(Start):
            raise self._error("start", get_args(Start))
        if self.schedule not in OWN_SCHEDULES and self.schedule not in SCHEDULES:
            raise self._error("schedule", (*OWN_SCHEDULES, *SCHEDULES.known()))
        self._check_rates()
        self._check_shares()
        if self.drop_at is not None:
            self._check_drop_at()
        self._check_epoch()
        if self.schedule_epoch is not None or self.schedule_share is not None:
            self._check_schedule_epoch()
        if self.objective is not None:
            make_objective(self.objective)
        self._check_treatment()

    def _check_rates(self) -> None:
        of = {
            "last_rates": ", by which the recipe's last learning rate is multiplied",
            "peak_rates": ", by which the recipe's highest learning rate is multiplied",
        }
        said = [name for name in RATES if getattr(self, name) is not None]
        for name in said:
            rate = getattr(self, name)
            if not (is_number(rate) and rate > 0):
                raise ConfigError(
                    f"The {name!r} of the arm {self.name!r} must be a number above 0"
                    f"{of.get(name, '')}. Got {rate!r}."
                )
        if len(said) > 1:
            raise ConfigError(
                f"The arm {self.name!r} has both {said[0]!r} and {said[1]!r}, and each sets the "
                "learning rate. Leave one out."
            )

    def _check_shares(self) -> None:
        """Check the fields that are shares of training."""
        for name in ("warmup_share", "epoch_share", "schedule_share"):
            share = getattr(self, name)
            if share is not None and not (is_number(share) and 0 <= share < 1):
                raise ConfigError(
                    f"The {name!r} of the arm {self.name!r} must be a share of training in "
                    f"[0, 1). Got {share!r}."
                )
        if self.warmup_share is not None and self.schedule == "last-rate":
            raise ConfigError(
                f"The arm {self.name!r} trains at one learning rate, so it has no warm-up. Leave "
                "'warmup_share' out, or give it a 'schedule'."
            )
        for epoch, share in (("epoch", "epoch_share"), ("schedule_epoch", "schedule_share")):
            if getattr(self, epoch) is not None and getattr(self, share) is not None:
                raise ConfigError(
                    f"The arm {self.name!r} has both {epoch!r} and {share!r}. Leave one out."
                )

    def _check_epoch(self) -> None:
        """Check that an arm has an epoch to rewind to if it starts ``rewound``, else none."""
        given, name = self.epoch, "epoch"
        if self.epoch_share is not None:
            given, name = self.epoch_share, "epoch_share"  # type: ignore[assignment]
        if self.start == "rewound" and not (name == "epoch_share" or is_int(given, least=1)):
            raise ConfigError(
                f"The arm {self.name!r} starts from rewound weights, so it needs an 'epoch' to "
                f"rewind to, an int of at least 1, or an 'epoch_share' of the training. Got "
                f"{given!r}."
            )
        if self.start != "rewound" and given is not None:
            raise ConfigError(
                f"The arm {self.name!r} has an {name!r} to rewind to ({given!r}), so its "
                f"'start' must be rewound. Got {self.start!r}; how long it trains is 'epochs', and "
                "where it enters the schedule is 'schedule_epoch'."
            )

    def rounded(self, rounding: Rounding, recipe: Recipe) -> "Arm":
        """Return the same arm with a rounding, if that can change its epochs with a recipe."""
        return replace(self, budget=self.budget.rounded_to(rounding, recipe.length))

    def within(self, recipe: Recipe) -> "Arm":
        """Return the same arm with shares and peak rates resolved to epochs and a rate of a recipe.

        So an arm has the same key, and results, however it is written.

        >>> late = Arm(name="late", start="rewound", budget=Budget(kind="equal-epochs"),
        ...            epoch_share=0.1)
        >>> [late.within(Recipe(epochs=epochs)).epoch for epochs in (160, 4)]
        [16, 1]
        """
        arm, epochs = self, recipe.epochs
        if self.epoch_share is not None:
            arm = replace(arm, epoch=max(1, _whole(self.epoch_share, epochs)), epoch_share=None)
        if self.schedule_share is not None:
            entered = _whole(self.schedule_share, epochs)
            arm = replace(arm, schedule_epoch=entered, schedule_share=None)
        if self.peak_rates is not None:
            rate = float(f"{self.peak_rates * recipe.lr:.12g}")  # 0.015, not 0.015000000000000001
            arm = replace(arm, lr=rate, peak_rates=None)
        return arm

    @property
    def is_resolved(self) -> bool:
        """True if none of its fields must still be resolved by a recipe (``within``)."""
        said = (self.epoch_share, self.schedule_share, self.peak_rates)
        return all(value is None for value in said)

    @property
    def needs_last_lr(self) -> bool:
        """True if its learning rate depends on the recipe's last."""
        at_last = self.schedule == "last-rate" and self.lr is None and self.peak_rates is None
        return self.last_rates is not None or at_last

    def _error(self, field: str, known: tuple[str, ...]) -> ConfigError:
        return ConfigError(
            f"The {field!r} of the arm {self.name!r} must be one of {', '.join(known)}. "
            f"Got {getattr(self, field)!r}."
        )

    def _check_treatment(self) -> None:
        if self.treatment is not None and self.budget.kind == "none":
            raise ConfigError(
                f"The arm {self.name!r} trains nothing, so it takes no 'treatment'. Give it a "
                "budget, or leave the treatment out."
            )
        if self.strength is None:
            return
        if self.treatment is None:
            raise ConfigError(
                f"The arm {self.name!r} has a 'strength', but no 'treatment' that it applies to. "
                "Name one, or leave the strength out."
            )
        if not is_number(self.strength) or self.strength < 0:
            raise ConfigError(
                f"The 'strength' of the arm {self.name!r} must be at least 0. Got "
                f"{self.strength!r}."
            )

    def _check_drop_at(self) -> None:
        if self.schedule != "drops":
            raise ConfigError(
                f"The arm {self.name!r} has a 'drop_at', so its 'schedule' must be drops. Got "
                f"{self.schedule!r}."
            )
        try:
            self.recipe(Recipe(), 1)
        except ConfigError as error:
            raise ConfigError(f"The arm {self.name!r}: {error}") from error

    def _check_schedule_epoch(self) -> None:
        if self.schedule_share is None and not is_int(self.schedule_epoch, least=0):
            raise ConfigError(
                f"The 'schedule_epoch' of the arm {self.name!r} must be an int of at least 0. Got "
                f"{self.schedule_epoch!r}."
            )
        if self.schedule == "last-rate":
            given = f"'schedule_epoch' {self.schedule_epoch}"
            if self.schedule_share is not None:
                given = f"'schedule_share' {self.schedule_share:g}"
            raise ConfigError(
                f"The arm {self.name!r} trains at one learning rate, so there is no schedule to "
                f"enter at {given}. Leave it out, or give 'schedule: full'."
            )

    @property
    def first_epoch(self) -> int:
        """The epoch of its schedule at which it begins."""
        assert self.is_resolved, "a share has no epoch yet: Arm.within"
        return (self.epoch or 0) if self.schedule_epoch is None else self.schedule_epoch

    @property
    def needs_teacher(self) -> bool:
        """True if the arm learns from the unpruned network's outputs."""
        return self.objective is not None and make_objective(self.objective).needs_teacher

    def budget_ratio(self, ratio: float) -> float:
        """Return the training FLOPs of the unpruned network over those of this arm, for one image.

        ``ratio`` is the FLOPs ratio of the two networks. A teacher adds one forward pass of the
        unpruned network, a third of its training FLOPs.

        >>> teach = Arm(name="kd", start="random", budget=Budget(kind="equal-flops"),
        ...             objective=Choice("distillation"))
        >>> round(teach.budget_ratio(1.5), 6), SCRATCH_B.budget_ratio(1.5)
        (1.0, 1.5)
        """
        if not self.needs_teacher:
            return ratio
        from regrow.cost import TRAINING_FACTOR  # imports PyTorch

        return 1 / (1 / ratio + 1 / TRAINING_FACTOR)

    def epochs(self, base: float, ratio: float) -> float:
        """Return the epochs of its budget, including those before ``first_epoch``, if any."""
        return self.budget.epochs(base, self.budget_ratio(ratio))

    def trained_epochs(self, base: float, ratio: float) -> float:
        """Return how many epochs it trains: those of its budget from ``first_epoch`` on."""
        epochs = self.epochs(base, ratio)
        return max(min(1, epochs), epochs - self.first_epoch)

    def recipe(self, base: Recipe, epochs: float) -> Recipe:
        """Return the recipe that this arm trains with for so many epochs."""
        objective, lr = self.objective or base.objective, self.within(base).lr
        if self.last_rates is not None:
            lr = float(f"{self.last_rates * base.last_lr():.12g}")  # 0.01, not 0.010000000000000002
        if self.schedule == "last-rate":
            base = base.at_one_rate(lr or base.last_lr())
            return replace(base.lasting(epochs), objective=objective)
        if self.warmup_share is not None:
            base = replace(
                base,
                warmup_epochs=0,
                warmup_steps=0,
                warmup_share=self.warmup_share,
                warmup_start=base.warmup_start if self.warmup_share else 0.0,
            )
        return replace(
            base.lasting(epochs),
            lr=lr or base.lr,
            schedule=base.schedule if self.schedule == "full" else self.schedule,
            drop_at=base.drop_at if self.drop_at is None else self.drop_at,
            end_factor=base.end_factor if self.schedule == "full" else 0.0,
            objective=objective,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the arm for job keys: without its name, so that equal arms have equal keys.

        The treatment is left out, because jobs have it in a separate field.
        """
        assert self.is_resolved, "a share or a multiple is of a recipe: Arm.within"
        budget: dict[str, Any] = {name: getattr(self.budget, name) for name in BUDGET_NAMES}
        if self.budget.rounding != "epochs":
            budget["rounding"] = self.budget.rounding
        names = ("start", "schedule", "lr", "last_rates", "warmup_share", "epoch", "schedule_epoch")
        fields = {name: getattr(self, name) for name in names}
        fields["drop_at"] = None if self.drop_at is None else [*self.drop_at]
        if self.objective is not None:
            fields["objective"] = self.objective.to_json()
        return {
            **{k: v for k, v in fields.items() if v is not None},
            "budget": {k: v for k, v in budget.items() if v is not None},
        }


def _whole(share: float, epochs: int) -> int:
    return floor(share * epochs + 1e-9)


ARMS: Registry[Arm] = Registry("arm", "regrow.methods", register="register_arm")


def register_arm(arm: Arm) -> Arm:
    """Register an arm under its name."""
    ARMS.add(arm.name, arm, origin=calling_file())
    return arm


# The two arms that are measured rather than trained.
UNPRUNED = register_arm(Arm(name="unpruned", start="initial", budget=Budget(kind="equal-epochs")))
PRUNED = register_arm(Arm(name="pruned", start="inherited", budget=Budget(kind="none")))

# The paper fine-tunes 40 of 160 epochs at the last rate: a quarter.
FINE_TUNE = register_arm(
    Arm(
        name="fine-tune",
        start="inherited",
        budget=Budget(kind="share", amount=0.25),
        schedule="last-rate",
    )
)
SCRATCH_E = register_arm(Arm(name="scratch-e", start="random", budget=Budget(kind="equal-epochs")))
SCRATCH_B = register_arm(Arm(name="scratch-b", start="random", budget=Budget(kind="equal-flops")))
# The budget of the whole pipeline: what the parent's training and a fine-tuning cost together.
SCRATCH_PIPELINE = register_arm(
    Arm(name="scratch-pipeline", start="random", budget=Budget(kind="pipeline", amount=0.25))
)
WINNING_TICKET = register_arm(
    Arm(name="winning-ticket", start="initial", budget=Budget(kind="equal-epochs"))
)
RANDOM_INIT = register_arm(
    Arm(name="random-init", start="redrawn", budget=Budget(kind="equal-epochs"))
)

# Learning-rate rewinding (Renda et al., 2020, arXiv:2003.02389) of the whole schedule.
LR_REWIND = register_arm(
    Arm(name="lr-rewind", start="inherited", budget=Budget(kind="equal-epochs"))
)

# Which retraining wins, also against scratch training, depends on the learning rate (Wang et al.,
# 2023, arXiv:2301.05219): ten times the last rate, then the last rate for the second half; and one
# cycle over the whole budget (Le and Hua, 2021, arXiv:2105.03193).
FINE_TUNE_10X = register_arm(
    Arm(
        name="fine-tune-10x",
        start="inherited",
        budget=Budget(kind="share", amount=0.25),
        schedule="drops",
        drop_at=(0.5,),
        last_rates=10.0,
    )
)
ONE_CYCLE = register_arm(
    Arm(
        name="one-cycle",
        start="inherited",
        budget=Budget(kind="equal-epochs"),
        schedule="one-cycle",
    )
)
# The retrainings that are compared with scratch training.
RETRAININGS = (FINE_TUNE, FINE_TUNE_10X, LR_REWIND, ONE_CYCLE)

# Knowledge distillation (Hinton et al., 2015, arXiv:1503.02531) from the unpruned network.
DISTILLED = register_arm(
    Arm(
        name="distilled",
        start="inherited",
        budget=Budget(kind="equal-epochs"),
        objective=Choice("distillation"),
    )
)

# The arms of a study that names none, in the order of its table.
DEFAULT_ARMS = (UNPRUNED, PRUNED, FINE_TUNE, SCRATCH_E, SCRATCH_B, WINNING_TICKET, RANDOM_INIT)

# Reading an arm of a study file --------------------


def read_arm(entry: Any) -> Arm:
    """Read an arm: a name, or a mapping that changes the arm of this name or ``like``."""
    given = entry_of(entry, "arms", ARM_KEYS)
    name = text(given["name"], "name")
    known = registered_arm(name)
    if known is not None:
        base = known
        for key in ("like", "start"):
            if key in given:
                raise ConfigError(
                    f"{known.name!r} is the name of a registered arm; with {key!r} the arm "
                    "needs another 'name'."
                )
    elif "start" in given and "like" not in given:
        budget, epochs = Budget(kind="equal-epochs"), ("epoch", "epoch_share")
        rewound = {key: given[key] for key in epochs if key in given}
        base = Arm(name=name, start=given["start"], budget=budget, **rewound)
    else:
        base = ARMS.get(given.get("like", name))
    if base in (UNPRUNED, PRUNED) and set(given) - {"name"}:
        raise ConfigError(f"The arm {base.name!r} is measured, not trained: it takes no options.")
    if isinstance(given.get("drop_at"), list):
        given["drop_at"] = tuple(given["drop_at"])
    fields = (
        *("start", "epoch", "epoch_share", "schedule", "drop_at", "schedule_epoch"),
        *("schedule_share", *RATES, "warmup_share", "treatment", "strength"),
    )
    _check_given_treatment(given)
    if given.get("objective") is not None:
        base = replace(base, objective=Choice.from_json(given["objective"]))
    return replace(
        _without_what_gives_way(base, given),
        name=base.name if known is not None else name,
        budget=_read_budget(given, base),
        **{key: given[key] for key in fields if key in given},
    )


def _without_what_gives_way(base: Arm, given: Mapping[str, Any]) -> Arm:
    """Remove fields of an arm that conflict with a given rate, epoch or schedule."""
    gone: list[str] = []
    for others in (RATES, ("epoch", "epoch_share"), ("schedule_epoch", "schedule_share")):
        if any(key in given for key in others):
            gone += others
    if "schedule" in given and given["schedule"] != base.schedule:
        gone.append("drop_at")
    changes: dict[str, Any] = dict.fromkeys(key for key in gone if key not in given)
    return replace(base, **changes)


def _check_given_treatment(fields: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if the method has no treatment, or if it takes no given strength."""
    if fields.get("treatment") is None:
        return
    where, name = f"The arm {fields['name']!r}", text(fields["treatment"], "treatment")
    method = METHODS.get(name)
    if method.treatment is None:
        known = [each for each in METHODS.names() if METHODS.get(each).treatment is not None]
        raise ConfigError(
            f"{where}: the method {name!r} does not change training, so it cannot be a "
            f"'treatment'. Methods that do: {', '.join(known)}."
        )
    if fields.get("strength") is not None and not method.strength:
        raise ConfigError(f"{where}: the treatment {name!r} takes no 'strength'.")


def registered_arm(name: str) -> Arm | None:
    """Return the arm registered under a name, or None."""
    try:
        return ARMS.get(name)
    except ConfigError:
        return None


def _read_budget(fields: Mapping[str, Any], base: Arm) -> Budget:
    kinds = [key for key in ("epochs", "share", "budget") if key in fields]
    whole = fields.get("budget", base.budget.kind) == "pipeline"
    if whole and "epochs" not in fields:
        share = fields.get("share", base.budget.amount)
        return Budget(kind="pipeline", amount=share, cap=fields.get("cap", base.budget.cap))
    if len(kinds) > 1:
        raise ConfigError(f"The arm {fields['name']!r}: give one of {' and '.join(kinds)}.")
    budget = base.budget
    if "epochs" in fields:
        budget = Budget(kind="epochs", amount=fields["epochs"])
    elif "share" in fields:
        budget = Budget(kind="share", amount=fields["share"])
    elif "budget" in fields:
        budget = Budget(kind=fields["budget"])
    if "cap" in fields:
        if budget.kind not in OF_FLOPS:
            raise ConfigError(
                f"The arm {fields['name']!r}: only a budget of equal FLOPs can have a 'cap'."
            )
        budget = replace(budget, cap=fields["cap"])
    return budget
