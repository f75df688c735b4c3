"""Code of users' files in keys: no result of other code than the one that is named is reused."""

import importlib
import linecache
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import regrow
from regrow.core import registry
from regrow.core.registry import load_file
from regrow.core.source import (
    digest_of_source,
    expecting,
    keeping_code,
    read_digests,
    sources,
)
from regrow.errors import ConfigError, EditedFileError, RegrowError
from regrow.models.origins import code_at
from regrow.pruning.method import CRITERIA, METHODS
from regrow.run import run
from regrow.store import Store
from regrow.studies.job_list import _files
from test_run import Walk

HEAD = "from regrow.pruning.method import criterion, register_method\n"
SCORE = "group.sum(lambda name: probe.weight(name).abs()"


def _codes(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str | None]:
    """Return the codes of a criterion and a method, as a new process has them."""
    monkeypatch.setattr(registry, "_LOADED", [])
    sys.modules.pop("beside", None)
    importlib.invalidate_caches()
    load_file(file)
    return CRITERIA.code("mine"), METHODS.code("mine")


@pytest.mark.parametrize(
    ("mine", "beside"),
    [
        (  # a function that the criterion calls
            "from beside import power\n"
            "@criterion('mine')\n"
            f"def mine(group, probe):\n    return {SCORE} ** power())\n"
            "register_method('mine', criterion=mine)\n",
            "def power():\n    return 2\n",
        ),
        (  # a criterion made by a function of another file, with its own number
            "from beside import made\n"
            "register_method('mine', criterion=criterion('mine')(made(2)))\n",
            f"def made(power):\n    return lambda group, probe: {SCORE} ** power)\n",
        ),
        (  # a part of a function of another file
            "from functools import partial\nfrom beside import score\n"
            "register_method('mine', criterion=criterion('mine')(partial(score, power=2)))\n",
            f"def score(group, probe, power):\n    return {SCORE} ** power)\n",
        ),
        (  # an object that is called
            "from beside import Score\n"
            "register_method('mine', criterion=criterion('mine')(Score(2)))\n",
            "class Score:\n    def __init__(self, power):\n        self.power = power\n"
            f"    def __call__(self, group, probe):\n        return {SCORE} ** self.power)\n",
        ),
        (  # everything is registered by another file
            "from beside import register\nregister(2)\n",
            f"{HEAD}def register(power):\n"
            f"    score = criterion('mine')(lambda group, probe: {SCORE} ** power))\n"
            "    register_method('mine', criterion=score)\n",
        ),
    ],
    ids=["call", "closure", "partial", "object", "register"],
)
def test_an_edit_of_any_file_behind_a_criterion_is_another_key(
    mine: str, beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for names in (CRITERIA, METHODS):
        for part in ("_values", "_origins", "_registrants", "_codes"):
            monkeypatch.setattr(names, part, dict(getattr(names, part)))
    file = tmp_path / "mine.py"
    file.write_text(HEAD + mine)
    (tmp_path / "beside.py").write_text(beside)
    before = _codes(file, monkeypatch)
    assert _codes(file, monkeypatch) == before
    assert None not in before
    for name in ("mine.py", "beside.py"):
        text = (tmp_path / name).read_text()
        edited = text.replace("2", "3") if "2" in text else f"{text}# Edited.\n"
        (tmp_path / name).write_text(edited)
        after = _codes(file, monkeypatch)
        assert not {*before} & {*after}, name
        before = after


def test_a_treatment_of_this_package_under_an_own_name_is_of_the_file_that_names_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "borrowed.py"
    file.write_text(
        f"{HEAD}from regrow.pruning.method import METHODS\n"
        "treatment = METHODS.get('agp').treatment\n"
        "register_method('borrowed', criterion='magnitude', unit='weight', treatment=treatment)\n"
    )
    load_file(file)
    assert METHODS.code("borrowed") is not None
    assert METHODS.origin("borrowed") == str(file)
    assert "borrowed" in METHODS.added()


def test_a_file_keeps_the_key_of_the_code_that_was_read_until_it_is_loaded_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "later.py"
    text = f"{HEAD}@criterion('later')\ndef later(group, probe):\n    return 1\n"
    file.write_text(text)
    load_file(file)
    code = CRITERIA.code("later")
    file.write_text(text.replace("1", "2"))  # the same size, and the same second
    assert CRITERIA.code("later") == code
    load_file(file)
    assert CRITERIA.code("later") not in (None, code)
    assert CRITERIA.get("later")(None, None) == 2  # type: ignore[arg-type]


def test_an_edited_module_that_this_process_has_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_once.py").write_text("power = 2\n")
    file = tmp_path / "importing.py"
    file.write_text("from imported_once import power\n")
    load_file(file)
    load_file(file)
    (tmp_path / "imported_once.py").write_text("power = 3\n")
    with pytest.raises(
        ConfigError, match=r"imported_once.py', which 'importing.py' imports, was edited after"
    ):
        load_file(file)


def test_a_name_that_one_file_registers_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "copied.py"
    file.write_text(
        f"{HEAD}"
        "@criterion('copied')\ndef one(group, probe):\n    return 1\n"
        "register_method('first', criterion=one)\n"
        "@criterion('copied')\ndef two(group, probe):\n    return 2\n"
    )
    with pytest.raises(ConfigError, match=r"line 6: The criterion 'copied' is registered twice in"):
        load_file(file)


def test_a_name_that_two_files_register_by_one_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "makes_both.py").write_text("def made(n):\n    return lambda group, probe: n\n")
    for name in ("one", "two"):
        text = f"{HEAD}from makes_both import made\ncriterion('of-both')(made('{name}'))\n"
        (tmp_path / f"{name}.py").write_text(text)
    load_file(tmp_path / "one.py")
    with pytest.raises(
        ConfigError, match=r"'of-both' is registered twice: in .*one.py and in .*tw"
    ):
        load_file(tmp_path / "two.py")


