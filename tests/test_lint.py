"""Remarks of a careful reviewer: each rule meets what it is for, and is silent elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import Command, write_study
from regrow.report.run_remarks import REMEDIES, run_remarks
from regrow.report.verdict import verdicts
from regrow.studies.lint import CODES, remarks
from regrow.studies.study import Study
from test_report import make_arm, shifted

GOOD: dict[str, Any] = {
    "name": "good",
    "data": {"name": "digits", "validation": 0.2},
    "models": {"name": "vgg", "plan": [4, "M", 4]},
    "methods": [{"name": name, "macs": [0.7, 0.5]} for name in ("l1-filter", "random", "width")],
    "arms": ["unpruned", "fine-tune", "lr-rewind", "scratch-e", "scratch-b"],
    "seeds": 5,
    "margin": 2.0,
    "recipe": {"name": "cifar", "epochs": 4, "precision": "fp32"},
}
L1 = {"name": "l1-filter", "macs": [0.7, 0.5]}
ALONE = {"no-random-rival", "no-uniform-rival"}


def codes(**changes: Any) -> set[str]:
    return {remark.code for remark in remarks(Study.from_json({**GOOD, **changes}))}


def test_a_careful_study_gets_no_remark() -> None:
    assert codes() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": 1}, {"few-seeds"}),
        ({"seeds": [3, 4]}, {"few-seeds"}),
        ({"methods": [L1]}, ALONE),
        ({"methods": [*GOOD["methods"][:2]]}, {"no-uniform-rival"}),
        ({"methods": [GOOD["methods"][0], GOOD["methods"][2]]}, {"no-random-rival"}),
        ({"methods": [{**m, "macs": 0.5} for m in GOOD["methods"]]}, {"one-amount"}),
        (
            {"methods": [{"name": m["name"], "sparsity": [0.3, 0.6]} for m in GOOD["methods"]]},
            {"unequal-costs"},
        ),
        ({"arms": ["unpruned", "lr-rewind", "scratch-e"]}, {"unequal-budgets"}),
        ({"arms": ["unpruned", "fine-tune", "scratch-b"]}, {"weak-retraining"}),
        ({"arms": ["unpruned", "lr-rewind"]}, {"no-scratch"}),
        ({"arms": ["unpruned", "scratch-b"]}, {"no-fine-tune"}),
        ({"arms": ["lr-rewind", "scratch-b"]}, {"no-unpruned"}),
        ({"data": "digits"}, {"chosen-on-test"}),
        ({"margin": 0.2}, {"margin-below-resolution"}),
        ({"margin": 1.0}, {"margin-below-resolution"}),
        ({"data": {"name": "folder:nowhere", "validation": 0.1}}, {"not-checked"}),
    ],
)
def test_each_weakness_gets_its_remark_and_no_other(
    changes: dict[str, Any], expected: set[str]
) -> None:
    found = codes(**changes)
    assert found == expected
    assert found <= {*CODES}


def test_a_remark_says_where_why_and_what_to_write() -> None:
    (remark,) = remarks(Study.from_json({**GOOD, "seeds": 1}))
    assert remark.where == "digits / vgg (plan [4, 'M', 4])"
    assert "chance" in remark.reason
    assert "2103.03098" in remark.reference
    assert remark.remedy == "seeds: 5"


def test_what_two_networks_share_is_said_once() -> None:
    models = [{**GOOD["models"], "label": label} for label in ("a", "b")]
    (remark,) = remarks(Study.from_json({**GOOD, "seeds": 1, "models": models}))
    assert remark.where == "digits / a; digits / b"


def test_results_that_allow_no_conclusion_get_remarks() -> None:
    runs = [
        *make_arm("unpruned", [10.0] * 5, chance=10.0, num_test=1000),
        *make_arm("fine-tune", [97.0] * 5, chance=10.0, num_test=1000),
        *make_arm("scratch-b", shifted(0.2, noise=40), chance=10.0, num_test=1000),
    ]
    found = {remark.code: remark for remark in run_remarks(verdicts(runs))}
    assert "parent-at-chance" in found
    assert found["parent-at-chance"].where.startswith("1 cell, first digits / vgg / l1-filter 0.5")
    assert {rule.replace(" ", "-") for rule in REMEDIES} <= {*CODES}


def test_undecided_comparisons_get_a_remark() -> None:
    runs = [*make_arm("fine-tune", shifted(0.0)), *make_arm("scratch-b", shifted(0.2, noise=40))]
    (remark,) = [r for r in run_remarks(verdicts(runs)) if r.code == "undecided"]
    assert remark.where == "1 of 1 comparisons"


def test_the_command_ends_with_1_where_there_are_remarks(tmp_path: Path, command: Command) -> None:
    good = write_study(tmp_path, **GOOD)
    assert command("lint", good).code == 0
    poor = write_study(tmp_path, **{**GOOD, "seeds": 1})
    done = command("lint", poor)
    assert done.code == 1
    assert done.out.startswith("few-seeds: digits / vgg")
    assert "Write seeds: 5." in done.out
    assert command("lint", poor, "--ignore", "few-seeds").code == 0
    printed = json.loads(command("lint", poor, "--json").out)
    assert [remark["code"] for remark in printed["remarks"]] == ["few-seeds"]
    wrong = command("lint", poor, "--ignore", "few-seed")
    assert wrong.code == 2
    assert "Did you mean 'few-seeds'" in wrong.text
