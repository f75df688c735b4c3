"""Single runs (one ``Run`` per seed) and the rows that summarise them (one per cell and arm).

Nothing here depends on the machine, the date or the order in which trainings ended: runs and rows
are in the study's order, so that ``rows.csv`` is byte for byte the same however often a study was
interrupted.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from regrow.core.durations import epochs_in_words
from regrow.core.texts import one_line
from regrow.jobs.arms import BudgetKind, Start
from regrow.report.statistics import mean_and_std
from regrow.tasks.metric import ACCURACY, Metric

BUDGET = "training_budget"  # a column only if a study has several
Status = Literal["done", "failed", "missing"]
Column = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of one training: its mean loss in the last epoch, and how fast the loss still fell.

    ``fall`` is the mean fall per epoch over the epochs at the last learning rate. If there are more
    than two, the first is left out, because it shows the drop of the rate. None for a single epoch
    at that rate, and if rates are unknown.
    """

    loss: float
    fall: float | None = None

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> "Ending | None":
        """Return the end of a training history (entries of ``lr`` and ``loss``); None if empty.

        >>> Ending.of([{"lr": 0.1, "loss": 2.0}, {"lr": 0.1, "loss": 1.5}])
        Ending(loss=1.5, fall=0.5)
        """
        if not history:
            return None
        if len(history) > 1 and "share" in history[-1]:
            history = history[:-1]  # without a partial last epoch
        last = history[-1]
        if "lr" not in last:
            return cls(loss=last["loss"])
        length = next(
            (i for i, line in enumerate(reversed(history)) if line["lr"] != last["lr"]),
            len(history),
        )
        steps = length - 1 if length <= 2 else length - 2
        if steps == 0:
            return cls(loss=last["loss"])
        return cls(loss=last["loss"], fall=(history[-1 - steps]["loss"] - last["loss"]) / steps)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a row: one arm of one cell with one seed.

    ``score`` is the value of ``metric`` as reports show it (an accuracy in percent), and ``error``
    its standard error over the test examples, if known. ``parameters`` and ``macs`` are of the
    final network, ``epochs`` and ``arm_flops`` of the arm alone, ``training_flops`` and ``samples``
    of the arm and all trainings that it depends on. ``emptied`` counts layers that only the guard
    kept from losing all units. ``group`` names the cell whose arms are compared with each other
    (default: from the other fields). ``method`` is empty for a network without a method.

    ``start``, ``budget`` (its kind), ``amount``, ``cap`` and ``schedule`` describe the arm (see
    ``regrow.jobs.arms``): the questions about it, its style in figures and its fairness follow from
    them, never from its name. Fairness also needs ``base_epochs`` (of the parent; 0 for published
    weights, which were trained elsewhere at an unknown cost), ``recipe_epochs`` (those that equal
    budgets follow, if the unpruned network was trained elsewhere for other or an unknown number),
    ``capped`` (the budget's ``cap``, a
    multiple of ``base_epochs``, was reached), ``parent_counted`` (the budget includes the parent's
    training) and ``entered`` (the epochs of its schedule that the arm left out, because it began
    after them), unless ``stamp`` gives it in words. ``subject`` names the network that the
    arm trains, if that is not the row's own. ``training_budget`` is the parent's epochs if a study
    has several (``budgets``), else None. ``objective`` is the arm's own, if it is not the recipe's,
    and ``teacher_flops`` those of its teacher, which ``training_flops`` include. ``treatment``
    describes a method's treatment while the arm trained, and ``masked_at_end`` is the share of
    weights masked at its end, if that is not the pruning's sparsity. ``cost_asked`` and
    ``cost_left`` are shares of the unpruned network's cost, if a study has a cost target, and
    ``cost_machine`` is where it was measured. ``given`` is True if the run depends on weights whose
    training is not counted. ``pace`` is the number of examples that a user's training function
    trained on for each unit of its budget. ``job`` is the key of the job that measured the run;
    several runs with one job are one measurement.

    Validity (``regrow.report.validity``) is judged by ``num_test`` and ``chance`` (the baseline's
    score) of the test set, by the ``ending`` of the training, and by the network that was pruned:
    ``parent_score`` with ``parent_error``, and ``parent_ending`` unless a method treated it while
    it trained.

    Setups (``regrow.report.setups``) follow from ``base`` (the key of the trained network that was
    pruned), ``recipe`` (the arm's learning rate, in words), ``total_epochs`` (of the arm and all
    trainings that it depends on) and ``pruning_epochs`` (those that a method trained between the
    base and the arm). ``validation`` is the score on the validation split, if there is one, by
    which arms and trials are chosen. ``designed`` is True if neither weights nor data decided what
    was removed, so that the network could have been designed by hand. ``trial_of`` names the tuned
    arm that this one is a trial of; the row that stands for a tuned arm has the epochs and FLOPs of
    its ``other_trials``.
    """

    data: str
    model: str
    arm: str
    seed: int
    method: str = ""
    sparsity: float | None = None
    target: str | None = None
    unit: str = ""
    status: Status = "missing"
    metric: Metric = ACCURACY
    score: float | None = None
    error: float | None = None
    loss: float | None = None
    parameters: int | None = None
    macs: int | None = None
    epochs: float | None = None
    base_epochs: int | None = None
    recipe_epochs: int | None = None
    training_flops: float | None = None
    samples: int | None = None
    emptied: int | None = None
    start: Start | Literal[""] = ""
    budget: BudgetKind | Literal[""] = ""
    amount: float | None = None
    schedule: str = "full"
    cap: float | None = None
    capped: bool = False
    parent_counted: bool = False
    entered: int = 0
    stamp: str = ""
    subject: str = ""
    group: str = ""
    num_test: int | None = None
    chance: float | None = None
    objective: str = ""
    teacher_flops: float | None = None
    treatment: str = ""
    masked_at_end: float | None = None
    ending: Ending | None = None
    parent_score: float | None = None
    parent_error: float | None = None
    parent_ending: Ending | None = None
    cost_asked: float | None = None
    cost_left: float | None = None
    cost_machine: str = ""
    validation: float | None = None
    base: str = ""
    recipe: str = ""
    total_epochs: float | None = None
    pruning_epochs: float | None = None
    designed: bool = False
    trial_of: str = ""
    other_trials: tuple[float, float] = (0.0, 0.0)
    arm_flops: float | None = None
    pace: float | None = None
    given: bool = False
    training_budget: int | None = None
    job: str = ""

    def __post_init__(self) -> None:
        for name in ("data", "model", "method", "target", "arm", "group", "stamp"):
            if text := getattr(self, name):
                object.__setattr__(self, name, one_line(text))
        if self.status == "done":
            assert self.score is not None, f"a finished run without a score: {self}"
            assert math.isfinite(self.score), f"a finished run without a score: {self}"
        if not self.group:
            parts = [*self.panel, self.method, self.target or _share(self.sparsity)]
            object.__setattr__(self, "group", "/".join(part for part in parts if part))

    @property
    def done(self) -> bool:
        """True if the run has a result."""
        return self.status == "done"

    @property
    def unpruned(self) -> bool:
        """True if no method pruned the network."""
        return self.sparsity is None and self.target is None

    @property
    def level(self) -> str:
        """The requested amount of pruning, at which methods are compared."""
        return self.target or ("" if self.sparsity is None else f"sparsity {self.sparsity:g}")

    @property
    def trained(self) -> bool:
        """True if its arm trains the pruned network."""
        return not self.unpruned and self.budget != "none"

    @property
    def panel(self) -> tuple[str, ...]:
        """Data set, model and any training budget; runs with equal ones share an unpruned row."""
        return tuple(filter(None, (self.data, self.model, epochs_in_words(self.training_budget))))

    @property
    def cut(self) -> str:
        """Method and amount, for display: ``l1-filter 0.5``, ``l1-filter VGG-16-A``."""
        return " ".join(
            part for part in (self.method, self.target or _share(self.sparsity)) if part
        )

    @property
    def cut_at(self) -> str:
        """The same after the training budget, if there are several."""
        return " / ".join(filter(None, (*self.panel[2:], self.cut)))


class Table:
    """The runs of a study by panel, cell and arm, in order of appearance."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.panels: dict[tuple[str, ...], dict[str, dict[str, list[Run]]]] = {}
        for run in runs:
            groups = self.panels.setdefault(run.panel, {})
            groups.setdefault(run.group, {}).setdefault(run.arm, []).append(run)
        self._unpruned = {panel: _Unpruned(groups) for panel, groups in self.panels.items()}

    def cells(self) -> Iterable[dict[str, list[Run]]]:
        """Return every cell: arms that are compared with each other, with their runs."""
        return (arms for groups in self.panels.values() for arms in groups.values())

    def unpruned(self, run: Run) -> list[Run]:
        """Return the unpruned runs that a run is compared with: of its group, method or panel."""
        return self._unpruned[run.panel].of(run)


