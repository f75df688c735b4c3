"""Tuned arms: one entry of a study becomes an arm for each of its trials.

``{name: fine-tune, tune: {lr: [0.001, 0.01, 0.1]}}`` trains three arms. Each has its own row, and
the report judges the one that is best on the validation split (``regrow.report.tuning``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from regrow.core.validation import as_list, is_int, is_number, mapping
from regrow.errors import ConfigError
from regrow.jobs.arms import RATES, Arm, read_arm  # one of the rates is tuned

TUNE = "tune"  # the key of an entry that stands for several arms
KEYS: Mapping[str, str] = {
    "lr": "learning rates, one for each trial",
    "last_rates": "multiples of the recipe's last learning rate, one for each trial",
    "peak_rates": "multiples of the recipe's highest learning rate, one for each trial",
    "trials": "the number of trials, optional",
    "on": "the split on which the best trial is chosen: validation",
}
MOST_TRIALS = 100


def read_trials(entry: Mapping[str, Any]) -> tuple[Arm, ...]:
    """Read a tuned entry of a study's arms: return one arm for each trial of ``tune``."""
    given = {key: value for key, value in entry.items() if key != TUNE}
    arm = read_arm(given)
    where = f"The arm {arm.name!r}"
    if arm.budget.kind == "none":
        raise ConfigError(f"{where} trains nothing, so there is nothing to tune. Leave out 'tune'.")
    rate, values = _values(entry[TUNE], where)
    if twice := [key for key in RATES if key in given]:
        raise ConfigError(f"{where} has a {twice[0]!r} and tunes {rate!r}: leave one out.")
    return tuple(_trial(given, arm, rate=rate, value=value) for value in values)


def _values(value: Any, where: str) -> tuple[str, list[float]]:
    """Check the value of ``tune``; return the name of the rate and its values."""
    tune = mapping(value, f"{where}: 'tune'", KEYS)
    rates = [key for key in RATES if key in tune]
    if len(rates) != 1:
        raise ConfigError(
            f"{where}: 'tune' takes one of {', '.join(map(repr, RATES))}, with a list of "
            f"numbers. Got {rates or 'none of them'}."
        )
    values = as_list(tune[rates[0]])
    good = all(is_number(number) and number > 0 for number in values)
    if not good or len(set(values)) != len(values) or not 1 < len(values) <= MOST_TRIALS:
        raise ConfigError(
            f"{where}: 'tune' needs from 2 to {MOST_TRIALS} different numbers above 0 for "
            f"{rates[0]!r}. Got {values!r}."
        )
    trials = tune.get("trials", len(values))
    if not is_int(trials, least=1) or trials != len(values):
        raise ConfigError(
            f"{where}: each number of 'tune' is one trial, so 'trials' must be {len(values)}. "
            f"Got {trials!r}."
        )
    if tune.get("on", "validation") != "validation":
        raise ConfigError(
            f"{where}: trials are chosen on the validation split, never on the test set. Got "
            f"{tune['on']!r} as 'on'; leave it out."
        )
    return rates[0], values


def _trial(given: Mapping[str, Any], arm: Arm, *, rate: str, value: float) -> Arm:
    """Return the arm of one trial, named after its value."""
    changed = read_arm({**given, rate: value})
    return replace(changed, name=f"{arm.name} {rate} {value:g}", trial_of=arm.name)
