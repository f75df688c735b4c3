"""The numbers that a figure plots: a frame for its CSV, and rows of text for display.

Points that have not been run are marked in the rows, and have n = 0 in the frame or are missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from regrow.jobs.arms import UNPRUNED, Start
from regrow.report import words
from regrow.report.rows import Run
from regrow.report.statistics import mean_and_std
from regrow.reproduce.curves import POINT
from regrow.reproduce.known import KNOWN, known_of, typed
from regrow.reproduce.layout import NOT_RUN
from regrow.reproduce.measures import COLUMNS, FINEST
from regrow.reproduce.paper import Kind
from regrow.reproduce.plan import Plan, PlannedCell
from regrow.reproduce.printed import FIGURES, records
from regrow.reproduce.results import StudyResults, averaged
from regrow.reproduce.weights import BIN, NEAR, near_zero

HEAT = ("stage", "kernel_row", "kernel_col")
STAGES = ("3", "4", "5")  # those that Figure 4 shows
POSITIONS = ("1", "2", "3")
# Series of Figure 7 by the start of their arms; the control with redrawn weights has no series.
TICKETS: Mapping[Start, str] = {"initial": "winning ticket", "random": "random"}
BINS = (60, 120, 200, 300, 600, 1200, 3000, FINEST)  # numbers that divide FINEST
TOP = 30_000  # upper limit of Figure 8's vertical axis
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """The numbers of a figure: in a frame, and as text under the names of its columns.

    ``condition`` names the scale and the images where they are not the paper's.
    """

    name: str
    kind: Kind
    caption: str
    condition: str
    frame: pd.DataFrame
    panels: tuple[str, ...]
    columns: Row
    rows: tuple[Row, ...]

    @property
    def summary(self) -> str:
        """The number of rows that have been run."""
        finished = sum(NOT_RUN not in row for row in self.rows)
        return f"{finished} of {len(self.rows)} rows have been run"


def gather(plan: Plan, results: Sequence[StudyResults]) -> FigureData | None:
    """Gather the numbers that a figure plots; None for a table."""
    entry = plan.entry
    if entry.kind not in GATHER:
        return None
    frame, rows, columns = GATHER[entry.kind](results)
    cells = [planned for part in results for planned in part.part.cells]
    return FigureData(
        name=entry.name,
        kind=entry.kind,
        caption=entry.about,
        condition=_condition(plan),
        frame=frame,
        panels=tuple(dict.fromkeys(planned.panel for planned in cells)),
        columns=columns,
        rows=tuple(rows),
    )


def _condition(plan: Plan) -> str:
    conditions = (
        [f"scale {plan.scale.name}"] if any(part.scale_departs for part in plan.parts) else []
    )
    used = (images for part in plan.parts for planned in part.cells for images in planned.images)
    for images in dict.fromkeys(used):
        conditions += (
            [f"{Path(images.spec.name).name} for {images.dataset}"] if images.stands_in else []
        )
    return ", ".join(dict.fromkeys(conditions))


Gathered = tuple[pd.DataFrame, Iterator[Row], Row]


def _curves(results: Sequence[StudyResults]) -> Gathered:
    return _points(
        results, lambda planned: [planned.cell.use.label if planned.cell.use else UNPRUNED.name]
    )


def _tickets(results: Sequence[StudyResults]) -> Gathered:
    return _points(results, _ticket_series)


def _ticket_series(planned: PlannedCell) -> list[str]:
    """Return the series of a cell: none for a control, both for the unpruned network."""
    rate = f"rate {planned.cell.experiment.recipe.lr:g}"
    if planned.cell.arm == UNPRUNED:
        return [f"{start}, {rate}" for start in TICKETS.values()]
    start = planned.cell.arm.start
    return [f"{TICKETS[start]}, {rate}"] if start in TICKETS else []


def _points(
    results: Sequence[StudyResults], series: Callable[[PlannedCell], list[str]]
) -> Gathered:
    groups: dict[tuple[str, str, float], list[Run]] = {}
    for study in results:
        for printable, run in zip(study.part.cells, study.runs, strict=True):
            cut = printable.cell.cut
            ratio = (cut.sparsity if cut else None) or 0.0
            for name in series(printable):
                groups.setdefault((printable.panel, name, ratio), []).append(run)
    panels, names = (list(dict.fromkeys(place[i] for place in groups)) for i in (0, 1))
    places = sorted(groups, key=lambda p: (panels.index(p[0]), names.index(p[1]), p[2]))
    points = [
        {
            **dict(zip(POINT, (*place, *_figures(groups[place])), strict=True)),
            **known_of(groups[place]),
        }
        for place in places
    ]
    frame = typed(pd.DataFrame(points, columns=[*POINT, *KNOWN]))
    columns = ("panel", "series", "sparsity", "parameters", "accuracy %", "n")
    return frame, _point_rows(frame), columns


def _figures(runs: Sequence[Run]) -> tuple[float | None, float | None, float | None, int, int]:
    finished = [run for run in runs if run.score is not None and run.parameters is not None]
    if not finished:
        return None, None, None, 0, len(runs)
    mean, std = mean_and_std([run.score for run in finished if run.score is not None])
    sizes = [run.parameters for run in finished if run.parameters is not None]
    return sum(sizes) / len(sizes), mean, std, len(finished), len(runs)


def _point_rows(frame: pd.DataFrame) -> Iterator[Row]:
    for row in records(frame):
        n = int(row["n"])
        std = None if pd.isna(row["std"]) else row["std"]
        yield (
            row["panel"],
            row["series"],
            f"{row['ratio']:.4g}",
            words.quantity(row["parameters"]) if n else NOT_RUN,
            words.score(row["mean"] if n else None, std, n),
            words.seeds(n, int(row["n_expected"])),
        )


def _heatmaps(results: Sequence[StudyResults]) -> Gathered:
    frame = averaged(results, HEAT)
    frame = frame[frame["stage"].isin(STAGES)].reset_index(drop=True)
    columns = ("stage", "kernel row", *(f"column {place}" for place in POSITIONS), "n")
    return frame, _heat_rows(frame), columns


def _heat_rows(frame: pd.DataFrame) -> Iterator[Row]:
    by_place = {tuple(row[name] for name in HEAT): row for row in records(frame)}
    for stage in STAGES:
        for i in POSITIONS:
            row = [by_place.get((stage, i, j)) for j in POSITIONS]
            shares = [f"{cell['mean']:.3f}" if cell else NOT_RUN for cell in row]
            yield stage, i, *shares, str(row[0]["n"]) if row[0] else "0"


def _histograms(results: Sequence[StudyResults]) -> Gathered:
    fine = pd.concat([study.measured for study in results], ignore_index=True)
    panels = dict.fromkeys(cell.panel for study in results for cell in study.part.cells)
    columns = ("panel", "column", "weights", f"share below {NEAR:g}", "std")
    return _described(_merged(fine), results), _histogram_rows(fine, [*panels]), columns


def _described(bins: pd.DataFrame, results: Sequence[StudyResults]) -> pd.DataFrame:
    """Add to each network's bins its score and the columns of ``KNOWN``."""
    networks: dict[tuple[str, str], Run] = {}
    for study in results:
        for cell, run in zip(study.part.cells, study.runs, strict=False):
            if run.score is not None:
                networks.setdefault((cell.panel, COLUMNS[cell.cell.arm.start]), run)
    columns_known = pd.DataFrame(
        [
            {"panel": panel, "column": column, "mean": run.score, "std": None, "n": 1}
            | known_of([run])
            for (panel, column), run in networks.items()
        ],
        columns=["panel", "column", *FIGURES, *KNOWN],
    )
    return typed(bins.merge(columns_known, how="left", on=["panel", "column"]))


