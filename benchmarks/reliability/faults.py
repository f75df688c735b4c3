"""Make each file operation of a run fail, in every way it can, then run again without the fault.

    uv run python benchmarks/reliability/faults.py --out faults.json

The operations are those of a run with a report, figures, the page and TensorBoard's files (if
tensorboard is installed), and those of a report from stored results. Operations of one kind on
files of one kind are one site; for each site, its first operation fails, and one drawn from the
later ones. The ways to fail: a disk that stays full (ENOSPC), a device error (EIO), no permission
(EACCES), a write of half the bytes that reports it (short) or reports an error (torn), a rename
that is done but reports an error (torn). ``--rounds`` is the largest number of rounds.
``--workers`` adds rounds with one worker process, and ``--pairs`` rounds of two runs at once, one
of which meets the fault; their sites are drawn.

Required: no traceback, no hang; if the command ends with an error, its message has the system's
error text and, for a full disk, the free space; every file is complete or absent; the next run
gives the results of an undisturbed one (``rounds.Ground.after``).
"""

import csv
import errno
import importlib.util
import json
import os
import random
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import rounds
import shim
from rounds import Ended, Ground, Tally

from regrow.store import Store

FULL, DEVICE, PERMISSION = errno.ENOSPC, errno.EIO, errno.EACCES
TAKES_ROOM = ("open", "write", "mkdir", "link", "ftruncate", "fsync")
CHANGES_NAMES = ("open", "mkdir", "rename", "link", "unlink", "rmdir", "read-open")
ENDS = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>\n", ".html": b"</html>"}


@dataclass(frozen=True)
class Fault:
    """One way in which an operation fails."""

    name: str
    action: int
    error: int = 0
    lasting: bool = False


def ways(operation: str) -> Iterator[Fault]:
    """Yield the ways in which an operation can fail."""
    if operation in TAKES_ROOM:
        yield Fault("ENOSPC", shim.FAIL, FULL, lasting=True)
    yield Fault("EIO", shim.FAIL, DEVICE)
    if operation in CHANGES_NAMES:
        yield Fault("EACCES", shim.FAIL, PERMISSION)
    if operation in ("write", "read"):
        yield Fault("short", shim.SHORT)
    if operation in ("write", "rename", "link", "mkdir"):
        yield Fault("torn", shim.TORN, DEVICE)


def site(line: str) -> str:
    """Return an operation without the parts that differ between jobs, processes and repetitions."""
    line = re.sub(r"[0-9a-f]{64}", "KEY", line)
    line = re.sub(r"records/[0-9a-f]{2}", "records/XX", line)
    line = re.sub(r"scratch-[0-9a-f-]+", "scratch", line)
    line = re.sub(r"\.tmp\w+", ".tmp", line)
    return re.sub(r"[0-9]+", "N", re.sub(r"[0-9a-f]{32}", "DIGEST", line))


def sites(lines: list[str], rng: random.Random) -> list[tuple[int, str]]:
    """Choose the operations to fail: for each site, the first and a random later one."""
    by_site: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        by_site.setdefault(site(line), []).append(number)
    return [
        (number, name)
        for name, numbers in by_site.items()
        for number in (numbers[:1] + ([rng.choice(numbers[1:])] if numbers[1:] else []))
    ]


def incomplete(ground: Ground) -> Iterator[str]:
    """Yield a problem for each incomplete file under its final name."""
    store = ground.round / "store"
    if (store / "store.json").exists():
        opened = Store.open(store, create=False)
        for key in opened.keys():  # noqa: SIM118  # no mapping
            problem = opened.problem(key, opened.record(key)["spec"])
            if problem is not None:
                yield problem
    for file in [*store.glob("*.json"), *(ground.round / "out").glob("*")]:
        if file.name.startswith("."):
            continue
        try:
            if not _whole(file):
                yield f"{file.name} is incomplete"
        except Exception as error:
            yield f"{file.name}: {error}"


def _whole(file: Path) -> bool:
    content = file.read_bytes()
    if file.suffix == ".json":
        return bool(json.loads(content))
    if file.suffix == ".parquet":
        return pq.read_table(file).num_columns > 0
    if file.suffix == ".csv":
        return (
            content.endswith(b"\n")
            and len({len(x) for x in csv.reader(content.decode().splitlines())}) == 1
        )
    return content.endswith(ENDS.get(file.suffix, b"\n"))


