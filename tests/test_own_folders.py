"""Networks and smaller ones that lie in folders: copied, renamed, misspelt; and what follows."""

import csv
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from commands import Command
from regrow.errors import ConfigError, DataError, TraceError
from regrow.jobs.own_network import CutFolder, OwnNetwork
from regrow.models import libraries, reach
from regrow.models.inputs import Inputs
from regrow.models.origins import ModelOrigin
from regrow.own.exports import EXPORTS
from regrow.studies.study import Study

NETS = """
import torch
from torch import nn

def mlp(width: int = 12):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def wider():
    return nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3))

def loaded():
    net = mlp()
    net.load_state_dict(torch.load("mine.pt", weights_only=True))
    return net
"""
TRAIN = """
import torch

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def train(model, budget, seed):
    optimiser = torch.optim.SGD(model.parameters(), 0.2)
    for _ in budget:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(x), y).backward()
        optimiser.step()
    return (model.eval()(x).argmax(1) == y).double().mean()
"""
ASKED = ("compare", "nets.py:mlp", "--input", "1x4", "--train", "mine.py:train", "--budget", "2",
         "--workers", "0", "--out", "results")  # fmt: skip
COMPARE = (*ASKED, "--num-test", "64", "--chance", "0.1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("regrow.own.card.SECONDS", 0.0)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "mine.py").write_text(TRAIN)
    save("mine.pt", seed=7)
    return tmp_path


def save(file: str, *, seed: int) -> None:
    torch.save(ModelOrigin("nets.py:mlp").build(seed=seed).state_dict(), file)


def shrunk(command: Command, out: str, *asked: str) -> None:
    done = command(
        *("shrink", "nets.py:mlp", "--input", "1x4", "--weights", "mine.pt", "--out", out), *asked
    )
    assert done.code == 0, done


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "rows.csv").open() as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


# Folders of smaller networks ---------------------------------------------------------------------


def test_a_network_is_compared_on_the_input_that_the_smaller_one_was_cut_with(
    here: Path, command: Command
) -> None:
    shrunk(command, "small", "--sparsity", "0.5")
    asked = [part for part in COMPARE if part not in ("--input", "1x4")]
    done = command(*asked, "--weights", "mine.pt", "--small", "small", "--seeds", "1")
    assert done.code == 0, done
    assert "No --input is given, so nets.py:mlp gets 1x4 as the smaller one was cut" in done.err
    assert "The cost of training the given weights is not known" in done.out.replace("\n    ", " ")


def test_a_comparison_says_first_which_network_to_take(here: Path, command: Command) -> None:
    shrunk(command, "small", "--sparsity", "0.5")
    given = ("--weights", "mine.pt", "--small", "small", "--seeds", "3", "--html")
    done = command(*COMPARE, *given)
    assert done.code == 0, done
    answer = done.out.partition("\nAnswer\n")[2].split("\n\n")[0]
    assert answer.startswith("  Which network to take? ")
    assert "Which network to take?" in (here / "results" / "report.html").read_text()
    assert (here / "results" / "report.md").read_text().index("Which network to take?") < 200
    found = rows(here / "results")
    assert [found[arm]["n"] for arm in ("unpruned", "pruned", "scratch-e")] == ["1", "1", "3"]
    assert "12 jobs to do" in done.err
    (here / "small").rename(here / "renamed")
    again = command(*COMPARE, *given[:2], "--small", "renamed", "--seeds", "3")
    assert again.code == 0, again
    assert "0 jobs done" in again.text, "a folder may be called otherwise"


def test_the_uniform_network_has_the_multiples_that_were_asked_for(
    here: Path, command: Command
) -> None:
    asked = ("--macs", "0.5", "--multiple-of", "4")
    shrunk(command, "small", *asked)
    for how in (asked, ("--small", "small")):
        done = command(*COMPARE, *how, "--uniform", "--seeds", "1", "--json")
        assert done.code == 0, done
        study = Study.load(here / "results" / "study.yaml")
        (job,) = [cell.job for cell in study.cells() if cell.arm.name == "uniform"]
        assert job.pruning is not None
        assert job.pruning.spec["multiple_of"] == 4
        uniform = next(row for row in json.loads(done.out)["rows"] if row["arm"] == "uniform")
        assert uniform["macs"] == 4 * 4 + 4 * 3


