"""The package as it is built: the same bytes twice, and whole without the clone."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from commands import Command, environment

ROOT = Path(__file__).parents[1]


def built(folder: Path) -> dict[str, Path]:
    """Build wheel and source distribution, or skip where what builds them cannot be had."""
    if shutil.which("uv") is None:
        pytest.skip("no uv on the PATH")
    command = ["uv", "build", "--quiet", "--out-dir", str(folder)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    if ended.returncode:
        pytest.skip(f"uv build: {ended.stderr.strip()[-200:]}")
    return {file.suffix: file for file in folder.iterdir() if file.suffix in (".whl", ".gz")}


@pytest.mark.slow
def test_two_builds_are_equal_and_the_wheel_is_whole(tmp_path: Path) -> None:
    first, second = built(tmp_path / "a"), built(tmp_path / "b")
    assert set(first) == {".whl", ".gz"}
    for suffix, file in first.items():
        digests = {hashlib.sha256(f.read_bytes()).digest() for f in (file, second[suffix])}
        assert len(digests) == 1, suffix

    with zipfile.ZipFile(first[".whl"]) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    package = ROOT / "src"
    data = [
        file.relative_to(package).as_posix()
        for file in (package / "regrow").rglob("*")
        if file.suffix not in (".py", ".pyc", "") and "__pycache__" not in file.parts
    ]
    assert data
    assert {*data} <= names

    (tmp_path / "away").mkdir()
    shown = {"reproduce list": "table-1", "claims": "ThiNet", "quickstart --help": "five seeds"}
    env = {**environment(), "PYTHONPATH": str(tmp_path / "site")}
    code = "import regrow, sys; print(regrow.__file__); from regrow.cli.main import main; main()"
    for command, text in shown.items():
        ended = subprocess.run(
            [sys.executable, "-c", code, *command.split()],
            cwd=tmp_path / "away",
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert str(tmp_path / "site") in ended.stdout.splitlines()[0]
        assert text in " ".join(ended.stdout.split())


COMPLETED = {
    "regrow inspect resnet-5": "resnet-56",
    "regrow versus l1-fil": "l1-filter",
    "regrow compare-": "compare-runs",
}


@pytest.mark.parametrize("line", COMPLETED)
def test_names_are_completed_without_pytorch(line: str) -> None:
    code = (
        "import sys; from regrow.cli.main import app\n"
        "try: app(prog_name='regrow')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    words = len(line.split()) - 1
    asked = {"_REGROW_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(words)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), **asked},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert COMPLETED[line] in ended.stdout.split()
    assert ended.stderr.split()[-1:] == ["False"]


def test_completion_is_offered(command: Command) -> None:
    assert "--install-completion" in command("--help").out
