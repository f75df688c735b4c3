"""Rules for which comparisons allow no conclusion, by what the networks scored.

    reasons = judge(first, second, parent=parent, cut=[first, second], margin=0.3)
    if excluded(reasons): ...

An arm is known by its ``Evidence``: mean, spread and number of seeds, and as far as they are known
the size of the test set, its chance level and how the training ended. A row of a table serves as
well as single runs. What is not known is never guessed: the rule then says so, or stays silent.

Two rules leave a comparison out of every conclusion and of averages over cells (``excludes``):

- *Chance.* An arm is above chance if its answers, counted over all seeds, are right more often than
  those of a network that always names the most frequent class (exact binomial test, one-sided, at
  ``GUESSING``), and if a seed one standard deviation below the mean is above chance too: seeds that
  guess differ by more than a binomial count, and one good seed among many is not a good arm. Where
  accuracy is no count (detectors), the second half alone is asked. A comparison is left out if its
  parent, the unpruned network, is not above chance, or if neither of its arms is.
- *Convergence.* A parent had not converged if a network cut from it ends with a lower training loss
  and with a test accuracy that is higher by more than the margin and ``SURE`` standard errors of
  the test set. The parent contains the smaller network, so at its own minimum its loss would be no
  higher; a network that merely generalises better does not count. Nor had it converged if its
  training loss still fell, at its last rate, by more than 1 % of itself an epoch, and by so much
  that one more epoch could correct more test answers than the margin: a wrong answer costs at least
  ln 2 of cross-entropy, so a fall of d is worth up to d / ln 2 of them.

Others only qualify what is said: one arm of the two not above chance; one test image more than the
margin, so that only equal counts show equivalence; a test set whose own sampling error is more than
the margin; a chance level that is not known.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regrow.report.statistics import at_least, mean_and_std
from regrow.report.words import accuracy, short

GUESSING = 0.01  # of the arms that only guess, this share passes for above chance
SURE = 2.0  # standard errors
CLEAR_FALL = 0.01  # of the loss, in an epoch

Rule = Literal[
    "parent at chance",
    "arms at chance",
    "not converged",
    "one arm at chance",
    "margin below one image",
    "margin below sampling error",
    "chance unknown",
]
# Rule -> what is so, in words that fit one cell and several; in the order of their weight.
SAID: Mapping[Rule, str] = {
    "parent at chance": "the unpruned network is not above chance",
    "arms at chance": "neither arm is above chance",
    "not converged": "the unpruned network had not converged",
    "one arm at chance": "one of the two arms is not above chance",
    "margin below one image": "one test image is more than the margin",
    "margin below sampling error": "the sampling error of the test set is more than the margin",
    "chance unknown": "it is not known whether the networks are above chance",
}
EXCLUDING: tuple[Rule, ...] = ("parent at chance", "arms at chance", "not converged")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one training ended: its mean loss in the last epoch, and its fall an epoch before that.

    ``fall`` is taken over the epochs at the last rate, without the first of them where there are
    more than two, because a drop of the rate shows there; None for a single one.
    """

    loss: float
    fall: float | None = None

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]]) -> "Ending | None":
        """Read it off a training's history (lines of ``lr`` and ``loss``); None without epochs.

        >>> Ending.of([{"lr": 0.1, "loss": 2.0}, {"lr": 0.1, "loss": 1.5}])
        Ending(loss=1.5, fall=0.5)
        """
        if not history:
            return None
        last = history[-1]
        length = next(
            (i for i, line in enumerate(reversed(history)) if line["lr"] != last["lr"]),
            len(history),
        )
        steps = length - 1 if length <= 2 else length - 2
        if steps == 0:
            return cls(loss=last["loss"])
        return cls(loss=last["loss"], fall=(history[-1 - steps]["loss"] - last["loss"]) / steps)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of one arm over its seeds; ``mean``, ``std`` and ``chance`` in percent.

    ``chance`` is what always naming the most frequent class of the test set scores, ``num_test``
    counts its images (None where accuracy is no count of them); ``loss`` and ``fall`` average the
    seeds' ``Ending``. None: not known.
    """

    mean: float
    std: float | None
    n: int
    num_test: int | None = None
    chance: float | None = None
    loss: float | None = None
    fall: float | None = None

    @classmethod
    def of(
        cls,
        accuracies: Sequence[float],
        *,
        num_test: int | None = None,
        chance: float | None = None,
        endings: Iterable[Ending | None] = (),
    ) -> "Evidence | None":
        """Gather what single runs show, in percent; None without any."""
        if not accuracies:
            return None
        mean, std = mean_and_std(accuracies)
        known = [ending for ending in endings if ending is not None]
        falls = [ending.fall for ending in known if ending.fall is not None]
        return cls(
            mean=mean,
            std=std,
            n=len(accuracies),
            num_test=num_test,
            chance=chance,
            loss=mean_and_std([ending.loss for ending in known])[0] if known else None,
            fall=mean_and_std(falls)[0] if falls else None,
        )

    @property
    def above_chance(self) -> bool | None:
        """Whether the arm is above chance, by this module's rule; None where nobody can know.

        >>> Evidence(mean=10.0, std=0.0, n=5, num_test=10_000, chance=10.0).above_chance
        False
        """
        if self.chance is None:
            return None
        typical = self.mean - (self.std or 0.0)
        if typical <= self.chance:
            return False
        if self.num_test is None:
            return True
        answers = self.num_test * self.n
        correct = round(self.mean / 100 * answers)
        return at_least(correct, of=answers, chance=self.chance / 100) < GUESSING

    @property
    def sampling_error(self) -> float | None:
        """Standard error of the accuracy as that of other images too, in points."""
        if self.num_test is None:
            return None
        share = min(max(self.mean / 100, 0.0), 1.0)
        return 100 * math.sqrt(share * (1 - share) / self.num_test)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """A rule that a comparison meets, and the figures by which it does."""

    rule: Rule
    figures: str

    @property
    def excludes(self) -> bool:
        """Whether the comparison takes no part in any conclusion."""
        return self.rule in EXCLUDING

    @property
    def text(self) -> str:
        """The reason for people."""
        return f"{SAID[self.rule]} ({self.figures})"


def judge(
    first: Evidence,
    second: Evidence,
    *,
    margin: float,
    parent: Evidence | None = None,
    plain: Evidence | None = None,
    cut: Iterable[Evidence] = (),
) -> tuple[Reason, ...]:
    """Return why ``first`` against ``second`` allows no conclusion, or less than it seems.

    ``parent`` is the network that was pruned; ``plain`` the one trained without a method's
    treatment, of which convergence is asked (the parent, unless given); ``cut`` are the arms that
    train what was left of it. Those that exclude come first.
    """
    found = [
        *_chance(first, second, (parent, plain)),
        *_convergence(plain or parent, tuple(cut), margin),
        *_resolution(first, second, margin),
    ]
    return tuple(sorted(found, key=lambda reason: [*SAID].index(reason.rule)))


def excluded(reasons: Iterable[Reason]) -> bool:
    """Tell whether a comparison with these reasons allows no conclusion."""
    return any(reason.excludes for reason in reasons)


def _chance(
    first: Evidence, second: Evidence, parents: Iterable[Evidence | None]
) -> Iterable[Reason]:
    sides = (first, second)
    whole = [p for p in parents if p is not None and p.above_chance is False]
    if whole:
        yield Reason(rule="parent at chance", figures=_level(whole[0]))
    low = [side for side in sides if side.above_chance is False]
    if len(low) == len(sides):
        yield Reason(rule="arms at chance", figures="; ".join(dict.fromkeys(map(_level, low))))
    elif low:
        yield Reason(rule="one arm at chance", figures=_level(low[0]))
    if any(side.above_chance is None for side in sides):
        figures = "the share of the most frequent class in the test set is not at hand"
        yield Reason(rule="chance unknown", figures=figures)


def _level(evidence: Evidence) -> str:
    """Word an arm's accuracy beside chance."""
    assert evidence.chance is not None
    own = accuracy(evidence.mean, evidence.std, evidence.n)
    if evidence.num_test is None:
        return f"{own}, and untrained {evidence.chance:.2f}"
    return f"{own}, and always naming the most frequent class {evidence.chance:.2f}"


