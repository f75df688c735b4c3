"""Change whole batches of uint8 images at random, and normalise them for a network.

The crop-then-flip of the CIFAR recipe and the flip-then-crop of soft filter pruning draw from the
same distribution (the crop offsets are symmetric), so there is one kind for both.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.errors import ConfigError, unknown

# torchvision's random resized crop, as in every ImageNet recipe of the paper's code.
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
# What one resized crop draws: an area and an aspect for each try, a place (x, y), and a flip.
CROP_DRAWS = 2 * CROP_TRIES + 3


def augment(pixels: Tensor, generator: torch.Generator, *, kind: str) -> Tensor:
    """Augment a batch, each image by its own draw, in a fixed number of tensor operations.

    ``pixels``: uint8 [B, C, H, W], returned as such. Kinds: ``none``; ``flip`` (left-right, every
    second image on average); ``shift`` (pad with black by an eighth of the size, 4 pixels at 32,
    and crop at random); ``pad-crop-flip`` (both, the CIFAR recipe); ``resized-crop-flip`` (the
    ImageNet recipe). An unknown kind is a ``ConfigError``.
    """
    if kind not in _KINDS:
        raise ConfigError(unknown("augmentation", kind, _KINDS))
    return _KINDS[kind](pixels, generator)


def normalise(
    pixels: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Scale bytes to [0, 1], subtract the mean and divide by the std of each channel.

    ``pixels``: uint8 [B, C, H, W]; the result has the same shape. Computed in float32 as one
    multiplication and one addition, x * 1/(255 std) - mean/std, then cast.

    >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), (0.5,), (0.25,)).tolist()
    [[[[-2.0, 2.0]]]]
    """
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(-1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device)
    return pixels.to(torch.float32).mul_(scale).add_(shift.view(-1, 1, 1)).to(dtype)


def crop_boxes(draws: Tensor, width: int, height: int) -> Tensor:
    """Turn draws of U(0, 1) into the boxes of random resized crops of one image size.

    ``draws``: float64 [B, CROP_DRAWS]; result: int64 [B, 4], columns x, y, width, height. The first
    of ten tries that fits is taken; else the largest centred box with an allowed aspect.
    """
    low, high = CROP_AREA
    area = (low + (high - low) * draws[:, :CROP_TRIES]) * (width * height)  # [B, tries]
    log_low, log_high = (math.log(a) for a in CROP_ASPECT)
    aspect = (log_low + (log_high - log_low) * draws[:, CROP_TRIES : 2 * CROP_TRIES]).exp()
    widths = (area * aspect).sqrt().round().long()
    heights = (area / aspect).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)  # 0 where none fits, replaced below
    whole = _whole_box(width, height)
    some = fits.any(dim=1)
    w = torch.where(some, widths.gather(1, first).squeeze(1), whole[0])
    h = torch.where(some, heights.gather(1, first).squeeze(1), whole[1])
    x = (draws[:, -3] * (width - w + 1)).long()
    y = (draws[:, -2] * (height - h + 1)).long()
    x = torch.where(some, x, (width - w) // 2)
    y = torch.where(some, y, (height - h) // 2)
    return torch.stack([x, y, w, h], dim=1)


def _whole_box(width: int, height: int) -> tuple[int, int]:
    low, high = CROP_ASPECT
    if width < low * height:
        return width, round(width / low)
    if width > high * height:
        return round(height * high), height
    return width, height


def draw_crops(num: int, generator: torch.Generator) -> Tensor:
    """Draw what ``crop_boxes`` needs for a batch: float64 [num, CROP_DRAWS]; the last is a flip."""
    return torch.rand(num, CROP_DRAWS, dtype=torch.float64, generator=generator)


def _unchanged(pixels: Tensor, generator: torch.Generator) -> Tensor:
    return pixels


def _flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    flipped = _flips(len(pixels), generator).to(pixels.device)
    return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)


def _shift(pixels: Tensor, generator: torch.Generator) -> Tensor:
    none = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    return _pad_crop(pixels, generator, flipped=none)


def _pad_crop_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    flipped = _flips(len(pixels), generator).to(pixels.device)
    return _pad_crop(pixels, generator, flipped=flipped)


def _pad_crop(pixels: Tensor, generator: torch.Generator, *, flipped: Tensor) -> Tensor:
    """Pad with black, crop at random, and reverse the columns of the flipped ones, in one gather.

    A gather of bytes by computed offsets costs half of what indexing strided windows does.
    """
    num, channels, height, width = pixels.shape
    pad_y, pad_x = height // 8, width // 8  # 4 for 32 px, as in the paper; 1 for 8 px, 8 for 64 px
    top = _integers(num, 2 * pad_y + 1, generator).to(pixels.device)
    left = _integers(num, 2 * pad_x + 1, generator).to(pixels.device)
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns) + left[:, None]  # [B, W]
    rows = torch.arange(height, device=pixels.device) + top[:, None]  # [B, H]
    offsets = rows[:, :, None] * (width + 2 * pad_x) + columns[:, None, :]  # [B, H, W]
    index = offsets.flatten(1)[:, None].expand(num, channels, height * width)
    padded = F.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
    return padded.flatten(2).gather(2, index).view(num, channels, height, width)


def _resized_crop_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Crop at random and scale back to the same size: never shrinks, so needs no filter."""
    num, _, height, width = pixels.shape
    draws = draw_crops(num, generator)
    boxes = crop_boxes(draws, width, height).to(pixels.device, torch.float32)
    x, y, w, h = (boxes[:, i, None] for i in range(4))
    across = (torch.arange(width, device=pixels.device) + 0.5) / width
    down = (torch.arange(height, device=pixels.device) + 0.5) / height
    flipped = (draws[:, -1:] < 0.5).to(pixels.device)
    columns = 2 * (x + torch.where(flipped, 1 - across, across) * w) / width - 1  # [B, W]
    rows = 2 * (y + down * h) / height - 1  # [B, H]
    grid = torch.stack(
        [columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=3
    )
    # Border: a crop must not take colour from beyond the image.
    scaled = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _flips(num: int, generator: torch.Generator) -> Tensor:
    return torch.rand(num, generator=generator, device=generator.device) < 0.5


def _integers(num: int, end: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, end, (num,), generator=generator, device=generator.device)


_KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": _unchanged,
    "flip": _flip,
    "shift": _shift,
    "pad-crop-flip": _pad_crop_flip,
    "resized-crop-flip": _resized_crop_flip,
}
AUGMENTATIONS = tuple(_KINDS)
