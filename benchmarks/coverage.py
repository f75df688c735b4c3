"""Measure which networks surgery can cut, and how well, and write docs/coverage.md.

    uv run python benchmarks/coverage.py [PATTERN ...] [--seconds 600] [--stale COMMIT]

Each network is cut to half its width in its own process. Results are appended to
benchmarks/coverage.jsonl and not measured again; the page is written from all of them.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

import harness
import networks

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"
MUTATIONS = Path(__file__).parent / "mutations.jsonl"
NOT_MUTATED = {  # why no wrong cuts of a network were made, by outcome
    "memory": "they take more memory than allowed",
    "nothing": "nothing can be cut",
    "time-out": "they take longer than allowed",
    "unproven": "even their right cuts are not proven",
}
LARGE = 1e6  # parameters; the peak memory of smaller networks is mostly Python's
HEAD = """\
# Network coverage: what regrow can prune

Written by `benchmarks/coverage.py` from {num} networks with random weights, cut to half their
width: every second unit of every group is removed. Measured {dates} at
{commits}, torch {torch}, one thread, {machine}. Torchvision's detectors with a ResNet-50 do not
enlarge their images of 160 pixels.

- *exact*: the cut network equals the original with zeros in the removed parameters (float64, within
  1e-6 of the output; 1e-3 where the network's code computes in float32; at most 1e-3 where it
  amplifies rounding). This is checked without regrow's records, in a copy with new values, all
  different: the remaining values show which were removed. *unmatched*: they do not show it, or the
  network draws random numbers, so that nothing can be compared.
  *nothing*: nothing can be cut. *memory*: measuring it takes more memory than allowed (the option
  `--gigabytes`).
- *transformers, by their configs*: the models of its `AutoModel` that a general small config and a
  few inputs suit (`benchmarks/auto_models.py`). A model for text and images runs on text alone if
  it accepts that; its layers for images are then not used, and kept whole. They count as
  feed-forward layers that are not narrower.
- *error*, *least effect*: from `verify`, the largest error, and the change of the output by the
  group that affects it least, both relative to the output. *unproven*: `verify` fails, so regrow
  would refuse to cut.
- *removed*: the share of the parameters that is removed at half the width.
- *attention*, *feed-forward*: how many of a network's attentions (products of probabilities and
  values) read fewer values afterwards, and how many of its feed-forward layers (by their names)
  are narrower, with totals. An attention with a single head cannot lose one and is counted as
  "+ 1 single"; a cut of its width shows in *removed*.
- *trace s*, *shrink s*: seconds of CPU time.
- *extra memory*: peak memory beyond that of one forward pass, as a multiple of the size of the
  network's parameters, for networks with over a million parameters.
- *not pruned*: reasons why parameters cannot be pruned, with the share of the parameters for each.
"""

# Found by hand: why some networks keep all heads, which the table of reasons cannot express.
NOTES = """\
Attention keeps all of its heads for one of these reasons:

- BloomForCausalLM, MptForCausalLM: their code computes a bias for each head from the number of
  heads (ALiBi). With fewer heads it would compute different biases, so no cut is exact.
- SiglipModel's pooling head, eva02_tiny (published without a classifier): their code derives the
  number of heads from the width of the stream, which is the network's output.
- edgenext: a head is a range of channels, and the blocks before it use channels at the same
  positions in several ranges, so all heads would be removed at once. Within a head, channels attend
  to channels, and the softmax depends on their number.
- SegformerForImageClassification on an image as small as the one used here: its first stage attends
  to a single key, so queries and keys do not affect the output, and no comparison can check them.
  Its heads are cut; trace it on images of the intended size.
