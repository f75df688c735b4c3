"""Studies of a user's own network, trained by the user's own function.

    name: mine
    train: my_train.py:train          # train(model, budget, seed) -> metrics
    metric: {name: accuracy, num_test: 450, chance: 0.1}
    budget: {epochs: 30}              # the length of the unpruned network's training
    models: {network: "nets.py:MobileNet", input: 1x1x8x8, weights: weights.pt}
    methods: {name: l1, macs: 0.5}    # or small: FOLDER, which `regrow shrink` wrote
    examples: "folder:PATH"           # data for criteria that use gradients or activations
    arms: [unpruned, pruned, fine-tune, scratch-e, {name: scratch-b, cap: 3}]
    uniform: true                     # the same network at uniform widths, of the same cost
    rivals: [timm/resnet10t, {network: "nets.py:MobileNet", set: {width: 11}}]
    seeds: 3

Here an arm is only a start and a budget: the function decides on schedule, rate and loss. ``regrow
compare`` writes such a study.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from regrow.core.durations import MOST_AMOUNT
from regrow.core.texts import ended
from regrow.core.units import UNITS
from regrow.core.validation import as_list, is_int, is_number, mapping, percent, refuse_twice, text
from regrow.data import load
from regrow.errors import ConfigError, RegrowError, short, unknown
from regrow.jobs.arms import RATES, UNPRUNED, Arm, Budget, read_arm
from regrow.jobs.own import Judged
from regrow.jobs.own_network import CutFolder, OwnNetwork
from regrow.models.inputs import Inputs
from regrow.models.origins import ModelOrigin, read_origin
from regrow.own.examples import read_examples, spec_of
from regrow.pruning.amounts import Cut
from regrow.pruning.dry_run import saying_where
from regrow.pruning.method import Method, Scope
from regrow.pruning.select import select
from regrow.studies.budgets import read_budgets
from regrow.studies.experiment import MethodUse, Titled, read_seeds, read_use
from regrow.studies.family import COUNTED, narrowed
from regrow.studies.keys import METRIC_KEYS, OWN_MODEL_KEYS, RIVAL_KEYS
from regrow.surgery import trace
from regrow.surgery.taken import batch_hint, check_names
from regrow.tasks.metric import (
    ACCURACY,
    BITS_PER_BYTE,
    LEAST_MARGIN,
    R_SQUARED,
    TOKEN_ACCURACY,
    Metric,
    check_margin,
)
from regrow.train.function import UNITS as BUDGET_UNITS
from regrow.train.function import TrainFunction, Unit, amount_of
from regrow.train.material import Material, material_of

DEFAULT_ARMS = ("unpruned", "pruned", "fine-tune", "scratch-e", "scratch-b")
OF_THE_FUNCTION = (
    *(*RATES, "warmup_share", "drop_at", "schedule_epoch", "schedule_share"),
    *("epoch", "epoch_share", "objective", "treatment", "strength"),
)
KNOWN_METRICS = {
    metric.key: replace(metric, example="example", per_loss=None)  # the function has its own loss
    for metric in (ACCURACY, TOKEN_ACCURACY, R_SQUARED, BITS_PER_BYTE)
}
NEEDED = {
    "metric": "the name of the score that it returns, such as accuracy",
    "budget": "the epochs of the unpruned network's training, such as 30, or several 'budgets'",
    "models": "the network, such as nets.py:MobileNet",
}
UNIFORM = "uniform"
FEW = 16  # examples that a method is tried on


@dataclass(frozen=True)
class WholeBudget:
    """The budget of the unpruned network's training."""

    amount: int
    unit: Unit

    @property
    def epochs(self) -> int | None:
        """Its epochs, if it is counted in epochs."""
        return self.amount if self.unit == "epochs" else None


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another network that is trained from scratch beside the pruned one."""

    network: OwnNetwork
    arm: Arm


@dataclass(frozen=True, kw_only=True)
class OwnExperiment(Titled):
    """A user's own network, its training function, and everything that is compared on them.

    ``data`` and ``recipe`` hold what takes their place in a table: the training function, and the
    budget of the unpruned network's training.
    """

    data: TrainFunction
    data_label: str
    model: OwnNetwork
    model_label: str
    recipe: WholeBudget
    judged: Judged
    uses: tuple[MethodUse, ...]
    folders: tuple[CutFolder | None, ...]  # for each use: the folder that it represents, if any
    arms: tuple[Arm, ...]
    rivals: tuple[Rival, ...]
    uniform: Arm | None
    examples: Material | None  # the data for criteria
    seeds: tuple[int, ...]
    head: ClassVar[None] = None
    backbone: ClassVar[None] = None
    on: str = ""  # the label of the function, if the study has several
    budget: int | None = None  # the training budget in epochs, if the study has several


def read_own(value: Mapping[str, Any]) -> "list[OwnExperiment]":
    """Read the values of the keys ``OWN_KEYS``: an experiment for each training budget."""
    for key, needed in NEEDED.items():
        if key not in value and not (key == "budget" and "budgets" in value):
            raise ConfigError(f"{key!r} is missing. With a 'train' function, give {needed}.")
    (given, *more), small = as_list(value["models"]) or [None], as_list(value.get("small", []))
    if more or given is None:
        raise ConfigError("'models' must name one network beside 'train'. Write two studies.")
    function = TrainFunction.read(value["train"])
    folders = [CutFolder.of(text(path, "small")) for path in small]
    uses = [read_use(entry, ()) for entry in as_list(value.get("methods", []))]
    network, label = _network(given, OWN_MODEL_KEYS, folders)
    examples = _examples(value.get("examples"), network)
    for use in uses:
        _check_use(use)
        _try(use, network, examples)
    arms = _arms(value.get("arms", list(DEFAULT_ARMS)), network)
    wholes = _wholes(value, network)
    rivals = [_rival(entry, network, uses, folders) for entry in as_list(value.get("rivals", []))]
    uniform = value.get("uniform", False)
    if not isinstance(uniform, bool):
        raise ConfigError(f"'uniform' must be true or false. Got {short(uniform)}.")
    if not uses and not folders and (rivals or uniform or arms != (UNPRUNED,)):
        raise ConfigError(
            "There is no smaller network to compare: name a method with an amount ('methods': "
            "{name: l1, macs: 0.5}; --macs 0.5), or a folder of `regrow shrink` ('small'; "
            "--small FOLDER)."
        )
    anew = Arm(name=UNIFORM, start="random", budget=Budget(kind="equal-epochs"))
    names = [*(arm.name for arm in arms), *(rival.arm.name for rival in rivals)]
    refuse_twice("arms and rivals", [*names, *([UNIFORM] if uniform else [])], "give a 'label'")
    refuse_twice("methods", [use.label for use in uses], "give one of them another 'label'")
    first = OwnExperiment(
        data=function,
        data_label=function.text,
        model=network,
        model_label=label,
        recipe=wholes[0][1],
        judged=_judged(value["metric"]),
        uses=(*uses, *(_given(folder) for folder in folders)),
        folders=(*(None for _ in uses), *folders),
        arms=arms,
        rivals=tuple(rivals),
        uniform=anew if uniform else None,
        examples=examples,
        seeds=read_seeds(value.get("seeds", 3)),
    )
    return [replace(first, recipe=whole, budget=budget) for budget, whole in wholes]


def _network(
    entry: Any, keys: Collection[str], folders: Sequence[CutFolder] = ()
) -> tuple[OwnNetwork, str]:
    """Read a network and its label in tables.

    Without ``input``, its inputs are those that the first of the ``folders`` was cut with, or else
    those that a library declares for its network.
    """
    fields = mapping({"network": entry} if isinstance(entry, str) else entry, "A network", keys)
    where = text(fields.get("network"), "network")
    settings = fields.get("set", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{where}: 'set' must map arguments to values. Got {short(settings)}.")
    origin = read_origin(where, settings)
    texts = [text(part, "input") for part in as_list(fields.get("input", []))]
    built = origin.build()
    if not texts and folders:
        texts = [*folders[0].inputs]
    if not texts:
        known = origin.inputs(built)
        texts = [known] if known is not None else []
    weights = fields.get("weights")
    network = OwnNetwork.of(
        origin,
        Inputs.read(texts),
        weights=None if weights is None else text(weights, "weights"),
        keep=tuple(text(name, "keep") for name in as_list(fields.get("keep", []))),
    )
    if network.is_given:
        network.given()  # raises an error if the weights do not fit
    try:
        check_names(built, network.example)
        network.cost()
    except Exception as error:  # its own code may raise anything
        kind = "" if isinstance(error, RegrowError) else f"{type(error).__name__}: "
        guess = "" if "input" in fields else ", which was guessed"
        raise ConfigError(
            f"{where} fails on the input {network.inputs}{guess}: {kind}"
            f"{ended(short(error))} Give the input that it takes with 'input', or --input."
            f"{batch_hint(built, network.inputs)}"
        ) from error
    return network, text(fields.get("label", _label(origin)), "label")


def _label(origin: ModelOrigin) -> str:
    name = origin.text.rpartition(":")[2] if origin.kind == "code" else origin.text
    settings = " ".join(f"{key}={value}" for key, value in origin.arguments.items())
    return f"{name} {settings}".strip()


def _rival(
    entry: Any, network: OwnNetwork, uses: Sequence[MethodUse], folders: Sequence[CutFolder]
) -> Rival:
    """Read a rival: its network takes the same inputs, and is trained from scratch."""
    fields = {"network": entry} if isinstance(entry, str) else entry
    fields = mapping(fields, "'rivals'", RIVAL_KEYS)
    budget = Budget(kind=fields.pop("budget", "equal-epochs"), cap=fields.pop("cap", None))
    if budget.kind not in ("equal-epochs", "equal-flops"):
        raise ConfigError(
            f"The 'budget' of a rival must be equal-epochs or equal-flops. Got {budget.kind!r}."
        )
    changed = fields.pop("set", {})
    if not isinstance(changed, Mapping):
        raise ConfigError(f"'rivals': 'set' must map arguments to values. Got {short(changed)}.")
    name = fields.pop("vary", None)
    if "network" in fields and name is not None:
        raise ConfigError(
            "A rival with a 'vary' is the network itself with one argument reduced. Leave out "
            "'network'."
        )
    if "network" not in fields and name is None and not changed:
        raise ConfigError(f"A rival needs a 'network', a 'set' or a 'vary'. Got {short(entry)}.")
    if name is not None:
        changed = {**changed, **narrowed(network, text(name, "vary"), uses, folders)}
    if "network" not in fields:
        fields["network"] = network.origin.text
        changed = {**network.origin.arguments, **changed}
    fields["set"] = changed
    fields.setdefault("input", network.inputs.to_json())
    try:
        rival, label = _network(fields, OWN_MODEL_KEYS)
    except RegrowError as error:
        raise ConfigError(f"The rival {short(fields['network'])}: {error}") from error
    return Rival(network=rival, arm=Arm(name=label, start="random", budget=budget))


def _wholes(value: Mapping[str, Any], network: OwnNetwork) -> list[tuple[int | None, WholeBudget]]:
    """Read the budget of the unpruned network's training, or several ``budgets`` in epochs."""
    own = _whole(value["budget"], network) if "budget" in value else None
    if "budgets" not in value:
        assert own is not None
        return [(None, own)]
    if network.is_given:
        raise ConfigError(
            "The 'budgets' are epochs of the unpruned network's training, and it comes with "
            "trained 'weights'. Leave one of them out."
        )
    if own is not None and own.epochs is None:
        raise ConfigError(
            f"The 'budgets' are epochs, and the 'budget' beside them is of {own.unit}. Leave it "
            "out, or give it in epochs."
        )
    known = None if own is None else own.epochs
    budgets = read_budgets(value["budgets"], known, of="the 'budget' (--budget)")
    return [(epochs, WholeBudget(epochs, "epochs")) for epochs in budgets]


