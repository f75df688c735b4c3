"""Criteria on what networks of text take: tokens, several inputs by name, a loss of their own."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import regrow
from regrow.errors import ConfigError, TraceError, TrainingError
from regrow.pruning.examples import examples_of, rows_of, size_of
from regrow.pruning.method import CRITERIA, Method, general_method
from regrow.pruning.probe import Probe
from regrow.pruning.select import groups_in_scope, select

VOCABULARY, LENGTH, CLASSES = 11, 6, 3


class Reader(nn.Module):
    """Classifies sequences, as networks of transformers do: by name, with a loss if it may."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        x = self.tokens(input_ids)
        x = self.norm(x + self.down(self.up(x).relu()))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        shares = mask.float() / mask.sum(1, keepdim=True)
        logits = self.head((x * shares[..., None]).sum(1))
        loss = {} if labels is None else {"loss": functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def network() -> Reader:
    torch.manual_seed(0)
    return Reader()


def batches(*, sizes: tuple[int, ...] = (4, 3)) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        ids = torch.randint(VOCABULARY, (size, LENGTH), generator=draw)
        lengths = torch.randint(2, LENGTH + 1, (size, 1), generator=draw)
        mask = (torch.arange(LENGTH) < lengths).long()
        labels = torch.randint(CLASSES, (size,), generator=draw)
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def as_tuples() -> list[tuple[Any, ...]]:
    return [(b["input_ids"], b["attention_mask"], b["labels"]) for b in batches()]


def as_pairs() -> list[tuple[Any, Any]]:
    return [({k: b[k] for k in ("input_ids", "attention_mask")}, b["labels"]) for b in batches()]


EXAMPLE = {
    "input_ids": torch.arange(LENGTH)[None] % VOCABULARY,
    "attention_mask": torch.ones(1, LENGTH, dtype=torch.int64),
}
UNIT = Method(name="test", criterion="l1-norm", scope=("linear",))
NORMED = Method(name="test", criterion="l1-norm", scope=("stream",))
WEIGHT = Method(name="test", criterion="l1-norm", unit="weight", scope=("linear",))
OF_MAPS = {"hrank"}  # asks for maps of two dimensions, and says so
TEMPERED = {"gradient-flow"}


def _scored(criterion: str, data: Any, method: Method) -> dict[str, Tensor]:
    net = network()
    groups = groups_in_scope(net, regrow.trace(net, EXAMPLE), method)
    probe = Probe(net, examples_of(data, net, num=512), groups=groups)
    return {name: CRITERIA.get(criterion)(group, probe) for name, group in groups.items()}


@pytest.mark.parametrize("name", sorted({*CRITERIA.names()} - OF_MAPS))
def test_each_criterion_takes_batches_by_name_in_order_and_in_pairs(name: str) -> None:
    ways = [as_pairs(), as_tuples(), *([] if name in TEMPERED else [batches()])]
    scored = 0
    for method in (UNIT, NORMED, WEIGHT):
        try:
            first = _scored(name, ways[0], method)
        except (ConfigError, TraceError, AssertionError):
            continue  # a criterion of units, or one of weights
        scored += 1
        for way in ways[1:]:
            again = _scored(name, way, method)
            for group, scores in first.items():
                torch.testing.assert_close(again[group], scores, rtol=1e-5, atol=1e-7)
    assert scored, f"{name} scores no linear layer of a network of text"


def test_a_gradient_is_that_of_the_mean_over_all_examples_whatever_the_batches() -> None:
    net = network().eval()
    joined = {key: torch.cat([b[key] for b in batches()]) for key in batches()[0]}
    net(**joined)["loss"].backward()
    expected = {name: p.grad for name, p in net.named_parameters()}
    probe = Probe(net, examples_of(batches(), net, num=99))
    for name, gradient in expected.items():
        torch.testing.assert_close(probe.gradient(name), gradient)

    def doubled(outputs: Any, targets: Tensor) -> Any:
        return 2 * functional.cross_entropy(outputs["logits"], targets)

    given = Probe(net, examples_of(batches(), net, num=99, loss=doubled))
    torch.testing.assert_close(given.gradient("up.weight"), 2 * probe.gradient("up.weight"))


def test_each_example_has_a_gradient_of_its_own() -> None:
    net = network().eval()
    total = torch.zeros_like(net.up.weight)
    for batch in batches():
        for i in range(len(batch["labels"])):
            one = {key: value[i : i + 1] for key, value in batch.items()}
            (gradient,) = torch.autograd.grad(net(**one)["loss"], [net.up.weight])
            total += gradient.square()
    probe = Probe(net, examples_of(batches(), net, num=99))
    found = probe.gradients(lambda g: {"up": g["up.weight"].square()})["up"]
    torch.testing.assert_close(found, total / 7)


def test_padding_is_no_part_of_what_weights_read() -> None:
    net = network().eval()
    probe = Probe(net, examples_of(batches(), net, num=99))
    parts = [net.tokens(b["input_ids"])[b["attention_mask"].bool()] for b in batches()]
    rows = torch.cat(parts).detach()
    torch.testing.assert_close(probe.input_norms("up.weight"), rows.norm(dim=0)[None])
    ids = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches()])
    counts = torch.bincount(ids, minlength=VOCABULARY)
    torch.testing.assert_close(probe.input_norms("tokens.weight"), counts.sqrt()[:, None])
    gram = (rows.double().T @ rows.double()) / len(rows)
    torch.testing.assert_close(probe.gram("up.weight"), gram)


