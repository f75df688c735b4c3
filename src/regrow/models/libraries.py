"""Build networks from other packages, without weights or with their published ones.

No model is registered here. Weights come through the packages' own downloaders and caches.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from regrow.core.disk import is_folder
from regrow.errors import ConfigError, DataError, unknown
from regrow.models.reach import hub_answers

if TYPE_CHECKING:
    from torch import nn

# Arguments that make a library read files or the internet; refused, as --weights is for that.
READING = {"pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg",
           "pretrained_cfg_overlay", "cache_dir", "trust_remote_code"}  # fmt: skip

MOST_WORDS = 300  # characters quoted from a library's error message
CONFIG = "config.json"  # in a folder that a model from transformers was saved to
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class Library:
    """A package that provides networks by name.

    Attributes:
        build: name, arguments and settings -> a network without weights.
        published: name and arguments -> a network with the weights that the package publishes.
        settings: name -> what else ``build`` needs in order to work without internet access.
        inputs: a network -> the text of the input that it declares, if it does.
        from_data: our name of an argument that comes from the data -> the package's name.
    """

    build: Callable[[str, Mapping[str, Any], Mapping[str, Any]], "nn.Module"]
    published: Callable[[str, Mapping[str, Any]], "nn.Module"]
    settings: Callable[[str], Mapping[str, Any]] = lambda name: {}
    inputs: Callable[["nn.Module"], str | None] = lambda network: None
    from_data: Mapping[str, str] = field(default_factory=dict)


def package(name: str, *, extra: str, wanted_for: str) -> ModuleType:
    """Import an optional package; if it is missing, a ``ConfigError`` says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != name.partition(".")[0]:
            raise ConfigError(
                f"{wanted_for}: {name} is installed, but {error.name} is not. Install it: pip "
                f"install {error.name}."
            ) from error
        raise ConfigError(
            f"{wanted_for}: the package {name.partition('.')[0]} is needed, and cannot be imported "
            f"({error}). Install it: pip install 'regrow[{extra}]', or in a clone: uv sync --extra "
            f"{extra}."
        ) from error


def _made(text: str, make: Callable[[], Any]) -> Any:
    """Call a library, and convert its exceptions to a ``ConfigError``."""
    try:
        return make()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise ConfigError(f"{text} cannot be built: {_words(error)}") from error


def _fetched(text: str, make: Callable[[], Any]) -> Any:
    """Call a library that reads weights, and convert its exceptions to a ``DataError``."""
    try:
        return make()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise DataError(
            f"The published weights of {text} cannot be loaded: {_words(error)} {_advice(error)}"
        ) from error


def _advice(error: Exception) -> str:
    message = f"{type(error).__name__} {error}".lower()
    if any(word in message for word in ("gated", "401", "403", "restricted")):
        return (
            "Accept its terms on its page on the hub and log in with `hf auth login`, or give a "
            "file with --weights."
        )
    return "Connect to the internet, give a file with --weights, or use none: --weights random."


def _words(error: Exception) -> str:
    """Return an error's type and message in one line that ends with a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]).rstrip(".")
    return f"{type(error).__name__}: {text[:MOST_WORDS]}."


def _refuse_reading(text: str, arguments: Mapping[str, Any]) -> None:
    for name in READING & arguments.keys():
        raise ConfigError(
            f"{text}: weights are chosen with --weights, not with {name!r}. Leave it out."
        )


# timm --------------------------------------------------------------------------------------------


def _timm(name: str) -> ModuleType:
    timm = package("timm", extra="timm", wanted_for=f"timm/{name}")
    if name.partition(".")[0] not in timm.list_models():
        raise ConfigError(f"timm/{name}: {_unknown('model of timm', name, timm.list_models())}")
    return timm


def _timm_build(name: str, arguments: Mapping[str, Any], _: Mapping[str, Any]) -> "nn.Module":
    _refuse_reading(f"timm/{name}", arguments)
    timm = _timm(name)
    network: nn.Module = _made(
        f"timm/{name}", lambda: timm.create_model(name, pretrained=False, **arguments)
    )
    return network


def _timm_published(name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    _refuse_reading(f"timm/{name}", arguments)
    timm = _timm(name)
    if not timm.is_model_pretrained(name):
        raise DataError(
            f"timm publishes no weights of {name!r}. Use --weights random, or give a file with "
            "--weights."
        )
    network: nn.Module = _fetched(
        f"timm/{name}", lambda: timm.create_model(name, pretrained=True, **arguments)
    )
    return network


def _timm_inputs(network: "nn.Module") -> str | None:
    config: Any = getattr(network, "default_cfg", None) or {}
    size = config.get("input_size")
    return "x".join(map(str, (1, *size))) if size else None


# torchvision -------------------------------------------------------------------------------------


def _torchvision(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return torchvision's builder of a model."""
    from torchvision import models

    _refuse_reading(f"torchvision/{name}", arguments)
    if name not in models.list_models():
        known = models.list_models()
        raise ConfigError(f"torchvision/{name}: {_unknown('model of torchvision', name, known)}")
    return models.get_model_builder(name)