def _whole(value: Any, network: OwnNetwork) -> WholeBudget:
    """Read the unpruned network's training budget: ``{epochs: 30}``, or a number of epochs."""
    fields = {"epochs": value} if not isinstance(value, Mapping) else dict(value)
    units = (*BUDGET_UNITS, "flops")
    if len(fields) != 1 or not set(fields) <= {*units}:
        raise ConfigError(
            f"The 'budget' must be a number of one of {', '.join(units)}, such as {{epochs: 30}}. "
            f"Got {short(value)}."
        )
    ((unit, amount),) = fields.items()
    if unit == "flops":
        if not is_number(amount) or amount <= 0:
            raise ConfigError(f"The 'budget' in FLOPs must be above 0. Got {short(amount)}.")
        most = network.cost().training_flops(1) * MOST_AMOUNT
        if amount > most:
            raise ConfigError(
                f"The 'budget' (--budget) in FLOPs must be at most {most:.3g}. Got {short(amount)}."
            )
        batch = network.inputs.inputs[0].shape[0]
        samples = math.floor(amount * batch / network.cost().training_flops(1))
        if not samples:
            raise ConfigError(
                f"The 'budget' of {amount:.3g} FLOPs is less than training on one example takes "
                f"({network.cost().training_flops(1) / batch:.3g})."
            )
        return WholeBudget(samples, "samples")
    return WholeBudget(*amount_of(amount, unit))


