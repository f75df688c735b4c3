"""Reconstruct the outputs of the next layers: sample their inputs, and refit their weights.

A *reader* is a convolution or a linear layer that reads the channels of a group. Its output is a
sum over the channels that it reads, so a method can measure the contribution of each channel and,
once channels are cut, find the weights on the remaining ones that come closest to the old output.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.errors import ConfigError
from regrow.surgery import Group, Trace, kept_positions
from regrow.surgery.mask import Mask
from regrow.surgery.tape import call, evaluating

# Positions sampled in each image's map, as in Luo et al. and He et al.; all in smaller maps.
PLACES = 10
# Ridge penalty, relative to the mean square of a reader's inputs: it keeps the equations solvable
# if inputs are duplicates or always zero, and the weights near the old ones if images are too few.
RIDGE = 1e-3

Keep = Callable[[str, Tensor, Tensor], Tensor]
Solve = Callable[[Tensor, Tensor, Tensor], Tensor]


class Observer(Protocol):
    """The part of a ``Probe`` that a repair uses."""

    def observe(
        self, readers: Iterable[str], keep: Keep, *, model: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """Sample readers of the probe's network, or of ``model`` on the same images and places."""


def observe(
    model: nn.Module,
    readers: Iterable[str],
    batches: Iterable[Any],
    *,
    keep: Keep,
    seed: int,
) -> dict[str, Tensor]:
    """Run a network in evaluation mode and sample inputs and outputs of its readers at some places.

    Args:
        model: any network; it is left unchanged.
        readers: names of weights, such as ``features.conv2.weight``.
        batches: inputs of the network.
        keep: given a reader's name, its inputs at the sampled places ``[N, places, channels,
            kernel]`` (zeros in the padding) and its outputs there without the bias
            ``[N, places, outputs]``, returns what to keep, which is concatenated over the batches.
        seed: determines the places (positions in the map), together with the reader's name.

    Returns:
        What was kept, on the CPU, by reader in the order of computation.

    Raises:
        ConfigError: a reader is neither a plain convolution nor a linear layer, or is never called.
    """
    wanted = list(readers)
    observed: dict[str, list[Tensor]] = {}

    def watching(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        generator = seeded(seed, "places", name)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            inputs, outputs = _at_places(module, args[0], output, generator)
            observed.setdefault(name, []).append(keep(name, inputs, outputs).cpu())

        return hook

    modules = {name: _module_of(model, name) for name in wanted}
    handles = [module.register_forward_hook(watching(n)) for n, module in modules.items()]
    try:
        with evaluating(model), torch.no_grad():
            for x in batches:
                call(model, x)
    finally:
        for handle in handles:
            handle.remove()
    for name in wanted:
        if name not in observed:
            raise ConfigError(
                f"Cannot sample the inputs of {name!r}: its module is never called, so the network "
                "uses the weight in some other way. Use a method that uses weights alone."
            )
    return {name: torch.cat(parts) for name, parts in observed.items()}


def _module_of(model: nn.Module, weight: str) -> nn.Linear | nn.modules.conv._ConvNd:
    path, _, attribute = weight.rpartition(".")
    module = model.get_submodule(path)
    if attribute == "weight":
        if isinstance(module, nn.Linear):
            return module
        if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
            assert module.groups == 1  # else inputs and outputs form one unit, and it is no reader
            return module
    raise ConfigError(
        f"Cannot sample the inputs of {weight!r}: {type(module).__name__} is neither a convolution "
        "nor a linear layer. Use a method that uses weights alone, or leave the layer before it "
        "out of the method's scope."
    )


def _at_places(
    module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return inputs ``[N, places, channels, kernel]`` and outputs ``[N, places, outputs]``."""
    if isinstance(module, nn.Linear):
        outputs = y.flatten(1, -2) if y.dim() > 2 else y[:, None]  # [N, length, outputs]
        places = _draw_places(len(x), outputs.shape[1], generator).to(x.device)
        inputs = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        inputs = _pick(inputs, places)[..., None]
    else:
        assert isinstance(module, nn.modules.conv._ConvNd)
        outputs = y.flatten(2).transpose(1, 2)  # [N, map, outputs]
        places = _draw_places(len(x), outputs.shape[1], generator).to(x.device)
        inputs = _patches(module, x, torch.unravel_index(places, y.shape[2:]))
    outputs = _pick(outputs, places)
    bias = module.bias
    return inputs, outputs if bias is None else outputs - bias


def _draw_places(num_images: int, num_places: int, generator: torch.Generator) -> Tensor:
    """Draw places for each image, without replacement: ``[N, places]``."""
    drawn = torch.rand(num_images, num_places, generator=generator)
    return drawn.topk(min(PLACES, num_places), dim=1).indices


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """Gather the drawn places: ``[N, all places, features] -> [N, places, features]``."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def _patches(conv: nn.modules.conv._ConvNd, x: Tensor, at: Sequence[Tensor]) -> Tensor:
    """Return the input patches at places ``([N, places], ...)`` of the output map."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    steps = [torch.arange(k) * d for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    offsets = [grid.flatten().to(x.device) for grid in torch.meshgrid(*steps, indexing="ij")]
    index = torch.zeros((), dtype=torch.long, device=x.device)
    for size, stride, place, offset in zip(padded.shape[2:], conv.stride, at, offsets, strict=True):
        index = index * size + place[..., None] * stride + offset  # [N, places, kernel]
    num, channels = x.shape[:2]
    flat = index.reshape(num, 1, -1).expand(-1, channels, -1)
    seen = padded.flatten(2).gather(2, flat)  # [N, channels, places * kernel]
    return seen.reshape(num, channels, *index.shape[1:]).transpose(1, 2)


def contributions(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Any], *, seed: int
) -> dict[str, Tensor]:
    """Measure each unit's contributions to outputs of its readers: by group, ``[samples, units]``.

    A sample is an image, one of ``PLACES`` positions in a reader's map, and one output of the
    reader; if the map has fewer positions, several outputs are drawn at each. A row sums to that
    output without its bias (and without the contributions of channels outside the group). The
    samples of several readers are concatenated.

    Raises:
        ConfigError: no layer reads a group, or a layer that cannot be sampled does.
    """
    parts: dict[str, list[tuple[Group, Tensor]]] = {}
    for group in groups:
        if not group.readers():
            raise ConfigError(
                f"No layer reads the channels of {group.name!r}, so there is no output to "
                "reconstruct. Leave it out of the method's scope."
            )
        for slot in group.readers():
            parts.setdefault(slot.tensor, []).append((group, slot.units))
    weights = {name: model.get_parameter(name).detach() for name in parts}
    generators = {name: seeded(seed, "outputs", name) for name in parts}

    def keep(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        rows = _contributions(weights[name], inputs, outputs, generators[name])
        return torch.cat([_by_unit(rows, units, g.size) for g, units in parts[name]], dim=1)

    found: dict[str, list[Tensor]] = {}
    for name, joined in observe(model, parts, batches, keep=keep, seed=seed).items():
        read = [group for group, _ in parts[name]]
        for group, rows in zip(
            read, torch.split(joined, [g.size for g in read], dim=1), strict=True
        ):
            found.setdefault(group.name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in found.items()}


def _contributions(
    weight: Tensor, inputs: Tensor, outputs: Tensor, generator: torch.Generator
) -> Tensor:
    """Split drawn outputs into the contributions of the input channels: ``[samples, channels]``.

    An output is drawn by its rank among all outputs at its place, so that all are equally likely
    and the draw does not depend on the order of the layer's filters.
    """
    num_outputs = outputs.shape[2]
    num_draws = min(math.ceil(PLACES / inputs.shape[1]), num_outputs)
    ranks = torch.rand(outputs.shape, generator=generator).topk(num_draws, dim=2).indices
    drawn = outputs.argsort(dim=2).gather(2, ranks.to(outputs.device))  # [N, places, draws]
    rows = weight.reshape(num_outputs, inputs.shape[2], -1)[drawn]
    return torch.einsum("npdck,npck->npdc", rows, inputs).flatten(0, 2)


def _by_unit(rows: Tensor, units: Tensor, size: int) -> Tensor:
    """Add up a reader's input channels by unit: ``[samples, channels] -> [samples, size]``."""
    owned = (units >= 0).to(rows.device)
    total = rows.new_zeros(len(rows), size)
    return total.index_add_(1, units.to(rows.device)[owned], rows[:, owned])


def reconstruct_(
    small: nn.Module, mask: Mask, trace: Trace, *, observer: Observer, solve: Solve
) -> None:
    """Refit readers that lost inputs to the uncut network's outputs, in place.

    Readers are processed in the order of computation, and each takes its inputs from the network as
    repaired so far, so that it also compensates for the errors before it (He et al., section 3.3).
    Biases and norms are left unchanged.

    Args:
        small: the cut network; its weights are changed in place.
        mask: what was cut.
        trace: of the uncut network.
        observer: samples readers of the uncut network, or of ``small``, at the same places.
        solve: (weights ``[outputs, channels, kernel]``, inputs ``[samples, channels, kernel]``,
            outputs to reproduce ``[samples, outputs]``) -> new weights.
    """
    stays = kept_positions(mask, trace)
    readers = _cut_readers(mask, trace, stays)

    def keep_outputs(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        rows = stays.get((name, 0))  # its own filters that stay
        kept = outputs if rows is None else outputs[..., rows.to(outputs.device)]
        return kept.flatten(0, 1)

    def keep_inputs(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        return inputs.flatten(0, 1)

    for name, target in observer.observe(readers, keep_outputs).items():
        inputs = observer.observe([name], keep_inputs, model=small)[name]
        weight = small.get_parameter(name)
        old = weight.detach().cpu().reshape(len(weight), inputs.shape[1], -1)
        with torch.no_grad():
            weight.copy_(solve(old, inputs, target).reshape(weight.shape))


def _cut_readers(
    mask: Mask, trace: Trace, stays: Mapping[tuple[str, int], Tensor]
) -> tuple[str, ...]:
    slots = [slot for name in mask.kept for slot in trace.group(name).readers()]
    cut = [s.tensor for s in slots if len(stays[s.tensor, s.dim]) < len(s.units)]
    return tuple(dict.fromkeys(cut))


def least_squares(weight: Tensor, inputs: Tensor, target: Tensor) -> Tensor:
    """Solve for all weights by least squares, with a ridge towards the old weights.

    Minimises |target - inputs x weights|^2 + ridge |weights - old|^2, so the error is never larger
    than that of the old weights. Shapes as in ``reconstruct_``.
    """
    x, old = inputs.double().flatten(1), weight.double().flatten(1)
    residual = target.double() - x @ old.T  # [samples, outputs]
    num, features = x.shape
    ridge = _ridge(x.square().sum() / features)
    if num >= features:
        step = _solve(x.T @ x, x.T @ residual, ridge)
    else:  # the same solution, from the smaller of the two systems
        step = x.T @ _solve(x @ x.T, residual, ridge)
    return (old + step.T).reshape(weight.shape).to(weight)


def rescale(weight: Tensor, inputs: Tensor, target: Tensor) -> Tensor:
    """Solve for one factor for each input channel, shared by all outputs.

    The ridge pulls the factors towards 1. Shapes as in ``reconstruct_``.
    """
    _, channels, kernel = weight.shape
    x, old = inputs.double().flatten(1), weight.double().flatten(1)
    residual = target.double() - x @ old.T
    # Summed over samples and outputs, products of contributions factor into inputs and weights.
    gram = ((x.T @ x) * (old.T @ old)).reshape(channels, kernel, channels, kernel).sum((1, 3))
    right = ((x.T @ residual) * old.T).sum(1).reshape(channels, kernel).sum(1)
    step = _solve(gram, right[:, None], _ridge(gram.diagonal().mean()))  # [channels, 1]
    return (weight.double() * (1 + step)).to(weight)


def _ridge(mean_square: Tensor) -> float:
    return max(RIDGE * float(mean_square), 1e-30)  # above zero, in case all inputs are zero


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    gram.diagonal().add_(ridge)
    solution: Tensor = torch.linalg.solve(gram, right)
    return solution
