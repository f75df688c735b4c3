"""Kill runs, start them again, and check that nothing was lost, duplicated or left over.

    uv run python benchmarks/reliability/kills.py --out kills.json

Kills are SIGKILL. ``--rounds`` is the number of kills of runs in one process: at each file
operation of a run (for successive writes to one file, at the first two, the last and one between),
and then at random moments. ``--workers`` adds rounds with one or two worker processes, in which the
run and all its workers, the run alone, or one worker is killed. ``--pairs`` adds rounds with two
runs on one store, of which one or both are killed. After each kill the same command is run again
and checked by ``rounds.Ground.after``.
"""

import os
import random
import tempfile
import time
from itertools import groupby
from pathlib import Path

import rounds
import shim
from rounds import Ground, Tally, finish, kill


def operations(control: shim.Shim, ground: Ground) -> tuple[list[int], list[str]]:
    """Return the numbers of the operations at which to kill a run, and the names of all."""
    ground.clear()
    with control.armed(ground.round):
        ended = ground.run()
    assert ended.code == 0, ended.text
    names = control.log
    chosen = []
    for _, group in groupby(range(len(names)), key=lambda number: _bare(names[number])):
        numbers = [number + 1 for number in group]
        middle = numbers[2:-1]
        chosen += numbers[:2] + ([random.choice(middle)] if middle else []) + numbers[2:][-1:]
    return chosen, names


def _bare(name: str) -> str:
    """Return an operation without digits, which differ from run to run."""
    return "".join(letter for letter in name if not letter.isdigit())


def at_operation(control: shim.Shim, ground: Ground, number: int) -> str:
    with control.armed(ground.round, at=number, action=shim.DIE):
        ended = ground.run()
    if ended.code != -9:
        return f"not killed at operation {number}, but ended with {ended.code}: {ended.text}"
    return ""


def at_a_moment(ground: Ground, rng: random.Random, seconds: float) -> bool:
    child = ground.start()
    time.sleep(rng.uniform(0.0, seconds))
    kill(child)
    return finish(child, ground.folder / "log").code == -9


def with_workers(ground: Ground, rng: random.Random, num: int) -> str:
    """Kill a run with worker processes, or a part of it, while jobs are running; say which."""
    child = ground.start(workers=num)
    running = ground.round / "store" / "running"
    began = time.monotonic()
    while not any(running.glob("*/lock")) and time.monotonic() - began < rounds.PATIENCE:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 1.0))
    what = rng.choice(("all", "the run", "a worker"))
    if what == "a worker":
        workers = [number for number in _children(child) if _is_worker(number)]
        for number in rng.sample(workers, min(1, len(workers))):
            os.kill(number, 9)
    elif what == "the run":
        os.kill(child, 9)
    else:
        kill(child)
    ended = finish(child, ground.folder / "log")
    if what == "a worker" and (ended.code != 0 or "Traceback" in ended.text):
        raise AssertionError(f"a killed worker ended its run with {ended.code}: {ended.text}")
    return what


def _children(number: int) -> list[int]:
    text = Path(f"/proc/{number}/task/{number}/children").read_text()
    return [int(word) for word in text.split()]


def _is_worker(number: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def pair(ground: Ground, rng: random.Random, seconds: float, tally: Tally) -> str:
    """Start two runs on one store, and kill one or both; a surviving run must succeed."""
    logs = ("log", "log2")
    first = ground.start(log=logs[0])
    time.sleep(rng.uniform(0.0, 0.3 * seconds))
    second = ground.start(log=logs[1])
    time.sleep(rng.uniform(0.0, seconds))
    what = rng.choice(("one", "both"))
    for child in (first, second)[: 1 if what == "one" else 2]:
        kill(child)
    finish(first, ground.folder / logs[0])
    survivor = finish(second, ground.folder / logs[1])
    if what == "one" and (survivor.code != 0 or "Traceback" in survivor.text):
        tally.fault("pair", f"the surviving run ended with {survivor.code}", survivor.text)
    return what


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=250)
    parser.add_argument("--workers", type=int, default=30, help="rounds with worker processes")
    parser.add_argument("--moments", action="store_true", help="kill at random moments only")
    parser.add_argument("--pairs", type=int, default=50, help="rounds of two runs at once")
    given = parser.parse_args()
    control = shim.preload()
    rounds.warm()
    rounds.without_figures()  # ``faults.py`` tests those
    rng = random.Random(given.seed)
    random.seed(given.seed)
    tally = Tally("kills")
    with tempfile.TemporaryDirectory() as temporary:
        ground = Ground(given.folder or Path(temporary))
        chosen, names = operations(control, ground)
        chosen = [] if given.moments else chosen
        began = time.monotonic()
        ground.clear()
        ground.run()
        seconds = time.monotonic() - began
        for number in range(given.rounds):
            ground.clear()
            if number < len(chosen):
                where = f"operation {chosen[number]} ({names[chosen[number] - 1]})"
                problem = at_operation(control, ground, chosen[number])
                if problem:
                    tally.fault(where, problem)
                tally.count("at an operation")
            else:
                where = f"moment {number}"
                tally.count("at a moment" if at_a_moment(ground, rng, seconds) else "done before")
            ground.after(where, tally, status=number % 10 == 0)
            tally.rounds += 1
        for number in range(given.workers):
            ground.clear()
            what = with_workers(ground, rng, 1 + number % 2)
            ground.after(f"{1 + number % 2} workers {number}: {what}", tally)
            tally.count(f"with workers ({what})")
            tally.rounds += 1
        for number in range(given.pairs):
            ground.clear()
            what = pair(ground, rng, 1.5 * seconds, tally)
            ground.after(f"pair {number}: {what} killed", tally)
            tally.count(f"of two runs ({what} killed)")
            tally.rounds += 1
    return tally.close(given.out, operations=len(names), seed=given.seed)


if __name__ == "__main__":
    raise SystemExit(main())
