"""A study of detectors goes the way of every study: planned, run, reported by the same commands."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from commands import Command
from regrow.errors import ConfigError
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.train import Train
from regrow.report.collect import Reader, results_of
from regrow.run import estimate as estimates
from regrow.run.estimate import estimate
from regrow.run.gpu_sharing import num_sharing
from regrow.store import Store
from regrow.studies.study import Study

pytest.importorskip("torchmetrics")

# Enough for every arm in seconds. The norms of a classifier take some steps to settle.
STUDY: dict[str, Any] = {
    "name": "tiny",
    "title": "Shapes",
    "backbone": {
        "data": {"name": "shapes", "subset": 160, "test_subset": 12},
        "models": {"name": "imagenet-resnet-34", "width": 0.125, "label": "thin ResNet-34"},
        "methods": {"name": "l1-filter", "target": "resnet-34-b"},
        "recipe": {"name": "imagenet", "epochs": 1, "batch": 4, "lr": 0.02, "precision": "fp32"},
    },
    "data": {"name": "voc-shapes", "subset": 6, "test_subset": 3, "label": "a few shapes"},
    "detector": {
        "name": "small",
        "short_side": 64,
        "long_side": 96,
        "roi_samples": 32,
        "test_proposals": 20,
    },
    "recipe": {"epochs": 1, "lr": 1e-4, "augmentation": "flip", "precision": "fp32"},
}
ARMS = ["unpruned", "prune-c", "prune-d", "scratch-e", "scratch-b"]


@pytest.fixture
def regrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return Command(monkeypatch, capsys)


def test_a_study_may_say_its_task() -> None:
    keys = {job.key for job in Study.from_json(STUDY).jobs()}
    assert {job.key for job in Study.from_json({**STUDY, "task": "detection"}).jobs()} == keys
    without = {key: value for key, value in STUDY.items() if key != "detector"}
    (experiment,) = Study.from_json({**without, "task": "detection"}).experiments
    assert experiment.head is not None
    assert experiment.head.to_json() == {}  # VOC's


def test_a_study_without_a_backbone_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"detector": "voc", "data": "voc:x"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml: 'backbone' is missing"):
        Study.load(file)
    plain = {**STUDY["backbone"], "data": "voc-shapes"}
    with pytest.raises(ConfigError, match=r"learnt by a detector.*Give the study a 'backbone'"):
        Study.from_json(plain).cells()


def test_data_without_boxes_are_refused() -> None:
    with pytest.raises(ConfigError, match="'digits' is of the task image-classification, which"):
        Study.from_json({**STUDY, "data": "digits"}).cells()


def test_several_studies_of_detectors_stand_in_one_file() -> None:
    other = {"data": {**STUDY["data"], "seed": 1, "label": "others"}, "arms": ["unpruned"]}
    shared = {key: value for key, value in STUDY.items() if key != "arms"}
    cells = Study.from_json({**shared, "experiments": [{}, other]}).cells()
    assert [cell.arm.name for cell in cells] == [*ARMS, "unpruned"]
    assert cells[0].experiment.data_label == "a few shapes"
    assert cells[-1].experiment.data_label == "others"


def test_cells_are_those_of_a_study_under_the_detectors_names() -> None:
    study = Study.from_json(STUDY)
    cells = study.cells()
    assert [cell.arm.name for cell in cells] == ARMS
    assert {cell.place[:2] for cell in cells} == {
        ("a few shapes", "Faster R-CNN on thin ResNet-34")
    }
    assert len({cell.place for cell in cells}) == len(cells)
    assert len(study.jobs()) == len(cells)


def test_keys_of_a_study_are_pinned() -> None:
    """Each detector's key, and those of what it depends on."""
    keys = {
        "unpruned": ("edb04d287ea8d965", "8e03416955619f6d"),
        "prune-c": ("2388a5a753bcca42", "811adddd473920d0", "23646fb5b310d7d0"),
        "prune-d": ("5337852563bc9698", "cebe37468c9825c5"),
        "scratch-e": ("0e590eb0945cb239", "9bee26567a758baf", "a770062947e5c01c"),
        "scratch-b": ("e50695ccfbda63ea", "ac2031a3d3e0155f", "a770062947e5c01c"),
    }
    found = {cell.arm.name: (cell.job, *cell.job.inputs) for cell in Study.from_json(STUDY).cells()}
    assert {name: tuple(job.key[:16] for job in jobs) for name, jobs in found.items()} == keys


def test_methods_that_cut_no_channels_are_refused_before_data_is_looked_at() -> None:
    for method, unit in (("magnitude", "weights"), ("sparse-structure", "blocks")):
        with pytest.raises(ConfigError, match=f"fewer channels, and '{method}' removes {unit}"):
            Study.from_json({**pruned_by({"name": method, "sparsity": 0.5}), "data": "voc:nowhere"})


