"""Remarks that a careful reviewer would make on a study, each with what to write instead.

    for remark in remarks(study):
        print(remark.code, remark.reason, remark.remedy)

Each rule is a function of one experiment. Remarks are not errors: a study may have its reasons, and
``--ignore CODE`` leaves a remark out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from regrow.errors import RegrowError
from regrow.jobs.arms import RATES, Arm
from regrow.studies.budgets import Axis, fixed, last_rates, rounded
from regrow.studies.experiment import Experiment, MethodUse
from regrow.studies.study import Study
from regrow.tasks import Metric
from regrow.tasks.metric import check_margin
from regrow.train import Recipe

if TYPE_CHECKING:
    from regrow.studies.own import OwnExperiment

LIU = "Liu et al., 2019 (arXiv:1810.05270)"
RENDA = "Renda et al., 2020 (arXiv:2003.02389)"
WANG = "Wang et al., 2023 (arXiv:2301.05219)"
BLALOCK = "Blalock et al., 2020 (arXiv:2003.03033)"
BOUTHILLIER = "Bouthillier et al., 2021 (arXiv:2103.03098)"
# Of remarks on a study, and on its results (``report.run_remarks``).
CODES = (
    *("few-seeds", "one-amount", "no-random-rival", "no-uniform-rival", "no-scratch"),
    *("no-fine-tune", "no-unpruned", "weak-retraining", "unequal-budgets", "unequal-costs"),
    *("chosen-on-test", "margin-below-resolution", "not-checked"),
    *("parent-at-chance", "arms-at-chance", "not-converged", "one-arm-at-chance"),
    *("convergence-unknown", "undecided"),
    *("few-budgets", "fixed-in-epochs", "rounded-shares", "moving-last-rate"),
)
LEAST_BUDGETS = 3
LEAST_SEEDS = 3  # a t interval of two seeds is ten times as wide as their standard deviation
LIKELY = 0.9  # accuracy that is assumed, before a run, for the sampling error of a test set


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One remark: its code, reason, reference, remedy (what to write), and where it applies."""

    code: str
    reason: str
    reference: str
    remedy: str
    where: str = ""


Rule = Callable[[Any], Iterator[Remark]]  # of an ``Experiment`` or an ``OwnExperiment``
AxisRule = Callable[[Axis], Iterator[Remark]]  # of one experiment at several training budgets


def remarks(study: Study) -> list[Remark]:
    """Return the remarks on a study; one that several experiments share appears once, naming them.

    An experiment at several budgets gets each code once, for the first budget that it applies to.
    """
    found: dict[Remark, list[str]] = {}
    for experiments, rules in ((study.experiments, RULES), (study.own, OWN_RULES)):
        for axis in _axes(experiments):
            where = f"{axis[0].data_label} / {axis[0].model_label}"
            once: dict[str, Remark] = {}
            for remark in (r for each in axis for rule in rules for r in rule(each)):
                once.setdefault(remark.code, remark)
            over = AXIS_RULES if axis[0].budget is not None else ()
            for remark in (*once.values(), *(r for rule in over for r in rule(axis))):
                found.setdefault(remark, []).append(where)
    return [
        *(replace(remark, where="; ".join(dict.fromkeys(w))) for remark, w in found.items()),
        *dict.fromkeys(of_margin(study)),
    ]


def rounded_budgets(study: Study) -> list[Remark]:
    """Return the distinct remarks on training budgets that whole epochs do not meet."""
    axes = [axis for part in (study.experiments, study.own) for axis in _axes(part)]
    found = (r for axis in axes if axis[0].budget is not None for r in _rounded(axis))
    return [*dict.fromkeys(found)]


def _axes(experiments: Sequence[Any]) -> list[Axis]:
    """Group experiments that differ only in their budget."""
    axes: dict[Any, list[Any]] = {}
    for each in experiments:
        labels = tuple(use.label for use in each.uses), tuple(arm.name for arm in each.arms)
        place = each.data_label, each.model_label, *labels
        axes.setdefault(place if each.budget is not None else id(each), []).append(each)
    return [*axes.values()]


def _trained(experiment: Experiment, *starts: str) -> list[Arm]:
    return [a for a in experiment.arms if a.start in starts and a.budget.kind != "none"]


def _pruned(experiment: Experiment) -> list[Arm]:
    """Return the arms that train pruned networks, without the arm ``unpruned``."""
    return [arm for arm in _trained(experiment, "inherited", "random") if arm.name != "unpruned"]


def _seeds(experiment: "Experiment | OwnExperiment") -> Iterator[Remark]:
    num = len(experiment.seeds)
    if num < LEAST_SEEDS:
        count = "one seed shows no spread" if num == 1 else "two seeds show hardly any spread"
        yield Remark(
            code="few-seeds",
            reason=f"{count}, so that no difference can be told from chance",
            reference=BOUTHILLIER,
            remedy="seeds: 5",
        )


