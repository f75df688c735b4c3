"""Cutting a network to a cost, from Python and by the command: the result, its proof, its card."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from commands import Command, command_line, environment
from regrow.cost.forecast import forecast
from regrow.cost.memory import peak_bytes
from regrow.own.card import SpeedPair, Spread, measure_speed
from regrow.own.exports import largest_gap

NET = """
import torch
from torch import nn

def build(width=16, fixed=False):
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )
    if fixed:
        net.forward = lambda x, run=net.forward: run(x[:1])
    return net

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        self.factor = next(NUMBERS)

    def forward(self, x):
        return self.layers(x) * self.factor

NUMBERS = iter(range(1, 100))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, tokens, scale):
        return self.out(self.hidden(self.words(tokens)).relu() * scale[..., None])
"""


BRANCH = """
from nets import build, nn

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()

    def forward(self, x):
        return self.inner(x if x.sum() > -1e9 else -x)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regrow.own.card.SECONDS", 0.0)
    return tmp_path


def net(**arguments: Any) -> nn.Module:
    code: dict[str, Any] = {}
    exec(NET, code)
    network: nn.Module = code["build"](**arguments)
    return network


SHRINK = ("shrink", "nets.py:build", "--input", "1x1x8x8", "--out", "small")


# The result --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_the_command_writes_a_network_and_its_card(here: Path, command: Command) -> None:
    done = command(*SHRINK, "--macs", "0.5", "--set", "width=32", "--pt2")
    assert done.code == 0, done
    names = sorted(file.name for file in (here / "small").iterdir())
    expected = ["architecture.json", "card.json", "card.md", "model.pt2", "weights.safetensors"]
    assert names == expected
    card = json.loads((here / "small" / "card.json").read_text())
    small = regrow.load("small", code="nets.py:build")
    x = torch.zeros(1, 1, 8, 8)
    cost = regrow.measure(small, x)
    assert card["macs"]["after"] == cost.macs <= 0.5 * card["macs"]["before"]
    assert card["parameters"]["after"] == cost.parameters
    assert card["proof"]["proven"]
    assert card["proof"]["least_sensitivity"] >= 1e-3
    assert [speed["batch"] for speed in card["speeds"]] == [1, 64]
    assert all(speed["speedup"] > 0 and speed["forecast"] > 0 for speed in card["speeds"])
    page = (here / "small" / "card.md").read_text()
    for words in ("| MACs |", "| latency, batch 64 |", "| peak memory, batch 1 |", "Proven: "):
        assert words in page
    module = torch.export.load(here / "small" / "model.pt2").module()
    y = torch.rand(5, 1, 8, 8)
    assert torch.allclose(module(y), small(y), atol=1e-5)


def test_widths_are_multiples(here: Path) -> None:
    found = regrow.compress(net(width=24), (1, 1, 8, 8), macs=0.6, multiple_of=8, batches=())
    assert [new for _, new in found.card.widths.values()] == [16, 16]
    assert found.card.macs[1] <= 0.6 * found.card.macs[0]
    assert found.proof.ok


@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, {"parameters": 0.3}, {"macs": 0.3}])
def test_each_amount_is_met(amount: dict[str, float]) -> None:
    found = regrow.compress(net(), (1, 1, 8, 8), batches=(), **amount)
    card = found.card
    if "macs" in amount:
        assert card.macs[1] <= 0.3 * card.macs[0]
    elif "parameters" in amount:
        assert card.parameters[1] <= 0.3 * card.parameters[0]
    else:
        assert [new for _, new in card.widths.values()] == [8, 8]


@pytest.mark.usefixtures("here")
def test_what_is_to_be_kept_is_kept(here: Path, command: Command) -> None:
    done = command(*SHRINK, "--sparsity", "0.5", "--keep", "0", "--rounds", "2", "--json")
    card = json.loads(done.out)
    assert list(card["widths"]) == ["3"]
    assert card["whole"]["0"] == "asked to be kept"
    small = regrow.load("small", code="nets.py:build")
    assert small[0].weight.shape[0] == 16


