"""The command ``regrow lint``: remarks on a study, as a careful reviewer would make them."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from regrow.cli.hours import HoursOption, load_within
from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import (
    DEFAULT_STORE,
    DataOption,
    JsonOption,
    StoreOption,
    StudyFile,
    WithOption,
)
from regrow.cli.terminal import count, in_lines, print_json
from regrow.core.texts import visible
from regrow.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regrow.studies.lint import Remark

EXIT_REMARKS = 1


def lint(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    with_files: WithOption = None,
    data: DataOption = None,
    hours: HoursOption = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Leave out remarks with this code; may be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Review a study for weaknesses in its conclusions, before or after it runs.

    Exit codes: 0 no remarks, 1 remarks, 2 the study cannot be read.
    """
    load_extensions(with_files)
    loaded, _, _ = load_within(hours, study, store, data=data, measure=False)
    from regrow.studies.lint import remarks

    found = remarks(loaded)
    if store.exists():
        from regrow.report import verdicts
        from regrow.report.collect import results_of
        from regrow.report.run_remarks import run_remarks

        runs = results_of(loaded, open_store(store, create=False)).runs
        if any(run.done for run in runs):
            found += run_remarks(verdicts(runs, margin=loaded.margin))
    left = _without(found, ignore or [])
    if as_json:
        print_json({"study": loaded.name, "remarks": [asdict(remark) for remark in left]})
    else:
        _print(left, num_ignored=len(found) - len(left))
    if left:
        raise typer.Exit(EXIT_REMARKS)


def _without(found: "list[Remark]", ignored: list[str]) -> "list[Remark]":
    from regrow.studies.lint import CODES

    for code in ignored:
        if code not in CODES:
            raise ConfigError(unknown("code of a remark", code, CODES))
    return [remark for remark in found if remark.code not in ignored]


def _print(found: "list[Remark]", *, num_ignored: int) -> None:
    for remark in found:
        print(visible(f"{remark.code}: {remark.where}"))
        lines = [f"{remark.reason[:1].upper()}{remark.reason[1:]}."]
        lines += [f"See {remark.reference}."] if remark.reference else []
        lines += [f"Write {remark.remedy}."]
        for line in lines:
            print(in_lines([visible(line)]))
    ignored = f" {num_ignored} ignored." if num_ignored else ""
    print(f"{count(len(found), 'remark')}.{ignored}")
