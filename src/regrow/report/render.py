"""Rows and verdicts as text: for the terminal, as Markdown and as LaTeX.

All three show the same numbers, formatted by ``regrow.report.words``. Only the Markdown page has
date, machine and command.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from regrow.core.texts import ended, listed, markdown_text
from regrow.report import words
from regrow.report.answer import Answer, sentence
from regrow.report.budget_words import how, sentences
from regrow.report.figures import SavedFigure
from regrow.report.latex import TEX_BETWEEN, TEX_NEEDS, tex, tex_rows, tex_section, tex_table
from regrow.report.questions import reference
from regrow.report.rows import BUDGET, Run
from regrow.report.setups import ABOUT as SETUPS
from regrow.report.setups import STAMP, STAMP_ESCAPED
from regrow.report.verdict import Verdict, leading
from regrow.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from regrow.report.budgets import Curve
    from regrow.report.contests import Contest

WIDTH = 100
LEADING = 2  # tables of methods in the terminal: those of the first contest
BUDGETS_IN_TERMINAL = ("budget-answers", "budget-scores")
LISTED = 20  # most cells described one by one in the terminal; the Markdown page has all
COLUMNS = (
    "arm",
    "budget",
    "{score}",
    "n",
    "vs {reference}",
    "parameters",
    "MACs",
    "epochs",
    "training FLOPs",
    "fairness",
)
METHOD = (
    f"{{about}}: mean {words.PLUS_MINUS} standard "
    "deviation (n - 1) over n seeds; 'vs' is the mean difference from that arm over the seeds that "
    "both have. Parameters and MACs (a multiply-add is 1) are shown with the share of the "
    "unpruned network's. Training FLOPs (a multiply-add is 2) count every training that a row "
    "depends on, but none of weights that were given; a training that several rows share counts in "
    "each. Epochs are those of the arm itself."
)
TESTS = (
    "A cell is one data set, network, method and amount. Arms are compared seed by seed. Better "
    "and worse: paired t test; equivalent: two one-sided tests (TOST) within the margin; both at "
    "{alpha:g} after Holm's correction over the cells of a question. Averages over cells are "
    "taken for each seed. 'About k seeds would settle it' is a normal approximation at power 0.8 "
    "that takes the observed difference and spread as true. No "
    "conclusion is drawn from a cell, and it takes no part in averages, if its unpruned network or "
    "both arms compared are not {chance}, or if the unpruned network had not converged: either a "
    "network pruned from it ends with a lower training loss and a {names} that is better by "
    "clearly more than the margin, or its own training loss still falls clearly at the last "
    "learning rate."
)
COUNTED = "an exact binomial test over all seeds, and "
_md = markdown_text  # used in every line of a page


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that ended in an error, as the report lists it."""

    label: str
    message: str


