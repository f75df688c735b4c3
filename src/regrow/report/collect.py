"""The runs of a study, read from a store: each cell's record, and its total cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regrow.core.durations import epochs_in_words
from regrow.core.record_shapes import unmeant
from regrow.core.texts import quoted
from regrow.core.units import UNITS
from regrow.errors import Damaged
from regrow.jobs.arms import Arm
from regrow.jobs.base import Job, all_jobs, notices
from regrow.jobs.retrain import Retrain, recipe_of
from regrow.report.extras import details_table
from regrow.report.render import Extra, Failure
from regrow.report.rows import Ending, Run, Status, fairness
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.tasks import TASKS, Details, Metric, Task
from regrow.train.by_epoch import rates_in_words
from regrow.train.material import Material, ScoredOn

SAME_SPARSITY = 0.0005  # below the precision of reports
BENEATH = "classifier"  # the network that another is built on


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study in a store, as the input of a report; one run per cell.

    ``reader`` has the records behind them.
    """

    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    reader: "Reader" = field(repr=False, compare=False)
    extras: tuple[Extra, ...] = ()
    notes: tuple[str, ...] = ()  # limits that the runs do not show


def collect(study: Study, store: Store) -> tuple[list[Run], list[Failure]]:
    """Return a study's runs in the order of its cells, missing ones included, and its failures."""
    results = results_of(study, store)
    return [*results.runs], [*results.failures]


def results_of(study: Study, store: Store) -> Results:
    """Read the results of a study: runs, failures, notes, and scores other than the metric."""
    reader, cells = Reader(store), study.cells()
    runs = tuple(reader.run(cell) for cell in cells)
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell, run in zip(cells, runs, strict=True):
        task = reader.task(cell.job)
        if task is not None and task.details is not None:
            rows.setdefault(task.name, []).append(reader.details(cell, run, task.details))
    extras = [
        details_table(details, table_rows, last=BENEATH)
        for name, table_rows in rows.items()
        if (details := TASKS.get(name).details) is not None
    ]
    notes = [*study.notes, *notices(cell.job for cell in cells), *_other_starts(reader, cells)]
    if study.own:
        from regrow.report.own_runs import spending_notes

        notes += spending_notes(reader, cells, runs)
    return Results(
        cells=tuple(cells),
        runs=runs,
        failures=tuple(reader.failures(cells)),
        reader=reader,
        extras=tuple(extras),
        notes=tuple(notes),
    )


def _other_starts(reader: "Reader", cells: Sequence[Cell]) -> Iterator[str]:
    """Name weights that a random start may initialise unlike the network's own code."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        names = reader.record(cell.job).get("unlike", ()) if reader.has(cell.job) else ()
        if names:
            found.setdefault(cell.experiment.model_label, {}).update(dict.fromkeys(names))
    for label, names in found.items():
        yield (
            f"{label}: it is not known how the network's own code initialises "
            f"{quoted([*names])}, because it gives them the same values for each seed (it loads "
            "them, sets a seed itself, or ran earlier). In training from scratch they are "
            "initialised by their layer's default, with another spread, or not at all; this may "
            "cause a difference. Name code that builds the network untrained, or give the network "
            "a method 'initialise_()' that draws all its parameters."
        )


def _unmeant(record: Mapping[str, Any], job: Job) -> str | None:
    """Return what is wrong with a record that no job would write; None if nothing is."""
    scored = job.scored_on
    if scored is None:
        return unmeant(record)
    metric = scored.metric
    return unmeant(record, scores=(metric.key, metric.error_key), own=scored.task is None)


def _scored(record: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Return a record's score and its standard error, as reports show them."""
    error = record.get(metric.error_key)
    return {
        "score": metric.reported(record[metric.key]),
        "error": None if error is None else metric.reported(error),
    }


