"""Engines that take training steps: one call after another, or recorded once and replayed.

``Eager`` calls ``step.update`` for each step, which suits a CPU. ``Graphed`` records one step and
replays it: the images, the epoch's order and draws, the labels and the numbers of each step are on
the device, a counter there says which batch is next, and the host never waits for the device
between the first and the last step of an epoch. A GPU needs that, because it computes a step of
these small networks in less time than the host takes for the step's many calls.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from regrow.core.global_rng import TURN, drawing, host_state
from regrow.data import Images, MemoryImages
from regrow.data.augment import augment
from regrow.train.layout import unchanged
from regrow.train.step import Batch, Numbers, Parts, update
from regrow.train.treatment import Moment

BATCHES_AHEAD = 4  # whose images are decoded while the network computes


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The inputs of an epoch: order, random draws and the numbers of each step; all on the CPU."""

    number: int  # counted from 0
    order: Tensor  # int64 [N], of the images
    draws: Tensor  # int64 [N, ...], for the augmentation of the image at each place of the order
    holes: Tensor  # int64 [N, 2], the centres of its cutout; [N, 0] without cutout
    numbers: list[Numbers]  # of each step that is taken, floats


class Engine(Protocol):
    """Takes the steps of a training."""

    def begin(self, epoch: Epoch) -> None:
        """Set the epoch whose steps are taken next."""

    def step(self, place: int, *, seed: int) -> None:
        """Take the step at a place in the epoch; ``seed`` is for the network's own draws."""


class CannotRecord(Exception):  # not an error: steps are then taken one call at a time
    """The step cannot be recorded; the message says why."""


class Recorder(Protocol):
    """Records what a function does on a device, to replay it at little cost."""

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        """Return a function that replays the body; or raise ``CannotRecord``.

        May first run the body any number of times, each after ``prepare``.
        """

    def seed(self, seed: int) -> AbstractContextManager[None]:
        """Seed the random numbers of what is replayed while active."""


class Eager:
    """Takes steps one call after another, on images in memory or streamed.

    ``bounds``: of this process's share of each batch, if other processes take the rest.
    """

    def __init__(self, parts: Parts, *, bounds: list[tuple[int, int]] | None = None) -> None:
        self._parts = parts
        self._bounds = parts.bounds if bounds is None else bounds
        self._epoch: Epoch | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []  # indices and draws, where images are read
        self._labels: list[Tensor] = []
        self._holes: list[Tensor] = []

    def begin(self, epoch: Epoch) -> None:
        """Copy the epoch's inputs to where they are used: once, not batch by batch."""
        parts = self._parts
        at = parts.device if isinstance(parts.images, MemoryImages) else torch.device("cpu")
        order, draws = epoch.order.to(at), epoch.draws.to(at)
        labels = parts.labels.index_select(0, order.to(parts.device))
        holes = epoch.holes.to(parts.device)
        bounds = self._bounds[: len(epoch.numbers)]
        self._batches = [(order[a:b], draws[a:b]) for a, b in bounds]
        self._labels = [labels[a:b] for a, b in bounds]
        self._holes = [holes[a:b] for a, b in bounds]
        self._epoch = epoch

    def step(self, place: int, *, seed: int) -> None:
        """Gather a batch, augment it and update."""
        parts, moment = self._parts, self.moment(place)
        batch = self.fetch(place)
        parts.losses[place] = update(
            parts,
            batch,
            self.numbers(place),
            moment=moment,
            random=drawing(seed, device=parts.device),
            change_masks=parts.changes_masks(moment),
        )
        if parts.counts is not None:
            parts.counts[place] = parts.objective.count(batch.labels)

    def numbers(self, place: int) -> Numbers:
        """Return the numbers of the step at a place."""
        assert self._epoch is not None
        return self._epoch.numbers[place]

    def moment(self, place: int) -> Moment:
        """Return the moment of the step at a place."""
        assert self._epoch is not None
        step = self._epoch.number * len(self._parts.bounds) + place
        return self._parts.moment(step, self.numbers(place).lr)

    def fetch(self, place: int) -> Batch:
        """Return the batch of the step at a place, and prefetch the images of the next ones."""
        parts = self._parts
        for later in self._batches[place : place + BATCHES_AHEAD]:
            parts.images.prefetch(*later, kind=parts.augmentation)
        pixels = parts.images.augmented(*self._batches[place], kind=parts.augmentation)
        pixels = pixels.to(parts.device, non_blocking=True)
        return Batch(pixels=pixels, labels=self._labels[place], holes=self._holes[place])


