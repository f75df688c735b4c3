"""Networks by origin: the user's code, or a model from timm, torchvision or transformers.

    package.module:build        a function or a class in a module that Python can import
    path/file.py:build          one in a file
    timm/NAME, torchvision/NAME, hf/ID-or-FOLDER
    NAME                        one of regrow's own models (``regrow list models``)

No model is registered here. Code named in a saved file is run only if the user names it too: see
``surgery.architecture.load``.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from regrow.core.choice import frozen
from regrow.core.disk import is_file
from regrow.core.global_rng import drawing
from regrow.core.registry import canonical
from regrow.core.seeds import derive
from regrow.core.source import import_file, import_module, is_edited
from regrow.core.validation import is_int
from regrow.core.validation import text as named
from regrow.errors import ConfigError, EditedFileError, short, unknown
from regrow.models import MODELS, ModelEntry, ModelSpec, build, is_origin
from regrow.models.libraries import LIBRARIES, Library, folder_of
from regrow.models.weights import PICKLES, PUBLISHED, Checkpoint

if TYPE_CHECKING:
    from torch import nn

FORMS = (
    "package.module:build, file.py:build, timm/NAME, torchvision/NAME, hf/ID-or-FOLDER, or the "
    "name of a model of regrow's own"
)
Kind = Literal["code", "library", "registered"]
_IMPORTING: list[str] = []  # files whose import is under way, the innermost last


class UnguardedCallError(ConfigError):
    """A call that was reached because its script is imported for the functions that it holds."""


@dataclass(frozen=True, init=False)
class ModelOrigin:
    """The origin of a network: a text such as ``nets.py:build``, and its arguments.

    ``settings`` is what a library also needs to rebuild the network without internet access:
    the configuration of a model from transformers.
    """

    text: str
    _arguments: str  # as ``frozen`` returns them
    _settings: str

    def __init__(
        self,
        text: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"A network is named by a text: {FORMS}. Got {text!r}.")
        object.__setattr__(self, "text", text.strip())
        object.__setattr__(self, "_arguments", frozen(arguments or {}, of=f"network {text!r}"))
        object.__setattr__(self, "_settings", frozen(settings or {}, of=f"network {text!r}"))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments given, sorted by name; a copy."""
        arguments: dict[str, Any] = json.loads(self._arguments)
        return arguments

    @property
    def settings(self) -> dict[str, Any]:
        """The further settings that a library needs; a copy."""
        settings: dict[str, Any] = json.loads(self._settings)
        return settings

    @property
    def kind(self) -> Kind:
        """The kind of network that the text names; an invalid text raises a ``ConfigError``."""
        if self.text.partition("/")[0] in LIBRARIES and "/" in self.text:
            return "library"
        if ":" in self.text:
            return "code"
        if is_origin(self.text):
            raise ConfigError(
                f"{self.text!r} names no network. Expected {FORMS}.{_meant(self.text)}"
            )
        try:
            MODELS.key(self.text)
        except ConfigError as error:
            raise ConfigError(
                f"{error} A network of another kind is {FORMS}.{_meant(self.text)}"
            ) from error
        return "registered"

    def resolved(self) -> "ModelOrigin":
        """Return the origin with all settings needed to build its network on any machine."""
        if self.kind != "library" or self._settings != "{}":
            return self
        library, name = self._library()
        return ModelOrigin(self.text, self.arguments, settings=library.settings(name))

    def build(self, *, seed: int = 0) -> "nn.Module":
        """Build the network, initialised from a seed; the user's code may load weights itself.

        Raises:
            ConfigError: there is no such network, its code fails, or a package is missing.
        """
        kind = self.kind
        if kind == "registered":
            return build(ModelSpec(self.text, self.arguments), seed=seed)
        if kind == "code":
            return _by_code(self.text, self.arguments, seed=derive(seed, "init"))
        with drawing(derive(seed, "init")):
            library, name = self._library()
            return library.build(name, self.arguments, self.settings)

    def published(self) -> "nn.Module":
        """Build the network with the weights that its library publishes or its code sets."""
        if self.kind != "library":
            return self.build()
        library, name = self._library()
        with drawing(derive(0, "init")):
            return library.published(name, self.arguments)

    def inputs(self, network: "nn.Module") -> str | None:
        """Return the text of the input that a library's network declares, if it does."""
        return self._library()[0].inputs(network) if self.kind == "library" else None

    def spec(self) -> ModelSpec | None:
        """Return the spec of the registered model, if it is one."""
        return ModelSpec(self.text, self.arguments) if self.kind == "registered" else None

    @property
    def folder(self) -> Path | None:
        """The folder of a saved model, if it is one; None for models on the hub."""
        return folder_of(self.text.removeprefix("hf/")) if self.text.startswith("hf/") else None

    def _library(self) -> tuple[Library, str]:
        library, _, name = self.text.partition("/")
        return LIBRARIES[library], name

    def __repr__(self) -> str:
        return f"ModelOrigin({self.text!r}, {self.arguments!r})"

    def to_json(self) -> dict[str, Any]:
        """Return the origin as JSON values."""
        settings = {"settings": self.settings} if self.settings else {}
        return {"text": self.text, "arguments": self.arguments, **settings}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelOrigin":
        """Read the JSON values of ``to_json``."""
        if not isinstance(value, Mapping) or {*value} - {"text", "arguments", "settings"}:
            raise ConfigError(f"A network must map 'text' and 'arguments'. Got {short(value)}.")
        return cls(value["text"], value.get("arguments"), settings=value.get("settings"))


