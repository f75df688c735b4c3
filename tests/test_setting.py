"""Printed numbers are a reference only at the paper's scale and on its images."""

import io
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from image_files import parquet_folder, png, write_parquet
from liu import PAPER, cells, entries, lay_out
from regrow.data import DataSpec, MemoryImages, load
from regrow.reproduce import layout, originals
from regrow.reproduce.originals import ORIGINALS, CellImages, Original, departs, scale_departs
from regrow.reproduce.scales import SCALES, Scale

FILES = sorted({name for one in entries().values() for name in one.studies})


@pytest.mark.parametrize("file", FILES)
def test_a_scale_departs_by_what_it_makes_of_a_study(file: str) -> None:
    value = PAPER.study(file)

    def said(scale: Scale) -> str:
        return scale_departs(value, scale)

    assert {name for name, scale in SCALES.items() if not said(scale)} == {"paper"}
    paper = replace(SCALES["paper"], name="mine", about="less of something")
    assert said(replace(paper, seeds=3)) == ""  # fewer seeds are the paper's setting still
    for change in ({"epochs": 0.5}, {"width": 0.5}, {"test_subset": 500}):
        assert said(replace(paper, **change)) == "the scale mine has less of something"


# Images --------------------------------------------------------------------------------------


def _jpegs(base: Path) -> Path:
    """Write the images of ``parquet_folder`` as JPEG files."""
    for half, first, num in (("train", 0, 20), ("test", 100, 10)):
        copies: list[bytes | None] = []
        for index in range(first, first + num):
            stream = io.BytesIO()
            Image.open(io.BytesIO(png(index))).save(stream, format="JPEG", quality=95)
            copies.append(stream.getvalue())
        labels = [n % 2 for n in range(num)]
        write_parquet(base / "data" / f"{half}-00000-of-00001.parquet", copies, labels)
    return base


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let CIFAR-10 be 20 training and 10 test images of 2 classes."""
    folder = parquet_folder(tmp_path / "original")
    pixels = load(DataSpec(f"hf:{folder}")).train
    assert isinstance(pixels, MemoryImages)
    red, green, blue = (int(pixels.pixels[:, channel].long().sum()) for channel in range(3))
    sums = (red, green, blue)
    known = Original(
        classes=2, num_train=20, num_test=10, same=partial(originals._sums_to, sums=sums)
    )
    monkeypatch.setattr(originals, "ORIGINALS", {"CIFAR-10": known})
    originals._copy_departs.cache_clear()
    return folder


def _said(spec: DataSpec, dataset: str = "CIFAR-10") -> list[str]:
    return departs("", [CellImages(dataset=dataset, spec=spec, stands_in=True)])


def test_a_lossless_copy_is_the_original_and_jpeg_copies_and_parts_of_it_are_not(
    small_cifar: Path, tmp_path: Path
) -> None:
    original, jpegs = DataSpec(f"hf:{small_cifar}"), _jpegs(tmp_path / "jpegs")
    assert _said(original) == []
    assert _said(DataSpec(f"hf:{jpegs}")) == [
        f"hf:{jpegs} stands for CIFAR-10: its pixels are not the original's, as in JPEG copies"
    ]
    (fewer,) = _said(replace(original, subset=10))
    assert fewer.endswith("it has 10 training images, not 20")
    (fewer,) = _said(replace(original, test_subset=4))
    assert fewer.endswith("it has 4 test images, not 10")
    (other,) = _said(DataSpec("digits"))
    assert other == "digits stands for CIFAR-10: it has 10 classes, not 2"


def test_of_data_that_nothing_is_known_of_that_is_the_reason(small_cifar: Path) -> None:
    unknown = "it is not known whether its images are the original ones"
    assert _said(DataSpec("voc:VOC2007"), "PASCAL-VOC-07") == [
        f"voc:VOC2007 stands for PASCAL-VOC-07: {unknown}"
    ]
    assert _said(DataSpec(f"hf:{small_cifar}"), "ImageNet")[0].endswith(unknown)


def test_what_goes_by_its_own_name_is_the_original() -> None:
    own = CellImages.of("CIFAR-10", DataSpec("cifar10"), label="CIFAR-10")
    assert departs("", [own]) == []
    assert departs("the scale small", [own]) == ["the scale small"]
    digits = CellImages.of("CIFAR-10", DataSpec("digits"), label="digits for CIFAR-10")
    said = ["the scale small", "digits stands for CIFAR-10"]
    assert departs("the scale small", [own, digits]) == said


def test_imagenet_is_known_by_the_size_of_its_archive(tmp_path: Path) -> None:
    for half, num in (("train", 3), ("val", 5)):
        for name in ("a", "b"):
            folder = tmp_path / half / name
            folder.mkdir(parents=True)
            for index in range(num):
                (folder / f"{index}.png").write_bytes(png(index, size=(20 + index, 20)))
    archive = tmp_path / "val.tar"
    with tarfile.open(archive, "w") as tar:
        for number, path in enumerate(sorted((tmp_path / "val").rglob("*.png"))):
            tar.add(path, arcname=f"{number}.png")
    spec = DataSpec(f"folder:{tmp_path}")
    assert originals._archived(spec, num_bytes=archive.stat().st_size) == ""
    other = originals._archived(spec, num_bytes=archive.stat().st_size + 50_000)
    assert other == "its test files have other sizes"
    assert {name: (o.num_train, o.num_test) for name, o in ORIGINALS.items()} == {
        "CIFAR-10": (50_000, 10_000),
        "CIFAR-100": (50_000, 10_000),
        "ImageNet": (1_281_167, 50_000),
    }


# Sheets -------------------------------------------------------------------------------------------


def _ours(**departing: str) -> pd.DataFrame:
    """Give three cells of Table 1 a result of ours; some depart, by their target."""
    frame = cells(1)
    own = frame[(frame["arm"] == "scratch-e") & (frame["dataset"] == "CIFAR-10")].head(3)
    said = [departing.get(target.replace("-", "_"), "") for target in own["target"]]
    return own.assign(mean=own["mean"] - 5.0, n=2, departs=said)


@pytest.mark.parametrize("write", [layout.terminal, layout.markdown, layout.latex])
def test_a_sheet_compares_nothing_that_departs_and_says_so_above_the_table(write: Any) -> None:
    whole = write(lay_out(1, _ours()))
    assert "-5.00" in whole.replace("$-$", "-")
    assert "do not apply" not in whole
    part = lay_out(1, _ours(VGG_16_A="digits stand for CIFAR-10"))
    text = write(part).replace("\n", " ")
    assert part.num_run == 3
    assert "shown for 1 of the 3 cells that were run: digits stand for CIFAR-10." in text
    assert text.index("digits stand") < text.index("VGG-16-A")
    assert sum(cell.agreement is not None for cell in part.cells) == 2
    same = dict.fromkeys(("VGG_16_A", "ResNet_56_A", "ResNet_56_B"), "digits")
    none = lay_out(1, _ours(**same))
    text = write(none).replace("\n", " ")
    assert "no difference to them is shown: digits." in text
    assert "-5.00" not in text.replace("$-$", "-")
    for word in ("beyond", "within", "diff "):
        assert word not in text
    assert "88.62" in text  # ours stand there all the same


def test_a_caution_says_each_reason_once() -> None:
    frame = cells(1).assign(departs="")
    frame.loc[frame.index[:2], "departs"] = ["scale; digits", "scale; shapes"]
    caution = lay_out(1, frame).caution
    assert caution.endswith("cells that were run: scale; digits; shapes.")
