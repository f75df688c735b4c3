"""Sampling against the layers themselves; repairs against plain algebra and planted answers."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.units import UNITS
from regrow.data import load
from regrow.errors import ConfigError
from regrow.jobs.arms import FINE_TUNE, PRUNED, SCRATCH_E, WINNING_TICKET, Arm
from regrow.jobs.base import Stored
from regrow.jobs.prune import Prune, edit_of
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.pruning import reconstruct
from regrow.pruning.method import METHODS, REPAIRS, Method
from regrow.pruning.probe import Probe
from regrow.pruning.reconstruct import contributions, least_squares, observe, reconstruct_, rescale
from regrow.pruning.select import select
from regrow.run import run
from regrow.store import Store
from regrow.surgery import Trace, shrink, trace
from regrow.surgery.architecture import Architecture
from regrow.surgery.edit import Edit
from regrow.surgery.mask import Mask
from regrow.train import Recipe, evaluate
from small import DIGITS, MATERIAL, NETWORKS, SHAPE, digits, equal, small, snapshot

Batches = list[Tensor]


def images(shape: tuple[int, ...], *, num_batches: int = 2) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, *shape, generator=generator) for _ in range(num_batches)]


def place_first(_name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Keep inputs and outputs side by side: [N, places, channels * kernel + outputs]."""
    return torch.cat([inputs.flatten(2), outputs], dim=2)


Layer = nn.modules.conv._ConvNd | nn.Linear


# Sampling ---------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(3, 5, 3), (3, 5, 5)),
    "padded": (nn.Conv2d(3, 5, 3, padding=1), (3, 3, 3)),
    "strided": (nn.Conv2d(3, 5, 3, padding=1, stride=2, bias=False), (3, 6, 5)),
    "oblong": (nn.Conv2d(3, 5, (1, 4), padding=(0, 2), stride=(1, 3)), (3, 2, 8)),
    "dilated": (nn.Conv2d(3, 5, 3, padding=2, dilation=2), (3, 3, 3)),
    "same": (nn.Conv2d(3, 5, (3, 1), padding="same"), (3, 3, 3)),
    "reflected": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (3, 3, 3)),
    "one-dim": (nn.Conv1d(3, 5, 3, padding=1, stride=2), (3, 9)),
    "three-dim": (nn.Conv3d(2, 4, 2, padding=1, stride=2), (2, 2, 3, 3)),
    "linear": (nn.Linear(6, 4), (6,)),
    "sequence": (nn.Linear(6, 4), (7, 6)),
}


@pytest.mark.parametrize("label", LAYERS)
def test_sampled_outputs_are_the_layers_and_follow_from_the_sampled_inputs(label: str) -> None:
    layer, shape = LAYERS[label]
    model, batches = nn.Sequential(layer), images(shape)
    weight, bias = model.get_parameter("0.weight").detach(), layer.bias
    kept = observe(model, ["0.weight"], batches, keep=place_first, seed=0)["0.weight"]
    inputs, outputs = kept[..., : weight[0].numel()], kept[..., weight[0].numel() :]
    torch.testing.assert_close(inputs @ weight.flatten(1).T, outputs)
    with torch.no_grad():
        true = layer(torch.cat(batches)) - (0 if bias is None else _along(bias, layer))
    true = true.movedim(1 if isinstance(layer, nn.modules.conv._ConvNd) else -1, -1)
    true = true.reshape(16, -1, len(weight))
    # The maps are small enough that every place is sampled, in an order of chance.
    assert outputs.shape == true.shape
    for mine, theirs in zip(outputs, true, strict=True):
        distance = (mine[:, None] - theirs).abs().amax(-1)
        assert sorted(distance.argmin(1).tolist()) == list(range(len(theirs)))
        assert float(distance.min(1).values.max()) < 1e-5


def _along(bias: Tensor, layer: Layer) -> Tensor:
    extra = len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 0
    return bias.reshape(-1, *[1] * extra)


def test_large_maps_are_sampled_at_ten_different_places_of_each_image() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    x = torch.arange(400.0).reshape(1, 1, 20, 20).repeat(3, 1, 1, 1)
    kept = observe(model, ["0.weight"], [x], keep=place_first, seed=0)["0.weight"][..., 0]
    assert kept.shape == (3, 10)
    assert all(len(set(places.tolist())) == 10 for places in kept)
    assert not torch.equal(kept[0], kept[1])


