"""Find which split each file of a data set belongs to, by the names of files and folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from regrow.data.spec import DataSpec
from regrow.data.splits import SPLIT_NAMES, Named, split_within
from regrow.errors import DataError

SHOWN = 5  # configurations, in a message
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


def split_files(spec: DataSpec, base: Path, files: Sequence[Path]) -> SplitFiles:
    """Group files below ``base`` by split; those whose names match no split are in the notice.

    Files of several configurations, or of several splits such as train and train_extra, that would
    be read as one split raise a ``DataError``.
    """
    places = {file: place for file in files if (place := _place(file, base)) is not None}
    if not places and (named := split_within(base.name)) is not None:
        place = _Place("", named.split, _variant(named))
        places = {file: place for file in files if file.parent == base}
    by_split: dict[str, list[Path]] = {}
    for file, place in places.items():
        by_split.setdefault(place.split, []).append(file)
    _check_places(spec, base, places)
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


def _check_places(spec: DataSpec, base: Path, places: dict[Path, _Place]) -> None:
    """Raise if files of several configurations or splits would be read as one split."""
    configurations: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for place in places.values():
        configurations.setdefault(place.split, set()).add(place.configuration)
        names.setdefault(place.split, set()).add(place.name)
    if any(len(folders_of_split) > 1 for folders_of_split in configurations.values()):
        every = sorted(set().union(*configurations.values()))
        folders = [name for name in every if name and (base / name).is_dir()]
        advice = (
            f"Add the name of one of them to the path, such as '{spec.name}/{folders[0]}'."
            if folders
            else "Move each to its own folder, and give the path of one."
        )
        raise DataError(
            f"Data set {spec.name!r}: {base} holds several configurations "
            f"({', '.join(name or '.' for name in every[:SHOWN])}"
            f"{', ...' if len(every) > SHOWN else ''}). {advice}"
        )
    for split, folders_of_split in names.items():
        if len(folders_of_split) > 1:
            raise DataError(
                f"Data set {spec.name!r}: {base} holds several {split} splits "
                f"({', '.join(sorted(folders_of_split))}). Move all but one of them elsewhere."
            )


def _variant(named: Named) -> str:
    """Return a split's name with the words after it, such as train_extra, but not those of shards.

    >>> _variant(Named("train", "train", "", "_extra-00000-of-00002-9df3e0c4b0b8ae2c"))
    'train_extra'
    """
    words = re.split(r"[\W_]+", named.after)
    return "_".join([named.name, *(w for w in words if w and not SHARD.fullmatch(w.lower()))])
