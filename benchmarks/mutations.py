"""Cut many networks wrongly on purpose, and count the wrong cuts that their proofs let pass.

    uv run python benchmarks/mutations.py [PATTERN ...] [--seconds 600] [--cuts 4]

Results are appended to benchmarks/mutations.jsonl and not measured again; docs/coverage.md sums
them up.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from functools import partial
from pathlib import Path

import torch

import harness
import networks

sys.path.append(str(Path(__file__).parent.parent / "tests"))

TOOL = "mutations"


def caught(name: str, tool: str, *, cuts: int) -> harness.Line:
    """Make wrong cuts of a network, and return how many there were and which went unnoticed."""
    from mutants import survivors

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        net, example = networks.build(name)
        made, missed = survivors(net, example, num=cuts, seed=zlib.crc32(name.encode()))
    except Exception as error:
        return harness.failed(error)
    unproven = [text for text in missed if text.startswith(("Not proven", "Wrong"))]
    if unproven:  # a cut that is right, or should be, is not proven: regrow refuses it
        return {"outcome": "unproven", "message": unproven[0][:300]}
    return {"outcome": "missed" if missed else "caught", "made": made, "missed": missed}


def main() -> None:
    given = harness.options("Count the wrong cuts that proofs let pass.", "mutations.jsonl")
    given.add_argument("--cuts", type=int, default=4, help="wrong cuts per network")
    chosen = given.parse_args()
    harness.run(chosen, (TOOL,), partial(caught, cuts=chosen.cuts))


if __name__ == "__main__":
    main()