class _Unpruned:
    """The unpruned rows of one panel: the first of each group, of each method, and of all."""

    def __init__(self, groups: Mapping[str, Mapping[str, list[Run]]]) -> None:
        rows = (runs for arms in groups.values() for runs in arms.values() if runs[0].unpruned)
        self._first: list[Run] = []
        self._by_group: dict[str, list[Run]] = {}
        self._by_method: dict[str, list[Run]] = {}
        for runs in rows:
            self._first = self._first or runs
            self._by_group.setdefault(runs[0].group, runs)
            self._by_method.setdefault(runs[0].method, runs)

    def of(self, run: Run) -> list[Run]:
        """Return the unpruned runs that a run is compared with; empty if there are none."""
        same_method = self._by_method.get(run.method, self._first)
        return self._by_group.get(run.group, same_method)


# Column -> (type, format in CSV): of Python, or ``POINTS_FORM`` (see ``_formatted``).
POINTS_FORM = "points"
TEXT, COUNT, FLAG = ("str", ""), ("Int64", "d"), ("bool", "")
POINTS, SHARE, MEAN = ("float64", POINTS_FORM), ("float64", "g"), ("float64", ".1f")
LENGTH = ("float64", ".6g")  # epochs, the last of which may be partial
LOSS, KEPT, FLOPS = ("float64", ".6f"), ("float64", ".6f"), ("float64", ".6e")
PLACE_COLUMNS = {
    "data": TEXT,
    "model": TEXT,
    "method": TEXT,
    "target": TEXT,
    "sparsity": SHARE,
    "unit": TEXT,
    "arm": TEXT,
}
ROW_COLUMNS = {
    **PLACE_COLUMNS,
    "start": TEXT,
    "budget": TEXT,
    "mean": POINTS,
    "std": POINTS,
    "n": COUNT,
    "n_expected": COUNT,
    "n_failed": COUNT,
    "n_missing": COUNT,
    "loss": LOSS,
    "parameters": MEAN,
    "macs": MEAN,
    "parameters_kept": KEPT,
    "macs_kept": KEPT,
    "epochs": LENGTH,
    "training_flops": FLOPS,
    "samples": MEAN,
    "emptied": MEAN,
    "fairness": TEXT,
    "num_test": COUNT,
    "chance": POINTS,
    "group": TEXT,
}
RUN_COLUMNS = {
    **PLACE_COLUMNS,
    "seed": COUNT,
    "status": TEXT,
    "score": POINTS,
    "loss": LOSS,
    "parameters": COUNT,
    "macs": COUNT,
    "epochs": LENGTH,
    "base_epochs": COUNT,
    "training_flops": FLOPS,
    "samples": COUNT,
    "emptied": COUNT,
    "start": TEXT,
    "budget": TEXT,
    "amount": SHARE,
    "schedule": TEXT,
    "cap": SHARE,
    "capped": FLAG,
    "parent_counted": FLAG,
    "num_test": COUNT,
    "chance": POINTS,
    "group": TEXT,
}


