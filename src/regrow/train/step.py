"""One training step: the order of its parts, as tensor operations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from regrow.data import Images
from regrow.data.augment import cut_out, mix, scale_bytes
from regrow.models.fused import fused_in_float32
from regrow.train.blocks import whole_blocks
from regrow.train.fast_convolutions import fast_convolutions
from regrow.train.masks import MaskedWeights
from regrow.train.objective import Objective
from regrow.train.optimiser import Optimiser
from regrow.train.recipe import EngineName, Precision, Recipe
from regrow.train.safe_convolutions import safe_convolutions
from regrow.train.small_maps import as_products
from regrow.train.treatment import Moment, Treatment

LOOKAHEAD_DECAY = 0.95  # of the average, per update, at the end of training (arXiv:2404.00498)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The tensors and settings that every step of a training uses; changed in place."""

    model: nn.Module
    network: nn.Module  # runs the forward pass: the model, or its wrapper that averages over ranks
    objective: Objective
    recipe: Recipe
    channels_last: bool  # as the recipe says, if the network allows it
    device: torch.device
    images: Images
    labels: Tensor  # of all images, on the device
    augmentation: str
    normalisation: tuple[Tensor, Tensor] | None  # factor and offset of images, on the device
    parameters: list[nn.Parameter]  # those that learn
    decays: list[float]  # of each of them
    rates: list[float]  # of each of them, as a multiple of the step's
    optimiser: Optimiser
    state: dict[str, list[Tensor]]  # the optimiser's state for each of them
    treatment: Treatment
    masked: MaskedWeights | None
    seed: int
    bounds: list[tuple[int, int]]  # of the batches of an epoch
    losses: Tensor  # of the steps of the current epoch, on the device: float32 [steps]
    counts: Tensor | None  # of the terms of each loss, if that depends on the targets' values
    averaged: list[Tensor] = field(default_factory=list)  # live tensors, averaged over updates
    averages: list[Tensor] = field(default_factory=list)  # of each of them
    teacher: Callable[[Any], Any] | None = None  # inputs -> the teacher's outputs

    def moment(self, step: int | Tensor, lr: float | Tensor) -> Moment:
        """Return the moment of a step, for the hooks of the treatment."""
        return Moment(
            step=cast("int", step),
            lr=cast("float", lr),
            steps_per_epoch=len(self.bounds),
            recipe=self.recipe,
            seed=self.seed,
        )

    def changes_masks(self, moment: Moment) -> bool:
        """Return whether the treatment changes masks on the step of a moment."""
        return self.treatment.masks is not None and self.treatment.masks.when(moment)


class Numbers(NamedTuple):
    """The numbers of a step: floats, or scalar tensors on the device."""

    lr: float | Tensor
    decay: float | Tensor  # the share of the averages of weights that stays
    pull: float | Tensor  # 1 if the averages replace the weights, else 0
    share: float | Tensor  # of an image when it is mixed with another


class Batch(NamedTuple):
    """The examples of one step, on the device."""

    pixels: Any  # augmented bytes; for other examples their inputs, a tensor or several by name
    labels: Tensor
    holes: Tensor  # int64 [B, 2], the centres of cutouts; [B, 0] without cutout


def update(
    parts: Parts,
    batch: Batch,
    numbers: Numbers,
    *,
    moment: Moment,
    random: AbstractContextManager[None],
    weight: float | Tensor = 1.0,
    change_masks: bool = False,
) -> Tensor:
    """Take one update on a batch of augmented bytes, and return the loss before it.

    Normalise, cut out, mix, forward, loss (times ``weight`` for the gradients), backward; then the
    steps listed in ``train.treatment``. Gradients are clipped right before the update, and weights
    are averaged at the end.
    """
    model, recipe, masked = parts.model, parts.recipe, parts.masked
    x = normalised(batch.pixels, parts.normalisation, channels_last=parts.channels_last)
    if recipe.cutout is not None:
        x = cut_out(x, batch.holes, side=recipe.cutout)
    if recipe.mixup is not None:
        x = mix(x, numbers.share)
    kind, precision = parts.device.type, recipe.precision
    with computing(parts.network, kind, precision, engine=recipe.engine):
        with random:
            outputs = called(parts.network, x, precision)
        loss = loss_of(parts, outputs, batch.labels, inputs=x, share=numbers.share)
        for parameter in parts.parameters:
            parameter.grad = None
        scaled = loss if isinstance(weight, float) and weight == 1.0 else loss * weight
        scaled.backward()  # type: ignore[no-untyped-call]
    treatment = parts.treatment
    if treatment.gradients is not None:
        treatment.gradients(model, moment)
    if change_masks:
        _change_masks(parts, moment)
    if masked is not None:
        masked.zero_weights_()
    if not (change_masks and treatment.masks is not None and treatment.masks.replaces_update):
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(parts.parameters, recipe.clip)
        descend(parts, moment.lr)
    if treatment.updated is not None:
        treatment.updated(model, moment)
    if masked is not None:
        masked.zero_weights_()
    if parts.averages:
        average_(parts.averages, parts.averaged, decay=numbers.decay)
        pull_(parts.averaged, parts.averages, pull=numbers.pull)
        if masked is not None and recipe.lookahead is not None:
            masked.zero_weights_()
    return loss.detach()


