"""A smaller member of a network's family: the same code with a smaller argument, such as width."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regrow.core.validation import is_int, is_number
from regrow.cost import measure
from regrow.errors import ConfigError, RegrowError, short
from regrow.jobs.own_network import CutFolder, OwnNetwork
from regrow.models.origins import ModelOrigin, code_at
from regrow.studies.experiment import MethodUse

COUNTED = ("macs", "parameters")  # costs that are known before anything is trained
STEPS = 100  # equal steps in which a number that is not an int is reduced


def narrowed(
    network: OwnNetwork, name: str, uses: Sequence[MethodUse], folders: Sequence[CutFolder]
) -> Mapping[str, Any]:
    """Return the largest value of an argument at which a network costs no more than the pruned one.

    Args:
        network: the unpruned network.
        name: a numeric argument of its code.
        uses, folders: the methods compared, or the folders of smaller networks; together they must
            be one cut: one share of MACs or parameters, or one folder.
    """
    cost, most = _bar(network, name, uses, folders)
    value = _value(network.origin, name)
    steps = [*range(1, value)] if is_int(value) else [value * k / STEPS for k in range(1, STEPS)]
    found = _largest(steps, lambda step: _cost(network, name, step, cost), most)
    if found is None:
        raise ConfigError(
            f"No {name!r} below {value} makes {network.origin.text} cost {most:,.0f} {cost} or "
            "less. Name another argument, or a rival."
        )
    return {name: found}


def _bar(
    network: OwnNetwork, name: str, uses: Sequence[MethodUse], folders: Sequence[CutFolder]
) -> tuple[str, float]:
    """Return the name of the cost that the one cut limits, and its limit."""
    costs = [cut.cost for use in uses for cut in use.cuts]
    if not costs and len(folders) == 1:
        small = folders[0].read(network)[0].build()
        return "macs", float(measure(small, network.example).macs)
    cost = costs[0] if len(costs) == 1 and not folders else None
    if cost is None or cost.name not in COUNTED:
        raise ConfigError(
            f"To find the {name!r} of the same cost, ask for one method with one share of "
            f"{' or '.join(COUNTED)}, or one 'small' folder; or give the value itself ('set')."
        )
    return cost.name, cost.share * getattr(network.cost(), cost.name)


def _value(origin: ModelOrigin, name: str) -> Any:
    """Return an argument's value in the unpruned network; it must be a number."""
    value = origin.arguments.get(name)
    if value is None and origin.kind == "code":
        builder = code_at(origin.text)[0]
        parameters = inspect.signature(builder).parameters if callable(builder) else {}
        value = parameters[name].default if name in parameters else None
    elif value is None:  # a model of a hub is built by a configuration
        value = origin.resolved().settings.get("config", {}).get(name)
    if "=" in name:
        raise ConfigError(
            f"'vary' (--width-multiplier) names an argument without a value. Got {name!r}. "
            f"To give the value: 'set', or --rival {name}."
        )
    if not is_number(value):
        raise ConfigError(
            f"{origin.text} has no number {name!r} among its arguments that could be reduced. "
            f"Got {short(value)}. Name another, or give the network its value with 'set' (--set "
            f"{name}=VALUE)."
        )
    return value


def _cost(network: OwnNetwork, name: str, value: Any, cost: str) -> int | None:
    """Return the network's cost with this value; None if it cannot be built or run with it."""
    arguments = {**network.origin.arguments, name: value}
    try:
        other = OwnNetwork(
            origin=ModelOrigin(network.origin.text, arguments, settings=network.origin.settings),
            inputs=network.inputs,
        )
        return int(getattr(other.cost(), cost))
    except (RegrowError, RuntimeError, ValueError, TypeError):
        return None


def _largest(steps: Sequence[Any], cost_of: Callable[[Any], int | None], most: float) -> Any | None:
    """Return the largest step that costs at most ``most``, by bisection; skip steps that fail."""
    low, high, found = -1, len(steps), None
    while high - low > 1:
        middle = probe = (low + high) // 2
        cost = cost_of(steps[probe])
        while cost is None and probe > low + 1:
            probe -= 1
            cost = cost_of(steps[probe])
        if cost is not None and cost <= most:
            low, found = middle, steps[probe]
        else:
            high = probe
    return found
