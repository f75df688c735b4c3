"""Text from any source, made safe to show: invisible and control characters are written out.

Names come from study files, file names and other people's packages. A control character moves a
terminal's cursor, a direction character turns round the text behind it, and half a pair of
surrogates cannot be written to a file at all.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = "\u200c\u200d"  # which letters of some scripts, and emoji, need
# Everything that may have to be written out, for a quick look at text that is mostly plain.
_SUSPECT = re.compile("[^\t\n\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u05ff]")
_BREAKS = re.compile("[\t\n]")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode


def visible(text: str) -> str:
    r"""Write control and direction characters as escapes; line ends and tabs stay.

    >>> visible("a\x1b[31mb"), visible("\u202egnp.exe"), visible("naïve 中文")
    ('a\\x1b[31mb', '\\u202egnp.exe', 'naïve 中文')
    """
    return _SUSPECT.sub(lambda found: _written_out(found[0]), text)


def one_line(text: str) -> str:
    r"""Write a text that stands in one line, such as a name: line ends and tabs are escapes too.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return _BREAKS.sub(lambda found: repr(found[0])[1:-1], visible(text))


def markdown_text(text: str) -> str:
    r"""Escape what Markdown or a browser would read as markup, or as the end of a table's cell.

    >>> markdown_text("**b** <i> | a_b")
    '\\*\\*b\\*\\* &lt;i&gt; \\| a\\_b'
    """
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """Write a name as Markdown shows code; within it nothing is markup but its own quote.

    >>> code_span("a`b\\nc")
    "`a'b\\\\nc`"
    """
    return f"`{one_line(text).replace('`', chr(39))}`"


def listed(items: Sequence[str]) -> str:
    """Join items as in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([*([", ".join(items[:-1])] if items[:-1] else []), *items[-1:]])


def first_few(items: Iterable[str], most: int) -> list[str]:
    """Return the first items, and at the end how many more there are.

    >>> first_few("abcd", 2)
    ['a', 'b', '2 more']
    """
    known = [*items]
    more = [f"{len(known) - most} more"] if len(known) > most else []
    return [*known[:most], *more]


def quoted(names: Iterable[str], most: int = 3) -> str:
    """List names in quotes: the first few, and how many more.

    >>> quoted(["a", "b", "c", "d"])
    "'a', 'b', 'c' and 1 more"
    """
    return listed(first_few(map(repr, names), most))


def _written_out(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
