"""Parts of claims about winners: one arm against several others, row by row of printed tables."""

from dataclasses import dataclass

from regrow.core.texts import listed
from regrow.report.crossing import Duel, WinnerChange, winner_change
from regrow.report.words import signed
from regrow.reproduce.contrasts import Contrast, Pair
from regrow.reproduce.rules import ClaimEvidence, Judgement, Outcome, untestable


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Ask whether the winner changes with the arm that ``first`` is compared with.

    It holds if tests (Welch, after Holm over the rows of each contrast) show both in one row, and
    partly if only the means do.
    """

    first: str
    seconds: tuple[str, ...]
    tables: tuple[int, ...]

    @property
    def name(self) -> str:
        """The arms in words."""
        tables = f"Table{'s' * (len(self.tables) > 1)} {', '.join(map(str, self.tables))}"
        return f"{self.first} against {' and '.join(self.seconds)}, {tables}"

    def __call__(self, evidence: ClaimEvidence) -> Judgement:
        """Judge this part of a claim on the evidence."""
        rows = self._rows(evidence)
        if not rows:
            return untestable(self.name)
        changes = [
            change
            for where, duels in rows.items()
            if (change := winner_change(where, self.first, (_duel(*duel) for duel in duels)))
        ]
        outcome: Outcome = "does not hold"
        if changes:
            outcome = "holds" if any(change.shown for change in changes) else "partly"
        return Judgement(
            name=self.name,
            text=_words(changes, len(rows)),
            judged=(("in a row one is shown to be worse, another better (Holm)", outcome),),
            rows=len(rows),
            n=tuple(sorted({pair.comparison.n for duels in rows.values() for _, pair in duels})),
            numbers={
                "rows": len(rows),
                "changed": [change.where for change in changes],
                "shown": [change.where for change in changes if change.shown],
            },
        )

    def _rows(self, evidence: ClaimEvidence) -> dict[str, list[tuple[str, Pair]]]:
        """Return each row with its comparisons, of rows that have all of them."""
        rows: dict[str, list[tuple[str, Pair]]] = {}
        for second in self.seconds:
            contrast = Contrast(first=self.first, second=(second,), tables=self.tables)
            for pair in evidence.tally(contrast).pairs:
                rows.setdefault(pair.where, []).append((second, pair))
        return {where: duels for where, duels in rows.items() if len(duels) == len(self.seconds)}


def _duel(second: str, pair: Pair) -> Duel:
    difference = pair.comparison.difference
    return Duel(
        against=f"{second} by {signed(abs(difference))[1:]}",
        gain=difference,
        shown=pair.significant(corrected=True),
    )


def _words(changes: list[WinnerChange], num: int) -> str:
    if not changes:
        return f"the winner changes in none of {num} rows"
    return f"the winner changes in {len(changes)} of {num} rows: " + listed(
        [change.words for change in changes]
    )
