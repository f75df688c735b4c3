"""Find the Parquet files of each split of a data set, in a folder or on the Hugging Face hub."""

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from regrow.data.files import files_below
from regrow.data.spec import DataSpec
from regrow.data.splits import SPLIT_NAMES, split_within
from regrow.errors import ConfigError, DataError

SHOWN = 5  # configurations, in a message
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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


def find(spec: DataSpec) -> SplitFiles:
    """Find the Parquet files of each split."""
    base = _base(spec)
    files = [file for file in files_below(base) if file.suffix.lower() == ".parquet"]
    places = {file: place for file in files if (place := _place(file, base)) is not None}
    by_split: dict[str, list[Path]] = {}
    for file, place in places.items():
        by_split.setdefault(place.split, []).append(file)
    if "train" not in by_split:
        got = f"got {', '.join(f.name for f in files[:3])}" if files else "there are none"
        raise DataError(
            f"Data set {spec.name!r}: expected Parquet files named train-*.parquet and "
            f"test-*.parquet (or validation-*) below {base}, {got}."
        )
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
        return _Place("/".join([*outer, *filter(None, [named.before])]), named.split, named.name)
    for depth in reversed(range(len(folders))):
        if (named := split_within(folders[depth])) is not None:
            outer = [*folders[:depth], *filter(None, [named.before])]
            return _Place("/".join(outer), named.split, named.name)
    named = None if folders else split_within(base.name)
    return named and _Place("", named.split, named.name)


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


def _base(spec: DataSpec) -> Path:
    local = Path(spec.location).expanduser().absolute()
    if local.is_dir():
        return local
    if not HUB_ID.match(spec.location) or spec.location.startswith("."):
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}. Give a folder that holds Parquet "
            "files, or the id of a data set on the Hugging Face hub such as 'uoft-cs/cifar10'."
        )
    return _from_hub(spec, local)


def _from_hub(spec: DataSpec, local: Path) -> Path:
    """Download OWNER/NAME or OWNER/NAME/FOLDER, or find it in the hub's cache; return its path."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"Data set {spec.name!r}: there is no folder {local}, and reading from the Hugging "
            "Face hub needs the package huggingface-hub. Install it: pip install 'regrow[hub]'."
        ) from error
    owner, name, *inner = spec.location.split("/")
    within = "/".join(inner)
    try:
        snapshot = snapshot_download(
            f"{owner}/{name}",
            repo_type="dataset",
            allow_patterns=[f"{within}/*.parquet" if within else "*.parquet"],
        )
    except Exception as error:  # the client's own, those of its HTTP library, and OSError
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}, and '{owner}/{name}' cannot be "
            f"fetched from the Hugging Face hub ({type(error).__name__}: {reason}). Check the name "
            "and the network, or give the folder of a copy."
        ) from error
    return Path(snapshot) / within
