"""The job that prunes: it chooses which units of a network are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from regrow.core.units import UNITS
from regrow.cost import measure
from regrow.errors import TraceError
from regrow.jobs.base import Context, Job, Keyed, Outcome, Records, state_of, without_none
from regrow.jobs.pace import Pace
from regrow.jobs.train import Train, counted, model_cost, trained_network
from regrow.models import ModelSpec, build
from regrow.pruning.costs import CostShare
from regrow.pruning.method import ALLOCATIONS, CRITERIA, REPAIRS, Method
from regrow.pruning.probe import Probe
from regrow.pruning.select import select
from regrow.pruning.stages import Pattern, pattern_of, stages_of
from regrow.pruning.targets import measure_cost
from regrow.store import MASKS, REPAIRED
from regrow.surgery import sensitivities
from regrow.surgery.architecture import Architecture, is_fixed, traced
from regrow.surgery.edit import Edit
from regrow.surgery.mask import Mask
from regrow.tasks import Head
from regrow.train.material import Material

if TYPE_CHECKING:
    from regrow.jobs.retrain import Retrain

HEAD_SECONDS = 3.0  # for tracing a ResNet and proving the cut


@dataclass(frozen=True, kw_only=True)
class Prune(Keyed):
    """Choose the units to keep of a trained network, or (``parent=None``) of an untrained one.

    A parent that was pruned before, and retrained under its mask, is pruned further; the sparsity
    is then a share of the remaining units. With ``guides`` (prunings of one network with different
    seeds), the share kept in each stage is their average; so the sparsity is that of the guides.

    With a head, only the backbone is pruned, by its weights; the result has the head too.
    """

    version: ClassVar[int] = 1

    data: Material
    model: ModelSpec
    method: Method
    seed: int
    parent: "Train | Retrain | None" = None
    sparsity: float | None = None
    shares: tuple[float, ...] | None = None
    cost: CostShare | None = None  # in place of a sparsity: the share of a cost that may remain
    guides: "tuple[Prune, ...]" = ()
    rounds: int = 1  # steps of pruning, before each of which the remaining network is scored again
    multiple_of: int = 1  # layers keep a multiple of so many channels, or all
    code: str | None = None  # digest of the method's files that are not part of this package
    label: str = "prune"

    @property
    def head(self) -> Head | None:
        """The head of the pruned network, if it has one."""
        return None if self.parent is None else self.parent.head

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The kind of work: ``prune``, or with a head such as ``prune-detector``."""
        return "prune" if self.head is None else f"prune-{self.head.noun}"

    @property
    def _earlier(self) -> "Prune | None":
        """The pruning that the parent was trained under, if any."""
        return None if self.parent is None else self.parent.pruning

    @property
    def pruning(self) -> "Prune":  # type: ignore[override]
        """The pruning of its resulting network: itself."""
        return self

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The training, if its weights matter, its earlier pruning, if any, and the guides."""
        earlier = () if self._earlier is None else (self._earlier,)
        return (*(() if self.parent is None else (self.parent,)), *earlier, *self.guides)

    @property
    def expected_kept(self) -> float:
        """The expected share of units that are kept over all prunings, by what was asked for."""
        if self.cost is not None:
            return float(self.cost.share ** (1.0 / UNITS.get(self.method.unit).exponent))
        share = 1.0 - (self.sparsity or _mean(self.shares or (0.0,)))
        earlier = 1.0 if self._earlier is None else self._earlier.expected_kept
        return share * earlier

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON."""
        method, without_head = self.method, self.head is None
        return without_none(
            # A criterion may use images. Networks with a head are pruned by their weights alone,
            # and the key of their training contains the model.
            data=self.data.content if without_head else None,
            model=self.model.identity() if without_head else None,
            criterion=CRITERIA.identity(method.criterion),
            allocation=ALLOCATIONS.identity(method.allocation) if self.shares is None else None,
            unit=method.unit if without_head else None,
            scope=list(method.scope),
            sparsity=self.sparsity,
            shares=None if self.shares is None else list(self.shares),
            cost=None if self.cost is None else self.cost.to_json(),
            guides=len(self.guides) or None,
            rounds=self.rounds if self.rounds > 1 else None,
            multiple_of=self.multiple_of if self.multiple_of > 1 else None,
            multiples=2 if self.multiple_of > 1 else None,  # 2: at least one multiple stays
            normalise=method.normalise,
            repair=method.repair,
            choice=method.choice,
            seed=self.seed,
            code=self.code,
            counter=counter_version(self.model, self.data.shape, method) if without_head else None,
        )

    @property
    def flops(self) -> float:
        """0, because nothing is trained."""
        return 0.0

    def estimate(self, pace: Pace) -> float:
        """Return the seconds of choosing and cutting units, and of proving the cut."""
        return HEAD_SECONDS if self.head is not None else pace.pruning(self.model, self.data)

    def run(self, context: Context) -> Outcome:
        """Score, allocate, measure the smaller network, and repair its weights if asked to."""
        within, masks = None, {}
        if self.head is not None:
            return self._run_with_head(context, self.head)
        if self.parent is None:
            model = build(self.model, seed=self.seed)
        else:
            model = trained_network(self.model, context, self.parent)
            masks = context.tensors(self.parent, MASKS)
        if self._earlier is not None:
            within = edit_of(context, self._earlier).mask
        if masks and self._earlier is not None:  # the masks changed during retraining
            within = Mask(unit="weight", kept=masks)
        trace = traced(model, self.model, self.data.shape)
        dataset = context.dataset(self.data.spec)
        pattern = _pattern(context, self.guides) if self.guides else None
        costs: dict[str, Any] = {} if self.cost is None else self.cost.to_json()
        mask = select(
            model,
            trace,
            self.method,
            sparsity=None if self.guides else self.sparsity,
            shares=self.shares,
            pattern=pattern,
            dataset=dataset,
            seed=self.seed,
            within=within,
            masks=masks,
            rounds=self.rounds,
            multiple_of=self.multiple_of,
            device=context.device,
            **costs,
        )
        edit = Edit(model=self.model, shape=self.data.shape, mask=mask)
        groups = tuple(mask.kept)
        sensitivity = partial(_sensitivity_of, self.model, self.data.shape, mask.unit, groups)
        edit.prove(model, trace, sensitivity=sensitivity)
        small = edit.cut(model, trace)
        before = model_cost(self.model, self.data.shape)
        after = measure(small, trace.example, mask)
        if self.method.repair is not None:
            probe = Probe(model, dataset, seed=self.seed)
            REPAIRS.get(self.method.repair)(small, mask, trace, probe)
            edit = replace(edit, repaired=state_of(small))
        if after.caveats:
            context.note(f"Its costs and budgets leave out: {'; '.join(after.caveats)}.")
        record = {**edit.record(), "before": before.to_json(), "after": after.to_json()}
        if pattern is not None:
            record["pattern"] = pattern.to_json()
        if self.cost is not None:
            measured = measure_cost(self.cost, model, trace, mask=mask, device=context.device)
            record["cost"] = {"share": measured.share, **measured.how}
        return Outcome(record, mask.kept, {REPAIRED: edit.repaired})

    def _run_with_head(self, context: Context, head: Head) -> Outcome:
        """Score and cut the backbone's filters, as trained under the head, and keep the head."""
        assert self.parent is not None
        record, trained = context.record(self.parent), context.tensors(self.parent)
        architecture = Architecture.from_json(record["architecture"])
        shape = architecture.shape
        assert isinstance(shape, tuple)  # of images
        net = architecture.build()
        # The classifier's own head is not part of this network, and its weights do not matter here.
        net.load_state_dict({**net.state_dict(), **head.backbone(trained)})
        trace = traced(net, self.model, shape)
        mask = select(
            net,
            trace,
            self.method,
            sparsity=self.sparsity,
            shares=self.shares,
            seed=self.seed,
            multiple_of=self.multiple_of,
        )
        edit = Edit(model=self.model, shape=shape, mask=mask)
        edit.prove(net, trace, sensitivity=lambda: None)
        images = {name: record[name] for name in ("mean", "std")}
        model = head.around(
            edit.cut(net, trace),
            num_classes=self.data.classes,
            mean=tuple(record["mean"]),
            std=tuple(record["std"]),
            trained=trained,
        )
        before = {name: record[name] for name in ("parameters", "macs", "flops")}
        after = head.cost(model).to_json()
        return Outcome(
            {**edit.record(), "before": before, "after": after, **images}, state_of(model)
        )