class Graphed:
    """Takes recorded steps on images in memory: one recording for each batch size.

    The hooks are recorded with the step and do not run again, so they must be functions of the
    tensors of the model and the moment alone. Tensors that a step changes keep their place in
    memory; a state is restored by copying into them.
    """

    def __init__(self, parts: Parts, recorder: Recorder) -> None:
        num, device = len(parts.images), parts.device
        self._parts = parts
        self._recorder = recorder
        self._order = torch.zeros(num, dtype=torch.int64, device=device)
        self._draws: Tensor | None = None  # as wide as the augmentation needs
        self._labels = torch.zeros_like(parts.labels)
        width = 0 if parts.recipe.cutout is None else 2
        self._holes = torch.zeros(num, width, dtype=torch.int64, device=device)
        self._numbers = torch.zeros(len(parts.bounds), len(Numbers._fields), device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)  # the epoch's first step
        self._place = torch.zeros((), dtype=torch.int64, device=device)
        self._next = 0  # its value, known without reading it from the device
        self._replay: dict[int, Callable[[], None]] = {}
        # For steps on which masks change, which are never recorded.
        self._eager = None if parts.treatment.masks is None else Eager(parts)

    def begin(self, epoch: Epoch) -> None:
        """Copy the inputs of the epoch into their places on the device."""
        if self._draws is None:
            self._draws = torch.zeros_like(epoch.draws, device=self._parts.device)
        self._order.copy_(epoch.order)
        self._draws.copy_(epoch.draws)
        self._holes.copy_(epoch.holes)
        self._numbers[: len(epoch.numbers)].copy_(torch.tensor(epoch.numbers))
        self._first.fill_(epoch.number * len(self._parts.bounds))
        if self._eager is not None:
            self._eager.begin(epoch)
        torch.index_select(self._parts.labels, 0, self._order, out=self._labels)

    def step(self, place: int, *, seed: int) -> None:
        """Replay a step; the first of each batch size is recorded before.

        ``CannotRecord`` leaves the training unchanged.
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
        with TURN, unchanged(self._tensors()):
            before = host_state()
            replay = self._recorder.record(
                lambda: self._body(size), prepare=lambda: self._place.fill_(place)
            )
            if host_state() != before:
                raise CannotRecord(
                    "The network draws from the random generators of Python or numpy, whose "
                    "numbers would be the same in each replay."
                )
        return replay

    def _body(self, size: int) -> None:
        """Take the step at the place stored on the device, and advance that place."""
        parts = self._parts
        assert self._draws is not None
        # All batches before this one have the recipe's size: only the last can have another.
        start = self._place * parts.recipe.batch
        places = start + torch.arange(size, device=parts.device)
        pixels = parts.images.batch(self._order.index_select(0, places))
        draws = self._draws.index_select(0, places)
        batch = Batch(
            pixels=augment(pixels, draws, kind=parts.augmentation),
            labels=self._labels.index_select(0, places),
            holes=self._holes.index_select(0, places),
        )
        numbers = Numbers(*self._numbers.index_select(0, self._place[None]).squeeze(0).unbind())
        moment = parts.moment(self._first + self._place, numbers.lr)
        loss = update(parts, batch, numbers, moment=moment, random=nullcontext())
        parts.losses.index_copy_(0, self._place[None], loss[None])
        if parts.counts is not None:
            count = torch.as_tensor(parts.objective.count(batch.labels), device=parts.device)
            parts.counts.index_copy_(0, self._place[None], count[None].to(parts.counts.dtype))
        self._place.add_(1)

    def _tensors(self) -> list[Tensor]:
        """Return all tensors that a step changes."""
        parts = self._parts
        model = parts.model
        everything = [*model.parameters(), *model.buffers(), *parts.averages, self._place]
        for remembered in parts.state.values():
            everything += remembered
        return [*everything, parts.losses, *([] if parts.counts is None else [parts.counts])]


def on_device(images: Images, device: torch.device) -> Images:
    """Copy images in memory to the device; streamed ones are copied batch by batch."""
    return images.to(device) if isinstance(images, MemoryImages) else images
