"""Labels as people write them: numbers, texts, truths, ids, and what is missing."""

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from image_files import parquet_folder, png, write_parquet
from regrow.data import Dataset, DataSpec, load
from regrow.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


def read(base: Path, train: Any, test: Any = None, **options: Any) -> Dataset:
    """Write labels, as lists or arrays, and load them with one image each."""
    parts = {"train": train, "test": train if test is None else test}
    for first, (split, labels) in enumerate(parts.items()):
        images: list[bytes | None] = [png(100 * first + n) for n in range(len(labels))]
        write_parquet(base / f"{split}-0.parquet", images, labels)
    return load(DataSpec(f"hf:{base}", **options))


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (["dog", "cat", "dog", "cat"], ("cat", "dog"), "are texts.* sorted: 'cat' and 'dog'"),
        (["9", "10", "9", "10"], ("10", "9"), "are texts"),
        ([True, False, True, False], ("false", "true"), "are true or false"),
        (pa.array(["b", "a", "b", "a"]).dictionary_encode(), ("a", "b"), "are texts"),
        (pa.array(["b", "a", "b", "a"], pa.large_string()), ("a", "b"), "are texts"),
        ([2, 1, 2, 1], ("1", "2"), "begin at 1: the class '1' is the first of 2"),
        ([1.0, 0.0, 1.0, 0.0], ("0", "1"), None),
        (pa.array([1, 0, 1, 0], pa.uint8()), ("0", "1"), None),
        (pa.array(np.array([1, 0, 1, 0], np.float16)), ("0", "1"), None),
        (pa.array(["b", "a", "b", "a"]).cast(pa.string_view()), ("a", "b"), "are texts"),
        (pa.array([1, 0, 1, 0], pa.uint64()), ("0", "1"), None),
    ],
)
def test_labels_of_any_type_are_classes(
    tmp_path: Path, labels: Any, classes: tuple[str, ...], said: str | None
) -> None:
    dataset = read(tmp_path / "x", labels)
    assert dataset.classes == classes
    assert dataset.train.labels.tolist() == [1, 0, 1, 0]
    assert dataset.test.labels.dtype == torch.int64
    assert len(dataset.notices) == (said is not None)
    if said:
        assert re.search(said, dataset.notices[0])
    again = load(DataSpec(f"hf:{tmp_path / 'x'}", label_column="label"))
    assert again.classes == classes


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 0, -1], None, r"row 3: the label is -1, which stands for no label \(1 in all\)"),
        (
            [-1, -1, -1, -1],
            [0, 1],
            "nothing is left of the training split: its 4 images have no la",
        ),
        (["a", "b", "", "b"], None, r"row 2: the label is '', which stands for no label"),
        (["a", None, "b", "b"], None, r"row 1: the label is null \(1 in all\)"),
        ([0.0, float("nan"), 1.0, 1.0], None, r"row 1: the label is null"),
        ([0.5, 1.0, 0.0, 1.0], None, r"row 0: the label is 0.5, not a whole number"),
        ([0, 1, -5, 1], None, r"row 2: the label is -5, and the first class is 0"),
        (["a", "b", "a", "b"], ["a", "c"], r"row 1: the classes differ: no training image .* 'c'"),
        ([0, 1, 0, 1], [0, 1, 7], r"row 2: the classes differ: train has 2, .* the label is 7"),
        ([1, 2, 1, 2], [0, 1], r"row 0: the label is 0, and the first class is 1"),
        ([0, 1, 0, 1], ["a", "b"], "the labels of test are of the type string"),
        ([0, 0, 2, 2], None, r"are 0, 2 \(2 values\), and other numbers from 0 to 2 have no train"),
        ([0, 1, 9, 1], None, r"are 0, 1, 9 \(3 values\).* without gaps, or store them as texts"),
        ([1, 1, 3, 5, 7, 9, 11], None, r"are 1, 3, 5, 7, 9, ... and 11 \(6 values\).* 1 to 11"),
        ([0, 1, 5, 9], None, "would give 10 classes for 4 images, so it seems to hold ids"),
        ([[0], [1], [0, 1], [1]], None, r"the column 'label' holds list<.*not one class for each"),
        ([{"a": 1}] * 4, None, r"the column 'label' holds struct<.*not one class for each"),
        (pa.array([0, 2**63 + 1, 0, 1], pa.uint64()), None, "numbers beyond 64 bits"),
    ],
)
def test_labels_that_cannot_be_classes_are_refused(
    tmp_path: Path, train: Any, test: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x", train, test)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([0, 4_000_000_000] * 3, None),
        ([4_000_000_000 + n for n in range(6)], None),
        ([2_000_000_000] * 6, None),
        ([0, 1] * 3, [0, 4_000_000_000]),
    ],
)
def test_ids_are_refused_before_anything_is_made_of_them(
    tmp_path: Path, train: list[int], test: list[int] | None
) -> None:
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DataError, match=r"seems to hold ids|the label is 4000000000|without gaps"):
        read(tmp_path / "x", train, test)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 2
    assert peak < 50e6


def test_many_texts_that_hardly_repeat_are_ids(tmp_path: Path) -> None:
    from regrow.data.labels import LabelColumn, code

    def column(values: list[str]) -> LabelColumn:
        return LabelColumn(
            column="label", values=pa.array(values), names=None, where=lambda row: f"row {row}"
        )

    with pytest.raises(DataError, match="would give 3000 classes for 3000 images"):
        code({"train": column([f"{n}.png" for n in range(3000)])})
    assert len(code({"train": column([str(n % 1500) for n in range(3000)])}).classes) == 1500


