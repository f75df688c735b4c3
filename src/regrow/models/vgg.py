"""VGG for small images: 3x3 convolutions with batch norm, pooled to one pixel."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from regrow.errors import ConfigError
from regrow.models import register_model
from regrow.models.layers import Classifier, Init, conv, named, scaled

Plan = Sequence[int | Literal["M"]]

# Protocols, section 2.1. "M" is a 2x2 max-pool; four of them, so 32x32 images end in 2x2 maps.
PLAN_11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]
PLAN_13 = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]
PLAN_16 = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3]
PLAN_19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4]

HIDDEN = 512  # of the two-layer head


@register_model("vgg-11", family="vgg", plan=PLAN_11)
@register_model("vgg-13", family="vgg", plan=PLAN_13)
@register_model("vgg-16", family="vgg", plan=PLAN_16)
@register_model("vgg-19", family="vgg", plan=PLAN_19)
@register_model("vgg", family="vgg")
def vgg(
    *,
    classes: int,
    plan: Plan,
    in_channels: int = 3,
    input_size: int = 32,
    width: float = 1.0,
    head: Literal["linear", "two-layer"] = "linear",
    conv_bias: bool = False,
    init_fan: Literal["out", "in"] = "out",
    norm_scale: float = 0.5,
) -> nn.Module:
    """Build a VGG from a plan of widths and pools, such as ``[16, 16, "M", 32, 32, "M"]``.

    The default is Network Slimming's variant. The other two of protocols, section 2.1:

    - L1-norm pruning and its lottery-ticket runs: ``head="two-layer"``, which is
      Linear(last, 512) - BatchNorm1d - ReLU - Linear(512, classes).
    - unstructured pruning and its lottery-ticket runs: ``conv_bias=True, init_fan="in",
      norm_scale=1.0``.

    A pool is left out if the map is already one pixel, so any input of 4 pixels or more works.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015, arXiv:1409.1556; the variant for CIFAR of Liu et al., Rethinking the
    Value of Network Pruning, ICLR 2019, arXiv:1810.05270.
    """
    check_plan(plan)
    widths = [step if step == "M" else scaled(step, width) for step in plan]
    features, _ = convolutions(
        widths, in_channels=in_channels, size=input_size, bias=conv_bias, norm=True
    )
    return Classifier(
        features,
        _head(head, num_in=[w for w in widths if w != "M"][-1], classes=classes, width=width),
        init=Init(conv_fan=init_fan, norm_scale=norm_scale, linear="normal"),
    )


def check_plan(plan: Plan) -> None:
    """Raise a ``ConfigError`` for a plan without widths, or with a width below 1."""
    wrong = [step for step in plan if step != "M" and step < 1]
    if wrong or all(step == "M" for step in plan):
        raise ConfigError(
            "The 'plan' of a VGG must be a list of widths of at least 1 and of 'M' for a pool, "
            f'with one width or more, such as [16, "M", 32]. Got {list(plan)!r}.'
        )


def convolutions(
    plan: Plan, *, in_channels: int, size: int, bias: bool, norm: bool
) -> tuple[nn.Sequential, int]:
    """Return the convolutional part of a VGG, and the map's size after it.

    A pool is left out if the map is already one pixel.
    """
    parts: list[tuple[str, nn.Module]] = []
    channels, num_convs, num_pools = in_channels, 0, 0
    for step in plan:
        if step == "M":
            if size < 2:
                continue
            num_pools += 1
            size //= 2
            parts.append((f"pool{num_pools}", nn.MaxPool2d(2)))
            continue
        num_convs += 1
        parts.append((f"conv{num_convs}", conv(channels, step, kernel=3, bias=bias)))
        if norm:
            parts.append((f"norm{num_convs}", nn.BatchNorm2d(step)))
        parts.append((f"relu{num_convs}", nn.ReLU()))
        channels = step
    return named(parts), size


def _head(kind: str, *, num_in: int, classes: int, width: float) -> nn.Module:
    if kind == "linear":
        return nn.Linear(num_in, classes)
    hidden = scaled(HIDDEN, width)
    return named(
        [
            ("linear1", nn.Linear(num_in, hidden)),
            ("norm", nn.BatchNorm1d(hidden)),
            ("relu", nn.ReLU()),
            ("linear2", nn.Linear(hidden, classes)),
        ]
    )