def test_data_are_read_no_further_than_needed() -> None:
    read = []

    def source() -> Iterator[dict[str, Tensor]]:
        for batch in batches(sizes=(4, 4, 4)):
            read.append(batch)
            yield batch

    examples = examples_of(source(), network(), num=6)
    assert len(read) == 2
    assert [size_of(x) for x, _ in examples.batches] == [4, 2]
    assert [len(targets) for _, targets in examples.batches] == [4, 2]


def test_a_data_loader_of_one_input_needs_no_names() -> None:
    joined = {key: torch.cat([b[key] for b in batches()]) for key in batches()[0]}
    loader = DataLoader(TensorDataset(joined["input_ids"], joined["labels"]), batch_size=3)
    net = network()
    traced = regrow.trace(net, EXAMPLE)
    mask = select(net, traced, general_method("taylor"), sparsity=0.5, dataset=loader)
    assert mask.sparsity == pytest.approx(0.5, abs=0.1)
    small = regrow.compress(
        net, EXAMPLE, sparsity=0.4, criterion="fisher", dataset=batches(), batches=()
    )
    assert small.proof.ok


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, a: Tensor) -> Tensor:
        scores: Tensor = self.two(self.one(a).relu())
        return scores


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ([], None, "yields no batch"),
        ([{"b": torch.ones(2, 4)}], None, "lacks 'a'; the network takes no 'b'"),
        ([3], None, "A batch for a criterion must be"),
        ([torch.ones(2, 4)], None, "must have targets"),
        ([(torch.ones(2, 4), torch.ones(5))], None, "The loss cannot be chosen automatically"),
        ([(torch.ones(2, 4), torch.ones(2).long())], lambda o, t: o, "must return the mean loss"),
    ],
)
def test_what_data_lack_is_said(data: Any, loss: Any, message: str) -> None:
    net = Plain()
    traced = regrow.trace(net, (1, 4))
    with pytest.raises((ConfigError, TrainingError), match=message):
        select(net, traced, general_method("taylor"), sparsity=0.5, dataset=data, loss=loss)


class OfOneMapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.inner(batch["a"])
        return out


