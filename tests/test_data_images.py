"""Images once decoded: cached, held in memory or streamed, with the same answers."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_files import expected_pixels, image, image_folder, parquet_folder, png, write_parquet
from regrow.data import DataSpec, MemoryImages, StreamedImages, fingerprint, load
from regrow.data.augment import augment
from regrow.data.cache import decoded
from regrow.errors import DataError


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "data-root"))
    return tmp_path / "data-root"


# Cache


def test_decoding_is_paid_once(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DataSpec(f"hf:{parquet_folder(tmp_path / 'x')}")
    first = load(spec).train.batch(torch.arange(20))
    assert len(list((data_folder / "decoded").glob("*.npy"))) == 2
    assert not list((data_folder / "decoded").glob(".*"))

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("regrow.data.loading.decode_all", refuse)
    again = load(spec)
    assert torch.equal(again.train.batch(torch.arange(20)), first)
    with pytest.raises(AssertionError, match="decoded again"):
        load(DataSpec(spec.name, size=4))


@pytest.mark.parametrize("damage", ["cut", "empty", "shape", "bit", "other"])
def test_damaged_cache_is_made_anew(tmp_path: Path, data_folder: Path, damage: str) -> None:
    spec = DataSpec(f"hf:{parquet_folder(tmp_path / 'x')}")
    first = load(spec).train.batch(torch.arange(20))
    paths = sorted((data_folder / "decoded").glob("*.npy"))
    if damage == "other":
        paths[0].write_bytes(paths[1].read_bytes())
        paths = []
    for path in paths:
        if damage == "shape":
            np.save(path, np.zeros((3, 3, 8, 8), dtype=np.uint8))
        elif damage == "bit":
            content = bytearray(path.read_bytes())
            content[-40] ^= 4
            path.write_bytes(content)
        else:
            path.write_bytes(path.read_bytes()[:300] if damage == "cut" else b"")
    again = load(spec)
    assert torch.equal(again.train.batch(torch.arange(20)), first)
    altered = [notice for notice in again.notices if "does not match its digest" in notice]
    assert len(altered) == len(list((data_folder / "decoded").glob("*.damaged"))) > 0
    assert load(spec).notices == ()


def test_cache_that_cannot_be_written_is_done_without(tmp_path: Path, data_folder: Path) -> None:
    data_folder.write_text("a file where the folder should be")
    spec = DataSpec(f"hf:{parquet_folder(tmp_path / 'x')}")
    assert torch.equal(load(spec).train.batch(torch.arange(20)), expected_pixels(list(range(20))))
    with pytest.raises(DataError, match=r"Cannot write .* which streaming needs"):
        load(DataSpec(spec.name, memory_limit_bytes=0))


def test_one_of_several_decodes_and_the_others_wait(tmp_path: Path) -> None:
    made = []

    def make() -> np.ndarray[Any, np.dtype[np.uint8]]:
        made.append(1)
        time.sleep(0.05)
        return np.ones((2, 1, 4, 4), dtype=np.uint8)

    with ThreadPoolExecutor(4) as pool:
        arrays = list(
            pool.map(lambda _: decoded("x", make, root=tmp_path / "root", num=2), range(4))
        )
    assert len(made) == 1
    assert all((array == 1).all() for array in arrays)


def test_writing_to_pixels_leaves_the_cache_alone(tmp_path: Path) -> None:
    spec = DataSpec(f"hf:{parquet_folder(tmp_path / 'x')}")
    dataset = load(spec)
    assert isinstance(dataset.train, MemoryImages)
    dataset.train.pixels.zero_()
    assert torch.equal(load(spec).train.batch(torch.arange(20)), expected_pixels(list(range(20))))


# Streaming


@pytest.fixture(params=["hf", "folder"])
def streamed_name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "hf":
        return f"hf:{parquet_folder(tmp_path / 'x')}"
    return f"folder:{image_folder(tmp_path / 'x')}"


def test_streamed_images_equal_those_in_memory(streamed_name: str) -> None:
    kept = load(DataSpec(streamed_name, subset=8, validation=0.25))
    streamed = load(DataSpec(streamed_name, subset=8, validation=0.25, memory_limit_bytes=0))
    assert streamed.augmentation == "resized-crop-flip"
    for part in ("train", "validation", "test"):
        one, two = getattr(kept, part), getattr(streamed, part)
        assert isinstance(two, StreamedImages)
        assert torch.equal(one.labels, two.labels)
        indices = torch.arange(len(one)).flip(0)
        two.prefetch(indices)
        assert torch.equal(one.batch(indices), two.batch(indices))
        for kind in ("none", "flip", "pad-crop-flip"):
            draws = one.draw(kind, torch.Generator().manual_seed(5))
            assert torch.equal(draws, two.draw(kind, torch.Generator().manual_seed(5)))
            assert torch.equal(
                one.augmented(indices, draws, kind=kind), two.augmented(indices, draws, kind=kind)
            )
    assert (kept.mean, kept.std) == (streamed.mean, streamed.std)
    assert fingerprint(kept.spec) != fingerprint(streamed.spec)


def test_announced_batches_equal_unannounced_ones(streamed_name: str) -> None:
    train = load(DataSpec(streamed_name, memory_limit_bytes=0, size=6)).train
    assert isinstance(train, StreamedImages)
    batches = [torch.arange(n, n + 3) for n in range(9)] + [torch.arange(3)] * 2
    kind = "resized-crop-flip"
    drawn = [train.draw(kind, torch.Generator().manual_seed(n))[:3] for n in range(len(batches))]
    pairs = list(zip(batches, drawn, strict=True))
    plain = [train.augmented(batch, draws, kind=kind) for batch, draws in pairs]
    for batch, draws in pairs:  # more than are kept: the oldest are dropped
        train.prefetch(batch, draws, kind=kind)
    for n, (batch, draws) in enumerate(pairs):
        announced = train.augmented(batch, draws, kind=kind)
        assert announced.shape == (3, 3, 6, 6)
        assert torch.equal(announced, plain[n])
    assert not torch.equal(plain[0], plain[9])  # the same images by another seed
    assert not train._announced


def test_memory_images_answer_as_streamed_ones_do() -> None:
    dataset = load(DataSpec("digits"))
    indices = torch.arange(10)
    draws = dataset.train.draw("shift", torch.Generator().manual_seed(1))
    assert len(draws) == len(dataset.train)
    dataset.train.prefetch(indices, draws[:10], kind="shift")
    assert torch.equal(
        dataset.train.augmented(indices, draws[:10], kind="shift"),
        augment(dataset.train.batch(indices), draws[:10], kind="shift"),
    )
    assert isinstance(dataset.train, MemoryImages)
    assert torch.equal(dataset.train.to("cpu").pixels, dataset.train.pixels)


def test_streamed_resized_crops_are_cut_from_the_original(tmp_path: Path) -> None:
    # A ramp from left to right: a crop of it, scaled, is a ramp with a part of the slope.
    base = image_folder(tmp_path / "x")
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (48, 64, 3))
    for path in base.rglob("*.png"):
        Image.fromarray(np.ascontiguousarray(ramp)).save(path)
    with pytest.raises(DataError, match="must be squares of one size, got 64x48"):
        load(DataSpec(f"folder:{base}", memory_limit_bytes=0))
    train = load(DataSpec(f"folder:{base}", memory_limit_bytes=0, size=16)).train
    draws = train.draw("resized-crop-flip", torch.Generator().manual_seed(0))
    crops = train.augmented(torch.arange(12), draws[:12], kind="resized-crop-flip").float()
    assert crops.shape == (12, 3, 16, 16)
    slopes = crops[..., -1].mean(dim=(1, 2)) - crops[..., 0].mean(dim=(1, 2))
    assert (slopes > 0).any()
    assert (slopes < 0).any()
    # Evaluation: shorter side 16 * 256 / 224 = 18, so 24 across, of which the middle 16.
    middle = train.batch(torch.tensor([0]))[0, 0, 0].float()
    assert float(middle[0]) == pytest.approx(255 * 4.5 / 24, abs=4)
    assert float(middle[-1]) == pytest.approx(255 * 19.5 / 24, abs=4)


def test_streamed_images_are_scored_as_on_imagenet(tmp_path: Path) -> None:
    """Shorter side 256 for a crop of 224, enlarged if need be; none that has the very size."""
    from torchvision.transforms.functional import center_crop, resize

    base = image_folder(tmp_path / "x")
    noise = np.random.default_rng(0)
    for path in base.rglob("*.png"):
        Image.fromarray(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(path)
    small = next(iter(sorted((base / "test").rglob("*.png"))))
    Image.fromarray(noise.integers(0, 255, (15, 20, 3), dtype=np.uint8)).save(small)
    test = load(DataSpec(f"folder:{base}", memory_limit_bytes=0, size=28)).test
    for index, path in enumerate(sorted((base / "test").rglob("*.png"))):
        wanted = center_crop(resize(Image.open(path), 32), 28)
        ours = test.batch(torch.tensor([index]))[0].permute(1, 2, 0)
        assert np.abs(ours.numpy().astype(int) - np.asarray(wanted).astype(int)).max() <= 1
    for path in base.rglob("*.png"):
        Image.open(path).resize((28, 28)).save(path)
    test = load(DataSpec(f"folder:{base}", memory_limit_bytes=0, size=28)).test
    (first,) = test.batch(torch.tensor([0]))
    assert np.array_equal(first.permute(1, 2, 0).numpy(), np.asarray(Image.open(small)))


def test_damaged_streamed_image_is_named_when_it_is_read(
    streamed_name: str, tmp_path: Path
) -> None:
    if streamed_name.startswith("hf:"):
        images = [*[png(n) for n in range(70)], png(2)[:60]]
        write_parquet(
            next((tmp_path / "x").rglob("train-*")), list(images), [n % 2 for n in range(71)]
        )
        bad = 70
    else:
        for n in range(100):
            image(n).save(tmp_path / "x" / "train" / "dog" / f"a{n}.png")
        bad = 13  # not in the evenly spaced sample
        files = sorted((tmp_path / "x" / "train" / "dog").iterdir())
        files[bad - 6].write_bytes(png(2)[:60])
    spec = DataSpec(streamed_name, memory_limit_bytes=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    train = load(spec).train
    train.prefetch(torch.tensor([0, bad]))
    with pytest.raises(DataError, match="the image cannot be read"):
        train.batch(torch.tensor([0, bad]))


def test_damaged_streamed_image_is_told_and_written_anew(tmp_path: Path, data_folder: Path) -> None:
    spec = DataSpec(f"hf:{parquet_folder(tmp_path / 'x')}", size=8, memory_limit_bytes=0)

    def pixels() -> torch.Tensor:
        dataset = load(spec)
        return torch.cat([s.batch(torch.arange(len(s))) for s in (dataset.train, dataset.test)])

    first = pixels()
    files = sorted((data_folder / "encoded").glob("*.arrow"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"IHDR", b"IHDS"))
        with pytest.raises(DataError, match=rf"{file.name} is damaged: its row \d+ was altered"):
            pixels()
        assert torch.equal(pixels(), first)
        file.write_bytes(file.read_bytes()[:500])
        assert torch.equal(pixels(), first)
