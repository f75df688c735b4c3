"""The three jobs: what they are known by, what they start from, and what they leave behind."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.cost import Cost, measure
from regrow.data import DataSpec, MemoryImages
from regrow.errors import ConfigError
from regrow.jobs.arms import (
    FINE_TUNE,
    PRUNED,
    RANDOM_INIT,
    SCRATCH_B,
    SCRATCH_E,
    WINNING_TICKET,
    Arm,
    Budget,
)
from regrow.jobs.as_json import job_from_json, job_to_json
from regrow.jobs.base import Job
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain, _draw_sparse_, flops_ratio
from regrow.jobs.train import Train, Treated, model_cost
from regrow.models import MODELS, ModelSpec, build, register_model
from regrow.pruning.method import METHODS
from regrow.run import run
from regrow.store import Store
from regrow.surgery import Trace, silence, trace, trial
from regrow.surgery.architecture import Architecture
from regrow.surgery.mask import Mask
from regrow.train import Recipe, Training, evaluate
from small import (
    DIGITS,
    FROM_DIGITS,
    MATERIAL,
    NETWORKS,
    SHAPE,
    digits,
    equal,
    first_weights,
)

RECIPE = Recipe(epochs=2, batch=32, lr=0.05)
VGG = NETWORKS["vgg"]

TRAIN = Train(data=MATERIAL, model=VGG, recipe=RECIPE, seed=1)
SLIMMING = replace(TRAIN, treated=Treated(method="network-slimming", strength=1e-4))
PRUNE = Prune(
    data=MATERIAL, model=VGG, method=METHODS.get("l1-filter"), seed=1, parent=TRAIN, sparsity=0.5
)
MAGNITUDE = replace(PRUNE, method=METHODS.get("magnitude"), sparsity=0.8)
TUNE = Retrain(prune=PRUNE, arm=FINE_TUNE, recipe=RECIPE, seed=1, parent=TRAIN)
SCRATCH = Retrain(prune=PRUNE, arm=SCRATCH_B, recipe=RECIPE, seed=1)
STRUCTURE = replace(TRAIN, treated=Treated(method="sparse-structure", strength=0.01))
PATHS = replace(TRAIN, treated=Treated(method="sparse-structure-groups"))
SELECTED = replace(TRAIN, model=ModelSpec("resnet-50-2x", FROM_DIGITS))
NOT_SELECTED = replace(TRAIN, model=ModelSpec("resnet-50-50", FROM_DIGITS))
SPARSE_SCRATCH = replace(SCRATCH, prune=MAGNITUDE)

# Identity ---------------------------------------------------------------------------------------

MEANT = "if what this job does changed on purpose, raise its version and pin the new key"
AnyJob = Train | Prune | Retrain
PINNED: dict[str, tuple[AnyJob, str]] = {
    "train": (TRAIN, "1c7691500e1eb9a5"),
    "slimming": (SLIMMING, "1c542daa3d51c540"),
    "prune": (PRUNE, "eb76b11eba89a63b"),
    "magnitude": (MAGNITUDE, "533b843ac8d38e53"),
    "tune": (TUNE, "fd18e46eaa3723ad"),
    "scratch": (SCRATCH, "e55ddb7ef36a27a5"),
    "structure": (STRUCTURE, "e7383fe1a6e81318"),
    "path structure": (PATHS, "3d55b8c13e1cb5f1"),
    "sparse scratch": (SPARSE_SCRATCH, "479b5935de7e14ca"),
    "sparse ticket": (replace(SPARSE_SCRATCH, arm=WINNING_TICKET), "bc2cfd4021dc0b50"),
    "selected": (SELECTED, "71a146a0204ce215"),
    "not selected": (NOT_SELECTED, "0649db8e17d31743"),
}


@pytest.mark.parametrize("name", PINNED)
def test_keys_are_pinned(name: str) -> None:
    job, key = PINNED[name]
    assert job.key[:16] == key, MEANT


SOFT = {"shortcut": "subsample", "fc_init": "kaiming"}
# Where costs were always counted so, keys are those of the first counter; elsewhere they are not.
BY_THE_FIRST_COUNTER = [
    ("vgg-16", {"head": "two-layer"}, "l1-filter", "ad53fb86f8e36cef"),
    ("vgg-16", {}, "network-slimming", "bbcc076fa1310115"),
    ("resnet-56", {}, "l1-filter", "9044723d94616a06"),
    ("resnet-50-lottery", {}, "magnitude", "71f98e58bb889082"),
    ("preresnet-56", {}, "magnitude", "624ca8686806a8dc"),
    ("densenet-40", {}, "magnitude", "9ac6f7e2d860438b"),
    ("resnet-56", {}, "soft-filter", "1bfaf0018a387218"),
]
COUNTED_ANEW = [
    ("resnet-20", {}, "soft-filter", "f7d5e8f99b82876f"),
    ("resnet-56", SOFT, "soft-filter", "db68a6e64490e5f0"),
    ("resnet-20", {}, "l1-filter", "e66a9cb424bbcf82"),
    ("preresnet-56", {}, "network-slimming", "e13aa5f8e0c1eaf6"),
    ("densenet-40", {}, "network-slimming", "def7a335440661d6"),
]


def _pruned(name: str, arguments: dict[str, Any], method: str) -> Prune:
    data = replace(MATERIAL, shape=(1, 3, 32, 32))
    model = ModelSpec(name, {"classes": 10, **arguments})
    return Prune(data=data, model=model, method=METHODS.get(method), seed=1, sparsity=0.5)


@pytest.mark.parametrize(("name", "arguments", "method", "key"), BY_THE_FIRST_COUNTER)
def test_keys_of_what_was_always_counted_so_stay(
    name: str, arguments: dict[str, Any], method: str, key: str
) -> None:
    job = _pruned(name, arguments, method)
    assert "counter" not in job.spec
    assert job.key[:16] == key, MEANT


@pytest.mark.parametrize(("name", "arguments", "method", "key"), COUNTED_ANEW)
def test_keys_of_what_is_counted_otherwise_now_are_others(
    name: str, arguments: dict[str, Any], method: str, key: str
) -> None:
    job = _pruned(name, arguments, method)
    assert job.spec["counter"] == 2
    assert job.key[:16] == key, MEANT
    retrain = Retrain(prune=job, arm=SCRATCH_B, recipe=RECIPE, seed=1)
    assert retrain.key != replace(retrain, prune=_pruned("resnet-56", {}, "l1-filter")).key
    assert "counter" not in Train(data=job.data, model=job.model, recipe=RECIPE, seed=1).spec


def attention_network(*, classes: int, in_channels: int, input_size: int) -> nn.Module:
    return Attending(in_channels * input_size, classes)


class Attending(nn.Module):
    """Attention over the rows of an image, which no hook on a layer sees."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(2)
        logits: Tensor = self.head(self.mix(rows, rows, rows, need_weights=False)[0].mean(1))
        return logits


