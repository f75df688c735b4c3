"""VGG for large images: plain 3x3 convolutions and fully connected layers, and thinner targets."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from regrow.models import register_model
from regrow.models.layers import Classifier, Init, named, scaled
from regrow.models.pretrained import Weights, load_torchvision_
from regrow.models.vgg import Plan, check_plan, convolutions

PLAN_11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
PLAN_16 = [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"]

# Protocols, section 9.1: the first ten convolutions halved; without the last pool for GAP.
PLAN_CONV = [32, 32, "M", 64, 64, "M", *[128] * 3, "M", *[256] * 3, "M", *[512] * 3, "M"]
PLAN_GAP = PLAN_CONV[:-1]
PLAN_TINY = [16, 16, "M", 32, 32, "M", *[64] * 3, "M", *[128] * 3, "M", 128, 128, 256]

# Protocols, section 9.2, of the authors' released Caffe model.
PLAN_5X = [24, 22, "M", 41, 51, "M", 108, 89, 111, "M", 184, 276, 228, "M", *[512] * 3, "M"]

HIDDEN = 4096  # units of both hidden layers of the head
MAP = 7  # side of the map that the head reads at 224 pixels; less for smaller images, at most 7


@register_model(
    "imagenet-vgg-11-slimming",
    family="imagenet-vgg",
    plan=PLAN_11,
    conv_norm=True,
    head="normed",
    norm_scale=0.5,
)
@register_model("imagenet-vgg-16", family="imagenet-vgg", plan=PLAN_16)
@register_model("imagenet-vgg-16-bn", family="imagenet-vgg", plan=PLAN_16, conv_norm=True)
@register_model("vgg-conv", family="imagenet-vgg", plan=PLAN_CONV)
@register_model("vgg-gap", family="imagenet-vgg", plan=PLAN_GAP, head="linear")
@register_model("vgg-tiny", family="imagenet-vgg", plan=PLAN_TINY, head="linear")
@register_model("vgg-16-5x", family="imagenet-vgg", plan=PLAN_5X)
def imagenet_vgg(
    *,
    classes: int,
    plan: Plan,
    in_channels: int = 3,
    input_size: int = 224,
    width: float = 1.0,
    conv_norm: bool = False,
    head: Literal["dropout", "normed", "linear"] = "dropout",
    norm_scale: float = 1.0,
    weights: Weights = "random",
) -> nn.Module:
    """Build a VGG for large images from a plan of widths and pools.

    ``head`` is "dropout" (4096 - 4096 - classes with ReLU and dropout 0.5, on a 7x7 map), "normed"
    (with BatchNorm1d before each ReLU, and no dropout) or "linear" (one layer on the mean of the
    map). Convolutions have biases, and with ``conv_norm`` a BatchNorm2d.

    - imagenet-vgg-11-slimming is that of Table 4: norms everywhere, with scales that start at 0.5.
    - imagenet-vgg-16 is the reference of Tables 2 and 3, whose targets are ThiNet's vgg-conv,
      vgg-gap and vgg-tiny, and regression-based reconstruction's vgg-16-5x. They train with a
      learning rate of 0.01.
    - imagenet-vgg-16-bn is that of Table 6 (unstructured pruning).

    A pool is left out if the map is already one pixel, and the first hidden layer reads at most 7x7
    pixels, so smaller images have a smaller head. ``weights="torchvision"`` starts from
    torchvision's trained weights (see ``models.pretrained``), for images of 224 pixels or more.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image
    Recognition, ICLR 2015, arXiv:1409.1556; targets of Luo et al., ThiNet, ICCV 2017,
    arXiv:1707.06342, and He et al., Channel Pruning for Accelerating Very Deep Neural Networks,
    ICCV 2017, arXiv:1707.06168.
    """
    check_plan(plan)
    widths = [step if step == "M" else scaled(step, width) for step in plan]
    convs, size = convolutions(
        widths, in_channels=in_channels, size=input_size, bias=True, norm=conv_norm
    )
    map_size = 1 if head == "linear" else min(MAP, size)
    num_in = [w for w in widths if w != "M"][-1] * map_size**2
    model = Classifier(
        convs,
        _head(head, num_in=num_in, hidden=scaled(HIDDEN, width), classes=classes),
        init=Init(norm_scale=norm_scale, norm1d_scale=norm_scale, linear="normal"),
        map_size=map_size,
    )
    if weights == "torchvision":
        num_convs = len(widths) - widths.count("M")
        full = f"vgg{num_convs + 3}" + ("_bn" if conv_norm else "")
        load_torchvision_(model, full, rename=numbers(model))
    return model


def numbers(model: nn.Module) -> Callable[[str], str]:
    """Return a function from names of parameters to torchvision's, which numbers the layers."""
    places = {
        f"{part}.{name}": f"{torchvision_name}.{number}"
        for part, torchvision_name in (("features", "features"), ("head", "classifier"))
        for number, (name, _) in enumerate(model.get_submodule(part).named_children())
    }

    def rename(name: str) -> str:
        layer, _, tensor = name.rpartition(".")
        return f"{places.get(layer, layer)}.{tensor}"

    return rename


def _head(kind: str, *, num_in: int, hidden: int, classes: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(num_in, classes)
    parts: list[tuple[str, nn.Module]] = []
    for number, inputs in enumerate((num_in, hidden), start=1):
        parts.append((f"linear{number}", nn.Linear(inputs, hidden)))
        if kind == "normed":
            parts.append((f"norm{number}", nn.BatchNorm1d(hidden)))
        parts.append((f"relu{number}", nn.ReLU()))
        if kind == "dropout":
            parts.append((f"dropout{number}", nn.Dropout(0.5)))
    return named([*parts, ("linear3", nn.Linear(hidden, classes))])
