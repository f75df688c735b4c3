"""The proof of a cut: the error of the cut network against the silenced one, and its sensitivity.

Both are compared with the network's own parameters, and with redrawn ones (``alive``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.core.seeds import seeded
from regrow.core.texts import quoted
from regrow.core.units import UNITS
from regrow.errors import ConfigError, TraceError, short
from regrow.surgery.alive import called, drawn_like, enlivened, is_blank
from regrow.surgery.cut import duplicate, is_cut, shrink
from regrow.surgery.dispatch import Widening
from regrow.surgery.groups import Group, Kind, Trace
from regrow.surgery.mask import Mask, cut_groups, keeping
from regrow.surgery.oracle import silence
from regrow.surgery.outputs import as_type, difference, is_comparable, largest, unlike
from regrow.surgery.taken import check_cut
from regrow.surgery.tape import eagerly, is_dense, output_tensors, worded
from regrow.surgery.training import InTraining, in_training
from regrow.surgery.whole import IDLE

LEAST_SHOWN = 1e-3  # relative change of the output that each group has to cause
# Relative error that a correct cut may have: 4.5 million roundings in float64, and 80 in float32,
# which is used where a network's code does not run in float64.
ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-5}
# A network whose output changes by more than this when its numbers are rounded proves nothing.
MOST_ALLOWED = {torch.float64: 1e-6, torch.float32: 1e-4}
ROUNDINGS = 3
FAR = 1e-3  # relative error that rounding cannot cause in a steady network
STEADY = 1e-3  # largest change of a steady network's output by rounding, in float32
LOUDER = 100.0  # factor on groups that do not affect the output (a detector returns the best boxes)
# Number of inputs, by the largest size of one: of a single value a ReLU may let nothing through.
NUM = ((16, 1024), (4, 4096), (2, math.inf))


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of comparing a cut network with the silenced one; ``print`` shows it in words.

    Attributes:
        error: the largest difference between any outputs of the two, relative to the largest number
            of that output; NaN where an output is not finite (but infinities that both have at the
            same place are left out), infinite where the two have other shapes.
        tolerance: the error that rounding may cause.
        sensitivity: for each group that was cut, how much the output of the redrawn copy changes
            when every second unit of it (or the block) is scaled to zero, to first order; if that
            is little, measured by silencing them.
        wrong: the groups whose cut is wrong, if the error is larger than the tolerance.
        rounded: how much the output changes when the network's numbers are rounded; measured only
            if the error is larger than that of most networks. Infinite if its shape changes.
        training: what comparing the two in training mode has shown.
        unused: layers that the example does not use, which are not compared.

    ``float(proof)`` is the error, and so are ``proof < 1e-9`` and ``f"{proof:.1e}"``.
    """

    error: float
    tolerance: float
    sensitivity: Mapping[str, float]
    wrong: tuple[str, ...] = ()
    rounded: float | None = None
    training: InTraining = field(default_factory=InTraining)
    unused: tuple[str, ...] = ()

    @property
    def unproven(self) -> tuple[str, ...]:
        """The groups that hardly affect the output, so that a wrong cut of them would not show."""
        return tuple(n for n, moved in self.sensitivity.items() if not moved >= LEAST_SHOWN)

    @property
    def ok(self) -> bool:
        """True if the cut is right, and a wrong one would have shown."""
        return self.error <= self.tolerance and not self.training.fault and not self.unproven

    def __float__(self) -> float:
        return self.error

    def __lt__(self, other: float) -> bool:
        return self.error < other

    def __format__(self, spec: str) -> str:
        return format(self.error, spec) if spec else str(self)

    def __str__(self) -> str:
        if math.isnan(self.error) and not self.wrong:
            return (
                "Not proven: an output of the network is not finite (NaN, or infinite everywhere, "
                "or where that of the cut network is not), so there is nothing to compare. Repair "
                "its weights, or trace it on a valid example."
            )
        if not self.error <= self.tolerance:
            return self._refuted()
        if self.training.fault:
            return (
                f"Wrong in training: {self.training.fault} where {quoted(self.wrong, 5)} is cut. "
                "The network's code probably reads these channels, or their number, in training "
                f"alone. Change that, or do not prune there: {keeping(self.wrong)}."
            )
        if self.unproven:
            return (
                "Not proven: the cut network equals the uncut one with the removed units held at "
                f"zero, within {self.error:.1e}, but zeroing {quoted(self.unproven, 5)} changes "
                f"the output by less than {LEAST_SHOWN:g} of it, so an error there would not show. "
                "Trace the network on another example, or do not prune these groups: "
                f"{keeping(self.unproven)}."
            )
        if not self.sensitivity:
            return f"Proven: nothing is cut, and the outputs are equal within {self.error:.1e}."
        parts = [
            "Proven: on inputs like the example, the cut network equals the uncut one with the "
            f"removed units held at zero, within {self.error:.1e} (allowed: {self.tolerance:.1e}). "
            f"Each of the {len(self.sensitivity)} groups that are cut affects the output by "
            f"{min(self.sensitivity.values()):.1e} or more."
        ]
        if self.training.limit:
            parts.append(f"{self.training.limit}.")
        if self.unused:
            parts.append(
                f"Not compared, because the example does not use them: {quoted(self.unused, 5)}."
            )
        return " ".join(parts)

    def _refuted(self) -> str:
        if not self.wrong:
            off = "in the shape of its output" if math.isinf(self.error) else f"by {self.error:.1e}"
            return (
                "Not proven: the cut network differs from the uncut one with the removed units "
                f"held at zero ({off}), but {changed_by(self.rounded or 0.0)}. Such a network "
                "cannot be compared: it uses random numbers, or its code branches on small "
                "differences."
            )
        off = "its output is not finite" if math.isnan(self.error) else f"by {self.error:.1e}"
        return (
            "Wrong: the cut network differs from the uncut one with the removed units held at zero "
            f"({off}; allowed: {self.tolerance:.1e}) where {quoted(self.wrong, 5)} is cut. The "
            "network's code probably computes with the number of channels there, as in "
            f"`x / x.shape[1]`. Change that, or do not prune there: {keeping(self.wrong)}."
        )


