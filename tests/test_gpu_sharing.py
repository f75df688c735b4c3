"""Many trainings on one device: recorded steps, and crews of threads. All of it on the CPU here.

A recording is stood in for by its body, called anew each time: the same driver, without graphs.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regrow.core.global_rng import drawing
from regrow.core.seeds import seeded
from regrow.data import AUGMENTATIONS
from regrow.errors import ConfigError, Interrupted, TrainingError
from regrow.jobs.base import Context, Defaults, Job, Outcome
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build, initialise_, register_model
from regrow.run import (
    Event,
    JobFailed,
    JobProgress,
    JobWarning,
    RunProgress,
    Summary,
    devices_of,
    run,
)
from regrow.run.coordinator import Coordinator, assemble
from regrow.run.executors import Settings
from regrow.run.gpu_sharing import ENDLESS, Trial, how_many, num_steps, trainings_a_second
from regrow.run.schedule import Schedule
from regrow.run.worker import device_workers
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train import RECIPES, Moment, Recipe, Training, Treatment, fit
from regrow.train.engine import CannotRecord
from small import MATERIAL, bright, digits
from test_jobs import RECIPE, VGG
from test_run import once, results
from test_training import QUICK, assert_same_bits, network


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the promise of equal bits is for one thread
    yield
    torch.set_num_threads(threads)


class Bodies:
    """A recorder that only remembers, and runs the body a few times first, as a real one does."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.recorded = 0
        self.replayed = 0
        self._fail_at = fail_at

    def record(
        self, body: Callable[[], None], *, prepare: Callable[[], object]
    ) -> Callable[[], None]:
        for _ in range(2):
            prepare()
            body()
        self.recorded += 1
        if self.recorded == self._fail_at:
            raise CannotRecord("This device has no graphs.")

        def replay() -> None:
            self.replayed += 1
            body()

        return replay

    def seed(self, seed: int) -> AbstractContextManager[None]:
        return drawing(seed)


def graphed(recipe: Recipe = QUICK, *, num: int = 70, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    options.setdefault("recorder", Bodies())
    return Training(model, bright(num), recipe, seed=7, **options)


def eager(recipe: Recipe = QUICK, *, num: int = 70, **options: Any) -> Training:
    model = network(dropout=options.pop("dropout", 0.0))
    return Training(model, bright(num), recipe, seed=7, **options)


def assert_close(one: Training, other: Training) -> None:
    tensors, meta = one.state()
    others, other_meta = other.state()
    assert meta.keys() == other_meta.keys()
    for name, value in tensors.items():
        # The rate is float32 on a device and float64 in a call: 1e-8 of an update.
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-6)


def penalty(model: nn.Module, _: Moment) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.grad is not None
            module.weight.grad.add_(module.weight.detach().sign(), alpha=0.01)


def half() -> dict[str, Tensor]:
    return {"3.weight": torch.rand(16, 8, 3, 3, generator=seeded(0, "mask")) < 0.5}


# Recorded steps


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_recorded_steps_equal_single_calls(kind: str) -> None:
    recipe = replace(QUICK, augmentation=kind)
    one, other = graphed(recipe), eager(recipe)
    fit(one)
    fit(other)
    assert_close(one, other)
    assert [line["loss"] for line in one.history] == pytest.approx(
        [line["loss"] for line in other.history], rel=1e-5
    )


@pytest.mark.parametrize("num", [64, 65, 70])
def test_the_fast_recipe_is_recorded_in_bf16(num: int) -> None:
    """Rates, looks ahead and flips change by step or epoch, and one recording has them all."""
    given: dict[str, Any] = {"epochs": 3, "batch": 16, "lr": 0.05, "precision": "bf16"}
    recipe = replace(RECIPES["fast"], norm_bias_rate=8.0, **given)
    recorder = Bodies()
    one, other = graphed(recipe, num=num, recorder=recorder), eager(recipe, num=num)
    fit(one)
    fit(other)
    assert recorder.recorded == (1 if num == 64 else 2)
    for value, average in zip(one.parts.averaged, one.parts.averages, strict=True):
        assert torch.equal(value, average)
    tensors, others = one.state()[0], other.state()[0]
    for name, value in tensors.items():
        torch.testing.assert_close(value, others[name], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("num", [64, 65, 70])
def test_each_size_of_batch_is_recorded_once(num: int) -> None:
    recorder = Bodies()
    one = graphed(num=num, recorder=recorder)
    fit(one)
    assert recorder.recorded == (1 if num == 64 else 2)
    assert recorder.replayed == one.num_steps
    other = eager(num=num)
    fit(other)
    assert_close(one, other)


@pytest.mark.parametrize(
    "options", [{"dropout": 0.3}, {"treatment": Treatment(gradients=penalty)}, {"masks": None}]
)
def test_dropout_and_hooks_are_recorded_with_the_step(options: dict[str, Any]) -> None:
    if "masks" in options:
        options = {"masks": half()}
    one, other = graphed(**options), eager(**options)
    fit(one)
    fit(other)
    assert_close(one, other)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 14, 15])
