"""The runs of a study, read from a store: each cell's record, and its total cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from regrow.core.units import UNITS
from regrow.errors import Damaged
from regrow.jobs.base import Job, all_jobs
from regrow.report.render import Extra, Failure
from regrow.report.rows import Ending, Run
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.study import KINDS, AnyStudy, Study
from regrow.tasks.metric import Metric

SAME_SPARSITY = 0.0005  # less than what a report shows


def collect(study: Study, store: Store) -> tuple[list[Run], list[Failure]]:
    """Read the records of a study's cells, in its order, with what is missing and what failed."""
    reader = Reader(store)
    cells = study.cells()
    return [reader.run(cell) for cell in cells], reader.failures(cells)


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study in a store, as a report takes them."""

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    extras: tuple[Extra, ...] = ()


def results_of(study: AnyStudy, store: Store) -> Results:
    """Read the results of a study of any kind."""
    if not isinstance(study, Study):
        results: Results = KINDS.get(study.kind).results(study, store)
        return results
    runs, failures = collect(study, store)
    return Results(runs=tuple(runs), failures=tuple(failures))


def _scored(record: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Return a record's score and its standard error, as reports show them."""
    error = record.get(metric.error_key)
    return {
        "score": metric.reported(record[metric.key]),
        "error": None if error is None else metric.reported(error),
    }


def _ending(job: Job, record: Mapping[str, Any]) -> Ending | None:
    """Return how a training ended, as far as its loss compares with that of other networks.

    One that descended another objective than its parent does not; a fall is worth so many answers
    only where the loss is the plain cross-entropy.
    """
    if job.loss_of == "arm":
        return None
    ending = Ending.of(record.get("history", []))
    if ending is None or job.loss_of == "task":
        return ending
    return replace(ending, fall=None)


def below(job: Job) -> tuple[Job, ...]:
    """Return all that a job stands on, each once."""
    return tuple(all_jobs(job.inputs).values())


