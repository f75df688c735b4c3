"""Registries of models, data sets, criteria, methods and arms by name.

The folder is the registry: every module of a registry's package registers its values when it is
imported. Names are read from the source of these modules, so that a module (and PyTorch) is
imported only when its value is used. Installed packages add values through entry points of the
group of the same name (``regrow.models``, ...), and ``load_file`` adds a file (``--with file.py``).
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from regrow.core.session_code import digest_of_session_code
from regrow.core.source import (
    PACKAGE,
    digest_of_files,
    import_file,
    is_edited,
    is_installed,
    is_kept,
    note_read,
)
from regrow.core.validation import is_number
from regrow.errors import ConfigError, EditedFileError, unknown

T = TypeVar("T")


def canonical(name: str) -> str:
    """Normalise a name for comparison; the part after a colon (a path) is left unchanged.

    >>> canonical("VGG_16"), canonical("hf:Some/Path_1")
    ('vgg-16', 'hf:Some/Path_1')
    """
    head, colon, rest = name.strip().partition(":")
    return head.lower().replace("_", "-").replace(" ", "-") + colon + rest


@dataclass(frozen=True, kw_only=True)
class Outside(Generic[T]):
    """Names that work without registration, such as a function of a user's file.

    Attributes:
        is_name: whether a text is such a name rather than a registered one.
        value: makes the value of such a name.
        origin: the file that contains the value's code, or the package.
        identity: the part of job keys that identifies a name; by default the name.
        code: the part of job keys that identifies its code; None: the digest of the origin, if
            that is a file.
    """

    is_name: Callable[[str], bool]
    value: Callable[[str], T]
    origin: Callable[[str], str]
    identity: Callable[[str], str] = lambda name: name
    code: Callable[[str], str | None] = lambda name: None


class Registry(Generic[T]):
    """Map names to values of one kind, filled from a package's modules on first use.

    ``register`` is the name of the function or decorator that registers, whose first argument is
    the registered name. ``modules`` are modules outside the package that register values as well.
    ``outside`` handles names that need no registration, which are used unchanged. ``also`` maps
    aliases to registered names.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        register: str,
        modules: Sequence[str] = (),
        outside: Outside[T] | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.package = package
        self.register = register
        self.modules = tuple(modules)
        self.outside = outside
        self.also = also or {}
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._registrants: dict[str, str] = {}  # the file whose statement registered a name
        self._codes: dict[str, str | None] = {}
        self._session_codes: dict[str, str] = {}  # of code in no file, which may change any time
        self._revisions: dict[str, int] = {}
        self._own: set[str] = set()  # names whose code is part of regrow itself
        self._discovered = False

    def add(
        self,
        name: str,
        value: T,
        *,
        origin: Callable[..., object] | str | None = None,
        revision: int = 1,
    ) -> None:
        """Register a value; raise ``ConfigError`` if its name is taken.

        ``origin`` is the file that registers, or a function, whose file may be another. A name that
        ends in a colon (``hf:``) is a prefix: it matches every name that begins with it. Raise
        ``revision`` when the meaning of a built-in name changes, so that results of the old one are
        not used.
        """
        key = canonical(name)
        registrant = _registrant()
        source = _source_of(origin) if callable(origin) else origin or self.package
        if registrant is None:
            registrant = source
        elif _is_ours(source):
            source = registrant  # a function of this package under a user's name
        self._refuse_twice(name, key, registrant)
        self._values[key] = value
        self._origins[key], self._registrants[key] = source, registrant
        self._revisions[key] = revision
        if _is_ours(source):
            self._own.add(key)
            self._codes[key] = None
            return
        self._own.discard(key)
        # Now, because the files may be edited while this process keeps the code that it has read.
        files = {source, registrant}
        self._codes[key] = digest_of_files(files)
        for file in files:
            if file.endswith(".py") and Path(file).is_file():
                note_read(Path(file))
        self._session_codes.pop(key, None)
        if not all(Path(file).is_file() for file in files - {self.package}):
            self._session_codes[key] = ""
        if source != self.package:
            _ELSEWHERE.add(registrant)

    def _refuse_twice(self, name: str, key: str, registrant: str) -> None:
        """Refuse a name that another file has registered, or a loading file a second time."""
        if key not in self._values and not _is_ours(registrant):
            module = self._declared().module_of.get(key)
            if module is not None:  # a built-in name that was not needed so far
                _import(module)
        before = self._registrants.get(key) if key in self._values else None
        # A cell of a notebook has another name after an edit; it may register again.
        is_cell = before is not None and not any(Path(f).is_file() for f in (before, registrant))
        if before is not None and before != registrant and not (is_cell and key not in self._own):
            raise ConfigError(
                f"The {self.kind} {name!r} is registered twice: in {before} and in "
                f"{registrant}. Rename one of them."
            )
        if _LOADING:
            if (self.kind, key) in _LOADING[-1]:
                raise ConfigError(
                    f"The {self.kind} {name!r} is registered twice in {registrant}, and only the "
                    "second would be used. Rename one of them."
                )
            _LOADING[-1].add((self.kind, key))

    def get(self, name: str) -> T:
        """Return the value of a name; if unknown, raise ``ConfigError`` with similar names."""
        if self.outside is None and isinstance(name, str) and name in self._values:
            return self._values[name]
        key = self.key(name)
        if self.outside is not None and self.outside.is_name(key):
            return self.outside.value(key)
        if key not in self._values:
            _import(self._declared().module_of[key])
        if key not in self._values:  # its module registers it conditionally, and did not
            self._discover()
        return self._values[self.key(name)]

    def key(self, name: str) -> str:
        """Return the registered name (or prefix) that a user's spelling matches.

        Imports nothing if the name can be read from the source of the package's modules.
        """
        if not isinstance(name, str):
            raise ConfigError(f"A {self.kind} name must be a text. Got {name!r}.")
        if self.outside is not None and self.outside.is_name(name):
            return name.strip()
        if name in self._values:
            return name
        if not self._discovered:
            declared = self._declared()
            registered = {**self._values, **declared.module_of}
            key = self._match(name, registered)
            if key is not None:
                return key
            if declared.complete and not entry_points(group=self.package):
                raise ConfigError(unknown(self.kind, name, registered))
            self._discover()
        key = self._match(name, self._values)
        if key is None:
            raise ConfigError(unknown(self.kind, name, self._values))
        return key

    def _match(self, name: str, registered: Mapping[str, object]) -> str | None:
        key = _match(name, registered)
        other = self.also.get(canonical(name)) if key is None else None
        return key if other is None else _match(other, registered)

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        self._discover()
        return tuple(sorted(self._values))

    def name_of(self, value: T) -> str | None:
        """Return the name that a value is registered under, or None."""
        if not any(known is value for known in self._values.values()):
            self._discover()  # it may be built in, in a module that is not imported yet
        return next((name for name, known in self._values.items() if known is value), None)

    def added(self) -> tuple[str, ...]:
        """Return the names registered so far by files outside the package; imports nothing."""
        return tuple(name for name in self._origins if name not in self._own)

    def known(self) -> tuple[str, ...]:
        """Return every registered name, sorted; imports nothing if the source shows all of them."""
        declared = self._declared()
        if not declared.complete or entry_points(group=self.package):
            return self.names()
        return tuple(sorted({**declared.module_of, **self._values}))

    def __contains__(self, name: object) -> bool:
        """Return whether a value is a registered name, in its registered spelling."""
        return isinstance(name, str) and (name in self._values or name in self.known())

    def origin(self, name: str) -> str:
        """Return the file that registered a name."""
        if self.outside is not None and self.outside.is_name(name):
            return self.outside.origin(name)
        self.get(name)  # its module may not be imported yet
        return self._origins[self.key(name)]

    def identity(self, name: str) -> str:
        """Return the part of job keys that identifies a name, apart from its code."""
        if self.outside is not None and self.outside.is_name(name):
            return self.outside.identity(name)
        self.get(name)  # its module may not be imported yet
        revision = self._revisions[self.key(name)]
        return name if revision == 1 else f"{name} ({revision})"

    def is_own(self, name: str) -> bool:
        """Return whether the code of a name is known to be part of regrow itself."""
        if self.outside is not None and self.outside.is_name(name):
            return Path(self.outside.origin(name)).is_relative_to(PACKAGE)
        self.get(name)  # its module may not be imported yet
        return self.key(name) in self._own

    def code(self, name: str) -> str | None:
        """Return the digest of a name's files if they are not part of regrow itself, else None.

        They are the file that registered it, that of its function, and the user's files that they
        import, as they were then. It is part of job keys, so that results of an edited
        criterion are not reused.
        """
        if self.outside is not None and self.outside.is_name(name):
            code = self.outside.code(name)
            own = self.is_own(name)
            return code if code is not None or own else digest_of_files({self.origin(name)})
        return None if self.is_own(name) else self._own_code(self.key(name))

    def _own_code(self, key: str) -> str | None:
        code = self._codes[key]
        if key not in self._session_codes:
            return code
        if not (is_kept() and self._session_codes[key]):
            self._session_codes[key] = digest_of_session_code(self._values[key])
        return f"{code or ''}{self._session_codes[key]}"

    def _declared(self) -> "_Declared":
        """Return the names that can be read from the source of this registry's modules."""
        return _declared(self.package, self.modules, self.register)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # first, because the modules below may look up names themselves
        try:
            for module in _modules(self.package, self.modules):
                _import(module)
            before = set(_ELSEWHERE)
            for point in entry_points(group=self.package):
                point.load()
            _ELSEWHERE.intersection_update(before)  # every process finds these by itself
        except ConfigError:
            self._discovered = False  # or names would count as unknown because another file failed
            raise


