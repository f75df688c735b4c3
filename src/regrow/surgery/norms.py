"""Rules for norms: with statistics per channel, and with statistics over several channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regrow.surgery.colours import ZERO, spread
from regrow.surgery.parameters import is_of_rows, standardise
from regrow.surgery.rules import rule
from regrow.surgery.tape import Node, Ref

if TYPE_CHECKING:
    from regrow.surgery.painter import Painter

BATCH_NORMS = (
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit_no_training",
    "aten::cudnn_batch_norm",
    "aten::_batch_norm_no_update",
)


@rule(*BATCH_NORMS)
def _batch_norm(painter: Painter, node: Node) -> None:
    if not painter.is_painted(node.args[0]) and is_of_rows(painter, node):
        standardise(painter, node)
        return
    source = painter.of(node.args[0])
    channels = source.along(1)
    tensors = [a for a in node.args[1:5] if isinstance(a, Ref)]
    named = {ref: painter.tensor_name(ref) for ref in tensors}
    made = [ref for ref, name in named.items() if name is None]
    if channels is None or any(
        not painter.is_painted(ref) or painter.of(ref).along(0) is None for ref in made
    ):
        painter.unknown(node)
        return
    # Without a scale and a shift of its own a norm cannot silence what its stream still carries.
    affine = node.args[1] is not None and node.args[2] is not None
    if node.module in painter.views and affine and bool((channels > ZERO).any()):
        channels = painter.colours.view(channels, node.module)
        painter.opened[node.module] = channels
    for ref, name in named.items():
        if name is not None:
            painter.pass_through(name, 0, channels, norm=node.module)
        else:  # computed from parameters with one entry per channel
            painter.unite(channels, painter.of(ref).full())
    if not tensors and painter.tape.normalisers.get(node.module) == "num_features":
        painter.pass_width(node.module, channels)
    zero = all(painter.of(ref).clean for ref in made)
    clean = zero if affine else source.clean
    painter.put(node, spread(channels, source.shape, 1, clean=clean))


@rule("aten::native_layer_norm")
def _layer_norm(painter: Painter, node: Node) -> None:
    """Normalise by statistics over the last dimensions, which may be those of the channels."""
    source = painter.of(node.args[0])
    first = len(source.shape) - len(node.args[1])
    source = painter.level(source, range(first, len(source.shape)))
    coloured = source.coloured_dims()
    if all(dim < first for dim in coloured):  # each channel's map is normalised by itself
        shifted = node.args[3] is not None
        painter.put(node, replace(source, clean=source.clean and not shifted))
    else:
        _measure(painter, node, node.args[2:4], over=tuple(range(first, len(source.shape))))


@rule("aten::native_group_norm")
def _group_norm(painter: Painter, node: Node) -> None:
    """Normalise groups of channels; those of a group are united, unless there is only one group."""
    data, *affine = node.args[:3]
    source, groups = painter.of(data), node.args[6]
    channels = source.along(1)
    if channels is None or painter.tape.normalisers.get(node.module) != "num_groups":
        painter.unknown(node)
    elif groups == 1:
        _measure(painter, node, affine, over=(1,))
    else:
        painter.unite_rows(channels, channels.view(groups, -1)[:, 0])
        if _pass_norm(painter, node, affine, channels, dim=0):
            made = [ref for ref in affine if isinstance(ref, Ref) and painter.is_painted(ref)]
            clean = all(painter.of(ref).clean for ref in made) if made else source.clean
            named = affine[0] is not None and not made
            painter.put(node, replace(source, clean=clean or named))


def _measure(painter: Painter, node: Node, affine: Sequence[Any], *, over: tuple[int, ...]) -> None:
    """Pass channels through a norm whose statistics run over them."""
    source = painter.of(node.args[0])
    coloured = source.coloured_dims()
    attribute = painter.tape.normalisers.get(node.module) in ("normalized_shape", "num_groups")
    if not attribute or len(coloured) != 1 or coloured[0] not in over:
        painter.unknown(node)
        return
    channels = source.along(coloured[0])
    assert channels is not None
    if _pass_norm(painter, node, affine, channels, dim=over.index(coloured[0])):
        painter.measured.add(node.module)
        shift: Any = affine[1]
        clean = not isinstance(shift, Ref) or not painter.is_painted(shift)
        painter.put(node, replace(source, clean=clean or painter.of(shift).clean))


def _pass_norm(
    painter: Painter, node: Node, affine: Sequence[Any], channels: Tensor, *, dim: int
) -> bool:
    """Record a norm's scale, shift and width; keep all whole if these are not per channel."""
    tensors = [ref for ref in affine if isinstance(ref, Ref)]
    named = {ref: painter.parameter(ref) for ref in tensors}
    made = [ref for ref, name in named.items() if name is None]  # such as 1 + weight
    if any(not painter.is_painted(ref) or painter.of(ref).along(0) is None for ref in made):
        painter.unknown(node)
        return False
    for ref, name in named.items():
        if name is not None:
            painter.pass_through(name, dim, channels, norm=node.module)
        else:
            painter.unite(channels, painter.of(ref).full())
    painter.pass_width(node.module, channels, dim=dim)
    return True