def _value_of(arm: Arm) -> dict[str, Any]:
    """Return the fields of a run that describe its arm."""
    return {
        "start": arm.start,
        "budget": arm.budget.kind,
        "amount": arm.budget.amount,
        "schedule": arm.schedule,
        "trial_of": arm.trial_of or "",
        "cap": arm.budget.cap,
        "entered": arm.first_epoch,
    }


def _followed(cell: Cell, *, published: bool) -> dict[str, Any]:
    """Return the fields of a run on the training that equal budgets follow."""
    model, epochs = cell.experiment.model, cell.experiment.recipe.epochs
    before = (model.checkpoint.epochs or 0) if model.checkpoint is not None else 0
    data = None if cell.under is not None else cell.job.scored_on  # a head has its own words
    is_given = isinstance(data, Material) and data.model(model).is_published
    is_equal = not is_given or before == epochs
    return {
        "base_epochs": before if published else epochs,
        "recipe_epochs": None if is_equal else epochs,
        "parent_counted": is_equal and cell.arm.budget.kind == "pipeline",
    }


def _validation(record: Mapping[str, Any], metric: Metric) -> float | None:
    """Return the score on the validation split, as reports show it; None without one."""
    held_out = record.get("validation")
    return None if held_out is None else metric.reported(held_out[metric.key])


def _ending(job: Job, record: Mapping[str, Any]) -> Ending | None:
    """Return how a training ended, as far as its loss is comparable with that of other networks.

    None if the arm has its own objective. Without ``fall`` if the recipe changes the task's loss,
    because what a fall is worth in score (``Metric.per_loss``) is known for the plain loss only.
    """
    if job.loss_of == "arm":
        return None
    ending = Ending.of(record.get("history", []))
    if ending is None or job.loss_of == "task":
        return ending
    return replace(ending, fall=None)


def _pace(record: Mapping[str, Any]) -> float | None:
    """Return how many examples a training saw per unit of its budget; None if unknown."""
    amount, samples = record.get("amount"), record.get("samples")
    return samples / amount if amount and samples else None


