"""Call the command line, in this process or in one of its own, on a study of a few seconds."""

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
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams in one line, free of the frames and colours of usage errors."""
        return " ".join((self.err + self.out).replace("│", " ").split())


def write_study(folder: Path, *, file: str = "study.yaml", **changes: Any) -> Path:
    """Write the study with changes; those that are None are left out."""
    value = {k: v for k, v in {**STUDY, **changes}.items() if v is not None}
    path = folder / file
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


class Command:
    """``regrow`` in this process; its working folder is the test's own."""

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
    """Return the environment of a process of its own: one thread, plain text."""
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    return {**plain, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb"}


def command_line(*arguments: str | Path) -> list[str]:
    """Return what starts ``regrow`` in a process of its own."""
    code = "from regrow.cli.main import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def finished(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, however it ends."""
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def spawn(*arguments: str | Path, cwd: Path) -> Result:
    """Run ``regrow`` in a process of its own."""
    ended = finished(command_line(*arguments), cwd=cwd, env=environment())
    assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
    return Result(ended.returncode, ended.stdout, ended.stderr)
