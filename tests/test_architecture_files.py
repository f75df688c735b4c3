"""Networks on disk: what ``save`` writes, ``load`` rebuilds by code; damage is told.

And the traces of models, which are found once.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import regrow
from cutting import enliven_, random_mask
from regrow.core.digests import sealed
from regrow.errors import ConfigError, StoreError
from regrow.models import MODELS, ModelSpec, build, register_model
from regrow.surgery import Trace, shrink, trace
from regrow.surgery.architecture import Architecture, traced
from small import FROM_DIGITS, NETWORKS, SHAPE, equal, image_models


def cut_network(spec: ModelSpec, *, cuts: int = 1) -> tuple[nn.Module, Architecture]:
    """Cut a network over all its groups, views and streams too, as often as asked."""
    model = build(spec)
    enliven_(model, SHAPE)
    architecture = Architecture(model=spec, shape=SHAPE)
    for number in range(cuts):
        found = trace(model, SHAPE)
        mask = random_mask(found, seed=number, keep=0.8)
        model = shrink(model, mask, found)
        architecture = architecture.then(mask)
    return model, architecture


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    regrow.save(tmp_path / "net", *cut_network(NETWORKS["vgg"]))
    return tmp_path / "net"


@pytest.mark.parametrize("cuts", [0, 1, 2])
@pytest.mark.parametrize("label", NETWORKS)
def test_a_network_comes_back_as_it_was(label: str, cuts: int, tmp_path: Path) -> None:
    model, architecture = cut_network(NETWORKS[label], cuts=cuts)
    regrow.save(tmp_path, model, architecture)
    again = regrow.load(tmp_path)
    assert not again.training
    assert equal(again.state_dict(), model.state_dict())
    x = torch.rand(3, *SHAPE[1:])
    assert torch.equal(again(x), model.eval()(x))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "architecture.json", "weights.safetensors"
    ]  # fmt: skip


def test_an_architecture_comes_back_as_it_was() -> None:
    _, architecture = cut_network(NETWORKS["preresnet"], cuts=2)
    value = json.loads(json.dumps(architecture.to_json()))
    again = Architecture.from_json(value)
    assert again.to_json() == architecture.to_json()
    assert again.build().state_dict().keys() == architecture.build().state_dict().keys()


def test_a_network_can_be_saved_over_another(saved: Path) -> None:
    model, architecture = cut_network(NETWORKS["resnet"])
    regrow.save(saved, model, architecture)
    assert equal(regrow.load(saved).state_dict(), model.state_dict())


def test_a_network_of_another_architecture_is_not_saved(tmp_path: Path) -> None:
    model, _ = cut_network(NETWORKS["vgg"])
    whole = Architecture(model=NETWORKS["vgg"], shape=SHAPE)
    with pytest.raises(ConfigError, match=r"has \(.*\) for 'features"):
        regrow.save(tmp_path / "net", model, whole)
    assert not (tmp_path / "net").exists()


CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.act(self.a(x)))
"""


@pytest.fixture
def by_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "moved.py").write_text(f"{CODE}\n# with a remark\n")
    (tmp_path / "changed.py").write_text(CODE.replace("nn.ReLU()", "nn.Tanh()"))
    (tmp_path / "noisy.py").write_text(CODE.replace("self.b(", "torch.rand(1) * self.b("))
    return tmp_path


def test_a_network_whose_code_has_changed_since_it_was_saved_is_told(by_code: Path) -> None:
    origin = regrow.ModelOrigin("nets.py:Net")
    regrow.save("net", origin.build(), Architecture(model=origin, shape=(1, 4)))
    regrow.load(by_code / "net", code="moved.py:Net")  # without a warning
    with pytest.warns(UserWarning, match=r"other outputs than when it was saved.*changed\.py:Net"):
        regrow.load("net", code="changed.py:Net")


def test_a_network_that_was_changed_besides_its_weights_is_not_saved(by_code: Path) -> None:
    origin = regrow.ModelOrigin("nets.py:Net")
    net = origin.build()
    net.act = nn.GELU()
    with pytest.raises(ConfigError, match="other outputs than the one that is rebuilt from"):
        regrow.save("net", net, Architecture(model=origin, shape=(1, 4)))
    assert not (by_code / "net").exists()