def loss_of(
    parts: Parts, outputs: Any, targets: Any, *, inputs: Any, share: float | Tensor = 1.0
) -> Tensor:
    """Return the mean loss of a batch; for mixed images weighted by the shares of both targets."""
    objective = parts.objective
    teacher = None
    if parts.teacher is not None:
        with torch.no_grad():
            teacher = parts.teacher(inputs)
    loss = objective.mean(outputs, targets, teacher=teacher)
    if parts.recipe.mixup is None:
        return loss
    flipped = objective.mean(outputs, targets.flip(0), teacher=teacher)
    return share * loss + (1 - share) * flipped


def _change_masks(parts: Parts, moment: Moment) -> None:
    """Let the treatment change the masks, and clear the optimiser's state of masked weights."""
    masked, updates = parts.masked, parts.treatment.masks
    assert masked is not None
    assert updates is not None
    if not updates.dense_gradients:
        masked.zero_gradients_()
    updates.change(parts.model, masked.factors, moment)
    factors = dict(zip(map(id, masked.parameters), masked.factors.values(), strict=True))
    for remembered in parts.state.values():
        for parameter, tensor in zip(parts.parameters, remembered, strict=True):
            if id(parameter) in factors and tensor.shape == parameter.shape:
                tensor.mul_(factors[id(parameter)])


def descend(parts: Parts, lr: float | Tensor) -> None:
    """Update the parameters in place."""
    parts.optimiser.step(
        parts.parameters, parts.state, decays=parts.decays, lr=lr, rates=parts.rates
    )


def average_(averages: list[Tensor], values: list[Tensor], *, decay: float | Tensor) -> None:
    """Move averages towards values: decay * average + (1 - decay) * value."""
    if isinstance(decay, float) and decay == 1.0:
        return
    with torch.no_grad():
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(steps, 1 - decay)
        torch._foreach_add_(averages, steps)


def pull_(values: list[Tensor], averages: list[Tensor], *, pull: float | Tensor) -> None:
    """Replace values by averages if ``pull`` is 1; leave them if it is 0."""
    if isinstance(pull, float) and pull == 0.0:
        return
    with torch.no_grad():
        # Exact at 0 and 1, where a step of pull * (average - value) would round.
        torch._foreach_mul_(values, 1 - pull)
        torch._foreach_add_(values, torch._foreach_mul(averages, pull))


def averaging(recipe: Recipe, *, step: int, num: int, before: int) -> tuple[float, float]:
    """Return the averages' decay at an update, and 1 if they then replace the weights, else 0.

    The update is the one after ``step`` of ``num`` updates; the first ``before`` of these were not
    taken by this training.
    """
    if recipe.lookahead is None:
        taken = step - before
        return min(recipe.ema or 0.0, (1 + taken) / (10 + taken)), 0.0
    done = step + 1
    if done % recipe.lookahead and done != num:
        return 1.0, 0.0
    return float(LOOKAHEAD_DECAY**recipe.lookahead * (done / num) ** 3), 1.0


def normalised(
    pixels: Any, normalisation: tuple[Tensor, Tensor] | None, *, channels_last: bool
) -> Any:
    """Normalise bytes to a network's input, in its layout; other examples are left unchanged."""
    if normalisation is None:
        return pixels
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return scale_bytes(pixels, *normalisation).contiguous(memory_format=layout)


def forward(
    model: nn.Module, pixels: Any, precision: Precision, *, engine: EngineName = "exact"
) -> Any:
    """Return a network's outputs, converted to fp32 from the precision they were computed in.

    ``pixels``: its input, or several by name.
    """
    with computing(model, pixels.device.type, precision, engine=engine):
        return called(model, pixels, precision)


def called(model: nn.Module, pixels: Any, precision: Precision) -> Any:
    """Return a network's outputs as ``forward`` does, within ``computing``."""
    # Autocast rather than bf16 copies of fp32 master weights: casting once a step would gain 1 %
    # (ResNet-56, VGG-16) to 8 % (DenseNet-40), but callbacks would see weights of two kinds.
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(**pixels) if isinstance(pixels, Mapping) else model(pixels)
    if isinstance(outputs, Tensor):
        return outputs.float()
    return tree_map_only(Tensor, _as_float, outputs)


@contextmanager
def computing(
    model: nn.Module, kind: str, precision: Precision, *, engine: EngineName = "exact"
) -> Iterator[None]:
    """Make a network use the operations of a precision and an engine on a kind of device.

    Also in the backward pass, where a network with gradient checkpoints runs its layers again.
    """
    fused = kind == "cpu" and engine == "fused"
    short = kind == "cpu" and precision == "bf16"
    with (
        whole_blocks(model) if fused or short else nullcontext(),
        as_products(model) if short else nullcontext(),
        fast_convolutions(model) if fused else nullcontext(),
        fused_in_float32() if fused else nullcontext(),
        safe_convolutions(short=short),
    ):
        yield


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
