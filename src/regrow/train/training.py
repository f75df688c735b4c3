"""The one training loop, as an object that whoever drives it advances step by step.

A training keeps all of its state to itself - parameters, momentum, random numbers - so several can
be advanced in turn, and one that was killed resumes to bitwise the same result (on a CPU, one
thread). To run one to its end::

    training = Training(model, dataset, RECIPES["cifar"], seed=0)
    fit(training)
    accuracy = evaluate(model, dataset.test, dataset).accuracy
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrow.data import Dataset, Images, MemoryImages, normalise
from regrow.errors import ConfigError, TrainingError
from regrow.seeds import derive, seeded
from regrow.train.recipe import Precision, Recipe

BATCHES_AHEAD = 4  # of images that are decoded while the network computes
EVALUATION_BATCH = 256  # the paper's


class Training:
    """Train a model in place on a data set's training images.

    ``regulariser(model)`` adds to the gradients after each backward pass. ``hold(model)`` is called
    before and after each update; it keeps masked weights at zero, and before the update their
    gradients too, so that no momentum builds up behind a mask.

    The order of images is drawn from (seed, "shuffle", epoch), their augmentation from
    (seed, "augment", epoch, step) and dropout from (seed, "dropout", epoch, step): two trainings of
    one seed see the same images. The last batch of an epoch may be smaller. A last batch of one
    image joins the batch before it, because batch normalisation cannot learn from one value.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        regulariser: Callable[[nn.Module], None] | None = None,
        hold: Callable[[nn.Module], None] | None = None,
    ) -> None:
        if len(dataset.train) < 2:
            raise ConfigError(
                f"A training needs at least 2 images. Got {len(dataset.train)}: raise 'subset'."
            )
        self.device = torch.device(device)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self._regulariser = regulariser
        self._hold = hold
        self._images = _on_device(dataset.train, self.device)
        self._labels = dataset.train.labels.to(self.device)
        self._kind = recipe.augmentation or dataset.augmentation
        self._bounds = _batch_bounds(len(dataset.train), recipe.batch)
        self._losses = torch.zeros(self.steps_per_epoch, device=self.device)
        self._prepared: int | None = None  # the epoch whose order lies in self._batches
        self._batches: list[Tensor] = []
        self._optimiser = _optimiser(model, recipe)

    @property
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch."""
        return len(self._bounds)

    @property
    def num_steps(self) -> int:
        """Count the updates of the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Return the epoch under way, counted from 0: the number of finished ones."""
        return self.steps_done // self.steps_per_epoch

    @property
    def done(self) -> bool:
        """Tell whether every step has been taken."""
        return self.steps_done >= self.num_steps

    @property
    def samples(self) -> int:
        """Count the images trained on so far, each as often as it was seen."""
        epochs, place = divmod(self.steps_done, self.steps_per_epoch)
        return epochs * len(self._images) + (self._bounds[place - 1][1] if place else 0)

    def step(self) -> None:
        """Take one update; a loss that is not finite is a ``TrainingError``."""
        if self.done:
            raise TrainingError(f"This training has taken all of its {self.num_steps} steps.")
        epoch, place = divmod(self.steps_done, self.steps_per_epoch)
        self._prepare(epoch)
        pixels, labels = self._batch(epoch, place)
        with _own_randomness(derive(self.seed, "dropout", epoch, place), self.device):
            logits = _forward(self.model, pixels, self.recipe.precision)
        loss = F.cross_entropy(logits, labels)
        self._losses[place] = loss.detach()
        if self.device.type == "cpu":  # elsewhere a look at it makes the device wait
            self._check(self._losses[place].item(), epoch, place)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._regulariser is not None:
            self._regulariser(self.model)
        if self._hold is not None:
            self._hold(self.model)
        self._optimiser.step()
        if self._hold is not None:
            self._hold(self.model)
        self.steps_done += 1
        if place == self.steps_per_epoch - 1:
            self._end_epoch(epoch)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all that ``restore`` needs: tensors, and a record for JSON."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": value for name, value in self._momentum().items()}
        tensors["losses"] = self._losses
        copies = {
            name: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()
        }
        return copies, {
            "steps_done": self.steps_done,
            "history": [dict(line) for line in self.history],
            **self._identity(),
        }

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state of the same training; another's is a ``TrainingError``."""
        for name, mine in self._identity().items():
            if meta.get(name) != mine:
                raise TrainingError(
                    f"This checkpoint is of another training: its {name} is {meta.get(name)!r}, "
                    f"where {mine!r} was expected. Remove it to start afresh."
                )
        targets = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        targets |= {f"momentum.{name}": value for name, value in self._momentum().items()}
        targets["losses"] = self._losses
        _check_tensors(targets, tensors)
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])
        self.steps_done = int(meta["steps_done"])
        self.history = [dict(line) for line in meta["history"]]
        self._prepared = None

    def _prepare(self, epoch: int) -> None:
        """Draw the order of an epoch and set its rate, once."""
        if self._prepared == epoch:
            return
        order = torch.randperm(len(self._images), generator=seeded(self.seed, "shuffle", epoch))
        order = _where_read(order, self._images, self.device)
        self._batches = [order[start:end] for start, end in self._bounds]
        for group in self._optimiser.param_groups:
            group["lr"] = self.recipe.lr_at(epoch)
        self._prepared = epoch

    def _batch(self, epoch: int, place: int) -> tuple[Tensor, Tensor]:
        """Gather, augment and normalise: float [B, C, H, W] and int64 [B]."""
        if not isinstance(self._images, MemoryImages):
            for later in range(place, min(place + BATCHES_AHEAD, self.steps_per_epoch)):
                seed = derive(self.seed, "augment", epoch, later)
                self._images.prefetch(self._batches[later], seed=seed, kind=self._kind)
        indices = self._batches[place]
        seed = derive(self.seed, "augment", epoch, place)
        pixels = self._images.augmented(indices, seed=seed, kind=self._kind).to(self.device)
        labels = self._labels.index_select(0, indices.to(self.device))
        return _normalised(pixels, self.dataset, self.recipe.channels_last), labels

    def _end_epoch(self, epoch: int) -> None:
        losses = self._losses.tolist()
        for place, loss in enumerate(losses):
            self._check(loss, epoch, place)
        sizes = [end - start for start, end in self._bounds]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        self.history.append({"epoch": epoch, "lr": self.recipe.lr_at(epoch), "loss": mean})

    def _check(self, loss: float, epoch: int, place: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"The training diverged: its loss is {loss} in epoch {epoch + 1} of "
                f"{self.recipe.epochs}, step {place + 1} of {self.steps_per_epoch}, at a learning "
                f"rate of {self.recipe.lr_at(epoch):g}. Lower 'lr', or give 'warmup_epochs'."
            )

    def _momentum(self) -> dict[str, Tensor]:
        """Return the momentum of each parameter, by its name."""
        state = self._optimiser.state
        return {
            name: state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if parameter in state
        }

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "num_images": len(self._images),
        }


