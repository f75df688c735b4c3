"""A paper to reproduce: its tables and figures, study files, printed numbers, data sets and claims.

A paper is a folder; adding one needs no change of code. It holds:

- ``paper.yaml``: ``title``, ``reference``, ``runs`` (how many runs are behind a printed mean that
  has a standard deviation), ``datasets`` (of each: its ``label`` in the tables), and where needed
  ``arms`` (our name of an arm: the printed one), ``notes`` (see ``reproduce.notes``), ``drawings``
  (figures without data: what they show);
- ``entries.yaml``: what ``regrow reproduce`` knows by name, see ``Entry``;
- ``studies/*.yaml``: studies with three additional keys. ``paper``, at the top and in each
  experiment, names the printed cells: ``table``, ``dataset``, ``model``; where needed ``part``,
  ``reference`` or ``target``, and ``arms`` (our arm: the printed one, or null for a control that is
  not printed); ``panel`` names the part of a figure that it is drawn in, and ``least_size`` is the
  smallest image side, in pixels, at which its network has all its stages. ``notes`` go into the
  report. ``absent`` lists printed cells that no cell of ours fills, and why;
- ``printed/*.csv``: the printed numbers, see ``reproduce.printed``;
- ``claims.py``, where claims can be judged: ``CLAIMS``, a tuple of ``reproduce.rules.Claim``.

Papers are the folders of ``regrow.papers``, those named by entry points of the group
``regrow.papers`` (a package whose folder has a ``paper.yaml``), and any folder given by its path.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from regrow.core.validation import refuse_unknown, tuples
from regrow.errors import ConfigError, unknown
from regrow.studies.yaml_file import read_file

if TYPE_CHECKING:
    from regrow.reproduce.rules import Claim

GROUP = "regrow.papers"
DEFAULT = "liu2019"
UNPRUNED = "unpruned"

Kind = Literal[
    "results", "widths", "stages", "kernels", "heatmaps", "curves", "tickets", "histograms"
]
OF_PRUNINGS: tuple[Kind, ...] = ("widths", "stages", "kernels", "heatmaps")
# Columns that together identify a cell of a table, by what it shows. The initial learning rate
# follows from table and part, the method from the table; both are columns, but not needed for this.
RESULT = ("table", "part", "dataset", "model", "target", "arm", "reference")
WIDTH = ("table", "layer", "quantity")
SPARSITY = ("table", "ratio", "stage", "kernel_row", "kernel_col")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The labels of a table's sections, rows and columns, and the format of its numbers.

    If the paper prints no spread at all (``spread=False``), cells leave ours out too.
    """

    sections: tuple[str, ...] = ("dataset", "model")
    rows: tuple[str, ...] = ("target",)
    columns: tuple[str, ...] = ("arm",)
    digits: int = 2
    spread: bool = True


BY_STAGE = Shape(sections=(), rows=("stage",), columns=("ratio",), digits=3, spread=False)
BY_KERNEL = Shape(
    sections=(),
    rows=("stage", "kernel_row"),
    columns=("ratio", "kernel_col"),
    digits=3,
    spread=False,
)
SHAPES: Mapping[Kind, Shape] = {
    "widths": Shape(sections=(), rows=("layer",), columns=("quantity",), digits=1),
    "stages": BY_STAGE,
    "kernels": BY_KERNEL,
}


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Cells of a table that table ``of`` has too, under the same labels except the ``renamed``."""

    of: int
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of a paper: its label in the tables.

    ``large`` images come from a user's folder, at a size that depends on the scale; others are
    downloaded.
    """

    label: str
    large: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table or a figure of a paper, and the study files that make it up.

    Attributes:
        kind: how it is laid out. ``results``: a table of accuracies; ``widths``, ``stages``,
            ``kernels``: a table of what the prunings of trained networks kept, by layer, by stage,
            or by stage and position in the kernel; ``heatmaps``: a figure of the last; ``curves``:
            accuracy over parameters; ``tickets``: accuracy over the share pruned; ``histograms``:
            the weights of trained networks.
        table: the number of the table whose printed cells it fills.
        ratio: the removed share whose prunings it shows; by default, those that its table prints.
        about: its caption.
        note: goes into its report.
        layout: the labels of a table's sections, rows and columns, if not the default.
        changes: for a table that prints changes from an unpruned network: the ``reference`` of that
            network by arm, and for all ``other`` arms.
        repeats: cells that another table prints too.
    """

    paper: "Paper" = field(repr=False, compare=False)
    name: str
    kind: Kind = "results"
    table: int | None = None
    studies: tuple[str, ...] = ()
    ratio: float | None = None
    about: str = ""
    note: str = ""
    layout: Shape = Shape()
    changes: Mapping[str, str] = field(default_factory=dict)
    repeats: tuple[Repeat, ...] = ()

    @property
    def full_name(self) -> str:
        """The entry's name with its paper's, as ``regrow reproduce`` accepts it."""
        return f"{self.paper.name}/{self.name}"

    @property
    def title(self) -> str:
        """The entry's name at the start of a caption: ``Table 4``."""
        return self.name.replace("-", " ").capitalize()