def _torchvision_build(
    name: str, arguments: Mapping[str, Any], _: Mapping[str, Any]
) -> "nn.Module":
    builder = _torchvision(name, arguments)
    options = dict(arguments)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # or it would be downloaded
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", True)  # else torchvision warns that this will change
    network: nn.Module = _made(f"torchvision/{name}", lambda: builder(weights=None, **options))
    return network


def _torchvision_published(name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    from torchvision.models import get_model_weights

    builder = _torchvision(name, arguments)
    text = f"torchvision/{name}"
    choices = [*get_model_weights(builder)]
    if not choices:
        raise DataError(f"torchvision publishes no weights of {name!r}. Use --weights random.")
    if name in ("googlenet", "inception_v3") and "transform_input" not in arguments:
        raise ConfigError(
            f"{text}: its published weights were trained on images scaled differently from those "
            "of other networks. Give --set transform_input=true to let the network convert images "
            "scaled as usual, or false if yours are already scaled its way."
        )
    network = _torchvision_build(name, arguments, {})
    state = _fetched(
        text,
        lambda: get_model_weights(builder).DEFAULT.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        ),
    )
    from regrow.models.weights import fill_

    fill_(network, state, where=f"The published weights of {text}")
    return network


# transformers ------------------------------------------------------------------------------------


def _transformers(name: str) -> Any:
    return package("transformers", extra="transformers", wanted_for=f"hf/{name}")


def _settings(name: str) -> Mapping[str, Any]:
    """Return the class and the configuration of a model on the hub or in a folder."""
    import json

    if not name.strip("/"):
        raise ConfigError("hf/ needs the ID of a model on the hub, or the path of a folder.")
    transformers = _transformers(name)
    config = _fetched_settings(name, transformers)
    classes = config.architectures or []
    content = json.loads(config.to_json_string(use_diff=False))
    content.pop("model_type", None)
    return {
        "class": classes[0] if classes else "AutoModel",
        "type": config.model_type,
        "config": content,
    }


def _fetched_settings(name: str, transformers: Any) -> Any:
    if folder_of(name) is None and not _HUB_ID.fullmatch(name):
        raise ConfigError(f"{_no_folder(name)} It is not an ID of the Hugging Face hub either.")
    try:
        return transformers.AutoConfig.from_pretrained(
            _place(name), trust_remote_code=False, **_near(name)
        )
    except Exception as error:
        raise DataError(
            f"hf/{name} has no configuration that can be read: {_no_settings(name, error)}"
        ) from error


def _no_settings(name: str, error: Exception) -> str:
    """Return why no configuration is found for a name, in a folder or on the hub; and a remedy."""
    if folder_of(name) is not None:
        return f"{_words(error)} Expected a folder with a config.json."
    if not hub_answers():
        return (
            f"{_no_folder(name)} No model of this name was downloaded from the Hugging Face hub "
            "before, and the hub does not answer. Connect to the internet, or name a folder."
        )
    return (
        f"{_no_folder(name)} The Hugging Face hub gives none: {_words(error)} "
        f"{_advice(error).split(', ')[0].rstrip('.')}."
    )


