"""Compare regrow's surgery with Torch-Pruning's by one oracle, and write docs/torch-pruning.md.

    uv pip install torch-pruning==1.6.1 timm transformers
    uv run --no-sync python benchmarks/surgery.py [PATTERN ...] [--seconds 600] [--minutes 60]

Both cut every network to half its width, each in its own process, and each cut network is compared
with the original with zeros in the removed channels (benchmarks/oracle.py). Torch-Pruning is given
the output layers and the attention heads. Each tool has at most ``--seconds`` of CPU time per
network. Results are appended to surgery.jsonl and not measured again: the same command continues
where it was stopped, and the page is written from all of them. The CPU times on four networks are
compared in this process, with the two tools taking turns.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

import harness
import networks

PAGE = Path(__file__).parent.parent / "docs" / "torch-pruning.md"
OURS, THEIRS = harness.TOOLS
OUTCOMES = {
    "exact": "equals the network with the cut units held at zero",
    "wrong": "runs, but computes something else, without an error or a warning",
    "broken": "does not run, or returns other shapes",
    "crash": "ended in an error that is not one of the tool's own messages",
    "refused": "the tool reported that it cannot cut it",
    "time-out": "took longer than allowed",
    "memory": "took more memory than allowed",
    "killed": "the tool's process ended without a message",
    "unseen": "the cut changes the output too little to be judged",
    "nothing": "nothing that affects the output was cut",
    "unmatched": "the remaining values do not show what was removed",
}
REMOVED = (
    "- *removed* (share of the parameters), *seconds* (CPU time to trace and cut): over the "
    "networks that are exact."
)
TIMED = (
    "torchvision/resnet50",
    "torchvision/densenet201",
    "torchvision/vit_b_16",
    "torchvision/swin_t",
)
Seconds = Mapping[str, Mapping[str, Sequence[float]]]  # by network and tool
HEAD = """\
# Comparison with Torch-Pruning

Written by `benchmarks/surgery.py` from {num} networks with random weights, which both tools cut to
half their width: regrow {ours} at {commits}, torch-pruning {theirs}, measured {dates}, torch
{torch}, one thread, {machine}, at most {limit:g} s of CPU time for each network and tool
(`--seconds`; the same command resumes where it was stopped). Both tools are judged by the same
check, which uses no record of theirs: a copy with new parameter values is cut, and compared in
float64 with the same copy, uncut, with zeros in the removed parameters. Torch-Pruning is told which
layers give the output, which tensors are the output (`output_transform`), and how many heads
attentions have, if a module states it under a usual name (`num_heads`, `num_attention_heads`,
`n_heads`, `n_head`). After its cut, the new head widths are set in those modules of transformers
that need them, which Torch-Pruning leaves to its user.

