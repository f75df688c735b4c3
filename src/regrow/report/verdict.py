"""Answers in words: is training from scratch as good as fine-tuning, here and over the study.

A difference that is not significant is never called equal. Per cell there are four outcomes:
``better`` and ``worse`` (paired t test), ``equivalent`` (two one-sided tests within the margin) and
``undecided``; ``not run`` where no seed has both arms. p-values are corrected by Holm over the
cells that ask the same question.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from regrow.report import rows
from regrow.report.rows import UNPRUNED, Run, Table
from regrow.report.words import listed, num_seeds, p_value, signed
from regrow.stats import (
    Comparison,
    Equivalence,
    equivalence,
    holm,
    mean_and_std,
    paired,
    seeds_to_settle,
    sign_test,
)

Outcome = Literal["better", "equivalent", "worse", "undecided", "not run"]
OUTCOMES: tuple[Outcome, ...] = ("better", "equivalent", "worse", "undecided", "not run")
FINE_TUNE, PRUNED, TICKET, RANDOM_INIT = "fine-tune", "pruned", "winning-ticket", "random-init"
PRUNE_C = "prune-c"  # of detectors: on the classifier that was pruned and fine-tuned
# What scratch training is compared with: the first of these that a cell has.
INHERITED = {
    FINE_TUNE: "fine-tuning",
    PRUNE_C: "fine-tuning the classifier",
    PRUNED: "keeping the inherited weights",
}
BEST = "the best arm"
MANY = 1000  # seeds nobody trains; beyond it the estimate is not worth a number


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one cell says about one arm against another; ``comparison`` is arm minus against.

    ``p`` and ``p_equivalence`` are corrected; ``needed`` estimates the seeds that would decide an
    undecided cell. ``question`` names the family of cells over which p-values are corrected.
    """

    question: str
    group: str
    where: str
    arm: str
    against: str
    margin: float
    alpha: float
    n_expected: int
    differences: tuple[tuple[int, float], ...] = ()  # (seed, points), for averages over cells
    outcome: Outcome = "not run"
    comparison: Comparison | None = None
    equivalence: Equivalence | None = None
    p: float | None = None
    p_equivalence: float | None = None
    needed: int | None = None

    @property
    def n(self) -> int:
        """Seeds that have a result in both arms."""
        return self.comparison.n if self.comparison else 0

    @property
    def sentence(self) -> str:
        """The verdict for people, with difference, interval, n and corrected p-value."""
        return f"{self.where}: {_sentence(self)}"


def verdicts(
    runs: Iterable[Run], *, margin: float = 0.3, alpha: float = 0.05
) -> tuple[Verdict, ...]:
    """Answer every question the study's cells can ask, in the order of its cells.

    The questions: each arm named ``scratch-...`` against the first arm of ``INHERITED`` that the
    cell has, ``winning-ticket`` against ``random-init``, and the best arm of a cell (by mean
    accuracy, chosen on these very numbers) against the unpruned network. Only seeds that both
    arms have enter a comparison.
    """
    table = Table(runs)
    opened = [verdict for arms in table.cells() for verdict in _open(arms, table, margin, alpha)]
    closed: dict[int, Verdict] = {}
    for question in dict.fromkeys(verdict.question for verdict in opened):
        family = [(i, v) for i, v in enumerate(opened) if v.question == question]
        ps = holm([v.p for _, v in family])
        p_equals = holm([v.p_equivalence for _, v in family])
        num = max(1, sum(p is not None for p in ps))
        for (i, verdict), p, p_equal in zip(family, ps, p_equals, strict=True):
            closed[i] = _decide(replace(verdict, p=p, p_equivalence=p_equal), num)
    return tuple(closed[i] for i in range(len(opened)))


VERDICT_COLUMNS = {
    **dict.fromkeys(("question", "group", "arm", "against", "outcome"), rows.TEXT),
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("margin", "difference", "std", "low", "high"), rows.POINTS),
    **dict.fromkeys(("p", "p_equivalence"), rows.LOSS),
    "needed": rows.COUNT,
    "note": rows.TEXT,
}


def verdicts_frame(found: Iterable[Verdict]) -> pd.DataFrame:
    """Put one verdict in each row; p-values are the corrected ones, the interval is not."""
    none = dict.fromkeys(("difference", "std", "low", "high", "note"))
    return rows.to_frame(
        [{**(vars(v.comparison) if v.comparison else none), **vars(v), "n": v.n} for v in found],
        VERDICT_COLUMNS,
    )


def answer(found: Sequence[Verdict]) -> str:
    """Sum a study up, a line a question: the average over its cells, then the cells counted."""
    if not found:
        return "This study has no two arms to compare: add scratch-e or scratch-b beside fine-tune."
    if all(verdict.outcome == "not run" for verdict in found):
        return "Not run: no cell has a seed with results in two arms yet, so there is no answer."
    return "\n".join(_family(family) for family in _families(found))


def leading(found: Sequence[Verdict]) -> list[Verdict]:
    """Return the cells of the study's first question: scratch-b, if it has that arm."""
    return next(iter(_families(found)), [])


