"""Define networks by name, build them, and reinitialise them.

The folder is the registry: each family is one file here, and a user's file given by ``--with``
registers more networks with the same ``register_model``. A model's factory takes keyword arguments
only: ``classes``, ``in_channels``, ``input_size`` (side of a square image in pixels), ``width`` (a
factor on all channel numbers), and those of the family's variants.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from regrow.core.bounds import check_room
from regrow.core.choice import frozen
from regrow.core.global_rng import drawing
from regrow.core.registry import Outside, Registry, canonical, check_arguments
from regrow.core.seeds import derive
from regrow.core.validation import is_int, is_number
from regrow.errors import ConfigError, short, unknown
from regrow.models.inputs import Inputs
from regrow.models.weights import PUBLISHED, Checkpoint

if TYPE_CHECKING:
    from torch import nn

Factory = Callable[..., "nn.Module"]
F = TypeVar("F", bound=Factory)

FROM_DATA = ("classes", "in_channels", "input_size")  # arguments that a study fills in for images
# Likewise for rows of features, and for sequences of tokens: see ``tasks.base``.
OF_FEATURES, OF_TOKENS = ("features", "outputs"), ("vocabulary", "length", "outputs")
PUBLISHED_CLASSES = 1000  # of ImageNet, on which the published ``weights`` were trained


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A network by name: its factory, and the arguments that select it among its family.

    Attributes:
        from_data: the arguments that come from the data set.
        revision: the number of different networks that the name has meant; in keys from 2 on.
        renamed: the factory's own names of arguments that come from the data set, where different.
        outside: whether it is given by its origin (``models.origins``) instead of registered: then
            it accepts any examples, and gets from the data only the arguments that it has.
        identity: for a network by its origin, the entries of keys that replace its name.
        published: for a network by its origin, builds it with its library's published weights.
    """

    name: str
    factory: Factory
    family: str
    reference: str
    defaults: Mapping[str, Any]
    from_data: tuple[str, ...] = FROM_DATA
    revision: int = 1
    renamed: Mapping[str, str] = field(default_factory=dict)
    outside: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    published: Factory | None = None

    def arguments_of(self, data: Mapping[str, int]) -> dict[str, int]:
        """Return the arguments that come from the data, under the factory's names."""
        return {self.renamed.get(n, n): data[n] for n in self.from_data if n in data}


# The names of networks that are not registered: see ``models.origins``.
ORIGIN = r".+:[A-Za-z_][\w.]*|(timm|torchvision|hf)/.*|[^:]*\.py|[^\s:]*/[^\s:]*"


def is_origin(name: object) -> bool:
    """Return whether a name is the origin of an unregistered network, such as ``file.py:build``."""
    return isinstance(name, str) and re.fullmatch(ORIGIN, name.strip()) is not None


def _origins() -> Any:
    return import_module("regrow.models.origins")  # lazily, because it imports this module


MODELS: Registry[ModelEntry] = Registry(
    "model",
    "regrow.models",
    register="register_model",
    outside=Outside(
        is_name=is_origin,
        value=lambda name: _origins().entry_of(name),
        origin=lambda name: _origins().file_of(name),
    ),
)


def register_model(
    name: str,
    *,
    family: str,
    revision: int = 1,
    from_data: Sequence[str] | None = None,
    **defaults: Any,
) -> Callable[[F], F]:
    """Register a factory under a name; ``defaults`` are added to the factory's own defaults.

    ``from_data``: the arguments that come from the data set. By default those of images
    (``classes``, ``in_channels``, ``input_size``) or, if the factory takes ``outputs``, those of
    sequences of tokens (``vocabulary``, ``length``) or of rows of numbers (``features``).

    Raise the ``revision`` when the network behind a name changes, so that results of the old
    network are not used for the new one.

    One factory may have several names. Its docstring's "Reference:" paragraph is shown to users.
    Example of a whole file that adds a model::

        @register_model("one-layer", family="example")
        def one_layer(*, classes: int, in_channels: int = 3, input_size: int = 32) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * input_size**2, classes))
    """

    def register(factory: F) -> F:
        where = f"register_model({name!r})"
        takes = inspect.signature(factory).parameters
        names = tuple(from_data) if from_data is not None else _data_arguments(takes)
        if missing := [argument for argument in names if argument not in takes]:
            raise ConfigError(
                f"{where}: the factory must take the arguments {', '.join(names)}, which come "
                f"from the data set. Missing: {', '.join(missing)}."
            )
        check_arguments(factory, defaults, where=where)
        entry = ModelEntry(
            name=canonical(name),
            factory=factory,
            family=family,
            reference=_reference(factory),
            defaults=defaults,
            from_data=names,
            revision=revision,
        )
        MODELS.add(name, entry, origin=factory)
        return factory

    return register


