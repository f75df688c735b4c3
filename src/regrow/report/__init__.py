"""Reports: records turned into rows, tables, figures, and an answer in words.

``write`` writes a whole report into a folder: ``report.md`` (to read, with date and machine),
``how.json`` (date, machine and versions for programs), ``table.tex``, ``rows.csv`` and
``rows.parquet`` (one row per cell and arm), ``runs.csv`` (one row per seed), ``verdicts.csv`` and
the figures as PNG and SVG; for a study with several training budgets also ``budgets.csv``,
``budget-differences.csv`` and ``budget-answers.csv``. All files but ``report.md`` and ``how.json``
depend on the results alone. Commands add ``ledger.csv`` (``report.ledger``): the cost of each row,
including seconds and energy.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from regrow.core.disk import FULL, filling, why
from regrow.core.machine import versions
from regrow.core.texts import code_span, listed, one_line, visible
from regrow.errors import ConfigError
from regrow.jobs.arms import OF_FLOPS
from regrow.report import figures
from regrow.report.advice import advice
from regrow.report.answer import answer
from regrow.report.budget_figures import draw_budgets
from regrow.report.budget_gains import Gains, at_largest, rows_of
from regrow.report.budget_tables import csv_files as budget_files
from regrow.report.budget_tables import latex_tables
from regrow.report.budget_tables import tables as budget_tables
from regrow.report.budget_words import answers as budget_answers
from regrow.report.budget_words import schedule_notes, unspent_notes
from regrow.report.budgets import Curve, curves
from regrow.report.contest_words import answers, csv_files, tables
from regrow.report.contests import Contest, contests
from regrow.report.crossing import winner_line
from regrow.report.extras import cost_targets, tuning
from regrow.report.figures import SavedFigure
from regrow.report.method_figures import draw_methods
from regrow.report.render import Extra, Failure, Page, blocks, latex, markdown, terminal
from regrow.report.rows import (
    Run,
    metrics_of,
    once,
    row_columns,
    run_columns,
    runs_frame,
    summarise,
    to_csv,
)
from regrow.report.tuning import unequal_trials
from regrow.report.verdict import VERDICT_COLUMNS, Verdict, verdicts, verdicts_frame
from regrow.tasks.metric import Metric, check_margin

__all__ = [
    "Extra",
    "Failure",
    "Page",
    "Report",
    "Run",
    "Verdict",
    "page_of",
    "runs_frame",
    "summarise",
    "verdicts",
    "write",
]


HOW_FILE = "how.json"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A written report: its ``text`` for the terminal, its rows, its content and its files.

    ``provenance`` says how it was made: command, date, machine, versions and margin.
    """

    text: str
    frame: pd.DataFrame
    page: Page
    provenance: Mapping[str, str]
    paths: tuple[Path, ...]

    @property
    def answer(self) -> str:
        """The study's answer in words."""
        return self.page.answer

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All comparisons of arms."""
        return self.page.verdicts

    @property
    def contests(self) -> tuple[Contest, ...]:
        """All comparisons of methods."""
        return self.page.contests

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that its rows are scored by."""
        return self.page.metrics


def write(
    runs: Sequence[Run],
    folder: Path,
    *,
    title: str,
    command: str,
    machine: str,
    date: str,
    margin: float | None = None,
    failures: Sequence[Failure] = (),
    reference: str | None = None,
    notes: Sequence[str] = (),
    extras: Sequence[Extra] = (),
    draw: bool = True,
    precision: str | None = None,
    cost: str | None = None,
    advise: bool = False,
) -> Report:
    """Write all files of a report into a folder (created if missing) and return the report.

    ``runs`` are in the study's order and include those that failed or are missing. ``margin`` is
    the difference below which arms count as equivalent (default: the metric's own). ``reference``
    is the method that all others are compared with, instead of every pair. ``notes`` are
    limitations that the runs do not show (e.g. a subset of the data). ``extras`` are further
    tables, each also written as a CSV file. ``draw=False`` leaves out the figures. ``precision`` is
    the one that was chosen if the study left it open, and ``cost`` describes the cost of all jobs.
    With ``advise`` the answer begins with which network to take.
    """
    frame = summarise(runs)
    page = page_of(
        runs,
        frame,
        title=one_line(title),
        margin=margin,
        reference=reference,
        failures=[Failure(label=one_line(f.label), message=visible(f.message)) for f in failures],
        notes=[visible(note) for note in notes],
        extras=extras,
        advise=advise,
    )
    metrics = page.metrics
    provenance = {"command": code_span(command), "date": date, "machine": machine}
    provenance |= {"precision": precision} if precision is not None else {}
    provenance |= {"cost": cost} if cost is not None else {}
    provenance |= {"versions": versions(), "margin": _margins(metrics, margin)}
    with writing(folder) as fresh:
        if draw:
            page = replace(page, figures=_figures(page, runs, frame, fresh))
        texts = _texts(page, runs, frame, provenance=provenance)
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8", newline="\n")
        frame.to_parquet(fresh / "rows.parquet", index=False)
    names = [*texts, "rows.parquet", *(path for p in page.figures for path in p.paths)]
    return Report(
        text=terminal(page),
        frame=frame,
        page=page,
        provenance=provenance,
        paths=tuple(folder / name for name in names),
    )


def _figures(
    page: Page, runs: Sequence[Run], frame: pd.DataFrame, folder: Path
) -> tuple[SavedFigure, ...]:
    """Draw all figures of a page; those of score against cost show the largest budget only."""
    largest = at_largest(runs)
    return (
        *draw_budgets(page.curves, folder),
        *draw_methods(largest, folder, metrics=page.metrics),
        *figures.draw(rows_of(frame, largest), folder, metrics=page.metrics),
    )


