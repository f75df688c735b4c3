"""3x3 convolutions in fewer multiplications: the numbers of a convolution, in float32 on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.models import ModelSpec, build
from regrow.train.fast_convolutions import fast_convolutions
from regrow.train.step import forward

LAST = torch.channels_last
# What rounding may do, as a share of a map: PyTorch's own is off by about 3e-7 of it.
ROUNDING = 1e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed, "map"))


def results(conv: nn.Conv2d, x: Tensor, within: Callable[..., Any] | None = None) -> list[Tensor]:
    """Return output and gradients, in double."""
    conv.zero_grad()
    x = x.detach().requires_grad_()
    if within is None:
        y = conv(x)
    else:
        with within(conv):
            y = conv(x)
        assert conv.weight.grad is None
    y.backward(draw(*y.shape, seed=2).to(y.dtype))
    found = [y, x.grad, conv.weight.grad, *([] if conv.bias is None else [conv.bias.grad])]
    return [t.detach().double() for t in found if t is not None]


def is_fast(y: Tensor) -> bool:
    node = y.grad_fn
    assert node is not None
    nodes = [node, *(following for following, _ in node.next_functions)]
    return any("_TiledConvolution" in type(node).__name__ for node in nodes)


def assert_close(found: list[Tensor], exact: list[Tensor], *, num: int) -> None:
    assert len(found) == len(exact) == num
    for mine, truth in zip(found, exact, strict=True):
        assert mine.shape == truth.shape
        assert (mine - truth).norm() <= ROUNDING * truth.norm()
        assert (mine - truth).abs().max() <= 10 * ROUNDING * truth.abs().max()


# Images, inputs, outputs, height, width: whole tiles and vectors, and neither; blocks of several.
SHAPES = [
    (2, 16, 16, 8, 8),
    (3, 8, 11, 5, 3),
    (2, 33, 9, 7, 10),
    (1, 16, 48, 4, 4),
    (5, 24, 16, 32, 32),
    (2, 160, 144, 9, 4),
    (2, 16, 16, 2, 9),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_a_convolution(
    shape: tuple[int, ...], bias: bool
) -> None:
    images, inputs, outputs, height, width = shape
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).to(memory_format=LAST)
    x = draw(images, inputs, height, width).contiguous(memory_format=LAST)
    with fast_convolutions(conv):
        assert is_fast(conv(x))
    found = results(conv, x, fast_convolutions)
    exact = results(conv.double(), x.double())
    assert_close(found, exact, num=3 + bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "size", "operation"),
    [(3, 1, "MatrixConvolution"), (3, 2, "MatrixConvolution"), (1, 6, "Permute")],
    ids=["one pixel", "small", "1x1"],
)
def test_small_maps_and_kernels_are_products(
    kernel: int, size: int, operation: str, bias: bool
) -> None:
    conv = nn.Conv2d(9, 20, kernel, padding=kernel // 2, bias=bias).to(memory_format=LAST)
    x = draw(3, 9, size, size).contiguous(memory_format=LAST)
    with fast_convolutions(conv):
        y = conv(x)
    assert operation in type(y.grad_fn).__name__
    assert y.is_contiguous(memory_format=LAST)
    found = results(conv, x, fast_convolutions)
    assert_close(found, results(conv.double(), x.double()), num=3 + bias)


def test_gradients_of_other_layouts_and_weights_of_other_layouts_are_read() -> None:
    x = draw(2, 16, 8, 8).contiguous(memory_format=LAST)
    grad = draw(2, 48, 8, 8, seed=3)[:, 16:32]
    found = []
    for given in (grad, grad.contiguous(memory_format=LAST)):
        for layout in (LAST, torch.contiguous_format):
            torch.manual_seed(0)
            conv = nn.Conv2d(16, 16, 3, padding=1, bias=False).to(memory_format=layout)
            mine = x.detach().requires_grad_()
            with fast_convolutions(conv):
                y = conv(mine)
            y.backward(given)
            assert mine.grad is not None
            assert conv.weight.grad is not None
            found.append((y.detach(), mine.grad, conv.weight.grad))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 1, stride=2),
        nn.Conv2d(16, 16, 1, padding=1),
        nn.Conv2d(16, 16, 5, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=1, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 4, 3, padding=1),
    ],
    ids=[
        "stride",
        "unpadded",
        "1x1-stride",
        "1x1-padded",
        "5x5",
        "groups",
        "dilation",
        "reflect",
        "narrow",
    ],
)
def test_other_convolutions_stay_what_they_are(conv: nn.Conv2d) -> None:
    conv.to(memory_format=LAST)
    x = draw(2, 16, 8, 8).contiguous(memory_format=LAST)
    expected = conv(x)
    with fast_convolutions(conv):
        y = conv(x)
    assert not is_fast(y)
    assert torch.equal(y, expected)


def test_other_maps_are_left_to_pytorch() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1).to(memory_format=LAST)
    x = draw(2, 16, 8, 8).contiguous(memory_format=LAST)
    with fast_convolutions(conv):
        assert not is_fast(conv(x.contiguous()))
        assert not is_fast(conv(x[0]))
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_fast(conv(x))
        with pytest.raises(RuntimeError, match="channels"):
            conv(x[:, :8])
    assert "forward" not in vars(conv)


def test_what_is_not_a_number_stays_so() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1).to(memory_format=LAST)
    x = draw(2, 16, 8, 8).contiguous(memory_format=LAST)
    x[0, 3, 2, 2] = float("nan")
    with fast_convolutions(conv):
        y = conv(x)
    assert bool(y[0, :, 2, 2].isnan().all())
    assert not bool(y[1].isnan().any())  # also where another image's tiles shared a block
    with fast_convolutions(conv):
        assert not bool(conv(x[1:]).isnan().any())  # nothing is left in what was worked in


@pytest.mark.parametrize("name", ["resnet-20", "preresnet-56", "densenet-40", "vgg-16"])
def test_a_step_is_that_of_pytorchs_operations(name: str) -> None:
    images = draw(8, 3, 32, 32).contiguous(memory_format=LAST)
    labels = torch.arange(8) % 4
    spec = ModelSpec(name, {"classes": 4, "width": 0.5})
    found = {}
    for engine in ("exact", "fused"):
        model = build(spec).to(memory_format=LAST).train()
        logits = forward(model, images, "fp32", engine=engine)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        statistics = torch.cat([b.float().flatten() for b in model.buffers()])
        found[engine] = logits.detach(), gradients, statistics
    for mine, plain in zip(found["fused"], found["exact"], strict=True):
        assert mine.shape == plain.shape
        # A ReLU that opens by rounding moves gradients so far: images changed in their last bit
        # move PyTorch's own, of a VGG-16, by up to 0.026 of their norm.
        assert 0 < (mine - plain).norm() <= 3e-2 * plain.norm()


def test_evaluation_is_that_of_pytorchs_operations() -> None:
    images = draw(4, 3, 32, 32).contiguous(memory_format=LAST)
    model = build(ModelSpec("resnet-20", {"classes": 4})).to(memory_format=LAST).eval()
    with torch.inference_mode():
        plain = forward(model, images, "fp32")
        mine = forward(model, images, "fp32", engine="fused")
    assert 0 < (mine - plain).norm() <= 1e-4 * plain.norm()