DATA_ARGUMENTS = ("classes", "in_channels", "input_size", "features", "outputs", "vocabulary",
                  "length")  # fmt: skip


def entry_of(text: str) -> ModelEntry:
    """Return the ``ModelEntry`` of a network by its origin, so studies treat it as registered."""
    origin = ModelOrigin(text)
    return _library_entry(origin) if origin.kind == "library" else _code_entry(origin)


def file_of(text: str) -> str:
    """Return the file that holds a network's code, or the name of a model in its library."""
    origin = ModelOrigin(text)
    return origin._library()[1] if origin.kind == "library" else _builder(text)[1]


def _library_entry(origin: ModelOrigin) -> ModelEntry:
    library, name = origin._library()
    settings = library.settings(name)
    known = {"settings": settings} if settings else {"name": origin.text}
    return ModelEntry(
        name=origin.text,
        factory=lambda **arguments: library.build(name, arguments, settings),
        family="",
        reference="",
        defaults={},
        from_data=tuple(library.from_data),
        renamed=library.from_data,
        outside=True,
        identity={"library": origin.text.partition("/")[0], **known},
        published=lambda **arguments: library.published(name, arguments),
    )


def _code_entry(origin: ModelOrigin) -> ModelEntry:
    builder, file, attribute = _builder(origin.text)
    try:
        takes = [] if not callable(builder) else [*inspect.signature(builder).parameters]
    except ValueError:  # code without a signature
        takes = []
    return ModelEntry(
        name=origin.text,
        factory=lambda **arguments: _call(origin.text, builder, file, arguments),
        family="",
        reference="",
        defaults={},
        from_data=tuple(name for name in DATA_ARGUMENTS if name in takes),
        outside=True,
        identity={"code": attribute},  # beside a digest of the file
    )


def read_checkpoint(spec: ModelSpec, weights: Any, *, epochs: Any = None) -> Checkpoint | None:
    """Return the checkpoint of trained weights: a file, or the published ones of a library.

    None if the weights are to be ``random``. ``epochs``: how long they were trained, if known.

    Raises:
        DataError: there is no such file, or the published weights cannot be loaded.
        ConfigError: published weights of a network that is not from a library.
    """
    if epochs is not None and not is_int(epochs, least=1):
        raise ConfigError(
            f"models: 'trained_epochs' must be an int of at least 1. Got {short(epochs)}."
        )
    if weights == "random":
        return None
    weights = named(weights, "weights")
    if weights != PUBLISHED:
        return Checkpoint.of_file(weights, epochs=epochs)
    from regrow.core.digests import digest_of

    origin = ModelOrigin(spec.name, spec.arguments)
    if origin.kind != "library":
        raise ConfigError(
            f"weights: published: {spec.name} is not from a library. Give the path of a file."
        )
    digest = digest_of(origin.published().state_dict())
    return Checkpoint(path=PUBLISHED, digest=digest, epochs=epochs)


def code_at(text: str) -> tuple[Any, Path]:
    """Return the object that ``file.py:name`` names in the user's code, and its file.

    Raises:
        ConfigError: there is no such object, or its code fails when it is imported.
    """
    value, file, _ = _builder(text)
    return value, Path(file)


def refuse_second_call(call: str) -> None:
    """Refuse a call that is reached because its script is being imported.

    A worker process that imports the script for the parts that it registered exits; the process
    that started it reports what to do.

    Raises:
        UnguardedCallError: the script is imported for the functions that a study uses.
    """
    if _IMPORTING:
        raise UnguardedCallError(
            f"{_IMPORTING[-1]} is imported for the functions that a study uses, and calls "
            f"{call} while it is imported. Put this call under `if __name__ == '__main__':`, or "
            "move these functions into a file of their own."
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)


