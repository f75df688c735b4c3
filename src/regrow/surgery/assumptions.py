"""Assumptions that a trace makes about a network's code, and what it assumes when a trial fails."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from regrow.errors import TraceError
from regrow.surgery.groups import NUMBER, Trace
from regrow.surgery.likeness import Unlike
from regrow.surgery.numbers import Attribute, Choice, Number
from regrow.surgery.trial import Trials

COUNTED = "the network's own code counts on how many there are"
MOST_TRIES = 24
MOST_STARTS = 3


@dataclass(frozen=True)
class Followed:
    """A trace, the numbers of modules that may follow its cuts, and how other choices are made."""

    trace: Trace
    told: Sequence[Number]
    follow: Callable[[Mapping[Attribute, Choice]], Trace]

    def numbers_of(self, name: str) -> tuple[Attribute, ...]:
        """Name the attributes that may count a group's units."""
        return tuple(dict.fromkeys(n.place for n in self.told if name in self.groups_of(n)))

    def groups_of(self, number: Number) -> set[str]:
        """Name the groups that a number may count."""
        return self._counts[number.slot]

    def other_numbers(self, unlike: Unlike) -> list[dict[Attribute, Choice]]:
        """List choices by which a number stays that must: all that equal it stay, or but one."""
        node, number = unlike.node, unlike.numbers[0]
        here = [n for n in self.told if node is not None and n.module == node.module]
        places = [n.place for n in here if len(n.counted[0]) in (number, -number)]
        tries: list[dict[Attribute, Choice]] = [dict.fromkeys(places)]
        tries += [{p: None for p in places if p != follows} for follows in places]
        return [tried for tried in tries if tried]

    def doubtful(self) -> list[str]:
        """Name groups of which some attribute may count one or the other: of each the first."""
        several: dict[Attribute, set[str]] = {}
        for number in self.told:
            if len(self._counts[number.slot]) > 1:
                several.setdefault(number.place, self._counts[number.slot])
        return list(dict.fromkeys(name for names in several.values() for name in sorted(names)))

    @property
    def are_compared(self) -> bool:
        """True if code compares numbers that may follow, which do other things where they meet."""
        places = {number.place for number in self.told}
        return any(a != b and a.is_compared_with(b) for a in places for b in places)

    @cached_property
    def _counts(self) -> dict[tuple[str, int], set[str]]:
        """The groups that numbers may count."""
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
    """Assumptions about what a network's code counts, held until a trial fails.

    ``counted`` are weights whose outputs the code counts, with why; ``coupled`` those whose outputs
    go with their inputs and ``even`` those divided evenly (see ``Painter``), and ``alone`` those of
    which it was tried in vain that they go with their inputs.
    """

    views: frozenset[str]
    counted: dict[str, str] = field(default_factory=dict)
    coupled: frozenset[str] = frozenset()
    even: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    choices: dict[Attribute, Choice] = field(default_factory=dict)
    ones: frozenset[Attribute] = frozenset()  # all that one of these counts goes together
    several: frozenset[Attribute] = frozenset()  # of which that was tried in vain
    guesses: list[frozenset[str]] | None = None  # what is still to be guessed
    guessed: frozenset[str] = frozenset()
    judged: bool = False  # whether heads were tried without their streams
    _known: dict[Any, dict[str, str]] = field(default_factory=dict)  # what was refused, by all this
    _held: set[Any] = field(default_factory=set)  # all that was assumed so far

    def hold(self, trials: Trials, found: Followed) -> Trace | None:
        """Return the trace of which all groups can lose units; else None, and assume otherwise.

        What it assumes then was never assumed before: there is only so much, so a trace ends. All
        but ``choices`` only ever goes one way: ``coupled`` and ``ones`` grow, and what they lose in
        vain is remembered; so a correction by choices is the one that must ask (``_is_new``).
        """
        state = self._state(self.choices)
        if state in self._held:
            raise TraceError(
                "It cannot be settled which groups of this network can be cut, because assumptions "
                "about its code repeat. Keep some of its modules whole (keep=, --keep), and please "
                "report the network."
            )
        self._held.add(state)
        trace = found.follow(self.choices)
        collapsed = self._collapsed(trace)
        if collapsed:
            self.alone |= collapsed
            self.coupled -= collapsed
            return None
        cut = {slot.tensor for g in trace.groups.values() for slot in g.producers()}
        # Heads that go with what is kept whole are whole: that fits always, and is no answer.
        if not self.guessed <= cut and self._guess(trials, trace):
            return None
        wrong = trials.wrong(trace)
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
        self.choices |= _equal_by_chance(trials, replace(found, trace=trace), self.choices)
        trace = found.follow(self.choices)
        if found.are_compared:
            halves = trials.at_half()
            broken = halves.refused(trace)
            if broken:
                self._correct(halves, broken, replace(found, trace=trace))
                return None
        return trace

    def divide(self, found: Trace, names: Collection[str], *, single: bool = False) -> bool:
        """Let convolutions lose channels out of each group if groups cannot go, or are one unit.

        Return whether something was changed.
        """
        groups = [found.groups[name] for name in names if found.groups[name].kind == "grouped"]
        whole = {s.tensor for g in groups if g.size == 1 or not single for s in g.producers()}
        before, self.even = self.even, self.even | whole
        return self.even != before

    def divide_whole(self, found: Trace, grouped: Collection[str]) -> bool:
        """Do so, too, where no group can go because what comes in or goes out is kept whole."""
        cut = {slot.tensor for group in found.groups.values() for slot in group.producers()}
        before, self.even = self.even, self.even | ({f"{g}.weight" for g in grouped} - cut)
        return self.even != before

    def _state(self, choices: Mapping[Attribute, Choice]) -> Any:
        """Write down all that is assumed, with some choices."""
        sets = (self.views, self.coupled, self.even, self.alone, self.ones, self.several)
        guessed = (self.guessed, self.judged, None if self.guesses is None else len(self.guesses))
        return sets, guessed, frozenset(self.counted), frozenset(choices.items())

    def _is_new(self, choices: Mapping[Attribute, Choice]) -> bool:
        """Tell whether it was never tried to assume some choices with all else that is assumed."""
        return self._state(choices) not in self._held

    def _collapsed(self, found: Trace) -> frozenset[str]:
        """Name what goes with its inputs in one unit only: that fits always, and is no answer."""
        single = (g for g in found.groups.values() if g.size == 1)
        return self.coupled & {slot.tensor for g in single for slot in g.producers()}

    def _refused(self, trials: Trials, found: Trace) -> dict[str, str]:
        """Find the groups that cannot lose units; once for the same assumptions."""
        choices = frozenset(self.choices.items())
        key = (self.views, frozenset(self.counted), self.coupled, self.even, self.ones, choices)
        if key not in self._known:
            self._known[key] = trials.refused(found)
        return dict(self._known[key])

    def _guess(self, trials: Trials, found: Trace) -> bool:
        """Let heads go with their streams when a trial has failed first; undo it if in vain.

        All those that read a stream, then all there are, and then those whose code cannot lose
        heads alone. Return whether something was changed. Most networks whose code counts heads by
        the width of a stream do so everywhere, and to find each of them by halving takes many
        trials.
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
        """Assume something else after a trial in which groups could not lose a unit.

        Heads may go with the stream that they read, numbers may count other channels; if neither
        helps, the groups are kept whole.
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
            # Only together can they not: it is enough that one stays as it is.
            whole = [min(broken, key=lambda name: groups[name].size)]
        self.views -= set(whole)
        for name in whole:
            self.counted |= dict.fromkeys(made[name], f"{COUNTED} ({broken[name]})")

    def _as_one(self, broken: Collection[str], found: Followed) -> bool:
        """Let all go together that a number counts by which some cannot go, heads too; or undo it.

        So queries and values have as many heads where others lie between them (talking heads), and
        are as wide in an attention of one head. Return whether something was changed.
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
    """Name the numbers that need not follow: they equal a width by chance, and count other things.

    A number that the example does not need (the most places there may be) would be wrong for other
    inputs if it followed. Those that code compares count the same sort of thing.
    """
    stay: dict[Attribute, Choice] = {}
    places = dict.fromkeys(number.place for number in found.told)
    for place in places:
        alike = {p: None for p in places if p == place or place.is_compared_with(p)}
        slots = {number.slot for number in found.told if number.place in alike}
        names = [
            name
            for name, group in found.trace.groups.items()
            if any((slot.tensor, slot.dim) in slots for slot in group.slots)
        ]
        if names and place.is_read:
            other = found.follow({**choices, **stay, **alike})
            if trials.wrong(other, names) is None:
                stay |= alike
    return stay


def _heads_of_streams(found: Trace, broken: Collection[str]) -> frozenset[str]:
    """Name the weights that make heads from a stream, where the code counts one by the other."""
    reads = {s.tensor: name for name, g in found.groups.items() for s in g.readers()}
    return frozenset(
        slot.tensor
        for name in broken
        if found.groups[name].kind == "head"
        for slot in found.groups[name].producers()
        if reads.get(slot.tensor) in broken
    )


def _heads_bound(trials: Trials, found: Trace) -> frozenset[str]:
    """Name the weights that make heads from streams by code of which neither can go alone."""
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
    """Return the classes of a tensor's module and of the one above, and the latter's switches."""
    module = tensor.rpartition(".")[0]
    above = model.get_submodule(module.rpartition(".")[0])
    switches = {n: value for n, value in vars(above).items() if isinstance(value, bool | str)}
    return type(model.get_submodule(module)), type(above), frozenset(switches.items())


def _as_wide_as_read(found: Trace, broken: Collection[str]) -> frozenset[str]:
    """Name the weights that make as many channels as they read, where the code counts on that."""
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
    """Find which numbers of modules follow, where to let all of them follow breaks some groups.

    Trials decide.
    """
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
    """Find other choices with which a group can lose units, if there are any.

    Tried are another dimension for one number, all but one, and one alone; then, from what went
    furthest before it failed, one number more that stays or follows, as long as that helps.
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
    # Numbers of one name count one thing, whatever module holds them.
    for short in dict.fromkeys(place.short for place in places):
        tries.append({p: None for p in places if p.short == short})
        tries.append({p: None for p in places if p.short != short})
    # Numbers that are equal count one thing, those beside them another.
    values = {number.place: len(number.counted[0]) for number in told}
    for value in dict.fromkeys(values[place] for place in places):
        tries.append({p: None for p in places if values[p] == value})
        tries.append({p: None for p in places if values[p] != value})
    if len(places) > 2:
        tries += [{p: None for p in places if p != place} for place in places]
    return [tried for n, tried in enumerate(tries) if tried and tried not in tries[:n]][:MOST_TRIES]
