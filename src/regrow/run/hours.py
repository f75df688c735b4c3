"""Choose the largest training budget that fits into a number of hours on this machine.

A budget is a number of epochs of a study's longest recipe; all other numbers of epochs are scaled
by the same factor. Times are estimated by ``run.estimate``, from networks that are timed here.

A network is left out, with all its rows, if it would probably not end clearly above chance: if its
training has fewer updates than ``least_steps`` or ``moving_steps`` require (at most half of its
full recipe's updates, because a short recipe is made for a network that learns faster). If several
networks are short of updates, the costliest is left out first, because the others can then train
for longer.

Job keys depend on the epochs, so a store keeps what was chosen when a command was first run: the
same command then finds the same jobs, on another day or another machine.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache
from statistics import median
from typing import Any, TypeGuard

from regrow.core.durations import epochs_in_words, in_words
from regrow.core.machine import machine
from regrow.core.validation import is_int, is_number
from regrow.data import load
from regrow.errors import ConfigError, StoreError
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import build
from regrow.run.estimate import Rates, estimate, measuring
from regrow.run.executors import one_thread
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.experiment import Experiment
from regrow.train import Training
from regrow.train.material import Setting
from regrow.train.optimiser import SGD

# Number of updates after which every tried network with normalisation layers was at twice chance or
# better, for ten classes; at 200 some were at chance, and without normalisation some even at 1,600.
# More classes are assumed to need proportionally more. See docs/reproduce.md and
# benchmarks/least_steps.py.
LEAST_STEPS = 400
CLASSES = 10
# How far weights must move, relative to their norm, for a network to learn; see the same places.
LEAST_WAY = 0.1

Network = tuple[str, ...]  # labels of its data, model, and budget if there are several
CellsAt = Callable[[int], Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A network whose rows are not trained, and the reason."""

    network: Network
    why: str

    def __str__(self) -> str:
        return f"{words_of(self.network)} is left out: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The budget that was chosen for a number of hours, and the networks that it leaves out."""

    hours: float
    epochs: int
    of: int  # epochs of the longest recipe
    seconds: float  # expected
    workers: int
    left_out: tuple[LeftOut, ...]
    machine: str
    date: str
    axis: tuple[int, ...] = ()  # the study's own budgets, if it has several

    @property
    def share(self) -> float:
        """The budget as a share of the recipes' epochs."""
        return self.epochs / self.of

    @property
    def without(self) -> frozenset[Network]:
        """The networks that are left out."""
        return frozenset(left.network for left in self.left_out)

    @classmethod
    def from_json(cls, value: Any) -> "Fit":
        """Read the decision that a store keeps."""
        names = sorted(cls.__dataclass_fields__)
        if not isinstance(value, dict) or sorted(value) != names or not _is_fit(value):
            raise StoreError(
                f"The store's decision on --hours must have valid {', '.join(names)}. Remove its "
                "hours-*.json, and they are chosen again."
            )
        left_out = tuple(
            LeftOut(network=tuple(left["network"]), why=left["why"]) for left in value["left_out"]
        )
        return cls(**{**value, "left_out": left_out, "axis": tuple(value["axis"])})

    def __str__(self) -> str:
        time = f"{in_words(self.seconds)} with {_in_number(self.workers)}"
        expected = f"{time} expected on {self.date}"
        if self.epochs == self.of:
            return (
                f"The recipes' own epochs (the longest asked for has {self.of}) fit into "
                f"{_hours(self.hours)}: {expected}."
            )
        if self.axis:
            longer = [str(budget) for budget in self.axis if budget > self.epochs]
            largest = epochs_in_words(self.epochs)
            return (
                f"Budgets up to {largest} fit into {_hours(self.hours)}: {expected}. "
                f"Left out: {', '.join(longer)} epochs."
            )
        return (
            f"Budget: {self.epochs} of {self.of} epochs, {100 * self.share:.3g} % of the recipes' "
            f"own, the largest that fits into {_hours(self.hours)}: {expected}."
        )

    @property
    def words(self) -> tuple[str, ...]:
        """Sentences on the budget and on each network that is left out."""
        return (str(self), *(f"{left}." for left in self.left_out))