def test_the_seed_and_the_name_alone_decide_the_places() -> None:
    first, second = (small("resnet", seed=seed)[0] for seed in (0, 1))
    readers = ["features.stage1.0.conv2.weight", "features.stage2.0.conv1.weight"]
    x = images(SHAPE[1:])

    def where(model: nn.Module, names: list[str], seed: int) -> dict[str, Tensor]:
        """Watch the places that are drawn."""
        drawn: list[Tensor] = []
        with pytest.MonkeyPatch.context() as patch:
            pick = reconstruct._pick

            def watched(values: Tensor, places: Tensor) -> Tensor:
                drawn.append(places)
                return pick(values, places)

            patch.setattr(reconstruct, "_pick", watched)
            found = observe(model, names, x, keep=lambda n, i, o: o, seed=seed)
        return {n: torch.cat(drawn[i :: len(names)]) for i, n in enumerate(found)}

    both = where(first, readers, 0)
    assert list(both) == readers
    alone = where(second, readers[1:], 0)
    assert torch.equal(both[readers[1]], alone[readers[1]])
    assert not torch.equal(both[readers[0]], where(first, readers, 1)[readers[0]])


def test_readers_come_in_the_order_of_computation() -> None:
    model, _ = small("vgg")
    names = ["head.weight", "features.conv3.weight", "features.conv2.weight"]
    found = observe(model, names, images(SHAPE[1:]), keep=place_first, seed=0)
    assert list(found) == names[::-1]


def test_sampling_leaves_the_network_as_it_was() -> None:
    model, _ = small("vgg")
    model.train()
    before = snapshot(model)
    observe(model, ["head.weight"], images(SHAPE[1:]), keep=place_first, seed=0)

    def fail(*_: Any) -> Tensor:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        observe(model, ["head.weight"], images(SHAPE[1:]), keep=fail, seed=0)
    assert equal(snapshot(model), before)
    assert all(m.training and not m._forward_hooks for m in model.modules())


class Borrower(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.first(x)), self.second.weight)


def test_what_cannot_be_sampled_is_named() -> None:
    up = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 2, 2))
    with pytest.raises(ConfigError, match=r"inputs of '1\.weight': ConvTranspose2d is neither"):
        contributions(up, trace(up, (1, 1, 4, 4)).groups.values(), images((1, 4, 4)), seed=0)
    borrower = Borrower()
    with pytest.raises(ConfigError, match=r"of 'second\.weight': its module is never called"):
        contributions(borrower, trace(borrower, (1, 4)).groups.values(), images((4,)), seed=0)
    model, found = small("vgg")
    group = found.groups["features.conv1"]
    unread = replace(group, slots=group.producers())
    with pytest.raises(ConfigError, match=r"No layer reads the channels of 'features\.conv1'"):
        contributions(model, [unread], images(SHAPE[1:]), seed=0)


# Contributions ----------------------------------------------------------------------------------


