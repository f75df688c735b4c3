"""The commands that the README shows exist, with the options it gives them."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from regrow.cli.main import app

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shown() -> list[str]:
    """Return every ``regrow ...`` command line of the README's shell blocks, joined and bare."""
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    lines = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
    commands = (re.sub(r"\s#.*", "", line).strip().removeprefix("$ ") for line in lines)
    return [found[0] for line in commands if (found := re.search(r"\bregrow\b.*", line))]


def test_readme_shows_commands() -> None:
    if not README.exists() or not README.read_text(encoding="utf-8").strip():
        pytest.skip("README.md is empty")
    assert shown()


@pytest.mark.parametrize("line", shown() or [pytest.param("", marks=pytest.mark.skip("none"))])
def test_command_of_the_readme_exists(line: str) -> None:
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
