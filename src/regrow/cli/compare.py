"""The command ``regrow compare``: retrain a smaller network with the user's own function.

It writes a study file into the report's folder, and runs it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from regrow.cli.execution import HERE, takes_execution
from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import (
    DEFAULT_STORE,
    BudgetsOption,
    HtmlOption,
    JsonOption,
    StoreOption,
    WithOption,
)
from regrow.cli.own import (
    AllocationOption,
    ArgumentsOption,
    CriterionOption,
    ExamplesOption,
    InputOption,
    KeepOption,
    LatencyOption,
    MacsOption,
    MultipleOption,
    NetworkArgument,
    ParametersOption,
    RoundsOption,
    ScopeOption,
    SetOption,
    SparsityOption,
)
from regrow.cli.run import run_study
from regrow.cli.terminal import announce, count, say
from regrow.core.disk import why, write_whole
from regrow.core.execution import Execution
from regrow.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regrow.jobs.base import Job
    from regrow.store import Store

TrainOption = Annotated[
    str,
    typer.Option(
        metavar="FILE:NAME",
        help="Your training function: my_train.py:train, called as train(model, budget, seed).",
    ),
]
MetricOption = Annotated[
    str, typer.Option(help="Metric to compare by, one of those that your function returns.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        help="Length of the unpruned network's training, such as 30 (epochs).",
        show_default="required",
    ),
]
UnitOption = Annotated[
    str, typer.Option(metavar="UNIT", help="Unit of the budget: epochs, steps, samples or flops.")
]
OutOption = Annotated[
    Path,
    typer.Option(help="Folder for the report and the study file, which `regrow run` accepts."),
]
GivenWeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|published|code",
        help="The network's trained weights: a file, those published with a library's model, or "
        "those that the network's code loads.",
        show_default="none: your function trains it",
    ),
]
SmallOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FOLDER", help="A smaller network written by `regrow shrink`."),
]
SeedsOption = Annotated[
    int, typer.Option(min=1, help="Number of seeds: how often each training is repeated.")
]
FineTuneOption = Annotated[
    float | None,
    typer.Option(help="Length of fine-tuning, as a share of the budget.", show_default="0.25"),
]
CapOption = Annotated[
    float | None,
    typer.Option(
        help="For equal FLOPs, train a smaller network for at most this many times the budget.",
        show_default="no limit",
    ),
]
UniformOption = Annotated[
    bool,
    typer.Option(
        "--uniform", help="Also train the network with uniformly reduced widths, at equal cost."
    ),
]
RivalOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NET|NAME=VALUE",
        help="Also train another network: timm/NAME, or this one with other arguments (width=8).",
    ),
]
WidthOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Also train a smaller network of the family: this one with a smaller value of its "
        "argument NAME, chosen to cost as much as the pruned one.",
    ),
]
RivalBudgetOption = Annotated[
    str,
    typer.Option(metavar="BUDGET", help="Budget of rival networks: equal-epochs or equal-flops."),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        help="Difference below which two networks are equally good, in the report's unit.",
        show_default="0.3 points of accuracy; for other metrics required",
    ),
]
LowerOption = Annotated[
    bool, typer.Option("--lower-is-better", help="Lower values of the metric are better.")
]
NumTestOption = Annotated[
    int | None, typer.Option(help="Number of test examples, for an accuracy or another share.")
]
ChanceOption = Annotated[
    float | None, typer.Option(help="Score of a network that has learnt nothing, such as 0.1.")
]
RIVAL_BUDGETS = ("equal-epochs", "equal-flops")
OF_LIBRARIES = ("hf/", "timm/", "torchvision/")  # networks with published weights


@takes_execution
def compare(
    net: NetworkArgument,
    train: TrainOption,
    out: OutOption,
    budget: BudgetOption = None,
    budgets: BudgetsOption = None,
    metric: MetricOption = "accuracy",
    inputs: InputOption = None,
    weights: GivenWeightsOption = None,
    settings: SetOption = None,
    arguments: ArgumentsOption = None,
    keep: KeepOption = None,
    small: SmallOption = None,
    macs: MacsOption = None,
    parameters: ParametersOption = None,
    latency: LatencyOption = None,
    sparsity: SparsityOption = None,
    criterion: CriterionOption = "l1",
    allocation: AllocationOption = "uniform",
    scope: ScopeOption = None,
    data: ExamplesOption = None,
    multiple_of: MultipleOption = 1,
    rounds: RoundsOption = 1,
    budget_unit: UnitOption = "epochs",
    fine_tune: FineTuneOption = None,
    cap: CapOption = None,
    seeds: SeedsOption = 3,
    uniform: UniformOption = False,
    rival: RivalOption = None,
    width_multiplier: WidthOption = None,
    rival_budget: RivalBudgetOption = "equal-epochs",
    margin: MarginOption = None,
    lower_is_better: LowerOption = False,
    num_test: NumTestOption = None,
    chance: ChanceOption = None,
    store: StoreOption = DEFAULT_STORE,
    execution: Execution = HERE,
    with_files: WithOption = None,
    html: HtmlOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a smaller network, train it from scratch, or train another one: compare them."""
    _begin(net, train, weights, with_files)
    known = {"margin": margin, "num_test": num_test, "chance": chance}
    options = {"fine_tune": fine_tune, "cap": cap, "uniform": uniform or None, "seeds": seeds}
    value = _study(
        _network(net, inputs, weights, _arguments(settings, arguments), keep),
        train,
        metric=_score(metric, lower=lower_is_better, **known),
        **_budgets(budget, budget_unit, budgets),
        small=small,
        amounts=_given(macs=macs, parameters=parameters, latency=latency, sparsity=sparsity),
        rivals=_rivals(rival or (), width_multiplier, rival_budget) or None,
        **_how(criterion, allocation, scope, rounds=rounds, multiple_of=multiple_of, examples=data),
        **options,
    )
    file = _checked(value, out, store, execution)
    run_study(
        file, store, out, execution=execution, html=html, as_json=as_json, first=_say_how_much
    )


