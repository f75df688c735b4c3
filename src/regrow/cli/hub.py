"""The command ``regrow push``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from regrow.core.validation import is_number
from regrow.errors import ConfigError, short


def push(
    folder: Annotated[
        Path, typer.Argument(help="Folder written by shrink, export or regrow.save.")
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    results: Annotated[
        list[str] | None,
        typer.Option("--result", metavar="METRIC=VALUE", help="A score to add to the card."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--on", metavar="DATA", help="Data set of the scores.")
    ] = None,
    task: Annotated[str, typer.Option(help="Kind of task.")] = "image-classification",
    into: Annotated[
        Path | None, typer.Option(help="Write the files to this new folder and upload nothing.")
    ] = None,
) -> None:
    """Upload a network to the Hugging Face hub: description, weights, card (extra `hub`).

    In Python, regrow.load(regrow.pull(OWNER/NAME)) returns the network.
    """
    from regrow.own.hub import push as upload

    scores = _scores(results or ())
    print(upload(folder, name, results=scores, dataset=dataset, task=task, into=into))


def _scores(texts: Sequence[str]) -> dict[str, float]:
    """Read scores, each METRIC=VALUE."""
    scores: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not name or name in scores or not is_number(number):
            raise ConfigError(
                "--result must be METRIC=VALUE, each metric once, such as accuracy=98.4. Got "
                f"{short(text)}."
            )
        scores[name] = number
    return scores
