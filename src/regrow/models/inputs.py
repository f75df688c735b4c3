"""Describe a network's inputs as text: their number, shapes and types."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrow.errors import ConfigError, short, unknown

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")
INTEGERS = ("int64", "int32")
MOST_NUMBERS = 2**31  # per input: 8 GiB in float32
GRAMMAR = (
    "[NAME:]SHAPE[:KIND[:VALUES]], such as 1x3x224x224, or input_ids:1x16:int64:30522 for tokens "
    "from 0 to 30521; or [NAME:][INPUT,INPUT,...] for one that is a list, such as two images "
    "[3x64x64,3x80x64], or a mapping where all in it have names"
)
_NESTED = re.compile(r"(?:([^\W\d]\w*):)?\[(.*)\]", re.DOTALL)
_SHAPE = re.compile(r"[1-9]\d{0,9}(x[1-9]\d{0,9})*")


@dataclass(frozen=True)
class Input:
    """One input of a network, such as ``Input.read("input_ids:1x16:int64:30522")``.

    As an example input, floats are zeros. Integers count from 0 up to ``values`` - 1, repeatedly;
    without ``values`` they are all 1, which is valid as a token of any vocabulary and as a mask
    that hides nothing. Booleans are true. With ``items``, it is a list of these inputs, or a
    mapping if they have names.
    """

    shape: tuple[int, ...]
    kind: str = "float32"
    name: str | None = None
    values: int | None = None
    items: tuple["Input", ...] = ()

    @classmethod
    def read(cls, text: str) -> "Input":
        """Parse an input's text; a ``ConfigError`` explains the syntax.

        >>> [item.shape for item in Input.read("images:[3x8x8,3x9x8]").items]
        [(3, 8, 8), (3, 9, 8)]
        """
        if nested := _NESTED.fullmatch(text.strip()):
            items = tuple(cls.read(item) for item in _parts(nested[2], text))
            _check_names(items)
            return cls((), name=nested[1], items=items)
        parts = text.strip().split(":")
        name = None if _SHAPE.fullmatch(parts[0]) else parts.pop(0)
        if (
            not parts
            or not _SHAPE.fullmatch(parts[0])
            or len(parts) > 3
            or not (name is None or name.isidentifier())
        ):
            raise ConfigError(f"--input must be {GRAMMAR}. Got {short(text)}.{_meant(text)}")
        shape = tuple(int(size) for size in parts[0].split("x"))
        kind = parts[1] if len(parts) > 1 else "float32"
        if kind not in KINDS:
            raise ConfigError(f"--input {short(text)}: {unknown('kind of number', kind, KINDS)}")
        if math.prod(shape) > MOST_NUMBERS:
            raise ConfigError(f"--input {short(text)}: it has {math.prod(shape):,} numbers.")
        values = parts[2] if len(parts) > 2 else None
        if values is not None and (
            kind not in INTEGERS or not values.isdecimal() or not 1 <= int(values) < 2**31
        ):
            raise ConfigError(
                f"--input {short(text)}: the last part is the number of values that integers can "
                "have, as in input_ids:1x16:int64:30522."
            )
        return cls(shape, kind, name, None if values is None else int(values))

    def __str__(self) -> str:
        if self.items:
            name = f"{self.name}:" if self.name else ""
            return f"{name}[{','.join(map(str, self.items))}]"
        kind = "" if self.kind == "float32" else f":{self.kind}"
        values = "" if self.values is None else f":{self.values}"
        return (
            f"{f'{self.name}:' if self.name else ''}{'x'.join(map(str, self.shape))}{kind}{values}"
        )

    def example(self) -> Any:
        """Return an example of the input: a tensor, a list, or a mapping."""
        if not self.items:
            return self._tensor()
        if self.items[0].name is not None:
            return {str(item.name): item.example() for item in self.items}
        return [item.example() for item in self.items]

    def _tensor(self) -> "Tensor":
        import torch

        kind: torch.dtype = getattr(torch, self.kind)
        if kind.is_floating_point:
            return torch.zeros(self.shape, dtype=kind)
        if self.values is None:
            return torch.ones(self.shape, dtype=kind)
        numbers = torch.arange(math.prod(self.shape)).remainder(self.values)
        return numbers.reshape(self.shape).to(kind)


def _meant(text: str) -> str:
    """Suggest the shape that was probably meant by a text such as (1, 3, 224) or 1 x 3 x 224."""
    shape = "x".join(re.findall(r"\d+", text))
    numbers = re.fullmatch(r"[(\[]?\s*\d+(\s*[,xX* ]\s*\d+)*\s*[,xX]?\s*[)\]]?", text.strip())
    return f" Do you mean {shape}?" if numbers and _SHAPE.fullmatch(shape) else ""


def _parts(text: str, whole: str) -> list[str]:
    """Split a text at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if depth or not all(part.strip() for part in parts):
        raise ConfigError(f"--input must be {GRAMMAR}. Got {short(whole)}.")
    return parts


