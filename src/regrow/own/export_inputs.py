"""The inputs of an exported network: masks beside its tokens, and dynamic axes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.core.seeds import seeded
from regrow.cost.latency import batched
from regrow.surgery.alive import drawn_like
from regrow.surgery.taken import CallSignature

TOKENS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"
BATCH_NAME, LENGTH_NAME = "batch", "sequence"
BATCH = 2  # examples that a network is exported with
FEWEST = 3  # least number of tokens for a dynamic length: exporters treat 1 as a constant


@dataclass(frozen=True)
class Exportable:
    """An example to export a network with, and which of its axes are dynamic.

    ``dropped`` are inputs that padded texts need, and that this example lacks. ``whole``: its lists
    are no batches, so they keep their entries.
    """

    example: Any
    batch: bool
    length: bool
    whole: bool = False
    dropped: tuple[str, ...] = ()

    def inputs(self) -> Any:
        """Return the inputs that the network is exported with."""
        return self._drawn(BATCH if self.batch else 1)

    def _drawn(self, size: int) -> Any:
        if self.whole:
            return drawn_like(self.example, seeded(0, "export"))
        return batched(self.example, size)

    def axes(self) -> list[dict[int, str]]:
        """Return the names of the dynamic axes of each input, in order."""
        return [self._axes(name, value) for name, value in named(self.example)]

    def _axes(self, name: str, value: Any) -> dict[int, str]:
        if not isinstance(value, Tensor) or not value.dim():
            return {}
        axes = {0: BATCH_NAME} if self.batch else {}
        if self.length and is_sequence(value):
            side = "decoder_" if name.startswith("decoder_") else ""
            axes[1] = side + LENGTH_NAME
        return axes

    def checks(self) -> Iterator[Any]:
        """Yield inputs to compare outputs on: other batches, other lengths, and padded ones."""
        for size in (1, 3) if self.batch else (1,):
            inputs = self._drawn(size)
            yield inputs
            if self.padded:
                yield {**inputs, MASK: _padding(inputs[MASK])}
        if self.length:
            yield _mapped(inputs, lambda x: x[:, : x.shape[1] * 3 // 4] if is_sequence(x) else x)

    @property
    def padded(self) -> bool:
        """True if there is a mask, so that texts in a batch may differ in length."""
        mask = self.example.get(MASK) if isinstance(self.example, Mapping) else None
        return isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > 1

    def __str__(self) -> str:
        names = [name for name, _ in named(self.example)]
        inputs = f"{', '.join(names[:-1])} and {names[-1]} in " if len(names) > 1 else ""
        if self.whole:
            return "inputs of the shapes of the example's, in lists of as many entries"
        if not self.batch:
            why = "" if nested(self.example) else ", as its code requires"
            return f"{inputs}one example at a time{why}"
        return f"{inputs}batches of any size" + (
            " and of any length that the network takes" if self.length else ""
        )


def ways(network: nn.Module, example: Any) -> Iterator[Exportable]:
    """Yield ways to export a network: with masks before without, most dynamic axes first."""
    full = with_masks(network, example)
    given = dict(named(example))
    lacking = [name for name, _ in named(full) if name in (MASK, SEGMENTS) and name not in given]
    texts = any(is_sequence(x) for _, x in named(full))
    for inputs, dropped in ((full, ()), *([(example, tuple(lacking))] if lacking else [])):
        if texts:
            yield Exportable(inputs, batch=True, length=True, dropped=dropped)
        yield Exportable(inputs, batch=True, length=False, dropped=dropped)
        yield Exportable(inputs, batch=False, length=False, dropped=dropped)
    if nested(example):
        yield Exportable(example, batch=False, length=False, whole=True)


def with_masks(network: nn.Module, example: Any) -> Any:
    """Add to tokens the other outputs of a tokenizer that the network's ``forward`` accepts.

    Without a mask, the padding of a text would be read as part of it. Named inputs are returned in
    the order of the arguments of ``forward``.
    """
    taken = CallSignature.by(network).names
    unnamed = isinstance(example, Tensor) and taken[:1] == (TOKENS,)
    found = {TOKENS: example} if unnamed else dict(example) if isinstance(example, Mapping) else {}
    tokens = found.get(TOKENS)
    if isinstance(tokens, Tensor) and tokens.dim() == 2:
        if MASK in taken:
            found.setdefault(MASK, torch.ones_like(tokens))
        if SEGMENTS in taken and (segments := _segments(network, tokens)) is not None:
            found.setdefault(SEGMENTS, segments)
    if len(found) == unnamed or not found:
        return example
    order = {name: place for place, name in enumerate(taken)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[0], len(order))))


def _segments(network: nn.Module, tokens: Tensor) -> Tensor | None:
    """Return segment ids for the tokens; None if the network has only one kind of segment."""
    config = getattr(network, "config", None)
    if config is None:
        return torch.zeros_like(tokens)
    if (getattr(config, "type_vocab_size", None) or 0) < 2:
        return None
    second = torch.arange(tokens.shape[1]) >= tokens.shape[1] // 2
    return second.to(tokens).expand_as(tokens).contiguous()


def is_sequence(value: Any) -> bool:
    """Return whether an input is a batch of tokens, or a mask of them."""
    whole = isinstance(value, Tensor) and not value.is_floating_point()
    return whole and value.dim() == 2 and value.shape[1] >= FEWEST


def named(inputs: Any) -> list[tuple[str, Any]]:
    """Return inputs with their names; those without one are numbered."""
    if isinstance(inputs, Mapping):
        return list(inputs.items())
    values = inputs if isinstance(inputs, list | tuple) else (inputs,)
    if len(values) == 1:
        return [("input", values[0])]
    return [(f"input_{number}", value) for number, value in enumerate(values)]


def nested(inputs: Any) -> bool:
    """Return whether an input is a list or a mapping of tensors."""
    return any(isinstance(value, list | tuple | Mapping) for _, value in named(inputs))


def _padding(mask: Tensor) -> Tensor:
    """Mask a larger part of the end of each further text, but never all of it."""
    num, length = mask.shape
    hidden = torch.tensor([(row + (num == 1)) * length // (num + 1) for row in range(num)])
    return (torch.arange(length) < (length - hidden)[:, None]).to(mask)


def _mapped(inputs: Any, change: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return tuple(change(value) for value in inputs)
    return change(inputs)
