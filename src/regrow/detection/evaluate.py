"""Average precision of a detector: VOC 2007's 11-point AP, and COCO's AP by torchmetrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from regrow.data.boxed_images import BoxedImages, Truth
from regrow.detection.model import Detection
from regrow.detection.training import BATCHES_AHEAD, forward
from regrow.errors import ConfigError
from regrow.surgery.tape import evaluating
from regrow.train import Precision

POINTS = 10  # recalls 0, 0.1, ..., 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Objects found on an image: ``boxes`` [n, 4], ``labels`` [n] and ``scores`` [n]."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def detect(
    model: Detection, examples: BoxedImages, *, precision: Precision = "fp32"
) -> list[Detections]:
    """Show a detector the images one by one; return what it found on each, on the CPU.

    Its modes are as before afterwards.
    """
    device = next(model.parameters()).device
    detections = []
    with evaluating(model), torch.inference_mode():
        for index in range(len(examples)):
            examples.announce(range(index, min(index + BATCHES_AHEAD, len(examples))))
            (output,) = forward(model, [examples.pixels(index).to(device)], precision=precision)
            detections.append(
                Detections(
                    boxes=output["boxes"].float().cpu(),
                    labels=output["labels"].cpu(),
                    scores=output["scores"].float().cpu(),
                )
            )
    return detections


def score(
    detections: Sequence[Detections], truths: Sequence[Truth], classes: Sequence[str]
) -> dict[str, Any]:
    """Compare what was found on each image with what is there, in average precisions of [0, 1].

    ``ap``: VOC 2007's by class, None for one that the test images lack; ``map``: their mean;
    ``coco``: COCO's ``ap`` (IoU 0.5 to 0.95), ``ap50`` and ``ap75``; ``num_test`` images.
    """
    values = {
        name: voc_ap(detections, truths, label=label) for label, name in enumerate(classes, start=1)
    }
    present = [value for value in values.values() if not math.isnan(value)]
    return {
        "map": sum(present) / len(present) if present else 0.0,
        "ap": {name: None if math.isnan(value) else value for name, value in values.items()},
        "coco": coco_ap(detections, truths),
        "num_test": len(truths),
    }


def voc_ap(
    detections: Sequence[Detections], truths: Sequence[Truth], *, label: int, iou: float = 0.5
) -> float:
    """Return the 11-point average precision of a class.

    The mean over recalls of 0, 0.1, ..., 1 of the best precision at that recall or above, 0 where
    it is not reached. By falling score, a finding is right if the object that it overlaps most is
    covered to ``iou`` and has not been found yet; one whose best object is difficult is not
    counted. Not a number if there is nothing to find.

    Reference: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010.
    """
    num_objects = sum(int(((t.labels == label) & ~t.difficult).sum()) for t in truths)
    if num_objects == 0:
        return math.nan
    judged: list[tuple[float, bool]] = []  # score, and whether it is right
    for detection, truth in zip(detections, truths, strict=True):
        judged += _judge(detection, truth, label=label, iou=iou)
    judged.sort(key=lambda pair: -pair[0])
    right = torch.tensor([good for _, good in judged], dtype=torch.int64).cumsum(0)
    precision = right.double() / torch.arange(1, len(judged) + 1)
    # In whole numbers: 3 of 10 objects are a recall of 0.3, which 0.1 * 3 exceeds.
    best = [precision[right * POINTS >= k * num_objects] for k in range(POINTS + 1)]
    return sum(float(part.max()) for part in best if len(part)) / (POINTS + 1)


def _judge(
    detection: Detections, truth: Truth, *, label: int, iou: float
) -> list[tuple[float, bool]]:
    """Judge the findings of a class on an image, leaving out those on difficult objects."""
    of_class = detection.labels == label
    order = detection.scores[of_class].argsort(descending=True, stable=True)
    boxes, scores = detection.boxes[of_class][order], detection.scores[of_class][order].tolist()
    objects = truth.boxes[truth.labels == label]
    difficult = truth.difficult[truth.labels == label].tolist()
    if not len(objects):
        return [(value, False) for value in scores]
    overlap, best = box_iou(boxes, objects).max(dim=1)
    seen: set[int] = set()
    judged = []
    for value, covered, index in zip(scores, overlap.tolist(), best.tolist(), strict=True):
        if covered >= iou and difficult[index]:
            continue
        judged.append((value, covered >= iou and index not in seen))
        if covered >= iou:
            seen.add(index)
    return judged


def coco_ap(detections: Sequence[Detections], truths: Sequence[Truth]) -> dict[str, float]:
    """Return COCO's AP over IoUs of 0.5 to 0.95, at 0.5 and at 0.75, by torchmetrics.

    Difficult objects are crowds, which are neither asked for nor punished.
    """
    metric = _metric()
    metric.update(
        [{"boxes": f.boxes, "labels": f.labels, "scores": f.scores} for f in detections],
        [{"boxes": t.boxes, "labels": t.labels, "iscrowd": t.difficult.long()} for t in truths],
    )
    values = metric.compute()
    names = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
    return {name: max(0.0, float(values[key])) for name, key in names.items()}


def _metric() -> Any:
    try:
        from torchmetrics.detection import MeanAveragePrecision  # type: ignore[import-not-found,unused-ignore]

        return MeanAveragePrecision(backend="pycocotools")
    except ImportError as error:  # torchmetrics raises it for pycocotools, too
        raise ConfigError(
            "Detection is scored by torchmetrics and pycocotools, which are not installed "
            f"({error}). Run: pip install 'regrow[detection]'."
        ) from error


def check_libraries() -> None:
    """Raise a ``ConfigError`` if what scores detectors is not installed."""
    _metric()