def test_a_folder_of_another_network_is_told_in_words(command: Command) -> None:
    shrunk(command, "small", "--sparsity", "0.5", "--set", "width=12")
    done = command(*COMPARE, "--small", "small", "--set", "width=8", "--seeds", "1")
    assert "'small' was cut from nets.py:mlp --set width=12, and the network compared" in done.text
    assert "ModelOrigin" not in done.text


def hub_network(text: str, **config: Any) -> OwnNetwork:
    settings = {"class": "BertModel", "type": "bert", "config": config}
    return OwnNetwork(
        origin=ModelOrigin(text, settings=settings),
        inputs=Inputs.read("input_ids:1x8:int64:20"),
        weights="random",
    )


def test_a_copy_of_a_saved_network_is_the_same_network(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.core.digests import sealed
    from regrow.surgery.architecture import ARCHITECTURE, Architecture

    saved = hub_network("hf/bert", hidden_size=8, _name_or_path="bert")
    content = Architecture(model=saved.origin, shape=saved.inputs).to_json()
    (here / "small").mkdir()
    (here / "small" / ARCHITECTURE).write_bytes(sealed(content, ARCHITECTURE).encode())
    monkeypatch.setattr("regrow.jobs.own_network.load_tensors", lambda file: ({}, None))
    folder = CutFolder(path="small", content="")
    folder.read(hub_network("hf/copies/bert2", hidden_size=8, _name_or_path="copies/bert2"))
    with pytest.raises(ConfigError, match=r"cut from hf/bert, .* is hf/bert, which has other set"):
        folder.read(hub_network("hf/bert", hidden_size=16))


def test_results_hang_on_the_weights_that_code_reads() -> None:
    def key() -> Any:
        inputs = Inputs.read("1x4")
        return OwnNetwork.of(ModelOrigin("nets.py:loaded"), inputs, weights="code").to_json()

    before = key()
    assert before == key()
    save("mine.pt", seed=8)
    assert before != key()


MASKED = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, x, mask=None, labels=None, num_items_in_batch=None):
        seen = self.words(x) if mask is None else self.words(x) * mask[..., None]
        scores = self.out(seen.mean(1))
        return scores if labels is None else (cross_entropy(scores, labels), scores)

def train(model, budget, seed):
    x, mask = torch.arange(20).reshape(4, 5), torch.ones(4, 5)
    for _ in budget:
        items = torch.tensor(4)
        loss, _ = model(x, mask=mask, labels=torch.arange(4) % 3, num_items_in_batch=items)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return 0.5
