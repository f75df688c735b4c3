"""Surgery: trace a network into groups of channels, and shrink it to those that are kept.

    found = trace(model, example)             # found.groups: what can be cut; found.whole: why not
    small = shrink(model, mask, found)        # an ordinary, smaller nn.Module
    verify(model, mask, found)                # is it the silenced network, and would it show?

The only code that changes shapes.
"""

from regrow.surgery.blocks import (
    Aggregated,
    Residual,
    aggregations,
    block_groups,
    blocks,
    in_shortcuts,
)
from regrow.surgery.cut import Select, kept_positions, shrink
from regrow.surgery.groups import Group, Kind, Role, Slot, Trace
from regrow.surgery.oracle import silence
from regrow.surgery.proof import Proof, prove, sensitivities, verify
from regrow.surgery.rules import rule
from regrow.surgery.trace import trace

__all__ = [
    "Aggregated",
    "Group",
    "Kind",
    "Proof",
    "Residual",
    "Role",
    "Select",
    "Slot",
    "Trace",
    "aggregations",
    "block_groups",
    "blocks",
    "in_shortcuts",
    "kept_positions",
    "prove",
    "rule",
    "sensitivities",
    "shrink",
    "silence",
    "trace",
    "verify",
]
