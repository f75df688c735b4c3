"""A rule of surgery that is wrong where no size shows it: whatever hands out a cut refuses it."""

import sys
from pathlib import Path

import pytest

import regrow
from commands import Command
from regrow.errors import TraceError
from regrow.models.origins import ModelOrigin
from regrow.surgery.painter import Painter
from regrow.surgery.rules import RULES
from regrow.surgery.tape import Node

NET = """
from torch import nn

class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(self.a(x).relu().flip(1))

build = Turned
"""
TRAIN = """
def train(model, budget, seed):
    for parameter in model.parameters():
        parameter.data.add_(0.1)
    return {"accuracy": 0.5}
"""


def stays(painter: Painter, node: Node) -> None:
    """Say of an operation that reverses channels that they stay where they were."""
    painter.put(node, painter.of(node.args[0]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network, which is followed by a wrong rule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "mine.py").write_text(TRAIN)
    monkeypatch.setitem(RULES, "aten::flip", stays)
    return tmp_path


def test_a_trace_offers_what_a_proof_refuses() -> None:
    net = ModelOrigin("nets.py:build").build(seed=0)
    found = regrow.trace(net, (1, 4))
    assert set(found.groups) == {"a"}
    with pytest.raises(TraceError, match=r"proven correct\. Wrong: .*'a' is cut"):
        regrow.compress(net, (1, 4), sparsity=0.5, batches=())
    words = " ".join((regrow.shrink.__doc__ or "").split())
    assert "not that it equals the silenced network" in words


def test_the_command_refuses_and_writes_nothing(here: Path, command: Command) -> None:
    cut = ("--input", "1x4", "--sparsity", "0.5", "--out", "small")
    done = command("shrink", "nets.py:build", *cut)
    assert done.code != 0
    assert "proven correct. Wrong: " in done.text
    assert not (here / "small").exists()


def test_a_comparison_fails_at_the_cut(command: Command) -> None:
    done = command(
        *("compare", "nets.py:build", "--train", "mine.py:train", "--input", "1x4"),
        *("--sparsity", "0.5", "--budget", "1", "--seeds", "1", "--workers", "0", "--out", "out"),
    )
    assert done.code != 0
    assert "proven correct. Wrong: " in done.text
