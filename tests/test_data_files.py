"""Parquet files and folders of classes; and all that can be wrong with them."""

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from image_files import expected_pixels, image, image_folder, parquet_folder, png, write_parquet
from regrow.data import DataSpec, fingerprint, load
from regrow.errors import ConfigError, DataError
from regrow.train.material import material_of

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


# Parquet


def test_parquet_folder_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / 'a "b" c', names=["odd", "even"])
    dataset = load(DataSpec(f"hf:{base}"))
    assert dataset.classes == ("odd", "even")
    assert (dataset.channels, dataset.size, dataset.augmentation) == (3, 8, "pad-crop-flip")
    assert torch.equal(dataset.train.batch(torch.arange(20)), expected_pixels(list(range(20))))
    assert torch.equal(dataset.test.batch(torch.arange(10)), expected_pixels(list(range(100, 110))))
    assert dataset.train.labels.tolist() == [n % 2 for n in range(20)]
    assert dataset.train.labels.dtype == torch.int64


def test_splits_of_other_names_and_layouts(tmp_path: Path) -> None:
    validation = load(DataSpec(f"hf:{parquet_folder(tmp_path / 'v', test='validation')}"))
    assert len(validation.test) == 10
    assert validation.validation is None
    alone = load(DataSpec(f"hf:{parquet_folder(tmp_path / 'alone', test=None)}"))
    assert (len(alone.train), len(alone.test)) == (16, 4)
    both = parquet_folder(tmp_path / "both")
    write_parquet(both / "data" / "validation-0.parquet", [png(50), png(51)], [0, 1])
    three = load(DataSpec(f"hf:{both}"))
    assert three.validation is not None
    assert len(three.validation) == 2
    asked = load(DataSpec(f"hf:{both}", validation=0.5))
    assert asked.validation is not None
    assert len(asked.validation) == 10
    converted = tmp_path / "converted" / "default"
    write_parquet(converted / "train" / "0000.parquet", [png(0), png(1)], [0, 1])
    write_parquet(converted / "test" / "0000.parquet", [png(2), png(3)], [0, 1])
    assert len(load(DataSpec(f"hf:{converted.parent}")).test) == 2


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x", columns=("photo", "kind"))
    holds = r"one column of class labels \(whole .* truths\), got none.*kind \(int64\)"
    with pytest.raises(DataError, match=holds):
        load(DataSpec(f"hf:{base}"))
    assert len(load(DataSpec(f"hf:{base}", label_column="kind", image_column="photo")).train) == 20
    with pytest.raises(ConfigError, match=r"Unknown label column 'kinds'. Did you mean 'kind'"):
        load(DataSpec(f"hf:{base}", label_column="kinds"))
    with pytest.raises(ConfigError, match="Unknown image column 'kind'"):
        load(DataSpec(f"hf:{base}", label_column="kind", image_column="kind"))


def test_identity_of_parquet_is_content(tmp_path: Path, data_folder: Path) -> None:
    base = parquet_folder(tmp_path / "x")
    shutil.copytree(base, tmp_path / "copy")
    first = fingerprint(DataSpec(f"hf:{base}"))
    assert fingerprint(DataSpec(f"hf:{tmp_path / 'copy'}")) == first
    assert fingerprint(DataSpec(f"hf:{base}", size=16)) != first
    (data_folder / "digests.json").write_text("damaged")
    assert "digests.json does not match its digest" in " ".join(
        material_of(DataSpec(f"hf:{base}")).notices
    )
    assert fingerprint(DataSpec(f"hf:{base}")) == first
    parquet_folder(tmp_path / "copy", names=["a", "b"])
    assert fingerprint(DataSpec(f"hf:{tmp_path / 'copy'}")) != first


def test_digests_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = parquet_folder(tmp_path / "x")
    first = fingerprint(DataSpec(f"hf:{base}"))

    monkeypatch.setattr("regrow.data.cache.CHUNK_BYTES", "nothing is read again")
    from regrow.data.cache import file_digest

    train = next(base.rglob("train-*"))
    assert len(file_digest(train, root=tmp_path / "data-root")) == 64
    assert len(first) == 32


def remove_all(base: Path) -> None:
    shutil.rmtree(base / "data")


def cut_short(base: Path) -> None:
    path = next(base.rglob("train-*"))
    path.write_bytes(path.read_bytes()[:-20])


def damage_inside(base: Path) -> None:
    path = next(base.rglob("train-*"))
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(bytes(data))


