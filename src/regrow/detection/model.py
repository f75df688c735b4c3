"""Faster R-CNN on top of one of regrow's classifiers, cut or not.

The classifier's stem and all stages but the last are the backbone (stride 16); the last stage is
the head that is applied to each region (RoIAlign 7x7, mean-pooled). Everything else (anchors,
proposals, matching, sampling, losses) is torchvision's. Norms are frozen: statistics, scale and
shift.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from regrow.core.global_rng import drawing
from regrow.core.seeds import derive
from regrow.core.validation import changed_fields, is_int, is_number, refuse_unknown, tuples
from regrow.cost import Cost, measure
from regrow.data.spec import MOST_PIXELS
from regrow.errors import ConfigError, unknown
from regrow.surgery.tape import evaluating

STRIDE = 16
LAST_STAGE = "stage4"
BACKBONE, HEAD = "backbone.", f"roi_heads.box_head.{LAST_STAGE}."  # names of the classifier's parts

_INTS = (
    *("short_side", "long_side", "rpn_samples", "proposals_before_nms", "proposals"),
    *("test_proposals_before_nms", "test_proposals", "roi_samples", "roi_size", "detections"),
)
_SHARES = (
    *("rpn_foreground", "rpn_background", "rpn_nms"),
    *("roi_foreground", "roi_foreground_share", "test_nms"),
)
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_INTS, lambda v: is_int(v, least=1), "an int of at least 1"),
    (_SHARES, lambda v: is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
    (("score_threshold",), lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    (
        ("anchor_sizes", "anchor_ratios"),
        lambda v: isinstance(v, tuple) and v != () and all(is_number(n) and n > 0 for n in v),
        "a list of numbers above 0",
    ),
    (
        ("frozen_stages",),
        lambda v: v is None or (is_int(v, least=0) and v <= 3),
        "an int from 0 to 3, or nothing",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """Settings of a detector; the defaults are the VOC settings of the framework the paper names.

    ``short_side``, ``long_side``: images are scaled to this short side, in pixels, unless the long
    side would exceed its cap.
    ``anchor_sizes``, ``anchor_ratios``: square root of the area in pixels; height / width.
    ``rpn_samples``: anchors sampled per image for the RPN's loss, foreground above an IoU of
    ``rpn_foreground``, background below ``rpn_background``.
    ``proposals_before_nms``, ``rpn_nms``, ``proposals``: so many of the best proposals enter
    non-maximum suppression, at this IoU, and at most so many are kept (with ``test_``: in testing).
    ``roi_samples``: regions sampled per image for the head's loss, at most a share of
    ``roi_foreground_share`` with an IoU of at least ``roi_foreground``; ``roi_size``: RoIAlign's
    output size.
    ``test_nms``: IoU of non-maximum suppression within a class; of the rest, the best
    ``detections`` per image with scores above ``score_threshold`` are returned.
    ``frozen_stages``: the stem and this many stages are frozen; None also trains the stem.
    """

    short_side: int = 600
    long_side: int = 1000
    anchor_sizes: tuple[int, ...] = (128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_samples: int = 256
    rpn_foreground: float = 0.7
    rpn_background: float = 0.3
    rpn_nms: float = 0.7
    proposals_before_nms: int = 12_000
    proposals: int = 2_000
    test_proposals_before_nms: int = 6_000
    test_proposals: int = 300
    roi_samples: int = 128
    roi_foreground: float = 0.5
    roi_foreground_share: float = 0.25
    roi_size: int = 7
    test_nms: float = 0.3
    detections: int = 100
    score_threshold: float = 0.0
    frozen_stages: int | None = 1

    def __post_init__(self) -> None:
        for names, good, expected in _RULES:
            for name in names:
                if not good(getattr(self, name)):
                    raise self._error(name, expected)
        if self.short_side < 2 * STRIDE:
            raise self._error("short_side", f"an int of at least {2 * STRIDE}")
        if self.long_side < self.short_side:
            raise self._error("long_side", f"at least the short side, {self.short_side}")
        if self.long_side > MOST_PIXELS:
            raise self._error("long_side", f"at most {MOST_PIXELS} pixels")
        if self.rpn_background > self.rpn_foreground:
            raise self._error("rpn_background", f"at most rpn_foreground, {self.rpn_foreground}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return changed_fields(self)

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> "Detector":
        """Read a detector's name, or a mapping of fields, optionally on top of a ``name``.

        >>> Detector.from_json({"name": "small", "short_side": 128}).anchor_sizes
        (16, 32, 64)
        """
        settings = {"name": value} if isinstance(value, str) else value
        if not isinstance(settings, Mapping):
            raise ConfigError(f"A detector must be a name or a mapping of fields. Got {value!r}.")
        known = [*(f.name for f in fields(cls)), "name"]
        refuse_unknown(settings, known, kind="field", where="Detector")
        changes = {"name": "voc", **tuples(settings)}
        name = str(changes.pop("name"))
        if name not in DETECTORS:
            raise ConfigError(unknown("detector", name, DETECTORS))
        return replace(DETECTORS[name], **changes)

    def _error(self, name: str, expected: str) -> ConfigError:
        got = getattr(self, name)
        return ConfigError(f"The {name!r} of a detector must be {expected}. Got {got!r}.")


DETECTORS: Mapping[str, Detector] = {
    "voc": Detector(),
    # For a CPU: objects of 10 to 100 pixels, a twentieth of the work per image.
    "small": Detector(
        short_side=160,
        long_side=267,
        anchor_sizes=(16, 32, 64),
        rpn_samples=128,
        proposals_before_nms=1_000,
        proposals=300,
        test_proposals_before_nms=600,
        test_proposals=100,
        roi_samples=64,
    ),
}


class Detection(FasterRCNN):  # type: ignore[misc]  # torchvision has no types
    """torchvision's Faster R-CNN, with norms that stay in evaluation mode."""

    def train(self, mode: bool = True) -> "Detection":
        """Set the mode of everything but the norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def build_detector(
    net: nn.Module,
    detector: Detector,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
) -> Detection:
    """Build a detector around a copy of a classifier's features.

    It takes images [3, H, W] in [0, 1] and normalises them by ``mean`` and ``std``, which should be
    those that the classifier was trained with. ``num_classes`` excludes the background. All other
    layers are initialised from (seed, "detector").

    Raises:
        ConfigError: the classifier has no ``features`` of four stages.
    """
    backbone, head = _parts(net)
    with torch.no_grad(), evaluating(backbone), evaluating(head):
        features = backbone(torch.zeros(1, 3, 4 * STRIDE, 4 * STRIDE))
        num_out = head(features).shape[1]
    backbone.out_channels = features.shape[1]
    with drawing(derive(seed, "detector")):
        predictor = FastRCNNPredictor(num_out, num_classes + 1)
        _draw_predictor_(predictor)
        model = Detection(
            backbone,
            min_size=detector.short_side,
            max_size=detector.long_side,
            image_mean=list(mean),
            image_std=list(std),
            size_divisible=STRIDE,
            rpn_anchor_generator=AnchorGenerator(
                (detector.anchor_sizes,), (detector.anchor_ratios,)
            ),
            rpn_pre_nms_top_n_train=detector.proposals_before_nms,
            rpn_post_nms_top_n_train=detector.proposals,
            rpn_pre_nms_top_n_test=detector.test_proposals_before_nms,
            rpn_post_nms_top_n_test=detector.test_proposals,
            rpn_nms_thresh=detector.rpn_nms,
            rpn_fg_iou_thresh=detector.rpn_foreground,
            rpn_bg_iou_thresh=detector.rpn_background,
            rpn_batch_size_per_image=detector.rpn_samples,
            # 2x2 samples per bin, as in the framework's RoIAlign.
            box_roi_pool=MultiScaleRoIAlign(["0"], detector.roi_size, sampling_ratio=2),
            box_head=head,
            box_predictor=predictor,
            box_score_thresh=detector.score_threshold,
            box_nms_thresh=detector.test_nms,
            box_detections_per_img=detector.detections,
            box_fg_iou_thresh=detector.roi_foreground,
            box_bg_iou_thresh=detector.roi_foreground,
            box_batch_size_per_image=detector.roi_samples,
            box_positive_fraction=detector.roi_foreground_share,
            # Box offsets in units of standard deviations of 0.1, 0.1, 0.2, 0.2.
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        )
    _freeze_(model, detector.frozen_stages)
    return model.train()


def is_of_classifier(name: str) -> bool:
    """Return whether a tensor of a detector's state belongs to its classifier."""
    return name.startswith((BACKBONE, HEAD))


