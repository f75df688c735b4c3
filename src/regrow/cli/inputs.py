"""The inputs of commands: study files, stores and files of extensions."""

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
    """Read a study file, and the choice of precision that its ``auto`` was replaced by.

    ``measure`` allows to time both precisions where the store holds no earlier choice.
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
    """Open a store; a ``StoreError`` says what is wrong with it."""
    from regrow.store import Store

    return Store.open(store, create=create)


def _existing(store: Path) -> "Store | None":
    """Return the store if there is one; the command that needs it reports what is wrong with it."""
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
    """Print the notices of the jobs' data, whether bfloat16 is slow, and what a margin needs."""
    from regrow.jobs.base import notices
    from regrow.run.precision import slow_bf16

    for notice in (*notices(jobs), slow_bf16(jobs, device)):
        if notice is not None:
            complain(notice)
    if study is not None:
        _warn_of_margin(study)


def _warn_of_margin(study: "Study") -> None:
    """Say before anything is trained where the test set cannot show what the margin asks for."""
    from regrow.studies.lint import of_margin

    for reason, remedy in dict.fromkeys(
        (remark.reason, remark.remedy)
        for remark in of_margin(study)
        if remark.code == "margin-below-resolution"
    ):
        complain(f"{reason[0].upper()}{reason[1:]}. Take {remedy}.")
