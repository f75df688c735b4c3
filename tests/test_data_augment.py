"""Augmentation of whole batches, held against searches and loops over single images."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.data import AUGMENTATIONS, normalise
from regrow.data.augment import CROP_DRAWS, alternate, augment, crop_boxes, draw, draw_crops
from regrow.data.spec import FLIPPING
from regrow.errors import ConfigError

REFLECTED = "reflect-shift-flip"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(num: int, *, channels: int = 3, size: int = 8) -> torch.Tensor:
    # From 1, so that black can only come from the padding.
    shape = (num, channels, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(99))


def augmented(pixels: torch.Tensor, kind: str, *, seed: int = 0) -> torch.Tensor:
    draws = draw(kind, len(pixels), size=pixels.shape[-1], generator=generator(seed))
    return augment(pixels, draws, kind=kind)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@given(
    num=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([6, 8, 17, 32]),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=15)
def test_augment_keeps_shape_and_type_and_repeats(
    kind: str, num: int, channels: int, size: int, seed: int
) -> None:
    pixels = random_pixels(num, channels=channels, size=size)
    before = pixels.clone()
    first = augmented(pixels, kind, seed=seed)
    assert first.shape == pixels.shape
    assert first.dtype == torch.uint8
    assert torch.equal(pixels, before)
    assert torch.equal(first, augmented(pixels, kind, seed=seed))


def check_crops(images: torch.Tensor, padded: torch.Tensor, *, reach: int, may_flip: bool) -> None:
    """Check that each image is one crop of its padded source, and that every place is drawn."""
    size = images.shape[-1]
    seen = set()
    for image, source in zip(images, padded, strict=True):
        found = [
            (top, left, flipped)
            for top in range(2 * reach + 1)
            for left in range(2 * reach + 1)
            for flipped in (False, True)
            if torch.equal(
                image.flip(2) if flipped else image,
                source[:, top : top + size, left : left + size],
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flipped for _, _, flipped in seen} == ({False, True} if may_flip else {False})
    for axis in (0, 1):
        assert {place[axis] for place in seen} == set(range(2 * reach + 1))


@pytest.mark.parametrize(("kind", "may_flip"), [("shift", False), ("pad-crop-flip", True)])
@pytest.mark.parametrize("size", [8, 16])
def test_each_output_is_a_crop_of_the_padded_input(kind: str, may_flip: bool, size: int) -> None:
    pixels = random_pixels(60, size=size)
    pad = size // 8
    padded = F.pad(pixels, (pad, pad, pad, pad))
    check_crops(augmented(pixels, kind), padded, reach=pad, may_flip=may_flip)


def test_padding_is_four_pixels_at_the_size_of_cifar() -> None:
    pixels = torch.full((2000, 1, 32, 32), 255, dtype=torch.uint8)
    black = (augmented(pixels, "shift") == 0).all(dim=3).sum(dim=2)
    assert int(black.max()) == 4


@pytest.mark.parametrize(("kind", "may_flip"), [("reflect-shift", False), (REFLECTED, True)])
@pytest.mark.parametrize(("size", "reach"), [(8, 1), (32, 2), (64, 4)])
def test_reflected_shifts_are_crops_of_the_mirrored_input(
    kind: str, may_flip: bool, size: int, reach: int
) -> None:
    pixels = random_pixels(80, size=size)
    padded = F.pad(pixels.float(), (reach,) * 4, mode="reflect").to(torch.uint8)
    check_crops(augmented(pixels, kind), padded, reach=reach, may_flip=may_flip)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_images_of_few_pixels_are_not_read_beyond_their_border(size: int) -> None:
    pixels = random_pixels(30, size=size)
    for image, source in zip(augmented(pixels, REFLECTED), pixels, strict=True):
        assert {*image.unique().tolist()} <= {*source.unique().tolist()}


@pytest.mark.parametrize("kind", FLIPPING)
def test_alternating_flips_turn_over_with_the_epoch(kind: str) -> None:
    coins = torch.randint(0, 2, (40,), generator=generator(1))
    draws = draw(kind, 40, size=8, generator=generator())
    turned = [alternate(draws, coins, epoch=epoch) for epoch in range(3)]
    assert torch.equal(turned[0][:, -1], coins)
    assert torch.equal(turned[1][:, -1], 1 - coins)
    assert torch.equal(turned[2], turned[0])
    assert all(torch.equal(each[:, :-1], draws[:, :-1]) for each in turned)


@pytest.mark.parametrize("kind", FLIPPING)
def test_about_half_are_flipped(kind: str) -> None:
    # Dark on the left, bright on the right: a flip is seen whatever the crop.
    pixels = torch.arange(0, 256, 16).repeat(16, 1).expand(4000, 1, 16, 16).to(torch.uint8) // 2
    pixels = pixels + 100
    changed = augmented(pixels, kind).float()
    left, right = changed[..., 4:8].mean(dim=(1, 2, 3)), changed[..., 8:12].mean(dim=(1, 2, 3))
    flipped = int((left > right).sum())
    assert abs(flipped - 2000) < 4 * math.sqrt(1000)  # 4 standard deviations of 4000 coins


def test_flip_returns_the_image_or_its_mirror() -> None:
    pixels = random_pixels(40)
    flipped = augmented(pixels, "flip")
    kept = (flipped == pixels).all(dim=(1, 2, 3))
    mirrored = (flipped == pixels.flip(3)).all(dim=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert kept.any()
    assert mirrored.any()


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_any_batch_of_an_epoch_is_augmented_as_within_the_epoch(kind: str) -> None:
    pixels = random_pixels(30)
    draws = draw(kind, 30, size=8, generator=generator(3))
    assert draws.dtype == torch.int64
    whole = augment(pixels, draws, kind=kind)
    parts = zip(*(torch.split(t, 7) for t in (pixels, draws)), strict=True)
    assert torch.equal(torch.cat([augment(p, own, kind=kind) for p, own in parts]), whole)


def test_unknown_augmentation_offers_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"Unknown augmentation 'pad-crop'. Did you mean 'pad-cro"
    ):
        augmented(random_pixels(1), "pad-crop")


def loop_box(draws: list[float], width: int, height: int) -> tuple[int, int, int, int]:
    """Compute one box as torchvision's RandomResizedCrop does, one try after another."""
    for area_draw, aspect_draw in zip(draws[:10], draws[10:20], strict=True):
        area = width * height * (0.08 + 0.92 * area_draw)
        low, high = math.log(3 / 4), math.log(4 / 3)
        aspect = math.exp(low + (high - low) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (width - w + 1)), int(draws[21] * (height - h + 1)), w, h
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@given(width=st.integers(1, 300), height=st.integers(1, 300), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=100)
def test_crop_boxes_equal_a_loop_and_lie_inside(width: int, height: int, seed: int) -> None:
    draws = draw_crops(4, generator(seed))
    boxes = crop_boxes(draws, width, height)
    for row, box in zip(draws.tolist(), boxes.tolist(), strict=True):
        assert tuple(box) == loop_box(row, width, height)
        x, y, w, h = box
        assert x >= 0
        assert x + w <= width
        assert y >= 0
        assert y + h <= height
    assert draws.shape == (4, CROP_DRAWS)


