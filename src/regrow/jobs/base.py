"""Jobs, their inputs and results, and the context in which they run.

Jobs are frozen values, pure functions of their specs and their inputs (as JSON: ``as_json``). A job
can run anywhere, because it uses only its ``Context``. Its key is a digest of its kind, version,
spec and its inputs' keys. If the meaning of a job changes, raise its version.

    def run(self, context):
        training = Training(..., context.dataset(self.data))
        advance(training, context)
        return Outcome({"accuracy": ...}, state_of(training.model))

PyTorch, which takes seconds to import, is imported only when a job runs or reads data.
"""

import hashlib
import json
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from regrow.core.energy import Counters, Energy, EnergyMeter
from regrow.core.global_rng import TURN
from regrow.data.spec import DataSpec
from regrow.errors import ConfigError, Damaged, Interrupted
from regrow.store import MAIN, Store
from regrow.store.workspace import Workspace
from regrow.train.material import ScoredOn, Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrow.core.distributed import Ranks
    from regrow.data import Dataset
    from regrow.jobs.pace import Pace
    from regrow.jobs.prune import Prune
    from regrow.jobs.train import Treated
    from regrow.pruning.costs import CostShare
    from regrow.pruning.method import Method
    from regrow.surgery.architecture import Architecture

REPORT_SECONDS = 0.25  # more often is of no use to a person
PROGRESS_FILE_SECONDS = 2.0  # for `regrow status` in another terminal
RANDOM_STATE = "context/random-state"  # in a checkpoint, along with the job's own tensors
# What defines a training's loss: its task, its recipe, or its arm (then losses are not comparable).
LossOf = Literal["task", "recipe", "arm"]


class Job(Protocol):
    """One node of the dependency graph."""

    @property
    def kind(self) -> str:
        """The kind of work: "train", "prune", ..."""

    @property
    def key(self) -> str:
        """Its identity: a digest of everything that its result depends on."""

    @property
    def label(self) -> str:
        """Its short display name."""

    @property
    def inputs(self) -> "tuple[Job, ...]":
        """The jobs whose records it reads."""

    @property
    def spec(self) -> dict[str, Any]:
        """The full specification, as JSON; stored with its record and compared on load."""

    @property
    def flops(self) -> float:
        """Planned training FLOPs, 0 if unknown; decides what runs first."""

    @property
    def setting(self) -> "Setting | None":
        """The training whose steps it runs, which several ranks can share; else None."""

    @property
    def pace_group(self) -> Hashable:
        """Jobs of one group have one ratio of actual to estimated time; None: no correction."""

    @property
    def stamp(self) -> str:
        """Text on the training that its network had, if its arm does not describe it."""

    @property
    def scored_on(self) -> "ScoredOn | None":
        """The data that its network is trained and scored on, if it results in a scored network."""

    @property
    def pruning(self) -> "Pruning | None":
        """The last pruning of its resulting network; for a pruning, itself."""

    @property
    def guides(self) -> "tuple[Prune, ...]":
        """The prunings of other networks whose pattern it follows."""

    @property
    def treated(self) -> "Treated | None":
        """The method's treatment that is applied while it trains."""

    @property
    def is_published(self) -> bool:
        """True if its network has published weights, so that nothing is trained."""

    @property
    def loss_of(self) -> "LossOf":
        """The part that defines the loss of its training: the task, the recipe or the arm."""

    @property
    def from_given(self) -> bool:
        """True if it depends on given weights of a user's network, whose training has no cost."""

    @property
    def trained_by(self) -> Hashable:
        """The user's function that trains it, if any; its errors affect all jobs that it trains."""

    @property
    def files(self) -> tuple[str, ...]:
        """The user's files, besides data and ``--with``, that must exist where it runs."""

    def recounted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return its record with costs as they are counted by this version."""

    def network(self, records: "Records") -> "tuple[nn.Module, Architecture]":
        """Rebuild its resulting, scored network with its weights."""

    def estimate(self, pace: "Pace") -> float:
        """Return the seconds that it is expected to take."""

    def estimate_flops(self, pace: "Pace") -> float:
        """Return its training FLOPs, as far as they are known before its inputs are done."""

    def estimate_epochs(self, pace: "Pace") -> float | None:
        """Return the epochs that it trains, as far as known; None if it has no epochs."""

    def run(self, context: "Context") -> "Outcome":
        """Run the job and return its result."""


class Pruning(Job, Protocol):
    """A job that prunes, with what reports need of it."""

    @property
    def method(self) -> "Method":
        """The method that chooses the units."""

    @property
    def cost(self) -> "CostShare | None":
        """The share of a cost that may remain, if it has a cost target."""

    @property
    def parent(self) -> "Job | None":
        """The training of the network that is pruned, if its weights matter."""


class Defaults:
    """Default values for jobs that train, prune and score no network and take negligible time."""

    setting: "ClassVar[Setting | None]" = None
    pace_group: ClassVar[Hashable] = None
    stamp: ClassVar[str] = ""
    scored_on: "ClassVar[ScoredOn | None]" = None
    pruning: "ClassVar[Pruning | None]" = None
    is_published: ClassVar[bool] = False
    loss_of: "ClassVar[LossOf]" = "task"
    from_given: ClassVar[bool] = False
    trained_by: ClassVar[Hashable] = None
    files: ClassVar[tuple[str, ...]] = ()

    @property
    def guides(self) -> "tuple[Prune, ...]":
        """No prunings."""
        return ()

    @property
    def treated(self) -> "Treated | None":
        """None, because no treatment is applied."""
        return None

    def recounted(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record unchanged."""
        return dict(record)

    def network(self: Job, records: "Records") -> "tuple[nn.Module, Architecture]":
        """Raise ``ConfigError``, because it has no resulting network."""
        raise ConfigError(f"'{self.label}' has no resulting network that could be rebuilt.")

    def estimate(self, pace: "Pace") -> float:
        """Return 0 seconds."""
        return 0.0

    def estimate_flops(self: Job, pace: "Pace") -> float:
        """Return the planned FLOPs."""
        return self.flops

    def estimate_epochs(self, pace: "Pace") -> float | None:
        """Return None, because it has no epochs."""
        return None