def test_recorded_steps_resume_to_the_same_bits(stop: int) -> None:
    undisturbed = graphed(dropout=0.3)
    fit(undisturbed)
    killed = graphed(dropout=0.3)
    for _ in range(stop):
        killed.step()
    resumed = graphed(dropout=0.3)
    resumed.restore(*killed.state())
    fit(resumed)
    assert_same_bits(resumed, undisturbed)


def test_a_state_restored_into_a_running_training_is_where_it_goes_on() -> None:
    one = graphed()
    for _ in range(3):
        one.step()
    saved = one.state()
    fit(one)
    other = graphed()
    for _ in range(9):  # recorded already, in another epoch, at another place
        other.step()
    other.restore(*saved)
    fit(other)
    assert_same_bits(one, other)


class Skipping(nn.Module):
    """A network that skips a layer at random, by a generator that is not PyTorch's."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.net, self.draw = network(), draw

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[0](x)
        for layer in self.net[1:]:
            if not (isinstance(layer, nn.ReLU) and self.training and self.draw() < 0.5):
                x = layer(x)
        return x


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_draws_of_python_and_numpy_are_those_of_the_seed(draw: Callable[[], float]) -> None:
    def begun(**options: Any) -> Training:
        return Training(Skipping(draw), bright(), QUICK, seed=7, **options)

    one, two, recorded = begun(), begun(), begun(recorder=Bodies())
    fit(one)
    for _ in range(7):
        two.step()
    resumed = begun()
    resumed.restore(*two.state())
    fit(resumed)
    assert_same_bits(one, resumed)
    fit(recorded)
    assert_same_bits(one, recorded)
    assert recorded.notice is not None
    assert "draws from the random generators of Python or numpy" in recorded.notice


@pytest.mark.parametrize("fail_at", [1, 2])
def test_what_cannot_be_recorded_is_called_step_by_step(fail_at: int) -> None:
    one = graphed(recorder=Bodies(fail_at=fail_at))
    fit(one)
    assert one.notice is not None
    assert "not replayed as CUDA graphs, which is slower. This device has no" in one.notice
    other = eager()
    fit(other)
    assert_close(one, other)
    assert other.notice is None


def test_nothing_is_made_anew_between_replays() -> None:
    """A graph reads and writes the memory that it was recorded with."""
    one = graphed()
    one.step()
    places = {name: p.data_ptr() for name, p in one.model.named_parameters()}
    fit(one)
    assert {name: p.data_ptr() for name, p in one.model.named_parameters()} == places
    one.restore(*graphed().state())
    assert {name: p.data_ptr() for name, p in one.model.named_parameters()} == places


def test_a_diverged_epoch_is_told_at_its_end() -> None:
    def spoil(model: nn.Module, _: Moment) -> None:
        weight = model.get_parameter("9.weight")
        assert isinstance(weight.grad, Tensor)
        weight.grad.fill_(float("inf"))

    one = graphed(treatment=Treatment(gradients=spoil))
    with pytest.raises(Exception, match="The training diverged: its loss is nan in epoch 1 of 3"):
        fit(one)


# Crews of threads


@register_model("gang-test-dropout", family="vgg")
def with_dropout(*, classes: int, in_channels: int = 1, input_size: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(8 * (input_size // 2 - 1) ** 2, classes),
    )


def study() -> Study:
    """Every kind of job: parents with a penalty, prunings, masks, cuts, two seeds."""
    return Study.from_json(
        {
            "name": "gang",
            "data": {"name": "digits", "subset": 128, "test_subset": 64},
            "seeds": 2,
            "recipe": {"epochs": 2, "batch": 32, "lr": 0.05},
            "arms": ["unpruned", "fine-tune", "scratch-e"],
            "experiments": [
                {
                    "models": {"name": "vgg", "plan": [6, "M", 8, "M", 8]},
                    "methods": [
                        {"name": "network-slimming", "sparsity": 0.5},
                        {"name": "magnitude", "sparsity": 0.5},
                    ],
                }
            ],
        }
    )


def jobs() -> list[Job]:
    dropouts = [
        Train(data=MATERIAL, model=ModelSpec("gang-test-dropout", FROM), recipe=RECIPE, seed=seed)
        for seed in range(3)
    ]
    return [*study().jobs(), *dropouts]


FROM = {"classes": 10, "in_channels": 1, "input_size": 8}


def conduct(
    jobs: Sequence[Job],
    store: Store,
    *,
    threads: int,
    checkpoint_seconds: float = 60.0,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Summary:
    """Run as ``run`` does on a GPU, with the CPU in its place; no threads: one after the other."""
    settings = Settings(device="cpu", checkpoint_seconds=checkpoint_seconds, together=threads > 0)
    executor = assemble(threads, store, settings)
    try:
        schedule = Schedule(jobs, store.snapshot().done)
        return Coordinator(schedule, store, executor, on_event).run()
    finally:
        executor.close()


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    store = Store.open(tmp_path_factory.mktemp("alone"))
    conduct(jobs(), store, threads=0)
    return results(store)


@pytest.mark.parametrize("checkpoint_seconds", [60.0, 0.0])
def test_threads_give_the_same_bytes_as_one_after_the_other(
    tmp_path: Path, one_by_one: dict[str, Any], checkpoint_seconds: float
) -> None:
    store = Store.open(tmp_path / "store")
    before = torch.get_rng_state(), torch.get_num_threads(), threading.active_count()
    summary = conduct(jobs(), store, threads=3, checkpoint_seconds=checkpoint_seconds)
    assert summary.complete
    assert results(store) == one_by_one
    assert (torch.get_num_threads(), threading.active_count()) == before[1:]


def test_threads_that_are_stopped_save_and_go_on_to_the_same_bytes(
    tmp_path: Path, one_by_one: dict[str, Any]
) -> None:
    store = Store.open(tmp_path / "store")
    stops = 0
    while True:
        settings = Settings(device="cpu", checkpoint_seconds=60.0, together=True)
        executor = assemble(2, store, settings)
        schedule = Schedule(jobs(), store.snapshot().done)
        coordinator = Coordinator(schedule, store, executor, lambda event: heard(event))
        stop = once(partial(coordinator._on_signal, 2, None))

        def heard(event: Event, stop: Callable[[], None] = stop, now: bool = stops < 4) -> None:
            if now and isinstance(event, JobProgress):
                stop()

        try:
            coordinator.run()
            break
        except Interrupted:
            stops += 1
        finally:
            executor.close()
    assert stops > 1
    assert results(store) == one_by_one


@dataclass(frozen=True)
class Fake(Defaults):
    """A job that meets another on its way, so that both are known to be under way at once."""

    name: str
    trouble: type[BaseException] | None = None
    flops: float = 1.0
    inputs: tuple[Job, ...] = ()

    kind = "fake"

    @property
    def key(self) -> str:
        return self.name.rjust(64, "0")

    @property
    def label(self) -> str:
        return self.name

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name}

    def run(self, context: Context) -> Outcome:
        MEETING.wait(timeout=10)
        if self.trouble is not None:
            raise self.trouble("no luck")
        return Outcome({})


MEETING = threading.Barrier(2)


def test_a_failing_job_leaves_the_other_threads_running(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    events: list[Event] = []
    pair: list[Job] = [Fake("a", TrainingError), Fake("b")]
    summary = conduct(pair, store, threads=2, on_event=events.append)
    assert (summary.failed, summary.done) == (("a",), ("b",))
    assert [e.message for e in events if isinstance(e, JobFailed)] == ["no luck"]


def test_a_job_that_would_end_its_process_is_failed_after_two_tries(tmp_path: Path) -> None:
    four: list[Job] = [Fake("a", SystemExit), Fake("b"), Fake("c")]
    summary = conduct(four, Store.open(tmp_path), threads=2)
    assert summary.failed == ("a",)
    assert set(summary.done) == {"b", "c"}


def test_threads_build_and_draw_as_one_does_alone() -> None:
    """The default generator is one for all threads: whoever draws has it for the time being."""
    alone = [build(VGG, seed=seed).state_dict() for seed in range(4)]
    found: dict[tuple[int, int], dict[str, Tensor]] = {}

    def work(seed: int) -> None:
        for turn in range(15):
            model = build(VGG, seed=seed)
            found[seed, turn] = model.state_dict()
            initialise_(build(VGG), seed=seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 60
    for (seed, _), state in found.items():
        assert all(torch.equal(value, alone[seed][name]) for name, value in state.items())


# How many together


@pytest.mark.parametrize(
    ("rates", "most", "expected"),
    [
        ({1: 10, 2: 10.9}, 32, 1),  # a device that one training fills
        ({1: 10, 2: 20, 4: 40, 8: 43}, 32, 4),
        ({1: 10, 2: 20, 4: 40, 8: 80, 16: 160, 32: 320}, 32, 32),
        ({1: 10, 2: 20, 4: 40, 5: 50}, 5, 5),  # no more than there are jobs
        ({1: 10, 2: 20, 4: 0}, 32, 2),  # four do not fit into memory
        ({1: 10}, 1, 1),
    ],
)
def test_twice_as_many_share_a_device_while_that_gains_a_tenth(
    rates: dict[int, float], most: int, expected: int
) -> None:
    asked: list[int] = []

    def measure(num: int) -> float:
        asked.append(num)
        return rates[num]

    assert how_many(measure, most=most) == expected
    assert asked == list(rates)


def test_a_trial_advances_clones_together() -> None:
    trial = Trial(VGG, digits(), RECIPE)
    started = time.perf_counter()
    assert trial.measure(1) > 5
    assert trial.measure(2) > 5
    assert time.perf_counter() - started < 5
    trial.close()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100_000, 2),  # steps alone: four gain less than a tenth on two
        (40, 8),  # starts and evaluations are most of so short a training
    ],
)
def test_more_share_a_device_where_trainings_are_short(steps: int, expected: int) -> None:
    steady = {1: 100.0, 2: 150.0, 4: 160.0, 8: 160.0, 16: 160.0}

    def rate(num: int) -> float:
        return trainings_a_second(num, steady[num], steps=steps, start=0.5, end=1.5)

    assert how_many(rate, most=16) == expected


def test_starts_are_one_after_the_other() -> None:
    rate = partial(trainings_a_second, rate=1e9, steps=10, start=0.5, end=0.5)
    assert [rate(num) for num in (1, 2, 4)] == pytest.approx([1.0, 2.0, 2.0])
    assert trainings_a_second(4, 0.0, steps=10, start=0.5, end=0.5) == 0.0  # does not fit


def test_what_a_training_takes_besides_its_steps_is_timed() -> None:
    trial = Trial(VGG, digits(), RECIPE)
    trial.warm_up()
    assert (trial.start, trial.end > 0.0) == (0.0, True)
    trial.measure(1)
    first = trial.start
    trial.measure(2)
    assert 0 < trial.start <= first < 5
    trial.close()


def test_the_steps_of_a_study_are_those_of_its_arms() -> None:
    longer = Train(
        data=MATERIAL, model=VGG, recipe=Recipe(epochs=10, batch=32), seed=0
    )  # 4 steps an epoch
    tuned = next(job for job in study().jobs() if isinstance(job, Retrain))
    assert num_steps([longer]) == 40
    assert num_steps([tuned]) == tuned.expected_epochs * 4
    assert num_steps([Fake("none")]) == ENDLESS


# Several devices: a process each, whose threads share it


def test_devices_are_named_or_all_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of("cpu") == ("cpu",)
    assert devices_of("cuda:0,cuda:3") == ("cuda:0", "cuda:3")
    for text in ("cuda:0,cuda:0", "cpu,cuda:0", "cuda,cuda:1", "cuda:0,"):
        with pytest.raises(ConfigError, match=f"--device {text}: name one device, or several GPUs"):
            devices_of(text)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("cpu", every=True) == ("cuda:0", "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--devices all: PyTorch finds no GPU"):
        devices_of("cpu", every=True)


def test_each_device_has_a_process_with_threads(tmp_path: Path) -> None:
    """Two devices with two hands each, in whose place the processor stands."""
    jobs = [Train(data=MATERIAL, model=VGG, recipe=RECIPE, seed=seed) for seed in range(6)]
    alone, shared = Store.open(tmp_path / "alone"), Store.open(tmp_path / "shared")
    assert run(jobs, alone, workers=0).complete
    events: list[Event] = []
    devices = ("cpu", "cpu")
    summary = run(jobs, shared, workers=2, device=devices, on_event=events.append)
    assert summary.complete, [event for event in events if isinstance(event, JobFailed)]
    for job in jobs:
        record = shared.record(job.key)
        assert record.pop("timing")
        assert record == {k: v for k, v in alone.record(job.key).items() if k != "timing"}
    at_once = max(event.running for event in events if isinstance(event, RunProgress))
    assert at_once <= 4


def test_a_device_whose_process_is_killed_is_given_another(tmp_path: Path) -> None:
    jobs = [
        Train(data=MATERIAL, model=VGG, recipe=replace(RECIPE, epochs=20), seed=seed)
        for seed in range(3)
    ]
    store = Store.open(tmp_path / "store")
    settings = Settings(device="cpu", checkpoint_seconds=0.05)
    executor = device_workers(("cpu", "cpu"), 2, store, settings)
    killed: list[int] = []
    warned: list[str] = []

    def kill(event: Event) -> None:
        if isinstance(event, JobWarning):
            warned.append(event.message)
        if isinstance(event, JobProgress) and not killed:
            worker = next(w for w in executor._workers if len(w.jobs) == 2)  # type: ignore[attr-defined]
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    try:
        summary = Coordinator(Schedule(jobs, ()), store, executor, kill).run()
    finally:
        executor.close()
    assert summary.complete
    assert len(warned) == 2
    assert all("was killed with SIGKILL" in text for text in warned)
