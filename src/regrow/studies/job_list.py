"""The jobs of a study that `run` expanded, kept in the store so that `status` needs no PyTorch.

Their name in the store is a digest of what the expansion depends on: the study's text, replaced
data sets, the files given by ``--with``, the names and versions of installed extensions, and the
names, sizes and times of this package's code, of local files that the study names, and of data
sets' folders.
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
from regrow.core.registry import loaded_files
from regrow.core.source import PACKAGE, digests_of, files_of_module, sources
from regrow.errors import ConfigError, StoreError
from regrow.store import Store
from regrow.studies.yaml_file import read_file, replaced

if TYPE_CHECKING:
    from regrow.jobs.base import Job

EXTENSIONS = ("regrow.models", "regrow.data", "regrow.methods")
MOST_PATH = 200  # characters; a longer text is not taken for a path
IN_FOLDERS = ("folder:", "hf:", "voc:")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The jobs of a study and all jobs that they depend on: labels and specs, by key."""

    name: str
    title: str
    labels: Mapping[str, str]
    specs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, name: str, title: str, nodes: "Mapping[str, Job]") -> "Planned":
        """Describe the jobs of a study, given by key."""
        return cls(
            name=name,
            title=title,
            labels={key: job.label for key, job in nodes.items()},
            specs={key: job.spec for key, job in nodes.items()},
        )


def remember(
    store: Store, study: Path, planned: Planned, *, data: Mapping[str, str] | None = None
) -> None:
    """Save the jobs that a study file was expanded into, with these replacements of data sets."""
    identity = _identity(study, data or {})
    if identity is not None:
        store.decide(identity, vars(planned))


def recall(store: Store, study: Path, *, data: Mapping[str, str] | None = None) -> Planned | None:
    """Return the jobs saved for a study file; None if it or anything they depend on has changed."""
    identity = _identity(study, data or {})
    try:
        stored = store.decided(identity) if identity is not None else None
    except StoreError:  # the saved list is damaged: the study is expanded again
        return None
    return _planned(stored)


def labels(store: Store) -> dict[str, str]:
    """Return the labels of the jobs of all studies run in a store, by key."""
    return {key: label for plan in plans(store) for key, label in plan.labels.items()}


def plans(store: Store) -> list[Planned]:
    """Return the job lists of all studies run in a store."""
    return [plan for _, plan in _plans(store)]


def plan_files(store: Store, keys: Iterable[str]) -> list[Path]:
    """Return the job-list files of a store that contain any of these jobs."""
    wanted = set(keys)
    return [file for file, plan in _plans(store) if not wanted.isdisjoint(plan.labels)]


def _plans(store: Store) -> Iterator[tuple[Path, Planned]]:
    for file in sorted(store.root.glob("plan-*.json")):
        with suppress(StoreError):
            plan = _planned(store.decided(file.stem))
            if plan is not None:
                yield file, plan


def _planned(value: Any) -> Planned | None:
    """Return a stored value as a job list, or None if it is not one."""
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
            *(digest for file in loaded_files() for digest in digests_of(file).values()),
            *sorted(
                f"{e.name} {e.value} {e.dist.version if e.dist else ''}"
                for group in EXTENSIONS
                for e in entry_points(group=group)
            ),
            *_states(PACKAGE, "*.py"),
            os.environ.get("REGROW_DATA", ""),
            *(state for folder in sorted(set(_folders(value))) for state in _states(folder, "*")),
            *(_state(file) for file in sorted(set(_files(value)))),
        ]
    except (OSError, ConfigError):
        return None  # reading the study itself reports the error
    return f"plan-{hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]}"


def _states(folder: Path, pattern: str) -> Iterable[str]:
    """Describe the files of a folder by their names, sizes and modification times."""
    return map(_state, sorted(folder.rglob(pattern)))


def _state(file: Path) -> str:
    state = file.stat()
    return f"{file} {state.st_size} {state.st_mtime_ns}"


def _folders(value: Any) -> Iterator[Path]:
    """Yield the local folders of data sets that are named anywhere in a study."""
    for text in _texts(value):
        if text.lower().startswith(IN_FOLDERS):
            folder = Path(text.partition(":")[2]).expanduser()
            if folder.is_dir():
                yield folder.resolve()


def _files(value: Any) -> Iterator[Path]:
    """Yield the local files that a study names: code with its imports, weights, networks."""
    for text in _texts(value):
        for place in (text, text.rpartition(":")[0], f"{text}/architecture.json"):
            if len(place) < MOST_PATH and (file := Path(place).expanduser()).is_file():
                yield from sources(file) if file.suffix == ".py" else (file.resolve(),)
        for file in files_of_module(text.rpartition(":")[0]) if len(text) < MOST_PATH else ():
            yield from sources(file)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield value
