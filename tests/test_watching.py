"""Watching a study and taking its results into pandas."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import regrow
from commands import STUDY, Command, write_study
from regrow.cli import plan


@pytest.fixture
def study(tmp_path: Path, command: Command) -> Path:
    """Write the tiny study of one seed and one method, and run it."""
    file = write_study(tmp_path, methods=STUDY["methods"][0], seeds=1)
    assert command("run", file, "--workers", "0", "--store", tmp_path / "store").code == 0
    return file


def test_results_are_frames_and_epochs_are_rows(study: Path, command: Command) -> None:
    store = study.parent / "store"
    frame = regrow.results(store, study)
    assert frame["arm"].tolist() == ["unpruned", "pruned", "fine-tune", "scratch-e"]
    assert frame["accuracy"].between(0, 100).all()
    records = regrow.results(store)
    assert set(frame["key"]) < set(records["key"])
    assert {"kind", "accuracy", "seconds"} <= {*records.columns}
    assert regrow.epochs(store, study)["arm"].tolist() == ["unpruned", "fine-tune", "scratch-e"]
    out = study.parent / "out"
    assert command("report", study, "--store", store, "--out", out, "--epochs").code == 0
    written = pd.read_csv(out / "epochs.csv")
    assert written["loss"].tolist() == regrow.epochs(store, study)["loss"].tolist()
    shown = command("status", study, "--store", store, "--watch")
    assert shown.out.splitlines() == ["tiny: 5 of 5 jobs done."]


def test_a_study_is_watched_until_it_is_done(
    study: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = study.parent / "store"
    other = write_study(study.parent, file="other.yaml", methods=STUDY["methods"][0], seeds=2)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        assert command("run", other, "--workers", "0", "--store", store).code == 0

    # Not in ``time`` itself: the run has threads that sleep.
    monkeypatch.setattr(plan, "time", SimpleNamespace(sleep=wait))
    shown = command("status", other, "--store", store, "--watch")
    assert waits == [plan.WATCH_SECONDS]
    assert shown.code == 0
