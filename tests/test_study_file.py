"""Study files as hostile input: a clear error, soon and short, never a traceback."""

import random
import re
import resource
import time
from itertools import pairwise
from pathlib import Path

import pytest

from changed_studies import BASE, changed_text, changed_values
from regrow.errors import RegrowError
from regrow.studies.study import Study

SIMPLE = "data: digits\nmodels: resnet-20\nmethods: {name: l1-filter, sparsity: 0.5}\n"
MOST_SECONDS = 2.0
MOST_MESSAGE = 5000

HOSTILE = {
    "nested lists": ("title: " + "[" * 5000, "nests more than 20 deep"),
    "nested mappings": ("title: " + "{a: " * 5000, "nests more than 20 deep"),
    "nested blocks": ("- " * 5000 + "a", "nests more than 20 deep"),
    "endless": ("a: b\n" * 10_000_000, "longer than 50,000 bytes"),
    "aliases": (
        "a: &a [" + "x" * 1000 + "]\n"
        + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 10)}]\n" for m, n in pairwise("abcdef")),
        "expands to more than 1,000,000 characters",
    ),
    "merges": (
        "a: &a {x: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [{', '.join([f'*{m}'] * 30)}]}}\n"
                  for m, n in pairwise("abcdef")),
        "expands to more than 1,000,000 characters|Unknown key",
    ),
    "itself": (SIMPLE + "title: &a [*a]\n",  "'a' contains itself"),
    "seeds": (SIMPLE + "seeds: 1000000000\n", "'seeds' must be at most 10,000"),
    "rows": (SIMPLE + "seeds: 10000\narms: [pruned, fine-tune, scratch-e, scratch-b, "
             "winning-ticket, random-init, {name: a, start: random}, {name: b, start: random}, "
             "{name: c, start: random}, {name: d, start: random}, unpruned]\n",
             "asks for 120,000 rows"),
    "rounds": (
        SIMPLE.replace("l1-filter", "lottery") + "", "OK"
    ),
    "many rounds": (
        SIMPLE.replace("l1-filter, sparsity: 0.5", "lottery, sparsity: 0.1, rounds: 1000000000"),
        "'rounds' must be an int from 1 to 100",
    ),
    "date": (SIMPLE + "title: 2021-13-45\n", "'2021-13-45' cannot be a timestamp"),
    "int": (SIMPLE + "seeds: !!int abc\n", "'abc' cannot be a int"),
    "float": (SIMPLE + "margin: !!float abc\n", "'abc' cannot be a float"),
    "timestamp": (SIMPLE + "margin: !!timestamp abc\n", "'abc' cannot be a timestamp"),
    "bool": (SIMPLE + "margin: !!bool abc\n", "cannot be a bool|must be"),
    "null": (SIMPLE + "margin: !!null abc\n", "The 'margin' must be"),
    "long int": (SIMPLE + f"margin: {'9' * 5000}\n", r"'9+ \.\.\.|'9+\.\.\.9+' cannot be a int"),
    "large int": (SIMPLE + f"recipe: {{epochs: {10**30}}}\n", "cannot be a int"),
    "large float": (SIMPLE + "recipe: {lr: 1e999}\n", "'lr' of a recipe must be a number"),
    "nul": ('name: "a\\0b"\n' + SIMPLE, "cannot be a str"),
    "nul in data": (SIMPLE.replace("digits", '"folder:a\\0b"'), "cannot be a str"),
    "surrogate": ('name: "\\ud800"\n' + SIMPLE, "cannot be a str"),
    "newline": ('name: "a\\nb"\n' + SIMPLE, "has one line of at most 200 bytes"),
    "long name": (f"name: {'x' * 300}\n" + SIMPLE, "has one line of at most 200 bytes"),
    "scope": (SIMPLE.replace("0.5", "0.5, scope: {a: b}"), "'scope' must be a text"),
    "recipe": (SIMPLE + "recipe: {name: {}}\n", "Unknown recipe"),
    "key": ("? [a, b]\n: c\n" + SIMPLE, "not YAML"),
    "object": (SIMPLE + "title: !!python/object/apply:os.system [ls]\n", "not YAML"),
    "a value without end": (SIMPLE + f"recipe: {list(range(7_000))}\n", r"\[\.\.\.\]"),
    "empty": ("", "A study must be a mapping"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import what is imported on first use, which no time below shall count."""
    file = tmp_path_factory.mktemp("base") / "study.yaml"
    file.write_text(BASE)
    Study.load(file)


def outcome(path: Path) -> str:
    """Return what reading a study file says; anything but an error for people is raised."""
    began = time.process_time()
    try:
        Study.load(path)
        message = "OK"
    except RegrowError as error:
        message = str(error)
    assert time.process_time() - began < MOST_SECONDS, message[:200]
    assert len(message) < MOST_MESSAGE
    return message


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_a_clear_error_soon(name: str, tmp_path: Path) -> None:
    text, message = HOSTILE[name]
    file = tmp_path / "study.yaml"
    file.write_text(text, encoding="utf-8")
    load_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = outcome(file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - load_before
    assert grown < 200_000  # kB
    assert re.search(message, found), found[:500]


@pytest.mark.parametrize(
    "num", [60, pytest.param(20_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_changed_studies_are_read_or_refused(num: int, tmp_path: Path) -> None:
    rng = random.Random(num)
    file = tmp_path / "study.yaml"
    read = 0
    for number in range(num):
        content = (changed_text, changed_values)[number % 2](rng)
        file.write_bytes(content)
        try:
            read += outcome(file) == "OK"
        except Exception as error:
            raise AssertionError(content.decode("utf-8", errors="replace")) from error
    assert 0 < read < num / 2  # both are tried
