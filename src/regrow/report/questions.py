"""Questions that the arms of a cell can answer: pairs of arms, chosen by value, not by name.

Kinds of question (``About``), in the order of the answer:

- *scratch*: each trained arm with a random start against each trained arm that inherits weights.
  Against each, because the best of several retrainings is partly chosen by luck, and nobody runs
  their mean. If a cell does not train inherited weights, the reference is the pruned network
  without retraining (some methods are published that way). If a cell has several retrainings, also
  against the best of them, chosen on the validation split or, without one, for each seed by the
  other seeds (``best_of``).
- *ticket*: each arm that starts from the unpruned network's weights before or early in its training
  against each arm that starts from another initialisation of the same network or, without one,
  against arms with a random start. If any of these controls has the ticket's budget, only those.
- *best*: the best arm against the unpruned network. For each seed it is chosen by the other seeds,
  because the maximum of several noisy means is biased upwards on the seeds that it is chosen by.
- *method*: one method against another at equal cost; asked by ``regrow.report.contests``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from regrow.jobs.arms import Start
from regrow.report.rows import Run
from regrow.report.statistics import mean_and_std, means_of_others
from regrow.tasks.metric import ACCURACY, Metric

About = Literal["scratch", "ticket", "best", "method"]
BEST = "the best arm"
BEST_RETRAINING = "the best retraining"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a question: an arm, described by what matters for the question.

    ``subject`` names the network that the arm trains, if that is not the row's own.
    """

    name: str
    start: Start | Literal[""]
    trained: bool
    equal_flops: bool
    subject: str = ""

    @classmethod
    def of(cls, run: Run) -> "Side":
        """Describe the arm of a run."""
        return cls(
            name=run.arm,
            start=run.start,
            trained=run.budget != "none",
            equal_flops=run.budget == "equal-flops",
            subject=run.subject,
        )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about two arms; equal for all cells that ask it.

    ``first`` is None for the best arm, because that differs between cells. ``at`` is the training
    budget in words. ``main`` is True if that is the study's largest or only budget; only main
    questions are answered over all cells.
    """

    about: About
    first: Side | None
    second: Side
    metric: Metric = ACCURACY
    at: str = ""
    main: bool = True

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """The sort key in an answer: main questions first, then by kind, equal FLOPs first."""
        kinds: tuple[About, ...] = ("scratch", "ticket", "best", "method")
        equal = self.first is not None and self.first.equal_flops
        return not self.main, kinds.index(self.about), not equal

    @property
    def wants(self) -> Literal["as good", "better"]:
        """The relation that must be shown to answer yes."""
        return "better" if self.about in ("ticket", "method") else "as good"

    @property
    def text(self) -> str:
        """The question in words.

        >>> tuned = Side(name="tune", start="inherited", trained=True, equal_flops=False)
        >>> scratch = Side(name="anew", start="random", trained=True, equal_flops=True)
        >>> Question(about="scratch", first=scratch, second=tuned).text
        'Is training from scratch (anew) as good as fine-tuning (tune)?'
        """
        at = f", {self.at}?" if self.at else "?"
        return self._relation + at

    @property
    def _relation(self) -> str:
        if self.first is None:
            return f"Is {BEST} as good as the unpruned network"
        first, second = self.first, self.second
        if self.about == "method":
            return f"Is {first.name} better than {second.name}"
        if self.about == "scratch":
            training = " ".join(filter(None, ["training", first.subject, "from scratch"]))
            tuning = " ".join(filter(None, ["fine-tuning", second.subject]))
            alternative = tuning if second.trained else "keeping the inherited weights, untrained"
            return f"Is {training} ({first.name}) as good as {alternative} ({second.name})"
        weights_name = (
            "initial weights" if first.start == "initial" else "weights from early in its training"
        )
        control = f"another initialisation ({second.name})"
        return (
            f"Is starting from the unpruned network's {weights_name} ({first.name}) better than "
            f"from {control}"
        )


@dataclass(frozen=True, kw_only=True)
class CellQuestion:
    """A question asked of one cell, with the runs on both its sides.

    ``against`` is the name of the second side; if empty, that of its arm.
    """

    question: Question
    first: Sequence[Run]
    second: Sequence[Run]
    against: str = ""


def ask(arms: Mapping[str, Sequence[Run]], unpruned: Sequence[Run]) -> Iterator[CellQuestion]:
    """Yield every question that the pruned arms of a cell can answer."""
    sides = [(Side.of(runs[0]), runs) for runs in arms.values()]
    for first, runs in sides:
        if first.trained and first.start == "random":
            references = _references(sides)
            if len(references) > 1 and references[0][0].trained:
                yield _best_retraining(first, runs, [tuned for _, tuned in references])
            yield from _questions("scratch", first, runs, references)
        if first.trained and first.start in ("initial", "rewound"):
            yield from _questions("ticket", first, runs, _controls(sides, runs[0]))
    if arms and unpruned:
        question = Question(
            about="best", first=None, second=Side.of(unpruned[0]), metric=unpruned[0].metric
        )
        yield CellQuestion(question=question, first=_best(list(arms.values())), second=unpruned)


def _questions(
    about: About,
    first: Side,
    runs: Sequence[Run],
    alternatives: Sequence[tuple[Side, Sequence[Run]]],
) -> Iterator[CellQuestion]:
    for second, second_runs in alternatives:
        question = Question(about=about, first=first, second=second, metric=runs[0].metric)
        yield CellQuestion(question=question, first=runs, second=second_runs)


def _best_retraining(
    first: Side, runs: Sequence[Run], retrainings: Sequence[Sequence[Run]]
) -> CellQuestion:
    """Ask whether a random start is as good as the best of several retrainings."""
    chosen, how = best_of(retrainings)
    side = Side(
        name=BEST_RETRAINING,
        start="inherited",
        trained=True,
        equal_flops=False,
        subject=chosen[0].subject,
    )
    question = Question(about="scratch", first=first, second=side, metric=runs[0].metric)
    names = " or ".join(dict.fromkeys(run.arm for run in chosen))
    return CellQuestion(
        question=question, first=runs, second=chosen, against=f"{names} ({BEST_RETRAINING}, {how})"
    )


def best_of(arms: Sequence[Sequence[Run]]) -> tuple[Sequence[Run], str]:
    """Choose the best of several arms of one cell; return its runs and how it was chosen.

    If all finished runs have a validation score, one arm is chosen for all seeds, by the mean over
    the seeds that all arms have (if there is one). Otherwise an arm is chosen for each seed by the
    test scores of the other seeds.
    """
    done = [[run for run in runs if run.done] for runs in arms]
    started = [runs for runs in done if runs]
    if not started or any(run.validation is None for runs in started for run in runs):
        alone = all(len(runs) < 2 for runs in done)
        how = "by the scores that are compared" if alone else "by the other seeds"
        return _best(arms), f"chosen {how}"
    common = set.intersection(*({run.seed for run in runs} for runs in started))
    held_out = [
        [r.validation or 0.0 for r in runs if not common or r.seed in common] for runs in started
    ]
    means = [started[0][0].metric.gain(mean_and_std(scores)[0]) for scores in held_out]
    best = started[means.index(max(means))]
    return next(runs for runs in arms if best[0] in runs), "chosen on validation"


def _references(
    sides: Sequence[tuple[Side, Sequence[Run]]],
) -> Sequence[tuple[Side, Sequence[Run]]]:
    """Return the arms with inherited weights: the trained ones, or if none, the untrained."""
    inherited = [(side, runs) for side, runs in sides if side.start == "inherited"]
    return [(side, runs) for side, runs in inherited if side.trained] or inherited


def _controls(
    sides: Sequence[tuple[Side, Sequence[Run]]], ticket: Run
) -> Sequence[tuple[Side, Sequence[Run]]]:
    """Return the controls of a ticket: other initialisations, with its budget if possible."""
    trained = [(side, runs) for side, runs in sides if side.trained]
    controls = [(side, runs) for side, runs in trained if side.start == "redrawn"]
    controls = controls or [(side, runs) for side, runs in trained if side.start == "random"]
    return [(s, runs) for s, runs in controls if _budget(runs[0]) == _budget(ticket)] or controls


def _budget(run: Run) -> tuple[str, float | None, float | None]:
    return run.budget, run.amount, run.cap


def _best(arms: Sequence[Sequence[Run]]) -> list[Run]:
    """Choose for each seed the run of the arm that is best on the other seeds, the first if tied.

    It is chosen even if it is not done: the seed is then not compared, because the best of the runs
    that happen to be done is another, worse arm. With a single seed there are no others, so the arm
    is chosen by the score that it is then judged by.
    """
    by_seed: dict[int, list[tuple[Run, float]]] = {}
    for runs in arms:
        for run, gain in zip(runs, _elsewhere(runs), strict=True):
            by_seed.setdefault(run.seed, []).append((run, gain))
    chosen = []
    for candidates in by_seed.values():
        gains = [gain for _, gain in candidates]
        if max(gains) == float("-inf"):
            gains = [_gain(run.metric, run.score if run.done else None) for run, _ in candidates]
        chosen.append(candidates[gains.index(max(gains))][0])
    return chosen


def _elsewhere(runs: Sequence[Run]) -> list[float]:
    """Return for each seed the gain of an arm on its other seeds; minus infinity without any."""
    done = [run for run in runs if run.done and run.score is not None]
    scores = [run.score for run in done if run.score is not None]
    others = dict(zip([run.seed for run in done], means_of_others(scores), strict=True))
    mean = mean_and_std(scores)[0] if scores else None
    return [_gain(run.metric, others.get(run.seed, mean)) for run in runs]


def _gain(metric: Metric, mean: float | None) -> float:
    return float("-inf") if mean is None else metric.gain(mean)


def reference(runs: Sequence[Run]) -> str | None:
    """Return the arm that the others are compared with: the first that trains inherited weights.

    If a cell has no such arm, the pruned network without retraining; None without either.
    """
    arms: dict[str, Run] = {}
    for run in runs:
        if not run.unpruned:
            arms.setdefault(run.arm, run)
    references = _references([(Side.of(run), [run]) for run in arms.values()])
    return next((side.name for side, _ in references), None)