def _data_arguments(takes: Iterable[str]) -> tuple[str, ...]:
    if "outputs" not in takes:
        return FROM_DATA
    return OF_TOKENS if "vocabulary" in takes else OF_FEATURES


@dataclass(frozen=True, init=False)
class ModelSpec:
    """A network to build: a registered name or an origin's text, and its arguments.

    Two specs are equal if their canonical names, arguments, inputs and checkpoints are. ``resolve``
    and ``build`` check that the name and the arguments exist.

    ``inputs`` describes an example as text (see ``models.inputs``), unless that is one tensor with
    the shape of the data; ``checkpoint`` are trained weights that the network starts with.
    """

    name: str
    _arguments: str  # as ``frozen`` returns them
    inputs: str | None
    checkpoint: Checkpoint | None

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        inputs: str | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if not isinstance(name, str):
            raise ConfigError(f"A model name must be a text. Got {name!r}.")
        name = name.strip() if is_origin(name) else canonical(name)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_arguments", frozen(arguments or {}, of=f"model {name!r}"))
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "checkpoint", checkpoint)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments given, sorted by name; a copy."""
        arguments: dict[str, Any] = json.loads(self._arguments)
        return arguments

    def untrained(self) -> "ModelSpec":
        """Return the spec without trained weights: the same layers, initialised from a seed."""
        arguments = self.arguments
        if not is_origin(self.name):
            arguments.pop("weights", None)
        return ModelSpec(self.name, arguments, inputs=self.inputs)

    def fresh(self, seed: int) -> "nn.Module":
        """Build the network without trained weights, initialised from a seed."""
        return build(self.untrained(), seed=seed)

    def has_rule(self) -> bool:
        """Return whether ``initialise_`` is known to initialise the network as intended.

        This holds for regrow's own models, and for networks with a method of that name.
        """
        return MODELS.is_own(self.name) or _has_method(self.untrained(), MODELS.code(self.name))

    def with_data(self, data: Mapping[str, int], *, inputs: str | None = None) -> "ModelSpec":
        """Return the spec with the arguments that come from a data set.

        For a network by its origin, the arguments that the user gave take precedence.
        """
        entry = MODELS.get(self.name)
        known = entry.arguments_of(data)
        arguments = {**known, **self.arguments} if entry.outside else {**self.arguments, **known}
        return ModelSpec(self.name, arguments, inputs=inputs, checkpoint=self.checkpoint)

    @property
    def is_published(self) -> bool:
        """True if it comes with trained weights, including the head, so needs no training.

        With a number of classes other than the published weights', the head is random instead.
        """
        if self.checkpoint is not None:
            return True
        arguments = self.arguments
        published = arguments.get("weights") == "torchvision"
        return published and arguments.get("classes") == PUBLISHED_CLASSES

    def __repr__(self) -> str:
        return f"ModelSpec({self.name!r}, {self.arguments!r})"

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return {"name": self.name, "arguments": self.arguments}

    def identity(self) -> dict[str, Any]:
        """Return the part of keys that identifies the network: the spec and the name's revision.

        A network by its origin is identified by its content, wherever its code or folder is, and
        trained weights by their digest.
        """
        entry = MODELS.get(self.name)
        named = {"name": self.name} if not entry.outside else dict(entry.identity)
        return {
            **named,
            "arguments": self.arguments,
            **({"revision": entry.revision} if entry.revision > 1 else {}),
            **({} if self.checkpoint is None else {"weights": self.checkpoint.digest}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelSpec":
        """Read the JSON values of ``to_json``."""
        if not isinstance(value, Mapping):
            raise ConfigError(f"A model must map 'name' and 'arguments'. Got {value!r}.")
        for key in value:
            if key not in ("name", "arguments"):
                raise ConfigError(f"A model: {unknown('key', key, ['name', 'arguments'])}")
        if "name" not in value:
            raise ConfigError(f"A model needs a 'name'. Got {dict(value)!r}.")
        return cls(value["name"], value.get("arguments"))


def resolve(spec: ModelSpec, *, reserved: Iterable[str] = ()) -> dict[str, Any]:
    """Return all arguments of a spec: the given ones, else the name's or the factory's defaults.

    A ``ConfigError`` names an unknown model or argument (with the nearest known ones), a missing
    argument, or a value of the wrong type. ``reserved`` arguments, which the caller fills in from
    the data, must not be given; they are not in the result unless they have defaults.
    """
    entry = MODELS.get(spec.name)
    where = f"model {entry.name!r}"
    chosen = spec.arguments
    for name in reserved:
        if name in chosen and not entry.outside:
            raise ConfigError(
                f"{where}: the argument {name!r} comes from the data set. Leave it out."
            )
    if entry.outside:
        return chosen  # checked by the network's own code
    check_arguments(entry.factory, chosen, where=where, reserved=reserved)
    hints = annotations(entry.factory)
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(entry.factory).parameters.values():
        name = parameter.name
        if name in chosen:
            value = chosen[name]
        elif name in entry.defaults:
            value = entry.defaults[name]
        elif parameter.default is not parameter.empty:
            value = parameter.default
        elif name in reserved:
            continue
        else:
            raise ConfigError(
                f"{where}: the argument {name!r} is missing. Add it (--set {name}=...)."
            )
        arguments[name] = _checked(value, hints.get(name, Any), where=f"{where}: {name!r}")
        _check_range(name, arguments[name], where=where)
    return arguments


def build(spec: ModelSpec, *, seed: int = 0) -> "nn.Module":
    """Build the network of a spec, in training mode, initialised from (seed, "init").

    If the spec has a ``checkpoint``, the parameters are those of the checkpoint.

    The state of the global generator is restored. Raises the errors of ``resolve``, and a
    ``ConfigError`` for values that the family does not accept (a depth that does not fit, an empty
    plan).
    """
    from torch import nn

    entry = MODELS.get(spec.name)
    arguments = resolve(spec)
    published = spec.checkpoint is not None and spec.checkpoint.path == PUBLISHED
    factory = entry.published if published and entry.published is not None else entry.factory
    if MODELS.is_own(spec.name):
        _check_room(spec.untrained())
    with drawing(derive(seed, "init")):
        model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model {entry.name!r}: its factory must return a torch.nn.Module. "
            f"Got {type(model).__name__}."
        )
    if spec.checkpoint is not None and not published:
        spec.checkpoint.fill_(model)
    return model.train()


@lru_cache(maxsize=256)
def _check_room(spec: ModelSpec) -> None:
    """Raise if a network does not fit into memory, from its shapes alone, before allocating it."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        """Skips ``normal_``, which is useless on the meta device and would import a compiler."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch.nn.init.normal_:
                return args[0] if args else kwargs["tensor"]
            return function(*args, **(kwargs or {}))

    try:
        with torch.device("meta"), Undrawn():
            model = MODELS.get(spec.name).factory(**resolve(spec))
        values = (*model.parameters(), *model.buffers())
        check_room(sum(value.numel() * value.element_size() for value in values), "its weights")
    except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model {spec.name!r} cannot be built here ({short(error)}). Give it smaller arguments."
        ) from error


