"""Cut many networks wrongly on purpose, and count the wrong cuts that their proofs let pass.

    uv run python benchmarks/mutations.py [PATTERN ...] [--seconds 600] [--cuts 4]

Results are appended to benchmarks/mutations.jsonl and not measured again; docs/coverage.md sums
them up.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import harness
import networks

sys.path.append(str(Path(__file__).parent.parent / "tests"))

TOOL = "mutations"
SMALLER = 96  # pixels: whether a wrong cut shows hardly depends on the size of the images


def caught(name: str, tool: str, *, cuts: int) -> harness.Line:
    """Make wrong cuts of a network, and return how many there were and which went unnoticed."""
    from mutants import judged

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = zlib.crc32(name.encode())
    try:
        net, example = networks.build(name)
        small = smaller(net, example)
        result = judged(net, small, num=cuts, seed=seed)
        if result.refused and small is not example:  # too few pixels, perhaps
            result = judged(net, example, num=cuts, seed=seed)
    except Exception as error:
        return harness.failed(error)
    without = "unproven" if result.refused else "nothing"
    outcome = "missed" if result.missed else "caught" if result.made else without
    line = {"outcome": outcome, "made": result.made, "missed": result.missed}
    return line | ({"message": result.refused[:300]} if result.refused else {})


def smaller(net: nn.Module, example: Any) -> Any:
    """Return part of an image or video, if a network that takes one runs on less; else all of it.

    At most ``SMALLER`` pixels are left of each side.
    """
    if not isinstance(example, Tensor) or example.dim() < 4 or max(example.shape[-2:]) <= SMALLER:
        return example
    part = example[..., :SMALLER, :SMALLER].clone()
    with torch.no_grad(), suppress(Exception):
        net(part)
        return part
    return example


def main() -> None:
    given = harness.options("Count the wrong cuts that proofs let pass.", "mutations.jsonl")
    given.add_argument("--cuts", type=int, default=4, help="wrong cuts per network")
    chosen = given.parse_args()
    harness.run(chosen, (TOOL,), partial(caught, cuts=chosen.cuts))


if __name__ == "__main__":
    main()