def file_named(text: str) -> tuple[str, ...]:
    """Return the file part of a text such as ``file.py:name``; empty if it names no file.

    >>> file_named("nets/mine.py:build"), file_named("package.module:build"), file_named("timm/x")
    (('nets/mine.py',), (), ())
    """
    file = text.rpartition(":")[0]
    return (file,) if file.endswith(".py") else ()


OTHER_NAMES = {"huggingface": "hf", "transformers": "hf", "tv": "torchvision"}  # of libraries


def _meant(text: str) -> str:
    """Return a suggestion of what a text that names no network may have meant."""
    path, (head, slash, name) = Path(text).expanduser(), text.partition("/")
    module, _, attribute = text.rpartition(".")
    near = get_close_matches(head, [*LIBRARIES, *OTHER_NAMES], n=1)
    if text.endswith(".py"):
        return f" Add the function: {text}:build."
    if is_file(path / "config.json"):
        return f" Do you mean hf/{text}?"
    if is_file(path / "architecture.json"):
        return (
            f" '{text}' holds a network that regrow saved. Name a function that loads it, "
            f"mine.py:build with `return regrow.load({text!r})`."
        )
    if path.suffix in (*PICKLES, ".safetensors"):
        return f" '{text}' is the name of a weights file: give it with --weights, beside the code."
    if slash and near:
        return f" Do you mean {OTHER_NAMES.get(near[0], near[0])}/{name}?"
    if module and is_file(Path(f"{module.replace('.', '/')}.py")):
        return f" Do you mean {module.replace('.', '/')}.py:{attribute}?"
    return ""


def _by_code(text: str, arguments: Mapping[str, Any], *, seed: int) -> "nn.Module":
    """Build a network by a function or class in the user's code."""
    builder, file, _ = _builder(text, seed=seed)
    with drawing(seed):
        return _call(text, builder, file, arguments)


def _builder(text: str, *, seed: int = 0) -> tuple[Any, str, str]:
    """Return the object that a text names in the user's code, with its file and its name there."""
    with drawing(seed):  # importing the module may already build a network
        module, file, attribute = _module(text)
    return _attribute(module, attribute, text), file, attribute


def _call(text: str, builder: Any, file: str, arguments: Mapping[str, Any]) -> "nn.Module":
    """Call the user's code to build its network; its exceptions become a ``ConfigError``."""
    from torch import nn

    attribute = text.rpartition(":")[2]
    if isinstance(builder, nn.Module) and not arguments:
        return deepcopy(builder)
    if not callable(builder) or isinstance(builder, nn.Module):
        raise ConfigError(
            f"{text}: {attribute!r} must be a function or a class that makes a network"
            + (", to accept arguments." if isinstance(builder, nn.Module) else ".")
            + f" Got {short(builder)}."
        )
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{text}: its arguments are {inspect.signature(builder)}: {error}. Give them with "
            "--set NAME=VALUE."
        ) from error
    except ValueError:  # code without a signature, which checks its arguments itself
        pass
    network = _run(lambda: builder(**arguments), text, file, doing="fails")
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{text}: it must return a torch.nn.Module. Got {type(network).__name__}: "
            f"{short(network)}."
        )
    return network


def _module(text: str) -> tuple[ModuleType, str, str]:
    """Import the module of a text; return it, its file and the attribute's name."""
    place, _, attribute = text.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"{text!r} names no network. Expected {FORMS}.")
    if place.endswith(".py"):
        file = Path(place).expanduser()
        if not is_file(file):
            raise ConfigError(f"{text}: there is no file '{place}' in '{Path.cwd()}'.")
        where = str(file.resolve())
        try:
            module = _imported(lambda: _from_file(file), text, where)
        except ConfigError as error:
            if "relative import" not in str(error.__cause__):
                raise
            raise ConfigError(f"{error}. {_as_module(file.resolve(), attribute)}") from error
        return module, where, attribute
    _look_in(Path.cwd())
    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError, AttributeError):
        spec = None
    except Exception as error:  # this imports the parent package, which may fail
        raise ConfigError(
            f"{text} cannot be imported: {place_of(error, place)}{type(error).__name__}: "
            f"{short(error)}"
        ) from error
    if spec is None:
        raise ConfigError(
            f"{text}: there is no module {place!r}, neither installed nor in '{Path.cwd()}'. Start "
            "in the folder that holds it, or name its file: path/file.py:build."
        )
    where = spec.origin or place
    if where.endswith(".py"):
        module = _imported(lambda: import_module(place, Path(where)), text, where)
    else:
        module = _imported(lambda: importlib.import_module(place), text, where)
    return module, where, attribute