@eagerly()
def verify(
    model: nn.Module, mask: Mask, trace: Trace, *, sensitivity: Mapping[str, float] | None = None
) -> Proof:
    """Compare the cut network with the one whose cut units are held at zero, in float64.

    Both run on random inputs like the trace's example, with the network's own parameters and with
    new random ones.

    Args:
        model, mask, trace: as for ``shrink``.
        sensitivity: what ``sensitivities`` found for this architecture; measured if not given.

    Raises:
        TraceError: the network cannot be cut by this mask, or the cut network returns another
            number of outputs, or other shapes.
    """
    check_cut(model, mask, trace)
    cut = cut_groups(mask)
    if sensitivity is not None:
        _check_measured(sensitivity, cut)
    nets, inputs, sensitivity = networks_to_compare(model, mask, trace, sensitivity)
    live = nets[1]
    compared = [compare(net, mask, trace, inputs) for net in nets]
    worst = max(compared, key=lambda result: (not result.ok, _order(result.error)))
    wrong: list[str] = []
    trained = InTraining()
    if worst.ok:
        in_train = partial(
            in_training, live, trace=trace, x=inputs[0], steady=worst.rounded is None
        )
        trained = in_train(mask)
        if trained.fault:
            wrong = _wrong(lambda part: not in_train(part).fault, mask, cut)
    elif not worst.blind:
        net = nets[compared.index(worst)]
        wrong = _wrong(lambda part: compare(net, part, trace, inputs).ok, mask, cut)
    return Proof(
        error=worst.error,
        tolerance=worst.tolerance,
        sensitivity={name: sensitivity[name] for name in cut},
        wrong=tuple(wrong),
        rounded=worst.rounded,
        training=trained,
        unused=tuple(name for name, why in trace.whole.items() if why == IDLE),
    )


def networks_to_compare(
    model: nn.Module, mask: Mask, trace: Trace, sensitivity: Mapping[str, float] | None
) -> tuple[list[nn.Module], list[Any], Mapping[str, float]]:
    """Return a network and its redrawn copies, the inputs to compare them on, and sensitivities.

    The copies are one and, if a group hardly affects its output, one in which it does.
    """
    cut = cut_groups(mask)
    inputs = inputs_like(model, trace.example)
    live = enlivened(model, inputs[0], silenced=lambda net: silence(net, mask, trace))
    if sensitivity is None:
        sensitivity = sensitivities(model, trace, cut, unit=mask.unit)
    nets = [model, live]
    unheard = [name for name in cut if not sensitivity[name] >= LEAST_SHOWN]
    if unheard and mask.unit == "channel":
        loud = _louder(live, [trace.groups[name] for name in unheard])
        moved = _moved(loud, trace, unheard, unit=mask.unit, inputs=inputs)
        heard = {name: size for name, size in moved.items() if size >= LEAST_SHOWN}
        sensitivity = {**sensitivity, **heard}
        nets += [loud] if heard else []
    return nets, inputs, sensitivity


