"""Contests of methods in words: sentences for the answer, tables, and CSV files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from regrow.core.texts import listed
from regrow.report import rows
from regrow.report.answer import finding
from regrow.report.contests import DENSE, Contest, Entrant, Level, chance_of
from regrow.report.questions import BEST_RETRAINING
from regrow.report.render import Extra
from regrow.report.setups import ABOUT as SETUPS
from regrow.report.setups import EQUAL
from regrow.report.validity import rule_text
from regrow.report.verdict import OUTCOMES, Outcome, Verdict, num_cells
from regrow.report.words import PLUS_MINUS, p_value, quantity, score, seeds, signed

MOST_SENTENCES = 6  # most pairs that the answer describes one by one
SHOWN: tuple[Outcome, ...] = ("better", "equivalent", "worse")
ABOUT = (
    f"Mean {PLUS_MINUS} standard deviation (n - 1) over n seeds; 95% interval of the mean (t). "
    "'{cost}' is the share of the unpruned network's that is left; rows whose cost differs by more "
    f"than {100 * EQUAL:g} % of the larger are not compared. 'Before' is the score before "
    "retraining. Training FLOPs count every training that a row depends on, but none of weights "
    "that were given."
)
PAIRS = (
    "First minus second, paired by seed: 95% interval and two-sided p of the paired t test, "
    "corrected by Holm over this table's {num} comparisons; 'equivalent' is TOST within the margin "
    "of {margin}, corrected likewise. 'P(first better)' is the share of seeds that the first wins, "
    f"with its exact 95% interval (Bouthillier et al., 2021). {SETUPS}"
)
PAIR_HEADS = (
    *("first", "second", "difference", "95% interval", "p (Holm)", "P(first better)"),
    *("outcome", "setup"),
)
CONTEST = {"contest": rows.TEXT}
PLACE = dict.fromkeys(("data", "model", "amount"), rows.TEXT)
ENTRANT_COLUMNS = {
    **CONTEST,
    **PLACE,
    **dict.fromkeys(("method", "arms", "chosen"), rows.TEXT),
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("mean", "std", "low", "high", "validation", "before"), rows.POINTS),
    "cost": rows.TEXT,
    **dict.fromkeys(("cost_left", "macs_kept", "parameters_kept"), rows.KEPT),
    "training_flops": rows.FLOPS,
    "equal_cost": rows.FLAG,
    "rules": rows.TEXT,
}
PAIR_COLUMNS = {
    **CONTEST,
    **dict.fromkeys(("level", "first", "second", "outcome"), rows.TEXT),
    **dict.fromkeys(("n", "n_expected"), rows.COUNT),
    **dict.fromkeys(("margin", "difference", "std", "low", "high"), rows.POINTS),
    **dict.fromkeys(("p", "p_equivalence"), rows.LOSS),
    **dict.fromkeys(("p_first_better", "p_first_better_low", "p_first_better_high"), rows.POINTS),
    **dict.fromkeys(("setup", "reasons"), rows.TEXT),
}
RANK_COLUMNS = {
    **CONTEST,
    "method": rows.TEXT,
    **dict.fromkeys(("mean_rank", "critical_difference"), rows.POINTS),
    "cells": rows.COUNT,
    **dict.fromkeys(("friedman_chi2", "friedman_p", "iman_davenport_f"), rows.LOSS),
    "iman_davenport_p": rows.LOSS,
}


def answers(contests: Sequence[Contest]) -> list[str]:
    """Summarise each contest in a line, and say once which rows have unequal costs.

    If the study asks about one method, the answers come first; otherwise the costs do.
    """
    lines = [" ".join(_lines(contest)) for contest in contests]
    asked = any(contest.reference is not None for contest in contests)
    return [*lines, *unequal(contests)] if asked else [*unequal(contests), *lines]


def unequal(contests: Sequence[Contest]) -> list[str]:
    """Say once which rows are not compared because their costs differ."""
    return [*dict.fromkeys(line for contest in contests for line in _unequal_lines(contest))]


def question(contest: Contest) -> str:
    """Return the question of a contest: about its reference, or about all methods."""
    under = f"under {name_of(contest)}{_how(contest)}"
    if contest.reference is None:
        return f"Which method is best at equal cost, {under}?"
    return f"Is {contest.reference} better than the others at equal cost, {under}?"


def short_answer(contest: Contest) -> str:
    """Answer a reference's question in a few words: ``Better than 4 of 6, worse than 0``."""
    outcomes: dict[str, set[Outcome]] = {}
    for verdict in contest.main:
        outcomes.setdefault(verdict.against, set()).add(verdict.outcome)
    found = {verdict.outcome for verdict in contest.main}
    if found == {"not run"}:
        return "Not run"
    better = sum(each == {"better"} for each in outcomes.values())
    worse = sum("worse" in each for each in outcomes.values())
    if better == len(outcomes):
        opposed = {part.group for _, part in _opposed(contest) if part.outcome == "worse"}
        cells = num_cells(len(opposed), of=len({part.group for part in contest.parts}))
        return f"On average yes, but worse in {cells}" if opposed else "Yes"
    if better or worse:
        return f"Better than {better} of {len(outcomes)}, worse than {worse}"
    if found == {"equivalent"}:
        return "No: equivalent to all"
    return "Undecided" if any(verdict.counts for verdict in contest.main) else "No conclusion"


