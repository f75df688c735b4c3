"""The content of a page: sections of tables, charts, texts and facts, without markup.

Nothing here is escaped; the templates escape every text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from regrow.report.html.chart import Chart, Strip

Tone = Literal["", "good", "bad", "flat", "open"]  # colours, which never carry information alone
_NUMBER = re.compile(r"^\s*([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*([kMGTPE%]?)(?![a-zA-Z])")
_POWERS = {letter: 10.0 ** (3 * power) for power, letter in enumerate("kMGTPE", start=1)}


@dataclass(frozen=True, kw_only=True)
class PageCell:
    """One cell of a table; ``value`` is what it is sorted by if not its text."""

    text: str
    value: float | None = None
    href: str = ""
    tone: Tone = ""
    shade: float | None = None  # in [0, 1], for heat maps
    strip: Strip | None = None
    links: tuple[tuple[str, str], ...] = ()  # (text, href), in place of the text

    @property
    def sorts_by(self) -> str:
        """The value that the page's script sorts by; empty if that is the text itself."""
        value = number_in(self.text) if self.value is None else self.value
        return "" if value is None or self.text == f"{value:g}" else f"{value:.10g}"


def number_in(text: str) -> float | None:
    """Return the number that a text begins with, scaled by its unit letter; None without one.

    >>> number_in("25.7k (35%)"), number_in("98.83 +- 0.54"), number_in("equal FLOPs")
    (25700.0, 98.83, None)
    """
    found = _NUMBER.match(text)
    if found is None:
        return None
    return float(found[1].replace(",", "")) * _POWERS.get(found[2], 1.0)


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table that the page's script can sort; its first ``named`` columns name a row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[PageCell, ...], ...]
    about: str = ""
    anchors: tuple[str, ...] = ()  # link targets of its rows
    named: int = 1
    words: tuple[str, ...] = ()  # further columns with text instead of numbers

    @classmethod
    def of(
        cls,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        about: str = "",
        *,
        named: int = 1,
        hrefs: Sequence[str] = (),
    ) -> "PageTable":
        """Make a table of plain texts; ``hrefs`` are the links of the numbers in each row."""
        texts = [tuple(row) for row in rows]
        wordy = [
            column
            for place, column in enumerate(columns)
            if any(row[place] and number_in(row[place]) is None for row in texts)
        ]
        plain = {*columns[:named], *wordy}
        listed = [
            tuple(
                PageCell(text=text, href="" if column in plain or not text else href)
                for column, text in zip(columns, row, strict=True)
            )
            for row, href in zip(texts, hrefs or [""] * len(texts), strict=True)
        ]
        return cls(
            title=title,
            columns=tuple(columns),
            rows=tuple(listed),
            about=about,
            words=tuple(wordy),
            named=named,
        )


@dataclass(frozen=True, kw_only=True)
class Charts:
    """Small charts side by side, with one legend."""

    kind: ClassVar[str] = "charts"
    title: str
    charts: tuple[Chart, ...]
    names: tuple[tuple[str, int], ...] = ()  # of the legend: (name, look)
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure that was drawn elsewhere, as a data URL (``data:image/png...``)."""

    kind: ClassVar[str] = "picture"
    title: str
    address: str
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Paragraphs, or the items of a list if ``listed``."""

    kind: ClassVar[str] = "texts"
    items: tuple[str, ...]
    title: str = ""
    listed: bool = False
    folded: bool = False  # collapsed until the title is clicked


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Terms with their values."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class FileText:
    """A file, verbatim."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


Block = PageTable | Charts | Picture | Texts | Facts | FileText


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """A section of the page with a heading, as the target of links."""

    name: str
    title: str
    blocks: tuple[Block, ...]
    lead: str = ""
    optional: bool = False  # left out if the page would be too large


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One question with its answer, in a few words and in full."""

    question: str
    short: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole page: the answer, its cautions, and the sections below.

    ``seconds`` is the time until browsers reload it, while a run goes on.
    """

    title: str
    kicker: str
    headlines: tuple[Headline, ...]
    cautions: tuple[str, ...]
    sections: tuple[PageSection, ...]
    seconds: int | None = None
    left_out: tuple[str, ...] = field(default=())
