"""Contests: comparisons of methods at equal cost, under one arm, seed by seed.

    for contest in contests(runs, reference="l1-filter"):
        print(contest.arm, [(v.arm, v.against, v.outcome) for v in contest.averages])

A *level* is one data set, network and amount (``macs 0.5``, ``sparsity 0.3``); a *contest* is one
arm over all levels that have two methods or more, at one training budget where a study has several.
A further contest shows what a user of a method gets: each method under its best retraining, chosen
on validation (``questions.best_of``), and beside them the best small dense network, which needs no
pruning: the best of the designed networks that were trained from scratch.

Methods are paired by seed. Comparisons are ``Verdict`` values, corrected by Holm over a whole
contest. Networks whose costs differ by more than ``setups.EQUAL`` are not compared: their verdict
is "no conclusion", such pairs take no part in averages, and their levels none in ranks.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from regrow.core.durations import epochs_in_words
from regrow.report.budget_gains import Gains
from regrow.report.questions import BEST_RETRAINING, CellQuestion, Question, Side, best_of
from regrow.report.ranks import Concordance, Ranking, agreement, ranking
from regrow.report.rows import Run, Table, by_seed
from regrow.report.setups import equal
from regrow.report.statistics import Superiority, mean_and_std, paired, superiority
from regrow.report.tuning import folded
from regrow.report.validity import Reason, evidence, judge, parent_evidence
from regrow.report.verdict import Verdict, averaged, compare, corrected, rule_of
from regrow.tasks.metric import Metric

DENSE = "small dense network"  # the name of a designed network trained from scratch in a contest
COUNTED = "macs"  # the cost by which methods without a cost target are compared


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One method at one level: its score with the interval of its mean, and what it costs.

    ``cost`` is the share of the unpruned network's cost that is left (of the level's kind), or the
    cost itself if that of the unpruned network is unknown. ``before`` is the score before
    retraining. ``arms`` are those that the runs come from; for the best retraining, the chosen
    ones.
    """

    method: str
    arms: tuple[str, ...]
    how: str
    n: int
    n_expected: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    validation: float | None
    before: float | None
    cost: float | None
    macs_kept: float | None
    parameters_kept: float | None
    training_flops: float | None
    rules: str
    runs: tuple[Run, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One data set, network and amount, with the methods that prune by it.

    ``cost`` names the kind of cost that is compared; ``equal`` is True if all known costs agree.
    """

    data: str
    model: str
    amount: str
    cost: str
    equal: bool
    entrants: tuple[Entrant, ...]
    budget: int | None = None

    @property
    def name(self) -> str:
        """Its display name: ``digits / small VGG / macs 0.5``."""
        budget = epochs_in_words(self.budget)
        return " / ".join(filter(None, (self.data, self.model, budget, self.amount)))


@dataclass(frozen=True, kw_only=True)
class Contest:
    """All comparisons of methods under one arm (or their best retraining), by one metric.

    ``pairs`` has a verdict for each pair of methods (or each against the ``reference``) and level.
    ``main`` has the average of each pair over its levels, or if it has none (it meets at a single
    level, or no level allows a conclusion), its verdicts of ``pairs``. Both are corrected for
    multiple testing, each as one family.
    """

    arm: str
    metric: Metric
    levels: tuple[Level, ...]
    pairs: tuple[Verdict, ...]
    main: tuple[Verdict, ...]
    ranking: Ranking | None
    agreement: Concordance | None
    reference: str | None
    num_unequal: int
    budget: int | None = None

    @property
    def name(self) -> str:
        """Its arm, with the training budget where there are several: ``fine-tune at 8 epochs``."""
        return " at ".join(filter(None, (self.arm, epochs_in_words(self.budget))))

    @property
    def averages(self) -> tuple[Verdict, ...]:
        """Those of the main comparisons that are averages over levels."""
        return tuple(verdict for verdict in self.main if not verdict.group)

    @property
    def parts(self) -> tuple[Verdict, ...]:
        """The comparisons at single levels that averages are over."""
        averaged = {verdict.question for verdict in self.averages}
        return tuple(verdict for verdict in self.pairs if verdict.question in averaged)


def chance_of(verdict: Verdict, *, confidence: float = 0.95) -> Superiority | None:
    """Return the probability that a verdict's first side is better on a new seed."""
    gains = [verdict.metric.gain(difference) for _, difference in verdict.differences]
    return superiority(gains, confidence=confidence)


def contests(
    runs: Iterable[Run],
    *,
    margin: float | None = None,
    reference: str | None = None,
    alpha: float = 0.05,
    gains: Gains | None = None,
) -> tuple[Contest, ...]:
    """Compare the methods of a study wherever two or more have the same amount.

    ``reference`` is the label of a method that each other is compared with, instead of every pair.
    The largest training budget comes first, and for each the best retraining if there is a choice.
    ``gains`` are the gains of the unpruned networks from longer training, by which convergence is
    judged in studies with several budgets.
    """
    parts: dict[int | None, list[Run]] = {}
    for run in folded(runs):
        parts.setdefault(run.training_budget, []).append(run)
    found = []
    for budget in sorted(parts, key=lambda epochs: -(epochs or 0)):
        table = Table(parts[budget])
        fields = [
            (metric, *field)
            for metric, places in _places(table).items()
            if places
            for field in (_best_fields(places), *_arm_fields(places))
        ]
        for metric, arm, sides in fields:
            contest = _contest(
                arm,
                sides,
                table=table,
                gains=gains,
                metric=metric,
                margin=margin,
                wanted=reference,
                alpha=alpha,
            )
            if contest is not None:
                found.append(replace(contest, budget=budget))
    return tuple(found)


# The runs of each level ---------------------------------------------------------------------

Place = tuple[str, str, str]  # data set, model, amount
Arms = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class _Chosen:
    """The runs that represent a method at one level, and how they were chosen."""

    runs: Sequence[Run]
    how: str = ""
    untrained: Sequence[Run] = ()


Sides = dict[Place, dict[str, _Chosen]]


def _places(table: Table) -> dict[Metric, dict[Place, dict[str, Arms]]]:
    """Return metric -> level -> method -> its arms, for levels with several methods."""
    found: dict[Metric, dict[Place, dict[str, Arms]]] = {}
    for arms in table.cells():
        pruned = {arm: runs for arm, runs in arms.items() if not runs[0].unpruned}
        if not pruned:
            continue
        first = next(iter(pruned.values()))[0]
        if first.method:
            place = first.data, first.model, first.level
            methods = found.setdefault(first.metric, {}).setdefault(place, {})
            methods[first.method] = pruned
    return {
        metric: {place: methods for place, methods in places.items() if len(methods) > 1}
        for metric, places in found.items()
    }


def _untrained(arms: Arms) -> Sequence[Run]:
    """Return the runs of the pruned network before retraining, if the study has them."""
    cut = (runs for runs in arms.values() if runs[0].start == "inherited" and not runs[0].trained)
    return next(cut, ())


def _arm_fields(places: Mapping[Place, Mapping[str, Arms]]) -> Iterator[tuple[str, Sides]]:
    """Yield each trained arm with the runs of the methods that have it."""
    names = dict.fromkeys(
        arm
        for methods in places.values()
        for arms in methods.values()
        for arm, runs in arms.items()
        if runs[0].trained
    )
    for name in names:
        yield (
            name,
            {
                place: {
                    method: _Chosen(arms[name], untrained=_untrained(arms))
                    for method, arms in methods.items()
                    if name in arms
                }
                for place, methods in places.items()
            },
        )


def _best_fields(places: Mapping[Place, Mapping[str, Arms]]) -> tuple[str, Sides]:
    """Return each method under its best retraining, and the best small dense network.

    Empty if every method has one retraining only and no designed network was trained from scratch.
    """
    sides: Sides = {}
    choices = False
    for place, methods in places.items():
        side = sides.setdefault(place, {})
        designs: list[Sequence[Run]] = []
        for method, arms in methods.items():
            tuned = [r for r in arms.values() if r[0].trained and r[0].start == "inherited"]
            if tuned:
                chosen, how = best_of(tuned) if len(tuned) > 1 else (tuned[0], "")
                side[method] = _Chosen(chosen, how, _untrained(arms))
                choices |= len(tuned) > 1
            designs += [
                r
                for r in arms.values()
                if r[0].designed and r[0].trained and r[0].start == "random"
            ]
        if designs and side:
            chosen, how = best_of(designs) if len(designs) > 1 else (designs[0], "")
            side[DENSE] = _Chosen(chosen, how)
            choices = True
    return BEST_RETRAINING, sides if choices else {}


# Comparisons --------------------------------------------------------------------------------


def _contest(
    arm: str,
    sides: Sides,
    *,
    table: Table,
    gains: Gains | None,
    metric: Metric,
    margin: float | None,
    wanted: str | None,
    alpha: float,
) -> Contest | None:
    sides = {place: methods for place, methods in sides.items() if len(methods) > 1}
    levels = {place: _level(place, methods, table) for place, methods in sides.items()}
    if not levels:
        return None
    limit = metric.margin if margin is None else margin
    order = [*dict.fromkeys(method for methods in sides.values() for method in methods)]
    opened = {
        place: [
            _pair(*pair, level=level, table=table, gains=gains, margin=limit, alpha=alpha)
            for pair in itertools.combinations(
                sorted(level.entrants, key=lambda entrant: order.index(entrant.method)), 2
            )
        ]
        for place, level in levels.items()
    }
    reference = wanted if any(wanted in methods for methods in sides.values()) else None
    shown = [
        _facing(verdict, reference)
        for verdicts in opened.values()
        for verdict in verdicts
        if reference is None or reference in (verdict.arm, verdict.against)
    ]
    by_pair: dict[Question, list[Verdict]] = {}
    for verdict in shown:
        by_pair.setdefault(verdict.question, []).append(verdict)
    means = {
        pair: mean
        for pair, found in by_pair.items()
        if len(found) > 1 and (mean := averaged(found)) is not None
    }
    main = [v for pair in by_pair for v in ([means[pair]] if pair in means else by_pair[pair])]
    ranked = [levels[place] for place, pairs in opened.items() if all(v.counts for v in pairs)]
    return Contest(
        arm=arm,
        metric=metric,
        levels=tuple(levels.values()),
        pairs=tuple(corrected(shown)),
        main=tuple(corrected(main if means else shown)),
        ranking=_ranking(ranked, metric, alpha),
        agreement=_agreement(sides.values()),
        reference=reference,
        num_unequal=sum(not level.equal for level in levels.values()),
    )


def _pair(
    first: Entrant,
    second: Entrant,
    *,
    level: Level,
    table: Table,
    gains: Gains | None,
    margin: float,
    alpha: float,
) -> Verdict:
    """Compare two methods at one level, before correction and outcome."""
    runs = [*first.runs, *second.runs]
    plain = evidence(table.unpruned(runs[0]))
    cut_from = parent_evidence(runs)
    sides = [evidence(first.runs), evidence(second.runs)]
    reasons: tuple[Reason, ...] = ()
    if sides[0] is not None and sides[1] is not None:
        reasons = judge(
            sides[0],
            sides[1],
            parent=cut_from or plain,
            plain=plain or cut_from,
            cut=[side for side in sides if side is not None],
            margin=margin,
            gain=None if gains is None else gains.about(runs[0]),
        )
        reasons = (*_unequal(first, second, level), *reasons)
    names = [
        Side(name=e.method, start="", trained=True, equal_flops=False) for e in (first, second)
    ]
    question = Question(about="method", first=names[0], second=names[1], metric=runs[0].metric)
    verdict = compare(
        CellQuestion(question=question, first=first.runs, second=second.runs),
        reasons=reasons,
        margin=margin,
        alpha=alpha,
    )
    return replace(
        verdict, group=level.name, where=level.name, arm=first.method, against=second.method
    )


def _unequal(first: Entrant, second: Entrant, level: Level) -> Iterator[Reason]:
    """Yield a reason if two costs differ, or were measured on different machines."""
    machines = {run.cost_machine for run in (*first.runs, *second.runs) if run.cost_machine}
    if not equal(first.cost, second.cost):
        figures = ", ".join(f"{e.method} {_share(e.cost)}" for e in (first, second))
        yield Reason(rule="unequal cost", figures=f"{level.cost} left: {figures}")
    elif len(machines) > 1:
        figures = f"{level.cost} were measured on different machines: {'; '.join(sorted(machines))}"
        yield Reason(rule="unequal cost", figures=figures)


def _share(cost: float | None) -> str:
    if cost is None:
        return "unknown"
    return f"{100 * cost:.3g} %" if cost <= 1 else f"{cost:.4g}"


def _facing(verdict: Verdict, reference: str | None) -> Verdict:
    """Swap the sides of a comparison if its second side is the reference."""
    question, old = verdict.question, verdict.comparison
    if verdict.against != reference or question.first is None:
        return verdict
    turned = replace(
        verdict,
        question=replace(question, first=question.second, second=question.first),
        arm=verdict.against,
        against=verdict.arm,
        rules=(verdict.rules[1], verdict.rules[0]),
        differences=tuple((seed, -difference) for seed, difference in verdict.differences),
    )
    if old is None or verdict.equivalence is None:
        return turned
    bounds = verdict.equivalence
    return replace(
        turned,
        comparison=replace(
            old, difference=-old.difference, low=_minus(old.high), high=_minus(old.low)
        ),
        equivalence=replace(bounds, low=_minus(bounds.high), high=_minus(bounds.low)),
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


# Levels, ranks and orders -------------------------------------------------------------------


def _level(place: Place, chosen: Mapping[str, _Chosen], table: Table) -> Level:
    data, model, amount = place
    first = next(iter(chosen.values())).runs[0]
    asked = first.cost_asked is not None or any(
        run.cost_asked is not None for choice in chosen.values() for run in choice.runs
    )
    cost = amount.split()[0] if asked else COUNTED
    entrants = tuple(
        _entrant(method, choice, whole=table.unpruned(choice.runs[0]), asked=asked)
        for method, choice in chosen.items()
    )
    known = [e.cost for e in entrants if e.cost is not None]
    return Level(
        data=data,
        model=model,
        amount=amount,
        cost=cost,
        equal=all(equal(one, other) for one, other in itertools.combinations(known, 2)),
        entrants=entrants,
        budget=first.training_budget,
    )


def _entrant(method: str, choice: _Chosen, *, whole: Sequence[Run], asked: bool) -> Entrant:
    runs = choice.runs
    done = [run for run in runs if run.done]
    scores = [run.score for run in done if run.score is not None]
    mean, std = mean_and_std(scores) if scores else (None, None)
    test = paired(scores, [0.0] * len(scores)) if scores else None
    macs_left = _mean([run.macs for run in done])
    macs_kept = _ratio(macs_left, _mean([run.macs for run in whole if run.done]))
    left = _mean([run.cost_left for run in done]) if asked else macs_kept
    if left is None and not asked:
        left = macs_left
    return Entrant(
        method=method,
        arms=tuple(dict.fromkeys(run.arm for run in runs)),
        how=choice.how,
        n=len(scores),
        n_expected=len(runs),
        mean=mean,
        std=std,
        low=test.low if test else None,
        high=test.high if test else None,
        validation=_mean([run.validation for run in done]),
        before=_mean([run.score for run in choice.untrained if run.done]),
        cost=left,
        macs_kept=macs_kept,
        parameters_kept=_ratio(
            _mean([run.parameters for run in done]),
            _mean([run.parameters for run in whole if run.done]),
        ),
        training_flops=_mean([run.training_flops for run in done]),
        rules=rule_of(done),
        runs=tuple(runs),
    )


def _ranking(levels: Sequence[Level], metric: Metric, alpha: float) -> Ranking | None:
    """Rank the methods that all levels have, over levels of equal cost that allow a conclusion.

    Means are over the seeds that all these methods have; a level without one is left out.
    """
    scores = [{e.method: by_seed(e.runs) for e in level.entrants if e.n} for level in levels]
    methods = [name for name in scores[0] if all(name in cell for cell in scores)] if scores else []
    if not methods:
        return None
    gains: dict[str, list[float]] = {name: [] for name in methods}
    for cell in scores:
        seeds = sorted(set.intersection(*({*cell[name]} for name in methods)))
        if not seeds:
            continue
        for name in methods:
            mean, _ = mean_and_std([cell[name][seed] for seed in seeds])
            gains[name].append(metric.gain(mean))
    return ranking(gains, alpha=alpha)


def _agreement(sides: Iterable[Mapping[str, _Chosen]]) -> Concordance | None:
    """Compare the order of the methods before retraining with that after it."""
    cells: list[list[dict[int, dict[str, float]]]] = [[], []]
    for methods in sides:
        scores: list[dict[int, dict[str, float]]] = [{}, {}]
        for method, choice in methods.items():
            for side, runs in zip(scores, (choice.untrained, choice.runs), strict=True):
                for run in runs:
                    if run.score is not None:
                        side.setdefault(run.seed, {})[method] = run.score
        for found, side in zip(cells, scores, strict=True):
            found.append(side)
    return agreement(*cells)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return mean_and_std(known)[0] if known else None


def _ratio(left: float | None, full: float | None) -> float | None:
    return left / full if left is not None and full else None
