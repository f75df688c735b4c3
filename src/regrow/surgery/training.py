"""Compare a cut network with the silenced one in training mode, as far as that is possible.

Code may run in training alone: auxiliary heads, losses on features, averages of activations. Many
networks draw random numbers there (dropout), so only shapes can be compared, and some need targets.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from regrow.surgery.cut import copied, duplicate, shrink
from regrow.surgery.dispatch import Widening
from regrow.surgery.groups import Trace
from regrow.surgery.mask import Mask
from regrow.surgery.oracle import silence
from regrow.surgery.outputs import as_type, difference
from regrow.surgery.tape import call, output_tensors, worded

NEGLIGIBLE = 1e-9  # relative difference that rounding in float64 may cause
FAR = 1e-3  # relative difference that rounding does not cause
NOT_RUN = "Training mode was not compared: the network does not run in it on these inputs alone"
SHAPES = "In training mode only the shapes of outputs were compared: "
RANDOM = f"{SHAPES}the network draws random numbers"
NOT_FINITE = f"{SHAPES}they are not finite"
UNSTEADY = f"{SHAPES}the network amplifies rounding, or its code needs float32"


@dataclass(frozen=True, kw_only=True)
class InTraining:
    """A comparison of two networks in training mode.

    ``fault`` says what is wrong with the cut network; ``limit`` why less than all was compared.
    """

    fault: str = ""
    limit: str = ""


def in_training(
    net: nn.Module, mask: Mask, trace: Trace, x: Any, *, steady: bool = True
) -> InTraining:
    """Compare the cut network with the silenced one in training mode, on a batch of inputs.

    Only shapes are compared if the network is not ``steady``: it amplifies rounding.
    """
    quiet, small = silence(net, mask, trace), shrink(net, mask, trace)
    for dtype in (torch.float64, torch.float32):
        given = as_type(x, dtype)
        try:
            expected, other = (_trained(_in(quiet, dtype), given, seed=seed) for seed in (0, 1))
            break
        except Exception:  # it may need targets, several samples or another precision
            continue
    else:
        return InTraining(limit=NOT_RUN)
    try:
        output = _trained(_in(small, dtype), given, seed=0)
    except Exception as error:
        return InTraining(fault=f"it does not run in training mode ({worded(error)})")
    shapes, wanted = ([tuple(t.shape) for t in output_tensors(y)] for y in (output, expected))
    if shapes != wanted:
        was, now = (", ".join(map(str, every)) for every in (wanted, shapes))
        return InTraining(fault=f"it returns shapes {now} in training mode, in place of {was}")
    drawn, off = difference(other, expected), difference(output, expected)
    if math.isnan(drawn):
        return InTraining(limit=NOT_FINITE)
    if drawn > NEGLIGIBLE:
        return InTraining(limit=RANDOM)
    if not steady or dtype != torch.float64:
        return InTraining(limit=UNSTEADY)
    if not off < FAR:
        return InTraining(fault=f"its output is off by {off:.1e} in training mode")
    if off > NEGLIGIBLE:
        return InTraining(
            limit=f"In training mode outputs differ by {off:.1e}, perhaps by rounding"
        )
    return InTraining()


def _in(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a network in place; complex parameters stay complex."""
    return net.double() if dtype == torch.float64 else net.float()


def _trained(net: nn.Module, x: Any, *, seed: int) -> Any:
    """Run a copy of a network in training mode, with random numbers of a seed."""
    with torch.random.fork_rng(), torch.no_grad(), Widening():
        torch.manual_seed(seed)
        return call(duplicate(net).train(), tree_map(copied, x))
