"""The order of the jobs missing from a store: seed by seed, longest chain first within a seed.

Arms can be compared once all of them have finished a seed, so all jobs of a study's first seed run
before those of its second. The length of a job's chain is its work plus that of the longest
sequence of jobs that depend on it. With few workers and jobs of very different length, the last
chain to start decides when the run ends. So a job of any seed goes first if its chain is longer
than each worker's share of the remaining work, because the whole run would wait for it at the end.
Only jobs whose chains are much shorter, such as a fine-tuning that completes a seed, still run
before it.
"""

import heapq
import os
import platform
import time
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from regrow.errors import StoreError
from regrow.jobs.base import Job
from regrow.store import Store

SHORT = 0.2  # share of the longest chain, up to which jobs of an earlier seed still go first


@dataclass(eq=False)
class ScheduledJob:
    """A job in the dependency graph, with its state in the schedule."""

    job: Job
    key: str
    index: int
    work: float  # FLOPs, at least 1, so that jobs of unknown cost count as a step each
    dependents: "list[ScheduledJob]" = field(default_factory=list)
    num_waiting_for: int = 0
    chain: float = 0.0  # work of this job and of the longest sequence of jobs that depend on it
    turn: int = 0  # position of its seed in the study; if several seeds need it, of the first
    handed_out: bool = False
    closed: bool = False  # done, failed or blocked
    trial_of: "list[ScheduledJob]" = field(default_factory=list)  # jobs whose function it tests


_Ready = tuple[float, float, int, ScheduledJob]  # two priorities, of which lower ones go first


class Schedule:
    """The unfinished jobs, handed out in order; each operation is logarithmic in the ready jobs."""

    def __init__(self, jobs: Iterable[Job], done: Collection[str]) -> None:
        jobs = list(jobs)
        everything = _expand(jobs)
        # With the dependencies of finished jobs, because a report adds up all costs.
        self.nodes = {key: node for key, node in everything.items() if key not in done}
        self.reused = [node for key, node in everything.items() if key in done]
        for node in self.nodes.values():
            for key in _input_keys(node.job):
                if key in self.nodes:
                    self.nodes[key].dependents.append(node)
                    node.num_waiting_for += 1
        for node in reversed(self.nodes.values()):  # dependents come after their inputs
            node.chain = node.work + max((later.chain for later in node.dependents), default=0.0)
        _take_turns(self.nodes.values(), jobs)
        self.num_open = len(self.nodes)
        self._left = sum(node.work for node in self.nodes.values())  # work not handed out yet
        works = {node.job.trained_by for node in self.reused}
        for nodes in _by_function(self.nodes.values()).values():
            if nodes[0].job.trained_by not in works:
                _try_first(nodes)
        self._by_turn: list[_Ready] = []
        self._by_chain: list[_Ready] = []
        for node in self.nodes.values():
            if node.num_waiting_for == 0:
                self._make_ready(node)

    def take(self, num_workers: int = 1) -> ScheduledJob | None:
        """Return the next job that can start, or None if all that are left wait for others.

        ``num_workers`` share the remaining work.
        """
        node, longest = _first(self._by_turn), _first(self._by_chain)
        if node is None or longest is None:
            return None
        if longest.chain * num_workers > self._left and node.chain > SHORT * longest.chain:
            node = longest
        node.handed_out = True
        self._left -= node.work
        return node

    def put_back(self, node: ScheduledJob) -> None:
        """Return a job to the schedule that was handed out and not finished."""
        node.handed_out = False
        self._left += node.work
        self._make_ready(node)

    def _make_ready(self, node: ScheduledJob) -> None:
        heapq.heappush(self._by_turn, (node.turn, -node.chain, node.index, node))
        heapq.heappush(self._by_chain, (-node.chain, node.turn, node.index, node))

    def finish(self, node: ScheduledJob) -> None:
        """Mark a job as done, which may make others ready."""
        self._close(node)
        self._release([*node.dependents, *node.trial_of])

    def _release(self, waiting: Iterable[ScheduledJob]) -> None:
        for later in waiting:
            later.num_waiting_for -= 1
            if later.num_waiting_for == 0 and not later.closed:
                self._make_ready(later)

    def fail(self, node: ScheduledJob) -> list[ScheduledJob]:
        """Mark a job as failed; return the jobs that cannot run because of it."""
        self._close(node)
        self._release(node.trial_of)
        return self._block([node])

    def give_up(self, function: Hashable) -> list[ScheduledJob]:
        """Close a user function's jobs that have not started; return them and their dependents."""
        nodes = [
            node
            for node in self.nodes.values()
            if node.job.trained_by == function and not (node.closed or node.handed_out)
        ]
        for node in nodes:
            self._close(node)
        return sorted([*nodes, *self._block(nodes)], key=lambda node: node.index)

    def _block(self, failed: Iterable[ScheduledJob]) -> list[ScheduledJob]:
        blocked: list[ScheduledJob] = []
        stack = [*failed]
        while stack:
            for later in stack.pop().dependents:
                if not later.closed:
                    self._close(later)
                    blocked.append(later)
                    stack.append(later)
        return sorted(blocked, key=lambda node: node.index)

    def _close(self, node: ScheduledJob) -> None:
        node.closed = True
        self.num_open -= 1
        if not node.handed_out:
            self._left -= node.work


