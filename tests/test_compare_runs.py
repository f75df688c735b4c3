"""Comparing two stores, reports or records."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from commands import Command
from regrow.report import write
from regrow.report.differences import Item, _nearest
from regrow.store import Store
from test_report import HOW, make_arm

TRAIN = {"kind": "train", "inputs": [], "accuracy": 0.9, "parameters": 100}


def make_store(root: Path, *, epochs: int, accuracy: float, torch: str = "torch 2") -> list[str]:
    """Write two trainings and a retraining on one of them, whose keys follow from their epochs."""
    store, keys = Store.open(root, create=True), []
    for seed in range(2):
        keys.append(f"aa{epochs}{seed}")
        spec = {"seed": seed, "recipe": {"epochs": epochs, "milestones": [0.5, 0.75]}}
        timing = {"seconds": 1.0, "machine": "a processor", "versions": torch}
        store.commit(keys[-1], {**TRAIN, "spec": spec, "timing": timing})
    spec = {"seed": 0, "arm": {"start": "random"}}
    found = {"kind": "retrain", "inputs": keys[:1], "accuracy": accuracy, "widths": {"conv": 3}}
    store.commit(f"bb{epochs}", {**found, "spec": spec, "timing": {"seconds": 1.0}})
    return [*keys, f"bb{epochs}"]


def test_stores_of_unlike_settings_are_paired_and_their_settings_named(
    tmp_path: Path, command: Command
) -> None:
    make_store(tmp_path / "a", epochs=1, accuracy=0.5)
    make_store(tmp_path / "b", epochs=2, accuracy=0.75, torch="torch 3")
    shown = command("compare-runs", tmp_path / "a", tmp_path / "b", "--json")
    found = json.loads(shown.out)
    assert (shown.code, found["asked_alike"], found["asked_otherwise"]) == (0, 0, 3)
    assert found["settings"] == [
        {"name": "train.recipe.epochs", "a": 1, "b": 2, "difference": 1, "in": 3}
    ]
    assert [(c["name"], c["difference"]) for c in found["effects"]] == [("accuracy", 0.25)]
    assert found["made"] == [{"name": "versions", "a": "torch 2", "b": "torch 3", "in": 1}]
    assert not found["only_in_a"]
    text = command("compare-runs", tmp_path / "a", tmp_path / "b").out
    assert "train.recipe.epochs: 1 | 2 (in 3)" in text
    assert "accuracy: 0.5 | 0.75 (+0.25)" in text


def test_the_same_request_with_another_number_is_told_apart(
    tmp_path: Path, command: Command
) -> None:
    make_store(tmp_path / "a", epochs=1, accuracy=0.5)
    make_store(tmp_path / "b", epochs=1, accuracy=0.25)
    found = json.loads(command("compare-runs", tmp_path / "a", tmp_path / "b", "--json").out)
    assert (found["asked_alike"], found["settings"], found["effects"]) == (3, [], [])
    assert [c["name"] for c in found["numbers"]] == ["accuracy"]
    text = command("compare-runs", tmp_path / "a", tmp_path / "b").out
    assert "The same machine and versions: a processor; torch 2." in text


def test_records_are_compared_by_key_and_by_file(tmp_path: Path, command: Command) -> None:
    store = tmp_path / "a"
    first, second, _ = make_store(store, epochs=1, accuracy=0.5)
    by_key = command("compare-runs", first, second, "--store", store, "--json")
    files = [store / "records" / key[:2] / key / "record.json" for key in (first, second)]
    by_file = command("compare-runs", *files, "--json")
    for shown in (by_key, by_file):
        assert json.loads(shown.out)["settings"] == [
            {"name": "train.seed", "a": 0, "b": 1, "difference": 1, "in": 1}
        ]


def test_reports_show_scores_verdicts_and_what_one_of_them_lacks(
    tmp_path: Path, command: Command
) -> None:
    arms: dict[str, Any] = {"a": [97.0, 97.1, 97.2], "b": [91.0, 91.1, 91.3]}
    for name, scores in arms.items():
        runs = [*make_arm("fine-tune", [97.0, 97.1, 97.2]), *make_arm("scratch-e", scores)]
        runs += make_arm("pruned", [50.0]) if name == "a" else []
        write(runs, tmp_path / name, **HOW, draw=False)
    found = json.loads(command("compare-runs", tmp_path / "a", tmp_path / "b", "--json").out)
    assert [c["difference"] for c in found["numbers"]] == pytest.approx([-6, -6, -5.9])
    assert len(found["only_in_a"]) == 1
    assert found["only_in_b"] == []
    assert "worse" in {c["b"] for c in found["verdicts"]}
    assert command("compare-runs", tmp_path / "a", tmp_path / "b").code == 0


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ("nowhere", "store", "There is no 'nowhere', and no store"),
        (".", "store", "neither a store nor a report"),
        ("store", "report", "two of the same kind"),
        ("bad", "report", "has no column 'data'"),
        ("", "store", "neither a store nor a report"),
    ],
)
def test_what_cannot_be_compared_is_one_message(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, a: str, b: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store", epochs=1, accuracy=0.5)
    write(make_arm("fine-tune", [97.0]), tmp_path / "report", **HOW, draw=False)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "runs.csv").write_text("x,y\n1,2\n")
    shown = command("compare-runs", a, b)
    assert shown.code == 2
    assert word in shown.text
    assert shown.err.count("\n") == 1


def test_the_most_similar_requests_of_a_kind_are_paired_first() -> None:
    rng = random.Random(3)

    def items(num: int) -> list[Item]:
        settings = [{n: rng.randint(0, 2) for n in "abcd"} for _ in range(num)]
        kinds = rng.choices(["train 0", "train 1", "prune 0"], k=num)
        return [
            Item(label=str(i), kind=kind, settings=own, numbers={})
            for i, (kind, own) in enumerate(zip(kinds, settings, strict=True))
        ]

    for _ in range(50):
        a, b = items(rng.randint(0, 9)), items(rng.randint(0, 9))
        distances = sorted(
            (sum(2 * (x.settings[n] != y.settings[n]) for n in "abcd"), i, j)
            for i, x in enumerate(a)
            for j, y in enumerate(b)
            if x.kind == y.kind
        )
        expected: list[tuple[Item, Item]] = []
        for _, i, j in distances:
            if not any(x is a[i] or y is b[j] for x, y in expected):
                expected.append((a[i], b[j]))
        assert [*_nearest(a, b)] == expected
