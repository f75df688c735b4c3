"""A paper's claims, judged on its printed numbers or on results of our own: ``regrow claims``.

    print(render(evaluate_claims(find_paper("liu2019"))))

Statements about the paper's own rows ("most", "8 of 10") are judged by counts, statements about
accuracy by tests. ``rules`` has the tests, and the paper's ``claims.py`` its claims. Where the
printed tables contradict the paper's text, the finding says so.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from regrow.core.texts import listed
from regrow.reproduce.contrasts import MARGIN
from regrow.reproduce.paper import Paper
from regrow.reproduce.printed import as_cells, results, sparsity, widths
from regrow.reproduce.rules import (
    OUTCOMES,
    Claim,
    ClaimEvidence,
    Judgement,
    Outcome,
    combine,
    judge_part,
)

WIDTH = 100
_WORDS = {"does not hold": "is contradicted", "partly": "is not shown as a whole"}
HOW = (
    "p-values of single rows are of Welch's test on mean, std and n; 'significant' is p < 0.05, "
    "and 'after Holm' corrects over the rows of a contrast within a table. 'Equivalent' is two "
    "one-sided tests within the margin. Means over rows are random-effects means with 95% "
    "intervals. Curves are compared at equal parameters, read between their points in a straight "
    "line; series of tickets at equal shares pruned. 'Holds' means shown, 'does not hold' "
    "contradicted, 'partly' neither. A claim about every row is contradicted by one that is "
    "significantly against it (Holm) or, of single runs, by the margin. Rows of one parent network "
    "are not independent, so p-values over rows are too small."
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The evidence's outcome for a claim; ``n`` lists the seeds behind a cell (1 = single runs)."""

    claim: Claim
    outcome: Outcome
    parts: tuple[Judgement, ...]
    notes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """The claim's number."""
        return self.claim.number

    @property
    def n(self) -> tuple[int, ...]:
        """Seeds behind the cells compared."""
        return tuple(sorted({n for part in self.parts for n in part.n}))

    @property
    def against(self) -> list[str]:
        """The rows that each refute the claim, with their differences."""
        return list(dict.fromkeys(row for part in self.parts for row in part.against))

    @property
    def numbers(self) -> dict[str, Mapping[str, Any]]:
        """Every figure behind the outcome, by part."""
        return {part.name: part.numbers for part in self.parts if part.numbers}

    @property
    def sentences(self) -> tuple[str, ...]:
        """The finding in words, one sentence per part, with counts and p-values."""
        return (*(_sentence(part) for part in self.parts), *self.notes)

    @property
    def text(self) -> str:
        """The finding in words, in one paragraph."""
        return " ".join(self.sentences)


def evaluate_claims(
    paper: Paper,
    frame: pd.DataFrame | None = None,
    *,
    widths_frame: pd.DataFrame | None = None,
    sparsity_frame: pd.DataFrame | None = None,
    curves_frame: pd.DataFrame | None = None,
    weights_frame: pd.DataFrame | None = None,
    margin: float = MARGIN,
) -> list[Finding]:
    """Judge a paper's claims on its printed numbers, or on rows of our own (``as_cells``).

    With a frame of our own, widths, shares kept, curves and weights are judged only if given too
    (columns as in ``widths`` and ``sparsity``; curves and weights as ``read_cells`` gives
    them), and each part says how many of the paper's rows it depends on.
    Printed stds are taken to divide by n - 1; where dividing by n would change an outcome, the
    finding notes it.
    """
    printed = ClaimEvidence(
        paper=paper,
        results=results(paper),
        widths=widths(paper),
        sparsity=sparsity(paper),
        margin=margin,
    )
    if frame is None:
        wide = replace(printed, results=_widened(printed.results))
        return [_printed(claim, printed, wide) for claim in paper.claims]
    measured = ClaimEvidence(
        paper=paper,
        results=as_cells(paper, frame),
        widths=widths_frame,
        sparsity=sparsity_frame,
        curves=curves_frame,
        weights=weights_frame,
        margin=margin,
    )
    return [_measured_finding(claim, measured, printed) for claim in paper.claims]


def _printed(claim: Claim, evidence: ClaimEvidence, wide: ClaimEvidence) -> Finding:
    finding = _judge(claim, evidence)
    notes = []
    if finding.against:
        notes.append(f"The printed table contradicts the text: {listed(finding.against)}.")
    outcome = _judge(claim, wide).outcome
    if outcome != finding.outcome:
        notes.append(
            f"Were the printed stds divided by n, not n - 1, the outcome would be: {outcome}."
        )
    return replace(finding, notes=tuple(notes))


def _measured_finding(claim: Claim, measured: ClaimEvidence, printed: ClaimEvidence) -> Finding:
    finding, whole = _judge(claim, measured), _judge(claim, printed)
    notes = [
        f"{part.name}: {part.rows} of the paper's {printed_part.rows} rows have been run."
        for part, printed_part in zip(finding.parts, whole.parts, strict=True)
        if 0 < part.rows < printed_part.rows
    ]
    if any(part.rows for part in finding.parts) and not measured.known:
        notes.append(
            "Whether these networks are above chance is not known: the files do not say. Rerun "
            "the `regrow reproduce` command that wrote them; nothing that is stored is trained "
            "again."
        )
    if finding.against:
        notes.append(f"Our rows contradict the claim: {listed(finding.against)}.")
    return replace(finding, notes=tuple(notes))


def _judge(claim: Claim, evidence: ClaimEvidence) -> Finding:
    parts = tuple(judge_part(ask, evidence) for ask in claim.asks)
    outcomes = [outcome for part in parts for _, outcome in part.judged]
    outcome = combine(outcomes, refuted=any(part.against for part in parts))
    return Finding(claim=claim, outcome=outcome, parts=parts)


