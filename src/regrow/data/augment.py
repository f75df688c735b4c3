"""Augment whole batches of uint8 images, and normalise them for a network.

The crop-then-flip of the CIFAR recipe and the flip-then-crop of soft filter pruning draw from the
same distribution (the crop offsets are symmetric), so there is one kind for both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regrow.data.spec import AUGMENTATIONS
from regrow.errors import ConfigError, unknown

# torchvision's random resized crop, as in every ImageNet recipe of the paper's code.
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
# Random numbers of one resized crop: an area and an aspect for each try, a place (x, y), a flip.
CROP_DRAWS = 2 * CROP_TRIES + 3


def draw(kind: str, num: int, *, size: int, generator: torch.Generator) -> Tensor:
    """Draw the random numbers ``augment`` needs for ``num`` images of one size: int64 [num, k].

    ``k`` depends on the kind. Everything random is drawn here, on the CPU and for a whole epoch at
    once, so that a step draws nothing and every device sees the same images. An unknown kind raises
    a ``ConfigError``.
    """
    return _kind(kind).draw(num, size, generator)


def augment(pixels: Tensor, draws: Tensor, *, kind: str) -> Tensor:
    """Augment a batch, each image by its own draws, in a fixed number of tensor operations.

    ``pixels``: uint8 [B, C, H, W], like the result; ``draws``: int64 [B, k], rows from ``draw``, on
    the same device. Kinds: ``none``; ``flip`` (left-right, every second image on average);
    ``shift`` (pad with black by an eighth of the size, 4 pixels at 32, and crop at random);
    ``pad-crop-flip`` (both, the CIFAR recipe); ``reflect-shift`` (move by up to a sixteenth of the
    size, 2 pixels at 32, mirroring the image at its border); ``reflect-shift-flip`` (that, and
    flip); ``resized-crop-flip`` (the ImageNet recipe). An unknown kind raises a ``ConfigError``.
    """
    return _kind(kind).apply(pixels, draws)


def alternate(draws: Tensor, coins: Tensor, *, epoch: int) -> Tensor:
    """Replace the flips in the draws of a kind, so that each image flips every second epoch.

    ``coins``: 0 or 1 for the image of each row of ``draws``, drawn once per training; images with
    a 1 are flipped in even epochs, counted from 0. Reference: Jordan, 94% on CIFAR-10 in 3.29
    Seconds on a Single GPU, 2024, arXiv:2404.00498.
    """
    return torch.cat([draws[:, :-1], (coins[:, None] + epoch) % 2], dim=1)


def draw_holes(num: int, *, size: int, generator: torch.Generator) -> Tensor:
    """Draw the centre (row, column) of a square for each image: int64 [num, 2]."""
    return torch.randint(0, size, (num, 2), generator=generator)


def cut_out(x: Tensor, holes: Tensor, *, side: int) -> Tensor:
    """Set a square of ``side`` pixels around each centre to zero, the mean colour (cutout).

    ``x``: normalised images [B, C, H, W]. Squares are clipped at the border. Reference: DeVries and
    Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017,
    arXiv:1708.04552.
    """
    first = holes - side // 2  # [B, 2]

    def inside(length: int, axis: int) -> Tensor:
        places = torch.arange(length, device=x.device) - first[:, axis, None]  # [B, length]
        return (places >= 0) & (places < side)

    hole = inside(x.shape[2], 0)[:, :, None] & inside(x.shape[3], 1)[:, None, :]  # [B, H, W]
    return x.masked_fill(hole[:, None], 0.0)


def draw_shares(num: int, *, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw mixup's shares from Beta(alpha, alpha): float64 [num]."""
    from scipy.special import betaincinv  # takes a while to import

    uniform = torch.rand(num, dtype=torch.float64, generator=generator)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy()))


def mix(x: Tensor, share: float | Tensor) -> Tensor:
    """Mix each image with a partner, the image at its position in the reversed batch (mixup).

    share * x + (1 - share) * partner; the training step mixes the losses against both targets with
    the same share. The order of images differs in each epoch, so partners are random. Reference:
    Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018, arXiv:1710.09412.
    """
    return share * x + (1 - share) * x.flip(0)


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
    return scale_bytes(pixels, *scaling(mean, std, pixels.device)).to(dtype)


