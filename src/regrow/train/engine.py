"""Engines that take training steps: one after another, or recorded once and replayed.

``update`` is the order of everything inside a step, wherever it runs. ``Eager`` calls it step by
step, which is right for a CPU. ``Graphed`` records one step and replays it: the images, the epoch's
order and draws, the labels and the learning rate lie on the device, a position there says which
batch is next, and nothing waits for the device between the first step of an epoch and its last. A
GPU needs that, because its part of a step of these small networks takes less time than the many
calls of one step take here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd
from torch.utils._pytree import tree_map_only

from regrow.core.global_rng import drawing
from regrow.data import Images, MemoryImages
from regrow.data.augment import augment, scale_bytes
from regrow.train.layout import unchanged
from regrow.train.masks import MaskedWeights
from regrow.train.objective import Objective
from regrow.train.recipe import Precision, Recipe
from regrow.train.safe_convolutions import safe_convolutions
from regrow.train.small_maps import as_products
from regrow.train.treatment import Moment, Treatment

BATCHES_AHEAD = 4  # of images that are decoded while the network computes


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The tensors and settings that every step of a training uses; changed in place."""

    model: nn.Module
    network: nn.Module  # what computes: the model, or what averages over ranks around it
    objective: Objective
    recipe: Recipe
    channels_last: bool  # as the recipe says, if the network allows it
    device: torch.device
    images: Images
    labels: Tensor  # of all images, on the device
    augmentation: str
    normalisation: tuple[Tensor, Tensor]  # factor and term, on the device
    parameters: list[nn.Parameter]  # those that learn
    decays: list[float]  # of each of them
    momentum: list[Tensor]  # one for each of them; empty without momentum
    treatment: Treatment
    masked: MaskedWeights | None
    seed: int
    bounds: list[tuple[int, int]]  # of the batches of an epoch
    losses: Tensor  # of the steps of the epoch under way, on the device: float32 [steps]

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
        """Tell whether the treatment changes masks on the step of a moment."""
        return self.treatment.masks is not None and self.treatment.masks.when(moment)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The inputs of an epoch: order, random draws and learning rate."""

    number: int  # counted from 0
    order: Tensor  # int64 [N], of the images, on the CPU
    draws: Tensor  # int64 [N, ...], for the augmentation of each place of the order, on the CPU
    lr: float


class Engine(Protocol):
    """Takes the steps of a training."""

    def begin(self, epoch: Epoch) -> None:
        """Make an epoch the one whose steps are taken."""

    def step(self, place: int, *, seed: int) -> None:
        """Take the step of a place in the epoch, with the network's own draws from a seed."""


class CannotRecord(Exception):  # no error: steps are taken one call at a time then
    """The step cannot be recorded; the message says why."""


class Recorder(Protocol):
    """Records what a function does on a device, to do it again at little cost."""

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        """Return what replays the body; or ``CannotRecord``.

        May run the body any number of times before, each after ``prepare``.
        """

    def seed(self, seed: int) -> AbstractContextManager[None]:
        """Let what is replayed inside draw its random numbers from a seed."""


def update(
    parts: Parts,
    pixels: Tensor,
    labels: Tensor,
    *,
    moment: Moment,
    random: AbstractContextManager[None],
    weight: float = 1.0,
    change_masks: bool = False,
) -> Tensor:
    """Take one update on a batch of augmented bytes, and return the loss before it.

    Normalise, forward, loss (times ``weight`` for the gradients), backward; then what
    ``train.treatment`` lists.
    """
    model, recipe, masked = parts.model, parts.recipe, parts.masked
    x = normalised(pixels, parts.normalisation, channels_last=parts.channels_last)
    with random:
        outputs = forward(parts.network, x, recipe.precision)
    objective = parts.objective
    loss = objective.total(outputs, labels) / objective.count(labels)
    for parameter in parts.parameters:
        parameter.grad = None
    scaled = loss if weight == 1.0 else loss * weight
    scaled.backward()  # type: ignore[no-untyped-call]
    treatment = parts.treatment
    if treatment.gradients is not None:
        treatment.gradients(model, moment)
    if change_masks:
        _change_masks(parts, moment)
    if masked is not None:
        masked.zero_weights_()
    if not (change_masks and treatment.masks is not None and treatment.masks.replaces_update):
        descend(parts, moment.lr)
    if treatment.updated is not None:
        treatment.updated(model, moment)
    if masked is not None:
        masked.zero_weights_()
    return loss.detach()


