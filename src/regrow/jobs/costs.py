"""Costs of unpruned networks, measured once, and by which counter."""

from functools import cache

from regrow.core.units import UNITS
from regrow.cost import Cost, Counted, count
from regrow.errors import TraceError
from regrow.models import ModelSpec, build, example_input
from regrow.pruning.method import Method
from regrow.surgery.architecture import traced


def model_cost(model: ModelSpec, shape: tuple[int, ...]) -> Cost:
    """Measure an unpruned network, once."""
    return counted(model, shape).cost


@cache
def counted(model: ModelSpec, shape: tuple[int, ...]) -> Counted:
    """Count an unpruned network's operations, once."""
    return count(build(model.untrained()), example_input(model, shape))


@cache
def _has_views(model: ModelSpec, shape: tuple[int, ...]) -> bool:
    try:
        return bool(traced(build(model.untrained()), model, shape).views)
    except TraceError:  # which the pruning itself will say
        return False


def counter_version(model: ModelSpec, shape: tuple[int, ...], method: Method) -> int | None:
    """Return 2 where costs are not what the first counter counted, and None elsewhere.

    So results whose costs, and budgets of equal FLOPs, were always counted so keep their keys.
    Where views are cut, the norm behind a selection counts at the width that is selected from.
    """
    network = counted(model, shape)
    unit = UNITS.get(method.unit)
    same = network.as_first and (network.own_weights or not unit.masked)
    if same and unit.narrows and "view" in method.scope:
        same = not _has_views(model, shape)
    return None if same else 2
