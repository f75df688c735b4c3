"""Trainings whose treatments changed masks: what they leave, and what they cost."""

from typing import Any

import torch
from torch import Tensor

from regrow.cost import TRAINING_FACTOR, count, measure
from regrow.store.parts import MASKS
from regrow.surgery.mask import Mask
from regrow.train import Training


def masks_part(training: Training) -> dict[str, dict[str, Tensor]]:
    """Return the masks at the end of a training as a part of its job's tensors, if they changed."""
    return {} if training.passes is None else {MASKS: training.kept()}


def masked_costs(training: Training, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the record's costs of a training whose masks changed; nothing of any other.

    Those of the network count the masks at the end. Those of the training count in each pass the
    weights that were there: all of them where gradients of masked weights were looked at, as in
    the count of Evci et al. (2020, arXiv:1911.11134, appendix H).
    """
    if training.passes is None:
        return {}
    mask = Mask(unit="weight", kept=training.kept())
    example = torch.zeros(shape, device=training.device)
    dense = count(training.model, example)
    absent = sum(
        2 * dense.by_parameter.get(name, 0) * (1.0 - density)
        for name, density in training.passes.densities(training.samples).items()
    )
    return {
        **measure(training.model, example, mask).to_json(),
        "training_flops": TRAINING_FACTOR * training.samples * (dense.cost.flops - absent),
        "sparsity": mask.sparsity,
        "widths": mask.widths(),
    }
