"""Tuned arms: the trial that is best on validation represents all trials.

Every trial keeps its row in the tables. Verdicts and comparisons of methods use one row in place of
the trials (``folded``): the one with the best mean score on the validation split, with the cost of
all trials. The test set takes no part in the choice.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from regrow.core.texts import listed
from regrow.report.rows import COUNT, FLOPS, POINTS, TEXT, Run, to_csv, to_frame
from regrow.report.statistics import mean_and_std
from regrow.report.words import quantity

Family = tuple[str, str]  # group, and the name of the arm that was tuned
COLUMNS = {
    "pruned by": TEXT,
    "arm": TEXT,
    "trials": COUNT,
    "chosen": TEXT,
    "validation": POINTS,
    "training_flops": FLOPS,
    "k": COUNT,
    "expected_validation": POINTS,
}


def folded(runs: Iterable[Run]) -> list[Run]:
    """Return the runs with the trials of each tuned arm replaced by the chosen trial.

    Trials with an unfinished seed are not candidates, unless none is complete. If a candidate has
    no validation score, all trials are left as they are, because none can be chosen.
    """
    listed_runs = list(runs)
    families = _families(listed_runs)
    chosen = {family: _chosen(trials) for family, trials in families.items()}
    result: list[Run] = []
    placed: set[Family] = set()
    for run in listed_runs:
        family = (run.group, run.trial_of)
        best = chosen.get(family)
        if best is None:
            result.append(run)
        elif family not in placed:
            placed.add(family)
            result += _standing_for(best, families[family])
    return result


def expected_validation(scores: Sequence[float]) -> list[float]:
    """Return the expected best of k random trials, for k = 1, 2, ... (more is better).

    E[max of k] = sum over the sorted scores v_i of v_i ((i / n)^k - ((i - 1) / n)^k).

    >>> expected_validation([90.0, 92.0])
    [91.0, 91.5]

    Reference: Dodge et al., Show Your Work: Improved Reporting of Experimental Results, EMNLP 2019,
    arXiv:1909.03004.
    """
    n, ordered = len(scores), sorted(scores)
    return [
        math.fsum(v * ((i / n) ** k - ((i - 1) / n) ** k) for i, v in enumerate(ordered, start=1))
        for k in range(1, n + 1)
    ]


def tuning_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Return a row for each tuned arm of each cell and each number of trials."""
    rows: list[dict[str, object]] = []
    for (_, arm), trials in _families(list(runs)).items():
        best = _chosen(trials)
        if best is None:
            continue
        first, metric = best[0], best[0].metric
        scores = [score for part in trials.values() if (score := _validation(part)) is not None]
        gains = [metric.gain(score) for score in scores]
        for k, gain in enumerate(expected_validation(gains), start=1):
            rows.append(
                {
                    "pruned by": " / ".join((*first.panel, first.cut)),
                    "arm": arm,
                    "trials": len(trials),
                    "chosen": first.arm,
                    "validation": _validation(best),
                    "training_flops": _flops(trials),
                    "k": k,
                    "expected_validation": metric.gain(gain),
                }
            )
    return rows


def tuning_csv(rows: Sequence[dict[str, object]]) -> str:
    """Return the rows of ``tuning_rows`` as CSV."""
    return to_csv(to_frame(rows, COLUMNS), COLUMNS)


def tuning_words(rows: Sequence[dict[str, object]]) -> tuple[tuple[str, ...], ...]:
    """Format a row for each tuned arm, with the expected best score of fewer trials."""
    words: dict[tuple[str, str], tuple[str, ...]] = {}
    curves: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        place = str(row["pruned by"]), str(row["arm"])
        curves.setdefault(place, []).append(f"{row['expected_validation']:.2f}")
        flops = row["training_flops"]
        words[place] = (
            *place,
            str(row["trials"]),
            str(row["chosen"]),
            f"{row['validation']:.2f}",
            quantity(flops if isinstance(flops, float) else None),
        )
    return tuple((*line, " ".join(curves[place])) for place, line in words.items())


def unequal_trials(runs: Sequence[Run]) -> list[str]:
    """Say if compared arms had unequal numbers of trials; nothing if no arm was tuned."""
    families = _families(list(runs))
    numbers = {arm: len(trials) for (_, arm), trials in families.items()}
    alone = {run.arm for run in runs if run.trained and not run.trial_of}
    numbers |= dict.fromkeys(alone, 1)
    if not families or len(set(numbers.values())) == 1:
        return []
    counts = listed([f"{arm} {num}" for arm, num in sorted(numbers.items())])
    return [f"Arms were tuned by unequal numbers of trials: {counts}."]


def _families(runs: Sequence[Run]) -> dict[Family, dict[str, list[Run]]]:
    """Return the trials of each tuned arm of each cell, by their names."""
    families: dict[Family, dict[str, list[Run]]] = {}
    for run in runs:
        if run.trial_of:
            trials = families.setdefault((run.group, run.trial_of), {})
            trials.setdefault(run.arm, []).append(run)
    return families


def _chosen(trials: dict[str, list[Run]]) -> list[Run] | None:
    """Return the runs of the trial with the best mean validation score, if it can be chosen."""
    complete = [runs for runs in trials.values() if all(run.done for run in runs)]
    candidates = complete or [runs for runs in trials.values() if any(run.done for run in runs)]
    scores = [(_validation(runs), runs) for runs in candidates]
    if not scores or any(score is None for score, _ in scores):
        return None
    return max(scores, key=lambda pair: pair[1][0].metric.gain(pair[0] or 0.0))[1]


def _validation(runs: Sequence[Run]) -> float | None:
    values = [run.validation for run in runs if run.done]
    known = [value for value in values if value is not None]
    return mean_and_std(known)[0] if known and len(known) == len(values) else None


def _flops(trials: dict[str, list[Run]]) -> float | None:
    """Return the training FLOPs of all trials and their dependencies, averaged over seeds."""
    costs = [run.training_flops for run in _standing_for(next(iter(trials.values())), trials)]
    known = [cost for cost in costs if cost is not None]
    return mean_and_std(known)[0] if known else None


def _standing_for(best: Sequence[Run], trials: dict[str, list[Run]]) -> list[Run]:
    """Return the chosen runs under the name of the tuned arm, with the cost of all trials."""
    result = []
    for run in best:
        others = [one for runs in trials.values() for one in runs if one.seed == run.seed]
        others = [one for one in others if one.done and one.arm != run.arm]
        flops, epochs = run.training_flops, run.total_epochs
        more = math.fsum(one.epochs or 0 for one in others)
        more_flops = math.fsum(one.arm_flops or 0.0 for one in others)
        words = f"the best of {len(trials)} trials on validation"
        result.append(
            replace(
                run,
                arm=run.trial_of,
                trial_of="",
                recipe=", ".join(filter(None, (run.recipe, words))),
                training_flops=None if flops is None else flops + more_flops,
                total_epochs=None if epochs is None else epochs + more,
                other_trials=(more, more_flops),
            )
        )
    return result