def test_networks_that_multiply_past_layers_are_counted_anew_and_need_no_training_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MODELS.names()
    monkeypatch.setattr(MODELS, "_values", dict(MODELS._values))
    monkeypatch.setattr(MODELS, "_origins", dict(MODELS._origins))
    register_model("test-attention", family="test")(attention_network)
    job = replace(TRAIN, model=ModelSpec("test-attention", FROM_DIGITS))
    cost = model_cost(job.model, SHAPE)
    assert cost.macs == 8 * 4 * 8 * 8 + 2 * 8 * 8 * 8 + 8 * 10
    assert replace(MAGNITUDE, model=job.model).spec["counter"] == 2
    first = {"accuracy": 0.5, "samples": 100, "parameters": 1, "macs": 80, "flops": 170}
    now = job.recounted({**first, "training_flops": 3 * 170 * 100})
    assert now == {**first, **cost.to_json(), "training_flops": cost.training_flops(100)}
    assert TRAIN.recounted(first) == first


def test_equal_flops_of_a_network_that_cannot_be_counted_are_refused() -> None:
    nothing = Cost(parameters=1, macs=0, flops=0, caveats=("aten::_fft_r2c in 'mix'",))
    with pytest.raises(ConfigError, match=r"scratch-b.*equal FLOPs.*'mix'.*budget of epochs"):
        flops_ratio(nothing, nothing, SCRATCH_B)
    assert flops_ratio(nothing, nothing, SCRATCH_E) == 0.0