def _amounts(experiment: "Experiment | OwnExperiment") -> Iterator[Remark]:
    single = [use.label for use in experiment.uses if _is_single(use)]
    if single:
        yield Remark(
            code="one-amount",
            reason="the order of methods changes along the curve, and one amount shows one point "
            f"of it ({', '.join(single)})",
            reference=BLALOCK,
            remedy="several amounts, e.g. macs: [0.7, 0.5, 0.3]",
        )


def _is_single(use: MethodUse) -> bool:
    """Return whether a method has one amount that could be varied; published widths cannot."""
    cut = use.cuts[0]
    return len(use.cuts) == 1 and (cut.cost is not None or cut.target is None)


def _rivals(experiment: Experiment) -> Iterator[Remark]:
    uses = experiment.uses
    if not uses:
        return
    units = {use.method.unit for use in uses}
    if not any(_is_random(use) for use in uses):
        yield Remark(
            code="no-random-rival",
            reason="no method chooses at random, so it is not known what criteria contribute",
            reference=BLALOCK,
            remedy=f"methods: {{name: {_random_name(units)}, ...}} at the same amounts",
        )
    if "channel" in units and not any(_is_dense(use) for use in uses):
        yield Remark(
            code="no-uniform-rival",
            reason="no small dense network (all widths times one factor) is compared with the "
            "pruned ones",
            reference=LIU,
            remedy="methods: {name: width, macs: ...} at the same cost, with the arm scratch-b",
        )


def _is_random(use: MethodUse) -> bool:
    return use.method.criterion == "random"


def _is_dense(use: MethodUse) -> bool:
    return use.method.designed and use.method.allocation == "uniform"


def _random_name(units: set[str]) -> str:
    return "random" if "channel" in units else "uniform-sparsification"


def _arms(experiment: Experiment) -> Iterator[Remark]:
    if not experiment.uses:
        return
    scratch, inherited = _trained(experiment, "random"), _trained(experiment, "inherited")
    if not scratch:
        yield Remark(
            code="no-scratch",
            reason="no arm trains the pruned architecture from scratch, so it is not known "
            "what its inherited weights are worth",
            reference=LIU,
            remedy="arms: add scratch-e and scratch-b",
        )
    if not inherited:
        yield Remark(
            code="no-fine-tune",
            reason="no arm trains inherited weights, so scratch training has nothing to be "
            "compared with",
            reference=LIU,
            remedy="arms: add fine-tune and lr-rewind",
        )
    if all(arm.name != "unpruned" for arm in experiment.arms):
        yield Remark(
            code="no-unpruned",
            reason="the unpruned network is not a row, so the effect of pruning is not shown",
            reference=BLALOCK,
            remedy="arms: add unpruned",
        )
    if inherited and all(_at_last_rate(arm) for arm in inherited):
        yield Remark(
            code="weak-retraining",
            reason="inherited weights are trained at the last rate only; at higher rates they "
            "often win, so the verdict may change",
            reference=f"{RENDA}; {WANG}",
            remedy="arms: add lr-rewind, fine-tune-10x and one-cycle",
        )


def _at_last_rate(arm: Arm) -> bool:
    return arm.schedule == "last-rate" and all(getattr(arm, rate) is None for rate in RATES)


def _budgets(experiment: Experiment) -> Iterator[Remark]:
    """Compare the epochs of scratch training with the parent's epochs plus the retraining's."""
    base = experiment.recipe.epochs
    scratch, inherited = _trained(experiment, "random"), _trained(experiment, "inherited")
    if not scratch or not inherited or any(a.budget.kind == "equal-flops" for a in scratch):
        return
    longest = max(arm.budget.epochs(base, 1.0) for arm in scratch)
    pipeline = base + max(arm.budget.epochs(base, 1.0) for arm in inherited)
    if longest < pipeline:
        yield Remark(
            code="unequal-budgets",
            reason=f"scratch training lasts {longest} epochs, and inherited weights have been "
            f"trained for {pipeline}, counting their parent's",
            reference=f"{LIU}; {WANG}",
            remedy="arms: add scratch-b (equal FLOPs), and name the budget rule beside each "
            "verdict",
        )


def _costs(experiment: Experiment) -> Iterator[Remark]:
    by_share = [
        use.label for use in experiment.uses if any(c.sparsity and not c.cost for c in use.cuts)
    ]
    if len(by_share) > 1:
        yield Remark(
            code="unequal-costs",
            reason="equal shares of units leave unequal shares of MACs, so these methods cannot be "
            f"compared with each other ({', '.join(by_share)})",
            reference=BLALOCK,
            remedy="a cost in place of the sparsity, e.g. macs: [0.5, 0.3]",
        )


