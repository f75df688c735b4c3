"""Tasks beside images: tables, arrays and text are read, learnt and scored as what they are."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regrow.data import Dataset, DataSpec, MemoryImages, load
from regrow.errors import ConfigError, DataError, RegrowError
from regrow.models import ModelSpec, build, example_input
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.surgery import trace
from regrow.tasks import TASKS, task_of
from regrow.train import Recipe, Training, evaluate, fit
from regrow.train.material import material_of


def table(folder: Path, *, rows: int = 60, target: str = "y", words: bool = False) -> str:
    """Write a table of two features and a target that follows from them."""
    chance = np.random.default_rng(0)
    x = chance.random((rows, 2)).round(3)
    y = 3 * x[:, 0] - x[:, 1] + 0.1 * chance.standard_normal(rows)
    cells = ["high" if value > 1 else "low" for value in y] if words else [f"{v:.3f}" for v in y]
    lines = [f"{a},{b},{c}" for (a, b), c in zip(x, cells, strict=True)]
    (folder / "table.csv").write_text("\n".join([f"a,b,{target}", *lines]) + "\n")
    return f"csv:{folder / 'table.csv'}"


def arrays(folder: Path, **values: Any) -> str:
    np.savez(folder / "arrays.npz", **values)
    return f"npz:{folder / 'arrays.npz'}"


def tagged(folder: Path) -> str:
    """Write sequences of tokens, each tagged by its rest, the last of which is not asked for."""
    tokens = np.random.default_rng(0).integers(0, 12, (40, 6))
    tags = tokens % 3
    tags[:, -1] = -100
    return arrays(folder, x=tokens, y=tags)


def writing(folder: Path) -> str:
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    return f"text:{folder / 'text.txt'}"


class Fixed(nn.Module):
    """Returns given outputs for the examples, which carry their own row in the first number."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)[:, 0].long()
        return self.outputs[rows]


def dataset(task: str, outputs: Tensor, targets: Tensor, classes: int = 0) -> Dataset:
    numbered = torch.arange(len(outputs)).float()[:, None]
    images = MemoryImages(numbered, targets)
    return Dataset(
        spec=DataSpec("digits"),
        train=images,
        validation=None,
        test=images,
        classes=tuple(map(str, range(classes))),
        augmentation="none",
        task=task,
    )


# Reading ----------------------------------------------------------------------------------------


def test_a_table_of_numbers_is_regression_by_its_last_column(tmp_path: Path) -> None:
    found = load(DataSpec(table(tmp_path)))
    assert found.task == "regression"
    assert (len(found.train), len(found.test), found.shape) == (48, 12, (2,))
    assert isinstance(found.train, MemoryImages)
    x, y = found.train.pixels, found.train.labels
    assert (x.dtype, y.dtype, tuple(y.shape)) == (torch.float32, torch.float32, (48, 1))
    for values in (x, y):  # standardised by the training rows
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert material_of(found.spec).model_arguments == (("features", 2), ("outputs", 1))


def test_another_target_is_named_and_words_are_classes(tmp_path: Path) -> None:
    assert load(DataSpec(table(tmp_path), target="a")).task == "regression"
    found = load(DataSpec(table(tmp_path, words=True)))
    assert (found.task, found.classes) == ("classification", ("high", "low"))
    share = found.test.labels.bincount().max() / len(found.test)
    assert material_of(found.spec).chance == pytest.approx(100 * float(share))


def test_numbers_are_classes_where_the_task_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{10 * (i % 2)}\n" for i in range(20)))
    spec = DataSpec(f"csv:{tmp_path / 't.csv'}", task="classification")
    assert load(spec).classes == ("0", "10")