def _change_masks(parts: Parts, moment: Moment) -> None:
    """Let the treatment change the masks, and forget the momentum of what is masked."""
    masked, updates = parts.masked, parts.treatment.masks
    assert masked is not None
    assert updates is not None
    if not updates.dense_gradients:
        masked.zero_gradients_()
    updates.change(parts.model, masked.factors, moment)
    factors = dict(zip(map(id, masked.parameters), masked.factors.values(), strict=True))
    for parameter, momentum in zip(parts.parameters, parts.momentum, strict=False):
        if id(parameter) in factors:
            momentum.mul_(factors[id(parameter)])


def descend(parts: Parts, lr: float | Tensor) -> None:
    """Update the parameters in place, in one call for all of one decay."""
    # Fused: 65 ms an update of VGG-16 where the loop takes 127 and foreach 133, 0.7 ms of ResNet-56
    # for 12 and 3 (one thread of a 2-core Sapphire Rapids, torch 2.15). The function rather than
    # the optimiser object, which gathers its lists anew each step: 0.3 ms of the 5 of the smallest.
    recipe = parts.recipe
    learning = [i for i, p in enumerate(parts.parameters) if p.grad is not None]
    for decay in dict.fromkeys(parts.decays[i] for i in learning):
        places = [i for i in learning if parts.decays[i] == decay]
        gradients = [parts.parameters[i].grad for i in places]
        with torch.no_grad():
            sgd(
                [parts.parameters[i] for i in places],
                gradients,  # type: ignore[arg-type]  # those without were left out
                [parts.momentum[i] if parts.momentum else None for i in places],
                weight_decay=decay,
                momentum=recipe.momentum,
                lr=lr,
                dampening=0.0,
                nesterov=recipe.nesterov,
                maximize=False,
                fused=True,
            )


