"""The one training loop, as an object that whoever drives it advances step by step.

A training keeps all of its state to itself - parameters, momentum, random numbers - so several can
be advanced in turn or in threads, and one that was killed resumes to bitwise the same result (on a
CPU, one thread). To run one to its end::

    training = Training(model, dataset, RECIPES["cifar"], seed=0)
    fit(training)
    accuracy = evaluate(model, dataset.test, dataset).accuracy
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.distributed import ALONE, Ranks
from regrow.core.seeds import derive, seeded
from regrow.data import Dataset, MemoryImages, scaling
from regrow.errors import ConfigError
from regrow.train.distributed import InStep
from regrow.train.engine import (
    CannotRecord,
    Eager,
    Engine,
    Epoch,
    Graphed,
    Parts,
    Recorder,
    on_device,
)
from regrow.train.graphs import CudaGraphs
from regrow.train.layout import NOTICE, lay_out_
from regrow.train.masks import MaskedWeights, SparsePasses
from regrow.train.objective import CROSS_ENTROPY, make_objective
from regrow.train.recipe import Recipe
from regrow.train.stepping import Stepping
from regrow.train.treatment import NO_TREATMENT, Moment, Treatment


class Training(Stepping):
    """Train a model in place on a data set's training images.

    ``treatment`` is what a method does meanwhile. ``masks`` say by parameter which weights stay,
    as booleans that broadcast over it; the others are held at zero, and so are their gradients, so
    that no momentum builds up behind a mask. A treatment may change them: ``kept()`` returns them
    as they are. ``first_epoch`` enters the recipe's schedule there, with the images of that epoch,
    as if the epochs before had been trained.

    The order of images is drawn from (seed, "shuffle", epoch), their augmentation from
    (seed, "augment", epoch) and dropout from (seed, "dropout", epoch, step): two trainings of one
    seed see the same images, on any device. The last batch of an epoch may be smaller. A last batch
    of one image joins the batch before it, because batch normalisation cannot learn from one value.

    On a GPU, with its images in memory, steps are replayed CUDA graphs; where one cannot be
    recorded, steps are taken one call at a time and ``notice`` says why. ``eager`` asks for that.
    A network whose code does not allow channels-last is trained without, and ``notice`` says so.
    Several ``ranks`` take each step together, one call at a time (see ``train.distributed``).
    Global settings of torch (threads, denormals, TF32) are left as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        treatment: Treatment = NO_TREATMENT,
        masks: Mapping[str, Tensor] | None = None,
        first_epoch: int = 0,
        eager: bool = False,
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if len(dataset.train) < 2:
            raise ConfigError(
                f"A training needs at least 2 images. Got {len(dataset.train)}: raise 'subset'."
            )
        if not 0 <= first_epoch < recipe.epochs:
            raise ConfigError(
                f"A training of {recipe.epochs} epochs can begin at one from 0 to "
                f"{recipe.epochs - 1}. Got {first_epoch}."
            )
        bounds = _batch_bounds(len(dataset.train), recipe.batch)
        first = Moment(
            step=first_epoch * len(bounds),
            lr=recipe.lr_at(first_epoch),
            steps_per_epoch=len(bounds),
            recipe=recipe,
            seed=seed,
        )
        if treatment.begin is not None:
            treatment.begin(model, first)
        if treatment.masks is not None and not masks:
            masks = treatment.masks.start(model, first)
        self.device = torch.empty(0, device=device).device  # "cuda" is the one in use
        self.model = model.to(self.device).train()
        image = (dataset.channels, dataset.size, dataset.size)
        channels_last = recipe.channels_last and lay_out_(self.model, {self.model: image})
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.notice = NOTICE if recipe.channels_last and not channels_last else None
        self._prepared: int | None = None  # the epoch that the engine is in
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._learning = tuple(learning)
        self.parts = Parts(
            model=self.model,
            network=self.model,
            objective=make_objective(recipe.objective or CROSS_ENTROPY),
            recipe=recipe,
            channels_last=channels_last,
            device=self.device,
            images=on_device(dataset.train, self.device),
            labels=dataset.train.labels.to(self.device),
            augmentation=recipe.augmentation or dataset.augmentation,
            normalisation=scaling(dataset.mean, dataset.std, self.device),
            parameters=list(learning.values()),
            decays=[recipe.decay_of(name) for name in learning],
            # Zero from the start, so that any state can be restored.
            momentum=[torch.zeros_like(p) for p in learning.values()] if recipe.momentum else [],
            treatment=treatment,
            masked=MaskedWeights(self.model, masks) if masks else None,
            seed=seed,
            bounds=bounds,
            losses=torch.zeros(len(bounds), device=self.device),
        )
        if recorder is None and self.device.type == "cuda" and not eager:
            recorder = CudaGraphs(self.device)
        self._engine: Engine = Eager(self.parts)
        if ranks.together:
            self._engine = InStep(self.parts, ranks)
        elif recorder is not None and isinstance(dataset.train, MemoryImages):
            self._engine = Graphed(self.parts, recorder)
        self.first_epoch = first_epoch
        self.steps_done = first_epoch * self.steps_per_epoch
        if (masked := self.parts.masked) is not None:
            masked.zero_weights_()
        changing = masked if treatment.masks is not None else None
        self.passes = None if changing is None else SparsePasses.of(changing)
        if treatment.epoch is not None:
            treatment.epoch(self.model, first)

    @property
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch."""
        return len(self.parts.bounds)

    @property
    def samples(self) -> int:
        """Count the images trained on so far, each as often as it was seen."""
        epochs, place = divmod(self.steps_done, self.steps_per_epoch)
        return (epochs - self.first_epoch) * len(self.parts.images) + (
            self.parts.bounds[place - 1][1] if place else 0
        )

    def step(self) -> None:
        """Take one update; a loss that is not finite is a ``TrainingError``."""
        epoch, place = self._next()
        if self._prepared != epoch:
            self._begin(epoch)
        self._take(epoch, place)
        self._count_passes(epoch, place)
        if self.device.type == "cpu":  # elsewhere a look at it makes the device wait
            self._check_loss(self.parts.losses[place].item(), epoch, place)
        self.steps_done += 1
        if place == self.steps_per_epoch - 1:
            self._end_epoch(epoch)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state of the same training; another's is a ``TrainingError``."""
        self._check_identity(meta)
        if meta["steps_done"] >= self.num_steps:
            self._end()  # the state of a finished training is without what the treatment added
        self._restore(tensors, meta)
        if self.passes is not None and self.parts.masked is not None:
            self.passes.weights = dict(meta["passes"])
            self.passes.num_kept = self.parts.masked.num_kept()
        self._prepared = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all that ``restore`` needs: tensors, and a record for JSON."""
        tensors, meta = super().state()
        return tensors, meta if self.passes is None else {
            **meta,
            "passes": dict(self.passes.weights),
        }

    def kept(self) -> dict[str, Tensor]:
        """Return which weights of masked parameters stay, as booleans; nothing without masks."""
        return {} if self.parts.masked is None else self.parts.masked.kept()

    def _count_passes(self, epoch: int, place: int) -> None:
        """Count a step that was taken, if masks change, and whether they did."""
        masks, masked = self.parts.treatment.masks, self.parts.masked
        if self.passes is None or masks is None or masked is None:
            return
        moment = self.parts.moment(self.steps_done, self.recipe.lr_at(epoch))
        changed = masks.when(moment)
        start, end = self.parts.bounds[place]
        self.passes.add(end - start, dense_gradients=changed and masks.dense_gradients)
        if changed:
            self.passes.num_kept = masked.num_kept()

    def _begin(self, epoch: int) -> None:
        """Draw the order and the augmentation of an epoch, and set its rate."""
        images = self.parts.images
        order = torch.randperm(len(images), generator=seeded(self.seed, "shuffle", epoch))
        generator = seeded(self.seed, "augment", epoch)
        draws = images.draw(self.parts.augmentation, generator)
        self._engine.begin(
            Epoch(number=epoch, order=order, draws=draws, lr=self.recipe.lr_at(epoch))
        )
        self._prepared = epoch

    def _take(self, epoch: int, place: int) -> None:
        """Take a step, by single calls from now on if it cannot be recorded."""
        seed = derive(self.seed, "dropout", epoch, place)
        try:
            self._engine.step(place, seed=seed)
        except CannotRecord as error:
            reason = f"Its steps are not replayed as CUDA graphs, which is slower. {error}"
            self.notice = f"{self.notice} {reason}" if self.notice else reason
            self._engine = Eager(self.parts)
            self._begin(epoch)
            self._engine.step(place, seed=seed)

    def _end_epoch(self, epoch: int) -> None:
        losses = self.parts.losses.tolist()
        for place, loss in enumerate(losses):
            self._check_loss(loss, epoch, place)
        sizes = [end - start for start, end in self.parts.bounds]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        self.history.append({"epoch": epoch, "lr": self.recipe.lr_at(epoch), "loss": mean})
        if self.parts.treatment.epoch is not None:
            self.parts.treatment.epoch(self.model, self._between(epoch + 1))
        if self.done:
            self._end()

    def _end(self) -> None:
        if self.parts.treatment.end is not None:
            self.parts.treatment.end(self.model, self._between(self.recipe.epochs))

    def _between(self, epoch: int) -> Moment:
        """Return the moment after so many epochs."""
        lr = self.recipe.lr_at(min(epoch, self.recipe.epochs - 1))
        return self.parts.moment(epoch * self.steps_per_epoch, lr)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": value for name, value in self._momentum().items()}
        if self.passes is not None and self.parts.masked is not None:
            tensors |= {f"mask.{name}": f for name, f in self.parts.masked.factors.items()}
        return tensors | {"losses": self.parts.losses}

    def _momentum(self) -> dict[str, Tensor]:
        """Return the momentum of each parameter, by its name."""
        if not self.parts.momentum:
            return {}
        return dict(zip(self._learning, self.parts.momentum, strict=True))

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "num_images": len(self.parts.images),
        }


def fit(training: Training, *, on_step: Callable[[Training], None] | None = None) -> None:
    """Take every step that is left; ``on_step`` is called after each."""
    while not training.done:
        training.step()
        if on_step is not None:
            on_step(training)


def _batch_bounds(num: int, batch: int) -> list[tuple[int, int]]:
    """Cut an epoch into batches; a last one of a single image joins the one before it."""
    starts = list(range(0, num, batch))
    if batch > 1 and num - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num], strict=True))