def example_input(spec: ModelSpec, shape: Sequence[int]) -> Any:
    """Return an example input of a model: zeros of a shape, or token ids for a model of tokens.

    If the spec has a text for its inputs, they are as the text says.
    """
    import torch

    if spec.inputs is not None:
        return Inputs.read(spec.inputs.split()).example()
    if "vocabulary" not in MODELS.get(spec.name).from_data:
        return torch.zeros(tuple(shape))
    num = math.prod(shape)
    vocabulary: int = spec.arguments.get("vocabulary", 1)
    return torch.arange(num).remainder(vocabulary).reshape(tuple(shape))


def initialise_(model: "nn.Module", *, seed: int) -> None:
    """Reinitialise every parameter and running statistic of a model, from (seed, "reinit").

    The model's own ``initialise_()`` is called, or else the ``reset_parameters()`` of each of its
    layers, and for any network from transformers within it, the rule of its class. All of these use
    the present sizes of the layers, so a narrowed network is initialised by its narrow shapes.
    Parameters that none of them covers (class tokens, position embeddings) are left NaN and raise a
    ``ConfigError``. The model should be on the CPU: other devices draw other numbers from the same
    seed.
    """
    if missed := redraw_(model, seed=seed):
        raise ConfigError(undrawn(missed, model))