def pruned_by(method: dict[str, Any]) -> dict[str, Any]:
    return {**STUDY, "backbone": {**STUDY["backbone"], "methods": method}}


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"name": "thinet", "sparsity": 0.5}, "'thinet' reconstructs a classifier's weights"),
        ({"name": "l1-filter", "macs": 0.5}, "'l1-filter' is asked for a share of a cost"),
        ({"name": "guided-pruning", "sparsity": 0.5}, "'guided-pruning' follows other networks"),
        ({"name": "l1-filter", "sparsity": 0.5, "rounds": 2, "ticket": "none"}, "prunes in rounds"),
    ],
)
def test_what_prune_d_cannot_do_is_refused_when_a_study_is_read(
    method: dict[str, Any], why: str
) -> None:
    study = pruned_by(method)
    with pytest.raises(ConfigError, match=f"'prune-d' prunes the backbone of a detector.*{why}"):
        Study.from_json(study)
    assert Study.from_json({**study, "arms": ["unpruned", "prune-c"]}).experiments


def test_a_classifier_of_grey_images_is_refused() -> None:
    backbone = {**STUDY["backbone"], "data": {"name": "digits", "size": 32}}
    with pytest.raises(ConfigError, match="colour images, and the 'backbone' has 1 channel"):
        Study.from_json({**STUDY, "backbone": backbone}).cells()


def test_jobs_of_every_kind_have_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "CALIBRATION_SECONDS", 0.02)
    jobs = Study.from_json(STUDY).jobs()
    found = estimate(jobs, (), workers=1)
    assert found.by_kind == {
        "train": (1, 0),
        "prune": (2, 0),
        "retrain": (3, 0),
        "prune-detector": (1, 0),
        "train-detector": (5, 0),
    }
    assert [*found.by_kind] == ["train", "prune", "retrain", "prune-detector", "train-detector"]
    a_pace: Any = SimpleNamespace(seconds=0.02)
    detectors = [
        job for job in all_jobs(jobs).values() if isinstance(job, Train) and job.head is not None
    ]
    least = sum(job.estimate(a_pace) for job in detectors)
    assert found.compute_seconds > least > 0
    assert found.training_flops > sum(job.flops for job in detectors) > 0


def test_no_device_is_shared_with_detectors_whose_needs_are_not_known() -> None:
    assert num_sharing(all_jobs(Study.from_json(STUDY).jobs()).values(), "cpu") == 1


def test_prune_d_goes_on_from_the_unpruned_detector() -> None:
    cells = {cell.arm.name: cell.job for cell in Study.from_json(STUDY).cells()}
    further = cells["prune-d"]
    assert isinstance(further, Train)
    assert isinstance(further.initial, Prune)
    assert further.initial.parent == cells["unpruned"]


def test_rows_say_what_detectors_were_built_on_and_what_they_must_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"unpruned": 0.1, "prune-c": 0.2, "prune-d": 0.7, "scratch-e": 0.3, "scratch-b": 0.4}
    study = Study.from_json(STUDY)
    named = {cell.job.key: cell.arm.name for cell in study.cells()}

    def record(_reader: Reader, job: Job) -> dict[str, Any]:
        size = {"parameters": 10, "macs": 20, "epochs": 1, "history": []}
        scores = {"accuracy": 0.5, "map": 0.8, "guarded": [], "ap": {"cat": 0.6, "dog": None}}
        coco = {"ap": 0.5, "ap50": 0.9, "ap75": 0.1}
        start = {"map": before.get(named.get(job.key, ""), 0.0), "ap": {"cat": 0.0, "dog": None}}
        cost = {} if job.kind.startswith("prune") else {"samples": 1, "training_flops": 1.0}
        return {**size, **scores, **cost, "coco": coco, "before": start}

    monkeypatch.setattr(Reader, "record", record)
    monkeypatch.setattr(Reader, "has", lambda self, job: True)
    found = results_of(study, Store.open(tmp_path / "store", create=True))
    lucky = 100 / 11  # one box of the one class that the test images have
    chances = {run.arm: round((run.chance or 0) - lucky, 6) for run in found.runs}
    # A detector that was pruned began as the unpruned one.
    assert chances == {name: round(100 * b, 6) for name, b in {**before, "prune-d": 0.1}.items()}
    assert {run.arm: run.subject for run in found.runs} == {
        **dict.fromkeys(ARMS, "the classifier"),
        "prune-d": "the detector",
    }
    stamps = {run.arm: run.stamp for run in found.runs}
    assert stamps["prune-c"] == "1 epoch; classifier: 1 epoch after the unpruned network's 1"
    assert stamps["prune-d"] == "1 epoch after 1 epoch uncut; classifier: 1 epoch"
    assert {run.num_test for run in found.runs} == {3}
    (extra,) = found.extras
    assert extra.columns[:4] == ("arm", "mAP", "AP cat", "AP dog")
    assert extra.columns[-2:] == ("mAP before", "classifier")
    rows = {row[0]: row for row in extra.rows}
    assert rows["unpruned"][1:] == (
        "80.00",
        "60.00",
        "",
        "50.00",
        "90.00",
        "10.00",
        "10.00",
        "50.00",
    )
    assert rows["l1-filter resnet-34-b prune-d"][-2:] == ("70.00", "")


