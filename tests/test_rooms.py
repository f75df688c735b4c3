"""The structure of the package: imports go to a lower level only, no two files import each other,
functions and files stay short, and the command line starts without PyTorch.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

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
    {"pruning", "detection"},
    {"methods", "jobs", "own"},
    {"studies"},
    {"run", "report"},
    {"reproduce", "bench", "comparison", "study_run"},
    {"papers"},
    {"cli", "__init__"},
    {"__main__"},
]
MOST_ROOT_FILES = 5
MOST_FUNCTION_LINES = 60
MOST_FILE_LINES = 600
# What is longer still. Shorten these; nothing is added.
LONG_FUNCTIONS: set[str] = set()
LONG_FILES: set[str] = set()
# Rooms that carry a study from its file to a row of its report; those below do the work of a job.
PATH_ROOMS = {"studies", "jobs", "run", "store", "report"}
MOST_PATH_FILES = 17
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


def module_of(file: Path) -> str:
    """Return the name under which a file is imported."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> dict[str, Path]:
    """Return every file of the package by the name of its module."""
    return {module_of(file): file for files in rooms().values() for file in files}


def imports_of(tree: ast.AST, known: Container[str]) -> Iterator[str]:
    """Yield the modules that a file imports, at its top and in functions; not those for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (path if path in known else str(node.module) for path in paths)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from imports_of(node, known)


def test_no_two_files_import_each_other() -> None:
    known = files()
    graph = {
        name: {*imports_of(ast.parse(file.read_text(encoding="utf-8")), known)} - {name}
        for name, file in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_root_holds_few_files() -> None:
    names = [file.name for file in PACKAGE.iterdir() if file.is_file() and file.name != "py.typed"]
    assert len(names) <= MOST_ROOT_FILES, f"move one of {', '.join(sorted(names))} into a room"


def test_functions_and_files_are_short() -> None:
    long_functions, long_files = {}, {}
    for file in files().values():
        text, name = file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix()
        if (lines := len(text.splitlines())) > MOST_FILE_LINES:
            long_files[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > MOST_FUNCTION_LINES:
                    long_functions[f"{name}: {node.name}"] = lines
    for kind, found, allowed, most in (
        ("functions", long_functions, LONG_FUNCTIONS, MOST_FUNCTION_LINES),
        ("files", long_files, LONG_FILES, MOST_FILE_LINES),
    ):
        new = {name: lines for name, lines in found.items() if name not in allowed}
        assert not new, f"{kind} of more than {most} lines: {new}"
        assert allowed <= found.keys(), (
            f"no longer long: take {allowed - found.keys()} off the list"
        )


def test_the_path_of_a_study_to_its_row_crosses_few_files(tmp_path: Path) -> None:
    """Count the files that run between a study file and a row, in this process, without workers.

    A file counts if one of its functions is called, and if it belongs to a room that carries the
    study (``PATH_ROOMS``). Rooms below, which do the work of a job (data, models, surgery, train,
    pruning, methods, cost), and ``core`` do not count.
    """
    from regrow.report import summarise
    from regrow.report.collect import results_of
    from regrow.run import run
    from regrow.store import Store
    from regrow.studies.study import Study

    (tmp_path / "study.yaml").write_text(
        "data: {name: digits, subset: 60, test_subset: 40}\n"
        "models: {name: vgg, plan: [4, M, 4]}\n"
        "methods: {name: l1-filter, sparsity: 0.5}\n"
        "arms: fine-tune\n"
        "seeds: 1\n"
        "recipe: {name: cifar, epochs: 1, batch: 20, precision: fp32}\n"
    )
    called: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            called.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        study, store = (
            Study.load(tmp_path / "study.yaml"),
            Store.open(tmp_path / "store", create=True),
        )
        run(study.jobs(), store, workers=0)
        rows = summarise(results_of(study, store).runs)
    finally:
        sys.setprofile(before)
    assert len(rows) == 1
    paths = [Path(name).relative_to(PACKAGE) for name in called if name.startswith(str(PACKAGE))]
    crossed = sorted(
        path.as_posix() for path in paths if path.parts[0].removesuffix(".py") in PATH_ROOMS
    )
    assert len(crossed) <= MOST_PATH_FILES, crossed


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


def test_every_name_of_the_facade_is_in_the_docs() -> None:
    text = (PACKAGE.parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in regrow.__all__ if f"`{name}`" not in text]
    assert not missing, f"say in docs/python.md what {', '.join(missing)} are for"


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


# Networks may call their building blocks alike, as their papers do.
SHARED_CLASS_NAMES = {"Block", "Bottleneck"}


def test_each_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for file in files().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in SHARED_CLASS_NAMES:
                place = f"{file.relative_to(PACKAGE).as_posix()}:{node.lineno}"
                places.setdefault(node.name.lstrip("_"), []).append(place)
    repeated = {name: where for name, where in places.items() if len(where) > 1}
    assert not repeated, f"rename one of each: {repeated}"


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    question = re.compile(r"(What|How|Which|Who|Whose|Whether|Why|Where|When|From|Of)\b")
    indirect = []
    for file in files().values():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if question.match(text):
                    name = file.relative_to(PACKAGE).as_posix()
                    indirect.append(f"{name}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
    assert not indirect, "begin with a noun or a verb:\n" + "\n".join(indirect)


NAMED_IN_PAGE = re.compile(r"`((?:\w+/)+\w+\.py|\w+\.py)`((?:[:,] `[\w.]+`(?! \())*)")


def test_the_architecture_page_names_what_exists() -> None:
    """Look for each file that the page names, and for the names beside it (``a.py``: ``b``)."""
    page = PACKAGE.parents[1] / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("the package is installed without its docs")
    missing = []
    for path, names in NAMED_IN_PAGE.findall(page.read_text(encoding="utf-8")):
        file = PACKAGE / path
        if not file.is_file():
            missing += [path] if not (page.parents[1] / path).is_file() else []
            continue
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"[:,] `([A-Za-z_.]+)`", names):
            last = name.rpartition(".")[2]
            if not name.endswith(".py") and not re.search(
                rf"^\s*(def |class )?{last}\b", text, re.M
            ):
                missing.append(f"{path}: {name}")
    assert not missing, f"docs/architecture.md names what is not there: {missing}"
