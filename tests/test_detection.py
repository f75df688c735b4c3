"""Detectors: what they learn, what stays, how they are cut and scored, and their study."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from regrow.data import DataSpec
from regrow.data.boxed_images import BoxedImages, Truth
from regrow.data.normalisation import IMAGENET
from regrow.detection.evaluate import (
    Detections,
    coco_ap,
    detect,
    score,
    voc_ap,
)
from regrow.detection.model import (
    Detection,
    Detector,
    build_detector,
    classifier_state,
    detector_cost,
    settle_norms_,
)
from regrow.detection.task import DetectorHead
from regrow.detection.training import DetectionTraining
from regrow.errors import ConfigError, TrainingError
from regrow.jobs.prune import Prune
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.report.collect import results_of
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery import shrink, silence, trace
from regrow.train import RECIPES, Recipe
from regrow.train.material import Material, material_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
BCCD, TINY = SHARED / "bccd-voc", SHARED / "tiny-imagenet-20-64px"
MODEL = ModelSpec(
    "imagenet-resnet-34", {"classes": 5, "in_channels": 3, "input_size": 32, "width": 0.125}
)
SMALL = Detector.from_json(
    {"name": "small", "short_side": 64, "long_side": 96, "roi_samples": 32, "test_proposals": 50}
)
QUICK = Recipe(epochs=2, batch=2, lr=1e-3, augmentation="flip")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the promise of equal bits is for one thread


class Painted(BoxedImages):
    """Coloured rectangles on grey; the colour is the class."""

    def __init__(self, num: int, *, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        truths, images = [], []
        for _ in range(num):
            image = torch.full((3, 64, 80), 128, dtype=torch.uint8)
            boxes = []
            for label in (1, 2):
                x = int(torch.randint(0, 12, (), generator=draw)) + 40 * (label - 1)
                y, width, height = (
                    int(torch.randint(low, high, (), generator=draw))
                    for low, high in ((2, 30), (20, 28), (20, 32))
                )
                image[:, y : y + height, x : x + width] = 0
                image[label, y : y + height, x : x + width] = 255
                boxes.append([x, y, x + width, y + height])
            images.append(image)
            truths.append(truth(boxes, [1, 2]))
        super().__init__(images.__getitem__, truths, kept=True)


def truth(boxes: Any, labels: list[int], difficult: list[bool] | None = None) -> Truth:
    return Truth(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        difficult=torch.tensor(difficult or [False] * len(labels), dtype=torch.bool),
    )


def found(boxes: Any, labels: list[int], scores: list[float]) -> Detections:
    return Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores),
    )


def classifier(seed: int = 0, examples: BoxedImages | None = None) -> nn.Module:
    net = build(MODEL, seed=seed)
    shown = examples or Painted(4)
    settle_norms_(net, (shown.pixels(i)[None] / 255 - 0.45 for i in range(len(shown))))
    return net


def detector(net: nn.Module | None = None, settings: Detector = SMALL, seed: int = 0) -> Detection:
    mean, std = (0.45,) * 3, (1.0,) * 3
    net = classifier() if net is None else net
    return build_detector(net, settings, num_classes=2, mean=mean, std=std, seed=seed)


# The average precision ----------------------------------------------------------------------------

A, B, C = [0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 70]
FAR = [80, 80, 90, 90]


def test_finding_all_objects_first_is_an_ap_of_one() -> None:
    there = [truth([A, B], [1, 1]), truth([C], [1])]
    seen = [found([B, A, FAR], [1, 1, 1], [0.9, 0.8, 0.1]), found([C], [1], [0.7])]
    assert voc_ap(seen, there, label=1) == 1


def test_a_false_finding_between_lowers_what_comes_after() -> None:
    # Right, wrong, right of 2 objects: precision 1 up to a recall of 0.5, then 2/3.
    seen = [found([A, FAR, B], [1, 1, 1], [0.9, 0.8, 0.7])]
    expected = (6 * 1 + 5 * 2 / 3) / 11
    assert voc_ap(seen, [truth([A, B], [1, 1])], label=1) == pytest.approx(expected)


def test_a_recall_that_is_met_exactly_counts() -> None:
    # 3 of 10 objects, nothing false: recalls 0, 0.1, 0.2 and 0.3.
    boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(10)]
    seen = [found(boxes[:3], [1] * 3, [0.9, 0.8, 0.7])]
    assert voc_ap(seen, [truth(boxes, [1] * 10)], label=1) == pytest.approx(4 / 11)


def test_an_object_is_found_once() -> None:
    seen = [found([A, A, B], [1, 1, 1], [0.9, 0.8, 0.7])]
    expected = (6 * 1 + 5 * 2 / 3) / 11
    assert voc_ap(seen, [truth([A, B], [1, 1])], label=1) == pytest.approx(expected)


def test_difficult_objects_are_neither_asked_for_nor_punished() -> None:
    there = [truth([A, B], [1, 1], [False, True])]
    seen = [found([B, B, A], [1, 1, 1], [0.9, 0.8, 0.7])]
    assert voc_ap(seen, there, label=1) == 1
    assert math.isnan(voc_ap(seen, [truth([B], [1], [True])], label=1))


def test_an_overlap_below_a_half_is_wrong() -> None:
    for right, expected in ((20, 1.0), (21, 0.0)):  # 10 of 20 columns overlap, or 10 of 21
        seen = [found([[0, 0, right, 10]], [1], [0.9])]
        assert voc_ap(seen, [truth([A], [1])], label=1) == expected


def test_classes_and_pictures_are_kept_apart() -> None:
    there = [truth([A], [1]), truth([B], [2])]
    seen = [found([A, B], [2, 2], [0.9, 0.9]), found([A], [1], [0.9])]
    assert voc_ap(seen, there, label=1) == 0
    assert voc_ap(seen, there, label=2) == 0
    assert voc_ap([found([], [], []), found([B], [2], [0.1])], there, label=2) == 1


def test_the_11_points_are_near_the_library_at_half_overlap() -> None:
    pytest.importorskip("torchmetrics")
    draw = torch.Generator().manual_seed(0)
    there, seen = [], []
    for _ in range(30):
        corners = torch.rand(6, 2, generator=draw) * 200
        boxes = torch.cat([corners, corners + 20 + 40 * torch.rand(6, 2, generator=draw)], dim=1)
        shaken = boxes + 8 * torch.randn(6, 4, generator=draw)
        there.append(truth(boxes.tolist(), [1] * 6))
        scores = torch.rand(6, generator=draw).tolist()
        seen.append(found(shaken.tolist(), [1] * 6, scores))
    mine, theirs = voc_ap(seen, there, label=1), coco_ap(seen, there)
    # 11 recalls here, 101 there.
    assert 0.2 < mine < 0.8
    assert mine == pytest.approx(theirs["ap50"], abs=0.03)
    assert theirs["ap"] < theirs["ap50"]


def test_a_class_that_the_test_lacks_is_not_in_the_mean() -> None:
    pytest.importorskip("torchmetrics")
    result = score([found([A], [1], [0.9])], [truth([A], [1])], ["cat", "dog"])
    assert result["ap"] == {"cat": 1.0, "dog": None}
    assert result["map"] == 1
    assert result["coco"]["ap"] == pytest.approx(1)
    assert result["num_test"] == 1


# The detector -------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_framework() -> None:
    net = build(ModelSpec("imagenet-resnet-34", {**MODEL.arguments, "width": 1.0}))
    model = build_detector(net, Detector(), num_classes=20, mean=IMAGENET.mean, std=IMAGENET.std)
    with torch.no_grad():
        assert model.backbone(torch.zeros(1, 3, 64, 96)).shape == (1, 256, 4, 6)
        assert model.roi_heads.box_head(torch.zeros(2, 256, 7, 7)).shape == (2, 512)
    assert model.rpn.head.bbox_pred.out_channels == 4 * 9
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 4 * 21
    assert RECIPES["voc"].lr_at(4) == 1e-3
    assert RECIPES["voc"].lr_at(5) == 1e-4
    assert RECIPES["voc"].last_lr() == 1e-4
    assert (RECIPES["voc"].momentum, RECIPES["voc"].weight_decay, RECIPES["voc"].epochs) == (
        0.9,
        1e-4,
        7,
    )


def test_stem_first_stage_and_norms_do_not_move() -> None:
    model = detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = DetectionTraining(model, Painted(4), QUICK, seed=0)
    while not training.done:
        training.step()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(before[n], value)}
    frozen = ("backbone.conv.", "backbone.norm.", "backbone.stage1.")
    assert not [name for name in moved if name.startswith(frozen) or ".norm" in name]
    expected = {n for n in before if "conv" in n and not n.startswith(frozen)}
    assert expected <= moved
    assert {"roi_heads.box_predictor.bbox_pred.weight", "rpn.head.cls_logits.bias"} <= moved


def test_a_cut_backbone_detects_as_a_silenced_one() -> None:
    net = classifier()
    found_groups = trace(net, (1, 3, 32, 32))
    mask = select(net, found_groups, METHODS.get("l1-filter"), sparsity=0.4)
    examples = Painted(2)
    small, quiet = (
        detect(detector(cut(net, mask, found_groups)), examples) for cut in (shrink, silence)
    )
    for one, other in zip(small, quiet, strict=True):
        assert len(one.boxes) > 10
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-5)


def test_a_detectors_features_are_its_classifiers() -> None:
    net = classifier()
    features = classifier_state(detector(net).state_dict())
    expected = {n: v for n, v in net.state_dict().items() if n.startswith("features.")}
    assert features.keys() == expected.keys()
    assert all(torch.equal(features[name], expected[name]) for name in expected)


def test_the_classifier_is_left_as_it_was() -> None:
    net = classifier()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training = DetectionTraining(detector(net), Painted(2), QUICK, seed=0)
    training.step()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_cost_is_the_sum_of_the_parts_counted_by_hand() -> None:
    model = detector()
    cost = detector_cost(model, SMALL)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    # The predictor sees 64 values (512 / 8) and gives 3 scores and 12 coordinates, 50 times.
    less = detector_cost(model, replace(SMALL, test_proposals=49))
    region = (cost.macs - less.macs) - 64 * (3 + 12)
    # 64 channels of 4x4 from 32 of 7x7: two 3x3 and one 1x1 in the first block, then four 3x3.
    assert region == 16 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 4 * 9 * 64 * 64)


def test_settled_norms_put_out_unit_variance() -> None:
    net = classifier()
    norm = net.get_submodule("features.norm")
    assert isinstance(norm, nn.BatchNorm2d)
    shown, seen = Painted(4), []
    norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        for index in range(4):
            net.eval()(shown.pixels(index)[None] / 255 - 0.45)
    values = torch.cat(seen).transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(1), torch.ones(8), atol=0.05, rtol=0)


# The training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [None, "flip", "none"])
def test_a_resumed_training_ends_in_the_same_bits(augmentation: str | None) -> None:
    recipe = replace(QUICK, augmentation=augmentation)
    whole = DetectionTraining(detector(), Painted(3), recipe, seed=1)
    while not whole.done:
        whole.step()
    first = DetectionTraining(detector(), Painted(3), recipe, seed=1)
    for _ in range(first.steps_per_epoch + 1):
        first.step()
    torch.rand(3)  # what others draw meanwhile does not matter
    second = DetectionTraining(detector(seed=5), Painted(3), recipe, seed=1)
    second.restore(*first.state())
    assert second.samples == first.samples
    while not second.done:
        second.step()
    expected, got = whole.state(), second.state()
    assert got[1] == expected[1]
    assert all(torch.equal(got[0][name], value) for name, value in expected[0].items())


def test_flipped_copies_double_an_epoch() -> None:
    copies = DetectionTraining(detector(), Painted(3), replace(QUICK, augmentation=None), seed=0)
    plain = DetectionTraining(detector(), Painted(3), QUICK, seed=0)
    assert (copies.shown, copies.steps_per_epoch) == (6, 3)
    assert (plain.shown, plain.steps_per_epoch, plain.num_steps) == (3, 2, 4)


def test_a_step_leaves_the_global_random_state_alone() -> None:
    training = DetectionTraining(detector(), Painted(2), QUICK, seed=0)
    before = torch.get_rng_state()
    training.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diverging_training_says_so() -> None:
    training = DetectionTraining(detector(), Painted(2), replace(QUICK, lr=1e6, batch=1), seed=0)
    message = "diverged: its loss is .* in epoch 1 of 2, step 2 of 2, at a learning rate of 1e"
    training.step()
    with pytest.raises(TrainingError, match=message):
        training.step()


def test_a_checkpoint_of_another_training_is_refused() -> None:
    state = DetectionTraining(detector(), Painted(2), QUICK, seed=0).state()
    with pytest.raises(TrainingError, match="its seed is 0, where 1 was expected"):
        DetectionTraining(detector(), Painted(2), QUICK, seed=1).restore(*state)
    other = DetectionTraining(
        detector(settings=replace(SMALL, anchor_sizes=(16,))), Painted(2), QUICK, seed=0
    )
    with pytest.raises(TrainingError, match=r"of another network: for 'model.rpn.head"):
        other.restore(*state)


@pytest.mark.slow
def test_a_detector_learns_four_pictures_by_heart() -> None:
    pytest.importorskip("torchmetrics")
    examples = Painted(4)
    model = detector(classifier(examples=examples), replace(SMALL, frozen_stages=None))
    before = score(detect(model, examples), examples.truths, ("green", "blue"))
    recipe = Recipe(epochs=80, batch=1, lr=5e-3, augmentation="none")
    training = DetectionTraining(model, examples, recipe, seed=0)
    while not training.done:
        training.step()
    after = score(detect(model, examples), examples.truths, ("green", "blue"))
    assert before["map"] < 0.3
    assert after["map"] > 0.9
    assert training.history[-1]["loss"] < 0.5 * training.history[0]["loss"]


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"short_sid": 600}, r"Unknown field 'short_sid'\. Did you mean 'short_side'"),
        ({"name": "larg"}, "Unknown detector 'larg'"),
        ({"short_side": 10}, "'short_side' of a detector must be an int of at least 32. Got 10"),
        ({"long_side": 100}, "'long_side' of a detector must be at least the short side, 600"),
        ({"long_side": 100_000}, "'long_side' of a detector must be at most 4096 pixels"),
        ({"rpn_nms": 1.5}, r"'rpn_nms' of a detector must be a number in \(0, 1\]. Got 1.5"),
        ({"anchor_sizes": []}, "'anchor_sizes' of a detector must be a list of numbers above 0"),
        ({"anchor_sizes": [float("inf")]}, "must be a list of numbers above 0"),
        ({"frozen_stages": 4}, "'frozen_stages' of a detector must be an int from 0 to 3"),
        ({"rpn_background": 0.9}, "'rpn_background' of a detector must be at most"),
        ({"detections": 0}, "'detections' of a detector must be an int of at least 1. Got 0"),
        ({"score_threshold": 1}, r"'score_threshold' of a detector must be a number in \[0, 1\)"),
        (3, "A detector must be a name or a mapping of fields. Got 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Detector.from_json(given)


def test_settings_survive_json() -> None:
    assert Detector.from_json(SMALL.to_json()) == SMALL
    assert Detector().to_json() == {}


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a classifier whose 'features' have stages"):
        detector(nn.Sequential(nn.Conv2d(3, 4, 3)))


# Jobs and the study -------------------------------------------------------------------------------

MATERIAL = Material(
    spec=DataSpec("voc:nowhere"),
    content="0" * 32,
    shape=(1, 3, 64, 64),
    model_arguments=(("classes", 1), ("in_channels", 3), ("input_size", 64)),
    num_train=8,
    num_test=4,
    task="detection",
)
HEAD = DetectorHead(SMALL)
TRAIN = Train(data=MATERIAL, head=HEAD, recipe=QUICK, seed=0, model=MODEL)
CUT = Prune(
    data=MATERIAL,
    model=MODEL,
    parent=TRAIN,
    method=METHODS.get("l1-filter"),
    seed=0,
    sparsity=0.5,
)
PINNED: dict[str, tuple[Train | Prune, str]] = {
    "train": (TRAIN, "e5c6d36fe63648af"),
    "prune": (CUT, "1abab41c3f3a30b4"),
    "train on": (replace(TRAIN, initial=CUT), "07f7b486b7f35b94"),
}


@pytest.mark.parametrize("name", PINNED)
def test_keys_are_pinned(name: str) -> None:
    job, key = PINNED[name]
    assert job.key[:16] == key, "if what this job does changed on purpose, raise its version"


def test_a_key_changes_with_what_the_result_depends_on() -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"head": DetectorHead(replace(SMALL, test_nms=0.4))},
        {"recipe": replace(QUICK, lr=0.1)},
        {"data": replace(MATERIAL, content="1" * 32)},
        {"model": ModelSpec("imagenet-resnet-34", {**MODEL.arguments, "width": 0.25})},
    ]
    keys = {TRAIN.key, *(replace(TRAIN, **change).key for change in changes)}
    assert len(keys) == 1 + len(changes)
    moved = replace(MATERIAL, spec=DataSpec("voc:elsewhere"))
    assert replace(TRAIN, data=moved, label="other").key == TRAIN.key
    assert TRAIN.flops > 0


def test_what_is_built_sees_images_as_its_classifier_did() -> None:
    data = replace(MATERIAL, task="image-classification", shape=(1, 3, 32, 32))
    under = Train(data=data, model=MODEL, recipe=QUICK, seed=0)
    context: Any = SimpleNamespace(
        tensors=lambda job, part="": build(MODEL, seed=3).state_dict(),
        dataset=lambda spec: SimpleNamespace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    )
    boxed: Any = SimpleNamespace(classes=("a",))
    built = replace(TRAIN, initial=under)._built(context, boxed, HEAD)
    assert isinstance(built.model, Detection)
    assert built.model.transform.image_mean == [0.1, 0.2, 0.3]
    assert built.model.transform.image_std == [0.4, 0.5, 0.6]
    own = HEAD.backbone(built.model.state_dict())
    expected = build(MODEL, seed=3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in own.items())


def test_a_pruned_detector_keeps_all_other_layers() -> None:
    net = classifier()
    groups = trace(net, (1, 3, 32, 32))
    trained = detector(net, seed=5).state_dict()
    statistics: dict[str, Any] = {"num_classes": 2, "mean": (0.45,) * 3, "std": (1.0,) * 3}
    mask = select(net, groups, METHODS.get("l1-filter"), sparsity=0.4)
    small = shrink(net, mask, groups)
    cut = HEAD.around(small, **statistics, trained=trained).state_dict()
    others = [name for name in cut if name.startswith(("rpn.", "roi_heads.box_predictor"))]
    assert len(others) == 10
    assert all(torch.equal(cut[name], trained[name]) for name in others)
    kept = {f"features.{n}": v for n, v in small.get_submodule("features").state_dict().items()}
    assert all(torch.equal(value, kept[name]) for name, value in HEAD.backbone(cut).items())
    stream = replace(METHODS.get("l1-filter"), scope=("stream",))
    narrow = shrink(net, select(net, groups, stream, sparsity=0.4), groups)
    with pytest.raises(
        ConfigError,
        match="Pruning would cut channels of the backbone's output, which the detector's 'rpn",
    ):
        HEAD.around(narrow, **statistics, trained=trained)


real = pytest.mark.skipif(
    not (BCCD.is_dir() and TINY.is_dir()),
    reason="the images are not at ../shared/data/bccd-voc and tiny-imagenet-20-64px",
)


ARMS = ["unpruned", "prune-c", "prune-d", "scratch-e", "scratch-b"]
CUT_NAME = "l1-filter resnet-34-b"


def study(**changes: Any) -> dict[str, Any]:
    return {
        "backbone": {
            "data": {"name": f"hf:{TINY}", "subset": 200, "test_subset": 40, "size": 32},
            "models": {"name": "imagenet-resnet-34", "width": 0.125},
            "methods": {"name": "l1-filter", "target": "resnet-34-b"},
            "recipe": {"name": "imagenet", "epochs": 1, "batch": 8},
        },
        "data": {"name": f"voc:{BCCD}", "on_error": "skip", "subset": 8, "test_subset": 4},
        "detector": SMALL.to_json(),
        "recipe": {"epochs": 1, "lr": 1e-4, "augmentation": "flip"},
        **changes,
    }


@real
@pytest.mark.slow
def test_a_study_trains_every_arm(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    asked = Study.from_json(study())
    assert [cell.arm.name for cell in asked.cells()] == ARMS
    store = Store.open(tmp_path)
    summary = run(asked.jobs(), store, workers=0)
    assert not summary.failed
    found = results_of(asked, store)
    assert not found.failures
    assert [one.arm for one in found.runs] == ARMS
    assert all(one.done and 0 <= (one.score or 0) <= 100 for one in found.runs)
    # All cut alike, by the widths of the target.
    sizes = {one.arm: one.parameters or 0 for one in found.runs}
    assert len({size for arm, size in sizes.items() if arm != "unpruned"}) == 1
    assert sizes["prune-d"] < sizes["unpruned"]
    (extra,) = found.extras
    assert extra.columns[:4] == ("arm", "mAP", "AP Platelets", "AP RBC")
    assert [row[0] for row in extra.rows] == ["unpruned", *(f"{CUT_NAME} {a}" for a in ARMS[1:])]
    assert not run(asked.jobs(), store, workers=0).done


@real
def test_prune_d_alone_needs_only_the_unpruned_detector() -> None:
    pytest.importorskip("torchmetrics")
    (cell,) = Study.from_json(study(arms=["prune-d"])).cells()
    assert isinstance(cell.job, Train)
    pruning = cell.job.initial
    assert isinstance(pruning, Prune)
    assert isinstance(pruning.parent, Train)
    assert pruning.parent.initial is not None
    assert pruning.parent.initial.kind == "train"
    assert cell.job.recipe.schedule == "constant"


@real
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["prune-e"]}, "Unknown arm 'prune-e'"),
        ({"detektor": "voc"}, "Unknown key 'detektor'"),
        ({"backbone": "resnet"}, "The 'backbone' must be a mapping of data, models"),
        ({"recipe": {"augmentation": "shift"}}, "Unknown augmentation 'shift'"),
        ({"recipe": 7}, "A recipe must be a name or a mapping of fields. Got 7"),
        ({"recipe": {"mixup": 0.2}}, "its recipe does not accept 'mixup'"),
        ({"recipe": {"schedule": "linear"}}, "'prune-d' trains at the recipe's last learning rate"),
        ({"arms": []}, "'arms' must name at least one"),
        ({"models": "vgg-16"}, "'models' belongs to the 'backbone'"),
        ({"data": ["voc:a", "voc:b"]}, "'data' must name one data set"),
        ({"task": "regression"}, "one of the keys 'detector'. Got the task 'regression'"),
        ({"margin": 0}, "The 'margin' must be a number above 0"),
        ({"data": {"name": "voc:x", "lable": "y"}}, "Unknown option 'lable'"),
        (
            {"arms": ["unpruned"]} | {"backbone": {"arms": ["scratch-e"]}},
            "on which none of the arms unpruned is built",
        ),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(ConfigError, match=message):
        Study.from_json(study(**changes))


def test_a_study_file_is_named_in_its_errors(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: voc:x\ndetector: voc\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: 'backbone' is missing"):
        Study.load(file)
    with pytest.raises(ConfigError, match="Cannot read the study"):
        Study.load(tmp_path / "none.yaml")


@real
def test_an_untrained_start_is_scored_like_any_other(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    spec = DataSpec(f"voc:{BCCD}", on_error="skip", subset=4, test_subset=2)
    recipe = replace(QUICK, epochs=1)
    job = Train(data=material_of(spec), head=HEAD, recipe=recipe, seed=0, model=MODEL)
    store = Store.open(tmp_path)
    assert not run([job], store, workers=0).failed
    record = store.record(job.key, spec=job.spec)
    assert record["before"].keys() == {"map", "ap", "coco"}
    assert len(record["history"]) == 1
    assert record["epochs"] == 1
