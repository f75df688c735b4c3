"""Train a detector step by step, with the same exact resume as ``Training``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.global_rng import drawing
from regrow.core.seeds import derive, seeded
from regrow.data.boxed_images import BoxedImages
from regrow.detection.model import STRIDE, Detection
from regrow.train import Precision, Recipe, Stepping
from regrow.train.layout import NOTICE, lay_out_
from regrow.train.optimiser import decays_and_rates, make_optimiser
from regrow.train.safe_convolutions import safe_convolutions

# The images of one epoch: each twice, original and mirrored (as in the framework); each once,
# mirrored at random; or each once.
AUGMENTATIONS = ("flipped-copies", "flip", "none")
LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
BATCHES_AHEAD = 8  # batches that are decoded while the network computes


def num_shown(recipe: Recipe, num_images: int) -> int:
    """Count the images of one epoch, with mirrored copies."""
    kind = recipe.augmentation or AUGMENTATIONS[0]
    return num_images * (2 if kind == "flipped-copies" else 1)


@dataclass(frozen=True, kw_only=True)
class _ImageOrder:
    """The images of an epoch in order, and whether each is mirrored."""

    index: list[int]
    mirrored: list[bool]


class DetectionTraining(Stepping):
    """Train a detector in place.

    The order is drawn from (seed, "shuffle", epoch), mirroring from (seed, "augment", epoch), and
    the sampled anchors and regions from (seed, "sampling", epoch, step). The recipe's augmentation
    is ``flipped-copies`` (the default), ``flip`` or ``none``. The loss is the sum of torchvision's
    four losses; ``history`` has their means for each epoch.
    """

    def __init__(
        self,
        model: Detection,
        examples: BoxedImages,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.empty(0, device=device).device  # "cuda" means the current one
        self.model = model.to(self.device).train()
        heads = model.roi_heads
        region = (model.backbone.out_channels, *heads.box_roi_pool.output_size)
        shapes = {model.backbone: (3, 4 * STRIDE, 4 * STRIDE), heads.box_head: region}
        laid_out = not recipe.channels_last or lay_out_(self.model, shapes)
        self.examples = examples
        self.recipe = recipe
        self.seed = seed
        self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self.notice = None if laid_out else NOTICE
        self._epoch: tuple[int, _ImageOrder] | None = None
        self._learning = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._decays, self._rates = decays_and_rates(self.model, recipe)
        self._optimiser = make_optimiser(recipe)
        self._state = self._optimiser.start(self._learning.values())
        self._losses = torch.zeros(self.steps_per_epoch, len(LOSSES), device=self.device)

    @property
    def shown(self) -> int:
        """Count the images of one epoch, with mirrored copies."""
        return num_shown(self.recipe, len(self.examples))

    @property
    def steps_per_epoch(self) -> int:
        """Count the updates of one epoch; the last may have fewer images."""
        return math.ceil(self.shown / self.recipe.batch)

    @property
    def samples(self) -> int:
        """Count the images seen so far, with repetitions."""
        epochs, place = divmod(self.steps_done, self.steps_per_epoch)
        return epochs * self.shown + place * self.recipe.batch

    def step(self) -> None:
        """Do one update; a loss that is not finite raises a ``TrainingError``."""
        epoch, place = self._next()
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw(epoch))
        images, targets = self._batch(self._epoch[1], place)
        with drawing(derive(self.seed, "sampling", epoch, place), device=self.device):
            losses = forward(self.model, images, targets, precision=self.recipe.precision)
        parts = torch.stack([losses[name].float() for name in LOSSES])
        self._check_loss(float(parts.detach().sum()), epoch, place)
        learning = list(self._learning.values())
        for parameter in learning:
            parameter.grad = None
        parts.sum().backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(learning, self.recipe.clip)
        lr = self.recipe.lr_at(epoch, place=place, steps=self.steps_per_epoch)
        self._optimiser.step(learning, self._state, decays=self._decays, lr=lr, rates=self._rates)
        self._losses[place] = parts.detach()
        self.steps_done += 1
        if place == self.steps_per_epoch - 1:
            self._end_epoch(epoch)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Resume from a saved state; one of a different training raises a ``TrainingError``."""
        self._check_identity(meta)
        self._restore(tensors, meta)
        self._epoch = None

    def _draw(self, epoch: int) -> _ImageOrder:
        num = len(self.examples)
        order = torch.randperm(self.shown, generator=seeded(self.seed, "shuffle", epoch))
        mirrored = order >= num  # with flipped copies, the second half are the mirrored ones
        if self.recipe.augmentation == "flip":
            draws = torch.rand(num, generator=seeded(self.seed, "augment", epoch))
            mirrored = draws < 0.5
        return _ImageOrder(index=(order % num).tolist(), mirrored=mirrored.tolist())

    def _batch(
        self, epoch: _ImageOrder, place: int
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        batch = self.recipe.batch
        start = place * batch
        self.examples.announce(dict.fromkeys(epoch.index[start : start + batch * BATCHES_AHEAD]))
        images, targets = [], []
        for index, mirrored in zip(
            epoch.index[start : start + batch], epoch.mirrored[start : start + batch], strict=True
        ):
            pixels, truth = self.examples.pixels(index), self.examples.truths[index]
            if mirrored:
                pixels, truth = pixels.flip(2), truth.flipped(pixels.shape[2])
            images.append(pixels.to(self.device))
            targets.append(
                {"boxes": truth.boxes.to(self.device), "labels": truth.labels.to(self.device)}
            )
        return images, targets

    def _end_epoch(self, epoch: int) -> None:
        means = self._losses.mean(dim=0).tolist()
        parts = dict(zip(LOSSES, means, strict=True))
        line = {"epoch": epoch, "lr": self.recipe.lr_at(epoch), "loss": sum(means)}
        self.history.append(line | parts)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for kind, remembered in self._state.items():
            tensors |= {f"{kind}.{n}": v for n, v in zip(self._learning, remembered, strict=True)}
        return tensors | {"losses": self._losses}

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "num_pictures": len(self.examples),
        }


def forward(
    model: nn.Module,
    images: list[Tensor],
    targets: list[dict[str, Tensor]] | None = None,
    *,
    precision: Precision = "fp32",
) -> Any:
    """Run a detector on uint8 images [3, H, W]; return losses in training mode, else detections."""
    kind = images[0].device.type
    with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"), safe_convolutions():
        return model([image.float() / 255 for image in images], targets)
