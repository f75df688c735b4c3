"""Assumptions that a trace makes about a network's code, and how failed trials change them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from regrow.errors import TraceError
from regrow.surgery.groups import NUMBER, Trace
from regrow.surgery.likeness import Unlike
from regrow.surgery.numbers import Attribute, Choice, Number
from regrow.surgery.trial import Trials, Wrong

COUNTED = "the network's own code depends on their number"
MOST_TRIES = 24
MOST_STARTS = 3


@dataclass(frozen=True)
class Followed:
    """A trace, the modules' numbers that may change with its cuts, and how to choose among them.

    ``follow`` returns the trace under other choices.
    """

    trace: Trace
    told: Sequence[Number]
    follow: Callable[[Mapping[Attribute, Choice]], Trace]

    def numbers_of(self, name: str) -> tuple[Attribute, ...]:
        """Return the attributes that may count a group's units."""
        return tuple(dict.fromkeys(n.place for n in self.told if name in self.groups_of(n)))

    def groups_of(self, number: Number) -> set[str]:
        """Return the names of the groups that a number may count."""
        return self._counts[number.slot]

    def other_numbers(self, unlike: Unlike) -> list[dict[Attribute, Choice]]:
        """List choices that leave the attributes at fault unchanged: all, or all but one.

        These are the attributes of the operation's module that equal its differing constant.
        """
        node, number = unlike.node, unlike.numbers[0]
        here = [n for n in self.told if node is not None and n.module == node.module]
        places = [n.place for n in here if len(n.counted[0]) in (number, -number)]
        tries: list[dict[Attribute, Choice]] = [dict.fromkeys(places)]
        tries += [{p: None for p in places if p != follows} for follows in places]
        return [tried for tried in tries if tried]

    def doubtful(self) -> list[str]:
        """Return the names of groups that compete for an attribute: it may count any one of them.

        Of each attribute, only its first such number is considered.
        """
        several: dict[Attribute, set[str]] = {}
        for number in self.told:
            if len(self._counts[number.slot]) > 1:
                several.setdefault(number.place, self._counts[number.slot])
        return list(dict.fromkeys(name for names in several.values() for name in sorted(names)))

    @property
    def changing(self) -> list[Attribute]:
        """The attributes that may stay; those of PyTorch's modules always change."""
        return [*dict.fromkeys(n.place for n in self.told if not n.place.is_of_torch)]

    @property
    def unread(self) -> list[Attribute]:
        """Those of them that the code of their class does not read when it runs."""
        return [place for place in self.changing if not place.is_read]

    @property
    def are_compared(self) -> bool:
        """True if code compares attributes that may change: it may branch where they are equal."""
        places = {number.place for number in self.told}
        return any(a != b and a.is_compared_with(b) for a in places for b in places)

    @cached_property
    def _counts(self) -> dict[tuple[str, int], set[str]]:
        """The names of the groups that each number may count, by its slot."""
        places = {number.place for number in self.told}
        counts: dict[tuple[str, int], set[str]] = {number.slot: set() for number in self.told}
        for choice in range(max((len(number.counted) for number in self.told), default=0)):
            for name, group in self.follow(dict.fromkeys(places, choice)).groups.items():
                for slot in group.slots:
                    if NUMBER in slot.tensor:
                        counts[slot.tensor, slot.dim].add(name)
        return counts


