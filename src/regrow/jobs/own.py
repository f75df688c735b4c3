"""Jobs that cut a user's network, and train and score it by a user's function.

They correspond to ``Prune``, ``Train`` and ``Retrain`` in a study of registered models. Their
results depend on the network's code and weights, the function's source, the budget and a seed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from regrow.core.digests import digest_of
from regrow.core.seeds import derive
from regrow.core.texts import quoted
from regrow.cost import measure
from regrow.errors import CodeError
from regrow.jobs.arms import Arm
from regrow.jobs.base import Context, Job, Keyed, Outcome, Records, state_of, without_none
from regrow.jobs.own_network import CutFolder, OwnNetwork
from regrow.jobs.prune import structure_only
from regrow.jobs.retrain import flops_ratio
from regrow.models.origins import file_named
from regrow.models.starts import Start, started
from regrow.pruning.costs import CostShare
from regrow.pruning.method import ALLOCATIONS, CRITERIA, Method
from regrow.pruning.select import select
from regrow.pruning.targets import measure_cost
from regrow.surgery import prove, shrink, trace
from regrow.surgery.architecture import Architecture
from regrow.surgery.edit import cut_record
from regrow.surgery.fold import fold
from regrow.surgery.taken import CallSignature
from regrow.tasks import Metric
from regrow.train.function import Allowance, TrainFunction, Unit
from regrow.train.material import Material

MATCH = 1e-9  # tolerance on the share of MACs when matching another cut
LABELS = re.compile("label|target")  # in names of inputs that are used for a loss only


@dataclass(frozen=True)
class Judged:
    """The metric by which a user's function scores networks, and facts about its test set.

    ``num_test`` is the number of test examples, and ``chance`` the score of the metric's baseline,
    scaled as in reports; None if not given.
    """

    metric: Metric
    num_test: int | None = None
    chance: float | None = None
    task: ClassVar[None] = None

    def score(self, metrics: Mapping[str, float], not_finite: Sequence[str] = ()) -> float:
        """Return the metric of a function's results; raise ``CodeError`` if missing or invalid."""
        key = self.metric.key
        if set(metrics) == {""}:
            return self._checked(metrics[""])
        if key in not_finite:
            raise CodeError(
                f"The training function returned nan or infinity for {key!r}, so networks cannot "
                "be compared by it. Name another metric with --metric, or use a new --store to "
                "train again."
            )
        if key not in metrics:
            raise CodeError(
                f"The training function returned no {key!r}, by which networks are to be "
                f"compared, but {quoted(metrics)}. Return it under this name, or name what "
                "networks are to be compared by with 'metric' (--metric)."
            )
        return self._checked(metrics[key])

    def _checked(self, value: float) -> float:
        if self.metric.unit == "%" and not 0.0 <= value <= 1.0:
            raise CodeError(
                f"{self.metric.name} must be a share in [0, 1], and the training function returned "
                f"{value:g}. Return 0.93 for 93 %, or give the metric another name."
            )
        return value