@dataclass(frozen=True)
class _Declared:
    """Registered names found in the source, and whether these are all names."""

    module_of: Mapping[str, str]
    complete: bool


@cache
def _declared(package: str, modules: tuple[str, ...], register: str) -> _Declared:
    """Read the names from the calls of ``register`` in the source of modules."""
    module_of: dict[str, str] = {}
    twice: set[str] = set()  # importing both modules raises the error
    complete = True
    for module in _modules(package, modules):
        calls = _calls(module)
        if calls is None:
            complete = False  # importing it raises the error
            continue
        for name in calls.get(register, ()):
            if name is None:
                complete = False
            elif module_of.setdefault(canonical(name), module) != module:
                twice.add(canonical(name))
    once = {name: module for name, module in module_of.items() if name not in twice}
    return _Declared(once, complete and not twice)


@cache
def _calls(module: str) -> Mapping[str, Sequence[str | None]] | None:
    """Return the first arguments of all calls in a module, by the name of the called function.

    An argument that is not a string literal is None; the result is None if the source is not valid
    Python. Cached, because several registries read the same module.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return {}
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError:
        return None
    calls: dict[str, list[str | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, first = node.func, node.args[0] if node.args else None
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            value = first.value if isinstance(first, ast.Constant) else None
            calls.setdefault(name, []).append(value if isinstance(value, str) else None)
    return calls


def _modules(package: str, modules: Sequence[str]) -> Iterator[str]:
    parent = importlib.import_module(package)
    yield from modules
    yield from (f"{package}.{module.name}" for module in pkgutil.iter_modules(parent.__path__))


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ConfigError:
        raise
    except Exception as error:
        package, _, name = module.rpartition(".")
        raise ConfigError(
            f"The file {name}.py of {package} cannot be imported: {type(error).__name__}: {error}. "
            "Fix it, or remove it from the folder."
        ) from error


def _match(name: str, registered: Mapping[str, object]) -> str | None:
    """Return the registered name (or prefix) that a user's spelling matches, or None."""
    wanted = canonical(name)
    prefix = wanted.partition(":")[0] + ":"
    if wanted in registered:
        return wanted
    if ":" in wanted and prefix in registered:
        return prefix
    squeezed = wanted.replace("-", "")
    return next((key for key in registered if key.replace("-", "") == squeezed), None)


