"""The reference: pages made of the keys, dataclasses, registries and docstrings of the code."""

import ast
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from docstrings import as_markdown

import regrow
from regrow.core.json_schema import Schema
from regrow.core.units import UNITS
from regrow.data.spec import DataSpec
from regrow.jobs.arms import ARM_KEYS, ARMS, Arm, Budget
from regrow.jobs.trials import KEYS as TRIAL_KEYS
from regrow.pruning.costs import COST_TARGETS
from regrow.pruning.method import ALLOCATIONS, CRITERIA, METHODS, SCOPES, Method
from regrow.pruning.normalise import NORMALISATIONS
from regrow.report.columns import FILES
from regrow.report.record_fields import TABLES as RECORD_TABLES
from regrow.studies import keys
from regrow.studies.catalogue import catalogue
from regrow.studies.schema import schema
from regrow.train import Recipe
from regrow.train.objective import OBJECTIVES
from regrow.train.optimiser import OPTIMISERS
from regrow.train.schedules import SCHEDULES

MADE = "*This page is made of the code of regrow {version}.*"


def pages() -> dict[str, str]:
    """Return the pages of the reference by file name."""
    from importlib.metadata import version

    made = MADE.format(version=version("regrow"))
    texts = {
        "study.md": _study(),
        "recipes.md": _recipes(),
        "arms.md": _arms(),
        "methods.md": _methods(),
        "names.md": _names(),
        "columns.md": _columns(),
        "files.md": _files(),
        "commands.md": _commands(),
        "api.md": _api(),
    }
    return {name: f"{text.rstrip()}\n\n{made}\n" for name, text in texts.items()}


# Parts of pages ----------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay rows out as a table of Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def prose(docstring: str | None, *, skip_first: bool = False) -> str:
    """Return a docstring as Markdown: its literals, blocks of code and examples."""
    text = inspect.cleandoc(docstring or "")
    if skip_first:
        text = text.partition("\n\n")[2]
    text = as_markdown(text)
    text = re.sub(r"^Attributes:\n((?:    .*\n?|\n)+)", _attributes, text, flags=re.MULTILINE)
    blocks = []
    for block in text.split("\n\n"):
        listed = re.match(r"`[a-z_]+`(, `[a-z_]+`| \(.*\))*:", block)
        blocks.append(re.sub(r"\n(?=`[a-z_, `]+`:)", "\n\n", block) if listed else block)
    return "\n\n".join(blocks)


def _attributes(match: re.Match[str]) -> str:
    """Return a list of attributes as one of Markdown."""
    lines = []
    for line in inspect.cleandoc("\n" + match[1]).splitlines():
        new = re.match(r"([a-z_][a-z_, ]*): (.*)", line)
        lines.append(f"- `{new[1]}`: {new[2]}" if new else f"  {line.strip()}")
    return "\n".join(lines) + "\n"


def of_module(name: str) -> str:
    """Return a module's docstring as Markdown, read without importing it."""
    file = Path(regrow.__file__).parent / f"{name.replace('.', '/')}.py"
    if not file.is_file():
        file = file.with_suffix("") / "__init__.py"
    return prose(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))


def _keys(about: Mapping[str, str]) -> str:
    return table(("key", "says"), ((f"`{key}`", text) for key, text in about.items()))


def form(fits: Schema) -> str:
    """Word what fits a schema: its type, bounds and values."""
    if "anyOf" in fits:
        parts = dict.fromkeys(form(option) for option in fits["anyOf"])
        return " or ".join(part for part in parts if part)
    if "enum" in fits:
        return ", ".join(f"`{value}`" for value in fits["enum"])
    kind = fits.get("type", "")
    words = {"integer": "an int", "number": "a number", "boolean": "true or false"}
    words |= {"string": "a text", "null": "nothing", "object": "a mapping"}
    if kind == "array":
        return f"a list, each {form(fits.get('items', {})) or 'anything'}"
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{word} {fits[key]:g}" for key, word in bounds.items() if key in fits]
    return " ".join([words.get(kind, ""), " and ".join(said)]).strip()


def _fields(forms: Mapping[str, Schema]) -> str:
    """Lay out the fields of a dataclass, as a study has them."""
    rows = []
    for name, fits in forms.items():
        default = f"`{_plain(fits['default'])}`" if "default" in fits else ""
        rows.append((f"`{name}`", form(fits), default))
    return table(("field", "is", "unless given"), rows)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _object_of(definition: Schema) -> dict[str, Schema]:
    """Return the properties of the mapping that a definition knows, among other forms."""
    options = definition.get("anyOf", [definition])
    return next(dict(option["properties"]) for option in options if "properties" in option)


# Pages -------------------------------------------------------------------------------------


