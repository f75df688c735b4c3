"""Results of a detection study: its runs, and the average precisions behind each mAP."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from regrow.detection.jobs import PruneDetector, TrainDetector
from regrow.detection.study import DetectionStudy
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.report import Extra, Failure, Run
from regrow.report.collect import Reader
from regrow.report.rows import POINTS, TEXT, Column, fairness, to_csv
from regrow.report.statistics import mean_and_std
from regrow.report.words import score
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.tasks.metric import Metric

MEAN_AP = Metric(
    key="map",
    name="mAP",
    axis="mAP (%)",
    about="mAP is the mean over classes of VOC 2007's average precision (11 points, IoU 0.5) on "
    "the test pictures after the last epoch",
    baseline="the untrained detector with one lucky box",
    unit="%",
    difference_unit="points",
    factor=100.0,
    margin=0.3,
    digits=2,
    example="image",
)
ABOUT = (
    "In percent, means over the seeds. AP of a class: VOC 2007's. COCO AP: over IoUs of 0.5 to "
    "0.95, AP50 and AP75 at one. 'mAP before': of the same detector before its first step, its "
    "head as first drawn (or as it was cut, of a detector that was pruned itself). 'classifier': "
    "test accuracy of the network that the detector was built on."
)
COCO = {"ap": "COCO AP", "ap50": "COCO AP50", "ap75": "COCO AP75"}


def collect_detectors(
    study: DetectionStudy, store: Store
) -> tuple[list[Run], list[Failure], list[Extra]]:
    """Read the records of a study's cells, in its order; what failed; and a table of its APs."""
    detectors, classifiers = Reader(store, MEAN_AP), Reader(store)
    pairs = study.pairs()
    runs = [_run(study, cell, detectors, classifiers.run(under)) for cell, under in pairs]
    failures = detectors.failures(cell for cell, _ in pairs)
    rows = [
        _row(study, cell, run, detectors, classifiers)
        for (cell, _), run in zip(pairs, runs, strict=True)
    ]
    return runs, failures, [_extra(rows)]


def _run(study: DetectionStudy, cell: Cell, detectors: Reader, under: Run) -> Run:
    """Return a cell's run; chance is what the detector scored untrained, and one lucky box.

    The surest box of a class alone, if it is right, is worth an eleventh of its average precision.
    """
    run, job = detectors.run(cell), cell.job
    assert isinstance(job, TrainDetector)
    further = isinstance(job.backbone, PruneDetector)
    chance = None
    if run.done:
        untrained = job.backbone.parent if isinstance(job.backbone, PruneDetector) else job
        num_classes = len(detectors.record(job)["ap"])
        before = detectors.record(untrained)["before"][MEAN_AP.key]
        chance = _percent(before + 1 / 11 / num_classes)
    return replace(
        run,
        stamp=_stamp(study, under, further=further),
        subject="the detector" if further else "the classifier",
        chance=chance,
    )


def _stamp(study: DetectionStudy, under: Run, *, further: bool) -> str:
    """Word what a detector was given to train with, and what its classifier was."""
    own = f"{study.recipe.epochs} epochs"
    if further:
        own += f" after {own} uncut"
    if not (given := fairness([under])):
        return own
    return f"{own}; classifier: {given}"


def _row(
    study: DetectionStudy, cell: Cell, run: Run, detectors: Reader, classifiers: Reader
) -> dict[str, Any]:
    """Return a seed's precisions in percent; None for what is not known."""
    row: dict[str, Any] = {"cut": run.cut, "arm": run.arm, "seed": str(run.seed)}
    if not run.done:
        return row
    record = detectors.record(cell.job)
    row["mAP"] = run.score
    row |= {f"AP {name}": _percent(value) for name, value in record["ap"].items()}
    row |= {title: _percent(record["coco"][name]) for name, title in COCO.items()}
    row["mAP before"] = _percent(record["before"]["map"])
    assert isinstance(cell.job, TrainDetector)
    if isinstance(cell.job.backbone, Train | Retrain):
        row["classifier"] = _percent(classifiers.record(cell.job.backbone)["accuracy"])
    return row


def _extra(rows: Sequence[dict[str, Any]]) -> Extra:
    """Average the rows over seeds, and word them."""
    named = ("cut", "arm", "seed")
    last = ("mAP before", "classifier")
    found = dict.fromkeys(name for row in rows for name in row if name not in (*named, *last))
    measured = [*found, *(name for name in last if any(name in row for row in rows))]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["cut"], row["arm"]), []).append(row)
    columns: dict[str, Column] = dict.fromkeys(named, TEXT) | dict.fromkeys(measured, POINTS)
    frame = pd.DataFrame([{name: row.get(name) for name in columns} for row in rows])
    return Extra(
        name="detections",
        title="Average precision by class",
        columns=("arm", *measured),
        rows=tuple(
            (_name(*key), *(_mean([row.get(name) for row in group]) for name in measured))
            for key, group in groups.items()
        ),
        about=ABOUT,
        csv=to_csv(frame, columns),
    )


def _name(cut: str, arm: str) -> str:
    return f"{cut} {arm}" if cut else arm


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return score(*mean_and_std(known), len(known)) if known else ""


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
