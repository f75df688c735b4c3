"""The card of a smaller network: its costs before and after, how they were measured, its proof."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from torch import nn

from regrow.core.texts import code_span, markdown_text, visible
from regrow.cost.forecast import forecast
from regrow.cost.latency import batched, turns
from regrow.cost.memory import peak_bytes
from regrow.errors import short
from regrow.surgery import Proof
from regrow.surgery.cut import duplicate

BATCHES = (1, 64)
NOISY = 0.2  # distance between the quartiles, as a share of the median
FEWEST, SECONDS = 3, 2.0  # number of rounds at least; seconds after which no more are begun
PROTOCOL = (
    "Random inputs, evaluation mode, no gradients; both networks run in turns in one process, "
    "after one round that is not counted. Latency is the median over the rounds, with quartiles. "
    "Peak memory is that of all tensors alive at once in a forward pass, weights and inputs "
    "included; temporary memory inside operations is not. The predicted speed-up comes from the "
    "times of the unpruned network's operations and the sizes of both networks."
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds of several rounds: their median and quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        """Summarise the seconds of rounds."""
        low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
        return cls(median=median(seconds), low=low, high=high, rounds=len(seconds))

    @property
    def noisy(self) -> bool:
        """True if the quartiles are further apart than ``NOISY`` of the median."""
        return self.high - self.low > NOISY * self.median

    def __str__(self) -> str:
        scale, unit = (1.0, "s") if self.median >= 1.0 else (1e3, "ms")
        return (
            f"{self.median * scale:.3g} {unit} ({self.low * scale:.3g} to {self.high * scale:.3g})"
        )


@dataclass(frozen=True, kw_only=True)
class SpeedPair:
    """Two networks at one batch size: seconds, bytes, and the predicted speed-up.

    ``why``: the reason why this batch size was not measured; all else is then None.
    """

    batch: int
    before: Spread | None = None
    after: Spread | None = None
    before_bytes: int | None = None
    after_bytes: int | None = None
    forecast: float | None = None
    why: str | None = None

    @property
    def noisy(self) -> bool:
        """True if the rounds of one of the networks vary too much to determine a speed-up."""
        return any(spread is not None and spread.noisy for spread in (self.before, self.after))

    @property
    def ratio(self) -> float | None:
        """The speed-up: the median latency before, over that after."""
        return self.before.median / self.after.median if self.before and self.after else None


def measure_speed(
    before: nn.Module, after: nn.Module, example: Any, *, batch: int, device: str = "cpu"
) -> SpeedPair:
    """Measure two networks on a batch of random inputs like an example."""
    inputs = batched(example, batch)
    try:
        old, new = turns(
            (before, after), inputs, device=device, seconds=SECONDS, fewest=FEWEST, warm_up=1
        )
        # A copy of each, because peak memory counts every tensor that is alive.
        sizes = [peak_bytes(duplicate(network), inputs) for network in (before, after)]
        expected = None
        if device == "cpu":
            expected = forecast(before, after, inputs, seconds=min(old))
    except Exception as error:  # a network's code may depend on the number of examples
        why = f"the network does not take it ({type(error).__name__}: {short(error)})"
        return SpeedPair(batch=batch, why=" ".join(why.split()))
    return SpeedPair(
        batch=batch,
        before=Spread.of(old),
        after=Spread.of(new),
        before_bytes=sizes[0],
        after_bytes=sizes[1],
        forecast=expected,
    )


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything that was done to a network and measured, as JSON and as a page of Markdown."""

    network: str  # its class
    parameters: tuple[int, int]  # before and after
    macs: tuple[int, int]
    speeds: Sequence[SpeedPair]
    proof: Proof
    widths: Mapping[str, tuple[int, int]]
    whole: Mapping[str, str]
    machine: Mapping[str, Any]
    date: str
    version: str
    origin: str | None = None
    weights: str | None = None
    inputs: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)  # criterion, allocation, amount, ...
    caveats: Sequence[str] = ()
    exports: Mapping[str, str] = field(default_factory=dict)  # files -> comparison of outputs

    def to_json(self) -> dict[str, Any]:
        """Return the card as JSON values."""
        proof = self.proof
        return {
            **{
                name: value
                for name, value in asdict(self).items()
                if name not in ("proof", "speeds", "parameters", "macs", "widths")
            },
            "parameters": _pair(self.parameters),
            "macs": _pair(self.macs),
            "speeds": [
                {**asdict(speed), "speedup": speed.ratio, "noisy": speed.noisy}
                for speed in self.speeds
            ],
            "widths": {name: _pair(pair) for name, pair in self.widths.items()},
            "proof": {
                "proven": proof.ok,
                "error": proof.error if math.isfinite(proof.error) else None,
                "tolerance": proof.tolerance,
                "least_sensitivity": min(proof.sensitivity.values(), default=None),
                "sensitivity": dict(proof.sensitivity),
                "text": str(proof),
            },
            "protocol": PROTOCOL,
        }

    def __str__(self) -> str:
        """Return the table of costs and the proof as plain lines, for a terminal."""
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        unmeasured = [f"Batch {s.batch} was not measured: {s.why}." for s in self.speeds if s.why]
        lines = [
            *(line.rstrip() for line in table),
            *unmeasured,
            *self._speedups(),
            str(self.proof),
        ]
        files = [f"{file}: {text}" for file, text in self.exports.items()]
        return visible("\n".join([*lines, *files]))

    def to_markdown(self) -> str:
        """Return the card as a page of Markdown."""
        rows = self._rows()
        table = [f"| {' | '.join(row)} |" for row in rows]
        table.insert(1, "| --- | ---: | ---: | ---: |")
        unmeasured = [f"Batch {s.batch} was not measured: {s.why}." for s in self.speeds if s.why]
        settings = ", ".join(
            f"{name.replace('_', ' ')} {_worded(value)}" for name, value in self.asked.items()
        )
        about = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        origin = f" ({markdown_text(self.origin)})" if self.origin else ""
        files = "\n".join(
            f"- {code_span(file)}: {markdown_text(text)}" for file, text in self.exports.items()
        )
        whole = [f"- {code_span(name)}: {markdown_text(why)}" for name, why in self.whole.items()]
        widths = [f"{code_span(name)} {old} to {new}" for name, (old, new) in self.widths.items()]
        parts = [
            f"# {markdown_text(self.network)}{origin}, cut",
            f"Asked for: {markdown_text(settings)}. Input: {markdown_text(self.inputs)}."
            + (f" Weights: {markdown_text(self.weights)}." if self.weights else ""),
            "\n".join(table),
            *([" ".join(unmeasured)] if unmeasured else []),
            " ".join(self._speedups()),
            "## Proof",
            markdown_text(str(self.proof)),
            *(["## Files", files] if files else []),
            "## Widths",
            f"{', '.join(widths)}." if widths else "Nothing is cut.",
            "## Kept whole",
            "\n".join(whole) or "Nothing.",
            "## How it was measured",
            PROTOCOL,
            *(f"Not counted: {markdown_text(caveat)}." for caveat in self.caveats),
            f"*{self.date}; {about}; regrow {self.version}.*",
        ]  # fmt: skip
        return visible("\n\n".join(parts) + "\n")

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = [("", "before", "after", "left")]
        for name, (old, new) in (("parameters", self.parameters), ("MACs", self.macs)):
            rows.append((name, f"{old:,}", f"{new:,}", f"{new / max(old, 1):.1%}"))
        for speed in self.speeds:
            if speed.before is None or speed.after is None:
                continue
            left = speed.after.median / speed.before.median
            times = str(speed.before), str(speed.after)
            rows.append((f"latency, batch {speed.batch}", *times, f"{left:.1%}"))
        for speed in self.speeds:
            if speed.before_bytes is None or speed.after_bytes is None:
                continue
            sizes = [f"{size / 2**20:.1f} MiB" for size in (speed.before_bytes, speed.after_bytes)]
            left = speed.after_bytes / max(speed.before_bytes, 1)
            rows.append((f"peak memory, batch {speed.batch}", sizes[0], sizes[1], f"{left:.1%}"))
        return rows

    def _speedups(self) -> list[str]:
        lines = []
        for speed in self.speeds:
            if speed.ratio is None or speed.before is None:
                continue
            predicted = f" ({speed.forecast:.2f} predicted)" if speed.forecast else ""
            about = "roughly " if speed.noisy else ""
            lines.append(
                f"At batch {speed.batch} it is {about}{speed.ratio:.2f} times as fast{predicted}; "
                f"{speed.before.rounds} rounds."
            )
        noisy = [str(speed.batch) for speed in self.speeds if speed.noisy]
        if noisy:
            lines.append(
                f"The times at batch {' and '.join(noisy)} are rough (quartiles more than "
                f"{NOISY:.0%} of the median apart): other work ran on this machine, or a network "
                f"takes too little time to be timed well. They show no speed-up at batch "
                f"{' or '.join(noisy)}: measure on an idle machine."
            )
        return lines


def _pair(pair: tuple[int, int]) -> dict[str, int]:
    return {"before": pair[0], "after": pair[1]}


def _worded(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