"""


def page(lines: Sequence[harness.Line]) -> str:
    """Return the text of docs/coverage.md."""
    machine = platform.processor() or platform.machine()
    commits = list(dict.fromkeys(str(line["commit"]) for line in lines))
    told = (
        f"commit {commits[0]}"
        if len(commits) == 1
        else f"{len(commits)} commits ({', '.join(commits)})"
    )
    dates = sorted({str(line["date"]) for line in lines})
    parts = [
        HEAD.format(
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
            commits=told,
            torch=torch.__version__,
            machine=machine,
            num=len(lines),
        ),
        _summary(lines),
        _attention(lines),
        NOTES,
        _reasons(lines),
        _wrong_cuts(len(lines)),
        _missing(lines),
    ]
    for family in _families(lines):
        own = [line for line in lines if _family(line) == family]
        versions = ", ".join(dict.fromkeys(str(line["version"]) for line in own))
        parts += [f"## {family} ({versions})\n", _table(own)]
    return "\n".join(parts)


def _wrong_cuts(total: int) -> str:
    """Return a sentence about deliberately wrong cuts of some of all networks, if any were made."""
    lines = harness.rows(MUTATIONS)
    judged = [line for line in lines if line.get("made")]
    if not judged:
        return ""
    made = sum(line["made"] for line in judged)
    missed = [f"{line['network']} {name}" for line in judged for name in line["missed"]]
    told = (
        f"did not notice: {'; '.join(missed)}" if missed else "noticed all that affect the output"
    )
    date = max(line["date"] for line in judged)
    sentences = [
        f"{made} deliberately wrong cuts of {len(judged)} of the {total} networks were made "
        f"(`benchmarks/mutations.py`, {date}): their proofs {told}."
    ]
    refused = [line["network"] for line in judged if "message" in line]
    if refused:
        sentences.append(
            "Groups that hardly affect the output were left out, because regrow refuses to cut "
            f"them: in {', '.join(refused)}."
        )
    others: dict[str, list[str]] = {}
    for line in lines:
        if line not in judged:
            others.setdefault(line["outcome"], []).append(line["network"])
    sentences += [
        f"None of {', '.join(names)}: {NOT_MUTATED.get(outcome, outcome)}."
        for outcome, names in others.items()
    ]
    untried = sorted({*networks.names()} - {str(line["network"]) for line in lines})
    sentences += [f"Not tried yet: {', '.join(untried)}."] if untried else []
    return " ".join(sentences) + "\n"


def _missing(lines: Sequence[harness.Line]) -> str:
    """Return a sentence with the networks that have not been measured, if any."""
    missing = sorted({*networks.names()} - {str(line["network"]) for line in lines})
    return f"Not measured yet: {', '.join(missing)}.\n" if missing else ""


def _family(line: harness.Line) -> str:
    family = str(line["network"]).split("/")[0]
    if line["network"] in networks.AUTO:
        return f"{family}, by their configs"
    return f"{family}, tried afterwards" if line["network"] in networks.LATER else family


def _families(lines: Sequence[harness.Line]) -> list[str]:
    return list(dict.fromkeys(map(_family, lines)))


def _summary(lines: Sequence[harness.Line]) -> str:
    rows = [
        "| networks | number | exact | other outcomes | removed (median) |",
        "|---|--:|--:|---|--:|",
    ]
    for family in _families(lines):
        own = [line for line in lines if _family(line) == family]
        outcomes = Counter(line["outcome"] for line in own)
        exact = outcomes.pop("exact", 0)
        others = ", ".join(f"{name} {num}" for name, num in outcomes.most_common()) or "-"
        removed = [line["share"] for line in own if "share" in line]
        middle = f"{median(removed):.2f}" if removed else "-"
        rows.append(f"| {family} | {len(own)} | {exact} | {others} | {middle} |")
    return "\n".join([*rows, ""])


def _attention(lines: Sequence[harness.Line]) -> str:
    """Return a table that counts, by family, networks whose attention and feed-forward are cut."""
    rows = [
        "| networks with attention | number | heads cut in all | in some | feed-forward | cut in "
        "all | in some |", "|---|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    groups = [
        *((f, [x for x in lines if _family(x) == f]) for f in _families(lines)),
        ("all", lines),
    ]
    for family, own in groups:
        cells: list[str] = []
        for key in ("attention", "feed_forward"):
            several = [line for line in own if line.get("attention", (0, 0))[1]]
            told = [line[key] for line in several if line.get(key)]
            every = sum(num == most for num, most in told)
            some = sum(0 < num < most for num, most in told)
            cells += [str(len(told)), *(_of(part, len(told)) for part in (every, some))]
        if cells[0] != "0":
            rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _of(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else "0"


def _reasons(lines: Sequence[harness.Line]) -> str:
    reasons: Counter[str] = Counter()
    for line in lines:
        for reason, share in line.get("whole", ()):
            reasons[_kind(reason)] += share
    rows = [
        "| reason, over all networks | sum of the shares not pruned |", "|---|--:|",
        *(f"| {reason} | {share:.2f} |" for reason, share in reasons.most_common(25)), "",
    ]  # fmt: skip
    return "\n".join(rows)


def _kind(reason: str) -> str:
    """Remove module names from a reason, so that reasons of the same kind are equal."""
    return re.sub(r" (in|by|of|at) '[^']*'", "", reason.split(" (with ")[0]).replace("|", "/")


def _table(lines: Sequence[harness.Line]) -> str:
    rows = [
        "| network | outcome | error | least effect | removed | attention | feed-forward | trace s "
        "| shrink s | extra memory | not pruned |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for line in lines:
        told = line.get("proof") or line.get("message", "")
        reasons = [
            f"{share:.2f} {_kind(reason)}" for reason, share in line.get("whole", ()) if share
        ]
        cells = [
            str(line["network"]).partition("/")[2],
            str(line["outcome"]) + (" (unproven)" if line.get("ok") is False else ""),
            *(_number(line.get(key), ".0e") for key in ("error", "sensitivity")),
            _number(line.get("share"), ".2f"),
            _attended(line),
            "/".join(map(str, line.get("feed_forward", ()))),
            *(_number(line.get(key), ".2f") for key in ("trace_seconds", "shrink_seconds")),
            _number(line.get("beyond") if line.get("parameters", 0) > LARGE else None, ".1f"),
            "; ".join([*reasons[:3], *([told[:150]] if told else [])]).replace("|", "/"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _attended(line: harness.Line) -> str:
    """Return the cell "cut/total", with "+ n single" if n attentions have a single head."""
    cut = "/".join(map(str, line.get("attention", ())))
    (single,) = line.get("single", [0])
    return f"{cut} + {single} single" if single else cut


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    given = harness.options("Cut many networks by half, and judge the cuts.", "coverage.jsonl")
    given.add_argument("--no-page", action="store_true", help="leave docs/coverage.md as it is")
    chosen = given.parse_args()
    lines = harness.run(chosen, ("regrow",))
    if not chosen.no_page:
        PAGE.write_text(page(lines))


if __name__ == "__main__":
    main()
