"""Load weights from a file into a network: safetensors, or a state dict from torch.save.

No model is registered here. Pickles are read with ``weights_only=True``, so they cannot run code.
"""

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.core.disk import is_file
from regrow.core.texts import listed, quoted
from regrow.errors import ConfigError, DataError, short

if TYPE_CHECKING:
    from torch import Tensor, nn

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SAFE = ".safetensors"
INSIDE = ("state_dict", "model_state_dict", "model", "module", "net", "model_ema")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")  # of DDP, compile, Lightning


NO_FILES = {  # words that people may give as a path -> a hint
    "random": "Leave it out: the network then begins with new weights.",
    "code": "Leave it out: the network then has those that its code gives it.",
    "published": "Do you mean published?",
    "pretrained": "Do you mean published?",
}
PUBLISHED = "published"  # instead of a path: the weights that a library publishes


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Trained weights in a file, identified by their content.

    Attributes:
        path: of the file; or ``published``, for the weights that a network's library publishes.
        digest: of the file, or of the published tensors; it identifies the weights in keys.
        epochs: how long they were trained, if the user said so.
    """

    path: str
    digest: str
    epochs: int | None = None

    @classmethod
    def of_file(cls, path: str | Path, *, epochs: int | None = None) -> "Checkpoint":
        """Return the checkpoint of a file; a ``DataError`` if it is missing or no weights file."""
        file = Path(path).expanduser()
        _check_file(file)
        return cls(path=str(file.resolve()), digest=_digest(file), epochs=epochs)

    def fill_(self, network: "nn.Module") -> None:
        """Load the weights into a network; a ``DataError`` if the file has changed since."""
        file = Path(self.path)
        _check_file(file)
        if _digest(file) != self.digest:
            raise DataError(
                f"--weights {self.path}: the file has changed since the study was read. Start the "
                "command again, so that results are stored under the right key."
            )
        load_weights_(network, file)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def load_weights_(network: "nn.Module", path: str | Path) -> None:
    """Load the weights of a file into a network, in place.

    Raises:
        DataError: the file cannot be read, or holds no state dict.
        ConfigError: its names or shapes are not the network's.
    """
    fill_(network, read_weights(Path(path)), where=f"--weights {path}")


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read the tensors of a file by name."""
    import torch

    from regrow.core.bounds import check_archive
    from regrow.core.digests import load_tensors

    where = f"--weights {path}"
    _check_file(path)
    if path.suffix == SAFE:
        try:
            return load_tensors(path)[0]
        except (ValueError, OSError) as error:
            raise DataError(f"{where}: {error}") from error
    try:
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which the error is about too
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        kinds = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({kinds[1]})" if kinds else ""
        raise DataError(
            f"{where}: it holds more than tensors{what}, and anything else in a pickle could run "
            "code, so it is not read. Save it again with torch.save(net.state_dict(), "
            "'weights.pt')."
        ) from error
    except Exception as error:
        compiled = "TorchScript" in str(error)
        hint = (
            "It holds a TorchScript program. Save its torch.jit.load(FILE).state_dict()"
            if compiled
            else f"It is damaged, incomplete, or not from torch.save ({type(error).__name__}: "
            f"{short(error)}). Save the state dict again"
        )
        raise DataError(
            f"{where} cannot be read. {hint} with torch.save(..., 'weights.pt')."
        ) from error
    return _state(value, where)


def _check_file(path: Path) -> None:
    where = f"--weights {path}"
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (*PICKLES, SAFE))
        hint = f": {quoted(files)}" if files else ""
        raise DataError(f"{where}: this is a folder. Name a file of weights in it{hint}.")
    if not is_file(path):
        word = get_close_matches(str(path), NO_FILES, n=1)
        hint = f" {NO_FILES[word[0]]}" if word else ""
        raise DataError(f"{where}: there is no such file.{hint}")
    if path.suffix != SAFE and path.suffix not in PICKLES:
        raise DataError(
            f"{where}: a file of weights ends in .safetensors, {', '.join(PICKLES)}. Write one "
            "with torch.save(net.state_dict(), 'weights.pt')."
        )


