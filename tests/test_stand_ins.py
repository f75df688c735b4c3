"""Other data in the place of those that a study names."""

from pathlib import Path
from typing import Any

import pytest

from commands import Command, write_study
from regrow.errors import ConfigError
from regrow.studies.study import Study
from regrow.studies.yaml_file import pairs, replaced

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_data_are_replaced_wherever_a_study_speaks_of_them() -> None:
    study: dict[str, Any] = {
        "data": ["cifar10", {"name": "hf:old", "label": "mine", "subset": 5}],
        "methods": {"name": "guided-pruning", "from": {"data": "cifar10", "model": "cifar10"}},
        "experiments": [{"data": {"name": "cifar10", "size": 8}}, {"data": "digits"}],
        "backbone": {"data": "cifar10"},
    }
    assert replaced(study, {"cifar10": "hf:new", "mine": "folder:a=b"}) == {
        "data": ["hf:new", {"name": "folder:a=b", "label": "mine", "subset": 5}],
        "methods": {"name": "guided-pruning", "from": {"data": "hf:new", "model": "cifar10"}},
        "experiments": [{"data": {"name": "hf:new", "size": 8}}, {"data": "digits"}],
        "backbone": {"data": "hf:new"},
    }


def test_a_name_that_a_study_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data set 'cifar'\. Did you mean 'cifar10'"):
        replaced({"data": "cifar10"}, {"cifar": "hf:new"})


@pytest.mark.parametrize("given", [["a"], ["a="], ["=a"], ["a=b", "a=c"]])
def test_a_replacement_names_both_and_each_name_once(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="NAME=OTHER, each name once"):
        pairs(given)


def test_every_command_of_a_study_takes_other_data(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path, data={"name": "folder:nowhere", "label": "gone"}, seeds=1)
    assert command("plan", "study.yaml").code == 2
    given = ("study.yaml", "--data", "gone=digits")
    assert command("run", *given, "--workers", "0").code == 0
    for name in ("plan", "status", "report"):
        assert command(name, *given).code == 0
    row = ("--method", "l1-filter", "--arm", "scratch-e", "--to", "small")
    assert command("export", "study.yaml", "--replace-data", "gone=digits", *row).code == 0
    wrong = command("plan", "study.yaml", "--data", "gon=digits")
    assert (wrong.code, "study.yaml" in wrong.err, "'gone'" in wrong.err) == (2, True, True)


@pytest.mark.parametrize(
    ("example", "name", "other"),
    [("cifar10-small", "cifar10", "digits"), ("bccd", "tiny-imagenet-20", "digits")],
)
def test_examples_on_real_images_take_a_copy(example: str, name: str, other: str) -> None:
    study = Study.load(EXAMPLES / f"{example}.yaml", data={name: other})
    assert {(each.backbone or each).data.name for each in study.experiments} == {other}
