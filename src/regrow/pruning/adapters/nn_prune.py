"""Methods of ``torch.nn.utils.prune`` as methods of a study: their masks, layer by layer.

``l1_unstructured``, ``random_unstructured``, ``ln_structured(n=2, dim=0)``,
``random_structured(dim=0)``, or your own class, ``file.py:Class``, a ``BasePruningMethod`` whose
``__init__`` takes an ``amount``. Each computes the mask of every weight in scope, with the sparsity
as its amount; masked weights are held at zero.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from regrow.core.global_rng import drawing
from regrow.errors import ConfigError, short, unknown
from regrow.models.origins import code_at
from regrow.pruning.adapters.calls import read_call
from regrow.pruning.layers import Layers
from regrow.pruning.method import Allocation, Method

# The functions of torch.nn.utils.prune -> the class behind each, and its default arguments.
KNOWN: Mapping[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "l1_unstructured": (prune.L1Unstructured, {}),
    "random_unstructured": (prune.RandomUnstructured, {}),
    "ln_structured": (prune.LnStructured, {"n": 2, "dim": 0}),
    "random_structured": (prune.RandomStructured, {"dim": 0}),
}
DRAWN = ("random_unstructured", "random_structured")


def method(name: str, rest: str) -> Method:
    """Return the method that holds weights at zero by the masks of ``torch.nn.utils.prune``."""
    called = _called(rest)[0]
    drawn = called in DRAWN
    return Method(
        name=name,
        # The scores only seed random draws, and rank the units that are restored for a cost target.
        criterion="random" if drawn or ":" in called else "l1-norm",
        allocation=name,
        unit="weight",
        trained=not drawn,
        designed=drawn,
    )


def allocation(rest: str) -> Allocation:
    """Return the allocation that keeps what such a method's masks keep."""
    called, arguments = _called(rest)
    if ":" not in called:
        make, defaults = KNOWN[called]
        return Allocation(partial(_masked, partial(make, **{**defaults, **arguments}), rest))
    make, _ = code_at(called)
    if not (isinstance(make, type) and issubclass(make, prune.BasePruningMethod)):
        raise ConfigError(
            f"nn-prune:{called} must be a class of torch.nn.utils.prune.BasePruningMethod. Got "
            f"{short(make)}."
        )
    return Allocation(partial(_masked, partial(make, **arguments), rest))


def identity(rest: str) -> str:
    """Return what keys contain of a name: the class and its arguments, not the file's path."""
    called, arguments = _called(rest)
    given = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return called.rpartition(":")[2] + (f"({given})" if given else "")


def origin(rest: str) -> str:
    """Return the user's file, or the package."""
    called, _ = _called(rest)
    return called.rpartition(":")[0] or "torch.nn.utils.prune"


def _called(rest: str) -> tuple[str, dict[str, Any]]:
    called, arguments = read_call(rest)
    if ":" not in called and called not in KNOWN:
        raise ConfigError(
            f"{unknown('method of torch.nn.utils.prune', called, KNOWN)} Your own is named "
            "'nn-prune:file.py:Class'."
        )
    return called, arguments


def _masked(
    make: Callable[..., prune.BasePruningMethod], text: str, layers: Layers, sparsity: float
) -> dict[str, Tensor]:
    """Return which elements of each weight the method's masks keep."""
    try:
        chosen = make(amount=sparsity)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"nn-prune:{text} cannot be made with amount={sparsity:g}: {short(error)}. It has to "
            "take an 'amount', the share that is pruned; give its other arguments in brackets."
        ) from error
    kept = {}
    for name in layers:
        left = layers.left[name]
        weight = layers.network.get_parameter(name).detach().cpu()
        if bool(left.all()):
            among = weight
        elif getattr(chosen, "PRUNING_TYPE", "") == "unstructured":
            among = weight.flatten()[left]
        else:
            raise ConfigError(
                f"nn-prune:{text} chooses among whole tensors, so it cannot prune tensors that "
                "were pruned before. Leave out 'rounds'."
            )
        where = f"nn-prune:{text}, {name}"
        kept[name] = _mask_of(chosen, among, layers.scores[name], where=where).flatten()
    return kept


def _mask_of(chosen: Any, weight: Tensor, scores: Tensor, *, where: str) -> Tensor:
    # Its random draws are seeded by the scores, which ``random`` draws by the seed of a job.
    drawn = hashlib.sha256(scores.numpy().tobytes()).digest()[:7]
    with drawing(int.from_bytes(drawn, "big")), torch.no_grad():
        mask = chosen.compute_mask(weight, torch.ones_like(weight))
    good = isinstance(mask, Tensor) and mask.shape == weight.shape
    if not good or not bool(((mask == 0) | (mask == 1)).all()):
        raise ConfigError(
            f"{where}: compute_mask must return ones and zeros of the shape {[*weight.shape]}. "
            f"Got {short(mask)}."
        )
    return torch.as_tensor(mask).bool()
