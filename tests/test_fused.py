"""Norm and ReLU as one operation: the numbers of the two modules, in training on a CPU."""

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from regrow.core.seeds import seeded
from regrow.models import ModelSpec, build, fused

LAST = torch.channels_last
SHAPES = [(4, 16, 8, 8), (3, 7, 5, 3), (2, 300, 4, 4), (1, 1, 2, 2), (64, 12, 16, 16)]


def draw(*shape: int, seed: int = 0, scale: float = 1.0, mean: float = 0.0) -> Tensor:
    found = torch.randn(shape, generator=seeded(seed, "map")) * scale + mean
    return found.bfloat16().contiguous(memory_format=LAST)


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=seeded(0, "scale")))
        norm.bias.copy_(torch.randn(channels, generator=seeded(0, "shift")))
    return norm


Way = Callable[[nn.BatchNorm2d, Tensor, Tensor], Tensor]


def plain(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    return F.relu(norm(x))


def one(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    return fused.rectified(norm, nn.ReLU(), x)


def plain_added(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    return F.relu(norm(x) + added)


def one_added(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    return fused.rectified(norm, nn.ReLU(), x, added=added)


def plain_branched(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    return F.relu(norm(x)) + added * x


def one_branched(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    y, same = fused.branched(norm, nn.ReLU(), x)
    return y + added * same


def plain_summed(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    total = x + added
    return F.relu(norm(total)) + total


def one_summed(norm: nn.BatchNorm2d, x: Tensor, added: Tensor) -> Tensor:
    y, total = fused.branched(norm, nn.ReLU(), fused.summed(x, added))
    return fused.summed(y, total)


def results(way: Way, shape: tuple[int, ...], dtype: torch.dtype, mean: float) -> list[Tensor]:
    """Return outputs, gradients and running statistics, in double, of maps of bfloat16 numbers."""
    norm = norm_of(shape[1]).to(torch.float64 if dtype == torch.float64 else torch.float32)
    x = draw(*shape, mean=mean).to(dtype).requires_grad_()
    added = draw(*shape, seed=1).to(dtype).requires_grad_()
    y = way(norm, x, added)
    y.backward(draw(*shape, seed=2).to(dtype))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    found = [y, x.grad, *([] if added.grad is None else [added.grad]), norm.weight.grad]
    found += [norm.bias.grad, norm.running_mean, norm.running_var]  # type: ignore[list-item]
    return [t.detach().double() for t in found]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (one, plain),
        (one_added, plain_added),
        (one_branched, plain_branched),
        (one_summed, plain_summed),
    ],
    ids=["alone", "added", "branched", "summed"],
)
def test_one_operation_is_no_further_from_the_truth_than_two(
    ours: Way, theirs: Way, shape: tuple[int, ...], mean: float, dtype: torch.dtype
) -> None:
    truth = results(theirs, shape, torch.float64, mean)
    two = results(theirs, shape, dtype, mean)
    with fused.fused_in_float32():
        found = results(ours, shape, dtype, mean)
    assert len(found) == len(two) == len(truth)
    for mine, other, exact in zip(found, two, truth, strict=True):
        allowed = 1.5 * (other - exact).norm() + 1e-5 * exact.norm() + 1e-6
        assert (mine - exact).norm() <= allowed


def spread(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return the norm with weights that do not lie in one piece."""
    found = deepcopy(norm)
    found.weight = nn.Parameter(torch.stack([norm.weight.detach()] * 2, 1)[:, 0])
    return found


def test_it_is_one_operation_only_where_the_kernels_apply() -> None:
    norm, relu, x = norm_of(8), nn.ReLU(), draw(2, 8, 4, 4).requires_grad_()
    assert "NormRelu" in type(fused.rectified(norm, relu, x).grad_fn).__name__
    hooked = deepcopy(norm)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    looked_at = nn.ReLU()
    looked_at.register_forward_pre_hook(lambda module, inputs: None)
    for other_norm, other_relu, other_x in [
        (deepcopy(norm).eval(), relu, x),
        (norm, nn.ReLU6(), x),
        (nn.Sequential(norm), relu, x),
        (hooked, relu, x),
        (norm, looked_at, x),
        (deepcopy(norm).bfloat16(), relu, x),
        (spread(norm), relu, x),
        (norm, relu, x.contiguous()),
        (norm, relu, x.float()),
    ]:
        y = fused.rectified(other_norm, other_relu, other_x)
        assert "NormRelu" not in type(y.grad_fn).__name__
    with torch.no_grad():
        assert torch.equal(fused.rectified(deepcopy(norm), relu, x), relu(deepcopy(norm)(x)))


def test_the_moments_of_a_sum_are_those_of_its_map_while_it_stays_as_it_is() -> None:
    x, added = draw(4, 8, 6, 6).requires_grad_(), draw(4, 8, 6, 6, seed=1)
    norms = [norm_of(8) for _ in range(3)]
    total = fused.summed(x, added)
    assert torch.equal(total, x + added)
    known = fused.rectified(norms[0], nn.ReLU(), total)
    read = fused.rectified(norms[1], nn.ReLU(), total.clone())
    assert torch.equal(known, read)
    assert torch.equal(norms[0].running_var, norms[1].running_var)  # type: ignore[arg-type]
    total.detach().mul_(3)
    fused.rectified(norms[2], nn.ReLU(), total)
    before, after = (torch.as_tensor(norms[i].running_var) - 0.9 for i in (0, 2))
    assert torch.allclose(after, 9 * before, rtol=0.02)


def test_a_sum_is_plain_where_the_kernel_does_not_apply() -> None:
    x = draw(2, 8, 4, 4).requires_grad_()
    assert "_Sum" in type(fused.summed(x, x.detach()).grad_fn).__name__
    for added in (x.detach().contiguous(), x.detach().float(), x.detach()[:1], torch.ones(())):
        y = fused.summed(x, added)
        assert "_Sum" not in type(y.grad_fn).__name__
        assert torch.equal(y, x + added)


@pytest.mark.slow
def test_kernels_compile_where_nothing_can_be_kept() -> None:
    code = (
        "from numba.core import caching; caching.CacheImpl._locator_classes = []; "
        "import torch; from regrow.models.kernels import kernels_of; "
        "print(kernels_of(torch.bfloat16).norm_relu.stats.cache_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


@pytest.mark.parametrize("channels", [8, 300])
def test_gradients_of_any_layout_are_read(channels: int) -> None:
    """A gradient may be a part of a larger map, as behind a concatenation."""
    grad = draw(2, 3 * channels, 4, 4, seed=3)[:, channels : 2 * channels]
    gradients = []
    for given in (grad, grad.contiguous(memory_format=LAST), grad.contiguous()):
        x = draw(2, channels, 4, 4).requires_grad_()
        fused.rectified(norm_of(channels), nn.ReLU(), x).backward(given)  # type: ignore[no-untyped-call]
        gradients.append(x.grad)
    assert all(torch.equal(gradients[0], other) for other in gradients)  # type: ignore[arg-type]


def test_what_is_not_a_number_stays_so() -> None:
    x = draw(2, 4, 4, 4)
    x[0, 1, 0, 0] = float("nan")
    y = fused.rectified(norm_of(4), nn.ReLU(), x)
    assert bool(y[:, 1].isnan().all())
    assert not bool(y[:, [0, 2, 3]].isnan().any())


@pytest.mark.parametrize("name", ["resnet-20", "preresnet-56", "densenet-40"])
def test_a_network_trains_the_same_either_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(8, 3, 16, 16, generator=seeded(0, "images")).contiguous(memory_format=LAST)
    labels = torch.arange(8) % 4
    spec = ModelSpec(name, {"classes": 4, "input_size": 16, "width": 0.5})
    gradients: dict[str, list[Tensor]] = {}
    for way in ("fp32", "two", "one"):
        model = build(spec).to(memory_format=LAST).train()
        if way == "two":
            monkeypatch.setattr(fused, "fusable", lambda *parts: False)
        else:
            monkeypatch.undo()
        with torch.autocast("cpu", torch.bfloat16, enabled=way != "fp32"):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients[way] = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients["one"]) == len(gradients["two"])
    off = {
        way: torch.cat([(a - b).flatten() for a, b in zip(found, gradients["fp32"], strict=True)])
        for way, found in gradients.items()
    }
    assert off["one"].norm() <= 1.25 * off["two"].norm()
    assert off["one"].norm() > 0


class Counted(TorchFunctionMode):
    """Counts what it is asked to watch."""

    num = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += 1
        return func(*args, **(kwargs or {}))


def test_what_watches_calls_is_not_asked_for_each_look_at_a_map() -> None:
    norm, x = norm_of(16), draw(2, 16, 8, 8).requires_grad_()
    with Counted() as counted:
        y = fused.summed(*fused.branched(norm, nn.ReLU(), fused.rectified(norm, nn.ReLU(), x)))
    assert y.grad_fn is not None
    assert counted.num == 0
