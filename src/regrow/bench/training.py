"""Images per second: a plain PyTorch loop against regrow, alone and together.

All ways are measured in turns, round after round, in one run, so that other load on the machine
affects them equally; numbers are medians over rounds, and ratios are of these medians.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regrow.bench.material import Subject, training_flops
from regrow.bench.measuring import OURS, share_around_the_core
from regrow.bench.on_gpu import GpuWays
from regrow.bench.processes import PLAIN_ALL_THREADS, CpuWays
from regrow.run.executors import one_thread
from regrow.train import Precision

PEAK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of one network; rates are images per second."""

    net: str
    num_together: int  # number of trainings that run at once in the ways named "together"
    rates: dict[str, float]
    best: str  # our fastest way
    times_plain: float  # speed-up over the faster plain loop
    flops_per_second: float
    peak: dict[str, float]  # FLOPs per second of matrix products, by precision
    of_peak: float  # share of the peak in the same precision
    outside: float | None  # share of a step outside forward, backward and update
    left_out: dict[str, str]  # precisions that are too slow here to measure, and why

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_training(
    subject: Subject,
    *,
    device: str,
    rounds: int,
    seconds: float,
    precision: Precision | None = None,
) -> Row:
    """Measure every way to train a network, ``seconds`` for each in each round.

    On a CPU, ``precision`` leaves out our ways in other precisions.
    """
    ways = CpuWays(subject, precision) if device == "cpu" else GpuWays(subject, device)
    rates: dict[str, list[float]] = {name: [] for name in ways.ways}
    try:
        peak = ways.peaks(min(seconds, PEAK_SECONDS))
        for _ in range(rounds):
            for name, measured in ways.ways.items():
                rates[name].append(measured(seconds))
        num_together = ways.num_together
    finally:
        ways.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if PLAIN_ALL_THREADS in medians:  # the faster one: tiny networks may be slow with many threads
        medians["plain"] = max(medians["plain"], medians.pop(PLAIN_ALL_THREADS))
    best = max((name for name in medians if "together" in name), key=lambda name: medians[name])
    way = best.split()[0]
    flops_per_second = medians[best] * training_flops(subject)
    outside = None
    if device == "cpu":
        with one_thread():
            outside = share_around_the_core(subject, way)
    return Row(
        net=subject.net,
        num_together=num_together,
        rates=medians,
        best=best,
        times_plain=medians[best] / max(medians[name] for name in medians if "plain" in name),
        flops_per_second=flops_per_second,
        peak=peak,
        of_peak=flops_per_second / peak[OURS[way].precision],
        outside=outside,
        left_out=ways.left_out,
    )


def head(row: Row) -> str:
    """Return the names of a row's columns."""
    names = "".join(f"{name:>15}" for name in row.rates)
    return f"{'images/s':14}{names}{'jobs':>6}{'best/plain':>12}{'of peak':>9}{'outside':>9}"


def line(row: Row) -> str:
    """Return a row as a line under its head."""
    outside = "-" if row.outside is None else f"{row.outside:.1%}"
    rates = "".join(f"{rate:>15,.0f}" for rate in row.rates.values())
    shares = f"{row.times_plain:>11.2f}x{row.of_peak:>9.1%}{outside:>9}"
    return f"{row.net:14}{rates}{row.num_together:>6}{shares}"


def foot(rows: Sequence[Row]) -> str:
    """Return the lines under all rows: the peak rates, and the precisions left out."""
    peaks = (
        f"{statistics.median(row.peak[name] for row in rows) / 1e9:,.0f} GFLOP/s in {name}"
        for name in rows[0].peak
    )
    lines = [f"\npeak of matrix products: {', '.join(peaks)}"]
    lines += [f"{name} is left out: {reason}." for name, reason in rows[0].left_out.items()]
    return "\n".join(lines)