def _widened(frame: pd.DataFrame) -> pd.DataFrame:
    """Treat printed stds as divided by n: enlarge by sqrt(n / (n - 1)), sqrt(5/4) for n = 5."""
    factor = [math.sqrt(n / (n - 1)) if n > 1 else 1.0 for n in frame["n"]]
    return frame.assign(std=frame["std"] * factor)


def _sentence(part: Judgement) -> str:
    judged = "; ".join(f"{asks}: {outcome}" for asks, outcome in part.judged if asks)
    return f"{part.name}: {part.text}{f' [{judged}]' if judged else ''}."


def render(findings: Sequence[Finding], *, measured: Sequence[Finding] = ()) -> str:
    """Return findings as text of 100 columns: all outcomes first, then each in words.

    ``findings`` are those of the printed numbers; ``measured`` may add those of our results.
    """
    by_number = _by_number(measured)
    head = f"{'':3} {'paper':17} " + (f"{'ours':17} " if measured else "") + "claim"
    lines = [head, "-" * len(head)]
    for finding in findings:
        second = f"{by_number[finding.number].outcome:17} " if measured else ""
        lead = f"{finding.number:>3} {finding.outcome:17} {second}"
        lines += _wrap(finding.claim.text, lead, " " * len(lead))
    count_lines = [
        line for counts in _counts(findings, measured) for line in _wrap(counts, "", "  ")
    ]
    lines += ["", *count_lines, ""]
    if apart := disagreements(findings):
        lines += ["Where the printed numbers and the authors' words part:"]
        lines += [line for text in apart for line in _wrap(text, "  ", "    ")] + [""]
    for finding in findings:
        lines += _wrap(finding.claim.text, f"{finding.number:>2}. ", "    ")
        for label, result in _voices(finding, by_number):
            lines += _wrap(f"{label}: {result.outcome}{_seeds(result)}.", "    ", "      ")
            for sentence in result.sentences:
                lines += _wrap(sentence, "      ", "        ")
    return "\n".join([*lines, "", *_wrap(HOW, "", "")]) + "\n"


def markdown(findings: Sequence[Finding], *, measured: Sequence[Finding] = ()) -> str:
    """Return findings as Markdown: a table of outcomes, then each in words under its section."""
    by_number = _by_number(measured)
    columns = ["", "claim", "tables", "paper", *(["ours"] if measured else [])]
    lines = ["# The paper's claims", "", " ".join(_counts(findings, measured)), ""]
    lines += [f"| {' | '.join(columns)} |", "|---:|---|---|" + "---|" * (len(columns) - 3)]
    for finding in findings:
        claim = finding.claim
        cells = [str(claim.number), claim.text, ", ".join(map(str, claim.tables))]
        cells += [result.outcome for _, result in _voices(finding, by_number)]
        lines.append(f"| {' | '.join(cells)} |")
    if apart := disagreements(findings):
        lines += ["", "## Where the printed numbers and the authors' words part", ""]
        lines += [f"- {text}" for text in apart]
    section = ""
    for finding in findings:
        if finding.claim.section != section:
            section = finding.claim.section
            lines += ["", f"## {section}"]
        lines += ["", f"### {finding.number}. {finding.claim.text}"]
        for label, result in _voices(finding, by_number):
            lines += ["", f"{label}: **{result.outcome}**{_seeds(result)}."]
            lines += ["", *(f"- {sentence}" for sentence in result.sentences)]
    return "\n".join([*lines, "", HOW, ""])


def to_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as JSON values: outcome, words and every number, by part."""
    return [
        {
            "number": finding.number,
            "section": finding.claim.section,
            "claim": finding.claim.text,
            "tables": list(finding.claim.tables),
            "tests": finding.claim.tests,
            "outcome": finding.outcome,
            "n": list(finding.n),
            "text": finding.text,
            "parts": [
                {"name": p.name, "text": p.text, "rows": p.rows, "n": list(p.n)}
                | {"judged": [list(pair) for pair in p.judged], "numbers": p.numbers}
                | {
                    "left_out": {
                        row: [r.text for r in reasons] for row, reasons in p.left_out.items()
                    }
                }
                for p in finding.parts
            ],
            "against": finding.against,
            "notes": list(finding.notes),
        }
        for finding in findings
    ]


def disagreements(findings: Sequence[Finding]) -> list[str]:
    """Return the claims that the numbers contradict or show only in part, with the rows."""
    lines = []
    for outcome in ("does not hold", "partly"):
        for finding in findings:
            if finding.outcome != outcome:
                continue
            rows = f" ({listed(finding.against)})" if finding.against else ""
            lines.append(f"Claim {finding.number} {_WORDS[outcome]}{rows}: {finding.claim.text}")
    return lines


def _voices(finding: Finding, measured: Mapping[int, Finding]) -> Iterator[tuple[str, Finding]]:
    yield "Paper's numbers", finding
    if finding.number in measured:
        yield "Our results", measured[finding.number]


def _by_number(findings: Sequence[Finding]) -> dict[int, Finding]:
    return {finding.number: finding for finding in findings}


def _counts(findings: Sequence[Finding], measured: Sequence[Finding]) -> Iterator[str]:
    for label, group in (("the printed numbers", findings), ("our results", measured)):
        if group:
            counts = (f"{o}: {sum(f.outcome == o for f in group)}" for o in OUTCOMES)
            yield f"{len(group)} claims on {label} - {', '.join(counts)}."


def _seeds(finding: Finding) -> str:
    if not finding.n:
        return ""
    texts = ["single runs" if n == 1 else f"n = {n}" for n in finding.n]
    return f" ({', '.join(texts)})"


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
    )