def _judged(value: Any) -> Judged:
    """Read the metric that networks are scored by, and what is known of the test set."""
    fields = {"name": value} if isinstance(value, str) else value
    fields = mapping(fields, "'metric'", METRIC_KEYS)
    name, margin = text(fields.get("name"), "name"), fields.get("margin")
    if margin is not None and not (is_number(margin) and margin >= LEAST_MARGIN):
        raise ConfigError(
            f"The 'margin' of {name!r} must be above 0, and not below 1e-6: of a metric with such "
            f"small numbers, return a multiple. Got {short(margin)}."
        )
    num_test, chance = fields.get("num_test"), fields.get("chance")
    if num_test is not None and not is_int(num_test, least=1):
        raise ConfigError(f"'num_test' must be an int of at least 1. Got {short(num_test)}.")
    if chance is not None and not is_number(chance):
        raise ConfigError(f"'chance' must be a number. Got {short(chance)}.")
    metric = _metric(name, fields.get("better"), margin)
    if chance is not None and metric.unit == "%" and not 0.0 <= chance < 1.0:
        raise ConfigError(
            f"The 'chance' of {name!r} (--chance) is a share of 1, as the training function "
            f"returns it. Got {chance!r}.{percent(chance)}"
        )
    check_margin(margin, [metric])
    level = None if chance is None else metric.reported(chance)
    return Judged(metric, num_test=num_test, chance=level)


