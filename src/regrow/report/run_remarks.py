"""A reviewer's remarks on results: what the verdicts could not conclude, and what would help."""

from collections.abc import Iterator, Mapping, Sequence

from regrow.report.validity import RULES, Rule, rule_text
from regrow.report.verdict import Verdict, num_cells
from regrow.studies.lint import BOUTHILLIER, LIU, Remark

# Rule -> what to do about it. Rules that can be checked before a run are left to ``studies.lint``.
REMEDIES: Mapping[Rule, str] = {
    "parent at chance": "recipe: more epochs or another rate, until the unpruned network learns",
    "arms at chance": "remove less, or train the arms for longer",
    "not converged": "recipe: more epochs, until the unpruned network's loss no longer falls",
    "one arm at chance": "train that arm for longer, or say that it learnt nothing",
    "convergence unknown": "recipe: at least two epochs at the last learning rate",
}


def run_remarks(verdicts: Sequence[Verdict]) -> Iterator[Remark]:
    """Yield a remark for each rule that cells meet, and one on the undecided comparisons."""
    with_results = [verdict for verdict in verdicts if verdict.differences]
    cells = len({verdict.group for verdict in with_results})
    for rule in (rule for rule in RULES if rule in REMEDIES):
        met = {
            verdict.group: (verdict, reason)
            for verdict in with_results
            for reason in verdict.reasons
            if reason.rule == rule
        }
        if met:
            verdict, reason = next(iter(met.values()))
            yield Remark(
                code=rule.replace(" ", "-"),
                where=f"{num_cells(len(met), of=cells)}, first {verdict.where}",
                reason=f"{rule_text(rule, reason.metric)} ({reason.figures})",
                reference=LIU,
                remedy=REMEDIES[rule],
            )
    undecided = [verdict for verdict in with_results if verdict.outcome == "undecided"]
    if undecided:
        needed = [verdict.needed for verdict in undecided if verdict.needed is not None]
        seeds = f"about {min(needed)} would likely settle the nearest" if needed else "more"
        yield Remark(
            code="undecided",
            where=f"{len(undecided)} of {len(with_results)} comparisons",
            reason="neither a difference nor equivalence is shown; do not call them equal",
            reference=BOUTHILLIER,
            remedy=f"seeds: {seeds}, or a wider margin, chosen before the run",
        )