def _total(values: Iterable[float | None]) -> Any:
    """Return the sum of values of several trainings; None if one of them is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def below(job: Job) -> tuple[Job, ...]:
    """Return all jobs that a job depends on, each once."""
    return tuple(all_jobs(job.inputs).values())


def _goes_on(cell: Cell) -> bool:
    """Return whether a network built on another was itself pruned and then trained further."""
    under = cell.under
    return under is not None and under.job.key not in {job.key for job in cell.job.inputs}


class Reader:
    """Reads each record once, however many rows depend on it.

    A damaged record counts as missing, and so do the rows that depend on it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._snapshot = store.snapshot()
        self._records: dict[str, dict[str, Any]] = {}
        self._damaged: dict[str, str] = {}
        self._stages: dict[str, tuple[Job, ...]] = {}

    def stages(self, job: Job) -> tuple[Job, ...]:
        """Return a job and all jobs that it depends on, each once."""
        if job.key not in self._stages:
            self._stages[job.key] = (job, *below(job))
        return self._stages[job.key]

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of a finished job."""
        if job.key not in self._records:
            record = self.store.record(job.key, spec=job.spec)
            if (problem := _unmeant(record, job)) is not None:
                file = self.store.record_file(job.key)
                raise Damaged(f"{file} is damaged: {problem}. Move it out of the store.")
            self._records[job.key] = job.recounted(record)
        return self._records[job.key]

    def has(self, job: Job) -> bool:
        """Return whether a job is done and its record is undamaged."""
        if job.key in self._records:
            return True
        if job.key not in self._snapshot.done or job.key in self._damaged:
            return False
        try:
            self.record(job)
        except Damaged as error:
            self._damaged[job.key] = str(error)
            return False
        return True

    def failure(self, job: Job) -> str | None:
        """Return the message of a failed job; None if it did not fail."""
        if job.key not in self._snapshot.failed or job.key in self._damaged:
            return None
        try:
            failure = self.store.failure(job.key)
        except Damaged as error:
            self._damaged[job.key] = str(error)
            return None
        return None if failure is None else str(failure.get("message", ""))

    def failures(self, cells: Iterable[Cell]) -> list[Failure]:
        """Return the failed and damaged jobs among all that cells depend on, by distinct labels."""
        failed: dict[str, tuple[str, str]] = {}
        for cell in cells:
            job, *beneath = self.stages(cell.job)
            for stage in (*beneath, job):
                problem = None if self.has(stage) else self.failure(stage)
                problem = self._damaged.get(stage.key, problem)
                if problem is not None:
                    failed[stage.key] = stage.label, problem
        times = Counter(label for label, _ in failed.values())
        return [
            Failure(label=f"{label} (job {key[:12]})" if times[label] > 1 else label, message=why)
            for key, (label, why) in failed.items()
        ]

    def run(self, cell: Cell) -> Run:
        """Return the run of a cell, with results if it is done."""
        experiment, use, cut, arm, job = cell.experiment, cell.use, cell.cut, cell.arm, cell.job
        metric = self._data(job).metric
        stages = self.stages(job)
        published = any(stage.is_published for stage in stages)
        common: dict[str, Any] = {
            "data": experiment.data_label,
            "model": experiment.model_label,
            "training_budget": experiment.budget,
            "arm": arm.name,
            "seed": cell.seed,
            "job": job.key,
            "method": use.label if use else "",
            "sparsity": cut.sparsity if cut else None,
            "target": cut.called if cut else None,
            "unit": use.method.unit if use else "",
            **_value_of(arm),
            "objective": arm.objective.name if arm.objective is not None else "",
            "treatment": "" if job.treated is None else job.treated.text,
            **_followed(cell, published=published),
            "metric": metric,
            "num_test": self._data(job).num_test,
            "designed": use is not None and use.method.designed,
            "given": published or job.from_given,
            **self._beneath(cell),
        }
        if not all(self.has(stage) for stage in stages):
            failed = any(self.failure(stage) is not None for stage in stages)
            status: Status = "failed" if failed else "missing"
            return Run(**common, status=status, chance=self._data(job).chance)
        record = self.record(job)
        records = [self.record(stage) for stage in stages]
        costs = [stage for stage in records if "training_flops" in stage]
        return Run(
            **common,
            status="done",
            **_scored(record, metric),
            chance=self._chance(job),
            loss=record.get("loss"),
            parameters=record["parameters"],
            macs=record["macs"],
            epochs=record["epochs"],
            samples=_total(cost["samples"] for cost in costs),
            training_flops=_total(cost["training_flops"] for cost in costs),
            arm_flops=record.get("training_flops"),
            emptied=self._emptied(job),
            capped=record.get("capped", False),
            ending=_ending(job, record),
            teacher_flops=record.get("teacher_flops"),
            masked_at_end=self._masked_at_end(job),
            validation=_validation(record, metric),
            pace=_pace(record),
            **self._parent(job),
            **self._cost(job),
            **self._lineage(cell),
        )

    def _lineage(self, cell: Cell) -> dict[str, Any]:
        """Return the network that a run's was pruned from, and the epochs of all trainings."""
        job, experiment = cell.job, cell.experiment
        if job.trained_by is not None:
            return {"recipe": rates_in_words(self.record(job).get("history", ()))}
        if not isinstance(job, Retrain):
            return {}
        base: Any = job.parent or job.prune.parent
        while base is not None and base.pruning is not None:  # back to the first round
            base = base.pruning.parent
        if base is not None and base.initial is not None:  # the method trained it further
            base = base.initial
        own = self.record(job)["epochs"]
        rates = recipe_of(cell.arm, experiment.recipe, own + cell.arm.first_epoch) if own else None
        records = [self.record(stage) for stage in self.stages(job)]
        total = sum(record["epochs"] for record in records if "training_flops" in record)
        before = 0 if base is None else self.record(base)["epochs"]
        return {
            "base": "" if base is None else base.key,
            "recipe": "" if rates is None else rates.rate_words,
            "total_epochs": round(total, 6),  # the last epoch may be partial
            "pruning_epochs": round(total - own - before, 6),
        }

    def _masked_at_end(self, job: Job) -> float | None:
        """Return the share of weights masked after a retraining; None if it did not change."""
        ended = self.record(job).get("sparsity")
        if ended is None or job.pruning is None:
            return None
        started = self.record(job.pruning)["sparsity"]
        of_weights = UNITS.get(job.pruning.method.unit).unstructured
        return None if of_weights and abs(ended - started) < SAME_SPARSITY else float(ended)

    def _cost(self, job: Job) -> dict[str, Any]:
        """Return the remaining share of a cost and where it was measured, for cost targets."""
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

    def task(self, job: Job) -> Task | None:
        """Return the task of a job's network; None if only a user's function knows it."""
        name = self._data(job).task
        return None if name is None else TASKS.get(name)

    def details(self, cell: Cell, run: Run, details: Details) -> dict[str, Any]:
        """Return a run's scores other than the metric, and that of the network it is built on."""
        row: dict[str, Any] = {"cut": run.cut_at, "arm": run.arm, "seed": str(run.seed)}
        if not run.done:
            return row
        for name, value in details.values(self.record(cell.job)).items():
            row[name] = None if value is None else run.metric.reported(value)
        if cell.under is not None and not _goes_on(cell):
            metric = self._data(cell.under.job).metric
            row[BENEATH] = metric.reported(self.record(cell.under.job)[metric.key])
        return row

    def _data(self, job: Job) -> ScoredOn:
        assert job.scored_on is not None, f"{job.label} is not scored"
        return job.scored_on

    def _chance(self, job: Job) -> float | None:
        """Return the baseline's score, from the data or measured before the first training."""
        task, data = self.task(job), self._data(job)
        measured = None if task is None else task.measured_baseline
        if measured is None:
            return data.chance
        stages = [stage for stage in self.stages(job) if stage.scored_on == data]
        (first,) = (e for e in stages if not any(s.scored_on == data for s in self.stages(e)[1:]))
        return data.metric.reported(measured(self.record(first)["before"]))

    def _beneath(self, cell: Cell) -> dict[str, Any]:
        """Describe the training of a network that is built on another, and of that other one."""
        under, experiment = cell.under, cell.experiment
        if under is None or experiment.head is None:
            return {"stamp": cell.job.stamp, "subject": cell.subject}
        goes_on, stamp = _goes_on(cell), epochs_in_words(experiment.recipe.epochs)
        if goes_on:
            stamp += f" after {stamp} uncut"
        if basis := fairness([self.run(under)]):
            stamp += f"; {BENEATH}: {basis}"
        subject = experiment.head.noun if goes_on else BENEATH
        return {"stamp": stamp, "subject": f"the {subject}"}

    def _parent(self, job: Job) -> dict[str, Any]:
        """Return score and ending of the trained network that was pruned first, if any."""
        parent: Job | None = job
        while parent is not None and parent.pruning is not None:  # back to the first round
            parent = parent.pruning.parent
        if parent is None or parent is job:
            return {}
        record = self.record(parent)
        ending = _ending(parent, record) if parent.treated is None else None
        scored = _scored(record, self._data(parent).metric)
        return {f"parent_{name}": value for name, value in scored.items()} | {
            "parent_ending": ending
        }

    def _emptied(self, job: Job) -> int:
        """Count layers that only the guard kept from being emptied, not counting guides."""
        jobs = self.stages(job)
        guides = {guide.key for stage in jobs for guide in stage.guides}
        records = [self.record(stage) for stage in jobs if stage.key not in guides]
        return sum(len(record["guarded"]) for record in records if "guarded" in record)
