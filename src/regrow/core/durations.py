"""Format and parse durations: ``1:23`` as a clock, ``3.2 days`` in a sentence."""

import re

from regrow.errors import ConfigError

MOST_AMOUNT = 10**15  # of epochs, steps or samples in a budget; floats hold it exactly
DAYS_FROM = 48 * 3600  # seconds from which durations are given in days


def clock(seconds: float) -> str:
    """Format a duration as a clock, or in days from 48 hours on.

    >>> clock(7.2), clock(83), clock(4000), clock(276_000)
    ('0:07', '1:23', '1:06:40', '3.2 days')
    """
    if seconds >= DAYS_FROM:
        return _days(seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_words(seconds: float) -> str:
    """Format an approximate duration for a sentence.

    >>> in_words(7.2), in_words(600), in_words(36_000), in_words(276_000), in_words(2e8)
    ('7 seconds', '10 minutes', '10.0 hours', '3.2 days', '2,315 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < DAYS_FROM else _days(seconds)


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PARTS = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhd])+")
_CLOCK = re.compile(r"(?:([0-9]+)-)?(?:([0-9]+):)?([0-9]+):([0-9]+)")


def read_duration(text: str) -> float:
    """Parse a duration, with units or as a clock (also in SLURM's format), and return seconds.

    >>> [read_duration(text) for text in ("9m", "1h30m", "0.5h", "45", "2-00:00:00", "9:30")]
    [540.0, 5400.0, 1800.0, 45.0, 172800.0, 570.0]
    """
    given = text.strip().lower()
    seconds = 0.0
    if _PARTS.fullmatch(given):
        for number, unit in re.findall(r"([0-9.]+)([smhd])", given):
            seconds += float(number) * _UNITS[unit]
    elif found := _CLOCK.fullmatch(given):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    elif re.fullmatch(r"[0-9]+(\.[0-9]+)?", given):
        seconds = float(given)
    if not seconds > 0:
        raise ConfigError(
            f"A duration is a number of seconds, or one with units such as 90s, 9m, 1h30m or 2d, "
            f"or a clock such as 1:30:00, above 0. Got {text[:100]!r}."
        )
    return seconds


def _days(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.1f} days" if days < 100 else f"{days:,.0f} days"


def epochs_in_words(epochs: float | None) -> str:
    """Format a number of epochs; empty for None.

    >>> epochs_in_words(8), epochs_in_words(1), epochs_in_words(None), epochs_in_words(3.59694)
    ('8 epochs', '1 epoch', '', '3.597 epochs')
    """
    if epochs is None:
        return ""
    number = epochs if isinstance(epochs, int) else f"{epochs:.4g}"
    return f"{number} epoch{'' if epochs == 1 else 's'}"
