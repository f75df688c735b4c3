"""What a report says of budgets of equal FLOPs that whole epochs do not spend."""

from dataclasses import replace

import pytest

from budget_runs import make_study
from regrow.report.answer import cautions, sentence
from regrow.report.budget_words import answers, better_to, unspent_notes
from regrow.report.budgets import curves
from regrow.report.rows import Run
from regrow.report.verdict import verdicts


def lasting(run: Run, epochs: float, **changes: object) -> Run:
    """Return a run with other epochs, and FLOPs in proportion."""
    assert run.arm_flops
    assert run.epochs
    arm_flops = run.arm_flops / run.epochs * epochs
    return replace(run, **{"epochs": epochs, "arm_flops": arm_flops, **changes})  # type: ignore[arg-type]


def runs(epochs: float, **changes: object) -> list[Run]:
    """Make runs of one length, whose scratch-b trains so long."""
    study = make_study({5: [0.0, 0.0]}, arms=("scratch-e", "scratch-b"))
    alone = [replace(run, training_budget=None) for run in study]
    return [lasting(run, epochs, **changes) if run.arm == "scratch-b" else run for run in alone]


def test_flops_that_whole_epochs_leave_are_said() -> None:
    (note,) = unspent_notes(runs(9))
    assert note.startswith("Equal FLOPs: arms train for whole epochs")
    assert "scratch-b 90 %" in note
    assert "scratch-e" not in note


def test_what_is_spent_or_capped_is_not_said() -> None:
    assert not [*unspent_notes(runs(10))]
    assert not [*unspent_notes(runs(9, capped=True))]
    assert not [*unspent_notes(runs(9, entered=1))]


def test_what_a_teacher_computes_is_spent() -> None:
    """Its forward pass counts in the budget, and so do norms, which are dense under a mask."""
    whole = next(run for run in runs(10) if run.unpruned).arm_flops
    assert not [*unspent_notes(runs(6, arm_flops=whole))]


def test_examples_that_a_users_function_leaves_out_are_not_blamed_on_rounding() -> None:
    for share, notes in ((1.0, 0), (0.9, 1)):
        found = [
            replace(run, pace=900.0, arm_flops=(run.arm_flops or 0.0) * 0.9)
            if run.arm == "scratch-b"
            else replace(run, pace=1000.0)
            for run in runs(10 * share)
        ]
        assert len([*unspent_notes(found)]) == notes


LEADS = {2: [3.0, 3.2, 3.1], 4: [0.1, -0.1, 0.0], 8: [0.1, -0.1, 0.0]}


def with_epochs(epochs: float, *, at: int = 2) -> list[Run]:
    return [
        lasting(r, epochs) if (r.arm, r.training_budget) == ("scratch-b", at) else r
        for r in make_study(LEADS, arms=("rewind", "scratch-b"))
    ]


def test_a_lead_against_less_than_equal_flops_is_said_in_the_answer() -> None:
    (curve,) = curves(with_epochs(3))
    (trend,) = curve.trends
    assert trend.better_to == 2
    (answer, *_) = answers([curve])
    assert "rewind is better up to 2 epochs" in answer.text
    assert "But rounding left a part of the equal FLOPs unused (scratch-b 75 % at 2 epochs)" in (
        answer.text
    )
    assert better_to(trend) == "2 (unequal FLOPs)"
    several = [curve, replace(curve, method="random")]
    (answer, *_) = answers(several)
    assert "rewind is better up to 2 epochs in digits / vgg / l1-filter 0.5; and 1 more. But" in (
        answer.text
    )


@pytest.mark.parametrize(("epochs", "at"), [(4, 2), (3.97, 2), (6, 4)])
def test_a_lead_at_equal_flops_stays_one(epochs: float, at: int) -> None:
    (curve,) = curves(with_epochs(epochs, at=at))
    assert better_to(curve.trends[0]) == "2"
    assert "unspent" not in next(answers([curve])).text


def test_cells_whose_equal_flops_are_not_spent_are_counted_and_say_so() -> None:
    found = verdicts(with_epochs(3))
    assert (
        "Caution in 1 of 3 cells: rounding left a clear part of the equal FLOPs unused (digits / "
        "vgg / 2 epochs / l1-filter 0.5: scratch-b 75 %)."
    ) in [*cautions(found)]
    said = {text for verdict in found if "unused" in (text := sentence(verdict))}
    assert all("2 epochs" in text and text.endswith("(scratch-b 75 %).") for text in said)
    assert len(said) == 1
    assert not any("unspent" in text for text in cautions(verdicts(with_epochs(3.97))))


def test_what_is_rounded_to_updates_is_said_so() -> None:
    (note,) = unspent_notes(runs(9.4))
    assert note.startswith("Equal FLOPs: arms train for whole updates")
