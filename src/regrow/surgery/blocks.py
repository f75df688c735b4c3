"""Residual blocks: a branch beside a shortcut, of which surgery can drop the branch.

A block declares both, because what is left without the branch is for its own code to say; and,
where its branch adds up the groups of a grouped convolution, the layer that does so.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from regrow.errors import TraceError, unknown
from regrow.surgery.groups import Group, Slot
from regrow.surgery.mask import Mask


@runtime_checkable
class Residual(Protocol):
    """A module that adds a branch to a shortcut."""

    def branch_end(self) -> nn.Module | None:
        """Return the last layer of the branch, a convolution or a norm; None without a branch."""

    def without_branch(self) -> nn.Module:
        """Return what is left when the branch adds nothing: the same layers, without copies."""


@runtime_checkable
class Aggregated(Protocol):
    """A module that adds up paths: the groups of a grouped convolution."""

    def paths_end(self) -> tuple[nn.Module, int] | None:
        """Return the convolution that reads the paths, and how many there are; None if one."""


def aggregations(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return the layers that add up paths, and of how many, in the order of a network's modules."""
    modules = model.named_modules()
    layers = {name: m.paths_end() for name, m in modules if isinstance(m, Aggregated)}
    return {name: end for name, end in layers.items() if end is not None}


def blocks(model: nn.Module) -> dict[str, Residual]:
    """Return the blocks of a network whose branches can be dropped, in the order of its modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Residual) and module.branch_end() is not None
    }


def in_shortcuts(model: nn.Module) -> set[nn.Module]:
    """Return every layer that a block would keep without its branch."""
    shortcuts = [m.without_branch() for m in model.modules() if isinstance(m, Residual)]
    return {layer for shortcut in shortcuts for layer in shortcut.modules()}


def block_groups(model: nn.Module) -> dict[str, Group]:
    """List the blocks as groups of a single unit, made by the last layer of the branch."""
    names = {module: name for name, module in model.named_modules()}
    groups = {}
    for name, block in blocks(model).items():
        end = block.branch_end()
        assert end is not None
        unit = torch.zeros(len(_tensors(end)[0]), dtype=torch.long)
        slot = Slot(f"{names[end]}.weight", 0, unit, "producer")
        groups[name] = Group(name, "block", 1, (slot,), ())
    return groups


def dropped(model: nn.Module, mask: Mask) -> dict[str, Residual]:
    """Return the blocks of a network that a mask drops; other names are a ``TraceError``."""
    known = blocks(model)
    for name, kept in mask.kept.items():
        if name not in known:
            raise TraceError(f"The mask names a block. {unknown('block', name, known)}")
        if kept.numel() != 1:
            raise TraceError(
                f"The mask of the block {name!r} must be a single boolean. Got {kept.numel()}."
            )
    return {name: known[name] for name, kept in mask.kept.items() if not bool(kept)}


def silence_(block: Residual) -> None:
    """Let a block's branch add exactly zero, in place."""
    end = block.branch_end()
    assert end is not None
    with torch.no_grad():
        for tensor in _tensors(end):
            tensor.zero_()


def _tensors(end: nn.Module) -> list[Tensor]:
    """Return what a layer's output is linear in: its weight, and a bias if it has one."""
    tensors = [getattr(end, name, None) for name in ("weight", "bias")]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]