def _in_number(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:g} hour{'' if hours == 1 else 's'}"


def _is_fit(value: Mapping[str, Any]) -> bool:
    """Return whether all fields have the right types and ranges."""
    left_out, axis = value["left_out"], value["axis"]
    return (
        all(is_int(value[name], least=1) for name in ("epochs", "of", "workers"))
        and all(
            is_number(value[name]) and abs(value[name]) < 1e300 for name in ("hours", "seconds")
        )
        and all(isinstance(value[name], str) for name in ("machine", "date"))
        and isinstance(axis, list)
        and all(is_int(budget, least=1) for budget in axis)
        and isinstance(left_out, list)
        and all(isinstance(left, dict) and left.keys() == {"network", "why"} for left in left_out)
        and all(isinstance(left["why"], str) for left in left_out)
        and all(isinstance(left["network"], list) for left in left_out)
        and all(isinstance(name, str) for left in left_out for name in left["network"])
    )


def check_hours(hours: float, *, device: str = "cpu") -> None:
    """Raise ``ConfigError`` for invalid hours, and for devices whose speed is not measured."""
    if not (math.isfinite(hours) and hours > 0):
        raise ConfigError(f"--hours must be a finite number above 0. Got {hours!r}.")
    if device != "cpu":
        raise ConfigError(
            f"--hours is estimated for this machine's processor, and the device is {device!r}. "
            "Leave one of the two out."
        )


def chosen(
    store: Store | None, name: str, choose: Callable[[], Fit] | None, *, hours: float, of: int
) -> Fit:
    """Return the budget that a store keeps under a name, or else the result of ``choose``.

    Raises ``ConfigError`` if there is neither, and ``StoreError`` if the kept one is for recipes of
    another length.
    """
    kept = None if store is None else store.decided(name)
    if kept is None:
        if choose is None:
            raise ConfigError(
                f"No budget for {_hours(hours)} has been chosen in this store. The command that "
                "trains chooses it: run it first, with the same options."
            )
        return choose()
    fit = Fit.from_json(kept)
    if fit.of != of:
        raise StoreError(
            f"The budget for {_hours(hours)} was chosen for recipes of {fit.of} epochs, and now "
            f"they have {of}. Remove {name}.json from the store, and it is chosen again."
        )
    return fit


def keep(store: Store, name: str, fit: Fit) -> None:
    """Store a budget for later commands; raise ``StoreError`` if another one was just stored."""
    kept = Fit.from_json(store.decide(name, json.loads(json.dumps(asdict(fit)))))
    if (kept.epochs, kept.without) != (fit.epochs, fit.without):
        raise StoreError(
            f"Another command has just chosen {kept.epochs} epochs for {_hours(kept.hours)} in "
            "this store. Run the same command again."
        )


