"""Experiments that build heads, such as detectors, on the networks of a ``backbone``'s arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regrow.core.units import UNITS
from regrow.core.validation import as_list, mapping
from regrow.errors import ConfigError, unknown
from regrow.jobs.arms import UNPRUNED, Arm, Budget
from regrow.studies.experiment import (
    Experiment,
    MethodUse,
    read_data,
    read_experiments,
    read_lengths,
)
from regrow.studies.keys import AXES
from regrow.tasks import TASKS, Head
from regrow.train import Recipe


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """An arm of heads that are built on a backbone; ``on`` is the arm of the backbone used.

    ``further``: the network with the head is pruned itself, and trained further at the last rate.
    """

    name: str
    on: Any  # as a study names it
    further: bool = False

    @property
    def needs(self) -> str:
        """The name of the backbone's arm."""
        return _arm_name(self.on)

    @property
    def unpruned(self) -> bool:
        """True if neither the backbone nor the network built on it is pruned."""
        return self.needs == UNPRUNED.name and not self.further

    def after(self, arm: Arm) -> Arm:
        """Return the arm that follows pruning: the backbone's, or the network's with a head."""
        if not self.further:
            return replace(arm, name=self.name)
        budget = Budget(kind="equal-epochs")
        return Arm(name=self.name, start="inherited", budget=budget, schedule="last-rate")


TRANSFERS: Mapping[str, Transfer] = {
    transfer.name: transfer
    for transfer in (
        Transfer(name=UNPRUNED.name, on=UNPRUNED.name),
        Transfer(name="prune-c", on="fine-tune"),
        Transfer(name="prune-d", on=UNPRUNED.name, further=True),
        Transfer(name="scratch-e", on="scratch-e"),
        # The paper's cap on ImageNet.
        Transfer(name="scratch-b", on={"name": "scratch-b", "cap": 2}),
    )
}


def head_keys() -> tuple[str, ...]:
    """Return the keys of a study that configure the head on a backbone, such as ``detector``."""
    return tuple(_heads())


def read_transfers(value: Mapping[str, Any]) -> list[Experiment]:
    """Read heads built on the networks of another experiment: an experiment for each budget."""
    for key in ("backbone", "data"):
        if key not in value:
            raise ConfigError(f"{key!r} is missing. A study of heads on a backbone needs it.")
    for key in ("models", "methods", "rounding"):
        if key in value:
            raise ConfigError(f"{key!r} belongs to the 'backbone'. Move it there.")
    transfers = _transfers(value.get("arms", list(TRANSFERS)))
    backbone = _backbone(value, transfers)
    head = _head(value)
    fields = value.get("recipe", {})
    if isinstance(fields, Mapping):
        fields = {"name": head.recipe, **fields}
    recipe = Recipe.from_json(fields)
    head.check_recipe(recipe)
    for use in backbone.uses:
        _check_use(use, transfers, f"a {head.noun}")
    needed = {arm.name: arm for arm in backbone.arms}
    arms = tuple(transfer.after(needed[transfer.needs]) for transfer in transfers)
    further = tuple(arm for t, arm in zip(transfers, arms, strict=True) if t.further)
    lengths = read_lengths(value, recipe, further)
    entries = as_list(value["data"])
    if len(entries) != 1:
        raise ConfigError("'data' must name one data set beside a 'backbone'. Write two studies.")
    data, data_label = read_data(entries[0])
    return [
        replace(
            backbone,
            data=data,
            data_label=data_label,
            model_label=f"{head.title} on {backbone.model_label}",
            arms=arms,
            recipe=lasting,
            backbone=backbone,
            head=head,
            transfers=transfers,
            budget=budget,
        )
        for budget, lasting, _ in lengths
    ]


def _heads() -> dict[str, type[Head]]:
    heads = (TASKS.get(name).head for name in TASKS.names())
    return {head.noun: head for head in heads if head is not None}