def test_an_index_is_no_input_and_a_column_that_counts_is_said(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i + 1},{i + 1},{i % 3},{i // 10}\n" for i in range(20))
    (tmp_path / "t.csv").write_text(f",Unnamed: 0,Id,a,y\n{rows}")
    found = load(DataSpec(f"csv:{tmp_path / 't.csv'}"))
    assert found.shape == (2,)
    messages = " ".join(found.notices)
    assert "the column '' is left out: it has no name" in messages
    assert "the column 'Unnamed: 0' is left out" in messages
    assert "the column 'Id' numbers the rows" in messages
    assert "'a'" not in messages


def test_an_input_that_tells_the_target_is_said(tmp_path: Path) -> None:
    def told(text: str) -> list[str]:
        (tmp_path / "t.csv").write_text(text)
        messages = load(DataSpec(f"csv:{tmp_path / 't.csv'}")).notices
        return [m.split("'")[3] for m in messages if "tells the target of each row" in m]

    rows = [f"{i % 3},{7 - i % 3},{i % 2},{i % 6},{'abc'[i % 3]}\n" for i in range(20)]
    assert told("code,other,two,six,y\n" + "".join(rows)) == ["code", "other"]
    numbers = [f"{i / 3},{i},{i % 2},{i / 3}\n" for i in range(20)]
    assert told("same,b,c,y\n" + "".join(numbers)) == ["same"]


def test_a_target_to_ignore_is_for_tokens_only(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((20, 3))
    y = np.where(np.arange(20) % 7 == 0, -100, np.arange(20) % 2)
    with pytest.raises(DataError, match="each target must be a whole number from 0 to 1"):
        load(DataSpec(arrays(tmp_path, inputs=x, targets=y)))


def test_arrays_are_read_as_what_their_types_say(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).random((20, 3))
    ints = np.arange(80).reshape(20, 4) % 7
    for x, y, task, told in (
        (floats, floats[:, :2], "regression", {"features": 3, "outputs": 2}),
        (floats, np.arange(20) % 3, "classification", {"features": 3, "outputs": 3}),
        (floats, np.array(["b", "a"] * 10), "classification", {"features": 3, "outputs": 2}),
        (ints, np.arange(20) % 2, "classification", {"vocabulary": 7, "length": 4, "outputs": 2}),
        (ints, ints % 2, "token-classification", {"vocabulary": 7, "length": 4, "outputs": 2}),
    ):
        found = material_of(DataSpec(arrays(tmp_path, inputs=x, targets=y)))
        assert (found.task, dict(found.model_arguments)) == (task, told)


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_published_splits_are_kept(validation: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((9, 2))
    held_out = {f"x_{validation}": x, f"y_{validation}": x}
    name = arrays(tmp_path, x_train=x, y_train=x, x_test=x[:4], y_test=x[:4], **held_out)
    found = load(DataSpec(name))
    assert found.validation is not None
    assert (len(found.train), len(found.test), len(found.validation)) == (9, 4, 9)


def test_text_is_windows_of_bytes_and_the_byte_behind_each(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"abcdefghij")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.txt").write_bytes(b"ghi")
    (tmp_path / "test" / "a.txt").write_bytes(b"xyzxyz")
    found = load(DataSpec(f"text:{tmp_path}", length=3))
    assert isinstance(found.train, MemoryImages)
    assert [bytes(row) for row in found.train.pixels.tolist()] == [b"abc", b"def", b"ghi"]
    assert [bytes(row) for row in found.train.labels.tolist()] == [b"bcd", b"efg", b"hij"]
    assert isinstance(found.test, MemoryImages)
    assert [bytes(row) for row in found.test.pixels.tolist()] == [b"xyz", b"xyz"]
    assert (found.task, found.vocabulary) == ("language-modelling", 256)


def test_texts_are_split_by_the_words_in_their_names(tmp_path: Path) -> None:
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens", "README"):
        (tmp_path / name).write_text(name * 3)
    found = load(DataSpec(f"text:{tmp_path}", length=3))
    assert found.validation is not None
    for part, name in ((found.train, "train"), (found.validation, "valid"), (found.test, "test")):
        text = f"wiki.{name}.tokens" * 3
        assert part.batch(torch.tensor([0, 1])).flatten().tolist() == [*text[:6].encode()]
        assert len(part) == (len(text) - 1) // 3
    assert (
        "these files are not read, because their names match no split: 'README'."
        in (found.notices[0])
    )


def test_books_whose_titles_hold_a_word_for_a_split_are_trained_on(tmp_path: Path) -> None:
    for name in ("a test of time.txt", "another.txt"):
        (tmp_path / name).write_text(name * 9)
    found = load(DataSpec(f"text:{tmp_path}", length=3))
    assert len(found.train) + len(found.test) == (len("a test of time.txtanother.txt") * 9 - 1) // 3


def test_results_are_keyed_by_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = (material_of(DataSpec(table(f))) for f in (tmp_path, tmp_path / "other"))
    assert here.content == there.content
    assert material_of(DataSpec(table(tmp_path, rows=61))).content != here.content
    assert material_of(DataSpec(table(tmp_path), target="a")).content != here.content


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,y\n1,2\n", {}, "at least two rows"),
        ("a,a\n1,2\n3,4\n", {}, "two different names"),
        ("a,y\n1,2\n3\n", {}, "row 3: expected 2 values"),
        ("a,y\n1,2\nx,4\n", {}, "row 3: 'a' must be a number. Got 'x'"),
        ("a,y\n1,2\n3,\n5,6\n", {"task": "regression"}, "row 3: the target 'y' is missing"),
        ("a,y\n1,2\n3,\n5,6\n", {}, r"row 3: the target 'y' is missing \(1 in all\)"),
        ("a,y\n1,b\n3,\n5,c\n6,\n", {}, r"row 3: the target 'y' is missing \(2 in all\)"),
        ("a,y\n1,2\n3,?\n5,6\n", {}, r"row 3: the target 'y' is '\?', and a number in 2 of 3"),
        (",y\n0,2\n1,3\n", {}, "has no column beside 'y'"),
        ("a,y\n1,nan\n2,3\n4,5\n", {}, "the target of row 0 is not finite"),
        ("a,y\n1,2\n3,4\n", {"target": "z"}, "Unknown target 'z'"),
        ("a,y\n1,2\n3,4\n", {"size": 8}, "not images, so it takes no 'size'"),
        ("a,y\n1,2\n3,4\n", {"on_error": "skip"}, "takes no 'on_error'"),
        ("a,y\n1,2\n3,4\n", {"task": "regresion"}, "Unknown task 'regresion'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, content: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(RegrowError, match=message):
        material_of(DataSpec(f"csv:{tmp_path / 't.csv'}", **options))


def test_what_is_wrong_with_arrays_and_text_is_said(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).random((9, 2))
    for values, message in (
        ({"a": floats}, "expected 'inputs' and 'targets'"),
        ({"x_test": floats, "y_test": floats}, "no arrays to train on"),
        ({"x": floats, "y": floats[:5]}, "a target for each input"),
        ({"x": floats * np.inf, "y": floats}, "the input of row 0 is not finite"),
        ({"x": floats, "y": np.arange(9) - 2}, "each target must be a whole number from 0 to"),
    ):
        with pytest.raises(DataError, match=message):
            load(DataSpec(arrays(tmp_path, **values)))
    (tmp_path / "arrays.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read"):
        load(DataSpec(f"npz:{tmp_path / 'arrays.npz'}"))
    with pytest.raises(DataError, match="the file cannot be read"):
        material_of(DataSpec(f"csv:{tmp_path / 'none.csv'}"))
    with pytest.raises(DataError, match="no text there"):
        load(DataSpec(f"text:{tmp_path / 'none'}"))
    (tmp_path / "short.txt").write_text("ab")
    with pytest.raises(DataError, match="too short for two windows of 128 bytes"):
        load(DataSpec(f"text:{tmp_path / 'short.txt'}"))
    for option in ({"target": "y"}, {"length": 8}):
        with pytest.raises(ConfigError, match="its examples are images, so it takes no"):
            load(DataSpec("digits", **option))


# Scoring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 256])
def test_r2_and_its_error_are_those_of_the_textbook(batch: int) -> None:
    chance = torch.Generator().manual_seed(0)
    targets = torch.randn(400, 1, generator=chance)
    outputs = targets + 0.5 * torch.randn(400, 1, generator=chance)
    data = dataset("regression", outputs, targets)
    found = evaluate(Fixed(outputs), data.test, data, batch=batch)
    e, t = (outputs - targets).double().square(), targets.double().square()
    assert found.score == pytest.approx(float(1 - e.sum() / t.sum()), rel=1e-9)
    assert found.loss == pytest.approx(float(e.mean()), rel=1e-6)
    draws = [torch.randint(400, (400,), generator=chance) for _ in range(400)]
    again = torch.stack([1 - e[d].sum() / t[d].sum() for d in draws])
    assert found.error == pytest.approx(float(again.std()), rel=0.15)  # the bootstrap's


def test_bits_per_byte_are_the_cross_entropy_in_bits() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 5, 4, generator=chance)
    targets = torch.randint(4, (30, 5), generator=chance)
    data = dataset("language-modelling", logits, targets, classes=4)
    found = evaluate(Fixed(logits), data.test, data, batch=7)
    nats = -logits.log_softmax(2).gather(2, targets[..., None])[..., 0]
    assert found.score == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-5)
    assert found.loss == pytest.approx(float(nats.mean()), rel=1e-5)
    bits = nats.double().mean(1) / math.log(2)
    assert found.error == pytest.approx(float(bits.std(correction=0)) / math.sqrt(30), rel=1e-5)
    shares = (targets.flatten().bincount(minlength=4) + 1) / (targets.numel() + 4)
    expected = -shares.log2()[targets].mean()
    assert task_of(data).baseline(data) == pytest.approx(float(expected), rel=1e-5)


def test_tokens_that_are_not_asked_for_do_not_count() -> None:
    targets = torch.tensor([[0, 1, -100], [1, -100, -100]])
    logits = torch.zeros(2, 3, 2)
    logits[..., 1] = 1.0  # names class 1 for every token
    data = dataset("token-classification", logits, targets, classes=2)
    found = evaluate(Fixed(logits), data.test, data)
    assert found.score == pytest.approx(2 / 3)
    assert task_of(data).baseline(data) == pytest.approx(2 / 3)
    assert found.error is not None


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    targets = torch.tensor([[0, 1], [1, 0]])
    logits = torch.zeros(2, 2, 2)
    logits[..., 0] = 1e4
    data = dataset("next-token", logits, targets, classes=2)
    assert evaluate(Fixed(logits), data.test, data).score == math.inf


def test_a_target_without_variance_has_no_r2() -> None:
    zeros = torch.zeros(5, 1)
    data = dataset("regression", zeros, zeros)
    with pytest.raises(RegrowError, match="R2 is not defined"):
        evaluate(Fixed(zeros), data.test, data)


# Models -----------------------------------------------------------------------------------------


def test_a_model_that_takes_other_arguments_is_refused(tmp_path: Path) -> None:
    data = material_of(DataSpec(table(tmp_path)))
    with pytest.raises(ConfigError, match=r"gives features, outputs\. Models for it: mlp"):
        data.model(ModelSpec("vgg-16"))
    with pytest.raises(ConfigError, match="'mlp' takes features, outputs"):
        material_of(DataSpec("digits")).model(ModelSpec("mlp"))
    assert data.model(ModelSpec("mlp")).arguments == {"features": 2, "outputs": 1}


@pytest.mark.parametrize("of", ["next", "token", "sequence"])
def test_the_feed_forward_units_of_a_transformer_can_be_cut(of: str) -> None:
    told = {"vocabulary": 20, "length": 8, "outputs": 5}
    spec = ModelSpec("transformer", {**told, "dim": 8, "heads": 2, "hidden": 16, "of": of})
    example = example_input(spec, (1, 8))
    assert example.dtype == torch.int64
    found = trace(build(spec), example)
    assert [g.size for g in found.groups.values() if g.kind == "linear"] == [16, 16]


def test_a_causal_transformer_sees_no_later_token() -> None:
    told = {"vocabulary": 9, "length": 6, "outputs": 9, "dim": 8, "heads": 2}
    net = build(ModelSpec("transformer", told)).eval()
    tokens = torch.arange(6)[None]
    other = tokens.clone()
    other[0, 4:] = 8
    first, second = net(tokens), net(other)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.equal(first[:, 4:], second[:, 4:])


# Whole studies ----------------------------------------------------------------------------------

MLP = {"name": "mlp", "hidden": [8, 8]}
TRANSFORMER = {"name": "transformer", "dim": 8, "depth": 1, "heads": 2, "hidden": 16}
STUDIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "regression": (lambda folder: {"name": table(folder)}, MLP),
    "classification": (lambda folder: {"name": table(folder, words=True)}, MLP),
    "token-classification": (lambda f: {"name": tagged(f)}, {**TRANSFORMER, "of": "token"}),
    "language-modelling": (lambda f: {"name": writing(f), "length": 16}, TRANSFORMER),
}


def study_of(like: str, folder: Path, **changes: Any) -> Study:
    data, model = STUDIES[like]
    return Study.from_json(
        {
            "name": like,
            "data": data(folder),
            "models": model,
            "methods": {"name": "l1-filter", "scope": "linear", "sparsity": 0.5},
            "arms": ["unpruned", "fine-tune", "scratch-e"],
            "seeds": 1,
            "recipe": {"epochs": 4, "batch": 8, "lr": 0.05},
            **changes,
        }
    )


@pytest.mark.parametrize("task", STUDIES)
def test_a_study_of_each_task_runs_and_is_reported(task: str, tmp_path: Path) -> None:
    from regrow.report import write
    from regrow.report.collect import collect

    study, store = study_of(task, tmp_path), Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    runs, failures = collect(study, store)
    metric = TASKS.get(task).metric
    assert not failures
    assert {(r.status, r.metric) for r in runs} == {("done", metric)}
    assert all(r.chance is not None and r.num_test for r in runs)
    assert [r.error is None for r in runs] == [metric.counted] * 3
    how: dict[str, Any] = {"title": task, "command": "c", "machine": "m", "date": "d"}
    made = write(runs, tmp_path / "out", **how, draw=False)
    assert metric.head in made.text
    assert ("accuracy" in made.text) == ("accuracy" in metric.name)


def test_training_on_a_table_is_the_plain_loop_and_learns(tmp_path: Path) -> None:
    data = load(DataSpec(table(tmp_path, rows=200)))
    model = build(ModelSpec("mlp", {"features": 2, "outputs": 1, "hidden": [8]}))
    fit(Training(model, data, Recipe(epochs=30, batch=16, lr=0.05), seed=0))
    assert evaluate(model, data.test, data).score > 0.8


def test_a_study_gives_its_task_to_data_that_name_none(tmp_path: Path) -> None:
    study = study_of("regression", tmp_path, task="classification")
    assert [e.data.task for e in study.experiments] == ["classification"]
    with pytest.raises(ConfigError, match="Unknown task 'clasification'"):
        study_of("regression", tmp_path, task="clasification")


@pytest.mark.parametrize(
    ("like", "task", "reason"),
    [
        (
            "regression",
            "language-modelling",
            "predicts a class for each token, from sequences of tok",
        ),
        ("regression", "token-classification", "has a class, of rows of numbers. Tasks for it: cl"),
        ("regression", "image-classification", "predicts a class, from images. The data set 'csv:"),
        ("classification", "language-modelling", "has a class, of rows of numbers"),
        (
            "token-classification",
            "classification",
            "Tasks for it: language-modelling, next-token",
        ),
        ("language-modelling", "classification", "has a class for each token, of sequences"),
        (
            "language-modelling",
            "image-classification",
            "predicts a class, from images. The data set",
        ),
    ],
)
def test_a_task_that_data_cannot_teach_is_refused_before_any_training(
    like: str, task: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        study_of(like, tmp_path, task=task).cells()


def test_images_teach_no_other_task() -> None:
    for task in ("regression", "token-classification", "language-modelling"):
        with pytest.raises(ConfigError, match=r"'digits' has a class, of images. Tasks for it: cl"):
            material_of(DataSpec("digits", task=task))


@pytest.mark.parametrize(
    ("like", "objective", "reason"),
    [
        ("classification", "mean-squared-error", "returns (1, 2) for targets of (1,)"),
        ("regression", "cross-entropy", "returns (1, 1) for numbers of (1, 1)"),
        ("token-classification", "cross-entropy", "own objective is 'token-cross-entropy'"),
    ],
)
def test_an_objective_that_does_not_fit_the_task_is_refused_before_any_training(
    like: str, objective: str, reason: str, tmp_path: Path
) -> None:
    recipe = {"epochs": 1, "batch": 8, "objective": objective}
    with pytest.raises(ConfigError, match=re.escape(reason)):
        study_of(like, tmp_path, recipe=recipe).cells()
    arm = {"name": "own", "like": "fine-tune", "objective": objective}
    with pytest.raises(ConfigError, match=f"The objective '{objective}' was tried on the outputs"):
        study_of(like, tmp_path, arms=[arm]).cells()


def test_what_are_no_images_cannot_be_augmented(tmp_path: Path) -> None:
    recipe = {"epochs": 1, "augmentation": "flip"}
    with pytest.raises(ConfigError, match="augmentation 'flip' is for images"):
        study_of("regression", tmp_path, recipe=recipe).cells()