def test_a_network_that_draws_random_numbers_is_saved_without_its_outputs(by_code: Path) -> None:
    origin = regrow.ModelOrigin("noisy.py:Net")
    regrow.save("net", origin.build(), Architecture(model=origin, shape=(1, 4)))
    assert "outputs" not in json.loads((by_code / "net" / "architecture.json").read_text())
    regrow.load("net", code="noisy.py:Net")  # without a warning


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Cannot write the network to .*net.* Name a folder"):
        regrow.save(tmp_path / "file" / "net", *cut_network(NETWORKS["vgg"]))


@pytest.mark.parametrize("name", ["architecture.json", "weights.safetensors"])
def test_a_missing_file_is_told(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(StoreError, match=rf"No network can be read .*{name}.*as regrow.save"):
        regrow.load(saved)


def test_half_of_the_weights_are_told(saved: Path) -> None:
    content = (saved / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"weights.safetensors' is damaged: it is not a file"):
        regrow.load(saved)


def test_a_changed_byte_of_an_exported_network_is_told(saved: Path) -> None:
    for name in ("architecture.json", "weights.safetensors"):
        content = (saved / name).read_bytes()
        for place in range(7, len(content), len(content) // 40):
            changed = bytearray(content)
            changed[place] ^= 1
            (saved / name).write_bytes(changed)
            with pytest.raises(StoreError, match=name):
                regrow.load(saved)
        (saved / name).write_bytes(content)
    regrow.load(saved)


def test_weights_of_another_network_are_told(saved: Path, tmp_path: Path) -> None:
    regrow.save(tmp_path / "other", *cut_network(NETWORKS["vgg"], cuts=2))
    other = (tmp_path / "other" / "weights.safetensors").read_bytes()
    (saved / "weights.safetensors").write_bytes(other)
    with pytest.raises(StoreError, match=r"do not fit its architecture. The architecture has \("):
        regrow.load(saved)


def test_a_weight_that_lacks_or_is_too_many_is_told(saved: Path) -> None:
    weights = load_file(saved / "weights.safetensors")
    bias = weights.pop("head.bias")
    save_file(weights, saved / "weights.safetensors")
    with pytest.raises(StoreError, match=r"has \(10,\) for 'head.bias', and the network nothing"):
        regrow.load(saved)
    save_file({**weights, "head.bias": bias, "more": bias.clone()}, saved / "weights.safetensors")
    with pytest.raises(StoreError, match=r"has nothing for 'more', and the network \(10,\)"):
        regrow.load(saved)


def _damage(value: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    inner: Any = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return value


def _write(file: Path, value: dict[str, Any]) -> None:
    """Write an architecture that is what was written, whatever it says."""
    del value["digest"]
    file.write_text(sealed(value, file.name))


CONV = ("cuts", 0, "features.conv1")


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("format",), 2, "has format 2, and this regrow reads 1. Use the version of"),
        (("shape",), None, "This architecture is damaged"),
        (("model",), None, "This architecture is damaged"),
        (("model",), {"nane": "vgg"}, "This architecture is damaged"),
        (("outputs",), [0.5], "damaged: its 'outputs'"),
        (("outputs",), [["a", 1.0]], "damaged: its 'outputs'"),
        (("cuts",), 3, "This architecture is damaged"),
        (("cuts", 0), [1], "This architecture is damaged"),
        ((*CONV, "kept"), [0, 6], "This architecture is damaged .*units outside 0 to 5"),
        ((*CONV, "kept"), [-1], "This architecture is damaged"),
        ((*CONV, "kept"), [0.5], "This architecture is damaged"),
        ((*CONV, "kept"), "all", "This architecture is damaged"),
        ((*CONV, "of"), 10**12, "This architecture is damaged .*a group of 1000000000000 units"),
        ((*CONV, "of"), "six", "This architecture is damaged"),
        ((*CONV, "of"), 7, "The cuts in .*architecture.json' do not fit its model: .* 7 units"),
        ((*CONV, "kept"), [], "do not fit its model: The mask would empty"),
        (("cuts", 0, "conv9"), {"of": 6, "kept": [0]}, "do not fit its model: No group 'conv9'"),
    ],
)
def test_a_damaged_architecture_is_told(path: Any, to: Any, message: str, saved: Path) -> None:
    file = saved / "architecture.json"
    _write(file, _damage(json.loads(file.read_text()), *path, to=to))
    with pytest.raises(StoreError, match=message):
        regrow.load(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "architecture.json' is damaged: it is not JSON .* Save the network anew"),
        (b"\xff\xfe", "architecture.json' is damaged"),
        (b"[]", "it is not a JSON object"),
        (b"{}", "it has no digest"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_file_that_is_no_architecture_is_told(content: bytes, message: str, saved: Path) -> None:
    (saved / "architecture.json").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        regrow.load(saved)


def test_a_model_that_is_not_registered_is_told(saved: Path) -> None:
    file = saved / "architecture.json"
    _write(file, _damage(json.loads(file.read_text()), "model", "name", to="mine"))
    with pytest.raises(ConfigError, match="Unknown model 'mine'"):
        regrow.load(saved)


def test_weights_of_one_storage_are_saved(tmp_path: Path) -> None:
    spec = ModelSpec("vgg", {**FROM_DIGITS, "plan": [4, 4]})
    model = build(spec)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    norms[0].weight = norms[1].weight
    regrow.save(tmp_path, model, Architecture(model=spec, shape=SHAPE))
    assert equal(regrow.load(tmp_path).state_dict(), model.state_dict())


# Traces -----------------------------------------------------------------------------------------


def written(found: Trace) -> Any:
    """Write all of a trace as plain values."""
    groups = [
        (g.name, g.kind, g.size, g.norms, s.tensor, s.dim, s.role, s.units.tolist())
        for g in found.groups.values()
        for s in g.slots
    ]
    rest = (found.whole, found.views, found.movers, found.measured, found.idle, found.computed)
    return groups, rest, found.outputs, found.example.tolist()


def assert_trace_does_not_hang_on_weights(spec: ModelSpec, shape: tuple[int, ...]) -> None:
    as_built = written(trace(build(spec), shape))
    for value in (0.0, None):
        model = build(spec, seed=1)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.zeros_like(tensor) if value == 0 else torch.randn_like(tensor)
        assert written(trace(model, shape)) == as_built


@pytest.mark.parametrize("label", NETWORKS)
def test_the_trace_of_a_model_of_its_own_does_not_hang_on_weights(label: str) -> None:
    assert MODELS.is_own(NETWORKS[label].name)
    assert_trace_does_not_hang_on_weights(NETWORKS[label], SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in image_models() if name != "vgg"])
