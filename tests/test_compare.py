"""Comparisons by a training function of one's own, on a perceptron of a few weights."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import regrow
from browser import check_accessible
from commands import Command, command_line, environment
from regrow.comparison import ComparisonResult
from regrow.core.global_rng import drawing
from regrow.errors import ConfigError
from regrow.models.origins import code_at
from regrow.report import verdicts
from regrow.report.record_fields import OF_ALL, OF_COSTS, OF_OWN, OF_TRAININGS
from regrow.report.statistics import paired
from regrow.run import Event, JobDone
from regrow.run.executors import Settings, execute
from regrow.studies.study import Study
from regrow.train.function import Allowance, TrainFunction, Unit

NETS = """
from torch import nn

def mlp(width: int = 12):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()
        self.scale = nn.Parameter(__import__("torch").full((3,), 2.0))

    def forward(self, x):
        return self.layers(x) * self.scale

class Wide(nn.Module):
    def __init__(self, width: int = 256):
        super().__init__()
        self.one, self.two = nn.Linear(4, width), nn.Linear(width, 3)
        self.table = nn.Parameter(__import__("torch").randn(width, width) / width**0.5)

    def forward(self, x):
        return self.two((self.one(x).relu() @ self.table).relu())

def quiet():
    net = mlp(128)
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.weight, std=0.02)
    return net

made = quiet()
"""
DATA = """
import torch
from torch.nn.functional import cross_entropy

generator = torch.Generator().manual_seed(0)
x = torch.randn(96, 4, generator=generator)
y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def steps(model, num, batch=32):
    optimiser = torch.optim.SGD(model.parameters(), 0.2)
    model.train()
    for _ in range(num):
        part = torch.randperm(64)[:batch]
        optimiser.zero_grad()
        cross_entropy(model(x[part]), y[part]).backward()
        optimiser.step()

def measured(model):
    model.eval()
    with torch.no_grad():
        logits = model(x[64:])
    right = (logits.argmax(1) == y[64:]).double().mean()
    return {"accuracy": right, "loss": cross_entropy(logits, y[64:])}
"""
TRAIN = """
from data import measured, steps

def train(model, budget, seed):
    steps(model, 2 * budget.epochs)
    return measured(model)