@dataclass(frozen=True, kw_only=True)
class OwnPrune(Keyed):
    """Choose the units of a user's network to keep: by a method, or as in a folder.

    ``parent`` is the training whose weights are scored; None: the given weights of the network, or
    any weights for a method that does not depend on them. ``like`` is a cut whose share of MACs
    this one must match.
    """

    kind: ClassVar[str] = "prune"
    version: ClassVar[int] = 1

    base: OwnNetwork
    method: Method
    seed: int
    sparsity: float | None = None
    cost: CostShare | None = None
    rounds: int = 1
    multiple_of: int = 1
    examples: Material | None = None
    folder: CutFolder | None = None
    parent: "OwnTrain | None" = None
    like: "OwnPrune | None" = None
    code: str | None = None  # digest of the criterion's file, if that is not part of this package
    label: str = "prune"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The training whose weights are scored, and the cut whose cost is matched."""
        return tuple(job for job in (self.parent, self.like) if job is not None)

    @property
    def files(self) -> tuple[str, ...]:  # type: ignore[override]
        """The files of its network, and the folder whose cut it uses, if any."""
        return (*self.base.files, *((self.folder.path,) if self.folder is not None else ()))

    @property
    def pruning(self) -> "OwnPrune":  # type: ignore[override]
        """The pruning of its resulting network: itself."""
        return self

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON."""
        method = self.method
        parts = {
            "criterion": CRITERIA.identity(method.criterion),
            "allocation": ALLOCATIONS.identity(method.allocation),
            "unit": method.unit,
            "scope": list(method.scope),
            "normalise": method.normalise,
            "seed": self.seed,
        }
        return without_none(
            network=self.base.to_json(),
            **({} if self.folder is not None else parts),
            folder=self.folder and self.folder.content,
            sparsity=self.sparsity,
            cost=self.cost and self.cost.to_json(),
            rounds=self.rounds if self.rounds > 1 else None,
            multiple_of=self.multiple_of if self.multiple_of > 1 else None,
            examples=self.examples and self.examples.content,
            code=self.code,
        )

    @property
    def flops(self) -> float:
        """0, because nothing is trained."""
        return 0.0

    def run(self, context: Context) -> Outcome:
        """Score, allocate, prove the cut, and measure the smaller network."""
        if self.folder is not None:
            return self._from_folder(self.folder, context)
        network = self._network(context)
        traced = trace(network, self.base.example, keep=self.base.keep)
        options: dict[str, Any] = {"sparsity": self.sparsity}
        if self.like is not None:
            found = context.record(self.like)
            options = {"macs": found["after"]["macs"] / found["before"]["macs"] + MATCH}
        elif self.cost is not None:
            options = self.cost.to_json()
        mask = select(
            network,
            traced,
            self.method,
            seed=self.seed,
            rounds=self.rounds,
            multiple_of=self.multiple_of,
            dataset=None if self.examples is None else context.dataset(self.examples.spec),
            device=context.device,
            **options,
        )
        prove(network, mask, traced)
        before, after = self.base.cost(), measure(shrink(network, mask, traced), traced.example)
        if after.caveats:
            context.note(f"Its costs and budgets leave out: {'; '.join(after.caveats)}.")
        record = cut_record(mask, self.base.architecture().then(mask))
        record |= {"before": before.to_json(), "after": after.to_json()}
        if self.cost is not None:
            measured = measure_cost(self.cost, network, traced, mask=mask, device=context.device)
            record["cost"] = {"share": measured.share, **measured.how}
        return Outcome(record)

    def _network(self, context: Context) -> nn.Module:
        if self.parent is not None:
            return self.parent.network_in(context)
        return self.base.given() if self.base.is_given else self.base.fresh(self.seed)

    def _from_folder(self, folder: CutFolder, context: Context) -> Outcome:
        """Use the cut of a folder, with the weights stored in it."""
        architecture, weights = folder.read(self.base)
        cut = self._proven(architecture)
        small = architecture.build()
        small.load_state_dict(dict(weights))
        if self.base.is_given and not _same_weights(cut, small):
            context.note(
                "The weights of the small network are not those that these cuts leave of the given "
                "ones: it was cut from other weights, or they were changed after the cut. "
                "Inherited weights are those of the small network's folder."
            )
        before, after = self.base.cost(), measure(small, self.base.example)
        last = architecture.cuts[-1] if architecture.cuts else None
        record = {} if last is None else cut_record(last, architecture)
        record |= {"architecture": architecture.to_json()}
        record |= {"before": before.to_json(), "after": after.to_json()}
        return Outcome(record, state_of(small))

    def _proven(self, architecture: Architecture) -> nn.Module:
        """Repeat the cuts of a folder on the compared network, proving each; return the result."""
        network = self.base.given() if self.base.is_given else self.base.fresh(self.seed)
        network = fold(network) if architecture.folded else network
        for mask in architecture.cuts:
            traced = trace(network, self.base.example, keep=architecture.keep)
            prove(network, mask, traced)
            network = shrink(network, mask, traced)
        return network

    def matching(self) -> "OwnPrune":
        """Return the cut with uniform widths that matches the MACs of this one."""
        method = replace(structure_only(self.method), allocation="uniform", name="uniform")
        label = f"{self.label} uniform"
        multiple = self.folder.multiple_of if self.folder is not None else self.multiple_of
        return OwnPrune(
            base=self.base, method=method, seed=0, like=self, multiple_of=multiple, label=label
        )


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours
    )