def _texts(
    page: Page, runs: Sequence[Run], frame: pd.DataFrame, *, provenance: Mapping[str, str]
) -> dict[str, str]:
    """Return the contents of a report's text files, by file name."""
    return {
        "report.md": markdown(page, provenance=provenance),
        HOW_FILE: json.dumps({"title": page.title, **provenance}, indent=1) + "\n",
        "table.tex": latex(page),
        "rows.csv": to_csv(frame, row_columns(runs)),
        "runs.csv": to_csv(runs_frame(runs), run_columns(runs)),
        "verdicts.csv": to_csv(verdicts_frame(page.verdicts), VERDICT_COLUMNS),
        **{f"{extra.name}.csv": extra.csv for extra in page.extras},
        **csv_files(page.contests),
        **budget_files(page.curves),
    }


def page_of(
    runs: Sequence[Run],
    frame: pd.DataFrame,
    *,
    title: str,
    margin: float | None = None,
    reference: str | None = None,
    failures: Sequence[Failure] = (),
    notes: Sequence[str] = (),
    extras: Sequence[Extra] = (),
    advise: bool = False,
) -> Page:
    """Return the content of a report on runs and their rows, without figures.

    Raises:
        ConfigError: the margin does not suit the metrics.
    """
    check_margin(margin, metrics_of(runs))
    all_verdicts = verdicts(runs, margin=margin)
    largest = at_largest(runs)
    compared = contests(
        largest, margin=margin, reference=reference, gains=Gains(runs, margin=margin)
    )
    over_budgets = curves(runs, margin=margin)
    lines = [] if compared and not all_verdicts else [answer(all_verdicts)]
    methods, asked = answers(compared), any(contest.reference for contest in compared)
    advised = tuple(advice(runs, all_verdicts)) if advise else ()
    return Page(
        title=title,
        tables=blocks(frame, runs),
        brief=blocks(rows_of(frame, largest), largest) if over_budgets else (),
        answer="\n".join(
            [
                *map(str, advised),
                *(methods if asked else []),
                *map(str, budget_answers(over_budgets)),
                *lines,
                *winner_line(all_verdicts),
                *([] if asked else methods),
            ]
        ),
        advised=advised,
        empty=not any(run.done for run in runs),
        curves=over_budgets,
        budgets=budget_tables(over_budgets),
        budgets_in_latex=latex_tables(over_budgets),
        verdicts=all_verdicts,
        metrics=metrics_of(runs),
        contests=compared,
        methods=tables(compared),
        extras=(*extras, *tuning(runs), *cost_targets(runs)),
        limits=(
            *_limits(runs, compared),
            *_only_largest(over_budgets, compared),
            *(schedule_notes(over_budgets) if over_budgets else unspent_notes(runs)),
            *notes,
        ),
        failures=tuple(failures),
    )


def _only_largest(over_budgets: Sequence[Curve], compared: Sequence[Contest]) -> Iterator[str]:
    """Say that methods are compared at the largest of several training budgets."""
    if over_budgets and compared:
        yield (
            "Methods are compared with each other, and scores with costs, at the largest training "
            "budget only; budgets.csv has every budget."
        )


def _margins(metrics: Sequence[Metric], margin: float | None) -> str:
    """Format the margin of each metric."""
    texts = [metric.amount(f"{margin or metric.margin:g}") for metric in metrics]
    if len(metrics) == 1:
        return texts[0]
    return ", ".join(f"{text} ({m.name})" for text, m in zip(texts, metrics, strict=True))


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield a scratch folder whose files are then moved into ``folder``, each atomically.

    Raises:
        ConfigError: the files cannot be written.
    """
    try:
        with filling(folder) as fresh:
            yield fresh
    except OSError as error:
        remedy = "Make room there, or name" if error.errno in FULL else "Name"
        raise ConfigError(
            f"Cannot write the report to '{folder}': {why(error, folder)}. {remedy} a folder that "
            "you may write to. Results are kept in the store."
        ) from error


def _limits(runs: Sequence[Run], compared: Sequence[Contest]) -> list[str]:
    """List limitations that the runs themselves show."""
    limits = []
    measured = once(runs)
    done = sum(run.done for run in measured)
    failed = sum(run.status == "failed" for run in measured)
    if done < len(measured):
        limits.append(
            f"Of {len(measured)} results, {done} finished, {failed} failed and "
            f"{len(measured) - done - failed} did not run: rows with fewer seeds say so."
        )
    capped = [run for run in runs if run.capped]
    if capped:
        caps = listed([f"{cap:g}x" for cap in sorted({run.cap or 0.0 for run in capped})])
        limits.append(
            f"Equal FLOPs were capped at {caps} the epochs in {len(capped)} of "
            f"{sum(run.budget in OF_FLOPS for run in runs)} runs: these trained with fewer FLOPs "
            "than the unpruned network."
        )
    emptied = sum(bool(run.emptied) for run in runs)
    if emptied:
        limits.append(
            f"In {emptied} runs a global threshold would have removed whole layers. A unit of each "
            "was kept, so these networks are a little larger than requested."
        )
    if len({run.method for run in runs if run.method}) > 1 and not compared:
        limits.append(
            "Methods are not compared with each other, because no two of them have the same "
            "amount on one network. Give them a cost target, such as 'macs: 0.5'."
        )
    limits += unequal_trials(runs)
    if done and max(Counter((r.group, r.arm) for r in runs if r.done).values()) == 1:
        limits.append("One seed per row: no spread is known and nothing can be tested.")
    return limits
