"""Digests of a user's source file, including the files of its folder that it imports."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from regrow.errors import ConfigError, short


def digest_of_source(file: Path) -> str:
    """Return the digest of a Python file and of the files in its folder that it imports.

    Indirect imports count too; installed modules do not, and neither do paths: the same files in
    another folder have the same digest.
    """
    texts = {path.name: path.read_bytes() for path in sources(file)}
    parts = [f"{name} {hashlib.sha256(text).hexdigest()}" for name, text in sorted(texts.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def sources(file: Path) -> tuple[Path, ...]:
    """Return a Python file and the files of its folder that it imports, directly or indirectly."""
    found: dict[Path, None] = {}
    waiting = [file.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        beside = (file.resolve().parent / place for place in _imported(path))
        waiting += [place for place in beside if place.is_file()]
    return tuple(found)


def _imported(file: Path) -> Iterator[str]:
    """Yield the paths that the modules imported by a file would have in its folder."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"'{file}' cannot be read as Python: {short(error)}") from error
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
        for name in filter(None, names):
            place = name.replace(".", "/")
            yield from (f"{place}.py", f"{place}/__init__.py")
