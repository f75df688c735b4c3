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
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        net, example = networks.build(name)
        small = smaller(net, example)
        line = _caught(name, net, small, cuts)
        if line["outcome"] == "unproven" and small is not example:  # too few pixels, perhaps
            return _caught(name, net, example, cuts)
        return line
    except Exception as error:
        return harness.failed(error)


def _caught(name: str, net: nn.Module, example: Any, cuts: int) -> harness.Line:
    from mutants import survivors

    made, missed = survivors(net, example, num=cuts, seed=zlib.crc32(name.encode()))
    unproven = [text for text in missed if text.startswith(("Not proven", "Wrong"))]
    if unproven:  # a cut that is right, or should be, is not proven: regrow refuses it
        return {"outcome": "unproven", "message": unproven[0][:300]}
    return {"outcome": "missed" if missed else "caught", "made": made, "missed": missed}


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