def _families(found: Sequence[Verdict]) -> list[list[Verdict]]:
    families: dict[str, list[Verdict]] = {}
    for verdict in found:
        families.setdefault(verdict.question, []).append(verdict)
    return sorted(families.values(), key=lambda family: _rank(family[0].question))


def _open(arms: dict[str, list[Run]], table: Table, margin: float, alpha: float) -> list[Verdict]:
    """Pair the arms of one cell as its questions ask, not yet decided."""
    inside = {arm: runs for arm, runs in arms.items() if arm != UNPRUNED}
    pairs: list[tuple[str, list[Run], list[Run]]] = []
    reference = next((inside[arm] for arm in INHERITED if arm in inside), None)
    if reference is not None:
        scratch = [arm for arm in inside if arm.startswith("scratch")]
        pairs += [(arm, inside[arm], reference) for arm in scratch]
    if TICKET in inside and RANDOM_INIT in inside:
        pairs.append((TICKET, inside[TICKET], inside[RANDOM_INIT]))
    if inside and (whole := table.unpruned(next(iter(inside.values()))[0])):
        pairs.append((BEST, max(inside.values(), key=_mean), whole))
    return [
        _compare(runs, others, question=name, margin=margin, alpha=alpha)
        for name, runs, others in pairs
    ]


def _compare(
    runs: list[Run], others: list[Run], *, question: str, margin: float, alpha: float
) -> Verdict:
    """Compare two arms over the seeds both have."""
    first, second = _by_seed(runs), _by_seed(others)
    differences = tuple((seed, first[seed] - second[seed]) for seed in first if seed in second)
    verdict = Verdict(
        question=f"{question} against {others[0].arm}",
        group=runs[0].group,
        where=" / ".join(part for part in (*runs[0].panel, runs[0].cut) if part),
        arm=runs[0].arm,
        against=others[0].arm,
        margin=margin,
        alpha=alpha,
        n_expected=len(runs),
    )
    return _tested(verdict, differences) if differences else verdict


def _tested(verdict: Verdict, differences: tuple[tuple[int, float], ...]) -> Verdict:
    """Add both tests of a verdict's differences, uncorrected."""
    points = [difference for _, difference in differences]
    comparison = paired(points, [0.0] * len(points), confidence=1 - verdict.alpha)
    test = equivalence(comparison, margin=verdict.margin, alpha=verdict.alpha)
    return replace(
        verdict,
        differences=differences,
        comparison=comparison,
        equivalence=test,
        p=comparison.p,
        p_equivalence=test.p,
    )


def overall(family: Sequence[Verdict]) -> Verdict | None:
    """Average the cells of one question seed by seed and test the averages over seeds.

    Cells of one seed share their parent, data order and augmentation, so they are no independent
    rows; their average per seed is. It speaks of these cells, not of others. Only seeds that every
    cell with results has are used; None where there is none.
    """
    ran = [dict(v.differences) for v in family if v.differences]
    common = [seed for seed in (ran[0] if ran else {}) if all(seed in cell for cell in ran)]
    if not common:
        return None
    means = tuple((s, mean_and_std([cell[s] for cell in ran])[0]) for s in common)
    where = f"averaged over {_num_cells(len(ran))}"
    arm = BEST if family[0].question.startswith(BEST) else family[0].arm
    verdict = replace(family[0], where=where, group="", arm=arm)
    return _decide(_tested(verdict, means), num=1)


def _decide(verdict: Verdict, num: int) -> Verdict:
    """Choose the outcome from corrected p-values; ``num`` cells share the question."""
    comparison, alpha = verdict.comparison, verdict.alpha
    if comparison is None:
        return verdict
    # Equivalence first: a difference can be both significant and too small to matter.
    if verdict.p_equivalence is not None and verdict.p_equivalence < alpha:
        return replace(verdict, outcome="equivalent")
    if verdict.p is not None and verdict.p < alpha:
        return replace(verdict, outcome="better" if comparison.difference > 0 else "worse")
    if comparison.std is None:
        return replace(verdict, outcome="undecided")
    # alpha / num is what Holm asks of the smallest p-value, so the estimate is on the safe side.
    estimate = seeds_to_settle(
        comparison.difference, comparison.std, margin=verdict.margin, alpha=alpha / num
    )
    return replace(verdict, outcome="undecided", needed=max(estimate, comparison.n + 1))