def metrics_of(runs: Iterable[Run]) -> tuple[Metric, ...]:
    """Return the metrics of some runs, each once; accuracy if there are no runs."""
    return tuple(dict.fromkeys(run.metric for run in runs)) or (ACCURACY,)


def run_columns(runs: Iterable[Run]) -> dict[str, Column]:
    """Return ``RUN_COLUMNS`` with the score under its metric's name, if all have the same.

    Otherwise a column ``metric`` names the metric of each score.
    """
    metrics = metrics_of(runs)
    name = metrics[0].key if len(metrics) == 1 else "score"
    columns = {name if key == "score" else key: form for key, form in RUN_COLUMNS.items()}
    columns |= _optional_columns(runs)
    return columns if len(metrics) == 1 else {**columns, "metric": TEXT}


def row_columns(runs: Iterable[Run]) -> dict[str, Column]:
    """Return ``ROW_COLUMNS``, with the ``metric`` of each row where not all are accuracies."""
    columns = {**ROW_COLUMNS, **_optional_columns(runs)}
    return columns if metrics_of(runs) == (ACCURACY,) else {**columns, "metric": TEXT}


def _optional_columns(runs: Iterable[Run]) -> dict[str, Column]:
    """Return the columns that depend on the runs: score on a validation split, training budget."""
    forms = {"validation": POINTS, BUDGET: COUNT}
    return {n: form for n, form in forms.items() if any(getattr(r, n) is not None for r in runs)}


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Return a frame with one run in each row, in the given order."""
    listed = list(runs)
    rows = [{**vars(run), run.metric.key: run.score, "metric": run.metric.key} for run in listed]
    return to_frame(rows, run_columns(listed))


def once(runs: Iterable[Run]) -> list[Run]:
    """Return one run for each measurement: given weights, for instance, are measured only once."""
    return [*{run.job or number: run for number, run in enumerate(runs)}.values()]


def by_seed(runs: Iterable[Run]) -> dict[int, float]:
    """Return the scores of the runs that have one, by seed."""
    return {run.seed: run.score for run in runs if run.done and run.score is not None}


def summarise(runs: Iterable[Run]) -> pd.DataFrame:
    """Return a frame with a row for each cell and arm: mean, std, n, size, cost and fairness.

    ``n_expected`` counts the requested measurements (see ``once``); only finished ones enter the
    means. std divides by n - 1 and is empty for n = 1; for n = 0 all numbers are empty.
    ``parameters_kept`` and ``macs_kept`` are shares of the unpruned network of the same data set
    and model, empty if the study has none.
    """
    listed = list(runs)
    table = Table(listed)
    rows = [_row(rows, table) for arms in table.cells() for rows in arms.values()]
    return to_frame(rows, row_columns(listed))


GIVEN = "weights trained elsewhere"  # published weights, or the user's


def fairness(runs: Sequence[Run]) -> str:
    """Describe the training that one row was given: its budget, objective and treatment.

    >>> common = dict(data="digits", model="vgg", sparsity=0.5, arm="a", status="done",
    ...               score=98.0)
    >>> fairness([Run(**common, seed=0, start="inherited", budget="epochs", epochs=40,
    ...               base_epochs=160)])
    "40 epochs after the unpruned network's 160"
    >>> fairness([Run(**common, seed=s, start="random", budget="equal-flops", epochs=480, cap=3.0,
    ...               capped=s == 0) for s in range(2)])
    'equal FLOPs, capped at 3x in 1 of 2 seeds'
    >>> fairness([Run(**common, seed=0, start="inherited", budget="equal-epochs", epochs=4,
    ...               base_epochs=8, entered=4)])
    "4 epochs after the unpruned network's 8, entering the schedule at epoch 4"
    """
    first = runs[0]
    if first.stamp:
        return "; ".join(dict.fromkeys(run.stamp for run in runs))
    epochs = sorted({run.epochs for run in runs if run.epochs is not None})
    count = (
        "-".join(dict.fromkeys(f"{num:.4g}" for num in (epochs[0], epochs[-1]))) if epochs else ""
    )
    if count:
        count += " epoch" if count == "1" else " epochs"
    if first.unpruned and epochs == [0]:
        return (
            f"trained before, {epochs_in_words(first.base_epochs)}" if first.base_epochs else GIVEN
        )
    if first.unpruned:
        return count
    if first.budget == "none" or epochs == [0]:
        return "no training after pruning"
    text = _budget_words(first, count)
    if first.start in ("inherited", "rewound") and first.base_epochs:
        text += f" after the unpruned network's {first.base_epochs}"
        if first.start == "inherited" and first.pruning_epochs:  # of the method, or earlier rounds
            text += f" and {first.pruning_epochs:g} while pruning"
    if first.start == "inherited" and first.base_epochs == 0:
        text += f" after {GIVEN}"
    if first.entered:
        text += f", entering the schedule at epoch {first.entered}"
    if first.objective:
        text += f", trained with {first.objective}"
        taught = {run.teacher_flops for run in runs if run.teacher_flops is not None}
        text += f" (the teacher's {max(taught):.3g} FLOPs counted)" if taught else ""
    if first.treatment:
        text += f", with the treatment of {first.treatment}"
    ended = [run.masked_at_end for run in runs if run.masked_at_end is not None]
    if ended:
        text += f", {mean_and_std(ended)[0]:.3g} of the weights masked at the end"
    if first.parent_counted:
        text += ", the unpruned network's training counted"
    capped = sum(run.capped for run in runs)
    if capped and first.cap is not None:
        text += f", capped at {first.cap:g}x"
        text += "" if capped == len(runs) else f" in {capped} of {len(runs)} seeds"
    return text


def _budget_words(run: Run, count: str) -> str:
    """Describe the budget of an arm that trains; ``count``: its epochs, if known."""
    if run.entered and count:  # it trains for less than its budget
        return count
    names = {
        "equal-epochs": "equal epochs",
        "equal-flops": "equal FLOPs",
        "pipeline": "FLOPs of the whole pipeline",
    }
    if run.recipe_epochs:
        own = f"the recipe's {epochs_in_words(run.recipe_epochs)}"
        names = {
            "equal-epochs": own,
            "equal-flops": f"the FLOPs of {own}",
            "pipeline": f"the FLOPs of {own} and of a retraining",
        }
    return names.get(run.budget, count or run.budget)


def harmless(text: str, kind: str = "str") -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula.

    >>> harmless("=cmd|' /C calc'!A0"), harmless("-0.5", "float64"), harmless("l1-filter")
    ("'=cmd|' /C calc'!A0", '-0.5', 'l1-filter')
    """
    return f"'{text}" if kind == "str" and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return a frame with any columns as CSV; texts are made ``harmless``."""
    texts = [str(name) for name in frame.select_dtypes(exclude="number").columns]
    written = frame.assign(**{name: frame[name].map(_harmless_cell) for name in texts})
    return str(written.to_csv(index=False, lineterminator="\n"))


def _harmless_cell(value: Any) -> Any:
    return harmless(one_line(value)) if isinstance(value, str) else value


def to_csv(frame: pd.DataFrame, columns: Mapping[str, Column]) -> str:
    """Return a frame as CSV, equal bytes for equal data; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    cells = [
        [
            "" if absent else harmless(_formatted(value, form), kind)
            for value, absent in zip(frame[name].tolist(), frame[name].isna().tolist(), strict=True)
        ]
        for name, (kind, form) in columns.items()
    ]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


