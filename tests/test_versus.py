"""``regrow versus``: the study that it writes, what it leaves out, and the table that comes out."""

import csv
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from browser import check_accessible
from commands import Command
from regrow.errors import ConfigError
from regrow.pruning.method import METHODS
from regrow.studies.study import Study
from regrow.studies.versus import default_rivals, read_target, study_of, without_impossible

OWN = """
import regrow


@regrow.criterion("{name}-score")
def score(group, probe):
    return group.sum(lambda name: probe.weight(name).pow(4))


regrow.register_method("{name}", criterion=score, allocation="uniform")
"""
MODEL = "{name: vgg, plan: [6, M, 6], label: tiny VGG}"
DATA = "{name: digits, subset: 80, test_subset: 40}"
RECIPE = "{name: cifar, epochs: 1, batch: 40, lr: 0.05, precision: fp32}"


@pytest.fixture
def regrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def value(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "versus-l2",
        "model": "resnet-20",
        "data": "digits",
        "targets": [("macs", 0.5), ("macs", 0.3)],
        "rivals": ("l1-filter", "random"),
        "seeds": 3,
        "recipe": "cifar",
    }
    return study_of(("l2",), **{**given, **changes})


def test_the_study_has_every_method_at_every_cost_and_the_rivals() -> None:
    study = value()
    assert study["reference"] == "l2"
    assert [entry["name"] for entry in study["methods"]] == ["l2", "l1-filter", "random"]
    assert all(entry["macs"] == [0.5, 0.3] for entry in study["methods"])
    assert study["methods"][2]["scope"] == list(METHODS.get("l2").scope)
    assert study["data"] == {"name": "digits", "validation": 0.1}
    assert study["arms"] == [
        *("unpruned", "pruned", "fine-tune", "fine-tune-10x", "lr-rewind", "one-cycle"),
        "scratch-b",
    ]
    assert Study.from_json(study).reference == "l2"


def test_rivals_remove_what_the_method_removes() -> None:
    assert "uniform" in default_rivals(METHODS.get("l2"))
    assert "uniform-sparsification" in default_rivals(METHODS.get("magnitude"))
    assert "magnitude" not in default_rivals(METHODS.get("magnitude"))
    assert "width" in default_rivals(METHODS.get("soft-filter"))


def test_a_split_that_is_asked_for_stays() -> None:
    data = {"name": "digits", "validation": 0.0}
    assert value(data=data)["data"]["validation"] == 0.0