def test_a_built_in_name_is_refused_even_if_it_was_not_needed_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(registry, "_import", imported.append)
    monkeypatch.setattr(CRITERIA, "_values", {})
    file = tmp_path / "taken.py"
    file.write_text(f"{HEAD}@criterion('Taylor')\ndef mine(group, probe):\n    return 1\n")
    with suppress(ConfigError):
        load_file(file)
    assert imported == ["regrow.methods.taylor"]


def _cell(text: str, name: str) -> None:
    """Run a text as a notebook runs a cell: its file does not exist, and its text is cached."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), {"__name__": "cell"})


def test_an_edited_cell_of_a_notebook_replaces_its_criterion_and_is_another_key() -> None:
    text = f"{HEAD}@criterion('in-cell')\ndef mine(group, probe):\n    return 1\n"
    codes = []
    for number in (1, 2, 1):
        edited = text.replace("return 1", f"return {number}")
        _cell(edited, f"/tmp/ipykernel_1/{number}.py")
        codes.append(CRITERIA.code("in-cell"))
        assert CRITERIA.get("in-cell")(None, None) == number  # type: ignore[arg-type]
    assert codes[0] == codes[2] is not None
    assert codes[0] != codes[1]


def test_a_criterion_without_a_source_has_the_key_of_its_code() -> None:
    codes = []
    for number in (1, 2):
        text = f"{HEAD}@criterion('typed')\ndef mine(group, probe):\n    return lambda: {number}\n"
        exec(compile(text, "<stdin>", "exec"), {"__name__": "__main__"})
        codes.append(CRITERIA.code("typed"))
    assert None not in codes
    assert codes[0] != codes[1]
    assert METHODS.code("l1-filter") is None


# --- files that a file imports -------------------------------------------------------------------

PACKAGE = {
    "whole/__init__.py": "",
    "whole/nets/__init__.py": "from .. import settings",
    "whole/nets/mine.py": "from ..layers.conv import Conv\nfrom whole.blocks import block",
    "whole/layers/__init__.py": "",
    "whole/layers/conv.py": "from . import norm\nclass Conv: pass",
    "whole/layers/norm.py": "import torch, regrow, os",
    "whole/blocks/__init__.py": "from .inner import block",
    "whole/blocks/inner.py": "def block(): return other\nfrom whole.nets import other",
    "whole/nets/other.py": "",
    "whole/settings.py": "",
    "whole/unused.py": "",
    "norm.py": "",  # not what a relative import finds
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package whose modules import each other."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_the_files_of_a_package_are_found_as_python_finds_them(package: Path) -> None:
    found = {
        path.relative_to(package).as_posix() for path in sources(package / "whole/nets/mine.py")
    }
    assert found == {*PACKAGE} - {"norm.py", "whole/unused.py"}
    assert sources(package / "whole/layers/norm.py") == (package / "whole/layers/norm.py",)


@pytest.mark.parametrize("name", sorted({*PACKAGE} - {"norm.py", "whole/unused.py"}))
def test_an_edit_of_any_file_of_a_package_that_is_imported_is_another_key(
    name: str, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = package / "whole/nets/mine.py"
    before = digest_of_source(file)
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(package / "whole", copy / "whole")
    assert digest_of_source(copy / "whole/nets/mine.py") == before
    (package / name).write_text(f"{PACKAGE[name]}\n# Edited.\n")
    assert digest_of_source(file) != before


def test_files_that_are_on_the_path_of_python_count_and_installed_ones_do_not(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = package / "elsewhere/mine.py"
    mine.write_text("import whole.blocks\nimport norm\nimport numpy\n")
    assert sources(mine) == (mine,)
    monkeypatch.syspath_prepend(package)
    places = {path.relative_to(package).as_posix() for path in sources(mine)}
    assert {"norm.py", "whole/__init__.py", "whole/blocks/inner.py"} < places
    (package / "site-packages").mkdir()
    (package / "site-packages" / "norm.py").write_text("")
    monkeypatch.syspath_prepend(package / "site-packages")
    assert package / "site-packages/norm.py" not in sources(mine)


def test_a_file_that_is_no_python_is_refused_only_if_it_is_the_one_that_is_named(
    package: Path,
) -> None:
    (package / "broken.py").write_text("print 1")
    (package / "mine.py").write_text("try:\n    import broken\nexcept SyntaxError:\n    pass")
    assert sources(package / "mine.py") == (package / "mine.py", package / "broken.py")
    with pytest.raises(ConfigError, match=r"broken.py' cannot be read as Python: .*line 1"):
        sources(package / "broken.py")


def test_a_plan_that_is_kept_knows_the_files_of_a_module(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(package)
    found = {*_files({"models": [{"network": "whole.blocks:block"}]})}
    assert {package / "whole/blocks/__init__.py", package / "whole/blocks/inner.py"} < found


# --- code of a session, such as a notebook's -----------------------------------------------------


class Session:
    """A notebook: cells of one namespace, each of a file that does not exist."""

    def __init__(self) -> None:
        self.names = {"__name__": "__main__"}
        self.number = 0

    def run(self, text: str) -> None:
        self.number += 1
        name = f"/tmp/ipykernel_2/{self.number}.py"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), self.names)

    def code(self, text: str) -> str | None:
        """Return the code of the criterion after running a cell."""
        self.run(text)
        return CRITERIA.code("in-session")


USES = f"""{HEAD}
@criterion('in-session')
def mine(group, probe):
    return 1 * score(group)