def _check_measured(sensitivity: object, cut: Sequence[str]) -> None:
    if not isinstance(sensitivity, Mapping) or not {*cut} <= {*sensitivity}:
        raise ConfigError(
            "'sensitivity' must be what sensitivities() found for all groups that are cut: "
            f"{quoted(cut, 5)}. Got {short(sensitivity)}."
        )


def prove(
    model: nn.Module, mask: Mask, trace: Trace, *, sensitivity: Mapping[str, float] | None = None
) -> None:
    """Raise a ``TraceError`` that says why, if a cut is wrong or cannot be proven."""
    proof = verify(model, mask, trace, sensitivity=sensitivity)
    if not proof.ok:
        raise TraceError(
            f"The network was not cut, because the cut could not be proven correct. {proof}"
        )


def sensitivities(
    model: nn.Module, trace: Trace, names: Sequence[str], *, unit: str = "channel"
) -> dict[str, float]:
    """Return how much each of some groups (or blocks) affects the output: see ``Proof``.

    Measured on the redrawn copy, relative to the output. It depends on the architecture, and
    hardly on the network's weights.
    """
    inputs = inputs_like(model, trace.example)
    live = enlivened(model, inputs[0])
    return _moved(live, trace, names, unit=unit, inputs=inputs)


def inputs_like(model: nn.Module, example: Any) -> list[Any]:
    """Return the example itself, unless it is only a shape, and random inputs like it, as a batch.

    If the network takes no batches, they are returned one by one; if it fails on some, only the
    first is returned.
    """
    draw = seeded(0, "proof")
    size = max((x.numel() for x in tree_leaves(example) if isinstance(x, Tensor)), default=0)
    drawn = [drawn_like(example, draw) for _ in range(next(n for n, most in NUM if size <= most))]
    several = drawn if is_blank(example) else [example, *drawn[1:]]
    for inputs in ([tree_map(_batch, *several)], several):
        try:
            copy = duplicate(model)  # its code may keep what it computes, or change its parameters
            for x in inputs:
                called(copy, x)
        except Exception:  # a network may take one sample, or inputs that depend on one another
            continue
        return inputs
    return several[:1]


def _batch(*leaves: Any) -> Any:
    return torch.cat(leaves) if is_dense(leaves[0]) and leaves[0].dim() else leaves[0]


def _moved(
    live: nn.Module, trace: Trace, names: Sequence[str], *, unit: str, inputs: Sequence[Any]
) -> dict[str, float]:
    """Measure each group's effect on the output: to first order or, if little, by silencing."""
    groups = UNITS.get(unit).groups(live, trace, get_args(Kind))
    kept = {name: torch.arange(groups[name].size) % 2 == 1 for name in names}
    outputs = _faded(live, [groups[name] for name in names], kept, inputs)
    doubtful = [name for name in names if not outputs[name] >= 10 * LEAST_SHOWN]
    before = [called(live, x) for x in inputs] if doubtful else []
    for name in doubtful:
        quiet = silence(live, Mask(unit=unit, kept={name: kept[name]}), trace)
        moved = [difference(called(quiet, x), y) for x, y in zip(inputs, before, strict=True)]
        outputs[name] = max(1.0 if math.isinf(m) else m for m in moved)  # 1: another shape
    return outputs


def _louder(live: nn.Module, groups: Sequence[Group]) -> nn.Module:
    """Copy a network with amplified outputs of some groups, for code that uses only the largest."""
    loud = duplicate(live)
    tensors = dict(loud.named_parameters())
    with torch.no_grad():
        for name in {slot.tensor for group in groups for slot in group.producers()}:
            tensors[name].mul_(LOUDER)
    return loud


