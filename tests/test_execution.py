"""Machines, time and tries of a command: one value, and its options on every command."""

import inspect
import time
from dataclasses import fields
from typing import Any

import pytest
from typer.main import get_command

import regrow
from commands import Command, write_study
from regrow.cli import main as cli
from regrow.cli.execution import OPTIONS
from regrow.core.execution import Execution
from regrow.errors import ConfigError, Interrupted

TRAINING = ("run", "versus", "compare", "reproduce")


def options_of(command: str) -> dict[str, Any]:
    """Return a command's options by their first names, with their defaults."""
    app: Any = get_command(cli.app)
    return {option.opts[0]: option.default for option in app.commands[command].params}


@pytest.mark.parametrize("command", TRAINING)
def test_every_command_that_trains_has_every_option_with_its_default(command: str) -> None:
    found = options_of(command)
    given = [field for field in fields(Execution) if field.init]
    assert {field.name for field in given} == OPTIONS.keys()
    for field in given:
        name = f"--{field.name.replace('_', '-')}"
        assert name in found
        assert found[name] == field.default


@pytest.mark.parametrize("function", [regrow.run_study, regrow.compare])
def test_python_has_the_same_names_and_defaults(function: Any) -> None:
    found = inspect.signature(function).parameters
    for name in ("workers", "device", "on", "address", "stop_after", "retries"):
        (field,) = (field for field in fields(Execution) if field.name == name)
        assert found[name].default == field.default


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": -1}, "'workers' must be an int of at least 0. Got -1."),
        ({"retries": 1.5}, "'retries' must be an int"),
        ({"checkpoint_seconds": 0}, "'checkpoint_seconds' must be a number above 0"),
        ({"stop_after": 0}, "'stop_after' must be seconds above 0"),
        ({"stop_after": "soon"}, "A duration is a number of seconds"),
        ({"devices": "2"}, "--devices takes only 'all'"),
        ({"on": "slurm"}, "Unknown platform 'slurm'. Known: ray."),
        ({"address": "head:1"}, "give --on ray too"),
        ({"on": "ray", "device": "cuda:1"}, "With --on ray, which assigns"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Execution(**given)


def test_time_runs_from_the_start_of_the_command() -> None:
    assert Execution().seconds_left is None
    execution = Execution(stop_after="1h")
    time.sleep(0.01)
    left = execution.seconds_left
    assert left is not None
    assert 3590 < left < 3600


def test_hours_are_of_this_machine(command: Command) -> None:
    for arguments in (("run", "study.yaml"), ("reproduce", "table-1", "--scale", "smoke")):
        ended = command(*arguments, "--hours", "1", "--on", "ray")
        assert ended.code == 2
        assert "--hours is estimated from the speed of this machine" in ended.text


def test_reproduction_stops_when_its_time_is_over(command: Command) -> None:
    ended = command(
        *("reproduce", "table-14", "--scale", "smoke", "--only", "unpruned"),
        *("--workers", "0", "--stop-after", "0.001s"),
    )
    assert ended.code == 130
    assert "Stopped at its time limit: 0 of" in ended.err


def test_study_from_python_stops_when_its_time_is_over(command: Command, tmp_path: Any) -> None:
    file = write_study(tmp_path)
    with pytest.raises(Interrupted, match="The same call resumes"):
        regrow.run_study(file, store="store", workers=0, progress=False, stop_after=0.001)