"""
STUDY: dict[str, Any] = {
    "name": "mine",
    "train": "mine.py:train",
    "metric": {"name": "accuracy", "num_test": 32, "chance": 0.4},
    "budget": {"epochs": 8},
    "models": {"network": "nets.py:mlp", "input": "1x4"},
    "methods": {"name": "l1", "sparsity": 0.5},
    "arms": ["unpruned", "pruned", "fine-tune", "scratch-e", {"name": "scratch-b", "cap": 3}],
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network, data and a training function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "data", raising=False)  # another test's
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "mine.py").write_text(TRAIN)
    return tmp_path


def write(folder: Path, **changes: Any) -> Path:
    value = {name: part for name, part in {**STUDY, **changes}.items() if part is not None}
    (folder / "study.yaml").write_text(yaml.safe_dump(value))
    return folder / "study.yaml"


def runs_in(report: Path) -> dict[tuple[str, int], Any]:
    """Return the runs of a report by arm and seed."""
    lines = csv.DictReader((report / "runs.csv").read_text().splitlines())
    return {(line["arm"], int(line["seed"])): line for line in lines}


def small_comparison(net: str = "nets.py:mlp", **options: Any) -> ComparisonResult:
    found: ComparisonResult = regrow.compare(
        {"network": net, "input": "1x4"},
        "mine.py:train",
        **{"metric": "accuracy", "budget": 4, "amounts": {"sparsity": 0.5}, "seeds": 2} | options,
        workers=0,
    )
    return found


def test_every_arm_is_trained_for_its_budget() -> None:
    found = small_comparison(budget=8, seeds=1)
    runs = {run.arm: run for run in found.runs}
    assert [run.macs for run in runs.values()] == [84, 42, 42, 42, 42]
    # Equal FLOPs: three biases and as many ReLUs as hidden units are counted beside.
    assert {arm: run.epochs for arm, run in runs.items()} == {
        "unpruned": 8,
        "pruned": 0,
        "fine-tune": 2,
        "scratch-e": 8,
        "scratch-b": 8 * (2 * 84 + 27) // (2 * 42 + 15),
    }
    # An epoch is two batches of 32 here; a row counts what it depends on too.
    samples = {arm: run.samples for arm, run in runs.items()}
    assert samples == {
        "unpruned": 8 * 64,
        "pruned": 8 * 64,
        "fine-tune": (8 + 2) * 64,
        "scratch-e": (8 + 8) * 64,
        "scratch-b": (8 + 15) * 64,
    }
    assert "Is training from scratch (scratch-b) as good as fine-tuning (fine-tu" in found.answer
    assert [row["fairness"] for row in found.rows.to_dict("records")] == [
        "8 epochs",
        "no training after pruning",
        "2 epochs after the unpruned network's 8",
        "equal epochs",
        "equal FLOPs",
    ]


def test_a_budget_of_the_whole_pipeline_is_said(here: Path) -> None:
    cells = Study.load(write(here, arms=["unpruned", "scratch-pipeline"], seeds=1)).cells()
    assert [cell.job.stamp for cell in cells] == [
        "8 epochs",
        "FLOPs of the whole pipeline, the unpruned network's training counted",
    ]


def test_a_function_gets_the_same_kind_of_budget_for_every_arm(here: Path) -> None:
    (here / "mine.py").write_text(
        "from data import measured, steps\n"
        "def train(model, budget, seed):\n"
        "    with open('told.txt', 'a') as file:\n"
        "        print(budget.amount, budget.whole, budget.unit, budget.share, seed,\n"
        "              round(budget.flops / max(budget.samples, 1)), budget.inherited, file=file)\n"
        "    steps(model, budget.samples // 32)\n"
        "    return measured(model)\n"
    )
    found = small_comparison(budget={"samples": 128}, arms=["unpruned", "fine-tune"], seeds=[7])
    assert not found.failures
    small, large = (
        round(3 * flops) for flops in (2 * (4 * 6 + 6 * 3) + 15, 2 * (4 * 12 + 36) + 27)
    )
    assert (here / "told.txt").read_text().splitlines() == [
        f"128 128 samples 1.0 7 {large} False",
        f"32 128 samples 0.25 7 {small} True",
    ]
    notes = " ".join(found.notes)
    assert "At which rate it fine-tuned is not known here" in notes
    assert "Whether the unpruned network had converged is not known" in notes
    assert "The cost of training the given weights" not in notes


def test_the_statistics_are_those_of_a_study(here: Path) -> None:
    found = small_comparison(budget=8, seeds=3, out="report")
    scores = {
        arm: [float(run.score) for run in found.runs if run.arm == arm and run.score is not None]
        for arm in ("scratch-e", "fine-tune")
    }
    expected = paired(scores["scratch-e"], scores["fine-tune"])
    (verdict,) = [v for v in found.verdicts if (v.arm, v.against) == ("scratch-e", "fine-tune")]
    assert verdict.comparison is not None
    assert verdict.comparison.difference == pytest.approx(expected.difference)
    assert verdict.comparison.p == pytest.approx(expected.p)
    assert verdicts(found.runs) == found.verdicts
    assert {"report.md", "rows.csv"} <= {file.name for file in (here / "report").iterdir()}
    assert list(found.rows["arm"])[:2] == ["unpruned", "pruned"]


@pytest.mark.parametrize(
    ("unit", "loop", "shares"),
    [
        # Epochs show by a smaller last batch, at the first batch of the second epoch.
        (
            "epochs",
            "for _ in range(budget.epochs):\n        for n in (4, 4, 2): see(n)",
            "000466799",
        ),
        ("epochs", "for _ in budget:\n        for n in (4, 4, 4): see(n)", "000333666"),
        ("steps", "for _ in range(budget.steps): see(5)", "369"),
        ("samples", "for _ in range(budget.samples): see(1)", "369"),
    ],
)
def test_how_much_of_a_budget_is_spent_shows_while_a_function_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: Unit, loop: str, shares: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loops.py").write_text(
        "import torch\n\n\ndef train(model, budget, seed):\n"
        "    def see(n):\n        model(torch.ones(n, 4)).sum().backward()\n"
        "        torch.optim.SGD(model.parameters(), 0.1).step()\n"
        f"    {loop}\n    return 0.5\n"
    )
    allowance = Allowance(amount=3, unit=unit, whole=3, flops_per_sample=1.0)
    told: list[float] = []
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    function = TrainFunction.read("loops.py:train")
    function(model, allowance, 0, on_pass=lambda share, samples: told.append(share))
    assert "".join(str(int(10 * share)) for share in told) == shares


def called(text: str, *, amount: int = 2) -> Any:
    """Call a training function of a file on a small network."""
    Path("other.py").write_text(text)
    with drawing(0):
        model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    allowance = Allowance(amount=amount, unit="epochs", whole=8, flops_per_sample=1.0)
    return TrainFunction.read("other.py:train")(model, allowance, 0, metric="a")


HEAD = "from data import *\ndef train(model, budget, seed):\n    "
TRAINS = HEAD + "steps(model, 2); "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TRAINS + "pass", r"must return a number for its metric. Got None. Does it lack a return"),
        (TRAINS + "return {}", r"must return a number, or a mapping of 1 to 100 numbers"),
        (TRAINS + "return 'good'", r"must return a number for its metric. Got 'good'"),
        (TRAINS + "return {'a': [1]}", r"a number for the metric 'a'. Got \[1\]"),
        (TRAINS + "return {3: 1.0}", r"each name a text. Got 3"),
        (
            TRAINS + "return {'a': float('nan')}",
            r"returned nan for the metric 'a'",
        ),
        (TRAINS + "raise KeyError('no')", r"other.py, line 3: KeyError: 'no'"),
        (TRAINS + "print('epoch 1'); 1 / 0", r"ZeroDivisionError.* It printed last: 'epoch 1'"),
        (TRAINS + "import sys; sys.exit(3)", r"other.py, line 3: SystemExit: 3"),
        (TRAINS + "model.to('meta'); return 1", r"on the device 'meta', which holds no numbers"),
        (TRAINS + "model[0] = torch.nn.Linear(4, 5); return 1", r"changed the network's layers"),
        (TRAINS + "model.double(); return 1", r"changed the network's layers \('0.bias'"),
        (
            TRAINS + "model[0].weight.data[0] = torch.inf; return 1",
            r"other.py, line 2: other.py:train left numbers in '0.weight' that are",
        ),
        (HEAD + "return 0.5", r"was called to train, but changed no parameter"),
        (
            HEAD + "return budget.steps",
            r"ConfigError: This budget is in epochs: read bu",
        ),
    ],
)
def test_what_a_function_does_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(regrow.TrainingError, match=message):
        called(text)


def test_a_function_that_trains_without_a_budget_is_refused() -> None:
    """Its score would be given as that of the pruned network before any training."""
    with pytest.raises(regrow.TrainingError, match="changed parameters with a budget of 0"):
        called(TRAINS + "return 1", amount=0)
    assert called(HEAD + "return 1", amount=0).metrics == {"": 1.0}


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "other.py:train", "Unknown function or class 'train'"),
        (
            "def train(model): pass",
            "other.py:train",
            r"three arguments.*takes \(model\)",
        ),
        ("train = 3", "other.py:train", "must be a function"),
        ("1 / 0", "other.py:train", "other.py, line 1: ZeroDivisionError"),
        ("def f(:", "other.py:train", "line 1: SyntaxError"),
        ("", "train", "A training function must be given as"),
        ("", "none.py:train", "there is no file 'none.py'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(text: str, place: str, message: str) -> None:
    Path("other.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainFunction.read(place)


def test_a_function_may_print_and_draw_as_it_likes(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    text = TRAINS + "print('x' * 10**6); torch.manual_seed(1); return measured(model)['loss']"
    first, again = called(text), called(text)
    assert first.metrics == again.metrics, "what it draws depends on the seed alone"
    assert (first.samples, first.passes, first.shape) == (64, 2, (4,))
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")


def test_only_training_passes_are_counted() -> None:
    text = HEAD + "steps(model, 3); model.eval(); model(x); return 1"
    assert called(text).samples == 96


def test_arms_of_a_seed_start_where_they_should(here: Path) -> None:
    (here / "mine.py").write_text(
        TRAIN.replace(
            "    steps",
            "    with open('starts.txt', 'a') as file:\n"
            "        size = float(model[0].weight.detach().abs().sum())\n"
            "        print(budget.epochs, seed, size, file=file)\n"
            "    steps",
        )
    )
    net = regrow.ModelOrigin("nets.py:mlp").build(seed=5)
    torch.save(net.state_dict(), "weights.pt")
    found = regrow.compare(
        {"network": "nets.py:mlp", "input": "1x4", "weights": "weights.pt"},
        "mine.py:train",
        metric="accuracy",
        budget=8,
        amounts={"sparsity": 0.5},
        seeds=2,
        workers=0,
    )
    assert not found.failures
    starts: dict[tuple[int, int], set[str]] = {}
    for line in (here / "starts.txt").read_text().splitlines():
        epochs, seed, size = line.split()
        starts.setdefault((int(epochs), int(seed)), set()).add(size)
    assert len(starts[0, 0]) == 2, "the whole network, and what was cut from it"
    assert (0, 1) not in starts, "what nothing trains is measured once"
    assert starts[2, 0] == starts[2, 1] < starts[0, 0]
    assert starts[8, 0] == starts[15, 0] != starts[8, 1] == starts[15, 1]


def test_a_budget_of_nothing_only_measures() -> None:
    assert called(HEAD + "return 0.5", amount=0).metrics == {"": 0.5}


def test_copies_that_a_function_trains_are_counted_too() -> None:
    text = HEAD + (
        "import copy, pickle; best = copy.deepcopy(model); steps(best, 3)\n"
        "    pickle.loads(pickle.dumps(best)); model.load_state_dict(best.state_dict()); return 1"
    )
    assert called(text).samples == 96


def test_keys_hang_on_the_source_and_not_on_its_place(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> set[str]:
        return {job.key for job in Study.load(write(Path())).jobs()}

    first = keys()
    (here / "elsewhere").mkdir()
    for name in ("nets.py", "data.py", "mine.py"):
        (here / "elsewhere" / name).write_text((here / name).read_text())
    monkeypatch.chdir(here / "elsewhere")
    assert keys() == first
    Path("other.py").write_text("# imported by nothing")
    assert keys() == first
    Path("data.py").write_text(DATA + "# edited")
    assert not keys() & first


def test_a_failing_function_loses_nothing_else(here: Path, command: Command) -> None:
    (here / "mine.py").write_text(
        TRAIN.replace(
            "    return", "    if budget.epochs == 2 and seed == 1:\n        oh\n    return"
        )
    )
    write(here)
    failed = command("run", "study.yaml", "--workers", "0")
    assert failed.code == 1
    assert "mine.py, line 7: NameError: name 'oh' is not defined" in failed.text
    status = {place: run["status"] for place, run in runs_in(here / "regrow-report/mine").items()}
    assert {place for place in status if status[place] == "failed"} == {("fine-tune", 1)}
    assert [*status.values()].count("done") == 9


WRONG = "def train(model, budget, seed):\n    {}\n"
AWRY = "from data import *\ndef train(model, budget, seed):\n    steps(model, budget.epochs); {}\n"


@pytest.mark.parametrize(
    ("text", "given", "num", "told"),
    [
        (WRONG.format("oh"), True, 1, "mine.py, line 2: NameError: name 'oh' is not defined"),
        (
            WRONG.format("return {'acc': 1.0}"),
            True,
            1,
            "returned no 'accuracy', by which networks are to be compared, but 'acc'. Return it",
        ),
        (WRONG.format("return 1.0 if not budget.epochs else oh"), True, 2, "line 2: NameError"),
        (AWRY.format("oh"), False, 2, "mine.py, line 3: NameError: name 'oh' is not defined"),
    ],
    ids=["measuring", "metric", "training", "without weights"],
)
def test_a_function_that_is_wrong_for_every_network_fails_early_and_once(
    here: Path, command: Command, text: str, given: bool, num: int, told: str
) -> None:
    (here / "mine.py").write_text(text)
    if given:
        write(here, models={"network": "nets.py:mlp", "input": "1x4", "weights": "code"})
    else:
        write(here)
    failed = command("run", "study.yaml", "--workers", "0")
    assert failed.code == 1
    assert failed.err.count(told) == 1
    lines = [line for line in failed.err.splitlines() if line.startswith("FAILED")]
    assert len(lines) == num
    assert all("the same failure as in" in line for line in lines[1:])
    assert ("not started, because the same function failed for" in failed.err) == given
    assert " ".join(failed.out.split()).count(told) == 1  # under Failures


def test_trainings_that_diverge_stop_the_others_though_one_measurement_does_not(
    here: Path, command: Command
) -> None:
    (here / "mine.py").write_text(
        AWRY.format("model[0].weight.data[0] = float('nan'); return measured(model)")
    )
    write(here, models={"network": "nets.py:mlp", "input": "1x4", "weights": "code"})
    failed = command("run", "study.yaml", "--workers", "0")
    assert len([line for line in failed.err.splitlines() if line.startswith("FAILED")]) == 2
    assert "not started, because the same function failed" in failed.err
    place = rf"{re.escape(str(here / 'mine.py'))}, line 2: "
    assert re.search(place + r"mine\.py:train left numbers in '0\.weight' that are", failed.err)


def test_a_metric_that_is_not_finite_is_left_out_unless_networks_are_compared_by_it(
    here: Path,
) -> None:
    code = (here / "mine.py").read_text()
    returned = "return {'auc': float('nan'), **measured(model)}"
    (here / "mine.py").write_text(code.replace("return measured(model)", returned))
    found = small_comparison(seeds=1)
    assert [run.status for run in found.runs] == ["done"] * 5
    records = [json.loads(file.read_text()) for file in here.glob("**/records/*/*/record.json")]
    trained = [record for record in records if "metrics" in record]
    assert len(trained) == 5
    assert all(record["not_finite"] == ["auc"] for record in trained)
    assert all("auc" not in record["metrics"] for record in trained)
    with pytest.raises(regrow.TrainingError, match=r"returned nan or infinity for 'auc'"):
        small_comparison(seeds=1, metric={"name": "auc", "margin": 0.1})


def test_a_comparison_that_is_stopped_and_resumed_ends_alike(here: Path) -> None:
    whole = small_comparison(store="other")

    def stop(event: Event) -> None:
        if isinstance(event, JobDone):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            small_comparison(on_event=stop)
    resumed = small_comparison()
    assert len(resumed.summary.reused) == 3
    assert resumed.runs == whole.runs


def test_a_stop_goes_through_the_function(here: Path) -> None:
    (here / "mine.py").write_text(
        TRAIN.replace("    steps", "    open('started', 'a').close()\n    steps")
    )
    study = Study.load(write(here, arms=["unpruned"], methods=None, seeds=1))
    (job,) = study.jobs()
    ended = execute(
        job,
        regrow.Store.open("store"),
        Settings(device="cpu", checkpoint_seconds=60),
        report=lambda message: None,
        stopping=Path("started").exists,
    )
    assert ended.status == "stopped"


@pytest.mark.slow
def test_a_comparison_that_is_killed_and_resumed_ends_alike(here: Path, command: Command) -> None:
    write(here, arms=["unpruned", "fine-tune"])
    command("run", "study.yaml", "--workers", "0", "--store", "other", "--out", "whole")
    (here / "mine.py").write_text(TRAIN)
    started = subprocess.Popen(
        command_line("run", "study.yaml", "--workers", "1", "--out", "killed"),
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    records = here / "regrow-store" / "records"
    end = time.monotonic() + 120
    while not [*records.glob("*/*/record.json")] and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert command("run", "study.yaml", "--workers", "0", "--out", "killed").code == 0
    whole, killed = ((here / name / "rows.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def compared(command: Command, *options: str | Path) -> Any:
    return command(
        *("compare", "nets.py:mlp", "--train", "mine.py:train", "--budget", "8", "--seeds", "2"),
        *("--input", "1x4", "--workers", "0", "--out", "results", *options),
    )


def test_rivals_of_the_same_cost_are_trained_too(here: Path, command: Command) -> None:
    done = compared(
        command, "--macs", "0.5", "--uniform", "--rival", "width=9", "--width-multiplier", "width"
    )
    assert done.code == 0, done
    runs = runs_in(here / "results")
    for arm in ("mlp width=6", "uniform", "scratch-e"):
        assert int(runs[arm, 0]["macs"]) == 4 * 6 + 6 * 3
    assert "Is training another network from scratch (mlp width=6) as good as fine-tu" in done.text
    assert "mlp width=9 does not have the same cost: it takes 1.50 times the MACs" in done.text
    again = command("run", Path("results", "study.yaml"), "--workers", "0")
    assert again.code == 0
    assert "0 jobs done in 0:00, 20 were" in again.text, "the study file asks for the same jobs"


def test_several_training_budgets_are_compared(here: Path, command: Command) -> None:
    done = compared(command, "--macs", "0.5", "--budgets", "0.25x,0.5x")
    assert done.code == 0, done
    assert "From which training budget on is scratch-b as good as fine-tune?" in done.text
    found = {(row["arm"], row["budget"]): row["epochs"] for row in budgets_in(here / "results")}
    assert (found["scratch-e", "2"], found["scratch-e", "4"]) == ("2", "4")
    alone = command(
        *("compare", "nets.py:mlp", "--train", "mine.py:train", "--input", "1x4", "--seeds", "2"),
        *("--macs", "0.5", "--budgets", "2,4", "--workers", "0", "--out", "again"),
    )
    assert alone.code == 0, alone
    assert "0 jobs done in" in alone.text, "budgets in epochs are the same ones"


def budgets_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "budgets.csv").open() as file:
        return [*csv.DictReader(file)]


def test_without_any_budget_it_is_asked_for(here: Path, command: Command) -> None:
    done = command(
        *("compare", "nets.py:mlp", "--train", "mine.py:train", "--input", "1x4"),
        *("--macs", "0.5", "--out", "results"),
    )
    assert done.code == 2
    assert "--budget 30 (epochs), or --budgets 8,16,32" in done.text
    assert not (here / "results").exists()


def test_weights_and_a_smaller_network_may_be_given(here: Path, command: Command) -> None:
    net = regrow.ModelOrigin("nets.py:mlp").build(seed=5)
    torch.save(net.state_dict(), "weights.pt")
    for amount in ("0.5", "0.7"):
        command(
            *("shrink", "nets.py:mlp", "--input", "1x4", "--weights", "weights.pt"),
            *("--sparsity", amount, "--out", f"small{amount}"),
        )
    small = ("--small", "small0.5", "--small", "small0.7")
    done = compared(command, "--weights", "weights.pt", *small, "--json")
    assert done.code == 0, done
    rows = {(row["target"], row["arm"]): row for row in json.loads(done.out)["rows"]}
    assert rows["", "unpruned"]["fairness"] == "as it came: weights of weights.pt"
    tuned = rows["small0.5", "fine-tune"]
    assert tuned["fairness"] == "2 epochs after the given weights"
    assert tuned["samples"] == 2 * 64
    assert (tuned["macs_kept"], rows["small0.7", "fine-tune"]["macs_kept"]) == (0.5, 0.25)


def test_a_criterion_that_needs_data_is_refused_at_once_and_works_with_them(
    here: Path, command: Command
) -> None:
    refused = compared(command, "--macs", "0.5", "--criterion", "taylor")
    assert refused.code == 2
    assert "The method 'taylor': This criterion uses gradients" in refused.text
    assert not (here / "results").exists()
    assert not (here / "regrow-store").exists()
    np.savez(here / "rows.npz", x=np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 8], y=[0, 1, 2] * 10)
    wrong = compared(command, "--macs", "0.5", "--criterion", "taylor", "--data", "npz:none.npz")
    assert (wrong.code, (here / "results").exists()) == (2, False)
    np.savez(here / "rows.npz", x=np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 8], y=[0, 1, 2, 1] * 8)
    data = ("--data", "npz:rows.npz", "--multiple-of", "4")
    done = compared(command, "--macs", "0.5", "--criterion", "taylor", *data)
    assert done.code == 0, done
    study = Study.load(here / "results" / "study.yaml")
    prune = next(cell.job.pruning for cell in study.cells() if cell.job.pruning is not None)
    assert {"examples", "multiple_of"} <= {*prune.spec}
    assert prune.spec["criterion"] == "taylor"
    assert int(runs_in(here / "results")["scratch-e", 0]["macs"]) == 4 * 4 + 4 * 3


@pytest.mark.parametrize(
    "option",
    [("--device", "tpu"), ("--small", "gone"), ("--macs", "1e-9"), ("--criterion", "l1-filter")],
)
def test_a_comparison_that_cannot_be_meant_leaves_nothing(
    here: Path, command: Command, option: tuple[str, str]
) -> None:
    before = {*here.iterdir()}
    done = compared(command, *option)
    assert done.code == 2, done
    assert {path.name for path in {*here.iterdir()} - before} <= {"__pycache__"}


def test_a_smaller_network_of_a_folder_is_proven_anew(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrunk = command(
        *("shrink", "nets.py:mlp", "--input", "1x4", "--sparsity", "0.5", "--out", "small")
    )
    assert shrunk.code == 0, shrunk

    def refuse(*_: Any) -> None:
        raise regrow.TraceError("no proof")

    monkeypatch.setattr("regrow.jobs.own.prove", refuse)
    done = compared(command, "--small", "small", "--weights", "code")
    assert (done.code, "no proof" in done.text) == (1, True)


def test_a_smaller_network_of_other_weights_is_said(here: Path, command: Command) -> None:
    for seed in (0, 1):
        net = regrow.ModelOrigin("nets.py:mlp").build(seed=seed)
        torch.save(net.state_dict(), here / f"{seed}.pt")
    asked = ("nets.py:mlp", "--input", "1x4", "--sparsity", "0.5", "--weights", "0.pt")
    assert command("shrink", *asked, "--out", "small").code == 0
    told = "are not those that these cuts leave"
    assert told in compared(command, "--small", "small", "--weights", "1.pt").text
    (here / "results").rename(here / "others")
    same = compared(command, "--small", "small", "--weights", "0.pt")
    assert (same.code, told in same.text) == (0, False)


def test_the_metric_is_chosen_after_the_training(here: Path, command: Command) -> None:
    options = ("--sparsity", "0.5", "--metric")
    assert compared(command, *options, "accuracy").code == 0
    done = compared(command, *options, "loss", "--lower-is-better", "--margin", "0.05")
    assert done.code == 0, done
    assert "0 jobs done" in done.text
    assert "loss" in next(iter(runs_in(here / "results").values()))
    other = compared(command, *options, "f1", "--margin", "0.1")
    assert "f1" in other.text


def test_budgets_that_are_not_spent_are_in_the_verdict(here: Path) -> None:
    (here / "mine.py").write_text(TRAIN.replace("2 * budget.epochs", "4"))
    found = small_comparison()
    assert "the two arms used different shares of their budgets" in found.answer


@pytest.mark.usefixtures("here")
def test_the_answer_in_python_is_about_all_training_budgets() -> None:
    found = small_comparison(
        budget=None, budgets=[2, 4], arms=["unpruned", "fine-tune", "scratch-b"]
    )
    assert "From which training budget on is scratch-b as good as fine-tune?" in found.answer


def test_seeds_that_end_alike_are_named(here: Path) -> None:
    reset = "    torch.manual_seed(0); [torch.nn.init.normal_(p) for p in model.parameters()]\n"
    (here / "mine.py").write_text(
        "import torch\n" + TRAIN.replace("    steps", reset + "    steps")
    )
    found = small_comparison(arms=["unpruned", "scratch-e"])
    assert any("unpruned and scratch-e end with the same weights" in note for note in found.notes)
    (here / "mine.py").write_text(TRAIN.replace("measured(model)", "{'accuracy': 0.5}"))
    found = small_comparison(arms=["unpruned", "scratch-e"])
    assert any("unpruned and scratch-e score exactly the same" in note for note in found.notes)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("net", "is_known"), [("quiet", True), ("made", False)])
def test_training_from_scratch_starts_as_the_networks_own_code_starts_it(
    net: str, is_known: bool
) -> None:
    options: dict[str, Any] = {"budget": 1, "arms": ["unpruned", "scratch-e"], "seeds": 1}
    found = small_comparison(net=f"nets.py:{net}", **options)
    assert not found.failures
    told = [note for note in found.notes if "own code initialises" in note]
    assert len(told) == (not is_known)
    assert all("initialises '0.weight' and '2.weight', because" in note for note in told)


@pytest.mark.parametrize(("net", "named"), [("Scaled", []), ("Wide", ["table"])])
def test_what_is_drawn_by_a_number_of_the_full_width_is_named(net: str, named: list[str]) -> None:
    options = {"budget": 1, "arms": ["unpruned", "scratch-e"], "seeds": 1}
    found = small_comparison(net=f"nets.py:{net}", **options)
    assert not found.failures
    told = [
        note
        for note in found.notes
        if "the network has no initialisation at its smaller size" in note
    ]
    assert len(told) == len(named)
    assert all(repr(name) in told[0] for name in named)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "f1"}, "two networks count as equally good"),
        (
            {"metric": {"name": "accuracy", "better": "lower"}},
            r"Higher values of 'accuracy' are better, not lower ones. Leave out 'better' "
            r"\(--lower-is-better\), or have your function return another score under another",
        ),
        (
            {"budget": {"epochs": 0}},
            r"'budget' \(--budget\) must be .* epochs from 1 to 1,000,000,",
        ),
        ({"budget": {"steps": 10**15 + 1}}, "must be a whole number of steps from 1 to 1,000,000,"),
        ({"budget": {"flops": 1e30}}, r"'budget' \(--budget\) in FLOPs must be at most"),
        ({"budget": {"epoch": 3}}, "one of epochs, steps, samples, flops"),
        ({"budget": {"flops": 1e-3}}, "less than training on one example"),
        ({"methods": {"name": "magnitude", "sparsity": 0.5}}, "would not hold at zero"),
        ({"methods": {"name": "network-slimming", "sparsity": 0.5}}, "acts while the network"),
        ({"methods": None}, "There is no smaller network|'methods'"),
        ({"arms": ["lr-rewind", {"name": "x", "like": "fine-tune", "lr": 0.1}]}, "has 'lr'"),
        ({"arms": [{"name": "late", "start": "rewound", "epoch": 2}]}, "has 'epoch'"),
        ({"models": ["nets.py:mlp", "nets.py:Scaled"]}, "must name one network"),
        ({"models": {"network": "nets.py:mlp"}}, "Give the network's input"),
        (
            {"models": {"network": "nets.py:mlp", "input": "1x5"}},
            "nets.py:mlp fails on the input 1x5: RuntimeError: .* --input",
        ),
        (
            {"methods": {"name": "l1", "sparsity": 0.5, "multiple_of": 64}},
            "The method 'l1': nothing would be cut at .* in multiples of 64",
        ),
        ({"rivals": ["nets.py:none"]}, "The rival 'nets.py:none'"),
        ({"rivals": [{"vary": "width"}]}, "one method with one share of macs or parameters"),
        (
            {"rivals": [{"vary": "depth"}], "methods": {"name": "l1", "macs": 0.5}},
            "no number 'depth'",
        ),
        ({"small": "nowhere"}, "No smaller network can be read from 'nowhere'"),
        ({"recipe": "cifar"}, "Unknown key 'recipe'"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(
    here: Path, changes: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(regrow.RegrowError, match=message):
        Study.load(write(here, **changes))


def test_the_winner_can_be_exported(here: Path, command: Command) -> None:
    study = write(here, arms=["unpruned", "scratch-e"], seeds=1)
    assert command("run", study, "--workers", "0").code == 0
    done = command("export", study, "--arm", "scratch-e", "--to", "best", "--pt2")
    assert done.code == 0, done
    assert "regrow.load('best', code='nets.py:mlp') returns it." in done.text
    assert "model.pt2" in done.text
    result = json.loads((here / "best" / "result.json").read_text())
    assert result["accuracy_unit"] == "percent"
    network = regrow.load("best", code="nets.py:mlp")
    assert network(torch.zeros(2, 4)).shape == (2, 3)


@pytest.mark.parametrize(
    ("num_test", "margin", "told"),
    [
        (
            200,
            None,
            "One of 200 test examples is 0.5 points: a margin of 0.3 points cannot be shown",
        ),
        (1000, None, "1,000 test examples resolve about 0.95 points"),
        (1000, 2, ""),
        (None, None, ""),
    ],
)
def test_a_margin_that_the_test_set_cannot_show_is_said_before_anything_is_trained(
    here: Path, command: Command, num_test: int | None, margin: float | None, told: str
) -> None:
    metric = {"name": "accuracy", "chance": 0.4} | ({"num_test": num_test} if num_test else {})
    write(here, metric=metric, margin=margin)
    said = command("plan", "study.yaml").err
    assert told in said
    assert ("Take a margin of " in said) == bool(told)


def test_a_plan_does_not_guess_and_a_status_sees_edits(here: Path, command: Command) -> None:
    write(here, arms=["unpruned", "fine-tune"], seeds=1)
    assert "cannot be estimated" in command("plan", "study.yaml").text
    plan = json.loads(command("plan", "study.yaml", "--json").out)
    assert (plan["jobs"], plan["seconds"], plan["training_flops"]) == (3, None, None)
    assert command("run", "study.yaml", "--workers", "0", "--html").code == 0
    assert len([*here.rglob("report.html")]) == 1
    assert "3 of 3 jobs done" in command("status", "study.yaml").text
    (here / "data.py").write_text(DATA + "# edited")
    del sys.modules["data"]  # as in a new process
    assert "0 of 3 jobs done" in command("status", "study.yaml").text


# The examples of the docs -------------------------------------------------------------------------


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples, as the working folder."""
    folder = Path(__file__).parents[1] / "examples" / "own"
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "data", raising=False)
    return folder