def _study() -> str:
    data = _object_of(schema()["definitions"]["data"])
    return f"""# Keys of a study

A study is a YAML file of these keys; [studies](../studies.md) explains them, `regrow lint` judges a
file, and `regrow schema` writes a JSON schema for editors.

{_keys(keys.KEYS)}

A key whose values are several takes one of them or a list.

## An entry of `data`

A name, or a mapping:

{_fields(data)}

{prose(DataSpec.__doc__, skip_first=True)}

## An entry of `models`

A name, or a mapping:

{_keys(keys.MODEL_KEYS)}

## An entry of `methods`

A mapping, with an amount: `sparsity`, `target`, `shares` or a cost.

{_keys(keys.METHOD_KEYS)}

{_costs()}

Below `from`:

{_keys(keys.SOURCE_KEYS)}

## An entry of `arms`

A name, or a mapping:

{_keys(ARM_KEYS)}

Below `tune`, one rate and:

{_keys(TRIAL_KEYS)}

## A study with a `train` function

{_keys(keys.OWN_KEYS)}

Its network (`models`):

{_keys(keys.OWN_MODEL_KEYS)}

A rival:

{_keys(keys.RIVAL_KEYS)}

Its `metric`:

{_keys(keys.METRIC_KEYS)}
"""


def _costs() -> str:
    rows = []
    for name in COST_TARGETS.names():
        rows.append((f"`{name}`", _first(COST_TARGETS.get(name).function)))
    return "Costs, each the share that may be left at most:\n\n" + table(("key", "is"), rows)


def _first(function: Any) -> str:
    return prose((function.__doc__ or "").strip().partition("\n")[0])


def _recipes() -> str:
    recipe = _object_of(schema()["definitions"]["recipe"])
    recipe.pop("name")
    named = [(f"`{name}`", text) for name, text in catalogue()["recipes"].items()]
    return f"""# Recipes

A recipe is a name, or fields that differ from one: `{{name: cifar, epochs: 40}}`.

{_fields(recipe)}

{prose(Recipe.__doc__, skip_first=True)}

## Names

{table(("name", "is"), named)}

## Schedules

{_entries({name: SCHEDULES.get(name).factor for name in SCHEDULES.names()})}

## Objectives

{_entries({name: OBJECTIVES.get(name).objective.losses for name in OBJECTIVES.names()})}

## Optimisers

{_entries({name: OPTIMISERS.get(name).update for name in OPTIMISERS.names()})}
"""


def _entries(functions: Mapping[str, Any], level: str = "###") -> str:
    """Return the docstrings of registered functions under their names."""
    return "\n\n".join(f"{level} {name}\n\n{prose(f.__doc__)}" for name, f in functions.items())


def _arms() -> str:
    rows = [(f"`{name}`", text) for name, text in catalogue()["arms"].items()]
    return f"""# Arms

{prose(Arm.__doc__)}

## Registered arms

{table(("arm", "is"), rows)}

As values:

{table(("arm", "fields"), ((f"`{n}`", f"`{ARMS.get(n).to_json()}`") for n in ARMS.names()))}

## Budgets

{prose(Budget.__doc__)}
"""


def _methods() -> str:
    methods = "\n\n".join(_method(METHODS.get(name)) for name in METHODS.names())
    scopes = table(("scope", "is"), ((f"`{name}`", about) for name, about in SCOPES.items()))
    units = table(("unit", "is"), ((f"`{name}`", UNITS.get(name).about) for name in UNITS.names()))
    return f"""# Methods

{prose(Method.__doc__)}

{methods}

## Criteria

{_entries({name: CRITERIA.get(name) for name in CRITERIA.names()})}

## Allocations

{_entries({name: ALLOCATIONS.get(name).function for name in ALLOCATIONS.names()})}

## Normalisations

{_entries(NORMALISATIONS)}

## Scopes

{scopes}

## Units

{units}
"""


def _method(method: Method) -> str:
    """Return the section of one method: its parts, its formula, and where it is from."""
    parts = {
        "removes": f"{method.unit}s",
        "score": f"{method.criterion}: {_first(CRITERIA.get(method.criterion))}",
        "allocation": method.allocation,
        "scope": ", ".join(method.scope),
        "normalise": method.normalise or "",
        "rounds": str(method.rounds) if method.rounds > 1 else "",
        "looks at": "" if method.trained else "the network before training",
        "while a network trains": "it acts, too" if method.treatment is not None else "",
        "strength": ", ".join(f"{name or 'else'} {v:g}" for name, v in method.strength.items()),
        "targets": ", ".join(method.targets),
        "follows": method.follows or "",
        "reference": method.reference,
    }
    rows = ((name, text) for name, text in parts.items() if text)
    section = f"## {method.name}\n\n{table(('part', 'is'), rows)}"
    origin = Path(METHODS.origin(method.name))
    about = ast.get_docstring(ast.parse(origin.read_text(encoding="utf-8")))
    return f"{section}\n\n{prose(about)}" if about else section