def _state(value: Any, where: str) -> "dict[str, Tensor]":
    """Find the state dict in the content of a file."""
    import torch

    if isinstance(value, Mapping):
        tensors = {n: v for n, v in value.items() if isinstance(v, torch.Tensor)}
        if tensors and len(tensors) == len(value):
            return tensors
        inside = {n: v for n, v in value.items() if isinstance(v, Mapping) and _is_state(v)}
        name = next((n for n in INSIDE if isinstance(value.get(n), Mapping)), None)
        if name is None and len(inside) == 1:
            name = next(iter(inside))
        found = _state(value[name], where) if name is not None else None
        own = {} if found is None else _bare(found)
        rivals = [n for n, v in inside.items() if found is None or own == _bare(v)]
        if found is not None and rivals in ([], [name]):
            return found
        if rivals:
            raise DataError(
                f"{where}: it holds several sets of weights: {quoted(rivals)}. Save the one to use "
                f"alone: torch.save(torch.load(FILE)[{rivals[-1]!r}], 'weights.pt')."
            )
    raise DataError(
        f"{where}: expected a mapping of names to tensors, such as net.state_dict(). Got "
        f"{short(value)}."
    )


def _is_state(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping has names and tensors alone."""
    import torch

    return bool(value) and all(
        isinstance(n, str) and isinstance(v, torch.Tensor) for n, v in value.items()
    )


def _bare(state: "Mapping[str, Tensor]") -> "dict[str, Any]":
    """Return the names without the prefixes of wrappers, and the shapes."""
    *_, bare = _unwrapped(state)
    return {name: value.shape for name, value in bare.items()}


def _unwrapped(state: "Mapping[str, Tensor]") -> "Iterator[Mapping[str, Tensor]]":
    """Yield tensors by name, and again with each further prefix removed that all names have."""
    yield state
    counted = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the network
    state = {name: value for name, value in state.items() if name != counted}
    while state:
        prefixes = [p for p in WRAPPERS if all(name.startswith(p) for name in state)]
        if not prefixes:
            return
        state = {name.removeprefix(prefixes[0]): value for name, value in state.items()}
        yield state


def fill_(network: "nn.Module", state: "Mapping[str, Tensor]", *, where: str) -> None:
    """Load tensors into a network by name; a ``ConfigError`` names those that do not fit.

    Prefixes that wrappers of networks add to all names are removed.
    """
    expected = network.state_dict()
    given = state
    state = max(_unwrapped(state), key=lambda names: len(names.keys() & expected.keys()))
    filled = {
        expected[name].data_ptr() for name in state if name in expected
    }  # tied weights are stored once
    missing = [
        name
        for name, value in expected.items()
        if name not in state
        and not name.endswith("num_batches_tracked")  # absent in old files, and not used here
        and not (value.numel() and value.data_ptr() in filled)
    ]
    surplus = [name for name in state if name not in expected]
    wrong = [
        f"{name!r} is {list(state[name].shape)} there and {list(value.shape)} in the network"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        *([f"it lacks {quoted(missing)}"] if missing else []),
        *([f"the network has no {quoted(surplus)}"] if surplus else []),
        *wrong[:1],
        *([f"{len(wrong) - 1} more have other shapes"] if wrong[1:] else []),
    ]
    if problems:
        raise ConfigError(
            f"{where} does not fit the network: {'; '.join(problems)}. "
            + (
                _part(given, expected)
                or "Give the arguments that the network was trained with (--set NAME=VALUE), or "
                "other weights."
            )
        )
    network.load_state_dict(dict(state), strict=False)


def _part(state: "Mapping[str, Tensor]", expected: "Mapping[str, Tensor]") -> str:
    """Say which prefix the network's tensors have in a state that holds more; empty if none."""
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    first = names[0] if names else ""
    prefixes = [n.removesuffix(first) for n in state if first and n.endswith(f".{first}")]
    whole = [p for p in prefixes if all(f"{p}{name}" in state for name in names)]
    if not whole:
        return ""
    return (
        f"It holds more than this network, whose tensors are those named {listed(whole)}*: save "
        f"these alone, as {{n.removeprefix({whole[0]!r}): v for n, v in STATE.items() if "
        f"n.startswith({whole[0]!r})}}."
    )
