"""Architectures after pruned ones: uniform, guided and transferred, against counts and averages."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.jobs.base import all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.pruning.stages import Pattern, pattern_of, stages_of
from regrow.report.collect import collect
from regrow.run import run
from regrow.run.estimate import estimate
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery import Trace, shrink, trace
from regrow.surgery.mask import Mask
from small import small


@cache
def network(name: str, classes: int) -> tuple[nn.Module, Trace]:
    model = build(ModelSpec(name, {"classes": classes, "in_channels": 3, "input_size": 32}))
    return model, trace(model, (1, 3, 32, 32))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The paper's architectures ------------------------------------------------------------------------

# Table 21: kept shares of VGG-16's stages, CIFAR-10, network slimming at 10 to 60 %.
TABLE_21 = (
    (0.969, 1.0, 0.991, 0.861, 0.871),
    (0.914, 1.0, 0.975, 0.718, 0.751),
    (0.883, 1.0, 0.966, 0.575, 0.626),
    (0.875, 1.0, 0.957, 0.446, 0.486),
    (0.844, 1.0, 0.947, 0.312, 0.352),
    (0.836, 1.0, 0.947, 0.258, 0.132),
)
GUIDED_WIDTHS = (
    (62, 128, 254, 441, 446),
    (58, 128, 250, 368, 385),
    (57, 128, 247, 294, 321),
    (56, 128, 245, 228, 249),
    (54, 128, 242, 160, 180),
    (54, 128, 242, 132, 68),
)
GUIDED_MILLIONS = {
    "vgg-16": (11.58, 8.88, 6.55, 4.68, 3.23, 2.34),
    "vgg-19": (15.74, 12.03, 8.83, 6.27, 4.29, 3.07),
}


@pytest.mark.parametrize("column", range(6))
@pytest.mark.parametrize(
    ("name", "classes", "layers"),
    [("vgg-16", 10, (2, 2, 3, 3, 3)), ("vgg-19", 100, (2, 2, 4, 4, 4))],
)
def test_guided_networks_have_the_widths_and_sizes_of_table_21(
    name: str, classes: int, layers: tuple[int, ...], column: int
) -> None:
    model, found = network(name, classes)
    pattern = Pattern(unit="channel", shares=TABLE_21[column])
    mask = select(model, found, "guided-pruning", pattern=pattern)
    widths = GUIDED_WIDTHS[column]
    expected = [width for width, num in zip(widths, layers, strict=True) for _ in range(num)]
    assert list(mask.widths().values()) == expected
    millions = parameters(shrink(model, mask, found)) / 1e6
    assert millions == pytest.approx(GUIDED_MILLIONS[name][column], abs=0.005001)


# Counted from the published width vectors (in millions), at 10 to 70 %.
UNIFORM_MILLIONS = {
    ("vgg-16", 10): (11.89, 9.39, 7.20, 5.29, 3.68, 2.34, 1.32),
    ("vgg-19", 100): (16.21, 12.82, 9.83, 7.23, 5.04, 3.20, 1.80),
    ("preresnet-164", 10): (1.396, 1.157, 0.924, 0.733, 0.569, 0.401, 0.281),
    ("densenet-40", 10): (0.953, 0.850, 0.745, 0.642, 0.539, 0.433, 0.330),
}


@pytest.mark.parametrize(("name", "classes"), UNIFORM_MILLIONS)
def test_uniform_networks_have_the_sizes_of_scaled_width_vectors(name: str, classes: int) -> None:
    model, found = network(name, classes)
    for column, expected in enumerate(UNIFORM_MILLIONS[name, classes]):
        mask = select(model, found, "uniform", sparsity=(column + 1) / 10)
        # The official code keeps the norm of a selection whole: scale and shift of what goes.
        dropped = [(~mask.kept[n]).sum() for n, g in found.groups.items() if g.kind == "view"]
        millions = (parameters(shrink(model, mask, found)) + 2 * sum(map(int, dropped))) / 1e6
        digits = 0.005001 if name.startswith("vgg") else 0.000501
        assert millions == pytest.approx(expected, abs=digits)


# Draws --------------------------------------------------------------------------------------------


def convolution() -> tuple[nn.Module, Trace]:
    """Return a network of one convolution with 4,096 kernels, and a 1x1 one."""
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1))
    return model, trace(model, (1, 64, 4, 4))


ROWS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.7, 0.8, 0.9))


def test_guided_weights_are_drawn_by_the_shares_of_their_positions() -> None:
    model, found = convolution()
    kernels = ({"3x3": ROWS, "1x1": ((0.25,),)},)
    pattern = Pattern(unit="weight", shares=(0.5,), kernels=kernels)
    mask = select(model, found, "guided-sparsification", pattern=pattern)
    kept = mask.kept["0.weight"].double().flatten(0, 1)  # [4096, 3, 3]
    chance = torch.tensor(ROWS, dtype=torch.double)
    assert_frequencies(kept.sum(0), chance, 4096)
    assert_frequencies(mask.kept["1.weight"].sum(), torch.tensor(0.25), 4096)
    # Independent draws: how many stay of a kernel varies as much as the sum of nine coins.
    spread = float((chance * (1 - chance)).sum())
    assert float(kept.sum((1, 2)).var()) == pytest.approx(spread, rel=0.1)
    assert_like(pattern, pattern_of([mask], stages_of(model, found)))


def test_uniform_weights_are_drawn_with_one_probability() -> None:
    model, found = convolution()
    masks = [
        select(model, found, "uniform-sparsification", sparsity=0.8, seed=seed) for seed in range(2)
    ]
    kept = masks[0].kept["0.weight"].double().flatten(0, 1)
    assert_frequencies(kept.sum(0), torch.full((3, 3), 0.2), 4096)
    assert float(kept.sum((1, 2)).var()) == pytest.approx(9 * 0.2 * 0.8, rel=0.1)
    both = (masks[0].kept["0.weight"] & masks[1].kept["0.weight"]).sum()
    assert_frequencies(both, torch.tensor(0.04), 9 * 4096)  # seeds draw apart


def assert_frequencies(counts: Tensor, chance: Tensor, num: int) -> None:
    """Compare with five standard deviations of a binomial count."""
    off = (counts - num * chance).abs()
    assert bool((off <= 5 * (num * chance * (1 - chance)).sqrt()).all())


def assert_like(expected: Pattern, found: Pattern) -> None:
    for stage in range(expected.num_stages):
        for size, rows in expected.kernels[stage].items():
            other = found.kernel(stage, size)
            assert other is not None
            torch.testing.assert_close(torch.tensor(rows), torch.tensor(other), atol=0.04, rtol=0)


@pytest.mark.parametrize("label", ["vgg", "resnet", "preresnet", "densenet"])
@pytest.mark.parametrize("name", [n for n in METHODS.names() if METHODS.get(n).follows])
def test_a_network_that_follows_a_pattern_has_it(name: str, label: str) -> None:
    """To one unit a layer, or to five standard deviations of as many draws."""
    model, found = small(label)
    method = METHODS.get(name)
    assert method.follows is not None
    groups = stages_of(model, found)
    mask = select(model, found, method.follows, sparsity=0.4)
    pattern = pattern_of([mask], groups)
    mine = select(model, found, method, pattern=pattern)
    again = pattern_of([mine], groups)
    for stage, (share, other) in enumerate(zip(pattern.shares, again.shares, strict=True)):
        units = sum(k.numel() for n, k in mine.kept.items() if groups.get(n) == stage)
        layers = sum(groups.get(n) == stage for n in mine.kept)
        slack = layers if method.unit == "channel" else 5 * math.sqrt(units * share * (1 - share))
        assert abs(share - other) * max(units, 1) <= slack + 1e-9


# Studies ------------------------------------------------------------------------------------------

SLIMMING = {"name": "network-slimming", "strength": 0.01}
STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 60, "test_subset": 40},
    "models": {"name": "vgg", "plan": [8, 8, "M", 12, 12], "label": "net"},
    "methods": [
        {**SLIMMING, "sparsity": [0.6, 0.95]},
        {"name": "guided-pruning", "sparsity": [0.6, 0.95], "from": {"method": SLIMMING}},
        {
            "name": "guided-pruning",
            "label": "transferred",
            "sparsity": 0.6,
            "from": {
                "model": {"name": "vgg", "plan": [6, "M", 9], "label": "other"},
                "data": {"name": "digits", "subset": 40, "label": "fewer digits"},
                "method": SLIMMING,
                "recipe": {"name": "cifar", "epochs": 1, "batch": 20, "lr": 0.02},
            },
        },
        {"name": "magnitude", "sparsity": 0.75},
        {"name": "guided-sparsification", "sparsity": 0.75},
        {"name": "uniform-sparsification", "sparsity": 0.75},
    ],
    "arms": ["unpruned", "scratch-e"],
    "seeds": 2,
    "recipe": {"name": "cifar", "epochs": 1, "batch": 20, "lr": 0.05},
}


def prune_jobs(study: Study, label: str, sparsity: float) -> list[Prune]:
    """Return the prunings behind a method's rows, one a seed."""
    found = []
    for cell in study.cells():
        if cell.use and cell.cut and (cell.use.label, cell.cut.sparsity) == (label, sparsity):
            assert isinstance(cell.job, Retrain)
            found.append(cell.job.prune)
    return found


