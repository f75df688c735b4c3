"""What a report says of budgets of equal FLOPs that whole epochs do not spend."""

from dataclasses import replace

from budget_runs import make_study
from regrow.report.budget_words import unspent_notes
from regrow.report.rows import Run


def runs(epochs: int, **changes: object) -> list[Run]:
    """Make runs of one length, whose scratch-b trains so long."""
    study = make_study({5: [0.0, 0.0]}, arms=("scratch-e", "scratch-b"))
    alone = [replace(run, training_budget=None) for run in study]
    return [replace(r, epochs=epochs, **changes) if r.arm == "scratch-b" else r for r in alone]  # type: ignore[arg-type]


def test_flops_that_whole_epochs_leave_are_said() -> None:
    (note,) = unspent_notes(runs(9))
    assert note.startswith("Equal FLOPs: whole epochs are trained")
    assert "scratch-b 90 %" in note
    assert "scratch-e" not in note


def test_what_is_spent_or_capped_is_not_said() -> None:
    assert not [*unspent_notes(runs(10))]
    assert not [*unspent_notes(runs(9, capped=True))]
