"""Measure the speed-up of networks cut to half their MACs, and compare it with the predicted one.

    uv run python benchmarks/forecast.py             # eight cases, 10 minutes on an idle machine
    uv run python benchmarks/forecast.py --cpu       # CPU time of one thread, for busy machines
    uv run python benchmarks/forecast.py resnet50 --batches 1,64

The networks have random weights, are cut by the l1 norm at uniform widths, without rounding and
with widths rounded to multiples of 8, and measured as in `regrow shrink`. Prints a line for each
network, rounding and batch size; a prediction is within 25 % if the measured speed-up is 0.75 to
1.25 times as large.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torchvision import models

from regrow.cost import measure
from regrow.own.card import SpeedPair, measure_speed
from regrow.pruning.method import general_method
from regrow.pruning.select import select
from regrow.surgery import shrink, trace

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: models.resnet50(weights=None),
    "vgg16": lambda: models.vgg16(weights=None),
    "mobilenet_v2": lambda: models.mobilenet_v2(weights=None),
    "vit_s": lambda: models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    ),
    "resnet18": lambda: models.resnet18(weights=None),  # for quick trials; not one of the cases
}
CASES = ("resnet50", "vgg16", "mobilenet_v2", "vit_s")
MULTIPLES = (1, 8)
SHAPE, SHARE, ALLOWED = (1, 3, 224, 224), 0.5, 0.25


def measured(name: str, multiple_of: int, batches: list[int]) -> list[SpeedPair]:
    """Cut a network, and measure it before and after at each batch size."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    traced = trace(network, SHAPE)
    mask = select(
        network,
        traced,
        general_method("l1-norm", allocation="uniform"),
        macs=SHARE,
        multiple_of=multiple_of,
    )
    small = shrink(network, mask, traced).eval()
    left = measure(small, traced.example).macs / measure(network, traced.example).macs
    pairs = []
    for batch in batches:
        pair = measure_speed(network, small, traced.example, batch=batch)
        print(_line(f"{name}, multiples of {multiple_of}", left, pair), flush=True)
        pairs.append(pair)
    return pairs


def _line(what: str, left: float, pair: SpeedPair) -> str:
    if pair.why is not None:
        return f"{what}, batch {pair.batch}: {pair.why}"
    assert pair.ratio is not None
    assert pair.forecast is not None
    return (
        f"{what}, batch {pair.batch}: {left:.3f} of the MACs left; {pair.before} before, "
        f"{pair.after} after; {pair.ratio:.2f} times as fast, {pair.forecast:.2f} predicted: "
        f"{pair.ratio / pair.forecast:.2f}{'' if _is_within(pair) else ' OUTSIDE'}"
        f"{', rough' if pair.noisy else ''}; load {os.getloadavg()[0]:.1f}"
    )


def _is_within(pair: SpeedPair) -> bool:
    ratio = (pair.ratio or 0.0) / (pair.forecast or float("inf"))
    return abs(ratio - 1.0) <= ALLOWED


def main() -> None:
    """Measure the networks named on the command line, or the four of ``CASES``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], help="default: four")
    parser.add_argument("--batches", default="1,16", help="batch sizes, separated by commas")
    parser.add_argument("--cpu", action="store_true", help="measure CPU time, of one thread")
    options = parser.parse_args()
    if options.cpu:
        torch.set_num_threads(1)
        time.perf_counter = time.thread_time
    batches = [int(size) for size in options.batches.split(",")]
    began = time.monotonic()
    pairs = [
        pair
        for name in options.networks or CASES
        for multiple_of in MULTIPLES
        for pair in measured(name, multiple_of, batches)
    ]
    within = sum(_is_within(pair) for pair in pairs)
    print(
        f"{within} of {len(pairs)} within {ALLOWED:.0%}; {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
