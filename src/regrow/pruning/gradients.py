"""First- and second-order gradients of a network's loss over batches, in bounded memory.

Each function runs the network in evaluation mode, holds the graph of one batch at a time, and
leaves the network unchanged. Losses are means over all examples (or tokens) of the batches.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrow.errors import ConfigError
from regrow.pruning.examples import rows_of, size_of
from regrow.surgery.tape import call, evaluating
from regrow.tasks.base import logits_of
from regrow.train.objective import Objective
from regrow.train.safe_convolutions import safe_convolutions

Batches = Sequence[tuple[Any, Any]]  # inputs and targets
Measures = dict[str, Tensor]
EachGradient = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def mean_gradients(model: nn.Module, batches: Batches, objective: Objective) -> Measures:
    """Return the gradient of the mean loss by parameter, on the CPU; zeros where there is none."""
    learnt = _learnt(model)
    total = _zeros(model)
    count = _count(batches, objective)
    with evaluating(model), torch.enable_grad():
        for x, targets in batches:
            loss = _loss(model, x, targets, objective=objective) / count
            parts = torch.autograd.grad(loss, tuple(learnt.values()), allow_unused=True)
            for name, part in zip(learnt, parts, strict=True):
                if part is not None:
                    total[name] += part.cpu()
    return total


def mean_over_examples(
    model: nn.Module, batches: Batches, objective: Objective, measure: EachGradient
) -> Measures:
    """Average over the examples what ``measure`` returns for the gradients of each one's loss."""
    learnt = _learnt(model)
    total: Measures = {}
    num = 0
    with evaluating(model), torch.enable_grad():
        for x, targets in batches:
            size = size_of(x)
            for i in range(size):
                one, target = (rows_of(part, slice(i, i + 1), size) for part in (x, targets))
                num += 1
                loss = _loss(model, one, target, objective=objective)
                loss = loss / max(objective.count(target), 1)
                parts = torch.autograd.grad(
                    loss, tuple(learnt.values()), allow_unused=True, materialize_grads=True
                )
                gradients = {n: part.cpu() for n, part in zip(learnt, parts, strict=True)}
                for name, value in measure(gradients).items():
                    total[name] = total[name] + value if name in total else value
    return {name: value / num for name, value in total.items()}


def hessian_times_gradient(
    model: nn.Module, batches: Batches, objective: Objective, temperature: float
) -> Measures:
    """Return H g by parameter, on the CPU: the Hessian of the mean loss times its gradient.

    The loss is computed on outputs divided by a temperature. g is the gradient over all batches; H
    g is then the gradient of (gradient . g) with g held fixed, summed over the batches.
    """
    learnt = _learnt(model)
    weights = tuple(learnt.values())
    count = _count(batches, objective)

    def gradients(x: Any, targets: Any, *, again: bool) -> tuple[Tensor | None, ...]:
        scaled = _loss(model, x, targets, objective=objective, temperature=temperature) / count
        return torch.autograd.grad(scaled, weights, create_graph=again, allow_unused=True)

    total = _zeros(model)
    # The fused attention kernels have no second derivative.
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        fixed = [torch.zeros_like(weight) for weight in weights]
        for x, targets in batches:
            for sums, part in zip(fixed, gradients(x, targets, again=False), strict=True):
                if part is not None:
                    sums += part
        for x, targets in batches:
            firsts = gradients(x, targets, again=True)
            product = sum(
                (part * g).sum() for part, g in zip(firsts, fixed, strict=True) if part is not None
            )
            if not isinstance(product, Tensor) or not product.requires_grad:
                continue  # the loss is linear in all weights
            parts = torch.autograd.grad(product, weights, allow_unused=True)
            for name, part in zip(learnt, parts, strict=True):
                if part is not None:
                    total[name] += part.cpu()
    return total


def _learnt(model: nn.Module) -> dict[str, nn.Parameter]:
    named = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def _zeros(model: nn.Module) -> Measures:
    named = model.named_parameters(remove_duplicate=False)
    return {name: torch.zeros(parameter.shape) for name, parameter in named}


def _count(batches: Batches, objective: Objective) -> int | Tensor:
    return sum(objective.count(targets) for _, targets in batches)


def _loss(
    model: nn.Module, x: Any, targets: Any, *, objective: Objective, temperature: float = 1.0
) -> Tensor:
    with safe_convolutions():
        outputs = call(model, x)
    if temperature == 1.0:
        return objective.total(outputs, targets)
    if isinstance(outputs, Mapping) and "loss" in outputs:
        raise ConfigError(
            "This criterion divides the network's outputs by a temperature, and this network "
            "computes its loss itself. Give the labels apart from the inputs: (inputs, targets)."
        )
    return objective.total(logits_of(outputs) / temperature, targets)