@dataclass(frozen=True, kw_only=True)
class TableBlock:
    """One table: the rows of a data set and model, with a section for each cell."""

    title: str
    metric: Metric
    columns: tuple[str, ...]
    sections: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A further table of a report, as text and as a CSV file (``name``).

    Its first ``names`` columns name a row. In LaTeX they are merged into one column, and the last
    ``wide`` columns are left out.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    about: str
    csv: str
    names: int = 1
    wide: int = 0


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole content of a report, before layout.

    ``contests`` are the comparisons of methods, and ``methods`` the same as tables. ``curves`` are
    arms over several training budgets, ``budgets`` the same as tables (``budgets_in_latex``: those
    that fit the page of an article), and ``brief`` are the result tables at the largest of these
    budgets alone, for the terminal.
    """

    title: str
    tables: tuple[TableBlock, ...]
    answer: str
    verdicts: tuple[Verdict, ...]
    metrics: tuple[Metric, ...] = (ACCURACY,)
    contests: "tuple[Contest, ...]" = ()
    methods: tuple[Extra, ...] = ()
    curves: "tuple[Curve, ...]" = ()
    budgets: tuple[Extra, ...] = ()
    budgets_in_latex: tuple[Extra, ...] = ()
    brief: tuple[TableBlock, ...] = ()
    extras: tuple[Extra, ...] = ()
    limits: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    figures: tuple[SavedFigure, ...] = ()
    advised: tuple[Answer, ...] = ()  # which network to take, at the beginning of the answer
    empty: bool = False  # nothing has a result


def blocks(frame: pd.DataFrame, runs: Sequence[Run]) -> tuple[TableBlock, ...]:
    """Format the rows of ``summarise`` as tables, one for each data set and model."""
    cuts = {run.group: run.cut for run in runs}
    references = _references(runs)
    differences = _differences(runs, references)
    metrics = {run.group: run.metric for run in runs}
    panels = {(run.data, run.model): run.metric for run in runs}
    axis = BUDGET in frame
    tables: dict[tuple[str, str], dict[str, list[tuple[str, ...]]]] = {}
    for row in frame.to_dict("records"):
        sections = tables.setdefault((row["data"], row["model"]), {})
        difference = differences.get((row["group"], row["arm"]))
        sections.setdefault(row["group"], []).append(
            _words(row, difference, metrics[row["group"]], axis=axis)
        )
    return tuple(
        TableBlock(
            title=" / ".join(panel),
            metric=panels[panel],
            columns=_columns(
                panels[panel], dict.fromkeys(map(references.get, sections)), axis=axis
            ),
            sections=tuple((cuts[group], tuple(rows)) for group, rows in sections.items()),
        )
        for panel, sections in tables.items()
    )


def terminal(page: Page) -> str:
    """Format the report as plain text of about 110 columns; only the main cells get sentences."""
    if page.empty and page.failures:  # empty tables would hide the failures
        failed = "\n".join(["Failures", *map(_wrap, failure_lines(page.failures))])
        return f"{page.title}\n\n{failed}\n\nNothing was measured, so there are no tables.\n"
    main = page.brief or page.tables
    over_budgets = [extra for extra in page.budgets if extra.name in BUDGETS_IN_TERMINAL]
    parts = [page.title, *map(_plain_extra, over_budgets), *map(_plain, main)]
    parts += [_plain_extra(extra) for extra in (*page.methods[:LEADING], *page.extras)]
    if main:
        parts.append("\n".join(["Trained for", *map(_wrap, _stamps(main))]))
    parts.append("\n".join(["Answer", *map(_wrap, page.answer.splitlines())]))
    lead = leading(page.verdicts)
    if 1 < len(lead) <= LISTED:
        parts.append("\n".join(["Cell by cell", *(_wrap(sentence(v)) for v in lead)]))
    if page.limits:
        parts.append("\n".join(["Limits", *map(_wrap, page.limits)]))
    if page.failures:
        parts.append("\n".join(["Failures", *map(_wrap, failure_lines(page.failures))]))
    return "\n\n".join(parts) + "\n"


def markdown(page: Page, *, provenance: Mapping[str, str]) -> str:
    """Format the report as a Markdown page; ``provenance`` has command, date and machine."""
    lines = [f"# {_md(page.title)}", "", "## Answer", ""]
    lines += [f"- {_with_links(_md(line))}" for line in page.answer.splitlines()]
    for figure in page.figures:
        lines += ["", f"![{_md(figure.caption)}]({figure.paths[0]})"]
    if page.budgets:
        lines += ["", "## By training budget"]
        for extra in page.budgets:
            lines += ["", f"### {_md(extra.title)}", "", *_md_extra(extra), "", extra.about]
        lines += ["", *(f"- {_md(text)}" for text in sentences(page.curves))]
        lines += ["", how(page.curves)]
    lines += ["", "## Results"]
    for block in page.tables:
        lines += ["", f"### {_md(block.title)}", "", *_md_table(block)]
    lines += ["", method(page) if page.tables else "Not run: the study has no rows."]
    for extra in (*page.methods, *page.extras):
        lines += ["", f"### {_md(extra.title)}", "", *_md_extra(extra), "", extra.about]
    if page.verdicts:
        lines += ["", "## Cell by cell", "", *(f"- {_md(sentence(v))}" for v in page.verdicts)]
        lines += ["", tests(page)]
    if has_setups(page):
        lines += ["", "## Setups", "", SETUPS]
    if page.limits:
        lines += ["", "## Limits", "", *(f"- {_md(limit)}" for limit in page.limits)]
    if page.failures:
        lines += ["", "## Failures", ""]
        lines += [f"- {_md(' '.join(line.split()))}" for line in failure_lines(page.failures)]
    lines += ["", "## How it was made", "", *(f"- {k}: {v}" for k, v in provenance.items()), ""]
    return "\n".join(lines)


def has_setups(page: Page) -> bool:
    """Return whether the answer of a page names a setup, so that the page has to explain them."""
    return STAMP.search(page.answer) is not None


def _with_links(line: str) -> str:
    """Link the codes of setups in an escaped line to their explanation."""
    return STAMP_ESCAPED.sub(r"[\1](#setups)", line)


def failure_lines(failures: Sequence[Failure]) -> list[str]:
    """Return a line for each distinct failure, with the jobs that failed with it."""
    labels: dict[str, list[str]] = {}
    for failure in failures:
        labels.setdefault(failure.message, []).append(failure.label)
    return [
        f"{first}: {ended(message)} The same failure: {listed(rest)}."
        if rest
        else f"{first}: {message}"
        for message, (first, *rest) in labels.items()
    ]


def latex(page: Page) -> str:
    """Format the tables of a report as LaTeX, narrow enough for an article's page."""
    head = f"% {tex(' '.join(page.title.split()))}\n{TEX_NEEDS}"
    if not page.tables:
        return f"{head}\n% not run: the study has no rows\n"
    tables = [
        _tex_table(block, label=f"{page.title} {i}") for i, block in enumerate(page.tables, start=1)
    ]
    methods = [_tex_extra(extra, label=f"{page.title} {extra.name}") for extra in page.methods]
    budgets = [
        _tex_extra(extra, label=f"{page.title} {extra.name} {i}")
        for i, extra in enumerate(page.budgets_in_latex, start=1)
    ]
    return "\n".join([head, *budgets, *tables, *methods])


