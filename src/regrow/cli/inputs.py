"""The inputs of commands: study files, stores and extension files."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.cli.terminal import announce, complain
from regrow.errors import StoreError
from regrow.studies.yaml_file import pairs

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.run.precision import PrecisionChoice
    from regrow.store import Snapshot, Store
    from regrow.studies.study import Study


def load_extensions(paths: Sequence[Path] | None) -> None:
    """Import the files given by ``--with``."""
    from regrow.core.registry import load_file

    for path in paths or ():
        load_file(path)


def load_study(
    path: Path,
    store: Path,
    *,
    data: Sequence[str] | None = None,
    device: str = "cpu",
    measure: bool = True,
) -> "tuple[Study, PrecisionChoice]":
    """Read a study file; also return the choice of precision that replaces ``auto`` in it.

    With ``measure``, both precisions are timed if the store holds no earlier choice.
    """
    from regrow.studies.study import Study

    announce(f"Reading {path}")
    replacements = pairs(data or ())
    Study.load(
        path, data=replacements
    )  # a mistake is reported before PyTorch is imported, which takes seconds
    from regrow.run.precision import PrecisionChoice

    choice = PrecisionChoice(_existing(store), device=device, measure=measure)
    return Study.load(path, choice, data=replacements), choice


def open_store(store: Path, *, create: bool) -> "Store":
    """Open a store; raise ``StoreError`` with the reason if that fails."""
    from regrow.store import Store

    return Store.open(store, create=create)


def _existing(store: Path) -> "Store | None":
    """Return the store if it can be opened; the command that needs it reports any problem."""
    with suppress(StoreError):
        return open_store(store, create=False)
    return None


def stored(store: "Store", specs: "Mapping[str, Mapping[str, Any]]") -> "Snapshot":
    """Look up the jobs with these specs, and warn of damaged results."""
    snapshot = store.snapshot(specs)
    for problem in snapshot.damaged.values():
        complain(problem)
    return snapshot


def warn_about(jobs: "Iterable[Job]", study: "Study | None" = None, *, device: str = "cpu") -> None:
    """Warn of problems with the jobs' data, of slow bfloat16, and of margins that are too small."""
    from regrow.jobs.base import notices
    from regrow.run.precision import slow_bf16

    for notice in (*notices(jobs), slow_bf16(jobs, device)):
        if notice is not None:
            complain(notice)
    if study is not None:
        _warn_of_margin(study)


def _warn_of_margin(study: "Study") -> None:
    """Warn, before anything is trained, of margins that the test set is too small to resolve."""
    from regrow.studies.lint import of_margin

    for reason, remedy in dict.fromkeys(
        (remark.reason, remark.remedy)
        for remark in of_margin(study)
        if remark.code == "margin-below-resolution"
    ):
        complain(f"{reason[0].upper()}{reason[1:]}. Take {remedy}.")