def test_a_spec_holds_what_was_asked_for_and_no_defaults() -> None:
    """So that a field added later, at its default, changes no key."""
    model = {"name": "vgg", "arguments": {**FROM_DIGITS, "plan": [6, "M", 8, "M", 8]}}
    assert TRAIN.spec == {
        "data": MATERIAL.content,
        "model": model,
        "recipe": {"epochs": 2, "batch": 32, "lr": 0.05},
        "seed": 1,
    }
    assert PRUNE.spec == {
        "data": MATERIAL.content,
        "model": model,
        "criterion": "l1-norm",
        "allocation": "uniform",
        "unit": "channel",
        "scope": ["conv"],
        "sparsity": 0.5,
        "seed": 1,
    }
    assert SCRATCH.spec == {
        "data": MATERIAL.content,
        "arm": {"start": "random", "schedule": "full", "budget": {"kind": "equal-flops"}},
        "recipe": TRAIN.spec["recipe"],
        "seed": 1,
    }
    assert replace(TRAIN, recipe=Recipe()).spec["recipe"] == {}


@pytest.mark.parametrize("job", [TRAIN, PRUNE, TUNE], ids=lambda job: job.kind)
def test_labels_and_paths_are_no_part_of_a_key(job: Any) -> None:
    elsewhere = replace(MATERIAL, spec=replace(DIGITS, root="/elsewhere"))
    assert replace(job, label="another").key == job.key
    assert replace(TRAIN, data=elsewhere).key == TRAIN.key
    renamed = replace(PRUNE.method, name="mine", reference="another", targets={}, treatment=None)
    assert replace(PRUNE, data=elsewhere, method=renamed).key == PRUNE.key
    assert replace(TUNE, arm=replace(FINE_TUNE, name="mine")).key == TUNE.key


OTHER_DATA = replace(MATERIAL, content="1" * 32)
OTHER_TRAIN = replace(TRAIN, seed=2)
CHANGES: list[tuple[Any, dict[str, Any]]] = [
    (TRAIN, {"data": OTHER_DATA}),
    (TRAIN, {"model": ModelSpec("vgg", {**VGG.arguments, "norm_scale": 1.0})}),
    (TRAIN, {"recipe": replace(RECIPE, lr=0.06)}),
    (TRAIN, {"seed": 2}),
    (TRAIN, {"treated": Treated(method="network-slimming", strength=0.0)}),
    (TRAIN, {"code": "abc"}),
    (SLIMMING, {"treated": Treated(method="network-slimming", strength=1e-5)}),
    (SLIMMING, {"treated": Treated(method="network-slimming", strength=1e-4, code="abc")}),
    (PRUNE, {"data": OTHER_DATA}),
    (PRUNE, {"model": ModelSpec("vgg", {**VGG.arguments, "norm_scale": 1.0})}),
    (PRUNE, {"method": replace(PRUNE.method, criterion="random")}),
    (PRUNE, {"method": replace(PRUNE.method, allocation="global")}),
    (PRUNE, {"method": replace(PRUNE.method, unit="weight")}),
    (PRUNE, {"method": replace(PRUNE.method, scope=("conv", "stream"))}),
    (PRUNE, {"sparsity": 0.6}),
    (PRUNE, {"sparsity": None, "shares": (0.5, 0.5, 0.5)}),
    (PRUNE, {"seed": 2}),
    (PRUNE, {"parent": OTHER_TRAIN}),
    (PRUNE, {"parent": None}),
    (PRUNE, {"code": "abc"}),
    (TUNE, {"prune": replace(PRUNE, sparsity=0.6)}),
    (TUNE, {"arm": PRUNED}),
    (TUNE, {"arm": replace(FINE_TUNE, lr=0.01)}),
    (TUNE, {"recipe": replace(RECIPE, momentum=0.8)}),
    (TUNE, {"seed": 2}),
    (TUNE, {"parent": OTHER_TRAIN}),
    (SCRATCH, {"arm": replace(SCRATCH_B, budget=Budget(kind="equal-flops", cap=2))}),
]