def method(**entry: Any) -> Study:
    return Study.from_json({**STUDY, "methods": entry})


def test_a_guided_network_stands_on_the_prunings_of_all_seeds_in_the_study() -> None:
    study = Study.from_json(STUDY)
    for sparsity in (0.6, 0.95):
        rows = prune_jobs(study, "network-slimming", sparsity)
        for guided in prune_jobs(study, "guided-pruning", sparsity):
            assert [job.key for job in guided.inputs] == [job.key for job in rows]
    (magnitude, _), (sparse, _) = (
        prune_jobs(study, label, 0.75) for label in ("magnitude", "guided-sparsification")
    )
    assert magnitude.key in {job.key for job in sparse.inputs}


def test_nothing_is_trained_twice_for_a_pattern() -> None:
    jobs = all_jobs(Study.from_json({**STUDY, "arms": ["scratch-e"]}).jobs()).values()
    trained = [job.label for job in jobs if isinstance(job, Train)]
    other = "fewer digits / other for 1 epoch"
    assert sorted(trained) == [
        *(f"{other} for network-slimming seed {seed}" for seed in range(2)),
        *(f"net for network-slimming seed {seed}" for seed in range(2)),
        *(f"net unpruned seed {seed}" for seed in range(2)),  # for magnitude
    ]