def _sentence(verdict: Verdict) -> str:
    comparison, margin = verdict.comparison, verdict.margin
    arm, against = verdict.arm, verdict.against
    if verdict.question.startswith(BEST):
        chosen = f"{arm}, chosen" if arm != BEST else "chosen in each cell"
        arm, against = f"{BEST} ({chosen} on these numbers)", "the unpruned network"
    if comparison is None:
        asked = BEST if verdict.question.startswith(BEST) else arm
        return f"not run: no seed has both {asked} and {against} yet."
    difference = comparison.difference
    seeds = f"n = {num_seeds(comparison.n, verdict.n_expected)}"
    if verdict.outcome == "equivalent":
        text = (
            f"{arm} is equivalent to {against} within {margin:g} points: {signed(difference)} "
            f"({_interval(verdict, wide=False)}{seeds}, {p_value(verdict.p_equivalence or 0.0)})."
        )
        if verdict.p is not None and verdict.p < verdict.alpha:
            text += f" The small difference is significant ({p_value(verdict.p)})."
        return text
    if verdict.outcome in ("better", "worse"):
        return (
            f"{arm} is {verdict.outcome} than {against} by {abs(difference):.2f} points "
            f"({_interval(verdict, wide=True)}{seeds}, {p_value(verdict.p or 0.0)})."
        )
    if comparison.n == 1:
        return (
            f"undecided: {arm} minus {against} is {signed(difference)} points ({seeds}); "
            "one seed allows no test."
        )
    shown = f"which shows neither a difference nor equivalence within {margin:g} points"
    if comparison.p is not None and comparison.p < verdict.alpha and verdict.p is not None:
        corrected = p_value(verdict.p)
        shown = f"a difference here alone, but not once corrected for the other cells ({corrected})"
    return (
        f"undecided: {arm} minus {against} is {signed(difference)} points "
        f"({_interval(verdict, wide=True)}{seeds}), {shown}; {_needed(verdict.needed)}."
    )


def _interval(verdict: Verdict, *, wide: bool) -> str:
    """Word the interval that belongs to the test: 95 % for a difference, 90 % for equivalence."""
    test = verdict.comparison if wide else verdict.equivalence
    if test is None or test.low is None or test.high is None:
        return "the same in every seed, "
    percent = 100 * (1 - verdict.alpha if wide else 1 - 2 * verdict.alpha)
    return f"{percent:.0f}% interval {signed(test.low)} to {signed(test.high)}, "


def _needed(needed: int | None) -> str:
    assert needed is not None
    if needed > MANY:
        return f"more than {MANY} seeds would be needed to settle it"
    return f"about {needed} seeds would likely settle it"


def _family(family: list[Verdict]) -> str:
    """Answer one question: yes, no or undecided on average, and what its cells say one by one."""
    question, ran = family[0].question, [v for v in family if v.differences]
    if not ran:
        return f"{question}: not run."
    mean = overall(family) if len(ran) > 1 else ran[0]
    text = "no seed has results in every cell, so there is no average."
    if mean is not None:
        text = f"{mean.where}, {_sentence(mean)}" if len(ran) > 1 else mean.sentence
    if question.startswith("scratch"):
        other = INHERITED[ran[0].against]
        asked = f"Is training from scratch ({family[0].arm}) as good as {other}?"
        text = f"{asked} {_short(mean, family)}: {text.replace('undecided: ', '', 1)}"
    else:
        text = f"{question}: {text}"
    return text if len(family) == 1 else f"{text} {_counts(family, ran)}"


def _short(mean: Verdict | None, family: list[Verdict]) -> str:
    """Answer in a word or three; a good average does not hide cells that are worse."""
    worse = sum(v.outcome == "worse" for v in family)
    if mean is None or mean.outcome == "undecided":
        return "Undecided"
    if mean.outcome == "worse":
        return "No"
    return "Yes" if not worse else f"On average yes, but worse in {worse} of {len(family)} cells"


def _counts(family: list[Verdict], ran: list[Verdict]) -> str:
    """Count the outcomes of one question over its cells."""
    counts = {o: sum(v.outcome == o for v in family) for o in OUTCOMES}
    shown = [f"{o} in {num}" for o, num in counts.items() if num or o in OUTCOMES[:3]]
    signs = sign_test([v.comparison.difference for v in ran if v.comparison is not None])
    return (
        f"Cell by cell ({_seed_range(ran)}, margin {family[0].margin:g} points): {listed(shown)}; "
        f"the mean is higher in {signs.up} and lower in {signs.down}."
    )


def _num_cells(num: int) -> str:
    return f"{num} {'cell' if num == 1 else 'cells'}"


def _seed_range(ran: list[Verdict]) -> str:
    """Word how many seeds the cells have: ``5 seeds each``, ``3 to 5 seeds each``."""
    low, high = min(v.n for v in ran), max(v.n for v in ran)
    asked = max(v.n_expected for v in ran)
    if low < high:
        return f"{low} to {high} of {asked} seeds each"
    return num_seeds(high, asked) + (" each" if len(ran) > 1 else "")


def _rank(question: str) -> int:
    """Order the questions: what the study is about first."""
    starts = ("scratch-b", "scratch", TICKET, BEST)
    return next(i for i, start in enumerate(starts) if question.startswith(start))


def _by_seed(runs: list[Run]) -> dict[int, float]:
    return {run.seed: run.accuracy for run in runs if run.done and run.accuracy is not None}


def _mean(runs: list[Run]) -> float:
    values = list(_by_seed(runs).values())
    return mean_and_std(values)[0] if values else float("-inf")
