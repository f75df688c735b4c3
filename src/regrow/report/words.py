"""Formatting of numbers for people, the same in the terminal, in Markdown and in LaTeX."""

import math

PLUS_MINUS = "\u00b1"


def quantity(value: float | None) -> str:
    """Format a large count with three digits and a unit letter; empty for None.

    >>> quantity(272474), quantity(125_485_000.0), quantity(64), quantity(None)
    ('272k', '125M', '64', '')
    """
    if value is None or math.isnan(value):
        return ""
    scaled, letter = _scaled(value)
    if not letter:
        return f"{value:.4g}"
    return f"{scaled:.{max(0, 3 - len(str(int(scaled + 0.5))))}f}{letter}"


def short(value: float) -> str:
    """Format a round number, such as an axis tick, without needless digits.

    >>> short(5e3), short(1.5e6), short(300.0)
    ('5k', '1.5M', '300')
    """
    scaled, letter = _scaled(value)
    return f"{scaled:g}{letter}"


def _scaled(value: float) -> tuple[float, str]:
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        # 0.9995: 999_700 would otherwise be written as 1000k.
        if value >= 0.9995 * 10**power:
            return value / 10**power, letter
    return value, ""


def with_kept(value: float | None, share: float | None) -> str:
    """Format a count with its share of the unpruned network's count: ``272k (32%)``."""
    if share is None or math.isnan(share) or not (text := quantity(value)):
        return quantity(value)
    percent = 100 * share
    return f"{text} ({percent:.0f}%)" if percent >= 1 else f"{text} ({percent:.1g}%)"


def score(mean: float | None, std: float | None, n: int, *, digits: int = 2) -> str:
    """Format mean and standard deviation, or ``not run``.

    >>> score(98.456, None, 1), score(None, None, 0)
    ('98.46', 'not run')
    """
    if n == 0 or mean is None:
        return "not run"
    text = f"{mean:.{digits}f}"
    return text if n == 1 or std is None else f"{text} {PLUS_MINUS} {std:.{digits}f}"


def seeds(n: int, expected: int) -> str:
    """Format the number of seeds behind a value: ``5``, or ``4 of 5`` if some are missing."""
    return str(n) if n == expected else f"{n} of {expected}"


def num_seeds(n: int, expected: int) -> str:
    """Format the number of seeds with its noun: ``1 seed``, ``5 seeds``, ``4 of 5 seeds``."""
    return f"{seeds(n, expected)} {'seed' if expected == 1 else 'seeds'}"


def signed(difference: float, *, digits: int = 2) -> str:
    """Format a difference, always with its sign.

    >>> signed(0.123), signed(-0.001)
    ('+0.12', '+0.00')
    """
    return f"{round(difference, digits) + 0.0:+.{digits}f}"


def p_value(p: float) -> str:
    """Format a p-value with three decimals, small ones as a bound.

    >>> p_value(0.00001), p_value(0.0312)
    ('p < 0.001', 'p = 0.031')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