@pytest.mark.parametrize(
    ("target", "message"),
    [("macs", "no share"), ("macs:half", "'half'"), ("mac:0.5", "'macs'")],
)
def test_a_target_is_a_cost_and_a_share(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_target(target)


def test_rivals_that_a_network_does_not_take_are_left_out_with_the_reason() -> None:
    study = value(
        model={"name": "vgg", "plan": [4, "M", 4]},
        data={"name": "digits", "subset": 60},
        rivals=("sparse-structure", "l1-filter"),
    )
    left, reasons = without_impossible(study, ["sparse-structure"])
    assert [entry["name"] for entry in left["methods"]] == ["l2", "l1-filter"]
    assert set(reasons) == {"sparse-structure"}


def test_a_reference_must_be_a_method_of_the_study() -> None:
    with pytest.raises(ConfigError, match="compared with, by its label: Unknown method 'l3'"):
        Study.from_json({**value(), "reference": "l3"})


def test_a_file_of_ones_own_gets_its_table(regrow: Command, tmp_path: Path) -> None:
    (tmp_path / "fourth.py").write_text(OWN.format(name="fourth-power"))
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--against", "width", "--html")
    fewer = ("--arms", "fine-tune,lr-rewind,scratch-b", "--epochs", "2", "--seeds", "1")
    done = regrow("versus", "fourth.py", *asked, *fewer, "--workers", "0", "--out", "out")
    assert done.code == 0, done.err
    assert done.err.startswith("Reading fourth.py ...\n")
    assert done.err.index("jobs to do: ") < done.err.index("done tiny VGG")  # the estimate
    assert (tmp_path / "out" / "report.html").is_file()
    study = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert study["reference"] == "fourth-power"
    assert study["arms"] == ["unpruned", "pruned", "fine-tune", "lr-rewind", "scratch-b"]
    assert study["recipe"]["epochs"] == 2
    assert "fourth-power" in done.out
    asks = "Is fourth-power better than the others at equal cost, under the best retraining of each"
    assert " ".join(done.out.partition("\nAnswer\n")[2].split()).startswith(asks)
    page = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert page[page.index("## Answer") + 2].startswith(f"- {asks}")
    check_accessible(tmp_path / "out" / "report.html")
    html = (tmp_path / "out" / "report.html").read_text()
    assert asks in html[html.index('<article class="first">') :][:200]
    pairs = (tmp_path / "out" / "pairs.csv").read_text().splitlines()
    assert pairs[1].startswith("the best retraining,")
    planned = regrow("versus", "fourth.py", *asked, *fewer, "--plan", "--out", "out")
    assert planned.code == 0, "a file that was loaded before is the same file"
    again = regrow("report", "out/study.yaml", "--with", "fourth.py", "--reference", "width")
    assert again.code == 0, again.err
    assert "width" in again.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", "registers no method"),
        ("import regrow\n@regrow.criterion('lonely')\ndef lonely(g, p): ...\n", '"lonely"'),
        ("1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_file_without_a_method_is_refused(
    regrow: Command, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "bad.py").write_text(content)
    done = regrow("versus", "bad.py", "--model", MODEL, "--data", DATA)
    assert done.code == 2
    assert message in done.text
    assert not (tmp_path / "regrow-store").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return group", "return float group", r"{}\.py: SyntaxError.*line 7"),
        ("probe.weight", "probe.wieght", r"{}\.py, line 7: AttributeError: .*'wieght'"),
        (".pow(4))", ".pow(4))[:2]", r"{}\.py, line 7: .*one score for each of the 6 units"),
        (".pow(4))", ".pow(4)) / 0.0", r"{}\.py, line 7: .*not all finite"),
        ("group, probe", "group", r"{}\.py, line 6: TypeError: .* 1 positional argument"),
        ("criterion=score", "criterion='{}'", r"Unknown criterion '{0}'.*'{0}-score'"),
        ("register_method", "register_metod", r"{}\.py, line 10: AttributeError"),
    ],
)
def test_a_wrong_criterion_is_refused_by_its_line_and_leaves_nothing(
    regrow: Command, tmp_path: Path, old: str, new: str, message: str
) -> None:
    name = f"wrong-{hashlib.sha256(new.encode()).hexdigest()[:6]}"
    text = OWN.format(name=name).replace(old, new.format(name), 1)
    (tmp_path / f"{name}.py").write_text(text)
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--against", "random")
    done = regrow("versus", f"{name}.py", *asked)
    assert done.code == 2
    assert re.search(message.format(name), done.text), done.text
    assert {path.name for path in tmp_path.iterdir()} <= {f"{name}.py", "__pycache__"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--arms", "fine-tun"), "--arms: Unknown arm 'fine-tun'"),
        (("--arms", " ,"), "--arms needs at least one name"),
        (("--against", "l1-filtr"), "--against: Unknown method 'l1-filtr'"),
        (("--device", "tpu"), "tpu"),
        (("--target", "macs:0.00001"), "macs"),
        (("--recipe", "cifr"), "Unknown recipe 'cifr'"),
    ],
)
def test_what_cannot_be_meant_leaves_nothing(
    regrow: Command, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = regrow("versus", "l2", "--model", MODEL, "--data", DATA, *options)
    assert done.code == 2
    assert message in done.text
    assert done.text.count("regrow: ") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_named_without_its_ending_is_offered(regrow: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.format(name="mine"))
    done = regrow("versus", "mine", "--model", MODEL, "--data", DATA)
    assert (done.code, "Do you mean the file mine.py?" in done.text) == (2, True)


def test_a_plan_trains_nothing(regrow: Command, tmp_path: Path) -> None:
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--seeds", "1", "--plan")
    done = regrow("versus", "l2", *asked, "--against", "random", "--margin", "1.5")
    assert done.code == 0, done.err
    study = yaml.safe_load((tmp_path / "regrow-report" / "versus-l2" / "study.yaml").read_text())
    assert study["margin"] == 1.5
    assert not (tmp_path / "regrow-store").exists()


def test_several_training_budgets_are_an_axis_of_its_study(regrow: Command, tmp_path: Path) -> None:
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--against", "width")
    fewer = ("--arms", "lr-rewind,scratch-b", "--seeds", "2", "--workers", "0")
    done = regrow("versus", "l2", *asked, *fewer, "--budgets", "1,2", "--out", "out")
    assert done.code == 0, done.err
    study = yaml.safe_load((tmp_path / "out" / "study.yaml").read_text())
    assert (study["budgets"], study["rounding"]) == ([1, 2], "updates")
    assert "From which training budget on is scratch-b as good as lr-rewind?" in done.out
    lines = [*csv.DictReader((tmp_path / "out" / "budgets.csv").read_text().splitlines())]
    assert {line["budget"] for line in lines} == {"1", "2"}
    assert {line["method"] for line in lines} == {"l2", "width"}


@pytest.mark.parametrize("budgets", ["", "0", "2,2", "1.5", "half"])
def test_what_is_no_budget_leaves_nothing(regrow: Command, tmp_path: Path, budgets: str) -> None:
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--against", "random")
    done = regrow("versus", "l2", *asked, "--budgets", budgets)
    assert done.code == 2
    assert "budgets" in done.err
    assert not (tmp_path / "regrow-report").exists()


@pytest.mark.parametrize("margin", ["-1", "100"])
def test_an_impossible_margin_is_refused_and_leaves_nothing(
    regrow: Command, tmp_path: Path, margin: str
) -> None:
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE, "--against", "random")
    done = regrow("versus", "l2", *asked, "--margin", margin)
    assert done.code == 2
    assert "margin" in done.err
    assert not (tmp_path / "regrow-report").exists()


def test_a_method_that_is_compared_with_itself_alone_is_refused(
    regrow: Command, tmp_path: Path
) -> None:
    asked = ("--model", MODEL, "--data", DATA, "--recipe", RECIPE)
    done = regrow("versus", "l2", *asked, "--against", "L2")
    assert done.code == 2
    assert "this is the method to test" in done.err
    assert not (tmp_path / "regrow-report").exists()