@dataclass(frozen=True, kw_only=True, eq=False)
class Paper:
    """A paper in a folder; errors in its files are ``ConfigError``s."""

    name: str
    folder: Path
    title: str
    reference: str
    runs: int = 1
    datasets: Mapping[str, DataSet] = field(default_factory=dict)
    arms: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    drawings: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """The tables and figures by name, in the order of their file."""
        path = self.folder / "entries.yaml"
        return {name: self._entry(name, value) for name, value in _mapping(path).items()}

    def entry(self, name: str) -> Entry:
        """Return a table or figure; for an unknown name, a ``ConfigError`` suggests others."""
        if name in self.drawings:
            raise ConfigError(
                f"{name.replace('-', ' ').capitalize()} of the paper is a drawing without data: "
                f"{self.drawings[name]}. There is nothing to run for it. `regrow reproduce list` "
                "names the tables and figures that can be reproduced."
            )
        if name not in self.entries:
            raise ConfigError(unknown("table or figure", name, [*self.entries, "all", "list"]))
        return self.entries[name]

    @property
    def tables(self) -> tuple[int, ...]:
        """The numbers of the tables that have printed cells."""
        numbers = (
            entry.table for name, entry in self.entries.items() if name == f"table-{entry.table}"
        )
        return tuple(number for number in numbers if number is not None)

    def table(self, number: int) -> Entry:
        """Return a table by its number."""
        if number not in self.tables:
            numbers = ", ".join(map(str, self.tables))
            raise ConfigError(f"The paper's tables are numbered {numbers}. Got {number!r}.")
        return self.entries[f"table-{number}"]

    def labels(self, number: int) -> tuple[str, ...]:
        """Return the columns that together identify a cell of a table."""
        kind = self.table(number).kind
        return WIDTH if kind == "widths" else SPARSITY if kind in OF_PRUNINGS else RESULT

    def study(self, name: str) -> Mapping[str, Any]:
        """Return the content of a study file, by its name without suffix."""
        return _mapping(self.folder / "studies" / f"{name}.yaml")

    def absent(self, name: str) -> list[Mapping[str, Any]]:
        """Return the printed cells that a study file does not fill: labels, and ``why``."""
        return list(self.study(name).get("absent", []))

    def check_data(self, names: Mapping[str, str]) -> None:
        """Refuse replacements of data sets that the paper does not have."""
        for name in names:
            if name not in self.datasets:
                raise ConfigError(
                    "--data replaces a data set of the paper: "
                    f"{unknown('data set', name, self.datasets)}"
                )

    @cached_property
    def claims(self) -> "tuple[Claim, ...]":
        """The paper's claims; a ``ConfigError`` if it has no ``claims.py``."""
        path = self.folder / "claims.py"
        if not path.is_file():
            raise ConfigError(
                f"The paper {self.name} has no claims to judge: its folder has no claims.py."
            )
        if self.folder.parent == _built_in():
            module = import_module(f"{GROUP}.{self.name}.claims")
        else:
            spec = spec_from_file_location(f"regrow_paper_{self.name}_claims", path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = module_from_spec(spec)
            spec.loader.exec_module(module)
        return tuple(module.CLAIMS)

    def _entry(self, name: str, value: Any) -> Entry:
        where = f"{self.folder / 'entries.yaml'}, {name}"
        entry = _checked(value, Entry, where)
        kind: Kind = entry.get("kind", "results")
        shape = SHAPES.get(kind, Shape())
        if "layout" in entry:
            layout = _checked(entry["layout"], Shape, where)
            entry["layout"] = Shape(**{**vars(shape), **layout})
        repeats = [Repeat(**_checked(repeat, Repeat, where)) for repeat in entry.get("repeats", ())]
        return Entry(paper=self, name=name, **{"layout": shape, **entry, "repeats": tuple(repeats)})


def papers() -> Mapping[str, Paper]:
    """Return every installed paper by name, the default one first."""
    folders = [path.parent for path in _built_in().glob("*/paper.yaml")]
    for point in entry_points(group=GROUP):
        folders += [Path(path) for path in import_module(point.module).__path__]
    by_name = {folder.name: folder for folder in folders}
    return {
        name: paper_in(by_name[name]) for name in sorted(by_name, key=lambda n: (n != DEFAULT, n))
    }


def find_paper(name: str) -> Paper:
    """Return a paper by its name, or by the path of its folder."""
    if (Path(name) / "paper.yaml").is_file():
        return paper_in(Path(name))
    if name not in (available := papers()):
        raise ConfigError(
            f"{unknown('paper', name, available)} Or name a folder that holds a paper.yaml."
        )
    return available[name]


def find_entry(name: str, paper: Paper | None = None) -> Entry:
    """Return a table or figure by its name, with or without its paper's (``wang2023/table-4``).

    A name alone means the default paper's entry, or else that of the only paper that has it.
    """
    paper_name, _, last = name.rpartition("/")
    if paper_name:
        return find_paper(paper_name).entry(last)
    available = papers()
    default = paper or available[DEFAULT]
    candidates = [candidate for candidate in available.values() if last in candidate.entries]
    if paper is None and last not in default.entries and len(candidates) == 1:
        return candidates[0].entry(last)
    return default.entry(last)


@cache
def paper_in(folder: Path) -> Paper:
    """Read the paper that a folder holds."""
    path = folder.resolve() / "paper.yaml"
    value = _checked(_mapping(path), Paper, str(path))
    missing = [name for name in ("title", "reference") if name not in value]
    if missing:
        raise ConfigError(f"{path}: {' and '.join(missing)} must be given.")
    datasets = {
        name: DataSet(**_checked(dataset, DataSet, f"{path}, {name}"))
        for name, dataset in value.pop("datasets", {}).items()
    }
    return Paper(name=path.parent.name, folder=path.parent, datasets=datasets, **value)


def _built_in() -> Path:
    return Path(str(files("regrow"))) / "papers"


@cache
def _mapping(path: Path) -> Mapping[str, Any]:
    def parse(value: Any, name: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: expected a mapping. Got {value!r}.")
        return value

    return read_file(path, parse)


def _checked(value: Any, kind: type, where: str) -> dict[str, Any]:
    """Check the keys of a mapping against the fields of a class, and turn its lists into tuples."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping. Got {value!r}.")
    keys = [field.name for field in fields(kind)]
    refuse_unknown(value, keys, kind="key", where=where)
    return tuples(value)
