"""The kinds of study that a file can hold: networks that are compared, or what is built on them.

    study = load("study.yaml")
    run(study.jobs(), store)
    results = results_of(study, store)  # regrow.report.collect

A task that is no training of one network on one data set, such as detection on a classifier,
registers a kind of its own. A file is of it that says ``task: NAME``, or has one of its keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from regrow.core.registry import Registry, calling_file, canonical
from regrow.errors import ConfigError
from regrow.studies.data_overrides import replaced
from regrow.studies.experiment import Experiment
from regrow.studies.study import Study, decided
from regrow.studies.yaml_file import read_file
from regrow.train import Precision

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.studies.expand import Cell


class AnyStudy(Protocol):
    """A study of any kind: rows of a table, and the jobs that fill them."""

    @property
    def kind(self) -> str:
        """The name of its kind; empty for networks that are compared."""

    @property
    def name(self) -> str:
        """Its name, which names folders."""

    @property
    def title(self) -> str:
        """Its name for people."""

    @property
    def margin(self) -> float | None:
        """The difference below which arms count as equivalent; None: the metric's own."""

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        """The comparisons of the study, by network and data set."""

    def cells(self) -> "list[Cell]":
        """Expand into the rows of the table, one cell a seed, in report order."""

    def jobs(self) -> "tuple[Job, ...]":
        """Return the jobs that fill the cells."""


@dataclass(frozen=True, kw_only=True)
class StudyKind:
    """A kind of study: how a file is read, and how the results in a store are.

    Attributes:
        read: the content of a file and its bare name -> the study.
        results: a study and a store -> ``report.collect.Results``.
        about: one line for people.
    """

    name: str
    read: Callable[[Any, str], AnyStudy]
    results: Callable[[Any, Any], Any]
    about: str = ""


KINDS: Registry[StudyKind] = Registry(
    "kind of study", "regrow.detection", register="register_study_kind"
)
# Keys that only a study of a kind has, so that it need not say its task.
OWN_KEYS = {"backbone": "detection", "detector": "detection"}


def register_study_kind(
    name: str,
    *,
    read: Callable[[Any, str], AnyStudy],
    results: Callable[[Any, Any], Any],
    about: str = "",
) -> None:
    """Register a kind of study under the name of its task."""
    kind = StudyKind(name=canonical(name), read=read, results=results, about=about)
    KINDS.add(name, kind, origin=calling_file())


def kind_of(value: Any) -> str | None:
    """Return the kind of a study that a file holds; None for networks that are compared."""
    if not isinstance(value, Mapping):
        return None
    task = value.get("task")
    if isinstance(task, str):
        try:
            return KINDS.key(task)
        except ConfigError:  # a task of networks that are compared, or none: the study says so
            pass
    return next((kind for key, kind in OWN_KEYS.items() if key in value), None)


def load(
    path: str | Path,
    precision: Callable[[], Precision] = lambda: "fp32",
    *,
    data: Mapping[str, str] | None = None,
) -> AnyStudy:
    """Read a study file of any kind, told apart by its content.

    ``precision`` says what recipes have that say ``auto``, or nothing (see ``run.precision``);
    ``data`` what stands in for data that the study names.
    """

    def parse(value: Any, name: str) -> AnyStudy:
        return from_json(decided(replaced(value, data or {}), precision), name=name)

    return read_file(path, parse)


def from_json(value: Any, *, name: str = "study") -> AnyStudy:
    """Check a study of any kind, given as mappings and lists."""
    kind = kind_of(value)
    return Study.from_json(value, name=name) if kind is None else KINDS.get(kind).read(value, name)