@pytest.mark.usefixtures("here")
def test_several_inputs_of_tokens_and_numbers(here: Path, command: Command) -> None:
    given = ("--input", "tokens:1x6:int64:20", "--input", "scale:1x6", "--sparsity", "0.5")
    done = command("shrink", "nets.py:Pair", *given, "--out", "small", "--pt2")
    assert done.code == 0, done
    small = regrow.load("small", code="nets.py:Pair")
    assert small(tokens=torch.zeros(2, 6, dtype=torch.long), scale=torch.ones(2, 6)).shape == (
        *(2, 6),
        3,
    )


@pytest.mark.usefixtures("here")
def test_data_are_for_criteria_that_look_at_them(here: Path, command: Command) -> None:
    code = (
        "import regrow\n"
        "@regrow.criterion('fires')\n"
        "def fires(group, probe):\n"
        "    return probe.activation(group).abs().mean(0)\n"
    )
    (here / "fires.py").write_text(code)
    asked = (*SHRINK, "--sparsity", "0.5", "--criterion", "fires", "--with", here / "fires.py")
    assert "needs data" in command(*asked).text
    done = command(*asked, "--data", "digits")
    assert done.code == 0, done
    wrong = command("shrink", "nets.py:build", "--input", "1x3x8x8", *asked[4:], "--data", "digits")
    assert wrong.code == 2


def test_a_network_without_numbers_is_refused() -> None:
    with torch.device("meta"):
        empty = nn.Linear(4, 2)
    message = r"2 parameters .* 'weight', are on the device"
    with pytest.raises(regrow.ConfigError, match=message):
        regrow.compress(empty, (1, 4), sparsity=0.5)
    with pytest.raises(regrow.ConfigError, match=message):
        regrow.inspect(empty, (1, 4))


def test_a_network_of_unknown_origin_is_cut_but_not_saved(tmp_path: Path) -> None:
    found = regrow.compress(net(), (1, 1, 8, 8), sparsity=0.5, batches=())
    with pytest.raises(regrow.ConfigError, match=r"It is not known how .*origin='package"):
        found.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()


# Files that are written completely or not at all ------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--macs", "0.5", "--sparsity", "0.5"],
            "one of --macs.*Got --macs and --sparsity",
        ),
        ([], "one of --macs.*Got none"),
        (["--macs", "1.5"], "a number between 0 and 1. Got 1.5"),
        (["--macs", "0.0001"], "macs 0.0001 cannot be reached"),
        (["--sparsity", "0.5", "--criterion", "l3"], "Unknown criterion 'l3'"),
        (["--sparsity", "0.5", "--allocation", "globl"], "Did you mean 'global'"),
        (["--sparsity", "0.5", "--scope", "convs"], "Unknown scope 'convs'"),
        (["--sparsity", "0.5", "--scope", "block"], "block"),
        (["--sparsity", "0.5", "--data", "digit"], "Did you mean 'digits'"),
        (["--sparsity", "0.5", "--weights", "none.pt"], "there is no such file"),
        (["--sparsity", "0.5", "--device", "tpu"], "tpu"),
        (["--sparsity", "0.5", "--set", "depth=3"], "'depth'"),
    ],
)
@pytest.mark.usefixtures("here")
def test_bad_input_is_one_message_and_nothing_is_written(
    here: Path, command: Command, arguments: list[str], message: str
) -> None:
    import re

    done = command(*SHRINK, *arguments)
    assert done.code == 2, done
    assert done.out == ""
    assert re.search(message, done.text), done.text
    assert sorted(p.name for p in here.iterdir() if p.name != "__pycache__") == ["nets.py"]


@pytest.mark.usefixtures("here")
def test_a_folder_is_not_written_over(here: Path, command: Command) -> None:
    (here / "small").mkdir()
    (here / "small" / "mine").write_text("")
    done = command(*SHRINK, "--sparsity", "0.5")
    assert done.code == 2
    assert "exists already" in done.text
    assert [p.name for p in (here / "small").iterdir()] == ["mine"]


