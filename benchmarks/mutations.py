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
from regrow.errors import TraceError

sys.path.append(str(Path(__file__).parent.parent / "tests"))

TOOL = "mutations"
ATTEMPTS = 3
SMALLER = 96  # pixels: whether a wrong cut shows hardly depends on the size of the images


def caught(name: str, tool: str, *, cuts: int) -> harness.Line:
    """Make wrong cuts of a network, and return how many there were and which went unnoticed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        net, example = networks.build(name)
        small = smaller(net, example)
        result = _judged(name, net, small, cuts)
        if (result.refused or result.missed) and small is not example:
            # Too few pixels, perhaps: pooling to more positions than there are repeats them.
            result = _judged(name, net, example, cuts)
    except Exception as error:
        return harness.failed(error)
    without = "unproven" if result.refused else "nothing"
    outcome = "missed" if result.missed else "caught" if result.made else without
    line = {"outcome": outcome, "made": result.made, "missed": result.missed}
    return line | ({"message": result.refused[:300]} if result.refused else {})


def _judged(name: str, net: nn.Module, example: Any, cuts: int) -> Any:
    """Judge a network by the first random cut, of a few, that empties no layer."""
    from mutants import judged

    seed = zlib.crc32(name.encode())
    for attempt in range(ATTEMPTS):
        with suppress(TraceError):
            return judged(net, example, num=cuts, seed=seed + attempt)
    return judged(net, example, num=cuts, seed=seed + ATTEMPTS)


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
