"""Training recipes: frozen values, and the published ones by name.

Times are given as shares of training, so that a budget can stretch a recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from math import ceil, floor
from typing import Any, Literal, get_args

from regrow.core.choice import Choice
from regrow.core.durations import epochs_in_words
from regrow.core.texts import listed
from regrow.core.validation import (
    changed_fields,
    is_int,
    is_number,
    refuse_unknown,
    tuples,
    whole_as_floats_,
)
from regrow.data.spec import FLIPPING
from regrow.errors import ConfigError, unknown
from regrow.train.objective import OBJECTIVES, make_objective
from regrow.train.optimiser import OPTIMISERS, SGD, check_optimiser
from regrow.train.schedules import SCHEDULES, drops_before_end, factor

Precision = Literal["fp32", "bf16"]
EngineName = Literal["exact", "fused"]
AUTO = "auto"  # in a study file: the precision or engine that was decided for its store


@dataclass(frozen=True, kw_only=True)
class Computing:
    """The precision and the engine for those recipes of a study file that leave them open."""

    precision: Precision
    engine: EngineName = "exact"


Decayed = Literal["all", "factors", "weights"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings: objective, optimiser, learning rates, and augmentation.

    ``schedule``: ``drops`` multiplies the rate by ``drop_factor`` at each share of ``drop_at``;
    ``every`` does so once in each ``drop_every`` share; ``constant``; ``cosine`` (down to zero).
    Drops fall on whole epochs, rounded down. ``cosine-by-step``, ``linear`` and ``one-cycle``
    change at each update (see ``train/schedules.py``).
    ``last_epoch``: the share of the last epoch that is trained, rounded down to whole updates. In
    such a training every schedule changes per update, so that shares of training stay exact.
    The first ``warmup_epochs`` run at ``warmup_factor`` times their rate; their number is not
    stretched. Or the rate rises at each of the first ``warmup_steps`` updates, or over the first
    ``warmup_share`` of training, from ``warmup_start`` times the rate. ``linear`` and
    ``cosine-by-step`` fall to ``end_factor`` times the rate.
    ``norm_bias_rate``: the learning rate of the biases of norms, as a multiple of that of other
    parameters. Their decay is divided by it, so that the decay per update stays the same.
    ``optimiser``: a name, or a name with arguments; None is ``sgd``, which has ``momentum`` and
    ``nesterov``.
    ``weight_decay``: on every parameter, as in the paper's code (``decayed: all``); on weights and
    the scales of norms (``factors``), but on no parameter named ``bias``, as in MXNet; or only on
    the ``weights`` of layers: not on norms, biases or other parameters of one dimension.
    ``clip``: the largest norm of all gradients together; larger gradients are scaled down to it
    (Pascanu et al., On the difficulty of training recurrent neural networks, 2013,
    arXiv:1211.5063).
    ``ema``: the network is measured, kept and pruned as the exponential moving average of its
    weights and running statistics over updates, average = d * average + (1 - d) * value, with d =
    min(ema, (1 + t) / (10 + t)) at update t (Polyak and Juditsky, 1992; d as in TensorFlow).
    ``lookahead``: each time after this number of updates (and after the last), the network is
    replaced by an average of its values at these times, average = d * average + (1 - d) * value,
    with d = 0.95^lookahead * t^3 at the share t of training, so that it changes freely at first and
    slowly at the end (Zhang et al., Lookahead Optimizer, NeurIPS 2019, arXiv:1907.08610; d as in
    arXiv:2404.00498).
    ``augmentation``: None is the data set's own. With ``alternating_flip`` an image is flipped in
    every second epoch instead of at random. ``cutout`` erases a square with sides of this many
    pixels, ``mixup`` mixes images and losses of pairs by shares from Beta(mixup, mixup): see
    ``data/augment.py``.
    ``precision``: ``bf16`` computes layers in bfloat16 and keeps parameters and momentum in fp32.
    In a study file also ``auto``, the default there.
    ``engine``: for fp32 on a CPU. ``exact`` uses PyTorch's own operations, bit for bit
    equal to a plain loop; ``fused`` computes norm, ReLU and sums as one operation and 3x3
    convolutions in fewer multiplications, which rounds differently and takes less time. In a study
    file also ``auto``, the default there if no precision is given. It has no effect on a GPU; in
    bf16 there is only one engine.
    ``channels_last``: the memory layout of images. It changes only the order of sums; speed-ups are
    1.3x (bf16, 8 px), 1.1x (bf16, 32 px, VGG-16) to 1.6x (PreResNet-164); 1.2x (fp32, 8 px), and
    0.95x (fp32, 32 px, VGG-16) to 1.6x. False is for comparison.
    ``objective``: the training loss, a name, or a name with arguments; None is the task's own, by
    which every network is evaluated.

    An invalid value raises a ``ConfigError``.
    """

    epochs: int = 160
    batch: int = 64
    lr: float = 0.1
    schedule: str = "drops"
    drop_at: tuple[float, ...] = (0.5, 0.75)
    drop_every: float = 1 / 3
    drop_factor: float = 0.1
    warmup_epochs: int = 0
    warmup_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    augmentation: str | None = None
    precision: Precision = "fp32"
    channels_last: bool = True
    decayed: Decayed = "all"
    objective: Choice | None = None
    optimiser: Choice | None = None
    warmup_steps: int = 0
    warmup_share: float = 0.0
    clip: float | None = None
    ema: float | None = None
    mixup: float | None = None
    cutout: int | None = None
    warmup_start: float = 0.0
    end_factor: float = 0.0
    norm_bias_rate: float = 1.0
    lookahead: int | None = None
    alternating_flip: bool = False
    engine: EngineName = "exact"
    last_epoch: float = 1.0

    def __post_init__(self) -> None:
        whole_as_floats_(self)
        for name, low in (("epochs", 1), ("batch", 1), ("warmup_epochs", 0), ("warmup_steps", 0)):
            if not is_int(getattr(self, name), least=low):
                raise self._error(name, f"an int of at least {low}")
        for name in ("lr", "drop_factor", "warmup_factor", "norm_bias_rate"):
            if not (is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise self._error(name, "a number above 0")
        if not (is_number(self.last_epoch) and 0 < self.last_epoch <= 1):
            raise self._error("last_epoch", "a share of an epoch in (0, 1]")
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise self._error("weight_decay", "a number of at least 0")
        if not (is_number(self.momentum) and 0 <= self.momentum < 1):
            raise self._error("momentum", "a number in [0, 1)")
        if not (is_number(self.drop_every) and 0 < self.drop_every <= 1):
            raise self._error("drop_every", "a share of training in (0, 1]")
        self._check_drop_at()
        for name in ("nesterov", "channels_last", "alternating_flip"):
            if not isinstance(getattr(self, name), bool):
                raise self._error(name, "true or false")
        if self.nesterov and self.momentum == 0:
            raise self._error("nesterov", "false where 'momentum' is 0")
        if self.augmentation is not None and not isinstance(self.augmentation, str):
            raise self._error("augmentation", "a text, or nothing for the data set's own")
        self._check_computing()
        if self.decayed not in get_args(Decayed):
            raise ConfigError(f"Recipe: {unknown('decayed', str(self.decayed), get_args(Decayed))}")
        if self.schedule not in SCHEDULES:
            values = SCHEDULES.known()
            raise ConfigError(f"Recipe: {unknown('schedule', str(self.schedule), values)}")
        self._check_options()

    def _check_computing(self) -> None:
        for name, values in (("precision", get_args(Precision)), ("engine", get_args(EngineName))):
            value = getattr(self, name)
            if value == AUTO:
                raise ConfigError(
                    f"The {name} 'auto' is decided for a store, by the commands that read a study "
                    f"file. Give {' or '.join(map(repr, values))} here, or "
                    "Study.load(path, precision=...)."
                )
            if value not in values:
                raise ConfigError(f"Recipe: {unknown(name, str(value), values)}")
        if self.precision == "bf16" and self.engine != "exact":
            raise ConfigError(
                "The 'engine' of a recipe is for fp32: in bf16 the fused kernels always compute. "
                f"Leave it out. Got {self.engine!r}."
            )

    def lr_at(self, epoch: int, *, place: int = 0, steps: int = 1) -> float:
        """Return the learning rate at update ``place`` of an epoch of ``steps``, counted from 0.

        >>> cifar = Recipe(epochs=160)
        >>> [cifar.lr_at(epoch) for epoch in (0, 79, 80, 119, 120, 159)]
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
        """
        lr = self.lr * factor(self, epoch=epoch, place=place, steps=steps)
        # Rounded to the number people write: 0.1 * 0.1 * 0.1 is 0.0010000000000000002.
        return float(f"{lr:.12g}")

    def decay_of(self, name: str, *, dims: int = 2) -> float:
        """Return the weight decay of a parameter, by its name and its number of dimensions.

        >>> plain = Recipe(decayed="factors")
        >>> [plain.decay_of(name, dims=1) for name in ("norm.weight", "norm.bias")]
        [0.0001, 0.0]
        >>> Recipe(decayed="weights").decay_of("norm.weight", dims=1)
        0.0
        """
        # The parts of the name, because a parametrized bias is parametrizations.bias.original.
        bias = "bias" in name.split(".")[-2:]
        spared = {"all": False, "factors": bias, "weights": bias or dims < 2}
        return 0.0 if spared[self.decayed] else self.weight_decay

    @property
    def length(self) -> float:
        """The number of epochs trained: an int, or a float if the last is trained in part.

        >>> Recipe(epochs=4).length, Recipe(epochs=4, last_epoch=0.6).length
        (4, 3.6)
        """
        return self.epochs if self.last_epoch == 1 else self.epochs - 1 + self.last_epoch

    def num_steps(self, steps_per_epoch: int) -> int:
        """Count the updates of the training: ``length`` times those of an epoch, rounded down.

        >>> Recipe(epochs=4).num_steps(98), Recipe(epochs=4, last_epoch=0.6).num_steps(98)
        (392, 352)
        """
        return max(1, floor(self.length * steps_per_epoch + 1e-9))

    @property
    def has_plain_loss(self) -> bool:
        """True if the training loss is the task's own, on examples that are not mixed."""
        return self.objective is None and self.mixup is None

    @property
    def no_last_lr(self) -> str:
        """The reason that the last epoch has no usable rate; empty if it has one."""
        schedule = SCHEDULES.get(self.schedule)
        if schedule.by_step:
            end = " and ends at zero" if schedule.takes_end and not self.end_factor else ""
            return f"it changes at each update{end}"
        return "" if self.last_lr() else "it ends at zero"

    @property
    def rate_words(self) -> str:
        """The learning rate and its schedule in words.

        >>> Recipe(lr=0.1, schedule="drops", drop_at=(0.5, 0.75)).rate_words
        'learning rate 0.1, multiplied by 0.1 at 50 % and 75 % of the training'
        >>> Recipe(lr=0.1, schedule="cosine").rate_words
        'learning rate 0.1, cosine schedule'
        >>> Recipe(epochs=1, drop_at=(0.5,)).rate_words  # drops are in whole epochs
        'learning rate 0.1'
        >>> Recipe(schedule="linear", warmup_share=0.2).rate_words
        'learning rate 0.1, linear schedule, after a warm-up over 20 % of the training'
        """
        return f"learning rate {self.lr:g}{self._schedule_words}{self._warmup_words}"

    @property
    def _schedule_words(self) -> str:
        if self.schedule == "constant":
            return ""
        if self.schedule == "every":
            share = f"{100 * self.drop_every:.3g} %"
            return f", multiplied by {self.drop_factor:g} after each {share} of the training"
        if self.schedule != "drops":
            end = f" down to {100 * self.end_factor:g} %" if self.end_factor else ""
            return f", {self.schedule} schedule{end}"
        places = listed([f"{100 * share:g} %" for share in drops_before_end(self)])
        if not places:
            return ""
        return f", multiplied by {self.drop_factor:g} at {places} of the training"

    @property
    def _warmup_words(self) -> str:
        if self.warmup_epochs:
            epochs = epochs_in_words(self.warmup_epochs)
            return f", {self.warmup_factor:g} times that for {epochs} at first"
        if self.warmup_steps:
            return f", after a warm-up of {self.warmup_steps} updates"
        if self.warmup_share:
            return f", after a warm-up over {100 * self.warmup_share:g} % of the training"
        return ""

    def last_lr(self) -> float:
        """Return the rate of the last epoch, which the paper fine-tunes at."""
        return self.lr_at(self.epochs - 1)

    def at_one_rate(self, lr: float) -> "Recipe":
        """Return the same recipe with a constant learning rate, without a warm-up."""
        names = ("warmup_epochs", "warmup_steps", "warmup_share", "warmup_start", "end_factor")
        none: dict[str, Any] = dict.fromkeys(names, 0)
        return replace(self, schedule="constant", lr=lr, **none)

    def lasting(self, epochs: float) -> "Recipe":
        """Return the same recipe for another number of epochs, its schedule stretched to it.

        If the number is not whole, the last epoch is trained in part.

        >>> long = Recipe(epochs=160).lasting(243)
        >>> [epoch for epoch in range(1, 243) if long.lr_at(epoch) < long.lr_at(epoch - 1)]
        [121, 182]
        >>> Recipe().lasting(3.6).to_json()
        {'epochs': 4, 'last_epoch': 0.6}
        """
        whole = max(1, ceil(epochs - 1e-9))
        part = float(f"{min(epochs - whole + 1, 1.0):.12g}")  # 0.6, not 0.6000000000000001
        return replace(self, epochs=whole, last_epoch=part)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return dict(_changed(self))

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> "Recipe":
        """Read a recipe's name, or a mapping of fields, which may change those of a ``name``.

        >>> Recipe.from_json({"name": "imagenet", "epochs": 20}).batch
        256
        """
        if isinstance(value, str):
            return named(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"A recipe must be a name or a mapping of fields. Got {value!r}.")
        # Partial epochs only result from the budgets of arms, by a study's 'rounding'.
        names = [*(f.name for f in fields(cls) if f.name != "last_epoch"), "name"]
        refuse_unknown(value, names, kind="field", where="Recipe")
        changes = tuples(value)
        base = named(changes.pop("name")) if "name" in changes else cls()
        for field in ("objective", "optimiser"):
            if changes.get(field) is not None:
                changes[field] = Choice.from_json(changes[field])
        before, after = (choice or SGD for choice in (base.optimiser, changes.get("optimiser")))
        if before.name != after.name and "optimiser" in changes and "lr" not in changes:
            raise ConfigError(
                f"Recipe: the optimiser {after.name!r} needs its own 'lr'. That of "
                f"{before.name!r} is {base.lr:g}."
            )
        return replace(base, **changes)

    def code(self) -> str | None:
        """Digest the user's files of its schedule, objective and optimiser; None without any."""
        choices = ((OBJECTIVES, self.objective), (OPTIMISERS, self.optimiser))
        codes = [names.code(choice.name) for names, choice in choices if choice is not None]
        codes.append(SCHEDULES.code(self.schedule))
        return "-".join(sorted({code for code in codes if code is not None})) or None

    def _check_options(self) -> None:
        """Check the fields that the paper's recipes do not use."""
        if not (is_number(self.warmup_share) and 0 <= self.warmup_share < 1):
            raise self._error("warmup_share", "a share of training in [0, 1)")
        for name in ("warmup_start", "end_factor"):
            if not (is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1):
                raise self._error(name, "a share of 'lr' in [0, 1)")
        warmups = ("warmup_epochs", "warmup_steps", "warmup_share")
        warmups_given = [name for name in warmups if getattr(self, name)]
        if len(warmups_given) > 1:
            raise ConfigError(
                f"A recipe has one warm-up. Give one of {' and '.join(warmups_given)}."
            )
        for name, good, expected in (
            ("clip", lambda v: v > 0, "a number above 0"),
            ("ema", lambda v: 0 < v < 1, "a number between 0 and 1"),
            ("mixup", lambda v: v > 0, "a number above 0"),
            ("cutout", lambda v: is_int(v, least=1), "an int of at least 1"),
            ("lookahead", lambda v: is_int(v, least=1), "an int of at least 1"),
        ):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and good(value)):
                raise self._error(name, f"{expected}, or nothing")
        for name in ("objective", "optimiser"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Choice):
                raise self._error(name, "a Choice, or nothing")
        if self.objective is not None:
            make_objective(self.objective)
        check_optimiser(self)
        self._check_together()
        for epoch in (0, self.epochs - 1):
            self.lr_at(epoch)  # refuses a schedule that returns no valid factor

    def _check_together(self) -> None:
        """Refuse fields that do not go with the values of other fields."""
        if self.end_factor and not SCHEDULES.get(self.schedule).takes_end:
            able = [name for name in SCHEDULES.names() if SCHEDULES.get(name).takes_end]
            raise ConfigError(
                f"The schedule {self.schedule!r} takes no 'end_factor'; {' and '.join(able)} do. "
                f"Give 'end_factor: 0'. Got {self.end_factor!r}."
            )
        if self.warmup_start and not (self.warmup_steps or self.warmup_share):
            raise ConfigError(
                f"The 'warmup_start' of a recipe needs 'warmup_steps' or a 'warmup_share', which "
                f"rise from it, or to be 0. Got {self.warmup_start!r}."
            )
        if self.ema is not None and self.lookahead is not None:
            raise ConfigError(
                "A recipe averages weights in one way. Give one of 'ema' and 'lookahead'."
            )
        if self.alternating_flip and self.augmentation not in (None, *FLIPPING):
            raise ConfigError(
                f"A recipe with 'alternating_flip' needs an 'augmentation' that flips images "
                f"({', '.join(FLIPPING)}). Got {self.augmentation!r}."
            )

    def _check_drop_at(self) -> None:
        shares = self.drop_at
        if not (
            isinstance(shares, tuple)
            and all(is_number(share) and 0 < share < 1 for share in shares)
            and list(shares) == sorted(set(shares))
        ):
            raise self._error("drop_at", "a rising list of shares of training in (0, 1)")

    def _error(self, name: str, expected: str) -> ConfigError:
        return ConfigError(
            f"The {name!r} of a recipe must be {expected}. Got {getattr(self, name)!r}."
        )