def test_one_mapping_as_the_input_is_given_in_a_tuple() -> None:
    network, inputs, targets = OfOneMapping(), {"a": torch.ones(2, 4)}, torch.tensor([0, 1])
    for batch in ((inputs, targets), {**inputs, "labels": targets}):
        with pytest.raises(ConfigError, match=r"If that is one mapping .*, give \(\(mapping,\),"):
            examples_of([batch], network, num=2)
    ((found, _),) = examples_of([((inputs,), targets)], network, num=2).batches
    assert network(**found).equal(network(inputs))


def test_targets_suggest_the_loss() -> None:
    net, x = Plain().eval(), torch.randn(6, 4)
    for targets, loss in (
        (torch.tensor([0, 1, 1, 0, 1, -100]), functional.cross_entropy),
        (torch.randn(6, 2), functional.mse_loss),
    ):
        (expected,) = torch.autograd.grad(loss(net(x), targets), [net.one.weight])
        probe = Probe(net, examples_of([(x, targets)], net, num=9))
        torch.testing.assert_close(probe.gradient("one.weight"), expected)
        labelled = {"a": x, "labels": targets}  # which the network does not take
        again = Probe(net, examples_of([labelled], net, num=9))
        torch.testing.assert_close(again.gradient("one.weight"), expected)


def test_gradients_of_a_network_in_float16_are_those_in_float32() -> None:
    torch.manual_seed(0)
    net, data = Plain().half(), [(torch.randn(40, 4).half(), torch.arange(40) % 2)]
    with torch.no_grad():
        net.two.weight.mul_(1e-3)
    whole = copy.deepcopy(net).float()
    found, expected = (Probe(n, examples_of(d, n, num=99)) for n, d in (
        (net, data), (whole, [(x.float(), targets) for x, targets in data]),
    ))  # fmt: skip
    name = "one.weight"
    product = expected.hessian_gradient(name, temperature=200.0)
    assert float(product.abs().max()) < 1e-7  # the least number in float16 is 6e-8
    assert found.hessian_gradient(name, temperature=200.0).equal(product)
    assert found.gradient(name).equal(expected.gradient(name))
    assert net.one.weight.dtype is torch.float16
    assert not net._forward_pre_hooks


def test_a_network_that_needs_float16_is_refused_for_gradients() -> None:
    class Casting(Plain):
        def forward(self, a: Tensor) -> Tensor:
            return super().forward(a.half())

    net = Casting().half()
    probe = Probe(net, examples_of([(torch.randn(4, 4), torch.ones(4).long())], net, num=9))
    with pytest.raises(ConfigError, match=r"in float32, .* Convert the network first \(network.fl"):
        probe.gradient("one.weight")


def test_a_temperature_needs_outputs_that_the_loss_is_computed_of() -> None:
    net = network()
    probe = Probe(net, examples_of(batches(), net, num=9))
    with pytest.raises(ConfigError, match="computes its loss itself"):
        probe.hessian_gradient("up.weight", temperature=200.0)
    assert probe.hessian_gradient("up.weight").isfinite().all()


def test_rows_are_those_of_tensors_that_have_one_for_each_example() -> None:
    inputs = {"a": torch.arange(6).view(3, 2), "b": (torch.arange(3), torch.tensor(4)), "c": "x"}
    part = rows_of(inputs, slice(1, 2), 3)
    assert part["a"].tolist() == [[2, 3]]
    assert part["b"][0].tolist() == [1]
    assert int(part["b"][1]) == 4
    assert part["c"] == "x"


