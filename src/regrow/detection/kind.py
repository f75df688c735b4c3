"""Detection as a kind of study; what needs PyTorch and torchvision is imported when it is used."""

from typing import TYPE_CHECKING, Any

from regrow.studies.study import register_study_kind

if TYPE_CHECKING:
    from regrow.detection.study import DetectionStudy
    from regrow.report.collect import Results
    from regrow.store import Store


def _read(value: Any, name: str) -> "DetectionStudy":
    from regrow.detection.study import DetectionStudy

    return DetectionStudy.from_json(value, name=name)


def _results(study: "DetectionStudy", store: "Store") -> "Results":
    from regrow.detection.report import collect_detectors
    from regrow.report.collect import Results

    runs, failures, extras = collect_detectors(study, store)
    return Results(runs=tuple(runs), failures=tuple(failures), extras=tuple(extras))


register_study_kind(
    "detection",
    read=_read,
    results=_results,
    about="Objects in images, by a detector on each classifier of a study; mAP",
)