def _head(value: Mapping[str, Any]) -> Head:
    """Read the head: named by its own key in the study, or that of the study's task."""
    heads = _heads()
    named = [noun for noun in heads if noun in value] or [*heads]
    if "task" in value:
        head = TASKS.get(value["task"]).head
        named = [noun for noun in named if heads[noun] is head]
    if len(named) != 1:
        raise ConfigError(
            "A study with a 'backbone' must say what is built on it, with one of the keys "
            f"{', '.join(map(repr, heads))}. Got the task {value.get('task')!r}."
        )
    return heads[named[0]].read(value.get(named[0]))


def _transfers(value: Any) -> tuple[Transfer, ...]:
    names = as_list(value)
    if not names:
        raise ConfigError("'arms' must name at least one. Got an empty list.")
    for name in names:
        if not isinstance(name, str) or name not in TRANSFERS:
            raise ConfigError(f"With a 'backbone': {unknown('arm', str(name), TRANSFERS)}")
    return tuple(TRANSFERS[name] for name in dict.fromkeys(names))


def _backbone(value: Mapping[str, Any], transfers: Sequence[Transfer]) -> Experiment:
    """Read the backbone's experiment, with the arms that heads are built on."""
    fields = mapping(value["backbone"], "The 'backbone'", AXES)
    if "budgets" in fields:
        raise ConfigError(
            "The 'backbone' is trained for one budget. Put 'budgets' beside it: they are epochs of "
            "what is built on it."
        )
    wanted = {transfer.needs: transfer.on for transfer in transfers}
    by_name = {_arm_name(arm): arm for arm in as_list(fields.get("arms", []))}
    if extra := sorted(set(by_name) - set(wanted)):
        raise ConfigError(
            f"The 'backbone' has the arm {extra[0]!r}, on which none of the arms "
            f"{', '.join(transfer.name for transfer in transfers)} is built. Leave it out."
        )
    arms = [
        by_name.get(name, arm) for name, arm in ({UNPRUNED.name: UNPRUNED.name} | wanted).items()
    ]
    experiments = read_experiments({"seeds": value.get("seeds", 1)} | fields | {"arms": arms})
    backbone = experiments[0]
    if len(experiments) > 1 or len(backbone.uses) > 1:
        raise ConfigError(
            "The 'backbone' has one network, one data set and one method. Write a study for each."
        )
    if not backbone.uses and not all(transfer.unpruned for transfer in transfers):
        raise ConfigError(
            "The 'backbone' names no method, so only the arm 'unpruned' can be run. Name one."
        )
    if idle := [arm.name for arm in backbone.arms if arm.budget.kind == "none"]:
        raise ConfigError(
            f"The arm {idle[0]!r} of the 'backbone' trains nothing, so it leaves no network to "
            "build on. Give it a budget."
        )
    return backbone


def _check_use(use: MethodUse, transfers: Sequence[Transfer], subject: str) -> None:
    """Refuse a method that leaves no smaller network, or cannot prune the network with a head."""
    method = use.method
    if not UNITS.get(method.unit).narrows:
        raise ConfigError(
            f"What is built on a backbone, such as {subject}, needs fewer channels, and "
            f"{method.name!r} removes {method.unit}s. Use a method of unit 'channel', such as "
            "l1-filter."
        )
    reasons = {
        "reconstructs a classifier's weights after pruning": method.repair is not None,
        "follows other networks": use.source is not None,
        "is asked for a share of a cost": any(cut.cost is not None for cut in use.cuts),
        "prunes in rounds": any(cut.rounds > 1 or cut.step is not None for cut in use.cuts),
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    for transfer in transfers:
        if transfer.further and why is not None:
            raise ConfigError(
                f"The arm {transfer.name!r} prunes the backbone of {subject} by its weights, in "
                f"one step, to a 'sparsity', a 'target' or 'shares', but {method.name!r} {why}. "
                "Leave the arm out, or use another method or amount."
            )


def _arm_name(arm: Any) -> str:
    return str(arm.get("name", "")) if isinstance(arm, Mapping) else str(arm)