@dataclass
class Assumptions:
    """Assumptions about how a network's code depends on widths, kept until a trial fails.

    ``counted`` are weights whose number of outputs the code depends on, with the reason;
    ``coupled`` those whose outputs are removed together with their inputs and ``even`` those
    divided evenly (see ``Painter``); ``alone`` those for which coupling was tried and did not help.
    """

    views: frozenset[str]
    counted: dict[str, str] = field(default_factory=dict)
    coupled: frozenset[str] = frozenset()
    even: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    choices: dict[Attribute, Choice] = field(default_factory=dict)
    unneeded: set[Attribute] = field(default_factory=set)  # those that may stay, or change
    ones: frozenset[Attribute] = frozenset()  # all that one of these may count is removed together
    several: frozenset[Attribute] = frozenset()  # those for which that did not help
    guesses: list[frozenset[str]] | None = None  # sets of weights that are still to be coupled
    guessed: frozenset[str] = frozenset()
    judged: bool = False  # whether heads and streams were tried separately
    _known: dict[Any, dict[str, str]] = field(default_factory=dict)  # groups refused, by state
    _held: set[Any] = field(default_factory=set)  # all states assumed so far

    def hold(self, trials: Trials, found: Followed) -> Trace | None:
        """Return the trace if all of its groups can lose units; else change what is assumed.

        Return None after such a change. The new assumptions were never held before, and there are
        finitely many, so tracing ends. All fields but ``choices`` change in one direction only:
        ``coupled`` and ``ones`` grow, and what is taken out of them again is remembered. So only a
        correction of ``choices`` has to check that it is new (``_is_new``).
        """
        state = self._state(self.choices)
        if state in self._held:
            raise TraceError(
                "Cannot decide which groups of this network can be cut, because assumptions about "
                "its code repeat. Keep some of its modules whole (keep=, --keep), and please "
                "report the network."
            )
        first = not self._held
        self._held.add(state)
        trace = found.follow(self.choices)
        collapsed = self._collapsed(trace)
        if collapsed:
            self.alone |= collapsed
            self.coupled -= collapsed
            return None
        cut = {slot.tensor for g in trace.groups.values() for slot in g.producers()}
        # A guess that leaves heads whole, with their stream, passes every trial: try another.
        if not self.guessed <= cut and self._guess(trials, trace):
            return None
        trace, wrong = self._try(trials, found, first=first)
        while wrong is not None and wrong.unlike is not None:
            unlike = wrong.unlike
            for tried in found.other_numbers(unlike):
                trace = found.follow({**self.choices, **tried})
                wrong = trials.wrong(trace)
                if wrong is None or (wrong.unlike and wrong.unlike.place > unlike.place):
                    self.choices |= tried
                    break
            else:
                trace = found.follow(self.choices)
                break
        if wrong is not None and self._guess(trials, trace):
            return None
        broken = self._refused(trials, trace) if wrong is not None else {}
        for name in () if broken else found.doubtful():
            broken |= trials.refused(trace, [name])
        if broken:
            self._correct(trials, broken, replace(found, trace=trace))
            return None
        stay = _equal_by_chance(trials, replace(found, trace=trace), self.choices)
        self.unneeded |= {place for place in stay if self.choices.get(place, 0) is not None}
        self.choices |= stay
        trace = found.follow(self.choices)
        if found.are_compared:
            halves = trials.at_half()
            broken = halves.refused(trace)
            if broken:
                self._correct(halves, broken, replace(found, trace=trace))
                return None
        stays = {p for p in self.unneeded if self.choices[p] is None}
        return replace(trace, unneeded=frozenset(n.slot for n in found.told if n.place in stays))

    def _try(self, trials: Trials, found: Followed, *, first: bool) -> tuple[Trace, Wrong | None]:
        """Try all groups; ``first`` without changing the numbers that no ``forward`` reads."""
        stay = dict.fromkeys(found.unread if first else ())
        if stay:
            trace = found.follow({**self.choices, **stay})
            if trials.wrong(trace) is None:
                self.choices |= stay
                self.unneeded |= stay.keys()
                return trace, None
        trace = found.follow(self.choices)
        return trace, trials.wrong(trace)

    def divide(self, found: Trace, names: Collection[str], *, single: bool = False) -> bool:
        """Cut channels evenly from all groups of convolutions that cannot lose whole groups.

        ``single`` restricts this to those whose groups are all one unit. Return whether something
        was changed.
        """
        groups = [found.groups[name] for name in names if found.groups[name].kind == "grouped"]
        whole = {s.tensor for g in groups if g.size == 1 or not single for s in g.producers()}
        before, self.even = self.even, self.even | whole
        return self.even != before

    def divide_whole(self, found: Trace, grouped: Collection[str]) -> bool:
        """Do the same where no group can be removed because the input or output is kept whole."""
        cut = {slot.tensor for group in found.groups.values() for slot in group.producers()}
        before, self.even = self.even, self.even | ({f"{g}.weight" for g in grouped} - cut)
        return self.even != before

    def _state(self, choices: Mapping[Attribute, Choice]) -> Any:
        """Return all that is assumed, with the given choices, as a hashable value."""
        sets = (self.views, self.coupled, self.even, self.alone, self.ones, self.several)
        guessed = (self.guessed, self.judged, None if self.guesses is None else len(self.guesses))
        return sets, guessed, frozenset(self.counted), frozenset(choices.items())

    def _is_new(self, choices: Mapping[Attribute, Choice]) -> bool:
        """Return whether these choices were never tried with the other current assumptions."""
        return self._state(choices) not in self._held

    def _collapsed(self, found: Trace) -> frozenset[str]:
        """Return coupled weights whose group is now a single unit, which passes every trial."""
        single = (g for g in found.groups.values() if g.size == 1)
        return self.coupled & {slot.tensor for g in single for slot in g.producers()}

    def _refused(self, trials: Trials, found: Trace) -> dict[str, str]:
        """Find the groups that cannot lose units, with reasons; cached for the same assumptions."""
        choices = frozenset(self.choices.items())
        key = (self.views, frozenset(self.counted), self.coupled, self.even, self.ones, choices)
        if key not in self._known:
            self._known[key] = trials.refused(found)
        return dict(self._known[key])

    def _guess(self, trials: Trials, found: Trace) -> bool:
        """Couple heads to their streams after a first failed trial; undo it if it does not help.

        First all heads that read a stream are coupled, then all heads, and then those whose code
        cannot lose heads alone. Return whether something was changed. Most networks whose code
        derives the number of heads from the width of a stream do so everywhere, and finding each
        case by halving would take many trials.
        """
        if self.guesses is None:
            heads = (g for g in found.groups.values() if g.kind == "head")
            every = frozenset(slot.tensor for head in heads for slot in head.producers())
            streams = _heads_of_streams(found, found.groups)
            self.guesses = [guess for guess in dict.fromkeys((streams, every)) if guess]
        before, self.coupled = self.coupled, self.coupled - self.guessed
        self.guessed = self.guesses.pop(0) - self.coupled if self.guesses else frozenset()
        self.coupled |= self.guessed
        if self.coupled == before and not self.judged:
            self.judged = True
            self.coupled |= _heads_bound(trials, found) - self.alone
        return self.coupled != before

    def _correct(self, trials: Trials, broken: Mapping[str, str], found: Followed) -> None:
        """Change the assumptions after a trial in which groups could not lose units.

        Heads may be coupled to the stream that they read, attributes may count other channels; if
        neither helps, the groups are kept whole.
        """
        groups = found.trace.groups
        rows = _heads_of_streams(found.trace, broken) - self.alone
        if rows - self.coupled:
            self.coupled |= rows
            return
        better = _other_choices(trials, broken, found, self.choices)
        if better and self._is_new({**self.choices, **better}):
            self.choices |= better
            return
        rows = _as_wide_as_read(found.trace, broken) - self.alone
        if rows - self.coupled:
            self.coupled |= rows
            return
        if self.divide(found.trace, broken):
            return
        made = {
            name: {s.tensor for s in groups[name].producers() or groups[name].slots}
            for name in broken
        }
        in_vain = self.coupled & frozenset().union(*made.values())
        if in_vain:
            self.alone |= in_vain
            self.coupled -= in_vain
            return
        if self._as_one(broken, found):
            return
        whole = list(broken)
        if len(broken) > 1 and trials.wrong(found.trace, whole[:1]) is None:
            # They fail only together, so it is enough to keep one of them whole.
            whole = [min(broken, key=lambda name: groups[name].size)]
        self.views -= set(whole)
        for name in whole:
            self.counted |= dict.fromkeys(made[name], f"{COUNTED} ({broken[name]})")

    def _as_one(self, broken: Collection[str], found: Followed) -> bool:
        """Unite all groups that an attribute of a failing group may count, or undo that.

        So queries and values lose heads together where talking heads mix them in between, and
        channels together in single-head attention. Return whether something was changed.
        """
        here = [n for n in found.told if not found.groups_of(n).isdisjoint(broken)]
        in_vain = self.ones & {number.place for number in here}
        self.several |= in_vain
        self.ones -= in_vain
        heads = {name for name, group in found.trace.groups.items() if group.kind == "head"}
        counts = {n.place: found.groups_of(n) for n in here}
        tied = heads | set(broken)
        more = {p for p, own in counts.items() if len(own & tied) > 1} - self.several
        self.ones |= more
        return bool(in_vain or more)


