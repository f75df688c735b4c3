"""The job that trains a pruned network under one arm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regrow.core.seeds import derive
from regrow.core.units import UNITS
from regrow.cost import Cost
from regrow.errors import ConfigError
from regrow.jobs.arms import OF_FLOPS, Arm
from regrow.jobs.base import Context, Job, Keyed, LossOf, Outcome, Records, state_of, without_none
from regrow.jobs.pace import Pace
from regrow.jobs.prune import Prune, edit_of
from regrow.jobs.train import (
    Train,
    Treated,
    advance,
    masked_costs,
    masks_part,
    model_cost,
    result_of,
    trained_network,
)
from regrow.models import ModelSpec, build, undrawn
from regrow.models.starts import Start, started
from regrow.surgery.architecture import Architecture
from regrow.surgery.edit import Edit
from regrow.surgery.mask import filter_dim, layer_of
from regrow.train import NO_TREATMENT, Recipe, Training, Treatment
from regrow.train.material import Material, Setting

SPARSE_DRAW = 2  # version of the rule of ``_draw_sparse_``; in the first, n was at least 1


@dataclass(frozen=True, kw_only=True)
class Retrain(Keyed):
    """Train a pruned network under one arm."""

    kind: ClassVar[str] = "retrain"
    version: ClassVar[int] = 1
    head: ClassVar[None] = None

    prune: Prune
    arm: Arm
    recipe: Recipe
    seed: int
    parent: "Train | Retrain | None" = None  # whose weights are inherited, or rewound to
    treated: Treated | None = None  # the arm's treatment
    teacher: Train | None = None  # the teacher of a distillation
    label: str = "retrain"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The pruning, and the trained networks that it starts or learns from."""
        return (self.prune, *(job for job in (self.parent, self.teacher) if job is not None))

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON."""
        return without_none(
            data=self.data.content,
            arm=self.arm.to_json(),
            recipe=self.recipe.to_json(),
            recipe_code=recipe_of(self.arm, self.recipe, 1).code(),
            seed=self.seed,
            treatment=self.treated and self.treated.to_json(),
            draw=SPARSE_DRAW if self.draws_sparse else None,
            drawn_by=None if self.arm.start != "random" or self.model.has_rule() else "code",
        )

    @property
    def data(self) -> Material:
        """The data that the network was pruned on, and is retrained on."""
        return self.prune.data

    @property
    def model(self) -> ModelSpec:
        """The network before it was pruned."""
        return self.prune.model

    @property
    def scored_on(self) -> Material:  # type: ignore[override]
        """The data that it is retrained and scored on."""
        return self.data

    @property
    def pruning(self) -> Prune:  # type: ignore[override]
        """The pruning that it starts from."""
        return self.prune

    @property
    def loss_of(self) -> LossOf:  # type: ignore[override]
        """Return "arm" or "recipe" if that changes the task's loss, else "task"."""
        if self.arm.objective is not None:
            return "arm"
        return "task" if self.recipe.has_plain_loss else "recipe"

    def network(self, records: Records) -> tuple[nn.Module, Architecture]:
        """Rebuild the finished job's network with its weights; masked weights are zeros."""
        edit = edit_of(records, self.prune)
        weights = records.tensors(self)
        if weights:
            network = edit.architecture.build()
            network.load_state_dict(weights)
            return network, edit.architecture
        # Not retrained: its record has no weights, because they are the parent's or repaired ones.
        assert self.parent is not None
        network, _ = self.parent.network(records)
        return edit.apply(network), edit.architecture

    @property
    def draws_sparse(self) -> bool:
        """True if its convolutions are initialised with a scale by their masks' density."""
        return self.arm.start == "random" and UNITS.get(self.prune.method.unit).masked

    @cached_property
    def flops(self) -> float:
        """FLOPs of the training, guessed before the network is known."""
        cost = model_cost(self.prune.model, self.data.shape)
        samples = self.expected_epochs * self.data.num_train
        return cost.training_flops(samples) / self.arm.budget_ratio(self.expected_ratio)

    @property
    def expected_ratio(self) -> float:
        """The unpruned network's FLOPs over the pruned one's, guessed from the sparsity."""
        share = max(self.prune.expected_kept, 0.02)
        return float(1.0 / share ** UNITS.get(self.prune.method.unit).exponent)

    @property
    def expected_epochs(self) -> float:
        """The epochs of the arm, guessed from the sparsity."""
        return self.arm.trained_epochs(self.recipe.length, self.expected_ratio)

    @property
    def setting(self) -> Setting:  # type: ignore[override]
        """The training whose steps it runs, of the unpruned network; its own is mostly smaller."""
        return Setting.of(self.prune.model, self.data, self.recipe)

    @property
    def pace_group(self) -> Setting:  # type: ignore[override]
        """The setting, because its trainings have one ratio of actual to estimated time."""
        return self.setting

    def estimate(self, pace: Pace) -> float:
        """Return the seconds of building its start and of training it."""
        ratio = pace.ratio(self.prune)
        epochs = self.arm.trained_epochs(self.recipe.length, ratio)
        # Masked weights take as much time as others.
        masked = UNITS.get(self.prune.method.unit).masked
        steps = pace.training(
            self.setting,
            epochs=epochs,
            ratio=1.0 if masked else ratio,
            taught=self.teacher is not None,
        )
        return pace.cutting(self.prune.model, self.data) + steps

    def estimate_flops(self, pace: Pace) -> float:
        """Return the FLOPs of its training, by the known or guessed ratio."""
        ratio = pace.ratio(self.prune)
        samples = self.arm.trained_epochs(self.recipe.length, ratio) * self.data.num_train
        whole = model_cost(self.prune.model, self.data.shape).training_flops(samples)
        return whole / self.arm.budget_ratio(ratio)

    def estimate_epochs(self, pace: Pace) -> float:
        """Return the epochs of its arm, by the known or guessed ratio."""
        return self.arm.trained_epochs(self.recipe.length, pace.ratio(self.prune))

    def run(self, context: Context) -> Outcome:
        """Build the start, train it for its budget, and evaluate it once on the test set."""
        pruned = context.record(self.prune)
        edit = edit_of(context, self.prune)
        before, after = Cost(**pruned["before"]), Cost(**pruned["after"])
        ratio = flops_ratio(before, after, self.arm)
        dataset = context.dataset(self.data.spec)
        model, begun = self._start(context, edit)
        if begun.cut:
            context.note(
                f"No rule initialises {', '.join(map(repr, begun.cut))} at the smaller width, so "
                "the values drawn by the unpruned network's code are cut."
            )
        epochs = self.arm.epochs(self.recipe.length, ratio)
        capped = self.arm.budget.is_capped(self.arm.budget_ratio(ratio))
        record: dict[str, Any] = {"ratio": ratio, "capped": capped}
        record |= {"unlike": list(begun.layered)} if begun.layered else {}
        if epochs == 0:
            model = model.to(context.device)
            return Outcome(
                record | result_of(context, model, dataset, recipe=self.recipe, cost=after)
            )
        recipe = self.arm.recipe(self.recipe, epochs)
        training = Training(
            model,
            dataset,
            recipe,
            seed=self.seed,
            device=context.device,
            treatment=self._treatment(edit),
            masks=edit.kept_weights(model),
            teacher=self._teacher(context),
            first_epoch=self.arm.first_epoch,
            ranks=context.ranks,
        )
        advance(training, context)
        record |= result_of(context, model, dataset, recipe=recipe, cost=after, training=training)
        record |= masked_costs(training, self.model, self.data.shape)
        if self.teacher is not None:
            record["teacher_flops"] = float(before.flops * record["samples"])
            record["training_flops"] += record["teacher_flops"]
        return Outcome(record, state_of(model), masks_part(training))

    def _treatment(self, edit: Edit) -> Treatment:
        """Make the treatment of the arm, for the sparsity of the pruning."""
        if self.treated is None:
            return NO_TREATMENT
        return self.treated.treatment(sparsity=edit.mask.sparsity)

    def _teacher(self, context: Context) -> nn.Module | None:
        if self.teacher is None:
            return None
        return trained_network(self.teacher.model, context, self.teacher)

    def _start(self, context: Context, edit: Edit) -> tuple[nn.Module, Start]:
        """Build the pruned network that the arm starts from, with facts on a random start."""
        spec, start, begun = self.prune.model, self.arm.start, Start()
        if start == "random":
            model, begun = started(spec, edit.cut, seed=self.seed)
            if begun.read:
                raise ConfigError(undrawn(begun.read, model))
            _draw_sparse_(model, edit.kept_weights(model), seed=self.seed)
            edit.mask_(model)
            return model, begun
        if self.parent is not None:
            model = trained_network(spec, context, self.parent, after=self.arm.epoch)
        elif start == "initial":
            model = build(spec, seed=self.seed)
        else:
            model = spec.fresh(derive(self.seed, "redrawn") if start == "redrawn" else self.seed)
        if start == "inherited":
            return edit.apply(model), begun
        model = edit.cut(model)
        edit.mask_(model)
        return model, begun


