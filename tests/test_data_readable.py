"""Images of any kind, turned, grey or damaged: streamed as in memory, named or left out."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import image, image_folder, parquet_folder, png, write_parquet
from regrow.data import DataSpec, fingerprint, load
from regrow.data.decode import TURNS, fit, open_image, to_rgb, upright_size
from regrow.errors import DataError
from regrow.jobs.base import notices
from regrow.studies.study import Study

STREAMED = {"memory_limit_bytes": 0}


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def turned(picture: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(picture, kind, exif=exif)


def animation() -> bytes:
    frames = [image(n).convert("P") for n in (1, 2)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def transparent() -> bytes:
    return encoded(image(3).convert("P"), transparency=b"\x00\x80")


ODD: dict[str, Callable[[], bytes]] = {
    "one green image": lambda: encoded(Image.new("RGB", (8, 8), (0, 200, 0))),
    "alpha": lambda: encoded(image(1).convert("RGBA")),
    "palette": lambda: encoded(image(2).convert("P")),
    "palette with transparency": transparent,
    "cmyk": lambda: encoded(image(3).convert("CMYK"), "JPEG"),
    "animation": animation,
    "black and white": lambda: encoded(image(4).convert("1")),
    "grey with alpha": lambda: encoded(image(4).convert("LA")),
    "turned": lambda: turned(image(5), 6),
    "mirrored jpeg": lambda: turned(image(5), 5, "JPEG"),
    "sixteen bits of colour": lambda: encoded(image(6)),
}


@pytest.mark.parametrize("odd", ODD)
def test_streamed_images_equal_those_in_memory_whatever_one_of_them_is(
    tmp_path: Path, odd: str
) -> None:
    base = tmp_path / "x"
    images: list[bytes | None] = [png(n, mode="L") for n in range(90)]
    images[80] = ODD[odd]()  # beyond the sample that is looked at
    labels = [n % 2 for n in range(90)]
    write_parquet(base / "train-0.parquet", images, labels)
    write_parquet(base / "test-0.parquet", images[:4], labels[:4])
    for options in ({}, {"size": 8}):
        kept, streamed = (
            load(DataSpec(f"hf:{base}", **options, **more))  # type: ignore[arg-type]
            for more in ({}, STREAMED)
        )
        assert kept.channels == streamed.channels
        every = torch.arange(90)
        assert torch.equal(kept.train.batch(every), streamed.train.batch(every))


def test_streamed_images_of_another_size_are_refused_as_those_in_memory(tmp_path: Path) -> None:
    images: list[bytes | None] = [png(n) for n in range(90)]
    images[80] = png(1, size=(8, 9))
    write_parquet(tmp_path / "x" / "train-0.parquet", images, [n % 2 for n in range(90)])
    ways: tuple[dict[str, Any], ...] = ({}, STREAMED)
    for options in ways:
        with pytest.raises(DataError, match=r"8x8.*8x9.* Give `size`"):
            load(DataSpec(f"hf:{tmp_path / 'x'}", **options))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_turned_pictures_stand_upright(orientation: int, kind: str) -> None:
    from PIL import ImageOps

    picture = image(0, size=(8, 12))
    data = turned(picture, orientation, kind)
    opened = open_image(data, where="x")
    size, pixels = upright_size(opened), np.asarray(to_rgb(opened, where="x"))
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert size == wanted.size
    assert np.array_equal(pixels, np.asarray(wanted))


def test_damaged_exif_is_ignored() -> None:
    data = encoded(image(0), "JPEG", exif=b"Exif\x00\x00no such thing")
    assert upright_size(open_image(data, where="x")) == (8, 8)


def test_an_image_too_long_to_be_scaled_whole_is_cut_first() -> None:
    ramp = np.broadcast_to(np.arange(30_000) // 118, (1, 30_000)).astype(np.uint8)
    scaled = fit(Image.fromarray(ramp), shorter=128, crop=128)  # whole: 490 million pixels
    assert scaled.size == (128, 128)
    assert abs(np.asarray(scaled).mean() - 127) < 1


# Leaving out


def damaged_folder(base: Path) -> list[str]:
    image_folder(base, num=9)
    cat = base / "train" / "cat"
    (cat / "1.png").write_bytes(b"")
    (cat / "2.png").write_bytes(b"no image")
    (cat / "3.png").write_bytes(png(3)[:60])
    (cat / "4.png").unlink()
    (cat / "4.png").symlink_to(base / "nowhere")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(cat / "5.png")
    return [f"train/cat/{n}.png" for n in range(1, 6)]


def damaged_parquet(base: Path) -> list[str]:
    parquet_folder(base)
    images: list[bytes | None] = [png(n) for n in range(18)]
    images[1:6] = [b"", b"no image", png(3)[:60], None, encoded(Image.new("I;16", (8, 8)))]
    write_parquet(next(base.rglob("train-*")), images, [0] * 9 + [1] * 9)
    return [f"train-00000-of-00001.parquet, row {row}" for row in range(1, 6)]


@pytest.mark.parametrize("options", [{}, STREAMED], ids=["in memory", "streamed"])
@pytest.mark.parametrize(
    ("prefix", "damage"), [("folder", damaged_folder), ("hf", damaged_parquet)]
)
def test_images_that_cannot_be_read_are_named_or_left_out(
    tmp_path: Path,
    prefix: str,
    damage: Callable[[Path], list[str]],
    options: dict[str, int],
) -> None:
    name = f"{prefix}:{tmp_path / 'x'}"
    places = damage(tmp_path / "x")
    with pytest.raises(DataError, match=r"on_error: skip"):
        load(DataSpec(name, **options))  # type: ignore[arg-type]
    for _ in range(2):  # the second time from the cache
        dataset = load(DataSpec(name, on_error="skip", **options))  # type: ignore[arg-type]
        assert dataset.train.labels.tolist() == [0] * 4 + [1] * 9
        assert dataset.train.batch(torch.arange(13)).shape == (13, 3, 8, 8)
        (notice,) = dataset.notices
        num = 36 if prefix == "folder" else 28
        assert f"5 of {num} images are left out" in notice
        assert notice.endswith("And 2 more.")
        assert all(place in notice for place in places[:3])


def test_labels_stay_with_their_images_when_others_are_left_out(tmp_path: Path) -> None:
    damaged_parquet(tmp_path / "x")
    train = load(DataSpec(f"hf:{tmp_path / 'x'}", on_error="skip")).train
    kept = [0, *range(6, 18)]
    wanted = np.stack([np.asarray(image(n)).transpose(2, 0, 1) for n in kept])
    assert np.array_equal(train.batch(torch.arange(13)).numpy(), wanted)


def test_the_identity_depends_on_what_is_left_out(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", num=3)
    plain, skipping = (
        fingerprint(DataSpec(f"folder:{base}", on_error=on)) for on in ("stop", "skip")
    )
    assert plain != skipping
    file = base / "train" / "cat" / "1.png"
    file.write_bytes(b"x" * file.stat().st_size)  # as large as before
    assert fingerprint(DataSpec(f"folder:{base}")) == plain
    assert fingerprint(DataSpec(f"folder:{base}", on_error="skip")) != skipping


def test_a_split_or_class_of_which_nothing_can_be_read_is_refused(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", num=2)
    for file in (base / "train" / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="the class 'cat' has no training image"):
        load(DataSpec(f"folder:{base}", on_error="skip"))
    for file in (base / "train" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no image of its split can be read"):
        load(DataSpec(f"folder:{base}", on_error="skip"))


# Telling


def test_what_was_left_out_is_said_of_a_study_once(tmp_path: Path) -> None:
    base = image_folder(tmp_path / "x", ("train", "test"), num=4)
    (base / "train" / "cat" / "0.png").write_bytes(b"")
    study = Study.from_json(
        {
            "name": "x",
            "data": {"name": f"folder:{base}", "on_error": "skip", "size": 8},
            "models": "resnet-20",
            "arms": ["unpruned"],
            "seeds": 2,
        }
    )
    (notice,) = notices(study.jobs())
    assert "1 of 16 images are left out" in notice
