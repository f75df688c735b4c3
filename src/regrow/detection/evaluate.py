"""Average precision of a detector: VOC 2007's 11-point AP, and COCO's AP from torchmetrics."""

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
    """Objects detected on an image: ``boxes`` [n, 4], ``labels`` [n] and ``scores`` [n]."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def detect(
    model: Detection, examples: BoxedImages, *, precision: Precision = "fp32"
) -> list[Detections]:
    """Run a detector on the images one by one; return its detections on each, on the CPU.

    Training and evaluation modes are restored afterwards.
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
    """Score the detections on each image against the ground truth, as average precisions in [0, 1].

    ``ap``: VOC 2007's by class, None for a class that the test images lack; ``map``: their mean;
    ``coco``: COCO's ``ap`` (IoU 0.5 to 0.95), ``ap50`` and ``ap75``; ``num_test``: the number of
    images.
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
    """Return the 11-point average precision of a class; NaN if it has no objects to find.

    This is the mean, over recalls of 0, 0.1, ..., 1, of the best precision at that recall or above,
    or 0 if it is not reached. In order of falling score, a detection is correct if its IoU with the
    object that it overlaps most is at least ``iou`` and the object has not been detected yet.
    Detections that match a difficult object in this way are ignored.

    Reference: Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010.
    """
    num_objects = sum(int(((t.labels == label) & ~t.difficult).sum()) for t in truths)
    if num_objects == 0:
        return math.nan
    judged: list[tuple[float, bool]] = []  # score, and whether it is correct
    for detection, truth in zip(detections, truths, strict=True):
        judged += _judge(detection, truth, label=label, iou=iou)
    judged.sort(key=lambda pair: -pair[0])
    right = torch.tensor([good for _, good in judged], dtype=torch.int64).cumsum(0)
    precision = right.double() / torch.arange(1, len(judged) + 1)
    # In integers: 3 of 10 objects are a recall of 0.3, but in floats 0.1 * 3 exceeds 0.3.
    best = [precision[right * POINTS >= k * num_objects] for k in range(POINTS + 1)]
    return sum(float(part.max()) for part in best if len(part)) / (POINTS + 1)


def _judge(
    detection: Detections, truth: Truth, *, label: int, iou: float
) -> list[tuple[float, bool]]:
    """Return (score, correct) of a class's detections on an image, without difficult objects."""
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
    """Return COCO's AP over IoUs of 0.5 to 0.95, at 0.5 and at 0.75, from torchmetrics.

    Difficult objects count as crowds, which COCO ignores.
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
    except ImportError as error:  # also raised by torchmetrics if pycocotools is missing
        raise ConfigError(
            "Detection is scored by torchmetrics and pycocotools, which are not installed "
            f"({error}). Run: pip install 'regrow[detection]'."
        ) from error


def check_libraries() -> None:
    """Raise a ``ConfigError`` if torchmetrics or pycocotools is not installed."""
    _metric()