def tables(contests: Sequence[Contest]) -> tuple[Extra, ...]:
    """Return two tables for each contest: its methods and its comparisons."""
    return tuple(table for contest in contests for table in _tables(contest))


def csv_files(contests: Sequence[Contest]) -> dict[str, str]:
    """Return all numbers of the contests as CSV texts by file name; none without contests."""
    if not contests:
        return {}
    entrants = [row for contest in contests for row in _entrant_rows(contest)]
    pairs = [row for contest in contests for row in _pair_rows(contest)]
    ranks = [row for contest in contests for row in _rank_rows(contest)]
    several = any(contest.budget is not None for contest in contests)
    contest_columns = {**CONTEST, **({rows.BUDGET: rows.COUNT} if several else {})}
    files = {
        "methods.csv": (entrants, ENTRANT_COLUMNS),
        "pairs.csv": (pairs, PAIR_COLUMNS),
        "ranks.csv": (ranks, RANK_COLUMNS),
    }
    return {
        name: rows.to_csv(rows.to_frame(lines, columns), columns)
        for name, (lines, own) in files.items()
        for columns in ({**contest_columns, **own},)
    }


def name_of(contest: Contest) -> str:
    """Name the retraining of a contest: ``fine-tune``, ``the best retraining of each``."""
    each = contest.arm == BEST_RETRAINING
    return replace(contest, arm=f"{BEST_RETRAINING} of each").name if each else contest.name


# Sentences ----------------------------------------------------------------------------------


def _lines(contest: Contest) -> Iterator[str]:
    main = contest.main
    run = any(verdict.differences for verdict in main)
    if contest.reference is not None:
        yield f"{question(contest)} {short_answer(contest)}{':' if run else '.'}"
    else:
        yield f"Methods at equal cost, under {name_of(contest)}{_how(contest)}:"
    if not run and contest.reference is None:
        yield "not run."
    elif contest.reference is not None:
        yield from [_against(contest)] if run else []
    else:
        yield _counts(main)
    shown = [verdict for verdict in main if verdict.outcome in SHOWN]
    if contest.reference is None or len(shown) <= MOST_SENTENCES:
        yield from _findings(shown[:MOST_SENTENCES])
        if len(shown) > MOST_SENTENCES:
            yield f"{len(shown) - MOST_SENTENCES} more are in the table."
    yield from _opposed_lines(contest)
    yield from _rank_lines(contest)
    yield from _agreement_lines(contest)


def _findings(shown: Sequence[Verdict]) -> Iterator[str]:
    """Describe comparisons, naming a level once before those that are made at it."""
    place = ""
    for verdict in shown:
        words = finding(verdict)
        if verdict.where != place:
            place = verdict.where
            words = f"{place if verdict.group else place.capitalize()}: {words}"
        yield words


def _opposed(contest: Contest) -> list[tuple[Verdict, Verdict]]:
    """Return each decided average with those of its levels where another difference is shown."""
    return [
        (mean, part)
        for mean in contest.averages
        for part in contest.parts
        if part.question == mean.question
        and mean.outcome in SHOWN
        and part.outcome in ("better", "worse")
        and part.outcome != mean.outcome
    ]


def _opposed_lines(contest: Contest) -> Iterator[str]:
    """Name the levels where a difference is shown that an average does not show."""
    places: dict[tuple[str, Outcome, str], list[str]] = {}
    for _, part in _opposed(contest):
        places.setdefault((part.arm, part.outcome, part.against), []).append(part.where)
    for (arm, outcome, against), levels in [*places.items()][:MOST_SENTENCES]:
        yield f"But {arm} is {outcome} than {against} at {listed(levels)}."
    if len(places) > MOST_SENTENCES:
        yield f"{len(places) - MOST_SENTENCES} more such exceptions are in pairs.csv."


def _how(contest: Contest) -> str:
    """Say how the arms were chosen, or by which recipe and budget the arm trained, if by one."""
    entrants = [entrant for level in contest.levels for entrant in level.entrants if entrant.n]
    words = dict.fromkeys(e.how for e in entrants if e.how) or dict.fromkeys(
        e.rules for e in entrants
    )
    if contest.arm != BEST_RETRAINING and len(words) > 1:
        return ""
    return f" ({' or '.join(words)})" if words else ""