class OfImages(nn.Module):
    """Takes a list of images of any size, as detectors do; returns scores for each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        assert targets is None
        return [{"scores": self.two(self.one(x[None]).relu()).mean((0, 2, 3))} for x in images]


def detected(*, num: int = 3) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    draw = torch.Generator().manual_seed(2)
    images = [torch.randn(3, 8 + n, 8, generator=draw) for n in range(num)]
    # As many boxes as there are examples, or more: rows of boxes are no rows of examples.
    boxes = [torch.ones(num + n, 4) for n in range(num)]
    return images, [{"boxes": b, "labels": torch.tensor(n)} for n, b in enumerate(boxes)]


def scores_of_labels(outputs: Any, targets: Any) -> Tensor:
    pairs = zip(outputs, targets, strict=True)
    return torch.stack([out["scores"][target["labels"] % 2] for out, target in pairs]).mean()


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_images_is_one_input(kind: Any) -> None:
    torch.manual_seed(0)
    net, (images, targets) = OfImages().eval(), detected()
    data = [(kind(images), kind(targets))]
    traced = regrow.trace(net, (images[:1],))
    for criterion in ("mean-activation", "taylor", "fisher"):
        method = general_method(criterion)
        mask = select(net, traced, method, sparsity=0.5, dataset=data, loss=scores_of_labels)
        assert 0 < mask.num_kept < mask.num_units
    probe = Probe(net, examples_of(data, net, num=2, loss=scores_of_labels))
    ((x, _),) = probe.batches()
    assert [image.shape for image in x["images"]] == [image.shape for image in images[:2]]
    loss = scores_of_labels(net(images[:2]), targets[:2])
    (expected,) = torch.autograd.grad(loss, [net.one.weight])
    torch.testing.assert_close(probe.gradient("one.weight"), expected)
    each = probe.gradients(lambda g: {"one": g["one.weight"]})["one"]
    torch.testing.assert_close(each, expected)
    with pytest.raises(ConfigError, match="returns a list without 'logits' or 'loss'"):
        select(net, traced, general_method("taylor"), sparsity=0.5, dataset=data)
    with pytest.raises(ConfigError, match=r"3 inputs, and the network takes 2 \(images, targets\)"):
        examples_of([(images, torch.zeros(3))], net, num=3)


def test_labels_of_each_example_in_a_list_are_one_for_each() -> None:
    class OfPixels(OfImages):
        def forward(self, pixels: Tensor, labels: Any = None) -> Any:  # type: ignore[override]
            outputs = super().forward([*pixels])
            return {"loss": scores_of_labels(outputs, labels)}

    torch.manual_seed(0)
    net, (_, targets) = OfPixels().eval(), detected(num=4)
    pixels = torch.randn(4, 3, 8, 8)
    halves = [
        {"pixels": pixels[rows], "labels": targets[rows]} for rows in (slice(1), slice(1, None))
    ]
    (expected,) = torch.autograd.grad(net(pixels, targets)["loss"], [net.one.weight])
    probe = Probe(net, examples_of(halves, net, num=9))
    torch.testing.assert_close(probe.gradient("one.weight"), expected)
    each = probe.gradients(lambda g: {"one": g["one.weight"]})["one"]
    torch.testing.assert_close(each, expected)


class Tied(nn.Module):
    """Predicts tokens by the table that it looks them up in."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.tokens(input_ids).tanh())
        return scores


def test_a_table_that_multiplies_too_counts_what_it_multiplies() -> None:
    torch.manual_seed(0)
    net, data = Tied(), [b["input_ids"] for b in batches()]
    probe = Probe(net, examples_of(data, net, num=99))
    rows = torch.cat([net.tokens(ids).tanh().flatten(0, 1) for ids in data]).detach()
    for name in ("head.weight", "tokens.weight"):
        torch.testing.assert_close(probe.input_norms(name), rows.norm(dim=0)[None])


def test_a_criterion_may_change_what_the_probe_returns() -> None:
    torch.manual_seed(0)
    net, (x, y) = Plain(), (torch.randn(6, 4), torch.arange(6) % 2)
    given = copy.deepcopy((x, y))
    probe = Probe(net, examples_of([(x, y)], net, num=6), example=x)
    expected = probe.gradient("one.weight")
    for batch, targets in probe.batches():
        batch.zero_()
        targets.zero_()
    probe.example().zero_()
    assert torch.equal(x, given[0])
    assert torch.equal(y, given[1])
    again = Probe(net, examples_of([(x, y)], net, num=6))
    assert torch.equal(again.gradient("one.weight"), expected)