@lru_cache(maxsize=1024)
def recipe_of(arm: Arm, base: Recipe, epochs: float) -> Recipe:
    """Return the recipe that an arm trains with; cached, because thousands of jobs share a few."""
    return arm.recipe(base, epochs)


def flops_ratio(before: Cost, after: Cost, arm: Arm) -> float:
    """Return the unpruned network's FLOPs over the pruned one's."""
    if not after.flops and arm.budget.kind in OF_FLOPS:
        raise ConfigError(
            f"The arm {arm.name!r} trains for equal FLOPs, but none of the pruned network's "
            f"operations can be counted ({'; '.join(after.caveats) or 'it has no layers'}). Give "
            "the arm a budget of epochs."
        )
    return before.flops / max(after.flops, 1)


def _draw_sparse_(model: nn.Module, masked: Mapping[str, Tensor], *, seed: int) -> None:
    """Draw masked convolutions from N(0, 2 / n), n = weights kept / input channels, in place.

    This is the fan-out rule scaled by each layer's density, as in the paper's section 4.3 for
    scratch training under an unstructured mask. If whole filters are masked, only the others count.
    If nothing is kept, n is undefined, but does not matter, because the mask holds the weights at
    zero. Masked linear layers keep their values.
    """
    generator = torch.Generator().manual_seed(derive(seed, "sparse-init"))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, stays in masked.items():
            weight = parameters[name]
            if weight.dim() == 2:
                continue
            inputs = weight.shape[1 - filter_dim(layer_of(name, model))]
            fan = int(stays.sum()) / inputs or 1.0
            weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2.0 / fan))
