"""Fold weights that PyTorch computes (weight norm, spectral norm, ...) into plain parameters.

A layer whose weight is computed from other parameters cannot be cut: a row's norm depends on all of
its inputs, and a spectral norm on the whole matrix. Folded, the layer computes the same from a
plain weight, and a cut leaves the remaining entries exactly as they were. Further training does not
preserve the norm; to keep it, apply weight norm or spectral norm again to the smaller network.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from regrow.surgery.cut import duplicate, replace_
from regrow.surgery.taken import check_network
from regrow.surgery.tape import evaluating

_OF_TORCH = "torch.nn.utils.parametrizations"


def fold(network: nn.Module) -> nn.Module:
    """Return a network in which weights that PyTorch computes from others are plain parameters.

    This covers ``weight_norm``, ``spectral_norm`` and ``orthogonal`` of
    ``torch.nn.utils.parametrizations``, and the hooks of the same names in ``torch.nn.utils``. The
    original is not changed; it is returned itself if there is nothing to fold.

    >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    >>> sorted(name for name, _ in fold(net).named_parameters())
    ['0.bias', '0.weight']
    """
    check_network(network)
    if not any(_tensors(module) or _hooks(module) for module in network.modules()):
        return network
    folded = duplicate(network)
    with torch.no_grad(), evaluating(folded):
        replace_(folded, {m: _plain(m) for m in folded.modules() if _tensors(m)})
        folded = _plain(folded) if _tensors(folded) else folded
        for module in folded.modules():
            for number, hook in _hooks(module).items():
                _fold_hook_(module, hook)
                del module._forward_pre_hooks[number]
    return folded


def _tensors(module: nn.Module) -> list[str]:
    """Return the names of a module's computed tensors, if only PyTorch's parametrizations do so."""
    if not parametrize.is_parametrized(module):
        return []
    lists: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    steps = [step for own in lists.values() for step in own]  # type: ignore[attr-defined]
    own = all(type(step).__module__ == _OF_TORCH for step in steps)
    return list(lists) if own else []


def _plain(module: nn.Module) -> nn.Module:
    """Return a module of the original class, with the computed tensors as parameters."""
    kind: Any = type(module).__mro__[1]  # the class before parametrization
    plain: nn.Module = kind.__new__(kind)
    lists: Any = module.parametrizations
    plain.__dict__ = dict(vars(module))
    plain._parameters = dict(module._parameters)
    plain._modules = {n: m for n, m in module._modules.items() if n != "parametrizations"}
    for name in _tensors(module):
        value = getattr(module, name)
        trained = any(parameter.requires_grad for parameter in lists[name].parameters())
        plain._parameters[name] = nn.Parameter(value.detach().clone(), requires_grad=trained)
    return plain


def _hooks(module: nn.Module) -> dict[int, WeightNorm | SpectralNorm]:
    hooks = module._forward_pre_hooks.items()
    return {n: hook for n, hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)}


def behind_hooks(network: nn.Module) -> dict[str, str]:
    """Return the tensors that hooks of ``torch.nn.utils`` read -> the weight they compute."""
    return {
        f"{name}.{hook.name}{part}".lstrip("."): hook.name
        for name, module in network.named_modules()
        for hook in _hooks(module).values()
        for part in _parts(hook)
    }


def _parts(hook: WeightNorm | SpectralNorm) -> tuple[str, ...]:
    """Return the suffixes of the tensors that a hook reads, the trained one first."""
    return ("_g", "_v") if isinstance(hook, WeightNorm) else ("_orig", "_u", "_v")


def _fold_hook_(module: nn.Module, hook: WeightNorm | SpectralNorm) -> None:
    """Replace the tensors that a hook reads by the weight that it computes, in place."""
    name, made_of = hook.name, _parts(hook)
    if isinstance(hook, WeightNorm):
        weight = hook.compute_weight(module)
    else:
        weight = hook.compute_weight(module, do_power_iteration=False)
        for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
            for number in [n for n, h in hooks.items() if "SpectralNorm" in _kind(h)]:
                del hooks[number]
    trained = getattr(module, name + made_of[0]).requires_grad
    for part in made_of:
        delattr(module, name + part)
    delattr(module, name)
    module.register_parameter(name, nn.Parameter(weight.detach().clone(), requires_grad=trained))


def _kind(hook: object) -> str:
    return type(getattr(hook, "hook", hook)).__name__
