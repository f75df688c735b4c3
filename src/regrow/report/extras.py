"""Further tables of a report: cost targets, tuned arms, and scores other than the metric."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from regrow.report.render import Extra
from regrow.report.rows import KEPT, POINTS, SHARE, TEXT, Column, Run, to_csv, to_frame
from regrow.report.statistics import mean_and_std
from regrow.report.tuning import tuning_csv, tuning_rows, tuning_words
from regrow.report.words import score
from regrow.tasks import Details

COLUMNS = {"data": TEXT, "model": TEXT, "pruned by": TEXT, "asked": SHARE, "left": KEPT}
ABOUT = (
    "A cost target is the largest share of the unpruned network's cost that may remain. MACs and "
    "parameters are counted on the pruned network; a latency is measured, so that it differs from "
    "machine to machine and from run to run. Means over seeds."
)

TUNED = (
    "The trial with the best mean score on the validation split represents its arm in "
    "comparisons; the test set takes no part in the choice. Training FLOPs are those of all trials "
    "and of the trainings that they depend on. The expected validation score is that of the best "
    "of so many trials drawn at random (Dodge et al., 2019)."
)


def cost_targets(runs: Iterable[Run]) -> tuple[Extra, ...]:
    """Return the table of cost targets, if a study has any."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.cost_left is not None and run.cost_asked is not None:
            groups.setdefault(run.group, []).append(run)
    if not groups:
        return ()
    rows = [_row(group) for group in groups.values()]
    columns = {**COLUMNS, "measured on": TEXT}
    return (
        Extra(
            name="costs",
            title="Cost targets",
            columns=("pruned by", "asked", "left", "measured on"),
            rows=tuple(_words(row) for row in rows),
            about=ABOUT,
            csv=to_csv(to_frame(rows, columns), columns),
        ),
    )


def tuning(runs: Sequence[Run]) -> tuple[Extra, ...]:
    """Return the table of tuned arms, if any: the choice, its cost, and fewer trials."""
    rows = tuning_rows(runs)
    if not rows:
        return ()
    return (
        Extra(
            name="tuning",
            title="Tuned arms",
            columns=(
                *("pruned by", "arm", "trials", "chosen", "score on validation", "training FLOPs"),
                "expected score on validation of 1, 2, ... trials",
            ),
            rows=tuning_words(rows),
            about=TUNED,
            csv=tuning_csv(rows),
            names=2,
        ),
    )


def _row(runs: Sequence[Run]) -> dict[str, object]:
    first = runs[0]
    remaining = {
        run.seed: run.cost_left for run in runs if run.cost_left is not None
    }  # the same for all arms
    places = dict.fromkeys(run.cost_machine for run in runs if run.cost_machine)
    return {
        "data": first.data,
        "model": first.model,
        "pruned by": first.cut_at,
        "asked": first.cost_asked,
        "left": sum(remaining.values()) / len(remaining),
        "measured on": "; ".join(places),
    }


def _words(row: dict[str, object]) -> tuple[str, ...]:
    name = f"{row['data']} / {row['model']} / {row['pruned by']}"
    return name, f"{row['asked']:g}", f"{row['left']:.4f}", str(row["measured on"])


def details_table(details: Details, rows: Sequence[Mapping[str, Any]], *, last: str) -> Extra:
    """Return a table of further scores by arm: averaged over seeds, and for each seed as CSV.

    ``rows`` have a ``cut``, an ``arm``, a ``seed`` and scores by column; ``last`` is the last
    column.
    """
    named = ("cut", "arm", "seed")
    names = dict.fromkeys(name for row in rows for name in row if name not in named)
    measured = sorted(names, key=lambda name: name == last)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['cut']} {row['arm']}".lstrip(), []).append(row)
    columns: dict[str, Column] = dict.fromkeys(named, TEXT) | dict.fromkeys(measured, POINTS)
    frame = pd.DataFrame([{name: row.get(name) for name in columns} for row in rows])
    return Extra(
        name=details.name,
        title=details.title,
        columns=("arm", *measured),
        rows=tuple(
            (arm, *(_mean([row.get(name) for row in group]) for name in measured))
            for arm, group in groups.items()
        ),
        about=details.about,
        csv=to_csv(frame, columns),
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return score(*mean_and_std(known), len(known)) if known else ""