"""


def test_inputs_that_only_the_training_names_are_said(here: Path, command: Command) -> None:
    (here / "masked.py").write_text(MASKED)
    base = ["compare", "masked.py:Masked", "--train", "masked.py:train", "--sparsity", "0.5"]
    base += ["--budget", "1", "--seeds", "1", "--workers", "0", "--out", "results"]
    told = "The function trains with 'mask' too, which --input does not name"
    done = command(*base, "--input", "1x5:int64:20")
    assert (done.code, told in done.text) == (0, True), done
    named = command(*base, "--input", "x:1x5:int64:20", "--input", "mask:1x5")
    assert (named.code, told in named.text) == (0, False), named


# Failures ----------------------------------------------------------------------------------------


def test_where_nothing_was_measured_there_are_no_tables(here: Path, command: Command) -> None:
    (here / "mine.py").write_text("def train(model, budget, seed):\n    return 1 / 0\n")
    done = command(*COMPARE, "--macs", "0.5", "--seeds", "1")
    assert done.code == 1
    assert "mine.py, line 2: ZeroDivisionError" in done.text
    assert "Nothing was measured, so there are no tables." in done.out
    assert "not run" not in done.out
    assert len(done.out.splitlines()) < 15


def test_an_unknown_metric_is_offered_the_nearest(command: Command) -> None:
    done = command(*COMPARE, "--macs", "0.5", "--metric", "acuracy")
    assert done.code == 2
    assert "Unknown metric 'acuracy'. Did you mean 'accuracy'" in done.text
    assert "--margin" in done.text


WRONG = [  # what is asked for beside a comparison, and the message
    (("--macs", "50"), "a number between 0 and 1. Got 50.0. For 50 % write 0.5."),
    (("--sparsity", "40"), "a number in [0, 1). Got 40.0. For 40 % write 0.4."),
    (("--macs", "0.5", "--chance", "10"), "is a share of 1, as the training function returns it"),
    (("--macs", "0.5", "--rival", "width 3"), "--rival must be a network, timm/NAME, or arg"),
    (("--macs", "0.5", "--rival", " "), "--rival must be a network, timm/NAME, or arguments"),
    (("--macs", "0.5", "--rival-budget", "equal"), "--rival-budget: Unknown budget 'equal'. Did"),
    (
        ("--macs", "0.5", "--width-multiplier", "width=3"),
        "names an argument without a value. Got 'width=3'",
    ),
    (("--macs", "0.5", "--width-multiplier", "depth"), "no number 'depth' among its arguments"),
    (("--macs", "0.5", "--weights", "random"), "Leave it out: the network then begins with new"),
    (("--macs", "0.5", "--weights", "pretraind"), "no such file. Do you mean published?"),
    (("--small", "gone"), "No smaller network can be read from 'gone': there is no such folder"),
    (("--small", "mine.pt"), "from 'mine.pt': it is a file, not a folder"),
    (("--small", "."), "from '.': it has no architecture.json and no weights.safetensors"),
    (("--macs", "0.5", "--fine-tune", "0"), "A budget's share must be a number above 0"),
    (("--macs", "0.5", "--cap", "0.5"), "cap must be a number of at least 1"),
    (("--macs", "0.5", "--num-test", "0"), "'num_test' must be an int of at least 1"),
    (("--macs", "0.5", "--margin", "0"), "The 'margin' of 'accuracy' must be above 0"),
    (("--macs", "0.5", "--metric", "Accuracy"), "Did you mean 'accuracy'"),
    (("--macs", "0.5", "--budget-unit", "epoch"), "one of epochs, steps, samples, flops"),
    (("--macs", "0.5", "--budgets", "1-4"), "Each of the 'budgets' must be a number of epochs"),
    (("--macs", "0.5", "--criterion", "l1-filter"), "is a method, but a criterion is needed here"),
    (("--macs", "0.5", "--keep", "layer"), "--keep: Unknown module 'layer'"),
    (("--macs", "0.5", "--store", "nets.py"), "a file is in the place of a folder (nets.py)"),
    (("--macs", "0.5", "--device", "gpu"), "Cannot compute on the device 'gpu'"),
    ((), "There is no smaller network to compare"),
]


@pytest.mark.parametrize(("asked", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_comparison_that_cannot_be_meant_says_what_is_meant(
    here: Path, command: Command, asked: tuple[str, ...], message: str
) -> None:
    before = {path for path in here.rglob("*") if "__pycache__" not in str(path)}
    done = command(*ASKED, *asked)
    assert (done.code, done.out) == (2, ""), done
    assert message in done.text, done.text
    assert {path for path in here.rglob("*") if "__pycache__" not in str(path)} == before


NAMES = [  # of networks, and what is offered in their place
    ("huggingface/bert", "Do you mean hf/bert?"),
    ("torch-vision/resnet18", "Do you mean torchvision/resnet18?"),
    ("nets.mlp", "Do you mean nets.py:mlp?"),
    ("nets.py", "Add the function: nets.py:build"),
    ("mine.pt", "give it with --weights, beside the code"),
    ("small", "'small' holds a network that regrow saved. Name a function that loads it"),
    ("bert", "Do you mean hf/bert?"),
]


@pytest.mark.parametrize(("name", "offered"), NAMES)
def test_a_name_of_no_network_is_offered_what_it_may_stand_for(
    here: Path, command: Command, name: str, offered: str
) -> None:
    for folder, file in (("small", "architecture.json"), ("bert", "config.json")):
        (here / folder).mkdir()
        (here / folder / file).write_text("{}")
    done = command("inspect", name, "--input", "1x4")
    assert done.code == 2
    assert offered in done.text, done.text


@pytest.mark.parametrize("shape", ["1,4", "(1, 4)", "1X4", "1*4", "1x4x", "1 4"])
def test_a_shape_as_others_write_it_is_offered_as_it_is_written_here(
    command: Command, shape: str
) -> None:
    assert "Do you mean 1x4?" in command("inspect", "nets.py:mlp", "--input", shape).text


CONV = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    )
"""