def _equal_by_chance(
    trials: Trials, found: Followed, choices: Mapping[Attribute, Choice]
) -> dict[Attribute, Choice]:
    """Return choices that leave attributes unchanged that equal a width only by chance.

    They need not change for a trial to pass. Changing an attribute that the example does not need
    (the largest number of positions) would be wrong for other inputs, or for other methods; one
    that should have changed makes those fail. Attributes that code compares with each other count
    the same kind of thing, so they are treated alike. Most of those that ``forward`` does not read
    stay, so they are tried at once before each alone. Those of PyTorch's modules always change.
    """
    stay: dict[Attribute, Choice] = {p: None for p in choices if choices[p] is None}
    places = found.changing
    compared = [[p for p in places if p == place or place.is_compared_with(p)] for place in places]
    for alike in (found.unread, *compared):
        slots = {number.slot for number in found.told if number.place in alike}
        names = [
            name
            for name, group in found.trace.groups.items()
            if any((slot.tensor, slot.dim) in slots for slot in group.slots)
        ]
        if names and not stay.keys() >= set(alike):
            tried = {**stay, **dict.fromkeys(alike)}
            if trials.wrong(found.follow({**choices, **tried}), names) is None:
                stay = tried
    return stay


def _heads_of_streams(found: Trace, broken: Collection[str]) -> frozenset[str]:
    """Return the weights that make heads from a stream, where both are among the broken groups."""
    reads = {s.tensor: name for name, g in found.groups.items() for s in g.readers()}
    return frozenset(
        slot.tensor
        for name in broken
        if found.groups[name].kind == "head"
        for slot in found.groups[name].producers()
        if reads.get(slot.tensor) in broken
    )


