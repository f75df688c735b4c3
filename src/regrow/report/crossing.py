"""Winners that depend on the retraining: scratch training beats one and loses to another.

Whether a pruned network beats the same network trained from scratch depends on how it is
fine-tuned (Wang et al., 2023, arXiv:2301.05219), so a verdict against one retraining does not
hold for another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from regrow.core.texts import listed
from regrow.report.questions import BEST_RETRAINING
from regrow.report.verdict import Verdict, num_cells


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One side against an alternative: its gain (positive: better), and if it is significant."""

    against: str
    gain: float
    shown: bool

    @property
    def words(self) -> str:
        """The alternative, marked ``(shown)`` if the difference is significant."""
        return f"{self.against} (shown)" if self.shown else self.against


@dataclass(frozen=True, kw_only=True)
class WinnerChange:
    """A cell where one side beats some alternatives and loses to others, by their means.

    ``shown``: at least one win and one loss are significant.
    """

    where: str
    side: str
    wins: tuple[Duel, ...]
    losses: tuple[Duel, ...]

    @property
    def shown(self) -> bool:
        """True if it is significantly better than one and significantly worse than another."""
        return any(d.shown for d in self.wins) and any(d.shown for d in self.losses)

    @property
    def words(self) -> str:
        """The change in words."""
        wins, losses = (listed([duel.words for duel in part]) for part in (self.wins, self.losses))
        return f"{self.where}: {self.side} beats {wins} and loses to {losses}"


def winner_change(where: str, side: str, duels: Iterable[Duel]) -> WinnerChange | None:
    """Return how the winner changes among alternatives; None if it does not."""
    all_duels = list(duels)
    wins = tuple(duel for duel in all_duels if duel.gain > 0)
    losses = tuple(duel for duel in all_duels if duel.gain < 0)
    if not wins or not losses:
        return None
    return WinnerChange(where=where, side=side, wins=wins, losses=losses)


def winner_changes(verdicts: Sequence[Verdict]) -> list[WinnerChange]:
    """Find the cells where scratch training beats one retraining and loses to another."""
    found = [
        winner_change(where, side, map(_duel, inside))
        for (where, side), inside in _crossed(verdicts).items()
    ]
    return [change for change in found if change is not None]


def winner_line(verdicts: Sequence[Verdict]) -> list[str]:
    """Describe the changes in one line; none if no cell has several retrainings."""
    crossed = _crossed(verdicts)
    if not crossed:
        return []
    changes = winner_changes(verdicts)
    num = num_cells(len(changes), of=len(crossed))
    if not changes:
        return [f"Whether scratch training wins depends on the kind of retraining in {num}."]
    shown = [change for change in changes if change.shown]
    first = (shown or changes)[0]
    more = f"; and {len(changes) - 1} more" if len(changes) > 1 else ""
    return [
        f"Whether scratch training wins depends on the kind of retraining in {num} by the means, "
        f"and significantly in {len(shown)} ({first.words}{more})."
    ]


def _crossed(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, str], list[Verdict]]:
    """Group comparisons by cell and scratch arm, where there are two or more retrainings."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        question = verdict.question
        asked = question.about == "scratch" and question.second.name != BEST_RETRAINING
        if asked and question.second.trained and verdict.counts:
            groups.setdefault((verdict.where, verdict.arm), []).append(verdict)
    return {key: inside for key, inside in groups.items() if len(inside) > 1}


def _duel(verdict: Verdict) -> Duel:
    assert verdict.comparison is not None
    gain = verdict.metric.gain(verdict.comparison.difference)
    shown = verdict.p is not None and verdict.p < verdict.alpha
    return Duel(against=verdict.against, gain=gain, shown=shown)
