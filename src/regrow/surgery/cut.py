"""Cut units out of a network."""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.core.units import UNITS
from regrow.errors import TraceError
from regrow.models.layers import SelectChannels
from regrow.surgery.groups import NUMBER, WIDTH, Slot, Trace
from regrow.surgery.held import compared_in_code, is_memory, set_held_
from regrow.surgery.mask import Mask, cut_groups, keeping
from regrow.surgery.taken import check_cut
from regrow.surgery.tape import (
    Narrows,
    call,
    eagerly,
    evaluating,
    is_dense,
    output_tensors,
    worded,
)


class Select(SelectChannels):
    """A selection of channels that surgery inserts before a norm."""


@eagerly()
def shrink(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Return a smaller network without the units that a mask removes; the original is unchanged.

    The result is an ordinary module of the same classes with narrower layers. A norm that reads a
    shared stream gets a ``Select`` before it when its view is cut. Blocks that a mask over blocks
    removes are replaced by what remains of them without their branch.

    It is checked that the result runs and returns outputs of the same shapes, but not that it
    equals the silenced network. ``verify`` and ``compress`` prove that.

    Raises:
        TraceError: the mask names groups that the trace lacks, has another width, would empty a
            layer, or the smaller network does not run because its code fixes a number of channels.
    """
    check_cut(model, mask, trace)
    cut = UNITS.get(mask.unit).cut
    if cut is None:
        raise TraceError(not_cut(mask))
    # Most weights get narrower, so copying them first would be wasted.
    small = duplicate(model, sharing=UNITS.get(mask.unit).narrows)
    before = _places(small)
    cut(small, mask, trace)
    _own_(small, model)
    _refer_to_new_(small, before)
    wrong = what_breaks(small, trace)
    if wrong:
        met = _met(model, small)
        if met:
            raise TraceError(
                f"The smaller network {wrong}: {met}, and its code compares these numbers. Keep "
                "one unit more or less of that group."
            )
        raise TraceError(
            f"The smaller network {wrong}. Its code probably fixes a number of channels, or "
            "branches on the data, or a layer that runs only in training reads what was cut. "
            "Read the number from the tensor's shape there, or keep the layer at fault whole, of "
            f"those that are cut: {keeping(cut_groups(mask)[:5])}."
        )
    return small


def _met(model: nn.Module, small: nn.Module) -> str | None:
    """Return which two numbers that code compares became equal, or are no longer; else None."""
    left = dict(small.named_modules())
    for name, module in model.named_modules():
        for pair in _compared(module) if name in left else ():
            was, now = (
                [getattr(m, attribute, None) for attribute in sorted(pair)]
                for m in (module, left[name])
            )
            if len(pair) == 2 and all(isinstance(n, int) for n in (*was, *now)):
                a, b = sorted(pair)
                if (was[0] == was[1]) != (now[0] == now[1]):
                    equal = f"are both {now[0]}" if now[0] == now[1] else "are no longer equal"
                    return f"{a!r} and {b!r} of {name!r} {equal}"
    return None


def _compared(module: nn.Module) -> frozenset[frozenset[str]]:
    kind: Any = type(module)
    return compared_in_code(kind)


def duplicate(model: nn.Module, *, sharing: bool = False) -> nn.Module:
    """Copy a network; of computed tensors (such as a masked weight), only the values are copied.

    Attributes without tensors that cannot be copied (a lock, an open file) are shared.

    Args:
        model: any network.
        sharing: whether the copy has the same parameters rather than copies of them.
    """
    shared = (p for p in model.parameters() if sharing and not p.is_inference())
    return _copied(model, {id(p): p for p in shared})


_ATOMS = (bool, int, float, str, type(None), torch.dtype, torch.device)
_OWN_WAYS = ("__setstate__", "__getstate__", "__reduce_ex__", "__reduce__", "__deepcopy__")
_WAYS = [getattr(nn.Module, way, None) for way in _OWN_WAYS]
# Overridden by PyTorch's layers only to load files of its older versions.
_FOR_OLD_FILES = (nn.modules.conv._ConvNd.__setstate__, nn.MultiheadAttention.__setstate__)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module as ``deepcopy`` does, but several times faster: most attributes are plain."""
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    kind = type(module)
    ways = [getattr(kind, way, None) for way in _OWN_WAYS]
    if any(way not in (ours, *_FOR_OLD_FILES) for way, ours in zip(ways, _WAYS, strict=True)):
        copied: nn.Module = _deeply(module, memo, f"A module of the class {kind.__name__}")
        return copied
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    for name, value in vars(module).items():
        if name == "_modules":
            value = {n: m if m is None else _copied(m, memo) for n, m in value.items()}
        elif name in ("_parameters", "_buffers"):
            value = {n: _twin(tensor, memo) for n, tensor in value.items()}
        elif type(value) in (dict, OrderedDict, set) and not value:
            value = type(value)()
        elif is_memory(name, value):
            value = {}
        elif not _is_plain(value):
            value = _deeply(value, memo, f"The attribute {name!r} of {kind.__name__}")
        twin.__dict__[name] = value
    return twin


def _deeply(value: Any, memo: dict[int, Any], what: str) -> Any:
    """Copy any value, its computed tensors by their values; share it if that fails without any."""
    known = len(memo)
    try:
        return deepcopy(value, memo)
    except Exception:
        tensors = list(_tensors_in(value, set()))
    while len(memo) > known:  # parts of the copy that failed
        memo.popitem()
    if not tensors:
        return value
    memo |= {id(t): t.detach().clone() for t in tensors if not t.is_leaf and id(t) not in memo}
    try:
        return deepcopy(value, memo)
    except Exception as error:
        raise TraceError(
            f"{what} cannot be copied, and a cut is made in a copy: {worded(error)}. "
            "Store what cannot be copied apart from tensors, or outside of the network."
        ) from error


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in a value, in containers and in attributes of objects."""
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, type | ModuleType):
        seen.add(id(value))
        several = isinstance(value, list | tuple | set | frozenset | deque)
        parts = value.values() if isinstance(value, Mapping) else value if several else ()
        for part in (*parts, *getattr(value, "__dict__", {}).values()):
            yield from _tensors_in(part, seen)


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(type(part) in _ATOMS for part in value)
    return type(value) in _ATOMS


def _twin(tensor: Tensor | None, memo: dict[int, Any]) -> Tensor | None:
    """Copy a parameter or buffer; common kinds are copied without the overhead of ``deepcopy``."""
    if tensor is None or id(tensor) in memo:
        return None if tensor is None else memo[id(tensor)]
    if type(tensor) not in (Tensor, nn.Parameter) or vars(tensor):
        return deepcopy(tensor, memo)
    copied = tensor.detach().clone()
    if type(tensor) is nn.Parameter:
        copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
    memo[id(tensor)] = copied
    memo.setdefault(id(memo), []).append(tensor)  # kept alive, so that its id is not reused
    return copied


def _own_(small: nn.Module, model: nn.Module) -> None:
    """Copy the parameters that a cut network still shares with the network itself."""
    shared = {id(p) for p in model.parameters()}
    memo: dict[int, Any] = {}
    for module in small.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in shared:
                own: Any = _twin(parameter, memo)
                module._parameters[name] = own


def _places(model: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return where a network registers its parameters and buffers: dictionary, name and tensor."""
    return [
        (place, name, tensor)
        for module in model.modules()
        for place in (module._parameters, module._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]


def _refer_to_new_(small: nn.Module, before: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    """Replace old parameters and buffers in plain attributes, such as lists and optimisers."""
    new = {id(t): place[name] for place, name, t in before if place.get(name, t) is not t}
    known: dict[int, Any] = {id(m): m for m in small.modules()}
    known |= {id(t): t for _, _, t in _places(small)} | new
    without: set[int] = set()  # attributes that hold none, such as a configuration that all share
    replaced = []  # kept alive, so that no id is used again
    for module in small.modules() if new else ():
        for name, value in vars(module).items():
            registered = name in ("_modules", "_parameters", "_buffers")
            empty = type(value) in (dict, OrderedDict, set) and not value
            if registered or empty or _is_plain(value) or id(value) in without:
                continue
            memo = _Met({**known}, watched=new)
            try:
                renewed = deepcopy(value, memo)
            except (
                Exception
            ):  # it holds no tensor: ``_deeply`` refuses others that cannot be copied
                continue
            if memo.met:
                replaced.append(value)
                module.__dict__[name] = known[id(value)] = renewed
            else:
                without.add(id(value))


class _Met(dict[int, Any]):
    """A memo of ``deepcopy`` that tells whether any of some objects was met."""

    def __init__(self, memo: Mapping[int, Any], *, watched: Mapping[int, Any]) -> None:
        super().__init__(memo)
        self.watched, self.met = watched, False

    def get(self, key: int, default: Any = None) -> Any:
        """Return what takes the place of an object."""
        self.met = self.met or key in self.watched
        return super().get(key, default)


def cut_(small: nn.Module, mask: Mask, trace: Trace, *, for_trial: bool = False) -> None:
    """Cut channels out of a network, in place.

    For a trial, parameters become views of the old ones, with the right sizes but other values.
    """
    check(mask, trace)
    kept = kept_positions(mask, trace)
    for name, widths in trace.movers.items():
        sides = [
            kept.get((f"{name}:{side}", 1), torch.arange(width))
            for side, width in zip(("in", "out"), widths, strict=True)
        ]
        module = small.get_submodule(name)
        assert isinstance(module, Narrows)
        module.narrow_(kept_in=sides[0], kept_out=sides[1])
    for tensor, dim in kept:
        if tensor.endswith(WIDTH):
            norm = small.get_submodule(tensor.removesuffix(WIDTH))
            _set_width_(norm, dim, len(kept[tensor, dim]))
    numbers = {slot: len(positions) for slot, positions in kept.items() if NUMBER in slot[0]}
    set_held_(small, numbers, trace.unneeded)
    _narrow_tensors_(small, kept, copied=not for_trial, even=trace.even)
    _insert_selects_(small, trace, mask)


def check(mask: Mask, trace: Trace) -> None:
    """Raise a ``TraceError`` if a mask over channels is not one of this network."""
    for name, kept in mask.kept.items():
        group = trace.group(name)
        if kept.dim() != 1:
            raise TraceError(
                f"The mask of {name!r} has the shape {tuple(kept.shape)}. Give one boolean for "
                f"each unit, in a tensor of shape ({group.size},)."
            )
        if len(kept) != group.size:
            raise TraceError(
                f"The mask of {name!r} has {len(kept)} units, but the group has {group.size}. "
                "Use a mask made for this network."
            )
        if not bool(kept.any()):
            raise TraceError(
                f"The mask would empty {name!r}. Keep at least one unit of each group."
            )


def not_cut(mask: Mask) -> str:
    """Return the error message for a mask over units that are held at zero."""
    return (
        f"Only channels and blocks can be cut out. Got a mask over {mask.unit}s, which are held at "
        "zero in a network of full size."
    )


def is_cut(units: Tensor, kept: Tensor) -> Tensor:
    """Return which positions of a slot belong to removed units."""
    return (units >= 0) & ~kept.cpu()[units.clamp(min=0)]


def kept_positions(mask: Mask, trace: Trace) -> dict[tuple[str, int], Tensor]:
    """Return the positions that are kept, for each dimension of each tensor that a cut changes."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in mask.kept.items():
        known: dict[int, Tensor] = {}  # many slots share ``units``, such as a norm's four tensors
        for slot in trace.groups[name].slots:
            units = id(slot.units)
            if units not in known:
                known[units] = ~is_cut(slot.units, kept)
            key = (slot.tensor, slot.dim)
            stays[key] = stays[key] & known[units] if key in stays else known[units]
    for key, stays_in_dim in stays.items():
        if not bool(stays_in_dim.any()):
            raise TraceError(_emptied(key, mask, trace))
    return {key: stays_in_dim.nonzero().flatten() for key, stays_in_dim in stays.items()}


def _emptied(key: tuple[str, int], mask: Mask, trace: Trace) -> str:
    """Return the error message for a tensor of which no position would be kept."""
    name = next(n for n in mask.kept for s in trace.groups[n].slots if (s.tensor, s.dim) == key)
    return (
        f"The mask would empty {key[0]!r}, which holds some of the units of {name!r} only, or of "
        f"other groups as well. Keep another unit of {name!r}."
    )


def _insert_selects_(small: nn.Module, trace: Trace, mask: Mask) -> None:
    """Insert a selection before each norm whose view is cut, indexed in the stream as cut."""
    views = [name for name in mask.kept if trace.groups[name].kind == "view"]
    scales = {f"{name}.weight": name for name in views}
    over: dict[str, dict[str, Slot]] = {name: {} for name in views}  # view -> slots of its scale
    for other in mask.kept:
        for slot in trace.groups[other].slots:
            if slot.role == "norm" and slot.tensor in scales:
                over[scales[slot.tensor]][other] = slot
    chosen: dict[nn.Module, nn.Module] = {}
    for name, slots in over.items():
        in_view = ~is_cut(slots.pop(name).units, mask.kept[name])
        in_stream = torch.ones_like(in_view)
        for stream, slot in slots.items():
            in_stream &= ~is_cut(slot.units, mask.kept[stream])
        if not bool((in_stream & ~in_view).any()):
            continue
        index = in_view[in_stream].nonzero().flatten()
        norm = small.get_submodule(name)
        device = next(norm.parameters()).device
        chosen[norm] = nn.Sequential(OrderedDict(select=Select(index.to(device)), norm=norm))
    replace_(small, chosen)


def replace_(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules of a network by others, under all of their names, in place."""
    if new:
        for parent in list(model.modules()):
            for child, module in list(parent.named_children()):
                if module in new:
                    setattr(parent, child, new[module])


def _narrow_tensors_(
    small: nn.Module,
    kept: Mapping[tuple[str, int], Tensor],
    *,
    copied: bool,
    even: Collection[str],
) -> None:
    dims: dict[str, list[int]] = {}
    for tensor, dim in kept:
        if ":" not in tensor:
            dims.setdefault(tensor, []).append(dim)
    tensors = dict(small.named_parameters()) | dict(small.named_buffers())
    narrow: dict[int, Tensor] = {}
    for name, cut in dims.items():
        old = tensors[name]
        new = old.detach()
        for dim in sorted(cut):  # rows first, so that less is left to index
            positions = kept[name, dim]
            if not copied and isinstance(old, nn.Parameter):  # in a trial only sizes matter
                new = new.narrow(dim, 0, len(positions))
            else:
                new = _choose(new, dim, positions)
        if copied:
            new = new.contiguous()
            if new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr():
                new = new.clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        narrow[id(old)] = new
    # By identity and not by name, because modules may share a parameter.
    for name, module in small.named_modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        found = {attribute: narrow[id(t)] for attribute, t in own if id(t) in narrow}
        for attribute, narrowed in found.items():
            setattr(module, attribute, narrowed)
        if found:
            _sync_(module, even=f"{name}.weight" in even)


def _choose(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Select positions along a dimension; contiguous ones without a copy."""
    first = int(positions[0])
    if torch.equal(positions, torch.arange(first, first + len(positions))):
        return tensor.narrow(dim, first, len(positions))
    return tensor.index_select(dim, positions.to(tensor.device))


def _sync_(module: nn.Module, *, even: bool) -> None:
    """Update a layer's width attributes to the shapes of its weights."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first = module.in_channels if module.transposed else module.out_channels
        if module.groups > 1 and not even:  # whole groups were removed
            module.groups = module.groups * module.weight.shape[0] // first
        sides = (module.weight.shape[0], module.weight.shape[1] * module.groups)
        out_side, in_side = (1, 0) if module.transposed else (0, 1)
        module.out_channels, module.in_channels = sides[out_side], sides[in_side]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        shaped = module.weight if module.weight is not None else module.running_mean
        assert shaped is not None
        module.num_features = len(shaped)


def _set_width_(norm: nn.Module, dim: int, width: int) -> None:
    """Set a norm's number of channels, in one of the dimensions that it normalises over."""
    if isinstance(norm, nn.GroupNorm):
        # Of several groups, whole ones are removed; a single one is narrowed.
        norm.num_groups = max(1, norm.num_groups * width // norm.num_channels)
        norm.num_channels = width
    elif hasattr(norm, "normalized_shape"):
        shape: Any = norm.normalized_shape
        shape = shape if isinstance(shape, tuple | list) else (shape,)
        setattr(norm, "normalized_shape", (*shape[:dim], width, *shape[dim + 1 :]))  # noqa: B010
    else:
        setattr(norm, "num_features", width)  # noqa: B010


def _twice(value: Any) -> Any:
    """Return a batch of two, which norms need in training."""
    return torch.cat([value] * 2) if is_dense(value) and value.dim() else value


def copied(value: Any) -> Any:
    """Copy a tensor that a network may write into."""
    return value.clone() if isinstance(value, Tensor) else value


def what_breaks(small: nn.Module, trace: Trace) -> str | None:
    """Return what is wrong with a smaller network on the trace's example, or None."""
    how = ""
    try:
        with torch.no_grad(), evaluating(small):
            output = call(small, tree_map(copied, trace.example))
        if trace.idle:
            how = " in training"  # layers that run only there may read what was cut
            train(small, trace)
    except Exception as error:
        return f"does not run{how}: {str(error) or type(error).__name__}"
    return wrong_output(tuple(tuple(x.shape) for x in output_tensors(output)), trace)


def wrong_output(shapes: tuple[tuple[int, ...], ...], trace: Trace) -> str | None:
    """Return what is wrong with the shapes of a smaller network's outputs, or None."""
    if trace.outputs is None or shapes == trace.outputs:
        return None
    was, now = (", ".join(map(str, every)) for every in (trace.outputs, shapes))
    return f"returns another shape, {now} in place of {was}"


def train(model: nn.Module, trace: Trace) -> None:
    """Run a copy of a network in training, on a batch of two."""
    with torch.no_grad():
        call(duplicate(model).train(), tree_map(_twice, trace.example))
