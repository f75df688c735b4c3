"""The command ``regrow claims``."""

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.options import JsonOption
from regrow.cli.terminal import print_json


def claims(
    ours: Annotated[
        Path | None,
        typer.Option(help="Folder that `regrow reproduce` wrote.", show_default="none"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the paper's claims on its printed numbers, and on reproduced ones."""
    from regrow.reproduce.claims import evaluate_claims, render, to_json
    from regrow.reproduce.own_results import read_cells

    printed, reproduced = evaluate_claims(), []
    if ours is not None:
        results = read_cells(ours)
        reproduced = evaluate_claims(
            results.results,
            widths_frame=results.widths,
            sparsity_frame=results.sparsity,
            curves_frame=results.curves,
            weights_frame=results.weights,
        )
    if as_json:
        print_json({"printed": to_json(printed)} | ({"ours": to_json(reproduced)} if ours else {}))
    else:
        print(render(printed, ours=reproduced))
