"""Run many short jobs and measure the overhead of each; or run for long, and watch for leaks.

    uv run python benchmarks/reliability/load.py --rounds 10000 --workers 8 --out load.json
    uv run python benchmarks/reliability/load.py --soak 20 --out soak.json

A job waits 50 ms, and stores a record and a small tensor. The overhead of a job is the CPU time of
the coordinator and the workers for it, without their start, and the time by the clock beyond the
waiting. ``--soak MINUTES`` runs jobs of half a second (``--seconds``) for so long, and samples the
memory and open files of all processes every ten seconds; it reports their slopes over the second
half, and writes one in thirty samples.
"""

import hashlib
import os
import resource
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rounds
import torch
from rounds import Tally

from regrow.errors import Interrupted
from regrow.jobs.base import Context, Defaults, Outcome
from regrow.run import Event, JobDone, JobStarted, run
from regrow.store import Store

SECONDS = 0.05
SOAK_SECONDS = 0.5
MOST_OVERHEAD = 0.02
SAMPLE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Wait(Defaults):
    """A job that waits, and stores a small record and tensor."""

    number: int
    seconds: float
    inputs: "tuple[Wait, ...]" = ()
    flops: float = 1.0

    kind = "wait"

    @property
    def key(self) -> str:
        return hashlib.sha256(f"wait {self.number}".encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"wait {self.number}"

    @property
    def spec(self) -> dict[str, Any]:
        return {"number": self.number}

    def run(self, context: Context) -> Outcome:
        began = time.process_time()
        time.sleep(self.seconds)
        waited = time.process_time() - began
        return Outcome({"pid": os.getpid(), "waited": waited}, {"w": torch.zeros(100)})


def _seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def many(num: int, workers: int, tally: Tally) -> dict[str, Any]:
    """Measure the overhead per job of many jobs, less the cost of a run with one job per worker."""
    costs = []
    for jobs in (workers, num):
        with tempfile.TemporaryDirectory() as folder:
            store = Store.open(Path(folder) / "store")
            done: Counter[str] = Counter()

            def hear(event: Event, done: Counter[str] = done) -> None:
                if isinstance(event, JobDone):
                    done[event.key] += 1

            before = _seconds(resource.RUSAGE_SELF), _seconds(resource.RUSAGE_CHILDREN)
            began = time.monotonic()
            waits = [Wait(number=number, seconds=SECONDS) for number in range(jobs)]
            summary = run(waits, store, workers=workers, on_event=hear)
            seconds = time.monotonic() - began
            after = _seconds(resource.RUSAGE_SELF), _seconds(resource.RUSAGE_CHILDREN)
            costs.append((seconds, after[0] - before[0], after[1] - before[1]))
            if len(store.keys()) != jobs or len(summary.done) != jobs:
                tally.fault("load", f"{len(store.keys())} of {jobs} jobs are in the store")
            if doubled := [key for key, times in done.items() if times > 1]:
                tally.fault("load", f"{len(doubled)} jobs were done twice")
            left = [*(store.root / "running").iterdir()]
            if left:
                tally.fault("load", f"{len(left)} folders left in running/")
    (start, start_own, start_others), (seconds, own, others) = costs
    count = num - workers
    overhead = (own - start_own + others - start_others) / count
    wall = (seconds - start) / count * workers - SECONDS
    tally.rounds = num
    if overhead > MOST_OVERHEAD:
        tally.fault("load", f"{1000 * overhead:.1f} ms of CPU time per job")
    return {
        "workers": workers,
        "coordinator_ms_a_job": round(1000 * (own - start_own) / count, 3),
        "worker_ms_a_job": round(1000 * (others - start_others) / count, 3),
        "wall_overhead_ms_a_job_of_a_worker": round(1000 * wall, 3),
    }


def soak(minutes: float, workers: int, seconds: float, tally: Tally) -> dict[str, Any]:
    """Run jobs for so many minutes, and fit lines to memory and open files."""
    samples: dict[str, list[tuple[float, float, float]]] = {"coordinator": [], "workers": []}
    over = threading.Event()
    began = time.monotonic()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            now = (time.monotonic() - began) / 60
            samples["coordinator"].append((now, *_held([os.getpid()])))
            samples["workers"].append((now, *_held(_workers())))

    watch = threading.Thread(target=sample, daemon=True)
    watch.start()
    num = round(60 * minutes / seconds * workers)  # more than there is time for
    done: Counter[str] = Counter()

    def hear(event: Event) -> None:
        tally.count("jobs started", isinstance(event, JobStarted))
        if isinstance(event, JobDone):
            done[event.key] += 1

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        jobs = [Wait(number=number, seconds=seconds) for number in range(num)]
        with suppress(Interrupted):
            run(jobs, store, workers=workers, on_event=hear, stop_after=60 * minutes)
        if {*store.keys()} != {*done} or max(done.values()) > 1:
            stored = len(store.keys())
            tally.fault("soak", f"{stored} jobs are stored, {done.total()} were reported done")
    over.set()
    watch.join()
    tally.rounds = len(done)
    found: dict[str, Any] = {"minutes": round((time.monotonic() - began) / 60, 1)}
    for name, values in samples.items():
        values = values[:-2]  # without the end, when workers exit
        later = values[len(values) // 2 :]
        found[f"{name}_minutes_megabytes_handles"] = [
            (round(minute), *held) for minute, *held in values[::30]
        ]
        for place, noun in ((1, "megabytes"), (2, "handles")):
            found[f"{name}_{noun}_at_end"] = later[-1][place] if later else None
            found[f"{name}_{noun}_slope_an_hour"] = _slope(later, place)
    return found


def _workers() -> list[int]:
    own = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(number) for number in own]


def _held(processes: list[int]) -> tuple[float, float]:
    """Return the resident megabytes and the open files of processes, in total."""
    memory = files = 0.0
    for number in processes:
        try:
            resident = int(Path(f"/proc/{number}/statm").read_text().split()[1])
            files += len(os.listdir(f"/proc/{number}/fd"))  # noqa: PTH208
        except (OSError, IndexError):
            continue
        memory += resident * os.sysconf("SC_PAGE_SIZE") / 1e6
    return round(memory, 1), files


def _slope(values: list[tuple[float, float, float]], place: int) -> float | None:
    """Return the slope per hour of a least-squares line; None for fewer than three values."""
    if len(values) < 3:
        return None
    middle = sum(value[0] for value in values) / len(values)
    mean = sum(value[place] for value in values) / len(values)
    spread = sum((value[0] - middle) ** 2 for value in values)
    shared = sum((value[0] - middle) * (value[place] - mean) for value in values)
    return round(60 * shared / spread, 3)


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--seconds", type=float, default=SOAK_SECONDS, help="per job, with --soak")
    given = parser.parse_args()
    tally = Tally("soak" if given.soak else "load")
    if given.soak:
        found = soak(given.soak, given.workers, given.seconds, tally)
    else:
        found = many(given.rounds, given.workers, tally)
    print(found)
    return tally.close(given.out, **found)


if __name__ == "__main__":
    raise SystemExit(main())
