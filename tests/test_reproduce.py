"""The paper's studies: each cell of ours in one printed cell, settings as the paper has them."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from commands import Command
from liu import PAPER, cells, entries, entry, read_cells
from regrow.data import DataSpec
from regrow.detection.model import Detector
from regrow.detection.task import DetectorHead
from regrow.errors import ConfigError, DataError
from regrow.jobs.base import Context
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build
from regrow.report.rows import Run
from regrow.reproduce import images as images_module
from regrow.reproduce import scales
from regrow.reproduce.images import Request
from regrow.reproduce.paper import OF_PRUNINGS, RESULT, Entry, Paper
from regrow.reproduce.plan import Plan, PlannedCell, PlannedStudy, prepare
from regrow.reproduce.printed import records
from regrow.reproduce.results import StudyResults, rows
from regrow.studies import expand as expand_module
from regrow.studies.study import Study
from regrow.surgery.edit import Edit
from regrow.train.material import Material

SHARED = Path(__file__).parents[2] / "shared" / "data"
READY = list(entries())
# Those that fill printed accuracies; what shows prunings is tested in test_patterns_tables.py.
PRINTED = [
    one.name for one in entries().values() if one.table is not None and one.kind not in OF_PRUNINGS
]
FOLDERS = {"imagenet": "folder:imagenet", "voc2007": "voc:VOC2007"}


def _material(spec: DataSpec, *, imagenet_size: int = 32) -> Material:
    """Stand for the paper's data without a byte of it."""
    if spec.name.startswith("voc"):
        return _pictures(spec)
    shapes = {"cifar10": (10, 32), "cifar100": (100, 32), "digits": (10, 8)}
    classes, size = shapes.get(spec.name, (1000, imagenet_size))
    channels = 1 if spec.name == "digits" else 3
    return Material(
        spec=spec,
        content=spec.name,
        shape=(1, channels, size, size),
        model_arguments=(("classes", classes), ("in_channels", channels), ("input_size", size)),
        num_train=spec.subset or 50_000,
        num_test=spec.test_subset or 10_000,
    )


def _pictures(spec: DataSpec) -> Material:
    """Stand for the pictures of VOC 2007."""
    return Material(
        spec=spec,
        content=spec.name,
        shape=(1, 3, 64, 64),
        model_arguments=(("classes", 20), ("in_channels", 3), ("input_size", 64)),
        num_train=spec.subset or 5011,
        num_test=spec.test_subset or 4952,
        task="detection",
    )


