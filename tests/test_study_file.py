"""Study files as hostile input: a clear error, soon and short, never a traceback."""

import random
import re
import resource
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrow.errors import RegrowError
from regrow.studies.study import Study

BASE = """\
name: small
data: {name: digits, subset: 200, seed: 1}
models: [resnet-20, {name: vgg, plan: [8, M, 16], label: tiny}]
methods:
  - {name: l1-filter, sparsity: [0.3, 0.6], scope: [conv]}
  - {name: network-slimming, sparsity: 0.5, strength: 1e-4}
  - {name: lottery, rounds: 3, sparsity: 0.2, ticket: late}
  - {name: guided-pruning, sparsity: 0.5, from: {model: vgg-16, recipe: {epochs: 2}}}
arms: [unpruned, fine-tune, {name: late, start: rewound, epoch: 1}, {name: scratch-b, cap: 3}]
seeds: 3
recipe: {name: cifar, epochs: 20, lr: 0.1, drop_at: [0.5, 0.75], schedule: drops}
margin: 0.3
"""
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
        "unfolds to more than 1,000,000 characters",
    ),
    "merges": (
        "a: &a {x: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [{', '.join([f'*{m}'] * 30)}]}}\n"
                  for m, n in pairwise("abcdef")),
        "unfolds to more than 1,000,000 characters|Unknown key",
    ),
    "itself": (SIMPLE + "title: &a [*a]\n",  "'a' stands within itself"),
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


PIECES = (
    *("[", "]", "{", "}", ": ", "- ", "&a ", "*a", "<<: ", "!!int ", "!!set ", "? ", "|", ">"),
    *("null", "true", "-1", "0", "1e999", ".nan", ".inf", "1e-400", "9" * 30, "9" * 5000, "0x1f"),
    *("2021-13-45", "12:99:99", '"\\0"', '"\\ud800"', "{}", "[]", "{name: {}}", "''", "\u00e9"),
    *("1000000000", "resnet-20", "l1-filter", "random", "\n", "  ", "#", "%", "@", "`", "\0"),
)  # fmt: skip


VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 0.5, 1e308, 10**18, float("nan"), float("inf"), "", "x" * 3000, b"x"),
    *([], {}, {"name": {}}, {"name": "cifar"}, [[]], [1, "a", None], {1: 2}, "conv", "random"),
    *(date(2021, 1, 1), "resnet-20", "vgg-16", "l1-filter", "cifar", "digits", "hf:", "\u00e9\n"),
)


def changed_text(rng: random.Random) -> bytes:
    """Change the text of the base study in one or two places."""
    text = BASE
    for _ in range(rng.randint(1, 2)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice((0, 0, 1, 2, 5, 20)))
        other = rng.randrange(len(text))
        copied = text[other : other + rng.randrange(40)]
        piece = rng.choice((rng.choice(PIECES), copied, chr(rng.randrange(0x2FFF))))
        text = text[:start] + piece + text[end:]
    return text.encode("utf-8", errors="surrogatepass")


def changed_values(rng: random.Random) -> bytes:
    """Change one or two values of the base study, whole branches too."""
    study = yaml.safe_load(BASE)
    for _ in range(rng.randint(1, 2)):
        inner = study
        while True:
            key: Any = (
                rng.choice([*inner]) if isinstance(inner, dict) else rng.randrange(len(inner))
            )
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.8:
                inner = inner[key]
                continue
            value = rng.choice(VALUES)
            inner[key] = [value, inner[key]] if rng.random() < 0.2 else value
            break
    return yaml.safe_dump(study).encode()


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
