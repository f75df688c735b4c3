"""Pruning by other libraries, as methods of a study that need no registration.

    torch-pruning:MagnitudeImportance(p=1)   an importance of Torch-Pruning (the extra of that name)
    nn-prune:l1_unstructured                 a method of torch.nn.utils.prune
    nn-prune:my_prune.py:MyMethod            your own BasePruningMethod
    mask-file:masks.safetensors              masks by parameter, from a file

Each can be used wherever a method's name can, with every arm, rival and table. What such a name
means (the version of the library, the text of the file, the masks themselves) is part of the keys
of prunings; the location of a file is not.
"""

from collections.abc import Callable
from dataclasses import dataclass

from regrow.core.registry import canonical
from regrow.errors import ConfigError
from regrow.pruning.adapters import mask_file, nn_prune, torch_pruning
from regrow.pruning.method import Allocation, Criterion, Method


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The functions for names with one prefix; each takes the text after the prefix.

    ``origin``: the file or package of the code. Keys contain the ``identity`` of a name and its
    ``code``, or the digest of that file if ``code`` is None.
    """

    method: Callable[[str, str], Method]  # of the whole name and the text after the prefix
    criterion: Callable[[str], Criterion] | None = None
    allocation: Callable[[str], Allocation] | None = None
    identity: Callable[[str], str] = lambda rest: rest
    origin: Callable[[str], str] = lambda rest: rest
    code: Callable[[str], str | None] | None = None


ADAPTERS = {
    "torch-pruning": Adapter(
        method=torch_pruning.method,
        criterion=torch_pruning.criterion,
        origin=lambda _: "torch_pruning",
        code=torch_pruning.code,
    ),
    "nn-prune": Adapter(
        method=nn_prune.method,
        allocation=nn_prune.allocation,
        identity=nn_prune.identity,
        origin=nn_prune.origin,
    ),
    "mask-file": Adapter(
        method=mask_file.method,
        allocation=mask_file.allocation,
        identity=lambda _: "",
    ),
}


def method(name: str) -> Method:
    """Return the method that a name stands for."""
    adapter, rest = _known(name)
    return adapter.method(canonical(name), rest)


def criterion(name: str) -> Criterion:
    """Return the criterion that a name stands for."""
    adapter, rest = _known(name)
    if adapter.criterion is None:
        raise ConfigError(
            f"{name!r} chooses what is kept, so it is an allocation and not a criterion. Use it "
            "as the method."
        )
    return adapter.criterion(rest)


def allocation(name: str) -> Allocation:
    """Return the allocation that a name stands for."""
    adapter, rest = _known(name)
    if adapter.allocation is None:
        raise ConfigError(f"{name!r} scores units, so it is a criterion and not an allocation.")
    return adapter.allocation(rest)


def identity(name: str) -> str:
    """Return what keys contain of a name, besides its code."""
    adapter, rest = _known(name)
    return ":".join(filter(None, (canonical(name).partition(":")[0], adapter.identity(rest))))


def origin(name: str) -> str:
    """Return the file or package of a name's code."""
    adapter, rest = _known(name)
    return adapter.origin(rest)


def code(name: str) -> str | None:
    """Return what keys contain for a name's code; None for the digest of its file."""
    adapter, rest = _known(name)
    return None if adapter.code is None else adapter.code(rest)


def _known(name: str) -> tuple[Adapter, str]:
    prefix, _, rest = canonical(name).partition(":")
    return ADAPTERS[prefix], rest.strip()
