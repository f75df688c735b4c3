"""The amounts that a method removes in a study: sparsities, targets, shares, costs and rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from regrow.core.units import UNITS, masked_units
from regrow.core.validation import as_list, is_int, refuse_twice
from regrow.errors import ConfigError, unknown
from regrow.pruning.costs import COST_TARGETS, CostShare, masked_refusal
from regrow.pruning.method import ALLOCATIONS, Method, checked_share, checked_sparsity

MOST_ROUNDS = 100  # 100 rounds of 0.1 each leave 0.003 % of the weights
NO_TICKET = "none"  # the 'ticket' for no training between rounds
AMOUNTS = ("sparsity", "target", "shares")  # besides the names of costs


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The amount that a method removes: a sparsity, or a target's share of each group in turn.

    ``cost``: the largest share of a cost that may remain, instead of a sparsity.
    ``multiple_of``: each layer keeps a multiple of this number of channels, or all of them.
    ``step``: for rounds with training in between, the sparsity of a single round: the share that it
    removes of what the round before left. ``rounds``: the number of rounds without such training.
    """

    sparsity: float | None = None
    target: str | None = None
    shares: tuple[float, ...] | None = None
    step: float | None = None
    cost: CostShare | None = None
    rounds: int = 1
    multiple_of: int = 1

    @property
    def label(self) -> str:
        """Its name in a table."""
        return self.called or f"{self.sparsity:g}"

    @property
    def called(self) -> str | None:
        """The name, if the sparsity alone does not identify the amount; else None."""
        if self.multiple_of == 1:
            return self.target
        return f"{self.target or f'{self.sparsity:g}'}, multiples of {self.multiple_of}"


def cost_names() -> tuple[str, ...]:
    """Return the names of the cost targets, each a key of a method in a study."""
    return COST_TARGETS.known()


def read_cuts(fields: Mapping[str, Any], method: Method, where: str) -> tuple[Cut, ...]:
    """Read how much a method removes: one amount or several, each a row of the table."""
    fixed = ALLOCATIONS.get(method.allocation).sparsity
    if fixed is not None:
        return (_fixed(fixed, fields, method, where),)
    rounds = _number_of_rounds(fields, method, where)
    if rounds is not None and method.trained and fields.get("ticket") != NO_TICKET:
        return _rounds(rounds, fields, method, where)
    cuts = [Cut(sparsity=_sparsity(s, where)) for s in as_list(fields.get("sparsity", []))]
    for name in as_list(fields.get("target", [])):
        key = str(name).lower()
        if key not in method.targets:
            raise ConfigError(f"{where}: {unknown('target', str(name), method.targets)}")
        shares = method.targets[key].shares
        cuts.append(Cut(target=key, shares=shares, sparsity=0.0 if shares is None else None))
    if "shares" in fields:
        shares_of_layers = tuple(_sparsity(s, where, method) for s in as_list(fields["shares"]))
        cuts.append(Cut(target="shares", shares=shares_of_layers))
    cuts += _costs(fields, method, where)
    if not cuts:
        known = f", or a 'target' ({', '.join(method.targets)})" if method.targets else ""
        raise ConfigError(
            f"{where} needs a 'sparsity' in [0, 1), or several{known}. Instead, give the largest "
            f"share of a cost that may remain: {', '.join(map(repr, cost_names()))}."
        )
    refuse_twice(where, [cut.label for cut in cuts], "leave one out")
    if rounds is None:
        return tuple(cuts)
    if method.follows is not None or any(c.cost is None and c.target is not None for c in cuts):
        raise ConfigError(
            f"{where}: 'rounds' are steps to a 'sparsity' or to a share of a cost. They cannot be "
            "given with 'target', with 'shares' or for a method that follows others. Leave them "
            "out."
        )
    return tuple(replace(cut, rounds=rounds) for cut in cuts)


def _costs(fields: Mapping[str, Any], method: Method, where: str) -> list[Cut]:
    names = [name for name in fields if name in cost_names()]
    if names and (method.each_sparsity or method.follows is not None):
        reason = "trains for it" if method.each_sparsity else "follows networks pruned to it"
        raise ConfigError(f"{where} needs a 'sparsity', because it {reason}. Got {names[0]!r}.")
    cuts = []
    for name in names:
        for share in as_list(fields[name]):
            try:
                cost = CostShare(name, share)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
            if cost.target.timed and UNITS.get(method.unit).masked:
                raise ConfigError(f"{where}: {masked_refusal(cost, method.unit)}")
            cuts.append(Cut(target=cost.label, cost=cost))
    return cuts


def _fixed(sparsity: float, fields: Mapping[str, Any], method: Method, where: str) -> Cut:
    """Return the only cut of an allocation with a fixed sparsity, such as 2:4."""
    for name in (*AMOUNTS, "rounds", *cost_names()):
        if name in fields and (name, fields[name]) != ("sparsity", sparsity):
            raise ConfigError(
                f"{where}: the allocation {method.allocation!r} always has the sparsity "
                f"{sparsity:g}. Leave out {name!r}."
            )
    if method.rounds > 1 or method.follows is not None:
        raise ConfigError(
            f"{where} prunes in rounds or after a pattern, which the allocation "
            f"{method.allocation!r} cannot do. Use it with another method, such as magnitude."
        )
    return Cut(sparsity=sparsity)


def _number_of_rounds(fields: Mapping[str, Any], method: Method, where: str) -> int | None:
    """Return the number of rounds of a method; None for a method that prunes at once."""
    if "rounds" not in fields and method.rounds == 1:
        return None
    rounds = fields.get("rounds", method.rounds)
    if not is_int(rounds, least=1) or rounds > MOST_ROUNDS:
        raise ConfigError(
            f"{where}: 'rounds' must be an int from 1 to {MOST_ROUNDS}. Got {rounds!r}."
        )
    return int(rounds)


def _rounds(rounds: int, fields: Mapping[str, Any], method: Method, where: str) -> tuple[Cut, ...]:
    """Return a cut for each round with training in between, each by the total sparsity so far."""
    if not UNITS.get(method.unit).masked:
        raise ConfigError(
            f"{where} removes {method.unit}s, and only units that are held at zero can be pruned "
            f"in 'rounds' with training in between. Use a method of unit "
            f"{' or '.join(map(repr, masked_units()))}, or 'ticket: none'."
        )
    step = _sparsity(fields.get("sparsity"), where)
    if step == 0.0 or set(fields) & {"target", "shares", *cost_names()}:
        raise ConfigError(
            f"{where}: 'rounds' need one 'sparsity' above 0, the share of the remaining units that "
            "each round removes, and no 'target', 'shares' or cost."
        )
    # Rounded, because 1 - 0.8 * 0.8 is 0.3599999999999999.
    gone = [round(1 - (1 - step) ** (number + 1), 12) for number in range(rounds)]
    return tuple(Cut(sparsity=share, step=step) for share in gone)


def _sparsity(value: Any, where: str, method: Method | None = None) -> float:
    """Check a sparsity or, if a method is given, the share of one of its groups."""
    try:
        return checked_sparsity(value) if method is None else checked_share(method, value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
