"""Surgery: trace a network into groups of channels, and remove those that a mask prunes.

    found = trace(model, example)       # found.groups can be cut; found.whole cannot, with reasons
    small = shrink(model, mask, found)  # an ordinary, smaller nn.Module
    verify(model, mask, found)          # proves that it equals the network with zeroed channels

No other code changes the shapes of a network.
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
