"""Residual blocks: a branch beside a shortcut, where surgery can drop the branch.

A block declares where its branch ends and what remains without it, because only its own code knows.
If its branch sums the groups of a grouped convolution, it declares the layer that does so.
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
        """Return what remains without the branch; it shares its layers with the block."""


@runtime_checkable
class Aggregated(Protocol):
    """A module that sums parallel paths: the groups of a grouped convolution."""

    def paths_end(self) -> tuple[nn.Module, int] | None:
        """Return the convolution that reads the paths, and their number; None for a single path."""


def aggregations(model: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Return the layers that sum paths, and how many, in the order of a network's modules."""
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
            raise TraceError(
                f"The mask names a block that the network lacks. {unknown('block', name, known)}"
            )
        if kept.numel() != 1:
            raise TraceError(
                f"The mask of the block {name!r} must be a single boolean. Got {kept.numel()}."
            )
    return {name: known[name] for name, kept in mask.kept.items() if not bool(kept)}


def silence_(block: Residual) -> None:
    """Make a block's branch add exactly zero, in place."""
    end = block.branch_end()
    assert end is not None
    with torch.no_grad():
        for tensor in _tensors(end):
            tensor.zero_()


def _tensors(end: nn.Module) -> list[Tensor]:
    """Return the parameters that a layer's output is linear in: its weight, and any bias."""
    tensors = [getattr(end, name, None) for name in ("weight", "bias")]
    return [tensor for tensor in tensors if isinstance(tensor, Tensor)]
