"""The numbers that a reproduction wrote, read back from its folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from regrow.errors import ConfigError
from regrow.reproduce.curves import POINT
from regrow.reproduce.known import KNOWN
from regrow.reproduce.paper import RESULT, SPARSITY, WIDTH, Kind, Paper
from regrow.reproduce.printed import FIGURES, NEEDED, results
from regrow.reproduce.weights import BIN

FILES = {RESULT: "cells.csv", WIDTH: "widths.csv", SPARSITY: "sparsity.csv"}
CELL_NUMBERS = ("table", *FIGURES)
# Numbers of cells that have not been run, std of single runs, and unknown facts.
MAY_BE_EMPTY = ("mean", "std", "parameters", *KNOWN)


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """The numbers that ``regrow reproduce`` wrote: accuracies, and other measurements.

    ``widths`` and ``sparsity`` (shares kept) are cells of tables. ``curves``: the points of figures
    with curves (``curves.POINT``), with the figure's number in ``figure``. ``weights``: the bins of
    Figure 8 (``weights.BIN``).
    """

    results: pd.DataFrame
    widths: pd.DataFrame | None = None
    sparsity: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    weights: pd.DataFrame | None = None


def read_cells(paper: Paper, folder: Path) -> Reproduced:
    """Read the numbers that a reproduction wrote into a folder, or into its subfolders."""
    cells_of = {
        names: _read(folder, file, NEEDED if names == RESULT else (*names, *FIGURES), CELL_NUMBERS)
        for names, file in FILES.items()
    }
    curves = _joined(
        frame.assign(figure=int(name.removeprefix("figure-")))
        for name in _figures(paper, "curves", "tickets")
        if (frame := _read(folder, f"{name}.csv", POINT, POINT[2:])) is not None
    )
    weights = _joined(
        frame
        for name in _figures(paper, "histograms")
        if (frame := _read(folder, f"{name}.csv", BIN, BIN[2:])) is not None
    )
    accuracies, widths, sparsity = (cells_of[names] for names in (RESULT, WIDTH, SPARSITY))
    if all(frame is None for frame in (accuracies, widths, sparsity, curves, weights)):
        raise ConfigError(
            f"There is no {', '.join(FILES.values())} and no numbers of a figure in '{folder}' nor "
            "in the folders in it. Name the folder that `regrow reproduce` wrote."
        )
    return Reproduced(
        results=results(paper)[:0] if accuracies is None else accuracies,
        widths=widths,
        sparsity=sparsity,
        curves=curves,
        weights=weights,
    )


def _figures(paper: Paper, *kinds: Kind) -> list[str]:
    return [entry.name for entry in paper.entries.values() if entry.kind in kinds]


def _joined(frames: Iterable[pd.DataFrame]) -> pd.DataFrame | None:
    present = list(frames)
    return pd.concat(present, ignore_index=True) if present else None


def _read(
    folder: Path, name: str, columns: Sequence[str], numbers: Sequence[str]
) -> pd.DataFrame | None:
    """Read the files with a name in a folder, or in its subfolders; None if there is none."""
    files = [folder / name] if (folder / name).is_file() else sorted(folder.glob(f"*/{name}"))
    frame = _joined(_checked(file, columns, numbers) for file in files)
    return None if frame is None else frame.drop_duplicates(ignore_index=True)


def _checked(file: Path, columns: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """Read a file, and check its columns and numbers, because a person may have edited it."""
    remedy = "Undo the change, or write the file again with the `regrow reproduce` that wrote it."
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas raises ValueError for bad content
        raise ConfigError(f"Cannot read '{file}' as a table: {error}. {remedy}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas makes an index of surplus cells
        raise ConfigError(
            f"Cannot read '{file}' as a table: its lines have more cells than its head, perhaps by "
            f"decimal commas. {remedy}"
        )
    if missing := [name for name in columns if name not in frame]:
        raise ConfigError(
            f"'{file}' must have the columns {', '.join(columns)}. Missing: {', '.join(missing)}. "
            f"Got: {', '.join(map(str, frame.columns))}. {remedy}"
        )
    for name in (*numbers, *KNOWN):
        if name not in frame:
            continue  # the file was written before this column existed
        values = pd.to_numeric(frame[name], errors="coerce")
        wrong = frame[name][values.isna() & ~(frame[name].eq("") & (name in MAY_BE_EMPTY))]
        if len(wrong):
            raise ConfigError(
                f"The column '{name}' of '{file}' must hold numbers. Got {wrong.iloc[0]!r} in line "
                f"{wrong.index[0] + 2}. {remedy}"
            )
        frame[name] = values
    return frame
