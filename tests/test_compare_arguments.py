"""Arguments of ``regrow.compare``: what they may be, and how others are refused."""

import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import regrow
from commands import Command
from regrow import comparison
from regrow.comparison import ComparisonResult
from regrow.errors import ConfigError

NETS = """
from torch import nn

def mlp(width: int = 8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def MobileNet():
    layers = [nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
TRAIN = """
def train(model, budget, seed):
    for parameter in model.parameters() if budget.amount else ():
        parameter.data += 0.01
    return {"accuracy": 0.5}
"""
RIGHT: dict[str, Any] = {"metric": "accuracy", "budget": 2, "amounts": {"macs": 0.5}, "seeds": 1}
NETWORK = {"network": "nets.py:mlp", "input": "1x4"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with networks and a training function that takes no time."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "my_train.py").write_text(TRAIN)
    return tmp_path


def compared(**options: Any) -> ComparisonResult:
    """Compare with the right arguments and the given ones, without those that are Ellipsis."""
    wanted = {name: value for name, value in {**RIGHT, **options}.items() if value is not ...}
    found: ComparisonResult = regrow.compare(NETWORK, "my_train.py:train", workers=0, **wanted)
    return found


def test_the_example_of_the_module_runs() -> None:
    assert comparison.__doc__ is not None
    (example,) = re.findall(r"\n\n((?: {4}.*\n)+)", comparison.__doc__)
    names: dict[str, Any] = {"compare": partial(regrow.compare, workers=0)}
    exec(textwrap.dedent(example), names)
    assert names["found"].summary.complete


def script(train: str, *, code: str = "") -> str:
    """Return the text of a script that compares without a guard around its call."""
    return f"{code}\nimport regrow\nprint(regrow.compare({NETWORK}, '{train}', **{RIGHT}).answer)\n"


def test_a_script_that_holds_the_functions_is_told_to_guard_its_call(here: Path) -> None:
    (here / "script.py").write_text(script("script.py:train", code=TRAIN))
    words = f"{here / 'script.py'} is imported for .* calls regrow.compare .* `if __name__"
    with pytest.raises(ConfigError, match=words):
        regrow.compare(NETWORK, "script.py:train", **RIGHT)
    (here / "study.py").write_text("import regrow\nregrow.run_study('study.yaml')")
    with pytest.raises(ConfigError, match=r"calls regrow\.run_study while it is imported"):
        regrow.compare(NETWORK, "study.py:train", **RIGHT)


@pytest.mark.slow
def test_a_script_that_holds_no_functions_needs_no_guard(here: Path) -> None:
    (here / "script.py").write_text(script("my_train.py:train"))
    command = [sys.executable, "script.py"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert ended.returncode == 0, ended.stderr
    assert "Failed" not in ended.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": ...}, "'metric' is missing. With a 'train' function, give the name of the"),
        ({"metric": None}, "'metric' is missing. With a 'train' function, give the name of the"),
        ({"budget": None}, "'budget' is missing. With a 'train' function, give the epochs"),
        ({"macs": 0.5}, "regrow.compare: Unknown argument 'macs'. Known: address, allocation,"),
        ({"worker": 2}, "regrow.compare: Unknown argument 'worker'. Did you mean 'workers'?"),
        ({"seeds": None}, "The 'seeds' must be how many (an int of at least 1) or a list of at"),
        ({"seeds": 2.0}, "a list of at least one seed. Got 2.0."),
        ({"seeds": "3"}, "a list of at least one seed. Got '3'."),
        ({"budgets": 1.5}, "must be a number of epochs, an int from 1 to 1,000,000,000,000,000"),
        ({"budgets": []}, "The 'budgets' must be from 1 to 100, such as [2, 4, 8]. Got 0."),
        ({"amounts": 0.5}, "must map a cost to a share, such as {'macs': 0.5}. Got 0.5."),
        ({"amounts": ["macs"]}, "must map a cost to a share, such as {'macs': 0.5}. Got ['macs']."),
        ({"arms": []}, "'arms' must name at least one. Got an empty list."),
        ({"arms": "fine-tun"}, "Unknown arm 'fine-tun'. Did you mean 'fine-tune'"),
        ({"rivals": "resnet-2"}, "The rival 'resnet-2': Unknown model 'resnet-2'."),
        ({"scope": 3}, "scope"),
        ({"rounds": "2"}, "rounds"),
        ({"uniform": "no"}, "'uniform' must be true or false. Got 'no'."),
        ({"out": 3}, "The 'out' of regrow.compare is a path, such as 'small'. Got 3."),
        ({"store": 3}, "The store is a path, such as 'small'. Got 3."),
        ({"out": "nets.py"}, "Cannot write the report to 'nets.py': a file is in the place of"),
    ],
)
def test_a_wrong_argument_is_refused_before_training(
    options: dict[str, Any], words: str, here: Path
) -> None:
    (here / "my_train.py").write_text("def train(model, budget, seed):\n    raise SystemExit")
    with pytest.raises(ConfigError, match=re.escape(words)):
        compared(**options)


@pytest.mark.parametrize("budget", ["1e30", "1e300", "inf", "nan", "0", "2.5"])
def test_a_budget_out_of_range_is_refused_by_its_option(
    budget: str, here: Path, command: Command
) -> None:
    network = ("nets.py:mlp", "--input", "1x4", "--macs", "0.5", "--train", "my_train.py:train")
    refused = command("compare", *network, "--out", "out", "--budget", budget)
    assert refused.code == 2
    wanted = (
        "A 'budget' (--budget) must be a whole number of epochs from 1 to 1,000,000,000,000,000."
    )
    assert wanted in refused.text
    assert "study.yaml" not in refused.text
    assert not (here / "out").exists()


def test_one_value_is_a_list_of_one_and_any_sequence_a_list() -> None:
    found = compared(
        arms="unpruned", rivals="nets.py:mlp", budget=None, budgets=2, seeds=range(2), name="x"
    )
    assert found.summary.complete
    assert {(run.arm, run.seed, run.training_budget) for run in found.runs} == {
        (arm, seed, 2) for arm in ("unpruned", "mlp") for seed in (0, 1)
    }
