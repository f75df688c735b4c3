"""The command ``regrow compare-runs``: the differences between two stores, reports or records."""

from typing import Annotated

import typer

from regrow.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from regrow.cli.terminal import console, print_json

SIDE = "A store's folder, a report's folder, a record.json, or the first letters of a record's key."


def compare_runs(
    a: Annotated[str, typer.Argument(help=SIDE, show_default=False)],
    b: Annotated[str, typer.Argument(help="The same, to compare it with.", show_default=False)],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show the differences between two runs: settings, scores, verdicts, machines and versions.

    A and B are two stores, two folders of reports, or two records: files, or keys in --store.
    """
    from regrow.report.differences import differences, lines, read_side

    found = differences(read_side(a, store=store), read_side(b, store=store))
    if as_json:
        print_json(found.to_json())
        return
    for line in lines(found):
        console().print(line, markup=False, highlight=False)