@pytest.mark.parametrize(("job", "change"), CHANGES)
def test_what_matters_changes_the_key(job: Any, change: dict[str, Any]) -> None:
    assert replace(job, **change).key != job.key


def test_jobs_travel_to_workers_unchanged() -> None:
    for job, _ in PINNED.values():
        again = job_from_json(job_to_json(job), key=job.key)
        assert again == job


def test_a_planned_trainings_flops_are_those_it_takes(world: "World") -> None:
    record = world.record(TRAIN)
    assert TRAIN.flops == record["training_flops"] == 3 * record["flops"] * 2 * 128


# Running ----------------------------------------------------------------------------------------

SPARSE_ARMS = (PRUNED, FINE_TUNE, SCRATCH_E, WINNING_TICKET, RANDOM_INIT)
ARMS_RUN = (*SPARSE_ARMS, SCRATCH_B)


def retrain(prune: Prune, arm: Arm) -> Retrain:
    parent = prune.parent if arm.start == "inherited" else None
    return Retrain(prune=prune, arm=arm, recipe=RECIPE, seed=1, parent=parent, label=arm.name)


CUT = {arm.name: retrain(PRUNE, arm) for arm in ARMS_RUN}
HELD = {arm.name: retrain(MAGNITUDE, arm) for arm in SPARSE_ARMS}


@dataclass(frozen=True)
class Seen:
    """What a training began with, and all the images it saw."""

    start: dict[str, Tensor]
    images: list[bytes]


@dataclass(frozen=True)
class World:
    """A store in which everything was run, and what was seen on the way, by (prune, arm)."""

    store: Store
    seen: Mapping[str, Seen]

    def record(self, job: Job) -> dict[str, Any]:
        return self.store.record(job.key, spec=job.spec)

    def tensors(self, job: Job) -> dict[str, Tensor]:
        return self.store.tensors(job.key)

    def mask(self, prune: Prune) -> Mask:
        return Mask(unit=prune.method.unit, kept=self.tensors(prune))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        store = Store.open(tmp_path_factory.mktemp("world") / "store")
        seen = {}
        jobs: list[AnyJob] = [TRAIN, *CUT.values(), *HELD.values()]
        for job in jobs:
            starts, images = _watch(patch)
            summary = run([job], store, workers=0)
            assert summary.complete
            if starts:
                seen[job.key] = Seen(starts[-1], list(images))
        yield World(store, seen)


def _watch(patch: pytest.MonkeyPatch) -> tuple[list[dict[str, Tensor]], list[bytes]]:
    """Note what each training starts from, and what it sees."""
    images: list[bytes] = []
    augmented = MemoryImages.augmented

    def watched(self: MemoryImages, *args: Any, **options: Any) -> Tensor:
        pixels = augmented(self, *args, **options)
        images.append(pixels.numpy().tobytes())
        return pixels

    patch.undo()
    starts = first_weights(patch)
    patch.setattr(MemoryImages, "augmented", watched)
    return starts, images


