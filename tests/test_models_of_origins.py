"""Networks that nobody registered as models of studies, and trained weights that they come with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regrow
from regrow.core.seeds import derive
from regrow.errors import ConfigError, DataError, StoreError
from regrow.jobs.base import all_jobs
from regrow.models import MODELS, ModelSpec, build, initialise_
from regrow.models.origins import read_origin
from regrow.models.starts import Start, started
from regrow.report.collect import Reader, results_of
from regrow.report.rows import fairness
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery.architecture import Architecture

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, *, classes, in_channels=1, width=6, table="drawn"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.token = nn.Parameter({
            "drawn": lambda: torch.randn(1, width, 1, 1),
            "constant": lambda: torch.ones(1, width, 1, 1),
            "read": lambda: torch.arange(width).float().view(1, -1, 1, 1),
        }[table]())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head((self.conv(x) + self.token).relu().mean((2, 3)))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(model: Any, **changes: Any) -> Study:
    return Study.from_json(
        {
            "data": {"name": "digits", "subset": 60, "test_subset": 40},
            "models": model,
            "methods": {"name": "l1", "sparsity": 0.5},
            "arms": ["unpruned", "pruned", "fine-tune", "scratch-e"],
            "seeds": 1,
            "recipe": {"epochs": 2, "batch": 20, "augmentation": "none"},
            **changes,
        }
    )


def keys(model: Any) -> set[str]:
    return {*all_jobs([cell.job for cell in study(model).cells()])}


def test_a_network_by_its_code_has_the_same_keys_wherever_it_lies(here: Path) -> None:
    one, two = keys("a/own_net.py:Net"), keys("b/own_net.py:Net")
    assert one == two
    assert keys({"name": "a/own_net.py:Net", "width": 8}).isdisjoint(one)
    (here / "b" / "own_net.py").write_text(CODE + "\n# edited\n")
    assert keys("b/own_net.py:Net").isdisjoint(one)


def test_trained_weights_are_known_by_their_content(here: Path) -> None:
    net = build(ModelSpec("a/own_net.py:Net", {"classes": 10}))
    torch.save(net.state_dict(), "one.pt")
    shutil.copy("one.pt", "copy.pt")
    torch.save({k: v + 1 for k, v in net.state_dict().items()}, "other.pt")

    def entry(weights: str, **more: Any) -> dict[str, Any]:
        return {"name": "a/own_net.py:Net", "weights": weights, **more}

    one = keys(entry("one.pt"))
    assert keys(entry("copy.pt")) == one
    assert keys(entry("one.pt", trained_epochs=9)) == one  # says how long, changes nothing
    assert keys(entry("random")) == keys("a/own_net.py:Net")
    # What starts from a random draw depends on no weights.
    shared = one & keys(entry("other.pt"))
    assert len(shared) < len(one)
    assert one.isdisjoint(keys("a/own_net.py:Net"))


RULE = "nn.init.normal_(self.conv.weight, std=0.9)"


@pytest.mark.parametrize("rule", ["pass", RULE, f"torch.manual_seed(0); {RULE}"])
def test_a_report_names_weights_whose_own_start_is_not_known(here: Path, rule: str) -> None:
    code = CODE.replace("        self.token", f"        {rule}\n        self.token", 1)
    (here / "own_net.py").write_text(code)
    model = {"name": "own_net.py:Net", "width": 32, "table": "constant"}
    named = study(model, arms=["unpruned", "scratch-e"])
    store = Store.open(here / "store", create=True)
    assert not run(named.jobs(), store, workers=0).failed
    notes = [note for note in results_of(named, store).notes if "own code initialises" in note]
    assert len(notes) == rule.startswith("torch")
    assert all("initialises 'conv.weight', because" in note for note in notes)


def test_a_study_of_own_code_and_weights_trains_no_parent(here: Path) -> None:
    spec = ModelSpec("a/own_net.py:Net", {"classes": 10})
    net = build(spec, seed=3)
    torch.save(net.state_dict(), "own.pt")
    own = study({"name": "a/own_net.py:Net", "weights": "own.pt", "trained_epochs": 7})
    store = Store.open(here / "store", create=True)
    assert not run(own.jobs(), store, workers=0).failed
    cells = {cell.arm.name: cell for cell in own.cells()}
    parent = store.record(cells["unpruned"].job.key)
    assert (parent["epochs"], parent["training_flops"]) == (0, 0)
    kept = store.tensors(cells["unpruned"].job.key)
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())
    read = Reader(store)
    texts = {name: fairness([read.run(cell)]) for name, cell in cells.items()}
    assert texts["unpruned"] == "trained before, 7 epochs"
    assert texts["fine-tune"].endswith("after the unpruned network's 7")
    assert texts["scratch-e"] == "the recipe's 2 epochs"


def test_weights_that_change_while_a_study_runs_are_not_taken(here: Path) -> None:
    spec = ModelSpec("a/own_net.py:Net", {"classes": 10})
    torch.save(build(spec).state_dict(), "own.pt")
    (cell, *_) = study({"name": "a/own_net.py:Net", "weights": "own.pt"}).cells()
    torch.save(build(spec, seed=1).state_dict(), "own.pt")
    with pytest.raises(DataError, match=r"own\.pt: the file has changed since the study was"):
        build(cell.job.model)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weights": "none.pt"}, r"none\.pt: there is no such file"),
        ({"weights": "own_net.txt"}, "there is no such file"),
        ({"weights": "published"}, "is not from a library"),
        ({"trained_epochs": 3}, "need 'weights'"),
        ({"weights": "x.pt", "trained_epochs": 0}, "'trained_epochs' must be an int of at least 1"),
        ({"widht": 3}, r"its arguments are .*--set"),
        ({"name": "a/own_net.py:Nte"}, "Known: Net"),
        ({"name": "a/own_net.py"}, "names no network"),
        ({"name": "a/none.py:Net"}, "there is no file"),
        ({"name": "torchvision/resnet"}, "Did you mean 'resnet"),
    ],
)
def test_what_cannot_be_meant_is_one_message(
    here: Path, entry: dict[str, Any], message: str
) -> None:
    Path("x.pt").touch()
    with pytest.raises((ConfigError, DataError), match=message):
        study({"name": "a/own_net.py:Net", **entry}).cells()


@pytest.mark.usefixtures("here")
def test_a_network_whose_outputs_do_not_fit_its_data_is_refused_before_it_trains() -> None:
    Path("odd.py").write_text(CODE.replace(".mean((2, 3))", "").replace("self.head(", "("))
    with pytest.raises(
        ConfigError, match=r"objective 'cross-entropy' was tried on the outputs of odd\.py"
    ):
        study("odd.py:Net").cells()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("table", ["drawn", "constant", "read"])
def test_what_code_draws_without_layers_is_drawn_by_it_and_what_it_reads_is_refused(
    table: str,
) -> None:
    spec = ModelSpec("a/own_net.py:Net", {"classes": 10, "table": table})
    net, start = started(spec, lambda whole: whole, seed=7)
    assert start == (Start(read=("token",)) if table == "read" else Start())
    own = spec.fresh(derive(7, "reinit")).state_dict()
    assert torch.equal(net.state_dict()["token"], own["token"])
    assert not torch.equal(
        net.state_dict()["conv.weight"], spec.fresh(7).state_dict()["conv.weight"]
    )
    if table == "read":
        read = study({"name": "a/own_net.py:Net", "table": table}, arms=["unpruned", "scratch-e"])
        store = Store.open("store", create=True)
        assert len(run(read.jobs(), store, workers=0).failed) == 1
        (failure,) = results_of(read, store).failures
        assert "Nothing initialises 'token' of Net" in failure.message


def test_attention_of_pytorch_is_drawn_as_a_whole() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.MultiheadAttention(8, 2))
    initialise_(net, seed=0)
    assert all(value.isfinite().all() for value in net.state_dict().values())


class OfAClass(nn.Module):
    """A network as transformers has them: its class says how each of its modules is drawn."""

    base_model_prefix = "net"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.table = nn.Embedding(64, 16)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


@pytest.mark.parametrize("wrap", [nn.Identity, nn.Sequential])
def test_networks_of_transformers_are_drawn_by_the_rule_of_their_class(wrap: Any) -> None:
    net = OfAClass() if wrap is nn.Identity else wrap(nn.Linear(64, 64), OfAClass())
    initialise_(net, seed=0)
    spreads = {name: float(p.detach().std()) for name, p in net.named_parameters() if p.dim() > 1}
    inner = [spread for name, spread in spreads.items() if not name.startswith("0.")]
    assert inner == pytest.approx([0.02, 0.02], rel=0.1)
    assert spreads.get("0.weight", 0.07) == pytest.approx(0.07, rel=0.1)


@pytest.mark.usefixtures("here")
def test_code_is_not_run_because_an_architecture_names_it() -> None:
    """A stored model of that name is an origin, which ``load`` builds only if it is told to."""
    spec = ModelSpec("a/own_net.py:Net", {"classes": 10})
    net = build(spec)
    stored = Architecture(model=spec, shape=(1, 1, 8, 8))
    again = Architecture.from_json({**stored.to_json(), "model": spec.to_json()} | {"cuts": []})
    for architecture in (stored, again):
        regrow.save("folder", net, architecture)
        with pytest.raises(ConfigError, match="built by the code"):
            regrow.load("folder")
    assert isinstance(regrow.load("folder", code="a/own_net.py:Net"), nn.Module)
    with pytest.raises(StoreError):
        Architecture.from_json({**stored.to_json(), "inputs": ["1xx"]})


def test_networks_of_libraries_take_what_their_data_say() -> None:
    entry = MODELS.get("torchvision/resnet18")
    assert entry.arguments_of({"classes": 7, "in_channels": 3, "input_size": 32}) == {
        "num_classes": 7
    }
    said = ModelSpec("torchvision/resnet18", {"num_classes": 9}).with_data({"classes": 7})
    assert said.arguments == {"num_classes": 9}


@pytest.mark.parametrize("name", ["{}", "{}.py:build", "{}/{}", "a/{}.pt", "{}.build"])
def test_a_name_that_no_file_may_have_is_an_unknown_one(name: str) -> None:
    with pytest.raises(ConfigError):
        read_origin(name.replace("{}", "x" * 5000)).build()
