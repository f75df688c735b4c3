"""The order of jobs: what is missing from a store, seed by seed, longest chain first within a seed.

A seed that is complete in all arms can be compared, so all jobs of a study's first seed go before
those of its second. The length of a chain is the work of its first job and of those that wait for
it, one after another. With few workers and jobs of very different length, what starts last decides
when the run ends. So a job of any seed goes first if its chain is longer than what is left of the
work for each worker: then the whole run would wait for it at the end. Only what is short beside it,
such as a fine-tuning that completes a seed, goes before.
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

SHORT = 0.2  # of the longest chain, which may begin so much later for the sake of an earlier seed


@dataclass(eq=False)
class ScheduledJob:
    """A job in its graph."""

    job: Job
    key: str
    index: int
    work: float  # FLOPs, at least 1, so that jobs of unknown cost count as a step each
    dependents: "list[ScheduledJob]" = field(default_factory=list)
    num_waiting_for: int = 0
    chain: float = 0.0  # work from here to the end of the longest chain
    turn: int = 0  # place of its seed in the study; of several that need it, the first
    handed_out: bool = False
    closed: bool = False  # done, failed or blocked
    trial_of: "list[ScheduledJob]" = field(default_factory=list)  # wait until it shows their code


_Ready = tuple[float, float, int, ScheduledJob]  # by two ranks; lower ones go first


class Schedule:
    """The jobs still to be done, handed out in order; every step costs O(log of the ready)."""

    def __init__(self, jobs: Iterable[Job], done: Collection[str]) -> None:
        jobs = list(jobs)
        everything = _expand(jobs)
        # All that a job depends on, also of one that is done: a report adds up what it all cost.
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
        self._left = sum(node.work for node in self.nodes.values())  # of what is not handed out
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
        """Return the next job that can start, or None when all that is left waits for others.

        ``num_workers`` share the work that is left.
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
        """Take a job back that was handed out and not done."""
        node.handed_out = False
        self._left += node.work
        self._make_ready(node)

    def _make_ready(self, node: ScheduledJob) -> None:
        heapq.heappush(self._by_turn, (node.turn, -node.chain, node.index, node))
        heapq.heappush(self._by_chain, (-node.chain, node.turn, node.index, node))

    def finish(self, node: ScheduledJob) -> None:
        """Note that a job is done, which may make others ready."""
        self._close(node)
        self._release([*node.dependents, *node.trial_of])

    def _release(self, waiting: Iterable[ScheduledJob]) -> None:
        for later in waiting:
            later.num_waiting_for -= 1
            if later.num_waiting_for == 0 and not later.closed:
                self._make_ready(later)

    def fail(self, node: ScheduledJob) -> list[ScheduledJob]:
        """Note that a job failed; returns those that cannot be done without it."""
        self._close(node)
        self._release(node.trial_of)
        return self._block([node])

    def give_up(self, function: Hashable) -> list[ScheduledJob]:
        """Close what a function of the user's own would train and has not begun; returns that."""
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
    """Jobs that are tried again later, held meanwhile, so that other runs wait for them too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_time: list[tuple[float, int, ScheduledJob]] = []
        self._holds: dict[str, ExitStack] = {}

    def add(self, node: ScheduledJob, *, seconds: float, share: float, because: str) -> None:
        """Have a job wait for so long; ``share`` of it was done, and ``because`` is why."""
        heapq.heappush(self._by_time, (time.monotonic() + seconds, node.index, node))
        self.hold(node, seconds=seconds, share=share, because=because)

    def hold(self, node: ScheduledJob, *, seconds: float, share: float, because: str) -> None:
        """Hold a job until it is let go, and say so for people; on a full disk others may take it.

        After ``seconds`` it waits for room alone.
        """
        holding = ExitStack()
        with suppress(StoreError, OSError):
            workspace = holding.enter_context(self._store.claim(node.key))
            if workspace is None:  # another run has it by now
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
        """Yield the jobs whose time has come; they stay held until they are let go."""
        while self._by_time and self._by_time[0][0] <= time.monotonic():
            yield heapq.heappop(self._by_time)[2]

    def let_go(self, key: str) -> None:
        """Let a job be taken, by this run or another."""
        if key in self._holds:
            with suppress(StoreError, OSError):
                self._holds.pop(key).close()

    def close(self) -> None:
        """Let all jobs go."""
        for key in tuple(self._holds):
            self.let_go(key)


def _expand(jobs: list[Job]) -> dict[str, ScheduledJob]:
    """Collect jobs and all they depend on, once each, every job after its inputs.

    A loop, not a recursion: the rounds of a lottery make long chains.
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
    """Give each job the place of its seed among those of a study, as the study has them.

    What several seeds need has the turn of the first. ``nodes`` come after their inputs.
    """
    seeds = dict.fromkeys(getattr(job, "seed", None) for job in jobs)
    places = {seed: place for place, seed in enumerate(seeds)}
    for node in reversed([*nodes]):
        own = places.get(getattr(node.job, "seed", None), len(places))
        node.turn = min([own, *(later.turn for later in node.dependents)])


def _first(ready: list[_Ready]) -> ScheduledJob | None:
    """Return the first of a heap that is still ready; others are dropped."""
    while ready and (ready[0][3].closed or ready[0][3].handed_out):
        heapq.heappop(ready)
    return ready[0][3] if ready else None


def _by_function(nodes: Iterable[ScheduledJob]) -> dict[Hashable, list[ScheduledJob]]:
    """Group what functions of the user's own train, by the function."""
    groups: dict[Hashable, list[ScheduledJob]] = {}
    for node in nodes:
        if node.job.trained_by is not None:
            groups.setdefault(node.job.trained_by, []).append(node)
    return groups


def _try_first(nodes: list[ScheduledJob]) -> None:
    """Let the jobs of one function wait for one of them that only measures, if one can start.

    Every training ends in a measurement too: what is wrong with that shows there, in seconds.
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