def cut(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    return Architecture(model=VGG, shape=SHAPE, cuts=(mask,)).cut(model).state_dict()


def test_every_arm_of_a_seed_sees_the_same_images_in_the_same_order(world: World) -> None:
    parent = world.seen[TRAIN.key].images
    assert len(parent) == 2 * 4
    for jobs in (CUT, HELD):
        for name in ("scratch-e", "winning-ticket", "random-init"):
            assert world.seen[jobs[name].key].images == parent
        tuned = world.seen[jobs["fine-tune"].key].images
        assert tuned == parent[: len(tuned)]
    longer = world.seen[CUT["scratch-b"].key].images
    assert longer[: len(parent)] == parent
    assert len(longer) > len(parent)


def test_the_pruned_arm_is_the_silenced_network_on_the_test_set(world: World) -> None:
    model = build(VGG)
    model.load_state_dict(world.tensors(TRAIN))
    quiet = silence(model, world.mask(PRUNE), trace(model, SHAPE))
    data = digits()
    expected = evaluate(quiet, data.test, data)
    record = world.record(CUT["pruned"])
    assert record["accuracy"] == expected.score
    assert record["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert (record["epochs"], record["samples"], record["training_flops"]) == (0, 0, 0.0)
    assert record["history"] == []


def test_inherited_weights_are_those_that_training_left(world: World) -> None:
    model = build(VGG)
    model.load_state_dict(world.tensors(TRAIN))
    assert equal(world.seen[CUT["fine-tune"].key].start, cut(model, world.mask(PRUNE)))


def test_a_winning_ticket_starts_from_the_trained_networks_own_first_weights(world: World) -> None:
    model = build(VGG)
    model.load_state_dict(world.seen[TRAIN.key].start)
    assert equal(world.seen[CUT["winning-ticket"].key].start, cut(model, world.mask(PRUNE)))
    held = world.seen[HELD["winning-ticket"].key].start
    first = world.seen[TRAIN.key].start
    for name, kept in world.mask(MAGNITUDE).kept.items():
        assert torch.equal(held[name][kept], first[name][kept])
        assert not held[name][~kept].any()
    rest = held.keys() - world.mask(MAGNITUDE).kept.keys()
    assert all(torch.equal(held[name], first[name]) for name in rest)


def test_random_init_is_another_draw_of_the_whole_network(world: World) -> None:
    for jobs in (CUT, HELD):
        start = world.seen[jobs["random-init"].key].start
        for name in ("winning-ticket", "scratch-e"):
            other = world.seen[jobs[name].key].start
            assert not torch.equal(start["features.conv2.weight"], other["features.conv2.weight"])


def test_weights_behind_a_mask_are_zero_from_the_start_to_the_end(world: World) -> None:
    mask = world.mask(MAGNITUDE)
    assert mask.sparsity == pytest.approx(0.8, abs=1 / mask.num_units)
    for name in ("fine-tune", "scratch-e", "winning-ticket", "random-init"):
        job = HELD[name]
        for state in (world.seen[job.key].start, world.tensors(job)):
            for weight, kept in mask.kept.items():
                assert not state[weight][~kept].any()
                assert state[weight][kept].count_nonzero() == kept.sum()


def test_budgets_follow_the_flops_of_the_cut_network(world: World) -> None:
    record = world.record(PRUNE)
    mask = world.mask(PRUNE)
    small = Architecture(model=VGG, shape=SHAPE, cuts=(mask,)).build()
    after = measure(small, torch.zeros(SHAPE))
    before = model_cost(VGG, SHAPE)
    assert (record["before"], record["after"]) == (before.to_json(), after.to_json())
    ratio = before.flops / after.flops
    longer = world.record(CUT["scratch-b"])
    assert longer["ratio"] == ratio
    assert longer["epochs"] == math.floor(2 * ratio)
    assert longer["training_flops"] == 3 * after.flops * 128 * longer["epochs"]
    assert not longer["capped"]
    assert [world.record(CUT[n])["epochs"] for n in ("fine-tune", "scratch-e")] == [1, 2]
    tuned = world.record(CUT["fine-tune"])
    assert {line["lr"] for line in tuned["history"]} == {RECIPE.last_lr()}


def test_weights_held_at_zero_count_no_flops_and_no_parameters(world: World) -> None:
    mask, record = world.mask(MAGNITUDE), world.record(MAGNITUDE)
    removed = mask.num_units - mask.num_kept
    assert record["before"]["parameters"] - record["after"]["parameters"] == removed
    expected = measure(build(VGG), torch.zeros(SHAPE), mask)
    assert world.record(HELD["scratch-e"])["macs"] == expected.macs < record["before"]["macs"]


def test_a_pruning_says_what_stays_and_can_be_rebuilt(world: World) -> None:
    record = world.record(PRUNE)
    assert record["widths"] == {f"features.conv{i}": w for i, w in ((1, 3), (2, 4), (3, 4))}
    assert (record["unit"], record["sparsity"], record["guarded"]) == ("channel", 0.5, [])
    rebuilt = Architecture.from_json(record["architecture"]).build()
    rebuilt.load_state_dict(world.tensors(CUT["scratch-e"]))


def test_the_same_seed_gives_the_same_record_bit_by_bit(world: World, tmp_path: Path) -> None:
    again = Store.open(tmp_path / "again")
    asked: list[AnyJob] = [CUT["scratch-b"], HELD["winning-ticket"], CUT["pruned"]]
    assert run(asked, again, workers=0).complete
    for job in (TRAIN, PRUNE, MAGNITUDE, *asked):
        records = [store.record(job.key) for store in (world.store, again)]
        for record in records:
            record.pop("timing")
        assert records[0] == records[1]
        assert equal(world.store.tensors(job.key), again.tensors(job.key))


def test_a_validation_split_is_scored_too(tmp_path: Path) -> None:
    spec = DataSpec("digits", subset=128, test_subset=64, validation=0.25)
    data = replace(MATERIAL, spec=spec, content="2" * 32, num_train=96)
    job = replace(TRAIN, data=data, recipe=replace(RECIPE, epochs=1))
    store = Store.open(tmp_path / "store")
    assert run([job], store, workers=0).complete
    record = store.record(job.key)
    assert record["samples"] == 96
    assert 0 <= record["validation"]["accuracy"] <= 1
    assert record["num_test"] == 64


# Where networks start ---------------------------------------------------------------------------

WIDE = ModelSpec("vgg", {**FROM_DIGITS, "plan": [64, "M", 64]})
WIDE_TRAIN = replace(TRAIN, model=WIDE, recipe=replace(RECIPE, epochs=1))


def _start(store: Store, prune: Prune, arm: Arm, patch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    starts, _ = _watch(patch)
    job = replace(retrain(prune, arm), recipe=replace(RECIPE, epochs=1))
    assert run([job], store, workers=0).complete
    return starts[-1]


def _std(values: Tensor) -> float:
    return float(values.std(correction=0))


def test_scratch_draws_by_the_narrow_widths_and_random_init_by_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    prune = replace(PRUNE, model=WIDE, parent=None, sparsity=0.75)  # 64 -> 16 channels
    expected = {SCRATCH_E: 16, RANDOM_INIT: 64, WINNING_TICKET: 64}
    for arm, width in expected.items():
        weight = _start(store, prune, arm, monkeypatch)["features.conv2.weight"]
        assert weight.shape == (16, 16, 3, 3)
        # The standard deviation of 2,304 normal draws is within 6 % of its own, to 4 sigma.
        assert _std(weight) == pytest.approx(math.sqrt(2 / (9 * width)), rel=0.06)


def test_scratch_under_a_mask_draws_by_the_density_of_each_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    prune = replace(MAGNITUDE, model=WIDE, parent=WIDE_TRAIN, sparsity=0.75)
    start = _start(store, prune, SCRATCH_E, monkeypatch)
    mask = Mask(unit="weight", kept=store.tensors(prune.key))
    for name, kept in mask.kept.items():
        n = int(kept.sum()) / kept.shape[1]  # weights left for each input channel
        drawn = start[name][kept]
        spread = 4 / math.sqrt(2 * len(drawn))
        assert _std(drawn) == pytest.approx(math.sqrt(2 / n), rel=spread)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.2, 1.0])
def test_a_sparse_draw_has_no_least_fan(kept: float) -> None:
    """N(0, 2 / n) however small n is: with 2 % of 16 outputs kept it is 0.3."""
    model = nn.Sequential(nn.Conv2d(256, 16, 1, bias=False), nn.Flatten(), nn.Linear(16, 10))
    generator = torch.Generator().manual_seed(0)
    stays = {
        name: torch.rand(weight.shape, generator=generator) < kept
        for name, weight in model.named_parameters()
        if name.endswith("weight")
    }
    head = model.get_parameter("2.weight").detach().clone()
    _draw_sparse_(model, stays, seed=1)
    n = int(stays["0.weight"].sum()) / 256
    drawn = model.get_parameter("0.weight").detach()
    assert torch.isfinite(drawn).all()
    if n > 0:
        assert _std(drawn) == pytest.approx(math.sqrt(2 / n), rel=0.05)  # of 4,096 draws
    assert torch.equal(model.get_parameter("2.weight"), head)  # a rule of convolutions


def test_a_method_at_initialisation_prunes_the_network_as_first_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    prune = replace(PRUNE, parent=None)
    start = _start(store, prune, WINNING_TICKET, monkeypatch)
    mask = Mask(unit="channel", kept=store.tensors(prune.key))
    assert equal(start, cut(build(VGG, seed=1), mask))
    sizes = build(VGG, seed=1).get_parameter("features.conv2.weight").abs().sum((1, 2, 3))
    assert mask.indices("features.conv2").tolist() == sizes.topk(4).indices.sort().values.tolist()


class ByWidth(nn.Module):
    """A network whose code takes its own width as a number."""

    def __init__(self, *, classes: int, in_channels: int, input_size: int) -> None:
        super().__init__()
        self.wide, self.next = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3)
        self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x).relu()
        result: Tensor = self.out(self.next(x / math.sqrt(x.shape[1])).relu().mean((2, 3)))
        return result


