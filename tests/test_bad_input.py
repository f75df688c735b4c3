"""What cannot be meant, or does not work, ends `inspect` and `shrink` in one message."""

from pathlib import Path

import pytest
import torch
from torch import nn

from commands import Command

NET = """
import torch
from torch import nn

NUMBER = 3

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3), nn.Conv2d(width, 4, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())

def fails(): raise ValueError("no such weights")
def exits(): raise SystemExit(3)
def stopped(): raise KeyboardInterrupt
def nothing(): pass
def pair(): return Net(), 3
def endless(): return endless()
def needs(width, depth): return Net(width)

class Silent(Net):
    def forward(self, x): self.a(x)

class Unfinished(Net):
    def forward(self, x): raise NotImplementedError

class Exits(Net):
    def forward(self, x): raise SystemExit(0)

class Stopped(Net):
    def forward(self, x): raise KeyboardInterrupt

class Random(Net):
    def forward(self, x): return self.b(nn.functional.dropout(self.a(x).relu(), training=True))

class Counts(Net):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return self.b(self.a(x).relu()) * self.calls

class Chooses(Net):
    def forward(self, x):
        y = self.a(x).relu()
        return self.b(y) if y.shape[1] > 6 else nn.functional.conv2d(y, self.b.weight)

class Branches(Net):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.a(x).relu()
        return self.b(self.c(y) if y.abs().sum() > 1e-3 and x.any() and len(x) > 1 else y)

class Sparse(Net):
    def forward(self, x): return super().forward(x).to_sparse()

class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.a = nn.LazyConv2d(8, 3)

class Empty(nn.Module):
    def forward(self, x): return x

class Hollow(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 1, bias=False), nn.Linear(1, 4)
        self.a.weight = nn.Parameter(torch.ones(0, 8))
        self.b.weight = nn.Parameter(torch.ones(4, 0))

    def forward(self, x): return self.b(self.a(x))

class Blank(Net):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self.a.weight, float("nan"))

class Nowhere(Net):
    def __init__(self):
        super().__init__()
        self.to("meta")

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, x): return self.out(self.words(x).mean(1))
"""
INPUT = ("--input", "1x3x8x8")
HALF = ("--sparsity", "0.5")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:

    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    (tmp_path / "empty.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.rglob("*") if "__pycache__" not in str(p))


NETWORKS = [  # what is named, what it is told to take, and the message
    ("nets.py:missing", INPUT, "Unknown function or class 'missing'"),
    ("none.py:build", INPUT, "there is no file 'none.py'"),
    ("broken.py:build", INPUT, "broken.py, line 1: SyntaxError"),
    ("no.such:build", INPUT, "there is no module 'no.such'"),
    ("nets.py", INPUT, "Add the function: nets.py:build"),
    ("folder/x", INPUT, "names no network"),
    ("", INPUT, "A network is named by a text"),
    ("resnet-21", INPUT, "Did you mean"),
    ("torchvision/resnet5", INPUT, "Did you mean 'resnet50'"),
    ("hf/", INPUT, "needs the ID"),
    ("nets.py:NUMBER", INPUT, "must be a function or a class"),
    ("nets.py:nothing", INPUT, "must return a torch.nn.Module. Got NoneType"),
    ("nets.py:pair", INPUT, "must return a torch.nn.Module. Got tuple"),
    ("nets.py:needs", INPUT, "its arguments are (width, depth)"),
    ("nets.py:fails", INPUT, "ValueError: no such weights"),
    ("nets.py:exits", INPUT, "SystemExit: SystemExit(3)"),
    ("nets.py:endless", INPUT, "RecursionError"),
    ("nets.py:Silent", INPUT, "returns a NoneType, in which no tensor can be found"),
    ("nets.py:Unfinished", INPUT, "of shape (1, 3, 8, 8): NotImplementedError."),
    ("nets.py:Exits", INPUT, "code ended the program (SystemExit: 0)"),
    ("nets.py:Lazy", INPUT, "lazy layers"),
    ("nets.py:Sparse", INPUT, "another layout than PyTorch's usual one: sparse_coo"),
    ("nets.py:Hollow", INPUT, "The layer of 'a.weight' has no units"),
    ("nets.py:Nowhere", INPUT, "holds no numbers"),
    ("nets.py:Net", (), "Give the network's input: --input"),
    ("nets.py:Net", ("--input", "1x4x8x8"), "to have 3 channels, but got 4"),
    ("nets.py:Net", ("--input", "3x8x8"), "its first dimension counts samples"),
    ("nets.py:Net", ("--input", "1x3x2x2"), "Kernel size can't be greater"),
    ("nets.py:Net", ("--input", "1x3x8x8:int64"), "should be the same"),
    ("nets.py:Net", ("--input", "1x3x8x8:float99"), "Did you mean 'float64'"),
    ("nets.py:Net", ("--input", "0x3x8x8"), "--input must be"),
    ("nets.py:Net", ("--input", "images:1x3x8x8"), "Unknown input 'images'"),
    ("nets.py:Net", (*INPUT, *INPUT), "3 were given"),
    ("nets.py:Net", (*INPUT, "--set", "depth=3"), "unexpected keyword argument 'depth'"),
    ("nets.py:Net", (*INPUT, "--set", "width=-1"), "negative dimension"),
    ("nets.py:Net", (*INPUT, "--arguments", "{"), "--arguments must be a JSON object"),
    ("nets.py:Net", (*INPUT, "--keep", "none*"), "--keep: Unknown module"),
    ("nets.py:Net", (*INPUT, "--with", "none.py"), "no such file"),
    ("nets.py:Words", ("--input", "1x6"), "in 'words': Expected tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "message"), NETWORKS)
@pytest.mark.parametrize("words", [["inspect"], ["shrink", "--out", "small", *HALF]])
def test_a_network_that_cannot_be_had_or_run(
    here: Path, command: Command, words: list[str], name: str, given: tuple[str, ...], message: str
) -> None:
    before = files(here)
    done = command(words[0], name, *given, *words[1:])
    assert (done.code, done.out) == (2, ""), done
    assert message in done.text, done.text
    assert files(here) == before


CUTS = [  # the network, what is asked for, and the message
    ("Random", HALF, "'a' ('aten::bernoulli_' cannot be followed)"),
    ("Counts", HALF, "Such a network cannot be compared"),
    ("Chooses", HALF, "code depends on their number (with 5 of 8 it computes something else"),
    ("Branches", HALF, "fails on an input that the uncut one accepts: Given groups=1, weight"),
    ("Empty", HALF, "channels and heads of every kind (scope all), and this network has none"),
    ("Blank", HALF, "gave scores for 'a' that are not all finite. Check that its weights"),
    ("Net", (), "Got none"),
    ("Net", (*HALF, "--macs", "0.5"), "Got --macs and --sparsity"),
    ("Net", ("--sparsity", "0"), "Nothing would be cut: all 8 units"),
    ("Net", ("--sparsity", "-0.5"), "a number in [0, 1). Got -0.5"),
    ("Net", ("--sparsity", "1"), "a number in [0, 1). Got 1.0"),
    ("Net", ("--sparsity", "nan"), "Got nan"),
    ("Net", ("--sparsity", "half"), "Invalid value for '--sparsity'"),
    ("Net", ("--macs", "50%"), "Write a share of 1, such as 0.5 for 50%."),
    *[("Net", (f"--{cost}", value), f"a number between 0 and 1. Got {float(value)}")
      for cost in ("macs", "parameters", "latency") for value in ("0", "-1", "1", "1.5", "inf")],
    ("Net", ("--macs", "1e-9"), "from 0.125 to 1. Of its parameters 56.6% are kept whole: 56.6% "
     "because it is the network's output."),
    ("Net", (*HALF, "--multiple-of", "8"), "in multiples of 8. Increase the amount"),
    ("Net", (*HALF, "--multiple-of", "0"), "Invalid value for '--multiple-of'"),
    ("Net", (*HALF, "--rounds", "0"), "Invalid value for '--rounds'"),
    ("Net", (*HALF, "--keep", "*"), "'a' (asked to be kept)"),
    ("Net", (*HALF, "--scope", "linear"), "'a' (its kind is conv). Give the method a scope"),
    ("Net", (*HALF, "--criterion", "l9"), "Unknown criterion 'l9'"),
    ("Net", (*HALF, "--criterion", "taylor"), "on the command line, --data"),
    ("Net", (*HALF, "--criterion", "taylor", "--data", "folder:none"), "there is no folder"),
    ("Net", (*HALF, "--criterion", "taylor", "--data", "digits"), "takes 3x8x8 each"),
    ("Net", (*HALF, "--device", "tpu9"), "Cannot compute on the device 'tpu9'"),
    ("Net", (*HALF, "--weights", "none.pt"), "there is no such file"),
    ("Net", (*HALF, "--weights", "nets.py"), "a file of weights ends in"),
    ("Net", (*HALF, "--weights", "other.pt"), "it lacks 'a.weight', 'a.bias'"),
    ("Net", (*HALF, "--weights", "pickled.pt"), "it holds more than tensors"),
    ("Net", (*HALF, "--weights", "empty.safetensors"), "it is not a file of tensors"),
    ("Net", (*HALF, "--weights", "published"), "is not from a library"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "asked", "message"), CUTS)
def test_a_cut_that_cannot_be_made(
    here: Path, command: Command, name: str, asked: tuple[str, ...], message: str
) -> None:
    before = files(here)
    done = command("shrink", f"nets.py:{name}", *INPUT, "--out", "small", *asked)
    assert (done.code, done.out) == (2, ""), done
    assert message in done.text, done.text
    assert files(here) == before


CRITERION = """
import regrow

@regrow.criterion("mine")
def score(group, probe):
    return {}
"""


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("probe.wieght('a.weight')", "line 6: AttributeError: 'Probe' object has no attribute"),
        ("1 / 0", "line 6: ZeroDivisionError: division by zero"),
        ("[1.0]", "line 6: The criterion 'mine' must return one score for each of the 8 units"),
        ("unknown", "line 6: NameError"),
        ("regrow.Method(nme='x')", "line 6: TypeError"),
    ],
)
def test_a_criterion_of_ones_own_that_is_wrong_is_told_by_its_line(
    here: Path, command: Command, scores: str, message: str
) -> None:
    (here / "mine.py").write_text(CRITERION.format(scores))
    before = files(here)
    own = ("--with", "mine.py", "--criterion", "mine")
    done = command("shrink", "nets.py:Net", *INPUT, "--out", "small", *HALF, *own)
    assert (done.code, done.out) == (2, ""), done
    assert f"mine.py, {message}" in done.text, done.text
    assert files(here) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import regrow\nregrow.criterion(3)(len)\n", "--with mine.py, line 2: "),
        ("raise SystemExit(1)\n", "--with mine.py, line 1: SystemExit: 1"),
        ("def (:\n", "--with mine.py: SyntaxError"),
    ],
)
def test_a_file_that_registers_wrongly_is_told_by_its_line(
    here: Path, command: Command, text: str, message: str
) -> None:
    (here / "mine.py").write_text(text)
    done = command("inspect", "nets.py:Net", *INPUT, "--with", "mine.py")
    assert done.code == 2, done
    assert message in done.text, done.text


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nets.py", "exists already"),
        ("full", "exists already"),
        (".", "exists already"),
        ("nets.py/small", "Cannot write"),
        ("/proc/small/er", "Cannot write"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_built(
    here: Path, command: Command, out: str, message: str
) -> None:
    before = files(here)
    done = command("shrink", "nets.py:fails", *INPUT, *HALF, "--out", out)
    assert done.code == 2
    assert message in done.text
    assert files(here) == before


@pytest.mark.parametrize("name", ["stopped", "Stopped"])
def test_ctrl_c_is_said_and_nothing_is_written(here: Path, command: Command, name: str) -> None:
    before = files(here)
    done = command("shrink", f"nets.py:{name}", *INPUT, *HALF, "--out", "small")
    assert done.code == 130
    assert "nothing was written to 'small'" in done.text
    assert files(here) == before


@pytest.mark.usefixtures("here")
def test_a_network_of_which_nothing_can_be_cut_is_shown(command: Command) -> None:
    done = command("inspect", "nets.py:Random", *INPUT)
    assert done.code == 0
    assert "Nothing in it can be cut." in done.out
    assert "'aten::bernoulli_' cannot be followed" in done.out
