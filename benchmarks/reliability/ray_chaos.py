"""Kill a worker, a raylet, a whole node or the command of a study on Ray, at random moments.

    python benchmarks/reliability/ray_chaos.py --rounds 30

Each round runs a study of ten jobs on a cluster of two nodes on this machine, kills one of these a
moment after a random number of jobs are done, and repeats the command if it failed. Then
``rows.csv`` must equal that of a run without Ray byte for byte, and the store must have no leftover
files. Prints a line of JSON for each round, and a summary.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ray_cluster import Cluster, cluster
from test_ray_cluster import command, finish, litter, machine, raylet, rows, start, worker, write

VICTIMS = (worker, raylet, command, machine)
MOST_RECORDS = 9  # of ten, that may exist before the kill
MOMENT = 2.0  # seconds, about the duration of a job


def one_round(nodes: Cluster, folder: Path, number: int, luck: random.Random) -> dict[str, object]:
    """Run the study, kill something, repeat the command up to three times; return what happened."""
    kill = VICTIMS[number % len(VICTIMS)]
    store, options = f"store-{number}", ("--on", "ray", "--address", nodes.address)
    started = time.monotonic()
    driver = start(folder, store, *options)
    records = luck.randint(0, MOST_RECORDS)
    while len(list((folder / store).glob("records/*/*"))) < records and driver.poll() is None:
        time.sleep(0.05)
    moment = luck.uniform(0.0, MOMENT if records else 10 * MOMENT)  # starting takes that long
    time.sleep(moment)
    under_way = driver.poll() is None
    kill(nodes, driver)
    again = 0
    while driver.wait(600) != 0:
        again += 1
        if again > 3:
            break
        driver = start(folder, store, *options)
    if kill in (raylet, machine):
        nodes.nodes.pop().kill()
        nodes.start_node()
    wrong = []
    if driver.returncode != 0:
        wrong.append("the command failed")
    elif rows(folder, store) != rows(folder, "alone"):
        wrong.append("rows.csv differs")
    wrong += [f"left over: {name}" for name in litter(folder / store)]
    if "Traceback" in (folder / f"log-{store}").read_text():
        wrong.append("a traceback")
    return {
        "round": number,
        "killed": kill.__name__,
        "records": records,
        "and_seconds": round(moment, 2),
        "under_way": under_way,
        "runs_again": again,
        "seconds": round(time.monotonic() - started, 1),
        "wrong": wrong,
    }


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no round after this")
    options = parser.parse_args()
    luck = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="ray-chaos-"))
    write(folder)
    finish(start(folder, "alone", "--workers", "1"), folder, "alone")
    begun = time.monotonic()
    found = []
    with cluster(nodes=2) as nodes:
        for number in range(options.first, options.first + options.rounds):
            if time.monotonic() - begun > 60 * options.minutes:
                break
            found.append(one_round(nodes, folder, number, luck))
            print(json.dumps(found[-1]), flush=True)
    print(
        json.dumps(
            {
                "rounds": len(found),
                "by_victim": Counter(str(result["killed"]) for result in found),
                "killed_under_way": sum(bool(result["under_way"]) for result in found),
                "wrong": sum(bool(result["wrong"]) for result in found),
                "folder": str(folder),
            }
        )
    )


if __name__ == "__main__":
    main()