def classifier_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Extract a classifier's features from a detector's state, under the classifier's names.

    >>> list(classifier_state({"backbone.conv.weight": torch.zeros(1)}))
    ['features.conv.weight']
    """
    return {
        "features." + name.removeprefix(BACKBONE).replace(HEAD, f"{LAST_STAGE}."): value
        for name, value in state.items()
        if is_of_classifier(name)
    }


def detector_cost(model: Detection, detector: Detector) -> Cost:
    """Return the cost of a 4:3 test image (VOC's most common ratio) with the most proposals.

    Parameters are those of the whole detector.
    """
    width = min(round(detector.short_side * 4 / 3), detector.long_side)
    image = torch.zeros(1, 3, detector.short_side, width)
    device = next(model.parameters()).device
    with torch.no_grad(), evaluating(model):
        features = model.backbone(image.to(device))
        region = torch.zeros(1, features.shape[1], detector.roi_size, detector.roi_size)
        vector = model.roi_heads.box_head(region.to(device))
    parts = [
        (1, measure(model.backbone, image.to(device))),
        (1, measure(model.rpn.head, ([features],))),  # one input, a list of maps
        (detector.test_proposals, measure(model.roi_heads.box_head, region.to(device))),
        (detector.test_proposals, measure(model.roi_heads.box_predictor, vector)),
    ]
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        macs=sum(times * cost.macs for times, cost in parts),
        flops=sum(times * cost.flops for times, cost in parts),
    )


def settle_norms_(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the running statistics of a network's norms to those of some images, in place.

    For untrained networks: norms frozen at their initial statistics would not normalise anything,
    and the features of a deep residual network would grow from block to block. ``images`` are
    normalised batches.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then averages over all batches equally
    net.train()
    with torch.no_grad():
        for batch in images:
            net(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _parts(net: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    """Copy a classifier's features and split them before the last stage."""
    features = getattr(net, "features", None)
    if not isinstance(features, nn.Sequential) or not hasattr(features, LAST_STAGE):
        raise ConfigError(
            "Detection needs a classifier whose 'features' have stages up to 'stage4', such as "
            f"imagenet-resnet-34. Got {type(net).__name__} without."
        )
    backbone, head = nn.Sequential(), nn.Sequential()
    for name, module in deepcopy(features).named_children():
        (head if name == LAST_STAGE else backbone).add_module(name, module)
    head.add_module("pool", nn.AdaptiveAvgPool2d(1))
    head.add_module("flatten", nn.Flatten())
    return backbone, head


def _freeze_(model: Detection, stages: int | None) -> None:
    """Freeze the norms, the stem and the first stages."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    if stages is None:
        return
    for name, module in model.backbone.named_children():
        number = name.removeprefix("stage")
        if not number.isdigit() or int(number) <= stages:
            module.requires_grad_(False)


def _draw_predictor_(predictor: nn.Module) -> None:
    """Initialise like the framework: with small weights, so that boxes start at their proposals."""
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, 0.0, std)
        nn.init.zeros_(layer.bias)
