"""Reports of any metric: its own direction, margin, unit, baseline and resolution."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import STUDY
from regrow import run_study
from regrow.errors import ConfigError
from regrow.jobs.arms import BudgetKind, Start
from regrow.report import Report, Run, page_of, write
from regrow.report.figures import score_figure, score_panels
from regrow.report.rows import row_columns, summarise, to_csv
from regrow.report.validity import Evidence, judge
from regrow.report.verdict import Verdict, verdicts
from regrow.tasks.metric import (
    ACCURACY,
    BITS_PER_BYTE,
    EXAMPLE_ACCURACY,
    R_SQUARED,
    Metric,
    check_margin,
)

ARMS: dict[str, tuple[Start, BudgetKind]] = {
    "unpruned": ("initial", "equal-epochs"),
    "pruned": ("inherited", "none"),
    "fine-tune": ("inherited", "share"),
    "scratch-b": ("random", "equal-flops"),
}
NOISE = (0.001, -0.002, 0.0, 0.002, -0.001)


def arm(name: str, mean: float, metric: Metric, **changes: Any) -> list[Run]:
    """Make five seeds of an arm that score about so much."""
    start, budget = ARMS[name]
    whole = name == "unpruned"
    run = Run(
        data=metric.key,
        model="net",
        method="" if whole else "l1-filter",
        sparsity=None if whole else 0.5,
        arm=name,
        seed=0,
        start=start,
        budget=budget,
        status="done",
        metric=metric,
        score=mean,
        parameters=4000 if whole else 1000,
        macs=8000 if whole else 2000,
        epochs=0 if name == "pruned" else 12,
        base_epochs=12,
        training_flops=1e9,
        num_test=1000,
        **changes,
    )
    noise = NOISE[::-1] if name == "scratch-b" else NOISE
    return [replace(run, seed=seed, score=mean + e) for seed, e in enumerate(noise)]


def study(metric: Metric, scores: Sequence[float], **changes: Any) -> list[Run]:
    pairs = zip(ARMS, scores, strict=True)
    return [run for name, mean in pairs for run in arm(name, mean, metric, **changes)]


def bits(scratch: float = 1.9, **changes: Any) -> list[Run]:
    return study(BITS_PER_BYTE, (2.0, 5.0, 2.1, scratch), **{"chance": 4.2, **changes})


def report(runs: Sequence[Run], folder: Path, **options: Any) -> Report:
    how = {"title": "t", "command": "c", "machine": "m", "date": "d", **options}
    return write(runs, folder, **how)


def scratch_verdict(runs: Sequence[Run]) -> Verdict:
    return next(v for v in verdicts(runs) if v.question.about == "scratch")


@pytest.mark.parametrize(
    ("scratch", "outcome"), [(1.9, "better"), (2.3, "worse"), (2.101, "equivalent")]
)
def test_of_a_metric_where_less_is_better_less_is_better(scratch: float, outcome: str) -> None:
    assert scratch_verdict(bits(scratch)).outcome == outcome


def test_the_best_arm_is_the_best_by_the_metric() -> None:
    best = next(v for v in verdicts(bits()) if v.question.about == "best")
    assert (best.arm, best.outcome) == ("scratch-b", "better")


def test_the_margin_is_the_metrics_own_unless_a_study_says_one() -> None:
    assert scratch_verdict(bits()).margin == BITS_PER_BYTE.margin
    assert {v.margin for v in verdicts(bits(), margin=0.5)} == {0.5}
    assert {v.margin for v in verdicts(study(ACCURACY, (97, 60, 97, 97)))} == {0.3}


@pytest.mark.parametrize(("metric", "scores"), [(BITS_PER_BYTE, (2.0, 5.0, 2.1, 1.9))])
def test_nothing_speaks_of_accuracy_points_or_images_where_there_are_none(
    metric: Metric, scores: Sequence[float], tmp_path: Path
) -> None:
    made = report(study(metric, scores, chance=4.2, error=0.05), tmp_path)
    texts = [path.read_text("utf-8") for path in made.paths if path.suffix in (".md", ".csv")]
    for text in (*texts, made.text):
        for word in ("ccuracy", " points", "image", "chance (", "most frequent class"):
            assert word not in text.replace("above chance (", "")
    page = (tmp_path / "report.md").read_text("utf-8")
    assert "| bits per byte | n | vs fine-tune |" in page
    assert "1.900 ± 0.002" in page
    assert "better than fine-tune by 0.200 bits" in page
    assert "margin: 0.02 bits" in page
    assert "in \\%" not in (tmp_path / "table.tex").read_text("utf-8")
    assert {"bits-per-byte-macs.png", "bits-per-byte-macs.svg"} <= {p.name for p in made.paths}
    with (tmp_path / "runs.csv").open() as file:
        assert float(next(csv.DictReader(file))["bits_per_byte"]) == pytest.approx(2.001)


@pytest.mark.parametrize(
    ("metric", "scores", "chance"),
    [(BITS_PER_BYTE, (4.3, 8.0, 4.4, 4.5), 4.2), (R_SQUARED, (-0.01, -3.0, -0.02, -0.03), 0.0)],
)
def test_networks_that_learnt_nothing_allow_no_conclusion(
    metric: Metric, scores: Sequence[float], chance: float, tmp_path: Path
) -> None:
    runs = study(metric, scores, chance=chance)
    assert scratch_verdict(runs).outcome == "no conclusion"
    text = report(runs, tmp_path, draw=False).answer
    assert f"the unpruned network is not {metric.beats_baseline}" in text
    assert metric.baseline in text
    better = [score - metric.gain(-1.0) for score in scores]
    assert scratch_verdict(study(metric, better, chance=chance)).outcome != "no conclusion"


def test_the_sampling_error_of_a_metric_that_is_no_count_is_the_records() -> None:
    def rules(error: float | None) -> set[str]:
        side = Evidence(mean=2.0, std=0.0, n=5, num_test=9, chance=4.0, error=error)
        side = replace(side, metric=BITS_PER_BYTE)
        return {reason.rule for reason in judge(side, side, margin=0.02, parent=side)}

    assert rules(0.05) == {"margin below sampling error"}
    assert rules(0.01) == rules(None) == set()  # and never that of a count of 9


def test_a_loss_that_still_falls_counts_by_what_it_is_worth_in_the_metric() -> None:
    def rules(metric: Metric) -> set[str]:
        parent = Evidence(mean=0.5, std=0.0, n=5, num_test=10**9, metric=metric)
        parent = replace(parent, chance=metric.gain(-9.0), loss=0.3, fall=0.012)
        return {reason.rule for reason in judge(parent, parent, margin=0.015, parent=parent)}

    assert rules(BITS_PER_BYTE) == {"not converged"}  # 0.012 nats are 0.017 bits
    assert rules(R_SQUARED) == set()
    assert rules(replace(BITS_PER_BYTE, per_loss=None)) == {"convergence unknown"}


def test_a_smaller_network_that_outgrows_its_parent_does_so_by_the_metric() -> None:
    parent = Evidence(mean=2.0, std=0.0, n=5, num_test=9, chance=4.0, loss=1.0, error=0.01)
    parent = replace(parent, metric=BITS_PER_BYTE, fall=0.0)
    small = replace(parent, mean=1.5, loss=0.5)
    rules = [r.rule for r in judge(small, parent, margin=0.02, parent=parent, cut=[small])]
    assert rules == ["not converged"]
    worse = replace(small, mean=2.5)
    assert not judge(worse, parent, margin=0.02, parent=parent, cut=[worse])


def test_a_study_of_several_metrics_never_mixes_them(tmp_path: Path) -> None:
    runs = [*study(ACCURACY, (97.0, 60.0, 97.0, 97.1)), *bits()]
    made = report(runs, tmp_path)
    assert {(v.metric, v.margin) for v in made.verdicts} == {(ACCURACY, 0.3), (BITS_PER_BYTE, 0.02)}
    assert "as good as fine-tuning (fine-tune), by accuracy? " in made.answer
    assert "as good as fine-tuning (fine-tune), by bits per byte? " in made.answer
    assert "averaged" not in made.answer  # one cell each
    page = (tmp_path / "report.md").read_text("utf-8")
    assert "| accuracy % | n |" in page
    assert "| bits per byte | n |" in page
    assert "margin: 0.3 points (accuracy), 0.02 bits (bits per byte)" in page
    with (tmp_path / "runs.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file) if row["score"]} == {
            "accuracy",
            "bits_per_byte",
        }
    figures = {path.name for path in made.paths if path.suffix == ".png"}
    assert figures == {f"{m}-{c}.png" for m in ("accuracy", "bits-per-byte") for c in SIZES}


SIZES = ("macs", "parameters")


def test_better_stands_higher_in_a_figure_and_outliers_at_its_foot() -> None:
    figure: Any = score_figure(summarise(bits()), metric=BITS_PER_BYTE)
    ((panel,),) = score_panels(summarise(bits()), against="macs", metric=BITS_PER_BYTE)
    foot, top = panel.y
    assert foot > 2.1 > 1.9 > top
    texts = {text.get_text() for text in figure.texts}
    assert {"test bits per byte", "5.00"} <= texts  # the pruned network, below


def test_rows_of_accuracy_have_the_columns_they_had() -> None:
    frame = summarise(study(ACCURACY, (97.0, 60.0, 97.0, 97.1)))
    assert "metric" not in frame.columns
    assert summarise(bits())["metric"].tolist() == ["bits_per_byte"] * 4


def test_one_margin_does_not_hold_for_metrics_of_several_units() -> None:
    check_margin(0.3, [ACCURACY, EXAMPLE_ACCURACY])
    check_margin(None, [ACCURACY, R_SQUARED])
    told = r"accuracy and R2. Leave it out: .*, 0.3 points \(accuracy\) and 0.01 \(R2\)"
    with pytest.raises(ConfigError, match=told):
        check_margin(0.3, [ACCURACY, R_SQUARED])
    both = [*bits(), *study(ACCURACY, (97.0, 60.0, 97.0, 97.1))]
    with pytest.raises(ConfigError, match="One 'margin' of 1 cannot hold"):
        page_of(both, summarise(both), title="t", margin=1.0)
    with pytest.raises(ConfigError, match="in points of accuracy, of which there are 100"):
        check_margin(1000.0, [ACCURACY])


def test_small_scores_keep_their_digits_in_files() -> None:
    small = replace(R_SQUARED, key="mse", name="mse", better="lower", margin=1e-6)
    runs = [replace(run, score=(run.score or 0.0) * 1e-7) for run in study(small, (1, 9, 2, 3))]
    text = to_csv(summarise(runs), row_columns(runs))
    means = [float(row["mean"]) for row in csv.DictReader(text.splitlines())]
    assert means == pytest.approx([1e-7, 9e-7, 2e-7, 3e-7], rel=0.01)


def test_a_margin_that_suits_no_metric_is_refused_before_training(tmp_path: Path) -> None:
    study = {**STUDY, "margin": 1000}
    with pytest.raises(ConfigError, match="in points of accuracy"):
        run_study(study, store=tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()
