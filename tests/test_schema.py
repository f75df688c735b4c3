"""The schema of study files: what the loader reads it accepts, and it is generated, not listed."""

import json
import random
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft7Validator

from changed_studies import BASES, changed_keys, changed_text, changed_values
from commands import Command
from regrow.errors import ConfigError, RegrowError
from regrow.studies.keys import KEYS
from regrow.studies.schema import schema
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided, read_value
from regrow.train import Recipe

ROOT = Path(__file__).parents[1]
# Of what the loader refuses, the share that the schema accepts: 123 of 1949 when it was written.
MOST_LOOSER = 0.12


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    made = schema()
    Draft7Validator.check_schema(made)
    return Draft7Validator(json.loads(json.dumps(made)))


def refusal(value: Any) -> str:
    """Return what the loader says of a study, nothing where it reads it."""
    try:
        Study.from_json(decided(value, lambda: "fp32"))
    except RegrowError as error:
        return str(error)
    return ""


def as_json(value: Any) -> Any:
    """Return a study as an editor sees it; a ``TypeError`` where JSON cannot hold it."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", BASES)
def test_bases_of_the_changes_are_read(
    name: str, validator: Draft7Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    value = read_value(BASES[name])
    assert refusal(value) == ""
    assert not [*validator.iter_errors(as_json(value))]


NETS = "def build(classes, depth=1):\n    raise NotImplementedError\n"


@pytest.mark.parametrize(
    "num", [120, pytest.param(3000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_the_schema_refuses_nothing_that_is_read(
    num: int, validator: Draft7Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    rng = random.Random(num)
    counts: Counter[str] = Counter()
    while sum(counts.values()) < num:
        base = rng.choice([*BASES.values()])
        change = rng.choice((changed_values, changed_keys, changed_text))
        content = change(rng, base)
        try:
            value = read_value(content.decode())
            seen = as_json(value)
        except (ConfigError, TypeError, UnicodeError):
            continue  # no YAML, or a date, or bytes: an editor says so itself
        reason, accepted = refusal(value), validator.is_valid(seen)
        assert reason or accepted, (content.decode(), [*validator.iter_errors(seen)][:3])
        counts["read" if not reason else "looser" if accepted else "refused"] += 1
    print(f"\n{dict(counts)}")
    assert counts["read"] > num / 20
    assert counts["looser"] < MOST_LOOSER * (counts["looser"] + counts["refused"])


def test_an_ignored_key_is_checked_nevertheless() -> None:
    """Else the schema would refuse what is read."""
    plain = {"data": "digits", "models": "resnet-20"}
    for changed in (
        {"methods": {"name": "l1-filter", "sparsity": 0.5, "ticket": 5}},
        {"task": "no such task", "data": {"name": "digits", "task": "classification"}},
        {
            "backbone": {**plain, "budgets": [1, 2]},
            "models": None,
            "arms": "unpruned",
            "detector": None,
        },
    ):
        study = {key: value for key, value in {**plain, **changed}.items() if value is not None}
        assert refusal(study)


@pytest.mark.parametrize(
    ("methods", "good"),
    [
        ("mask-file:m.npz", True),
        ({"name": "mask-file:m.npz"}, True),
        ({"name": "Mask_File:m.npz", "label": "mine"}, True),
        ({"name": "nn-prune:l1_unstructured", "sparsity": 0.5}, True),
        ({"name": "nn-prune:l1_unstructured"}, False),
        ({"name": "magnitude", "allocation": "nn-prune:l1_unstructured", "sparsity": 0.5}, True),
        ({"name": "other:l1_unstructured", "sparsity": 0.5}, False),
    ],
)
def test_methods_of_other_libraries_fit(
    methods: Any,
    good: bool,
    validator: Draft7Validator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    weights: Any = {"weight": np.eye(2)}
    np.savez("m.npz", **weights)
    study = {"data": "digits", "models": "resnet-20", "methods": methods}
    assert (refusal(study) == "") == good
    assert validator.is_valid(study) == good


ASKED: tuple[Any, ...] = (-1, 0, 0.5, 1, 1.5, 2, True, None, "x", [0.5], [2.0], {})


def test_every_value_of_a_number_is_bounded_as_its_owner_says(validator: Draft7Validator) -> None:
    """Of each field of a recipe and many values: refused alone by one, refused by the other."""
    for field in fields(Recipe):
        number_read = False
        surplus = []  # numbers that are refused, and fit
        for value in ASKED:
            recipe = {field.name: value, "lr": 0.1} if field.name != "lr" else {"lr": value}
            study = {"data": "digits", "models": "resnet-20", "methods": [], "recipe": recipe}
            reason = refusal(study)
            accepted = validator.is_valid(study)
            assert accepted or reason, (field.name, value)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            number_read |= number and not reason and value != field.default
            surplus += [value] if number and reason and accepted else []
        # One that needs another field beside it cannot be asked about alone.
        assert not (number_read and surplus), (field.name, surplus)


def test_all_keys_and_names_stand_in_it() -> None:
    made = schema()
    text = json.dumps(made)
    assert [*made["properties"]] == [*KEYS]
    for name in (
        *(field.name for field in fields(Recipe) if field.name != "last_epoch"),
        "resnet-56",
        "rigl",
        "2:4",
        "one-cycle",
    ):
        assert f'"{name}"' in text, name


FOLDERS = ("examples", "examples/tokens", "src/regrow/cli")
STUDIES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.name)
def test_studies_that_come_with_regrow_fit(file: Path, validator: Draft7Validator) -> None:
    value = as_json(read_value(file.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(value)] == []


def test_the_command_writes_it_and_names_the_line_for_editors(
    command: Command, tmp_path: Path, own_registries: None
) -> None:
    (tmp_path / "mine.py").write_text(
        'import regrow\nregrow.register_method("of-this-file", criterion="l1-norm")\n'
    )
    written = command("schema", "--out", "study.schema.json", "--with", "mine.py")
    assert written.code == 0
    assert "# yaml-language-server: $schema=study.schema.json" in written.out
    assert '"of-this-file"' in (tmp_path / "study.schema.json").read_text()
    failed = command("schema", "--out", "nowhere/study.schema.json")
    assert failed.code == 2
    assert "Give another --out" in failed.text
