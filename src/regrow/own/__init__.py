"""A network of one's own: what of it can be cut, cutting it to a cost, and the card of the result.

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
