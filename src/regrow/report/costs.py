"""The table of costs that a study asked for: what was asked, what is left, how it was measured."""

from collections.abc import Iterable, Sequence

from regrow.report.render import Extra
from regrow.report.rows import KEPT, SHARE, TEXT, Run, to_csv, to_frame

COLUMNS = {"data": TEXT, "model": TEXT, "pruned by": TEXT, "asked": SHARE, "left": KEPT}
ABOUT = (
    "A cost target is the largest share of the unpruned network's cost that may remain. MACs and "
    "parameters are counted on the pruned network; a latency is measured, so that it differs from "
    "machine to machine and from run to run. Means over seeds."
)


def cost_targets(runs: Iterable[Run]) -> tuple[Extra, ...]:
    """Return a table of the costs that rows were asked for, if any were."""
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
            title="Costs asked for",
            columns=("pruned by", "asked", "left", "measured on"),
            rows=tuple(_words(row) for row in rows),
            about=ABOUT,
            csv=to_csv(to_frame(rows, columns), columns),
        ),
    )


def _row(runs: Sequence[Run]) -> dict[str, object]:
    first = runs[0]
    remaining = {
        run.seed: run.cost_left for run in runs if run.cost_left is not None
    }  # alike by arms
    places = dict.fromkeys(run.cost_machine for run in runs if run.cost_machine)
    return {
        "data": first.data,
        "model": first.model,
        "pruned by": first.cut,
        "asked": first.cost_asked,
        "left": sum(remaining.values()) / len(remaining),
        "measured on": "; ".join(places),
    }


def _words(row: dict[str, object]) -> tuple[str, ...]:
    name = f"{row['data']} / {row['model']} / {row['pruned by']}"
    return name, f"{row['asked']:g}", f"{row['left']:.4f}", str(row["measured on"])
