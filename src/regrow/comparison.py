"""Compare ways to obtain a smaller network, with the user's own training function.

    network = {"network": "nets.py:MobileNet", "input": "1x3x64x64"}
    found = compare(network, "my_train.py:train", metric="accuracy", budget=30,
                    amounts={"macs": 0.5})
    print(found.answer)

A comparison is an ordinary study (``studies.own``) that is built from the arguments and run.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import pandas as pd

from regrow.core.execution import RETRIES, Execution
from regrow.core.registry import registered_elsewhere
from regrow.core.source import keeping_code
from regrow.core.texts import listed
from regrow.core.validation import as_list, check_kind, path_of, refuse_unknown
from regrow.errors import ConfigError, short
from regrow.models.origins import refuse_second_call
from regrow.pruning.method import criterion_key
from regrow.report import Report, Run, Verdict, page_of, summarise
from regrow.report.collect import Results, results_of
from regrow.report.files import check_writable, write_study
from regrow.report.render import failure_lines
from regrow.run import Event, Summary, check_machines, run_as
from regrow.store import Store
from regrow.studies.own import DEFAULT_ARMS
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


class Options(TypedDict, total=False):
    """The options of a comparison, beside the network and its training.

    Args:
        metric: the score to compare by, one that ``train`` returns; or a mapping with ``name``,
            ``better``, ``margin``, ``num_test`` and ``chance``.
        budget, budgets: the length of the unpruned network's training, in epochs or as a mapping
            (``{"steps": 1000}``); several, in epochs or as multiples of it ("0.5x").
        small, amounts: the smaller network: folders that ``regrow shrink`` wrote; or how much is
            left of a cost (``{"macs": 0.5}``), or removed (``{"sparsity": 0.5}``).
        criterion, allocation, scope, rounds, multiple_of, examples: how units are chosen.
        arms: what is compared (default: ``DEFAULT_ARMS``).
        fine_tune, cap: the budget of ``fine-tune`` as a share of the unpruned network's, and the
            most that ``scratch-b`` trains as a multiple of it.
        uniform, rivals: whether the network is trained at uniform widths too; other networks.
        seeds: the number of seeds (default: 3), or a list of them.
    """

    metric: Required[Mapping[str, Any] | str]
    budget: Mapping[str, Any] | int | None
    budgets: Sequence[int | str] | int | str | None
    small: Sequence[str | Path] | str | Path | None
    amounts: Mapping[str, Any] | None
    criterion: str
    allocation: str
    scope: Sequence[str] | str
    rounds: int
    multiple_of: int
    examples: str | None
    arms: Sequence[Any] | str | None
    fine_tune: float | None
    cap: float | None
    uniform: bool | None
    rivals: Sequence[Any] | str | None
    seeds: int | Sequence[int]


def study_value(
    network: Mapping[str, Any] | str, train: str | Callable[..., Any], **options: Unpack[Options]
) -> dict[str, Any]:
    """Return the study of a comparison in the form of a study file's content, not yet checked."""
    given = {name: _as_in_file(value) for name, value in options.items()}
    said = {name: value for name, value in given.items() if value is not None}
    value: dict[str, Any] = {"train": place_of_function(train), **_some(said, "metric")}
    value |= {**_some(said, "budget", "budgets"), "models": network}
    amounts = said.get("amounts", {})
    check_kind(amounts, Mapping, "'amounts' must map a cost to a share, such as {'macs': 0.5}")
    if amounts:
        value["methods"] = {
            "name": "l1",
            "label": said.get("criterion", "l1"),
            "criterion": criterion_key(said.get("criterion", "l1")),
            "allocation": said.get("allocation", "uniform"),
            "scope": said.get("scope", "all"),
            **{k: v for k, v in _some(said, "rounds", "multiple_of").items() if v != 1},
            **amounts,
        }
    value |= _some(said, "examples", "small")
    changed = {"fine-tune": _some(said, share="fine_tune"), "scratch-b": _some(said, "cap")}
    value["arms"] = [
        {"name": arm, **changed[arm]} if isinstance(arm, str) and changed.get(arm) else arm
        for arm in as_list(said.get("arms", [*DEFAULT_ARMS]))
    ]
    value |= _some(said, "uniform", "rivals")
    return {**value, "seeds": given.get("seeds", 3)}


def _some(given: Mapping[str, Any], *names: str, **renamed: str) -> dict[str, Any]:
    """Return the entries with these names, as far as there are any, some under another name."""
    wanted = {**dict(zip(names, names, strict=True)), **renamed}
    return {key: given[name] for key, name in wanted.items() if name in given}


def _as_in_file(value: Any) -> Any:
    """Return a value as a study file has it: a path as a text, several values as a list."""
    if isinstance(value, PathLike):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return [_as_in_file(entry) for entry in value]
    return value


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
    **options: Unpack[Options],
) -> ComparisonResult:
    """Compare a pruned network, fine-tuned or trained from scratch, with others of equal cost.

    Args:
        network: a string such as ``nets.py:MobileNet`` or ``timm/resnet18``; or a mapping with
            ``network``, ``input``, ``weights``, ``set``, ``keep`` and ``label``.
        train: ``file.py:name`` of ``train(model, budget, seed) -> metrics``, or the function.
        name, out: the name of the study, and a folder for its report.
        store, workers, device, on, address, stop_after, retries, on_event: as for ``run_study``.
        options: see ``Options``. Required are ``metric``, ``budget`` or ``budgets``, and
            ``amounts`` or ``small``, the smaller network.

    Raises:
        ConfigError: an argument or the study is invalid.
    """
    refuse_second_call("regrow.compare")
    known = [*Options.__annotations__, *inspect.getfullargspec(compare).kwonlyargs]
    refuse_unknown(options, known, kind="argument", where="regrow.compare")
    folder = None if out is None else path_of(out, "The 'out' of regrow.compare")
    limits: dict[str, Any] = {"stop_after": stop_after, "retries": retries}
    execution = Execution(workers=workers, device=device, on=on, address=address, **limits)
    study = Study.from_json(study_value(network, train, **options), name=name)
    check_machines(execution)
    opened = Store.open(store)
    if folder is not None:
        check_writable(folder)
    script_again = bool(registered_elsewhere())  # workers then need what the script registered
    jobs = study.jobs()
    with keeping_code():
        summary = run_as(execution, jobs, opened, on_event=on_event, script_again=script_again)
        results = results_of(study, opened)
        report = None if folder is None else _report(study, opened, folder)
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


def _report(study: Study, store: Store, folder: Path) -> Report:
    written, _ = write_study(study, store, folder, command="regrow.compare(...)")
    return written


def _gaps(results: Results) -> Iterator[str]:
    """Describe the failures, and say which runs are missing."""
    yield from (f"Failed: {line}" for line in failure_lines(results.failures))
    seeds_of: dict[str, set[int]] = {}
    for run in results.runs:
        seeds_of.setdefault(run.job, set()).add(run.seed)
    missing: dict[str, dict[str, None]] = {}
    for run in results.runs:
        if not run.done:
            seeds = missing.setdefault(run.arm, {})
            if len(seeds_of[run.job]) == 1:  # else one measurement serves all seeds
                seeds[str(run.seed)] = None
    rows = [
        f"{arm} (seed{'s' if len(seeds) > 1 else ''} {listed([*seeds])})" if seeds else arm
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
