"""Try a user's criterion and allocation on an untrained network, before hours go into training."""

import ast
import inspect
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from regrow.core.registry import Registry
from regrow.core.seeds import seeded
from regrow.data import Dataset
from regrow.errors import ConfigError, Interrupted, RegrowError, TiedScores, short
from regrow.pruning.method import ALLOCATIONS, CRITERIA, Method
from regrow.pruning.select import select
from regrow.surgery import Trace
from regrow.surgery.cut import duplicate

NUM_IMAGES = 16  # enough to find errors


def try_out(
    method: Method,
    model: nn.Module,
    trace: Trace,
    *,
    dataset: Dataset,
    sparsity: float,
    shares: Sequence[float] | None = None,
) -> None:
    """Prune a copy of a network by a method; a ``ConfigError`` says where the method's code fails.

    Noise is added to every parameter of the copy: a criterion may divide by values that are zero
    only in untrained networks.
    """
    with torch.random.fork_rng(devices=[]):
        network, generator = duplicate(model), seeded(0, "trial")
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.01 * noise)
        try:
            select(
                network,
                trace,
                method,
                sparsity=None if shares is not None else sparsity,
                shares=shares,
                dataset=dataset,
                num_images=min(NUM_IMAGES, len(dataset.train)),
            )
        except Interrupted:
            raise
        except TiedScores:  # scores of an untrained network may be tied
            return
        except Exception as error:
            kind = "" if isinstance(error, RegrowError) else f"{type(error).__name__}: "
            raise ConfigError(
                f"The method {method.name!r} was tried on an untrained network, and fails in "
                f"{_place(method, error)}: {kind}{short(error)}"
            ) from error


@contextmanager
def saying_where(method: Method) -> Iterator[None]:
    """Turn errors of a user's criterion or allocation into a ``ConfigError`` with the line."""
    try:
        yield
    except RegrowError as error:
        named = any(f"{r.kind} {name!r}" in str(error) for r, name in _code(method))
        if not named:  # the error is about something else
            raise
        raise ConfigError(f"{_place(method, error)}: {error}") from error
    except Exception as error:
        if not _code(method):
            raise
        told = f"{type(error).__name__}: {short(error)}"
        raise ConfigError(f"{_place(method, error)}: {told}") from error


def _code(method: Method) -> list[tuple[Registry[Any], str]]:
    """Return those of a method's criterion and allocation that are a user's code."""
    parts: list[tuple[Registry[Any], str]] = [
        (CRITERIA, method.criterion),
        (ALLOCATIONS, method.allocation),
    ]
    return [(registry, name) for registry, name in parts if registry.code(name) is not None]


def _place(method: Method, error: Exception) -> str:
    """Return the file and line of the user's code that raised, or that returned a bad value."""
    code = _code(method)
    files = {registry.origin(name) for registry, name in code}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f"{frame.filename}, line {frame.lineno}"
    # No user code raised: a check refused a returned value, and its message names the function.
    named = [(r, name) for r, name in code if f"{r.kind} {name!r}" in str(error)] or code
    if not named[0][0].origin(named[0][1]).endswith(".py"):  # a file of masks, or a library
        return named[0][0].origin(named[0][1])
    value: Any = named[0][0].get(named[0][1])
    function = inspect.unwrap(getattr(value, "function", value))
    returned = isinstance(error, RegrowError)  # otherwise the call itself failed
    line = line_of(function, returned=returned) if inspect.isfunction(function) else 1
    return f"{named[0][0].origin(named[0][1])}, line {line}"


def line_of(function: Any, *, returned: bool) -> int:
    """Return the line of a function's ``def``, or of its only ``return`` if ``returned``."""
    lines, first = inspect.getsourcelines(function)
    try:
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except SyntaxError:  # a lambda within a statement of several lines
        return first
    defined = next((n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)), None)
    if defined is None:
        return first
    inner = {
        id(node)
        for child in ast.walk(defined)
        if isinstance(child, ast.FunctionDef) and child is not defined
        for node in ast.walk(child)
    }
    returns = [
        node.lineno
        for node in ast.walk(defined)
        if isinstance(node, ast.Return) and id(node) not in inner
    ]
    return first - 1 + (returns[0] if returned and len(returns) == 1 else defined.lineno)
