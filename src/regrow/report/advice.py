"""Advice on which network of a comparison to take: its costs, and whether it is shown to be best.

Of the smaller networks, the one with the best mean score is recommended only if it is above chance
and each other is shown to be worse. They are compared over the seeds that all have, seed by seed,
corrected by Holm over all pairs, because the best is chosen by the same numbers.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from regrow.core.texts import listed
from regrow.report import words
from regrow.report.answer import Answer
from regrow.report.budget_gains import at_largest
from regrow.report.rows import Run, Table, by_seed, once
from regrow.report.statistics import holm, mean_and_std, paired, rounded
from regrow.report.validity import evidence, level
from regrow.report.verdict import Verdict
from regrow.tasks.metric import Metric

QUESTION = "Which network to take?"
ALPHA = 0.05
TESTED = "Tested by paired t tests of all pairs of these, corrected by Holm."


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a cell: its runs by seed."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Its arm."""
        return self.runs[0].arm

    @property
    def scores(self) -> Mapping[int, float]:
        """Its scores by seed."""
        return by_seed(self.runs)

    @property
    def mean(self) -> float:
        """Its mean score."""
        return mean_and_std([*self.scores.values()])[0]

    def over(self, seeds: Collection[int]) -> "Contender":
        """Return it with the runs of some seeds alone."""
        return Contender(runs=tuple(run for run in self.runs if run.seed in seeds))

    def size(self, name: str) -> float | None:
        """Return the mean of a cost over its seeds; None if unknown."""
        values = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return sum(values) / len(values) if values else None


