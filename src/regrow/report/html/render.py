"""Renders a document as one self-contained HTML file, with its style and script."""

import base64
import hashlib
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from regrow.core.texts import visible
from regrow.report.html import chart
from regrow.report.html.document import Block, Charts, Document, PageCell, PageTable, Texts
from regrow.report.setups import STAMP

MOST_BYTES = 1_500_000


def render(document: Document, *, most_bytes: int = MOST_BYTES) -> str:
    """Render a document in less than ``most_bytes`` bytes, if possible.

    If it is too large, optional sections are left out, the last first, and then rows of tables.
    """
    most_rows = max((len(table.rows) for table in _tables(document)), default=0)
    while len((text := _rendered(document)).encode()) >= most_bytes and most_rows > 1:
        spare = [section for section in document.sections if section.optional]
        if spare:
            document = replace(
                document,
                sections=tuple(section for section in document.sections if section != spare[-1]),
                left_out=(spare[-1].title, *document.left_out),
            )
        else:
            most_rows //= 2
            document = _with_rows(document, most_rows)
    return text


def _tables(document: Document) -> list[PageTable]:
    blocks = (block for section in document.sections for block in section.blocks)
    return [block for block in blocks if isinstance(block, PageTable)]


def _with_rows(document: Document, most: int) -> Document:
    """Limit the number of rows of tables, charts and texts, and drop links to rows left out."""
    anchors = {name for table in _tables(document) for name in table.anchors[:most]}
    gone = {name for table in _tables(document) for name in table.anchors} - anchors

    def linked(cell: PageCell) -> PageCell:
        return replace(cell, href="") if cell.href[1:] in gone else cell

    def unlinked(value: chart.Chart) -> chart.Chart:
        lines = []
        for line in value.series:
            points = (replace(p, href="") if p.href[1:] in gone else p for p in line.points)
            lines.append(replace(line, points=tuple(points)))
        return replace(value, series=tuple(lines))

    def shorter(block: Block) -> Block:
        if isinstance(block, PageTable):
            rows = tuple(tuple(map(linked, row)) for row in block.rows[:most])
            return replace(block, rows=rows, anchors=block.anchors[:most])
        if isinstance(block, Charts):
            return replace(block, charts=tuple(map(unlinked, block.charts[:most])))
        return replace(block, items=block.items[:most]) if isinstance(block, Texts) else block

    return replace(
        document,
        sections=tuple(
            replace(section, blocks=tuple(map(shorter, section.blocks)))
            for section in document.sections
        ),
        left_out=(*dict.fromkeys((*document.left_out, "the last rows of long tables")),),
    )


def _rendered(document: Document) -> str:
    style, script = _part("page.css"), _part("page.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=document,
            style=Markup(style),
            script=Markup(script),
            style_hash=_digest(style),
            script_hash=_digest(script),
        )
    )


@cache
def _linked(text: str, page: Document) -> Markup:
    """Link the codes of setups to the section that explains them; everything else is escaped."""
    known = any(section.name == "setups" for section in page.sections)
    link = r'[<a href="#setups">\1</a>]' if known else r"[\1]"
    return Markup(STAMP.sub(link, str(escape(text))))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("regrow.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_readable,
    )
    environment.filters["px"] = _pixels
    environment.filters["linked"] = _linked
    environment.globals.update(draw=chart.draw, draw_strip=chart.draw_strip, marks=chart.MARKS)
    return environment


def _readable(value: Any) -> Any:
    """Show invisible characters (control and direction characters) as escapes."""
    return visible(value) if type(value) is str else value


def _pixels(value: float) -> str:
    """Format a position with at most one decimal.

    >>> _pixels(12.0), _pixels(3.14159)
    ('12', '3.1')
    """
    return f"{value:.1f}".removesuffix(".0")


@cache
def _part(name: str) -> str:
    return (files("regrow.report.html") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