"""


@pytest.mark.parametrize(
    ("cells", "edit"),
    [
        (["def score(group):\n    return 2"], "def score(group):\n    return 3"),
        (["POWER = 2", "def score(group):\n    return POWER"], "POWER = 3"),
        (["SET = {'power': [2]}", "def score(group):\n    return SET"], "SET['power'][0] = 3"),
        (
            ["def made(power):\n    return lambda group: power", "score = made(2)"],
            "score = made(3)",
        ),
        (
            [
                "from functools import partial\ndef first(group, power): return power",
                "score = partial(first, power=2)",
            ],
            "score = partial(first, power=3)",
        ),
        (
            ["class Score:\n    def __call__(self, group):\n        return 2", "score = Score()"],
            "class Score:\n    def __call__(self, group):\n        return 3\nscore = Score()",
        ),
        (
            [
                "class Score:\n    def __init__(self, n): self.n = n\n"
                "    def __call__(self, group): return self.n",
                "score = Score(2)",
            ],
            "score.n = 3",
        ),
        (
            ["from functools import cache", "@cache\ndef score(group):\n    return 2"],
            "@cache\ndef score(group):\n    return 3",
        ),
        (
            ["import torch\nw = torch.ones(3)", "def score(group):\n    return w"],
            "w[1] = 2",
        ),
        (
            ["import numpy\nw = numpy.ones(3)", "def score(group):\n    return w"],
            "w[1] = 2",
        ),
        (
            ["from torch import nn\nw = nn.Linear(2, 2)", "def score(group):\n    return w(group)"],
            "nn.init.zeros_(w.weight)",
        ),
        (
            ["USED = {'a', 'b', 2}", "def score(group):\n    return USED", "USED.add(score)"],
            "USED.discard(2)",
        ),
        (["def score(group, power=2):\n    return power"], "score.__defaults__ = (3,)"),
    ],
    ids=[
        *("function", "number", "mapping", "closure", "partial", "class", "attribute", "cache"),
        *("tensor", "array", "network", "set", "default"),
    ],
)
def test_an_edit_of_another_cell_that_a_criterion_uses_is_another_key(
    cells: list[str], edit: str
) -> None:
    session = Session()
    for cell in cells:
        session.run(cell)
    before = session.code(USES)
    assert before is not None
    assert session.code("other = 5") == before
    after = session.code(edit)
    assert after not in (None, before)
    session.run(edit)
    with keeping_code():
        assert session.code(cells[-1]) == after  # until the end of a run


def test_names_that_a_criterion_does_not_look_up_leave_its_key_as_it_is() -> None:
    session = Session()
    session.run("def score(group):\n    return group.weight + len([weight for weight in '12'])")
    before = session.code(USES)
    assert session.code("weight, group = 4, 5") == before


def test_a_file_that_a_session_has_imported_counts_and_may_not_be_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    codes = []
    for number in (1, 2):
        name = f"beside_session_{number}"
        (tmp_path / f"{name}.py").write_text(f"def score(group):\n    return {number}\n")
        importlib.invalidate_caches()
        session = Session()
        session.run(f"import {name} as beside\ndef score(group):\n    return beside.score(group)")
        codes.append(session.code(USES))
    assert None not in codes
    (tmp_path / "beside_session_2.py").write_text("def score(group):\n    return 3\n")
    with pytest.raises(ConfigError, match=r"beside_session_2.py' was edited after this Python"):
        CRITERIA.code("in-session")


# --- edits while a run goes on -------------------------------------------------------------------

NETWORK = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
"""
TRAIN = """
from pathlib import Path

def train(model, budget, seed):
    {edit}
    for parameter in model.parameters():
        parameter.data += budget.epochs
    return {{"accuracy": 0.5}}
"""
EDIT = 'Path("nets.py").write_text(Path("nets.py").read_text().replace("12", "10"))'