def test_shards_that_name_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x", names=["cat", "dog"])
    shard = base / "data" / "train-00001.parquet"
    write_parquet(shard, [png(1), png(2)], [0, 1], names=["dog", "cat"])
    message = r"train-00001.*its classes differ from those of train-00000.*another"
    with pytest.raises(DataError, match=message):
        load(DataSpec(f"hf:{base}"))
    write_parquet(shard, [png(1), png(2)], [0, 1])  # names none, so means the others'
    assert load(DataSpec(f"hf:{base}")).classes == ("cat", "dog")


def test_the_column_chosen_among_several_is_said(tmp_path: Path) -> None:
    columns = {"img": None, "coarse_label": [0, 1, 0, 1], "fine_label": [1, 0, 1, 0]}
    kind = pa.struct([("bytes", pa.binary())])
    described = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in list(columns)[1:]}
    text = json.dumps({"info": {"features": described}})
    (tmp_path / "x").mkdir()
    for first, split in enumerate(("train", "test")):
        images = pa.array([{"bytes": png(10 * first + n)} for n in range(4)], kind)
        table = pa.table({"img": images, **{k: v for k, v in columns.items() if v}})
        described_table = table.replace_schema_metadata({"huggingface": text})
        pq.write_table(described_table, tmp_path / "x" / f"{split}.parquet")
    dataset = load(DataSpec(f"hf:{tmp_path / 'x'}"))
    assert dataset.train.labels.tolist() == [1, 0, 1, 0]
    (notice,) = dataset.notices
    assert "The column 'fine_label' is read; others hold labels too (coarse_label)" in notice
    coarse = load(DataSpec(f"hf:{tmp_path / 'x'}", label_column="coarse_label"))
    assert coarse.train.labels.tolist() == [0, 1, 0, 1]
    assert not coarse.notices


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"size": 100_000}, ConfigError, "'size' must be at most 4096 pixels. Got 100000"),
        ({"on_error": "ignore"}, ConfigError, "Unknown on_error 'ignore'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    option: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DataSpec("digits", **option)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [png(1)], [0], columns=("label", "label"))
    with pytest.raises(DataError, match="two columns are called 'label'"):
        load(DataSpec(f"hf:{tmp_path}"))


def test_other_splits_are_labelled_by_the_column_of_train(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x")
    write_parquet(next(base.rglob("test-*")), [png(1)], [0], columns=("image", "target"))
    dataset = load(DataSpec(f"hf:{base}"))
    assert len(dataset.test) == 4
    assert "its 1 images have no labels (in a column 'label')" in dataset.notices[0]


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two classes are called 'cat'"):
        load(DataSpec(f"hf:{parquet_folder(tmp_path / 'x', names=['cat', 'cat'])}"))


def test_named_labels_from_one_are_said_so(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x", names=["cat", "dog"])
    write_parquet(next(base.rglob("train-*")), [png(1), png(2)], [1, 2], names=["cat", "dog"])
    with pytest.raises(DataError, match=r"the label 2 is outside .* They begin at 1: subtract 1"):
        load(DataSpec(f"hf:{base}"))


@pytest.mark.parametrize("names", [None, ["cat", "dog", "emu"]])
def test_a_test_split_may_lack_the_last_class(names: list[str] | None, tmp_path: Path) -> None:
    images: list[bytes | None] = [png(n) for n in range(5)]
    write_parquet(tmp_path / "x" / "train-0.parquet", images[:3], [0, 1, 2], names=names)
    write_parquet(tmp_path / "x" / "test-0.parquet", images[3:], [0, 1])
    dataset = load(DataSpec(f"hf:{tmp_path / 'x'}"))
    assert dataset.classes == (("0", "1", "2") if names is None else tuple(names))
    assert dataset.test.labels.tolist() == [0, 1]
    assert f"No test image is of 1 of the 3 classes ('{dataset.classes[2]}')" in dataset.notices[0]


def with_columns(base: Path, described: str, **columns: list[Any]) -> DataSpec:
    """Write images with columns, of which ``described`` is a ClassLabel."""
    num = len(columns[described])
    feature = {"_type": "ClassLabel", "names": [str(n) for n in range(num)]}
    text = json.dumps({"info": {"features": {described: feature}}})
    base.mkdir()
    for first, split in enumerate(("train", "test")):
        table = pa.table({"image": [png(10 * first + n) for n in range(num)], **columns})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": text}), base / f"{split}.parquet"
        )
    return DataSpec(f"hf:{base}")


@pytest.mark.parametrize("label", [[0, 0, 1, 1], ["b", "b", "c", "c"]])
def test_a_described_column_is_not_preferred_to_one_called_label(
    label: list[Any], tmp_path: Path
) -> None:
    spec = with_columns(tmp_path / "x", "gender", label=label, gender=[0, 1, 2, 3])
    with pytest.raises(
        DataError, match=r"expected one column of class labels .*, got gender, label"
    ):
        load(spec)
    named = load(DataSpec(spec.name, label_column="label"))
    assert named.train.labels.tolist() == [0, 0, 1, 1]


def test_another_column_called_like_labels_is_said(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"label": ["b", "c", "b", "a"], "labels": [0, 1, 2, 3]}
    dataset = load(with_columns(tmp_path / "x", "labels", **columns))
    assert dataset.train.labels.tolist() == [0, 1, 2, 3]
    assert "The column 'labels' is read; others hold labels too (label)" in dataset.notices[0]
