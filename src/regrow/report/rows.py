"""Rows of a table, made of single runs: one ``Run`` a seed, one row a cell and arm.

Nothing here depends on the machine, the date or the order in which trainings ended: the runs come
in the study's order and the rows keep it, so that ``rows.csv`` is byte for byte the same however
often a study was interrupted.
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

BUDGET = "training_budget"  # a column only where a study has several
Status = Literal["done", "failed", "missing"]
Column = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of one training: its mean loss in the last epoch, and the fall per epoch before it.

    ``fall`` is taken over the epochs at the last rate, without the first of them where there are
    more than two, because a drop of the rate shows there; None for a single one, and where rates
    are not known.
    """

    loss: float
    fall: float | None = None

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> "Ending | None":
        """Read it off a training's history (lines of ``lr`` and ``loss``); None without epochs.

        >>> Ending.of([{"lr": 0.1, "loss": 2.0}, {"lr": 0.1, "loss": 1.5}])
        Ending(loss=1.5, fall=0.5)
        """
        if not history:
            return None
        if len(history) > 1 and "share" in history[-1]:
            history = history[:-1]  # of an epoch that was trained in part
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
    """One training of a table's row: one arm of one cell with one seed.

    ``score`` is by ``metric``, as reports show it (an accuracy in percent), and ``error`` its
    standard error over the test examples, where that is known. ``parameters`` and ``macs`` are
    those of the network as it ends, ``epochs`` the arm's own, ``training_flops`` and ``samples``
    those of the whole row with the stages it depends on, ``arm_flops`` those of the arm alone.
    ``emptied`` counts layers that only the guard kept alive. ``group`` names the cell whose arms
    are compared with each other; left empty it follows from the other fields. ``method`` is empty
    for a network that no method touches.

    ``start``, ``budget`` (its kind), ``amount``, ``cap`` and ``schedule`` are the arm's value (see
    ``regrow.jobs.arms``): what is asked of it, how it is drawn and how fair its row is follow from
    them, never from its name. Fairness needs ``base_epochs`` too (of the parent; 0 for published
    weights, which were trained elsewhere, at a cost that is not known), ``capped`` (the budget's
    ``cap``, in multiples of these, was reached) and ``parent_counted`` (the budget pays for the
    parent's training); or ``stamp`` says it in words. ``subject`` names what the arm was done to,
    where that is not the row's own network. ``training_budget`` is the parent's epochs where a
    study has several (``budgets``), None where it has no such axis. ``objective`` is what the arm
    descends, where it is not the recipe's, and ``teacher_flops`` what the teacher of such a
    training computes, which ``training_flops`` include. ``treatment`` words what acted while the
    arm trained, and ``masked_at_end`` is the share of weights that it left masked, where that is
    not the pruning's sparsity. ``cost_asked`` and ``cost_left`` are shares of the unpruned
    network's cost, where a study asked for one, and ``cost_machine`` is where it was measured.
    ``given``: it depends on weights whose training is not counted.
    ``pace`` is how many examples one's own training function saw for each unit of its budget.
    ``job`` is the key of the job that measured it: several runs of one job are one measurement.

    What allows no conclusion (``regrow.report.validity``) follows from ``num_test`` and ``chance``
    (the baseline's score) of the test set, from how the training ended, and from the network that
    was pruned: ``parent_score`` with ``parent_error``, and ``parent_ending`` unless a method
    treated it while it trained.

    How comparable two rows are (``regrow.report.setups``) follows from ``base`` (the key of the
    trained network that was pruned), ``recipe`` (the arm's learning rate, in words), the epochs of
    all that the row depends on (``total_epochs``), and those of them that a method trained between
    the base and the arm (``pruning_epochs``). ``validation`` is the score on the validation split,
    where there is one; choices are made by it. ``designed``: neither weights nor data decided what
    is left, so that the network could have been written down. ``trial_of`` names the arm that this
    one is a trial of, where that was tuned.
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
        """The amount that it was asked for, by which rows of several methods meet."""
        return self.target or ("" if self.sparsity is None else f"sparsity {self.sparsity:g}")

    @property
    def trained(self) -> bool:
        """True if its arm trains what pruning left."""
        return not self.unpruned and self.budget != "none"

    @property
    def panel(self) -> tuple[str, ...]:
        """Data set, model and any training budget: what shares an unpruned reference."""
        return tuple(filter(None, (self.data, self.model, epochs_in_words(self.training_budget))))

    @property
    def cut(self) -> str:
        """Method and how much it removed, for people: ``l1-filter 0.5``, ``l1-filter VGG-16-A``."""
        return " ".join(
            part for part in (self.method, self.target or _share(self.sparsity)) if part
        )

    @property
    def cut_at(self) -> str:
        """The same behind the training budget, where there are several."""
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
        """Every group of arms that are compared with each other."""
        return (arms for groups in self.panels.values() for arms in groups.values())

    def unpruned(self, run: Run) -> list[Run]:
        """Return the unpruned runs a row is measured against: of its group, method or panel."""
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
        """Return the row that a run is measured against; empty without any."""
        same_method = self._by_method.get(run.method, self._first)
        return self._by_group.get(run.group, same_method)


# Column -> (type, format in CSV). Digits are fixed, so that equal data is equal bytes.
TEXT, COUNT, FLAG = ("str", ""), ("Int64", "d"), ("bool", "")
POINTS, SHARE, MEAN = ("float64", ".4f"), ("float64", "g"), ("float64", ".1f")
LENGTH = ("float64", ".6g")  # of trainings, in epochs: the last may be one in part
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
    """Return the metrics of some runs, each once; accuracy where there is none."""
    return tuple(dict.fromkeys(run.metric for run in runs)) or (ACCURACY,)


def run_columns(runs: Iterable[Run]) -> dict[str, Column]:
    """Return ``RUN_COLUMNS`` with the score under its metric's name, if all have the same.

    Else a column ``metric`` says what each score is.
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
    """Return the columns of what any run has: a score on a validation split, a training budget."""
    forms = {"validation": POINTS, BUDGET: COUNT}
    return {n: form for n, form in forms.items() if any(getattr(r, n) is not None for r in runs)}


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Put one run in each row, in the order given."""
    listed = list(runs)
    rows = [{**vars(run), run.metric.key: run.score, "metric": run.metric.key} for run in listed]
    return to_frame(rows, run_columns(listed))


def once(runs: Iterable[Run]) -> list[Run]:
    """Leave out runs that are another's measurement again, such as of weights that were given."""
    return [*{run.job or number: run for number, run in enumerate(runs)}.values()]