def structure_only(method: Method) -> Method:
    """Return the method that keeps the first units of each layer, independent of the weights."""
    return replace(method, criterion="first", trained=False, repair=None, choice=None)


def edit_of(records: Records, prune: Prune) -> Edit:
    """Return the ``Edit`` of a finished pruning."""
    return Edit.read(
        records.record(prune),
        records.tensors(prune),
        repaired=records.tensors(prune, REPAIRED),
        model=prune.model,
        shape=prune.data.shape,
    )


def _pattern(context: Context, guides: tuple[Prune, ...]) -> Pattern:
    """Average the shares that prunings of one network kept in each of its stages."""
    model = build(guides[0].model.untrained())
    trace = traced(model, guides[0].model, guides[0].data.shape)
    return pattern_of([edit_of(context, guide).mask for guide in guides], stages_of(model, trace))


@cache
def _sensitivity_of(
    model: ModelSpec, shape: tuple[int, ...], unit: str, groups: tuple[str, ...]
) -> Mapping[str, float] | None:
    """Measure how much groups of an uncut network affect its output; cached.

    None if the structure may depend on the weights: then it is measured on the network at hand.
    """
    if not is_fixed(model):
        return None
    net = build(model.untrained())
    return sensitivities(net, traced(net, model, shape), groups, unit=unit)


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


@cache
def _has_views(model: ModelSpec, shape: tuple[int, ...]) -> bool:
    try:
        return bool(traced(build(model.untrained()), model, shape).views)
    except TraceError:  # the pruning itself will raise it
        return False


def counter_version(model: ModelSpec, shape: tuple[int, ...], method: Method) -> int | None:
    """Return 2 if costs differ from those of the first version of the counter, else None.

    So keys stay the same for results whose costs, and budgets of equal FLOPs, have not changed.
    If views are cut, the norm after a selection is counted at the width that is selected from.
    """
    network = counted(model, shape)
    unit = UNITS.get(method.unit)
    same = network.as_first and (network.own_weights or not unit.masked)
    if same and unit.narrows and "view" in method.scope:
        same = not _has_views(model, shape)
    return None if same else 2