class Reader:
    """Read each record once, however many rows stand on it; ``metric`` says what of it counts.

    A damaged record counts as missing, and so do the rows that stand on it.
    """

    def __init__(self, store: Store, metric: Metric | None = None) -> None:
        self._store = store
        self._metric = metric
        self._snapshot = store.snapshot()
        self._records: dict[str, dict[str, Any]] = {}
        self._damaged: dict[str, str] = {}

    def record(self, job: Job) -> dict[str, Any]:
        """Return what a finished job found."""
        if job.key not in self._records:
            self._records[job.key] = job.recounted(self._store.record(job.key, spec=job.spec))
        return self._records[job.key]

    def has(self, job: Job) -> bool:
        """Tell whether a job is done, and its record what was stored."""
        if job.key not in self._snapshot.done or job.key in self._damaged:
            return False
        try:
            self.record(job)
        except Damaged as error:
            self._damaged[job.key] = str(error)
            return False
        return True

    def failure(self, job: Job) -> str | None:
        """Return why a job failed, if it did."""
        if job.key not in self._snapshot.failed or job.key in self._damaged:
            return None
        try:
            failure = self._store.failure(job.key)
        except Damaged as error:
            self._damaged[job.key] = str(error)
            return None
        return None if failure is None else str(failure["message"])

    def failures(self, cells: Iterable[Cell]) -> list[Failure]:
        """Return what failed, or is damaged, of all that cells stand on."""
        failures: dict[str, Failure] = {}
        for cell in cells:
            for job in (*below(cell.job), cell.job):
                problem = None if self.has(job) else self.failure(job)
                problem = self._damaged.get(job.key, problem)
                if problem is not None:
                    failures[job.key] = Failure(label=job.label, message=problem)
        return list(failures.values())

    def run(self, cell: Cell) -> Run:
        """Return what is known of a cell."""
        experiment, use, cut, arm, job = cell.experiment, cell.use, cell.cut, cell.arm, cell.job
        data = job.scored_on
        metric = self._metric_of(job)
        published = any(stage.is_published for stage in (job, *below(job)))
        common: dict[str, Any] = {
            "data": experiment.data_label,
            "model": experiment.model_label,
            "arm": arm.name,
            "seed": cell.seed,
            "method": use.label if use else "",
            "sparsity": cut.sparsity if cut else None,
            "target": cut.target if cut else None,
            "unit": use.method.unit if use else "",
            "start": arm.start,
            "budget": arm.budget.kind,
            "amount": arm.budget.amount,
            "schedule": arm.schedule,
            "cap": arm.budget.cap,
            "objective": arm.objective.name if arm.objective is not None else "",
            "treatment": "" if job.treated is None else job.treated.text,
            "base_epochs": 0 if published else experiment.recipe.epochs,
            "metric": metric,
            "num_test": None if data is None else data.num_test,
            "chance": None if data is None else data.chance,
        }
        stages = (job, *below(job))
        if not all(self.has(stage) for stage in stages):
            failed = any(self.failure(stage) is not None for stage in stages)
            return Run(**common, status="failed" if failed else "missing")
        record = self.record(job)
        records = [self.record(stage) for stage in stages]
        costs = [stage for stage in records if "training_flops" in stage]
        return Run(
            **common,
            status="done",
            **_scored(record, metric),
            loss=record.get("loss"),
            parameters=record["parameters"],
            macs=record["macs"],
            epochs=record["epochs"],
            samples=sum(cost["samples"] for cost in costs),
            training_flops=sum(cost["training_flops"] for cost in costs),
            emptied=self._emptied(job),
            capped=record.get("capped", False),
            ending=_ending(job, record),
            teacher_flops=record.get("teacher_flops"),
            masked_at_end=self._masked_at_end(job),
            **self._parent(job),
            **self._cost(job),
        )

    def _masked_at_end(self, job: Job) -> float | None:
        """Return the share of weights that a retraining left masked, if it changed that."""
        ended = self.record(job).get("sparsity")
        if ended is None or job.pruning is None:
            return None
        started = self.record(job.pruning)["sparsity"]
        of_weights = UNITS.get(job.pruning.method.unit).unstructured
        return None if of_weights and abs(ended - started) < SAME_SPARSITY else float(ended)

    def _cost(self, job: Job) -> dict[str, Any]:
        """Return what is left of a cost, where a share of one was asked for."""
        prune = job.pruning
        if prune is None or prune.cost is None:
            return {}
        cost = self.record(prune)["cost"]
        conditions = ("device", "threads", "batch")
        words = "{device}, {threads} thread(s), batch {batch}" if conditions[0] in cost else ""
        return {
            "cost_asked": prune.cost.share,
            "cost_left": cost["share"],
            "cost_machine": words.format(**{name: cost.get(name) for name in conditions}),
        }

    def _metric_of(self, job: Job) -> Metric:
        data = job.scored_on
        metric = self._metric if data is None else data.metric
        assert metric is not None, f"{job.label} is scored by an unknown metric"
        return metric

    def _parent(self, job: Job) -> dict[str, Any]:
        """Return what is known of the trained network that was pruned at first, if one was."""
        parent: Job | None = job
        while parent is not None and parent.pruning is not None:  # at last, that of the first round
            parent = parent.pruning.parent
        if parent is None or parent is job:
            return {}
        record = self.record(parent)
        ending = _ending(parent, record) if parent.treated is None else None
        scored = _scored(record, self._metric_of(parent))
        return {f"parent_{name}": value for name, value in scored.items()} | {
            "parent_ending": ending
        }

    def _emptied(self, job: Job) -> int:
        """Count layers that only the guard kept alive, but not those of networks it follows."""
        jobs = (job, *below(job))
        guides = {guide.key for stage in jobs for guide in stage.guides}
        records = [self.record(stage) for stage in jobs if stage.key not in guides]
        return sum(len(record["guarded"]) for record in records if "guarded" in record)