@pytest.mark.slow
def test_a_study_of_detectors_is_planned_run_and_reported(regrow: Command) -> None:
    planned = regrow("plan", "study.yaml", "--workers", "1")
    assert planned.code == 0
    assert "train-detector" in planned.out
    assert "Training left" in planned.out
    ran = regrow("run", "study.yaml", "--workers", "0", "--json")
    assert ran.code == 0
    found = json.loads(ran.out)
    assert [row["arm"] for row in found["rows"]] == ARMS
    assert all(0 <= row["mean"] <= 100 and row["n"] == 1 for row in found["rows"])
    assert found["jobs"]["done"] == 12
    # One step teaches nothing, and the answer says so.
    assert found["answer"].startswith("No conclusion in 1 cell: the unpruned network is not above")
    asked = "Is training the classifier from scratch (scratch-b) as good as fine-tuning"
    assert f"{asked} the classifier (prune-c)? No conclusion" in found["answer"]
    assert f"{asked} the detector (prune-d)? No conclusion" in found["answer"]
    assert "12 of 12 jobs done" in regrow("status", "study.yaml").out
    told = regrow("report", "study.yaml")
    assert told.code == 0
    assert "mAP %" in told.out
    assert "vs prune-c" in told.out
    assert "Average precision by class" in told.out
    folder = Path("regrow-report/tiny")
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "1 epoch after 1 epoch uncut; classifier: 1 epoch" in page
    assert "| mAP before |" in page
    assert "Accuracy is" not in page
    assert "mAP in" in (folder / "table.tex").read_text(encoding="utf-8")
    for name in ("map-macs.png", "map-macs.svg", "rows.parquet", "verdicts.csv"):
        assert (folder / name).stat().st_size > 0
    with (folder / "detections.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ARMS
    for row in rows:
        classes = [float(v) for k, v in row.items() if k.startswith("AP ") and v]
        assert float(row["mAP"]) == pytest.approx(sum(classes) / len(classes), abs=1e-3)
    assert rows[2]["classifier"] == ""  # prune-d depends on a detector
    refused = regrow("export", "study.yaml", "--arm", "scratch-b", "--to", "net")
    assert refused.code == 2
    assert "is built on another network and cannot be exported" in refused.text
    again = regrow("run", "study.yaml", "--workers", "0")
    assert "12 were done before" in again.err


@pytest.mark.slow
def test_what_failed_stands_in_the_report(regrow: Command, tmp_path: Path) -> None:
    study = {**STUDY, "recipe": {**STUDY["recipe"], "lr": 1e6}, "arms": ["unpruned", "prune-d"]}
    Path("study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    ran = regrow("run", "study.yaml", "--workers", "0")
    assert ran.code == 1
    assert "FAILED" in ran.err
    found = results_of(
        Study.load("study.yaml"), Store.open(tmp_path / "regrow-store", create=False)
    )
    assert [run.status for run in found.runs] == ["failed", "failed"]
    assert ["diverged" in failure.message for failure in found.failures] == [True]
    assert "not run" in ran.out


def test_budgets_are_epochs_of_the_detector() -> None:
    asked = Study.from_json({**STUDY, "budgets": [1, "3x"]})
    cells = asked.cells()
    assert {cell.experiment.budget for cell in cells} == {1, 3}
    alone = {cell.arm.name: cell.job.key for cell in Study.from_json(STUDY).cells()}
    once = {c.arm.name: c.job.key for c in cells if c.experiment.budget == 1}
    assert once == alone
    longer = [cell.job for cell in cells if cell.experiment.budget == 3]
    assert {getattr(job, "recipe").epochs for job in longer} == {3}  # noqa: B009
    beneath = {cell.under.job.key for cell in cells if cell.under is not None}
    assert len(beneath) == len({c.under.job.key for c in cells[:5] if c.under is not None})
    labels = {job.label for job in asked.jobs()}
    assert len(labels) == len(asked.jobs())
    network = "Faster R-CNN on thin ResNet-34 for 3 epochs"
    assert f"{network} l1-filter resnet-34-b scratch-e seed 0" in labels
    with pytest.raises(ConfigError, match=r"is trained for one budget\. Put 'budgets' beside"):
        Study.from_json({**STUDY, "backbone": {**STUDY["backbone"], "budgets": [1, 2]}})