class Fork(nn.Module):
    """One convolution that three layers read, one of them after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.near = nn.Conv2d(4, 1, 3, padding=1)
        self.apart = nn.Conv2d(4, 1, 3, padding=1, stride=2)
        self.flat = nn.Linear(4 * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        parts = (self.near(y), self.apart(y), self.flat(y.flatten(1)))
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def test_contributions_are_what_silencing_a_unit_takes_from_every_reader() -> None:
    torch.manual_seed(0)
    model, x = Fork(), images((2, 3, 3), num_batches=1)
    group = trace(model, (1, 2, 3, 3)).groups["conv"]
    found = contributions(model, [group], x, seed=0)["conv"]
    # Each reader has one output, and its maps of 9, 4 and 1 places are sampled whole.
    sums = [p.reshape(8, -1, 4).sum(1) for p in torch.split(found, [8 * 9, 8 * 4, 8])]
    with torch.no_grad():
        whole = model(x[0])
        for unit in range(4):
            quiet = Fork()
            quiet.load_state_dict(model.state_dict())
            quiet.conv.weight[unit] = 0.0
            assert quiet.conv.bias is not None
            quiet.conv.bias[unit] = 0.0
            lost = torch.split(whole - quiet(x[0]), [9, 4, 1], dim=1)
            for part, change in zip(sums, lost, strict=True):
                torch.testing.assert_close(part[:, unit], change.sum(1), atol=1e-5, rtol=1e-4)


def test_outputs_are_drawn_evenly_and_without_regard_to_their_order() -> None:
    weight = torch.eye(6)[:, :, None]  # output o is input o: a row shows which was drawn
    inputs = torch.rand(4000, 10, 6, generator=torch.Generator().manual_seed(0)) + 0.1

    def draw(order: Tensor) -> Tensor:
        """Draw with the outputs in some order."""
        seen, generator = inputs[..., None], torch.Generator().manual_seed(1)
        return reconstruct._contributions(weight[order], seen, inputs[..., order], generator)

    rows = draw(torch.arange(6))
    counts = (rows > 0).sum(0)
    assert int(counts.sum()) == len(rows) == 40_000
    assert bool((counts - 40_000 / 6).abs().max() < 5 * (40_000 / 6) ** 0.5)
    assert torch.equal(draw(torch.tensor([3, 0, 5, 1, 4, 2])), rows)


def test_groups_are_measured_in_one_pass_as_each_by_itself() -> None:
    model, found = small("densenet")
    groups = {n: g for n, g in found.groups.items() if g.kind == "conv"}
    together = Probe(model, digits(), num_images=16, groups=groups)
    runs: list[int] = []
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    all_of_them = {name: together.contributions(group) for name, group in groups.items()}
    assert len(runs) == 1
    handle.remove()
    for name, group in groups.items():
        alone = Probe(model, digits(), num_images=16).contributions(group)
        torch.testing.assert_close(all_of_them[name], alone)
        assert alone.shape[1] == group.size


# Solving ----------------------------------------------------------------------------------------

SIZES = [(200, 5, 3, 4), (200, 4, 9, 1), (12, 5, 3, 4), (7, 10, 1, 2)]  # samples, in, kernel, out


def problem(samples: int, channels: int, kernel: int, outputs: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(samples + channels)
    weight = torch.randn(outputs, channels, kernel, generator=generator)
    inputs = torch.randn(samples, channels, kernel, generator=generator)
    return weight, inputs, torch.randn(samples, outputs, generator=generator)


def error(weight: Tensor, inputs: Tensor, target: Tensor) -> float:
    return float((target - inputs.flatten(1) @ weight.flatten(1).T).square().sum())


@pytest.mark.parametrize("solve", [least_squares, rescale])
@pytest.mark.parametrize("size", SIZES)
def test_solving_never_raises_the_error_and_leaves_what_is_right_alone(
    solve: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, ...]
) -> None:
    weight, inputs, target = problem(*size)
    solved = solve(weight, inputs, target)
    assert solved.shape == weight.shape
    assert error(solved, inputs, target) < error(weight, inputs, target)
    right = inputs.flatten(1) @ weight.flatten(1).T
    torch.testing.assert_close(solve(weight, inputs, right), weight, atol=1e-5, rtol=1e-5)
    silent = torch.zeros_like(inputs)
    torch.testing.assert_close(solve(weight, silent, target), weight)


@pytest.mark.parametrize("size", SIZES)
def test_least_squares_is_the_minimum_of_error_and_distance_to_the_old_weights(
    size: tuple[int, ...],
) -> None:
    """Against numpy's solver on the same problem, the ridge written as further samples."""
    weight, inputs, target = problem(*size)
    x = inputs.flatten(1).double()
    strength = (reconstruct.RIDGE * x.square().sum() / x.shape[1]).sqrt()
    wide = torch.cat([x, strength * torch.eye(x.shape[1])])
    old = weight.flatten(1).double()
    expected = torch.linalg.lstsq(wide, torch.cat([target, strength * old.T])).solution.T
    solved = least_squares(weight, inputs, target).flatten(1)
    torch.testing.assert_close(solved, expected.float(), atol=1e-5, rtol=1e-4)


def test_rescale_finds_planted_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-12)
    weight, inputs, _ = problem(*SIZES[0])
    factors = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0])
    planted = weight * factors[:, None]
    target = inputs.flatten(1) @ planted.flatten(1).T
    torch.testing.assert_close(rescale(weight, inputs, target), planted, atol=1e-5, rtol=1e-4)


# Repairing --------------------------------------------------------------------------------------


