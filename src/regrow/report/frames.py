"""Results as pandas frames, for notebooks: one row per run, or one row per epoch.

import regrow

frame = regrow.results("regrow-store", "study.yaml")
frame.groupby(["method", "sparsity", "arm"])["score"].agg(["mean", "std", "count"])
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from regrow.report.collect import results_of
from regrow.report.rows import BUDGET, run_columns, runs_frame
from regrow.store import TIMING, Store
from regrow.studies.study import Study

PLACE = ("data", "model", "method", "target", "sparsity", "arm", "seed")


def results(store: str | Path, study: str | Path | Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return the results of a study (a file, or its content) in a store, one row per run.

    The score is in a column named after its metric, in the unit of reports; ``key`` is the key of
    the record. Without a study, each record of the store is a row: its key, its kind and its
    numbers.
    """
    opened = Store.open(store, create=False)
    if study is None:
        keys = opened.keys()
        return pd.DataFrame([_flat(key, opened.record(key)) for key in keys])
    found = results_of(_study(study), opened)
    frame = runs_frame(found.runs)
    frame["key"] = [cell.job.key for cell in found.cells]
    return frame


def epochs(store: str | Path, study: str | Path | Mapping[str, Any]) -> pd.DataFrame:
    """Return the history of every finished run of a study, one row per epoch of its training."""
    return epochs_of(_study(study), Store.open(store, create=False))


def epochs_of(study: Study, store: Store) -> pd.DataFrame:
    """Return the same for a study that was loaded and a store that is open."""
    found = results_of(study, store)
    names = (*PLACE, *({BUDGET} & {*run_columns(found.runs)}))
    lines: list[dict[str, Any]] = []
    for cell, run in zip(found.cells, found.runs, strict=True):
        if run.done:
            place = {name: getattr(run, name) for name in names}
            history = found.reader.record(cell.job).get("history", ())
            lines += [{**place, **line} for line in history]
    return pd.DataFrame(lines, columns=None if lines else [*names, "epoch", "lr", "loss"])


def _study(study: str | Path | Mapping[str, Any]) -> Study:
    return Study.from_json(study) if isinstance(study, Mapping) else Study.load(study)


def _flat(key: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a record that fit into a row: texts, numbers and its seconds."""
    fits = {name: value for name, value in record.items() if isinstance(value, str | int | float)}
    return {"key": key, **fits, "seconds": record.get(TIMING, {}).get("seconds")}