def advice(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> Iterator[Answer]:
    """Answer for each cell which network to take, at the largest training budget."""
    largest = at_largest(runs)
    table = Table(largest)
    several = len({run.group for run in largest if not run.unpruned}) > 1
    for arms in table.cells():
        rows = [Contender(runs=done) for rs in arms.values() if (done := _done(rs))]
        rows = [row for row in rows if not row.runs[0].unpruned]
        if len(rows) < 2:
            continue
        first = rows[0].runs[0]
        without = [arm for arm, rs in arms.items() if not rs[0].unpruned and not _done(rs)]
        found = _answer(rows, Contender(runs=_done(table.unpruned(first))), without)
        if left_out := _left_out(first.group, verdicts):
            found = replace(found, short="No conclusion", text=left_out)
        question = f"{QUESTION[:-1]} ({first.cut})?" if several else QUESTION
        yield replace(found, question=question)


def so_far(runs: Sequence[Run]) -> str:
    """Format the mean score of each row of one cell; empty if the runs are of several cells."""
    groups = {run.group for run in runs if not run.unpruned}
    rows = [Contender(runs=tuple(of_arm)) for of_arm in _by_arm(runs).values()]
    if len(groups) > 1 or not rows:
        return ""
    metric = rows[0].runs[0].metric
    means = [f"{row.name} {row.mean:.{metric.digits}f}" for row in rows if row.scores]
    mean = "mean " if max(len(row.scores) for row in rows) > 1 else ""
    return f"{mean}{metric.axis}: {', '.join(means)}"


def _by_arm(runs: Sequence[Run]) -> Mapping[tuple[str, str], list[Run]]:
    arms: dict[tuple[str, str], list[Run]] = {}
    for run in _done(runs):
        arms.setdefault((run.group, run.arm), []).append(run)
    return arms


def _done(runs: Sequence[Run]) -> tuple[Run, ...]:
    return tuple(run for run in runs if run.done)


def _left_out(group: str, verdicts: Sequence[Verdict]) -> str:
    """Return why a cell allows no conclusion; empty if any verdict on it counts."""
    of_cell = [v for v in verdicts if v.group == group and v.differences]
    reasons = [v.left_out_for for v in of_cell]
    if not reasons or any(reason is None for reason in reasons):
        return ""
    return f"{reasons[0].text}." if reasons[0] is not None else ""


def _answer(contenders: Sequence[Contender], whole: Contender, without: Sequence[str]) -> Answer:
    """Recommend the best of several networks, if no other (nor one ``without`` results) may be."""
    metric = contenders[0].runs[0].metric
    common = set.intersection(*({*row.scores} for row in contenders))
    rows = [row.over(common) for row in contenders] if common else contenders
    # Of rows with the same mean, the smaller one first.
    ranked = sorted(
        rows, key=lambda row: (-metric.gain(rounded(row.mean)), row.size("macs") or 0.0)
    )
    best, others = ranked[0], ranked[1:]
    known = evidence(best.runs)
    if known is not None and known.above_chance is False:
        text = (
            f"{best.name} has the best mean of the {len(rows)} compared, and is not "
            f"{metric.beats_baseline} ({level(known)})."
        )
        return Answer(question=QUESTION, short="No conclusion", text=text)
    ps = _corrected(ranked)
    tested = len(common) > 1
    clear = [row for row in others if tested and _below(ps[best.name, row.name])]
    decided = len(clear) == len(others) and not without
    lead = "" if decided else f"{best.name} has the best mean of the {len(rows)} compared: "
    parts = [lead + _about(best, whole, metric)]
    if common and any(len(row.scores) > len(common) for row in contenders):
        parts.append(f"Compared over {words.num_seeds(len(common), len(common))} that all have.")
    parts += _size(best, others)
    if not tested:
        most = max(len(row.scores) for row in contenders)
        why = (
            "that takes two seeds or more (--seeds)"
            if most < 2
            else "the networks have fewer than two seeds in common"
        )
        parts.append(f"Nothing is tested: {why}.")
    parts += [f"It is shown to be better than {listed([r.name for r in clear])}."] if clear else []
    parts += _open(best, [row for row in others if tested and row not in clear], metric)
    if without:
        parts.append(f"Without results: {listed(without)}.")
    parts += [TESTED] if tested else []
    parts += _against_whole(best, whole, metric)
    short = f"Take {best.name}" if decided else "Not decided"
    return Answer(question=QUESTION, short=short, text=" ".join(parts))


def _about(best: Contender, whole: Contender, metric: Metric) -> str:
    """Describe a network's score and costs."""
    costs = []
    for name, noun in (("parameters", "parameters"), ("macs", "MACs")):
        size, full = best.size(name), whole.size(name) if whole.runs else None
        share = size / full if size is not None and full else None
        costs.append(f"{words.with_kept(size, share)} {noun}")
    epochs, flops = best.size("epochs"), best.size("training_flops")
    if epochs:
        costs.append(f"{words.quantity(epochs)} epoch{'' if epochs == 1 else 's'} of training")
    if flops:
        costs.append(f"{words.quantity(flops)} training FLOPs in all")
    score = f"{best.mean:.{metric.digits}f} {metric.unit or metric.name}"
    return f"{score} with {listed(costs)}."


def _size(best: Contender, others: Sequence[Contender]) -> Iterator[str]:
    """Say that the best network is also the smallest, if it is."""
    sizes = [(row.size("macs") or 0.0, row.size("parameters") or 0.0) for row in (best, *others)]
    if all(sizes[0] <= size for size in sizes) and any(size != sizes[0] for size in sizes):
        yield f"It is the smallest of the {len(sizes)} compared."


def _open(best: Contender, rows: Sequence[Contender], metric: Metric) -> Iterator[str]:
    """List the networks not shown to be worse, with their difference and if they are smaller."""
    texts = []
    for row in rows:
        gap = words.signed(row.mean - best.mean, digits=metric.digits)
        smaller = (row.size("macs") or 0.0) < (best.size("macs") or 0.0)
        texts.append(f"{row.name} ({gap}{', and smaller' if smaller else ''})")
    if texts:
        yield f"Not shown to be worse: {listed(texts)}."


def _against_whole(best: Contender, whole: Contender, metric: Metric) -> Iterator[str]:
    """Give the difference from the unpruned network, if there is one.

    It is not tested, because the best network was chosen by the same numbers. The question of the
    best arm, which is chosen by the other seeds, has the valid test.
    """
    seeds = [seed for seed in best.scores if seed in whole.scores] if whole.runs else []
    if seeds:
        pairs = [best.scores[seed] for seed in seeds], [whole.scores[seed] for seed in seeds]
        gap = words.signed(paired(*pairs).difference, digits=metric.digits)
        yield f"Compared with the unpruned network: {metric.amount(gap)}."


def _corrected(rows: Sequence[Contender]) -> Mapping[tuple[str, str], float | None]:
    """Return Holm-corrected p-values of all pairs of rows, over the seeds that both have."""
    pairs = [*combinations(rows, 2)]
    ps = []
    for a, b in pairs:
        seeds = [seed for seed in a.scores if seed in b.scores]
        alike = len(once(a.runs)) == len(once(b.runs)) == 1  # one measurement each, repeated
        found = (
            paired([a.scores[s] for s in seeds], [b.scores[s] for s in seeds]) if seeds else None
        )
        ps.append(None if found is None or alike else found.p)
    names = [(a.name, b.name) for a, b in pairs]
    return dict(zip(names, holm(ps), strict=True))


def _below(p: float | None) -> bool:
    return p is not None and p < ALPHA
