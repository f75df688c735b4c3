"""What ``precision: auto`` stands for: decided once for a store, and kept."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import Command
from regrow.errors import ConfigError, StoreError
from regrow.run import precision as room
from regrow.run.precision import (
    Decision,
    PrecisionChoice,
    PrecisionSpeed,
    decide,
    measured,
    slow_bf16,
)
from regrow.store import Store
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided
from regrow.train import Precision, Recipe

STUDY = {
    "name": "auto",
    "data": {"name": "digits", "subset": 20, "test_subset": 20},
    "models": {"name": "vgg", "plan": [4, "M", 4]},
    "arms": ["unpruned"],
    "seeds": 1,
    "recipe": {"epochs": 1, "batch": 10},
}


def _here(precision: Precision) -> Callable[[str], Decision]:
    def decision(device: str = "cpu") -> Decision:
        return Decision(precision=precision, why="measured", machine="here", date="2026-11-26")

    return decision


def _same(precision: Precision) -> Precision:
    return precision


def _study(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}))
    return file


@pytest.mark.parametrize(
    "recipe", [None, "cifar", {"epochs": 2}, {"epochs": 2, "precision": "auto"}]
)
def test_recipe_that_leaves_it_open_takes_what_was_decided(recipe: Any) -> None:
    value = {"models": "resnet-20"} | ({"recipe": recipe} if recipe else {})
    found = {p: decided(value, partial(_same, p))["recipe"] for p in ("fp32", "bf16")}
    for precision, one in found.items():
        assert Recipe.from_json(one).precision == precision
    plain = {k: v for k, v in found["fp32"].items() if k != "precision"}
    # fp32 is left out of keys, so studies that said nothing keep theirs where it is decided.
    assert Recipe.from_json(found["fp32"]).to_json() == Recipe.from_json(plain).to_json()


def test_recipe_that_says_it_is_left_alone_and_nothing_is_asked() -> None:
    def never() -> Precision:
        raise AssertionError("decided for nobody")

    value = {"recipe": {"precision": "bf16"}, "models": "resnet-20"}
    assert decided(value, never) == value


def test_every_recipe_of_a_study_is_decided() -> None:
    value = {
        "experiments": [
            {
                "recipe": "cifar",
                "methods": [{"name": "guided-pruning", "from": {"recipe": "cifar"}}],
            }
        ],
        "backbone": {"models": "imagenet-resnet-34"},
    }
    found = decided(value, lambda: "bf16")
    (one,) = found["experiments"]
    recipes = [one["recipe"], one["methods"][0]["from"]["recipe"], found["recipe"]]
    recipes.append(found["backbone"]["recipe"])
    assert [recipe["precision"] for recipe in recipes] == ["bf16"] * 4


def test_keys_of_a_file_are_those_of_what_was_decided(tmp_path: Path) -> None:
    file = _study(tmp_path)
    for precision in ("fp32", "bf16"):
        said = {**STUDY, "recipe": {"epochs": 1, "batch": 10, "precision": precision}}
        (open_job,) = Study.load(file, partial(_same, precision)).jobs()
        (job,) = Study.from_json(said).jobs()
        assert open_job.key == job.key


def test_python_is_told_to_say_it() -> None:
    with pytest.raises(ConfigError, match=r"'auto' is decided for a store.*Give 'fp32' or 'bf16'"):
        Recipe(precision="auto")  # type: ignore[arg-type]


def test_store_keeps_what_was_decided_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = Command(monkeypatch, capsys)
    _study(tmp_path)
    monkeypatch.setattr(room, "decide", _here("bf16"))
    assert command("run", "study.yaml", "--workers", "0").code == 0
    kept = json.loads((tmp_path / "regrow-store" / "precision.json").read_text())
    assert "bf16" in json.dumps(kept)
    assert "measured" in json.dumps(kept)
    page = (tmp_path / "regrow-report" / "auto" / "report.md").read_text()
    assert "- precision: bf16, which 'auto' became on 2026-11-26: measured (here)" in page
    # Another machine finds the same jobs.
    monkeypatch.setattr(room, "decide", _here("fp32"))
    again = json.loads(command("run", "study.yaml", "--workers", "0", "--json").out)
    assert (again["jobs"]["done"], again["jobs"]["reused"]) == (0, 1)
    shown = json.loads(command("status", "study.yaml", "--json").out)
    assert shown["counts"]["done"] == 1


def test_store_with_results_from_before_keeps_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "decide", _here("bf16"))
    store = Store.open(tmp_path / "store")
    assert PrecisionChoice(store)().precision == "bf16"
    monkeypatch.setattr(Store, "keys", lambda self: ("0" * 64,))
    assert PrecisionChoice(store)().precision == "fp32"


def test_of_two_decisions_at_once_the_first_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store")
    choices = []
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(room, "decide", _here(precision))
        choices.append(PrecisionChoice(store))
        choices[-1]()
    choices[0].keep(store)
    with pytest.raises(StoreError, match=r"'auto' is fp32 in this store. Run the same"):
        choices[1].keep(store)
    assert PrecisionChoice(store)().precision == "fp32"
    assert not [path for path in store.root.iterdir() if path.name.endswith(".new")]


def test_damaged_decision_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    (store.root / "precision.json").write_text("{}")
    with pytest.raises(StoreError, match=r"precision\.json: it has no digest.*Remove it"):
        PrecisionChoice(store)()


@pytest.mark.parametrize(
    ("native", "speed", "precision"),
    [
        (True, PrecisionSpeed(0.1, 0.04), "bf16"),
        (True, PrecisionSpeed(0.1, 0.095), "fp32"),
        (False, PrecisionSpeed(0.1, 0.04), "fp32"),
    ],
    ids=["pays", "native-but-no-faster", "not-native"],
)
def test_bf16_must_be_native_and_pay(
    monkeypatch: pytest.MonkeyPatch, native: bool, speed: PrecisionSpeed, precision: str
) -> None:
    monkeypatch.setattr(room, "is_native", lambda: native)
    monkeypatch.setattr(room, "measured", lambda: speed)
    assert decide.__wrapped__("cpu").precision == precision


def test_measurement_is_short_and_finds_times() -> None:
    speed = measured()
    assert speed.fp32 > 0
    assert speed.bf16 > 0


def test_bf16_on_a_processor_without_it_is_warned_of_with_both_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "measured", lambda: PrecisionSpeed(0.02, 1.2))
    jobs = {
        p: Study.from_json({**STUDY, "recipe": {"epochs": 1, "precision": p}}).jobs()
        for p in ("fp32", "bf16")
    }
    monkeypatch.setattr(room, "is_native", lambda: False)
    warning = slow_bf16(jobs["bf16"])
    assert warning is not None
    assert "took 20 ms in fp32 and 1.2e+03 ms in bf16, 60 times as long" in warning
    assert slow_bf16(jobs["fp32"]) is None
    monkeypatch.setattr(room, "is_native", lambda: True)
    assert slow_bf16(jobs["bf16"]) is None
