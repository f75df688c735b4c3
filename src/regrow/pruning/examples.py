"""The examples that criteria use: batches in the form that networks take, and the loss on them.

They come from a study's data set, or from any iterable of batches, such as a ``DataLoader``:

    (inputs, targets)            inputs are a tensor, a tuple of several, or a mapping by name
    ((mapping,), targets)        for a network that takes one mapping
    (a, b, targets)              with more than two, the last is the targets
    {"input_ids": ..., "labels": ...}
    inputs                       alone, for criteria that need no loss
    ([image, ...], [{...}, ...]) for a detector: a list of images, and a mapping for each

Within ``Examples`` a list has one item for each example, and a tuple holds several inputs. A
network that takes labels as an input (as those of transformers do) computes its loss itself.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regrow.data import Dataset
from regrow.data.columns import TARGETS
from regrow.errors import ConfigError, TrainingError, short
from regrow.surgery.tape import call, evaluating
from regrow.tasks.base import logits_of
from regrow.train.objective import IGNORED, Objective

Batch = tuple[Any, Any]  # inputs, and targets or None
Loss = Callable[[Any, Any], Tensor]
MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class Examples:
    """Batches of inputs and targets, and the loss of a network's outputs for them."""

    batches: tuple[Batch, ...]
    objective: Objective


def examples_of(
    data: Iterable[Any], network: nn.Module, *, num: int, loss: Loss | None = None
) -> Examples:
    """Read at most ``num`` examples from batches; a ``ConfigError`` says what a batch lacks.

    Args:
        data: yields batches; it is read once, and no further than needed.
        network: the network that takes them; one that takes labels computes its own loss.
        num: the maximum number of examples.
        loss: (network outputs, targets) -> the mean loss of a batch. Only needed if the network
            does not compute it and it does not follow from the targets (cross-entropy for classes,
            per example or per token; squared errors for numbers).
    """
    takes = _parameters(network)
    batches: list[Batch] = []
    left = num
    for batch in data:
        inputs, targets = _parted(batch, takes, own=loss is None)
        size = size_of(inputs)
        if size > left:
            inputs, targets = (rows_of(part, slice(left), size) for part in (inputs, targets))
        batches.append((inputs, targets))
        left -= size
        if left <= 0:
            break
    if not batches:
        raise ConfigError("The data for the criterion yields no batch. Give at least one.")
    return Examples(tuple(batches), _objective(loss))