def rewrite(images: list[bytes | None], labels: list[Any], **options: Any) -> Callable[..., None]:
    def write(base: Path) -> None:
        write_parquet(next(base.rglob("train-*")), images, labels, **options)

    return write


PNGS: list[bytes | None] = [png(n) for n in range(4)]
DAMAGED_PNG = png(2)[:60]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_all, "expected Parquet files named train-.* there are none"),
        (cut_short, r"train-00000-of-00001.parquet: the Parquet file cannot be read"),
        (damage_inside, r"train-00000-of-00001.parquet"),
        (
            rewrite([PNGS[0], PNGS[1], DAMAGED_PNG, PNGS[3]], [0, 1, 0, 1]),
            r"train-00000-of-00001.parquet, row 2: the image cannot be read",
        ),
        (
            rewrite([PNGS[0], PNGS[1], b"no image", PNGS[3]], [0, 1, 0, 1]),
            r"row 2: the image cannot be read \(UnidentifiedImageError",
        ),
        (
            rewrite([PNGS[0], None, *PNGS[2:]], [0, 1, 0, 1]),
            r"row 1: the image cannot be read",
        ),
        (rewrite(PNGS, [0, None, 0, None]), r"row 1: the label is null \(2 in all\)"),
        (rewrite([None] * 4, [0, 1, 0, 1]), r"row 0: neither this row nor those after it.*Embed"),
        (rewrite(PNGS, ["a", "b", "a", "b"]), "the labels of test are of the type int64.*string"),
        (rewrite(PNGS, [0, 1, 0, 1], names=["1", "0"]), "the classes differ.*their order differs"),
        (rewrite(PNGS, [1, 1, 1, 1]), "row 0: the label is 0, and the first class is 1"),
        (rewrite(PNGS, [0, 0, 2, 2]), "are 0, 2 .*without gaps"),
        (
            rewrite([], pa.array([], pa.int64())),
            "nothing is left of the training split: it",
        ),
        (
            rewrite([*PNGS[:3], png(3, size=(9, 9))], [0, 1, 0, 1]),
            "must be squares of one size, got 8x8, 9x9.*Give `size`",
        ),
    ],
)
def test_damaged_parquet_is_one_clear_message(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    base = parquet_folder(tmp_path / "x")
    damage(base)
    with pytest.raises(DataError, match=message):
        load(DataSpec(f"hf:{base}"))


def test_label_outside_the_named_classes_is_placed(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x", names=["a", "b"])
    rewrite(PNGS, [0, 1, 0, 2], names=["a", "b"])(base)
    message = r"train-00000-of-00001.parquet, row 3: the label 2 is outside the 2 classes \(0 to 1"
    with pytest.raises(DataError, match=message):
        load(DataSpec(f"hf:{base}"))


def test_other_size_beyond_the_sample_is_named(tmp_path: Path) -> None:
    images = [png(0)] * 70 + [png(1, size=(8, 12))]
    labels = [n % 2 for n in range(71)]
    write_parquet(tmp_path / "x" / "train-0.parquet", list(images), labels)
    with pytest.raises(DataError, match=r"8x8 in .*row 0, 8x12 in .*row 70. Give `size`"):
        load(DataSpec(f"hf:{tmp_path / 'x'}"))
    assert load(DataSpec(f"hf:{tmp_path / 'x'}", size=8)).size == 8


def test_files_of_a_split_must_have_one_schema(tmp_path: Path) -> None:
    base = parquet_folder(tmp_path / "x")
    write_parquet(base / "data" / "train-1.parquet", PNGS, [0, 1, 0, 1], columns=("a", "b"))
    with pytest.raises(DataError, match="the columns differ from those of train-00000"):
        load(DataSpec(f"hf:{base}"))


def test_several_configurations_are_refused(tmp_path: Path) -> None:
    parquet_folder(tmp_path / "x" / "one")
    parquet_folder(tmp_path / "x" / "two")
    with pytest.raises(DataError, match=r"several configurations \(one/data, two/data\)"):
        fingerprint(DataSpec(f"hf:{tmp_path / 'x'}"))


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("train-00000-of-00001.parquet", "train_extra-0.parquet", "train, train_extra"),
        ("train_small.parquet", "train_full.parquet", "train_full, train_small"),
        ("train.parquet", "train_val.parquet", "train, train_val"),
        ("train/0000.parquet", "train_10percent/0000.parquet", "train, train_10percent"),
    ],
)
def test_several_splits_of_one_kind_are_refused(
    first: str, second: str, both: str, tmp_path: Path
) -> None:
    for name in (first, second):
        write_parquet(tmp_path / name, list(PNGS), [0, 1, 0, 1])
    with pytest.raises(DataError, match=rf"holds several train splits \({both}\)"):
        fingerprint(DataSpec(f"hf:{tmp_path}"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("train-00000-of-00002-9df3e0c4b0b8ae2c.parquet", "train-00001-of-00002-1bc5.parquet"),
        ("train_part1.parquet", "train_part2.parquet"),
        ("training_data-0.parquet", "training_data-1.parquet"),
    ],
)
def test_numbered_files_are_one_split(first: str, second: str, tmp_path: Path) -> None:
    for name in (first, second):
        write_parquet(tmp_path / name, list(PNGS), [0, 1, 0, 1])
    found = load(DataSpec(f"hf:{tmp_path}"))
    assert len(found.train) + len(found.test) == 8


