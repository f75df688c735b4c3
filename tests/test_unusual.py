"""Networks that hold what most do not: locks, results of a step, sparse tensors."""

import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regrow
from cutting import half
from regrow.errors import ConfigError, TraceError
from regrow.surgery import Trace, shrink, silence, trace, verify


def proven(net: nn.Module, example: Any) -> Trace:
    """Trace a network, and cut half of each of its groups with a proof."""
    found = trace(net, example)
    result = verify(net, half(found), found)
    assert result.ok, str(result)
    return found


class Keeping(nn.Module):
    """A network that keeps something."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.a(x).relu())
        return result


@pytest.mark.parametrize(
    "wrapped", [lambda x: x, lambda x: {"last": [x]}, lambda x: SimpleNamespace(last=x)]
)
def test_what_a_step_left_behind_is_copied_by_its_values(wrapped: Callable[[Any], Any]) -> None:
    net = Keeping()
    net.kept = wrapped(net(torch.ones(2, 6)).sum())
    assert list(proven(net, (1, 6)).groups) == ["a"]


@pytest.mark.parametrize(
    "held", [threading.Lock(), threading.Condition(), sys.__stderr__, (i for i in range(3)), torch]
)
def test_what_cannot_be_copied_is_shared(held: Any) -> None:
    net = Keeping({"one": held, "size": 2})
    found = proven(net, (1, 6))
    small: Any = shrink(net, half(found), found)
    assert small.kept["one"] is held


def test_what_cannot_be_copied_with_tensors_is_named() -> None:
    net = Keeping([threading.Lock(), torch.ones(2)])
    with pytest.raises(TraceError, match=r"attribute 'kept' of Keeping cannot be copied.* pickle"):
        trace(net, (1, 6))


class Graph(nn.Module):
    """A graph convolution, whose adjacency may be a buffer."""

    adjacency: Tensor | None

    def __init__(self, multiply: Any) -> None:
        super().__init__()
        self.multiply, self.a, self.out = multiply, nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("adjacency", None)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Any:
        graph = self.adjacency if adjacency is None else adjacency
        hidden = self.multiply(graph, self.a(x).flatten(0, -2)).relu()
        return self.multiply(graph, self.out(hidden))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("multiply", [torch.sparse.mm, torch.mm])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("is_input", [False, True])
def test_a_network_of_a_sparse_graph_is_cut(multiply: Any, layout: Any, is_input: bool) -> None:
    adjacency = torch.eye(5).roll(1, 0).to_sparse(layout=layout)
    net = Graph(multiply)
    x = torch.randn(5, 6)
    if not is_input:
        net.adjacency = adjacency
    found = proven(net, (x, adjacency) if is_input else x[None])
    assert list(found.groups) == ["a"]
    small: Any = shrink(net, half(found), found)
    assert small(x, adjacency).shape == (5, 3)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_sparse_weight_is_kept_whole() -> None:
    middle = nn.Linear(8, 7)
    middle.weight = nn.Parameter(middle.weight.detach().to_sparse_csr())
    net = nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(7, 3))
    found = trace(net, (1, 6))
    assert not found.groups
    assert {found.whole[name] for name in "01"} == {
        "'1.weight' is sparse, and only dense ones are cut"
    }


def test_an_exported_program_is_refused() -> None:
    exported = torch.export.export(Keeping().eval(), (torch.ones(2, 6),)).module()
    with pytest.raises(ConfigError, match="Give the network that was exported"):
        trace(exported, (2, 6))
    assert list(trace(torch.fx.symbolic_trace(Keeping()), (1, 6)).groups) == ["a"]


def test_networks_and_examples_without_numbers_are_refused() -> None:
    net = Keeping()
    found = trace(net, (1, 6))
    with pytest.raises(ConfigError, match="which holds no numbers"):
        trace(net, torch.zeros(1, 6, device="meta"))
    net.to("meta")
    with pytest.raises(ConfigError, match="4 parameters of the network, such as 'a"):
        trace(net, (1, 6))
    for act in (shrink, silence, verify):
        with pytest.raises(ConfigError, match=r"holds no numbers\. Build it on the CPU"):
            act(net, half(found), found)


@pytest.mark.parametrize("built_there", [False, True])
@pytest.mark.parametrize("cut_there", [False, True])
def test_inference_mode_neither_hides_operations_nor_stops_a_cut(
    built_there: bool, cut_there: bool
) -> None:
    with torch.inference_mode(built_there):
        net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.inference_mode(cut_there):
        found = proven(net.eval(), torch.randn(1, 3, 4, 4))
        small: Any = shrink(net, half(found), found)
    assert list(found.groups) == ["0"]
    assert not any(p.is_inference() for p in (*small.parameters(), *small.buffers()))
    small(torch.randn(1, 3, 4, 4)).sum().backward()
    assert small[3].weight.grad is not None


@pytest.mark.slow  # importing the compiler takes seconds
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_network_is_cut_without_being_compiled(in_place: bool) -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    example, compiled = torch.randn(1, 3, 4, 4), list[Any]()

    def compiler(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    if in_place:
        net.compile(backend=compiler)
    else:
        net = torch.compile(net, backend=compiler)
    found = proven(net, example)
    small = shrink(net, half(found), found)
    assert len(found.groups) == 1
    if in_place:  # both are measured as copies
        assert regrow.compress(net, example, sparsity=0.5, batches=(1,)).card.speeds[0].ratio
    assert not compiled
    small(example)
    assert bool(compiled) is not in_place  # a copy of a network compiled in place is not compiled
