"""Data of several inputs by name: read from each kind of file, split, trained on and scored."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch.nn import functional

from regrow.data import Dataset, DataSpec, fingerprint, load
from regrow.data.named import NamedInputs
from regrow.errors import ConfigError, DataError
from regrow.models import ModelSpec, example_input
from regrow.tasks import task_of
from regrow.train import Recipe, Training, evaluate
from regrow.train.material import material_of
from test_examples import VOCABULARY, Reader

NUM, LENGTH = 20, 6
Columns = dict[str, NDArray[Any]]


def columns(num: int = NUM) -> Columns:
    draw = np.random.default_rng(0)
    ids = draw.integers(1, VOCABULARY, (num, LENGTH))
    mask = (np.arange(LENGTH) < draw.integers(2, LENGTH + 1, (num, 1))).astype(np.int64)
    ids[0], mask[0] = VOCABULARY - 1, 1
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": np.arange(num) % 3,
    }


def write(path: Path, kind: str, values: Columns) -> str:
    """Write a file of a kind, and return the name of its data set."""
    file = path / f"rows.{kind}"
    if kind == "npz":
        np.savez(file, **values)  # type: ignore[arg-type]
    elif kind == "safetensors":
        save_file(values, file)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: list(value) for name, value in values.items()}), file)
    return f"{kind}:{file}"


@pytest.mark.parametrize("kind", ["npz", "parquet", "safetensors"])
def test_each_kind_of_file_gives_the_same_examples(kind: str, tmp_path: Path) -> None:
    values = columns()
    name = write(tmp_path, kind, values)
    dataset = load(DataSpec(name, seed=3))
    assert dataset.task == "classification"
    assert dataset.inputs == f"input_ids:1x6:int64:{VOCABULARY} attention_mask:1x6:int64"
    assert (dataset.vocabulary, dataset.shape, len(dataset.classes)) == (VOCABULARY, (6,), 3)
    seen = 0
    for split in (dataset.train, dataset.test):
        batch = split.batch(torch.arange(len(split)))
        assert isinstance(batch, NamedInputs)
        for ids, mask, label in zip(*batch.values(), split.labels, strict=True):
            rows = (values["input_ids"] == ids.numpy()).all(1).nonzero()[0]
            row = next(r for r in rows if values["labels"][r] == int(label))
            assert (values["attention_mask"][row] == mask.numpy()).all()
            seen += 1
    assert seen == NUM
    other = {**values, "attention_mask": values["attention_mask"].copy()}
    other["attention_mask"][5] = 1 - other["attention_mask"][5]
    before = fingerprint(DataSpec(name))
    write(tmp_path, kind, other)
    assert fingerprint(DataSpec(name)) != before


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_files_and_arrays_are_split_by_their_names(kind: str, tmp_path: Path) -> None:
    for split, num in (("train", 12), ("test", 6)):
        file = Path(write(tmp_path, kind, columns(num)).partition(":")[2])
        file.rename(tmp_path / f"{split}.{kind}")
    dataset = load(DataSpec(f"{kind}:{tmp_path}"))
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    ends = {f"{n}_{s}": v for s, num in (("train", 8), ("val", 4)) for n, v in columns(num).items()}
    both = load(DataSpec(write(tmp_path, "npz", ends)))
    assert both.validation is not None
    assert len(both.validation) == 4


def read(tmp_path: Path, values: Columns, **options: Any) -> Dataset:
    return load(DataSpec(write(tmp_path, "npz", values), **options))


def test_a_network_trains_on_named_inputs_and_is_scored_on_them(tmp_path: Path) -> None:
    dataset = read(tmp_path, columns(40))
    torch.manual_seed(0)
    net = Reader()
    recipe = Recipe(epochs=2, batch=8, lr=0.1, schedule="constant")
    training = Training(net, dataset, recipe, seed=0)
    while not training.done:
        training.step()
    assert training.history[-1]["loss"] < training.history[0]["loss"]
    found = evaluate(net, dataset.test, dataset, batch=3)
    batch = dataset.test.batch(torch.arange(len(dataset.test)))
    logits = net.eval()(**batch)["logits"].detach()
    expected = (logits.argmax(1) == dataset.test.labels).double().mean()
    assert found.score == pytest.approx(float(expected))
    assert found.loss == pytest.approx(
        float(functional.cross_entropy(logits, dataset.test.labels)), rel=1e-5
    )


def test_a_model_of_a_study_is_traced_on_all_inputs(tmp_path: Path) -> None:
    material = material_of(DataSpec(write(tmp_path, "npz", columns())))
    example = example_input(ModelSpec("mlp", inputs=material.inputs), material.shape)
    assert {name: tuple(value.shape) for name, value in example.items()} == {
        "input_ids": (1, 6),
        "attention_mask": (1, 6),
    }
    assert bool((example["attention_mask"] == 1).all())  # hides nothing


# The next token ----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["none", "copies", "ignoring"])
def test_tokens_without_labels_of_their_own_are_learnt_from_those_before(
    labels: str, tmp_path: Path
) -> None:
    values = columns()
    del values["labels"]
    ids, mask = values["input_ids"], values["attention_mask"]
    if labels != "none":
        values["labels"] = ids if labels == "copies" else np.where(mask == 1, ids, -100)
    dataset = read(tmp_path, values)
    assert dataset.task == "next-token"
    batch = dataset.train.batch(torch.arange(len(dataset.train)))
    assert batch["input_ids"].shape == (len(dataset.train), LENGTH - 1)
    for seen, shown, wanted in zip(*batch.values(), dataset.train.labels, strict=True):
        inner = shown[1:].bool()
        assert torch.equal(wanted[:-1][inner], seen[1:][inner])
        assert bool((wanted[:-1][~inner] == -100).all())


def test_perplexity_is_e_to_the_mean_loss_with_the_error_over_sequences(tmp_path: Path) -> None:
    values = columns(200)
    dataset = read(tmp_path, {"input_ids": values["input_ids"]})
    task = task_of(dataset)
    assert task.tally is not None
    assert task.conclude is not None
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 5, VOCABULARY), torch.randint(VOCABULARY, (50, 5))
    targets[:, 4:][:20] = -100
    score, error = task.conclude(task.tally({"logits": logits}, targets).tolist())
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    counts = targets != -100
    mean = losses.sum() / counts.sum()
    assert score == pytest.approx(math.exp(mean), rel=1e-5)
    resampled = []
    for _ in range(400):
        rows = torch.randint(50, (50,))
        sums = losses.view(50, 5)[rows].sum() / counts[rows].sum()
        resampled.append(math.exp(sums))
    assert error == pytest.approx(float(np.std(resampled)), rel=0.15)
    baseline = task.baseline(dataset)
    assert baseline is not None
    assert 1 < baseline < VOCABULARY + 1


# What is wrong ------------------------------------------------------------------------------------


def ragged(values: Columns) -> Columns:
    rows = np.empty(NUM, dtype=object)
    rows[:] = [np.arange(1 + i % 3) for i in range(NUM)]
    return {**values, "input_ids": rows}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"labels": None, "input_ids": np.ones((NUM, 2))}, {}, "the targets as one of"),
        ({"text": np.array(["a"] * NUM)}, {}, r"column 'text' must be numbers"),
        ({"attention_mask": np.ones((3, LENGTH), dtype=int)}, {}, "a target for each input 'att"),
        ({"input_ids": -np.ones((NUM, LENGTH), dtype=int)}, {}, "whole number from 0"),
        ({"input_ids": np.full((NUM, LENGTH), np.nan)}, {}, "not finite"),
        ({}, {"target": "y"}, "Unknown target 'y'"),
        ({"input_ids": None, "attention_mask": None}, {}, "no column beside 'labels'"),
    ],
)
def test_what_is_wrong_with_columns_is_said(
    change: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {name: value for name, value in {**columns(), **change}.items() if value is not None}
    with pytest.raises((ConfigError, DataError), match=message):
        read(tmp_path, values, **options)


def test_sequences_of_other_lengths_are_to_be_padded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Pad sequences to one length"):
        load(DataSpec(write(tmp_path, "parquet", ragged(columns()))))


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_file_that_is_none_is_said(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no .{kind} file there"):
        load(DataSpec(f"{kind}:{tmp_path}"))
    (tmp_path / f"x.{kind}").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load(DataSpec(f"{kind}:{tmp_path}"))


def test_an_index_of_pandas_is_no_input(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0), "label": ["u", "v"] * 10})
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "rows.parquet")
    found = load(DataSpec(f"parquet:{tmp_path / 'rows.parquet'}"))
    assert [*found.train.batch(torch.tensor([0]))] == ["a", "b"]
    assert ["'__index_level_0__' is left out" in notice for notice in found.notices] == [True]


def test_a_missing_class_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = {"a": [*range(6)], "label": ["u", "v", None, "v", "", "u"]}
    pq.write_table(pa.table(values), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"target of row 2 is missing \(2 in all\)"):
        load(DataSpec(f"parquet:{tmp_path / 'rows.parquet'}"))


# Test rows that are trained on, and what would be lost without a word


def plain_arrays(num: int = 40, **others: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    inputs = {"x_train": rng.normal(size=(num, 3)), "y_train": np.arange(num) % 2}
    more = {"x_test": rng.normal(size=(9, 3)), "y_test": np.arange(9) % 2}
    return {**inputs, **more, **others}


def saved(tmp_path: Path, arrays: dict[str, Any], **options: Any) -> Dataset:
    np.savez(tmp_path / "rows.npz", **arrays)
    return load(DataSpec(f"npz:{tmp_path / 'rows.npz'}", **options))


@pytest.mark.parametrize("name", ["x", "a"])  # plain inputs, and one of several by name
@pytest.mark.parametrize("target", [np.arange(9) % 2, np.linspace(0, 1, 9)])
def test_test_rows_that_are_trained_on_are_said(name: str, target: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trained, new = rng.normal(size=(9, 5)), rng.normal(size=(9, 5))
    tested = np.concatenate([trained[:4], new])
    splits = {"train": (trained, target), "test": (tested, np.concatenate([target[:4], target]))}
    arrays = {
        f"{n}_{s}": v for s, pair in splits.items() for n, v in zip((name, "y"), pair, strict=True)
    }
    if name == "a":
        arrays |= {"b_train": np.ones((9, 2)), "b_test": np.ones((13, 2))}
    (notice,) = saved(tmp_path, arrays).notices
    assert "4 of the 13 test rows are also in the training split" in notice


def test_copies_of_rows_are_said_where_the_test_split_is_drawn(tmp_path: Path) -> None:
    rows = [f"{n},{n * n},{'uv'[n % 2]}" for n in np.random.default_rng(0).permutation(50)]
    table = tmp_path / "rows.csv"
    table.write_text("\n".join(["a,b,kind", *rows]))
    assert not load(DataSpec(f"csv:{table}")).notices
    table.write_text("\n".join(["a,b,kind", *rows, *rows, *rows]))
    (notice,) = load(DataSpec(f"csv:{table}")).notices
    assert "of the 30 test rows are also in the training split" in notice


def test_classes_of_test_rows_alone_are_said(tmp_path: Path) -> None:
    found = saved(tmp_path, plain_arrays(y_test=np.array([0, 1, 2, 3, 3, 0, 0, 1, 1])))
    (notice,) = found.notices
    assert "3 of the 9 test rows are of classes that no training row has ('2' and '3')" in notice


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"x": np.ones((4, 3)), "y": np.ones(4)}, "'x' and 'x_train', and both are its train"),
        ({"y_val": np.ones(4)}, "'y_val' and no 'x_val'"),
        (
            {
                f"{n}_{s}": np.ones((4, 3)[: 2 - i])
                for s in ("val", "validation")
                for i, n in enumerate("xy")
            },
            "both are its validation split",
        ),
    ],
)
def test_arrays_that_would_be_ignored_are_refused(
    others: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        saved(tmp_path, plain_arrays(**others))


def test_two_columns_of_one_name_and_split_are_refused(tmp_path: Path) -> None:
    arrays = {name: np.ones(4) for name in ("a", "b", "b_train", "label")}
    with pytest.raises(DataError, match="'b_train' is a second 'b' of the train split"):
        saved(tmp_path, arrays)


def test_columns_that_may_each_be_the_targets_are_refused_unless_one_is_named(
    tmp_path: Path,
) -> None:
    arrays = {"a": np.arange(8.0), "label": np.arange(8) % 2, "labels": 1 - np.arange(8) % 2}
    with pytest.raises(ConfigError, match=r"'labels' and 'label' may each be .* option 'target'"):
        saved(tmp_path, arrays)
    (told,) = saved(tmp_path, arrays, target="label").notices
    assert "the column 'labels' tells the target of each row" in told


def test_arrays_that_are_not_read_are_said(tmp_path: Path) -> None:
    (notice,) = saved(tmp_path, plain_arrays(x_old=np.ones(3), ids=np.arange(4))).notices
    assert "these arrays are not read: 'ids' and 'x_old'." in notice


def test_all_files_of_a_split_are_read(tmp_path: Path) -> None:
    for number in range(3):
        rows = np.arange(10.0, dtype=np.float32) + 10 * number
        columns: Columns = {"a": rows, "b": rows[::-1].copy(), "label": np.arange(10) % 2}
        save_file(
            columns, tmp_path / (f"train-{number}.safetensors" if number else "test.safetensors")
        )
    found = load(DataSpec(f"safetensors:{tmp_path}"))
    assert (len(found.train), len(found.test)) == (20, 10)
    assert found.train.batch(torch.arange(20))["a"].tolist() == [*range(10, 30)]


def rows_of(first: int, num: int) -> Columns:
    rows = np.arange(first, first + num)
    return {"a": rows.astype(np.float32), "b": -rows.astype(np.float32), "label": rows % 2}


def folder_of(path: Path, files: dict[str, Columns]) -> DataSpec:
    for name, values in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(values, path / name)
    return DataSpec(f"safetensors:{path}")


def test_files_are_split_by_the_names_of_their_folders(tmp_path: Path) -> None:
    files = {f"{split}/0000.safetensors": rows_of(n, n) for split, n in (("train", 8), ("test", 4))}
    found = load(folder_of(tmp_path, files))
    assert (len(found.train), len(found.test)) == (8, 4)
    assert found.test.batch(torch.arange(4))["a"].tolist() == [4, 5, 6, 7]


def test_a_file_of_no_split_beside_others_is_not_trained_on(tmp_path: Path) -> None:
    files = {"train": rows_of(0, 8), "test": rows_of(8, 4), "unsupervised": rows_of(12, 6)}
    found = load(folder_of(tmp_path, {f"{n}.safetensors": v for n, v in files.items()}))
    assert (len(found.train), len(found.test)) == (8, 4)
    assert "match no split: unsupervised.safetensors." in found.notices[0]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("b/train.safetensors", r"several configurations \(., b\)"),
        ("train_full.safetensors", r"several train splits \(train, train_full\)"),
    ],
)
def test_files_of_several_data_sets_are_refused(second: str, message: str, tmp_path: Path) -> None:
    spec = folder_of(tmp_path, {"train.safetensors": rows_of(0, 8), second: rows_of(8, 8)})
    with pytest.raises(DataError, match=message):
        load(spec)


def test_tokens_are_the_input_ids_whatever_comes_first(tmp_path: Path) -> None:
    ids = columns()["input_ids"]
    ids[0, 0] = VOCABULARY - 1
    places = np.tile(np.arange(LENGTH), (NUM, 1))
    found = read(tmp_path, {"a_positions": places, "input_ids": ids, "labels": ids})
    assert (found.task, found.vocabulary) == ("next-token", VOCABULARY)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([1.0, 2.0, 3.0, 1.0], [1, 2], "are numbers in train and whole numbers in test"),
        ([0.0, 1.0, math.nan, 1.0], [0, 1], "a missing value makes numbers of whole numbers"),
        ([True, False, True, False], [0, 1], "are truths in train and whole numbers in test"),
        (["1", "2", "3", "1"], [1, 2], "are texts in train and whole numbers in test"),
    ],
)
def test_targets_of_another_kind_in_the_test_split_are_refused(
    train: list[Any], test: list[Any], message: str, tmp_path: Path
) -> None:
    inputs = np.arange(6, dtype=np.float32)
    splits = {"train": (inputs[:4], train), "test": (inputs[4:], test)}
    values = {
        f"{n}_{s}": np.array(v) for s, (x, y) in splits.items() for n, v in (("x", x), ("y", y))
    }
    with pytest.raises(DataError, match=message):
        read(tmp_path, values)
    if not any(isinstance(y, (str, bool)) or math.isnan(y) for y in train):
        assert read(tmp_path, values, task="regression").task == "regression"


def test_texts_are_not_regressed(tmp_path: Path) -> None:
    values = {"x": np.arange(4, dtype=np.float32), "y": np.array(["a", "b", "a", "b"])}
    with pytest.raises(DataError, match="task is regression, and the targets are texts in train"):
        read(tmp_path, values, task="regression")
