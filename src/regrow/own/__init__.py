"""A user's own network: what can be pruned, cutting it to a cost, and the result's card.

print(inspect(net, (1, 3, 224, 224)))
"""

from regrow.core.lazy import exports

__getattr__ = exports(
    "regrow.own",
    {
        "compression": ("Compressed", "compress"),
        "exports": ("export",),
        "hub": ("pull", "push"),
        "inspection": ("Inspection", "inspect"),
    },
)