def _faded(
    live: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Tensor],
    inputs: Sequence[Any],
) -> dict[str, float]:
    """Return the derivatives of a random sum of the outputs by the scale of the removed units.

    One forward and one backward pass for all groups; zeros if a network has no derivatives.
    """
    draw = seeded(0, "fading")
    parameters = dict(live.named_parameters())
    total = torch.zeros(())
    for parameter in parameters.values():
        parameter.requires_grad_(parameter.is_floating_point())
    for leaf in output_tensors([called(live, x, graph=True) for x in inputs]):
        if leaf.requires_grad and leaf.numel():
            leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            leaf = leaf.masked_fill(leaf.isinf(), 0.0)
            weights = torch.randn(leaf.shape, generator=draw).to(leaf)
            scale = leaf.detach().norm().clamp(min=1e-30)
            total = total + ((leaf * weights).sum() / scale).cpu()
    if not total.requires_grad:
        return dict.fromkeys(kept, 0.0)
    try:
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    except RuntimeError:  # in-place operations have overwritten what the backward pass needs
        return dict.fromkeys(kept, 0.0)
    pairs = zip(parameters.items(), grads, strict=True)
    shares = {name: (p.detach() * grad).cpu() for (name, p), grad in pairs if grad is not None}
    outputs = {}
    for group in groups:
        moved = 0.0
        for slot in group.slots:
            if slot.role in ("producer", "bias", "norm") and slot.tensor in shares:
                share = shares[slot.tensor].movedim(slot.dim, 0)
                share = share.reshape(len(share), -1).sum(1)
                moved += float(share[is_cut(slot.units, kept[group.name])].sum())
        outputs[group.name] = abs(moved)
    return outputs


_Call = Callable[[nn.Module, Any], Any]  # how a network is run on an example


@dataclass(frozen=True)
class Compared:
    """The distance of a cut network from the silenced one, and the tolerance."""

    error: float
    tolerance: float
    blind: bool = False  # the network itself cannot be compared
    rounded: float | None = None

    @property
    def ok(self) -> bool:
        """True if the error is no more than rounding."""
        return self.error <= self.tolerance


def changed_by(rounded: float) -> str:
    """Say how much rounding changes a network's output."""
    if math.isinf(rounded):
        return "rounding alone changes the shape of the network's output"
    return f"rounding alone changes the network's output by {rounded:.1g}"


def _order(error: float) -> float:
    return math.inf if math.isnan(error) else error


def compare(
    net: nn.Module,
    mask: Mask,
    trace: Trace,
    inputs: Sequence[Any],
    *,
    steady: Callable[[], bool] = lambda: False,
) -> Compared:
    """Compare the network that a mask cuts with the one whose cut units are silent.

    ``steady`` returns whether rounding hardly affects the network: then a far larger error cannot
    be rounding, and the effect of rounding on the silenced network need not be measured.

    Raises:
        TraceError: the cut network does not run, or returns other shapes, which rounding does not
            cause.
    """
    small, quiet = shrink(net, mask, trace), silence(net, mask, trace)
    call: _Call = called
    in_float64 = _in_float64(quiet, inputs)
    if in_float64 is None:
        quiet, dtype = silence(net, mask, trace), torch.float32
        expected = [called(quiet, x) for x in inputs]
    else:
        (expected, call), dtype = in_float64, torch.float64
        small, inputs = small.double(), [as_type(x, dtype) for x in inputs]
    outputs = [_ran(small, x, mask, call) for x in inputs]
    error = _differences(outputs, expected)
    if not error <= ALLOWED[dtype] and dtype == torch.float64 and call is called:
        try:
            # An error that is far, in a steady network, is no rounding in float32 either.
            widened = None if error >= FAR and steady() else _widened(quiet, inputs)
        except TraceError:  # the code computes in float32
            widened, dtype = None, torch.float32
        if widened is not None:
            expected, call = widened, _without_narrowing
            outputs = [_ran(small, x, mask, call) for x in inputs]
            error = _differences(outputs, expected)
    other = next(filter(None, map(unlike, outputs, expected)), None)
    if other is not None:
        other += (
            " Make the output independent of the number of channels, or keep whole what is cut: "
            f"{keeping(cut_groups(mask)[:5])}."
        )
    del small  # frees memory before rounding is measured in another copy
    tolerance = ALLOWED[dtype]
    if error <= tolerance:
        return Compared(error, tolerance)
    if error >= FAR and steady():
        if other is not None:
            raise TraceError(other)
        return Compared(error, tolerance)
    rounded = _rounded(quiet, inputs, expected, call, dtype=dtype)
    blind = not rounded <= MOST_ALLOWED[dtype]
    if other is not None and not blind:
        raise TraceError(other)
    return Compared(error, tolerance if blind else max(tolerance, rounded), blind, rounded)