def _counts(main: Sequence[Verdict]) -> str:
    counts = {outcome: sum(v.outcome == outcome for v in main) for outcome in OUTCOMES}
    told = counts["better"] + counts["worse"]
    rest = [f"{counts[o]} {o}" for o in ("equivalent", "undecided", "not run") if counts[o]]
    if num := counts["no conclusion"]:
        rest.append(f"{num} {'allows' if num == 1 else 'allow'} no conclusion{_why(main)}")
    text = f"of {len(main)} pairs, {told} differ" if len(main) > 1 else f"1 pair, {told} differ"
    return f"{listed([text, *rest])}."


def _against(contest: Contest) -> str:
    """Say what a reference is better, equivalent and worse than."""
    groups: dict[Outcome, str] = {
        "better": "better than",
        "equivalent": "equivalent to",
        "worse": "worse than",
        "undecided": "undecided against",
        "no conclusion": "not comparable with",
        "not run": "not run against",
    }
    rivals = {o: [v.against for v in contest.main if v.outcome == o] for o in groups}
    parts = [
        f"{words} {listed([*dict.fromkeys(rivals[outcome])])}"
        f"{_why(contest.main) if outcome == 'no conclusion' else ''}"
        for outcome, words in groups.items()
        if rivals[outcome]
    ]
    return f"{contest.reference} is {'; '.join(parts)}."


def _why(main: Sequence[Verdict]) -> str:
    """Give the reasons for no conclusion, without unequal costs, which are said once."""
    reasons = [v.left_out_for for v in main if v.outcome == "no conclusion"]
    texts = dict.fromkeys(
        rule_text(reason.rule, reason.metric)
        for reason in reasons
        if reason is not None and reason.rule != "unequal cost"
    )
    return f" ({listed([*texts])})" if texts else ""


def _unequal_lines(contest: Contest) -> Iterator[str]:
    """Say which methods are not compared because their costs differ, level by level."""
    for level in (level for level in contest.levels if not level.equal):
        yield (
            f"Not all methods are compared, because costs differ: {level.name} ({level.cost} left: "
            f"{_costs(level)})."
        )


def _costs(level: Level) -> str:
    return ", ".join(f"{e.method} {_cost(e.cost)}" for e in level.entrants if e.method != DENSE)


def _cost(cost: float | None) -> str:
    if cost is None:
        return "?"
    return f"{100 * cost:.3g} %" if cost <= 1 else quantity(cost)


def _rank_lines(contest: Contest) -> Iterator[str]:
    ranking = contest.ranking
    if ranking is None or ranking.num < 2:  # one cell's ranks add nothing to its pairs
        return
    pairs = zip(ranking.methods, ranking.ranks, strict=True)
    text = ", ".join(f"{method} {rank:.2f}" for method, rank in pairs)
    if ranking.critical is None or ranking.p is None or ranking.p_f is None:
        yield f"Average ranks over {ranking.num} cells, too few for a test of ranks: {text}."
        return
    groups = "; ".join(listed([*group]) for group in ranking.alike)
    apart = f"not significantly different: {groups}" if groups else "all differ significantly"
    yield (
        f"Average ranks over {ranking.num} cells, taken as independent: {text}; critical "
        f"difference {ranking.critical:.2f} (Nemenyi, {ranking.alpha:g}): {apart}. Friedman's test "
        f"{p_value(ranking.p)}, by Iman and Davenport {p_value(ranking.p_f)}."
    )


def _agreement_lines(contest: Contest) -> Iterator[str]:
    found = contest.agreement
    if found is None:
        return
    interval = "" if found.n else "; of means over seeds"
    if found.n > 1:
        interval = f", mean of {found.n} seeds"
    if found.low is not None and found.high is not None:
        interval += f", 95% interval {found.low:.2f} to {found.high:.2f}"
    cells = "1 cell" if found.num == 1 else f"{found.num} cells"
    unequal = f"; {contest.num_unequal} of them of unequal cost" if contest.num_unequal else ""
    yield (
        f"Order of methods before and after retraining: Kendall's tau {found.tau:.2f} "
        f"({cells}{interval}{unequal})."
    )


# Tables -------------------------------------------------------------------------------------


