"""Export one network of a study: choose a finished row, and write it for ``regrow.load``.

exported = export(choose(study.cells(), {"arm": "scratch-b", "seed": "0"}), store, "small-net")
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.core.disk import write_whole
from regrow.data import Dataset, load
from regrow.errors import ConfigError, unknown
from regrow.jobs.base import Stored
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.surgery.architecture import save
from regrow.tasks import Metric
from regrow.train.material import Material, ScoredOn

# The values that identify a row, in the order of the table's columns.
CHOICES: Mapping[str, Callable[[Cell], str]] = {
    "data": lambda cell: cell.experiment.data_label,
    "model": lambda cell: cell.experiment.model_label,
    "budget": lambda cell: _number(cell.experiment.budget),
    "method": lambda cell: cell.use.label if cell.use else "none",
    "sparsity": lambda cell: _number(cell.cut.sparsity) if cell.cut else "none",
    "target": lambda cell: (cell.cut.target if cell.cut else None) or "none",
    "arm": lambda cell: cell.arm.name,
    "seed": lambda cell: str(cell.seed),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported network: its folder, and values of its record."""

    folder: Path
    label: str
    metric: Metric
    score: float  # on the test set, in the report's unit
    parameters: int
    macs: int
    code: str | None = None  # the user's own code that builds the network, if any

    @property
    def call(self) -> str:
        """The call that returns the network in Python."""
        code = "" if self.code is None else f", code={self.code!r}"
        return f"regrow.load({str(self.folder)!r}{code})"

    @property
    def text(self) -> str:
        """Its score with the unit: ``98.05 %``."""
        metric = self.metric
        return f"{self.score:.{metric.digits}f} {metric.unit or metric.name}"


def choose(cells: Sequence[Cell], wanted: Mapping[str, str]) -> Cell:
    """Return the one cell that has all wanted values; the keys are those of ``CHOICES``.

    If no row has a wanted value, or several rows match, a ``ConfigError`` lists the choices.
    """
    left = list(cells)
    for axis, read in CHOICES.items():
        if axis not in wanted:
            continue
        known = tuple(dict.fromkeys(map(read, left)))
        if wanted[axis] not in known:
            among = " among the rows that fit the other options" if len(left) < len(cells) else ""
            raise ConfigError(f"--{axis}{among}: {unknown(axis, wanted[axis], known)}")
        left = [cell for cell in left if read(cell) == wanted[axis]]
    if len(left) == 1:
        return left[0]
    open_axes = {axis: tuple(dict.fromkeys(map(read, left))) for axis, read in CHOICES.items()}
    options = "; ".join(
        f"--{axis} {' or '.join(map(repr, values))}"
        for axis, values in open_axes.items()
        if len(values) > 1
    )
    raise ConfigError(f"{len(left)} rows match, one is needed. Choose with {options}.")


def export(cell: Cell, store: Store, folder: str | Path) -> Exported:
    """Write a finished row's network, and ``result.json`` with its data and scores.

    A row that is not in the store, or that is built on a backbone, is a ``ConfigError``.
    """
    job, data = cell.job, cell.job.scored_on
    if data is None or cell.under is not None:
        raise ConfigError(
            f"'{job.label}' is built on another network and cannot be exported. Write its "
            "'backbone' as a study of its own, and export a row of that."
        )
    if not store.has(job.key):
        failure = store.failure(job.key)
        why = f"failed ({failure['message']})" if failure else "has not been done yet"
        raise ConfigError(f"'{job.label}' {why}. Give the study to `regrow run` first.")
    record = job.recounted(store.record(job.key, spec=job.spec))
    metric = data.metric
    network, architecture = job.network(Stored(store))
    save(folder, network, architecture)
    text = json.dumps(_result(job.label, data, record), indent=1)
    write_whole(Path(folder) / "result.json", text + "\n")
    return Exported(
        folder=Path(folder),
        label=job.label,
        metric=metric,
        score=_reported(metric, record),
        parameters=record["parameters"],
        macs=record["macs"],
        code=architecture.code,
    )


def _result(label: str, data: ScoredOn, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user of the network needs: its inputs' scale, its outputs and its scores."""
    metric = data.metric
    if not isinstance(data, Material):  # only the user's own training function knows the rest
        score = {metric.key: _reported(metric, record), f"{metric.key}_unit": metric.unit_word}
        kept = {name: record[name] for name in ("metrics", "parameters", "macs", "amount")}
        return {"label": label, **score, **kept}
    dataset = load(data.spec)
    measured = ("loss", "num_test", "parameters", "macs", "epochs")
    return {
        "label": label,
        "data": data.spec.name,
        metric.key: _reported(metric, record),
        f"{metric.key}_unit": metric.unit_word,
        **{name: record[name] for name in measured},
        "input": {"shape": list(data.shape), **_input(dataset)},
        **_output(dataset),
    }


def _input(dataset: Dataset) -> dict[str, Any]:
    if dataset.inputs is not None:
        return {"tokens": dataset.vocabulary, "inputs": dataset.inputs.split()}
    of = "pixels in [0, 1]" if dataset.of_images else "numbers"
    feature = "channel" if dataset.of_images else "feature"
    return {
        "scale": f"{of}, minus mean, over std, for each {feature}",
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }


def _output(dataset: Dataset) -> dict[str, Any]:
    if not dataset.target_mean:
        return {"classes": list(dataset.classes)}
    mean, std = list(dataset.target_mean), list(dataset.target_std)
    return {"output": {"scale": "times std, plus mean", "mean": mean, "std": std}}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _reported(metric: Metric, record: Mapping[str, Any]) -> float:
    """Return a record's score in the report's unit, as 98.05 rather than 98.05000000000001."""
    return round(metric.reported(record[metric.key]), 8)
