"""Users' source files: their import, and digests of what was imported.

Python keeps the code that it has imported, so an edited file and the code that runs may differ.
What a process has imported is noted with its digest; a file that was edited since is imported
again, or refused.
"""

import ast
import hashlib
import importlib
import importlib.util
import linecache
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from regrow.errors import ConfigError, EditedFileError, short

PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}  # folders
OF_PYTHON = (Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("scripts")), PACKAGE)
INIT = "__init__.py"


def digest_of_source(file: Path) -> str:
    """Return the digest of a Python file and of the user's files that it imports.

    Indirect imports count too; installed modules do not, and neither do the places of folders: the
    same files in another folder have the same digest.
    """
    folder = file.resolve().parent
    found = {os.path.relpath(path, folder): digest for path, digest in digests_of(file).items()}
    parts = [f"{name} {digest}" for name, digest in sorted(found.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def digest_of_files(files: Iterable[str]) -> str | None:
    """Return the digest of Python files and of the user's files that they import.

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


def digests_of(file: Path) -> Mapping[Path, str]:
    """Return the digests of a Python file and of the user's files that it imports.

    During a run they are those of what the process has read, if it has read the file.
    """
    known = _READ.get(str(file.resolve())) if _EXPECTED else None
    if known is not None:
        return {Path(path): digest for path, digest in known.items()}
    asked: tuple[Path | str, ...] = (file.resolve(), Path.cwd(), *sys.path)
    before = _FOUND.get(asked, {})
    if not before or any(_digest(path) != digest for path, digest in before.items()):
        # If no text has changed, the imports have not either.
        _FOUND[asked] = {path: _digest(path) for path in sources(file)}
    return _FOUND[asked]


_FOUND: dict[tuple[Path | str, ...], Mapping[Path, str]] = {}  # for each file asked for


def _digest(file: Path) -> str:
    """Return the digest of a file; of none if there is no such file."""
    return hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()


def sources(file: Path) -> tuple[Path, ...]:
    """Return a Python file and the user's files that it imports, directly or indirectly.

    They are found as Python finds them: relative imports from the importing file, others in the
    folder of the first file, in that of its package, and in ``sys.path``.
    """
    first = file.resolve()
    folders = dict.fromkeys([first.parent, _folder_of_package(first), *_folders()])
    found: dict[Path, None] = {}
    waiting = [first]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        try:
            imported = _imported(path)
        except ConfigError:
            if path == first:
                raise
            imported = ()  # Python does not import it either
        for level, name in imported:
            bases = [path.parents[level - 1]] if 0 < level <= len(path.parents) else folders
            waiting += files_of_module(name, bases)
    return tuple(found)


def files_of_module(name: str, folders: Iterable[Path] | None = None) -> tuple[Path, ...]:
    """Return the user's files that the import of a module runs: its own, and those of its packages.

    The first of the folders (by default the current one and those of ``sys.path``) that holds the
    module counts; it is empty if none does, or if the module is installed.
    """
    parts = name.split(".")
    if not all(map(str.isidentifier, parts)):
        return ()
    for folder in _folders() if folders is None else folders:
        place = folder.joinpath(*parts)
        own = next(filter(Path.is_file, (place.with_name(f"{parts[-1]}.py"), place / INIT)), None)
        if own is not None:
            above = (folder.joinpath(*parts[:depth], INIT) for depth in range(1, len(parts)))
            files = (*filter(Path.is_file, above), own.resolve())
            return () if is_installed(str(own)) else files
    return ()


def is_installed(file: str) -> bool:
    """Return whether a file is part of Python, of an installed package or of this one."""
    path = Path(file)
    return not INSTALLED.isdisjoint(path.parts) or any(map(path.is_relative_to, OF_PYTHON))


def _folders() -> tuple[Path, ...]:
    """Return the current folder, and those of ``sys.path`` in which nothing is installed."""
    folders = (Path(folder).resolve() for folder in ("", *sys.path))
    return tuple(folder for folder in folders if not is_installed(str(folder)))


def _folder_of_package(file: Path) -> Path:
    """Return the folder that contains the outermost package of a file."""
    folder = file.parent
    while (folder / INIT).is_file():
        folder = folder.parent
    return folder


def _imported(file: Path) -> tuple[tuple[int, str], ...]:
    """Return the modules that a file may import, each with the level of a relative import, or 0."""
    try:
        return _modules_in(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"'{file}' cannot be read as Python: {short(error)}") from error


@lru_cache(maxsize=1024)
def _modules_in(text: bytes) -> tuple[tuple[int, str], ...]:
    found: dict[tuple[int, str], None] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name): None for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module or ''}.{a.name}" for a in node.names)]
            found |= {(node.level, name.strip(".")): None for name in names if name.strip(".")}
    return tuple(found)


Digests = Mapping[str, Mapping[str, str]]  # of each imported file, those of it and its imports
_READ: dict[str, Mapping[str, str]] = {}
_EXPECTED: list[Digests] = []  # for each run that goes on, those in the keys of its jobs


def read_digests() -> Digests:
    """Return the digests of the users' files that this process has imported, as they were then.

    For each imported file (its path), they are those of this file and of the user's files that it
    imports, by path.
    """
    return dict(_READ)


def note_read(file: Path) -> None:
    """Note the digests of a file, and of the user's files that it imports, as read now.

    Raises:
        ConfigError: a run goes on whose jobs' keys contain other digests.
    """
    name = str(file.resolve())
    digests = {str(path): digest for path, digest in digests_of(file).items()}
    _refuse_unexpected(name, digests)
    _READ[name] = digests


@contextmanager
def expecting(digests: Digests) -> Iterator[None]:
    """Refuse, until it ends, users' files that differ from those that a run's start has read.

    ``digests`` are the ``read_digests`` of the process that made the jobs and so their keys. Files
    that are not among them may have any content.

    Raises:
        ConfigError: this process has read a file that differs.
    """
    _EXPECTED.append(digests)
    try:
        for name, found in _READ.items():
            _refuse_unexpected(name, found)
        yield
    finally:
        _EXPECTED.remove(digests)


def is_kept() -> bool:
    """Return whether a run goes on, so that code counts as it was read at the run's start."""
    return bool(_EXPECTED)


def keeping_code() -> AbstractContextManager[None]:
    """Use the users' code that this process has read, whether its files are edited or not."""
    return expecting(read_digests())


def is_edited(file: Path) -> bool:
    """Return whether a file differs from what this process has read of it, or was not read.

    Raises:
        ConfigError: a module that it imports differs; Python would not read it again.
    """
    file = file.resolve()
    before = {Path(path): digest for path, digest in _READ.get(str(file), {}).items()}
    now = digests_of(file)
    for path in now:
        if path != file and before.get(path, now[path]) != now[path] and _is_imported(path):
            raise ConfigError(
                f"'{path}', which '{file.name}' imports, was edited after this Python process "
                "imported it. Start Python again, so that the edited file is used."
            )
    return before.get(file) != now[file]


def import_file(file: Path, name: str) -> ModuleType:
    """Import a Python file as the module of a name, also if there is one.

    Raises:
        ConfigError: a run goes on whose jobs' keys contain another digest of it.
    """
    file = file.resolve()
    loader = _FromText(name, str(file))
    loader.get_code(name)  # for its errors
    note_read(file)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def digests_noted(file: Path) -> Mapping[Path, str]:
    """Return the digests of a file that others have imported, and note them if that is new.

    Raises:
        ConfigError: it, or a module that it imports, was edited after they were
            noted; Python would not read it again.
    """
    file = file.resolve()
    if str(file) not in _READ:
        note_read(file)
    elif is_edited(file):
        raise ConfigError(
            f"'{file}' was edited after this Python process imported it. Start Python again, so "
            "that the edited file is used."
        )
    return digests_of(file)


def import_module(name: str, file: Path) -> ModuleType:
    """Import a module by its name, which is in a Python file, and note what was read.

    Raises:
        ConfigError: it, or a module that it imports, was edited after this process
            imported it, or after the start of the run that goes on.
    """
    digests_noted(file)
    return importlib.import_module(name)


class _FromText(SourceFileLoader):
    """Compiles the text, because bytecode may be of another text of the same size and second."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _refuse_unexpected(file: str, digests: Mapping[str, str]) -> None:
    """Refuse a file that a run's start has read otherwise, or with other imports."""
    expected = _EXPECTED[-1].get(file, {}) if _EXPECTED else {}
    for path, digest in digests.items():
        if expected.get(path, digest) != digest:
            raise EditedFileError(
                f"'{path}' was edited after this run had read it. Start the command, or Python, "
                "again, so that the edited file is used. Finished results are kept."
            )


def _is_imported(file: Path) -> bool:
    """Return whether a module of this process is of a file."""
    modules = list(sys.modules.values())
    return any(getattr(module, "__file__", None) == str(file) for module in modules)
