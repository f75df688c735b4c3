"""The training loop: against a plain loop, resumed, advanced in turn, held, diverging."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from image_files import image_folder
from regrow.core.seeds import seeded
from regrow.data import Dataset, DataSpec, StreamedImages, load, normalise
from regrow.data.decode import num_threads
from regrow.errors import ConfigError, TrainingError
from regrow.models.densenet import BasicLayer
from regrow.train import Moment, Recipe, Training, Treatment, evaluate, fit
from regrow.train.engine import BATCHES_AHEAD
from small import bright

CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg"
QUICK = Recipe(epochs=3, batch=16, lr=0.05)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the promise of equal bits is for one thread


def network(*, dropout: float = 0.0, classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(16, classes),
        )


def training(recipe: Recipe = QUICK, *, num: int = 70, seed: int = 7, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    return Training(model, bright(num), recipe, seed=seed, **options)


def plain_loop(model: nn.Module, data: Dataset, recipe: Recipe, *, seed: int) -> Any:
    """Train as anyone would, yielding the parameters after each update."""
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=False,
    )
    milestones = [int(share * recipe.epochs) for share in recipe.drop_at]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, recipe.drop_factor)
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.train), generator=seeded(seed, "shuffle", epoch))
        draws = data.train.draw(data.augmentation, seeded(seed, "augment", epoch))
        batches = zip(*(torch.split(t, recipe.batch) for t in (order, draws)), strict=True)
        for indices, own in batches:
            pixels = data.train.augmented(indices, own, kind=data.augmentation)
            loss = F.cross_entropy(
                model(normalise(pixels, data.mean, data.std)), data.train.labels[indices]
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            yield {name: p.detach().clone() for name, p in model.named_parameters()}
        schedule.step()


def assert_same_bits(one: Training, other: Training) -> None:
    tensors, meta = one.state()
    others, other_meta = other.state()
    assert meta == other_meta
    assert tensors.keys() == others.keys()
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_a_plain_loop_after_each_of_twenty_steps(nesterov: bool) -> None:
    recipe = Recipe(epochs=4, batch=16, lr=0.1, nesterov=nesterov, channels_last=False)
    ours = training(recipe)
    num = 0
    for expected in plain_loop(network(), bright(), recipe, seed=7):
        ours.step()
        num += 1
        for name, parameter in ours.model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-6)
    assert ours.done
    assert num == 20


def test_channels_last_changes_only_the_order_of_sums() -> None:
    steps = []
    for channels_last in (False, True):
        one = training(replace(QUICK, channels_last=channels_last))
        for _ in range(5):
            one.step()
        steps.append(one.state()[0])
    for name, value in steps[0].items():
        torch.testing.assert_close(value, steps[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns(precision: Any) -> None:
    recipe = Recipe(epochs=8, batch=16, lr=0.1, precision=precision, augmentation="flip")
    one = training(recipe, num=200)
    fit(one)
    assert evaluate(one.model, one.dataset.test, one.dataset, precision=precision).score > 0.8
    assert one.history[-1]["loss"] < one.history[0]["loss"]
    assert all(p.dtype == torch.float32 for p in one.model.parameters())


def test_is_reproducible_bit_by_bit_whatever_the_global_seed() -> None:
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        one = training(dropout=0.3)
        fit(one)
        runs.append(one)
    assert_same_bits(*runs)


def test_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    fit(training(dropout=0.3))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_differs_from_step_to_step() -> None:
    class Record(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.detach() == 0)
            return x

    record = Record()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), record, nn.Linear(192, 4))
    one = Training(model, bright(64), QUICK, seed=0)
    one.step()
    one.step()
    assert not torch.equal(*record.seen[-2:])  # the first was to learn its layout


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 14, 15])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumes_at_any_step_to_the_same_bits(stop: int, precision: Any, tmp_path: Path) -> None:
    recipe = replace(QUICK, precision=precision)
    undisturbed = training(recipe, dropout=0.3)
    fit(undisturbed)

    killed = training(recipe, dropout=0.3)
    for _ in range(stop):
        killed.step()
    tensors, meta = killed.state()
    save_file(tensors, tmp_path / "state.safetensors")
    text = json.dumps(meta)

    resumed = training(recipe, dropout=0.3)
    resumed.restore(load_file(tmp_path / "state.safetensors"), json.loads(text))
    assert resumed.steps_done == stop
    fit(resumed)
    assert_same_bits(resumed, undisturbed)
    assert len(resumed.history) == 3


def test_a_state_is_a_copy() -> None:
    one = training()
    one.step()
    tensors, meta = one.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    fit(one)
    assert all(torch.equal(tensors[name], value) for name, value in kept.items())
    assert (meta["steps_done"], meta["history"]) == (1, [])


def test_several_trainings_advanced_in_turn_equal_each_alone() -> None:
    seeds = (1, 2, 3)
    together = [training(seed=seed, dropout=0.3) for seed in seeds]
    while not all(one.done for one in together):
        for one in together:
            one.step()
    for seed, one in zip(seeds, together, strict=True):
        alone = training(seed=seed, dropout=0.3)
        fit(alone)
        assert_same_bits(one, alone)


@pytest.mark.parametrize(
    ("num", "sizes"), [(64, [16] * 4), (70, [16, 16, 16, 16, 6]), (65, [16, 16, 16, 17]), (2, [2])]
)
def test_a_last_batch_is_kept_unless_it_is_a_single_image(num: int, sizes: list[int]) -> None:
    seen: list[int] = []
    one = training(num=num)
    one.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    fit(one)
    assert seen == sizes * 3
    assert (one.steps_per_epoch, one.num_steps) == (len(sizes), 3 * len(sizes))
    assert one.samples == 3 * num


def test_counts_steps_samples_and_epochs() -> None:
    one = training()
    for _ in range(6):
        one.step()
    assert (one.epoch, one.steps_done, one.samples, one.done) == (1, 6, 86, False)
    assert [line["epoch"] for line in one.history] == [0]
    fit(one)
    assert (one.epoch, one.samples, one.done) == (3, 210, True)
    assert [line["lr"] for line in one.history] == [0.05, 0.005, 0.0005]
    with pytest.raises(TrainingError, match="has taken all of its 15 steps"):
        one.step()


def test_history_is_the_mean_loss_over_images() -> None:
    losses: list[tuple[float, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        order = torch.randperm(70, generator=seeded(7, "shuffle", 0))
        wanted = bright().train.labels[torch.split(order, 16)[len(losses)]]
        losses.append((F.cross_entropy(logits, wanted).item(), len(logits)))

    one = training(replace(QUICK, epochs=1))
    one.model.register_forward_hook(note)
    fit(one)
    expected = sum(loss * num for loss, num in losses) / 70
    assert one.history[0]["loss"] == pytest.approx(expected, rel=1e-6)


def test_fit_calls_back_after_each_step() -> None:
    seen: list[int] = []
    fit(training(), on_step=lambda one: seen.append(one.steps_done))
    assert seen == list(range(1, 16))


def test_a_treatment_adds_to_the_gradient() -> None:
    def penalty(model: nn.Module, _: Moment) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.grad is not None
                module.weight.grad.add_(module.weight.detach().sign(), alpha=0.01)

    recipe = Recipe(epochs=1, batch=16, lr=0.1, momentum=0.0, weight_decay=0.0)
    without, with_penalty = (
        training(recipe),
        training(recipe, treatment=Treatment(gradients=penalty)),
    )
    without.step()
    with_penalty.step()
    name = "1.weight"
    difference = with_penalty.model.get_parameter(name) - without.model.get_parameter(name)
    torch.testing.assert_close(difference.detach(), torch.full((8,), -0.001), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_held_weights_and_their_momentum_stay_exactly_zero(nesterov: bool) -> None:
    kept = torch.rand(16, 8, 3, 3, generator=seeded(0, "mask")) < 0.5
    one = training(replace(QUICK, nesterov=nesterov), masks={"3.weight": kept})
    fit(one)
    tensors, _ = one.state()
    for name in ("model.3.weight", "momentum.3.weight"):
        assert (tensors[name][~kept] == 0).all()
        assert (tensors[name][kept] != 0).all()


def test_a_diverging_training_says_where_and_what_to_try() -> None:
    def spoil(model: nn.Module, moment: Moment) -> None:
        one = model.get_parameter("9.weight")
        if moment.step == 6:
            one.grad = torch.full_like(one, float("inf"))

    broken = training(treatment=Treatment(gradients=spoil))
    message = (
        r"loss is (nan|inf) in epoch 2 of 3, step 3 of 5, at a learning rate of 0\.005. Lower 'lr'"
    )
    with pytest.raises(TrainingError, match=message):
        fit(broken)
    assert broken.steps_done == 7


def test_a_state_of_another_training_is_refused() -> None:
    tensors, meta = training().state()
    with pytest.raises(TrainingError, match="its seed is 7, where 8 was expected"):
        training(seed=8).restore(tensors, meta)
    with pytest.raises(TrainingError, match="another training: its recipe is"):
        training(replace(QUICK, lr=0.2)).restore(tensors, meta)
    tensors["model.0.weight"] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(TrainingError, match=r"for 'model\.0\.weight' it has \(4, 3, 3, 3\), where"):
        training().restore(tensors, meta)
    del tensors["momentum.0.weight"], tensors["model.0.weight"]
    with pytest.raises(TrainingError, match=r"for 'model\.0\.weight' it has nothing"):
        training().restore(tensors, meta)


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs at least 2 images\. Got 1: raise 'subset'"):
        training(num=1)


@pytest.mark.parametrize("batch", [1, 7, 53, 100])
def test_evaluation_counts_exactly_and_restores_the_modes(batch: int) -> None:
    data, model = bright(), network(dropout=0.5)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    result = evaluate(model, data.test, data, batch=batch, channels_last=False)
    assert [module.training for module in model.modules()] == modes

    model.eval()
    with torch.no_grad():
        pixels = normalise(data.test.batch(torch.arange(53)), data.mean, data.std)
        logits = model(pixels)
    correct = int((logits.argmax(1) == data.test.labels).sum())
    assert (result.score, result.num) == (correct / 53, 53)
    assert result.loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-5)


def test_streamed_images_train_like_images_in_memory(tmp_path: Path) -> None:
    from torchvision.utils import save_image

    folder = tmp_path / "images"
    for label in ("dark", "light"):
        (folder / label).mkdir(parents=True)
        for i in range(20):
            value = 0.3 if label == "dark" else 0.7
            save_image(torch.full((3, 16, 16), value), folder / label / f"{i}.png")
    losses = []
    for limit in (10**9, 0):
        spec = DataSpec(f"folder:{folder}", root=str(tmp_path / "c"), memory_limit_bytes=limit)
        data = load(replace(spec, mean=(0.5,) * 3, std=(0.25,) * 3))
        recipe = Recipe(epochs=2, batch=8, augmentation="flip", lr=0.01)
        one = Training(network(), data, recipe, seed=0)
        fit(one)
        losses.append([line["loss"] for line in one.history])
        losses[-1].append(evaluate(one.model, data.test, data).loss)
    assert losses[0] == pytest.approx(losses[1])


def test_later_images_are_decoded_while_a_step_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(f"folder:{image_folder(tmp_path / 'x')}", memory_limit_bytes=0, size=8)
    data = load(replace(spec, normalisation="imagenet"))
    images = data.train
    assert isinstance(images, StreamedImages)
    read, seen = images._read, []

    def note(row: int) -> bytes:
        seen.append(row)
        return read(row)

    def wait(module: nn.Module, inputs: object) -> None:
        """Go on when what is not asked for yet has been read; in vain, the test fails."""
        deadline = time.monotonic() + 30
        while len(seen) < min(2 * BATCHES_AHEAD, len(images)) and time.monotonic() < deadline:
            time.sleep(0.001)

    monkeypatch.setattr(images, "_read", note)
    one = Training(network(classes=2), data, replace(QUICK, batch=2, precision="bf16"), seed=0)
    one.model.register_forward_pre_hook(wait)  # not before, because it learns its layout first
    one.step()
    assert len(set(seen)) == min(2 * BATCHES_AHEAD, len(images))


def test_decoding_takes_the_cores_of_its_own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(48)), raising=False)
    assert num_threads() == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert num_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert num_threads() == 1


@pytest.mark.skipif(not CIFAR10.exists(), reason="needs ../shared/data/cifar10-jpeg")
@pytest.mark.slow
def test_real_images_are_learnt(tmp_path: Path) -> None:
    data = load(DataSpec(f"hf:{CIFAR10}", subset=2000, test_subset=500, root=str(tmp_path)))
    recipe = Recipe(epochs=4, batch=64, lr=0.1, precision="bf16")
    one = Training(network(classes=10), data, recipe, seed=0)
    fit(one)
    assert evaluate(one.model, data.test, data, precision="bf16").score > 0.2


# Gradient checkpoints


class Checkpointed(nn.Module):
    """Runs its later layers again in the backward pass instead of keeping what they compute."""

    def __init__(self, layers: nn.ModuleList, *, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.layers = nn.Conv2d(3, 16, 3, padding=1), layers
        self.last = nn.Linear(40, 4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x) if self.reentrant is None else self.again(layer, x)
        output: Tensor = self.last(x.mean((2, 3)))
        return output

    def again(self, layer: nn.Module, x: Tensor) -> Any:
        return checkpoint(layer, x, use_reentrant=self.reentrant)


def dense(reentrant: bool | None) -> nn.Module:
    layers = nn.ModuleList([BasicLayer(16, 12), BasicLayer(28, 12)])
    return Checkpointed(layers, reentrant=reentrant)


def dropping(reentrant: bool | None) -> nn.Module:
    widths = ((16, 24), (24, 40))
    layers = nn.ModuleList(
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(0.3))
        for a, b in widths
    )
    return Checkpointed(layers, reentrant=reentrant)


@pytest.mark.parametrize(
    ("precision", "engine"), [("fp32", "exact"), ("fp32", "fused"), ("bf16", "exact")]
)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("make", [dense, dropping])
def test_layers_run_again_compute_the_same(
    make: Any, reentrant: bool, precision: Any, engine: Any
) -> None:
    recipe = replace(QUICK, precision=precision, engine=engine)
    trained = []
    for mode in (None, reentrant):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make(mode)
        ours = Training(model, bright(), recipe, seed=7)
        while not ours.done:
            ours.step()
        trained.append(dict(model.named_parameters()))
    # A re-entrant checkpoint runs layers without gradients first, where they are not fused.
    near = 1e-2 if precision == "bf16" else 1e-5 if engine == "fused" else 0.0
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=near)
