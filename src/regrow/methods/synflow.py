"""SynFlow: pruning without data, in 100 rounds (Tanaka et al., NeurIPS 2020, arXiv:2006.05467).

In a single round whole layers would be removed, because weights of small layers score highest.
Scores are recomputed after every round on the remaining network, where the scores of a layer's
remaining weights rise.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from regrow.pruning.examples import rows_of, size_of
from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group
from regrow.surgery.tape import call
from regrow.tasks.base import logits_of


def synaptic_flow(probe: Probe) -> dict[str, Tensor]:
    """Return |weight x dR/dweight| by parameter, relative to the largest (equation 2).

    R is the sum of the outputs for an input of ones, of the network with absolute weights. Token
    ids cannot be ones, so those of one example are used.
    """
    probe.check_gradients()
    network = probe.network().double().requires_grad_(True)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.abs_()
    inputs, _ = probe.batches()[0]
    one = tree_map_only(Tensor, _ones, rows_of(inputs, slice(1), size_of(inputs)))
    logits_of(call(network, one)).sum().backward()  # type: ignore[no-untyped-call]
    named = network.named_parameters(remove_duplicate=False)
    flows = {n: (p * (0 if p.grad is None else p.grad)).detach() for n, p in named}
    largest = max(float(flow.max()) for flow in flows.values())
    return {name: flow / largest for name, flow in flows.items()}


def _ones(values: Tensor) -> Tensor:
    return torch.ones_like(values).double() if values.is_floating_point() else values


@criterion("synaptic-flow")
def synflow(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the synaptic flow through its weights."""
    flows = probe.once(synaptic_flow)
    return group.sum(lambda name: flows[name])


register_method(
    "synflow",
    criterion=synflow,
    allocation="global",
    unit="weight",
    scope=("conv", "linear"),
    trained=False,
    rounds=100,
    reference="Tanaka et al., Synaptic Flow, NeurIPS 2020, arXiv:2006.05467",
)