def _heads_bound(trials: Trials, found: Trace) -> frozenset[str]:
    """Return the weights that make heads from streams, where neither can be cut without the other.

    That is tried once for all modules with the same code.
    """
    rows = _heads_of_streams(found, found.groups)
    reads = {s.tensor: name for name, g in found.groups.items() for s in g.readers()}
    by_code: dict[Any, dict[str, set[str]]] = {}
    for name, group in found.groups.items():
        made = {slot.tensor for slot in group.producers()} & rows
        if made:
            code = frozenset(_code_above(trials.tried.model, tensor) for tensor in made)
            by_code.setdefault(code, {})[name] = made
    bound: set[str] = set()
    for heads in by_code.values():
        weights = set().union(*heads.values())
        streams = {reads[tensor] for tensor in weights}
        if all(trials.wrong(found, alone) is not None for alone in (heads, streams)):
            bound |= weights
    return frozenset(bound)


def _code_above(model: nn.Module, tensor: str) -> tuple[Any, ...]:
    """Return the classes of a tensor's module and of its parent, and the parent's flags."""
    module = tensor.rpartition(".")[0]
    above = model.get_submodule(module.rpartition(".")[0])
    switches = {n: value for n, value in vars(above).items() if isinstance(value, bool | str)}
    return type(model.get_submodule(module)), type(above), frozenset(switches.items())