@pytest.fixture
def paper_data(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let studies be expanded without data; call it to give ImageNet another size."""

    def pretend(**changes: Any) -> None:
        @cache
        def material(spec: DataSpec) -> Material:
            return _material(spec, **changes)

        for module in (expand_module, images_module):
            monkeypatch.setattr(module, "material", material)

    pretend()
    # Whether targets fit their networks is a test of its own: it traces every network.
    monkeypatch.setattr(expand_module, "_check_use", lambda use, model, data: None)
    # So is the proof of a cut (test_proof.py): it computes with the network, of full size here.
    monkeypatch.setattr(Edit, "prove", lambda self, network, trace, **options: None)
    return pretend


def plan_of(name: str, scale: str = "paper", **changes: Any) -> Plan:
    return prepare(entry(name), Request(scale=scales.named(scale), data=FOLDERS, **changes))


@cache
def plan_of_one_seed(name: str, scale: str) -> Plan:
    """Prepare an entry once for all tests that have ``paper_data``."""
    return plan_of(name, scale, seeds=1)


def printables(plan: Plan) -> list[PlannedCell]:
    return [one for part in plan.parts for one in part.cells]


def retrainings(plan: Plan, arm: str) -> dict[str, Retrain]:
    """Return the first seed's jobs of an arm by the printed target."""
    found: dict[str, Retrain] = {}
    for one in printables(plan):
        if one.cell.arm.name == arm and isinstance(one.cell.job, Retrain):
            assert one.labels is not None
            found.setdefault(one.labels["target"], one.cell.job)
    return found


def record_of(job: Retrain) -> Mapping[str, Any]:
    """Prune by structure alone, which needs no images."""
    context = SimpleNamespace(dataset=lambda spec: None, device="cpu")
    return job.prune.run(cast(Context, context)).record


def epochs_of(job: Retrain) -> int:
    record = record_of(job)
    ratio = record["before"]["flops"] / record["after"]["flops"]
    return int(job.arm.budget.epochs(job.recipe.epochs, ratio))


# The index ----------------------------------------------------------------------------------------


def test_every_table_and_figure_is_there() -> None:
    expected = [f"table-{n}" for n in range(1, 22)] + [f"figure-{n}" for n in range(3, 9)]
    assert list(entries()) == expected
    for one in entries().values():
        assert one.studies
        assert one.about


NOT_NESTEROV = {1, 2, 3, 4, 6, 7, 8, 9, *range(12, 22)}  # protocols, section 13: but for SFP, SSS
SAID = {
    "Plain momentum as in the official code": {
        *(f"table-{number}" for number in NOT_NESTEROV),
        *(f"figure-{number}" for number in range(3, 9)),
    },
    "The last epoch is reported": set(READY),
    "pass no gradient at the two transitions": {f"table-{n}" for n in (1, 8, 14, 16, 17)},
    "would empty keeps the channel": {
        *("table-4", "table-7", "table-13", "table-18", "table-21"),
        *("figure-3", "figure-5", "figure-6", "figure-8"),
    },
    "ratio of the non-zero weights, as the paper intends": {"table-6", "table-15"},
    "by fan-in, and random starts under a mask by fan-out": {
        *("table-6", "table-9", "table-15"),
        *("figure-3", "figure-4", "figure-6", "figure-7", "figure-8"),
    },
}


def test_a_remark_stands_in_every_table_that_it_holds_for(
    paper_data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "cells", lambda self: [])  # remarks need none
    notes = {name: plan_of(name).notes for name in READY}
    for text, expected in SAID.items():
        assert {name for name in READY if text in " ".join(notes[name])} == expected, text
        assert all(" ".join(notes[name]).count(text) == 1 for name in expected)


def test_every_study_file_belongs_to_a_table() -> None:
    used = {name for one in entries().values() for name in one.studies}
    there = {file.stem for file in (PAPER.folder / "studies").iterdir()}
    assert used == there


# Cells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", scales.SCALES)
@pytest.mark.parametrize("name", PRINTED)
def test_each_cell_of_ours_is_one_printed_cell_and_none_is_missed(
    name: str, scale: str, paper_data: object
) -> None:
    plan = plan_of_one_seed(name, scale)
    assert not plan.skipped
    ours = {tuple(one.labels[k] for k in RESULT) for one in printables(plan) if one.labels}
    table = records(cells(cast(int, plan.entry.table)))
    gaps = [gap for study in plan.entry.studies for gap in PAPER.absent(study)]
    absent = set()
    for gap in gaps:
        labels = {key: value for key, value in gap.items() if key != "why"}
        fits = [row for row in table if all(row[k] == v for k, v in labels.items())]
        assert fits, f"no printed cell is {labels}"
        assert gap["why"]
        absent |= {tuple(row[k] for k in RESULT) for row in fits}
    printed = {tuple(row[k] for k in RESULT) for row in table}
    assert not ours & absent
    assert ours | absent == printed


@pytest.mark.parametrize("name", READY)
def test_a_scale_changes_size_and_length_but_not_what_is_compared(
    name: str, paper_data: object
) -> None:
    paper, smoke = (
        [
            (one.cell.arm.name, one.labels and tuple(one.labels[k] for k in RESULT))
            for one in printables(plan_of_one_seed(name, scale))
        ]
        for scale in ("paper", "smoke")
    )
    assert paper == smoke


@pytest.mark.parametrize("name", READY)
def test_every_method_and_target_fits_its_network(name: str) -> None:
    plan = prepare(entry(name), Request(scale=scales.named("smoke")))
    assert not plan.skipped
    assert plan.jobs


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_every_method_and_target_fits_its_network_at_full_width(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (expand_module, images_module):
        monkeypatch.setattr(module, "material", cache(_material))
    assert plan_of(name).jobs


def test_controls_have_no_printed_cell(paper_data: object) -> None:
    controls = [one for one in printables(plan_of("table-9")) if one.labels is None]
    assert {one.cell.arm.name for one in controls} == {"same-distribution"}
    assert "same-distribution" in controls[0].words


def test_a_cell_that_fits_no_printed_one_is_refused(
    paper_data: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = dict(PAPER.study("table-14"))
    value["paper"] = {**value["paper"], "table": 15}
    monkeypatch.setattr(Paper, "study", lambda self, name: value)
    with pytest.raises(ConfigError, match=r"Table 15 has 0 printed cells .* exactly one"):
        plan_of_file("table-14")


def test_two_cells_for_one_printed_one_are_refused(
    paper_data: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = dict(PAPER.study("table-14"))
    value["paper"] = {**value["paper"], "arms": {"scratch-b": "scratch-e"}}
    monkeypatch.setattr(Paper, "study", lambda self, name: value)
    with pytest.raises(ConfigError, match=r"Two cells are for the printed cell .* scratch-e"):
        plan_of_file("table-14")


def plan_of_file(name: str) -> Plan:
    """Prepare an entry that is known, whatever its file has been replaced by."""
    return prepare(
        Entry(paper=PAPER, name=name, table=14, studies=(name,)),
        Request(scale=scales.named("paper")),
    )


# Settings of the paper ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["table-1", "table-4", "table-6", "table-8", "table-9", "table-13", "table-14"]
)
def test_cifar_trains_160_epochs_with_drops_at_80_and_120_on_five_seeds(
    name: str, paper_data: object
) -> None:
    study = plan_of(name).parts[0].study
    for experiment in study.experiments:
        recipe = experiment.recipe
        assert experiment.seeds == (0, 1, 2, 3, 4)
        assert (recipe.epochs, recipe.batch, recipe.momentum) == (160, 64, 0.9)
        assert (recipe.weight_decay, recipe.nesterov) == (1e-4, False)
        drops = [e for e in range(1, 160) if recipe.lr_at(e) < recipe.lr_at(e - 1)]
        assert drops == [80, 120]


# Protocols, section 3.3.
BUDGETS = {
    "table-1": {
        "VGG-16-A": 243,
        "ResNet-56-A": 178,
        "ResNet-56-B": 220,
        "ResNet-110-A": 190,
        "ResNet-110-B": 260,
    },
    "table-17": {
        "VGG-16-A": 455,
        "ResNet-56-A": 334,
        "ResNet-56-B": 413,
        "ResNet-110-A": 356,
        "ResNet-110-B": 488,
    },
    "table-14": {"90%": 1791},
    "table-10": {"10%": 217, "20%": 245, "30%": 275, "40%": 321},
    "table-5": {"ResNet-41": 117, "ResNet-32": 145, "ResNet-26": 179},
}


@pytest.mark.parametrize("name", BUDGETS)
def test_scratch_b_has_the_resolved_epochs(name: str, paper_data: Callable[..., None]) -> None:
    paper_data(imagenet_size=224)
    jobs = retrainings(prepare_first(name), "scratch-b")
    found = {}
    for target, job in jobs.items():
        by_shape = Retrain(
            prune=structural(job), arm=job.arm, recipe=job.recipe, seed=0, parent=None
        )
        found[target] = epochs_of(by_shape)
    assert found == BUDGETS[name]


def test_soft_filter_of_a_trained_network_is_counted_as_400_epochs(paper_data: object) -> None:
    plan = plan_of("table-11", seeds=1)
    found = {}
    for one in printables(plan):
        job = one.cell.job
        if one.cell.arm.start == "random" and isinstance(job, Retrain) and one.labels is not None:
            small = Retrain(prune=structural(job), arm=job.arm, recipe=job.recipe, seed=0)
            record = record_of(small)
            ratio = record["before"]["flops"] / record["after"]["flops"]
            epochs = job.arm.budget.epochs(200, ratio)
            found[one.labels["model"], one.labels["target"], one.labels["arm"]] = epochs
            if one.labels["arm"] == "scratch-b":
                assert epochs == math.floor(400 * ratio)
    assert found == {
        ("ResNet-56", "30%", "scratch-e"): 400,
        ("ResNet-56", "30%", "scratch-b"): 551,
        ("ResNet-56", "40%", "scratch-e"): 400,
        ("ResNet-56", "40%", "scratch-b"): 643,
        ("ResNet-110", "30%", "scratch-e"): 400,
        ("ResNet-110", "30%", "scratch-b"): 551,
    }


def prepare_first(name: str) -> Plan:
    """Prepare the CIFAR part of a table."""
    one = entry(name)
    return prepare(
        Entry(paper=PAPER, name=name, table=one.table, studies=one.studies[:1]),
        Request(scale=scales.named("paper"), data=FOLDERS, seeds=1),
    )


def structural(job: Retrain) -> Any:
    """Return the pruning with the same widths that looks at no weights."""
    from dataclasses import replace

    from regrow.jobs.prune import structure_only

    return replace(job.prune, method=structure_only(job.prune.method), parent=None)


def test_imagenet_scratch_b_is_capped_at_twice_the_epochs(
    paper_data: Callable[..., None],
) -> None:
    paper_data(imagenet_size=224)
    jobs = retrainings(plan_of("table-1", only=("ResNet-34-",)), "scratch-b")
    assert {target: epochs_of(job) for target, job in jobs.items()} == {
        "ResNet-34-A": 106,
        "ResNet-34-B": 118,
    }
    assert {job.arm.budget.cap for job in jobs.values()} == {2}


def test_fine_tuning_is_40_epochs_of_0_001_on_cifar_and_20_on_imagenet(
    paper_data: object,
) -> None:
    for name, epochs in (("table-1", {40, 20}), ("table-17", {40}), ("table-6", {40, 20})):
        jobs = retrainings(plan_of(name), "fine-tune").values()
        assert {job.arm.budget.epochs(job.recipe.epochs, 1.0) for job in jobs} == epochs
        rates = {round(job.arm.recipe(job.recipe, 40).lr_at(39), 12) for job in jobs}
        assert rates == {0.001}


def test_imagenet_networks_are_torchvisions_where_those_of_the_paper_are(
    paper_data: object,
) -> None:
    published = {"table-1": {"ResNet-34"}, "table-6": {"VGG-16", "ResNet-50"}}
    for name in ("table-1", "table-2", "table-3", "table-4", "table-5", "table-6", "table-10"):
        for scale in ("paper", "small"):
            taken = {
                one.labels["model"]
                for one in printables(plan_of(name, scale))
                if one.labels and isinstance(one.cell.job, Train) and one.cell.job.is_published
            }
            assert taken == (published.get(name, set()) if scale == "paper" else set())


def test_imagenet_is_read_at_224_pixels_at_full_scale(paper_data: object) -> None:
    specs = {one.cell.experiment.data for one in printables(plan_of("table-2"))}
    assert {spec.size for spec in specs} == {224}


def test_longer_fine_tuning_has_40_80_and_160_epochs(paper_data: object) -> None:
    plan = plan_of("table-16")
    for epochs in (40, 80, 160):
        jobs = retrainings(plan, f"fine-tune-{epochs}").values()
        assert {job.arm.budget.epochs(160, 1.0) for job in jobs} == {epochs}


def test_slimming_has_the_strengths_of_the_official_code(paper_data: object) -> None:
    for name in ("table-4", "table-13"):
        for part in plan_of(name).parts:
            for experiment in part.study.experiments:
                vgg = experiment.model.name.startswith("vgg")
                assert {use.strength for use in experiment.uses} == {1e-4 if vgg else 1e-5}


def test_tickets_are_compared_at_both_rates_and_all_ratios(paper_data: object) -> None:
    plan = plan_of("table-9")
    found = {
        (one.labels["part"], one.cell.experiment.recipe.lr, one.cell.cut.sparsity)
        for one in printables(plan)
        if one.labels and one.cell.cut
    }
    ratios = (0.2, 0.4, 0.6, 0.8, 0.95)
    assert found == {(p, lr, s) for p, lr in (("a", 0.1), ("b", 0.01)) for s in ratios}


def test_fixed_targets_train_for_90_epochs_and_their_resolved_budget(paper_data: object) -> None:
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for name in ("table-2", "table-3"):
        for one in printables(plan_of(name)):
            assert one.labels is not None
            if one.labels["arm"].startswith("scratch"):
                assert isinstance(one.cell.job, Train)
                recipe = one.cell.job.recipe
                found[one.labels["target"], one.labels["arm"]] = recipe.epochs, recipe.lr
    long = {"ResNet50-70%": 141, "ResNet-50-2x": 134}
    assert len(found) == 16
    for (target, arm), (epochs, lr) in found.items():
        assert epochs == (90 if arm == "scratch-e" else long.get(target, 180))
        assert lr == (0.01 if target.startswith("VGG") else 0.1)


@pytest.mark.parametrize(
    ("table", "target", "model"),
    [
        ("table-2", "VGG-Conv", "vgg-conv"),
        ("table-2", "ResNet50-30%", "resnet-50-30"),
        ("table-2", "ResNet50-50%", "resnet-50-50"),
        ("table-2", "ResNet50-70%", "resnet-50-70"),
        ("table-3", "VGG-16-5x", "vgg-16-5x"),
    ],
)
def test_what_is_cut_has_the_size_of_the_published_target(
    table: str, target: str, model: str, paper_data: object
) -> None:
    job = retrainings(plan_of(table, only=(target,)), "fine-tune")[target]
    small = Retrain(prune=structural(job), arm=job.arm, recipe=job.recipe, seed=0)
    published = build(ModelSpec(model, {"classes": 1000, "input_size": 32}))
    size = sum(p.numel() for p in published.parameters())
    assert record_of(small)["after"]["parameters"] == size


def test_uniform_pruning_leaves_the_parameters_of_the_protocol(paper_data: object) -> None:
    # Protocols, section 11: millions of VGG-16 on CIFAR-10 and of VGG-19 on CIFAR-100. What lies
    # between is counted in test_surgery.py.
    expected = {"figure-3": {0.1: 11.89, 0.6: 2.34}, "figure-6": {0.1: 16.21, 0.6: 3.20}}
    for name, sizes in expected.items():
        jobs = {
            one.cell.job.prune.sparsity: one.cell.job
            for one in printables(plan_of(name, only=("uniform",), seeds=1))
            if isinstance(one.cell.job, Retrain) and one.cell.job.prune.method.unit == "channel"
        }
        assert set(jobs) == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}
        for sparsity, millions in sizes.items():
            parameters = record_of(jobs[sparsity])["after"]["parameters"]
            assert round(parameters / 1e6, 2) == millions


def test_detectors_stand_on_the_classifiers_of_table_1(paper_data: object) -> None:
    classifiers = {job.key for job in plan_of("table-1").jobs}
    detectors = [one.cell.job for one in printables(plan_of("table-12"))]
    assert len(detectors) == 9
    for job in detectors:
        assert isinstance(job, Train)
        assert job.initial is not None
        assert job.initial.kind == "prune-detector" or job.initial.key in classifiers


def test_detectors_have_the_defaults_of_the_framework_and_prune_d_its_lowest_rate(
    paper_data: object,
) -> None:
    for one in printables(plan_of("table-12")):
        job = one.cell.job
        assert isinstance(job, Train)
        assert job.head == DetectorHead(Detector())
        rates = [round(job.recipe.lr_at(epoch), 12) for epoch in range(job.recipe.epochs)]
        expected = [1e-3] * 5 + [1e-4] * 2
        assert rates == ([1e-4] * 7 if one.cell.arm.name == "prune-d" else expected)
        assert (job.recipe.batch, job.recipe.weight_decay) == (1, 1e-4)


def test_pictures_have_to_be_named_but_at_smoke_scale(paper_data: object) -> None:
    with pytest.raises(DataError, match=r"PASCAL-VOC-07 is not downloaded.*--data voc2007=voc:"):
        prepare(
            entry("table-12"),
            Request(scale=scales.named("small"), data={"imagenet": "folder:imagenet"}),
        )
    plan = prepare(entry("table-12"), Request(scale=scales.named("smoke")))
    assert any("In place of PASCAL-VOC-07: voc-shapes" in note for note in plan.notes)
    assert any("In place of ImageNet: shapes" in note for note in plan.notes)


# Scales -------------------------------------------------------------------------------------------


def test_a_scale_reaches_every_part_of_a_study() -> None:
    scale = scales.Scale(name="half", about="", epochs=0.5, width=0.25, batch=32, cap=1.5, seeds=2)
    study = {
        "seeds": 5,
        "recipe": "cifar",
        "arms": ["unpruned", "scratch-b", {"name": "fine-tune", "epochs": 41}],
        "experiments": [
            {"models": "vgg-16"},
            {
                "models": {"name": "vgg-16", "width": 0.5},
                "methods": {"name": "guided-pruning", "from": {"model": "vgg-11"}},
                "recipe": {"name": "imagenet", "lr": 0.01},
                "arms": {"name": "scratch-b", "cap": 1.2},
            },
        ],
    }
    assert scales.scaled(study, scale, precision="bf16") == {
        "seeds": 2,
        "recipe": {"name": "cifar", "epochs": 80, "batch": 32, "precision": "bf16"},
        "arms": [
            {"name": "unpruned"},
            {"name": "scratch-b", "cap": 1.5},
            {"name": "fine-tune", "epochs": 20},
        ],
        "experiments": [
            {"models": [{"name": "vgg-16", "width": 0.25}]},
            {
                "models": [{"name": "vgg-16", "width": 0.125}],
                "methods": [
                    {"name": "guided-pruning", "from": {"model": {"name": "vgg-11", "width": 0.25}}}
                ],
                "recipe": {
                    "name": "imagenet",
                    "lr": 0.01,
                    "epochs": 45,
                    "batch": 32,
                    "precision": "bf16",
                },
                "arms": [{"name": "scratch-b", "cap": 1.2}],
            },
        ],
    }


def test_the_seeds_asked_for_override_those_of_the_study(paper_data: object) -> None:
    study = plan_of("table-1", "smoke", seeds=3).parts[0].study
    assert {experiment.seeds for experiment in study.experiments} == {(0, 1, 2)}


def test_only_keeps_the_rows_that_match_and_what_changes_are_from(paper_data: object) -> None:
    some = printables(plan_of("table-1", only=("resnet-56*scratch",), seeds=1))
    assert [one.words for one in some] == [
        f"CIFAR-10 / ResNet-56 / ResNet-56-{target} / scratch-{arm}"
        for target in "AB"
        for arm in "eb"
    ]
    changes = printables(plan_of("table-2", only=("vgg-tiny",)))
    assert "ImageNet / VGG-16 / unpruned" in [one.words for one in changes]


def test_only_may_name_several_kinds_of_rows_and_says_which_there_are_none_of(
    paper_data: object,
) -> None:
    plan = plan_of("table-14", only=("scratch-e", "unpruned", "vgg"), seeds=1)
    assert [one.words.rpartition(" ")[2] for one in printables(plan)] == ["unpruned", "scratch-e"]
    assert "No row of table-14 matches --only 'vgg'." in plan.notes


def test_only_that_matches_nothing_lists_the_rows(paper_data: object) -> None:
    with pytest.raises(ConfigError, match=r"No row of table-14 matches .*ResNet-56 / 90%"):
        plan_of("table-14", only=("vgg",))


def test_replaced_data_is_noted_and_in_every_label(paper_data: object) -> None:
    request = Request(scale=scales.named("paper"), data={"cifar10": "digits"})
    plan = prepare(entry("table-14"), request)
    assert any("In place of CIFAR-10: digits" in note for note in plan.notes)
    assert {one.cell.experiment.data_label for one in printables(plan)} == {"digits for CIFAR-10"}


def test_a_copy_of_the_data_keeps_its_normalisation_and_other_images_have_their_own(
    paper_data: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(scale=scales.named("paper"), data={"cifar10": "hf:some/cifar10"})
    plan = prepare(entry("table-11"), request)
    assert {one.cell.experiment.data.normalisation for one in printables(plan)} == {"sfp"}
    monkeypatch.undo()
    smoke = prepare(entry("table-11"), Request(scale=scales.named("smoke")))
    assert {one.cell.experiment.data.normalisation for one in printables(smoke)} == {None}
    assert any("digits is normalised by its own mean and std" in note for note in smoke.notes)


def test_imagenet_has_to_be_named_and_the_rest_of_the_table_goes_on(paper_data: object) -> None:
    plan = prepare(entry("table-1"), Request(scale=scales.named("paper")))
    assert [part.name for part in plan.parts] == ["table-1"]
    assert "--data imagenet=folder:PATH" in plan.skipped["table-1-imagenet"]
    with pytest.raises(DataError, match=r"table-2 cannot be run\. .*--data imagenet="):
        prepare(entry("table-2"), Request(scale=scales.named("paper")))


def test_data_that_the_paper_does_not_have_cannot_be_replaced() -> None:
    with pytest.raises(ConfigError, match=r"replaces a data set of the paper: .*cifar10"):
        prepare(entry("table-1"), Request(scale=scales.named("paper"), data={"cifar-10": "digits"}))


def test_an_unknown_scale_offers_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="small"):
        scales.named("smal")


# Rows ---------------------------------------------------------------------------------------------


def found_of(part: PlannedStudy, runs: Iterable[Run]) -> StudyResults:
    return StudyResults(
        part=part, runs=tuple(runs), failures=(), complete=False, measured=pd.DataFrame()
    )


def test_rows_are_means_over_seeds_under_the_printed_labels(paper_data: object) -> None:
    plan = plan_of("table-14", only=("unpruned",))
    runs = [
        Run(data="d", model="m", arm="unpruned", seed=seed, status="done", score=90.0 + seed)
        for seed in range(4)
    ]
    missing = Run(data="d", model="m", arm="unpruned", seed=4)
    (row,) = records(rows(plan, [found_of(plan.parts[0], [*runs, missing])]))
    assert (row["mean"], row["n"], row["dataset"], row["target"]) == (91.5, 4, "CIFAR-10", "")
    assert row["std"] == pytest.approx(1.2909944)


def test_a_change_from_a_network_without_result_is_left_out(paper_data: object) -> None:
    plan = plan_of("table-3", only=("5x",))
    runs = (
        Run(data="d", model="m", arm="a", seed=0)
        if one.labels and not one.labels["target"]
        else Run(data="d", model="m", arm="a", seed=0, status="done", score=50.0)
        for one in plan.parts[0].cells
    )
    assert rows(plan, [found_of(plan.parts[0], runs)]).empty


# Commands -----------------------------------------------------------------------------------------


def test_list_names_every_table_and_figure(command: Command) -> None:
    found = command("reproduce", "list", "--paper", "liu2019")
    assert found.code == 0
    head, *lines = found.out.splitlines()
    assert PAPER.title in head
    assert [line.split()[0] for line in lines] == list(entries())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table-44",), "table-4"),
        (("figure-1",), "Figure 1 of the paper is a drawing without data"),
        (("figure-2", "--plan"), "There is nothing to run for it."),
        (("table-1", "--data", "cifar10"), "NAME=OTHER"),
        (("table-1", "--scale", "tiny"), "smoke"),
        (("table-1", "--scale", "smoke", "--device", "abacus"), "Choose --device cpu"),
        (("all", "--scale", "smoke", "--device", "abacus"), "Choose --device cpu"),
    ],
)
def test_mistakes_end_in_a_message(
    arguments: tuple[str, ...], message: str, command: Command
) -> None:
    found = command("reproduce", *arguments)
    assert found.code == 2
    assert message in found.text