def _check_names(inputs: tuple[Input, ...]) -> None:
    names = [item.name for item in inputs if item.name is not None]
    if names and (len(names) < len(inputs) or len({*names}) < len(names)):
        raise ConfigError(
            "Of several inputs, either all must have different names or none may have one. Got "
            f"{' and '.join(map(str, inputs))}."
        )


@dataclass(frozen=True)
class Inputs:
    """All inputs of a network: one, several in order, or several by name."""

    inputs: tuple[Input, ...]

    @classmethod
    def read(cls, texts: "str | Iterable[str]") -> "Inputs":
        """Parse the texts of inputs; an invalid one raises a ``ConfigError``.

        >>> str(Inputs.read("1x3x224x224")), Inputs.read(["a:1x4", "b:1x4:bool"]).example().keys()
        ('1x3x224x224', dict_keys(['a', 'b']))
        """
        parsed = tuple(Input.read(text) for text in ([texts] if isinstance(texts, str) else texts))
        if not parsed:
            raise ConfigError(f"Give the network's input: --input {GRAMMAR}.")
        _check_names(parsed)
        return cls(parsed)

    def __str__(self) -> str:
        return " ".join(map(str, self.inputs))

    def example(self) -> Any:
        """Return one tensor, a tuple of several inputs, or a mapping, to call the network with.

        A single input that is a list or mapping is returned as a tuple of one.
        """
        if self.inputs[0].name is not None:
            return {str(item.name): item.example() for item in self.inputs}
        if len(self.inputs) == 1 and not self.inputs[0].items:
            return self.inputs[0].example()
        return tuple(item.example() for item in self.inputs)

    def to_json(self) -> list[str]:
        """Return the text of each input."""
        return [str(item) for item in self.inputs]


def inputs_of(example: Any) -> Inputs:
    """Describe an example: a text, a shape, a tensor, several inputs, or several by name."""
    if isinstance(example, Inputs):
        return example
    if isinstance(example, str):
        return Inputs.read(example.split())
    if isinstance(example, Mapping):
        return Inputs(tuple(_described(value, name) for name, value in example.items()))
    if isinstance(example, list | tuple) and not all(isinstance(size, int) for size in example):
        return Inputs(tuple(_described(value, None) for value in example))
    return Inputs((_described(example, None),))


def _described(value: Any, name: str | None) -> Input:
    import torch

    if isinstance(value, Mapping):
        items = tuple(_described(item, str(inner)) for inner, item in value.items())
        return Input((), name=name, items=items)
    if isinstance(value, list | tuple) and value and not all(isinstance(n, int) for n in value):
        return Input((), name=name, items=tuple(_described(item, None) for item in value))
    if not isinstance(value, torch.Tensor):
        if not isinstance(value, list | tuple) or any(size < 1 for size in value):
            raise ConfigError(
                "An input must be a tensor, a shape or a text such as 1x3x32x32. Got "
                f"{short(value)}."
            )
        return Input(tuple(int(size) for size in value), name=name)
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in KINDS:
        raise ConfigError(f"An input {unknown('kind of number', kind, KINDS)}")
    counts = kind in INTEGERS and value.numel() > 0 and not bool((value == 1).all())
    values = max(int(value.max()), 0) + 1 if counts else None
    return Input(tuple(value.shape), kind, name, values)
