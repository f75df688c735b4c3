"""What an exported network takes: masks beside tokens, free axes, and only inputs that are read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.errors import ConfigError, TraceError
from regrow.own.export_inputs import with_masks
from regrow.own.exports import _exported
from regrow.surgery.taken import check_names

TOKENS = "input_ids:1x16:int64:20"


class Texts(nn.Module):
    """A classifier of texts by the mean of the words that a mask shows."""

    config: Any = None

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.places = None if length is None else nn.Parameter(torch.randn(1, length, 8))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **others: Tensor,
    ) -> Tensor:
        seen = self.words(input_ids)
        seen = seen if self.places is None else seen + self.places
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = (shown if token_type_ids is None else shown * (1 + token_type_ids))[..., None]
        scores: Tensor = self.out((seen * weights).sum(1) / weights.sum(1))
        return scores if "scale" not in others else scores * others["scale"]


class Chooses(Texts):
    """Its code looks into the mask, which no exporter can follow."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if attention_mask is not None and bool((attention_mask == 1).all()):
            attention_mask = None
        return super().forward(input_ids, attention_mask)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def padded() -> dict[str, Tensor]:
    """Two texts of 9 tokens, of which the second has 4."""
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": torch.arange(18).reshape(2, 9) % 20, "attention_mask": mask}


@pytest.mark.parametrize("example", [TOKENS, torch.arange(16)[None]])
def test_a_network_of_texts_is_exported_with_its_mask(example: Any) -> None:
    net = Texts().eval()
    told = regrow.export(net, example, "texts.pt2")
    assert "takes input_ids, attention_mask and token_type_ids in batches of any size and" in told
    assert "any length that the network takes; within" in told
    assert "on padded texts too" in told
    exported = torch.export.load("texts.pt2").module()
    inputs = padded() | {"token_type_ids": torch.zeros(2, 9, dtype=torch.int64)}
    assert torch.allclose(exported(**inputs), net(**inputs), atol=1e-6)
    assert not torch.allclose(net(inputs["input_ids"]), net(**inputs), atol=1e-3)


