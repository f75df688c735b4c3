"""Prepare data sets whose examples are not images: check, split, and standardise numbers.

A data set's module returns ``Arrays``; ``load`` passes them to ``load_arrays``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regrow.data.base import Arrays, Rows
from regrow.data.copies import copies
from regrow.data.held_out import hold_out
from regrow.data.images import MemoryImages
from regrow.data.named import NamedInputs, text_of
from regrow.data.spec import DataSpec
from regrow.errors import ConfigError, DataError

OF_IMAGES = ("size", "image_column", "label_column", "normalisation", "mean", "std", "classes")
IGNORED = -100  # a target to ignore: the default ``ignore_index`` of PyTorch's losses


def load_arrays(raw: Arrays, spec: DataSpec) -> dict[str, Any]:
    """Return the fields of a ``Dataset``: the splits as tensors, and their description."""
    for option in OF_IMAGES:
        if getattr(spec, option) is not None:
            raise ConfigError(
                f"Data set {spec.name!r}: its examples are not images, so it takes no {option!r}."
            )
    if spec.on_error != "stop":
        raise ConfigError(
            f"Data set {spec.name!r}: its examples are not files that could be left out, so it "
            "takes no 'on_error'."
        )
    parts = {"train": raw.train, "test": raw.test, "validation": raw.validation}
    splits = {name: part for name, part in parts.items() if part is not None}
    for name, part in splits.items():
        _check(part, raw, of=f"the {name} split of {spec.name!r}")
    _check_alike(splits, spec)
    labels = {name: _strata(part) for name, part in splits.items()}
    noun = "sequence" if raw.vocabulary is not None else "row"
    classes = raw.classes if labels["train"] is raw.train.targets else ()
    held_out = hold_out(labels, classes, spec, noun=noun)
    sources = {
        "train": ("train", held_out.train),
        "test": held_out.test,
        "validation": held_out.validation,
    }
    taken = {
        name: Rows(
            inputs=splits[where[0]].inputs.index_select(0, where[1]),
            targets=splits[where[0]].targets[where[1]],
        )
        for name, where in sources.items()
        if where is not None
    }
    train = taken["train"]
    scales = [_scale(train.inputs), _scale(train.targets)]
    images = {
        name: MemoryImages(_scaled(part.inputs, scales[0]), _scaled(part.targets, scales[1]))
        for name, part in taken.items()
    }
    return {
        "spec": spec,
        "train": images["train"],
        "validation": images.get("validation"),
        "test": images["test"],
        "classes": raw.classes,
        "augmentation": "none",
        "task": spec.task or raw.task,
        "vocabulary": raw.vocabulary,
        "inputs": _inputs(raw, splits),
        **_flat("", scales[0]),
        **_flat("target_", scales[1]),
        "notices": (
            *raw.notices,
            *held_out.notices,
            *copies(images["train"], images["test"], spec, noun=noun),
        ),
    }


def _inputs(raw: Arrays, splits: Mapping[str, Rows]) -> str | None:
    """Describe an example's inputs as text, where a shape does not say enough; else None."""
    first = splits["train"].inputs
    if isinstance(first, NamedInputs):
        parts = [part.inputs for part in splits.values() if isinstance(part.inputs, NamedInputs)]
        return text_of({name: torch.cat([part[name] for part in parts]) for name in first})
    if raw.vocabulary is None:
        return None
    return f"{'x'.join(map(str, (1, *first.shape[1:])))}:int64:{raw.vocabulary}"


def _scale(values: Tensor | NamedInputs) -> tuple[Tensor, Tensor] | None:
    """Return each number's mean and std over the rows; None for tokens, classes, named inputs."""
    if isinstance(values, NamedInputs) or not values.is_floating_point():
        return None
    std, mean = torch.std_mean(values.double(), dim=0, correction=0)
    return mean, torch.where(std > 0, std, torch.ones_like(std))