def _formatted(value: Any, form: str) -> str:
    """Format a value for CSV; scores have four decimals, or four digits if they are small.

    >>> [_formatted(value, POINTS_FORM) for value in (93.25, 0.0, -0.01234, 0.00001234)]
    ['93.2500', '0.0000', '-0.01234', '1.234e-05']
    """
    if form != POINTS_FORM:
        return format(value, form)
    return f"{value:.4g}" if 0 < abs(value) < 0.1 else f"{value:.4f}"


def _row(runs: list[Run], table: Table) -> dict[str, object]:
    first, runs = runs[0], once(runs)
    finished = [run for run in runs if run.done]
    scores = [run.score for run in finished if run.score is not None]
    mean, std = mean_and_std(scores) if scores else (None, None)
    whole = [run for run in table.unpruned(first) if run.done]
    row: dict[str, object] = {
        "data": first.data,
        "model": first.model,
        BUDGET: first.training_budget,
        "method": first.method,
        "target": first.target or "",
        "sparsity": first.sparsity,
        "unit": first.unit,
        "arm": first.arm,
        "start": first.start,
        "budget": first.budget,
        "mean": mean,
        "std": std,
        "n": len(finished),
        "n_expected": len(runs),
        "n_failed": sum(run.status == "failed" for run in runs),
        "n_missing": sum(run.status == "missing" for run in runs),
        "fairness": fairness(finished or runs),
        "num_test": smallest(run.num_test for run in runs),
        "chance": largest(run.chance for run in runs),
        "group": first.group,
        "metric": first.metric.key,
    }
    means = ("loss", "parameters", "macs", "epochs", "training_flops", "samples", "emptied")
    for name in (*means, "validation"):
        row[name] = _mean(finished, name)
    for name in ("parameters", "macs"):
        left, full = _mean(finished, name), _mean(whole, name)
        row[f"{name}_kept"] = left / full if left is not None and full else None
    return row