def test_a_row_at_smoke_scale_stands_beside_the_printed_one(command: Command) -> None:
    arguments = ("table-14", "--scale", "smoke", "--workers", "0", "--only", "unpruned")
    plan = command("reproduce", *arguments, "--plan")
    assert "In all 1 jobs, 0 done." in plan.out
    found = command("reproduce", *arguments)
    assert found.code == 0
    assert "1 of 4 cells have been run." in found.out
    assert "93.14" in found.out
    assert "In place of CIFAR-10: digits" in found.out
    folder = Path("regrow-paper/smoke/table-14")
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "not run" in text
    assert "The paper does not give the configuration" in text
    assert (folder / "details" / "table-14" / "rows.csv").is_file()
    assert len(read_cells(folder).results) == 1
    assert len(read_cells(folder.parent).results) == 1
    claims = command("claims", "--ours", folder)
    assert claims.code == 0
    assert "33 claims on our results" in claims.out


def test_all_goes_on_after_a_table_that_cannot_be_run(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: entries()[name] for name in ("table-2", "table-14", "table-5")}
    monkeypatch.setitem(vars(PAPER), "entries", some)
    found = command(
        *("reproduce", "all", "--data", "cifar10=digits", "--only", "nothing"),
        *("--workers", "0"),
    )
    assert found.code == 1
    assert "table-2: not run. table-2 cannot be run. ImageNet is not downloaded." in found.text
    assert "table-14: not run. No row of table-14 matches" in found.text
    page = Path("regrow-paper/paper/report.md").read_text(encoding="utf-8")
    assert "| table-2 | not run |" in page


