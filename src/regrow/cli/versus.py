"""The command ``regrow versus``: a fair comparison of a user's method with built-in ones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from regrow.cli import completion
from regrow.cli.execution import HERE, takes_execution
from regrow.cli.inputs import load_extensions
from regrow.cli.options import (
    DEFAULT_REPORT,
    DEFAULT_STORE,
    BudgetsOption,
    HtmlOption,
    JsonOption,
    OutOption,
    StoreOption,
    WithOption,
)
from regrow.cli.plan import plan, say_estimate
from regrow.cli.run import run_study
from regrow.cli.terminal import announce, command_line, complain, say
from regrow.core.disk import why, write_whole
from regrow.core.execution import Execution
from regrow.errors import ConfigError

METHOD_HELP = "Python file that registers your methods, or the name of a registered one."
VALUE = "A name, or a mapping as in a study: "


MethodArgument = Annotated[
    str,
    typer.Argument(help=METHOD_HELP, show_default=False, autocompletion=completion.METHODS),
]
ModelOption = Annotated[
    str,
    typer.Option(help=f"{VALUE}'{{name: vgg-16, width: 0.25}}'.", autocompletion=completion.MODELS),
]
DataOption = Annotated[str, typer.Option(help=f"{VALUE}'{{name: cifar10, subset: 5000}}'.")]
TargetOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COST:SHARE",
        help="Largest share of macs, parameters or latency that may remain: macs:0.5; may be "
        "repeated.",
        show_default="macs:0.5",
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Methods to compare with, separated by commas.",
        show_default="published methods and baselines that remove the same kind of unit",
    ),
]
ArmsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Ways of retraining and of training from scratch (`regrow list arms`), separated by "
        "commas; fewer take less time.",
        show_default="fine-tune,fine-tune-10x,lr-rewind,one-cycle,scratch-b",
    ),
]
SeedsOption = Annotated[int, typer.Option(min=1, help="Number of seeds of every row.")]
RecipeOption = Annotated[str, typer.Option(help=f"{VALUE}'{{name: cifar, lr: 0.05}}'.")]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Epochs of the unpruned network's training.", show_default="the recipe's"
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        help="Difference below which two methods are equally good, in the report's unit; it should "
        "not be smaller than the test set can resolve (see `regrow lint`).",
        show_default="the metric's default",
    ),
]
PlanOption = Annotated[
    bool, typer.Option("--plan", help="Write the study and show its jobs; train nothing.")
]


@takes_execution
def versus(
    method: MethodArgument,
    model: ModelOption,
    data: DataOption,
    target: TargetOption = None,
    against: AgainstOption = None,
    arms: ArmsOption = None,
    seeds: SeedsOption = 3,
    recipe: RecipeOption = "cifar",
    epochs: EpochsOption = None,
    budgets: BudgetsOption = None,
    margin: MarginOption = None,
    store: StoreOption = DEFAULT_STORE,
    out: OutOption = None,
    execution: Execution = HERE,
    with_files: WithOption = None,
    only_plan: PlanOption = False,
    html: HtmlOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare your method with others at equal cost: same seeds, retrainings and budgets.

    Tests your code on the untrained network, estimates the time, writes an ordinary study
    (study.yaml in the report's folder), and runs it. Finished trainings in the store are reused.
    With --budgets every row is run at several training lengths, met to within one update.
    """
    announce(f"Reading {method}")
    load_extensions(with_files)
    own, files = _own(method)
    announce(f"Checking {own[0]} and the methods to compare with, before anything is trained")
    from regrow.run import check_machines

    check_machines(execution)
    value = _study(
        own,
        model=model,
        data=data,
        targets=target or ["macs:0.5"],
        against=against,
        arms=arms,
        seeds=seeds,
        recipe=_recipe(recipe, epochs),
        more={"margin": margin, **_budgets(budgets)},
    )
    path = _written(value, out, again=[*files, *(with_files or ())])
    if only_plan:
        plan(path, store, execution.workers, as_json=as_json)
        return
    run_study(
        path,
        store,
        path.parent,
        execution=execution,
        as_json=as_json,
        html=html,
        first=say_estimate,
    )


