"""Verdicts: is training from scratch as good as fine-tuning, in a cell and over the study?

A difference that is not significant is never called equal. The outcomes of a cell and question are
``better`` and ``worse`` (paired t test), ``equivalent`` (two one-sided tests within the margin, or
the same score in every seed, if the margin is worth ``LEAST_EXAMPLES`` test examples; never if one
of them changes the score by more than the margin), ``undecided``, ``no conclusion`` if ``validity``
leaves the cell out, and ``not run`` if no seed has both arms. p-values are corrected by Holm over
the cells that ask the same question and are not left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from regrow.core.durations import epochs_in_words
from regrow.report import rows
from regrow.report.budget_gains import Gains, at_largest
from regrow.report.questions import BEST, CellQuestion, Question, ask
from regrow.report.rows import Run, Table, smallest
from regrow.report.setups import setup
from regrow.report.statistics import (
    ROUNDING,
    Comparison,
    Equivalence,
    equivalence,
    holm,
    mean_and_std,
    paired,
    seeds_to_settle,
)
from regrow.report.tuning import folded
from regrow.report.validity import (
    Evidence,
    Reason,
    Rule,
    evidence,
    judge,
    parent_evidence,
    unspent,
)
from regrow.tasks.metric import Metric

Outcome = Literal["better", "equivalent", "worse", "undecided", "no conclusion", "not run"]
OUTCOMES: tuple[Outcome, ...] = (
    *("better", "equivalent", "worse", "undecided"),
    *("no conclusion", "not run"),
)
LEAST_EXAMPLES = 3  # test examples of a margin within which equal scores are hardly an accident
TOO_FINE: Rule = "margin below one image"  # no equivalence, even if all scores are the same


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of one arm against another in one cell; ``comparison`` is arm minus against.

    ``p`` and ``p_equivalence`` are corrected over the cells of one ``question``; ``needed``
    estimates the seeds that would decide an undecided cell, if more seeds can. ``reasons`` limit
    what can be concluded. ``setup`` is what both sides have in common (``regrow.report.setups``),
    and ``rules`` are the recipe and budget of each. ``accident`` says why equal scores may be one:
    they are shares of few test examples, or of an unknown number; empty if they hardly can be.
    """

    question: Question
    group: str
    where: str
    arm: str
    against: str
    margin: float
    alpha: float
    n_expected: int
    reasons: tuple[Reason, ...] = ()
    differences: tuple[tuple[int, float], ...] = ()  # (seed, difference), for averages over cells
    outcome: Outcome = "not run"
    comparison: Comparison | None = None
    equivalence: Equivalence | None = None
    p: float | None = None
    p_equivalence: float | None = None
    needed: int | None = None
    setup: str = ""
    rules: tuple[str, str] = ("", "")
    accident: str = ""

    @property
    def n(self) -> int:
        """The number of seeds that have a result in both arms."""
        return self.comparison.n if self.comparison else 0

    @property
    def metric(self) -> Metric:
        """The metric that the arms were scored by."""
        return self.question.metric

    @property
    def left_out_for(self) -> Reason | None:
        """The weightiest reason to leave the comparison out of conclusions, if any."""
        return next((reason for reason in self.reasons if reason.excludes), None)

    @property
    def counts(self) -> bool:
        """True if the comparison takes part in conclusions: it has results and is not left out."""
        return bool(self.differences) and self.left_out_for is None

    @property
    def same(self) -> bool:
        """True if both arms have the same score in every one of several seeds, not by accident."""
        return self.alike and not self.accident

    @property
    def alike(self) -> bool:
        """True if both arms have the same score in every one of several seeds."""
        zero = all(abs(difference) <= ROUNDING for _, difference in self.differences)
        return len(self.differences) > 1 and zero

    @property
    def too_fine(self) -> bool:
        """True if one test example changes the score by more than the margin."""
        return TOO_FINE in [reason.rule for reason in self.reasons]

    @property
    def constant(self) -> bool:
        """True if all of several seeds differ by one amount; by none, that may be an accident."""
        values = [difference for _, difference in self.differences]
        return len(values) > 1 and max(values) - min(values) <= ROUNDING and not self.same