@pytest.mark.parametrize(
    ("given", "meant"), [("3x8x8", "1x3x8x8"), ("1x8x8", None), ("1x3x9x8", None), ("8x8", None)]
)
def test_a_forgotten_batch_is_offered_only_where_the_network_takes_it(
    here: Path, given: str, meant: str | None
) -> None:
    (here / "conv.py").write_text(CONV)
    network = ModelOrigin("conv.py:net").build()
    hint = "The first number is the size of the batch: do you mean"
    uses: list[Callable[[], Any]] = [
        lambda: regrow.inspect(network, given),
        lambda: regrow.export(network, given, "net.pt2"),
        lambda: regrow.compare(
            {"network": "conv.py:net", "input": given},
            "mine.py:train",
            metric="accuracy",
            budget=1,
            amounts={"macs": 0.5},
        ),
    ]
    for use in uses:
        with pytest.raises((ConfigError, TraceError)) as told:
            use()
        assert (hint in str(told.value)) == (meant is not None)
        assert f"{hint} {meant}?" in str(told.value) or meant is None


def test_an_export_is_written_with_all_its_files_or_not_at_all(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*COMPARE, "--macs", "0.5", "--seeds", "1").code == 0
    asked = ("export", "results/study.yaml", "--arm", "scratch-e", "--pt2", "--to")

    def killed(*_: Any) -> str:
        raise KeyboardInterrupt

    before = {*here.iterdir()}
    monkeypatch.setitem(EXPORTS, "pt2", killed)
    assert command(*asked, "best").code != 0
    assert {*here.iterdir()} == before
    monkeypatch.undo()
    monkeypatch.chdir(here)
    (here / "best").mkdir()
    (here / "best" / "notes.txt").write_text("mine")
    assert command(*asked, "best").code == 0
    names = ["architecture.json", "model.pt2", "notes.txt", "result.json", "weights.safetensors"]
    assert sorted(file.name for file in (here / "best").iterdir()) == names


def test_exports_of_two_networks_do_not_lie_in_one_folder(here: Path, command: Command) -> None:
    assert command(*COMPARE, "--macs", "0.5", "--seeds", "1").code == 0
    asked = ("export", "results/study.yaml", "--to", "best", "--arm")
    assert command(*asked, "scratch-e", "--pt2").code == 0
    before = {path: path.read_bytes() for path in (here / "best").iterdir()}
    done = command(*asked, "fine-tune", "--pt2")
    assert "'best' has model.pt2 of an earlier export, which would be mixed with" in done.text
    assert before == {path: path.read_bytes() for path in (here / "best").iterdir()}
    assert "Do you mean results/study.yaml?" in command("export", "results", "--to", "x").text
    told = command("export", "best", "--to", "x").text
    assert "'best' holds a network: regrow.export(regrow.load('best'), INPUT" in told


LOADS = [  # a folder, the code, and the message
    ("gone", None, "No network can be read from 'gone': there is no such folder in"),
    ("mine.pt", None, "it is a file, not a folder"),
    (".", None, "it has no architecture.json and no weights.safetensors"),
    ("bert", None, "it holds a network of transformers: name it hf/bert"),
    ("small", None, "which is not run just because a file names it"),
    ("small", "nets.py", "names no network"),
    ("small", "nets.py:wider", "Is nets.py:wider the code that it was cut from?"),
]


@pytest.mark.parametrize(("folder", "code", "message"), LOADS)
def test_a_network_that_cannot_be_loaded_is_told(
    here: Path, command: Command, folder: str, code: str | None, message: str
) -> None:
    (here / "bert").mkdir()
    (here / "bert" / "config.json").write_text("{}")
    shrunk(command, "small", "--sparsity", "0.5")
    with pytest.raises(regrow.RegrowError) as error:
        regrow.load(folder, code=code)
    assert message in str(error.value)


