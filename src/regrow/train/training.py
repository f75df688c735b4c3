"""The one training loop, as an object that its caller advances step by step.

A training holds all of its state itself (parameters, momentum, random numbers), so several can be
advanced in turn or in threads, and one that was killed resumes to bitwise the same result (on a
CPU, one thread). To run one to its end::

    training = Training(model, dataset, RECIPES["cifar"], seed=0)
    fit(training)
    accuracy = evaluate(model, dataset.test, dataset).score
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.choice import Choice
from regrow.core.distributed import ALONE, Ranks
from regrow.core.seeds import derive, seeded
from regrow.data import Dataset, MemoryImages, scaling_of
from regrow.data.augment import alternate, draw_holes, draw_shares
from regrow.data.spec import FLIPPING
from regrow.errors import ConfigError
from regrow.tasks import task_of
from regrow.train.distributed import InStep
from regrow.train.engine import (
    CannotRecord,
    Eager,
    Engine,
    Epoch,
    Graphed,
    Recorder,
    on_device,
)
from regrow.train.graphs import CudaGraphs
from regrow.train.layout import NOTICE, lay_out_
from regrow.train.masks import MaskedWeights, SparsePasses
from regrow.train.objective import make_objective
from regrow.train.optimiser import decays_and_rates, make_optimiser
from regrow.train.recipe import Recipe
from regrow.train.step import Numbers, Parts, averaging
from regrow.train.stepping import Stepping
from regrow.train.teacher import teacher_of
from regrow.train.treatment import NO_TREATMENT, Moment, Treatment


class Training(Stepping):
    """Train a model in place on a data set's training images.

    ``treatment`` holds a method's changes to training. ``masks`` mark by parameter which weights
    are kept, as booleans that broadcast over it; the others are held at zero, and so are their
    gradients, so that no momentum builds up behind a mask. A treatment may change the masks:
    ``kept()`` returns the present ones. ``teacher`` is the network that an objective such as
    distillation learns from.
    ``first_epoch`` starts the recipe's schedule there, with the images of that epoch, as if the
    epochs before had been trained.

    The order of images is drawn from (seed, "shuffle", epoch), their augmentation from
    (seed, "augment", epoch), the images that alternating flips begin with from (seed, "flip"), and
    dropout from (seed, "dropout", epoch, step): two trainings of one seed see the same images, on
    any device. The last batch of an epoch may be smaller. A last batch of one image joins the batch
    before it, because batch normalisation cannot learn from one value.

    On a GPU, with its images in memory, steps are replayed CUDA graphs; if a step cannot be
    recorded, steps run one call at a time and ``notice`` has the reason. ``eager`` requests that.
    A network whose code does not allow channels-last is trained without it, with a ``notice``.
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
        teacher: nn.Module | None = None,
        first_epoch: int = 0,
        eager: bool = False,
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        _check(dataset, recipe, first_epoch=first_epoch, ranks=ranks)
        bounds = _batch_bounds(len(dataset.train), recipe.batch)
        first = Moment(
            step=first_epoch * len(bounds),
            lr=recipe.lr_at(first_epoch, steps=len(bounds)),
            steps_per_epoch=len(bounds),
            recipe=recipe,
            seed=seed,
        )
        if treatment.begin is not None:
            treatment.begin(model, first)
        if treatment.masks is not None and not masks:
            masks = treatment.masks.start(model, first)
        self.device = torch.empty(0, device=device).device  # "cuda" becomes the current device
        self.model = model.to(self.device).train()
        self.dataset = dataset
        self.recipe = recipe
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.notice: str | None = None
        self._prepared: int | None = None  # the epoch that the engine has begun
        self.parts = self._gather(treatment, masks=masks, bounds=bounds, teacher=teacher)
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

    def _gather(
        self,
        treatment: Treatment,
        *,
        masks: Mapping[str, Tensor] | None,
        bounds: list[tuple[int, int]],
        teacher: nn.Module | None,
    ) -> Parts:
        """Create everything that a step uses, on the device and in its final layout."""
        dataset, recipe, device = self.dataset, self.recipe, self.device
        image = dataset.shape
        wants_channels_last = recipe.channels_last and dataset.of_images
        channels_last = wants_channels_last and lay_out_(self.model, {self.model: image})
        if wants_channels_last and not channels_last:
            self.notice = NOTICE
        learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._learning = tuple(learning)
        averages = recipe.ema is not None or recipe.lookahead is not None
        averaged = _averaged(self.model) if averages else {}
        self._averaged = tuple(averaged)
        objective = make_objective(recipe.objective or Choice(task_of(dataset).objective))
        optimiser = make_optimiser(recipe)
        decays, rates = decays_and_rates(self.model, recipe)
        steps = torch.zeros(len(bounds), device=device)
        return Parts(
            model=self.model,
            network=self.model,
            objective=objective,
            recipe=recipe,
            channels_last=channels_last,
            device=device,
            images=on_device(dataset.train, device),
            labels=dataset.train.labels.to(device),
            augmentation=recipe.augmentation or dataset.augmentation,
            normalisation=scaling_of(dataset, device),
            parameters=list(learning.values()),
            decays=decays,
            rates=rates,
            optimiser=optimiser,
            state=optimiser.start(learning.values()),
            treatment=treatment,
            masked=MaskedWeights(self.model, masks) if masks else None,
            seed=self.seed,
            bounds=bounds,
            losses=steps,
            counts=None if objective.count is len else torch.zeros_like(steps, dtype=torch.float64),
            averaged=list(averaged.values()),
            averages=[value.detach().clone() for value in averaged.values()],
            teacher=teacher_of(objective, teacher, recipe=recipe, image=image, device=device),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch."""
        return len(self.parts.bounds)

    @property
    def epochs_in_all(self) -> float:
        """The number of epochs trained in total, by updates; an int if it is whole."""
        if self.recipe.last_epoch == 1:
            return self.recipe.epochs - self.first_epoch
        return round(self.num_steps / self.steps_per_epoch - self.first_epoch, 6)

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
        if self.device.type == "cpu":  # elsewhere, reading the loss would wait for the device
            self._check_loss(self.parts.losses[place].item(), epoch, place)
        self.steps_done += 1
        if place == self.steps_per_epoch - 1 or self.done:
            self._end_epoch(epoch, num=place + 1)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore a state of the same training; another's is a ``TrainingError``."""
        self._check_identity(meta)
        if meta["steps_done"] >= self.num_steps:
            self._end()  # the state of a finished training lacks what the treatment added
        self._restore(tensors, meta)
        if self.passes is not None and self.parts.masked is not None:
            self.passes.weights = dict(meta["passes"])
            self.passes.num_kept = self.parts.masked.num_kept()
        self._prepared = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of all that ``restore`` needs: tensors, and a record of JSON values."""
        tensors, meta = super().state()
        return tensors, meta if self.passes is None else {
            **meta,
            "passes": dict(self.passes.weights),
        }

    def kept(self) -> dict[str, Tensor]:
        """Return which weights of masked parameters are kept, as booleans; empty without masks."""
        return {} if self.parts.masked is None else self.parts.masked.kept()

    def _count_passes(self, epoch: int, place: int) -> None:
        """Count the weights used in a step, if the treatment changes masks."""
        masks, masked = self.parts.treatment.masks, self.parts.masked
        if self.passes is None or masks is None or masked is None:
            return
        moment = self.parts.moment(self.steps_done, self._lr(epoch, place))
        changed = masks.when(moment)
        start, end = self.parts.bounds[place]
        self.passes.add(end - start, dense_gradients=changed and masks.dense_gradients)
        if changed:
            self.passes.num_kept = masked.num_kept()

    def _begin(self, epoch: int) -> None:
        """Draw the order and the augmentation of an epoch, and begin it in the engine."""
        images = self.parts.images
        order = torch.randperm(len(images), generator=seeded(self.seed, "shuffle", epoch))
        generator = seeded(self.seed, "augment", epoch)
        draws = images.draw(self.parts.augmentation, generator)
        if self.recipe.alternating_flip:
            coins = torch.randint(0, 2, (len(images),), generator=seeded(self.seed, "flip"))
            draws = alternate(draws, coins[order], epoch=epoch)
        holes = torch.empty(len(images), 0, dtype=torch.int64)
        if self.recipe.cutout is not None:
            holes = draw_holes(len(images), size=self.dataset.size, generator=generator)
        numbers = self._numbers(epoch, generator)
        self._engine.begin(
            Epoch(number=epoch, order=order, draws=draws, holes=holes, numbers=numbers)
        )
        self._prepared = epoch

    def _numbers(self, epoch: int, generator: torch.Generator) -> list[Numbers]:
        """Return the numbers of each step that is taken in an epoch."""
        recipe, steps = self.recipe, self.steps_per_epoch
        shares = [1.0] * steps
        if recipe.mixup is not None:
            shares = draw_shares(steps, alpha=recipe.mixup, generator=generator).tolist()
        before = self.first_epoch * steps
        numbers = []
        for place, share in enumerate(shares[: self.num_steps - epoch * steps]):
            step = epoch * steps + place
            decay, pull = averaging(recipe, step=step, num=self.num_steps, before=before)
            lr = self._lr(epoch, place)
            numbers.append(Numbers(lr=lr, decay=decay, pull=pull, share=share))
        return numbers

    def _lr(self, epoch: int, place: int) -> float:
        return self.recipe.lr_at(epoch, place=place, steps=self.steps_per_epoch)

    def _take(self, epoch: int, place: int) -> None:
        """Take a step; if it cannot be recorded, run this and all later ones call by call."""
        seed = derive(self.seed, "dropout", epoch, place)
        try:
            self._engine.step(place, seed=seed)
        except CannotRecord as error:
            reason = f"Its steps are not replayed as CUDA graphs, which is slower. {error}"
            self.notice = f"{self.notice} {reason}" if self.notice else reason
            self._engine = Eager(self.parts)
            self._begin(epoch)
            self._engine.step(place, seed=seed)

    def _end_epoch(self, epoch: int, *, num: int) -> None:
        """Add an epoch of ``num`` updates to the history, and run the treatment's hooks."""
        losses = self.parts.losses.tolist()[:num]
        for place, loss in enumerate(losses):
            self._check_loss(loss, epoch, place)
        sizes = [end - start for start, end in self.parts.bounds[:num]]
        if self.parts.counts is not None:
            sizes = self.parts.counts.tolist()[:num]
        mean = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / sum(sizes)
        lr = self._lr(epoch, num - 1)
        part = {} if num == self.steps_per_epoch else {"share": num / self.steps_per_epoch}
        self.history.append({"epoch": epoch, "lr": lr, "loss": mean, **part})
        if self.done:
            self._take_averages()
        if self.parts.treatment.epoch is not None:
            self.parts.treatment.epoch(self.model, self._between())
        if self.done:
            self._end()

    def _take_averages(self) -> None:
        """Replace the network's weights by their averages, if the recipe has them averaged."""
        with torch.no_grad():
            for value, average in zip(self.parts.averaged, self.parts.averages, strict=True):
                value.copy_(average)
        if self.parts.averages and self.parts.masked is not None:
            self.parts.masked.zero_weights_()

    def _end(self) -> None:
        if self.parts.treatment.end is not None:
            self.parts.treatment.end(self.model, self._between(self.num_steps))

    def _between(self, step: int | None = None) -> Moment:
        """Return the moment after ``step`` updates, by default after those taken so far."""
        step = self.steps_done if step is None else step
        lr = self._lr(*divmod(min(step, self.num_steps - 1), self.steps_per_epoch))
        return self.parts.moment(step, lr)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for kind, remembered in self.parts.state.items():
            tensors |= {f"{kind}.{n}": v for n, v in zip(self._learning, remembered, strict=True)}
        averages = zip(self._averaged, self.parts.averages, strict=True)
        tensors |= {f"average.{name}": value for name, value in averages}
        if self.parts.counts is not None:
            tensors["counts"] = self.parts.counts
        if self.passes is not None and self.parts.masked is not None:
            tensors |= {f"mask.{name}": f for name, f in self.parts.masked.factors.items()}
        return tensors | {"losses": self.parts.losses}

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "num_images": len(self.parts.images),
        }


