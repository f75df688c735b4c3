"""What a study file can ask for: classifiers that are compared, or detectors on them.

    study = load("study.yaml")
    run(study.jobs(), store)
    found = collect(study, store)

Whoever takes a study from a user takes either kind from here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.detection.spec import is_detection
from regrow.studies.data_overrides import replaced
from regrow.studies.study import Study, decided
from regrow.studies.yaml_file import read_file
from regrow.train import Precision

if TYPE_CHECKING:
    from regrow.detection.study import DetectionStudy
    from regrow.jobs.base import Job
    from regrow.report import Extra, Failure, Run
    from regrow.store import Store

    Asked = Study | DetectionStudy


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a store holds of a study, as a report takes it."""

    runs: "tuple[Run, ...]"
    failures: "tuple[Failure, ...]"
    extras: "tuple[Extra, ...]" = ()


def load(
    path: str | Path,
    precision: Callable[[], Precision] = lambda: "fp32",
    *,
    data: Mapping[str, str] | None = None,
) -> "Asked":
    """Read a study file of either kind, told apart by its content.

    ``precision`` says what recipes have that say ``auto``, or nothing (see ``run.precision``);
    ``data`` what stands in for data that the study names.
    """

    def parse(value: Any, name: str) -> "Asked":
        return from_json(decided(replaced(value, data or {}), precision), name=name)

    return read_file(path, parse)


def from_json(value: Any, *, name: str = "study") -> "Asked":
    """Check a study of either kind, given as mappings and lists."""
    if is_detection(value):
        from regrow.detection.study import DetectionStudy

        return DetectionStudy.from_json(value, name=name)
    return Study.from_json(value, name=name)


def notices(jobs: "Iterable[Job]") -> tuple[str, ...]:
    """Return what people should know of the data that jobs look at, each once."""
    from regrow.jobs.base import all_jobs

    data = (getattr(job, "data", None) for job in all_jobs(jobs).values())
    return tuple(dict.fromkeys(text for each in data for text in getattr(each, "notices", ())))


def collect(study: "Asked", store: "Store") -> Collected:
    """Read the records of a study's cells, in its order, with what is missing and what failed."""
    if isinstance(study, Study):
        from regrow.report.collect import collect as collect_classifiers

        runs, failures = collect_classifiers(study, store)
        return Collected(runs=tuple(runs), failures=tuple(failures))
    from regrow.detection.report import collect_detectors

    found, failures, extras = collect_detectors(study, store)
    return Collected(runs=tuple(found), failures=tuple(failures), extras=tuple(extras))