def by_panel(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield each panel of a frame: its name, as in ``Run.panel``, and its rows."""
    names = [name for name in ("data", "model", BUDGET) if name in frame]
    for key, part in frame.groupby(names, sort=False, dropna=False):
        place: list[Any] = list(key)
        words = [epochs_in_words(int(budget)) for budget in place[2:] if not pd.isna(budget)]
        yield (*map(str, place[:2]), *words), part


def _mean(runs: list[Run], name: str) -> float | None:
    values = [float(v) for run in runs if (v := getattr(run, name)) is not None]
    return mean_and_std(values)[0] if values else None


def to_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Build a frame whose types do not depend on which values are missing."""
    series = {}
    for name, (kind, _) in columns.items():
        values = [row[name] for row in rows]
        if kind == "str":
            values = ["" if value is None else value for value in values]
        series[name] = pd.Series(values, dtype=kind)
    return pd.DataFrame(series)


def smallest(values: Iterable[int | None]) -> int | None:
    """Return the smallest of the known values; None if all are unknown."""
    return min((value for value in values if value is not None), default=None)


def largest(values: Iterable[float | None]) -> float | None:
    """Return the largest of the known values; None if all are unknown."""
    return max((value for value in values if value is not None), default=None)


def _share(sparsity: float | None) -> str:
    return "" if sparsity is None else f"{sparsity:g}"
