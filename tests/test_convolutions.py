"""Convolutions that write or read beyond their memory are not handed to PyTorch.

What writes happens on a processor without AVX-512, so this runs in processes that do as if. What
reads happens in bfloat16 on one with AMX; elsewhere the tests show that the other way is right.
"""

import os
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.train import safe_convolutions as convolutions
from regrow.train.safe_convolutions import safe_convolutions

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# What the C library checks is checked where it has a library for it; else a death is luck.
CHECKED = {"MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}

# Every place in the package that takes a gradient of a network, on a network that is hit.
EVERYWHERE = """
import torch
from torch import nn
from regrow.bench.plain import plain_steps
from regrow.data import Dataset, DataSpec, MemoryImages, load
from regrow.detection.training import forward as detect
from regrow.pruning.probe import Probe
from regrow.train import Recipe, Training, evaluate

torch.set_num_threads(1)
data = load(DataSpec("digits", subset=64))
def net(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )
for width in (1, 2, 3, 4, 5, 6, 7):
    training = Training(net(width), data, Recipe(epochs=2, batch=16, lr=0.01), seed=0)
    while not training.done:
        training.step()
    evaluate(training.model, data.test, data)
    Probe(training.model, data).gradient("3.weight")
    steps = plain_steps(training.model, data, loader_workers=0)
    for _ in range(3):
        next(steps)
    class Detector(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, images, targets):
            x = torch.stack(images).to(memory_format=torch.channels_last)
            return self.net(x[:, :1])
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for _ in range(5):
        detect(Detector(training.model), [image] * 16).sum().backward()
print("all steps taken")
"""


def _as_avx2(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **AVX2, **CHECKED, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


def test_no_gradient_of_a_thin_network_writes_beyond_its_memory() -> None:
    done = _as_avx2(EVERYWHERE)
    assert "all steps taken" in done.stdout, f"exit code {done.returncode}: {done.stderr[-2000:]}"


def _gradients(
    x: Tensor, weight: Tensor, *, stride: int | tuple[int, int], safe: bool
) -> list[Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    if safe:
        with safe_convolutions():
            y = F.conv2d(x, weight, stride=stride)
    else:
        y = F.conv2d(x, weight, stride=stride)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(y.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    return [y, *torch.autograd.grad(y, (x, weight), grad)]


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def _case(channels: int, layouts: tuple[torch.memory_format, torch.memory_format]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, channels, 8, 8), (5, channels, 1, 1))
    return [
        torch.randn(shape, generator=generator).contiguous(memory_format=layout)
        for shape, layout in zip(shapes, layouts, strict=True)
    ]


@pytest.mark.parametrize("stride", [2, 4, (2, 1), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_skipping_pixels_first_is_right(
    monkeypatch: pytest.MonkeyPatch, channels: int, stride: int | tuple[int, int]
) -> None:
    monkeypatch.setattr(convolutions, "_is_hit", lambda: True)
    for layouts in product(LAYOUTS, LAYOUTS):
        x, weight = _case(channels, layouts)
        found = _gradients(x, weight, stride=stride, safe=True)
        true = _gradients(x.double(), weight.double(), stride=stride, safe=False)
        for ours, theirs in zip(found, true, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"channels": 8}, "wide"),
        ({"stride": 1}, "every pixel is read"),
        ({"side": 7}, "the stride does not divide the map"),
        ({"kernel": 2}, "pixels are read together"),
        ({"layout": torch.contiguous_format}, "channels lie apart"),
        ({"learns": False}, "no gradient of the weights"),
        ({"dtype": torch.float64}, "not float32"),
    ],
    ids=lambda value: str(value or "hit"),
)
def test_what_is_computed_rightly_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str | None
) -> None:
    case = {
        "channels": 3,
        "stride": 2,
        "side": 8,
        "kernel": 1,
        "layout": torch.channels_last,
        "learns": True,
        "dtype": torch.float32,
        **changes,
    }
    monkeypatch.setattr(convolutions, "_is_hit", lambda: True)
    seen: list[torch.Size] = []
    convolved = convolutions._convolved

    def noting(x: Tensor, *arguments: Any) -> Tensor:
        seen.append(x.shape)
        return F.conv2d(x, *arguments)

    monkeypatch.setattr(
        convolutions, "_convolved", lambda func, *given, **named: convolved(noting, *given, **named)
    )
    x, weight = (
        torch.randn(shape, dtype=case["dtype"]).contiguous(memory_format=case["layout"])
        for shape in (
            (2, case["channels"], case["side"], case["side"]),
            (5, case["channels"], case["kernel"], case["kernel"]),
        )
    )
    with safe_convolutions():
        F.conv2d(x, weight.requires_grad_(case["learns"]), stride=case["stride"])
    assert (seen == [x.shape]) == (why is not None)


def test_tokens_in_channels_last_are_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_is_hit", lambda: True)
    x = torch.randn(4, 8, 3).transpose(1, 2)
    weight = torch.randn(5, 3, 1, requires_grad=True)
    with safe_convolutions():
        y = F.conv1d(x, weight, stride=2)
    assert y.grad_fn is not None
    torch.testing.assert_close(y, F.conv1d(x[..., ::2], weight))


# In bfloat16 with AMX ----------------------------------------------------------------------------

# Kernel, stride, padding, inputs, outputs, side: each wrong by as much as the result, or infinite.
READING: list[tuple[int, int, int, int, int, tuple[int, int]]] = [
    (4, 4, 0, 16, 8, (16, 16)),
    (8, 8, 0, 8, 48, (16, 16)),
    (3, 2, 0, 6, 8, (16, 4)),
    (5, 2, 2, 6, 8, (16, 1)),
    (5, 2, 2, 4, 8, (2, 1)),
]


def _fill_memory() -> None:
    """Leave numbers that show in any result behind in memory that is given back."""
    sizes = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 30_000, 100_000)
    [torch.full((size,), float("inf"), dtype=torch.bfloat16) for size in sizes]