def test_resized_crop_equals_cropping_and_scaling_each_image() -> None:
    pixels = random_pixels(20, size=32)
    draws = draw_crops(20, generator())
    changed = augmented(pixels, "resized-crop-flip")
    boxes = crop_boxes(draws, 32, 32).tolist()
    for image, result, drawn, (x, y, w, h) in zip(pixels, changed, draws, boxes, strict=True):
        cut = image[None, :, y : y + h, x : x + w].float()
        scaled = F.interpolate(cut, (32, 32), mode="bilinear")[0]
        expected = scaled.flip(2) if drawn[-1] < 0.5 else scaled
        # The edge pixels differ: the batch reads one pixel beyond the box where there is one.
        inner = (slice(None), slice(4, -4), slice(4, -4))
        assert (result[inner].float() - expected[inner]).abs().max() <= 1.0


def test_normalise_equals_the_formula() -> None:
    pixels = random_pixels(4)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    expected = (pixels.double() / 255 - torch.tensor(mean, dtype=torch.float64)[:, None, None]) / (
        torch.tensor(std, dtype=torch.float64)[:, None, None]
    )
    found = normalise(pixels, mean, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    half = normalise(pixels, mean, std, dtype=torch.bfloat16)
    assert torch.equal(half, found.to(torch.bfloat16))
