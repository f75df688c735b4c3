"""Networks whose code does not allow channels-last are trained, scored and probed without it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regrow.bench.measuring import _core
from regrow.data import DataSpec, load
from regrow.models import register_model
from regrow.pruning.probe import Probe
from regrow.run import Event, JobWarning, run
from regrow.run.estimate import estimate
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train import Recipe, Training, evaluate, fit
from regrow.train.layout import NOTICE, takes_channels_last

RECIPE = Recipe(epochs=2, batch=16, lr=0.05)
DATA = DataSpec("digits", subset=48, test_subset=48)


class Viewing(nn.Module):
    """The commonest line of pruning code: ``x.view(x.size(0), -1)`` after a map.

    Its last convolution is 1x1, whose layout PyTorch cannot tell from its strides.
    """

    def __init__(self, *, how: str = "view", classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 4, 1),
            nn.Dropout(0.2),
        )
        self.classifier = nn.Linear(4 * 16, classes)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.features(x)
        if self.how == "view":
            x = x.view(x.size(0), -1)
        elif self.how == "numbers":
            x = x.view(-1, 4 * 4 * 4)
        else:
            x = x.flatten(1)
        y: Tensor = self.classifier(x)
        return y


@register_model("viewing-net", family="test")
def viewing(*, classes: int, in_channels: int = 1, input_size: int = 8) -> nn.Module:
    """Build the network."""
    return Viewing(classes=classes, channels=in_channels)


def training(how: str = "view", recipe: Recipe = RECIPE) -> Training:
    torch.manual_seed(0)
    return Training(Viewing(how=how), load(DATA), recipe, seed=0)


@pytest.mark.parametrize("how", ["view", "numbers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_that_views_a_map_is_trained_as_without_channels_last(
    how: str, precision: Any
) -> None:
    recipe = replace(RECIPE, precision=precision)
    ours, plain = training(how, recipe), training(how, replace(recipe, channels_last=False))
    assert (ours.notice, plain.notice) == (NOTICE, None)
    for one in (ours, plain):
        fit(one)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name
    data = ours.dataset
    assert evaluate(ours.model, data.test, data) == evaluate(
        plain.model, data.test, data, channels_last=False
    )
    assert Probe(ours.model, data).gradient("features.4.weight").abs().sum() > 0
    _core(ours)()  # as the benchmark takes a step


def test_others_stay_in_channels_last_without_a_word() -> None:
    one = training("flatten")
    assert one.notice is None
    assert one.parts.channels_last


def test_resume_is_bitwise() -> None:
    whole, half = training(), training()
    fit(whole)
    half.step()
    half.step()
    again = training()
    again.restore(*half.state())
    fit(again)
    for name, value in whole.state()[0].items():
        assert torch.equal(value, again.state()[0][name]), name


def test_asking_leaves_the_network_and_the_generators_alone() -> None:
    model = Viewing(how="flatten")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert takes_channels_last(model, (1, 8, 8))
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_other_errors_are_the_first_step_s() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    one = Training(model, load(DATA), RECIPE, seed=0)
    with pytest.raises(RuntimeError, match="3 channels"):
        one.step()


def test_study_of_such_a_network_is_planned_and_done_with_a_notice(tmp_path: Path) -> None:
    study = Study.from_json(
        {
            "name": "viewing",
            "data": DATA.to_json(),
            "models": "viewing-net",
            "methods": {"name": "l1-filter", "sparsity": 0.5, "scope": ["conv"]},
            "arms": ["unpruned", "pruned", "fine-tune"],
            "seeds": 1,
            "recipe": {"epochs": 1, "batch": 16},
        }
    )
    jobs = study.jobs()
    assert estimate(jobs, (), workers=1).seconds > 0
    warned: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, JobWarning):
            warned.append(event.message)

    assert run(jobs, Store.open(tmp_path / "store"), workers=0, on_event=note).complete
    assert NOTICE in warned
