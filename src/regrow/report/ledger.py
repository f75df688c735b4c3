"""The ledger: the cost of each row by itself, and with all jobs that it depends on.

Training FLOPs and examples are the same wherever a study runs. Seconds and joules depend on the
machine and the load where each job ran, so they are in ``ledger.csv`` but never in ``rows.csv``,
which is byte for byte the same on every machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from regrow.core.durations import in_words
from regrow.core.energy import Energy
from regrow.core.texts import listed
from regrow.jobs.base import Job, all_jobs
from regrow.report.collect import Reader
from regrow.report.rows import (
    COUNT,
    FLAG,
    FLOPS,
    LENGTH,
    MEAN,
    PLACE_COLUMNS,
    TEXT,
    Column,
    Run,
    fairness,
    to_csv,
    to_frame,
)
from regrow.report.statistics import mean_and_std
from regrow.report.words import quantity
from regrow.store import TIMING
from regrow.studies.expand import Cell

NOT_RUN = Energy(unknown="nothing has run")
COLUMNS: Mapping[str, Column] = {
    **PLACE_COLUMNS,
    "n": COUNT,
    "epochs": LENGTH,
    "base_epochs": MEAN,
    "own_training_flops": FLOPS,
    "training_flops": FLOPS,
    "samples": MEAN,
    "own_seconds": MEAN,
    "seconds": MEAN,
    "own_joules": MEAN,
    "joules": MEAN,
    "jobs": COUNT,
    "parent_counted": FLAG,
    "trial_of": TEXT,
    "fairness": TEXT,
    "group": TEXT,
}


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of one run by itself (``own``), and with all jobs that it depends on."""

    own_flops: float = 0.0
    own_seconds: float = 0.0
    seconds: float = 0.0
    own_energy: Energy = NOT_RUN
    energy: Energy = NOT_RUN
    jobs: int = 0


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """The cost of all finished jobs of a study, each counted once."""

    jobs: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    energy: Energy = NOT_RUN
    num_measured: int = 0  # jobs whose energy is known
    unknown: tuple[str, ...] = ()  # reasons why that of the others is not known
    machines: tuple[str, ...] = ()  # that ran them, according to their records

    @property
    def energy_words(self) -> str:
        """The energy in one sentence, or why it is unknown."""
        if not self.num_measured:
            why = listed(list(self.unknown)) or "nothing has run"
            return f"Energy was not measured: {why}."
        taken, names = self.energy, listed(list(self.energy.counters))
        text = (
            f"Energy, by the counters of {names}: {joules(taken.joules)} for the jobs' share of "
            f"them, by processor time and by the number of jobs at once"
        )
        if self.num_measured < self.jobs:
            text += f"; of {self.num_measured} of {self.jobs} jobs alone"
            text += f", because of the others {listed(list(self.unknown))}"
        return f"{text}."

    @property
    def words(self) -> str:
        """The whole cost in words."""
        where = f" on {listed(list(self.machines))}" if self.machines else ""
        return (
            f"{self.jobs} finished job{'' if self.jobs == 1 else 's'}, each counted once: "
            f"{quantity(self.flops) or '0'} training FLOPs and {in_words(self.seconds)} of "
            f"computing{where}. {self.energy_words}"
        )


def joules(value: float) -> str:
    """Format an energy in joules, and large ones in watt-hours too.

    >>> joules(12.3), joules(5.4e6)
    ('12.3 J', '5.40 MJ (1.5 kWh)')
    """
    if value < 999.5:
        return f"{value:.3g} J"
    text, hours = quantity(value), value / 3600
    of_hours = f"{hours:.3g} Wh" if hours < 999.5 else f"{hours / 1000:.3g} kWh"
    return f"{text[:-1]} {text[-1]}J ({of_hours})"


