"""The jobs of a study as `run` expanded it, kept in the store, so that `status` needs no PyTorch.

They are found again under a digest of all that the expansion depends on: the study's text, the
data that stand in for its own, the files given by ``--with``, the code of this package and of those
that extend it, and names, sizes and times of the files of data sets that lie in folders.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.core.digests import canonical_json
from regrow.core.registry import PACKAGE, loaded_files
from regrow.core.source import sources
from regrow.errors import ConfigError, StoreError
from regrow.store import Store
from regrow.studies.yaml_file import read_file, replaced

if TYPE_CHECKING:
    from regrow.jobs.base import Job

EXTENSIONS = ("regrow.models", "regrow.data", "regrow.methods")
MOST_PATH = 200  # characters; a longer text is a sentence
IN_FOLDERS = ("folder:", "hf:", "voc:")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The jobs of a study and all they depend on: their labels and specs, by key."""

    name: str
    title: str
    labels: Mapping[str, str]
    specs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, name: str, title: str, nodes: "Mapping[str, Job]") -> "Planned":
        """Describe the jobs of a study by key."""
        return cls(
            name=name,
            title=title,
            labels={key: job.label for key, job in nodes.items()},
            specs={key: job.spec for key, job in nodes.items()},
        )


def remember(
    store: Store, study: Path, planned: Planned, *, data: Mapping[str, str] | None = None
) -> None:
    """Keep what a study file was expanded into, with what stood in for its data."""
    identity = _identity(study, data or {})
    if identity is not None:
        store.decide(identity, vars(planned))


def recall(store: Store, study: Path, *, data: Mapping[str, str] | None = None) -> Planned | None:
    """Return what a study file was expanded into, unless it or what it depends on has changed."""
    identity = _identity(study, data or {})
    try:
        stored = store.decided(identity) if identity is not None else None
    except StoreError:  # it was altered: the study is expanded anew
        return None
    return _planned(stored)


def labels(store: Store) -> dict[str, str]:
    """Return the labels of the jobs of all studies that a store was given, by key."""
    return {key: label for plan in plans(store) for key, label in plan.labels.items()}


def plans(store: Store) -> list[Planned]:
    """Return the jobs of all studies that a store was given, each as it was run."""
    return [plan for _, plan in _plans(store)]


def plan_files(store: Store, keys: Iterable[str]) -> list[Path]:
    """Return the files of a store that know what some of these jobs are called."""
    wanted = set(keys)
    return [file for file, plan in _plans(store) if not wanted.isdisjoint(plan.labels)]


def _plans(store: Store) -> Iterator[tuple[Path, Planned]]:
    for file in sorted(store.root.glob("plan-*.json")):
        with suppress(StoreError):
            plan = _planned(store.decided(file.stem))
            if plan is not None:
                yield file, plan


def _planned(value: Any) -> Planned | None:
    """Return what a store keeps as the jobs of a study, unless it is something else."""
    if not isinstance(value, dict) or value.keys() != Planned.__dataclass_fields__.keys():
        return None
    labels, specs = value["labels"], value["specs"]
    good = (
        all(isinstance(value[name], str) for name in ("name", "title"))
        and isinstance(labels, dict)
        and isinstance(specs, dict)
        and all(isinstance(label, str) for label in labels.values())
        and all(isinstance(spec, dict) for spec in specs.values())
    )
    return Planned(**value) if good else None


def _identity(study: Path, data: Mapping[str, str]) -> str | None:
    try:
        content = study.read_bytes()
        value = read_file(study, lambda value, _: replaced(value, data))
        parts = [
            hashlib.sha256(content).hexdigest(),
            *(f"{name}={replacement}" for name, replacement in sorted(data.items())),
            *(hashlib.sha256(file.read_bytes()).hexdigest() for file in loaded_files()),
            *sorted(
                f"{e.name} {e.value}" for group in EXTENSIONS for e in entry_points(group=group)
            ),
            *_states(PACKAGE, "*.py"),
            os.environ.get("REGROW_DATA", ""),
            *(state for folder in sorted(set(_folders(value))) for state in _states(folder, "*")),
            *(_state(file) for file in sorted(set(_files(value)))),
        ]
    except (OSError, ConfigError):
        return None  # whoever reads the study says what is wrong
    return f"plan-{hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]}"


def _states(folder: Path, pattern: str) -> Iterable[str]:
    """Describe the files of a folder as far as their names, sizes and times tell."""
    return map(_state, sorted(folder.rglob(pattern)))


def _state(file: Path) -> str:
    state = file.stat()
    return f"{file} {state.st_size} {state.st_mtime_ns}"


def _folders(value: Any) -> Iterator[Path]:
    """Yield the local folders that data sets are named by, anywhere in a study."""
    for text in _texts(value):
        if text.lower().startswith(IN_FOLDERS):
            folder = Path(text.partition(":")[2]).expanduser()
            if folder.is_dir():
                yield folder.resolve()


def _files(value: Any) -> Iterator[Path]:
    """Yield the local files that a study names: code with what it imports, weights, networks."""
    for text in _texts(value):
        for place in (text, text.rpartition(":")[0], f"{text}/architecture.json"):
            if len(place) < MOST_PATH and (file := Path(place).expanduser()).is_file():
                yield from sources(file) if file.suffix == ".py" else (file.resolve(),)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