class Waiting:
    """Jobs to be retried later; they stay claimed, so that other runs wait for them too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_time: list[tuple[float, int, ScheduledJob]] = []
        self._holds: dict[str, ExitStack] = {}

    def add(self, node: ScheduledJob, *, seconds: float, share: float, because: str) -> None:
        """Let a job wait; ``share`` of it is done, ``because`` is the reason."""
        heapq.heappush(self._by_time, (time.monotonic() + seconds, node.index, node))
        self.hold(node, seconds=seconds, share=share, because=because)

    def hold(self, node: ScheduledJob, *, seconds: float, share: float, because: str) -> None:
        """Claim a job until it is let go, and write so to its progress file.

        If it cannot be claimed, as on a full disk, other runs may take it. ``seconds``: until it
        is retried; with 0 it only waits for a free worker.
        """
        holding = ExitStack()
        with suppress(StoreError, OSError):
            workspace = holding.enter_context(self._store.claim(node.key))
            if workspace is None:  # another run has claimed it meanwhile
                holding.close()
                return
            self._holds[node.key] = holding
            until = datetime.now() + timedelta(seconds=seconds)
            when = f"until {until:%H:%M:%S}" if seconds else "for room"
            who = f"process {os.getpid()} on {platform.node()}"
            note = f"waits {when} to be tried again by {who}: {because}"
            workspace.progress(
                {"label": node.job.label, "fraction": share, "note": note, "waits": True}
            )

    def due(self) -> Iterator[ScheduledJob]:
        """Yield the jobs whose waiting time is over; they stay claimed until they are let go."""
        while self._by_time and self._by_time[0][0] <= time.monotonic():
            yield heapq.heappop(self._by_time)[2]

    def let_go(self, key: str) -> None:
        """Release a job, so that this run or another can claim it."""
        if key in self._holds:
            with suppress(StoreError, OSError):
                self._holds.pop(key).close()

    def close(self) -> None:
        """Release all jobs."""
        for key in tuple(self._holds):
            self.let_go(key)


def _expand(jobs: list[Job]) -> dict[str, ScheduledJob]:
    """Collect jobs and all they depend on, once each, every job after its inputs.

    A loop, not a recursion, because iterative pruning makes long chains.
    """
    nodes: dict[str, ScheduledJob] = {}
    opened: set[str] = set()
    stack = jobs[::-1]
    while stack:
        job = stack[-1]
        key = job.key
        if key in nodes:
            stack.pop()
        elif key in opened:
            stack.pop()
            nodes[key] = ScheduledJob(job, key, index=len(nodes), work=max(job.flops, 1.0))
        else:
            opened.add(key)
            stack.extend(before for before in reversed(job.inputs) if before.key not in opened)
    return nodes


def _take_turns(nodes: Collection[ScheduledJob], jobs: Iterable[Job]) -> None:
    """Set each job's ``turn`` to the position of its seed in the study.

    Jobs that several seeds need get the turn of the first. ``nodes`` are ordered after their
    inputs.
    """
    seeds = dict.fromkeys(getattr(job, "seed", None) for job in jobs)
    places = {seed: place for place, seed in enumerate(seeds)}
    for node in reversed([*nodes]):
        own = places.get(getattr(node.job, "seed", None), len(places))
        node.turn = min([own, *(later.turn for later in node.dependents)])


def _first(ready: list[_Ready]) -> ScheduledJob | None:
    """Return the first job of a heap that is still ready, dropping those that are not."""
    while ready and (ready[0][3].closed or ready[0][3].handed_out):
        heapq.heappop(ready)
    return ready[0][3] if ready else None


def _by_function(nodes: Iterable[ScheduledJob]) -> dict[Hashable, list[ScheduledJob]]:
    """Group the jobs that user functions train, by the function."""
    groups: dict[Hashable, list[ScheduledJob]] = {}
    for node in nodes:
        if node.job.trained_by is not None:
            groups.setdefault(node.job.trained_by, []).append(node)
    return groups


def _try_first(nodes: list[ScheduledJob]) -> None:
    """Let a function's jobs wait for one of them that only measures, if one can start now.

    Every training ends with a measurement too, so errors in that are found within seconds.
    """
    trial = next((n for n in nodes if n.job.flops == 0 and n.num_waiting_for == 0), None)
    if trial is None:
        return
    trial.trial_of = [node for node in nodes if node is not trial]
    for node in trial.trial_of:
        node.num_waiting_for += 1
        trial.chain = max(trial.chain, trial.work + node.chain)
        trial.turn = min(trial.turn, node.turn)


def _input_keys(job: Job) -> tuple[str, ...]:
    return tuple(dict.fromkeys(before.key for before in job.inputs))