def _scaled(values: Tensor | NamedInputs, scale: tuple[Tensor, Tensor] | None) -> Any:
    if scale is None or isinstance(values, NamedInputs):
        return values
    mean, std = scale
    return ((values.double() - mean) / std).float()


def _flat(of: str, scale: tuple[Tensor, Tensor] | None) -> dict[str, tuple[float, ...]]:
    if scale is None:
        return {}
    names = (f"{of}mean", f"{of}std")
    return {n: tuple(v.flatten().tolist()) for n, v in zip(names, scale, strict=True)}


def _strata(part: Rows) -> Tensor:
    """Return labels to stratify splits by: the classes, or zeros if rows have no single class."""
    if part.targets.dim() == 1 and not part.targets.is_floating_point():
        return part.targets
    return torch.zeros(len(part.targets), dtype=torch.int64)


def _check(part: Rows, raw: Arrays, *, of: str) -> None:
    named = isinstance(part.inputs, NamedInputs)
    inputs = dict(part.inputs) if isinstance(part.inputs, NamedInputs) else {"": part.inputs}
    for name, values in inputs.items():
        side = f"input {name!r}" if name else "input"
        _check_length(values, part.targets, of=of, side=side)
        if named or values.is_floating_point():
            _check_values(values, None, of=of, side=side)
            continue
        _check_values(values, raw.vocabulary, of=of, side=side)
    if not named and inputs[""].is_floating_point() == (raw.vocabulary is not None):
        raise DataError(
            f"{of}: inputs must be float32 numbers, or int64 tokens with a 'vocabulary'. Got "
            f"{inputs[''].dtype} and a vocabulary of {raw.vocabulary}."
        )
    targets = part.targets
    if targets.dim() > 1 and not targets.is_floating_point():  # tokens, some without a class
        targets = targets[targets != IGNORED]
    _check_values(targets, len(raw.classes), of=of, side="target")
    if not part.targets.is_floating_point() and len(raw.classes) < 2:
        raise DataError(f"{of}: expected at least 2 classes, got {len(raw.classes)}.")


def _check_length(inputs: Tensor, targets: Tensor, *, of: str, side: str) -> None:
    if len(inputs) != len(targets) or len(inputs) < 2:
        raise DataError(
            f"{of}: expected a target for each {side}, and at least 2 of them. Got {len(inputs)} "
            f"{side}s and {len(targets)} targets."
        )


def _check_values(values: Tensor, num: int | None, *, of: str, side: str) -> None:
    """Raise a ``DataError`` for numbers that are not finite and ids outside 0 to ``num`` - 1."""
    if values.is_floating_point():
        bad = ~values.reshape(len(values), -1).isfinite().all(1)
        if bad.any():
            raise DataError(
                f"{of}: the {side} of row {int(bad.int().argmax())} is not finite. Replace it by "
                "a number, or leave the row out."
            )
        return
    if not len(values):
        return
    low, high = int(values.min()), int(values.max())
    if num is None and low >= 0:
        return
    if num is None or not 0 <= low <= high < num:
        most = "" if num is None else f" to {num - 1}"
        raise DataError(
            f"{of}: each {side} must be a whole number from 0{most}. Got {low} to {high}."
        )


def _check_alike(splits: Mapping[str, Rows], spec: DataSpec) -> None:
    shapes = {
        name: (_shapes(part.inputs), tuple(part.targets.shape[1:])) for name, part in splits.items()
    }
    if len(set(shapes.values())) > 1:
        listed_shapes = ", ".join(
            f"{name} {shape[0]} -> {shape[1]}" for name, shape in shapes.items()
        )
        raise DataError(
            f"Data set {spec.name!r}: its splits have examples of different shapes "
            f"({listed_shapes})."
        )


def _shapes(inputs: Tensor | NamedInputs) -> Any:
    """Return the shape of one example, or the name and shape of each of its inputs."""
    if isinstance(inputs, NamedInputs):
        return tuple((name, tuple(value.shape[1:])) for name, value in inputs.items())
    return tuple(inputs.shape[1:])
