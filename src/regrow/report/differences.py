"""Differences between two stores, reports or records: settings, numbers, verdicts and machines.

    found = differences(read_side("store-a"), read_side("store-b"))
    print("\n".join(lines(found)))

Jobs or runs that were requested on both sides are compared first; of the others, the most similar
requests of the same kind and seed are paired.
"""

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from regrow.core.digests import parsed, read_file
from regrow.core.texts import one_line
from regrow.errors import ConfigError, short
from regrow.report import HOW_FILE
from regrow.report.rows import BUDGET, PLACE_COLUMNS, RUN_COLUMNS
from regrow.store import TIMING, Store
from regrow.studies.job_list import labels

Flat = Mapping[str, Any]
MADE = ("machine", "versions")  # fields of a record's timing, and of a report's provenance
NOT_NUMBERS = {"spec", "inputs", "kind", "history", "architecture", TIMING}
PLACE = (*PLACE_COLUMNS, "seed")
SETTINGS = {  # columns of runs.csv that were requested; all others are results
    *("start", "budget", "amount", "schedule", "cap", "parent_counted", "base_epochs"),
    *("num_test", "metric"),
}
VERDICT = ("question", "group", "arm", "against")
NOUNS = {"store": "a store of {} records", "report": "a report of {} runs", "record": "a record"}
MOST_LINES = 20  # of each part in text
RECORD_NAME = "record.json"
MEANT = (
    "Give the folder of a store (regrow-store) or of a report (regrow-report/NAME), a record.json, "
    "or the key of a record (its first letters) of the store named by --store"
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One run or job: its settings and its results."""

    label: str
    kind: str
    settings: Flat
    numbers: Flat


@dataclass(frozen=True, kw_only=True)
class ComparedSide:
    """One of the two things that are compared."""

    name: str
    what: str  # "store", "report" or "record"
    items: Mapping[str, Item]
    verdicts: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that differs, with its name; None on a side that does not have it."""

    name: str
    a: Any
    b: Any
    label: str = ""
    count: int = 1

    @property
    def difference(self) -> float | None:
        """B minus A; None unless both are numbers."""
        both = (self.a, self.b)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in both)
        return float(self.b - self.a) if numbers else None

    def to_json(self) -> dict[str, Any]:
        """Return its fields as JSON values, without empty ones."""
        parts = {"of": self.label, "name": self.name, "a": self.a, "b": self.b}
        parts |= {"difference": self.difference, "in": self.count}
        return {k: v for k, v in parts.items() if k in ("a", "b") or v not in (None, "")}