def _imported(importing: Callable[[], ModuleType], text: str, file: str) -> ModuleType:
    """Return an imported module; its exceptions become a ``ConfigError`` with file and line."""
    _IMPORTING.append(file)
    try:
        module: ModuleType = _run(importing, text, file, doing="cannot be imported")
    finally:
        _IMPORTING.pop()
    return module


def _as_module(file: Path, attribute: str) -> str:
    """Say how to name code in a file that belongs to a package, because it imports relatively."""
    top = file.parent
    while is_file(top.parent / "__init__.py"):
        top = top.parent
    name = ".".join(file.relative_to(top.parent).with_suffix("").parts)
    return (
        "A file with relative imports is a part of a package: start in the folder "
        f"'{top.parent}', and name it as {name}:{attribute}."
    )


def _attribute(module: ModuleType, attribute: str, text: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [n for n, member in vars(value).items() if callable(member) and n[0] != "_"]
            raise ConfigError(f"{text}: {unknown('function or class', part, known)}")
        value = getattr(value, part)
    return value


def _from_file(file: Path) -> ModuleType:
    path = file.resolve()
    name = f"regrow_code_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules and not is_edited(path):  # else edited, as beside a notebook
        return sys.modules[name]
    _look_in(path.parent)  # for the files beside it
    return import_file(path, name)


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _run(function: Callable[[], Any], text: str, file: str, *, doing: str) -> Any:
    """Run the user's code; its exceptions become a ``ConfigError`` with file and line."""
    try:
        return function()
    except (UnguardedCallError, EditedFileError):
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{text} {doing}: {place_of(error, file)}{kind}{short(error)}") from error


def place_of(error: BaseException, file: str) -> str:
    """Return the last line in a file that an error passed, as ``FILE, line N: ``, or nothing."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    frames_of_file = [frame for frame in frames if frame.filename == file]
    return (
        f"{frames_of_file[-1].filename}, line {frames_of_file[-1].lineno}: "
        if frames_of_file
        else ""
    )


def place_of_function(function: Any, file: str) -> str:
    """Return a function's first line in the form of ``place_of``; empty if it has no code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "" if code is None else f"{file}, line {code.co_firstlineno}: "


def read_origin(text: str, arguments: Mapping[str, Any] | None = None) -> ModelOrigin:
    """Return the origin of a text, with the checks that need not build anything."""
    origin = ModelOrigin(text, arguments)
    return ModelOrigin(canonical(text), arguments) if origin.kind == "registered" else origin


def read_arguments(settings: "list[str]", given: str | None = None) -> dict[str, Any]:
    """Parse arguments: ``NAME=VALUE`` each, with a JSON value or else a text; or one JSON object.

    >>> read_arguments(["depth=3", "act=relu"], '{"widths": [8, 16]}')
    {'widths': [8, 16], 'depth': 3, 'act': 'relu'}
    """
    arguments: dict[str, Any] = {}
    if given is not None:
        try:
            arguments = json.loads(given)
        except ValueError as error:
            raise ConfigError(
                f"--arguments must be a JSON object ({error}). Got {short(given)}."
            ) from error
        if not isinstance(arguments, dict):
            raise ConfigError(f"--arguments must be a JSON object. Got {short(given)}.")
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--set must be NAME=VALUE, such as width=0.5. Got {short(setting)}.")
        if name in arguments:
            raise ConfigError(
                f"{name!r} is given more than once, by --set or --arguments. Give it once."
            )
        try:
            arguments[name] = json.loads(text)
        except ValueError:
            arguments[name] = text
    return arguments


def _publisher(origin: ModelOrigin) -> str:
    """Return a phrase for the source of a library model's weights: a folder, or the library."""
    library, _, name = origin.text.partition("/")
    return f"of the folder {name}" if origin.folder is not None else f"published by {library}"


def open_network(origin: ModelOrigin, weights: str | None = None) -> "tuple[nn.Module, str]":
    """Return an origin's network with weights, and a phrase for which weights they are.

    ``weights``: by default the weights that a library publishes or the user's code sets; else
    ``published``, ``random``, or a weights file.

    Raises:
        ConfigError, DataError: the network or its weights cannot be loaded, or do not fit.
    """
    if weights in (None, "published"):
        if origin.kind == "library":
            return origin.published(), _publisher(origin)
        if weights is not None:
            raise ConfigError(
                f"--weights published: {origin.text} is not from a library. Give a file, or "
                "leave out --weights."
            )
        return origin.build(), "those its code gives it, or drawn with seed 0"
    network = origin.build()
    if weights == "random":
        return network, "drawn with seed 0"
    from regrow.models.weights import load_weights_

    load_weights_(network, weights)
    return network, f"of {weights}"
