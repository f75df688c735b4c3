"""Tests of the jobs that `status` finds again without PyTorch."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regrow.core.digests import sealed
from regrow.store import Store
from regrow.studies import job_list
from regrow.studies.job_list import Planned, plans, recall, remember

PLANNED = Planned(name="n", title="t", labels={"k": "label"}, specs={"k": {"seed": 0}})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Write a study of images in a folder."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    file = tmp_path / "study.yaml"
    file.write_text(f"data: 'folder:{tmp_path}/images'\nmodels: resnet-20\n")
    return file


def test_what_was_remembered_of_a_study_is_recalled(tmp_path: Path, study: Path) -> None:
    store = Store.open(tmp_path / "store")
    assert recall(store, study) is None
    remember(store, study, PLANNED)
    assert recall(store, study) == PLANNED


def test_nothing_is_recalled_after_another_version_of_an_extension_was_installed(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(version: str) -> None:
        point = SimpleNamespace(name="mine", value="mine", dist=SimpleNamespace(version=version))
        monkeypatch.setattr(job_list, "entry_points", lambda group: [point])

    store = Store.open(tmp_path / "store")
    install("1.0")
    remember(store, study, PLANNED)
    assert recall(store, study) == PLANNED
    install("1.1")
    assert recall(store, study) is None


def test_nothing_is_recalled_of_a_study_or_of_data_that_changed(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    remember(store, study, PLANNED)
    image = tmp_path / "images" / "a.png"
    os.utime(image, (1, 1))
    assert recall(store, study) is None
    remember(store, study, PLANNED)
    study.write_text(study.read_text() + "seeds: 3\n")
    assert recall(store, study) is None
    remember(store, study, PLANNED)
    monkeypatch.setenv("REGROW_DATA", str(tmp_path))
    assert recall(store, study) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"k": 1}},
        {"labels": ["k"]},
        {"specs": {"k": "text"}},
        {"title": None},
        {"more": 1},
    ],
)
def test_a_plan_of_another_shape_is_not_recalled(
    tmp_path: Path, study: Path, changes: dict[str, Any]
) -> None:
    store = Store.open(tmp_path / "store")
    remember(store, study, PLANNED)
    (file,) = store.root.glob("plan-*.json")
    file.write_text(sealed(vars(PLANNED) | changes, file.stem))
    assert recall(store, study) is None
    assert plans(store) == []


def test_an_altered_plan_is_not_recalled(tmp_path: Path, study: Path) -> None:
    store = Store.open(tmp_path / "store")
    remember(store, study, PLANNED)
    (file,) = store.root.glob("plan-*.json")
    file.write_text(file.read_text().replace("label", "other"))
    assert recall(store, study) is None
