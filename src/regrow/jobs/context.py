"""The context of a running job, and the loop that takes a training to its end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from regrow.core.distributed import ALONE, Ranks
from regrow.core.global_rng import TURN
from regrow.errors import Damaged, Interrupted
from regrow.jobs.base import Job, state_of
from regrow.store import Store
from regrow.store.parts import MAIN, after_epoch, joined, part_of
from regrow.store.workspace import Workspace

if TYPE_CHECKING:
    from regrow.data import Dataset, DataSpec


REPORT_SECONDS = 0.25  # four times a second is all that a person can follow


PROGRESS_FILE_SECONDS = 2.0  # for `regrow status` in another terminal


RANDOM_STATE = "context/random-state"  # beside the job's own tensors in a checkpoint


@dataclass(frozen=True)
class Progress:
    """The progress of a job."""

    fraction: float
    note: str = ""
    resumed_at: float = 0.0  # what an earlier run had done already


@dataclass(frozen=True)
class Notice:
    """Something about a job that its user should know, though it goes on."""

    message: str


class Word(IntEnum):
    """The decision of all ranks after a step: the strongest that any of them asks for."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Context:
    """The services that a running job may use; one context for each run of a job.

    Where several ``ranks`` do the job, all ask for the same in the same order. Rank 0 alone has the
    store and the workspace; what it reads there, the others get from it.
    """

    def __init__(
        self,
        job: Job,
        store: Store | None,
        workspace: Workspace | None,
        *,
        device: str = "cpu",
        checkpoint_seconds: float = 120.0,
        report: Callable[[Progress | Notice], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.device = device
        self.ranks = ranks
        self._store = store
        self._job = job
        self._workspace = workspace
        self._checkpoint_seconds = checkpoint_seconds
        self._report = report
        self._stopping = stopping
        self._started = self._saved = time.monotonic()
        self._earlier_seconds = 0.0
        self._resumed = False
        self._resumed_at: float | None = None
        self._can_checkpoint = False
        self._ready_to_stop = False
        self._agreed = Word.GO_ON
        self._next_report = self._started
        self._next_file = self._started + PROGRESS_FILE_SECONDS

    @property
    def seconds(self) -> float:
        """The time this job took so far, with what it took before it was resumed."""
        return self._earlier_seconds + time.monotonic() - self._started

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of an input; ``Damaged`` if it is not what was stored for this job."""
        return self.ranks.share(lambda: self._own_store.record(job.key, spec=job.spec))

    def tensors(self, job: Job, part: str = MAIN) -> dict[str, Tensor]:
        """Return one part of an input's tensors."""
        return self.ranks.share(lambda: self._own_store.tensors(job.key, part))

    def dataset(self, spec: "DataSpec") -> "Dataset":
        """Return a data set, loaded once in each process."""
        with self.ranks.agreeing(), _LOADING:
            return _dataset(spec)

    def note(self, message: str) -> None:
        """Tell the user something about this job, which goes on."""
        self._report(Notice(message))

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what this job saved when it was last stopped, or None.

        Sets the global random state of the CPU to what it was then. A damaged checkpoint is set
        aside with a notice, and the job starts over.
        """
        saved = self.ranks.share(self._read_checkpoint)
        if saved is None:
            return None
        tensors, meta = saved
        with TURN:
            torch.set_rng_state(tensors.pop(RANDOM_STATE))
        self._earlier_seconds = meta["seconds"]
        self._resumed = True
        return tensors, meta["meta"]

    def checkpoint_due(self) -> bool:
        """Tell whether to save now: enough time went by, or the run is being stopped."""
        self._can_checkpoint = True
        late = time.monotonic() - self._saved >= self._checkpoint_seconds
        if self.ranks.together:
            word = Word.SAVE if late and self.ranks.first else Word.GO_ON
            self._agreed = Word(self.ranks.most(Word.STOP if self._stopping() else word))
            late = self._agreed == Word.SAVE
        return not self._ready_to_stop if self._is_stopping else late

    def save_checkpoint(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Keep all that is needed to go on from here, in place of the last checkpoint.

        The global random state of the CPU is kept too: a user's network may draw from it.
        """
        self._ready_to_stop = self._is_stopping
        with TURN:
            everything = {**tensors, RANDOM_STATE: torch.get_rng_state()}
        now = {"meta": meta, "seconds": self.seconds}
        self.ranks.share(lambda: self._own_workspace.save_checkpoint(everything, now))
        self._saved = time.monotonic()

    def tick(self, fraction: float, note: str = "") -> None:
        """Say how far the job is, in [0, 1]; call it every step, most calls cost a microsecond.

        Raises ``Interrupted`` when the run is being stopped - for a job that asks
        ``checkpoint_due``, only after it has saved.
        """
        if self._is_stopping and (self._ready_to_stop or not self._can_checkpoint):
            raise Interrupted(f"{self._job.label} was stopped; it goes on in the next run.")
        now = time.monotonic()
        if self._resumed_at is None:
            self._resumed_at = fraction if self._resumed else 0.0
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._report(Progress(fraction, note, self._resumed_at))
        if self._workspace is not None and now >= self._next_file:
            self._next_file = now + PROGRESS_FILE_SECONDS
            self._workspace.progress(
                {"label": self._job.label, "fraction": fraction, "note": note}
                | {"seconds": self.seconds}
            )

    @property
    def _is_stopping(self) -> bool:
        """True when the job must stop: at once in a single process, else when all ranks agreed."""
        return self._agreed == Word.STOP if self.ranks.together else self._stopping()

    @property
    def _own_store(self) -> Store:
        assert self._store is not None, "rank 0 alone asks the store"
        return self._store

    @property
    def _own_workspace(self) -> Workspace:
        assert self._workspace is not None, "rank 0 alone has a workspace"
        return self._workspace

    def _read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        try:
            return self._own_workspace.load_checkpoint()
        except Damaged as error:
            self._report(Notice(f"The job starts over. {error}"))
            return None


class Advancing(Protocol):
    """A training that a job takes to its end, step by step."""

    model: nn.Module
    steps_done: int
    notice: str | None

    @property
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch."""

    @property
    def num_steps(self) -> int:
        """Count all updates."""

    @property
    def epoch(self) -> int:
        """Count the finished epochs."""

    @property
    def done(self) -> bool:
        """Tell whether every step has been taken."""

    def step(self) -> None:
        """Take one."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that ``restore`` needs."""

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state."""


def advance(
    training: Advancing, context: Context, *, keep: tuple[int, ...] = ()
) -> dict[str, dict[str, Tensor]]:
    """Train to the end, from the last checkpoint if there is one.

    Returns the weights after each number of epochs in ``keep``, as parts of the job's tensors.
    """
    parts = {after_epoch(epoch): epoch * training.steps_per_epoch for epoch in keep}
    kept: dict[str, dict[str, Tensor]] = {}
    saved = context.load_checkpoint()
    if saved is not None:
        tensors, meta = saved
        kept = {part: found for part in parts if (found := part_of(tensors, part))}
        training.restore(tensors, meta)
    epochs = training.num_steps // training.steps_per_epoch
    while not training.done:
        training.step()
        for part, steps in parts.items():
            if training.steps_done == steps:
                weights = state_of(training.model)
                kept[part] = {name: value.clone() for name, value in weights.items()}
        if training.notice is not None:
            context.note(training.notice)
            training.notice = None
        if context.checkpoint_due():
            tensors, meta = training.state()
            context.save_checkpoint({**tensors, **joined(kept)}, meta)
        context.tick(
            training.steps_done / training.num_steps,
            f"epoch {min(training.epoch + 1, epochs)}/{epochs}",
        )
    return kept


_LOADING = Lock()


# A study has few data sets, but they may be large: the last four stay in memory.
@lru_cache(maxsize=4)
def _dataset(spec: "DataSpec") -> "Dataset":
    from regrow.data import load

    return load(spec)
