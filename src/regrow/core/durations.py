"""Durations as people read them: ``1:23`` where a clock runs, ``3.2 days`` in a sentence."""

DAYS_FROM = 48 * 3600  # seconds; more hours than that say little


def clock(seconds: float) -> str:
    """Write a duration as a clock shows it, and in days where the hours are many.

    >>> clock(7.2), clock(83), clock(4000), clock(276_000)
    ('0:07', '1:23', '1:06:40', '3.2 days')
    """
    if seconds >= DAYS_FROM:
        return _days(seconds)
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_words(seconds: float) -> str:
    """Write about how long something takes.

    >>> in_words(7.2), in_words(600), in_words(36_000), in_words(276_000), in_words(2e8)
    ('7 seconds', '10 minutes', '10.0 hours', '3.2 days', '2,315 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < DAYS_FROM else _days(seconds)


def _days(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.1f} days" if days < 100 else f"{days:,.0f} days"


def epochs_in_words(epochs: float | None) -> str:
    """Word a number of epochs; empty where there is none.

    >>> epochs_in_words(8), epochs_in_words(1), epochs_in_words(None), epochs_in_words(3.59694)
    ('8 epochs', '1 epoch', '', '3.597 epochs')
    """
    if epochs is None:
        return ""
    number = epochs if isinstance(epochs, int) else f"{epochs:.4g}"
    return f"{number} epoch{'' if epochs == 1 else 's'}"
