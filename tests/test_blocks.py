"""Blocks of networks as one operation: the numbers of their modules, on a CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from regrow.core.seeds import seeded
from regrow.models.densenet import BasicLayer, BottleneckLayer, Transition
from regrow.models.fused import fused_in_float32
from regrow.models.preresnet import Bottleneck
from regrow.train.blocks import whole_blocks
from regrow.train.fast_convolutions import fast_convolutions

LAST = torch.channels_last
# What rounding may do, as a share of a tensor: single results, and a ReLU that opens by it.
ROUNDING = 2e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    found = torch.randn(shape, generator=seeded(seed, "map"))
    return found.contiguous(memory_format=LAST) if len(shape) == 4 else found


def drawn(block: nn.Module) -> nn.Module:
    """Give norms scales and shifts, some of them zero or negative."""
    for i, module in enumerate(block.modules()):
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.copy_(draw(module.num_features, seed=i))
                module.weight[0] = 0
                module.bias.copy_(draw(module.num_features, seed=-i))
    return block.to(memory_format=LAST)


def basic(num_in: int, growth: int, layers: int = 3) -> nn.Sequential:
    return nn.Sequential(*[BasicLayer(num_in + growth * i, growth) for i in range(layers)])


def bottlenecks(num_in: int, growth: int, layers: int = 2) -> nn.Sequential:
    return nn.Sequential(*[BottleneckLayer(num_in + growth * i, growth) for i in range(layers)])


def residual(planes: int, *, num_in: int | None = None, stride: int = 1) -> nn.Sequential:
    """Make blocks, the first of which projects its input if it has other channels."""
    project = num_in is not None
    first = Bottleneck(num_in or 4 * planes, planes, stride=stride, project=project)
    others = [Bottleneck(4 * planes, planes, stride=1, project=False) for _ in range(2)]
    return nn.Sequential(first, *others)


def results(block: nn.Module, x: Tensor, *, fused: bool) -> dict[str, Tensor]:
    """Return output, gradients and averages, in double."""
    x = x.detach().requires_grad_()
    if fused:
        with whole_blocks(block), fast_convolutions(block), fused_in_float32():
            y = block(x)
    else:
        y = block(x)
    y.backward(draw(*y.shape, seed=2).to(y.dtype))
    assert x.grad is not None
    found = {"y": y, "x": x.grad, **dict(block.named_buffers())}
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        found[f"gradient of {name}"] = parameter.grad
    return {name: tensor.detach().double() for name, tensor in found.items()}


def names(y: Tensor) -> str:
    """Return the names of the operations that made a tensor."""
    found: set[object] = set()
    waiting = [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return " ".join(type(node).__name__ for node in found)


BLOCKS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = [
    ("basic", lambda: basic(24, 12), (2, 24, 8, 8)),
    ("basic of other widths", lambda: basic(9, 11), (3, 9, 7, 5)),
    ("basic, whole vectors", lambda: basic(16, 16, 1), (1, 16, 3, 9)),
    ("bottlenecks", lambda: bottlenecks(24, 12), (2, 24, 8, 8)),
    ("bottlenecks of other widths", lambda: bottlenecks(9, 10), (3, 9, 6, 11)),
    ("residual", lambda: residual(16), (2, 64, 8, 8)),
    ("residual of other widths", lambda: residual(9), (3, 36, 5, 7)),
    ("residual, projected", lambda: residual(8, num_in=5, stride=2), (2, 5, 9, 12)),
    ("transition", lambda: nn.Sequential(Transition(20, 9)), (2, 20, 6, 6)),
    ("transition of an odd map", lambda: nn.Sequential(Transition(8, 16)), (3, 8, 7, 5)),
    ("many strips", lambda: basic(24, 12, 2), (5, 24, 32, 32)),
    ("many pixels", lambda: residual(12), (3, 48, 17, 19)),
]


SHORT = [case for case in BLOCKS if case[0].startswith(("basic", "bottlenecks"))]


@pytest.mark.parametrize(("name", "make", "shape"), BLOCKS, ids=[name for name, *_ in BLOCKS])
def test_output_gradients_and_averages_are_those_of_the_modules(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    block, x = drawn(make()), draw(*shape) + 0.3
    exact = results(deepcopy(block).double(), x.double(), fused=False)
    found = results(block, x, fused=True)
    assert found.keys() == exact.keys()
    for each, truth in exact.items():
        assert found[each].shape == truth.shape
        error = (found[each] - truth).norm()
        assert error <= ROUNDING * truth.norm() + 1e-7, (each, error / truth.norm())


def short_results(block: nn.Module, x: Tensor, *, whole: bool) -> dict[str, Tensor]:
    """Return output, gradients and averages of a step in bfloat16, in double."""
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), whole_blocks(block) if whole else nullcontext():
        y = block(x)
    assert ("_AppendingBackward" in names(y)) is whole
    y.backward(draw(*y.shape, seed=2).bfloat16())
    assert x.grad is not None
    found = {"y": y, "x": x.grad, **dict(block.named_buffers())}
    found |= {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return {name: tensor.detach().double() for name, tensor in found.items()}


@pytest.mark.parametrize(("name", "make", "shape"), SHORT, ids=[name for name, *_ in SHORT])
def test_dense_blocks_in_bfloat16_round_as_their_modules_do(
    name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    block, x = drawn(make()), (draw(*shape) + 0.3).bfloat16().float()
    exact = results(deepcopy(block).double(), x.double(), fused=False)
    modules = short_results(deepcopy(block), x, whole=False)
    found = short_results(block, x, whole=True)
    assert found.keys() == modules.keys()
    for each, tensor in found.items():
        truth = exact.get(each, exact.get(f"gradient of {each}"))
        assert truth is not None
        error, usual = ((other - truth).norm() for other in (tensor, modules[each]))
        assert error <= 2 * usual + 1e-3 * truth.norm() + 1e-7, (each, error / truth.norm())


def test_residual_blocks_in_bfloat16_are_left_to_their_modules() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = computed(residual(8), draw(2, 32, 8, 8).bfloat16())
    assert "_Adding" not in names(y)
    assert "_NormReluBackward" in names(y)


def computed(block: nn.Module, x: Tensor) -> Tensor:
    with whole_blocks(block), fast_convolutions(block), fused_in_float32():
        y: Tensor = block(x)
    assert not any("forward" in vars(module) for module in block.modules())
    return y


def replaced(block: nn.Module) -> nn.Module:
    conv = block.get_submodule("2.conv")
    vars(conv)["forward"] = lambda x: nn.Conv2d.forward(conv, x)  # type: ignore[arg-type]
    return block


def hooked(block: nn.Module, name: str) -> nn.Module:
    block.get_submodule(name).register_forward_hook(lambda *_: None)
    return block


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "evaluation": lambda: basic(24, 12).eval(),
    "few channels": lambda: basic(24, 4),
    "hook on a norm": lambda: hooked(basic(24, 12), "2.norm"),
    "hook on a layer": lambda: hooked(basic(24, 12), "2"),
    "momentum": lambda: _set(basic(24, 12), "0.norm", momentum=None),
    "one norm evaluates": lambda: _set(basic(24, 12), "1.norm", training=False),
    "other slope": lambda: _put(basic(24, 12), "0.relu", nn.LeakyReLU()),
    "bias": lambda: _put(basic(24, 12), "2.conv", nn.Conv2d(48, 12, 3, padding=1)),
    "groups": lambda: _put(basic(24, 12), "2.conv", nn.Conv2d(48, 12, 3, padding=1, groups=2)),
    "projected": lambda: residual(6, num_in=24)[:1],
}


def _set(block: nn.Module, name: str, **values: object) -> nn.Module:
    for key, value in values.items():
        setattr(block.get_submodule(name), key, value)
    return block


def _put(block: nn.Module, name: str, module: nn.Module) -> nn.Module:
    part, _, child = name.partition(".")
    setattr(block.get_submodule(part), child, module)
    return block


@pytest.mark.parametrize("name", OTHERS)
def test_other_blocks_stay_what_they_are(name: str) -> None:
    torch.manual_seed(0)
    block, x = OTHERS[name]().to(memory_format=LAST), draw(2, 24, 8, 8)
    assert isinstance(block, nn.Sequential)
    same = deepcopy(block)
    y = computed(block, x)
    assert not {"_AppendingBackward", "_AddingBackward"} & {*names(y).split()}
    assert torch.allclose(y, same(x), atol=1e-4)


def test_what_else_computes_a_convolution_is_asked() -> None:
    block = replaced(basic(24, 12))
    with whole_blocks(block), fused_in_float32():
        found = names(block(draw(2, 24, 8, 8)))
    assert found.count("_AppendingBackward") == 0
    assert found.count("ConvolutionBackward") == 3


def test_other_maps_are_left_to_the_modules() -> None:
    block, x = basic(24, 12).to(memory_format=LAST), draw(2, 24, 8, 8)
    assert "_Appending" in names(computed(block, x))
    assert "_Adding" in names(computed(residual(8), draw(2, 32, 8, 8)))
    with whole_blocks(block):  # as in `engine: exact`
        assert "_Appending" not in names(block(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert "_Appending" not in names(computed(block, x))
    with torch.no_grad():
        assert not computed(block, x).requires_grad
    assert "_Appending" not in names(computed(block, x.contiguous()))
    assert "_Appending" not in names(computed(block, x[:, :, :2, :2]))
    with pytest.raises(RuntimeError, match=r"channels|elements"):
        computed(block, x[:, :8].contiguous(memory_format=LAST))


def test_blocks_after_a_hooked_one_are_one_operation() -> None:
    block = hooked(residual(8), "0")
    found = names(computed(block, draw(2, 32, 8, 8)))
    assert found.count("_AddingBackward") == 1
    assert found.count("_SumWithMomentsBackward") == 1


def test_frozen_parameters_have_no_gradient_and_the_others_the_same() -> None:
    torch.manual_seed(0)
    block, x = drawn(residual(8)), draw(2, 32, 6, 6)
    exact = results(deepcopy(block).double(), x.double(), fused=False)
    frozen = [p for n, p in block.named_parameters() if n.startswith("1.")]
    for parameter in frozen:
        parameter.requires_grad_(False)
    y = computed(block, x)
    y.backward(draw(2, 32, 6, 6, seed=2))  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in frozen)
    for name, parameter in block.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            truth = exact[f"gradient of {name}"]
            assert (parameter.grad - truth).norm() <= ROUNDING * truth.norm() + 1e-7


@pytest.mark.parametrize("make", [lambda: basic(24, 12), lambda: residual(8)])
def test_what_is_not_a_number_stays_so(make: Callable[[], nn.Module]) -> None:
    block = make()
    channels = next(block.parameters()).shape[0]
    x = draw(2, channels, 8, 8)
    bad = x.clone()
    bad[0, 3, 2, 2] = float("nan")
    y = computed(deepcopy(block), bad.requires_grad_())
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert bool(y.isnan().any())
    assert bad.grad is not None
    assert bool(bad.grad.isnan().any())
    assert not bool(computed(block, x).isnan().any())  # nothing is left in what was worked in


def test_weights_that_change_before_the_backward_pass_are_told() -> None:
    block = basic(24, 12)
    y = computed(block, draw(2, 24, 8, 8))
    with torch.no_grad():
        block.get_submodule("1.conv").weight.mul_(2)  # type: ignore[operator]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()  # type: ignore[no-untyped-call]


def test_the_moments_of_a_block_are_those_of_its_map() -> None:
    y = computed(basic(24, 12), draw(2, 24, 8, 8) + 2)
    shift, first, second = torch.as_tensor(y.moments[1])  # type: ignore[attr-defined]
    above = y.detach().double() - shift[:, None, None]
    assert torch.allclose(first, above.sum((0, 2, 3)), rtol=1e-5, atol=1e-3)
    assert torch.allclose(second, above.square().sum((0, 2, 3)), rtol=1e-5)


def test_norms_before_a_relu_are_one_operation_with_it() -> None:
    torch.manual_seed(0)
    relu = nn.ReLU()
    convs = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2)]
    norms = [nn.BatchNorm2d(8) for _ in range(3)]
    parts = [convs[0], norms[0], relu, convs[1], norms[1], relu, norms[2]]
    block = drawn(nn.Sequential(*parts))
    x = draw(2, 8, 6, 6) + 0.3
    exact = results(deepcopy(block).double(), x.double(), fused=False)
    found = results(deepcopy(block), x, fused=True)
    for each, truth in exact.items():
        error = (found[each] - truth).norm()
        assert error <= ROUNDING * truth.norm() + 1e-6, (each, error / truth.norm())
    assert names(computed(block, x)).count("_NormReluBackward") == 2
    convs[0].register_forward_hook(lambda *_: None)
    norms[1].register_forward_hook(lambda *_: None)
    assert names(computed(block, x)).count("_NormReluBackward") == 1


def test_a_block_that_comes_twice_is_computed_twice() -> None:
    torch.manual_seed(0)
    once, x = residual(8)[1], draw(2, 32, 8, 8)
    block = nn.Sequential(once, once).to(memory_format=LAST)
    y = deepcopy(block)(x)
    assert torch.allclose(computed(block, x), y, atol=1e-4)