@pytest.mark.usefixtures("own_registries")
def test_data_set_of_a_file_may_stand_for_the_papers(command: Command) -> None:
    own = Path(__file__).parents[1] / "examples" / "extend" / "my_data.py"
    asked = ("table-14", "--scale", "smoke", "--only", "nothing", "--data", "cifar10=stripes")
    assert "Unknown data set 'stripes'" in command("reproduce", *asked).text
    assert "No row of table-14 matches" in command("reproduce", *asked, "--with", own).text


def test_claims_are_judged_on_the_printed_numbers(command: Command) -> None:
    found = command("claims")
    assert found.code == 0
    assert "33 claims on the printed numbers" in found.out


def test_claims_need_a_folder_with_cells(command: Command, tmp_path: Path) -> None:
    found = command("claims", "--ours", tmp_path)
    assert found.code == 2
    assert (
        "There is no cells.csv, widths.csv, sparsity.csv and no numbers of a figure in"
        in found.text
    )


@pytest.mark.slow
def test_table_1_at_smoke_scale_fills_every_cell_from_real_images(command: Command) -> None:
    images = SHARED / "cifar10-jpeg"
    if not images.is_dir():
        pytest.skip("needs the folder shared/data/cifar10-jpeg beside the checkout")
    found = command(
        *("reproduce", "table-1", "--scale", "smoke"), *("--data", f"cifar10=hf:{images}")
    )
    assert found.code == 0
    assert "25 of 25 cells have been run." in found.out


@pytest.mark.slow
def test_table_12_at_smoke_scale_fills_every_cell_from_drawn_pictures(command: Command) -> None:
    found = command("reproduce", "table-12", "--scale", "smoke", "--workers", "0")
    assert found.code == 0
    assert "9 of 9 cells have been run." in found.out
    details = Path("regrow-paper/smoke/table-12/details/table-12")
    assert "vs prune-c" in (details / "report.md").read_text(encoding="utf-8")
    assert len((details / "detections.csv").read_text(encoding="utf-8").splitlines()) == 1 + 9


@pytest.mark.slow
def test_table_4_at_smoke_scale_has_both_data_sets(command: Command) -> None:
    images = SHARED / "tiny-imagenet-100-32px"
    if not images.is_dir():
        pytest.skip("needs the folder shared/data/tiny-imagenet-100-32px beside the checkout")
    found = command(
        *("reproduce", "table-4", "--scale", "smoke", "--only", "CIFAR-100 / VGG-19"),
        *("--data", f"cifar100=hf:{images}"),
    )
    assert found.code == 0
    assert "4 of 40 cells have been run." in found.out
