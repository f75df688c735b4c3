"""Settings and fixtures for all tests.

Each test process has one thread, because there is a process for each core.
"""

import os
import sys
from pathlib import Path

import pytest

from commands import Command

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, here and in children
# Many tests start processes, and `import torch` takes 2.3 times the CPU without cached bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after each test what it has registered or loaded."""
    from small import forget_names

    forget_names(monkeypatch)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run regrow commands in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo after the test what --with has registered."""
    from regrow.core import registry
    from regrow.data import DATASETS
    from regrow.pruning.method import CRITERIA, METHODS

    monkeypatch.setattr(registry, "_LOADED", [])
    for names in (METHODS, CRITERIA, DATASETS):
        names.names()
        monkeypatch.setattr(names, "_values", dict(names._values))
        monkeypatch.setattr(names, "_origins", dict(names._origins))