def test_what_python_is_given_wrongly_is_told() -> None:
    net = ModelOrigin("nets.py:mlp").build()
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: regrow.compress(net, "1x4", batches=()), "takes one of macs.* Got none"),
        (lambda: regrow.compress(net, "1x4", macs=0.5, sparsity=0.5), "Got macs and sparsity"),
        (lambda: regrow.inspect("nets.py:mlp", "1x4"), r"ModelOrigin\('nets.py:mlp'\).build"),
        (lambda: regrow.inspect(nn.Linear, "1x4"), "must be a torch.nn.Module, such as Net"),
        (lambda: regrow.save("net", net, "nets.py:mlp"), "third argument of regrow.save says"),
        (lambda: regrow.export(net, "1x5", "net.pt2"), "fails on the input 1x5"),
        (lambda: regrow.export(net, "1x4", "net"), "Unknown format"),
    ]
    for call, message in wrong:
        with pytest.raises(ConfigError, match=message):
            call()


# Names of the hub --------------------------------------------------------------------------------


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that does not answer, and a transformers that has nothing; returns what it is asked."""
    asked: list[dict[str, Any]] = []

    def fails(name: str, **options: Any) -> None:
        asked.append(options)
        raise OSError(f"{name} is not here")

    module = SimpleNamespace(AutoConfig=SimpleNamespace(from_pretrained=fails))
    monkeypatch.setattr(libraries, "_transformers", lambda name: module)
    monkeypatch.setattr(libraries, "hub_answers", lambda: False)
    return asked


def test_a_misspelt_folder_is_said_at_once(here: Path, no_hub: list[dict[str, Any]]) -> None:
    (here / "my-bert").mkdir()
    (here / "my-bert" / "config.json").write_text("{}")
    with pytest.raises(DataError) as error:
        ModelOrigin("hf/my-brt").build()
    told = str(error.value)
    assert f"There is no folder 'my-brt' in '{here}'. Did you mean hf/my-bert?" in told
    assert "the hub does not answer. Connect to the internet, or name a folder." in told
    assert no_hub == [{"trust_remote_code": False, "local_files_only": True}]


@pytest.mark.parametrize("name", ["../gone", "a/b/c", "~/gone", "/tmp/gone/bert", "./bert"])
def test_a_path_is_no_name_of_the_hub(name: str, no_hub: list[dict[str, Any]]) -> None:
    with pytest.raises(
        ConfigError, match=r"There is no folder '.*It is not an ID of the Hugging Face hub"
    ):
        ModelOrigin(f"hf/{name}").build()
    assert no_hub == []


def test_a_folder_without_a_configuration_is_said(here: Path, no_hub: list[dict[str, Any]]) -> None:
    (here / "bert").mkdir()
    with pytest.raises(DataError, match=r"Expected a folder with a config.json"):
        ModelOrigin("hf/bert").build()
    assert no_hub == [{"trust_remote_code": False}], "a folder needs no hub"


def test_a_hub_out_of_reach_is_known_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*reach.OFFLINE, "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(reach, "SECONDS", 0.2)
    connected, answers = SimpleNamespace(close=lambda: None), threading.Event()
    monkeypatch.setattr(
        socket, "create_connection", lambda *_, **__: answers.wait(60) and connected
    )
    began = time.monotonic()
    assert not reach.hub_answers.__wrapped__()
    assert time.monotonic() - began < 10
    answers.set()
    assert reach.hub_answers.__wrapped__()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not reach.hub_answers.__wrapped__()


class Words(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(20, width)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return self.words(input_ids)


def test_a_width_of_a_saved_network_is_sought_without_its_folder() -> None:
    from regrow.studies.family import _cost

    seen = []

    def build(origin: ModelOrigin, *, seed: int = 0) -> nn.Module:
        seen.append((origin.settings["config"]["hidden_size"], origin.arguments))
        return Words(origin.arguments["hidden_size"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelOrigin, "build", build)
        assert _cost(hub_network("hf/gone", hidden_size=8), "hidden_size", 4, "parameters") == 80
    assert seen == [(8, {"hidden_size": 4})]
