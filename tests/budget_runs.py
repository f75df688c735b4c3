"""Made-up finished runs, with given scores, of a study with several training budgets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regrow.jobs.arms import BudgetKind, Start
from regrow.report.rows import Ending, Run

ARMS: Mapping[str, tuple[Start, BudgetKind]] = {
    "unpruned": ("initial", "equal-epochs"),
    "pruned": ("inherited", "none"),
    "fine-tune": ("inherited", "share"),
    "rewind": ("inherited", "equal-epochs"),
    "scratch-e": ("random", "equal-epochs"),
    "scratch-b": ("random", "equal-flops"),
}
SHARE = 0.25
SAMPLES = 10_000  # in an epoch
Score = Callable[[int, int], float | None]  # from budget and seed; None: the run is missing


def make_arm(
    arm: str, budgets: Sequence[int], seeds: int, score: Score, **changes: Any
) -> list[Run]:
    """Make the runs of one arm at every budget."""
    start, kind = ARMS[arm]
    pruned = {} if arm == "unpruned" else {"method": "l1-filter", "sparsity": 0.5}
    runs = []
    for budget in budgets:
        epochs = {"none": 0, "share": max(1, int(SHARE * budget)), "equal-flops": 2 * budget}
        macs = 10_000 if pruned else 20_000
        arm_flops = 6.0 * macs * SAMPLES * epochs.get(kind, budget)
        for seed in range(seeds):
            value = score(budget, seed)
            fields: dict[str, Any] = {
                "data": "digits", "model": "vgg", **pruned, "arm": arm, "seed": seed,
                "start": start, "budget": kind, "training_budget": budget, "base_epochs": budget,
                "amount": SHARE if kind == "share" else None,
                "status": "missing" if value is None else "done", "score": value,
                "epochs": epochs.get(kind, budget), "parameters": 1000 if pruned else 4000,
                "macs": macs, "arm_flops": arm_flops, "training_flops": 1e9 * budget,
                "num_test": 10_000, "chance": 10.0, "ending": Ending(loss=0.01, fall=0.0),
            }  # fmt: skip
            runs.append(Run(**{**fields, **changes}))
    return runs


def make_study(
    advantage: Mapping[int, Sequence[float]], *, parents: Mapping[int, float] | None = None,
    arms: Sequence[str] = ("fine-tune", "scratch-b"), **changes: Any,
) -> list[Run]:  # fmt: skip
    """Make a study's runs; ``advantage`` is retraining minus scratch, by budget and seed."""
    budgets, seeds = [*advantage], max(map(len, advantage.values()))
    wobble = [0.0, 0.3, -0.2, 0.1, 0.4, -0.3]

    def base(budget: int, seed: int) -> float:
        return (parents or {}).get(budget, 90.0) + wobble[seed % 6]

    def inherited(budget: int, seed: int) -> float | None:
        given = advantage[budget]
        return base(budget, seed) + given[seed] if seed < len(given) else None

    scores: dict[str, Score] = {"fine-tune": inherited, "rewind": inherited, "unpruned": base}
    runs = []
    for arm in ("unpruned", *arms):
        own = {k: v for k, v in changes.items() if arm != "unpruned" or k in ("data", "model")}
        runs += make_arm(arm, budgets, seeds, scores.get(arm, base), **own)
    return runs
