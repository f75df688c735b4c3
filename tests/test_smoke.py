"""Every table and figure of the paper runs to its end at the smallest scale, on any processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regrow.reproduce.paper import papers

PROCESSORS = {
    "as-it-is": {},
    # As one without AVX-512, where PyTorch computes by other code.
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the stores that the entries share, one for each processor."""
    return tmp_path_factory.mktemp("stores")


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(
    "name", [entry.full_name for paper in papers().values() for entry in paper.entries.values()]
)
def test_entry_runs_to_its_end(name: str, processor: str, store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "regrow", "reproduce", name, "--scale", "smoke"]
    command += ["--store", str(store / processor), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **PROCESSORS[processor], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [*tmp_path.rglob("report.md")]
    assert "crashed" not in done.stderr
