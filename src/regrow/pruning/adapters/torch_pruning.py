"""Importances of Torch-Pruning (Fang et al., CVPR 2023, arXiv:2301.12900) as criteria.

Torch-Pruning traces the network itself and scores the group that it finds for the first layer that
produces a group of regrow's; the choice, the cut and its proof are regrow's. A unit of several
channels (an attention head) gets the sum of their scores. Importances that use gradients get those
of the mean loss over the probe's examples.
"""

import inspect
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, TraceError, short, unknown
from regrow.pruning.adapters.calls import read_call
from regrow.pruning.method import ALL, Criterion, Method
from regrow.pruning.probe import Probe
from regrow.surgery import Group
from regrow.surgery.mask import filter_dim

BY_GRADIENTS = ("TaylorImportance", "GroupTaylorImportance")
# These need sums that Torch-Pruning's own hooks collect during training.
LEFT_OUT = ("HessianImportance", "GroupHessianImportance", "Importance")


def method(name: str, rest: str) -> Method:
    """Return the method that removes channels and heads by an importance, ranked together."""
    _made(rest)  # so that a wrong name is reported when a study is read
    return Method(name=name, criterion=name, scope=ALL)


def code(rest: str) -> str:
    """Return the version of the library, which determines what an importance computes."""
    _library()
    return f"torch-pruning-{version('torch-pruning')}"


@cache
def criterion(rest: str) -> Criterion:
    """Return a criterion that gives the scores of an importance."""
    name, importance = _made(rest)
    prepare = partial(_prepared, gradients=name in BY_GRADIENTS)

    def score(group: Group, probe: Probe) -> Tensor:
        network, graph = probe.once(prepare)
        return _scored(group, network, graph, importance, where=f"torch-pruning:{rest}")

    score.__doc__ = f"Score units as Torch-Pruning's {rest} does."
    return score


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            "Importances of Torch-Pruning need that package: pip install 'regrow[torch-pruning]'."
        ) from error
    return torch_pruning


def _made(rest: str) -> tuple[str, Any]:
    """Return the name of an importance and the importance itself, from a text."""
    library = _library()
    name, arguments = read_call(rest)
    known = {
        key: value
        for key, value in vars(library.pruner.importance).items()
        if inspect.isclass(value)
        and issubclass(value, library.importance.Importance)
        and key not in LEFT_OUT
    }
    if name not in known:
        raise ConfigError(unknown("importance of Torch-Pruning", name, known))
    try:
        return name, known[name](**arguments)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"torch-pruning:{rest} cannot be made: {short(error)}.") from error


def _prepared(probe: Probe, *, gradients: bool) -> tuple[nn.Module, Any]:
    """Return a copy of the network, with gradients if requested, and its dependency graph."""
    network = probe.network()
    try:
        graph = _library().DependencyGraph().build_dependency(network, probe.example())
    except Exception as error:  # its tracing may raise anything
        raise TraceError(
            f"Torch-Pruning cannot follow this network: {type(error).__name__}: {short(error)}. "
            "Use a criterion of regrow's own."
        ) from error
    if gradients:
        for name, parameter in network.named_parameters():
            parameter.grad = probe.gradient(name)
    return network, graph


def _scored(group: Group, network: nn.Module, graph: Any, importance: Any, *, where: str) -> Tensor:
    library = _library()
    whole_first = sorted(group.producers(), key=lambda slot: bool((slot.units < 0).any()))
    for slot in whole_first:
        layer, _, kind = slot.tensor.rpartition(".")
        module = network.get_submodule(layer)
        if kind != "weight" or not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            continue
        if slot.dim != filter_dim(module):
            continue
        prune = library.prune_linear_out_channels
        if not isinstance(module, nn.Linear):
            alone = module.groups > 1 and module.groups == module.out_channels
            name = "prune_depthwise_conv_out_channels" if alone else "prune_conv_out_channels"
            prune = getattr(library, name)
        found = importance(graph.get_pruning_group(module, prune, [*range(len(slot.units))]))
        if not isinstance(found, Tensor) or found.shape != slot.units.shape:
            break
        ours = slot.units >= 0
        return torch.zeros(group.size).index_add_(0, slot.units[ours], found[ours].float().cpu())
    raise TraceError(
        f"{where} does not score each of the {group.size} units of {group.name!r}, which "
        "Torch-Pruning groups in another way or not at all. Give the method a 'scope' without "
        f"{group.kind!r}, or use a criterion of regrow's own."
    )
