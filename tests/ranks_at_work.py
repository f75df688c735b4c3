"""Trainings that run on several ranks together or in one process alone, for ``test_distributed``.

    torchrun --nproc-per-node 2 tests/ranks_at_work.py FOLDER

Rank 0 writes the final state and scores of each training; each rank writes the error that it got
and the threads that it had left at the end.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regrow.core.choice import Choice
from regrow.core.distributed import ALONE, Ranks, join, leave
from regrow.data import DataSpec, load
from regrow.errors import DataError
from regrow.jobs.train import Treated
from regrow.models import ModelSpec, build
from regrow.train import (
    NO_TREATMENT,
    Evaluation,
    MaskUpdates,
    Moment,
    Recipe,
    Training,
    Treatment,
    evaluate,
    fit,
)
from small import bright

RECIPE = Recipe(epochs=2, batch=16, lr=0.02)


def plain() -> nn.Module:
    """Build a network without norms, with one parameter that gets no gradient."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 4),
        )
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return model


def named(name: str, **arguments: object) -> nn.Module:
    """Build a registered network for the images of ``small.bright``."""
    return build(ModelSpec(name, {"classes": 4, "input_size": 8, **arguments}), seed=3)


def half(model: nn.Module) -> dict[str, Tensor]:
    """Return a random mask that keeps half of the first convolution's weights."""
    name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 4)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    return {name: kept}


def move(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
    """Shift masks by one filter, and unmask the weight with the largest gradient over all ranks."""
    for name, mask in masks.items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        mask.copy_(mask.roll(1, 0))
        mask[torch.unravel_index(gradient.abs().argmax(), mask.shape)] = 1.0


MOVING = MaskUpdates(
    start=lambda model, _: half(model),
    when=lambda moment: moment.step in (3, 6),
    change=move,
    dense_gradients=True,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training, built anew for each run."""

    model: Callable[[], nn.Module]
    num: int = 70
    recipe: Recipe = RECIPE
    treated: Treated | None = None
    held: bool = False
    moving: bool = False

    def run(self, ranks: Ranks = ALONE) -> tuple[Training, Evaluation]:
        """Train to the end, and evaluate on the test split."""
        model, data = self.model(), bright(self.num, num_test=301)
        treatment: Treatment = NO_TREATMENT if self.treated is None else self.treated.treatment()
        if self.moving:
            treatment = Treatment(masks=MOVING)
        training = Training(
            model,
            data,
            self.recipe,
            seed=5,
            treatment=treatment,
            masks=half(model) if self.held else None,
            ranks=ranks,
        )
        fit(training)
        return training, evaluate(training.model, data.test, data, batch=50, ranks=ranks)


NORMED = partial(named, "vgg", plan=[8, "M", 8], head="two-layer")
PRERESNET = partial(named, "preresnet-56", depth=11, width=0.5)
CASES: dict[str, Case] = {
    "plain": Case(model=plain),
    "a last batch too small to share": Case(model=NORMED, num=67),
    "norms of maps and of vectors": Case(model=NORMED),
    "held weights": Case(model=NORMED, held=True),
    "a penalty": Case(model=NORMED, treated=Treated(method="network-slimming", strength=0.01)),
    "factors on branches": Case(
        model=PRERESNET, treated=Treated(method="sparse-structure", strength=0.05)
    ),
    "filters zeroed between epochs": Case(
        model=NORMED, treated=Treated(method="soft-filter", sparsity=0.5)
    ),
    "masks that move": Case(model=NORMED, moving=True),
    "bfloat16": Case(model=NORMED, recipe=replace(RECIPE, precision="bf16")),
    "options of the recipe": Case(
        model=plain,
        recipe=replace(
            RECIPE,
            optimiser=Choice("adamw", eps=1e-3),
            schedule="one-cycle",
            clip=0.5,
            ema=0.9,
            cutout=3,
            objective=Choice("cross-entropy", label_smoothing=0.1),
        ),
    ),
    "norm and ReLU as one": Case(model=PRERESNET, recipe=replace(RECIPE, precision="bf16")),
}


def state(training: Training) -> dict[str, Tensor]:
    """Return a training's final tensors: weights, running statistics, momentum."""
    return training.state()[0]


def error_of(folder: Path, ranks: Ranks) -> str:
    """Train on image files, and return the error message, or "none"."""
    spec = DataSpec(f"folder:{folder}", size=8, memory_limit_bytes=0, normalisation="imagenet")
    training = Training(plain(), load(spec), RECIPE, seed=0, ranks=ranks)
    try:
        fit(training)
    except DataError as error:
        return str(error)
    return "none"


def threads() -> list[str]:
    """Return the names of this process's threads, including those not started by Python."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


def take_all(folder: Path, ranks: Ranks) -> None:
    """Run all trainings as one of several ranks, and write the results."""
    for name, case in CASES.items():
        training, scored = case.run(ranks)
        if ranks.first:
            save_file(state(training), folder / f"{name}.safetensors")
            found = {"accuracy": scored.score, "loss": scored.loss, "history": training.history}
            (folder / f"{name}.json").write_text(json.dumps(found))
    if (folder / "images").exists():
        (folder / f"error-{ranks.rank}.txt").write_text(error_of(folder / "images", ranks))


def main() -> None:
    """Join the other ranks, run all trainings, leave, and write the remaining threads."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    ranks = join()
    take_all(folder, ranks)
    leave()
    (folder / f"threads-{ranks.rank}.txt").write_text("\n".join(threads()))


if __name__ == "__main__":
    main()
