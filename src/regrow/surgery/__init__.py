"""Surgery: trace a network into groups of channels, and shrink it to those that stay.

    groups = trace(model, example).groups
    small = shrink(model, mask, example)      # an ordinary, smaller nn.Module
    verify(model, mask, example)              # largest difference from the silenced model

The only code that changes shapes.
"""

from regrow.surgery.cut import Select, shrink, silence, verify
from regrow.surgery.rules import rule
from regrow.surgery.trace import Group, Kind, Slot, Trace, trace

__all__ = [
    "Group",
    "Kind",
    "Select",
    "Slot",
    "Trace",
    "rule",
    "shrink",
    "silence",
    "trace",
    "verify",
]
