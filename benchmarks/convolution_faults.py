"""Find convolutions that PyTorch computes wrongly, or out of bounds, on this processor.

    uv run python benchmarks/convolution_faults.py
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 uv run python benchmarks/convolution_faults.py

Tries many shapes, layouts and precisions, computes each of the three products of a convolution by
itself (its output, the gradient of its input, that of its weights), and compares with float64. The
products run in processes of 60 each, in which the C library, if it can, checks every block of
memory when it is freed; if a process dies, its products are tried again one by one. Prints a line
for each faulty kind, with its number of cases; `--to` writes every faulty case as JSON.
"""

import argparse
import ctypes.util
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PRODUCTS = ("output", "of input", "of weights")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative to the sum of the absolute values of the terms; bf16 rounds by up to 4e-3 of a value.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
AT_ONCE = 60  # products per process
convolution = torch.ops.aten.convolution
backward = torch.ops.aten.convolution_backward


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution, in one layout and precision."""

    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    groups: int = 1
    inputs: int = 4
    outputs: int = 8
    side: tuple[int, int] = (8, 8)
    batch: int = 16
    transposed: bool = False
    of_x: str = "NHWC"
    of_weights: str = "NHWC"
    precision: str = "fp32"

    @property
    def possible(self) -> bool:
        """Whether the groups divide the channels, and the output is not empty."""
        reach = [self.dilation * (k - 1) + 1 - 2 * self.padding for k in self.kernel]
        fits = all(
            (n - 1) * self.stride + k >= 1 if self.transposed else n >= k
            for n, k in zip(self.side, reach, strict=True)
        )
        return fits and self.inputs % self.groups == self.outputs % self.groups == 0

    def kind(self) -> str:
        """Return the settings that may matter for a fault, as text for a table."""
        name = "transposed " if self.transposed else ""
        kernel = "x".join(map(str, self.kernel))
        parts = [f"{name}{kernel} stride {self.stride}"]
        parts += [f"dilation {self.dilation}"] if self.dilation > 1 else []
        parts += [f"padding {self.padding}"] if self.padding else []
        parts += [f"groups {self.groups}"] if self.groups > 1 else []
        return f"{', '.join(parts)}; {self.of_x} {self.of_weights} {self.precision}"


def cases(*, thorough: bool) -> Iterator[Case]:
    """Yield the cases to try: full grids of what seems to matter, and random cases of all kinds."""
    layouts = list(product(LAYOUTS, LAYOUTS, DTYPES))
    widths = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 33)
    few = (1, 4, 8, 9, 33)
    for inputs, outputs, stride in product(widths, widths if thorough else few, (1, 2, 3)):
        for (of_x, of_weights, precision), kernel in product(layouts, (1, 3)):
            yield Case(
                kernel=(kernel, kernel),
                padding=kernel // 2,
                stride=stride,
                inputs=inputs,
                outputs=outputs,
                of_x=of_x,
                of_weights=of_weights,
                precision=precision,
            )
    # Cases that were found to be faulty, and similar ones.
    sides = ((1, 1), (4, 4), (7, 7), (8, 8), (9, 9), (6, 8), (16, 16))
    for inputs, stride, side in product(range(1, 18), (2, 3, 4), sides):
        for batch, groups in product((1, 16), (1, 2)):
            yield Case(stride=stride, inputs=groups * inputs, side=side, batch=batch, groups=groups)
    draw = random.Random(0)
    for _ in range(60_000 if thorough else 6_000):
        groups = draw.choice((1, 1, 1, 2, 3, 4, 8))
        inputs, outputs = (groups * draw.choice((1, 2, 3, 4, 5, 6, 7, 8, 16)) for _ in range(2))
        if draw.random() < 0.15:  # depthwise
            groups = inputs = outputs = draw.choice((1, 2, 3, 5, 6, 7, 8, 13, 16))
        of_x, of_weights, precision = draw.choice(layouts)
        yield Case(
            kernel=draw.choice(((1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (4, 4))),
            stride=draw.choice((1, 1, 2, 2, 3, 4)),
            dilation=draw.choice((1, 1, 1, 2)),
            padding=draw.choice((0, 0, 1, 2)),
            groups=groups,
            inputs=inputs,
            outputs=outputs,
            side=(draw.choice((1, 2, 3, 4, 7, 8, 13, 16)), draw.choice((1, 2, 4, 7, 8, 16))),
            batch=draw.choice((1, 2, 5, 16)),
            transposed=draw.random() < 0.1,
            of_x=of_x,
            of_weights=of_weights,
            precision=precision,
        )


# One case ----------------------------------------------------------------------------------------


def error(case: Case, name: str) -> float:
    """Return the largest error of a product, relative to the sum of its terms' absolute values."""
    generator = torch.Generator().manual_seed(0)
    channels = (case.inputs, case.outputs)
    first, second = channels if case.transposed else channels[::-1]
    shape = (first, second // case.groups, *case.kernel)
    dtype = DTYPES[case.precision]
    x = torch.randn(case.batch, case.inputs, *case.side, generator=generator).to(dtype)
    weights = torch.randn(shape, generator=generator).to(dtype)
    settings = (
        [case.stride] * 2,
        [case.padding] * 2,
        [case.dilation] * 2,
        case.transposed,
        [0, 0],
        case.groups,
    )
    y = convolution(x.double(), weights.double(), None, *settings)
    grad = torch.randn(y.shape, generator=generator).to(dtype)
    plain = grad, x, weights
    laid = (
        # Copied, so that maps with one channel or pixel have the strides of their layout, too.
        torch.empty_like(tensor, memory_format=LAYOUTS[layout]).copy_(tensor)
        for tensor, layout in zip(plain, (case.of_x, case.of_x, case.of_weights), strict=True)
    )
    found = _product(name, *laid, settings)
    true = _product(name, *(tensor.double() for tensor in plain), settings)
    most = _product(name, *(tensor.double().abs() for tensor in plain), settings)
    worst = float(((found.double() - true).abs() / most.clamp(min=1e-12)).max())
    return worst if worst == worst else float("inf")


def _product(name: str, grad: Tensor, x: Tensor, weights: Tensor, settings: Any) -> Tensor:
    if name == "output":
        y: Tensor = convolution(x, weights, None, *settings)
        return y
    wanted = [name == "of input", name == "of weights", False]
    grads = backward(grad, x, weights, None, *settings, wanted)
    found: Tensor = grads[0] if wanted[0] else grads[1]
    return found


# All of them -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault in one product of a case."""

    case: Case
    product: str
    how: str


def search(asked: list[tuple[Case, str]]) -> Iterator[Fault]:
    """Try products of cases, many per process; one per process again where a process died."""
    for start in range(0, len(asked), AT_ONCE):
        some = asked[start : start + AT_ONCE]
        found = _forked(some)
        alone = found is None and len(some) > 1
        for one in some if alone else ():
            yield from _faults([one], _forked([one]))
        if not alone:
            yield from _faults(some, found)


def _faults(asked: list[tuple[Case, str]], errors: list[float] | None) -> Iterator[Fault]:
    if errors is None:
        ((case, name),) = asked
        yield Fault(case, name, "died")
        return
    for (case, name), worst in zip(asked, errors, strict=True):
        if worst > TOLERANCES[case.precision]:
            yield Fault(case, name, f"wrong by {worst:.0e}")


def _forked(asked: list[tuple[Case, str]]) -> list[float] | None:
    """Return the errors of products, computed in a fork of this process; None if it died."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # hide the C library's message about each death
        errors = [error(*one) for one in asked]
        os.write(into, json.dumps(errors).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def checked() -> None:
    """Restart this script with the C library's memory checks.

    They find writes past the end of a block when it is freed, and fill new blocks with large
    numbers.
    """
    library = ctypes.util.find_library("c_malloc_debug")
    if "MALLOC_CHECK_" in os.environ:
        return
    settings = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "1", "OMP_NUM_THREADS": "1"}
    if library:
        settings["LD_PRELOAD"] = library
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--thorough", action="store_true", help="try ten times as many cases")
    parser.add_argument("--to", type=Path, help="where to write the faulty cases as JSON")
    arguments = parser.parse_args()
    checked()
    torch.set_num_threads(1)
    possible = [case for case in cases(thorough=arguments.thorough) if case.possible]
    print(
        f"{len(possible)} cases, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        flush=True,
    )
    faults = list(search([*product(possible, PRODUCTS)]))
    kinds = Counter((fault.case.kind(), fault.product, fault.how) for fault in faults)
    for (kind, name, how), count in sorted(kinds.items()):
        print(f"{count:6} x {kind}: {name} {how}")
    if arguments.to is not None:
        rows = [
            {**asdict(fault.case), "product": fault.product, "how": fault.how} for fault in faults
        ]
        arguments.to.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