def costs(cells: Sequence[Cell], reader: Reader) -> tuple[tuple[RunCost, ...], StudyCost]:
    """Return the cost of each cell, and the total cost of all finished jobs of a study."""
    finished = [job for job in all_jobs(cell.job for cell in cells).values() if reader.has(job)]
    records = [reader.record(job) for job in finished]
    energies = {j.key: energy_of(record) for j, record in zip(finished, records, strict=True)}
    taken = [*energies.values()]
    known = [energy for energy in taken if not energy.unknown]
    total = StudyCost(
        jobs=len(records),
        flops=sum(float(record.get("training_flops") or 0.0) for record in records),
        seconds=sum(map(seconds_of, records)),
        energy=_sum(known),
        num_measured=len(known),
        unknown=tuple(dict.fromkeys(energy.unknown for energy in taken if energy.unknown)),
        machines=tuple(dict.fromkeys(filter(None, map(machine_of, records)))),
    )
    return tuple(_of_run(cell.job, reader, energies) for cell in cells), total


def seconds_of(record: Mapping[str, Any]) -> float:
    """Return the seconds that a job took where it ran."""
    return float(record.get(TIMING, {}).get("seconds", 0.0))


def machine_of(record: Mapping[str, Any]) -> str:
    """Return the machine that a job ran on, with its GPU if it used one; empty if unknown."""
    return str(record.get(TIMING, {}).get("machine", ""))


def energy_of(record: Mapping[str, Any]) -> Energy:
    """Return the energy that a job took where it ran."""
    return Energy.from_json(record.get(TIMING, {}).get("energy"))


def _sum(energies: Iterable[Energy]) -> Energy:
    total = Energy()
    for energy in energies:
        total = total + energy
    return total


def _of_run(job: Job, reader: Reader, energies: Mapping[str, Energy]) -> RunCost:
    stages = reader.stages(job)
    if not all(reader.has(stage) for stage in stages):
        return RunCost()
    own, records = reader.record(job), [reader.record(stage) for stage in stages]
    return RunCost(
        own_flops=float(own.get("training_flops") or 0.0),
        own_seconds=seconds_of(own),
        seconds=sum(map(seconds_of, records)),
        own_energy=energies[job.key],
        energy=_sum(energies[stage.key] for stage in stages),
        jobs=len(stages),
    )


def ledger_frame(runs: Sequence[Run], taken: Sequence[RunCost]) -> pd.DataFrame:
    """Return a frame with the cost of each row, averaged over its finished seeds."""
    rows: dict[tuple[str, str], list[tuple[Run, RunCost]]] = {}
    for run, cost in zip(runs, taken, strict=True):
        if run.done:
            rows.setdefault((run.group, run.arm), []).append((run, cost))
    return to_frame([_row(pairs) for pairs in rows.values()], COLUMNS)


def ledger_csv(frame: pd.DataFrame) -> str:
    """Return the ledger as CSV with fixed digits in each column; unknown values are empty."""
    return to_csv(frame, COLUMNS)


def _row(pairs: Sequence[tuple[Run, RunCost]]) -> dict[str, Any]:
    first = pairs[0][0]
    row: dict[str, Any] = {name: getattr(first, name) for name in PLACE_COLUMNS}
    row |= {"n": len(pairs), "parent_counted": first.parent_counted, "trial_of": first.trial_of}
    row |= {"fairness": fairness([run for run, _ in pairs]), "group": first.group}
    row |= {
        name: _mean([getattr(run, name) for run, _ in pairs])
        for name in ("epochs", "base_epochs", "training_flops", "samples")
    }
    row |= {
        "own_training_flops": _mean([cost.own_flops for _, cost in pairs]),
        "own_seconds": _mean([cost.own_seconds for _, cost in pairs]),
        "seconds": _mean([cost.seconds for _, cost in pairs]),
        "own_joules": _mean([_known(cost.own_energy) for _, cost in pairs]),
        "joules": _mean([_known(cost.energy) for _, cost in pairs]),
        "jobs": max(cost.jobs for _, cost in pairs),
    }
    return row


def _known(energy: Energy) -> float | None:
    return None if energy.unknown else energy.joules


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if one of the values is unknown."""
    known = [float(value) for value in values if value is not None]
    return mean_and_std(known)[0] if known and len(known) == len(values) else None


NO_COST, NO_COSTS = RunCost(), StudyCost()
