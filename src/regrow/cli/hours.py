"""The option ``--hours``: shorten the training of a study, or of a paper's table, to H hours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from regrow.cli.inputs import load_study, open_store
from regrow.cli.terminal import console, count, say
from regrow.core.durations import epochs_in_words, in_words
from regrow.core.texts import visible
from regrow.errors import ConfigError
from regrow.studies.yaml_file import pairs

if TYPE_CHECKING:
    from regrow.reproduce.images import Request
    from regrow.reproduce.paper import Entry
    from regrow.run.estimate import Rates
    from regrow.run.hours import BudgetCost, Fit
    from regrow.run.precision import PrecisionChoice
    from regrow.store import Store
    from regrow.studies.expand import Cell
    from regrow.studies.study import Study

HoursOption = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        help="Reduce the epochs of all recipes in proportion, so that everything fits into H hours "
        "on this machine; rows whose training would be too short to learn are left out.",
        show_default="the recipes' epochs",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ChosenBudget:
    """A training budget that fits into the hours, and its name in the store."""

    name: str
    fit: "Fit"

    def keep(self, store: "Store") -> None:
        """Save it in a store, for all later commands."""
        from regrow.run.hours import keep

        keep(store, self.name, self.fit)


def load_within(
    hours: float | None,
    path: Path,
    store: Path,
    *,
    data: Sequence[str] | None,
    workers: int | None = None,
    device: str = "cpu",
    measure: bool = True,
) -> "tuple[Study, PrecisionChoice, Callable[[Store], None]]":
    """Read a study, and shorten it to fit into a number of hours if one is given.

    Also returns its choice of precision, and a function that saves all choices in a store.
    Without ``measure`` nothing is timed, so a budget for ``hours`` must already be in the store.
    """
    study, choice = load_study(path, store, data=data, device=device, measure=measure)
    if measure:
        from regrow.studies.lint import rounded_budgets

        for remark in rounded_budgets(study):
            say(f"Note: {remark.reason}. Instead: {remark.remedy}.")
    if hours is None:
        return study, choice, choice.keep
    study, chosen = _study_within(
        hours,
        study,
        path,
        store,
        choice=choice,
        data=data,
        workers=workers,
        device=device,
        measure=measure,
    )

    def keep(opened: "Store") -> None:
        choice.keep(opened)
        chosen.keep(opened)

    return study, choice, keep


def _study_within(
    hours: float,
    study: "Study",
    path: Path,
    store: Path,
    *,
    choice: "PrecisionChoice",
    data: Sequence[str] | None,
    workers: int | None,
    device: str,
    measure: bool,
) -> "tuple[Study, ChosenBudget]":
    """Return a study at the largest training budget that fits into the hours, and print which."""
    from regrow.reproduce.scales import Scale, scaled
    from regrow.run.hours import check_hours, chosen, fit, name_of, network_of
    from regrow.studies.study import Study

    check_hours(hours, device=device)
    if study.own:
        raise ConfigError(
            "--hours shortens the epochs of recipes, but the networks of this study are trained "
            "by your own function. Leave --hours out, and give the function a smaller 'budget'."
        )
    of, replacements = study.longest, pairs(data or ())
    axis = sorted({e.budget for e in study.experiments if e.budget is not None})

    def at(epochs: int) -> "Study":
        """Return the study with its longest recipe at these epochs, or with budgets up to them."""
        if axis:
            upto = tuple(e for e in study.experiments if e.budget is None or e.budget <= epochs)
            return replace(study, experiments=upto)
        scale = Scale(name="hours", about="", epochs=epochs / of)
        return Study.load(path, choice, data=replacements, change=partial(scaled, scale=scale))

    def choose() -> "Fit":
        expand = lambda epochs: at(epochs).cells()  # noqa: E731
        return fit(expand, epochs=of, hours=hours, workers=_workers(workers), axis=axis)

    name = name_of("study", study.name, replacements, hours)
    opened = open_store(store, create=False) if store.exists() else None
    found = chosen(opened, name, _told(choose) if measure else None, hours=hours, of=of)
    for sentence in found.words:
        say(sentence)
    shorter = at(found.epochs)
    kept = tuple(e for e in shorter.experiments if network_of(e) not in found.without)
    within = replace(shorter, experiments=kept, notes=found.words)
    return within, ChosenBudget(name=name, fit=found)


def request_within(
    hours: float,
    entry: "Entry",
    request: "Request",
    store: Path,
    *,
    workers: int | None,
) -> "tuple[Request, ChosenBudget]":
    """Return a request for a table at the largest training budget that fits, and print which."""
    from regrow.reproduce.plan import prepare
    from regrow.reproduce.scales import shortened
    from regrow.run.hours import chosen, fit, name_of

    of = prepare(entry, request).longest

    def at(epochs: int) -> "Request":
        return replace(request, scale=shortened(request.scale, epochs / of))

    def cells(epochs: int) -> "list[Cell]":
        return [one.cell for part in prepare(entry, at(epochs)).parts for one in part.cells]

    def choose() -> "Fit":
        return fit(cells, epochs=of, hours=hours, workers=_workers(workers))

    options = (request.data, request.seeds, request.only, request.precision)
    name = name_of(entry.full_name, request.scale.name, options, hours)
    opened = open_store(store, create=False) if store.exists() else None
    found = chosen(opened, name, _told(choose), hours=hours, of=of)
    for sentence in found.words:
        say(sentence)
    smaller = replace(at(found.epochs), without=found.without, budget=found.words)
    return smaller, ChosenBudget(name=name, fit=found)


def _workers(workers: int | None) -> int:
    from regrow.run import num_cores

    return max(num_cores() if workers is None else workers, 1)


def _told(choose: "Callable[[], Fit]") -> "Callable[[], Fit]":
    """Make a choice first say that it times the networks, which takes a while."""

    def tell() -> "Fit":
        say("Timing the networks for --hours ...")
        return choose()

    return tell


def print_rows(cells: "Sequence[Cell]", rates: "Rates", *, workers: int) -> None:
    """Print each row's epochs, and hours and FLOPs over its seeds, including finished jobs."""
    from regrow.run.hours import row_costs

    table = Table("row", *(Column(name, justify="right") for name in ("epochs", "hours", "FLOPs")))
    for row in row_costs(cells, rates, workers=workers):
        epochs = "" if row.epochs is None else f"{row.epochs:.4g}"
        hours = f"{row.seconds / 3600:.3g}"
        table.add_row(Text(visible(row.label)), epochs, hours, f"{row.training_flops:.2e}")
    console().print(table)


def print_budgets(costs: "Sequence[BudgetCost]", *, workers: int) -> None:
    """Print the jobs, updates, FLOPs and time of each training budget, including finished jobs."""
    names = ("jobs", "updates", "FLOPs", "time")
    table = Table(
        "training budget",
        *(Column(name, justify="right") for name in names),
        caption=f"Updates of the unpruned networks; time with {count(workers, 'worker')}.",
    )
    for cost in costs:
        updates = " to ".join(f"{n:,}" for n in dict.fromkeys(cost.updates[:1] + cost.updates[-1:]))
        table.add_row(
            epochs_in_words(cost.budget),
            str(cost.jobs),
            updates,
            f"{cost.training_flops:.3g}",
            in_words(cost.seconds),
        )
    console().print(table)
