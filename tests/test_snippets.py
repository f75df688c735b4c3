"""What the README and the docs show runs: studies are read, Python is run, commands end well.

Commands run one after another in a folder; what stands in for large data is small. A command that
takes minutes runs in the slow tests; what needs another machine, a package that is no part of the
tests, or the internet is named with the reason.
"""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from commands import Command
from regrow.core.registry import load_file
from regrow.errors import ConfigError
from regrow.pruning.method import CRITERIA, METHODS
from regrow.store import Store
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided, read_value

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a block is completed by that shows only a part of a study.
WHOLE = {
    "data": "digits",
    "models": "resnet-20",
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "scratch-e"],
}
OF_EXTRAS = ("hf/", "torchvision/")  # networks that blocks name, and the tests do not have

# A study for the commands that name one: as the pages' own, but of seconds.
MINE: dict[str, Any] = {
    "name": "mine",
    "data": {"name": "digits", "subset": 60, "test_subset": 40},
    "models": {"name": "vgg", "plan": [4, "M", 4], "label": "tiny VGG"},
    "methods": [{"name": "l1-filter", "sparsity": 0.6}, {"name": "random", "sparsity": 0.6}],
    "arms": ["unpruned", "fine-tune", "scratch-e"],
    "seeds": 2,
    "recipe": {"epochs": 1, "batch": 20, "lr": 0.05, "precision": "fp32"},
}
QUICK = (
    r"regrow (plan|run|status|report|lint|export) mine\.yaml(?!.*(cuda|--devices|--on ray))",
    r"regrow cluster",
    r"regrow (list|claims|schema)\b(?!.*--ours)",
    r"regrow reproduce list",
    r"regrow inspect resnet-20",
    r"regrow compare-runs regrow-store other-store",
    r"regrow store (verify|list|gc|export|import|diff)\b",
)
SLOW = (
    r"regrow versus .*--data digits .*(--plan|--html)",
    r"regrow run first\.yaml",
    r"regrow reproduce table-4 --scale smoke$",
    r"regrow reproduce wang2023/table-6 --scale smoke$",
    r"regrow bench train --quick",
)
ENDINGS = {"lint": (0, 1), "compare-runs": (0, 1)}  # exit codes besides 0


def blocks(page: Path, *kinds: str) -> list[tuple[int, str]]:
    """Return the blocks of code of a page, each with its line."""
    text = page.read_text(encoding="utf-8")
    found = (match for match in BLOCK.finditer(text) if match[1] in kinds)
    return [(text[: match.start(2)].count("\n") + 1, match[2]) for match in found]


def each(*kinds: str) -> list[Any]:
    """Return every block of these kinds as a parameter of a test."""
    return [
        pytest.param(text, id=f"{page.name}:{line}")
        for page in PAGES
        for line, text in blocks(page, *kinds)
    ]


def commands() -> list[str]:
    """Return the lines of all pages that call regrow, each once."""
    texts = [text for page in PAGES for _, text in blocks(page, "bash", "console")]
    lines = "\n".join(texts).replace("\\\n", " ").splitlines()
    bare = (" ".join(re.sub(r"\s#.*", "", line).split()) for line in lines)
    found = (re.search(r"(?<![/.])\bregrow [a-z-].*", line) for line in bare)
    return list(dict.fromkeys(match[0] for match in found if match))


NETS = """
from torch import nn

def build(classes=10, width=8, in_channels=1):
    layers = nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
"""


PRUNE = """
from torch.nn.utils import prune

class MyMethod(prune.L1Unstructured):
    def __init__(self, amount, steps=1):
        super().__init__(amount)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registries: None) -> Path:
    """Return a folder with the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "my_prune.py").write_text(PRUNE)
    save_file({"0.weight": torch.tensor([True, False])}, tmp_path / "masks.safetensors")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MINE))
    space: dict[str, Any] = {}
    exec(NETS, space)
    save_file(space["build"](in_channels=3, classes=10).state_dict(), tmp_path / "mine.safetensors")
    for page in PAGES:
        for kind in ("python", "yaml"):
            for _, text in blocks(page, kind):
                if name := re.match(r"# ([\w.]+)\n", text):
                    (tmp_path / name[1]).write_text(text)
    readme = next(text for _, text in blocks(ROOT / "README.md", "python") if "my-method" in text)
    (tmp_path / "mine.py").write_text(readme)
    return tmp_path