def test_names_of_inputs_and_axes_in_an_onnx_file_are_plain() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    net = Texts().eval()
    regrow.export(net, TOKENS, "texts.onnx")
    graph = onnx.load("texts.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    (output,) = (value.name for value in graph.output)
    assert shapes.pop(output) == ["batch", 3]
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert shapes == {name: ["batch", "sequence"] for name in names}
    inputs = padded() | {"token_type_ids": torch.ones(2, 9, dtype=torch.int64)}
    session = runtime.InferenceSession("texts.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert torch.allclose(torch.from_numpy(found), net(**inputs), atol=1e-5)


def test_a_length_that_the_code_counts_on_is_not_free() -> None:
    told = regrow.export(Texts(length=16).eval(), TOKENS, "texts.pt2")
    assert "in batches of any size; within" in told
    assert "on padded texts too" in told


def test_a_mask_that_cannot_be_exported_is_missed_aloud() -> None:
    told = regrow.export(Chooses().eval(), TOKENS, "texts.pt2")
    assert "takes batches of any size and of any length that the network takes; within" in told
    assert "It has no attention_mask, with which this network cannot be exported" in told


def test_other_inputs_are_exported_as_they_are() -> None:
    told = regrow.export(nn.Linear(4, 2).eval(), "1x4", "net.pt2")
    assert told.startswith("takes batches of any size; within")


@pytest.mark.parametrize(("kinds", "added"), [(2, True), (1, False), (0, False), (None, False)])
def test_parts_of_a_text_are_an_input_where_a_network_tells_them_apart(
    kinds: int | None, added: bool
) -> None:
    net = Texts()
    net.config = SimpleNamespace(type_vocab_size=kinds)
    inputs = with_masks(net, {"input_ids": torch.arange(16)[None]})
    assert ("token_type_ids" in inputs) is added
    assert [*inputs][:2] == ["input_ids", "attention_mask"]


def test_given_masks_stay_and_inputs_come_in_the_networks_order() -> None:
    mask = torch.zeros(1, 16, dtype=torch.int64)
    inputs = with_masks(Texts(), {"attention_mask": mask, "input_ids": torch.arange(16)[None]})
    assert [*inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert inputs["attention_mask"] is mask


# Names -------------------------------------------------------------------------------------------


def test_an_input_that_nothing_reads_is_refused_and_one_that_is_passed_on_is_not() -> None:
    net, tokens = Texts(), torch.arange(16)[None]
    check_names(net, {"input_ids": tokens, "scale": torch.ones(1)})
    with pytest.raises(
        TraceError, match=r"Unknown input 'atention_mask'. Did you mean 'attention_"
    ):
        check_names(net, {"input_ids": tokens, "atention_mask": torch.ones(1, 16)})
    with pytest.raises(TraceError, match=r"Unknown input 'input_id'. Did you mean 'input_ids'"):
        check_names(net, {"input_id": tokens})
    with pytest.raises(TraceError, match=r"Unknown input 'mask'.*Chooses.forward names"):
        check_names(Chooses(), {"input_ids": tokens, "mask": tokens})


class OneMapping(Texts):
    """Takes all its inputs as one mapping."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["words"], batch["mask"])


def test_inputs_that_a_network_takes_as_one_mapping_are_told_how_to_be_given() -> None:
    separate = "words:1x16:int64:16 mask:1x16:int64"
    with pytest.raises(TraceError, match=r"Unknown input 'words'.*It runs on one map") as told:
        regrow.inspect(OneMapping(), separate)
    text = "[words:1x16:int64:16,mask:1x16:int64]"
    assert f"It runs on one mapping of them: '{text}'" in str(told.value)
    assert "MACs for " + text in str(regrow.inspect(OneMapping(), text))
    with pytest.raises(TraceError, match=r"Unknown input 'word'.*forward names\.$"):
        regrow.inspect(OneMapping(), separate.replace("words", "word"))


@pytest.mark.parametrize("inputs", [f"{TOKENS} attention_maks:1x16:int64", "inputids:1x16:int64"])
def test_every_command_refuses_a_misspelt_input(inputs: str) -> None:
    for use in (regrow.inspect, lambda n, x: regrow.compress(n, x, sparsity=0.5, batches=())):
        with pytest.raises(TraceError, match="Did you mean"):
            use(Texts(), inputs)
    with pytest.raises((TraceError, ConfigError), match="Did you mean"):
        regrow.export(Texts(), inputs, "texts.pt2")


class Pair(nn.Module):
    """A linear layer that takes a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, pair: dict[str, Tensor]) -> Any:
        return self.layer(pair["a"] + pair["b"])


def test_a_mapping_is_exported_to_pt2_and_refused_for_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrow.own.exports.check_packages", lambda exports: None)
    net, inputs = Pair().eval(), "[a:1x4,b:1x4]"
    told = regrow.export(net, inputs, tmp_path / "net.pt2")
    assert told.startswith("takes one example at a time; within")
    with pytest.raises(ConfigError, match=r"is a list or a mapping of tensors.*takes the tensors"):
        regrow.export(net, inputs, tmp_path / "net.onnx")


class Views(nn.Module):
    """Reads a list of two different tensors, which are no examples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 2), nn.Linear(6, 2)

    def forward(self, views: list[Tensor]) -> Any:
        first, second = views
        return self.one(first) + self.two(second)


def test_a_list_that_is_no_batch_is_exported_as_it_is(tmp_path: Path) -> None:
    net, views = Views().eval(), [torch.randn(3, 4), torch.randn(3, 6)]
    told = regrow.export(net, (views,), tmp_path / "net.pt2")
    assert told.startswith("takes inputs of the shapes of the example's, in lists of as many")
    again = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(again(views), net(views))


@pytest.mark.parametrize(
    ("kind", "allowed"), [(torch.float16, "0.0098"), (torch.float32, "0.0001")]
)
def test_an_export_may_be_as_far_off_as_the_networks_type_rounds(
    kind: torch.dtype, allowed: str
) -> None:
    net = nn.Linear(4, 2).to(kind).eval()

    def told(off: float) -> str:
        def write(program: Any, way: Any) -> Any:
            return lambda inputs: net(inputs).double() * (1 + off)

        return _exported(net, torch.rand(1, 4, dtype=kind), write, "--onnx")

    assert told(0.5 * float(allowed)).endswith(f"({allowed} allowed)")
    with pytest.raises(TraceError, match=f"output, and {allowed} is allowed"):
        told(2 * float(allowed))
