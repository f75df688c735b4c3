"""ResNet for large images in torchvision's layout, its thinner targets, and ResNeXt.

- imagenet-resnet-34 is the parent of the paper's Table 1 (L1-norm pruning) and of soft filter
  pruning; resnet-34-a and resnet-34-b are its targets, which ``l1-filter`` can also produce.
- imagenet-resnet-50 is the network of Table 6 (unstructured) and of soft filter pruning. With
  ``shortcut_bias=True`` it is the reference of Tables 2 and 3 in the official code.
- resnet-50-30, -50 and -70 are ThiNet's targets (Table 2); the number is the percentage kept.
- resnet-50-2x is the target of regression-based reconstruction (Table 3), with the published
  selections.
- imagenet-resnext-50 (32x4d: ``groups`` of ``group_width`` channels per 64 planes) is for
  sparse structure selection of groups; no table of the paper has it.

Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385;
ResNeXt: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017,
arXiv:1611.05431.
"""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from regrow.core.seeds import seeded
from regrow.errors import ConfigError
from regrow.models import register_model
from regrow.models.layers import Classifier, Init, SelectChannels, conv, named, scaled
from regrow.models.pretrained import Weights, load_torchvision_

Widths = Sequence[Sequence[int]]

STEM = 64
PLANES = (64, 128, 256, 512)
EXPANSION = 4  # outputs of a bottleneck, as a multiple of its planes
NUM_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC = (18, 34)  # depths with two 3x3 convolutions per block; the others have bottlenecks

# Protocols, section 4.2: outputs of the first convolution of each basic block.
RESNET_34_A = [64, 44, 44, 128, 89, 89, 128, 256, *[179] * 4, 256, *[512] * 3]
RESNET_34_B = [64, 32, 32, 128, 51, 51, 128, 256, *[153] * 4, 256, *[512] * 3]

# Protocols, section 9.2, of the authors' released Caffe model: channels selected from the block's
# input, outputs of the first and of the second convolution.
RESNET_50_2X = [
    *([35, 64, 55], [101, 51, 39], [97, 50, 37]),
    *([144, 128, 106], [205, 105, 72], [198, 105, 72], [288, 128, 110]),
    *([278, 256, 225], [418, 209, 147], [407, 204, 158]),
    *([423, 212, 155], [412, 211, 148], [595, 256, 213]),
    *([606, 512, 433], [1222, 512, 437], [1147, 512, 440]),
]
# The selected channels of each block: the 16 vectors of the official code.
SELECTED_2X: list[list[int]] = json.loads(
    (files("regrow.models") / "published" / "resnet-50-2x.json").read_text(encoding="utf-8")
)


def _by_stage(
    widths: Sequence[int], num_blocks: Sequence[int] = NUM_BLOCKS[50], *, convs: int = 2
) -> list[list[int]]:
    """Return the widths of each block: its stage's width for the first ``convs`` convolutions."""
    pairs = zip(widths, num_blocks, strict=True)
    return [[width] * convs for width, num in pairs for _ in range(num)]


