"""Residual blocks as units: the branch is removed, and the shortcut stays."""

from collections.abc import Collection

from torch import nn

from regrow.core.units import Unit, register_unit
from regrow.surgery import Group, Trace, block_groups
from regrow.surgery.blocks import dropped, silence_
from regrow.surgery.cut import replace_
from regrow.surgery.mask import Mask


def groups(model: nn.Module, _trace: Trace, _scope: Collection[str]) -> dict[str, Group]:
    """Return the residual blocks of a network, each as a group of a single unit."""
    return block_groups(model)


def cut_branches_(small: nn.Module, mask: Mask, _trace: Trace) -> None:
    """Replace blocks by what remains of them without their branch."""
    new: dict[nn.Module, nn.Module] = {}
    for block in dropped(small, mask).values():
        assert isinstance(block, nn.Module)
        new[block] = block.without_branch()
    replace_(small, new)


def silence_branches_(quiet: nn.Module, mask: Mask, _trace: Trace) -> None:
    """Make the branches of removed blocks add exactly zero."""
    for block in dropped(quiet, mask).values():
        silence_(block)


def sizes(mask: Mask, model: nn.Module, _trace: Trace) -> dict[str, int]:
    """Return size 0 for each parameter that is removed with a branch."""
    gone: set[int] = set()
    for block in dropped(model, mask).values():
        assert isinstance(block, nn.Module)
        stays = {id(parameter) for parameter in block.without_branch().parameters()}
        gone |= {id(parameter) for parameter in block.parameters()} - stays
    return {name: 0 for name, parameter in model.named_parameters() if id(parameter) in gone}


register_unit(
    "block",
    Unit(
        about="Residual blocks: the branch is removed, the shortcut stays",
        groups=groups,
        cut=cut_branches_,
        silence=silence_branches_,
        sizes=sizes,
        given_by_shares=lambda scope: True,
    ),
)
