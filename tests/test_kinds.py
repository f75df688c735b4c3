"""A kind of study of one's own: registered, told apart by its task, and reported."""

from types import SimpleNamespace
from typing import Any

import pytest

from regrow.report.collect import Results, results_of
from regrow.store import Store
from regrow.studies.study import KINDS, from_json, kind_of, register_study_kind


def test_a_study_of_an_own_kind_is_read_and_its_results_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KINDS, "_values", dict(KINDS._values))
    monkeypatch.setattr(KINDS, "_origins", dict(KINDS._origins))
    found = Results(runs=(), failures=())

    def read(value: Any, name: str) -> Any:
        return SimpleNamespace(kind="paired", name=name, value=value)

    register_study_kind("paired", read=read, results=lambda study, store: found, about="Pairs")
    study = from_json({"task": "paired", "of": "two"}, name="mine")
    assert (study.kind, study.name) == ("paired", "mine")
    assert results_of(study, Store.open(tmp_path / "store")) is found
    assert kind_of({"task": "pairs"}) is None  # of the study, which says what it knows
    assert kind_of("paired") is None
