"""Seconds of building, tracing and shrinking networks, on one thread."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regrow.models import ModelSpec, build
from regrow.pruning.method import METHODS
from regrow.pruning.select import select
from regrow.run.executors import one_thread
from regrow.surgery import shrink, trace

NETWORKS = ("vgg-16", "resnet-56", "resnet-110", "preresnet-164", "densenet-40", "densenet-bc-100")
QUICK_NETWORKS = ("vgg-16", "resnet-56")
SHAPE = (1, 3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class SurgerySpeed:
    """Seconds that building, tracing and shrinking one network takes."""

    net: str
    groups: int
    build: float
    trace: float
    shrink: float  # to half of the channels of every group

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_surgery(net: str, *, rounds: int) -> SurgerySpeed:
    """Measure one network; medians over rounds."""
    spec = ModelSpec(net, {"classes": 10})
    with one_thread():
        model = build(spec)
        traced = trace(model, SHAPE)
        mask = select(model, traced, METHODS.get("uniform"), sparsity=0.5)
        return SurgerySpeed(
            net=net,
            groups=len(traced.groups),
            build=_median(lambda: build(spec), rounds),
            trace=_median(lambda: trace(model, SHAPE), rounds),
            shrink=_median(lambda: shrink(model, mask, traced), rounds),
        )


def table(rows: Sequence[SurgerySpeed]) -> str:
    """Return rows as a table of text."""
    lines = [f"{'seconds':18}{'groups':>8}{'build':>9}{'trace':>9}{'shrink':>9}"]
    lines += [
        f"{row.net:18}{row.groups:>8}{row.build:>9.3f}{row.trace:>9.3f}{row.shrink:>9.3f}"
        for row in rows
    ]
    return "\n".join(lines)


def _median(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
