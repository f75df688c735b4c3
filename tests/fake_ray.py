"""A stand-in for Ray, whose tasks are generators in this process, with faults chosen by a test."""

import json
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Base of Ray's errors."""


class RayTaskError(RayError):
    """An error in a task's own code."""


class TaskCancelledError(RayError):
    """A task that was cancelled."""


class WorkerCrashedError(RayError):
    """A worker process that died."""


class NodeDiedError(RayError):
    """A machine that was lost."""


class OutOfMemoryError(RayError):
    """A worker that took too much memory."""


class RuntimeEnvSetupError(RayError):
    """An environment that cannot be made."""


class FakeRay:
    """A cluster that runs tasks in this process; the first tasks raise the ``faults``, one each.

    ``alter`` may change each request before its task receives it.
    """

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayTaskError=RayTaskError,
        TaskCancelledError=TaskCancelledError,
        WorkerCrashedError=WorkerCrashedError,
        NodeDiedError=NodeDiedError,
        OutOfMemoryError=OutOfMemoryError,
        RuntimeEnvSetupError=RuntimeEnvSetupError,
    )

    def __init__(
        self,
        *,
        faults: Sequence[Exception] = (),
        alter: Callable[[dict[str, Any]], None] = lambda request: None,
        **resources: float,
    ) -> None:
        self.resources = resources or {"CPU": 2.0}
        self.options: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.num_files: list[int] = []
        self.down = False
        self._faults = list(faults)
        self._alter = alter
        self._cancelled: list[object] = []

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, function: Callable[..., Any]) -> "_Function":
        return _Function(self, function)

    def wait(
        self, waiting: list[Any], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        return waiting[:num_returns], waiting[num_returns:]

    def get(self, value: Any) -> Any:
        return value

    def cancel(self, messages: Any, *, force: bool = False) -> None:
        messages.cancelled = True

    def shutdown(self) -> None:
        self.down = True


class _Function:
    def __init__(self, ray: FakeRay, function: Callable[..., Any]) -> None:
        self._ray = ray
        self._function = function

    def options(self, **options: Any) -> "_Function":
        self._ray.options.append(options)
        return self

    def remote(self, request: str, *files: bytes) -> Any:
        ray = self._ray
        asked = json.loads(request)
        ray._alter(asked)
        ray.requests.append(asked)
        ray.num_files.append(len(files))
        if self._function.__name__ != "do":
            return self._function(json.dumps(asked))
        fault = ray._faults.pop(0) if ray._faults else None
        return _Messages(self._function(json.dumps(asked), *files), fault)


class _Messages:
    def __init__(self, messages: Iterator[Any], fault: Exception | None) -> None:
        self._messages = messages
        self._fault = fault
        self.cancelled = False

    def __next__(self) -> Any:
        if self._fault is not None:
            raise self._fault
        if self.cancelled:
            self._messages.close()  # type: ignore[attr-defined]  # the task saves, and ends
            raise TaskCancelledError
        return next(self._messages)
