"""Shared by many tests: small networks, a little data, and a study that takes a second."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.core import registry as registry_module
from regrow.core.registry import Registry
from regrow.core.seeds import seeded
from regrow.core.units import UNITS
from regrow.data import DATASETS, Dataset, DataSpec, MemoryImages, load
from regrow.jobs.arms import ARMS
from regrow.models import FROM_DATA, MODELS, ModelSpec, build
from regrow.pruning.costs import COST_TARGETS
from regrow.pruning.method import ALLOCATIONS, CRITERIA, METHODS, REPAIRS
from regrow.surgery import Trace, trace
from regrow.tasks import TASKS
from regrow.train import Moment, Recipe, Training
from regrow.train.material import Material
from regrow.train.objective import OBJECTIVES
from regrow.train.optimiser import OPTIMISERS
from regrow.train.schedules import SCHEDULES

SHAPE = (1, 1, 8, 8)
DIGITS = DataSpec("digits", subset=128, test_subset=64)
FROM_DIGITS = {"classes": 10, "in_channels": 1, "input_size": 8}
MATERIAL = Material(
    spec=DIGITS,
    content="0" * 32,
    shape=(1, 1, 8, 8),
    model_arguments=tuple(FROM_DIGITS.items()),
    num_train=128,
    num_test=64,
)
PLAN: dict[str, Any] = {"plan": [6, "M", 8, "M", 8]}

FIRST = Moment(step=0, lr=0.1, steps_per_epoch=1, recipe=Recipe(), seed=0)  # first step
# One small member of each family: private filters, streams with padding, views, concatenation,
# grouped convolutions.
NETWORKS: dict[str, ModelSpec] = {
    label: ModelSpec(name, {**FROM_DIGITS, **arguments})
    for label, name, arguments in (
        ("vgg", "vgg", PLAN),
        ("resnet", "resnet-20", {"depth": 8, "width": 0.5}),
        ("preresnet", "preresnet-56", {"depth": 11, "width": 0.25}),
        ("densenet", "densenet-40", {"depth": 7, "growth": 4}),
        ("resnext", "imagenet-resnext-50", {"groups": 4, "group_width": 32, "width": 0.05}),
    )
}
# For methods that prune linear layers only.
LINEAR_NETWORKS = {"two-layer": ModelSpec("vgg", {**FROM_DIGITS, **PLAN, "head": "two-layer"})}


def image_models() -> list[str]:
    """Return the names of the built-in models for images, without those that tests register."""
    return [
        name
        for name in MODELS.names()
        if MODELS.code(name) is None and MODELS.get(name).from_data == FROM_DATA
    ]


def small(label: str, *, seed: int = 0) -> tuple[nn.Module, Trace]:
    """Build a small network with random scales and biases in its norms, and trace it."""
    model = build({**NETWORKS, **LINEAR_NETWORKS}[label], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    return model, trace(model, SHAPE)


def digits() -> Dataset:
    """Load the digits that the tests train on."""
    return load(DIGITS)


def bright(num: int = 70, *, num_test: int = 53) -> Dataset:
    """Draw noisy images of four classes that differ in brightness.

    With 70 images and batches of 16, the last batch of an epoch has 6.
    """
    return Dataset(
        spec=DataSpec("digits"),  # a placeholder, never loaded
        train=_bright_images(num, seed=1),
        validation=None,
        test=_bright_images(num_test, seed=2),
        classes=("a", "b", "c", "d"),
        channels=3,
        size=8,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        augmentation="pad-crop-flip",
    )


def _bright_images(num: int, *, seed: int) -> MemoryImages:
    draw = seeded(seed, "images")
    labels = torch.randint(0, 4, (num,), generator=draw)
    noise = torch.randint(0, 60, (num, 3, 8, 8), generator=draw)
    pixels = (noise + 60 * labels.view(-1, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
    return MemoryImages(pixels, labels)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy all parameters and buffers."""
    return copy.deepcopy(model.state_dict())


def first_weights(patch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Return a list to which each job's training will add its initial weights."""
    starts: list[dict[str, Tensor]] = []

    class Watched(Training):
        def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
            starts.append(snapshot(model))
            super().__init__(model, *args, **options)

    for job_kind in ("train", "retrain"):
        patch.setattr(f"regrow.jobs.{job_kind}.Training", Watched)
    return starts


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Return whether two states are equal bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# A study of three arms that takes a second.
STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "vgg", "plan": [6, "M", 8, "M", 8]},
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["pruned", "fine-tune", "scratch-e"],
    "seeds": 1,
    "recipe": {"epochs": 2, "batch": 32, "lr": 0.05},
}


def assert_trains(model: nn.Module, images: Tensor, *, outputs: int) -> None:
    """Check that a network classifies images, and that every parameter gets a finite gradient."""
    out = model(images)
    assert out.shape == (len(images), outputs)
    out.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def module_at(file: Path) -> ModuleType:
    """Import a Python file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forget_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo at a test's end what it registers, and forget the files that it loads."""
    monkeypatch.setattr(registry_module, "_LOADED", [*registry_module._LOADED])
    registries: tuple[Registry[Any], ...] = (
        *(ALLOCATIONS, CRITERIA, REPAIRS, METHODS, COST_TARGETS, UNITS, MODELS, DATASETS, TASKS),
        *(OBJECTIVES, OPTIMISERS, SCHEDULES, ARMS),
    )
    for registry in registries:
        registry.names()
        monkeypatch.setattr(registry, "_values", dict(registry._values))
        monkeypatch.setattr(registry, "_origins", dict(registry._origins))