def place_in(file: Path, error: BaseException) -> str:
    """Return the last line of a file in an error's traceback as ``, line N``, or an empty text."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


_LOADED: list[Path] = []
_LOADING: list[set[tuple[str, str]]] = []  # what the file that is being loaded has registered
_WITH = "regrow_with_"  # prefix of the names of modules loaded from files
_ELSEWHERE: set[str] = set()  # files outside this package that registered something


def registered_elsewhere() -> tuple[str, ...]:
    """Return the scripts and notebooks whose registered values a new process would not find.

    Files loaded by ``load_file`` and installed packages are left out, as a new process finds these.
    """
    known = {str(file) for file in _LOADED}
    return tuple(sorted(source for source in _ELSEWHERE if source not in known))


def load_file(path: str | Path, *, where: str | None = None) -> None:
    """Import a Python file so that it registers its values; ``where`` names it in messages.

    A file that was edited after it was loaded is loaded again.
    """
    file, where = Path(path).resolve(), where or f"--with {path}"
    if not file.is_file():
        raise ConfigError(f"{where}: no such file. Give the path of a Python file.")
    if file.suffix != ".py":
        raise ConfigError(f"{where}: not a Python file. Its name must end in .py.")
    _LOADING.append(set())
    try:
        if file in _LOADED and not is_edited(file):
            return
        name = f"{_WITH}{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{file.stem}"
        import_file(file, name)
    except EditedFileError:
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}{place_in(file, error)}: {kind}{error}") from error
    finally:
        _LOADING.pop()
    if file not in _LOADED:
        _LOADED.append(file)


def loaded_files() -> tuple[Path, ...]:
    """Return the files loaded so far, to pass them to worker processes."""
    return tuple(_LOADED)


def check_arguments(
    function: Callable[..., object],
    arguments: Iterable[str],
    *,
    where: str,
    reserved: Iterable[str] = (),
) -> None:
    """Raise ``ConfigError`` for keyword arguments that a factory does not take, suggesting similar.

    ``reserved`` are parameters that the caller sets itself; a user may not give them.
    """
    names = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in set(reserved)
    ]
    for name in arguments:
        if name not in names:
            raise ConfigError(f"{where}: {unknown('argument', name, names)}")


def check_numbers(
    function: Callable[..., object], arguments: Mapping[str, object], *, where: str
) -> None:
    """Raise ``ConfigError`` if an argument is not a number although its default is one."""
    parameters = inspect.signature(function).parameters
    for name, value in arguments.items():
        if is_number(parameters[name].default) and not is_number(value):
            raise ConfigError(f"{where}: {name!r} must be a number. Got {value!r}.")


def calling_file(depth: int = 2) -> str:
    """Return the file of the calling code (``depth`` frames up), for values without a source."""
    return sys._getframe(depth).f_code.co_filename


def _source_of(origin: Callable[..., object]) -> str:
    """Return the file of a function, or of what a partial or an object that is called runs."""
    function: object = inspect.unwrap(origin)
    while isinstance(function, partial):
        function = inspect.unwrap(function.func)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)
    try:
        found = inspect.getsourcefile(function)
    except TypeError:  # compiled code
        found = None
    return found or str(getattr(function, "__module__", None))


def _registrant() -> str | None:
    """Return the file whose statement is registering a value; None for ours and installed ones."""
    frame = sys._getframe(2)
    while frame.f_code.co_name != "<module>":
        if frame.f_back is None:
            return None
        frame = frame.f_back
    file = frame.f_code.co_filename
    return None if is_installed(file) or file.startswith("<") else file


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(PACKAGE)
