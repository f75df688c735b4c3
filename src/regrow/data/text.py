"""Text as bytes, for next-byte prediction: ``text:PATH``, a file or a folder of files."""

import hashlib
from pathlib import Path

import torch

from regrow.core.bounds import read_whole
from regrow.core.texts import quoted
from regrow.data.base import Arrays, Rows
from regrow.data.files import files_below
from regrow.data.spec import DataSpec, register_data
from regrow.data.splits import split_called, split_within
from regrow.errors import DataError

LENGTH = 128  # bytes of a window
BYTES = 256
SHOWN = 5  # files, in a notice
LARGER = 10  # memory over file size: each byte becomes an int64


def _files(spec: DataSpec) -> list[Path]:
    path = Path(spec.location).expanduser()
    files = [path] if path.is_file() else files_below(path) if path.is_dir() else []
    if not files:
        raise DataError(
            f"Data set {spec.name!r}: no text there. Give the path of a file, or of a folder with "
            "files."
        )
    return files


def _splits(spec: DataSpec) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Join the bytes of each split, in the order of the files' names; also return notices.

    A file belongs to the split that it, or its top folder below PATH, is named after, else to the
    training split. If none is, names may contain their split (wiki.train.tokens); then files whose
    names do not are not read.
    """
    files = _files(spec)
    root = Path(spec.location).expanduser()
    tops = {file: _top(file, root) for file in files}
    named = {file: split_called(Path(top).stem) for file, top in tops.items()}
    notices: tuple[str, ...] = ()
    within = {file: found.split for file in files if (found := split_within(tops[file]))}
    if not any(named.values()) and "train" in within.values() and len({*within.values()}) > 1:
        named = {**within}
        if ignored := [file.name for file in files if file not in within]:
            notices = (
                f"Data set {spec.name!r}: these files are not read, because their names match no "
                f"split: {quoted(ignored, SHOWN)}.",
            )
    by_split: dict[str, list[bytes]] = {}
    for file, split in named.items():
        try:
            by_split.setdefault(split or "train", []).append(read_whole(file, times=LARGER))
        except OSError as error:
            raise DataError(f"{file}: the text cannot be read ({error.strerror}).") from error
    return {name: b"".join(parts) for name, parts in by_split.items()}, notices


def _top(file: Path, root: Path) -> str:
    """Return the name of the file, or of the folder just below ``root`` that holds it."""
    return file.relative_to(root).parts[0] if root.is_dir() else file.name


def _digest(spec: DataSpec) -> str:
    sha = hashlib.sha256()
    for name, text in sorted(_splits(spec)[0].items()):
        sha.update(f"{name} {len(text)}\n".encode() + text)
    return sha.hexdigest()


@register_data("text:", content=_digest)
def text(spec: DataSpec) -> Arrays:
    """Read text as windows of ``length`` bytes; the target at each position is the next byte.

    Files or folders named train, test and validation (or wiki.train, wiki.test) are these splits;
    without a test split, a fifth of the windows is drawn for testing.
    """
    length = spec.length or LENGTH
    splits, notices = _splits(spec)
    rows = {name: _windows(joined, length) for name, joined in splits.items()}
    for name, part in rows.items():
        if len(part.inputs) < 2:
            raise DataError(
                f"Data set {spec.name!r}: the {name} text is too short for two windows of {length} "
                "bytes. Give more text, or a smaller 'length'."
            )
    if "train" not in rows:
        raise DataError(f"Data set {spec.name!r}: it has no text to train on.")
    return Arrays(
        task="language-modelling",
        train=rows["train"],
        test=rows.get("test"),
        validation=rows.get("validation"),
        classes=tuple(str(byte) for byte in range(BYTES)),
        vocabulary=BYTES,
        notices=notices,
    )


def _windows(joined: bytes, length: int) -> Rows:
    """Cut text into windows that do not overlap; the bytes after the last one are left out."""
    values = torch.frombuffer(bytearray(joined), dtype=torch.uint8) if joined else torch.empty(0)
    num = max(0, (len(values) - 1) // length)
    inputs = values[: num * length].reshape(num, length).to(torch.int64)
    targets = values[1 : num * length + 1].reshape(num, length).to(torch.int64)
    return Rows(inputs=inputs, targets=targets)