def scaling(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset that normalise bytes: float32 [C, 1, 1] each."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def scale_bytes(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise bytes by the factor and offset of ``scaling``; all three on one device."""
    return pixels.to(torch.float32).mul_(scale).add_(shift)


def crop_boxes(draws: Tensor, width: int, height: int) -> Tensor:
    """Convert draws from U(0, 1) into the boxes of random resized crops of one image size.

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
    """Draw the numbers ``crop_boxes`` needs: float64 [num, CROP_DRAWS]; the last is the flip."""
    return torch.rand(num, CROP_DRAWS, dtype=torch.float64, generator=generator)


def _flip(pixels: Tensor, draws: Tensor) -> Tensor:
    return torch.where(draws[:, :1, None, None] == 1, pixels.flip(3), pixels)


def _pad_crop(pixels: Tensor, draws: Tensor) -> Tensor:
    """Pad with black and crop; images whose third draw is 1 are flipped as well."""
    height, width = pixels.shape[2:]
    pad_y, pad_x = height // 8, width // 8  # 4 for 32 px, as in the paper; 1 for 8 px, 8 for 64 px
    rows, columns = _places(draws, height, width)
    return _gathered(F.pad(pixels, (pad_x, pad_x, pad_y, pad_y)), rows, columns)


def _reflect_shift(pixels: Tensor, draws: Tensor) -> Tensor:
    """Shift by a few pixels, filling the gap with the image mirrored at its border."""
    height, width = pixels.shape[2:]
    rows, columns = _places(draws, height, width)
    rows, columns = rows - _reach(height), columns - _reach(width)
    return _gathered(pixels, _reflected(rows, height), _reflected(columns, width))


def _reach(size: int) -> int:
    """Return the largest shift in pixels: 2 at size 32, as in airbench."""
    return min(max(1, size // 16), size - 1)


def _reflected(places: Tensor, length: int) -> Tensor:
    """Mirror positions outside 0 to ``length`` - 1 at the first and last position."""
    last = length - 1
    return last - (last - places.abs()).abs()


def _places(draws: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the rows [B, H] and columns [B, W] to read; columns are reversed for a flip."""
    columns = torch.arange(width, device=draws.device)
    if draws.shape[1] == 3:
        columns = torch.where(draws[:, 2:] == 1, width - 1 - columns, columns)
    rows = torch.arange(height, device=draws.device)
    return rows + draws[:, :1], columns + draws[:, 1:2]


def _gathered(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows and columns of each image, in one gather by computed offsets.

    That takes half the time of indexing strided windows.
    """
    num, channels, _, stride = pixels.shape
    offsets = rows[:, :, None] * stride + columns[:, None, :]  # [B, H, W]
    index = offsets.flatten(1)[:, None].expand(num, channels, -1)
    height, width = offsets.shape[1:]
    return pixels.flatten(2).gather(2, index).view(num, channels, height, width)


def _resized_crop_flip(pixels: Tensor, draws: Tensor) -> Tensor:
    """Crop, scale back to the same size, and flip; it never downscales, so needs no filter."""
    height, width = pixels.shape[2:]
    x, y, w, h = (draws[:, i, None].float() for i in range(4))
    across = (torch.arange(width, device=pixels.device) + 0.5) / width
    down = (torch.arange(height, device=pixels.device) + 0.5) / height
    across = torch.where(draws[:, 4:] == 1, 1 - across, across)
    columns = 2 * (x + across * w) / width - 1  # [B, W]
    rows = 2 * (y + down * h) / height - 1  # [B, H]
    grid = torch.stack(
        [columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=3
    )
    # "border", so that a crop does not blend in zeros from outside the image.
    scaled = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _draw_nothing(num: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.empty(num, 0, dtype=torch.int64)


def _draw_flip(num: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (num, 1), generator=generator)


def _draw_shift(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw the first row and first column of each crop."""
    return torch.randint(0, 2 * (size // 8) + 1, (num, 2), generator=generator)


def _draw_pad_crop_flip(num: int, size: int, generator: torch.Generator) -> Tensor:
    places = _draw_shift(num, size, generator)
    return torch.cat([places, _draw_flip(num, size, generator)], dim=1)


def _draw_reflect_shift(num: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2 * _reach(size) + 1, (num, 2), generator=generator)


def _draw_reflect_shift_flip(num: int, size: int, generator: torch.Generator) -> Tensor:
    places = _draw_reflect_shift(num, size, generator)
    return torch.cat([places, _draw_flip(num, size, generator)], dim=1)


def _draw_resized_crop_flip(num: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw a box (x, y, width, height) and a flip for each."""
    draws = draw_crops(num, generator)
    return torch.cat([crop_boxes(draws, size, size), (draws[:, -1:] < 0.5).long()], dim=1)


@dataclass(frozen=True)
class _Kind:
    draw: Callable[[int, int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


_KINDS: dict[str, _Kind] = dict(
    zip(
        AUGMENTATIONS,
        (
            _Kind(_draw_nothing, lambda pixels, draws: pixels),
            _Kind(_draw_flip, _flip),
            _Kind(_draw_shift, _pad_crop),
            _Kind(_draw_pad_crop_flip, _pad_crop),
            _Kind(_draw_resized_crop_flip, _resized_crop_flip),
            _Kind(_draw_reflect_shift, _reflect_shift),
            _Kind(_draw_reflect_shift_flip, _reflect_shift),
        ),
        strict=True,
    )
)


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise ConfigError(unknown("augmentation", name, _KINDS))
    return _KINDS[name]