def _parameters(network: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(network.forward).parameters
    except (TypeError, ValueError):  # compiled code may have no signature
        return {}


def _parted(batch: Any, takes: Mapping[str, inspect.Parameter], *, own: bool) -> Batch:
    """Split a batch into the network's inputs and the targets."""
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        named = {name: value for name, value in batch.items() if value is not None}
        label = next((name for name in TARGETS if name in named), None)
        targets = None if label is None else _by_example(named[label])
        if label is not None and not (own and label in takes):
            del named[label]
        _check_names(named, takes)
        return _parts(named), targets
    if isinstance(batch, list | tuple) and len(batch) == 2:
        inputs, targets = batch[0], _by_example(batch[1])
        if isinstance(inputs, Tensor):
            return inputs, targets
        is_listed = isinstance(targets, list) and _are_images(inputs, num=len(targets))
        return _named(([*inputs],) if is_listed else _parts(inputs), takes), targets
    if isinstance(batch, list | tuple) and len(batch) > 2:
        return _named(_parts(batch[:-1]), takes), _by_example(batch[-1])
    raise _no_batch(batch)


def _no_batch(got: Any) -> ConfigError:
    return ConfigError(
        "A batch for a criterion must be (inputs, targets), a mapping of named tensors, or a "
        f"tensor. Got {short(got)}."
    )


def _parts(inputs: Any) -> Any:
    """Return several inputs, by name or in order."""
    if isinstance(inputs, Mapping):
        return {name: _by_example(value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple) and inputs:
        return tuple(map(_by_example, inputs))
    raise _no_batch(inputs)


def _by_example(values: Any) -> Any:
    """Return a sequence of mappings, one for each example, as a list, and others as tuples."""
    if isinstance(values, list | tuple):
        is_list = bool(values) and all(isinstance(value, Mapping) for value in values)
        return list(values) if is_list else tuple(map(_by_example, values))
    return values


def _are_images(inputs: Any, *, num: int) -> bool:
    """Return whether inputs are a tensor for each of ``num`` examples."""
    return (
        isinstance(inputs, list | tuple)
        and len(inputs) == num
        and all(isinstance(image, Tensor) for image in inputs)
    )


def _named(inputs: Any, takes: Mapping[str, inspect.Parameter]) -> Any:
    """Return several inputs by the names of the network's parameters, if these can be used."""
    if isinstance(inputs, Mapping):
        _check_names(inputs, takes)
        return inputs
    by_place = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    names = [name for name, p in takes.items() if p.kind in by_place]
    takes_any = not takes or any(p.kind is p.VAR_POSITIONAL for p in takes.values())
    if len(names) < len(inputs) and not takes_any:
        raise ConfigError(
            f"A batch has {len(inputs)} inputs, and the network takes {len(names)} "
            f"({', '.join(names)}). Give (inputs, targets) with as many; for a network that takes "
            "a list of images, give a list of targets too, a mapping for each image."
        )
    if len(names) < len(inputs) or any(takes[n].kind is by_place[1] for n in names[: len(inputs)]):
        return inputs
    return dict(zip(names, inputs, strict=False))


def _check_names(named: Mapping[str, Any], takes: Mapping[str, inspect.Parameter]) -> None:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: p for name, p in takes.items() if p.kind in by_name}
    # A network that also takes **kwargs, as in transformers, would silently accept any name.
    surplus = [name for name in named if name not in known] if known else []
    missing = [n for n, p in known.items() if p.default is p.empty and n not in named]
    if surplus or missing:
        problems = [
            *([f"it lacks {', '.join(map(repr, missing))}"] if missing else []),
            *([f"the network takes no {', '.join(map(repr, surplus))}"] if surplus else []),
        ]
        hint = " If that is one mapping of them, give ((mapping,), targets)."
        raise ConfigError(
            f"A batch of {', '.join(map(repr, named)) or 'no names'} does not fit the network: "
            f"{'; '.join(problems)}. It takes {', '.join(known)}."
            f"{hint if surplus and len(missing) == 1 else ''}"
        )


def check_fit(dataset: Dataset, network: nn.Module, *, where: str) -> None:
    """Refuse a data set whose examples a network cannot take; the ``ConfigError`` says why."""
    first = torch.arange(min(2, len(dataset.train)))
    inputs, takes = dataset.train.batch(first), _parameters(network)
    try:
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
            _check_names(inputs, takes)
        if dataset.inputs is not None:
            with torch.no_grad(), evaluating(network):
                call(network, inputs)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except Exception as error:  # the network's code may raise anything
        raise ConfigError(
            f"{where}: the network fails on its examples ({dataset.inputs}): "
            f"{type(error).__name__}: {short(error)}. Give data that fit."
        ) from error


def size_of(inputs: Any) -> int:
    """Count the examples in a batch of inputs: the rows of its first tensor, or items of a list."""
    if isinstance(inputs, Tensor | list):
        return len(inputs)
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    sizes = (size_of(v) for v in values if isinstance(v, Tensor | Mapping | list | tuple))
    return next(sizes, 0)


def rows_of(inputs: Any, part: slice, size: int) -> Any:
    """Slice the rows of each tensor that has one row per example, and lists of examples."""
    if isinstance(inputs, list):
        return inputs[part] if len(inputs) == size else inputs
    if isinstance(inputs, Tensor):
        return inputs[part] if inputs.dim() and len(inputs) == size else inputs
    if isinstance(inputs, Mapping):
        return {name: rows_of(value, part, size) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(rows_of(value, part, size) for value in inputs)
    return inputs


def moved(values: Any, device: torch.device | str, *, copy: bool = False) -> Any:
    """Move tensors, also those within mappings, lists and tuples, to a device.

    Tensors on the device are the same ones, unless ``copy`` is true.
    """
    if isinstance(values, Tensor):
        return values.detach().to(device, copy=copy) if copy else values.to(device)
    if isinstance(values, Mapping):
        return {name: moved(value, device, copy=copy) for name, value in values.items()}
    if isinstance(values, list | tuple):
        parts = [moved(value, device, copy=copy) for value in values]
        return parts if isinstance(values, list) else tuple(parts)
    return values


def counted_rows(inputs: Any) -> Tensor | None:
    """Return a flat mask of the tokens that are not padding; None if no padding is marked."""
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask.all()):
        return None
    return mask.flatten().bool()


# The loss -----------------------------------------------------------------------------------------


def count_labels(targets: Any) -> int:
    """Count the terms of a mean loss: examples, or class targets that are not ignored."""
    if targets is None:
        raise ConfigError(
            "This criterion uses gradients, so its data must have targets: batches of "
            "(inputs, targets), or mappings with 'labels'."
        )
    if not isinstance(targets, Tensor):
        return size_of(targets)
    if targets.is_floating_point():
        return len(targets)
    return int((targets != IGNORED).sum())


def _objective(loss: Loss | None) -> Objective:
    """Make an objective of a given mean loss, the network's own, or the usual one for targets."""

    def total(outputs: Any, targets: Any) -> Tensor:
        num = count_labels(targets)
        if loss is not None:
            value = loss(outputs, targets)
        elif isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            value = outputs["loss"]
        elif isinstance(outputs, Tensor) or (isinstance(outputs, Mapping) and "logits" in outputs):
            value = _usual_loss(logits_of(outputs), targets)
        else:
            raise ConfigError(
                "This criterion uses gradients, and the loss cannot be chosen automatically: in "
                f"evaluation mode the network returns a {type(outputs).__name__} without 'logits' "
                "or 'loss' (many detectors compute their losses in training mode only). Give "
                "select(..., loss=lambda outputs, targets: ...), or use a criterion of weights or "
                "activations."
            )
        if not isinstance(value, Tensor) or value.dim():
            raise TrainingError(
                f"A loss must return the mean loss of a batch, a scalar tensor. Got {short(value)}."
            )
        return value * num

    return Objective(name="own", losses=total, count=count_labels)


def _usual_loss(logits: Tensor, targets: Any) -> Tensor:
    """Return the usual mean loss for targets: cross-entropy for classes, MSE for numbers."""
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        if logits.shape[:-1] == targets.shape:
            return functional.cross_entropy(
                logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED
            )
        if logits.shape[:1] + logits.shape[2:] == targets.shape:  # maps of classes
            return functional.cross_entropy(logits, targets, ignore_index=IGNORED)
    elif isinstance(targets, Tensor) and logits.numel() == targets.numel():
        return functional.mse_loss(logits.reshape(targets.shape), targets.to(logits.dtype))
    shape = tuple(targets.shape) if isinstance(targets, Tensor) else short(targets)
    raise ConfigError(
        f"The loss cannot be chosen automatically: the network returns {tuple(logits.shape)}, and "
        f"the targets are {shape}. Give it: select(..., loss=lambda outputs, targets: ...)."
    )
