"""Objectives: one owner of the loss, whose means over batches and splits are exact."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.choice import Choice
from regrow.core.registry import load_file
from regrow.errors import ConfigError, TrainingError
from regrow.pruning.probe import Probe
from regrow.train import CROSS_ENTROPY, Objective, Recipe, evaluate, fit, make_objective
from regrow.train.objective import OBJECTIVES
from small import bright
from test_training import QUICK, network, training

OWN = '''
from torch import Tensor
from torch.nn import functional as F
from regrow.train import register_objective

@register_objective("margin")
def margin(outputs: Tensor, targets: Tensor, *, width: float = 1.0) -> Tensor:
    """One loss for each image."""
    return F.multi_margin_loss(outputs, targets, margin=width, reduction="none")
'''


@pytest.fixture
def own(tmp_path: Path) -> Choice:
    file = tmp_path / "margin.py"
    file.write_text(OWN)
    load_file(file)
    return Choice("margin", width=2.0)


@pytest.mark.parametrize("num", [2, 7, 64, 255])
def test_mean_of_cross_entropy_has_the_bits_of_pytorch(num: int) -> None:
    outputs = torch.randn(num, 10, requires_grad=True)
    targets = torch.randint(0, 10, (num,))
    ours = make_objective(CROSS_ENTROPY)
    loss = ours.total(outputs, targets) / ours.count(targets)
    expected = F.cross_entropy(outputs, targets)
    assert torch.equal(loss, expected)
    assert torch.equal(*(torch.autograd.grad(one, outputs)[0] for one in (loss, expected)))


def test_label_smoothing_is_pytorchs() -> None:
    outputs, targets = torch.randn(9, 10), torch.randint(0, 10, (9,))
    ours = make_objective(Choice("cross-entropy", label_smoothing=0.1))
    expected = F.cross_entropy(outputs, targets, label_smoothing=0.1)
    torch.testing.assert_close(ours.total(outputs, targets) / 9, expected)


def test_own_objective_is_trained_measured_and_differentiated(own: Choice) -> None:
    one = training(replace(QUICK, objective=own))
    fit(one)
    other = training(replace(QUICK, objective=None))
    fit(other)
    assert not torch.equal(one.state()[0]["model.0.weight"], other.state()[0]["model.0.weight"])

    data, objective = one.dataset, make_objective(own)
    found = evaluate(one.model, data.test, data, objective=objective, batch=50)
    with torch.no_grad():
        x = data.test.batch(torch.arange(53)).float()
        x = (x / 255 - torch.tensor(data.mean).view(3, 1, 1)) / torch.tensor(data.std).view(3, 1, 1)
        outputs = one.model.eval()(x)
    expected = F.multi_margin_loss(outputs, data.test.labels, margin=2.0)
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)

    plain, probe = Probe(one.model, data), Probe(one.model, data, objective=objective)
    assert not torch.equal(plain.gradient("9.weight"), probe.gradient("9.weight"))
    asked = plain.gradient("9.weight", objective=objective)
    assert torch.equal(asked, probe.gradient("9.weight"))


def test_probe_averages_over_terms() -> None:
    """Batches of unlike numbers of terms count by these, not by their images."""

    def some(targets: Tensor) -> Tensor:
        return (targets < 2).sum()

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none") * (targets < 2)

    objective = Objective(name="some", losses=losses, count=some)
    data, model = bright(300), network()
    probe = Probe(model, data, num_images=300)
    found = probe.gradient("9.bias", objective=objective)
    x = torch.cat([x for x, _ in probe._batches()])
    y = torch.cat([y for _, y in probe._batches()])
    model.eval()
    loss = F.cross_entropy(model(x)[y < 2], y[y < 2])
    expected = torch.autograd.grad(loss, model.get_parameter("9.bias"))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_names_and_arguments_are_checked_at_the_edge() -> None:
    with pytest.raises(ConfigError, match=r"cross-entropy.*label_smoothing"):
        make_objective(Choice("cross-entropy", smoothing=0.1))
    with pytest.raises(ConfigError, match="cross-entropy"):
        make_objective(Choice("cross-entorpy"))
    with pytest.raises(ConfigError, match="Give a name, or a mapping of a 'name'"):
        Recipe.from_json({"objective": 3})
    with pytest.raises(ConfigError, match="numbers, texts"):
        Choice("cross-entropy", label_smoothing=float("nan"))


def test_network_without_a_tensor_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Any:
            return {"scores": self.inner(x)}

    from regrow.train import Training

    with pytest.raises(TrainingError, match=r"must return a tensor of logits.*dict"):
        Training(Two(), bright(), QUICK, seed=0).step()


@pytest.mark.parametrize(
    "value", ["cross-entropy", {"name": "cross-entropy", "label_smoothing": 0.1}]
)
def test_recipe_reads_what_it_writes(value: Any) -> None:
    recipe = Recipe.from_json({"objective": value})
    assert recipe.to_json() == {"objective": value}
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe().to_json() == {}


def test_every_objective_names_its_arguments() -> None:
    for name in OBJECTIVES.names():
        assert make_objective(Choice(name)).name == name