def name_of(*parts: Any) -> str:
    """Return the name of a command's decision in a store, derived from what was asked for."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"hours-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def fit(
    cells_at: CellsAt, *, epochs: int, hours: float, workers: int, axis: Sequence[int] = ()
) -> Fit:
    """Choose the largest budget whose rows are expected to end within so many hours.

    ``cells_at`` expands the rows for a budget, a number of epochs of the longest recipe, which has
    ``epochs``; if a study has several budgets (``axis``), those of all budgets up to it. Raises
    ``ConfigError``, with the time that the cheapest network needs, if none fits.
    """
    with measuring(workers) as rates:
        search = _Search(cells_at, rates, workers, axis or range(1, epochs + 1))
        kept, left_out = search.networks(epochs), list[LeftOut]()
        while True:
            budget = search.largest(kept, seconds=3600 * hours)
            # Budgets named in a study are its author's choice, so they are never too short.
            short = {n for n in kept if not budget or (not axis and search.is_short(budget, n))}
            if not short:
                break
            last, costliest = kept, max(short, key=lambda n: search.seconds(epochs, {n}))
            kept = kept - {costliest}
            left_out.append(search.left_out(costliest, budget, hours=hours))
            if not kept:
                raise ConfigError(search.too_short(last, hours=hours))
        seconds = search.seconds(budget, kept)
    return Fit(
        hours=hours,
        epochs=budget,
        of=epochs,
        seconds=round(seconds, 1),
        workers=workers,
        left_out=tuple(left_out),
        machine=machine(),
        date=date.today().isoformat(),
        axis=tuple(axis),
    )


@dataclass
class _Search:
    """The times that budgets take; each is expanded only once."""

    cells_at: CellsAt
    rates: Rates
    workers: int
    budgets: Sequence[int]  # ascending
    _cells: dict[int, Sequence[Cell]] = field(default_factory=dict)

    def cells(self, budget: int) -> Sequence[Cell]:
        if budget not in self._cells:
            self._cells[budget] = self.cells_at(budget)
        return self._cells[budget]

    def networks(self, budget: int) -> frozenset[Network]:
        return frozenset(network_of(cell.experiment) for cell in self.cells(budget))

    def jobs(self, budget: int, networks: "frozenset[Network] | set[Network]") -> list[Job]:
        return [cell.job for cell in self.cells(budget) if network_of(cell.experiment) in networks]

    def seconds(self, budget: int, networks: "frozenset[Network] | set[Network]") -> float:
        jobs = self.jobs(budget, networks)
        return estimate(jobs, (), workers=self.workers, rates=self.rates).seconds

    def largest(self, networks: frozenset[Network], *, seconds: float) -> int:
        """Return the largest budget that fits; 0 if none does."""
        num = bisect_right(self.budgets, seconds, key=lambda b: self.seconds(b, networks))
        return self.budgets[num - 1] if num else 0

    def trainings(self, budget: int, network: Network) -> list[Train | Retrain]:
        """Return the trainings of a network's rows, without heads and published networks."""
        jobs = all_jobs(self.jobs(budget, {network})).values()
        trained = (job for job in jobs if isinstance(job, Train | Retrain))
        return [job for job in trained if job.head is None and not job.is_published]

    def is_short(self, budget: int, network: Network) -> bool:
        least = self.least(network)
        return any(steps_of(job) < least for job in self.trainings(budget, network))

    def least(self, network: Network) -> int:
        """Return the updates that a network needs: at most half of those of its full recipe."""
        whole = self.trainings(self.budgets[-1], network)
        needed = (
            min(max(least_steps(job), moving_steps(job)), -(-steps_of(job) // 2)) for job in whole
        )
        return min(needed, default=0)

    def left_out(self, network: Network, budget: int, *, hours: float) -> LeftOut:
        if budget:
            steps = min(map(steps_of, self.trainings(budget, network)))
            why = (
                f"with it {epochs_in_words(budget)} would fit into {_hours(hours)}, {steps:,} "
                f"updates, and it needs {self.least(network):,} to end clearly above chance"
            )
        else:
            least = epochs_in_words(self.budgets[0])
            why = f"with it not even {least} would fit into {_hours(hours)}"
        return LeftOut(network=network, why=why)

    def too_short(self, networks: frozenset[Network], *, hours: float) -> str:
        """Return the message that not even the last network fits, with the time that it needs."""
        (network,) = networks
        enough = (budget for budget in self.budgets if not self.is_short(budget, network))
        least = next(enough, self.budgets[-1])
        return (
            f"No network can end clearly above chance within {_hours(hours)}: the cheapest "
            f"network, {words_of(network)}, needs {epochs_in_words(least)}, about "
            f"{in_words(self.seconds(least, {network}))} with {_in_number(self.workers)}. Give "
            "it more hours, or use fewer rows, seeds or images."
        )


def network_of(experiment: Experiment) -> Network:
    """Return the labels of an experiment's data, network and budget."""
    return experiment.data_label, experiment.model_label, epochs_in_words(experiment.budget)


def words_of(network: Network) -> str:
    """Return a network's name for messages.

    >>> words_of(("digits", "VGG-16", "")), words_of(("digits", "VGG-16", "8 epochs"))
    ('VGG-16 on digits', 'VGG-16 on digits for 8 epochs')
    """
    data, model, budget = network
    return f"{model} on {data}" + (f" for {budget}" if budget else "")


def steps_of(job: Train | Retrain) -> int:
    """Return the number of updates of a job's recipe; an arm may train for more or fewer."""
    return job.recipe.num_steps(-(-job.data.num_train // job.recipe.batch))


def least_steps(job: Train | Retrain) -> int:
    """Return the fewest updates after which a training ends clearly above chance.

    Above ten classes, they increase in proportion to the number of classes.
    """
    return math.ceil(LEAST_STEPS * max(1.0, job.data.classes / CLASSES))


def moving_steps(job: Train | Retrain) -> int:
    """Return the fewest updates in which the weights of a network can move by ``LEAST_WAY``.

    With momentum, each gradient moves weights by lr / (1 - momentum) in total. The gradient is that
    of the first update: in deep networks without normalisation layers it is so small that weights
    barely move for thousands of updates. Returns 0 if nothing is known, as for optimisers that
    normalise gradients.
    """
    recipe = job.recipe
    if recipe.optimiser is not None and recipe.optimiser.name != SGD.name:
        return 0
    gradient = first_gradient(Setting.of(job.model, job.data, recipe))
    way = recipe.lr * gradient / (1 - recipe.momentum)  # per update
    return math.ceil(LEAST_WAY / way) if way else 0


@cache
def first_gradient(setting: Setting) -> float:
    """Return the norm of the first gradient over that of the weight, as the median over layers."""
    network = build(setting.model.untrained(), seed=0)
    sizes = {n: float(p.detach().norm()) for n, p in network.named_parameters() if p.dim() > 1}
    recipe = replace(setting.recipe, clip=None)
    with one_thread():
        Training(network, load(setting.data.spec), recipe, seed=0).step()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    known = [
        float(gradients[name].norm()) / size
        for name, size in sizes.items()
        if size and name in gradients
    ]
    return median(known) if known else 0.0


# Costs of rows --------------------


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """The cost of a row over its seeds: epochs of a training, time with all workers busy, FLOPs.

    Jobs that several rows depend on are counted for the first of them.
    """

    label: str
    epochs: float | None
    seconds: float
    training_flops: float


@dataclass(frozen=True, kw_only=True)
class BudgetCost:
    """The cost of all rows at one training budget, as in ``RowCost``."""

    budget: int
    jobs: int
    updates: tuple[int, ...]  # different numbers of updates of the unpruned networks, ascending
    seconds: float
    training_flops: float


def row_costs(cells: Sequence[Cell], rates: Rates, *, workers: int) -> list[RowCost]:
    """Return the cost of each row of a table, as if no job were done."""
    by_row: dict[str, list[Cell]] = {}
    for cell in cells:
        label = " / ".join(str(part) for part in cell.place[:-1] if part)
        by_row.setdefault(label, []).append(cell)
    seen: set[str] = set()
    costs = []
    for label, row in by_row.items():
        fresh = _fresh(row, seen)
        cost = RowCost(
            label=label,
            epochs=row[0].job.estimate_epochs(rates),
            seconds=sum(map(rates.of, fresh)) / workers,
            training_flops=sum(job.estimate_flops(rates) for job in fresh),
        )
        costs.append(cost)
    return costs


def budget_costs(cells: Sequence[Cell], rates: Rates, *, workers: int) -> list[BudgetCost]:
    """Return the cost of each training budget of a study, as if no job were done."""
    by_budget: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.experiment.budget is not None:
            by_budget.setdefault(cell.experiment.budget, []).append(cell)
    seen: set[str] = set()
    costs = []
    for budget, row in sorted(by_budget.items()):
        fresh = _fresh(row, seen)
        cost = BudgetCost(
            budget=budget,
            jobs=len(fresh),
            updates=tuple(sorted({steps_of(job) for job in fresh if _is_parent(job)})),
            seconds=sum(map(rates.of, fresh)) / workers,
            training_flops=sum(job.estimate_flops(rates) for job in fresh),
        )
        costs.append(cost)
    return costs


def _fresh(row: Sequence[Cell], seen: set[str]) -> list[Job]:
    """Return the jobs of cells, with dependencies, that are not in ``seen``, and add them to it."""
    nodes = all_jobs(cell.job for cell in row)
    fresh = [job for key, job in nodes.items() if key not in seen]
    seen |= nodes.keys()
    return fresh


def _is_parent(job: Job) -> TypeGuard[Train]:
    return isinstance(job, Train) and job.head is None and job.initial is None
