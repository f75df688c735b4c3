"""Load torchvision's published weights into regrow's networks.

No model is registered here. A network built with ``weights="torchvision"`` starts trained: arms
that inherit keep these weights, and ``models.initialise_`` overwrites them, as for any network. The
files come through torchvision's own downloader and stay in its cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, DataError

Weights = Literal["random", "torchvision"]

# The first published weights, which the paper used: ResNet-34 73.31 %, ResNet-50 76.15 %.
VERSION = "IMAGENET1K_V1"


def load_torchvision_(model: nn.Module, name: str, *, rename: Callable[[str], str]) -> None:
    """Load the trained weights of torchvision's model of a name into a network, in place.

    If the number of classes differs, the head (the last layer) keeps its random weights.

    Args:
        model: the network; its last parameters are the head's.
        name: the name of the model in ``torchvision.models``, such as "resnet50".
        rename: from the name of a parameter or buffer here to torchvision's.

    Raises:
        ConfigError: the network differs from torchvision's in layers or widths.
        DataError: the file can neither be found nor downloaded, or is damaged.
    """
    import torchvision  # takes a second, and these weights are rarely used
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models(torchvision.models):
        raise ConfigError(
            f"weights='torchvision': torchvision has no {name!r}, a model with the layers of this "
            "network. Leave out 'weights', or the arguments that change its layers."
        )
    with torch.device("meta"):
        published = get_model(name, weights=None)
    fitting = _fit(model, published, name=name, rename=rename)
    checkpoint = _fetch(get_model_weights(name)[VERSION])
    state = {tensor: checkpoint[key] for tensor, key in fitting.items() if key in checkpoint}
    # Old files lack num_batches_tracked, which is not used here.
    missing = [key for key in fitting if key not in state and "num_batches" not in key]
    if missing:
        raise DataError(
            f"torchvision's weights of {name!r} lack {', '.join(map(repr, missing[:3]))}. Delete "
            "the file from its cache, so that it is downloaded again."
        )
    model.load_state_dict(state, strict=False)


def _fit(
    model: nn.Module, published: nn.Module, *, name: str, rename: Callable[[str], str]
) -> dict[str, str]:
    """Return torchvision's name for each tensor here of the same shape; raise for other networks.

    Only the head may differ, in the number of classes.
    """
    shapes = {key: tuple(value.shape) for key, value in published.state_dict().items()}
    own_shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    last = [key for key, _ in model.named_parameters()][-1].rpartition(".")[0]
    wrong = []
    fitting = {}
    for key, shape in own_shapes.items():
        published_shape = shapes.pop(rename(key), None)
        if published_shape == shape:
            fitting[key] = rename(key)
        elif (
            not key.startswith(f"{last}.")
            or not published_shape
            or published_shape[1:] != shape[1:]
        ):
            wrong.append(f"{key!r} is {_words(shape)} here and {_words(published_shape)} there")
    wrong += [f"{key!r} is not here and {_words(shape)} there" for key, shape in shapes.items()]
    if wrong:
        raise ConfigError(
            f"weights='torchvision' fit torchvision's {name!r} only; this network differs in "
            f"{len(wrong)} places: {wrong[0]}. Leave out the arguments that change its layers or "
            "widths, or leave out 'weights'."
        )
    return fitting


def _words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _fetch(weights: Any) -> dict[str, Tensor]:
    """Read a checkpoint from torchvision's cache, or download it into the cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        # Tensors only, and only if the file matches the digest in its name.
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:  # network, disk and unpickler raise many types
        raise DataError(
            f"torchvision's weights {weights} cannot be loaded: neither from '{folder}' nor from "
            f"{weights.url} ({error}). Connect to the internet, or put the file into the folder "
            "(delete it first if it is damaged)."
        ) from error
    return state