def test_no_trace_of_a_model_of_its_own_hangs_on_weights(name: str) -> None:
    arguments: dict[str, Any] = {"classes": 3, "in_channels": 1, "input_size": 32}
    takes = inspect.signature(MODELS.get(name).factory).parameters
    narrow = {"width": 0.05} if "width" in takes else {}
    assert_trace_does_not_hang_on_weights(ModelSpec(name, arguments | narrow), (1, 1, 32, 32))


class Asking(nn.Module):
    """A network whose code asks for a weight's value."""

    def __init__(self, *, classes: int, in_channels: int, input_size: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 8, 3), nn.Conv2d(8, 8, 3)
        self.out = nn.Linear(8, classes)
        self.gate = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        y = self.second(x)
        y = x[:, :, 1:-1, 1:-1] + y if self.gate > 0 else y
        result: torch.Tensor = self.out(y.mean((2, 3)))
        return result


def test_a_trace_is_found_once_where_it_is_known_to_be_the_same() -> None:
    own = NETWORKS["resnet"]
    found = traced(build(own), own, SHAPE)
    assert traced(build(own, seed=1), own, SHAPE) is found
    assert written(traced(build(own), own, (1, 1, 10, 10))) != written(found)
    other = NETWORKS["vgg"]
    assert written(traced(build(other), other, SHAPE)) == written(trace(build(other), SHAPE))

    register_model("test-asking", family="test")(Asking)
    asking = ModelSpec("test-asking", FROM_DIGITS)
    open_, shut = build(asking), build(asking)
    with torch.no_grad():
        shut.get_parameter("gate").zero_()
    assert list(traced(open_, asking, SHAPE).groups) == ["first"]
    assert list(traced(shut, asking, SHAPE).groups) == ["first", "second"]
