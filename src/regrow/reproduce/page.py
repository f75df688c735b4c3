"""A reproduction as an HTML page: the paper's tables and figures, with our numbers beside its."""

import base64
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from regrow.report.collect import Reader
from regrow.report.html import PAGE, document_of, gather, write_document
from regrow.report.html.document import (
    Block,
    Document,
    Facts,
    Headline,
    PageCell,
    PageSection,
    PageTable,
    Picture,
    Texts,
)
from regrow.reproduce import elsewhere, figure_data
from regrow.reproduce.layout import Sheet, voices
from regrow.reproduce.publish import Published, write_details
from regrow.reproduce.results import StudyResults
from regrow.store import Store

COLOURS = 64  # of a picture: enough for a drawing, in a third of the bytes


def write_entry(
    published: Published,
    results: Sequence[StudyResults],
    store: Store,
    *,
    provenance: Mapping[str, str],
) -> Path:
    """Write the page of one table or figure, and one for each study below it."""
    links = []
    for study, report in write_details(published.plan, results, published.folder, provenance):
        cells = [planned.cell for planned in study.part.cells]
        evidence = gather(cells, [run.group for run in study.runs], Reader(store))
        folder = report.paths[0].parent
        document = document_of(report, study.runs, evidence, folder, settings={})
        write_document(document, folder)
        links.append((study.part.study.title, f"details/{study.part.name}/{PAGE}"))
    return write_document(_document([published], {}, provenance, links=links), published.folder)


def write_all(
    tables: Sequence[Published],
    problems: Mapping[str, str],
    folder: Path,
    *,
    provenance: Mapping[str, str],
) -> Path:
    """Write the page over all tables and figures, with what could not be run and why."""
    names = [table.plan.entry.name for table in tables]
    links = [(name, f"{name}/{PAGE}") for name in names]
    return write_document(_document(tables, problems, provenance, links=links), folder)


def _document(
    tables: Sequence[Published],
    problems: Mapping[str, str],
    provenance: Mapping[str, str],
    *,
    links: Sequence[tuple[str, str]],
) -> Document:
    sections = [_section(table) for table in tables]
    if links:
        rows = tuple((PageCell(text=title, href=href),) for title, href in links)
        block = PageTable(title="Pages of their own", columns=("page",), rows=rows)
        sections.append(PageSection(name="details", title="Details", blocks=(block,)))
    if problems:
        items = tuple(f"{name}: {reason}" for name, reason in problems.items())
        block_texts = Texts(items=items, listed=True)
        sections.append(PageSection(name="problems", title="Not run", blocks=(block_texts,)))
    facts = Facts(pairs=tuple((name, text.strip("`")) for name, text in provenance.items()))
    sections.append(PageSection(name="how", title="How it was made", blocks=(facts,)))
    title = _name(tables[0]) + ", reproduced" if len(tables) == 1 else "The paper, reproduced"
    return Document(
        title=title,
        kicker=f"regrow reproduce, {provenance['date']}",
        headlines=tuple(
            Headline(question=f"{_name(t)}. {t.caption}", short=t.summary, text="") for t in tables
        ),
        cautions=tuple(
            dict.fromkeys(table.sheet.caution for table in tables if _has_caution(table))  # type: ignore[union-attr]
        ),
        sections=tuple(sections),
    )


def _has_caution(table: Published) -> bool:
    return table.sheet is not None and bool(table.sheet.caution)


def _name(table: Published) -> str:
    return table.plan.entry.name.replace("-", " ").capitalize()


def _section(table: Published) -> PageSection:
    blocks: list[Block] = []
    if table.figure is not None:
        figure = table.figure
        picture = table.folder / f"{figure.name}.png"
        if picture.exists():
            blocks.append(Picture(title=table.caption, address=_address(picture)))
        blocks.append(PageTable.of(figure_data.title(figure), figure.columns, figure.rows, named=2))
    if table.sheet is not None:
        blocks += _sheet(table.sheet)
    if table.elsewhere:
        rows = [row.texts for row in table.elsewhere]
        blocks.append(PageTable.of(elsewhere.TITLE, elsewhere.COLUMNS, rows, named=1))
    blocks.append(Texts(title="Notes on these numbers", items=table.notes, listed=True))
    name = table.plan.entry.name
    return PageSection(name=name, title=_name(table), lead=table.caption, blocks=tuple(blocks))


def _sheet(sheet: Sheet) -> Iterator[PageTable]:
    """Yield a table of the paper, one for each set of columns, with ours below each of its rows."""
    groups = itertools.groupby(sheet.sections, key=lambda section: section.columns)
    for number, (columns, sections) in enumerate(groups):
        rows = [
            (section.title, name, voice, *texts)
            for section in sections
            for name, row in section.rows
            for voice, texts in voices(row)
        ]
        title = f"Table {sheet.table}. {sheet.caption}" if not number else "continued"
        heads = ("section", "row", "whose", *columns)
        yield PageTable.of(title, heads, rows, sheet.note, named=3)


def _address(picture: Path) -> str:
    """Return a picture as a data URL, reduced to a few colours."""
    from PIL import Image

    with Image.open(picture) as image:
        out = io.BytesIO()
        image.convert("RGB").quantize(COLOURS).save(out, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
