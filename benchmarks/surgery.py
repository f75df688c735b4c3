"""regrow's surgery beside Torch-Pruning's, by one oracle: prints a table a family.

    uv pip install torch-pruning==1.6.1 timm transformers
    uv run --no-sync python benchmarks/surgery.py [PATTERN ...] [--seconds 600] [--gigabytes 10]

Both cut every network to half its width, each in a process of its own, and each cut network is
compared with the network whose cut channels are zero (benchmarks/oracle.py). Torch-Pruning is told
which layers give the output, and of the attention heads. Lines go to surgery.jsonl; what stands
there is not measured again. ``--times`` compares seconds on four networks in this process instead.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from statistics import median

import torch

import harness
import networks

OUTCOMES = [
    "exact",
    "wrong",
    "broken",
    "crash",
    "refused",
    "time-out",
    "memory",
    "killed",
    "unseen",
    "nothing",
    "unmatched",
]
TIMED = (
    "torchvision/resnet50",
    "torchvision/densenet201",
    "torchvision/vit_b_16",
    "torchvision/swin_t",
)


def table(lines: Sequence[harness.Line]) -> str:
    """Word outcomes, shares and seconds of each tool, by family."""
    rows = [f"{'':14}{'tool':15}" + "".join(f"{o:>10}" for o in OUTCOMES) + "    goes   seconds"]
    for family in dict.fromkeys(line["network"].split("/")[0] for line in lines):
        for tool in harness.TOOLS:
            own = [x for x in lines if x["network"].startswith(f"{family}/") and x["tool"] == tool]
            num = Counter(x["outcome"] for x in own)
            exact = [x for x in own if x["outcome"] == "exact"]
            goes = median([x["share"] for x in exact]) if exact else 0.0
            took = sum(x["trace_seconds"] + x["shrink_seconds"] for x in exact)
            cells = "".join(f"{num[o]:10}" for o in OUTCOMES)
            rows.append(f"{family:14}{tool:15}{cells}{goes:8.2f}{took:10.1f}")
    return "\n".join(rows)


def times(repeats: int) -> None:
    """Print the least seconds of a processor to trace and cut, of both tools by turns."""
    torch.set_num_threads(1)
    print(f"{'':26}{'ratio':>12}" + "".join(f"{tool:>16}" for tool in harness.TOOLS))
    for name in TIMED:
        net, example = networks.build(name)
        least = dict.fromkeys(harness.TOOLS, float("inf"))
        for _ in range(repeats):
            for tool, cut in harness.TOOLS.items():
                with suppress(Exception):  # the one that breaks has no time: inf
                    least[tool] = min(least[tool], sum(cut(net, example, None)[1:3]))
        ratio = least["regrow"] / least["torch-pruning"]
        print(f"{name:26}{ratio:12.2f}" + "".join(f"{x:16.3f}" for x in least.values()), flush=True)


def main() -> None:
    assert __doc__ is not None
    parser: argparse.ArgumentParser = harness.options(__doc__.splitlines()[0], "surgery.jsonl")
    parser.add_argument("--times", type=int, metavar="REPEATS", help="compare seconds only")
    given = parser.parse_args()
    if given.times:
        times(given.times)
    else:
        print(table(harness.run(given, tuple(harness.TOOLS))))


if __name__ == "__main__":
    main()
