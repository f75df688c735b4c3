"""What a run by a function of one's own says meanwhile, and what the function may tell and fail."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import regrow
from commands import Command, write_study
from regrow.comparison import ComparisonResult
from regrow.report.verdict import Verdict
from regrow.run.display import display
from regrow.run.events import JobProgress, JobStarted, RunProgress
from regrow.train.by_epoch import read_history, split
from regrow.train.function import Allowance, TrainFunction
from test_compare import HEAD, here, runs_in, write  # noqa: F401  # `here` is used by all


def rounded(report: Path, arm: str, seeds: tuple[int, ...]) -> str:
    runs = runs_in(report)
    return f"{sum(float(runs[arm, seed]['accuracy']) for seed in seeds) / len(seeds):.2f}"


def test_after_each_seed_but_the_last_the_means_so_far_are_told(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.cli.run.loaded_files", tuple)  # those of other tests
    write(tmp_path, seeds=[4, 2, 9])
    told = command("run", "study.yaml", "--workers", "0", "--out", "here", "--store", "other").err
    lines = [line for line in told.splitlines() if "complete;" in line]
    arms = ("unpruned", "pruned", "fine-tune", "scratch-e", "scratch-b")
    for line, seeds in zip(lines, [(4,), (4, 2)], strict=True):
        means = ", ".join(f"{arm} {rounded(tmp_path / 'here', arm, seeds)}" for arm in arms)
        many = "1 of 3 seeds is" if len(seeds) == 1 else "2 of 3 seeds are"
        mean = "" if len(seeds) == 1 else "mean "
        assert line == (
            f"{many} complete; {mean}test accuracy (%): {means}. To see more in another terminal: "
            "regrow report study.yaml --store other --out here"
        )
    again = command("run", "study.yaml", "--workers", "0", "--store", "other")
    assert "complete;" not in again.err


def test_of_several_cells_a_finished_seed_is_told_without_means(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.cli.run.loaded_files", tuple)  # those of other tests
    write_study(tmp_path)
    told = command("run", "study.yaml", "--workers", "0").err
    assert [line for line in told.splitlines() if "seeds is complete" in line] == [
        "1 of 2 seeds is complete. To see more in another terminal: regrow report study.yaml"
    ]


# --- what each epoch was like --------------------------------------------------------------------


def told(losses: str, rates: str = "[0.2] * budget.epochs") -> str:
    """Write a training function that tells losses, and rates."""
    return (
        "from data import measured, steps\n\n\ndef train(model, budget, seed):\n"
        "    steps(model, 2 * budget.epochs)\n"
        "    small = model[0].out_features < 12\n"
        f"    return {{'accuracy': measured(model)['accuracy'], 'training_loss': {losses},\n"
        f"            'learning_rate': {rates}}}\n"
    )


def compared(**options: Any) -> ComparisonResult:
    chosen = {"amounts": {"sparsity": 0.5}, "budget": 4, "seeds": 2} | options
    metric = {"name": "accuracy", "num_test": 32, "chance": 0.1}
    network = {"network": "nets.py:mlp", "input": "1x4"}
    found: ComparisonResult = regrow.compare(
        **{"network": network, "train": "mine.py:train", "metric": metric, "workers": 0} | chosen,
    )
    return found


def reasons(verdicts: tuple[Verdict, ...]) -> set[str]:
    return {
        reason.rule
        for verdict in verdicts
        for reason in verdict.reasons
        if "converge" in reason.rule
    }


@pytest.mark.parametrize(
    ("losses", "rates", "rules", "noted"),
    [
        ("[1.0, 0.4, 0.4, 0.4]", "[0.2] * 4", set(), False),
        ("[1.0, 0.9, 0.8, 0.7]", "[0.2] * 4", {"convergence unknown"}, False),
        ("[1.0, 0.4, 0.4, 0.4]", "[0.4, 0.3, 0.2, 0.1]", {"convergence unknown"}, False),
        ("[1.0, 0.4, 0.4, 0.4]", "None", {"convergence unknown"}, False),
        ("None", "[0.2] * 4", set(), True),
    ],
    ids=["flat", "falling", "rate falls", "no rates", "no losses"],
)
def test_convergence_is_judged_by_the_training_loss_that_is_told(
    tmp_path: Path, losses: str, rates: str, rules: set[str], noted: bool
) -> None:
    losses, rates = (f"({values} or [])[:budget.epochs] or None" for values in (losses, rates))
    (tmp_path / "mine.py").write_text(told(losses, rates))
    found = compared(arms=["unpruned", "fine-tune", "scratch-e"])
    assert not found.failures
    assert reasons(found.verdicts) == rules
    notes = " ".join(found.notes)
    assert ("Whether the unpruned network had converged is not known" in notes) == noted
    if noted:
        assert "returns no 'training_loss'" in notes


def test_a_smaller_network_with_a_lower_loss_and_a_better_score_shows_that_training_was_short(
    tmp_path: Path,
) -> None:
    text = told("[0.1 if small else 0.9] * budget.epochs", "None")
    (tmp_path / "mine.py").write_text(
        text.replace("measured(model)['accuracy']", "0.9 if small else 0.2")
    )
    found = compared(arms=["unpruned", "scratch-e", "scratch-b"])
    assert reasons(found.verdicts) == {"not converged"}
    assert "at a training loss of 0.1 below its own of 0.9" in str(found.verdicts)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("float('nan')", "a list with one number for each of the 4 epochs, none below 0. Got nan."),
        ("'falling'", "Got 'falling'."),
        ("[1.0, float('nan'), 1.0, 1.0]", "Got nan for epoch 2."),
        ("[1.0, 'low', 1.0, 1.0]", "Got 'low' for epoch 2."),
        ("[]", "Got 0 numbers."),
        ("[1.0, 1.0, -0.5, 1.0]", "Got -0.5 for epoch 3."),
        ("[1.0] * 3", "Got 3 numbers."),
        ("{1: 2.0}", "Got {1: 2.0}."),
    ],
)
def test_a_training_loss_that_cannot_be_used_costs_no_score(
    tmp_path: Path, command: Command, losses: str, message: str
) -> None:
    (tmp_path / "mine.py").write_text(told(losses))
    write(tmp_path, budget={"epochs": 4}, arms=["unpruned", "scratch-e"], seeds=1)
    done = command("run", "study.yaml", "--workers", "0")
    assert done.code == 0
    place = f"{tmp_path / 'mine.py'}, line 4: mine.py:train returned a 'training_loss' that cannot"
    assert done.err.count(place) == 2  # a warning for each training, none for a measurement
    assert message in done.err
    assert "Its score counts; its convergence is not known." in done.err
    assert f"{message} It is left out." in done.text


def test_arrays_and_tensors_are_lists_and_single_numbers_are_metrics() -> None:
    for values in (
        [2.0, 1.0],
        np.array([2.0, 1.0]),
        torch.tensor([2.0, 1.0]),
        (torch.tensor(2), 1),
    ):
        history, wrong = read_history({"training_loss": values}, 2, unit="epochs")
        assert ([line["loss"] for line in history], wrong) == ([2.0, 1.0], "")
    assert split({"training_loss": 0.5, "accuracy": 1}) == (
        {},
        {"training_loss": 0.5, "accuracy": 1},
    )
    assert read_history({"training_loss": [3.0, 2.0, 1.0]}, 150, unit="steps") == (
        ({"loss": 1.0},),
        "",
    )
    assert read_history({"training_loss": []}, 0, unit="epochs") == ((), "")


def test_learning_rates_that_are_told_are_compared(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(told("[1.0] * budget.epochs"))
    notes = " ".join(compared().notes)
    assert (
        "The highest learning rates were fine-tune 0.2, scratch-e 0.2 and scratch-b 0.2." in notes
    )
    lower = "[0.1 if budget.inherited else 0.2] * budget.epochs"
    (tmp_path / "mine.py").write_text(told("[1.0] * budget.epochs", lower))
    found = compared()
    assert "learning rate" not in " ".join(found.notes)
    assert "fine-tune (learning rate 0.1; " in found.answer
    assert "scratch-e (learning rate 0.2; " in found.answer


# --- scores that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "None"])
def test_a_score_that_is_no_number_stops_the_others_when_it_repeats(
    tmp_path: Path, value: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "from data import steps\n\n\ndef train(model, budget, seed):\n"
        "    with open('calls.txt', 'a') as file:\n        print(budget.epochs, file=file)\n"
        "    steps(model, budget.epochs)\n"
        f"    return {{'accuracy': {value} if budget.epochs else 0.5}}\n"
    )
    found = compared(arms=["unpruned", "pruned", "fine-tune", "scratch-e"], seeds=3)
    assert len((tmp_path / "calls.txt").read_text().split()) == 2
    first, *_ = found.answer.splitlines()
    assert re.match(
        r"Failed: mlp unpruned seed 0: .*mine\.py, line 4: mine\.py:train (returned|must return)",
        first,
    )
    assert value.removeprefix("float('").removesuffix("')") in first
    assert "The same failure: mlp unpruned seed 1." in first
    assert (
        "Missing: unpruned (seeds 0, 1 and 2), pruned (seeds 0, 1 and 2), fine-tune (seeds 0, 1 "
        "and 2) and scratch-e (seeds 0, 1 and 2)."
    ) in found.answer


def test_what_runs_once_for_all_seeds_is_not_missing_for_each_of_them(tmp_path: Path) -> None:
    torch.save(regrow.ModelOrigin("nets.py:mlp").build().state_dict(), "weights.pt")
    (tmp_path / "mine.py").write_text(
        HEAD + "return 0.5 if model[0].out_features == 12 else float('nan')\n"
    )
    found = compared(
        network={"network": "nets.py:mlp", "input": "1x4", "weights": "weights.pt"},
        arms=["unpruned", "pruned", "fine-tune"],
        seeds=3,
        out="here",
    )
    assert "Missing: pruned and fine-tune (seeds 0, 1 and 2)." in found.answer
    assert "Of 5 results, 1 finished, 2 failed and 2 did not run" in str(found)


def test_a_training_that_diverges_stops_no_other_once_one_succeeded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        HEAD + "steps(model, budget.epochs)\n"
        "    return float('nan') if budget.epochs == 1 else measured(model)['accuracy']\n"
    )
    found = compared(arms=["unpruned", "fine-tune", "scratch-e"], seeds=3)
    assert len(found.failures) == 3
    assert "Missing: fine-tune (seeds 0, 1 and 2). The same call computes them" in found.answer
    assert all(run.done for run in found.runs if run.arm != "fine-tune")


# --- how far a training is -----------------------------------------------------------------------

EQUAL = HEAD + "[steps(model, 3) for _ in range(budget.epochs)]; return 0.5"


def test_how_far_equal_batches_are_shows_once_an_earlier_training_has_ended(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EQUAL)
    function = TrainFunction.read("mine.py:train")
    shares: list[float] = []
    for amount in (2, 3):
        shares.clear()
        function(
            torch.nn.Sequential(torch.nn.Linear(4, 3)),
            Allowance(amount=amount, unit="epochs", whole=8, flops_per_sample=1.0),
            0,
            on_pass=lambda share, samples: shares.append(share),
        )
        if amount == 2:
            assert shares == [0.0] * 6
    assert shares == pytest.approx([(step + 1) / 9 if step < 8 else 0.99 for step in range(9)])


def test_examples_are_told_in_place_of_a_share_that_is_not_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.run.display.SUMMARY_SECONDS", (0.0,))
    common: dict[str, Any] = {"key": "k", "label": "mine"}
    run: dict[str, Any] = dict.fromkeys(RunProgress.__dataclass_fields__, 0) | {
        "jobs_total": 2,
        "eta_seconds": None,
    }
    with display() as show:
        show(RunProgress(**run))
        show(JobStarted(**common, kind="train"))
        progress: dict[str, Any] = {
            "seconds": 1.0,
            "eta_seconds": None,
            "note": "96 examples so far",
        }
        for fraction in (0.0, 0.25):
            show(JobProgress(**common, fraction=fraction, **progress))
            show(RunProgress(**run))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("running: ")[2] for line in lines[1:]] == [
        "mine (96 examples so far)",
        "mine (25%)",
    ]
