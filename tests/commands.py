"""Run the command line, in this process or a new one, on a study that takes a few seconds."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrow.cli import main as cli

STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "subset": 60, "test_subset": 40},
    "models": {"name": "vgg", "plan": [4, "M", 4], "label": "tiny VGG"},
    "methods": [
        {"name": "l1-filter", "sparsity": 0.5},
        {"name": "magnitude", "sparsity": 0.75},
    ],
    "arms": ["unpruned", "pruned", "fine-tune", "scratch-e"],
    "seeds": 2,
    "recipe": {"name": "cifar", "epochs": 1, "batch": 20, "lr": 0.05, "precision": "fp32"},
}


@dataclass(frozen=True)
class Result:
    """A command's exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams in one line, without the frames of usage errors."""
        return " ".join((self.err + self.out).replace("│", " ").split())


def write_study(folder: Path, *, file: str = "study.yaml", **changes: Any) -> Path:
    """Write the study with changed keys; keys that are None are left out."""
    value = {k: v for k, v in {**STUDY, **changes}.items() if v is not None}
    path = folder / file
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


class Command:
    """Runs ``regrow`` in this process, in the test's own working folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["regrow", *map(str, arguments)])
        self._capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = self._capsys.readouterr()
        assert isinstance(code, int)
        assert "Traceback" not in out + err
        return Result(code, out, err)


def environment() -> dict[str, str]:
    """Return environment variables for a new process: one thread, plain text."""
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    return {**plain, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb"}


def command_line(*arguments: str | Path) -> list[str]:
    """Return the command line that starts ``regrow`` in a new process."""
    code = "from regrow.cli.main import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def finished(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a command and wait for it, whatever its exit code."""
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def spawn(*arguments: str | Path, cwd: Path) -> Result:
    """Run ``regrow`` in a new process."""
    ended = finished(command_line(*arguments), cwd=cwd, env=environment())
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    return Result(ended.returncode, ended.stdout, ended.stderr)