def _as_wide_as_read(found: Trace, broken: Collection[str]) -> frozenset[str]:
    """Return the weights with as many outputs as inputs, where both are among the broken groups."""
    reads = {s.tensor: (name, s) for name, g in found.groups.items() for s in g.readers()}
    made = [slot for name in broken for slot in found.groups[name].producers()[:2]]
    return frozenset(
        slot.tensor
        for slot in made
        if slot.tensor in reads
        and reads[slot.tensor][0] in broken
        and len(reads[slot.tensor][1].units) == len(slot.units)
        and [s.tensor for s in made].count(slot.tensor) == 1
    )


def _other_choices(
    trials: Trials,
    broken: Collection[str],
    found: Followed,
    choices: Mapping[Attribute, Choice],
) -> dict[Attribute, Choice]:
    """Find by trials which attributes have to change, where changing all of them breaks groups."""
    better: dict[Attribute, Choice] = {}
    known: set[tuple[Attribute, ...]] = set()
    remaining = list(broken)
    while remaining:
        name = remaining.pop(0)
        places = found.numbers_of(name)
        if places in known:
            continue
        known.add(places)
        tried = _choice(trials, name, found, {**choices, **better})
        if tried is not None:
            better |= tried
            remaining = list(trials.refused(found.follow({**choices, **better}), remaining))
    return better


def _choice(
    trials: Trials, name: str, found: Followed, choices: Mapping[Attribute, Choice]
) -> dict[Attribute, Choice] | None:
    """Find other choices with which a group can lose units; None if there are none.

    First another dimension is tried for one attribute, and leaving one, several or all but one
    unchanged. Then, starting from the choices that ran furthest before they failed, one more
    attribute is left unchanged or changed, as long as that gets further.
    """
    places = found.numbers_of(name)
    told = [number for number in found.told if name in found.groups_of(number)]
    steps = _tries(places, told)
    best: list[dict[Attribute, Choice]] = []
    reached = -1
    while steps:
        before = reached
        for tried in steps:
            wrong = trials.wrong(found.follow({**choices, **tried}), [name])
            if wrong is None or not wrong.known:
                return tried
            if wrong.reached > reached:
                best, reached = [], wrong.reached
            if wrong.reached == reached and len(best) < MOST_STARTS:
                best.append(tried)
        steps = [
            {**start, place: 0 if start.get(place, 0) is None else None}
            for start in (best if reached > before else ())
            for place in places
        ]
    return None


def _tries(places: Sequence[Attribute], told: Sequence[Number]) -> list[dict[Attribute, Choice]]:
    tries: list[dict[Attribute, Choice]] = [
        {place: choice}
        for place in places
        for choice in range(1, max(len(n.counted) for n in told if n.place == place))
    ]
    tries += [{place: None} for place in places]
    # Attributes of one name count the same thing in all modules.
    for short in dict.fromkeys(place.short for place in places):
        tries.append({p: None for p in places if p.short == short})
        tries.append({p: None for p in places if p.short != short})
    # Equal attributes count the same thing, the others something else.
    values = {number.place: len(number.counted[0]) for number in told}
    for value in dict.fromkeys(values[place] for place in places):
        tries.append({p: None for p in places if values[p] == value})
        tries.append({p: None for p in places if values[p] != value})
    if len(places) > 2:
        tries += [{p: None for p in places if p != place} for place in places]
    return [tried for n, tried in enumerate(tries) if tried and tried not in tries[:n]][:MOST_TRIES]