class Keyed(Defaults):
    """Gives a job of any kind its key, a digest of its content."""

    kind: ClassVar[str]
    version: ClassVar[int]

    @cached_property
    def key(self: Job) -> str:
        """The digest of everything that the result depends on."""
        identity = {
            "kind": self.kind,
            "version": self.version,  # type: ignore[attr-defined]
            "spec": self.spec,
            "inputs": [job.key for job in self.inputs],
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """The result of a job: a record (JSON) for reports, and tensors for later jobs."""

    record: Mapping[str, Any]
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)
    parts: "Mapping[str, Mapping[str, Tensor]]" = field(default_factory=dict)


def all_jobs(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return jobs with all that they depend on, by key."""
    nodes: dict[str, Job] = {}
    waiting = list(jobs)
    while waiting:
        job = waiting.pop()
        if job.key not in nodes:
            nodes[job.key] = job
            waiting += job.inputs
    return nodes


def specs(jobs: Iterable[Job]) -> dict[str, dict[str, Any]]:
    """Return the specs of jobs and of all that they depend on, by key."""
    return {key: job.spec for key, job in all_jobs(jobs).items()}


def without_none(**fields: Any) -> dict[str, Any]:
    """Return a spec without fields that are None, so that adding a field changes no keys."""
    return {name: value for name, value in fields.items() if value is not None}


def state_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Return a network's state dict as a record keeps it: detached, contiguous, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


class Records(Protocol):
    """The results of finished jobs: a ``Context`` has its job's inputs, ``Stored`` has all."""

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of a finished job."""

    def tensors(self, job: Job, part: str = MAIN) -> "dict[str, Tensor]":
        """Return one part of its tensors."""


@dataclass(frozen=True)
class Stored:
    """The records and tensors of a store."""

    store: Store

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of a finished job; raise ``Damaged`` if it was changed."""
        return self.store.record(job.key, spec=job.spec)

    def tensors(self, job: Job, part: str = MAIN) -> "dict[str, Tensor]":
        """Return one part of its tensors."""
        return self.store.tensors(job.key, part)


def notices(jobs: Iterable[Job]) -> tuple[str, ...]:
    """Return the notices to users of the data sets that jobs use, each once."""
    data = (getattr(job, "data", None) for job in all_jobs(jobs).values())
    return tuple(dict.fromkeys(text for m in data for text in getattr(m, "notices", ())))


# Running a job --------------------


@dataclass(frozen=True)
class Progress:
    """The progress of a job."""

    fraction: float
    note: str = ""
    resumed_at: float = 0.0  # the fraction done by earlier runs


@dataclass(frozen=True)
class Notice:
    """A message to the user about a job, which continues."""

    message: str


class Word(IntEnum):
    """The common decision of all ranks after a step: the highest that any rank requests."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Context:
    """The services that a running job may use; one context for each run of a job.

    If several ``ranks`` run the job, all make the same calls in the same order. Only rank 0 has the
    store and the workspace; it sends what it reads there to the others.
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
        ranks: "Ranks | None" = None,
        meter: EnergyMeter | None = None,
    ) -> None:
        from regrow.core.distributed import ALONE  # imports PyTorch

        self.meter = meter or EnergyMeter(Counters(unknown="it was not measured"))
        self.device = device
        self.ranks = ranks or ALONE
        self._store = store
        self._job = job
        self._workspace = workspace
        self._checkpoint_seconds = checkpoint_seconds
        self._report = report
        self._stopping = stopping
        self._started = self._saved = time.monotonic()
        self._earlier_seconds = 0.0
        self._resumed = self._can_checkpoint = self._ready_to_stop = False
        self._resumed_at: float | None = None
        self._agreed = Word.GO_ON
        self._next_report = self._started
        self._next_file = self._started + PROGRESS_FILE_SECONDS

    @property
    def seconds(self) -> float:
        """The time that this job has taken, including the time before it was resumed."""
        return self._earlier_seconds + time.monotonic() - self._started

    def record(self, job: Job) -> dict[str, Any]:
        """Return the record of an input; raise ``Damaged`` if it was changed."""
        return self.ranks.share(lambda: self._own_store.record(job.key, spec=job.spec))

    def tensors(self, job: Job, part: str = MAIN) -> "dict[str, Tensor]":
        """Return one part of an input's tensors."""
        return self.ranks.share(lambda: self._own_store.tensors(job.key, part))

    def dataset(self, spec: "DataSpec") -> "Dataset":
        """Return a data set; each process caches the last four."""
        with self.ranks.agreeing(), _LOADING:
            return _dataset(spec)

    def note(self, message: str) -> None:
        """Tell the user something about this job, which continues."""
        self._report(Notice(message))

    def load_checkpoint(self) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        """Return the tensors and metadata of the job's last checkpoint, or None.

        Restores the CPU's global random state at that time. A damaged checkpoint is moved aside
        with a notice, and the job starts over.
        """
        saved = self.ranks.share(self._read_checkpoint)
        if saved is None:
            return None
        tensors, meta = saved
        import torch

        with TURN:
            torch.set_rng_state(tensors.pop(RANDOM_STATE))
        self._earlier_seconds = meta["seconds"]
        self.meter.add(Energy.from_json(meta.get("energy")))
        self._resumed = True
        return tensors, meta["meta"]

    def checkpoint_due(self) -> bool:
        """Return whether to save now: enough time has passed, or the run is being stopped."""
        self._can_checkpoint = True
        late = time.monotonic() - self._saved >= self._checkpoint_seconds
        if self.ranks.together:
            word = Word.SAVE if late and self.ranks.first else Word.GO_ON
            self._agreed = Word(self.ranks.most(Word.STOP if self._stopping() else word))
            late = self._agreed == Word.SAVE
        return not self._ready_to_stop if self._is_stopping else late

    def save_checkpoint(self, tensors: "Mapping[str, Tensor]", meta: Mapping[str, Any]) -> None:
        """Save everything needed to continue from here, replacing the last checkpoint.

        The CPU's global random state is saved too, because a user's network may draw from it.
        """
        import torch

        self._ready_to_stop = self._is_stopping
        with TURN:
            everything = {**tensors, RANDOM_STATE: torch.get_rng_state()}
        self.meter.read()
        now = {"meta": meta, "seconds": self.seconds, "energy": self.meter.total.to_json()}
        self.ranks.share(lambda: self._own_workspace.save_checkpoint(everything, now))
        self._saved = time.monotonic()

    def tick(self, fraction: float, note: str = "") -> None:
        """Report the job's progress, in [0, 1]; call it every step, most calls cost a microsecond.

        Raises ``Interrupted`` if the run is being stopped; for a job that calls ``checkpoint_due``,
        only after it has saved.
        """
        if self._is_stopping and (self._ready_to_stop or not self._can_checkpoint):
            raise Interrupted(f"{self._job.label} was stopped; it continues in the next run.")
        now = time.monotonic()
        if self._resumed_at is None:
            self._resumed_at = fraction if self._resumed else 0.0
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            self._report(Progress(fraction, note, self._resumed_at))
        if self._workspace is not None and now >= self._next_file:
            self._next_file = now + PROGRESS_FILE_SECONDS
            self.meter.read()
            self._workspace.progress(
                {"label": self._job.label, "fraction": fraction, "note": note}
                | {"seconds": self.seconds}
            )

    @property
    def _is_stopping(self) -> bool:
        """True if the job must stop: with several ranks, only once all have agreed."""
        return self._agreed == Word.STOP if self.ranks.together else self._stopping()

    @property
    def _own_store(self) -> Store:
        assert self._store is not None, "only rank 0 has the store"
        return self._store

    @property
    def _own_workspace(self) -> Workspace:
        assert self._workspace is not None, "only rank 0 has a workspace"
        return self._workspace

    def _read_checkpoint(self) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
        try:
            return self._own_workspace.load_checkpoint()
        except Damaged as error:
            self._report(Notice(f"The job starts over. {error}"))
            return None


_LOADING = Lock()


# A study has few data sets, but they may be large: the last four stay in memory.
@lru_cache(maxsize=4)
def _dataset(spec: "DataSpec") -> "Dataset":
    from regrow.data import load  # imports PyTorch

    return load(spec)