class Eager:
    """One call after another; images in memory or streamed.

    ``bounds`` are those of this process's share of each batch, where others take the rest.
    """

    def __init__(self, parts: Parts, *, bounds: list[tuple[int, int]] | None = None) -> None:
        self._parts = parts
        self._bounds = parts.bounds if bounds is None else bounds
        self._epoch: Epoch | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []  # indices and draws, where images are read
        self._labels: list[Tensor] = []

    def begin(self, epoch: Epoch) -> None:
        """Put the order where the images are: one copy an epoch, none for those being decoded."""
        parts = self._parts
        at = parts.device if isinstance(parts.images, MemoryImages) else torch.device("cpu")
        order, draws = epoch.order.to(at), epoch.draws.to(at)
        labels = parts.labels.index_select(0, order.to(parts.device))
        self._batches = [(order[a:b], draws[a:b]) for a, b in self._bounds]
        self._labels = [labels[a:b] for a, b in self._bounds]
        self._epoch = epoch

    def step(self, place: int, *, seed: int) -> None:
        """Gather, augment, update."""
        parts, moment = self._parts, self.moment(place)
        pixels, labels = self.fetch(place)
        parts.losses[place] = update(
            parts,
            pixels,
            labels,
            moment=moment,
            random=drawing(seed, device=parts.device),
            change_masks=parts.changes_masks(moment),
        )

    def moment(self, place: int) -> Moment:
        """Return the moment of the step of a place."""
        assert self._epoch is not None
        step = self._epoch.number * len(self._parts.bounds) + place
        return self._parts.moment(step, self._epoch.lr)

    def fetch(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the augmented bytes and the labels of a place, and announce those after it."""
        parts = self._parts
        for later in self._batches[place : place + BATCHES_AHEAD]:
            parts.images.prefetch(*later, kind=parts.augmentation)
        pixels = parts.images.augmented(*self._batches[place], kind=parts.augmentation)
        return pixels.to(parts.device, non_blocking=True), self._labels[place]


class Graphed:
    """Recorded steps over images in memory: one recording for each size of batch.

    The hooks are recorded with the step and do not run again, so they must be functions of the
    tensors of the model and the moment alone. Tensors that a step changes keep their place in
    memory; who restores a state copies into them.
    """

    def __init__(self, parts: Parts, recorder: Recorder) -> None:
        num, device = len(parts.images), parts.device
        self._parts = parts
        self._recorder = recorder
        self._order = torch.zeros(num, dtype=torch.int64, device=device)
        self._draws: Tensor | None = None  # as wide as the augmentation needs
        self._labels = torch.zeros(num, dtype=torch.int64, device=device)
        self._lr = torch.zeros((), device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)  # step of the epoch
        self._place = torch.zeros((), dtype=torch.int64, device=device)
        self._next = 0  # what stands in it, without asking the device
        self._replay: dict[int, Callable[[], None]] = {}
        # For steps on which masks change, which are never recorded.
        self._eager = None if parts.treatment.masks is None else Eager(parts)

    def begin(self, epoch: Epoch) -> None:
        """Copy what differs from epoch to epoch into its place on the device."""
        if self._draws is None:
            self._draws = torch.zeros_like(epoch.draws, device=self._parts.device)
        self._order.copy_(epoch.order)
        self._draws.copy_(epoch.draws)
        self._lr.fill_(epoch.lr)
        self._first.fill_(epoch.number * len(self._parts.bounds))
        if self._eager is not None:
            self._eager.begin(epoch)
        torch.index_select(self._parts.labels, 0, self._order, out=self._labels)

    def step(self, place: int, *, seed: int) -> None:
        """Replay a step; the first of each size of batch is recorded before.

        ``CannotRecord`` leaves the training as it was.
        """
        if self._eager is not None and self._parts.changes_masks(self._eager.moment(place)):
            self._eager.step(place, seed=seed)
            return
        start, end = self._parts.bounds[place]
        size = end - start
        if size not in self._replay:
            self._replay[size] = self._record(place, size)
        if place != self._next:
            self._place.fill_(place)
        with self._recorder.seed(seed):
            self._replay[size]()
        self._next = place + 1

    def _record(self, place: int, size: int) -> Callable[[], None]:
        self._place.fill_(place)
        self._next = place
        with unchanged(self._tensors()):
            return self._recorder.record(
                lambda: self._body(size), prepare=lambda: self._place.fill_(place)
            )

    def _body(self, size: int) -> None:
        """Take the step at the position on the device, and move that on."""
        parts = self._parts
        assert self._draws is not None
        # Batches before this one are all of the recipe's size, except that there is one of another
        # size at most, which is the last.
        start = self._place * parts.recipe.batch
        places = start + torch.arange(size, device=parts.device)
        pixels = parts.images.batch(self._order.index_select(0, places))
        draws = self._draws.index_select(0, places)
        loss = update(
            parts,
            augment(pixels, draws, kind=parts.augmentation),
            self._labels.index_select(0, places),
            moment=parts.moment(self._first + self._place, self._lr),
            random=nullcontext(),
        )
        parts.losses.index_copy_(0, self._place[None], loss[None])
        self._place.add_(1)

    def _tensors(self) -> list[Tensor]:
        """Return all that a step changes."""
        parts = self._parts
        model = parts.model
        everything = [*model.parameters(), *model.buffers(), *parts.momentum]
        return [*everything, parts.losses, self._place]


def on_device(images: Images, device: torch.device) -> Images:
    """Put images that lie in memory onto the device; streamed ones follow batch by batch."""
    return images.to(device) if isinstance(images, MemoryImages) else images


def normalised(
    pixels: Tensor, normalisation: tuple[Tensor, Tensor], *, channels_last: bool
) -> Tensor:
    """Return bytes as a network's input, in its layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return scale_bytes(pixels, *normalisation).contiguous(memory_format=layout)


def forward(model: nn.Module, pixels: Tensor, precision: Precision) -> Any:
    """Return what a network returns, its tensors as fp32, whatever they were computed in."""
    # Autocast rather than bf16 copies of the weights beside fp32 masters: casting once a step gains
    # 1 % (ResNet-56, VGG-16) to 8 % (DenseNet-40), and callbacks would see weights of two kinds.
    on_cpu = pixels.device.type == "cpu"
    products = precision == "bf16" and on_cpu and torch.is_grad_enabled()
    with (
        torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"),
        as_products(model) if products else nullcontext(),
        safe_convolutions(),
    ):
        outputs = model(pixels)
    if isinstance(outputs, Tensor):
        return outputs.float()
    return tree_map_only(Tensor, _as_float, outputs)


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
