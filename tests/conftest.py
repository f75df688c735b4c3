"""Settings and fixtures of every test.

One thread for each test process, because there is a process for each core.
"""

import os
from pathlib import Path

import pytest

from commands import Command

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, here and in children


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """Run commands of regrow in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)