def _own(method: str) -> tuple[list[str], list[Path]]:
    """Return the methods to test, and the file that registers them, if any."""
    from regrow.core.registry import load_file
    from regrow.pruning.method import CRITERIA, METHODS

    if not method.endswith(".py"):
        if method not in METHODS and (file := Path(f"{method}.py")).is_file():
            raise ConfigError(f"No method {method!r} is registered. Do you mean the file {file}?")
        return [METHODS.key(method)], []
    known, criteria = METHODS.added(), CRITERIA.added()
    load_file(method, where=method)
    place = str(Path(method).resolve())  # the file may have been loaded before
    own = [n for n in METHODS.added() if n not in known or METHODS.origin(n) == place]
    if own:
        return own, [Path(method)]
    scored = [name for name in CRITERIA.added() if name not in criteria]
    remedy = (
        f'register_method("{scored[0]}", criterion="{scored[0]}")'
        if scored
        else ("register_method(name, criterion=...)")
    )
    raise ConfigError(
        f"{method} registers no method, so there is nothing to compare. Add: regrow.{remedy}"
    )


def _recipe(text: str, epochs: int | None) -> Any:
    """Read a recipe, and replace its epochs if some are given."""
    from regrow.studies.yaml_file import read_value

    recipe = read_value(text)
    if epochs is None:
        return recipe
    return {**(recipe if isinstance(recipe, dict) else {"name": recipe}), "epochs": epochs}


def _budgets(text: str | None) -> dict[str, Any]:
    """Return the training budgets as entries of a study file, met to within an update."""
    from regrow.studies.budgets import split_budgets

    return {} if text is None else {"budgets": split_budgets(text), "rounding": "updates"}


def _study(
    own: Sequence[str],
    *,
    model: str,
    data: str,
    targets: Sequence[str],
    against: str | None,
    arms: str | None,
    seeds: int,
    recipe: Any,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the study after checking all of it; raise ``ConfigError`` for what cannot work."""
    from regrow.jobs.arms import ARMS
    from regrow.pruning.method import METHODS
    from regrow.studies import versus as studies
    from regrow.studies.yaml_file import read_value

    first = METHODS.get(own[0])
    rivals = (
        studies.default_rivals(first)
        if against is None
        else _names(against, METHODS.key, "--against", "l1-filter,random")
    )
    if len({*own, *rivals}) < 2:
        raise ConfigError(f"--against {against}: this is the method to test. Name other methods.")
    chosen = None if arms is None else _names(arms, ARMS.key, "--arms", "fine-tune,scratch-b")
    value: dict[str, Any] = studies.study_of(
        own,
        name=f"versus-{own[0]}",
        model=read_value(model),
        data=read_value(data),
        targets=[studies.read_target(text) for text in targets],
        rivals=rivals,
        arms=chosen,
        seeds=seeds,
        recipe=recipe,
    )
    value |= {key: said for key, said in more.items() if said is not None}
    studies.check({**value, "methods": [e for e in value["methods"] if e["name"] in own]})
    if against is None:
        value, reasons = studies.without_impossible(value, set(rivals) - set(own))
        for name, reason in reasons.items():
            complain(f"Not compared with {name}: {reason}")
    studies.check(value)
    return value


def _written(value: dict[str, Any], out: Path | None, *, again: Sequence[Path]) -> Path:
    """Write the study into its report's folder."""
    import yaml

    folder = out if out is not None else DEFAULT_REPORT / value["name"]
    path = folder / "study.yaml"
    options = "".join(f" --with {file}" for file in again)
    head = (
        f"# Written by: {command_line()}\n# Run it, or a changed copy: regrow run {path}{options}\n"
    )
    try:
        write_whole(path, head + yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    except OSError as error:
        raise ConfigError(
            f"Cannot write the study to '{path}': {why(error)}. Name a folder that you "
            "may write to with --out."
        ) from error
    say(f"The study is {path}.")
    return path


def _names(text: str, key: Callable[[str], str], option: str, example: str) -> list[str]:
    """Read registered names separated by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{option} needs at least one name, such as {example}.")
    try:
        return list(dict.fromkeys(map(key, names)))
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error