def _names() -> str:
    known = catalogue()
    shown = {kind: known[kind] for kind in ("data", "tasks", "models")}
    sections = []
    for kind, names in shown.items():
        rows = ((f"`{name}`", about) for name, about in names.items())
        sections.append(f"## {kind.capitalize()}\n\n{table(('name', 'is'), rows)}")
    text = "What `regrow list data`, `regrow list tasks` and `regrow list models` show."
    return "\n\n".join(["# Data sets, tasks and models", text, *sections])


def _columns() -> str:
    sections = [
        f"## {name}\n\n{file.about}\n\n"
        + table(
            ("column", "type", "is"),
            ((f"`{column}`", kind, text) for column, kind, text in file.columns()),
        )
        for name, file in FILES.items()
    ]
    text = (
        "Scores, their means, differences and margins are in the unit of reports (percent of an "
        "accuracy), `sparsity` and columns that end in `_kept` are shares in [0, 1]. A text that a "
        "spreadsheet would run begins with an apostrophe."
    )
    return "\n\n".join(["# Columns of CSV files", text, *sections])


# What a page of formats says, and the modules whose docstrings say it.
FORMATS = {
    "The store": "store.store",
    "Records and tensors": "core.digests",
    "What a job leaves": "jobs.base",
    "A folder of a saved network": "surgery.architecture",
    "The card of a smaller network": "own.card",
    "A report": "report",
    "A paper": "reproduce.paper",
}


def _files() -> str:
    sections = [f"## {title}\n\n{of_module(name)}" for title, name in FORMATS.items()]
    tables = []
    for title, known in RECORD_TABLES.items():
        rows = ((f"`{key}`", text) for key, text in known.items())
        tables.append(f"### {title}\n\n{table(('field', 'is'), rows)}")
    about = "A field that does not apply is absent, or null. Records lie in the store's `records`."
    return "\n\n".join(["# Files", *sections, "## Fields of records and cards", about, *tables])


def _commands() -> str:
    import typer

    from regrow.cli.main import app

    group: Any = typer.main.get_command(app)
    sections = [_command(f"regrow {name}", command) for name, command in group.commands.items()]
    return "\n\n".join(["# Commands", prose(group.help), prose(group.epilog), *sections])


def _command(name: str, command: Any) -> str:
    if inner := getattr(command, "commands", None):
        return "\n\n".join(_command(f"{name} {each}", below) for each, below in inner.items())
    rows = [(_option(each), getattr(each, "help", "") or "") for each in command.params]
    options = table(("option", "says"), rows) if rows else ""
    return f"## {name}\n\n{prose(command.help)}\n\n{options}"


def _option(parameter: Any) -> str:
    """Return an option as one writes it, or an argument in capitals."""
    if parameter.param_type_name == "argument":
        return f"`{(parameter.metavar or parameter.name).upper()}`"
    takes = f" {parameter.metavar}" if parameter.metavar else ""
    return ", ".join(f"`{name}{takes}`" for name in parameter.opts)


def _api() -> str:
    """Return directives for mkdocstrings, which reads docstrings without importing anything."""
    lines = ["# Python", "", "All of `regrow.__all__`: [how they go together](../python.md).", ""]
    for name in regrow.__all__:
        lines += [f"## regrow.{name}", "", f"::: {_home(name)}", ""]
    return "\n".join(lines)


def _home(name: str) -> str:
    """Return where a public name is defined, as ``package.module.name``."""
    value = getattr(regrow, name)
    room = next(room for room, names in regrow._ROOMS.items() if name in names)
    module = getattr(value, "__module__", "")
    known = module.startswith("regrow.") and hasattr(import_module(module), name)
    if isinstance(value, type) or callable(value):
        return f"{module}.{name}" if known else f"regrow.{room}.{name}"
    return f"regrow.{_where(room, name)}.{name}"


def _where(room: str, name: str) -> str:
    """Return the module of a room in which a value is assigned."""
    folder = Path(regrow.__file__).parent / room.replace(".", "/")
    files = [folder.with_suffix(".py")] if folder.with_suffix(".py").is_file() else []
    files += sorted(folder.glob("*.py"))
    for file in files:
        if re.search(rf"^{name}\b.*=", file.read_text(encoding="utf-8"), re.MULTILINE):
            inside = file.relative_to(Path(regrow.__file__).parent).with_suffix("")
            return ".".join(part for part in inside.parts if part != "__init__")
    return room
