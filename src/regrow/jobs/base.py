"""Jobs: frozen, picklable values that are pure functions of their specs and their inputs.

A job runs anywhere, in this process or in a worker, and only through its ``Context``. Its key
digests its kind, its version, its spec and the keys of its inputs. Change what a job means: raise
its version.

    def run(self, context):
        training = Training(..., context.dataset(self.data))
        advance(training, context)
        return Outcome({"accuracy": ...}, state_of(training.model))
"""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrow.jobs.context import Context
    from regrow.jobs.pace import Pace, Setting


class Job(Protocol):
    """One node of the graph of work."""

    @property
    def kind(self) -> str:
        """The kind of work: "train", "prune", ..."""

    @property
    def key(self) -> str:
        """Its identity: digest of all that its result depends on."""

    @property
    def label(self) -> str:
        """Its short name for people."""

    @property
    def inputs(self) -> "tuple[Job, ...]":
        """The jobs whose records it reads."""

    @property
    def spec(self) -> dict[str, Any]:
        """The full request, as JSON; stored with its record and compared on load."""

    @property
    def flops(self) -> float:
        """Planned training FLOPs, 0 if unknown; decides what runs first."""

    @property
    def setting(self) -> "Setting | None":
        """The training that it takes steps of, which several ranks may share; else None."""

    @property
    def pace_group(self) -> Hashable:
        """Jobs of one group take what is estimated times one factor; None: no factor is known."""

    def estimate(self, pace: "Pace") -> float:
        """Seconds that it takes."""

    def estimate_flops(self, pace: "Pace") -> float:
        """Training FLOPs, as far as they can be known before its inputs are done."""

    def run(self, context: "Context") -> "Outcome":
        """Do it."""


class Untimed:
    """Defaults of a job that takes no steps of a training, and no time worth an estimate."""

    setting: "ClassVar[Setting | None]" = None
    pace_group: ClassVar[Hashable] = None

    def estimate(self, pace: "Pace") -> float:
        """Return no seconds."""
        return 0.0

    def estimate_flops(self: Job, pace: "Pace") -> float:
        """Return the planned FLOPs."""
        return self.flops


class Keyed(Untimed):
    """Identity by content, for a job of any kind."""

    kind: ClassVar[str]
    version: ClassVar[int]

    @cached_property
    def key(self: Job) -> str:
        """Digest of all that the result depends on."""
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
    """The result of a job: a record for people and tables (JSON), and tensors for later jobs."""

    record: Mapping[str, Any]
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)
    parts: "Mapping[str, Mapping[str, Tensor]]" = field(default_factory=dict)


def all_jobs(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return jobs with all that they stand on, by key."""
    nodes: dict[str, Job] = {}
    waiting = list(jobs)
    while waiting:
        job = waiting.pop()
        if job.key not in nodes:
            nodes[job.key] = job
            waiting += job.inputs
    return nodes


def specs(jobs: Iterable[Job]) -> dict[str, dict[str, Any]]:
    """Return what was asked for by each of some jobs and all they stand on, by key."""
    return {key: job.spec for key, job in all_jobs(jobs).items()}


def without_none(**fields: Any) -> dict[str, Any]:
    """Leave out of a spec what was not given, so that a field added later changes no key."""
    return {name: value for name, value in fields.items() if value is not None}


def state_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Return a network's tensors as a record keeps them."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
