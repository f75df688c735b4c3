"""Seconds that surgery takes: tracing a network and shrinking it, with one thread.

    uv run python benchmarks/surgery.py

Beside them the seconds of one forward pass on one image, the least that a trace can take. Each
figure is the least of several, because other programs only ever add to it.

Measured on one of 2 cores of a Sapphire Rapids, torch 2.15, other programs running beside:

                      groups  forward    trace   shrink
    vgg-16                13    0.013    0.024    0.044
    resnet-56             28    0.006    0.046    0.029
    resnet-110            55    0.013    0.089    0.062
    preresnet-164        167    0.016    0.160    0.094
    densenet-40           78    0.016    0.071    0.062
    densenet-bc-100      150    0.019    0.118    0.108
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch

from regrow.models import ModelSpec, build
from regrow.surgery import shrink, trace
from regrow.surgery.mask import Mask

NETWORKS = ("vgg-16", "resnet-56", "resnet-110", "preresnet-164", "densenet-40", "densenet-bc-100")


def least(action: Callable[[], object], repeats: int) -> float:
    """Return the least seconds of several calls, after one that warms up."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the surgery of networks for 32x32 images.")
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':16}{'groups':>8}{'forward':>9}{'trace':>9}{'shrink':>9}")
    for name in options.networks:
        model = build(ModelSpec(name, {"classes": 10})).eval()
        image = torch.zeros(1, 3, 32, 32)
        found = trace(model, image)
        half = {n: torch.arange(g.size) % 2 == 0 for n, g in found.groups.items()}
        mask = Mask(unit="channel", kept=half)
        with torch.no_grad():
            forward = least(partial(model, image), options.repeats)
        tracing = least(partial(trace, model, image), options.repeats)
        cutting = least(partial(shrink, model, mask, found), options.repeats)
        print(f"{name:16}{len(found.groups):8}{forward:9.3f}{tracing:9.3f}{cutting:9.3f}")


if __name__ == "__main__":
    main()