def _check(dataset: Dataset, recipe: Recipe, *, first_epoch: int, ranks: Ranks) -> None:
    """Refuse a training whose data, recipe, first epoch and ranks do not fit together."""
    if len(dataset.train) < 2:
        raise ConfigError(
            f"A training needs at least 2 images. Got {len(dataset.train)}: raise 'subset'."
        )
    steps = len(_batch_bounds(len(dataset.train), recipe.batch))
    if not 0 <= first_epoch * steps < recipe.num_steps(steps):
        raise ConfigError(
            f"A training of {recipe.length:.6g} epochs can begin at an epoch from 0 to "
            f"{recipe.epochs - 1}. Got {first_epoch}."
        )
    kind = recipe.augmentation or dataset.augmentation
    if recipe.alternating_flip and kind not in FLIPPING:
        raise ConfigError(
            f"'alternating_flip' needs an augmentation that flips images "
            f"({', '.join(FLIPPING)}). These data have {kind!r}: give the recipe an 'augmentation'."
        )
    if (
        recipe.alternating_flip
        and kind == "resized-crop-flip"
        and not isinstance(dataset.train, MemoryImages)
    ):
        raise ConfigError(
            "'alternating_flip' needs images in memory for the augmentation 'resized-crop-flip', "
            "whose flips are drawn as each is decoded. Leave it out, or raise "
            "'memory_limit_bytes'."
        )
    if recipe.cutout is not None and not dataset.of_images:
        raise ConfigError(
            "'cutout' erases squares of images, and these data have none: leave it out."
        )
    if recipe.mixup is not None and not dataset.of_images:
        example = dataset.train.batch(torch.zeros(1, dtype=torch.int64))
        if not example.is_floating_point():
            raise ConfigError(
                "'mixup' adds up examples, and those of these data are ids rather than quantities: "
                "leave it out."
            )
    if recipe.cutout is not None and recipe.cutout > dataset.size:
        raise ConfigError(
            f"The 'cutout' of a recipe can be at most the {dataset.size} pixels of an image here. "
            f"Got {recipe.cutout}."
        )
    if recipe.mixup is not None and ranks.together:
        raise ConfigError(
            "'mixup' pairs images of a whole batch, but each of several processes has only a share "
            "of it. Train with one process, or leave 'mixup' out."
        )


def fit(training: Training, *, on_step: Callable[[Training], None] | None = None) -> None:
    """Take all remaining steps; ``on_step`` is called after each."""
    while not training.done:
        training.step()
        if on_step is not None:
            on_step(training)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are averaged over updates: floating-point parameters and buffers.

    Those that hold infinities, such as a mask of attention, have no average and keep their values.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and bool(value.isfinite().all())
    }


def _batch_bounds(num: int, batch: int) -> list[tuple[int, int]]:
    """Split an epoch into batches; a last one of a single image joins the one before it."""
    starts = list(range(0, num, batch))
    if batch > 1 and num - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num], strict=True))