def method(page: Page) -> str:
    """Explain the numbers in the tables, for all metrics of the page."""
    return METHOD.format(about=". ".join(metric.about for metric in page.metrics))


def tests(page: Page) -> str:
    """Explain how verdicts are decided, for all metrics of the page."""
    baselines = [
        f"{metric.beats_baseline} ({metric.baseline}; {COUNTED if metric.counted else ''}"
        "a seed one standard deviation worse than the mean)"
        for metric in page.metrics
    ]
    names = " or ".join(metric.name for metric in page.metrics)
    return TESTS.format(alpha=page.verdicts[0].alpha, chance=" or ".join(baselines), names=names)


def _words(
    row: Mapping[Any, Any], difference: float | None, metric: Metric, *, axis: bool
) -> tuple[str, ...]:
    def number(name: str) -> float | None:
        value = row[name]
        return None if pd.isna(value) else float(value)

    n, expected = row["n"], row["n_expected"]
    return (
        row["arm"],
        *([words.quantity(number(BUDGET))] if axis else []),
        words.score(number("mean"), number("std"), n, digits=metric.digits),
        words.seeds(n, expected),
        "" if difference is None else words.signed(difference, digits=metric.digits),
        words.with_kept(number("parameters"), number("parameters_kept")),
        words.with_kept(number("macs"), number("macs_kept")),
        words.quantity(number("epochs")),
        words.quantity(number("training_flops")),
        row["fairness"],
    )


def _columns(metric: Metric, references: Iterable[str | None], *, axis: bool) -> tuple[str, ...]:
    """Return the headings of a table, with the metric and the reference arms filled in."""
    reference_names = " or ".join(name for name in references if name is not None)
    heads = {"score": metric.head, "reference": reference_names or "inherited"}
    shown = (column for column in COLUMNS if axis or column != "budget")
    return tuple(column.format_map(heads) for column in shown)