def _macs(*, seeds: int = 1, workers: int = 0) -> list[int]:
    """Compare by a function, and return the MACs of the runs."""
    found = regrow.compare(
        {"network": "nets.py:mlp", "input": "1x4"},
        "mine.py:train",
        metric="accuracy",
        budget=4,
        amounts={"sparsity": 0.5},
        seeds=seeds,
        workers=workers,
        store="store",
    )
    return [run.macs for run in found.runs]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network and a training function that edits its file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORK)
    (tmp_path / "mine.py").write_text(TRAIN.format(edit=EDIT))
    return tmp_path


def test_a_run_goes_on_with_the_code_that_it_has_read(folder: Path) -> None:
    assert _macs() == [84, 42, 42, 42, 42]
    assert "10" in (folder / "nets.py").read_text()
    assert _macs() == [70, 35, 35, 35, 35]  # of the edited file, which this process reads again


@pytest.mark.slow
def test_a_process_that_reads_a_file_after_it_was_edited_refuses_it(folder: Path) -> None:
    file = folder / "later.py"
    file.write_text(
        f"{HEAD}import os\nfrom pathlib import Path\n"
        "@criterion('of-two')\ndef score(group, probe):\n    return 1\n"
    )
    load_file(file)
    before = read_digests()
    file.write_text(file.read_text().replace("1", "2"))
    job = Walk(name="one")
    store = Store.open(folder / "store")
    with pytest.raises(RegrowError, match=r"later.py' was edited after this run had read it"):
        run([job], store, workers=1)
    assert read_digests() == before


def test_code_that_this_process_reads_during_a_run_is_that_of_its_start(tmp_path: Path) -> None:
    file = tmp_path / "during.py"
    file.write_text("def build():\n    return 1\n")
    value, _ = code_at(f"{file}:build")
    before = read_digests()
    file.write_text("def build():\n    return 2\n")
    with expecting(before):
        again, _ = code_at(f"{file}:build")
        assert again() == value() == 1
    with (
        pytest.raises(EditedFileError, match=r"during.py' was edited after this run had read it"),
        expecting({str(file): {str(file): "of another text"}}),
    ):
        pass
    edited, _ = code_at(f"{file}:build")
    assert edited() == 2
    with pytest.raises(EditedFileError, match="Finished results are kept"), expecting(before):
        pass


def test_a_file_that_is_first_read_during_a_run_must_be_that_of_its_start(tmp_path: Path) -> None:
    file = tmp_path / "first.py"
    file.write_text("def build():\n    return 1\n")
    with (
        expecting({str(file): {str(file): "of another text"}}),
        pytest.raises(EditedFileError, match=r"first.py' was edited after"),
    ):
        code_at(f"{file}:build")
    value, _ = code_at(f"{file}:build")
    assert value() == 1


def test_a_module_that_was_edited_after_its_import_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "by_its_name.py"
    file.write_text("def build():\n    return 1\n")
    importlib.invalidate_caches()
    code_at("by_its_name:build")
    code_at("by_its_name:build")
    file.write_text("def build():\n    return 2\n")
    with pytest.raises(ConfigError, match=r"by_its_name.py' was edited after this Python process"):
        code_at("by_its_name:build")
