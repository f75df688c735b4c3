"""Text and tables for LaTeX: they compile under plain pdflatex and fit the page of an article."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence

from regrow.report.words import PLUS_MINUS

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    PLUS_MINUS: r"$\pm$",
    **{c: "\\" + c for c in "&%$#_{}"},
    **{c: f"{{{c}}}" for c in "[]*"},  # after a line break they would be its options
}
_ESCAPES = str.maketrans(TEX)
TEX_NEEDS = (
    r"% needs \usepackage{booktabs,longtable}, and a page of one column" + "\n"
    r"% (in two: \onecolumn before it, \twocolumn behind it)"
)
# Accented letters that pdflatex typesets without further packages; others are errors.
LETTERS = frozenset(map(chr, range(0xC0, 0x100))) - frozenset("\xd0\xde\xf0\xfe")
TOGETHER = 40  # most rows kept together; about 60 fit on a page
TEX_BETWEEN = r"\addlinespace"  # unlike a rule, it leaves no trace at a page end
HEAD = 10  # characters per line of a heading
NAME = 20  # characters per line of a row's name
LINE = 80  # characters per line of the page


def tex(text: str) -> str:
    """Escape LaTeX markup; letters missing from its default fonts lose accents or become ``?``.

    >>> print(tex("50% of a_b"), tex("-0.5"), tex("\u017b\u4e2d"))
    50\\% of a\\_b $-$0.5 Z?
    """
    escaped = text.translate(_ESCAPES)
    if not escaped.isascii():
        escaped = "".join(c if c.isascii() or c in LETTERS else _plain(c) for c in escaped)
    return re.sub(r"^-(?=[\d.])", "$-$", escaped)


def tex_row(cells: Sequence[str]) -> str:
    """Return a row of a LaTeX table."""
    return " & ".join(map(tex, cells)) + r" \\"


def tex_rows(cells: Sequence[str]) -> list[str]:
    """Return a row as lines; a long first cell wraps onto further lines."""
    words = textwrap.wrap(cells[0], NAME) or [""]
    empty = [""] * (len(cells) - 1)
    return [tex_row([words[0], *cells[1:]]), *(tex_row([word, *empty]) for word in words[1:])]


def tex_section(title: str, rows: Sequence[str], *, columns: int) -> list[str]:
    """Return the lines of rows with an optional title, kept on one page if they fit on one."""
    column = "l" if len(title) <= LINE else r"p{0.9\linewidth}"
    lines = [rf"\multicolumn{{{columns}}}{{{column}}}{{{tex(title)}}} \\"] if title else []
    lines += rows
    num_held = len(lines) - 1 if len(lines) <= TOGETHER else 1
    return [f"{line}*" for line in lines[:num_held]] + lines[num_held:]


def tex_table(
    head: Sequence[str],
    body: Sequence[str],
    *,
    words_first: int = 1,
    caption: str | None = None,
    label: str = "",
) -> list[str]:
    """Return the lines of a table that may span pages, small enough for an article's width.

    The first ``words_first`` columns hold text, the others numbers. A table without ``caption``
    continues the one before it. The LaTeX label is made from ``label``.
    """
    heads = [textwrap.wrap(text, HEAD, break_on_hyphens=False) for text in head]
    high = max(map(len, heads))
    stacked = zip(*([""] * (high - len(text)) + text for text in heads), strict=True)
    top = [r"\toprule", *map(tex_row, stacked), r"\midrule"]
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    columns = "l" * words_first + "r" * (len(head) - words_first)
    return [
        r"\begingroup\scriptsize\setlength{\tabcolsep}{3pt}",
        *([] if caption is not None else [r"\addtocounter{table}{-1}"]),
        rf"\begin{{longtable}}{{{columns}}}",
        *([] if caption is None else [rf"\caption{{{caption}}}\label{{tab:{name}}} \\"]),
        *(*top, r"\endfirsthead"),
        *(*top, r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
        *body,
        *(r"\end{longtable}", r"\endgroup"),
    ]


def _plain(letter: str) -> str:
    """Return the letter without its accents, or a question mark."""
    return "".join(c for c in unicodedata.normalize("NFKD", letter) if c.isascii()) or "?"
