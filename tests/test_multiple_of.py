"""Methods of a study that leave multiples of a number of channels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.cost import measure
from regrow.errors import ConfigError
from regrow.jobs.prune import Prune
from regrow.pruning.select import select
from regrow.report.collect import collect
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery import trace

MODEL = {"name": "vgg-16", "width": 0.5, "label": "VGG"}


def study(method: dict[str, Any]) -> Study:
    return Study.from_json(
        {
            "data": {"name": "digits", "subset": 64, "test_subset": 32},
            "models": MODEL,
            "methods": method,
            "recipe": {"epochs": 1, "batch": 32},
            "arms": ["scratch-e"],
            "seeds": [0],
        }
    )


def prunings(method: dict[str, Any]) -> list[Prune]:
    found = {job.key: job for job in study(method).jobs() for job in (job, *job.inputs)}
    return [job for job in found.values() if isinstance(job, Prune)]


@pytest.mark.parametrize("amount", [{"macs": 0.5}, {"sparsity": 0.4}])
def test_what_stays_is_a_multiple(amount: dict[str, float], tmp_path: Path) -> None:
    (job,) = prunings({"name": "uniform", **amount, "multiple_of": 8})
    store = Store.open(tmp_path)
    assert run([job], store, workers=1).complete
    widths = widths_of(store, job)
    assert all(width % 8 == 0 for width in widths), widths
    (loose,) = prunings({"name": "uniform", **amount})
    assert run([loose], store, workers=1).complete
    assert any(width % 8 for width in widths_of(store, loose))


def widths_of(store: Store, job: Prune) -> list[int]:
    return [int(kept.sum()) for kept in store.tensors(job.key).values()]


class Narrow(nn.Module):
    """A network whose layers have no more than 6 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.last = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return out


def test_a_layer_that_would_lose_all_keeps_a_multiple() -> None:
    net = Narrow()
    mask = select(net, trace(net, (1, 3, 8, 8)), "l1-filter", sparsity=0.9, multiple_of=4)
    assert mask.widths() == {"first": 4, "second": 4}
    assert mask.guarded == ("first", "second")


def test_a_cost_that_only_a_narrower_layer_reaches_is_refused() -> None:
    net = Narrow()
    found = trace(net, (1, 3, 8, 8))
    least, whole = (36 * 27 * n + 16 * 9 * n * n + 7 * n for n in (4, 6))
    share = least / whole
    assert measure(net, found.example).macs == whole
    with pytest.raises(ConfigError, match=f"Ask for a share from {share:.3f}"):
        select(net, found, "l1-filter", macs=share - 0.05, multiple_of=4)
    mask = select(net, found, "l1-filter", macs=share + 0.01, multiple_of=4)
    assert mask.widths() == {"first": 4, "second": 4}


def test_rows_name_the_multiple_and_keys_change_with_it_only() -> None:
    one, plain = ({"name": "l1-filter", "macs": 0.5, **more} for more in ({"multiple_of": 1}, {}))
    (with_one,), (without,) = prunings(one), prunings(plain)
    assert with_one.key == without.key
    (eight,) = prunings({**plain, "multiple_of": 8})
    assert eight.key != without.key
    assert "macs 0.5, multiples of 8" in eight.label


def test_tables_name_the_multiple(tmp_path: Path) -> None:
    asked = study({"name": "uniform", "sparsity": 0.4, "multiple_of": 8})
    runs, _ = collect(asked, Store.open(tmp_path))
    assert [run.target for run in runs if run.arm == "scratch-e"] == ["0.4, multiples of 8"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "l1-filter", "sparsity": 0.5, "multiple_of": 0}, "must be an int of at least 1"),
        ({"name": "l1-filter", "sparsity": 0.5, "multiple_of": "8"}, "must be an int of at least"),
        ({"name": "magnitude", "sparsity": 0.5, "multiple_of": 8}, "Only widths can be multiples"),
    ],
)
def test_a_multiple_that_makes_no_sense_is_refused(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(method)