def _metric(name: str, better: Any, margin: float | None) -> Metric:
    if better not in (None, "higher", "lower"):
        raise ConfigError(f"{name!r} must be 'better' higher or lower. Got {short(better)}.")
    about = f"{name} is what the training function returned"
    known = KNOWN_METRICS.get(name)
    if known is not None:
        if better not in (None, known.better):
            raise ConfigError(
                f"{known.better.capitalize()} values of {name!r} are better, not {better} ones. "
                "Leave out 'better' (--lower-is-better), or have your function return another "
                "score under another name."
            )
        sentence = about[0].upper() + about[1:]
        return replace(known, about=sentence, margin=margin or known.margin)
    if margin is None:
        raise ConfigError(
            f"{unknown('metric', name, KNOWN_METRICS)} If your function returns a {name!r}, say "
            "below which difference of it two networks count as equally good: 'margin' (--margin)."
        )
    return Metric(
        key=name,
        name=name,
        axis=name,
        about=about,
        baseline="a network that has learnt nothing",
        beats_baseline="better than a network that has learnt nothing",
        better=better or "higher",
        margin=margin,
        digits=min(max(2, 1 - math.floor(math.log10(margin))), 8),
    )


def _arms(value: Any, network: OwnNetwork) -> tuple[Arm, ...]:
    """Read the arms: each a start and a budget."""
    arms = []
    for entry in as_list(value):
        arm = read_arm(entry)
        said = [name for name in OF_THE_FUNCTION if getattr(arm, name) is not None]
        said += ["schedule"] if isinstance(entry, Mapping) and "schedule" in entry else []
        if said:
            raise ConfigError(
                f"The arm {arm.name!r} has {said[0]!r}, but with your own 'train' function an arm "
                "is only a start and a budget: the function decides on schedule, rate and loss."
            )
        if network.is_given and arm.start == "initial" and arm != UNPRUNED:
            raise ConfigError(
                f"The arm {arm.name!r} starts from the weights that the network had before its "
                "training, which are not known for given 'weights'. Leave out the arm, or "
                "'weights'."
            )
        arms.append(replace(arm, schedule="full"))
    if not arms:
        raise ConfigError("'arms' must name at least one. Got an empty list.")
    return tuple(arms)