def _references(runs: Sequence[Run]) -> dict[str, str | None]:
    """Return for each cell the arm that its others are compared with."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return {group: reference(inside) for group, inside in groups.items()}


def _differences(
    runs: Sequence[Run], references: Mapping[str, str | None]
) -> dict[tuple[str, str], float]:
    """Return the mean of each arm minus its reference, over the seeds that both have."""
    tuned = {(run.group, run.seed): run.score for run in runs if run.arm == references[run.group]}
    pairs: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        base = tuned.get((run.group, run.seed))
        if run.arm != references[run.group] and base is not None and run.score is not None:
            pairs.setdefault((run.group, run.arm), []).append(run.score - base)
    return {key: sum(values) / len(values) for key, values in pairs.items()}


def _plain(block: TableBlock) -> str:
    """Format a table as aligned text, with arms indented below the heading of their cell."""
    columns = block.columns
    body: list[tuple[str, ...]] = [("", *columns[1:-1])]
    for cut, rows in block.sections:
        body += [(cut, *[""] * (len(columns) - 2))] if cut else []
        body += [("  " + row[0] if cut else row[0], *row[1:-1]) for row in rows]
    return _aligned(block.title, body)


def _plain_extra(extra: Extra) -> str:
    return "\n".join([_aligned(extra.title, [extra.columns, *extra.rows]), _wrap(extra.about)])


def _aligned(title: str, body: Sequence[tuple[str, ...]]) -> str:
    """Align columns below a title and their headings, the first column on the left."""
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in body
    ]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])


def _stamps(tables: Sequence[TableBlock]) -> Iterator[str]:
    """Yield a line for each arm with the entries of its tables' last column (fairness)."""
    stamps: dict[str, dict[str, None]] = {}
    for row in (row for block in tables for _, rows in block.sections for row in rows):
        if row[-1]:
            stamps.setdefault(row[0], {})[row[-1]] = None
    for arm, texts in stamps.items():
        yield f"{arm}: {'; '.join(texts)}"


def _md_extra(extra: Extra) -> Iterator[str]:
    yield f"| {' | '.join(map(_md, extra.columns))} |"
    yield "|---|" + "---:|" * (len(extra.columns) - 1)
    yield from (f"| {' | '.join(map(_md, row))} |" for row in extra.rows)


def _md_table(block: TableBlock) -> Iterator[str]:
    columns = block.columns
    yield f"| pruned by | {' | '.join(map(_md, columns))} |"
    yield "|---|---|" + "---:|" * (len(columns) - 2) + "---|"
    for cut, rows in block.sections:
        for i, row in enumerate(rows):
            cells = [_md(cell) for cell in ("" if i else cut, *row)]
            yield f"| {' | '.join(cells)} |"


def _tex_table(block: TableBlock, *, label: str) -> str:
    num_columns = len(block.columns) - 1  # fairness is too wide for a column of a paper
    metric = block.metric
    scored = f"{metric.name} in {tex(metric.unit)}" if metric.unit else metric.name
    caption = rf"{tex(block.title)}: {scored} (mean $\pm$ std over n seeds)."
    body: list[str] = []
    for cut, rows in block.sections:
        body += [TEX_BETWEEN] if body else []
        lines = [line for row in rows for line in tex_rows(row[:num_columns])]
        body += tex_section(cut, lines, columns=num_columns)
    table = tex_table(block.columns[:num_columns], body, caption=caption, label=label)
    return "\n".join([*table, ""])


def _tex_extra(extra: Extra, *, label: str) -> str:
    """Format a further table, with its names merged into one column that wraps."""
    shown = slice(extra.names, len(extra.columns) - extra.wide)

    def cells(row: Sequence[str]) -> tuple[str, ...]:
        return " / ".join(name for name in row[: extra.names] if name), *row[shown]

    body = [line for row in extra.rows for line in tex_rows(cells(row))]
    table = tex_table(cells(extra.columns), body, caption=f"{tex(extra.title)}.", label=label)
    return "\n".join([*table, ""])


def _wrap(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