def _begin(net: str, train: str, weights: str | None, with_files: list[Path] | None) -> None:
    announce(f"Reading {net} and {train}")
    if weights is None and net.startswith(OF_LIBRARIES):
        say(
            f"{train} trains {net} first, from new weights, for each seed. If {net} is trained "
            "already, add --weights published."
        )
    load_extensions(with_files)


def _budgets(budget: float | None, unit: str, budgets: str | None) -> dict[str, Any]:
    """Return the training budgets as entries of a study file."""
    from regrow.studies.budgets import split_budgets

    if budget is None and budgets is None:
        raise ConfigError(
            "Give the length of the unpruned network's training: --budget 30 (epochs), or "
            "--budgets 8,16,32 to compare at several lengths."
        )
    found: dict[str, Any] = {}
    if budget is not None:
        found["budget"] = {unit: int(budget) if budget.is_integer() else budget}
    if budgets is not None:
        found["budgets"] = split_budgets(budgets)
    return found


def _score(name: str, *, lower: bool, **known: Any) -> dict[str, Any]:
    return _given(name=name, better="lower" if lower else None, **known)


def _study(network: dict[str, Any], train: str, **options: Any) -> dict[str, Any]:
    from regrow.comparison import study_value

    return study_value(network, train, **options)


def _given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not empty."""
    return {name: value for name, value in fields.items() if value not in (None, [], (), {})}


def _network(
    net: str,
    inputs: list[str] | None,
    weights: str | None,
    given: dict[str, Any],
    keep: list[str] | None,
) -> dict[str, Any]:
    """Return the network as an entry of a study file."""
    from regrow.cli.own import kept_modules
    from regrow.models.origins import read_origin

    modules = kept_modules(read_origin(net, given).build(), keep) if keep else ()
    return _given(network=net, input=inputs, weights=weights, set=given, keep=[*modules])


def _arguments(settings: list[str] | None, arguments: str | None) -> dict[str, Any]:
    from regrow.models.origins import read_arguments

    return read_arguments([*(settings or ())], arguments)


def _rivals(texts: "tuple[str, ...] | list[str]", vary: str | None, budget: str) -> list[Any]:
    """Return the rival networks as entries of a study file, each with the budget."""
    from regrow.models.origins import read_arguments

    if budget not in RIVAL_BUDGETS:
        raise ConfigError(f"--rival-budget: {unknown('budget', budget, RIVAL_BUDGETS)}")
    rivals: list[dict[str, Any]] = []
    for text in texts:
        first, *rest = text.split() or [text]
        named = "=" not in first
        if not text.strip() or not all("=" in word for word in rest):
            raise ConfigError(
                "--rival must be a network, timm/NAME, or arguments of this one, width=8, or both, "
                f"'nets.py:build width=8'. Got {text!r}."
            )
        arguments = read_arguments(rest if named else [first, *rest])
        rivals.append(_given(network=first if named else None, set=arguments))
    rivals += [{"vary": vary}] if vary is not None else []
    return [{**entry, "budget": budget} for entry in rivals]


def _how(
    criterion: str, allocation: str, scope: list[str] | None, **options: Any
) -> dict[str, Any]:
    """Return the options of pruning as entries of a study file."""
    parts = [part.strip() for text in scope or () for part in text.split(",")]
    return {"criterion": criterion, "allocation": allocation, "scope": parts or "all", **options}


def _checked(value: dict[str, Any], out: Path, store: Path, execution: Execution) -> Path:
    """Check the study and its networks, then write the study file and return its path."""
    announce("Checking the networks, before anything is trained")
    from regrow.run import check_machines
    from regrow.studies.study import Study

    check_machines(execution)
    study = Study.from_json(value, name=_name_of(out))
    study.cells()
    if "input" not in value["models"]:
        network = study.own[0].model
        source = " as the smaller one was cut with" if value.get("small") else ""
        say(f"No --input is given, so {network.origin.text} gets {network.inputs}{source}.")
    open_store(store, create=True)
    return write_study(out, value)


def _say_how_much(jobs: "Sequence[Job]", store: "Store", workers: int | None) -> None:
    """Print the FLOPs left, in multiples of the unpruned network's training, which can be timed."""
    from regrow.jobs.base import all_jobs
    from regrow.jobs.own import OwnTrain

    done = store.snapshot().done
    trainings = [job for job in all_jobs(jobs).values() if isinstance(job, OwnTrain) and job.flops]
    left = [job for job in trainings if job.key not in done]
    if left:
        longest = max(left, key=lambda job: job.whole)
        whole = longest.reference.cost().flops * longest.whole
        times = sum(job.flops for job in left) / whole
        say(
            f"{count(len(left), 'training')} to do, with about {times:.1f} times the FLOPs of "
            f"training the unpruned network for {longest.whole:,} {longest.unit}."
        )


def _name_of(folder: Path) -> str:
    return folder.resolve().name


def write_study(folder: Path, value: dict[str, Any]) -> Path:
    """Write a study file into its report's folder, replacing an earlier one."""
    file = folder / "study.yaml"
    try:
        text = yaml.safe_dump(
            {"name": _name_of(folder), **value}, sort_keys=False, allow_unicode=True
        )
        write_whole(file, text)
    except OSError as error:
        raise ConfigError(
            f"Cannot write the study to '{folder}': {why(error)}. Name a folder that you "
            "may write to with --out."
        ) from error
    return file