def verdicts(
    runs: Iterable[Run], *, margin: float | None = None, alpha: float = 0.05
) -> tuple[Verdict, ...]:
    """Answer every question that the study's cells can answer, in the order of its cells.

    The questions are those of ``regrow.report.questions``. Only seeds that both arms have enter a
    comparison. ``margin`` is the metric's own unless given. The best trial of a tuned arm
    represents it. In a study with several budgets each has its own questions: effects are never
    averaged over budgets.
    """
    listed = folded(runs)
    table, gains = Table(listed), Gains(listed, margin=margin, alpha=alpha)
    at = _budgets_in_words(listed)
    opened = [
        replace(verdict, question=replace(verdict.question, at=words, main=main))
        for arms in table.cells()
        for words, main in [at[next(iter(arms.values()))[0].panel]]
        for verdict in _open(arms, table, gains, margin=margin, alpha=alpha)
    ]
    places: dict[Question, list[int]] = {}
    for i, verdict in enumerate(opened):
        places.setdefault(verdict.question, []).append(i)
    closed: dict[int, Verdict] = {}
    for family in places.values():
        closed |= zip(family, corrected([opened[i] for i in family]), strict=True)
    return tuple(closed[i] for i in range(len(opened)))


def corrected(opened: Sequence[Verdict]) -> list[Verdict]:
    """Decide the comparisons of one family, by p-values corrected over those that count."""
    ps = holm([v.p if v.counts else None for v in opened])
    p_equals = holm([v.p_equivalence if v.counts else None for v in opened])
    num = max(1, sum(p is not None for p in ps))
    return [
        _decide(replace(verdict, p=p, p_equivalence=p_equal), num)
        for verdict, p, p_equal in zip(opened, ps, p_equals, strict=True)
    ]


VERDICT_COLUMNS = {
    **dict.fromkeys(("question", "group", "arm", "against", "outcome"), rows.TEXT),
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("margin", "difference", "std", "low", "high"), rows.POINTS),
    **dict.fromkeys(("p", "p_equivalence"), rows.LOSS),
    "needed": rows.COUNT,
    **dict.fromkeys(("note", "reasons", "setup"), rows.TEXT),
}


def verdicts_frame(verdicts: Iterable[Verdict]) -> pd.DataFrame:
    """Return a frame with a row per verdict; p-values are corrected, intervals are not."""
    empty = dict.fromkeys(("difference", "std", "low", "high", "note"))
    return rows.to_frame(
        [
            {
                **(vars(v.comparison) if v.comparison else empty),
                **vars(v),
                "question": v.question.text,
                "n": v.n,
                "reasons": "; ".join(reason.text for reason in v.reasons),
            }
            for v in verdicts
        ],
        VERDICT_COLUMNS,
    )


