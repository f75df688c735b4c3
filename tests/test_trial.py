"""A user's criterion is tried on the untrained network before anything is trained."""

from pathlib import Path
from textwrap import indent

import pytest

from commands import Command, write_study

FILE = """import torch
from regrow.pruning.method import allocation, criterion, register_method


@criterion("own-score")
def own_score(group, probe):
{criterion}


@allocation("own-share")
def own_share(scores, sparsity):
{allocation}


register_method("own", criterion=own_score, allocation="own-share", scope="conv")
"""
GOOD_SCORE = """\
image = probe.activation(group).abs().mean(0)
beta = probe.weight(group.norms[0] + ".bias").abs()
return image + beta / beta.sum()"""
GOOD_SHARE = """\
return {name: score >= score.quantile(sparsity) for name, score in scores.items()}"""


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, methods={"name": "own", "sparsity": 0.5}, seeds=1)
    return Command(monkeypatch, capsys)


def write(folder: Path, *, criterion: str = GOOD_SCORE, allocation: str = GOOD_SHARE) -> None:
    parts = {"criterion": criterion, "allocation": allocation}
    text = FILE.format(**{name: indent(part, "    ") for name, part in parts.items()})
    (folder / "own.py").write_text(text)


def test_criterion_that_looks_at_images_and_trained_norms_passes(
    command: Command, tmp_path: Path
) -> None:
    write(tmp_path)
    found = command("plan", "study.yaml", "--with", "own.py")
    assert found.code == 0, found.err


def test_scores_that_a_training_has_yet_to_tell_apart_pass(
    command: Command, tmp_path: Path
) -> None:
    write(
        tmp_path,
        criterion="return group.sum(lambda name: probe.mask(name).float())",
        allocation="return {n: s.argsort() >= len(s) * sparsity for n, s in scores.items()}",
    )
    found = command("plan", "study.yaml", "--with", "own.py")
    assert found.code == 0, found.err
    found = command("run", "study.yaml", "--with", "own.py")
    assert found.code == 1
    assert "'own-score' gives all units of each group the same score" in found.text


@pytest.mark.parametrize(
    ("parts", "line", "message"),
    [
        ({"criterion": "return torch.ones(2, 3)"}, 7, "must return one score for each"),
        ({"criterion": "return [1]"}, 7, "must return one score for each"),
        ({"criterion": "return torch.full((group.size,), float('nan'))"}, 7, "not all finite"),
        ({"criterion": "x = 1\nreturn x / 0"}, 8, "ZeroDivisionError: division by zero"),
        ({"criterion": "return probe.weight('none')"}, 7, "KeyError: 'none'"),
        ({"allocation": "return {}"}, 14, "must return a boolean for each"),
        ({"allocation": "return scores['none']"}, 14, "KeyError: 'none'"),
    ],
)
@pytest.mark.parametrize("name", ["plan", "run"])
def test_code_that_cannot_work_is_refused_with_its_file_and_line(
    command: Command, tmp_path: Path, name: str, parts: dict[str, str], line: int, message: str
) -> None:
    write(tmp_path, **parts)
    found = command(name, "study.yaml", "--with", "own.py")
    assert found.code == 2
    assert f"own.py, line {line}: " in found.text
    assert message in found.text
    assert not (tmp_path / "regrow-store").exists()