def _merged(fine: pd.DataFrame) -> pd.DataFrame:
    """Merge the finest bins into the fewest whose counts all fit on the paper's axis.

    The first and the last bin of each network extend to infinity, and are not merged.
    """
    if not len(fine):
        return pd.DataFrame(columns=[*BIN]).astype({"low": float, "high": float})
    networks = [rows for _, rows in fine.groupby(["panel", "column"], sort=False)]
    for bins in BINS:
        num_merged = FINEST // bins
        merged = pd.concat([_in_groups(rows, num_merged) for rows in networks], ignore_index=True)
        inside = merged[merged["low"].abs() + merged["high"].abs() < float("inf")]
        if inside["value"].max() <= TOP:
            break
    return merged[[*BIN]]


def _in_groups(rows: pd.DataFrame, size: int) -> pd.DataFrame:
    number = pd.Series([-1, *(i // size for i in range(FINEST)), FINEST], index=rows.index)
    parts = {"panel": "first", "column": "first", "low": "min", "high": "max", "value": "sum"}
    return rows.groupby(number).agg(parts)


def _histogram_rows(frame: pd.DataFrame, panels: Sequence[str]) -> Iterator[Row]:
    for panel in panels:
        for column in COLUMNS.values():
            bins = frame.query("panel == @panel and column == @column") if len(frame) else frame
            if not len(bins) or not (total := bins["value"].sum()):
                yield panel, column, NOT_RUN, NOT_RUN, NOT_RUN
                continue
            inside = bins[(bins["low"] > -float("inf")) & (bins["high"] < float("inf"))]
            middle = (inside["low"] + inside["high"]) / 2
            spread = (inside["value"] * middle**2).sum() / inside["value"].sum()
            yield panel, column, f"{total:,}", f"{near_zero(bins):.3f}", f"{spread**0.5:.4f}"


GATHER: dict[Kind, Callable[[Sequence[StudyResults]], Gathered]] = {
    "curves": _curves,
    "tickets": _tickets,
    "heatmaps": _heatmaps,
    "histograms": _histograms,
}


def plain(figure: FigureData) -> str:
    """Return the numbers as aligned text; repeated values in the first two columns appear once."""
    rows = [figure.columns, *_once(figure.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([f"{title(figure)}", "", lines[0], "-" * len(lines[0]), *lines[1:], ""])


def markdown(figure: FigureData) -> str:
    """Return the numbers as a Markdown table."""
    lines = [f"| {' | '.join(figure.columns)} |", "|---|---|" + "---:|" * (len(figure.columns) - 2)]
    lines += [f"| {' | '.join(row)} |" for row in _once(figure.rows)]
    return "\n".join([*lines, ""])


def title(figure: FigureData) -> str:
    """Return a figure's name and caption."""
    return f"{figure.name.replace('-', ' ').capitalize()}. {figure.caption}"


def _once(rows: Sequence[Row]) -> list[Row]:
    """Blank the values of the first two columns that repeat those of the row above."""
    sparse: list[Row] = []
    for previous, row in zip([None, *rows], rows, strict=False):
        num_repeated = 0
        while (
            previous is not None
            and num_repeated < 2
            and previous[num_repeated] == row[num_repeated]
        ):
            num_repeated += 1
        sparse.append(("",) * num_repeated + row[num_repeated:])
    return sparse
