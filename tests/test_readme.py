"""The commands that the README and the docs show exist, with the options they give them."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from regrow.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shown() -> list[str]:
    """Return every ``regrow ...`` command line of the pages' shell blocks, joined and bare."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    commands = (re.sub(r"\s#.*", "", line).strip().removeprefix("$ ") for line in lines)
    found = (re.search(r"(?<!/)\bregrow .*", line) for line in commands)
    return [match[0] for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_readme_shows_commands() -> None:
    assert len(shown()) > 10


@pytest.mark.parametrize("line", shown())
def test_command_of_the_docs_exists(line: str) -> None:
    group = typer.main.get_command(app)
    known = group.commands  # type: ignore[attr-defined]
    words = shlex.split(re.split(r"[|;&>]", line)[0])[1:]
    if not words or words[0].startswith("-"):
        assert {option for word in words for option in [word.partition("=")[0]]} <= {
            "--help",
            *(option for parameter in group.params for option in parameter.opts),
        }
        return
    assert words[0] in known, line
    command = known[words[0]]
    while nested := getattr(command, "commands", None):  # e.g. `bench train`
        words = words[1:]
        assert words[0] in nested, line
        command = nested[words[0]]
    options = {option for p in command.params for option in p.opts} | {"--help"}
    given = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert given <= options, line
