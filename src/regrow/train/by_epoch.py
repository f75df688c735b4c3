"""Training loss and learning rate of each epoch, as a user's training function returns them.

    return {"accuracy": 0.93, "training_loss": [1.9, 1.2], "learning_rate": [0.01, 0.001]}

A report uses them to judge whether a training had converged, as it does for regrow's own trainings.
Unusable values are reported and left out; the score still counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from regrow.core.validation import is_number
from regrow.errors import short

LOSS, RATE = "training_loss", "learning_rate"
FIELDS = {LOSS: "loss", RATE: "lr"}  # name in a function's result -> in the lines of a history
History = tuple[dict[str, float], ...]


def split(returned: Any) -> tuple[dict[str, Any], Any]:
    """Separate the values of each epoch from the rest of a function's result.

    A single number under one of these names is an ordinary metric.
    """
    if not isinstance(returned, Mapping):
        return {}, returned
    told = {
        name: value
        for name, value in returned.items()
        if name in FIELDS and not is_number(_plain(value))
    }
    return told, {name: value for name, value in returned.items() if name not in told}


def read_history(told: Mapping[str, Any], amount: int, *, unit: str) -> tuple[History, str]:
    """Return a line for each epoch of a training, or none and what is wrong with the values.

    If the budget is not in epochs, only the last loss counts.

    >>> read_history({"training_loss": [2.0, 1.5]}, 2, unit="epochs")
    (({'epoch': 0, 'loss': 2.0}, {'epoch': 1, 'loss': 1.5}), '')
    """
    columns: dict[str, list[float]] = {}
    for name, value in told.items():
        if value is None or not amount:  # a call that only measures has no epochs
            continue
        values = _plain(value)
        values = [*map(_plain, values)] if isinstance(values, list | tuple) else values
        if wrong := _wrong(values, amount if unit == "epochs" else None):
            return (), f"a {name!r} that cannot be used: it must be {wrong}"
        columns[FIELDS[name]] = [*map(float, values)]
    losses = columns.get(FIELDS[LOSS])
    if losses is None:
        return (), ""
    if unit != "epochs":
        return ({FIELDS[LOSS]: losses[-1]},), ""
    lines = zip(*columns.values(), strict=True)
    return tuple(
        {"epoch": number, **dict(zip(columns, line, strict=True))}
        for number, line in enumerate(lines)
    ), ""


def _plain(value: Any) -> Any:
    """Turn a tensor or an array into a number or a list; return other values unchanged."""
    to_list = getattr(value, "tolist", None)
    try:
        return to_list() if callable(to_list) else value
    except (RuntimeError, TypeError, ValueError):
        return value


def _wrong(values: Any, num_epochs: int | None) -> str:
    """Return what the values of the epochs must be and what they are; empty if they are valid."""
    each = "epoch" if num_epochs is None else f"of the {num_epochs} epochs"
    expected = f"a list with one number for each {each}, none below 0."
    if not isinstance(values, list):
        return f"{expected} Got {short(values)}."
    if not values or num_epochs not in (None, len(values)):
        return f"{expected} Got {len(values)} numbers."
    bad = next((n for n, x in enumerate(values) if not is_number(x) or x < 0), None)
    return "" if bad is None else f"{expected} Got {short(values[bad])} for epoch {bad + 1}."


def rates_in_words(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the learning rates that a training function reported; empty where it did not.

    >>> rates_in_words([{"lr": 0.1, "loss": 1.0}, {"lr": 0.001, "loss": 0.8}])
    'learning rate 0.1 at most, 0.001 in the last epoch'
    """
    rates = [line.get("lr") for line in history]
    known = [rate for rate in rates if rate is not None]
    if not known or len(known) < len(rates):
        return ""
    if min(known) == max(known):
        return f"learning rate {known[0]:g}"
    return f"learning rate {max(known):g} at most, {known[-1]:g} in the last epoch"