def judge(ground: Ground, ended: Ended, fault: Fault) -> Iterator[str]:
    """Yield what is wrong with the end of a run that met a fault."""
    if "Traceback" in ended.text:
        yield "a traceback"
    if ended.code not in (0, 1, 2):
        yield f"it ended with {ended.code}"
    if ended.code and fault.error and os.strerror(fault.error) not in ended.text:
        yield "the system's error text is missing"
    if ended.code and fault.error == FULL and " free" not in ended.text:
        yield "the free space is missing"
    if not ended.code:
        for name, content in ground.results.items():
            if (ground.round / "out" / name).read_bytes() != content:
                yield f"it succeeded, but {name} differs"
    yield from incomplete(ground)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One fault to inject: at which operation of which commands."""

    ground: Ground
    number: int
    name: str
    fault: Fault
    reads: bool = False  # a read operation of a report, instead of a write operation of a run
    workers: int = 0
    runs: int = 1  # at once

    @property
    def kind(self) -> str:
        more = " in reading" * self.reads + " with a worker" * self.workers
        return self.fault.name + more + " of two runs" * (self.runs - 1)


def planned(
    control: shim.Shim, ground: Ground, rng: random.Random, *, workers: int = 0, runs: int = 1
) -> Iterator[Plan]:
    """Yield the operations of a run, and the reads of a report, with each way to fail."""
    for reads in (False, True) if runs == 1 and not workers else (False,):
        if not reads:
            ground.clear()
        with control.armed(ground.round, reads=reads):
            begun(ground, reads=reads, workers=workers, runs=runs)
        for number, name in sites(control.log, rng):
            for fault in ways(name.split()[0]):
                yield Plan(
                    ground=ground,
                    number=number,
                    name=name,
                    fault=fault,
                    reads=reads,
                    workers=workers,
                    runs=runs,
                )


def begun(ground: Ground, *, reads: bool, workers: int, runs: int) -> list[Ended]:
    """Run a command, or two runs at once, to the end."""
    command = "report" if reads else "run"
    logs = ["log", "log2"][:runs]
    children = [ground.start(command, log=log, workers=workers) for log in logs]
    return [
        rounds.finish(child, ground.folder / log) for child, log in zip(children, logs, strict=True)
    ]


def meet(control: shim.Shim, plan: Plan) -> list[Ended]:
    """Run with a fault at one operation."""
    fault = plan.fault
    armed = control.armed(
        plan.ground.round,
        at=plan.number,
        action=fault.action,
        error=fault.error,
        lasting=fault.lasting,
        reads=plan.reads,
    )
    with armed:
        return begun(plan.ground, reads=plan.reads, workers=plan.workers, runs=plan.runs)


def drawn(plans: Iterable[Plan], num: int, rng: random.Random) -> list[Plan]:
    """Draw at most ``num`` plans, and keep their order."""
    every = [*plans]
    return [every[n] for n in sorted(rng.sample(range(len(every)), min(num, len(every))))]


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=10**9)
    parser.add_argument("--only", default="", help="part of the names of the sites to test")
    parser.add_argument("--workers", type=int, default=0, help="rounds with a worker process")
    parser.add_argument("--pairs", type=int, default=0, help="rounds of two runs at once")
    given = parser.parse_args()
    control = shim.preload()
    rng = random.Random(given.seed)
    tally = Tally("faults")
    more = ("--tensorboard", "boards") if importlib.util.find_spec("tensorboard") else ()
    rounds.warm("--html", *more)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        # Pages and figures take most of the time, so sites of the store are tested without them.
        whole = Ground(folder / "whole", options=("--html", *more))
        rounds.without_figures()
        plain = Ground(folder / "plain")
        plans = [
            plan
            for ground, kept in ((plain, "store"), (whole, ""))
            for plan in planned(control, ground, rng)
            if given.only in plan.name and kept in plan.name and (kept or " store" not in plan.name)
        ]
        plans = drawn(plans, given.rounds, rng)
        for workers, runs, num in ((1, 1, given.workers), (0, 2, given.pairs)):
            if num:
                every = planned(control, plain, rng, workers=workers, runs=runs)
                plans += drawn((plan for plan in every if given.only in plan.name), num, rng)
        for plan in plans:
            rounds.without_figures(plan.ground is plain)
            if not plan.reads:
                plan.ground.clear()
            ends = meet(control, plan)
            tally.rounds += 1
            tally.count(plan.kind)
            if not control.hit:
                tally.count("not met")
                continue
            where = f"{plan.kind} at {plan.name}"
            tally.count("with an error" if any(end.code for end in ends) else "without an error")
            for ended in ends:
                for problem in judge(plan.ground, ended, plan.fault):
                    tally.fault(where, problem, ended.text)
            plan.ground.after(where, tally, status=tally.rounds % 10 == 0)
    return tally.close(given.out, sites=len({plan.name for plan in plans}), seed=given.seed)


if __name__ == "__main__":
    raise SystemExit(main())
