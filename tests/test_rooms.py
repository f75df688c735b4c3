"""The rooms of the house: imports go to a lower level only, and the command line starts light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import regrow

PACKAGE = Path(regrow.__file__).parent

# A room is a module or a folder of the package. Each may import from lower levels, and from itself.
LEVELS: list[set[str]] = [
    {"errors"},
    {"core"},
    {"store", "models", "data"},
    {"tasks"},
    {"surgery", "train"},
    {"cost", "units"},
    {"pruning"},
    {"methods", "jobs"},
    {"studies"},
    {"run", "report"},
    {"detection"},
    {"asked"},
    {"reproduce", "bench"},
    {"cli", "__init__"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = ("torch", "torchvision", "pandas", "matplotlib", "scipy", "sklearn", "pyarrow")


def rooms() -> dict[str, list[Path]]:
    """Return every room and its files."""
    found: dict[str, list[Path]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        first = file.relative_to(PACKAGE).parts[0]
        found.setdefault(first.removesuffix(".py"), []).append(file)
    return found


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the rooms that a module imports from, and in which line; not those for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their room in full"
            package, _, rest = (node.module or "").partition(".")
            if package == "regrow":
                names = [rest.partition(".")[0]] if rest else [a.name for a in node.names]
                yield from ((name, node.lineno) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition(".")
                if package == "regrow":
                    yield rest.partition(".")[0] or "__init__", node.lineno
        else:
            yield from imported(node)


def test_every_room_has_a_level() -> None:
    missing = rooms().keys() - LEVEL.keys()
    assert not missing, f"give {', '.join(sorted(missing))} a level in LEVELS"
    assert LEVEL.keys() <= rooms().keys()


@pytest.mark.parametrize("room", rooms())
def test_imports_go_to_a_lower_level_only(room: str) -> None:
    for file in rooms()[room]:
        for other, line in imported(ast.parse(file.read_text(encoding="utf-8"))):
            assert other == room or LEVEL[other] < LEVEL[room], (
                f"{file.name}, line {line}: {room} (level {LEVEL[room]}) imports {other} (level "
                f"{LEVEL[other]})"
            )


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["regrow", "regrow.cli.main"])
def test_starting_imports_nothing_heavy(name: str) -> None:
    loaded = _modules_after(f"import {name}")
    assert "regrow" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", regrow.__all__)
def test_every_name_of_the_facade_is_in_its_room(name: str) -> None:
    assert getattr(regrow, name) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--help", "Commands"),
        ("run --help", "--workers"),
        ("claims", "claim"),
        ("reproduce list", "table-1"),
        ("run missing.yaml", "missing.yaml"),
        ("run broken.yaml", "not YAML"),
        ("run model.yaml", "resnet-20"),
        ("run method.yaml", "l1-filter"),
        ("run arm.yaml", "fine-tune"),
        ("run recipe.yaml", "epochs"),
        ("run data.yaml", "digits"),
    ],
)
def test_answers_that_need_no_network_come_without_pytorch(
    tmp_path: Path, arguments: str, said: str
) -> None:
    good = "data: digits\nmodels: resnet-20\nmethods: {name: l1-filter, sparsity: 0.5}\n"
    files = {
        "broken": "data: [",
        "model": good.replace("resnet-20", "resnet-21"),
        "method": good.replace("l1-filter", "l1-filer"),
        "arm": good + "arms: [fine-tuned]\n",
        "recipe": good + "recipe: {epochs: 0}\n",
        "data": good.replace("digits", "digit"),
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    code = (
        f"import sys; sys.argv = ['regrow', *{arguments.split()!r}]\n"
        "from regrow.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    *_, imported_torch = done.stdout.split()
    assert imported_torch == "False"
    assert said in done.stdout + done.stderr


def test_names_are_read_off_the_source_as_imports_register_them() -> None:
    from regrow.data import DATASETS
    from regrow.models import MODELS
    from regrow.pruning.method import ALLOCATIONS, CRITERIA, METHODS, REPAIRS

    for registry in (DATASETS, MODELS, METHODS, CRITERIA, ALLOCATIONS, REPAIRS):
        declared = registry._declared()
        assert declared.complete
        built_in = {n for n in registry.names() if str(PACKAGE) in registry.origin(n)}
        assert set(declared.module_of) == built_in