def _differences(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    return largest([difference(a, b) for a, b in zip(outputs, expected, strict=True)])


def is_steady(net: nn.Module, example: Any) -> bool:
    """Return whether rounding in float32 changes a network's output little.

    Rounding in float64 then changes it by about 1e-12, far less than an error that is ``FAR``.
    """
    numbers = (t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point())
    if any(t.dtype != torch.float32 for t in numbers):
        net = duplicate(net).float()
    x = as_type(example, torch.float32)
    try:
        return _rounded(net, [x], [called(net, x)], called, dtype=torch.float32) <= STEADY
    except TraceError:  # its code fixes another precision
        return False


def _ran(small: nn.Module, x: Any, mask: Mask, call: _Call) -> Any:
    """Run a cut network on an input that the network itself takes."""
    try:
        return call(small, x)
    except TraceError as error:
        cause = worded(error.__cause__ or error)
        raise TraceError(
            f"The cut network fails on an input that the uncut one accepts: {cause}. Its code may "
            "choose by its data which layers run, and the example ran only some of them. "
            "Trace it on an example that runs all of them, or keep their input channels whole: "
            f"{keeping(cut_groups(mask)[:5])}."
        ) from error


def _in_float64(quiet: nn.Module, inputs: Sequence[Any]) -> tuple[list[Any], _Call] | None:
    """Convert a network to float64, in place; return its outputs, and the function that ran it.

    None if its code fixes another precision: then an operation fails because types differ, or a
    mask with the lowest float64 becomes infinite in float32. If only casts to float32 are in the
    way, it is run with casts to float64 instead.
    """
    for call in (called, _without_narrowing):
        try:
            outputs = [call(quiet.double(), as_type(x, torch.float64)) for x in inputs]
        except Exception:
            continue
        if all(map(is_comparable, output_tensors(outputs))):
            return outputs, call
    return None


def _without_narrowing(model: nn.Module, example: Any) -> Any:
    with Widening():
        return called(model, example)


def _widened(quiet: nn.Module, inputs: Sequence[Any]) -> list[Any] | None:
    """Run a network in float64 without its casts to float32; return None if it has none.

    Raises:
        TraceError: its code does not run without them.
    """
    with Widening() as widening:
        outputs = [called(quiet, x) for x in inputs]
    return outputs if widening.found else None


def _rounded(
    quiet: nn.Module,
    inputs: Sequence[Any],
    expected: Sequence[Any],
    call: _Call,
    *,
    dtype: torch.dtype,
) -> float:
    """Return how much outputs change when inputs and weights change in the last two bits.

    ``dtype`` is the precision of these: float32 also for a network in float64 that casts to it.
    """
    step = 4 * torch.finfo(dtype).eps
    draw = seeded(0, "rounding")

    def nudged(leaf: Any) -> Any:
        if not is_dense(leaf) or not leaf.is_floating_point():
            return leaf
        down = (torch.rand(leaf.shape, generator=draw) < 0.5).to(leaf)
        return leaf * (1.0 - step * down)

    differences = []
    for _ in range(ROUNDINGS):
        copy = duplicate(quiet)
        with torch.no_grad():
            for tensor in (*copy.parameters(), *copy.buffers()):
                tensor.copy_(nudged(tensor))
        differences += [
            difference(call(copy, tree_map(nudged, x)), y)
            for x, y in zip(inputs, expected, strict=True)
        ]
    return largest(differences)


def _wrong(right: Callable[[Mask], bool], mask: Mask, names: Sequence[str]) -> list[str]:
    """Find by halving the groups whose cut is wrong, in a set of groups whose cut is wrong."""
    if len(names) < 2:
        return list(names)
    middle = len(names) // 2
    wrong = [
        name
        for half in (names[:middle], names[middle:])
        if not right(_only(mask, half))
        for name in _wrong(right, mask, half)
    ]
    return wrong or list(names)


def _only(mask: Mask, names: Sequence[str]) -> Mask:
    return Mask(unit=mask.unit, kept={name: mask.kept[name] for name in names})