@dataclass(frozen=True, kw_only=True)
class Differences:
    """All differences; ``same`` counts pairs with equal settings, ``paired`` those without."""

    a: ComparedSide
    b: ComparedSide
    same: int
    paired: int
    settings: tuple[Change, ...]
    numbers: tuple[Change, ...]  # of pairs with equal settings
    effects: tuple[Change, ...]  # of pairs with different settings
    verdicts: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    made: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all differences as JSON values."""
        changes = ("settings", "numbers", "effects", "verdicts", "made")
        return {
            **{side: {"name": s.name, "is": s.what, "runs": len(s.items)} for side, s in
               (("a", self.a), ("b", self.b))},
            "asked_alike": self.same,
            "asked_otherwise": self.paired,
            **{name: [change.to_json() for change in getattr(self, name)] for name in changes},
            "only_in_a": list(self.only_a),
            "only_in_b": list(self.only_b),
        }  # fmt: skip


def read_side(text: str, *, store: Path) -> ComparedSide:
    """Read the store, report or record that a text names; ``store`` is where keys are looked up.

    Raises:
        ConfigError: the text names none of these.
    """
    path = Path(text)
    if path.is_dir() and (path / "store.json").is_file():
        opened = Store.open(path, create=False)
        return _of_records(text, "store", opened, opened.keys())
    if path.is_dir() and (path / "runs.csv").is_file():
        return _of_report(path)
    if path.name == RECORD_NAME and path.is_file() and len(path.parents) > 3:
        root, key = path.absolute().parents[3], path.absolute().parent.name
        return _of_records(text, "record", Store.open(root, create=False), [key])
    if path.exists():
        raise ConfigError(f"'{path}' is neither a store nor a report. {MEANT}.")
    if not (store / "store.json").is_file():
        raise ConfigError(f"There is no '{path}', and no store '{store}' either. {MEANT}.")
    opened = Store.open(store, create=False)
    every = opened.keys()
    keys = [key for key in every if text and key.startswith(text)]
    if len(keys) != 1:
        found = f"{len(keys)} keys" if keys else "no keys"
        raise ConfigError(
            f"There is no '{path}', and {found} of the store '{store}' begin with it. {MEANT}."
        )
    return _of_records(text, "record", opened, keys)


def differences(a: ComparedSide, b: ComparedSide) -> Differences:
    """Compare two sides of the same kind."""
    if a.what != b.what:
        raise ConfigError(
            f"'{a.name}' is a {a.what} and '{b.name}' a {b.what}: only two of the same "
            f"kind can be compared. {MEANT}."
        )
    if a.what == "record":
        pairs, only = [(item, other) for item in a.items.values() for other in b.items.values()], []
    else:
        both = {key: None for key in a.items if key in b.items}
        left = [[i for k, i in side.items.items() if k not in both] for side in (a, b)]
        nearest = [*_nearest(*left)]
        pairs = [*((a.items[key], b.items[key]) for key in both), *nearest]
        taken = {id(item) for pair in nearest for item in pair}
        only = [[item.label for item in items if id(item) not in taken] for items in left]
    alike = [(x, y) for x, y in pairs if x.settings == y.settings]
    unlike = [(x, y) for x, y in pairs if x.settings != y.settings]
    settings = Counter(
        (change.name, change.a, change.b)
        for x, y in unlike
        for change in _changes(x.settings, y.settings)
    )
    verdicts = [Change(name=name, a=a.verdicts.get(name), b=b.verdicts.get(name))
                for name in dict.fromkeys((*a.verdicts, *b.verdicts))]  # fmt: skip
    return Differences(
        a=a,
        b=b,
        same=len(alike),
        paired=len(unlike),
        settings=tuple(Change(name=n, a=x, b=y, count=c) for (n, x, y), c in settings.items()),
        numbers=tuple(_numbers(alike)),
        effects=tuple(_numbers(unlike)),
        verdicts=tuple(change for change in verdicts if change.a != change.b),
        only_a=tuple(only[0]) if only else (),
        only_b=tuple(only[1]) if only else (),
        made=tuple(
            Change(name=name, a=_listed(a.made, name), b=_listed(b.made, name))
            for name in dict.fromkeys((*a.made, *b.made))
            if a.made.get(name) != b.made.get(name)
        ),
    )


def lines(found: Differences) -> Iterator[str]:
    """Yield the differences as text, at most ``MOST_LINES`` lines for each part."""
    for letter, side in (("A", found.a), ("B", found.b)):
        yield f"{letter}: {one_line(side.name)} ({NOUNS[side.what].format(len(side.items))})"
    yield f"Same settings: {found.same}. Paired with different settings: {found.paired}."
    parts = (
        ("Settings that differ (A | B)", found.settings, "No setting differs."),
        ("Same settings, other numbers (A | B)", found.numbers, "No number of the same request "
         "differs." if found.same else ""),
        ("Other settings, other numbers (A | B)", found.effects, ""),
        ("Verdicts that differ (A | B)", found.verdicts, ""),
        ("Made with (A | B)", found.made, _same_machine(found)),
    )  # fmt: skip
    for title, changes, otherwise in parts:
        if changes:
            yield f"{title}:"
            yield from _shortened([_line(change) for change in changes])
        elif otherwise:
            yield otherwise
    for letter, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            yield f"Only in {letter}: {len(names)}"
            yield from _shortened([f"  {one_line(name)}" for name in names])


def _same_machine(found: Differences) -> str:
    known = [name for name in MADE if found.a.made.get(name)]
    if not known:
        return "Machines and versions are not recorded."
    return f"The same {' and '.join(known)}: {'; '.join(_listed(found.a.made, n) for n in known)}."


def _shortened(texts: list[str]) -> list[str]:
    more = len(texts) - MOST_LINES
    return texts if more <= 0 else [*texts[:MOST_LINES], f"  and {more} more (--json has all)"]


def _line(change: Change) -> str:
    of = f"{one_line(change.label)}, " if change.label else ""
    by = f" ({change.difference:+.6g})" if of and change.difference is not None else ""
    times = f" (in {change.count})" if change.count > 1 else ""
    name, a, b = (one_line(_text(value)) for value in (change.name, change.a, change.b))
    return f"  {of}{name}: {a} | {b}{by}{times}"


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def _listed(made: Mapping[str, frozenset[str]], name: str) -> str:
    return "; ".join(sorted(made.get(name, ()))) or "not recorded"


def _changes(a: Flat, b: Flat) -> Iterator[Change]:
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield Change(name=name, a=a.get(name), b=b.get(name))


def _numbers(pairs: Iterable[tuple[Item, Item]]) -> Iterator[Change]:
    for a, b in pairs:
        for change in _changes(a.numbers, b.numbers):
            label = a.label if a.label == b.label else f"{a.label} | {b.label}"
            yield Change(name=change.name, a=change.a, b=change.b, label=label)


def _nearest(a: list[Item], b: list[Item]) -> Iterator[tuple[Item, Item]]:
    """Pair requests of the same kind by the number of settings that differ, the nearest first."""
    by_kind: dict[str, tuple[list[int], list[int]]] = {}
    for side, items in enumerate((a, b)):
        for place, item in enumerate(items):
            by_kind.setdefault(item.kind, ([], []))[side].append(place)
    bits: dict[tuple[str, str], int] = {}
    settings_a, settings_b = ([_as_bits(item.settings, bits) for item in side] for side in (a, b))
    pairs = [
        (distance, places_a[i], places_b[j])
        for places_a, places_b in by_kind.values()
        for distance, i, j in _nearest_first(
            [settings_a[place] for place in places_a], [settings_b[place] for place in places_b]
        )
    ]
    yield from ((a[i], b[j]) for _, i, j in sorted(pairs))


def _as_bits(settings: Flat, bits: dict[tuple[str, str], int]) -> int:
    """Encode settings as a set of bits; ``bits`` maps each setting seen so far to its bit."""
    parts = {(name, _text(value)) for name, value in settings.items()}
    return sum(1 << bits.setdefault(part, len(bits)) for part in parts)


def _nearest_first(a: list[int], b: list[int]) -> Iterator[tuple[int, int, int]]:
    """Pair each number once, by Hamming distance: yield (distance, index in a, index in b).

    Ties go to the pair that comes first.
    """
    at: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))  # pairs, as one number each
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            at[(one ^ other).bit_count()].append(i * len(b) + j)
    open_a, open_b = set(range(len(a))), set(range(len(b)))
    for distance in sorted(at):
        for pair in at[distance] if open_a and open_b else ():
            i, j = divmod(pair, len(b))
            if i in open_a and j in open_b:
                open_a.remove(i)
                open_b.remove(j)
                yield distance, i, j


def _of_records(name: str, what: str, store: Store, keys: Iterable[str]) -> ComparedSide:
    keys = tuple(keys)
    known, records = labels(store), {key: store.record(key) for key in keys}

    @cache
    def asked(key: str) -> Asked:
        record = records.get(key) or (store.record(key) if store.has(key) else {})
        inputs = record.get("inputs")
        below = [key for key in inputs if isinstance(key, str)] if isinstance(inputs, list) else []
        return str(record.get("kind", "job")), _flat(_mapping(record, "spec")), below

    made: dict[str, set[str]] = {}
    for record in records.values():
        for part in MADE:
            if part in record.get(TIMING, {}):
                made.setdefault(part, set()).add(str(record[TIMING][part]))
    return ComparedSide(
        name=name,
        what=what,
        items={
            key: Item(
                label=known.get(key, f"{record.get('kind', 'job')} {key[:12]}"),
                kind=f"{record.get('kind')} {_mapping(record, 'spec').get('seed')}",
                settings=_request(key, asked),
                numbers=_flat({k: v for k, v in record.items() if k not in NOT_NUMBERS}),
            )
            for key, record in records.items()
        },
        made={part: frozenset(values) for part, values in made.items()},
    )


Asked = tuple[str, Flat, Sequence[str]]  # kind, settings and inputs of a job


def _request(key: str, asked: Callable[[str], Asked]) -> dict[str, Any]:
    """Return the settings of a job and of all that it depends on, named by kind, its own first."""
    settings: dict[str, Any] = {}
    kinds: Counter[str] = Counter()
    seen: dict[str, None] = {key: None}
    for name in (queue := [key]):
        kind, own, inputs = asked(name)
        kinds[kind] += 1
        head = kind if kinds[kind] == 1 else f"{kind} {kinds[kind]}"
        settings |= {f"{head}.{n}": v for n, v in own.items()}
        for below in inputs:
            if below not in seen:
                seen[below] = None
                queue.append(below)
    return settings


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a mapping in a record; empty if the record has something else in its place."""
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _flat(value: Any, head: str = "") -> dict[str, Any]:
    """Return the leaves of a nested value by their dotted paths."""
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        pairs = enumerate(value)
    else:
        return {head: json.dumps(value) if isinstance(value, list) else value}
    flat: dict[str, Any] = {}
    for name, entry in pairs:
        flat |= _flat(entry, f"{head}.{name}" if head else str(name))
    return flat


