"""Type checks of values from users, shared by all that validates a number."""

import math
from typing import TypeGuard


def is_int(value: object, *, least: int | None = None) -> TypeGuard[int]:
    """Tell whether a value is a whole number (true and false are none), of at least ``least``.

    >>> is_int(0), is_int(0, least=1), is_int(2.0), is_int(True)
    (True, False, False, False)
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number (true and false are none).

    >>> is_number(1), is_number(float("nan")), is_number("1")
    (True, False, False)
    """
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