def _choice(experiment: Experiment) -> Iterator[Remark]:
    several = len(_pruned(experiment)) > 1
    if several and not experiment.data.validation:
        yield Remark(
            code="chosen-on-test",
            reason="no validation split is held out, so any choice (of an arm, a rate, an "
            "amount) is made on the test set",
            reference=BOUTHILLIER,
            remedy="data: {name: ..., validation: 0.1}",
        )


def _few_budgets(axis: Axis) -> Iterator[Remark]:
    budgets = sorted(experiment.budget for experiment in axis)
    if len(budgets) < LEAST_BUDGETS:
        yield Remark(
            code="few-budgets",
            reason=f"{len(budgets)} training budgets show no curve, so the point where two curves "
            "meet cannot be found",
            reference=LIU,
            remedy=f"budgets: [{', '.join(str(budgets[0] * 2**k) for k in range(4))}]",
        )


def _fixed(axis: Axis) -> Iterator[Remark]:
    for what, remedy in fixed(axis):
        yield Remark(
            code="fixed-in-epochs",
            reason=f"{what} at every training budget, so it is a different share of each",
            reference="",
            remedy=f"{remedy} instead, if it should scale with the budget",
        )


def _rounded(axis: Axis) -> Iterator[Remark]:
    if missed := "; ".join(rounded(axis)):
        yield Remark(
            code="rounded-shares",
            reason=f"{missed}: the smallest budgets get a larger or smaller share than the others",
            reference="",
            remedy="rounding: updates (the last epoch is trained in part)"
            if isinstance(axis[0].recipe, Recipe)
            else "budgets of which the share is a whole number of epochs",
        )


def _moving_last_rate(axis: Axis) -> Iterator[Remark]:
    rates = last_rates(axis)
    if len(rates) > 1:
        yield Remark(
            code="moving-last-rate",
            reason=f"the recipe's last learning rate depends on the training budget "
            f"({min(rates):.2g} to {max(rates):.2g}), and arms continue at it",
            reference=RENDA,
            remedy="arms: {name: fine-tune, peak_rates: 0.01}",
        )


AXIS_RULES: Sequence[AxisRule] = (_few_budgets, _fixed, _rounded, _moving_last_rate)
OWN_RULES: Sequence[Rule] = (_seeds, _amounts)  # for networks that the user's own function trains
RULES: Sequence[Rule] = (*OWN_RULES, _rivals, _arms, _budgets, _costs, _choice)


def check_margin_of(study: Study) -> None:
    """Raise ``ConfigError`` if a study's margin does not suit its metrics; reads the data for it.

    Data that cannot be read are passed over.
    """
    from regrow.studies.expand import material

    metrics = {own.judged.metric: None for own in study.own}
    for experiment in study.experiments if study.margin is not None else ():
        with suppress(RegrowError):
            metrics[material(experiment.data).metric] = None
    check_margin(study.margin, [*metrics])


def of_margin(study: Study) -> Iterator[Remark]:
    """Yield remarks on margins below the resolution of the test set; reads the data.

    Raises:
        ConfigError: the margin does not suit the metrics.
    """
    from regrow.studies.expand import material

    check_margin_of(study)
    for experiment in study.experiments:
        where = f"{experiment.data_label} / {experiment.model_label}"
        try:
            data = material(experiment.data)
        except RegrowError as error:
            yield Remark(
                code="not-checked",
                where=where,
                reason=f"the data could not be read, so the margin was not compared with the size "
                f"of the test set ({error})",
                reference="",
                remedy="give the data with --data NAME=OTHER",
            )
            continue
        yield from _resolution(data.metric, data.num_test, study.margin, where)
    for own in study.own:
        if own.judged.num_test is not None:
            where = f"{own.data_label} / {own.model_label}"
            yield from _resolution(own.judged.metric, own.judged.num_test, study.margin, where)


def _resolution(
    metric: Metric, num_test: int, margin: float | None, where: str
) -> Iterator[Remark]:
    margin = metric.margin if margin is None else margin
    if not metric.counted:
        return
    step = metric.factor / num_test
    error = metric.factor * (LIKELY * (1 - LIKELY) / num_test) ** 0.5
    within = metric.amount(f"{margin:g}")
    tests = f"{num_test:,} test {metric.example}s"
    if step > margin:
        reason = (
            f"one of {tests} is {metric.amount(f'{step:.2g}')}: a margin of {within} cannot be "
            "shown, only that networks answer exactly as many right"
        )
    elif error > margin:
        reason = (
            f"{tests} resolve about {metric.amount(f'{error:.2g}')} (the standard error of a score "
            f"of {LIKELY:.0%}; nearer to 50 % it is larger): equivalence within the margin of "
            f"{within} holds for these {metric.example}s alone"
        )
    else:
        return
    yield Remark(
        code="margin-below-resolution",
        where=where,
        reason=reason,
        reference=BOUTHILLIER,
        remedy=f"a margin of {max(step, error):.2g} or more, or a larger test set",
    )
