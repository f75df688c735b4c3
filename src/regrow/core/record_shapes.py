"""Check that a record has the structure that jobs write, before a report uses it.

A digest shows that a record was not changed, but not what wrote it: a shared store may contain
records of another program or version.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from regrow.core.validation import is_int, is_number
from regrow.errors import short

LARGEST = 1e300


class FieldShape(NamedTuple):
    """The kind of value that a field must have, in words and as a check."""

    words: str
    fits: Callable[[Any], bool]


def _is_small_number(value: Any) -> bool:
    return is_number(value) and abs(value) < LARGEST


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_mapping_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    """Return whether a value is None, a number, a text, a list of texts, or a mapping of these."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or _is_text(value) or _is_small_number(value) or _are_texts(value)


def _is_count(value: Any) -> bool:
    return is_int(value) and abs(value) < LARGEST


def _is_epoch(value: Any) -> bool:
    if not isinstance(value, dict) or not all(map(_is_plain, value.values())):
        return False
    return _is_small_number(value.get("loss")) and _is_small_number(value.get("lr", 0.0))


def _is_timing(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_small_number(value.get("seconds", 0.0)):
        return False
    energy = value.get("energy")
    if energy is None or (isinstance(energy, dict) and _is_text(energy.get("unknown"))):
        return True
    return (
        isinstance(energy, dict)
        and energy.keys() >= {"joules", "whole_joules", "counters"}
        and all(_is_small_number(energy[name]) for name in ("joules", "whole_joules"))
        and _are_texts(energy["counters"])
    )


def _is_architecture(value: Any) -> bool:
    """Return whether its groups can be counted; its own reader checks whether it can be built."""
    cuts = value.get("cuts") if isinstance(value, dict) else None
    return isinstance(cuts, list) and all(
        isinstance(cut, dict)
        and all(isinstance(kept, dict) and is_int(kept.get("of"), least=1) for kept in cut.values())
        for cut in cuts
    )


_are_texts = _is_list_of(_is_text)
NUMBER = FieldShape("a number", _is_small_number)
NUMBERS = FieldShape("a mapping of numbers", _is_mapping_of(_is_small_number))
NAMES = FieldShape("a list of names", _are_texts)
PLAIN = FieldShape(
    "a mapping of numbers and texts", lambda value: isinstance(value, dict) and _is_plain(value)
)
SIZES = FieldShape("a list of sizes", _is_list_of(_is_count))
SHAPES: Mapping[str, FieldShape] = {
    **dict.fromkeys(("parameters", "macs", "flops", "epochs", "samples", "training_flops"), NUMBER),
    **dict.fromkeys(("teacher_flops", "loss", "sparsity", "amount"), NUMBER),
    **dict.fromkeys(("inputs", "guarded", "unlike", "drawn", "not_finite"), NAMES),
    **dict.fromkeys(("validation", "metrics"), NUMBERS),
    **dict.fromkeys(("before", "after", "cost"), PLAIN),
    **dict.fromkeys(("shape", "input"), SIZES),
    "history": FieldShape("a list of epochs with numbers", _is_list_of(_is_epoch)),
    "widths": FieldShape("a mapping of whole numbers", _is_mapping_of(_is_count)),
    "timing": FieldShape("a mapping with the seconds and the energy it took", _is_timing),
    "architecture": FieldShape("a mapping with cuts", _is_architecture),
    "capped": FieldShape("true or false", lambda value: isinstance(value, bool)),
    **dict.fromkeys(("weights", "unusable"), FieldShape("a text", _is_text)),
}


def unmeant(
    record: Mapping[str, Any], *, scores: Sequence[str] = (), own: bool = False
) -> str | None:
    """Return how a record differs from those that jobs write, such as a missing score; else None.

    ``scores`` are the names of its job's metric, if it has one, and of the metric's error. ``own``:
    the job is a user's training function, which names its metrics itself.
    """
    if missing := [name for name in _needed(record, scores, own) if record.get(name) is None]:
        return f"it has no {missing[0]!r}"
    shapes = {**SHAPES, **dict.fromkeys(scores, NUMBER)}
    for name, value in record.items():
        if value is not None and name in shapes and not shapes[name].fits(value):
            return f"its {name!r} must be {shapes[name].words}. Got {short(value)}"
    for name, inner in (("validation", [*scores][:1]), ("cost", ["share"])):
        within = record.get(name)
        if within is not None and any(not _is_small_number(within.get(key)) for key in inner):
            return f"its {name!r} has no number {inner[0]!r}"
    return None


def _needed(record: Mapping[str, Any], scores: Sequence[str], own: bool) -> tuple[str, ...]:
    """Return the names of the fields that a report requires."""
    if not scores:
        return ()
    if own:
        return ("metrics", "parameters", "macs", *(("weights",) if record.get("amount") else ()))
    samples = ("samples",) if record.get("training_flops") is not None else ()
    return (scores[0], "parameters", "macs", "epochs", *samples)
