"""The network and the studies of ``examples/budget``: what it is, and that it is cut exactly."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.core.global_rng import drawing
from regrow.cost import measure
from regrow.models import initialise_
from regrow.pruning.select import select
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.studies.yaml_file import read_file
from regrow.surgery import Trace, shrink, trace, verify
from small import module_at

EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGE = torch.zeros(1, 3, 32, 32)
FIXED = "whitening.filters"
SMALL: dict[str, Any] = {"classes": 10, "in_channels": 3, "widths": (6, 10, 12)}


@pytest.fixture(scope="module")
def code() -> ModuleType:
    return module_at(EXAMPLES / "budget" / "model.py")


def made(code: ModuleType, **arguments: Any) -> nn.Module:
    with drawing(0):
        net: nn.Module = code.build(**{**SMALL, **arguments})
    return net


def traced(net: nn.Module) -> Trace:
    return trace(net, IMAGE)


@pytest.mark.parametrize(
    ("widths", "macs"), [((32, 128, 128), 33.0), ((64, 256, 256), 117.5)], ids=str
)
def test_what_it_costs(code: ModuleType, widths: tuple[int, ...], macs: float) -> None:
    found = measure(made(code, widths=widths), IMAGE)
    assert found.macs / 1e6 == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("method", ["l1-filter", "random", "network-slimming"])
def test_half_of_its_operations_are_cut_exactly(code: ModuleType, method: str) -> None:
    net = made(code)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    found = traced(net)
    mask = select(net, found, method, macs=0.5)
    assert verify(net, mask, found).ok
    small = shrink(net, mask, found)
    before, after = (measure(each, IMAGE).macs for each in (net, small))
    assert 0.4 < after / before <= 0.5
    assert torch.equal(dict(small.named_buffers())[FIXED], dict(net.named_buffers())[FIXED])


def test_every_convolution_is_offered_and_the_first_layer_is_none(code: ModuleType) -> None:
    assert len(traced(made(code)).groups) == 6


def test_it_begins_as_the_identity_of_what_it_has_channels_for(code: ModuleType) -> None:
    net = made(code)
    mask = select(net, traced(net), "l1-filter", sparsity=0.5)
    small = shrink(net, mask, traced(net))
    for each in (net, small):
        initialise_(each, seed=1)
        for module in each.modules():
            if isinstance(module, nn.Conv2d):
                num_out, num_in = module.weight.shape[:2]
                num = min(num_out, num_in)
                eye = nn.init.dirac_(torch.empty_like(module.weight[:num]))
                assert torch.equal(module.weight[:num], eye)
                assert (module.weight[num:] != 0).all()


def test_width_is_a_factor_on_all_widths(code: ModuleType) -> None:
    convs = [m for m in made(code, width=0.5).modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [3, 3, 5, 5, 6, 6]


@pytest.mark.parametrize("in_channels", [1, 3])
def test_its_first_filters_are_orthogonal_and_have_both_signs(
    code: ModuleType, in_channels: int
) -> None:
    filters: Tensor = code.Whitening(in_channels).filters.flatten(1)
    num = len(filters) // 2
    assert torch.equal(filters[:num], -filters[num:])
    products = filters[:num] @ filters[:num].T
    assert torch.allclose(products, torch.diag(products.diag()), atol=1e-4)
    expected = torch.tensor(code.VARIANCES[:in_channels]).flatten() + code.LEAST_VARIANCE
    torch.testing.assert_close(1 / products.diag(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["budget", "budget/resnet-20", "budget/resnet-20-full"])
def test_the_studies_are_read_and_take_other_data(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    study = Study.load(EXAMPLES / f"{name}.yaml", data={"cifar10": "digits"}, precision="fp32")
    assert {each.data.name for each in study.experiments} == {"digits"}
    for experiment in study.experiments:
        peak = experiment.recipe.lr
        rates = {
            arm.name: arm.recipe(experiment.recipe, 4).lr_at(0, steps=10) / peak
            for arm in experiment.arms
            if arm.start == "inherited" and arm.budget.kind != "none"
        }
        first = 0.2 + 0.8 / 9  # of a warm-up of nine updates
        expected = {"fine-tune": 0.01, "falling": 0.1, "lr-rewind": first}
        assert rates == (pytest.approx(expected) if rates else {})


def test_a_cell_of_the_study_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    value = read_file(EXAMPLES / "budget.yaml", lambda content, _: content)
    data = {"name": "digits", "subset": 128, "test_subset": 64}
    model = {**value["models"], "widths": [16, 24, 32]}
    recipe = {**value["recipe"], "batch": 32, "precision": "fp32"}
    small: dict[str, Any] = {
        "data": data,
        "models": model,
        "recipe": recipe,
        "budgets": [2],
        "seeds": 1,
    }
    small["methods"] = value.pop("experiments")[2]["methods"]
    study = Study.from_json({**value, **small})
    summary = run(study.jobs(), Store.open(tmp_path / "store"), workers=0)
    assert summary.complete
