"""Pre-activation ResNet-50 of sparse structure selection, and its targets with fewer branches."""

from collections.abc import Sequence

from torch import Tensor, nn

from regrow.errors import ConfigError
from regrow.models import register_model
from regrow.models.layers import Classifier, Init, conv, named, scaled

STEM = 64
PLANES = (64, 128, 256, 512)
EXPANSION = 4


# Protocols, section 9.3.
@register_model("imagenet-preresnet-50", family="imagenet-preresnet")
@register_model(
    "preresnet-41",
    family="imagenet-preresnet",
    branches=[0, 4, 6, 3],
    first_branch=[False, True, True, True],
)
@register_model(
    "preresnet-32",
    family="imagenet-preresnet",
    branches=[1, 4, 4, 1],
    first_branch=[False, True, True, True],
)
@register_model(
    "preresnet-26",
    family="imagenet-preresnet",
    branches=[0, 2, 5, 1],
    first_branch=[False, False, False, True],
)
def imagenet_preresnet(
    *,
    classes: int,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    branches: Sequence[int] = (3, 4, 6, 3),
    first_branch: Sequence[bool] = (True, True, True, True),
) -> nn.Module:
    """Build the pre-activation bottleneck ResNet of sparse structure selection, or a target of it.

    ``branches``: the number of residual branches in each of the four stages, including that of the
    first unit. ``first_branch``: whether the first unit of each stage has its branch; without it,
    the unit is its norm, ReLU and projection. A network has 2 + 3 * branches layers.

    imagenet-preresnet-50 is the parent of the paper's Table 5; preresnet-41, preresnet-32 and
    preresnet-26 are its targets ResNet-41, ResNet-32 and ResNet-26. It is initialised as in MXNet:
    every weight is N(0, 2 / inputs).

    Reference: Huang and Wang, Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV
    2018, arXiv:1707.01213; He et al., Identity Mappings in Deep Residual Networks, ECCV 2016,
    arXiv:1603.05027.
    """
    _check(branches, first_branch)
    channels = scaled(STEM, width)
    parts: list[tuple[str, nn.Module]] = [
        ("conv", conv(in_channels, channels, kernel=7, stride=2)),
        ("stem_norm", nn.BatchNorm2d(channels)),
        ("stem_relu", nn.ReLU()),
        ("pool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]
    stages = zip(PLANES, branches, first_branch, strict=True)
    for stage, (planes, num_branches, has_first) in enumerate(stages, start=1):
        ends = [channels, scaled(planes, width), scaled(planes * EXPANSION, width)]
        stride = 1 if stage == 1 else 2
        blocks: list[nn.Module] = [First(ends, stride=stride, has_branch=has_first)]
        ends[0] = channels = ends[-1]
        blocks += [PreactivationUnit(ends) for _ in range(num_branches - has_first)]
        parts.append((f"stage{stage}", nn.Sequential(*blocks)))
    parts += [("norm", nn.BatchNorm2d(channels)), ("relu", nn.ReLU())]
    init = Init(conv_fan="in", linear="kaiming")
    return Classifier(named(parts), nn.Linear(channels, classes), init=init)


class PreactivationUnit(nn.Module):
    """Norm, ReLU and convolution three times (1x1, 3x3, 1x1), added to the raw input."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU()
        self.branch = _branch(widths, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + branch(relu(norm(x)))."""
        result: Tensor = x + self.branch(self.relu1(self.norm1(x)))
        return result

    def branch_end(self) -> nn.Module:
        """Return the last layer of the branch."""
        return self.branch.get_submodule("conv3")

    def without_branch(self) -> nn.Module:
        """Return the identity."""
        return nn.Identity()


class First(nn.Module):
    """The first unit of a stage: norm and ReLU, then a projection plus a branch, if it has one."""

    def __init__(self, widths: Sequence[int], *, stride: int, has_branch: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.relu1 = nn.ReLU()
        self.branch = _branch(widths, stride=stride) if has_branch else None
        self.shortcut = conv(widths[0], widths[-1], kernel=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return shortcut(y) + branch(y), or shortcut(y) alone, for y = relu(norm(x))."""
        x = self.relu1(self.norm1(x))
        projected: Tensor = self.shortcut(x)
        return projected if self.branch is None else projected + self.branch(x)

    def branch_end(self) -> nn.Module | None:
        """Return the last layer of the branch, or None without a branch."""
        return None if self.branch is None else self.branch.get_submodule("conv3")

    def without_branch(self) -> nn.Module:
        """Return norm, ReLU and projection."""
        parts = ("norm1", "relu1", "shortcut")
        return named([(part, self.get_submodule(part)) for part in parts])


def _branch(widths: Sequence[int], *, stride: int) -> nn.Sequential:
    num_in, inner, num_out = widths
    return named(
        [
            ("conv1", conv(num_in, inner, kernel=1)),
            ("norm2", nn.BatchNorm2d(inner)),
            ("relu2", nn.ReLU()),
            ("conv2", conv(inner, inner, kernel=3, stride=stride)),
            ("norm3", nn.BatchNorm2d(inner)),
            ("relu3", nn.ReLU()),
            ("conv3", conv(inner, num_out, kernel=1)),
        ]
    )


def _check(branches: Sequence[int], first_branch: Sequence[bool]) -> None:
    num = len(PLANES)
    if len(branches) != num or len(first_branch) != num:
        raise ConfigError(
            f"'branches' and 'first_branch' must have {num} stages each. "
            f"Got {list(branches)} and {list(first_branch)}."
        )
    for stage, (remaining, has_first) in enumerate(
        zip(branches, first_branch, strict=True), start=1
    ):
        if remaining < 0:
            raise ConfigError(
                f"The 'branches' of stage {stage} must be an int of at least 0. Got {remaining}."
            )
        if remaining < has_first:
            raise ConfigError(
                f"Stage {stage} keeps its first unit's branch ('first_branch'), so its 'branches', "
                f"which include that one, must be at least 1. Got {remaining}."
            )
