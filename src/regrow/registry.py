"""Names of models, data sets, criteria, methods and arms, and where they come from.

The folder is the registry: every module of a registry's package registers what it holds when it is
imported. Installed packages add theirs through entry points of the same group (``regrow.models``,
...), and ``load_file`` adds a single file (``--with file.py``).
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from regrow.errors import ConfigError, unknown

T = TypeVar("T")


def canonical(name: str) -> str:
    """Write a name the way registries compare names; what follows a colon (a path) is left alone.

    >>> canonical("VGG_16"), canonical("hf:Some/Path_1")
    ('vgg-16', 'hf:Some/Path_1')
    """
    head, colon, rest = name.strip().partition(":")
    return head.lower().replace("_", "-").replace(" ", "-") + colon + rest


class Registry(Generic[T]):
    """Map names to values of one kind, filled from a package's modules on first use."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._values: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._discovered = False

    def add(
        self, name: str, value: T, *, origin: Callable[..., object] | str | None = None
    ) -> None:
        """Register a value; a name taken by another file is refused, its own file may repeat it.

        ``origin`` is a function of that file, or the file. A name that ends in a colon (``hf:``) is
        a prefix: it serves every name that begins so.
        """
        key = canonical(name)
        source = _source_of(origin) if callable(origin) else origin or self.package
        if key in self._values and self._origins[key] != source:
            raise ConfigError(
                f"The {self.kind} {name!r} is registered twice: in {self._origins[key]} and in "
                f"{source}. Rename one of them."
            )
        self._values[key] = value
        self._origins[key] = source

    def get(self, name: str) -> T:
        """Return the value of a name; a ``ConfigError`` offers the nearest names."""
        return self._values[self.key(name)]

    def key(self, name: str) -> str:
        """Return the registered name (or prefix) that a user's name stands for."""
        self._discover()
        if not isinstance(name, str):
            raise ConfigError(f"A {self.kind} name must be a text. Got {name!r}.")
        wanted = canonical(name)
        prefix = wanted.partition(":")[0] + ":"
        if wanted in self._values:
            return wanted
        if ":" in wanted and prefix in self._values:
            return prefix
        squeezed = wanted.replace("-", "")
        for known in self._values:
            if known.replace("-", "") == squeezed:
                return known
        raise ConfigError(unknown(self.kind, name, self._values))

    def names(self) -> tuple[str, ...]:
        """Return every registered name, sorted."""
        self._discover()
        return tuple(sorted(self._values))

    def origin(self, name: str) -> str:
        """Return the file that registered a name."""
        return self._origins[self.key(name)]

    def code(self, name: str) -> str | None:
        """Digest the file behind a name that is not part of regrow itself, else None.

        Goes into job keys, so that an edited criterion does not find its old results.
        """
        source = Path(self.origin(name))
        if not source.is_file() or source.is_relative_to(Path(__file__).parent):
            return None
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16]

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True  # first, because the modules below may ask for names themselves
        try:
            self._import_all()
        except ConfigError:
            self._discovered = False  # so that a name is not called unknown for another file's sake
            raise

    def _import_all(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            try:
                importlib.import_module(f"{self.package}.{module.name}")
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"The file {module.name}.py of {self.package} cannot be imported: "
                    f"{type(error).__name__}: {error}. Mend it, or take it out of the folder."
                ) from error
        for point in entry_points(group=self.package):
            point.load()


_LOADED: list[Path] = []


def load_file(path: str | Path) -> None:
    """Import one Python file for what it registers (``--with file.py``)."""
    file = Path(path).resolve()
    if file in _LOADED:
        return
    if not file.is_file():
        raise ConfigError(f"--with {path}: no such file. Give the path of a Python file.")
    name = f"regrow_with_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--with {path}: not a Python file. Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--with {path}: {type(error).__name__}: {error}") from error
    _LOADED.append(file)


def loaded_files() -> tuple[Path, ...]:
    """Return the files loaded so far, for handing on to worker processes."""
    return tuple(_LOADED)


def check_arguments(
    function: Callable[..., object],
    given: Iterable[str],
    *,
    where: str,
    reserved: Iterable[str] = (),
) -> None:
    """Refuse keyword arguments that a factory does not take, offering the nearest of those it does.

    ``reserved`` are parameters that the caller fills in itself; a user may not give them.
    """
    names = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.name not in set(reserved)
    ]
    for name in given:
        if name not in names:
            raise ConfigError(f"{where}: {unknown('argument', name, names)}")


def calling_file(depth: int = 2) -> str:
    """Return the file of the code that calls (``depth`` frames up), for values without a source."""
    return sys._getframe(depth).f_code.co_filename


def _source_of(origin: Callable[..., object]) -> str:
    return inspect.getsourcefile(inspect.unwrap(origin)) or origin.__module__