@lru_cache(maxsize=1024)
def _changed(recipe: Recipe) -> Mapping[str, Any]:
    """Return the changed fields of a recipe; cached, because thousands of jobs share a few."""
    return changed_fields(recipe)


RECIPES: Mapping[str, Recipe] = {
    # Plain momentum as in the paper's code; its text says Nesterov.
    "cifar": Recipe(),
    # Soft filter pruning: its first epoch at 0.01, then 0.1, dropping by 5 at 60, 120 and 160.
    "cifar-sfp": Recipe(
        epochs=200,
        batch=128,
        drop_at=(0.3, 0.6, 0.8),
        drop_factor=0.2,
        warmup_epochs=1,
        nesterov=True,
        weight_decay=5e-4,
    ),
    # For few epochs: as airbench94 (Jordan, 2024, arXiv:2404.00498), with its numbers converted to
    # the mean of a batch's losses. Half its batch and highest rate, half its decay and a quarter of
    # its rate for norm biases were better on validation images (docs/results/budget).
    "fast": Recipe(
        epochs=8,
        batch=512,
        lr=0.75,
        schedule="linear",
        warmup_share=0.23,
        warmup_start=0.2,
        end_factor=0.07,
        momentum=0.85,
        nesterov=True,
        weight_decay=6.7e-4,
        norm_bias_rate=16.0,
        lookahead=5,
        objective=Choice("cross-entropy", label_smoothing=0.2),
        augmentation="reflect-shift-flip",
        alternating_flip=True,
    ),
    "imagenet": Recipe(epochs=90, batch=256, schedule="every"),
    # Sparse structure selection, with the networks it is compared with: drops at 30, 60 and 90.
    "imagenet-sss": Recipe(
        epochs=100,
        batch=256,
        schedule="every",
        drop_every=0.3,
        nesterov=True,
        decayed="factors",
    ),
    # Without batch normalisation the higher rate diverges.
    "imagenet-plain-vgg": Recipe(epochs=90, batch=256, schedule="every", lr=0.01),
    # Detectors: the framework's for one image per step; the rate drops after epoch 5 of 7.
    "voc": Recipe(epochs=7, batch=1, lr=1e-3, drop_at=(5 / 7,)),
}


def named(name: str) -> Recipe:
    """Return a published recipe; a ``ConfigError`` offers the nearest names."""
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(unknown("recipe", str(name), RECIPES))
    return RECIPES[name]