def test_scratch_training_of_a_guided_network_has_no_trained_network_of_its_own() -> None:
    study = Study.from_json(STUDY)
    for cell in study.cells():
        if cell.use and cell.use.source is not None:
            assert isinstance(cell.job, Retrain)
            assert cell.job.parent is None
            assert cell.job.prune.parent is None
            assert cell.job.arm.budget.kind == "equal-epochs"


def test_a_transferred_pattern_is_of_the_model_data_method_and_recipe_named() -> None:
    study = Study.from_json(STUDY)
    (first, _) = prune_jobs(study, "transferred", 0.6)
    for seed, guide in enumerate(first.guides):
        assert isinstance(guide.parent, Train)
        assert (guide.parent.seed, guide.parent.recipe.lr) == (seed, 0.02)
        assert guide.model.arguments["plan"] == [6, "M", 9]
        assert guide.data.num_train == 40
        assert guide.parent.treated is not None
        assert guide.parent.treated.strength == 0.01
    assert first.model.arguments["plan"] == [8, 8, "M", 12, 12]
    assert first.data.num_train == 60


def test_a_pattern_is_taken_from_the_methods_own_source_unless_said() -> None:
    for name, source in (("guided-pruning", "network-slimming"), ("guided-sparsification", None)):
        study = method(name=name, sparsity=0.5)
        plain = method(name=source or "magnitude", sparsity=0.5)
        (guided, _) = prune_jobs(study, name, 0.5)
        assert guided.guides == tuple(job for job in prune_jobs(plain, source or "magnitude", 0.5))


def test_a_row_is_called_after_where_its_pattern_comes_from() -> None:
    study = method(name="guided-pruning", sparsity=0.5, **{"from": {"model": "vgg-16"}})
    (use,) = study.experiments[0].uses
    assert use.label == "guided-pruning from vgg-16"


def test_what_a_pattern_depends_on_is_in_the_key() -> None:
    (guided, _) = prune_jobs(Study.from_json(STUDY), "guided-pruning", 0.6)
    fewer = [replace(guided, guides=guided.guides[:num]) for num in range(3)]
    assert len({job.key for job in fewer}) == 3
    assert fewer[2].key == guided.key


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "uniform", "from": {}}, r"'uniform' follows no pattern.*do: guided-pruning, guided"),
    ({"from": 3}, r"what it follows: 'from' must be a mapping of model, data, method, recipe"),
    ({"from": {"modell": "vgg-16"}}, "Unknown key 'modell'. Did you mean 'model'"),
    ({"from": {"model": "vgg-17"}}, "'guided-pruning', what it follows: Unknown model 'vgg-17'"),
    ({"from": {"data": "digit"}}, "what it follows: Unknown data set 'digit'"),
    ({"from": {"recipe": "cifr"}}, "what it follows: Unknown recipe 'cifr'"),
    ({"from": {"method": "l9"}}, "what it follows: Unknown method 'l9'"),
    ({"from": {"method": {**SLIMMING, "sparsity": 0.3}}}, "method: .*Unknown key 'sparsity'"),
    ({"from": {"method": "magnitude"}}, "'magnitude' removes weights, and guided-pruning removes"),
    ({"from": {"method": "lottery"}}, "'lottery' prunes in rounds. Name one that"),
    ({"from": {"method": "guided-pruning"}}, "'guided-pruning' follows others itself. Name one"),
    ({"sparsity": []}, r"'guided-pruning' needs a 'sparsity'"),
    ({"sparsity": None, "shares": [0.5] * 4}, "takes a 'sparsity' .* and no 'shares'"),
    ({"from": {"model": {"name": "vgg", "plan": [6, 9]}}}, r"vgg has 1 stages .* has 2 .*'from'"),
    ({"rounds": 2, "ticket": "none"}, "for a method that follows others"),
]