def _tables(contest: Contest) -> Iterator[Extra]:
    metric, name = contest.metric, name_of(contest)
    several = len({level.name for level in contest.levels}) > 1
    costs = " or ".join(dict.fromkeys(f"{level.cost} left" for level in contest.levels))
    held_out = any(e.validation is not None for level in contest.levels for e in level.entrants)
    chosen = any(entrant.how for level in contest.levels for entrant in level.entrants)
    yield Extra(
        name=f"methods {contest.name}",
        title=f"Methods under {name}" + ("" if several else f": {contest.levels[0].name}"),
        columns=(
            *(("where",) if several else ()),
            "method",
            *(("arm",) if chosen else ()),
            *(metric.head, "95% interval", "n"),
            *((f"{metric.head} on validation",) if held_out else ()),
            *(costs, "before", "training FLOPs"),
        ),
        rows=tuple(
            (
                *((level.name,) if several else ()),
                entrant.method,
                *((" or ".join(entrant.arms),) if chosen else ()),
                *_entrant_words(entrant, contest, held_out=held_out),
            )
            for level in contest.levels
            for entrant in level.entrants
        ),
        about=ABOUT.format(cost=costs),
        csv="",
        names=1 + several + chosen,
    )
    apart = several and any(verdict.group for verdict in contest.main)
    tested = sum(v.p is not None for v in contest.main)
    margin = metric.amount(f"{contest.pairs[0].margin:g}") if contest.pairs else ""
    yield Extra(
        name=f"pairs {contest.name}",
        title=f"Comparisons of methods under {name}"
        + (", averaged over networks, data sets and amounts" if contest.averages else ""),
        columns=(*(("where",) if apart else ()), *PAIR_HEADS),
        rows=tuple(
            (*((verdict.where,) if apart else ()), *_pair_words(verdict))
            for verdict in contest.main
        ),
        about=PAIRS.format(num=tested, margin=margin),
        csv="",
        names=2 + apart,
        wide=1,
    )


def _entrant_words(entrant: Entrant, contest: Contest, *, held_out: bool) -> tuple[str, ...]:
    digits, validation = contest.metric.digits, entrant.validation
    held_out_words = "" if validation is None else f"{validation:.{digits}f}"
    return (
        score(entrant.mean, entrant.std, entrant.n, digits=digits),
        _interval(entrant.low, entrant.high, digits),
        seeds(entrant.n, entrant.n_expected),
        *((held_out_words,) if held_out else ()),
        _cost(entrant.cost) if entrant.n else "",
        "" if entrant.before is None else f"{entrant.before:.{digits}f}",
        quantity(entrant.training_flops),
    )


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _pair_words(verdict: Verdict) -> tuple[str, ...]:
    test, digits, chance = verdict.comparison, verdict.metric.digits, chance_of(verdict)
    if test is None or chance is None:
        return (verdict.arm, verdict.against, *[""] * 4, verdict.outcome, "")
    interval = ""
    if test.low is not None and test.high is not None:
        interval = f"{signed(test.low, digits=digits)} to {signed(test.high, digits=digits)}"
    return (
        verdict.arm,
        verdict.against,
        signed(test.difference, digits=digits),
        interval,
        "" if verdict.p is None else p_value(verdict.p).removeprefix("p = ").removeprefix("p "),
        f"{chance.value:.2f} ({chance.low:.2f}-{chance.high:.2f})",
        verdict.outcome,
        verdict.setup,
    )


# Files --------------------------------------------------------------------------------------


def _entrant_rows(contest: Contest) -> Iterator[dict[str, object]]:
    for level in contest.levels:
        for entrant in level.entrants:
            yield {
                **vars(entrant),
                "contest": contest.arm,
                rows.BUDGET: contest.budget,
                "data": level.data,
                "model": level.model,
                "amount": level.amount,
                "arms": " or ".join(entrant.arms),
                "chosen": entrant.how,
                "cost": level.cost,
                "cost_left": entrant.cost,
                "equal_cost": level.equal,
            }


def _pair_rows(contest: Contest) -> Iterator[dict[str, object]]:
    empty = dict.fromkeys(("difference", "std", "low", "high"))
    for verdict in (*contest.parts, *contest.main):
        chance = chance_of(verdict)
        yield {
            **(vars(verdict.comparison) if verdict.comparison else empty),
            **vars(verdict),
            "contest": contest.arm,
            rows.BUDGET: contest.budget,
            "level": verdict.group or verdict.where,
            "first": verdict.arm,
            "second": verdict.against,
            "n": verdict.n,
            "p_first_better": chance.value if chance else None,
            "p_first_better_low": chance.low if chance else None,
            "p_first_better_high": chance.high if chance else None,
            "reasons": "; ".join(reason.text for reason in verdict.reasons),
        }


def _rank_rows(contest: Contest) -> Iterator[dict[str, object]]:
    ranking = contest.ranking
    if ranking is None:
        return
    for method, rank in zip(ranking.methods, ranking.ranks, strict=True):
        yield {
            "contest": contest.arm,
            rows.BUDGET: contest.budget,
            "method": method,
            "mean_rank": rank,
            "critical_difference": ranking.critical,
            "cells": ranking.num,
            "friedman_chi2": ranking.chi2,
            "friedman_p": ranking.p,
            "iman_davenport_f": ranking.f,
            "iman_davenport_p": ranking.p_f,
        }