def _in_bfloat16(case: tuple[int, int, int, int, int, tuple[int, int]]) -> list[list[Tensor]]:
    """Return a convolution's output and gradients as a training has them, and in float32."""
    kernel, stride, padding, num_in, num_out, side = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, num_in, *side, generator=generator).bfloat16().float()
    weight = torch.randn(num_out, num_in, kernel, kernel, generator=generator).bfloat16().float()
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    both = []
    for enabled in (True, False):
        image, kernels = (t.detach().requires_grad_() for t in (x, weight))
        _fill_memory()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), safe_convolutions():
            y = F.conv2d(image, kernels, stride=stride, padding=padding)
        _fill_memory()
        gradients = torch.autograd.grad(y.float().sum(), (image, kernels))
        both.append([y.detach().float(), *gradients])
    return both


@pytest.mark.parametrize("tiles", [None, True])
@pytest.mark.parametrize("case", READING, ids=str)
def test_strided_convolutions_in_bfloat16_read_only_their_own_memory(
    monkeypatch: pytest.MonkeyPatch, case: Any, tiles: bool | None
) -> None:
    if tiles:
        monkeypatch.setattr(convolutions, "_has_tiles", lambda: True)
    for ours, theirs in zip(*_in_bfloat16(case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("case", "bf16", "other"),
    [
        *((case, True, True) for case in READING),
        ((4, 4, 0, 16, 8, (16, 16)), False, False),
        ((3, 2, 1, 8, 8, (8, 8)), True, False),
        ((3, 1, 1, 8, 8, (8, 8)), True, False),
        ((1, 2, 0, 8, 8, (8, 8)), True, False),
        ((2, 2, 0, 8, 8, (8, 8)), True, False),
    ],
    ids=str,
)
def test_only_convolutions_that_may_read_beyond_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, case: Any, bf16: bool, other: bool
) -> None:
    kernel, stride, padding, num_in, num_out, side = case
    called = []
    ours = convolutions._in_float32

    def counted(*arguments: Any) -> Tensor:
        called.append(arguments)
        return ours(*arguments)

    monkeypatch.setattr(convolutions, "_has_tiles", lambda: True)
    monkeypatch.setattr(convolutions, "_is_hit", lambda: False)
    monkeypatch.setattr(convolutions, "_in_float32", counted)
    x, weight = torch.randn(2, num_in, *side), torch.randn(num_out, num_in, kernel, kernel)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), safe_convolutions():
        y = F.conv2d(x, weight, None, stride, padding)
    assert bool(called) is other
    assert y.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_transposed_convolutions_in_bfloat16_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolutions, "_has_tiles", lambda: True)
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16), safe_convolutions():
        y = F.conv_transpose2d(x, weight, stride=2)
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, stride=2).bfloat16())