def _convergence(
    parent: Evidence | None, cut: Sequence[Evidence], margin: float
) -> Iterable[Reason]:
    """Find the smaller network that beats its parent by the most, or a loss that still falls."""
    if parent is None or parent.loss is None:
        return
    better = [arm for arm in cut if _outgrew(arm, parent, margin)]
    if better:
        best = max(better, key=lambda arm: arm.mean)
        assert best.loss is not None
        yield Reason(
            rule="not converged",
            figures=f"a network cut from it beats it by {best.mean - parent.mean:.2f} points, at a "
            f"training loss of {best.loss:.3g} below its own of {parent.loss:.3g}",
        )
        return
    fall = parent.fall
    if fall is None or fall <= CLEAR_FALL * parent.loss or parent.num_test is None:
        return
    worth = 100 * fall / math.log(2)
    if worth > margin:
        yield Reason(
            rule="not converged",
            figures=f"its training loss of {parent.loss:.3g} still fell by {fall:.2g} an epoch at "
            f"its last rate, worth up to {worth:.1f} points",
        )


def _outgrew(arm: Evidence, parent: Evidence, margin: float) -> bool:
    """Tell whether a network cut from a parent shows that this one's training was unfinished."""
    own, others = arm.sampling_error, parent.sampling_error
    if arm.loss is None or parent.loss is None or own is None or others is None:
        return False
    clear = margin + SURE * math.hypot(own, others)
    return arm.loss < parent.loss and arm.mean - parent.mean > clear


def _resolution(first: Evidence, second: Evidence, margin: float) -> Iterable[Reason]:
    counts = [side.num_test for side in (first, second) if side.num_test is not None]
    if not counts:
        return
    num = min(counts)
    if 100 / num > margin:
        figures = f"1 of {num:,} is {100 / num:.2f} points, the margin {short(margin)}"
        yield Reason(rule="margin below one image", figures=figures)
    errors = [side.sampling_error for side in (first, second)]
    error = max(error for error in errors if error is not None)
    if error > margin:
        figures = (
            f"with {num:,} other images an accuracy would differ by {error:.2f} points, one "
            f"standard error; the margin is {short(margin)}"
        )
        yield Reason(rule="margin below sampling error", figures=figures)
