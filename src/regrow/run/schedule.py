"""The order of jobs: the graph of what is missing, longest remaining chain first.

With few workers and jobs of very different length, what starts last decides when the run ends. So
the ready job that heads the longest chain of work (its own and of those that wait for it) goes
first; without dependents that is "longest job first".
"""

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from regrow.jobs.base import Job


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
    closed: bool = False  # done, failed or blocked


class Schedule:
    """The jobs still to be done, handed out in order; every step costs O(log of the ready)."""

    def __init__(self, jobs: Iterable[Job], done: Collection[str]) -> None:
        everything = _expand(list(jobs))
        # All that a job stands on, also of one that is done: a report adds up what it all cost.
        self.nodes = {key: node for key, node in everything.items() if key not in done}
        self.reused = [node for key, node in everything.items() if key in done]
        for node in self.nodes.values():
            for key in _input_keys(node.job):
                if key in self.nodes:
                    self.nodes[key].dependents.append(node)
                    node.num_waiting_for += 1
        for node in reversed(self.nodes.values()):  # dependents come after their inputs
            node.chain = node.work + max((later.chain for later in node.dependents), default=0.0)
        self.num_open = len(self.nodes)
        self._ready: list[tuple[float, int, ScheduledJob]] = []
        for node in self.nodes.values():
            if node.num_waiting_for == 0:
                self.put_back(node)

    def take(self) -> ScheduledJob | None:
        """Return the next job that can start, or None when all that is left waits for others."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def put_back(self, node: ScheduledJob) -> None:
        """Take a job back that was handed out and not done."""
        heapq.heappush(self._ready, (-node.chain, node.index, node))

    def finish(self, node: ScheduledJob) -> None:
        """Note that a job is done, which may make others ready."""
        self._close(node)
        for later in node.dependents:
            later.num_waiting_for -= 1
            if later.num_waiting_for == 0 and not later.closed:
                self.put_back(later)

    def fail(self, node: ScheduledJob) -> list[ScheduledJob]:
        """Note that a job failed; returns those that cannot be done without it."""
        self._close(node)
        blocked: list[ScheduledJob] = []
        stack = [node]
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


def _expand(jobs: list[Job]) -> dict[str, ScheduledJob]:
    """Collect jobs and all they stand on, once each, every job after its inputs.

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


def _input_keys(job: Job) -> tuple[str, ...]:
    return tuple(dict.fromkeys(before.key for before in job.inputs))
