"""The command ``regrow claims``."""

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.options import JsonOption
from regrow.cli.terminal import print_json


def claims(
    paper: Annotated[
        str | None, typer.Option(help="Name or folder of the paper.", show_default="liu2019")
    ] = None,
    ours: Annotated[
        Path | None,
        typer.Option(help="Folder that `regrow reproduce` wrote.", show_default="none"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Test a paper's claims on its printed numbers, and with --ours on reproduced ones."""
    from regrow.reproduce.claims import evaluate_claims, render, to_json
    from regrow.reproduce.paper import DEFAULT, find_paper
    from regrow.reproduce.read_results import read_cells

    source = find_paper(paper or DEFAULT)
    printed, reproduced = evaluate_claims(source), []
    if ours is not None:
        results = read_cells(source, ours)
        reproduced = evaluate_claims(
            source,
            results.results,
            widths_frame=results.widths,
            sparsity_frame=results.sparsity,
            curves_frame=results.curves,
            weights_frame=results.weights,
        )
    if as_json:
        print_json({"printed": to_json(printed)} | ({"ours": to_json(reproduced)} if ours else {}))
    else:
        print(render(printed, measured=reproduced))