"""


def page(lines: Sequence[harness.Line], seconds: Seconds, *, limit: float) -> str:
    """Return the text of docs/torch-pruning.md."""
    pairs = Counter(line["network"] for line in lines)
    lines = [line for line in lines if pairs[line["network"]] == len(harness.TOOLS)]
    commits = list(dict.fromkeys(str(line["commit"]) for line in lines))
    dates = sorted({str(line["date"]) for line in lines})
    head = HEAD.format(
        num=len({line["network"] for line in lines}),
        ours=version("regrow"),
        commits=", ".join(commits),
        theirs=version("torch-pruning"),
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        torch=torch.__version__,
        machine=platform.processor() or platform.machine(),
        limit=limit,
    )
    parts = [
        *_outcomes(lines),
        "",
        *_times(lines, seconds),
        "",
        *_list(lines),
        "",
        *_missing(lines),
    ]
    return head + "\n".join(parts)


def _missing(lines: Sequence[harness.Line]) -> list[str]:
    """Return a paragraph with the networks that have not been run with both tools, if any."""
    missing = sorted({*networks.names()} - {str(line["network"]) for line in lines})
    return (
        [f"Not run with both: {len(missing)} networks: {', '.join(missing)}.", ""]
        if missing
        else []
    )


def _family(line: harness.Line) -> str:
    return str(line["network"]).split("/")[0]


def _outcomes(lines: Sequence[harness.Line]) -> list[str]:
    """Return a table of outcomes by family and tool, with the removed share and the seconds."""
    met = {line["outcome"] for line in lines}
    shown = [outcome for outcome in OUTCOMES if outcome in met]
    rows = [
        f"| networks | tool | {' | '.join(shown)} | removed (median) | seconds |",
        f"|---|---|{'--:|' * (len(shown) + 2)}",
    ]
    families = list(dict.fromkeys(map(_family, lines)))
    groups = [(f, [x for x in lines if _family(x) == f]) for f in families]
    for name, own in [*groups, ("all", list(lines))]:
        for tool in harness.TOOLS:
            of_tool = [line for line in own if line["tool"] == tool]
            num = Counter(line["outcome"] for line in of_tool)
            exact = [line for line in of_tool if line["outcome"] == "exact"]
            removed = f"{median([line['share'] for line in exact]):.2f}" if exact else "-"
            took = sum(line["trace_seconds"] + line["shrink_seconds"] for line in exact)
            cells = [str(num[outcome]) for outcome in shown]
            rows.append(f"| {name} | {tool} | {' | '.join(cells)} | {removed} | {took:.1f} |")
    words = [f"- *{outcome}*: {OUTCOMES[outcome]}." for outcome in shown]
    return [*words, REMOVED, "", *rows]


def _times(lines: Sequence[harness.Line], seconds: Seconds) -> list[str]:
    """Return a table of both tools' CPU seconds (taking turns) and peak memory (from ``lines``)."""
    known = {(line["network"], line["tool"]): line for line in lines}
    rows = [
        "CPU seconds to trace and cut, the fastest of n runs of each tool (and the median), and",
        "its peak memory beyond one forward pass, as a multiple of the network's size:",
        "",
        f"| network | n | {OURS} s | {THEIRS} s | ratio | {OURS} memory | {THEIRS} memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in seconds.items():
        least, middle = (
            [of(runs[tool]) if runs[tool] else math.nan for tool in (OURS, THEIRS)]
            for of in (min, median)
        )
        least.append(least[0] / least[1])
        middle.append(middle[0] / middle[1])
        pairs = zip(least, middle, strict=True)
        cells = ["nan" if math.isnan(a) else f"{a:.2f} ({b:.2f})" for a, b in pairs]
        cells += [str(known.get((name, tool), {}).get("beyond", "nan")) for tool in harness.TOOLS]
        shown = " | ".join("-" if cell == "nan" else cell for cell in cells)
        rows.append(f"| {name} | {len(runs[OURS])} | {shown} |")
    return rows if seconds else []


def _list(lines: Sequence[harness.Line]) -> list[str]:
    """Return a table of all cuts that are not exact, with the tools' messages."""
    rows = ["| network | tool | outcome | what was said |", "|---|---|---|---|"]
    for line in lines:
        if line["outcome"] != "exact":
            said = str(line.get("message", ""))[:120].replace("|", "/")
            rows.append(f"| {line['network']} | {line['tool']} | {line['outcome']} | {said} |")
    return rows


def seconds_by_turns(repeats: int, file: Path) -> Seconds:
    """Return the CPU seconds to trace and cut the networks of ``TIMED``, both tools taking turns.

    Runs recorded in ``file`` (lines of JSON) count, and new ones are appended to it.
    """
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for text in file.read_text().splitlines() if file.exists() else ():
        line = json.loads(text)
        runs = found.setdefault(line["network"], {tool: [] for tool in harness.TOOLS})
        runs[line["tool"]].append(line["seconds"])
    for name in TIMED:
        runs = found.setdefault(name, {tool: [] for tool in harness.TOOLS})
        missing = repeats - max(map(len, runs.values()))
        net, example = networks.build(name) if missing > 0 else (None, None)
        for _ in range(missing):
            for tool, cut in harness.TOOLS.items():
                with suppress(Exception):  # a tool that fails gets no time
                    runs[tool].append(sum(cut(net, example, None)[1:3]))
                    line = {"network": name, "tool": tool, "seconds": runs[tool][-1]}
                    with file.open("a") as lines:
                        lines.write(json.dumps(line) + "\n")
        print(name, runs, flush=True)
    return {name: runs for name, runs in found.items() if any(runs.values())}


def main() -> None:
    assert __doc__ is not None
    parser: argparse.ArgumentParser = harness.options(__doc__.splitlines()[0], "surgery.jsonl")
    parser.add_argument("--repeats", type=int, default=5, help="runs per tool for the CPU times")
    given = parser.parse_args()
    lines = harness.run(given, tuple(harness.TOOLS))
    seconds = seconds_by_turns(given.repeats, given.out.with_suffix(".seconds.jsonl"))
    PAGE.write_text(page(lines, seconds, limit=given.seconds))


if __name__ == "__main__":
    main()