def folder_of(name: str) -> Path | None:
    """Return the folder that the name of a model from transformers refers to, if it exists."""
    folder = Path(name).expanduser()
    return folder if is_folder(folder) else None


def _place(name: str) -> str:
    """Return the folder of a name if it exists, else the name, an ID on the hub."""
    return str(folder_of(name) or name)


def _near(name: str) -> dict[str, Any]:
    """Return the option for local files only, if the hub is needed and does not answer."""
    local = folder_of(name) is None and not hub_answers()
    return {"local_files_only": True} if local else {}


def _no_folder(name: str) -> str:
    """Return the message that there is no such folder, with suggestions of similar names."""
    path = Path(name).expanduser()
    above = path.parent if is_folder(path.parent) else Path()
    beside = {folder.name: folder for folder in above.iterdir() if (folder / CONFIG).is_file()}
    near = [f"hf/{beside[n]}" for n in get_close_matches(path.name, beside, n=2)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no folder '{name}' in '{Path.cwd()}'.{hint}"


@contextmanager
def _without_bars(transformers: Any) -> Iterator[None]:
    """Disable transformers' progress bars, as a study reads weights many times."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _model_class(settings: Mapping[str, Any], transformers: Any) -> Any:
    """Return the class of a model; only classes of transformers itself are accepted."""
    name = settings.get("class")
    model_class = getattr(transformers, str(name), None)
    if name == "AutoModel":
        return model_class
    if not (inspect.isclass(model_class) and issubclass(model_class, transformers.PreTrainedModel)):
        raise ConfigError(
            f"transformers has no class {name!r} for this model. Install a version that has it; "
            "code that comes with a model is not run."
        )
    return model_class


def _hf_build(name: str, arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> "nn.Module":
    _refuse_reading(f"hf/{name}", arguments)
    known = settings or _settings(name)
    transformers = _transformers(name)

    def make() -> Any:
        config = transformers.AutoConfig.for_model(known["type"], **known["config"])
        config.update(dict(arguments))
        model_class = _model_class(known, transformers)
        return (
            model_class.from_config(config)
            if known["class"] == "AutoModel"
            else model_class(config)
        )

    network: nn.Module = _made(f"hf/{name}", make)
    return network


def _hf_published(name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    _refuse_reading(f"hf/{name}", arguments)
    known = _settings(name)
    transformers = _transformers(name)
    model_class = _model_class(known, transformers)
    with _without_bars(transformers):
        network, messages = _fetched(
            f"hf/{name}",
            lambda: model_class.from_pretrained(
                _place(name), output_loading_info=True, **_near(name), **arguments
            ),
        )
    if missing := sorted(messages["missing_keys"]):
        raise ConfigError(
            f"The published weights of hf/{name} lack {len(missing)} of the network's, such as "
            f"{missing[0]!r}. Leave out the arguments that add layers, or give a file with "
            "--weights."
        )
    single: nn.Module = network.float()
    return single


def _hf_inputs(network: "nn.Module") -> str | None:
    """Return the text of an input of at most 16 tokens, if the network takes ``input_ids``."""
    config = getattr(network, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    of_tokens = getattr(network, "main_input_name", None) == "input_ids" and vocabulary
    length = min(16, getattr(config, "max_position_embeddings", None) or 16)
    return f"input_ids:1x{length}:int64:{vocabulary}" if of_tokens else None


def _unknown(kind: str, name: str, known: list[str]) -> str:
    """Return the error message for an unknown name among hundreds, with only the nearest ones."""
    message = unknown(kind, name, known)
    return message.partition(" Known: ")[0] + f" There are {len(known)}."


LIBRARIES: Mapping[str, Library] = {
    "timm": Library(
        _timm_build,
        _timm_published,
        inputs=_timm_inputs,
        from_data={"classes": "num_classes", "in_channels": "in_chans"},
    ),
    "torchvision": Library(
        _torchvision_build, _torchvision_published, from_data={"classes": "num_classes"}
    ),
    "hf": Library(_hf_build, _hf_published, _settings, _hf_inputs),
}