@pytest.mark.parametrize("text", each("yaml"))
def test_a_study_that_is_shown_is_read(text: str, place: Path) -> None:
    load_file(place / "mine.py")
    if "my-mobilenet" in text:
        load_file(ROOT / "examples" / "own" / "nets.py")
    value = read_value(text)
    if value is None:  # a line of comment
        return
    study = {**WHOLE, **value}
    models = study["models"] if isinstance(study["models"], list) else [study["models"]]
    names = [entry["name"] if isinstance(entry, dict) else entry for entry in models]
    kept = [m for m, name in zip(models, names, strict=True) if not name.startswith(OF_EXTRAS)]
    # Two rows of one network would stand in one table under one name.
    labelled = [m | {"label": f"m{i}"} if isinstance(m, dict) else m for i, m in enumerate(kept)]
    try:
        Study.from_json(decided({**study, "models": labelled}, lambda: "fp32"))
    except ConfigError as error:
        if "pip install 'regrow[" not in str(error):
            raise
        pytest.skip(f"an extra: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_shown_runs(page: Path, place: Path) -> None:
    for registry in (
        CRITERIA,
        METHODS,
    ):  # the file that test_methods loads is the same
        for name in [n for n, origin in registry._origins.items() if "my_method.py" in str(origin)]:
            del registry._values[name], registry._origins[name]
    space: dict[str, Any] = {"__name__": "shown", **PRELUDES.get(page.name, dict)()}
    for line, text in blocks(page, "python"):
        if any(re.search(pattern, text) for pattern in LATER):
            continue
        code = compile("\n" * line + text, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, space)


def _network() -> dict[str, Any]:
    import regrow

    return {"net": regrow.build(regrow.ModelSpec("resnet-20", {"classes": 10}))}


class TinyBert(torch.nn.Module):
    """Tokens to classes, with the loss of the labels if they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.hidden = torch.nn.Linear(8, 16)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        logits = self.head(self.hidden(self.embedding(input_ids).mean(1)).relu())
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def _tokens() -> dict[str, Any]:
    ids, labels = torch.randint(0, 50, (32, 16)), torch.randint(0, 2, (32,))
    images, classes = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    return {
        "rows": [{"input_ids": i, "labels": k} for i, k in zip(ids, labels, strict=True)],
        "bert": TinyBert(),
        "example": {"input_ids": ids[:1]},
        "pairs": [(images, classes)],
        "my_loss": torch.nn.functional.cross_entropy,
    }


def _store() -> dict[str, Any]:
    store = Store.open("regrow-store")
    store.commit("ab" * 32, {"kind": "train", "spec": {"seed": 0}}, {"w": torch.ones(2, 3)})
    store.commit("cd" * 32, {"kind": "prune", "spec": {}, "accuracy": 0.5})
    return {}


PRELUDES = {"README.md": _network, "python.md": _tokens, "store.md": _store}
# Blocks that need what the commands of their page made: `tests/test_examples.py` runs those of
# own-network.md, and `test_commands_that_are_shown_run` makes the store of python.md.
LATER = (
    r"nets\.py:MobileNet",
    r"def train_digits",
    r"regrow\.results\(",
    r"from transformers import",
    r"import onnxruntime",
)


def test_commands_that_are_shown_run(command: Command, place: Path) -> None:
    run_all(matching(QUICK), command)


@pytest.mark.slow
def test_long_commands_that_are_shown_run(command: Command, place: Path) -> None:
    run_all(matching(SLOW), command)


def matching(patterns: tuple[str, ...]) -> list[str]:
    """Return the commands that one of some patterns begins."""
    return [line for line in commands() if any(re.match(pattern, line) for pattern in patterns)]


def run_all(lines: list[str], command: Command) -> None:
    """Run commands in one folder, one after another, those that make results before the rest."""
    if any("compare-runs" in line for line in lines):
        shutil.copytree(made_store(command), "other-store")
    # A file registers once in a process, and `versus` looks for what its file registers.
    order = ("versus", "plan", "run")
    ranks = {line: next((i for i, w in enumerate(order) if w in line.split()), 9) for line in lines}
    for line in sorted(lines, key=ranks.__getitem__):
        words = shlex.split(re.split(r"[|;&>]", line)[0])[1:]
        words += ["--workers", "0"] if words[0] == "run" else []
        ended = command(*words)
        if "pip install 'regrow[" in ended.err:  # an extra, which the message names
            continue
        assert ended.code in ENDINGS.get(words[0], (0,)), f"{line}\n{ended.err}\n{ended.out}"


def made_store(command: Command) -> str:
    """Run the study, and return the folder of its results."""
    assert command("run", "mine.yaml", "--workers", "0").code == 0
    return "regrow-store"


# What else the pages show, by what keeps it from the tests above.
NOT_RUN = {
    r"torchrun|--device cuda|--devices|large\.yaml": "needs several GPUs, or one",
    r"--on ray": "needs Ray; tests/test_ray_cluster.py runs the like",
    r"timm/|hf/|push |track |--onnx|--pt2": "needs packages that are extras",
    r"hf:PATH|cifar10|voc:PATH|bccd": "needs images that are downloaded",
    r"quickstart|--scale (small|minutes|smoke)|--ours": "tests/test_smoke.py runs the like",
    r"nets\.py|net\.py|study\.yaml|tokens": "tests/test_examples.py runs the like",
    r"my-paper|OWNER/NAME|papers": "names what the reader has to make first",
    r"--help|--version|--install-completion|bench": "tests/test_cli.py, tests/test_package.py",
}


@pytest.mark.slow  # quick, but of all pages at once: whoever writes a page need not know of it
def test_no_command_is_left_out_without_a_reason() -> None:
    run = {*matching(QUICK), *matching(SLOW)}
    left = [line for line in commands() if line not in run]
    unnamed = [line for line in left if not any(re.search(p, line) for p in NOT_RUN)]
    assert not unnamed, "\n".join(unnamed)
    assert len(run) > 20
