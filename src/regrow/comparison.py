"""Compare ways to obtain a smaller network, with the user's own training function.

    found = compare("nets.py:MobileNet", "my_train.py:train", input="1x3x64x64", macs=0.5,
                    metric="accuracy", budget=30)
    print(found.answer)

A comparison is an ordinary study (``studies.own``) that is built from the arguments and run.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from regrow.core.execution import RETRIES, Execution
from regrow.core.texts import listed
from regrow.core.validation import as_list
from regrow.errors import ConfigError, short
from regrow.pruning.method import criterion_key
from regrow.report import Report, Run, Verdict, page_of, summarise
from regrow.report.collect import Results, results_of
from regrow.report.files import write_study
from regrow.report.render import failure_lines
from regrow.run import Event, Summary, check_machines, run_as
from regrow.store import Store
from regrow.studies.study import Study


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """The result of a comparison: rows, verdicts, and the answer in words.

    ``notes`` are limitations of the results. ``failures`` maps the labels of failed jobs to their
    messages; the answer begins with these and with the runs that are missing. ``report`` is None
    unless a folder was given.
    """

    study: Study
    runs: tuple[Run, ...]
    rows: pd.DataFrame
    verdicts: tuple[Verdict, ...]
    answer: str
    notes: tuple[str, ...]
    failures: Mapping[str, str]
    summary: Summary
    report: Report | None = None

    def __str__(self) -> str:
        return self.answer if self.report is None else self.report.text


def study_value(
    network: Mapping[str, Any] | str,
    train: str | Callable[..., Any],
    *,
    metric: Mapping[str, Any] | str,
    budget: Mapping[str, Any] | int | None = None,
    budgets: Sequence[int | str] | None = None,
    small: str | Path | Sequence[str | Path] = (),
    criterion: str = "l1",
    allocation: str = "uniform",
    scope: str | Sequence[str] = "all",
    rounds: int = 1,
    examples: str | None = None,
    multiple_of: int = 1,
    amounts: Mapping[str, Any] | None = None,
    arms: Sequence[Any] | None = None,
    fine_tune: float | None = None,
    cap: float | None = None,
    uniform: bool = False,
    rivals: Sequence[Any] = (),
    seeds: int | Sequence[int] = 3,
) -> dict[str, Any]:
    """Return the study of a comparison in the form of a study file's content; see ``compare``."""
    value: dict[str, Any] = {
        "train": place_of_function(train),
        "metric": metric,
        **({} if budget is None else {"budget": budget}),
        **({} if budgets is None else {"budgets": list(budgets)}),
        "models": network,
    }
    if amounts:
        value["methods"] = {
            "name": "l1",
            "label": criterion,
            "criterion": criterion_key(criterion),
            "allocation": allocation,
            "scope": scope if isinstance(scope, str) else list(scope),
            **({"rounds": rounds} if rounds > 1 else {}),
            **({"multiple_of": multiple_of} if multiple_of != 1 else {}),
            **amounts,
        }
    value |= {"examples": examples} if examples is not None else {}
    if folders := [str(folder) for folder in as_list(small)]:
        value["small"] = folders
    changed = {"fine-tune": ("share", fine_tune), "scratch-b": ("cap", cap)}
    value["arms"] = [
        {"name": arm, changed[arm][0]: changed[arm][1]}
        if isinstance(arm, str) and changed.get(arm, ("", None))[1] is not None
        else arm
        for arm in arms or ("unpruned", "pruned", "fine-tune", "scratch-e", "scratch-b")
    ]
    value |= {"uniform": True} if uniform else {}
    value |= {"rivals": list(rivals)} if rivals else {}
    return {**value, "seeds": seeds if isinstance(seeds, int) else list(seeds)}


def compare(
    network: str | Mapping[str, Any],
    train: str | Callable[..., Any],
    *,
    name: str = "comparison",
    out: str | Path | None = None,
    store: str | Path = "regrow-store",
    workers: int | None = None,
    device: str = "cpu",
    on: str | None = None,
    address: str | None = None,
    stop_after: float | str | None = None,
    retries: int = RETRIES,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> ComparisonResult:
    """Compare a pruned network, fine-tuned or trained from scratch, with others of equal cost.

    Args:
        network: a string such as ``nets.py:MobileNet`` or ``timm/resnet18``; or a mapping with
            ``network``, ``input``, ``weights``, ``set``, ``keep`` and ``label``.
        train: ``file.py:name`` of ``train(model, budget, seed) -> metrics``, or the function.
        name, out: the name of the study, and a folder for its report.
        store, workers, device, on, address, stop_after, retries, on_event: as for ``run_study``.
        options: see ``study_value``. Required are ``metric``, ``budget`` or ``budgets`` (numbers
            of epochs, or multiples of ``budget`` such as "0.5x"), and the smaller network:
            ``amounts`` (``{"macs": 0.5}``) or ``small`` (folders that ``regrow shrink`` wrote).

    Raises:
        ConfigError: an argument or the study is invalid.
    """
    limits: dict[str, Any] = {"stop_after": stop_after, "retries": retries}
    execution = Execution(workers=workers, device=device, on=on, address=address, **limits)
    study = Study.from_json(study_value(network, train, **options), name=name)
    check_machines(execution)
    opened = Store.open(store)
    summary = run_as(execution, study.jobs(), opened, on_event=on_event)
    results = results_of(study, opened)
    report = None
    if out is not None:
        report, _ = write_study(study, opened, Path(out), command="regrow.compare(...)")
    rows = summarise(results.runs)
    page = page_of(results.runs, rows, title=study.title, notes=results.notes, advise=True)
    return ComparisonResult(
        study=study,
        runs=results.runs,
        rows=rows,
        verdicts=page.verdicts,
        answer="\n".join([*_gaps(results), page.answer]),
        notes=results.notes,
        failures={failure.label: failure.message for failure in results.failures},
        summary=summary,
        report=report,
    )


def _gaps(results: Results) -> Iterator[str]:
    """Describe the failures, and say which runs are missing."""
    yield from (f"Failed: {line}" for line in failure_lines(results.failures))
    missing: dict[str, list[str]] = {}
    for run in results.runs:
        if not run.done:
            missing.setdefault(run.arm, []).append(str(run.seed))
    rows = [
        f"{arm} (seed{'s' if len(seeds) > 1 else ''} {listed(seeds)})"
        for arm, seeds in missing.items()
    ]
    if rows:
        yield (
            f"Missing: {listed(rows)}. The same call computes them, once what failed is "
            "fixed; finished runs are kept."
        )


def place_of_function(train: Any) -> str:
    """Return a training function as ``file.py:name``, from which workers import it."""
    if isinstance(train, str):
        return train
    name = getattr(train, "__qualname__", "")
    file = inspect.getsourcefile(train) if callable(train) and name.isidentifier() else None
    if file is None or not Path(file).is_file():
        raise ConfigError(
            "A training function must be defined at the top level of a Python file, so that "
            f"worker processes can import it. Got {short(train)}: move it into a file, and pass "
            "'my_train.py:train'."
        )
    return f"{file}:{name}"
