"""The splits of folders and Parquet files, under the names that people give them."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from image_files import image, image_folder, parquet_folder, png, write_parquet
from regrow.data import Dataset, DataSpec, fingerprint, load
from regrow.data.splits import SPLIT_NAMES
from regrow.errors import DataError

ALL_NAMES = [name for names in SPLIT_NAMES.values() for name in names]
TRAIN, OTHERS = SPLIT_NAMES["train"], SPLIT_NAMES["validation"] + SPLIT_NAMES["test"]


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


def counts(dataset: Dataset) -> tuple[int, int]:
    assert dataset.classes in (("cat", "dog"), ("0", "1"))
    return len(dataset.train), len(dataset.test)


def labelled(file: Path, num: int) -> None:
    first = 100 * sum(str(file).encode())
    write_parquet(file, [png(first + n) for n in range(num)], [n % 2 for n in range(num)])


# Names


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("write", [str.lower, str.title, str.upper])
def test_folders_of_any_name_and_case_are_splits(
    tmp_path: Path, train: str, name: str, write: type[str]
) -> None:
    base = tmp_path / "x"
    image_folder(base, (write(train),), num=2)
    image_folder(base, (write(name),), num=1)
    dataset = load(DataSpec(f"folder:{base}"))
    assert counts(dataset) == (4, 2)
    assert not dataset.notices


@pytest.mark.parametrize(
    "files",
    [
        ("Training-00000-of-00001.parquet", "Testing-00000-of-00001.parquet"),
        ("data/train-0.parquet", "data/dev-0.parquet"),
        ("default/train/0000.parquet", "default/Eval/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/test/0000.parquet"),
        ("mnist_train.parquet", "mnist_test.parquet"),
        ("train/part-0/a.PARQUET", "evaluation/part-0/a.parquet"),
        ("train0.parquet", "valid0.parquet"),
        ("training-data/train.parquet", "test-data/test.parquet"),
        ("train2017.parquet", "val2017-00000-of-00001.parquet"),
        ("1_train.parquet", "2_test.parquet"),
        ("train.parquet", "small/test.parquet"),
    ],
)
def test_parquet_files_of_any_layout_are_splits(tmp_path: Path, files: tuple[str, str]) -> None:
    for file, num in zip(files, (6, 4), strict=True):
        labelled(tmp_path / "x" / file, num)
    dataset = load(DataSpec(f"hf:{tmp_path / 'x'}"))
    assert counts(dataset) == (6, 4)
    assert not dataset.notices


@pytest.mark.parametrize("words", [("training_set", "test_set"), ("my train", "my-val")])
def test_folders_of_longer_names_are_splits_where_all_are(
    tmp_path: Path, words: tuple[str, str]
) -> None:
    image_folder(tmp_path / "x", words, num=2)
    assert counts(load(DataSpec(f"folder:{tmp_path / 'x'}"))) == (4, 4)


def test_classes_named_like_a_split_are_classes(tmp_path: Path) -> None:
    base = tmp_path / "x"
    for name in ("car", "train"):
        (base / name).mkdir(parents=True)
        for n in range(5):
            image(n + 10 * len(name)).save(base / name / f"{n}.png")
    dataset = load(DataSpec(f"folder:{base}"))
    assert dataset.classes == ("car", "train")
    (notice,) = dataset.notices
    assert "train holds images and no class folders" in notice
    for name in ("cats_train", "dogs_train"):
        shutil.copytree(base / "car", base / "more" / name)
    assert load(DataSpec(f"folder:{base / 'more'}")).classes == ("cats_train", "dogs_train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/1.png", "test/1.png"), "are named like splits .* holds no class folders"),
        (("train/1.png", "test/1.png", "x/1.png"), "test, train are named like splits, but"),
        (("train/a/1.png", "Train/a/1.png"), "two folders for the train split"),
        (("train/a/1.png", "dev/a/1.png", "val/a/1.png"), "two folders for the validation split"),
        (("x/train/a/1.png", "x/test/a/1.png"), "Its folder 'x' has folders of splits: give"),
        (("test/a/1.png", "x/1.png"), "has a folder 'test' but no 'train'"),
        (
            tuple(f"{split}/{c}/1.png" for split in ("train14", "train17", "val17") for c in "ab"),
            "train14, train17, val17 are named like splits and hold the same folders",
        ),
    ],
)
def test_folders_that_could_mean_two_things_are_refused(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for number, name in enumerate(folders):
        file = tmp_path / "x" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image(number).save(file)
    with pytest.raises(DataError, match=message):
        load(DataSpec(f"folder:{tmp_path / 'x'}"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a/train-0", "b/train-0"), r"several configurations \(a, b\).*hf:.*/x/a'"),
        (("a/train-0", "a/test-0", "b/test-0"), r"several configurations \(a, b\)"),
        (("a/train/0", "b/train/0"), r"several configurations \(a, b\)"),
        (("train-0", "small/train-0"), r"several configurations \(\., small\)"),
        (
            ("one_train", "two_train"),
            r"several configurations \(one_, two_\). Keep the files of one, and move the others",
        ),
        (("a/train", "b/test"), r"several configurations \(a, b\).*hf:.*/x/a'. If they belong"),
        (("a/x/train", "a/y/validation"), r"several configurations \(a/x, a/y\).*hf:.*/x/a/x'"),
        (("one_train", "two_test"), r"several configurations \(one_, two_\)"),
        (("train2014", "train2017", "val2017"), r"several train splits \(train2014, train2017\)"),
        (("train2014/0", "train2017/0"), r"\(train2014, train2017\).*may be called train-0"),
        (("train-0", "dev-0", "val-0"), r"several validation splits \(dev, val\)"),
        (("test-0",), "expected Parquet files named train"),
        (("images-0",), "expected Parquet files named train.* got images-0"),
    ],
)
def test_parquet_files_that_could_mean_two_things_are_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    for name in files:
        labelled(tmp_path / "x" / f"{name}.parquet", 4)
    for act in (load, fingerprint):
        with pytest.raises(DataError, match=message):
            act(DataSpec(f"hf:{tmp_path / 'x'}"))


# What is left out, and said


def test_folders_and_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", ("train", "test"), num=2)
    image(0).save(base / "train" / "loose.png")
    (base / "train" / "cat" / "photo.heic").write_bytes(b"x")
    (base / "extra").mkdir()
    notices = load(DataSpec(f"folder:{base}")).notices
    assert len(notices) == 3
    assert "1 images outside the class folders are not read" in notices[0]
    assert "files without an image's suffix are not read: .heic (1)" in notices[1]
    assert "are not read, because their names match no split: extra" in notices[2]
    parquet = parquet_folder(tmp_path / "p")
    labelled(parquet / "data" / "unlabeled-0.parquet", 2)
    (notice,) = load(DataSpec(f"hf:{parquet}")).notices
    assert "1 files are not read, because their names match no split: data/unlabeled-0" in notice


@pytest.mark.parametrize("labels", [[-1] * 6, [None] * 6, []])
def test_a_test_split_without_labels_is_left_out(tmp_path: Path, labels: list[int | None]) -> None:
    base = parquet_folder(tmp_path / "x")
    labelled(base / "data" / "validation-0.parquet", 4)
    images: list[bytes | None] = [png(n) for n in range(len(labels))]
    write_parquet(next(base.rglob("test-*")), images, pa.array(labels, pa.int64()))
    dataset = load(DataSpec(f"hf:{base}"))
    assert counts(dataset) == (20, 4)
    assert dataset.validation is None
    assert "The test split is left out: i" in dataset.notices[0]
    assert dataset.notices[1].endswith("The validation split is used for testing.")


def test_test_images_without_a_column_or_folders_of_labels_are_left_out(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "p")
    write_parquet(next(base.rglob("test-*")), [png(1)], [0], columns=("image", "id"))
    dataset = load(DataSpec(f"hf:{base}"))
    assert counts(dataset) == (16, 4)
    assert "its 1 images have no labels" in dataset.notices[0]
    folder = image_folder(tmp_path / "x", ("train", "val"), num=2)
    (folder / "test").mkdir()
    image(0).save(folder / "test" / "0.png")
    dataset = load(DataSpec(f"folder:{folder}"))
    assert counts(dataset) == (4, 4)
    assert "The test split is left out" in dataset.notices[0]
    assert "The validation split is used for testing" in dataset.notices[1]


def test_what_becomes_of_a_validation_split_is_said(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", ("train", "val", "test"), num=4)
    (notice,) = load(DataSpec(f"folder:{base}")).notices
    assert "The validation split (8 images) is used neither for training nor for testing" in notice
    (notice,) = load(DataSpec(f"folder:{base}", validation=0.25)).notices
    assert "The published validation split is left out" in notice


def test_classes_without_a_test_image_are_named(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x", names=["odd", "even"])
    write_parquet(next(base.rglob("test-*")), [png(100)], [1], names=["odd", "even"])
    (notice,) = load(DataSpec(f"hf:{base}")).notices
    assert "No test image is of 1 of the 2 classes ('odd')" in notice


@pytest.mark.parametrize(("option", "remedy"), [({}, "test split"), ({"validation": 0.5}, "no sh")])
def test_one_image_a_class_leaves_none_to_hold_out(
    tmp_path: Path, option: dict[str, float], remedy: str
) -> None:
    base = image_folder(tmp_path / "x", ("train", "test") if option else ("train",), num=1)
    with pytest.raises(DataError, match=f"every class has only one. Give .*{remedy}"):
        load(DataSpec(f"folder:{base}", **option))  # type: ignore[arg-type]


# What systems leave in folders


def test_what_systems_leave_behind_is_not_read(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", num=2)
    before = fingerprint(DataSpec(f"folder:{base}"))
    for folder in ("__MACOSX", ".git", "train/@eaDir", "train/cat/.ipynb_checkpoints"):
        (base / folder).mkdir()
        image(9).save(base / folder / "a-checkpoint.png")
    for file in (".DS_Store", "train/cat/.DS_Store", "train/cat/._0.png", "train/dog/Thumbs.db"):
        (base / file).write_bytes(b"x")
    dataset = load(DataSpec(f"folder:{base}"))
    assert counts(dataset) == (4, 4)
    assert not dataset.notices
    assert fingerprint(DataSpec(f"folder:{base}")) == before
    parquet = parquet_folder(tmp_path / "p")
    (parquet / "data" / "._train-0.parquet").write_bytes(b"x")
    assert counts(load(DataSpec(f"hf:{parquet}"))) == (20, 10)


def test_links_upper_case_and_accents_are_read(tmp_path: Path) -> None:
    base, store = tmp_path / "x", tmp_path / "store"
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for folder in (f"train/{composed}", f"test/{decomposed}", "train/dog", "test/dog"):
        (base / folder).mkdir(parents=True)
        image(len(folder)).save(base / folder / "0.PNG")
    store.mkdir()
    Image.new("RGB", (8, 8)).save(store / "1.JPG", "JPEG")
    (base / "train" / "dog" / "more").symlink_to(store)
    (base / "train" / "dog" / "circle").symlink_to(base / "train")
    (store / "back").symlink_to(store)
    dataset = load(DataSpec(f"folder:{base}"))
    assert dataset.classes == (composed, "dog")
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.test.labels.tolist() == [0, 1]
    (base / "train" / decomposed).mkdir()
    image(3).save(base / "train" / decomposed / "0.png")
    with pytest.raises(DataError, match="a second folder of the class"):
        load(DataSpec(f"folder:{base}"))


def test_names_outside_utf_8_are_read_and_can_be_written(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", num=2)
    for split in ("train", "test"):
        folder = base / split / os.fsdecode(b"caf\xe9")
        (base / split / "cat").rename(folder)
        (folder / "0.png").rename(folder / os.fsdecode(b"\xe9.png"))
    bad = base / "train" / "dog" / os.fsdecode(b"\xe9.png")
    bad.write_bytes(b"")
    dataset = load(DataSpec(f"folder:{base}", on_error="skip"))
    assert dataset.classes == ("caf\\udce9", "dog")
    assert "\\udce9.png: the image cannot be read" in dataset.notices[0]
    " ".join((*dataset.classes, *dataset.notices)).encode("utf-8")


def test_names_of_splits_are_unambiguous() -> None:
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)


# Test examples that are trained on


@pytest.mark.parametrize("copied", [6, 0])
def test_test_images_that_are_trained_on_are_said(tmp_path: Path, copied: int) -> None:
    base = image_folder(tmp_path / "x")
    for n in range(copied):
        shutil.copy(base / "train" / "cat" / f"{n}.png", base / "test" / "cat" / f"{n}.png")
    notices = load(DataSpec(f"folder:{base}")).notices
    said = ["6 of the 12 test images are also in the training split" in n for n in notices]
    assert said == [True] * (copied > 0)


def test_an_image_under_another_label_is_no_copy(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x")
    for n in range(6):
        shutil.copy(base / "train" / "cat" / f"{n}.png", base / "test" / "dog" / f"{n}.png")
    assert not load(DataSpec(f"folder:{base}")).notices
