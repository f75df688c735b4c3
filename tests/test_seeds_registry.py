"""Seeds by purpose, and names: how they are compared, found, refused and followed to their file."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrow.core import registry
from regrow.core.global_rng import drawing
from regrow.core.registry import Registry, canonical, check_arguments, load_file, loaded_files
from regrow.core.seeds import derive, seeded
from regrow.errors import ConfigError

# Seeds ------------------------------------------------------------------------------------------


def test_derived_seeds_never_change() -> None:
    """Every stored result depends on these numbers."""
    assert derive(0, "init") == 1519069808562059438
    assert derive(1, "augment", 3, 7) == 7596094883310142070


def test_every_part_of_a_purpose_counts() -> None:
    parts: list[tuple[Any, ...]] = [
        *((0, "a"), (1, "a"), (0, "b"), (0,), (10, "a")),
        *((0, "a", 0), (0, "a", 1), (0, "a", "b")),
    ]
    assert len({derive(*part) for part in parts}) == len(parts)


def test_derived_seeds_fit_any_generator() -> None:
    seeds = [derive(seed, "any") for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds).bit_length() == 63
    torch.Generator().manual_seed(max(seeds))


def test_drawing_seeds_all_global_generators_and_restores_them() -> None:
    def numbers() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]

    with drawing(1):
        here = numbers()
        with drawing(2):
            inner = numbers()
        after = numbers()
        np.random.seed(3)  # as code of a network may
    with drawing(1):
        assert numbers() + numbers() == here + after
    with drawing(2):
        assert numbers() == inner
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = numbers()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with drawing(1):
        numbers()
    assert numbers() == before


def test_seeded_generators_are_their_own() -> None:
    state = torch.get_rng_state()
    first, again, other = seeded(0, "x"), seeded(0, "x"), seeded(0, "y")
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=again))
    assert not torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=other))
    assert torch.equal(torch.get_rng_state(), state)


# Names ------------------------------------------------------------------------------------------


@pytest.fixture
def names() -> Registry[int]:
    made: Registry[int] = Registry("thing", "regrow.methods", register="register_thing")
    made._discovered = True
    made.add("vgg-16", 16)
    made.add("folder:", 7)
    return made


@pytest.mark.parametrize("name", ["vgg-16", "VGG_16", " vgg 16 ", "vgg16", "Vgg-1-6"])
def test_names_are_compared_as_people_write_them(name: str, names: Registry[int]) -> None:
    assert names.get(name) == 16
    assert names.key(name) == "vgg-16"


def test_a_prefix_serves_every_name_that_begins_so(names: Registry[int]) -> None:
    assert names.get("Folder:Some/Path_1") == 7
    assert canonical("Folder:Some/Path_1") == "folder:Some/Path_1"
    with pytest.raises(ConfigError, match="Unknown thing 'file:x'"):
        names.get("file:x")


def test_an_unknown_name_offers_the_nearest(names: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"Unknown thing 'vgg-61'. Did you mean 'vgg-16'\? Known"):
        names.get("vgg-61")
    with pytest.raises(ConfigError, match=r"A thing name must be a text. Got 16"):
        names.get(16)  # type: ignore[arg-type]


def test_names_are_listed_in_order(names: Registry[int]) -> None:
    names.add("alexnet", 1)
    assert names.names() == ("alexnet", "folder:", "vgg-16")


def one() -> None:
    pass


def test_a_name_that_another_file_took_is_refused(names: Registry[int]) -> None:
    with pytest.raises(ConfigError, match=r"'VGG-16' is registered twice: in .* and in .*test"):
        names.add("VGG-16", 2, origin=one)
    names.add("mine", 1, origin=one)
    names.add("mine", 2, origin=one)  # its own file may say it anew
    assert names.get("mine") == 2
    assert names.origin("mine") == __file__


def test_code_outside_the_package_is_digested(names: Registry[int]) -> None:
    names.add("mine", 1, origin=one)
    names.add("theirs", 1, origin=derive)
    digest = names.code("mine")
    assert digest is not None
    assert len(digest) == 16
    assert names.code("theirs") is None
    assert names.code("vgg-16") is None


# Files ------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOADED", list(registry._LOADED))


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow  # a process of its own
def test_the_file_of_a_name_is_known_before_its_module_is_imported() -> None:
    code = (
        "from regrow.pruning.method import CRITERIA; print(CRITERIA.origin('thinet')); "
        "assert CRITERIA.code('norm-scale') is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("thinet.py")


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "a 'b'.py"
    file.write_text("import os\nos.mkdir(__file__ + '.loaded')  # fails the second time\n")
    load_file(file)
    load_file(tmp_path / "." / file.name)
    assert loaded_files()[-1] == file


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.py",
            "import nowhere_at_all",
            "--with .*a.py, line 1: ModuleNotFoundError: No module named",
        ),
        ("b.py", "def (", "--with .*b.py: SyntaxError"),
        ("c.txt", "", "--with .*c.txt: not a Python file. Its name must end in .py"),
        ("d.py", "from regrow.models import MODELS\nMODELS.get('vg-16')", "Unknown model 'vg-16'"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_file(tmp_path / name)
    assert tmp_path / name not in loaded_files()


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file. Give the path of a Python file"):
        load_file(tmp_path / "none.py")


def test_arguments_that_a_function_lacks_are_refused() -> None:
    def factory(*, depth: int, classes: int) -> None:
        pass

    check_arguments(factory, ["depth"], where="here")
    with pytest.raises(ConfigError, match=r"here: Unknown argument 'dept'. Did you mean 'depth'"):
        check_arguments(factory, ["dept"], where="here")
    with pytest.raises(ConfigError, match=r"Unknown argument 'classes'.*Known: depth"):
        check_arguments(factory, ["classes"], where="here", reserved=["classes"])


def test_a_files_own_arm_cannot_replace_a_built_in_one(tmp_path: Path) -> None:
    file = tmp_path / "arms.py"
    file.write_text(
        "from regrow import Arm, Budget, register_arm\n"
        'register_arm(Arm(name="scratch-e", start="inherited", budget=Budget(kind="none")))\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="arm 'scratch-e' is registered twice"):
        load_file(file)


def test_a_part_of_another_meaning_has_another_identity() -> None:
    parts: Registry[int] = Registry("part", "regrow.methods", register="register_part")
    parts.add("as ever", 1, origin=derive)
    parts.add("anew", 1, origin=derive, revision=2)
    assert [parts.identity(name) for name in ("as ever", "anew")] == ["as ever", "anew (2)"]
