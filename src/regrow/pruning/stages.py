"""Patterns of pruned networks, stage by stage: to compare them, and to build other networks.

A stage is the layers whose feature maps have one size. ``stages_of`` finds them; ``pattern_of``
averages what each stage kept over masks (of several seeds); ``lay`` turns such a pattern into what
each layer of another network keeps, for ``select(..., pattern=...)``.

    found = trace(model, shape)
    pattern = pattern_of(masks, stages_of(model, found))  # pattern.shares: (0.97, 1.0, ...)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, prod
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.units import UNITS
from regrow.errors import ConfigError, StoreError
from regrow.surgery import Group, Residual, Trace
from regrow.surgery.mask import Mask
from regrow.surgery.tape import call, evaluating

Kernel = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """The kept share of the units in each stage, of one network or averaged over several.

    Attributes:
        unit: the unit that was counted.
        shares: of each stage, in the order of computation; 1 where no unit could be pruned.
        kernels: for weights, one mapping per stage: kernel size as text (``3x3``) -> the share kept
            at each position, row by row, over all kernels of that size.
    """

    unit: str
    shares: tuple[float, ...]
    kernels: tuple[Mapping[str, Kernel], ...] = ()

    def __post_init__(self) -> None:
        positions = [p for stage in self.kernels for k in stage.values() for row in k for p in row]
        for share in (*self.shares, *positions):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"A pattern's shares must lie in [0, 1]. Got {share!r}.")
        if self.kernels and len(self.kernels) != len(self.shares):
            raise ConfigError(
                f"A pattern of {len(self.shares)} stages must have kernels for each of them, or "
                f"none. Got {len(self.kernels)}."
            )

    @property
    def num_stages(self) -> int:
        """Count the stages."""
        return len(self.shares)

    def kernel(self, stage: int, size: str = "3x3") -> Kernel | None:
        """Return the shares at each position of a stage's kernels; None if it has no such size."""
        return self.kernels[stage].get(size) if self.kernels else None

    def to_json(self) -> dict[str, Any]:
        """Return the pattern as JSON values."""
        value: dict[str, Any] = {"unit": self.unit, "shares": list(self.shares)}
        if self.kernels:
            value["kernels"] = [
                {size: [list(row) for row in kernel] for size, kernel in stage.items()}
                for stage in self.kernels
            ]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Pattern":
        """Read what ``to_json`` wrote; anything else is a ``StoreError``."""
        try:
            return cls(
                unit=value["unit"],
                shares=tuple(float(share) for share in value["shares"]),
                kernels=tuple(
                    {size: _rows(kernel) for size, kernel in stage.items()}
                    for stage in value.get("kernels", ())
                ),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
            raise StoreError(f"This pattern is damaged ({error!r}). Create it again.") from error


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Units of one group that share a sparsity; ``units``: booleans over the group's units."""

    units: Tensor
    sparsity: float


# Finding ------------------------------------------------------------------------------------------


def stages_of(model: nn.Module, trace: Trace) -> dict[str, int]:
    """Number the stages of a network from 0, in the order of computation.

    A stage is the layers whose feature maps have the same size. The layers of a residual block
    belong to the stage of the block's output: the first block of a stage halves the map midway.
    Groups that no convolution uses have no stage: hidden linear layers, and the view of a last norm
    that only the classifier reads. (The paper's Table 18 adds up only without that norm.)

    Args:
        model: the network.
        trace: its trace.

    Returns:
        The stage of each group of channels and of each convolution's weight, by name: the names in
        masks of every unit but ``block``.
    """
    sizes = _map_sizes(model, trace.example)
    convs = {name for name in sizes if isinstance(model.get_submodule(name), _Conv)}
    numbers: dict[tuple[int, ...], int] = {}
    for name, size in sizes.items():
        if name in convs:
            numbers.setdefault(size, len(numbers))
    named = {
        name: numbers[sizes[name]]
        for name, group in trace.groups.items()
        if sizes.get(name) in numbers and _is_convolved(group, convs)
    }
    return named | {
        (f"{name}.weight" if name else "weight"): numbers[sizes[name]]
        for name in sizes
        if name in convs
    }


_Conv = nn.modules.conv._ConvNd
_Norm = nn.modules.batchnorm._BatchNorm


def _is_convolved(group: Group, convs: Iterable[str]) -> bool:
    """Return whether a convolution produces a group's channels or, for a view, reads them."""
    slots = group.readers() if group.kind == "view" else group.producers()
    return any(slot.tensor.rpartition(".")[0] in convs for slot in slots)


def _has_map(module: nn.Module) -> bool:
    return isinstance(module, _Conv | _Norm | Residual)


def _map_sizes(model: nn.Module, example: Any) -> dict[str, tuple[int, ...]]:
    """Return the map size at each convolution and norm, in the order of computation.

    For a layer in a residual block it is the size of the block's output.
    """
    names = {module: name for name, module in model.named_modules()}
    sizes: dict[str, tuple[int, ...]] = {}

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        sizes.setdefault(names[module], tuple(output.shape[2:]))

    handles = [m.register_forward_hook(note) for m in names if _has_map(m)]
    try:
        with evaluating(model), torch.no_grad():
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    inside = [name for m, name in names.items() if isinstance(m, Residual) and name in sizes]
    blocks = {name: sizes.pop(name) for name in inside}
    around = {name: [b for b in blocks if name.startswith(f"{b}.")] for name in sizes}
    return {n: blocks[around[n][0]] if around[n] else size for n, size in sizes.items()}


# Counting -----------------------------------------------------------------------------------------


def pattern_of(masks: Sequence[Mask], stages: Mapping[str, int]) -> Pattern:
    """Average masks of one network by stage; masks of weights also by kernel position.

    All kernels of one size in the layers of a stage are pooled, as in the paper's Figure 4.

    Args:
        masks: all of channels, all of filters or all of weights; one for each seed.
        stages: of that network; groups without a stage are left out.

    Raises:
        ConfigError: there is no mask, or the masks differ in kind.
    """
    units = sorted({mask.unit for mask in masks})
    staged = any(name in stages for mask in masks for name in mask.kept)
    if len(units) != 1 or not staged:
        raise ConfigError(
            "A pattern is an average over one mask or more, all of channels, all of filters or "
            f"all of weights. Got {' and '.join(f'{unit}s' for unit in units) or 'no mask'}."
        )
    (unit,) = units
    kernels = _kernels(masks, stages) if UNITS.get(unit).unstructured else ()
    return Pattern(unit=unit, shares=_shares(masks, stages), kernels=kernels)


def _shares(masks: Sequence[Mask], stages: Mapping[str, int]) -> tuple[float, ...]:
    kept, units = ([0] * _num_stages(stages) for _ in range(2))
    for mask in masks:
        for name, stays in mask.kept.items():
            if name in stages:
                kept[stages[name]] += int(stays.sum())
                units[stages[name]] += stays.numel()
    return tuple(k / n if n else 1.0 for k, n in zip(kept, units, strict=True))


def _kernels(masks: Sequence[Mask], stages: Mapping[str, int]) -> tuple[dict[str, Kernel], ...]:
    kernels: list[dict[str, Kernel]] = [{} for _ in range(_num_stages(stages))]
    pools: dict[tuple[int, str], list[Tensor]] = {}  # kept, [kernels, *size]
    for mask in masks:
        for name, kept in mask.kept.items():
            if name in stages:
                pools.setdefault((stages[name], _size(kept.shape)), []).append(kept.flatten(0, 1))
    for (stage, size), pool in pools.items():
        share = torch.cat(pool).double().mean(0)
        kernels[stage][size] = _rows(share.reshape(-1, share.shape[-1]).tolist())
    return tuple(kernels)


# Following ----------------------------------------------------------------------------------------


def lay(
    pattern: Pattern, stages: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[Part, ...]]:
    """Return how much each part of each group of a network loses to match a pattern.

    Channels: a group keeps round(its stage's share x its width), half rounded up. Weights: each
    kernel position keeps the share that the stage kept there; in kernels of a size that the
    pattern's stage does not have, all keep the stage's share. A group without a stage stays whole.

    Args:
        pattern: of any network; its stages are matched by their order.
        stages: of the network that is to follow it.
        shapes: by group: ``[units]``, or the shape of a convolution's weight.

    Raises:
        ConfigError: the networks do not have equally many stages.
    """
    if pattern.num_stages != _num_stages(stages):
        raise ConfigError(
            f"A pattern of {pattern.num_stages} stages cannot be applied to a network of "
            f"{_num_stages(stages)}. A stage is the layers with one size of feature map, and "
            "stages are matched in order: take the pattern from a network with as many."
        )
    return {name: _parts(pattern, stages.get(name), tuple(shape)) for name, shape in shapes.items()}


def _parts(pattern: Pattern, stage: int | None, shape: tuple[int, ...]) -> tuple[Part, ...]:
    size = prod(shape)
    everything = torch.ones(size, dtype=torch.bool)
    if stage is None:
        return (Part(units=everything, sparsity=0.0),)
    share = pattern.shares[stage]
    if len(shape) == 1:
        return (Part(units=everything, sparsity=1.0 - floor(share * size + 0.5) / size),)
    kernel = pattern.kernel(stage, _size(shape))
    if kernel is None:
        return (Part(units=everything, sparsity=1.0 - share),)
    positions = [share for row in kernel for share in row]
    place = torch.arange(size) % len(positions)  # of each weight within its kernel
    return tuple(
        Part(units=place == number, sparsity=1.0 - share) for number, share in enumerate(positions)
    )


def _num_stages(stages: Mapping[str, int]) -> int:
    return 1 + max(stages.values(), default=-1)


def _size(shape: Sequence[int]) -> str:
    """Return a convolution's kernel size as text, from the shape of its weight."""
    return "x".join(str(extent) for extent in shape[2:])


def _rows(values: Iterable[Iterable[float]]) -> Kernel:
    return tuple(tuple(float(value) for value in row) for row in values)