# The number in ThiNet's names is the percentage of channels kept, with the widths rounded down
# (protocols, section 9.1).
@register_model("imagenet-resnet-34", family="imagenet-resnet", depth=34)
@register_model(
    "resnet-34-a", family="imagenet-resnet", depth=34, widths=[[w] for w in RESNET_34_A]
)
@register_model(
    "resnet-34-b", family="imagenet-resnet", depth=34, widths=[[w] for w in RESNET_34_B]
)
@register_model("imagenet-resnet-50", family="imagenet-resnet", depth=50)
@register_model(
    "resnet-50-30",
    family="imagenet-resnet",
    depth=50,
    widths=_by_stage([19, 38, 76, 153]),
    shortcut_bias=True,
)
@register_model(
    "resnet-50-50",
    family="imagenet-resnet",
    depth=50,
    widths=_by_stage([32, 64, 128, 256]),
    shortcut_bias=True,
)
@register_model(
    "resnet-50-70",
    family="imagenet-resnet",
    depth=50,
    widths=_by_stage([44, 89, 179, 358]),
    shortcut_bias=True,
)
@register_model(
    "resnet-50-2x",
    family="imagenet-resnet",
    revision=2,  # with the published selections; in revision 1 they were random
    depth=50,
    widths=RESNET_50_2X,
    selections=SELECTED_2X,
    shortcut_bias=True,
)
@register_model("imagenet-resnext-50", family="imagenet-resnet", depth=50, groups=32, group_width=4)
def imagenet_resnet(
    *,
    classes: int,
    depth: Literal[18, 34, 50, 101, 152],
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    widths: Widths | None = None,
    selections: Sequence[Sequence[int]] | None = None,
    selection_seed: int | None = None,
    groups: int = 1,
    group_width: int = 64,
    shortcut_bias: bool = False,
    weights: Weights = "random",
) -> nn.Module:
    """Build a ResNet for large images: 7x7 stem, max-pool, four stages; stride in the 3x3.

    ``widths`` are the inner widths of the blocks, one list per block in order: [first convolution]
    in the basic blocks of depths 18 and 34; in bottlenecks [first, second], or [selected, first,
    second], where only ``selected`` of the block's input channels are passed to the first
    convolution and the shortcut reads all. The blocks' outputs keep their full width.
    ``selections`` are the channels that are passed, one list per block. If they are missing, at a
    ``width`` other than 1, or with a ``selection_seed``, they are drawn once from that seed (or 0).

    ``weights="torchvision"`` starts from torchvision's trained weights (see ``models.pretrained``).
    """
    basic, num_blocks = depth in BASIC, NUM_BLOCKS[depth]
    if widths is None:
        inner = [planes * groups * group_width // STEM for planes in PLANES]
        widths = _by_stage(inner, num_blocks, convs=1 if basic else 2)
    _check(widths, groups, num_blocks=sum(num_blocks), basic=basic)
    # Each group of a grouped convolution has the same number of channels, and at least one.
    rest = iter([[groups * scaled(w // groups, width) for w in block] for block in widths])
    published = width == 1.0 and selection_seed is None
    chosen = iter(_fitting(selections, widths) if selections and published else ())
    generator = seeded(selection_seed or 0, "input-selection")

    def block(channels: int, num_out: int, stride: int) -> nn.Module:
        """Build the next block, with its shortcut, inner widths and selection."""
        shortcut = _shortcut(channels, num_out, stride=stride, bias=shortcut_bias)
        inner = next(rest)
        if basic:
            return Basic([channels, *inner, num_out], stride=stride, shortcut=shortcut)
        select = _select(channels, inner[:-2], next(chosen, None), generator=generator)
        ends = [*(inner[:-2] or [channels]), *inner[-2:], num_out]
        return Bottleneck(ends, stride=stride, groups=groups, select=select, shortcut=shortcut)

    stem = scaled(STEM, width)
    outs = [scaled(planes * (1 if basic else EXPANSION), width) for planes in PLANES]
    parts = _stem(in_channels, stem)
    for stage, (channels, num_out) in enumerate(pairwise([stem, *outs])):
        blocks = [block(channels, num_out, 1 if stage == 0 else 2)]
        blocks += [block(num_out, num_out, 1) for _ in range(1, num_blocks[stage])]
        parts.append((f"stage{stage + 1}", nn.Sequential(*blocks)))
    model = Classifier(named(parts), nn.Linear(outs[-1], classes), init=Init())
    if weights == "torchvision":
        name = f"resnext{depth}_{groups}x{group_width}d" if groups > 1 else f"resnet{depth}"
        load_torchvision_(model, name, rename=torchvision_name)
    return model


def _stem(in_channels: int, channels: int) -> list[tuple[str, nn.Module]]:
    return [
        ("conv", conv(in_channels, channels, kernel=7, stride=2)),
        ("norm", nn.BatchNorm2d(channels)),
        ("relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, widths: Sequence[int], *, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        num_in, inner, num_out = widths
        self.conv1 = conv(num_in, inner, kernel=3, stride=stride)
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(inner, num_out, kernel=3)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""
        out = self.relu1(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        result: Tensor = self.relu2(out + self.shortcut(x))
        return result

    def branch_end(self) -> nn.Module:
        """Return the last layer of the branch."""
        return self.norm2

    def without_branch(self) -> nn.Module:
        """Return relu(shortcut(x))."""
        return named([("shortcut", self.shortcut), ("relu2", self.relu2)])


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions of (some channels of) the input, and a shortcut."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        stride: int,
        groups: int,
        select: nn.Module,
        shortcut: nn.Module,
    ) -> None:
        super().__init__()
        num_in, first, second, num_out = widths
        self.select = select
        self.conv1 = conv(num_in, first, kernel=1)
        self.norm1 = nn.BatchNorm2d(first)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(
            first, second, 3, stride=stride, padding=1, groups=groups, bias=False
        )
        self.norm2 = nn.BatchNorm2d(second)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(second, num_out, kernel=1)
        self.norm3 = nn.BatchNorm2d(num_out)
        self.shortcut = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(branch(select(x)) + shortcut(x)); the shortcut reads the whole input."""
        out = self.relu1(self.norm1(self.conv1(self.select(x))))
        out = self.relu2(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        result: Tensor = self.relu3(out + self.shortcut(x))
        return result

    def branch_end(self) -> nn.Module:
        """Return the last layer of the branch."""
        return self.norm3

    def without_branch(self) -> nn.Module:
        """Return relu(shortcut(x))."""
        return named([("shortcut", self.shortcut), ("relu3", self.relu3)])

    def paths_end(self) -> tuple[nn.Module, int] | None:
        """Return the layer that sums the second convolution's groups, and their number, or None."""
        return (self.conv3, self.conv2.groups) if self.conv2.groups > 1 else None


def torchvision_name(name: str) -> str:
    """Translate the name of a parameter or buffer to torchvision's.

    >>> torchvision_name("features.stage2.0.shortcut.norm.weight")
    'layer2.0.downsample.1.weight'
    """
    for pattern, replacement in _TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return name


_TORCHVISION = (
    (r"^head\.", "fc."),
    (r"^features\.conv\.", "conv1."),
    (r"^features\.norm\.", "bn1."),
    (r"^features\.stage", "layer"),
    (r"shortcut\.conv", "downsample.0"),
    (r"shortcut\.norm", "downsample.1"),
    (r"norm(\d)", r"bn\1"),
)


def _shortcut(num_in: int, num_out: int, *, stride: int, bias: bool) -> nn.Module:
    if stride == 1 and num_in == num_out:
        return nn.Identity()
    projection = conv(num_in, num_out, kernel=1, stride=stride, bias=bias)
    return named([("conv", projection), ("norm", nn.BatchNorm2d(num_out))])


def _select(
    num_in: int, num: Sequence[int], selection: Sequence[int] | None, *, generator: torch.Generator
) -> nn.Module:
    """Return a layer that passes on the given channels, a random choice of ``num``, or all."""
    if not num:
        return nn.Identity()
    if num[0] > num_in:
        raise ConfigError(
            f"The 'widths' of this ResNet select {num[0]} of a block's {num_in} input channels. "
            f"Select at most {num_in}."
        )
    if selection is None:
        order = torch.randperm(num_in, generator=generator, device="cpu")
        return SelectChannels(order[: num[0]].sort().values)
    if max(selection) >= num_in:
        raise ConfigError(
            f"The 'selections' of this ResNet select channel {max(selection)} of a block with "
            f"{num_in} input channels. Select from 0 to {num_in - 1}."
        )
    return SelectChannels(torch.tensor(selection, device="cpu"))


def _fitting(selections: Sequence[Sequence[int]], widths: Widths) -> Sequence[Sequence[int]]:
    """Return the selections; raise if they do not fit the widths or are not in rising order."""
    num_selected = [block[0] if len(block) == 3 else 0 for block in widths]
    rising = all(list(s) == sorted(set(s)) and (not s or s[0] >= 0) for s in selections)
    if [len(selected) for selected in selections] != num_selected or not rising:
        raise ConfigError(
            "The 'selections' of this ResNet must be a rising list of channels for each block, as "
            f"many as its 'widths' say: {num_selected}. Got lists of {[len(s) for s in selections]}"
            f"{'' if rising else ', of which one is not rising'}. Correct them, or give a "
            "'selection_seed' to draw them."
        )
    return selections


def _check(widths: Widths, groups: int, *, num_blocks: int, basic: bool) -> None:
    if groups < 1 or (basic and groups > 1):
        raise ConfigError(
            f"The 'groups' of a ResNet must be an int of at least 1, and 1 in basic blocks (depths "
            f"{' and '.join(map(str, BASIC))}). Got {groups}."
        )
    lengths = (1,) if basic else (2, 3)
    wrong = [list(w) for w in widths if len(w) not in lengths or any(n < groups for n in w)]
    if len(widths) != num_blocks or wrong:
        raise ConfigError(
            f"The 'widths' of this ResNet must be a list for each of its {num_blocks} blocks, of "
            f"{' or '.join(map(str, lengths))} numbers of at least {groups}. "
            f"Got {len(widths)} lists" + (f", with {wrong[0]} among them." if wrong else ".")
        )
