"""Answers in words: what verdicts say about each question, and first what they cannot say."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from regrow.core.texts import listed
from regrow.report.questions import BEST, BEST_RETRAINING, Question
from regrow.report.setups import in_words
from regrow.report.statistics import sign_test
from regrow.report.validity import RULES, Reason, Rule, rule_text
from regrow.report.verdict import OUTCOMES, Verdict, families, num_cells, overall
from regrow.report.words import num_seeds, p_value, signed
from regrow.tasks.metric import Metric

SAID_AT_ONCE: tuple[Rule, ...] = ("one arm at chance", "FLOPs not spent")  # said per cell too
MOST_RULES = 2  # most budget rules of a side that an answer names
ALL_ALIKE = (
    "Independent trainings hardly ever differ by the same amount: nothing was trained on either "
    "side, the training ignores its seed, results were copied, or the test set is too small."
)
MANY = 1000  # seeds; larger estimates are not given as a number


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question with its answer, in a few words (``short``) and in full (``text``)."""

    question: str
    short: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.question} {self.short}{f': {self.text}' if self.text else '.'}"


def answer(verdicts: Sequence[Verdict]) -> str:
    """Summarise a study: a line for each caution, then one for each question.

    A question's line has the average over its cells, then the number of cells by outcome.
    """
    return no_answer(verdicts) or "\n".join([*cautions(verdicts), *map(str, answers(verdicts))])


def no_answer(verdicts: Sequence[Verdict]) -> str:
    """Return why a study has no answer; empty if it has one."""
    if not verdicts:
        return (
            "This study has no two arms to compare: add one with a random start (scratch-b) beside "
            "one that trains inherited weights (fine-tune)."
        )
    if all(verdict.outcome == "not run" for verdict in verdicts):
        return "Not run: no cell has a seed with results in two arms yet, so there is no answer."
    return ""


def answers(verdicts: Sequence[Verdict]) -> Iterator[Answer]:
    """Answer each question of a study, its main question first.

    With several training budgets, questions are answered at the largest. How answers depend on the
    budget is left to ``regrow.report.budget_words``, and so are questions about scratch training
    that only one cell asks.
    """
    several_metrics = len({verdict.metric for verdict in verdicts}) > 1
    return (
        _family(family, with_metric=several_metrics)
        for family in families(verdicts)
        if family[0].question.main and not (len(family) == 1 and _followed(family[0].question))
    )


def _followed(question: Question) -> bool:
    """Return whether ``budget_words`` answers a question over all training budgets."""
    best = question.second.name == BEST_RETRAINING
    return bool(question.at) and question.about == "scratch" and not best


def sentence(verdict: Verdict) -> str:
    """Describe a verdict with its cell, difference, interval, n and corrected p-value."""
    text = f"{verdict.where}{': ' if verdict.group else ', '}{finding(verdict)}"
    if not verdict.counts or not verdict.group:  # averages have it in the cautions
        return text
    low = [reason.text for reason in verdict.reasons if reason.rule in SAID_AT_ONCE]
    return text + "".join(f" But {reason}." for reason in low)


