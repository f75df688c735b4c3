"""Digests of a user's source file, including the files of its folder that it imports."""

import ast
import hashlib
import linecache
from collections.abc import Iterable, Iterator
from pathlib import Path

from regrow.errors import ConfigError, short


def digest_of_source(file: Path) -> str:
    """Return the digest of a Python file and of the files in its folder that it imports.

    Indirect imports count too; installed modules do not, and neither do paths: the same files in
    another folder have the same digest.
    """
    found = {path.name: digest for path, digest in digests_of(file).items()}
    parts = [f"{name} {digest}" for name, digest in sorted(found.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def digest_of_files(files: Iterable[str]) -> str | None:
    """Return the digest of Python files and of those of their folders that they import.

    Cells of a notebook are read as Python keeps their text; None if nothing can be read. For one
    file that imports no other it is the digest of its bytes.
    """
    digests: set[str] = set()
    for file in files:
        if Path(file).suffix == ".py" and Path(file).is_file():
            digests |= {*digests_of(Path(file)).values()}
        elif Path(file).is_file():
            digests.add(hashlib.sha256(Path(file).read_bytes()).hexdigest())
        elif text := "".join(linecache.getlines(file)):
            digests.add(hashlib.sha256(text.encode()).hexdigest())
    if len(digests) <= 1:
        return next((digest[:16] for digest in digests), None)
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:16]


def digests_of(file: Path) -> dict[Path, str]:
    """Return the digests of a Python file and of the files of its folder that it imports."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources(file)}


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
