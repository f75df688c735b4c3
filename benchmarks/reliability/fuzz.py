"""Try many changed and hostile inputs: each must give a value or a clear error.

    uv run python benchmarks/reliability/fuzz.py --rounds 20000 --out fuzz.json

Study files (read, and expanded into jobs), folders of pruned networks (``architecture.json`` and
weights), mask and weight files, records of a store, and data: CSV, npz, safetensors and Parquet
tables, Parquet images, image folders (``hostile.py``). Stores in any state, plans, leases,
checkpoints, archives, jobs and records as they are sent to Ray, cards, reports, VOC annotations
(``hostile_stores.py``), command lines, and pipes, devices and links in place of files
(``hostile_lines.py``). The limits are those of ``bounded.py``. ``--only`` takes kinds; an input can
be made again from its number and the seed. Whether bad inputs are refused is not tested here.
"""

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import rounds
from bounded import use_all
from rounds import Tally

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

Use = Callable[[int], object]


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=20_000)
    parser.add_argument("--only", nargs="*", default=[], help="kinds of inputs", metavar="KIND")
    parser.add_argument("--number", type=int, help="only this input, with its traceback")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import hostile
    import hostile_lines
    import hostile_stores
    import torch

    torch.set_num_threads(1)
    tally = Tally("fuzz")
    kinds = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        made = {
            name: kind
            for module in (hostile, hostile_stores, hostile_lines)
            for name, kind in module.kinds(folder, seed=given.seed).items()
        }
        if given.number is not None:
            print(made[given.only[0]].use(given.number))
            return 0
        wanted = {name: kind for name, kind in made.items() if name in (given.only or made)}
        total = sum(kind.share for kind in wanted.values())
        for name, kind in wanted.items():
            num = max(1, round(given.rounds * kind.share / total))
            found = use_all(name, num=num, use=kind.use)
            tally.rounds += num
            kinds[name] = dict(found.ends) | {
                "longest_seconds": round(found.longest, 2),
                "largest_megabytes": round(found.largest / 1e6),
            }
            for end, number in found.ends.items():
                tally.count(end, number)
            groups = Counter(fault["problem"].strip().splitlines()[-1] for fault in found.faults)
            for fault in found.faults:
                if groups.pop(last := fault["problem"].strip().splitlines()[-1], 0):
                    tally.fault(f"{name} {fault['number']}", last, fault["problem"])
            print(name, json.dumps(kinds[name]), file=sys.stderr, flush=True)
    return tally.close(given.out, kinds=kinds, seed=given.seed)


if __name__ == "__main__":
    random.seed(0)
    raise SystemExit(main())
