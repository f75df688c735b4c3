"""The paper's tables and figures, and the study files that make them up.

A study file (``studies/*.yaml``) is a study with three keys more. ``paper``, at the top and in each
experiment, names the printed cells: ``table``, ``dataset``, ``model``; where needed ``part``,
``reference`` or ``target``, and ``arms`` (our arm: the printed one, or null for a control that is
not printed); ``panel`` says in which part of a figure it is drawn, and ``least_size`` from how many
pixels a side its network has all its stages. ``notes`` go into the report.
``absent`` lists printed cells that no cell of ours fills, and why. ``studies/index.yaml`` says
which files make up a table or a figure, and of which kind it is:

- ``results``, or nothing: a table of accuracies;
- ``widths``, ``stages``, ``kernels``: a table of what the prunings of trained networks kept, by
  layer, by stage, or by stage and position in the kernel; ``heatmaps``: a figure of the last;
- ``curves``: accuracy over parameters; ``tickets``: accuracy over the share pruned;
- ``histograms``: the weights of trained networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from regrow.errors import ConfigError, unknown

STUDIES = files("regrow.reproduce") / "studies"
DRAWINGS = {
    "figure-1": "the usual steps, training, pruning and fine-tuning",
    "figure-2": "widths that a person fixes beside widths that a method finds",
}
Kind = Literal[
    "results", "widths", "stages", "kernels", "heatmaps", "curves", "tickets", "histograms"
]
OF_PRUNINGS: tuple[Kind, ...] = ("widths", "stages", "kernels", "heatmaps")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table or a figure, and the study files that make it up.

    Of prunings it shows those of one ``ratio`` (removed share), or those that its table prints.
    """

    name: str
    kind: Kind = "results"
    table: int | None = None
    studies: tuple[str, ...] = ()
    ratio: float | None = None
    about: str = ""
    note: str = ""


@cache
def entries() -> Mapping[str, Entry]:
    """Return the tables and figures by name, in the paper's order."""
    return {name: Entry(name=name, **_tuples(value)) for name, value in read_study("index").items()}


def entry(name: str) -> Entry:
    """Return a table or figure; a ``ConfigError`` names those that are most like an unknown one."""
    known = entries()
    if name in DRAWINGS:
        raise ConfigError(
            f"{name.replace('-', ' ').capitalize()} of the paper is a drawing without data: "
            f"{DRAWINGS[name]}. There is nothing to run for it. `regrow reproduce list` names the "
            "tables and figures that can be reproduced."
        )
    if name not in known:
        raise ConfigError(unknown("table or figure", name, [*known, "all", "list"]))
    return known[name]


def absent(name: str) -> list[Mapping[str, Any]]:
    """Return the printed cells that a study file does not fill: labels, and ``why``."""
    return list(read_study(name).get("absent", []))


@cache
def read_study(name: str) -> Mapping[str, Any]:
    """Return the content of a study file of this package, by its bare name."""
    value = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(value, dict), f"{name}.yaml must be a mapping"
    return value


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(own) if isinstance(own, list) else own for key, own in value.items()}