def cautions(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield a line for each rule: how many cells meet it, with the figures of the first."""
    cells: dict[Rule, dict[str, tuple[Verdict, Reason]]] = {}
    for verdict in verdicts:
        # Rules that only qualify a conclusion do not matter where there is none.
        first = verdict.left_out_for
        for reason in verdict.reasons if first is None else (first,):
            cells.setdefault(reason.rule, {}).setdefault(verdict.group, (verdict, reason))
    num = len({verdict.group for verdict in verdicts if verdict.differences})
    for rule in (rule for rule in RULES if rule in cells):
        verdict, reason = next(iter(cells[rule].values()))
        lead = "No conclusion" if reason.excludes else "Caution"
        num_more = len(cells[rule]) - 1
        more = f"; and {num_more} more" if num_more else ""
        yield (
            f"{lead} in {num_cells(len(cells[rule]), of=num)}: {rule_text(rule, reason.metric)} "
            f"({verdict.where}: {reason.figures}{more})."
        )


def finding(verdict: Verdict) -> str:
    """Describe a verdict without naming its cell."""
    comparison, within = verdict.comparison, verdict.metric.amount(f"{verdict.margin:g}")
    arm, against = _names(verdict)
    if comparison is None:
        return f"not run: no seed has both {arm} and {against} yet."
    metric = verdict.metric
    difference = _signed(comparison.difference, metric)
    seeds = f"n = {num_seeds(comparison.n, verdict.n_expected)}"
    if verdict.left_out_for is not None:
        reason = verdict.left_out_for.text
        minus = f"{arm} minus {against}: {metric.amount(difference)}, {seeds}"
        return f"no conclusion ({minus}): {reason}."
    if verdict.outcome == "equivalent" and verdict.same:
        return f"{arm} is equivalent to {against}: the same in every seed ({seeds})."
    if verdict.outcome == "equivalent":
        text = (
            f"{arm} is equivalent to {against} within {within}: {difference} "
            f"({_interval(verdict, wide=False)}{seeds}, {p_value(verdict.p_equivalence or 0.0)})."
        )
        if verdict.p is not None and verdict.p < verdict.alpha:
            text += f" The small difference is significant ({p_value(verdict.p)})."
        return text
    if verdict.outcome in ("better", "worse"):
        return (
            f"{arm} is {verdict.outcome} than {against} by {metric.amount(difference[1:])} "
            f"({_size(verdict)}{seeds}, {p_value(verdict.p or 0.0)})."
            + (f" {ALL_ALIKE}" if verdict.constant else "")
        )
    if comparison.n == 1:
        return (
            f"undecided: {arm} minus {against} is {metric.amount(difference)} ({seeds}); "
            "one seed allows no test."
        )
    if verdict.alike and not verdict.too_fine:
        return (
            f"undecided: {arm} and {against} have the same score in every seed ({seeds}), but "
            f"{verdict.accident}."
        )
    if verdict.constant and not verdict.alike:
        return (
            f"undecided: {arm} minus {against} is exactly {metric.amount(difference)} in every "
            f"seed ({seeds}), so there is no spread to test by. {ALL_ALIKE} Equal differences show "
            f"something from {_least_signs(verdict.alpha)} seeds on (exact sign test)."
        )
    outcome = f"which shows neither a difference nor equivalence within {within}"
    if comparison.p is not None and comparison.p < verdict.alpha and verdict.p is not None:
        corrected = p_value(verdict.p)
        outcome = (
            f"significant on its own, but not after correction for the other cells ({corrected})"
        )
    return (
        f"undecided: {arm} minus {against} is {metric.amount(difference)} "
        f"({_interval(verdict, wide=True)}{seeds}), {outcome}; {_needed(verdict)}."
    )


def _names(verdict: Verdict) -> tuple[str, str]:
    """Name both sides, and how the best arm was chosen."""
    if verdict.question.first is not None:
        return verdict.arm, verdict.against
    if not verdict.differences:
        return BEST, "the unpruned network"
    chosen = "chosen in each cell" if verdict.arm == BEST else f"{verdict.arm}, chosen"
    by = "by the other seeds" if verdict.n > 1 else "on this number"
    return f"{BEST} ({chosen} {by})", "the unpruned network"


def _interval(verdict: Verdict, *, wide: bool) -> str:
    """Format the interval that matches the test: 95 % for a difference, 90 % for equivalence."""
    test = verdict.comparison if wide else verdict.equivalence
    if test is None or test.low is None or test.high is None:
        return "the same in every seed, "
    percent = 100 * (1 - verdict.alpha if wide else 1 - 2 * verdict.alpha)
    low, high = (_signed(bound, verdict.metric) for bound in (test.low, test.high))
    return f"{percent:.0f}% interval {low} to {high}, "


def _size(verdict: Verdict) -> str:
    """Format the interval of a difference without its sign: ``95% interval 1.60 to 5.05, ``."""
    test, metric = verdict.comparison, verdict.metric
    if test is None or test.low is None or test.high is None:
        return "the same in every seed, "
    bounds = (test.low, test.high) if test.difference > 0 else (-test.high, -test.low)
    low, high = (f"{bound:.{metric.digits}f}" for bound in bounds)
    return f"{100 * (1 - verdict.alpha):.0f}% interval {low} to {high}, "


def _signed(difference: float, metric: Metric) -> str:
    return signed(difference, digits=metric.digits)


def _needed(verdict: Verdict) -> str:
    needed = verdict.needed
    if needed is None:
        reason = rule_text("margin below one image", verdict.metric)
        return f"equivalence cannot be shown, because {reason}"
    if needed > MANY:
        return f"more than {MANY} seeds would be needed to settle it"
    return f"about {needed} seeds would likely settle it"


def _least_signs(alpha: float) -> int:
    """Return how many seeds with equal differences an exact sign test needs to be significant.

    >>> _least_signs(0.05)
    6
    """
    return next(n for n in range(2, 100) if 2.0 ** (1 - n) < alpha)


def _family(family: list[Verdict], *, with_metric: bool = False) -> Answer:
    """Answer one question: yes, no or undecided on average, and the number of cells by outcome.

    ``with_metric`` adds the metric's name to the question, for studies with several metrics.
    """
    question, with_results = family[0].question.text, [v for v in family if v.differences]
    if with_metric:
        question = f"{question.removesuffix('?')}, by {family[0].metric.name}?"
    conclusive = [v for v in with_results if v.counts]
    if not with_results:
        return Answer(question=question, short="Not run")
    if not conclusive:
        text = f"{_left_out(with_results, of=len(family))}."
        return Answer(question=question, short="No conclusion", text=text)
    mean = overall(family) if len(family) > 1 else conclusive[0]
    text = "no seed has results in every cell, so there is no average."
    if mean is not None:
        text = sentence(mean).replace("undecided: ", "", 1)
    text += _rules(conclusive)
    short = _short(mean, conclusive)
    if len(family) == 1:
        return Answer(question=question, short=short, text=text)
    if len(conclusive) < len(with_results):
        left_out = _left_out(with_results, of=len(family))
        text += f" {left_out[0].upper()}{left_out[1:]}."
    text = f"{text} {_counts(family, conclusive)}"
    return Answer(question=question, short=short, text=text)


def _rules(conclusive: Sequence[Verdict]) -> str:
    """Name the recipes, budget rules and setups that an answer about scratch training holds for."""
    question = conclusive[0].question
    if question.about != "scratch":
        return ""
    sides = [list(dict.fromkeys(v.rules[i] for v in conclusive if v.rules[i])) for i in (0, 1)]
    if not all(sides):
        return ""
    setups = list(dict.fromkeys(v.setup for v in conclusive if v.setup))
    names = [side.name if side else "the best arm" for side in (question.first, question.second)]
    recipes = [f"{name} {_either(rules)}" for name, rules in zip(names, sides, strict=True)]
    text = f" Recipes: {'; '.join(recipes)}."
    alike = "; or ".join(map(in_words, setups))
    return f"{text} Both sides have {alike}." if setups else text


def _either(texts: Sequence[str]) -> str:
    """Join texts that differ between cells.

    >>> _either(["equal epochs"]), _either(["rate 0.1; equal FLOPs", "rate 0.1; 3 epochs"])
    ('(equal epochs)', '(rate 0.1; equal FLOPs) or (rate 0.1; 3 epochs)')
    """
    shown = [f"({text})" for text in texts[:MOST_RULES]]
    return " or ".join([*shown, *(["others"] if len(texts) > MOST_RULES else [])])


def _left_out(with_results: Sequence[Verdict], *, of: int) -> str:
    """Say how many cells are left out and why: ``1 of 3 cells is left out: ...``."""
    rules = Counter(v.left_out_for.rule for v in with_results if v.left_out_for is not None)
    metric, num = with_results[0].metric, rules.total()
    reasons = [
        rule_text(r, metric) + (f" in {n}" if len(rules) > 1 else "") for r, n in rules.items()
    ]
    return f"{num_cells(num, of=of)} {'is' if num == 1 else 'are'} left out: {listed(reasons)}"


def _short(mean: Verdict | None, conclusive: list[Verdict]) -> str:
    """Answer in a few words; a good average does not hide cells that are worse."""
    worse = sum(v.outcome == "worse" for v in conclusive)
    if mean is None or mean.outcome == "undecided":
        return "Undecided"
    yes = ("better",) if mean.question.wants == "better" else ("better", "equivalent")
    if mean.outcome not in yes:
        return "No"
    return (
        "Yes" if not worse else f"On average yes, but worse in {worse} of {len(conclusive)} cells"
    )


def _counts(family: list[Verdict], conclusive: list[Verdict]) -> str:
    """Count the outcomes of one question over its cells."""
    counts = {o: sum(v.outcome == o for v in family) for o in OUTCOMES}
    counted_outcomes = [f"{o} in {num}" for o, num in counts.items() if num or o in OUTCOMES[:3]]
    signs = sign_test([v.comparison.difference for v in conclusive if v.comparison is not None])
    margin = family[0].metric.amount(f"{family[0].margin:g}")
    return (
        f"Cell by cell ({_seed_range(conclusive)}, margin {margin}): "
        f"{listed(counted_outcomes)}; the mean is higher in {signs.up} and lower in {signs.down}."
    )


def _seed_range(with_results: list[Verdict]) -> str:
    """Format the number of seeds of the cells: ``5 seeds each``, ``3 to 5 seeds each``."""
    low, high = min(v.n for v in with_results), max(v.n for v in with_results)
    expected = max(v.n_expected for v in with_results)
    if low < high:
        return f"{low} to {high} of {expected} seeds each"
    return num_seeds(high, expected) + (" each" if len(with_results) > 1 else "")
