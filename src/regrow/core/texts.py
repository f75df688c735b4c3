"""Make untrusted text safe to show, by escaping invisible and control characters.

Names come from study files, file names and other packages. A control character moves a terminal's
cursor, a direction character reverses the text after it, and an unpaired surrogate cannot be
written to a file at all.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = "\u200c\u200d"  # needed by some scripts and by emoji, so not escaped
# All characters that may need escaping, as a fast test for text that is mostly plain.
_SUSPECT = re.compile("[^\t\n\x20-\x7e\xa1-\xac\xae-\u02ff\u0370-\u05ff]")
_BREAKS = re.compile("[\t\n]")
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode


def visible(text: str) -> str:
    r"""Escape control and direction characters; newlines and tabs stay.

    >>> visible("a\x1b[31mb"), visible("\u202egnp.exe"), visible("naïve 中文")
    ('a\\x1b[31mb', '\\u202egnp.exe', 'naïve 中文')
    """
    return _SUSPECT.sub(lambda found: _written_out(found[0]), text)


def one_line(text: str) -> str:
    r"""Escape a text to be shown on one line, such as a name: newlines and tabs as well.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return _BREAKS.sub(lambda found: repr(found[0])[1:-1], visible(text))


def markdown_text(text: str) -> str:
    r"""Escape characters that Markdown or a browser would read as markup or a table's cell border.

    >>> markdown_text("**b** <i> | a_b")
    '\\*\\*b\\*\\* &lt;i&gt; \\| a\\_b'
    """
    escaped = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """Return a name as a Markdown code span, its backticks replaced by quotes.

    >>> code_span("a`b\\nc")
    "`a'b\\\\nc`"
    """
    return f"`{one_line(text).replace('`', chr(39))}`"


def ended(sentence: str) -> str:
    """Add the full stop that a message may lack before another sentence.

    >>> ended("no memory"), ended("No memory."), ended("What is it?")
    ('no memory.', 'No memory.', 'What is it?')
    """
    text = sentence.rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def listed(items: Sequence[str]) -> str:
    """Join items with commas and "and".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([*([", ".join(items[:-1])] if items[:-1] else []), *items[-1:]])


def first_few(items: Iterable[str], most: int) -> list[str]:
    """Return the first items, followed by the number of those left out.

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
