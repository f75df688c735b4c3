"""Masks from a file as a method: which weights to keep, by the names of parameters.

The file is ``.safetensors``, ``.npz`` or ``.pt`` (loaded without running pickled code). Its entries
have the shapes of the weights of convolutions and linear layers, and hold ones (kept) and zeros
(pruned). ``layer.weight_mask``, as in a ``state_dict`` with masks of ``torch.nn.utils.prune``, is
the mask of ``layer.weight``, and other entries of such a file are ignored. Weights without an entry
are kept.
"""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.core.bounds import check_archive, check_plain, read_npz
from regrow.core.digests import load_tensors
from regrow.core.texts import quoted
from regrow.errors import ConfigError, short
from regrow.pruning.layers import Layers
from regrow.pruning.method import Allocation, Method

SUFFIX = "_mask"
KINDS = (".safetensors", ".npz", ".pt", ".pth")


def method(name: str, rest: str) -> Method:
    """Return the method that holds the weights at zero that a file of masks prunes."""
    return Method(
        name=name, criterion="l1-norm", allocation=name, unit="weight", scope=("conv", "linear")
    )


def allocation(rest: str) -> Allocation:
    """Return the allocation of a file of masks, whose sparsity is the share of zeros in it."""
    masks = _masks(Path(rest), _stamp(Path(rest)))
    total = sum(mask.numel() for mask in masks.values())
    gone = total - sum(int(mask.sum()) for mask in masks.values())
    if gone == 0:
        raise ConfigError(f"The masks of {rest} hold no zero, so nothing would be pruned.")
    return Allocation(partial(_lay, Path(rest).name, masks), sparsity=gone / total)


def _lay(file: str, masks: Mapping[str, Tensor], layers: Layers, sparsity: float) -> Any:
    """Return the units that the masks keep."""
    for name, mask in masks.items():
        if name not in layers:
            raise ConfigError(
                f"{file} has a mask for {name!r}, which is not a weight of a convolution or a "
                f"linear layer that is pruned here. These are: {quoted(layers, 5)}."
            )
        if tuple(mask.shape) != layers.shape(name):
            raise ConfigError(
                f"{file}: the mask for {name!r} must have the weight's shape "
                f"{[*layers.shape(name)]}. Got {[*mask.shape]}."
            )
    whole = {name: torch.ones(layers.shape(name), dtype=torch.bool) for name in layers}
    return {
        name: masks.get(name, stays).flatten()[layers.left[name]] for name, stays in whole.items()
    }


def _stamp(path: Path) -> tuple[int, int]:
    """Return a file's time of change and size, which differ once it is rewritten."""
    try:
        check_plain(path)
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"The file of masks {path} cannot be read: {error.strerror}.") from error
    return found.st_mtime_ns, found.st_size


@cache
def _masks(path: Path, _written: tuple[int, int]) -> dict[str, Tensor]:
    """Read a file of masks, as booleans by the names of weights."""
    if path.suffix not in KINDS:
        raise ConfigError(f"A file of masks ends in {', '.join(KINDS)}. Got {path.name!r}.")
    try:
        entries = _entries(path)
    except Exception as error:  # readers raise many types on damaged bytes
        raise ConfigError(
            f"The file of masks {path} cannot be read: {type(error).__name__}: {short(error)}"
        ) from error
    masks = {n.removesuffix(SUFFIX): m for n, m in entries.items() if n.endswith(SUFFIX)} or entries
    if not masks:
        raise ConfigError(f"The file of masks {path} is empty.")
    return {name: _boolean(path, name, mask) for name, mask in masks.items()}


def _entries(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
    check_archive(path)
    value = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(value, Mapping):
        raise ValueError(f"it holds a {type(value).__name__} and no masks by parameter")
    return {str(name): mask for name, mask in value.items()}


def _boolean(path: Path, name: str, mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or not bool(((mask == 0) | (mask == 1)).all()):
        what = type(mask).__name__ if not isinstance(mask, Tensor) else "other numbers"
        raise ConfigError(
            f"{path.name}: the mask for {name!r} must hold ones (kept) and zeros (pruned). Got "
            f"{what}."
        )
    return mask.bool().cpu()