@dataclass(frozen=True, kw_only=True)
class OwnTrain(Keyed):
    """Train a user's network, whole or pruned, by the user's function, and score it.

    Attributes:
        reference: the network whose training cost budgets of ``equal-flops`` match.
        whole, unit: the length of that training, and its unit.
        parent: the training whose weights are inherited; None: the given weights of the network.
        scored_on: the metric; not part of the key, because records have all metrics.
    """

    version: ClassVar[int] = 1

    base: OwnNetwork
    function: TrainFunction
    arm: Arm
    seed: int
    reference: OwnNetwork
    whole: int
    unit: Unit
    scored_on: Judged  # type: ignore[misc]
    prune: OwnPrune | None = None
    parent: "OwnTrain | None" = None
    label: str = "train"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of work: ``train``, or ``retrain`` after a pruning."""
        return "train" if self.prune is None else "retrain"

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The pruning, and the trained network whose weights are inherited."""
        return tuple(job for job in (self.prune, self.parent) if job is not None)

    @property
    def pruning(self) -> OwnPrune | None:  # type: ignore[override]
        """The pruning that it starts from."""
        return self.prune

    @property
    def from_given(self) -> bool:  # type: ignore[override]
        """True if the network has given weights."""
        return self.base.is_given

    @property
    def trained_by(self) -> TrainFunction:  # type: ignore[override]
        """The user's function, which other jobs of the study share."""
        return self.function

    @property
    def files(self) -> tuple[str, ...]:  # type: ignore[override]
        """The files of its network and of the function."""
        return (*self.base.files, *file_named(self.function.text))

    @property
    def is_published(self) -> bool:  # type: ignore[override]
        """True if the network has given weights, and is only scored."""
        return self.arm.budget.kind == "none" and self.prune is None

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON."""
        return without_none(
            network=self.base.to_json(),
            function={"name": self.function.text.rpartition(":")[2], "code": self.function.digest},
            arm=self.arm.to_json(),
            whole=self.whole,
            unit=self.unit,
            reference=None if self.reference == self.base else self.reference.to_json(),
            seed=self.seed,
            drawn_by=None if not self._is_drawn_anew or self.base.has_rule() else "code",
        )

    @cached_property
    def flops(self) -> float:
        """A guess of its training FLOPs, up to a factor that all jobs of a comparison share."""
        share = 1.0 if self.prune is None else self.prune_share
        ratio = 1.0 / max(share, 0.02)
        return self.base.cost().flops * share * self.arm.epochs(self.whole, ratio)

    @property
    def prune_share(self) -> float:
        """The share of the FLOPs that remains, by what was asked for; 0.5 if unknown."""
        cut = self.prune
        while cut is not None and cut.like is not None:
            cut = cut.like
        if cut is None or (cut.cost is None and cut.sparsity is None):
            return 0.5
        return cut.cost.share if cut.cost is not None else (1.0 - (cut.sparsity or 0.0)) ** 2

    def estimate_flops(self, pace: Any) -> float:
        """Return 0, because the number of examples is not known before the function runs."""
        return 0.0

    @property
    def stamp(self) -> str:  # type: ignore[override]
        """Text on the training that the network had."""
        kind, amount = self.arm.budget.kind, int(self.arm.budget.epochs(self.whole, 1.0))
        if self.is_published:
            weights = self.base.weights
            named = {"code": "those of its code", "published": "published weights"}
            return f"as it came: {named.get(weights or '', f'weights of {weights}')}"
        if kind == "none":
            return "no training after pruning"
        if self.prune is None and self.reference == self.base:
            return _counted(amount, self.unit)
        words = {
            "equal-epochs": f"equal {self.unit}",
            "equal-flops": "equal FLOPs",
            "pipeline": "FLOPs of the whole pipeline, the unpruned network's training counted",
        }
        text = words.get(kind) or _counted(amount, self.unit)
        if self.arm.budget.cap is not None:
            text += f", at most {self.arm.budget.cap:g}x"
        if self.arm.start != "inherited":
            return text
        return text + (
            f" after the unpruned network's {self.whole}"
            if self.parent is not None
            else " after the given weights"
        )

    def recounted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return its record with the score by the metric that is compared."""
        return {
            **record,
            self.scored_on.metric.key: self.scored_on.score(
                record["metrics"], record.get("not_finite", ())
            ),
        }

    def network(self, records: Records) -> tuple[nn.Module, Architecture]:
        """Rebuild the finished job's network with its weights."""
        architecture = self._architecture(records)
        network = architecture.build()
        network.load_state_dict(records.tensors(self))
        return network, architecture

    def _architecture(self, records: Records) -> Architecture:
        if self.prune is None:
            return self.base.architecture()
        cut = Architecture.from_json(records.record(self.prune)["architecture"])
        return replace(cut, model=self.base.origin)  # the path of its code may have changed

    def run(self, context: Context) -> Outcome:
        """Build the start, train it for its budget by the function, and record its metrics."""
        model, begun = self._start(context)
        cost = measure(model, self.base.example)
        ratio = flops_ratio(self.reference.cost(), cost, self.arm)
        allowance = Allowance(
            amount=int(self.arm.epochs(self.whole, ratio)),  # such studies have no `rounding`
            unit=self.unit,
            whole=self.whole,
            flops_per_sample=cost.training_flops(1) / self._batch,
            device=context.device,
            inherited=self.arm.start == "inherited",
        )

        def on_pass(share: float, samples: int) -> None:
            context.tick(share, f"{samples:,} examples so far")

        model = model.to(context.device).train()
        key = self.scored_on.metric.key
        spent = self.function(model, allowance, self.seed, metric=key, on_pass=on_pass)
        self.scored_on.score(spent.metrics)  # raises if the metrics are invalid
        if spent.not_finite:
            context.note(
                f"Metrics that are nan or infinite are left out: {', '.join(spent.not_finite)}."
            )
        seen = spent.samples if spent.samples or not allowance.amount else None
        if seen is None:
            context.note(
                "Its training examples could not be counted, because the function never calls the "
                "network itself in training mode; its training FLOPs are unknown."
            )
        if spent.unusable:
            context.note(f"{spent.unusable} Its score counts; its convergence is not known.")
        state = state_of(model)
        record = {
            "metrics": dict(spent.metrics),
            **({"not_finite": [*spent.not_finite]} if spent.not_finite else {}),
            "weights": digest_of(state),  # shows whether seeds differ
            **cost.to_json(),
            "epochs": allowance.amount if self.unit == "epochs" else None,
            "amount": allowance.amount,
            "capped": self.arm.budget.is_capped(ratio),
            "samples": seen,
            "passes": spent.passes,
            "training_flops": None if seen is None else seen * allowance.flops_per_sample,
            "shape": None if spent.shape is None else list(spent.shape),
            "input": list(self.base.inputs.inputs[0].shape[1:]),
            **({"history": [*spent.history]} if spent.history else {}),
            **({"unusable": spent.unusable} if spent.unusable else {}),
            **({"beside": beside} if (beside := self._beside(model, spent.names)) else {}),
            **({"drawn": list(begun.cut)} if begun.cut else {}),
            **({"unlike": [*begun.layered, *begun.read]} if begun.layered or begun.read else {}),
        }
        return Outcome(record, state)

    def _beside(self, model: nn.Module, handed: Sequence[str]) -> list[str]:
        """Return the names of inputs that it was trained with, but that were not given for it."""
        said = [item.name for item in self.base.inputs.inputs if item.name is not None]
        said = said or [*CallSignature.by(model).names[: len(self.base.inputs.inputs)]]
        return [name for name in handed if name not in said and not LABELS.search(name)]

    @property
    def _batch(self) -> int:
        """The number of examples in the input that costs are measured with."""
        return self.base.inputs.inputs[0].shape[0]

    def _start(self, context: Context) -> tuple[nn.Module, Start]:
        """Build the network that the arm starts from; return it with facts on a random start."""
        start, base = self.arm.start, self.base
        if self.prune is None:
            return base.given() if self.is_published else base.fresh(self.seed), Start()
        architecture = self._architecture(context)
        if start == "inherited":
            return self._inherited(context, architecture), Start()
        if start == "random":
            return started(base, architecture.cut, seed=self.seed)
        seed = self.seed if start == "initial" else derive(self.seed, "redrawn")
        return architecture.cut(base.fresh(seed)), Start()

    @property
    def _is_drawn_anew(self) -> bool:
        return self.prune is not None and self.arm.start == "random"

    def _inherited(self, context: Context, architecture: Architecture) -> nn.Module:
        assert self.prune is not None
        if held := context.tensors(self.prune):  # the weights of a folder
            small = architecture.build()
            small.load_state_dict(held)
            return small
        base = self.base
        return architecture.cut(
            base.given() if self.parent is None else self.parent.network_in(context)
        )

    def network_in(self, context: Context) -> nn.Module:
        """Rebuild this training's resulting network, for a job that depends on it."""
        return self.network(context)[0]


def _counted(amount: int, unit: str) -> str:
    """Format an amount with its unit: ``1 epoch``."""
    return f"{amount:,} {unit.removesuffix('s') if amount == 1 else unit}"
