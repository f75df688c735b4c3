"""Printing for the commands: results on standard output, everything else on standard error."""

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow.core.texts import one_line, visible
from regrow.errors import shortened

EXIT_FAILED_JOBS = 1
EXIT_BAD_INPUT = 2
OF_SIGNALS = 128  # plus the signal's number: a shell's exit code of a program that it ended
EXIT_INTERRUPTED = OF_SIGNALS + 2
PIPE_WIDTH = 10_000  # so that output to a file or another program is never wrapped


def console() -> Console:
    """Return a console on standard output."""
    return Console(emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(line: str) -> None:
    """Print a line on standard error, as progress is."""
    stderr = Console(stderr=True, emoji=False)
    stderr.print(visible(shortened(line)), markup=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print a warning or an error on standard error, prefixed with the program's name."""
    say(f"regrow: {message}")


def announce(doing: str) -> None:
    """Print what is being done, before imports and steps that take seconds."""
    say(f"{doing} ...")


def how_to_resume(told: str = "Stopped.") -> str:
    """Add to a message about an interruption the command that resumes."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return f"{told} The same command resumes."  # the launcher's command is not known here
    return f"{told} The same command resumes: {command_line()}"


def say_written(place: Path, more: str) -> None:
    """Print on standard output where something was written; the path may hold any characters."""
    print(f"Written to {one_line(str(place))}{more}")


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def count(number: int, noun: str) -> str:
    """Return a number with its noun, singular or plural.

    >>> count(1, "job"), count(2, "job")
    ('1 job', '2 jobs')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_lines(names: Iterable[str]) -> str:
    """Return names as an indented paragraph, separated by commas."""
    return textwrap.fill(
        ", ".join(names), 79, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def command_line() -> str:
    """Return the running command in one line, quoted for a shell."""
    return one_line(shlex.join(["regrow", *sys.argv[1:]]))
