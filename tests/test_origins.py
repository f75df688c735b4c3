"""Networks by a text: each form builds one, and each failure is one clear message."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regrow.errors import ConfigError, DataError, RegrowError
from regrow.models.inputs import Inputs, inputs_of
from regrow.models.libraries import _fetched
from regrow.models.origins import ModelOrigin, open_network, read_arguments, read_origin
from regrow.studies.family import _value

CODE = """
import torch
from torch import nn

def build(width=8, fails=False):
    if fails:
        raise ValueError("too wide")
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))

class Net(nn.Module):
    def __init__(self, num):
        super().__init__()
        self.layer = nn.Linear(3, num)

ready = nn.Linear(2, 2)
number = 3

def wrong():
    return nn.Linear(2, 2), "and more"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with code of a user's: nets.py, and package/inner.py."""
    import sys

    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "inner.py").write_text(CODE)
    (tmp_path / "own_package" / "beside.py").write_text("from .inner import build\n")
    (tmp_path / "broken.py").write_text("import torch\n\nimport not_installed_anywhere\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "typo.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.startswith(("own_package", "nets", "regrow_code")):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "arguments", "kind"),
    [
        ("nets.py:build", {"width": 3}, nn.Sequential),
        ("nets:build", {}, nn.Sequential),
        ("own_package.beside:build", {}, nn.Sequential),
        ("own_package.inner:Net", {"num": 2}, nn.Module),
        ("nets.py:ready", {}, nn.Linear),
        ("torchvision/resnet18", {"num_classes": 7}, nn.Module),
        ("resnet-20", {"classes": 10}, nn.Module),
    ],
)
@pytest.mark.usefixtures("here")
def test_each_form_builds_a_network(text: str, arguments: dict[str, Any], kind: type) -> None:
    network, _ = open_network(read_origin(text, arguments), "random")
    assert isinstance(network, kind)
    same = read_origin(text, arguments).build()
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), same.state_dict().values(), strict=True)
    )


def test_a_model_of_timm_is_built_and_says_its_input() -> None:
    pytest.importorskip("timm")
    origin = read_origin("timm/test_resnet", {"num_classes": 5})
    network = origin.build()
    assert origin.inputs(network) == "1x3x160x160"
    assert network(torch.zeros(1, 3, 160, 160)).shape == (1, 5)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("nets.py", {}, r"names no network.*Add the function: nets\.py:build"),
        ("nowhere.py:build", {}, "there is no file 'nowhere.py'"),
        ("nowhere.inner:build", {}, "there is no module 'nowhere.inner'.*name its file"),
        ("nets.py:bild", {}, "Unknown function or class 'bild'.*Did you mean 'build'"),
        ("nets.py:build", {"widht": 3}, r"its arguments are \(width=8.*'widht'"),
        ("nets.py:Net", {}, r"missing a required argument: 'num'. Give them with --set"),
        ("nets.py:build", {"fails": True}, r"fails: .*nets\.py, line 7: ValueError: too wide"),
        ("nets.py:wrong", {}, r"must return a torch.nn.Module. Got tuple"),
        ("nets.py:number", {}, "'number' must be a function or a class.*Got 3"),
        ("nets.py:ready", {"a": 1}, "to accept arguments"),
        ("broken.py:build", {}, r"broken\.py, line 3: ModuleNotFoundError.*not_installed_any"),
        ("broken:build", {}, r"broken\.py, line 3: ModuleNotFoundError.*not_installed_any"),
        (
            "own_package/beside.py:build",
            {},
            r"relative import.*name it as own_package\.beside:build",
        ),
        ("leaves.py:build", {}, r"leaves\.py, line 1: SystemExit"),
        ("typo.py:build", {}, r"typo\.py, line 1: SyntaxError"),
        ("torchvision/resnet181", {}, r"Did you mean 'resnet18'.* There are \d+\.$"),
        ("torchvision/resnet18", {"depth": 3}, r"cannot be built: TypeError: .*'depth'"),
        ("torchvision/resnet18", {"weights": "X"}, "chosen with --weights, not with 'weights'"),
        ("hf/", {}, "needs the ID|transformers"),
        ("some/where", {}, "names no network"),
        ("resnet-21", {}, "Did you mean 'resnet-.*another kind is package.module:build"),
        (":", {}, "names no network"),
        (" ", {}, "is named by a text"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_names_no_network_is_told(text: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RegrowError) as error:
        open_network(read_origin(text, arguments), "random")
    assert re.search(message, str(error.value)), str(error.value)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_a_missing_package_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    text = {"timm": "timm/resnet18", "transformers": "hf/some/model"}[name]
    with pytest.raises(ConfigError, match=rf"{name} is needed.*pip install 'regrow\[{name}\]'"):
        read_origin(text).build()


def test_published_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    import torchvision.models._api as api

    monkeypatch.setattr(api, "load_state_dict_from_url", offline)
    with pytest.raises(DataError, match=r"resnet18 cannot be loaded: .*no route.*--weights random"):
        open_network(read_origin("torchvision/resnet18"))


@pytest.mark.slow
def test_a_model_of_transformers_comes_from_a_folder_and_is_built_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra is not installed")
    import regrow

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_hidden_layers=1, vocab_size=20)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained("bert")
    origin = read_origin("hf/bert")
    network, how = open_network(origin)
    assert how == "of the folder bert"
    assert origin.inputs(network) == "input_ids:1x16:int64:20"
    short = transformers.BertModel(
        transformers.BertConfig(
            **sizes, num_hidden_layers=1, vocab_size=20, max_position_embeddings=9
        )
    )
    assert origin.inputs(short) == "input_ids:1x9:int64:20"
    assert _value(origin, "hidden_size") == 16
    with pytest.raises(ConfigError, match="no number 'width'"):
        _value(origin, "width")
    tokens = torch.arange(6)[None]
    assert torch.equal(network(input_ids=tokens).logits, model(input_ids=tokens).logits)
    inputs = "input_ids:1x6:int64:20"
    cut = regrow.compress(network, inputs, parameters=0.9, origin=origin, batches=())
    cut.save("small")
    (tmp_path / "bert").rename(tmp_path / "elsewhere")
    small = regrow.load("small")
    assert torch.equal(small(input_ids=tokens).logits, cut.network(input_ids=tokens).logits)
    with pytest.raises(RegrowError, match="has no configuration that can be read"):
        open_network(read_origin("hf/bert"))
    with pytest.raises(ConfigError, match="lack 16 of the network's"):
        open_network(read_origin("hf/elsewhere", {"num_hidden_layers": 2}))