def fit(training: Training, *, on_step: Callable[[Training], None] | None = None) -> None:
    """Take every step that is left; ``on_step`` is called after each."""
    while not training.done:
        training.step()
        if on_step is not None:
            on_step(training)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a network scored: ``accuracy`` in [0, 1], mean cross-entropy ``loss``, of ``num``."""

    accuracy: float
    loss: float
    num: int


def evaluate(
    model: nn.Module,
    images: Images,
    dataset: Dataset,
    *,
    precision: Precision = "fp32",
    channels_last: bool = True,
    batch: int = EVALUATION_BATCH,
) -> Evaluation:
    """Score a model on all images of a split, on the device and in the layout it has.

    ``dataset`` tells how to normalise. The modes (training or not) of its modules are as before
    afterwards. The accuracy is an exact count over the number of images.
    """
    device = next(model.parameters()).device
    images = _on_device(images, device)
    labels = images.labels.to(device)
    order = torch.split(_where_read(torch.arange(len(images)), images, device), batch)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with _evaluating(model), torch.inference_mode():
        for place, indices in enumerate(order):
            for later in order[place : place + BATCHES_AHEAD]:
                images.prefetch(later)
            pixels = _normalised(images.batch(indices).to(device), dataset, channels_last)
            logits = _forward(model, pixels, precision)
            wanted = labels[indices.to(device)]
            correct += (logits.argmax(dim=1) == wanted).sum()
            loss += F.cross_entropy(logits, wanted, reduction="sum")
    num = len(images)
    return Evaluation(accuracy=int(correct) / num, loss=float(loss) / num, num=num)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Make the optimiser, its momentum at zero from the start so that any state can be restored."""
    # Fused: 65 ms an update of VGG-16 where the loop takes 127 and foreach 133, 0.7 ms of ResNet-56
    # for 12 and 3 (one thread of a 2-core Sapphire Rapids, torch 2.15).
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if recipe.momentum:
        for parameter in parameters:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def _batch_bounds(num: int, batch: int) -> list[tuple[int, int]]:
    """Cut an epoch into batches; a last one of a single image joins the one before it."""
    starts = list(range(0, num, batch))
    if batch > 1 and num - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num], strict=True))


def _on_device(images: Images, device: torch.device) -> Images:
    """Put images that lie in memory onto the device; streamed ones follow batch by batch."""
    return images.to(device) if isinstance(images, MemoryImages) else images


def _where_read(indices: Tensor, images: Images, device: torch.device) -> Tensor:
    """Put indices where the images are: one copy an epoch, none for those decoded on the CPU."""
    return indices.to(device) if isinstance(images, MemoryImages) else indices


def _normalised(pixels: Tensor, dataset: Dataset, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return normalise(pixels, dataset.mean, dataset.std).contiguous(memory_format=layout)


def _forward(model: nn.Module, pixels: Tensor, precision: Precision) -> Tensor:
    """Return the logits as fp32, whatever they were computed in."""
    # Autocast rather than bf16 copies of the weights beside fp32 masters: casting once a step gains
    # 1 % (ResNet-56, VGG-16) to 8 % (DenseNet-40), and callbacks would see weights of two kinds.
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(pixels)
    assert isinstance(logits, Tensor)
    return logits.float()


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Let a model's own random numbers (dropout) come from a seed, and leave the global ones be."""
    # Not torch.random.fork_rng and torch.manual_seed: they ask every kind of device, which costs
    # 176 us a step; this costs 4, where a step of the smallest networks takes 5,000.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _check_tensors(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        if name not in tensors or tensors[name].shape != target.shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise TrainingError(
                f"This checkpoint is of another network: for {name!r} it has {found}, where "
                f"{tuple(target.shape)} was expected. Remove it to start afresh."
            )