def _of_report(folder: Path) -> ComparedSide:
    runs = _rows(folder / "runs.csv")
    missing = [name for name in PLACE if runs and name not in runs[0]]
    if missing:
        raise ConfigError(
            f"'{folder / 'runs.csv'}' has no column {missing[0]!r}: it was not written by a "
            "report. Write the report again with `regrow report`."
        )
    items = {}
    for row in runs:
        place = {name: row[name] for name in (*PLACE, BUDGET) if row.get(name, "") != ""}
        words = {**place, **({BUDGET: f"{place[BUDGET]} epochs"} if BUDGET in place else {})}
        label = " / ".join(str(value) for name, value in words.items() if name != "unit")
        key = json.dumps(place)
        items[key] = Item(
            label=label,
            kind="run",
            settings={name: row.get(name, "") for name in RUN_COLUMNS if name in SETTINGS},
            numbers={k: v for k, v in row.items() if k not in {*SETTINGS, *PLACE, BUDGET, "group"}},
        )
    verdict_file = folder / "verdicts.csv"
    verdicts = {
        " / ".join(str(row.get(name, "")) for name in VERDICT): str(row.get("outcome", ""))
        for row in (_rows(verdict_file) if verdict_file.is_file() else ())
    }
    made = {part: frozenset({how[part]}) for how in [_how(folder)] for part in MADE if part in how}
    return ComparedSide(name=str(folder), what="report", items=items, verdicts=verdicts, made=made)


def _rows(file: Path) -> list[dict[str, Any]]:
    """Read a CSV file of a report, with numbers converted."""
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{file}' cannot be read: {short(error)}.") from error
    return [
        {str(name): _number(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _number(text: Any) -> Any:
    try:
        return int(text)
    except (TypeError, ValueError):
        try:
            return float(text)
        except (TypeError, ValueError):
            return text


def _how(folder: Path) -> dict[str, str]:
    """Return a report's provenance; empty if it cannot be read."""
    try:
        value = parsed(read_file(folder / HOW_FILE))
    except (OSError, ValueError):
        return {}
    return {name: str(said) for name, said in value.items()}
