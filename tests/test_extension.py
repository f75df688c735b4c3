"""Additions rehearsed: a method, a model and a data set, each one file and nothing else edited."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import regrow
from cutting import enliven_, random_mask
from regrow.core.registry import load_file
from regrow.data import DataSpec, fingerprint, load
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build, initialise_
from regrow.pruning.method import CRITERIA, METHODS
from regrow.pruning.probe import Probe
from regrow.studies.study import Study
from regrow.surgery import trace, verify
from small import digits, small

EXAMPLES = Path(__file__).parents[1] / "examples" / "extend"
FILES = {"methods": "my_method.py", "models": "my_model.py", "data": "my_data.py"}
PACKAGE = Path(regrow.__file__).parent


@pytest.fixture(autouse=True)
def _loaded() -> None:
    for name in FILES.values():
        load_file(EXAMPLES / name)


def _run(*arguments: str | Path, cwd: Path, path: Path = PACKAGE.parent) -> str:
    """Run the command line in a process of its own, which knows only of what it is given."""
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from regrow.cli.main import main; main()", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# As files that are named on the command line ----------------------------------------------------


def test_a_study_of_three_files_runs_in_a_process_that_knows_nothing_else(tmp_path: Path) -> None:
    for name in (*FILES.values(), "study.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    named = [part for name in FILES.values() for part in ("--with", name)]
    printed = _run("run", "study.yaml", *named, "--workers", "0", "--json", cwd=tmp_path)
    rows = json.loads(printed)["rows"]
    assert {row["arm"] for row in rows} == {"unpruned", "fine-tune", "scratch-e"}
    assert {(row["data"], row["model"]) for row in rows} == {("stripes", "skip-net (width 0.5)")}
    assert {row["method"] for row in rows} >= {"steepest"}


# As files that are put into the package's folders -----------------------------------------------


def test_files_put_into_the_folders_are_found(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "regrow", ignore=ignore)
    for folder, name in FILES.items():
        shutil.copy(EXAMPLES / name, tmp_path / "regrow" / folder)
    listed = json.loads(_run("list", "--json", cwd=tmp_path, path=tmp_path))
    assert "steepest" in listed["methods"]
    assert "steepness" in listed["criteria"]
    assert "skip-net" in listed["models"]
    assert "stripes" in listed["data"]


# The examples themselves ------------------------------------------------------------------------


def test_the_example_method_scores_by_the_gradients_of_a_filter() -> None:
    model, found = small("vgg")
    probe = Probe(model, digits(), num_images=32)
    group = found.groups["features.conv2"]
    expected = probe.gradient("features.conv2.weight").abs().sum((1, 2, 3))
    torch.testing.assert_close(CRITERIA.get("steepness")(group, probe), expected)
    assert METHODS.get("steepest").criterion == "steepness"


def test_the_example_model_can_be_cut_everywhere_and_drawn_anew() -> None:
    spec = ModelSpec("skip-net", {"classes": 2, "input_size": 8})
    model, shape = build(spec), (1, 3, 8, 8)
    enliven_(model, shape)
    found = trace(model, shape)
    assert [(g.kind, g.size) for g in found.groups.values()] == [("conv", 16), ("conv", 16)]
    assert not {name for name in found.whole if name != "3"}
    assert verify(model, random_mask(found), found) < 1e-9
    initialise_(model, seed=0)


def test_the_example_data_can_be_learnt() -> None:
    data = load(DataSpec("stripes"))
    assert (len(data.train), len(data.test), data.channels, data.size) == (320, 80, 3, 8)
    images = data.train.batch(torch.arange(len(data.train)))
    level = (images == images[..., :1]).flatten(1).all(1)
    assert torch.equal(level, data.train.labels == 0)
    assert fingerprint(DataSpec("stripes")) == fingerprint(DataSpec("stripes", root="/elsewhere"))


def test_an_edited_file_is_a_new_pruning_of_the_same_training(tmp_path: Path) -> None:
    text = (EXAMPLES / "my_method.py").read_text().replace('"steep', '"edited-steep')
    file = tmp_path / "edited.py"
    file.write_text(text)
    load_file(file)
    before = _keys()
    file.write_text(f"{text}\n# Another thought.\n")
    assert _keys() == before  # this process still has the code that it has read
    load_file(file)
    after = _keys()
    assert before["train"] == after["train"]
    assert before["prune"] != after["prune"]
    assert before["retrain"] != after["retrain"]


def _keys() -> dict[str, str]:
    value = yaml.safe_load((EXAMPLES / "study.yaml").read_text())
    value |= {
        "methods": {"name": "edited-steepest", "sparsity": 0.5},
        "arms": ["scratch-e"],
        "seeds": 1,
    }
    (cell,) = Study.from_json(value).cells()
    assert isinstance(cell.job, Retrain)
    parent = cell.job.prune.parent
    assert isinstance(parent, Train)
    return {"train": parent.key, "prune": cell.job.prune.key, "retrain": cell.job.key}


def test_an_edited_model_is_another_training_and_another_scratch_row(tmp_path: Path) -> None:
    text = (EXAMPLES / "my_model.py").read_text().replace('"skip-net"', '"edited-net"')
    file = tmp_path / "edited_net.py"
    file.write_text(text)
    load_file(file)

    def keys() -> set[str]:
        value = yaml.safe_load((EXAMPLES / "study.yaml").read_text())
        value |= {"models": "edited-net", "methods": {"name": "random", "sparsity": 0.5}}
        return {job.key for job in Study.from_json(value).jobs()}

    before = keys()
    file.write_text(f"{text}\n# Another thought.\n")
    load_file(file)
    assert not before & keys()


def test_an_edited_penalty_is_another_training(tmp_path: Path) -> None:
    text = """
from regrow.methods.network_slimming import norm_scale
from regrow.pruning.method import register_method

def penalty(model, strength):
    pass

register_method("own-penalty", criterion=norm_scale, penalty=penalty, strength={"": 1.0})
"""
    file = tmp_path / "own_penalty.py"
    file.write_text(text)
    load_file(file)
    before = METHODS.code("own-penalty")
    assert before is not None
    file.write_text(text.replace("pass", "return"))
    load_file(file)
    assert METHODS.code("own-penalty") not in (None, before)


def test_the_guide_shows_these_very_files() -> None:
    guide = (EXAMPLES.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in FILES.values():
        assert (EXAMPLES / name).read_text(encoding="utf-8").strip() in guide, name