@pytest.mark.parametrize(("entry", "message"), BAD)
def test_a_source_that_cannot_be_meant_is_refused(entry: dict[str, Any], message: str) -> None:
    given = {"name": "guided-pruning", "sparsity": 0.5, **entry}
    with pytest.raises(ConfigError, match=message):
        method(**{k: v for k, v in given.items() if v is not None}).cells()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """Run the study."""
    study = Study.from_json(STUDY)
    store = Store.open(tmp_path_factory.mktemp("search") / "store")
    assert run(study.jobs(), store, workers=0).complete
    return study, store


def mask(store: Store, job: Prune) -> Mask:
    return Mask(unit=job.method.unit, kept=store.tensors(job.key))


@pytest.mark.parametrize("label", ["guided-pruning", "transferred"])
def test_guided_widths_are_averages_over_the_seeds(
    finished: tuple[Study, Store], label: str
) -> None:
    study, store = finished
    jobs = prune_jobs(study, label, 0.6)
    widths = [list(mask(store, guide).widths().values()) for guide in jobs[0].guides]
    # Two layers a stage in the network itself, one in the other.
    per_stage, full = ((2, 2), (8, 12)) if label == "guided-pruning" else ((1, 1), (6, 9))
    shares, start = [], 0
    for num, width in zip(per_stage, full, strict=True):
        kept = [sum(seed[start : start + num]) for seed in widths]
        shares.append(sum(kept) / (len(kept) * num * width))
        start += num
    for job in jobs:
        record = store.record(job.key)
        assert record["pattern"]["shares"] == pytest.approx(shares)
        expected = [max(1, math.floor(s * w + 0.5)) for s, w in zip(shares, (8, 12), strict=True)]
        assert list(record["widths"].values()) == [expected[i] for i in (0, 0, 1, 1)]


def test_guided_weights_follow_the_kernels_of_all_seeds(finished: tuple[Study, Store]) -> None:
    study, store = finished
    jobs = prune_jobs(study, "guided-sparsification", 0.75)
    masks = [mask(store, guide).kept for guide in jobs[0].guides]
    names = list(masks[0])
    for stage, layers in enumerate((names[:2], names[2:])):
        kernels = torch.cat([kept[n].flatten(0, 1) for kept in masks for n in layers]).double()
        found = store.record(jobs[0].key)["pattern"]["kernels"][stage]["3x3"]
        torch.testing.assert_close(torch.tensor(found).double(), kernels.mean(0))
    first, second = (mask(store, job).kept for job in jobs)
    assert any(not torch.equal(first[name], second[name]) for name in names)


def test_weights_trained_from_scratch_stay_behind_the_drawn_mask(
    finished: tuple[Study, Store],
) -> None:
    study, store = finished
    for label in ("guided-sparsification", "uniform-sparsification"):
        for cell in study.cells():
            if cell.use and cell.use.label == label:
                assert isinstance(cell.job, Retrain)
                kept = mask(store, cell.job.prune).kept
                weights = store.tensors(cell.job.key)
                assert all(not weights[name][~stays].any() for name, stays in kept.items())
                assert all(bool((weights[n] != 0)[stays].all()) for n, stays in kept.items())


def test_a_guided_row_counts_what_it_stands_on(finished: tuple[Study, Store]) -> None:
    study, store = finished
    runs, failures = collect(study, store)
    assert not failures
    assert all(run.done for run in runs)
    rows = {(run.method, run.sparsity, run.seed): run for run in runs}
    guided, uniform = (rows[f"{kind}-sparsification", 0.75, 0] for kind in ("guided", "uniform"))
    assert guided.training_flops is not None
    assert uniform.training_flops is not None
    # Both seeds of the network that magnitude pruned; and itself.
    assert guided.training_flops > 2 * uniform.training_flops
    # Two channels were to be left in four layers; those that follow have one in each anyway.
    assert rows["network-slimming", 0.95, 0].emptied
    assert rows["guided-pruning", 0.95, 0].emptied == 0


def test_a_search_can_be_estimated() -> None:
    jobs = Study.from_json({**STUDY, "seeds": 1}).jobs()
    found = estimate(jobs, (), workers=1)
    # Sources: slimming, itself and the other, and magnitude (whose network is the unpruned one).
    assert found.by_kind == {"train": (3, 0), "prune": (9, 0), "retrain": (8, 0)}
    assert found.training_flops > 0
    assert math.isfinite(found.seconds)


def test_the_example_is_a_study() -> None:
    study = Study.load(Path(__file__).parents[1] / "examples" / "search.yaml")
    guided = [use for use in study.experiments[0].uses if use.source is not None]
    assert [use.label for use in guided] == ["guided", "transferred", "sparse guided"]