def score_of(place: str, network: torch.nn.Module, unit: Unit, amount: int) -> tuple[float, int]:
    """Train a network by an example's function; its accuracy, and the examples it saw."""
    allowance = Allowance(amount=amount, unit=unit, whole=4, flops_per_sample=1.0)
    spent = TrainFunction.read(place)(network, allowance, 0)
    return spent.metrics["accuracy"], spent.samples


@pytest.mark.parametrize(
    ("file", "package"), [("loop.py", "sklearn"), ("with_lightning.py", "lightning")]
)
@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders and loggers
def test_the_examples_train_on_digits(examples: Path, file: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    network = regrow.ModelOrigin("nets.py:MobileNet", {"width": 2}).build()
    before, seen = score_of(f"{file}:train_digits", network, "epochs", 0)
    assert (0.0 < before < 0.3, seen) == (True, 0)
    after, seen = score_of(f"{file}:train_digits", network, "epochs", 1)
    assert (0.0 < after < 1.0, seen) == (True, 1347)


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_transformers_trains(examples: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=3,
    )
    network = transformers.BertForSequenceClassification(config)
    score, seen = score_of("with_trainer.py:train_sentences", network, "steps", 3)
    assert (0.0 < score < 1.0, seen) == (True, 3 * 50)


def test_the_example_of_folders_trains(
    tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, file = code_at("folder.py:train")
    assert callable(code)
    for split, num in (("train", 70), ("test", 10)):
        for name in ("dark", "light"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(num):
                Image.new("RGB", (9, 7), (200 if name == "light" else 50,) * 3).save(
                    folder / f"{number}.png"
                )
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(64), torch.nn.Flatten(), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    )
    score, seen = score_of(f"{file}:train", network, "epochs", 2)
    assert (0.0 <= score <= 1.0, seen) == (True, 2 * 140)


def test_a_study_of_ones_own_function_has_budgets_too(here: Path) -> None:
    alone = Study.load(write(here, budget={"epochs": 8}))
    several = Study.load(write(here, budget=None, budgets=[2, 8]))
    factors = Study.load(write(here, budget={"epochs": 8}, budgets=["0.25x", "1x"]))
    assert [e.budget for e in several.own] == [e.budget for e in factors.own] == [2, 8]
    keys = [{c.arm.name: c.job.key for c in of.cells()} for of in (several, factors)]
    assert keys[0] == keys[1]
    at_eight = [c for c in several.cells() if c.experiment.budget == 8]
    assert {c.job.key for c in at_eight} == {c.job.key for c in alone.cells()}
    assert len({job.label for job in several.jobs()}) == len(several.jobs())
    whole = {getattr(cell.job, "whole") for cell in several.cells()}  # noqa: B009
    assert whole == {2, 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": None}, "'budget' is missing"),
        (
            {"budget": None, "budgets": ["0.5x"]},
            r"a multiple of that of the 'budget' \(--budget\), such as .* and the 'budget' .* is "
            "not given",
        ),
        ({"budget": {"steps": 80}, "budgets": [2, 4]}, "epochs, and the 'budget'.*is of steps"),
        (
            {"arms": [{"name": "fine-tune", "peak_rates": 0.1}]},
            "has 'peak_rates', but with your own 'tr",
        ),
        (
            {"arms": [{"name": "fine-tune", "last_rates": 3}]},
            "has 'last_rates', but with your own 'tr",
        ),
    ],
)
def test_budgets_and_rates_that_a_function_of_ones_own_cannot_have_are_refused(
    here: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.load(write(here, **changes))


def test_the_page_of_a_comparison_has_every_part_and_links_to_its_records(
    command: Command, here: Path
) -> None:
    study = write(here, uniform=True)
    done = command("run", study, "--workers", "0", "--html", "--out", here / "out")
    assert done.code == 0, done.text
    text = (here / "out" / "report.html").read_text(encoding="utf-8")
    check_accessible(here / "out" / "report.html")
    for part in ("answer", "verdicts", "results", "layers", "ledger", "records", "how"):
        assert f'id="{part}"' in text
    inside = set(re.findall(r'href="#([^"]+)"', text))
    assert inside <= {*re.findall(r'id="([^"]+)"', text)}
    records = [here / "out" / unquote(link) for link in re.findall(r'href="([^"#]+json)"', text)]
    assert len(records) == 12  # six arms, two seeds
    assert all("accuracy" in json.loads(file.read_text())["metrics"] for file in records)
    known = {*OF_ALL, *OF_OWN, *OF_TRAININGS, *OF_COSTS}
    assert all(set(json.loads(file.read_text())) <= known for file in records)
    assert "scratch-b" in text
    assert re.search(r">50</a>", text), "half of the first layer's 12 units stay"
    assert " at uniform widths<" in text, "another cut, which has a line of its own"
    assert not re.search(r'(src|action|href)="(https?:)?//', text)
