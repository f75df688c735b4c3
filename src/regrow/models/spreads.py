"""Weights that are drawn anew otherwise than by the code of their network.

A network's own code may draw its weights by a rule of its own, such as He's by the outputs in the
ResNets of torchvision. Where nothing knows that rule, training from scratch starts from the default
of each layer, and is compared with a network that started otherwise.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LEAST = 256  # numbers of a weight whose spread is compared; the sampling error is then 4 %
ALIKE = 1.25  # of two spreads, at most, that count as one


def unlike(built: "nn.Module", again: "nn.Module", anew: "nn.Module") -> tuple[str, ...]:
    """Name the weights of a network that have another spread, drawn anew, than its code gives them.

    ``built`` and ``again`` are built by its code, from two seeds. What is the same in both was read
    from somewhere, and what is not-a-number in ``anew`` nothing draws: these are left out.
    """
    second, drawn = again.state_dict(), anew.state_dict()
    return tuple(
        name
        for name, value in ((name, p.detach()) for name, p in built.named_parameters())
        if value.numel() >= LEAST
        and not value.equal(second[name])
        and not drawn[name].isnan().any()
        and not _are_alike(float(drawn[name].std()), float(value.std()))
    )


def _are_alike(one: float, other: float) -> bool:
    return max(one, other) <= ALIKE * min(one, other)
