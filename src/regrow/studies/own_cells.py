"""The cells of a study of a user's own network, and the jobs that fill them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from regrow.jobs.arms import UNPRUNED, Arm, Budget
from regrow.jobs.own import OwnPrune, OwnTrain
from regrow.jobs.own_network import CutFolder, OwnNetwork
from regrow.pruning.amounts import Cut
from regrow.pruning.costs import COST_TARGETS
from regrow.pruning.method import ALLOCATIONS, CRITERIA
from regrow.studies.expand import Cell
from regrow.studies.experiment import MethodUse
from regrow.studies.own import OwnExperiment, Rival

SAME_WIDTHS, ANOTHER = "the network at uniform widths", "another network"


def own_cells(experiment: OwnExperiment) -> Iterator[Cell]:
    """Yield the cells of an experiment, in report order."""
    plain = {seed: _plain(experiment, seed) for seed in experiment.seeds}
    if UNPRUNED.name in [arm.name for arm in experiment.arms]:
        for seed, job in plain.items():
            yield _cell(experiment, job, seed, use=None, cut=None, arm=UNPRUNED)
    for use, folder in zip(experiment.uses, experiment.folders, strict=True):
        for cut in use.cuts:
            prunes = {s: _prune(experiment, plain[s], use, cut, folder) for s in experiment.seeds}
            for arm in experiment.arms:
                if arm.name != UNPRUNED.name:
                    jobs = {s: _retrain(experiment, plain[s], prunes[s], arm, s) for s in prunes}
                    yield from _row(experiment, use, cut, arm, jobs)
            if (anew := experiment.uniform) is not None:
                alike = {s: prune.matching() for s, prune in prunes.items()}
                jobs = {s: _retrain(experiment, plain[s], alike[s], anew, s) for s in alike}
                yield from _row(experiment, use, cut, anew, jobs, subject=SAME_WIDTHS)
            for rival in experiment.rivals:
                jobs = {s: _rival(experiment, rival, s) for s in experiment.seeds}
                yield from _row(experiment, use, cut, rival.arm, jobs, subject=ANOTHER)


def _row(
    experiment: OwnExperiment,
    use: MethodUse,
    cut: Cut,
    arm: Arm,
    jobs: Mapping[int, OwnTrain],
    *,
    subject: str = "",
) -> Iterator[Cell]:
    for seed, job in jobs.items():
        yield _cell(experiment, job, seed, use=use, cut=cut, arm=arm, subject=subject)


def _cell(experiment: OwnExperiment, job: OwnTrain, seed: int, **place: Any) -> Cell:
    """Make a cell as of an ``Experiment``: reports read only attributes that both kinds have."""
    return Cell(experiment=experiment, job=job, seed=seed, **place)  # type: ignore[arg-type]


def _rival(experiment: OwnExperiment, rival: Rival, seed: int) -> OwnTrain:
    title = replace(experiment, model_label=rival.arm.name).title
    return _train(experiment, rival.network, rival.arm, seed, label=f"{title} seed {seed}")


def _retrain(
    experiment: OwnExperiment, plain: OwnTrain, prune: OwnPrune, arm: Arm, seed: int
) -> OwnTrain:
    """Return the training of a pruned network by an arm.

    If its weights are given and nothing is trained, one measurement serves all seeds.
    """
    label = f"{prune.label.rpartition(' prune')[0]} {arm.name}"
    given = arm.start == "inherited" and (prune.folder is not None or plain.is_published)
    if given and arm.budget.kind == "none":
        seed = 0
    else:
        label += f" seed {seed}"
    inherits = arm.start == "inherited" and not given
    return replace(
        _train(experiment, experiment.model, arm, seed, label=label),
        prune=prune,
        parent=plain if inherits else None,
    )


def _train(
    experiment: OwnExperiment, base: OwnNetwork, arm: Arm, seed: int, *, label: str
) -> OwnTrain:
    return OwnTrain(
        base=base,
        function=experiment.data,
        arm=arm,
        seed=seed,
        reference=experiment.model,
        whole=experiment.recipe.amount,
        unit=experiment.recipe.unit,
        scored_on=experiment.judged,
        label=label,
    )


def _plain(experiment: OwnExperiment, seed: int) -> OwnTrain:
    """Return the unpruned network's job: scored once if it has weights, else trained per seed."""
    label = f"{experiment.title} unpruned"
    if experiment.model.is_given:
        as_is = replace(UNPRUNED, budget=Budget(kind="none"))
        return _train(experiment, experiment.model, as_is, 0, label=label)
    return _train(experiment, experiment.model, UNPRUNED, seed, label=f"{label} seed {seed}")


def _prune(
    experiment: OwnExperiment,
    plain: OwnTrain,
    use: MethodUse,
    cut: Cut,
    folder: CutFolder | None,
) -> OwnPrune:
    """Return the pruning of one seed; a network with given weights has one for all seeds."""
    label = f"{experiment.title} {use.label} {cut.label} prune"
    if folder is not None:
        return OwnPrune(
            base=experiment.model, method=use.method, seed=0, folder=folder, label=label
        )
    method, given = use.method, experiment.model.is_given
    codes = [CRITERIA.code(method.criterion), ALLOCATIONS.code(method.allocation)]
    if cut.cost is not None:
        codes.append(COST_TARGETS.code(cut.cost.name))
    return OwnPrune(
        base=experiment.model,
        method=method,
        seed=plain.seed,
        sparsity=cut.sparsity,
        cost=cut.cost,
        rounds=cut.rounds,
        multiple_of=cut.multiple_of,
        examples=experiment.examples,
        parent=plain if method.trained and not given else None,
        code="-".join(sorted({code for code in codes if code is not None})) or None,
        label=label if given else f"{label} seed {plain.seed}",
    )