def undrawn(names: Iterable[str], model: "nn.Module") -> str:
    """Return the error message for parameters that nothing initialises."""
    return (
        f"Nothing initialises {', '.join(map(repr, names))} of {type(model).__name__}. Give the "
        "model a method 'initialise_()' that draws all its parameters, or their layer a "
        "'reset_parameters()'."
    )


def redraw_(model: "nn.Module", *, seed: int) -> list[str]:
    """Reinitialise like ``initialise_``; return the names of uncovered parameters, left NaN."""
    import torch

    with drawing(derive(seed, "reinit")), torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
        _draw_(model)
        return [name for name, p in model.named_parameters() if p.isnan().any()]


@lru_cache(maxsize=256)
def _has_method(spec: ModelSpec, code: str | None) -> bool:
    """Return whether a model has ``initialise_``; ``code``, its code's digest, keys the cache."""
    return callable(getattr(spec.fresh(0), "initialise_", None))


def _draw_(model: "nn.Module") -> None:
    """Initialise the parameters of a model that its layers' or classes' code can initialise."""
    initialise = getattr(model, "initialise_", None)
    if callable(initialise):
        initialise()
        return
    # The second is that of PyTorch's attention, which draws its projections together.
    for method in ("reset_parameters", "_reset_parameters"):
        for module in model.modules():
            if callable(reset := getattr(module, method, None)):
                reset()
    for _, network in of_a_class(model):
        for module in network.modules():
            network._init_weights(module)


def of_a_class(model: "nn.Module", name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each network from transformers that a model is or contains, with its name."""
    if callable(getattr(model, "_init_weights", None)) and hasattr(model, "base_model_prefix"):
        yield name, model
        return
    for child, module in model.named_children():
        yield from of_a_class(module, f"{name}.{child}" if name else child)


def _reference(factory: Factory) -> str:
    """Return the paragraph of a factory's docstring that begins with "Reference:", on one line."""
    for paragraph in (inspect.getdoc(factory) or "").split("\n\n"):
        if paragraph.startswith("Reference:"):
            return " ".join(paragraph.removeprefix("Reference:").split())
    return ""


def annotations(factory: Factory) -> dict[str, Any]:
    """Return the annotations of a factory's arguments; none if they cannot be resolved."""
    try:
        return get_type_hints(factory)
    except NameError:  # a user's annotation that only a type checker can read
        return {}


def _checked(value: Any, hint: Any, *, where: str) -> Any:
    """Convert a value to its annotated type (1 to 1.0 for a float); raise for other types."""
    if get_origin(hint) is Literal and isinstance(value, str):
        choices = [str(choice) for choice in get_args(hint)]
        if value not in choices:
            raise ConfigError(f"{where}: {unknown('value', value, choices)}")
    if not _fits(value, hint):
        raise ConfigError(f"{where} must be {_words(hint)}. Got {value!r}.")
    if hint is float:
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return is_number(value)
    if hint is int:
        return is_int(value)
    if hint in (bool, str):
        return isinstance(value, hint)
    return value is None if hint is type(None) else True


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(option) for option in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin in (list, tuple, Sequence):
        return f"a list, each item {_words(inner[0])}"
    names = {int: "an int", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "null" if hint is type(None) else str(hint))


# These arguments mean the same for every model. The built-in networks halve the map up to four
# times and stop at one pixel; below 4 pixels there is nothing left to learn from.
_AT_LEAST = {"classes": 1, "in_channels": 1, "input_size": 4}


def _check_range(name: str, value: Any, *, where: str) -> None:
    least = _AT_LEAST.get(name)
    if least is not None and isinstance(value, int) and value < least:
        raise ConfigError(f"{where}: {name!r} must be an int of at least {least}. Got {value!r}.")
    if name == "width" and isinstance(value, int | float) and value <= 0:
        raise ConfigError(f"{where}: 'width' is a factor and must be above 0. Got {value!r}.")
