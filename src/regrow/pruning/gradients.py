"""First- and second-order gradients of a network's loss over batches, in bounded memory.

Each function runs the network in evaluation mode, holds the graph of one batch at a time, and
leaves the network unchanged. Losses are means over all examples (or tokens) of the batches.
Gradients are those of all parameters, also of frozen ones (``requires_grad=False``): freezing says
what is trained, not what matters to the loss.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from regrow.core.texts import first_few, listed
from regrow.cost.operations import memory_of, tensors_in
from regrow.errors import ConfigError, short
from regrow.pruning.examples import rows_of, size_of
from regrow.surgery.cut import duplicate
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.tape import call, evaluating
from regrow.tasks.base import logits_of
from regrow.train.objective import Objective
from regrow.train.safe_convolutions import safe_convolutions

Batches = Sequence[tuple[Any, Any]]  # inputs and targets
Measures = dict[str, Tensor]
EachGradient = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def widened(values: Tensor) -> Tensor:
    """Return values in half precision as float32, others unchanged.

    Half-precision sums over a unit would be rounded to 3 digits, and squares to zero or infinity.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def mean_gradients(model: nn.Module, batches: Batches, objective: Objective) -> Measures:
    """Return the gradient of the mean loss by parameter, on the CPU; zeros where there is none."""
    total = _zeros(model)
    count = _count(batches, objective)
    with _differentiable(model) as (network, weights):
        for x, targets in batches:
            loss = _loss(network, x, targets, objective=objective) / count
            for name, part in _gradients(loss, weights).items():
                total[name] += part.cpu()
    return total


def mean_over_examples(
    model: nn.Module, batches: Batches, objective: Objective, measure: EachGradient
) -> Measures:
    """Average over the examples what ``measure`` returns for the gradients of each one's loss."""
    total: Measures = {}
    zeros, num = _zeros(model), 0
    with _differentiable(model) as (network, weights):
        for x, targets in batches:
            size = size_of(x)
            for i in range(size):
                one, target = (rows_of(part, slice(i, i + 1), size) for part in (x, targets))
                num += 1
                loss = _loss(network, one, target, objective=objective)
                loss = loss / max(objective.count(target), 1)
                parts = {n: widened(part.cpu()) for n, part in _gradients(loss, weights).items()}
                for name, value in measure(zeros | parts).items():
                    total[name] = total[name] + value if name in total else value
    return {name: value / num for name, value in total.items()}


def hessian_times_gradient(
    model: nn.Module, batches: Batches, objective: Objective, temperature: float
) -> Measures:
    """Return H g by parameter, on the CPU: the Hessian of the mean loss times its gradient.

    The loss is computed on outputs divided by a temperature. g is the gradient over all batches; H
    g is then the gradient of (gradient . g) with g held fixed, summed over the batches.
    """
    count = _count(batches, objective)
    total = _zeros(model)
    # The fused attention kernels have no second derivative.
    with _differentiable(model) as (network, weights), sdpa_kernel(SDPBackend.MATH):

        def gradients(x: Any, targets: Any, *, again: bool = False) -> Measures:
            loss = _loss(network, x, targets, objective=objective, temperature=temperature)
            return _gradients(loss / count, weights, again=again)

        fixed: Measures = {}
        for x, targets in batches:
            for name, part in gradients(x, targets).items():
                fixed[name] = fixed[name] + part if name in fixed else part
        for x, targets in batches:
            firsts = gradients(x, targets, again=True)
            product = sum((part * fixed[name]).sum() for name, part in firsts.items())
            if not isinstance(product, Tensor) or not product.requires_grad:
                continue  # the loss is linear in all weights
            for name, part in _gradients(product, weights).items():
                total[name] += part.cpu()
    return total


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, nn.Parameter]]]:
    """Give a network in evaluation mode and its parameters, of which all require gradients.

    It is the network itself, whose parameters are frozen again afterwards; a copy of one that was
    made in inference mode, whose parameters can have no gradients; or a copy in float32 of one in
    float16, where many gradients of a mean over examples would be rounded to zero.
    """
    if is_half := any(parameter.dtype is torch.float16 for parameter in model.parameters()):
        model = _in_float32(model)
    elif any(parameter.is_inference() for parameter in model.parameters()):
        model = duplicate(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    weights = {name: p for name, p in named.items() if p.is_floating_point() or p.is_complex()}
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            yield model, weights
    except RuntimeError as error:
        if not is_half:
            raise
        raise ConfigError(
            "Gradients of a network in float16 are computed in float32, and this network's code "
            f"fails there ({short(error)}). Convert the network first (network.float()), or use a "
            "criterion of weights or activations."
        ) from error
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _in_float32(model: nn.Module) -> nn.Module:
    """Return a copy of a network in float32, which takes inputs in half precision too."""
    copy = duplicate(model).float()
    copy.register_forward_pre_hook(
        lambda _, args, kwargs: tree_map_only(Tensor, widened, (args, kwargs)), with_kwargs=True
    )
    return copy


def _gradients(
    value: Tensor, weights: Mapping[str, nn.Parameter], *, again: bool = False
) -> Measures:
    """Return the gradients of a number, of those parameters that it depends on."""
    if not value.requires_grad:
        return {}
    parts = torch.autograd.grad(value, [*weights.values()], create_graph=again, allow_unused=True)
    return {n: part for n, part in zip(weights, parts, strict=True) if part is not None}


class _WithoutGraph(OperationMode):
    """Notes the memory of what a network reads while it computes without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not torch.is_grad_enabled():
            self.read.update(map(memory_of, tensors_in((*args, *kwargs.values()))))
        return super().run(operation, args, kwargs)


def check_gradients(model: nn.Module, inputs: Any, names: Collection[str]) -> None:
    """Refuse a network that computes with some of its weights while gradients are turned off.

    Their gradients would be zero, as those of weights that do not matter to the loss.
    """
    with _differentiable(model) as (network, weights), _WithoutGraph() as watching:
        call(network, inputs)
    found = [n for n in weights if n in names and memory_of(weights[n]) in watching.read]
    if found:
        raise ConfigError(
            "This criterion uses gradients, and the network computes with "
            f"{listed(first_few(map(repr, found), 4))} while they are turned off (torch.no_grad or "
            "torch.inference_mode in its code). Leave that out there, use a criterion of weights "
            "or activations, or keep these layers whole: trace(..., keep=[...])."
        )


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