def test_a_pruning_leaves_whole_what_code_counts(
    tmp_path: Path,
) -> None:
    register_model("test-by-width", family="test")(ByWidth)
    job = replace(PRUNE, parent=None, model=ModelSpec("test-by-width", FROM_DIGITS))
    store = Store.open(tmp_path / "store")
    assert run([job], store, workers=0).complete
    assert store.tensors(job.key).keys() == {"next"}


def test_a_pruning_without_a_proof_fails_and_names_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model("test-by-width", family="test")(ByWidth)
    monkeypatch.setattr(trial.Trials, "_breaks", lambda *_: None)  # what the trial missed
    job = replace(PRUNE, parent=None, model=ModelSpec("test-by-width", FROM_DIGITS))
    store = Store.open(tmp_path / "store")
    assert not run([job], store, workers=0).complete
    failure = store.failure(job.key)
    assert failure is not None
    assert "proven correct. Wrong: " in failure["message"]
    assert "where 'wide' is cut" in failure["message"]


class Plain(nn.Module):
    """A network of a user's, of whose code nothing is known."""

    def __init__(self, *, classes: int, in_channels: int, input_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.features(x).mean((2, 3)))
        return result


@pytest.mark.parametrize(("name", "num_later"), [("vgg", 0), ("test-plain", 2)])
def test_a_pruning_traces_its_network_once(
    name: str, num_later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model("test-plain", family="test")(Plain)
    # A plan of its own, which no other test has traced.
    model = ModelSpec(name, FROM_DIGITS | ({"plan": [5, "M", 7]} if name == "vgg" else {}))
    prune = replace(PRUNE, parent=None, model=model)
    calls: list[nn.Module] = []

    def counted(model: nn.Module, example: Any) -> Trace:
        calls.append(model)
        return trace(model, example)

    monkeypatch.setattr("regrow.surgery.architecture.trace", counted)
    store = Store.open(tmp_path / "store")
    assert run([prune], store, workers=0).complete
    assert len(calls) == 1
    # Whether a user's network with other weights has the same trace is not known, and two draws of
    # it are cut: what they have in common is not drawn.
    calls.clear()
    assert run([retrain(prune, SCRATCH_E)], store, workers=0).complete
    assert len(calls) == num_later


def test_a_penalty_is_part_of_the_parents_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    class Watched(Training):
        def __init__(self, *args: Any, **options: Any) -> None:
            calls.append("treatment" in options and options["treatment"].gradients is not None)
            super().__init__(*args, **options)

    for job_kind in ("train", "retrain"):
        monkeypatch.setattr(f"regrow.jobs.{job_kind}.Training", Watched)
    prune = replace(PRUNE, method=METHODS.get("network-slimming"), parent=SLIMMING)
    store = Store.open(tmp_path / "store")
    assert run([retrain(prune, FINE_TUNE)], store, workers=0).complete
    assert calls == [True, False]
    plain = Store.open(tmp_path / "plain")
    assert run([TRAIN], plain, workers=0).complete
    assert not equal(store.tensors(SLIMMING.key), plain.tensors(TRAIN.key))


def test_a_network_whose_numbers_are_not_finite_has_no_score(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    job = replace(TRAIN, recipe=Recipe(epochs=1, batch=128, lr=1e30))  # its one loss is finite
    assert not run([job], store, workers=0).complete
    failure = store.failure(job.key)
    assert failure is not None
    message = failure["message"]
    assert "on 64 images that it was not trained on, its loss is nan and its accuracy" in message