class Chain(nn.Module):
    """A convolution, one with padding and stride, and a linear layer after a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 6, 3, padding=1)
        self.two = nn.Conv2d(6, 5, 3, padding=1, stride=2)
        self.out = nn.Linear(5 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.two(torch.relu(self.one(x))))
        logits: Tensor = self.out(y.flatten(1))
        return logits


@pytest.fixture
def chain() -> tuple[Chain, Trace]:
    torch.manual_seed(0)
    model = Chain()
    return model, trace(model, SHAPE)


def first_kept(found: Trace, **kept: int) -> Mask:
    groups = {name: torch.arange(found.groups[name].size) < num for name, num in kept.items()}
    return Mask(unit="channel", kept=groups)


def sampled_error(small_one: nn.Module, probe: Probe, reader: str) -> float:
    """Compare a reader's outputs with the uncut network's, where the repair looked."""

    def outputs(_name: str, _inputs: Tensor, values: Tensor) -> Tensor:
        return values

    true = probe.observe([reader], outputs)[reader]
    mine = probe.observe([reader], outputs, model=small_one)[reader]
    return float((true[..., : mine.shape[-1]] - mine).square().sum())


USERS = [METHODS.get(name) for name in METHODS.names()]
AFTER_CUTS = sorted({m.repair for m in USERS if m.repair and UNITS.get(m.unit).narrows})


@pytest.mark.parametrize("repair", AFTER_CUTS)
@pytest.mark.parametrize(
    ("kept", "reader"), [({"one": 4}, "two.weight"), ({"two": 3}, "out.weight")]
)
def test_a_repair_brings_the_next_layer_nearer_to_what_it_was(
    repair: str, kept: dict[str, int], reader: str, chain: tuple[Chain, Trace]
) -> None:
    model, found = chain
    before = snapshot(model)
    probe = Probe(model, digits(), num_images=32)
    mask = first_kept(found, **kept)
    small_one = shrink(model, mask, found)
    cut = snapshot(small_one)
    broken = sampled_error(small_one, probe, reader)
    REPAIRS.get(repair)(small_one, mask, found, probe)
    assert sampled_error(small_one, probe, reader) < broken
    assert equal(snapshot(model), before)
    changed = [n for n, value in snapshot(small_one).items() if not torch.equal(value, cut[n])]
    assert changed == [reader]


@pytest.mark.parametrize("label", NETWORKS)
@pytest.mark.parametrize("repair", AFTER_CUTS)
def test_a_repair_works_on_every_family_and_changes_nothing_where_nothing_is_cut(
    repair: str, label: str
) -> None:
    model, found = small(label)
    probe = Probe(model, digits(), num_images=16)
    whole = Mask(
        unit="channel", kept={n: torch.ones(g.size).bool() for n, g in found.groups.items()}
    )
    untouched = shrink(model, whole, found)
    before = snapshot(untouched)
    REPAIRS.get(repair)(untouched, whole, found, probe)
    assert equal(snapshot(untouched), before)
    mask = Mask(
        unit="channel", kept={n: torch.arange(g.size) % 2 == 0 for n, g in found.groups.items()}
    )
    small_one = shrink(model, mask, found)
    REPAIRS.get(repair)(small_one, mask, found, probe)
    assert torch.isfinite(small_one.eval()(torch.rand(2, *SHAPE[1:]))).all()


@pytest.mark.parametrize("repair", AFTER_CUTS)
def test_cutting_what_contributes_nothing_changes_no_weight(
    repair: str, chain: tuple[Chain, Trace]
) -> None:
    model, found = chain
    with torch.no_grad():
        model.one.weight[4:] = 0.0
        assert model.one.bias is not None
        model.one.bias[4:] = -1.0  # silent after the ReLU
    mask = first_kept(found, one=4)
    small_one = shrink(model, mask, found)
    before = snapshot(small_one)
    REPAIRS.get(repair)(small_one, mask, found, Probe(model, digits(), num_images=32))
    for name, value in snapshot(small_one).items():
        torch.testing.assert_close(value, before[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("repair", ["least-squares", "rescale-inputs"])
def test_a_copy_that_is_cut_is_made_up_for(
    repair: str, chain: tuple[Chain, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units 3 and 4 of the second layer are one: the reader then weighs the first of them twice."""
    monkeypatch.setattr(reconstruct, "RIDGE", 1e-9)
    model, found = chain
    with torch.no_grad():
        assert model.two.bias is not None
        for parameter in (model.two.weight, model.two.bias):
            parameter[4] = parameter[3]
        by_unit = model.out.weight.view(10, 5, 16)
        by_unit[:, 4] = 0.5 * by_unit[:, 3]
    mask = first_kept(found, two=4)
    small_one = shrink(model, mask, found)
    data = digits()
    x = data.test.batch(torch.arange(32)) / 255 * 2
    assert not torch.allclose(small_one(x), model(x), atol=1e-2)
    REPAIRS.get(repair)(small_one, mask, found, Probe(model, data, num_images=128))
    torch.testing.assert_close(small_one(x), model(x), atol=1e-3, rtol=1e-3)


