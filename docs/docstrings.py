"""Make Markdown of docstrings: examples become blocks of code, ``::`` a colon.

Read by griffe, for the page on Python, and by the reference.
"""

import re
from typing import Any

try:
    from griffe import Extension
except ImportError:  # the reference does without
    Extension = object

EXAMPLE = re.compile(r"^( *)>>> .*\n?(?:\1\S.*\n?|\1 +\S.*\n?)*", re.MULTILINE)


def as_markdown(text: str) -> str:
    """Return a docstring whose examples are fenced and whose literals have single backticks."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return EXAMPLE.sub(_fenced, text)


def _fenced(match: "re.Match[str]") -> str:
    indent = match[1]
    return f"{indent}```pycon\n{match[0].rstrip()}\n{indent}```\n"


class Markdown(Extension):  # type: ignore[misc]  # griffe may be missing
    """Change each docstring as it is read."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