def _check_use(use: MethodUse) -> None:
    """Refuse methods that do more than prune a trained network in one step."""
    method = use.method
    reasons = {
        "does more than choose units: it acts while the network trains": method.treatment,
        f"removes {method.unit}s, which your own function would not hold at zero": (
            not UNITS.get(method.unit).narrows
        ),
        "reconstructs weights from data, which this study does not have": method.repair,
        "follows other networks": method.follows,
        "trains in 'rounds'": any(cut.step is not None for cut in use.cuts),
        "has 'shares' or a 'target'": any(cut.shares is not None for cut in use.cuts),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"The method {use.label!r} {reason}. With a 'train' function, use a method that "
                "prunes a trained network in one step, such as l1."
            )


def _examples(name: Any, network: OwnNetwork) -> Material | None:
    """Read and check the data for criteria that use gradients or activations."""
    if name is None:
        return None
    spec = spec_of(text(name, "examples"), network.inputs)
    read_examples(spec, network.inputs, network.fresh(0), where=f"'examples': {spec.name}")
    return material_of(spec)


def _try(use: MethodUse, network: OwnNetwork, examples: Material | None) -> None:
    """Try a method on the untrained network, so that it fails now rather than after training."""
    how = use.method
    for cut in use.cuts:
        amount = ("sparsity", 0.5 if cut.sparsity is None else cut.sparsity)
        if cut.cost is not None and cut.cost.name in COUNTED:  # others are measured
            amount = (cut.cost.name, cut.cost.share)
        parts = (how.criterion, how.allocation, how.scope, how.normalise)
        try:
            with saying_where(how):
                _tried(network, parts, amount, examples, cut.multiple_of)
        except RegrowError as error:
            raise type(error)(f"The method {use.label!r}: {error}") from error


@cache
def _tried(
    network: OwnNetwork,
    parts: tuple[str, str, tuple[Scope, ...], str | None],
    amount: tuple[str, float],
    examples: Material | None,
    multiple_of: int,
) -> None:
    criterion, allocation, scope, normalise = parts
    method = Method(
        name=criterion,
        criterion=criterion,
        allocation=allocation,
        scope=scope,
        normalise=normalise,
    )
    drawn, (name, share) = network.fresh(0), amount
    mask = select(
        drawn,
        trace(drawn, network.example, keep=network.keep),
        method,
        dataset=None if examples is None else load(examples.spec),
        num_images=FEW,
        multiple_of=multiple_of,
        **{name: share},  # type: ignore[arg-type]
    )
    if mask.num_kept == mask.num_units:
        raise ConfigError(
            f"nothing would be cut at {name} {share:g} in multiples of {multiple_of}. Increase "
            "the amount of pruning, or use a smaller multiple."
        )


def _given(folder: CutFolder) -> MethodUse:
    """Return the method use that represents a folder's cut in a table."""
    method = Method(name="cut", criterion="first", trained=False, scope=("all",))
    cut = Cut(target=Path(folder.path).name)
    return MethodUse(method=method, label=method.name, cuts=(cut,))