def test_a_reader_sees_the_network_as_mended_so_far_and_aims_at_the_uncut_one(
    chain: tuple[Chain, Trace],
) -> None:
    model, found = chain
    probe = Probe(model, digits(), num_images=8)
    mask = first_kept(found, one=4, two=3)
    seen: list[tuple[Tensor, ...]] = []

    def solve(weight: Tensor, inputs: Tensor, target: Tensor) -> Tensor:
        seen.append((weight, inputs, target))
        return torch.zeros_like(weight)

    small_one = shrink(model, mask, found)
    reconstruct_(small_one, mask, found, observer=probe, solve=solve)
    (first, second) = seen
    assert [tuple(part.shape) for part in first] == [(3, 4, 9), (80, 4, 9), (80, 3)]
    assert [tuple(part.shape) for part in second] == [(10, 48, 1), (8, 48, 1), (8, 10)]
    assert not small_one.get_parameter("two.weight").any()
    # With its weights at zero the second layer puts out its bias, whatever the image.
    assert model.two.bias is not None
    expected = torch.relu(model.two.bias[:3]).repeat_interleave(16).expand(8, -1)
    torch.testing.assert_close(second[1][..., 0], expected.detach())
    outputs = probe.observe(["out.weight"], lambda n, i, o: o)["out.weight"]
    assert torch.equal(second[2], outputs.flatten(0, 1))


def test_a_repair_is_refused_where_nothing_is_cut_out() -> None:
    with pytest.raises(ConfigError, match="'repair' corrects layers that lost inputs, so the"):
        Method(name="mine", criterion="l1-norm", unit="block", repair="least-squares")


# Through the jobs -------------------------------------------------------------------------------

VGG = NETWORKS["vgg"]
RECIPE = Recipe(epochs=2, batch=32, lr=0.05)
TRAIN = Train(data=MATERIAL, model=VGG, recipe=RECIPE, seed=1)
REPAIRING = [name for name in METHODS.names() if METHODS.get(name).repair is not None]


def retrain(prune: Prune, arm: Arm) -> Retrain:
    parent = TRAIN if arm.start == "inherited" else None
    return Retrain(prune=prune, arm=arm, recipe=RECIPE, seed=1, parent=parent, label=arm.name)


def test_a_repair_is_part_of_a_prunings_identity() -> None:
    method = METHODS.get("thinet")
    prune = Prune(data=MATERIAL, model=VGG, method=method, seed=1, parent=TRAIN, sparsity=0.5)
    plain = replace(prune, method=replace(method, repair=None))
    other = replace(prune, method=replace(method, repair="least-squares"))
    assert len({job.key for job in (prune, plain, other)}) == 3
    assert "repair" not in plain.spec


@pytest.mark.parametrize("name", REPAIRING)
def test_arms_that_inherit_start_from_the_mended_weights_and_others_do_not(
    name: str, tmp_path: Path
) -> None:
    method = METHODS.get(name)
    store = Store.open(tmp_path / "store")
    prune = Prune(data=MATERIAL, model=VGG, method=method, seed=1, parent=TRAIN, sparsity=0.5)
    plain = replace(prune, method=replace(method, repair=None))
    arms = (PRUNED, FINE_TUNE, SCRATCH_E, WINNING_TICKET)
    jobs = [retrain(p, arm) for p, arm in itertools.product((prune, plain), arms)]
    assert run(jobs, store, workers=0).complete
    edit = edit_in(store, prune)
    kept, repaired = dict(edit.mask.kept), dict(edit.repaired)
    assert equal(store.tensors(plain.key), kept)

    architecture = Architecture.from_json(store.record(prune.key)["architecture"])
    network = architecture.build()
    network.load_state_dict(repaired)
    data = load(DIGITS)
    with_it, without = (
        {arm.name: store.record(retrain(p, arm).key) for arm in arms} for p in (prune, plain)
    )
    pruned = evaluate(network, data.test, data)
    assert (with_it["pruned"]["accuracy"], with_it["pruned"]["loss"]) == (
        pruned.score,
        pytest.approx(pruned.loss, rel=1e-5),
    )
    assert with_it["pruned"]["loss"] != without["pruned"]["loss"]
    assert with_it["fine-tune"]["history"] != without["fine-tune"]["history"]
    for arm in ("scratch-e", "winning-ticket"):
        assert with_it[arm]["history"] == without[arm]["history"]


def edit_in(store: Store, prune: Prune) -> Edit:
    return edit_of(Stored(store), prune)


def test_the_choice_is_that_of_select(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    method = METHODS.get("regression")
    prune = Prune(data=MATERIAL, model=VGG, method=method, seed=1, parent=TRAIN, sparsity=0.5)
    assert run([prune], store, workers=0).complete
    kept = dict(edit_in(store, prune).mask.kept)
    model, _ = small("vgg")
    model.load_state_dict(store.tensors(TRAIN.key))
    found = trace(model, SHAPE)
    mask = select(model, found, method, sparsity=0.5, dataset=load(DIGITS), seed=1)
    assert equal(dict(mask.kept), kept)
