"""Weights that torchvision publishes, put into the networks here.

No model is registered here. A network built with ``weights="torchvision"`` starts trained: arms
that inherit keep these weights, and ``models.initialise_`` draws over them, as for any network. The
files come through torchvision's own downloader and lie in its cache.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, DataError

Weights = Literal["random", "torchvision"]

# The first published weights, which the paper took: ResNet-34 73.31 %, ResNet-50 76.15 %.
VERSION = "IMAGENET1K_V1"


def load_torchvision_(model: nn.Module, name: str, *, rename: Callable[[str], str]) -> None:
    """Fill a network with the trained weights of torchvision's model of that name, in place.

    The head (its last layer) keeps its own draw where the number of classes is another.

    Args:
        model: the network; its last parameters are the head's.
        name: of the model in ``torchvision.models``, such as "resnet50".
        rename: from the name of a parameter or buffer here to torchvision's.

    Raises:
        ConfigError: the network differs from torchvision's in layers or widths.
        DataError: the file can neither be found nor downloaded, or is damaged.
    """
    import torchvision  # takes a second, and few ask for these weights
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models(torchvision.models):
        raise ConfigError(
            f"weights='torchvision': torchvision has no {name!r}, of as many layers as this "
            "network. Leave out 'weights', or the arguments that change its layers."
        )
    with torch.device("meta"):
        published = get_model(name, weights=None)
    fitting = _fit(model, published, name=name, rename=rename)
    checkpoint = _fetch(get_model_weights(name)[VERSION])
    state = {tensor: checkpoint[key] for tensor, key in fitting.items() if key in checkpoint}
    # Old files lack the count of batches that a norm has seen, which nothing here reads.
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
    """Return which of torchvision's tensors go where: all that have the same shapes."""
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
    """Read a checkpoint from torchvision's cache, or download it into that."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        # Tensors only, and only if they are what the file's name says by its digest.
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:  # whatever network, disk and reader may raise
        raise DataError(
            f"torchvision's weights {weights} cannot be loaded: neither from '{folder}' nor from "
            f"{weights.url} ({error}). Connect to the internet, or put that file into that folder "
            "(delete it first if it is damaged)."
        ) from error
    return state