def families(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """Group verdicts by question, the study's main question first."""
    grouped: dict[Question, list[Verdict]] = {}
    for verdict in verdicts:
        grouped.setdefault(verdict.question, []).append(verdict)
    return sorted(grouped.values(), key=lambda family: family[0].question.rank)


def leading(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the cells of the study's first question: scratch training of equal FLOPs, if asked."""
    return next(iter(families(verdicts)), [])


def overall(family: Sequence[Verdict]) -> Verdict | None:
    """Average the cells of one question seed by seed, and test the averages over seeds.

    Cells of one seed share their parent, data order and augmentation, so they are not independent,
    but their averages per seed are. The average holds for these cells, not for others. Cells that
    allow no conclusion are left out. Only seeds that all other cells have are used; None if there
    is no such seed.
    """
    verdict = averaged(family)
    return None if verdict is None else _decide(verdict, num=1)


def averaged(family: Sequence[Verdict]) -> Verdict | None:
    """Return the average over the cells of one question as ``overall`` does, undecided."""
    conclusive = [verdict for verdict in family if verdict.counts]
    by_seed = [dict(verdict.differences) for verdict in conclusive]
    common = [
        seed for seed in (by_seed[0] if by_seed else {}) if all(seed in cell for cell in by_seed)
    ]
    if not common:
        return None
    means = tuple((s, mean_and_std([cell[s] for cell in by_seed])[0]) for s in common)
    verdict = replace(
        conclusive[0],
        group="",
        where=f"averaged over {num_cells(len(by_seed), of=len(family))}",
        arm=BEST if conclusive[0].question.first is None else conclusive[0].arm,
        against=_common([v.against for v in conclusive], conclusive[0].question.second.name),
        setup=_common([v.setup for v in conclusive], ""),
        reasons=tuple(dict.fromkeys(reason for v in conclusive for reason in v.reasons)),
        accident=next((v.accident for v in conclusive if v.accident), ""),
    )
    return _tested(verdict, means)


def _common(texts: Sequence[str], otherwise: str) -> str:
    """Return the text that all share, or else another."""
    return texts[0] if len(set(texts)) == 1 else otherwise


def num_cells(num: int, *, of: int) -> str:
    """Format a number of cells: ``1 cell``, ``4 cells``, ``3 of 4 cells``."""
    return f"{num if num == of else f'{num} of {of}'} {'cell' if of == 1 else 'cells'}"


def _budgets_in_words(runs: Sequence[Run]) -> dict[tuple[str, ...], tuple[str, bool]]:
    """Return each panel's training budget in words, and whether it is the network's largest.

    The words are empty if a network has a single budget.
    """
    largest = {run.panel: run.training_budget for run in at_largest(runs)}
    several = len(set(largest.values())) > 1
    budgets: dict[tuple[str, ...], set[int | None]] = {}
    for run in runs:
        budgets.setdefault((run.data, run.model), set()).add(run.training_budget)
    words = {}
    for run in runs:
        budget = run.training_budget
        if len(budgets[run.data, run.model]) == 1:
            words[run.panel] = "", True
        elif run.panel in largest:
            size = "of each network" if several else f"({epochs_in_words(budget)})"
            words[run.panel] = f"at the largest budget {size}", True
        else:
            words[run.panel] = f"at {epochs_in_words(budget)}", False
    return words


def _open(
    arms: Mapping[str, list[Run]],
    table: Table,
    gains: Gains,
    *,
    margin: float | None,
    alpha: float,
) -> list[Verdict]:
    """Compare the arms of one cell by its questions, before correction and outcome."""
    inside = {arm: runs for arm, runs in arms.items() if not runs[0].unpruned}
    if not inside:
        return []
    first = next(iter(inside.values()))[0]
    margin = first.metric.margin if margin is None else margin
    unpruned = table.unpruned(first)
    plain = evidence(unpruned)
    cut_from = parent_evidence(run for runs in inside.values() for run in runs)
    trained = [runs for runs in inside.values() if runs[0].budget != "none"]
    cut = [arm_evidence for arm_evidence in map(evidence, trained) if arm_evidence is not None]

    def reasons(question: CellQuestion) -> tuple[Reason, ...]:
        sides: list[Evidence | None] = [evidence(question.first), evidence(question.second)]
        if sides[0] is None or sides[1] is None:
            return ()
        judged = judge(
            sides[0],
            sides[1],
            parent=cut_from or plain,
            plain=plain or cut_from,
            cut=cut,
            margin=margin,
            gain=gains.about(first),
        )
        return (*judged, *unspent((question.first, question.second), unpruned))

    return [
        compare(question, reasons=reasons(question), margin=margin, alpha=alpha)
        for question in ask(inside, unpruned)
    ]


def compare(
    question: CellQuestion, *, reasons: tuple[Reason, ...], margin: float, alpha: float
) -> Verdict:
    """Compare two arms over the seeds that both have, before correction and outcome."""
    first, second = rows.by_seed(question.first), rows.by_seed(question.second)
    differences = tuple((seed, first[seed] - second[seed]) for seed in first if seed in second)
    run = question.first[0]
    names = dict.fromkeys(run_of_first.arm for run_of_first in question.first)
    verdict = Verdict(
        question=question.question,
        group=run.group,
        where=" / ".join(part for part in (*run.panel, run.cut) if part),
        arm=" or ".join(names),
        against=question.against or question.second[0].arm,
        margin=margin,
        alpha=alpha,
        n_expected=len(question.first),
        reasons=reasons,
        setup=setup(question.first, question.second),
        rules=(rule_of(question.first), rule_of(question.second)),
        accident=_accident((*question.first, *question.second), margin),
    )
    return _tested(verdict, differences) if differences else verdict


def _accident(runs: Sequence[Run], margin: float) -> str:
    """Return why two networks may have equal scores by accident; empty if that is unlikely.

    If networks differ by a margin of m test examples, a seed gives them equal counts with a
    probability of up to about e^-m (one always right, the other with independent mistakes).
    """
    metric = runs[0].metric
    num = smallest(run.num_test for run in runs)
    if not metric.counted:
        return ""
    if num is None:
        known = f"the number of test {metric.example}s is not known (num_test)"
        return f"{known}: with few, that is likely"
    if margin * num / metric.factor < LEAST_EXAMPLES - ROUNDING:
        few = f"fewer than {LEAST_EXAMPLES} of {num} test {metric.example}s"
        return f"the margin is worth {few}, so that is likely"
    return ""


def rule_of(runs: Sequence[Run]) -> str:
    """Describe the recipe and the budget of a side; empty before any of its runs is done."""
    done = [run for run in runs if run.done]
    recipes = dict.fromkeys(run.recipe for run in done if run.recipe)
    return "; ".join([*recipes, rows.fairness(done)]) if done else ""


def _tested(verdict: Verdict, differences: tuple[tuple[int, float], ...]) -> Verdict:
    """Add both tests of a verdict's differences, uncorrected."""
    values = [difference for _, difference in differences]
    comparison = paired(values, [0.0] * len(values), confidence=1 - verdict.alpha)
    test = equivalence(comparison, margin=verdict.margin, alpha=verdict.alpha)
    return replace(
        verdict,
        differences=differences,
        comparison=comparison,
        equivalence=test,
        p=comparison.p,
        p_equivalence=test.p,
    )


def _decide(verdict: Verdict, num: int) -> Verdict:
    """Set the outcome by corrected p-values; ``num`` is how many were corrected together."""
    comparison, alpha = verdict.comparison, verdict.alpha
    if comparison is None:
        return verdict
    if verdict.left_out_for is not None:
        return replace(verdict, outcome="no conclusion")
    # Equivalence first: a significant difference can be too small to matter.
    fine = verdict.too_fine
    equivalent = verdict.p_equivalence is not None and verdict.p_equivalence < alpha
    # Many test examples hardly ever give two networks the same score in several seeds by accident.
    if (verdict.same or equivalent) and not fine:
        return replace(verdict, outcome="equivalent")
    if verdict.p is not None and verdict.p < alpha:
        return replace(
            verdict, outcome="better" if verdict.metric.gain(comparison.difference) > 0 else "worse"
        )
    if comparison.std is None or fine:
        return replace(verdict, outcome="undecided")
    # alpha / num is Holm's level for the smallest p-value, so the estimate is on the safe side.
    estimate = seeds_to_settle(
        comparison.difference, comparison.std, margin=verdict.margin, alpha=alpha / num
    )
    return replace(verdict, outcome="undecided", needed=max(estimate, comparison.n + 1))