@pytest.mark.usefixtures("here")
def test_a_network_that_is_built_otherwise_each_time_is_not_written(
    here: Path, command: Command
) -> None:
    done = command(
        *("shrink", "nets.py:Random", "--input", "1x4", "--sparsity", "0.5", "--out", "small")
    )
    assert done.code == 2
    assert "computes other outputs than the one that is rebuilt from" in done.text
    assert not (here / "small").exists()


@pytest.mark.usefixtures("here")
def test_an_export_that_is_off_is_not_written(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = torch.export.load

    def other(path: Path) -> Any:
        program = read(path)
        for value in program.state_dict.values():
            if value.is_floating_point():
                value.data.mul_(1.01)
        return program

    monkeypatch.setattr(torch.export, "load", other)
    done = command(*SHRINK, "--sparsity", "0.5", "--pt2")
    assert done.code == 2
    assert "the exported network is off by" in done.text
    assert not (here / "small" / "model.pt2").exists()


def test_a_failed_export_leaves_the_pruned_network(here: Path, command: Command) -> None:
    (here / "branch.py").write_text(BRANCH)
    done = command("shrink", "branch.py:Branch", *SHRINK[2:], "--macs", "0.5", "--pt2")
    assert done.code == 2
    assert "--pt2: this network cannot be exported" in done.text
    assert "'small' has the pruned network and everything else." in done.text
    names = sorted(file.name for file in (here / "small").iterdir())
    assert names == ["architecture.json", "card.json", "card.md", "weights.safetensors"]
    assert json.loads((here / "small" / "card.json").read_text())["exports"] == {}
    assert regrow.load("small", code="branch.py:Branch")(torch.ones(1, 1, 8, 8)).shape == (1, 10)


def test_a_missing_extra_is_named_before_anything_is_built(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    done = command(*SHRINK, "--sparsity", "0.5", "--onnx")
    assert done.code == 2
    assert "pip install 'regrow[onnx]'" in done.text


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_command_that_is_ended_midway_leaves_no_result(here: Path, sent: signal.Signals) -> None:
    for wait in (2.0, 4.0, 6.0):
        run = subprocess.Popen(
            command_line(*SHRINK, "--sparsity", "0.5", "--pt2", "--set", "width=256"),
            env=environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(wait)
        os.kill(run.pid, sent)
        _, said = run.communicate(timeout=60)
        assert "Traceback" not in said
        if (here / "small").exists():
            assert regrow.load("small", code="nets.py:build") is not None
            return


def test_a_network_is_tuned_saved_again_and_exported(here: Path) -> None:
    origin = regrow.ModelOrigin("nets.py:build")
    cut = regrow.compress(origin.build(), "1x1x8x8", sparsity=0.5, origin=origin, batches=())
    cut.save("small")
    small = regrow.load("small", code="nets.py:build")
    with torch.no_grad():
        small[0].weight.add_(0.1)
    regrow.save("tuned", small, regrow.Architecture.read("small", code="nets.py:build"))
    again = regrow.load("tuned", code="nets.py:build")
    assert torch.equal(again[0].weight, small[0].weight)
    assert "batches of any size" in regrow.export(small, (1, 1, 8, 8), "tuned.pt2")
    with pytest.raises(regrow.ConfigError, match="exists already"):
        regrow.export(small, (1, 1, 8, 8), "tuned.pt2")
    with pytest.raises(regrow.ConfigError, match=r"Unknown format 'tflite'. Known: onnx, pt2"):
        regrow.export(small, (1, 1, 8, 8), "tuned.tflite")
    left = sorted(p.name for p in here.iterdir() if p.name != "__pycache__")
    assert left == ["nets.py", "small", "tuned", "tuned.pt2"]


# Measurements ------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    layers = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 10))
    weights = sum(p.numel() for p in layers.parameters())
    x = torch.rand(8, 100)
    # The input, and what enters and leaves the ReLU.
    assert peak_bytes(layers, x) == 4 * (weights + 8 * 100 + 2 * 8 * 1000)


def test_a_network_of_half_the_work_is_forecast_faster() -> None:
    wide, narrow = (nn.Sequential(*[nn.Linear(n, n) for _ in range(4)]) for n in (512, 256))
    assert forecast(wide, wide, torch.rand(64, 512)) == pytest.approx(1.0, rel=0.3)
    small = nn.Sequential(nn.Linear(512, 256), narrow[:2], nn.Linear(256, 512))
    assert forecast(wide, small, torch.rand(64, 512)) > 1.3


def test_a_batch_that_a_network_does_not_take_is_said() -> None:
    class One(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[0] == 1
            return x

    speed = measure_speed(One(), One(), torch.rand(1, 4), batch=64)
    assert speed.ratio is None
    assert speed.why is not None
    assert "does not take it (AssertionError" in speed.why


def test_times_that_differ_too_much_are_flagged(here: Path) -> None:
    cut = regrow.compress(regrow.ModelOrigin("nets.py:build").build(), "1x1x8x8", sparsity=0.5)
    steady, rough = (Spread.of([1.0, 1.0, 1.0 + off, 1.0 + off]) for off in (0.05, 0.5))
    for after, flagged in ((steady, False), (rough, True)):
        card = replace(cut.card, speeds=[SpeedPair(batch=8, before=steady, after=after)])
        assert ("The times at batch 8 are rough (" in str(card)) is flagged
        assert ("At batch 8 it is roughly " in str(card)) is flagged
        assert ("The times at batch 8 are rough" in card.to_markdown()) is flagged
        assert card.to_json()["speeds"][0]["noisy"] is flagged


def test_rough_times_at_one_batch_size_do_not_take_back_the_speed_up_at_another(here: Path) -> None:
    cut = regrow.compress(regrow.ModelOrigin("nets.py:build").build(), "1x1x8x8", sparsity=0.5)
    steady, rough = (Spread.of([1.0, 1.0, 1.0 + off, 1.0 + off]) for off in (0.05, 0.5))
    speeds = [SpeedPair(batch=b, before=t, after=t) for b, t in ((1, rough), (64, steady))]
    text = str(replace(cut.card, speeds=speeds))
    assert "At batch 64 it is 1.00 times" in text
    assert "The times at batch 1 are rough (" in text
    assert "They show no speed-up at batch 1: " in text
    both = str(replace(cut.card, speeds=[replace(speed, before=rough) for speed in speeds]))
    assert "They show no speed-up at batch 1 or 64: " in both


@pytest.mark.usefixtures("here")
def test_batches_of_an_onnx_file_have_a_name(here: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    regrow.export(regrow.ModelOrigin("nets.py:build").build(), (1, 1, 8, 8), "net.onnx")
    graph = onnx.load("net.onnx").graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_an_input_that_was_guessed_is_said_where_a_network_fails(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regrow.ModelOrigin, "inputs", lambda self, network: "1x3x9x9")
    for asked in (("inspect",), ("shrink", "--sparsity", "0.5", "--out", "small")):
        done = command(asked[0], "nets.py:build", *asked[1:])
        assert done.code == 2
        assert "(The input 1x3x9x9 was guessed: give the network's own with --input.)" in done.text


def test_gaps_of_outputs() -> None:
    a = torch.tensor([1.0, 2.0])
    assert largest_gap({"a": a * 1.5}, {"a": a}) == 0.5
    assert largest_gap(a * float("nan"), a) == float("inf")
    assert largest_gap(a[:1], a) == float("inf")
    assert largest_gap(torch.complex(a, a), torch.complex(a, 0 * a)) == 1.0


# The example of the docs -------------------------------------------------------------------------


def test_the_example_of_the_docs_can_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.setattr("regrow.own.card.SECONDS", 0.0)
    monkeypatch.chdir(Path(__file__).parents[1] / "examples" / "own")
    asked = ("--macs", "0.5", "--multiple-of", "8", "--out", tmp_path / "small")
    done = command("shrink", "nets.py:MobileNet", "--input", "1x1x8x8", *asked)
    assert done.code == 0, done
    assert "211,824" in done.out