# Weights -----------------------------------------------------------------------------------------


def under(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "w.pt": lambda state: state,
    "wrapped.ckpt": lambda state: {"state_dict": state, "epoch": 3, "best": {"of": 0.5}},
    "parallel.pth": lambda state: under("module.", state),
    "lightning_of_compiled.ckpt": lambda state: {"state_dict": under("model._orig_mod.", state)},
    "averaged.pt": lambda state: {"n_averaged": torch.tensor(3), **under("module.", state)},
    "named_unusually.pt": lambda state: {"params": state, "optimizer": {"state": {}}},
}


@pytest.mark.parametrize("name", ["w.safetensors", *WRAPPED])
def test_weights_of_a_file_are_filled_in(name: str, here: Path) -> None:
    state = {
        n: torch.rand(v.shape) for n, v in ModelOrigin("nets.py:build").build().state_dict().items()
    }
    if name.endswith(".safetensors"):
        save_file(state, name)
    else:
        torch.save(WRAPPED[name](state), name)
    network, how = open_network(ModelOrigin("nets.py:build"), name)
    assert all(torch.equal(network.state_dict()[n], v) for n, v in state.items())
    assert how == f"of {name}"


TINY = under("net.", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"no tensors", "cannot be read|more than tensors"),
        (b"", r"is damaged, incomplete, or not from torch\.save \(EOFError"),
        (TINY | {"loss.weight": torch.ones(2)}, r"those named net\.\*: save .*prefix\('net\.'\)"),
        ({"state_dict": TINY, "state_dict_ema": TINY}, r"several sets.*'state_dict_ema'\], 'wei"),
        ({"model": TINY, "model_ema": under("module.", TINY)}, "several sets.*'model' and 'model_"),
        ({"student": TINY, "teacher": TINY}, "several sets of weights: 'student' and 'teacher'"),
        (
            nn.Linear(2, 2),
            r"holds more than tensors \(torch\.nn.*Linear\).*torch\.save\(net\.state_dict",
        ),
        ({"a": 1}, r"expected a mapping of names to tensors.*Got \{'a': 1\}"),
        (nn.Linear(2, 2).state_dict(), r"lacks '0.weight'.* and 1 more; the network has no 'wei"),
        (
            nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 4, 3)).state_dict(),
            r"'0.weight' is \[9, 3, 3, 3\] there and \[8, 3, 3, 3\] in the network; 2 more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_told(content: Any, message: str, here: Path) -> None:
    if isinstance(content, bytes):
        (here / "w.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, here / "w.pt")
    with pytest.raises((ConfigError, DataError), match=message):
        open_network(ModelOrigin("nets.py:build"), "w.pt")


def test_a_folder_of_weights_and_a_compiled_program_are_told(here: Path) -> None:
    origin = ModelOrigin("nets.py:build")
    torch.save(TINY, here / "own_package" / "w.pt")
    with pytest.raises(DataError, match=r"is a folder. Name a file of weights in it: 'w\.pt'"):
        open_network(origin, "own_package")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: Any = torch.jit.trace(nn.ReLU(), torch.zeros(1))  # type: ignore[no-untyped-call]
        program.save("program.pt")
    with pytest.raises(DataError, match=r"a TorchScript program\. Save its torch\.jit\.load"):
        open_network(origin, "program.pt")


# Arguments and inputs ----------------------------------------------------------------------------


def test_arguments_are_json_or_texts() -> None:
    found = read_arguments(["a=1", "b=[1, 2]", "c=relu", "d=x=y"], '{"e": null}')
    assert found == {"a": 1, "b": [1, 2], "c": "relu", "d": "x=y", "e": None}


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (["a"], None, "must be NAME=VALUE"),
        (["a=1", "a=2"], None, "given more than once"),
        ([], "[1]", "must be a JSON object"),
        ([], "{", "must be a JSON object"),
    ],
)
def test_arguments_that_are_none_are_told(
    settings: list[str], given: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(settings, given)


@pytest.mark.parametrize(
    ("texts", "shapes"),
    [
        (["1x3x8x8"], {"": (1, 3, 8, 8)}),
        (["1x4", "1x5:int64"], {"": (1, 4)}),
        (["input_ids:1x6:int64:4", "attention_mask:1x6:int64"], {"input_ids": (1, 6)}),
    ],
)
def test_inputs_are_read_as_they_are_written(texts: list[str], shapes: dict[str, Any]) -> None:
    inputs = Inputs.read(texts)
    assert str(inputs) == " ".join(texts)
    assert Inputs.read(inputs.to_json()) == inputs == inputs_of(inputs.example())
    example = inputs.example()
    if isinstance(example, dict):
        assert example["input_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
        assert example["attention_mask"].tolist() == [[1] * 6]
    for name, shape in shapes.items():
        first: Any = example[0] if isinstance(example, tuple) else example
        assert (first[name] if name else first).shape == shape


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "Give the network's input: --input"),
        (["1x0x3"], r"--input must be \[NAME:\]SHAPE"),
        (["3,224,224"], r"--input must be \[NAME:\]SHAPE"),
        (["a:b:1x2"], r"--input must be \[NAME:\]SHAPE"),
        (["1x3:int3"], "Unknown kind of number 'int3'"),
        (["1x3:float32:7"], "the number of values that integers can"),
        (["1x3:int64:none"], "the number of values that integers can"),
        (["99999x99999x99999"], "it has .* numbers"),
        (["a:1x2", "1x2"], "all must have different names or none"),
        (["a:1x2", "a:1x2"], "all must have different names or none"),
    ],
)
def test_inputs_that_are_none_are_told(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Inputs.read(texts)


# Texts from elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"text": "timm/resnet18", "arguments": {"checkpoint_path": "x"}},
            "not with 'checkp",
        ),
        (
            {"text": "torchvision/resnet18", "arguments": {"weights": "DEFAULT"}},
            "not with 'weigh",
        ),
        (
            {"text": "hf/x", "arguments": {"trust_remote_code": True}},
            "not with 'trust_rem",
        ),
        (
            {"text": "hf/x", "settings": {"class": "Trainer", "type": "bert", "config": {}}},
            "has no class 'Trainer' for this model|the package transformers is needed",
        ),
        ({"text": "timm/hf-hub:some/where"}, "Unknown model of timm|the package timm is needed"),
        ({"text": 3}, "is named by a text"),
        ({"text": "resnet-20", "more": 1}, "must map 'text' and 'arguments'"),
    ],
)
def test_what_a_file_says_fetches_nothing_and_runs_no_code(
    value: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelOrigin.from_json(value).build()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("401 Client Error\nYou are trying to access a gated repo"), "hf auth login"),
        (OSError("no route to host"), "Connect to the internet.*--weights random"),
    ],
)
def test_weights_that_are_gated_or_out_of_reach(error: Exception, message: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(
        DataError, match=rf"of hf/some/model cannot be loaded: OSError: .*{message}"
    ):
        _fetched("hf/some/model", fail)
