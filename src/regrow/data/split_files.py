"""Find which split each file of a data set belongs to, by the names of files and folders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from regrow.data.spec import DataSpec
from regrow.data.splits import SPLIT_NAMES, Named, split_within
from regrow.errors import DataError

SHOWN = 5  # configurations, in a message
# A year right after a split's name (train2014, train2017) makes it the name of another split.
YEAR = re.compile(r"(19|20)\d\d(?![^\W_])")
# Words after a split's name that number its files: 00000-of-00003, part2, a digest.
SHARD = re.compile(r"\d+|of|(part|shard|chunk|batch|file)\d*|(?=[a-f]*\d)[0-9a-f]{4,}")


@dataclass(frozen=True)
class SplitFiles:
    """The files of each split, and a notice about files that are not read."""

    splits: dict[str, tuple[Path, ...]]
    notices: tuple[str, ...]


class _Place(NamedTuple):
    """A file's configuration and split, from its path; a folder of splits is a configuration."""

    configuration: str
    split: str
    name: str


def split_files(
    spec: DataSpec, base: Path, files: Sequence[Path], *, fetched: bool = False
) -> SplitFiles:
    """Group files below ``base`` by split; those whose names match no split are in the notice.

    Files of several configurations, or of several splits such as train and train_extra, that would
    be read as one data set raise a ``DataError``. ``fetched``: they are a copy of a data set from
    elsewhere, so a user should not move them.
    """
    places = {file: place for file in files if (place := _place(file, base)) is not None}
    if not places and (named := split_within(base.name)) is not None:
        place = _Place("", named.split, _variant(named))
        places = {file: place for file in files if file.parent == base}
    by_split: dict[str, list[Path]] = {}
    for file, place in places.items():
        by_split.setdefault(place.split, []).append(file)
    _check_places(spec, base, places, fetched=fetched)
    ignored = [file.relative_to(base) for file in files if file not in places]
    notice = (
        f"{len(ignored)} files are not read, because their names match no split: "
        f"{', '.join(map(str, ignored[:3]))}{', ...' if len(ignored) > 3 else ''}."
    )
    splits = {split: tuple(by_split[split]) for split in SPLIT_NAMES if split in by_split}
    return SplitFiles(splits, (notice,) if ignored else ())


def _place(file: Path, base: Path) -> _Place | None:
    """Infer the split from a file's name, else from its folders, innermost first, else None."""
    folders = file.parent.relative_to(base).parts
    if (named := split_within(file.stem)) is not None:
        outer = list(takewhile(lambda folder: split_within(folder) is None, folders))
        return _Place(
            "/".join([*outer, *filter(None, [named.before])]), named.split, _variant(named)
        )
    for depth in reversed(range(len(folders))):
        if (named := split_within(folders[depth])) is not None:
            outer = [*folders[:depth], *filter(None, [named.before])]
            return _Place("/".join(outer), named.split, _variant(named))
    return None


def _check_places(spec: DataSpec, base: Path, places: dict[Path, _Place], *, fetched: bool) -> None:
    """Raise if files of several configurations or splits would be read as one."""
    configurations: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for place in places.values():
        configurations.setdefault(place.split, set()).add(place.configuration)
        names.setdefault(place.split, set()).add(place.name)
    where = f"Data set {spec.name!r}{'' if fetched else f': {base}'} holds several"
    every = sorted(set().union(*configurations.values()))
    if any(len(of_split) > 1 for of_split in configurations.values()) or _unrelated(every):
        folders = [name for name in every if name and (base / name).is_dir()]
        advice = (
            f"Add the name of one of them to the path, such as '{spec.name}/{folders[0]}'."
            if folders
            else _elsewhere(spec, places, fetched=fetched)
        )
        if not fetched:
            advice += " If they belong together, put them into one folder."
        raise DataError(
            f"{where} configurations ({', '.join(name or '.' for name in every[:SHOWN])}"
            f"{', ...' if len(every) > SHOWN else ''}). {advice}"
        )
    for split, of_split in names.items():
        if len(of_split) > 1:
            advice = _elsewhere(spec, places, fetched=fetched)
            if not fetched:
                advice += f" Parts of one split may be called {split}-0, {split}-1, ..."
            raise DataError(f"{where} {split} splits ({', '.join(sorted(of_split))}). {advice}")


def _unrelated(configurations: Sequence[str]) -> bool:
    """Return whether two configurations share no folder, as those of a/train and b/test.

    The files of one may be deeper or have a longer name: train and small/test, partial-train and
    test. Names without letters number the files (1_train, 2_test).
    """
    parts = [[p for p in name.split("/") if re.search(r"[^\W\d_]", p)] for name in configurations]
    longest: list[str] = max(parts, key=len, default=[])
    return any(longest[: len(shorter)] != shorter for shorter in parts)


def _elsewhere(spec: DataSpec, places: Mapping[Path, _Place], *, fetched: bool) -> str:
    """Say how to read one of several splits or configurations that are in one folder."""
    if not fetched:
        return "Keep the files of one, and move the others elsewhere."
    return (
        f"Copy the files of one ({next(iter(places)).name}, ...) to a folder, and read "
        f"'{spec.name.partition(':')[0]}:FOLDER'."
    )


def _variant(named: Named) -> str:
    """Return a split's name with the words after it, such as train_extra, but not those of shards.

    >>> _variant(Named("train", "train", "", "_extra-00000-of-00002-9df3e0c4b0b8ae2c"))
    'train_extra'
    """
    if year := YEAR.match(named.after):
        named = named._replace(name=named.name + year.group(), after=named.after[year.end() :])
    words = re.split(r"[\W_]+", named.after)
    return "_".join([named.name, *(w for w in words if w and not SHARD.fullmatch(w.lower()))])
