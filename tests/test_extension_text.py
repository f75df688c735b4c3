"""A text classifier on a task of its own: data, metric, task and network in one new file."""

import csv
from pathlib import Path
from typing import Any

import yaml

from commands import spawn

OWN = '''
"""Complaints and praise, told apart by balanced accuracy: few of the sentences are complaints."""

import torch
from torch import nn

from regrow.data import Arrays, DataSpec, Rows, register_data
from regrow.models import register_model
from regrow.tasks import Metric, register_task
from regrow.tasks.base import of_arrays

LENGTH = 24
WORDS = {"praise": ("fine", "good", "lovely"), "complaint": ("awful", "bad", "broken")}


@register_data("sentences")
def sentences(spec: DataSpec) -> Arrays:
    """Write 300 sentences of bytes, a fifth of them complaints."""
    draw = torch.Generator().manual_seed(0)
    rows, targets = [], []
    for number in range(300):
        target = int(number % 5 == 0)
        word = list(WORDS.values())[target][int(torch.randint(3, (), generator=draw))]
        text = " " * int(torch.randint(5, (), generator=draw)) + f"it is {word}"
        rows.append(list(text.encode().ljust(LENGTH)))
        targets.append(target)
    examples = Rows(inputs=torch.tensor(rows), targets=torch.tensor(targets))
    return Arrays(task="sentiment", train=examples, classes=tuple(WORDS), vocabulary=256)


def recalls(logits, targets):
    """Count correct answers and examples of each class."""
    wanted = torch.nn.functional.one_hot(targets, logits.shape[1]).double()
    correct = (logits.argmax(1) == targets).double()
    return torch.cat([(wanted * correct[:, None]).sum(0), wanted.sum(0)])


def mean_recall(sums):
    """Average the recalls of the classes."""
    half = len(sums) // 2
    parts = [c / n for c, n in zip(sums[:half], sums[half:], strict=True) if n]
    return sum(parts) / len(parts), None


BALANCED = Metric(
    key="balanced",
    name="balanced accuracy",
    axis="balanced accuracy (%)",
    about="Balanced accuracy is the mean recall of the classes on the test sentences",
    baseline="naming one class",
    unit="%",
    difference_unit="points",
    factor=100.0,
    margin=2.0,
    digits=1,
    example="sentence",
)
register_task(
    "sentiment",
    metric=BALANCED,
    objective="cross-entropy",
    model_arguments=of_arrays,
    tally=recalls,
    conclude=mean_recall,
    baseline=lambda data: 1 / len(data.classes),
    about="Praise or complaint",
)


class Reader(nn.Module):
    """Embeds bytes, convolves them, and reads the strongest answer of each filter."""

    def __init__(self, vocabulary: int, outputs: int, filters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16)
        self.conv = nn.Conv1d(16, filters, 5)
        self.head = nn.Linear(filters, outputs)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        return self.head(self.conv(x).relu().amax(2))


@register_model("reader", family="example")
def reader(*, vocabulary: int, length: int, outputs: int, filters: int = 32) -> nn.Module:
    """Build the classifier."""
    return Reader(vocabulary, outputs, filters)
'''
STUDY: dict[str, Any] = {
    "name": "sentiment",
    "data": "sentences",
    "models": "reader",
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "fine-tune", "scratch-e"],
    "seeds": 2,
    "recipe": {"epochs": 6, "batch": 16, "lr": 0.1, "precision": "fp32"},
}


def test_one_file_adds_a_text_classifier_on_a_task_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    named = ("--with", "own.py", "--workers", "0", "--out", "out")
    done = spawn("run", "study.yaml", *named, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "balanced accuracy %" in done.out
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == set(STUDY["arms"])
    assert {row["status"] for row in rows} == {"done"}
    assert all(float(row["balanced"]) > float(row["chance"]) == 50.0 for row in rows)
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "margin: 2 points" in page
    assert "Balanced accuracy is the mean recall" in page
    listed = spawn("list", "tasks", "--with", "own.py", cwd=tmp_path)
    assert "sentiment" in listed.out
    assert "Praise or complaint" in listed.out
