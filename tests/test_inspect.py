"""What can be cut of a network, from Python and by the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow
from commands import Command
from test_numbers import Detector

NET = """
from torch import nn

def build(width=8):
    print("building")
    return nn.Sequential(
        nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 6, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net() -> nn.Module:
    code: dict[str, object] = {}
    exec(NET, code)
    network: nn.Module = code["build"]()  # type: ignore[operator]
    return network


def test_an_inspection_counts_by_hand() -> None:
    found = regrow.inspect(net(), (1, 3, 8, 8))
    first, second = found.groups
    assert (first.name, first.kind, first.width, first.norms) == ("0", "conv", 8, ["1"])
    assert first.producers == {"0.weight": (8, 3, 3, 3)}
    assert first.readers == ["3.weight"]
    assert first.parameters == 8 * 3 * 9 + 2 * 8
    assert first.macs == 8 * 3 * 9 * 6 * 6
    assert (second.name, second.parameters, second.macs) == ("3", 6 * 8 * 9, 6 * 8 * 9 * 4 * 4)
    (whole,) = found.whole
    assert (whole.name, whole.parameters, whole.macs) == ("6", 6 * 2 + 2, 12)
    total = first.parameters + second.parameters + whole.parameters
    assert found.parameters == total
    left = 4 * 3 * 9 + 2 * 4 + 3 * 4 * 9 + 3 * 2 + 2
    assert found.half_parameters == left / total


def test_a_number_that_stays_beside_an_equal_width_is_told() -> None:
    assert regrow.inspect(net(), (1, 3, 8, 8)).unchanged == []
    found = regrow.inspect(Detector(), (1, 3, 4, 4))
    assert found.unchanged == ["Detector.strides"]
    assert "Check the code that does: Detector.strides." in str(found)


def test_groups_and_what_is_whole_make_up_a_network() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.mobilenet_v3_small(num_classes=4)
    found = regrow.inspect(model, "1x3x64x64")
    parts = [*found.groups, *found.whole]
    assert sum(part.parameters for part in parts) == found.parameters
    assert sum(part.macs for part in parts) == found.macs


def test_layers_that_keep_channels_apart_are_named() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    )
    (group,) = regrow.inspect(layers, (1, 3, 8, 8)).groups
    assert (group.producers.keys(), group.between) == ({"0.weight"}, ["1"])
    assert "|- through 1" in str(regrow.inspect(layers, (1, 3, 8, 8)))


def test_tables_beside_layers_are_named() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)
            self.table = nn.Parameter(torch.rand(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.first(x) * self.table)
            return y

    (group,) = regrow.inspect(Table(), (1, 4)).groups
    assert group.between == ["table"]


@pytest.mark.usefixtures("here")
def test_the_command_prints_the_tree(command: Command) -> None:
    done = command("inspect", "nets.py:build", "--input", "1x3x8x8", "--set", "width=4")
    assert done.code == 0
    assert "Sequential: " in done.out
    assert "  0: conv, 4 units" in done.out
    assert "  `- it is the network's output" in done.out
    assert "building" in done.err
    assert "building" not in done.out


@pytest.mark.usefixtures("here")
def test_the_command_prints_json(command: Command) -> None:
    done = command("inspect", "nets.py:build", "--input", "1x3x8x8", "--keep", "0", "--json")
    value = json.loads(done.out)
    assert [group["name"] for group in value["groups"]] == ["3"]
    assert {"name": "0", "why": "asked to be kept"}.items() <= value["whole"][0].items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nets.py:build"], "Give the network's input: --input"),
        (["nets.py:build", "--input", "1x4x8x8"], "fails on an example of shape"),
        (["nets.py:build", "--input", "1x3x8x8", "--keep", "x*"], "--keep: Unknown module"),
        (["nets.py:build", "--input", "1x3x8x8", "--set", "width"], "--set must be NAME=VALUE"),
        (["nets.py:other", "--input", "1x3x8x8"], "Unknown function or class 'other'"),
    ],
)
@pytest.mark.usefixtures("here")
def test_bad_input_is_one_message(command: Command, arguments: list[str], message: str) -> None:
    done = command("inspect", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert message in done.text


# Networks of one's own, on disk ------------------------------------------------------------------


def cut(folder: Path, text: str) -> nn.Module:
    origin = regrow.ModelOrigin(text)
    model = origin.build()
    found = regrow.trace(model, (1, 3, 8, 8))
    mask = regrow.select(model, found, "l1-filter", sparsity=0.5)
    small: nn.Module = regrow.shrink(model, mask, found)
    architecture = regrow.Architecture(model=origin, shape=(1, 3, 8, 8), cuts=(mask,))
    regrow.save(folder, small, architecture)
    return small


@pytest.mark.usefixtures("here")
def test_a_network_of_ones_own_is_saved_and_loaded_by_its_code(here: Path) -> None:
    small = cut(here / "small", "nets.py:build")
    again = regrow.load("small", code="nets.py:build")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(x), small.eval()(x))


@pytest.mark.usefixtures("here")
def test_code_is_not_run_because_a_file_names_it(here: Path) -> None:
    cut(here / "small", "nets.py:build")
    (here / "nets.py").write_text("raise RuntimeError('run')")
    with pytest.raises(regrow.ConfigError, match=r"not run .*regrow.load\('small', code='nets.py:"):
        regrow.load("small")


def test_a_network_of_a_library_is_loaded_without_code(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    origin = regrow.ModelOrigin("timm/test_resnet", {"num_classes": 3})
    model = origin.build()
    found = regrow.trace(model, (1, 3, 64, 64))
    mask = regrow.select(model, found, "l1-filter", sparsity=0.5)
    small = regrow.shrink(model, mask, found)
    regrow.save(
        tmp_path / "small",
        small,
        regrow.Architecture(model=origin, shape=(1, 3, 64, 64), cuts=(mask,)),
    )
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(regrow.load(tmp_path / "small")(x), small.eval()(x))
    with pytest.raises(regrow.ConfigError, match="Leave out 'code'"):
        regrow.load(tmp_path / "small", code="os:system")