def summarise(runs: Iterable[Run]) -> pd.DataFrame:
    """Put one arm of one cell in each row: mean over seeds, std, n, size, cost, fairness.

    ``n_expected`` counts the measurements asked for, each ``once``; only finished ones enter the
    means. std divides by n - 1 and is empty for n = 1, every figure for n = 0. ``parameters_kept``
    and ``macs_kept`` are shares of the unpruned network of the same data set and model, empty where
    the study has none.
    """
    listed = list(runs)
    table = Table(listed)
    rows = [_row(rows, table) for arms in table.cells() for rows in arms.values()]
    return to_frame(rows, row_columns(listed))


GIVEN = "weights trained elsewhere"  # published ones, or of one's own


def fairness(runs: Sequence[Run]) -> str:
    """Word what one row was given to train with, from its specs.

    >>> common = dict(data="digits", model="vgg", sparsity=0.5, arm="a", status="done",
    ...               score=98.0)
    >>> fairness([Run(**common, seed=0, start="inherited", budget="epochs", epochs=40,
    ...               base_epochs=160)])
    "40 epochs after the unpruned network's 160"
    >>> fairness([Run(**common, seed=s, start="random", budget="equal-flops", epochs=480, cap=3.0,
    ...               capped=s == 0) for s in range(2)])
    'equal FLOPs, capped at 3x in 1 of 2 seeds'
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
    budget_names = {
        "equal-epochs": "equal epochs",
        "equal-flops": "equal FLOPs",
        "pipeline": "FLOPs of the whole pipeline",
    }
    text = budget_names.get(first.budget, count or first.budget)
    if first.start in ("inherited", "rewound") and first.base_epochs:
        text += f" after the unpruned network's {first.base_epochs}"
    if first.start == "inherited" and first.base_epochs == 0:
        text += f" after {GIVEN}"
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


def harmless(text: str, kind: str = "str") -> str:
    """Mark a text that a spreadsheet would run as a formula, by an apostrophe in front.

    >>> harmless("=cmd|' /C calc'!A0"), harmless("-0.5", "float64"), harmless("l1-filter")
    ("'=cmd|' /C calc'!A0", '-0.5', 'l1-filter')
    """
    return f"'{text}" if kind == "str" and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Write a frame of any columns; texts are made harmless."""
    texts = [str(name) for name in frame.select_dtypes(exclude="number").columns]
    written = frame.assign(**{name: frame[name].map(_harmless_cell) for name in texts})
    return str(written.to_csv(index=False, lineterminator="\n"))


def _harmless_cell(value: Any) -> Any:
    return harmless(one_line(value)) if isinstance(value, str) else value


def to_csv(frame: pd.DataFrame, columns: Mapping[str, Column]) -> str:
    """Write a frame with a fixed number of digits in each column; what is unknown stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    cells = [
        [
            "" if absent else harmless(format(value, form), kind)
            for value, absent in zip(frame[name].tolist(), frame[name].isna().tolist(), strict=True)
        ]
        for name, (kind, form) in columns.items()
    ]
    writer.writerows(zip(*cells, strict=True))
    return text.getvalue()


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
    """Yield the rows of each panel of a frame, with its name as ``Run.panel`` has it."""
    names = [name for name in ("data", "model", BUDGET) if name in frame]
    for key, part in frame.groupby(names, sort=False, dropna=False):
        place: list[Any] = list(key)
        words = [epochs_in_words(int(budget)) for budget in place[2:] if not pd.isna(budget)]
        yield (*map(str, place[:2]), *words), part


def _mean(runs: list[Run], name: str) -> float | None:
    values = [float(v) for run in runs if (v := getattr(run, name)) is not None]
    return mean_and_std(values)[0] if values else None


def to_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Column]) -> pd.DataFrame:
    """Build a frame whose types do not depend on what happens to be missing."""
    series = {}
    for name, (kind, _) in columns.items():
        values = [row[name] for row in rows]
        if kind == "str":
            values = ["" if value is None else value for value in values]
        series[name] = pd.Series(values, dtype=kind)
    return pd.DataFrame(series)


def smallest(values: Iterable[int | None]) -> int | None:
    """Return the smallest of the values that are known, or None."""
    return min((value for value in values if value is not None), default=None)


def largest(values: Iterable[float | None]) -> float | None:
    """Return the largest of the values that are known, or None."""
    return max((value for value in values if value is not None), default=None)


def _share(sparsity: float | None) -> str:
    return "" if sparsity is None else f"{sparsity:g}"