def test_the_name_of_the_folder_says_the_split_only_of_files_that_do_not(tmp_path: Path) -> None:
    for name in ("train", "extra"):
        write_parquet(tmp_path / "my-test" / f"{name}.parquet", list(PNGS) * 2, [0, 1] * 4)
    found = load(DataSpec(f"hf:{tmp_path / 'my-test'}"))
    assert len(found.train) + len(found.test) == 8
    assert "match no split: extra.parquet." in found.notices[0]


@pytest.mark.parametrize("act", [load, fingerprint])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:/no/such/folder", "there is no folder /no/such/folder"),
        ("folder:no-such-folder", r"there is no folder .*no-such-folder. Give the folder"),
        ("hf:./nothing/here", "there is no folder .*nothing/here. Give a folder"),
    ],
)
def test_missing_folders_are_named(
    act: Callable[[DataSpec], object], name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        act(DataSpec(name))


def test_hub_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'regrow\[hub\]'"):
        load(DataSpec("hf:uoft-cs/cifar10"))


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setattr(module, "snapshot_download", download, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> str:
        raise RuntimeError("no route\nto host")

    fake_hub(monkeypatch, offline)
    message = r"'uoft-cs/cifar10' cannot be fetched .*\(RuntimeError: no route\)"
    with pytest.raises(DataError, match=message):
        load(DataSpec("hf:uoft-cs/cifar10"))


def test_hub_snapshot_is_read_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = parquet_folder(tmp_path / "snapshot")
    asked = []

    def download(*args: object, **options: object) -> str:
        asked.append((args, options))
        return str(base)

    fake_hub(monkeypatch, download)
    assert len(load(DataSpec("hf:some-one/some.set/data")).train) == 20
    assert asked[0] == (
        ("some-one/some.set",),
        {"repo_type": "dataset", "allow_patterns": ["data/*.parquet"]},
    )
    assert fingerprint(DataSpec("hf:some-one/some.set")) == fingerprint(DataSpec(f"hf:{base}"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train-0", "train_extra-0"),
            r"'hf:one/two' holds several train splits \(train, train_extra\). Copy the files of "
            r"one \(train-0.parquet, ...\) to a folder, and read 'hf:FOLDER'.$",
        ),
        (("a_train", "b_train"), r"'hf:one/two' holds several configurations .* Copy the files of"),
        (("a/train", "b/test"), r"configurations \(a, b\). .* such as 'hf:one/two/a'.$"),
    ],
)
def test_advice_about_files_of_the_hub_does_not_move_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        write_parquet(tmp_path / "snapshot" / f"{name}.parquet", PNGS, [0, 1, 0, 1])
    fake_hub(monkeypatch, lambda *args, **options: str(tmp_path / "snapshot"))
    with pytest.raises(DataError, match=message):
        load(DataSpec("hf:one/two"))


# Folders


def test_image_folder_is_read(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", ("train", "val"))
    (base / "train" / ".hidden").mkdir()
    (base / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = load(DataSpec(f"folder:{base}"))
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (12, 12)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert torch.equal(
        dataset.train.batch(torch.arange(6)), expected_pixels(list(range(5000, 5006)))
    )


def test_folder_with_all_three_splits_and_with_none(tmp_path: Path) -> None:
    three = load(DataSpec(f"folder:{image_folder(tmp_path / 'x', ('train', 'val', 'test'))}"))
    assert three.validation is not None
    assert torch.equal(three.test.batch(torch.arange(6)), expected_pixels(list(range(4000, 4006))))
    image_folder(tmp_path / "plain", ("all",), num=10)
    plain = DataSpec(f"folder:{tmp_path / 'plain' / 'all'}")
    assert (len(load(plain).train), len(load(plain).test)) == (16, 4)
    image_folder(tmp_path / "train-only", ("train",), num=10)
    assert len(load(DataSpec(f"folder:{tmp_path / 'train-only'}")).test) == 4


def test_identity_of_a_folder_is_relative(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x")
    shutil.copytree(base, tmp_path / "copy")
    first = fingerprint(DataSpec(f"folder:{base}"))
    assert fingerprint(DataSpec(f"folder:{tmp_path / 'copy'}")) == first
    (tmp_path / "copy" / "train" / "cat" / "0.png").rename(
        tmp_path / "copy" / "train" / "dog" / "new.png"
    )
    assert fingerprint(DataSpec(f"folder:{tmp_path / 'copy'}")) != first


def empty_class(base: Path) -> None:
    (base / "train" / "emu").mkdir()


def class_in_train_only(base: Path) -> None:
    shutil.copytree(base / "train" / "cat", base / "train" / "emu")


def unreadable(base: Path) -> None:
    (base / "train" / "dog" / "3.png").write_bytes(b"")


def truncated(base: Path) -> None:
    path = base / "test" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])


def sixteen_bits(base: Path) -> None:
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(base / "train" / "dog" / "3.png")


def no_train(base: Path) -> None:
    shutil.rmtree(base / "train")


def one_class(base: Path) -> None:
    shutil.rmtree(base / "train" / "cat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_class, "train/emu: the class has no image"),
        (class_in_train_only, "The classes differ: .* only one of them has 'emu'"),
        (unreadable, r"train/dog/3.png: the image cannot be read"),
        (truncated, r"test/dog/3.png: the image cannot be read"),
        (sixteen_bits, r"train/dog/3.png: expected an 8-bit image, got mode 'I;16'"),
        (no_train, "has a folder 'test' but no 'train'"),
        (one_class, "a folder for each of at least 2 classes, got 1"),
    ],
)
def test_damaged_folder_is_one_clear_message(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    base = image_folder(tmp_path / "x")
    damage(base)
    with pytest.raises(DataError, match=message):
        load(DataSpec(f"folder:{base}"))


def test_image_that_is_no_file_is_named(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x")
    (base / "train" / "cat" / "9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        DataError, match=r"train/cat/9.png: the image cannot be read \(the file is empty"
    ):
        load(DataSpec(f"folder:{base}"))


def test_grey_stays_grey_unless_mixed_with_colour(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x")
    for path in base.rglob("*.png"):
        Image.open(path).convert("LA").save(path)
    grey = load(DataSpec(f"folder:{base}"))
    assert (grey.channels, grey.augmentation) == (1, "shift")
    assert len(grey.mean) == 1
    image(7).save(base / "test" / "cat" / "0.png")
    mixed = load(DataSpec(f"folder:{base}"))
    assert mixed.channels == 3
    assert torch.equal(
        mixed.train.batch(torch.arange(12)),
        grey.train.batch(torch.arange(12)).repeat(1, 3, 1, 1),
    )


def test_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x")
    image(1).convert("P").save(base / "train" / "cat" / "0.png", transparency=b"\x00\x80")
    image(2).convert("RGBA").save(base / "train" / "cat" / "1.png")
    dataset = load(DataSpec(f"folder:{base}"))
    assert torch.equal(dataset.train.batch(torch.tensor([1])), expected_pixels([2]))


# Real images


def shared(name: str) -> DataSpec:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} in the folder shared/data beside the checkout")
    return DataSpec(f"hf:{SHARED / name}", normalisation="computed")


@pytest.mark.slow
def test_real_tiny_imagenet_at_64_pixels() -> None:
    dataset = load(shared("tiny-imagenet-20-64px"))
    assert (len(dataset.train), len(dataset.test)) == (10_000, 1_000)
    assert (dataset.size, dataset.channels, len(dataset.classes)) == (64, 3, 20)
    assert dataset.classes[0].startswith("n01644900")
    assert torch.bincount(dataset.train.labels).tolist() == [500] * 20
    assert all(abs(m - i) < 0.05 for m, i in zip(dataset.mean, (0.485, 0.456, 0.406), strict=True))


@pytest.mark.slow
def test_real_cifar_has_the_published_mean() -> None:
    spec = shared("cifar10-jpeg")
    dataset = load(spec)
    assert dataset.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.003)
    assert dataset.std == pytest.approx((0.247, 0.2435, 0.2616), abs=0.003)
    assert torch.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert load(DataSpec(spec.name)).std == (0.2023, 0.1994, 0.2010)
