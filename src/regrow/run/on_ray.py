"""Run jobs on a Ray cluster: each is a task, with a CPU or a share of a GPU.

The command remains the coordinator of its run. Ray starts the tasks where there is room, reports
lost workers and machines, and ends all tasks when the command ends. If all machines can access the
store's folder, tasks write to it; else records are sent as bytes (``run.ray_task``).
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any

from regrow.core.leases import LEASE_VARIABLE
from regrow.core.registry import loaded_files
from regrow.errors import ConfigError, RegrowError, StoreError
from regrow.jobs.as_json import job_to_json
from regrow.jobs.base import Job
from regrow.run import ray_task
from regrow.run.executors import (
    Deliver,
    Ended,
    Executor,
    Platform,
    Settings,
    half_of,
    message_from_json,
)
from regrow.run.gpu_sharing import Sharing
from regrow.run.worker import ALLOCATOR, TUNABLES
from regrow.store import Store
from regrow.store.packed import Packed, pack, unpack

LOCAL = "local"  # the address of a cluster that is started for the run
AHEAD = 2  # tasks queued at Ray beyond its room, so that an autoscaling cluster grows
ANSWER_SECONDS = 120.0  # for a first answer, as a busy machine is slow to start a worker
LOOK_SECONDS = 2.0  # how often to query the size of the cluster
OBJECT_STORE_BYTES = 200 << 20  # of a cluster started here; messages are small
AUTH_MODE = "RAY_AUTH_MODE"  # an environment variable of Ray
HANDED_ON = ("REGROW_DATA", LEASE_VARIABLE, "HF_HOME", "HF_HUB_OFFLINE")  # read by jobs


def on_ray(address: str | None = None) -> Platform:
    """Return a ``Platform`` that runs jobs on a Ray cluster.

    Without an address, it is the cluster that runs on this machine, or else one that is started for
    the run; with ``local``, always the latter.
    """

    def executor(
        jobs: Sequence[Job], store: Store, settings: Settings, workers: int | None
    ) -> Executor:
        if workers == 0:
            raise ConfigError(
                "--workers 0 trains in this process, but --on ray trains elsewhere. Leave one of "
                "them out."
            )
        ray = connect(address)
        try:
            return _Ray(ray, jobs, store, settings, workers)
        except BaseException:
            ray.shutdown()
            raise

    return executor


def connect(address: str | None) -> Any:
    """Connect to a cluster, or start one on this machine; return the module ``ray``.

    An existing cluster must run a test task within ``ANSWER_SECONDS``.
    """
    # Else a command started by `uv run` would upload its folder, and have Ray build environments.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ConfigError(
            "--on ray needs the package ray, on every machine: pip install 'regrow[ray]'."
        ) from error
    variables = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": {TUNABLES: os.environ.get(TUNABLES, ALLOCATOR)} | variables},
        "logging_level": "warning",
        "configure_logging": True,
    }
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        if address is not None:
            ray.init(address=address, **common, **own if address == LOCAL else {})
        else:
            try:
                ray.init(address="auto", **common)
            except ConnectionError:  # none runs here
                address = LOCAL
                ray.init(address=address, **common, **own)
    except Exception as error:  # Ray raises plain ones, e.g. if a node does not start in time
        # Ray uses the token in the home folder for a head that it starts, but not to connect to a
        # given address. With a token, but a cluster without one, tasks run and their messages never
        # arrive.
        is_told = address in (None, LOCAL) or AUTH_MODE in os.environ
        hint = "" if is_told else f" If its head requires a token, set {AUTH_MODE}=token."
        told = str(error).strip().rstrip(".")
        raise ConfigError(
            f"No Ray cluster can be used at {address or 'this machine'}: {told}. Start one (regrow "
            f"cluster local says how), or give the --address of its head.{hint}"
        ) from error
    if address != LOCAL:
        _wait_for_answer(ray, address)
    return ray


def _wait_for_answer(ray: Any, address: str | None) -> None:
    """Run a task, which needs no CPU, to test that workers can send messages to this process.

    They cannot if this process requires a token that the cluster does not have, or because of a
    firewall; jobs would run, but their messages would never arrive.
    """
    task = ray.remote(ray_task.answer).options(num_cpus=0, num_returns="streaming")
    messages = task.remote()
    try:
        ready, _ = ray.wait([messages], timeout=ANSWER_SECONDS, fetch_local=False)
    except BaseException:
        ray.shutdown()
        raise
    if ready:
        return
    ray.shutdown()
    token = os.environ.get(AUTH_MODE) == "token"
    remedy = (
        f"{AUTH_MODE}=token is set here: if the head was started without it, unset it. Else let"
        if token
        else "Let"
    )
    raise ConfigError(
        f"The Ray cluster at {address or 'this machine'} accepts tasks, but none of its workers "
        f"has answered within {ANSWER_SECONDS:g} seconds. {remedy} the machines of the cluster "
        "reach this one (firewall, --node-ip-address), or start the command on one of them."
    )


@dataclass(eq=False)
class _Sent:
    job: Job
    messages: Any  # Ray's generator
    claim: ExitStack = field(default_factory=ExitStack)  # held here if tasks cannot see the store


class _Ray:
    """An executor on a cluster, which runs as many jobs as it has room for."""

    def __init__(
        self, ray: Any, jobs: Sequence[Job], store: Store, settings: Settings, workers: int | None
    ) -> None:
        self._ray = ray
        self._store = store
        self._settings = settings
        token = {"token": token_hex(16)}
        self._common = {
            "store": str(store.root.resolve()),
            "token": store.decide(ray_task.FOLDER, token)["token"],
            "folder": str(Path.cwd()),
            "with": [
                {"path": str(file), "text": file.read_text(encoding="utf-8")}
                for file in loaded_files()
            ],
            "settings": asdict(settings),
        }
        self._seen = True  # whether every machine so far could access the store's folder
        self._tasks: list[_Sent] = []
        self._at_once: list[tuple[Job, Ended]] = []
        self._stopping = self._told = False
        self._next_look, self._room = 0.0, 0
        self._most = workers
        self._each: dict[str, float] = {"num_cpus": 1}
        if settings.device != "cpu":
            if not self._ray.cluster_resources().get("GPU"):
                raise ConfigError(
                    f"--device {settings.device}: no machine of this Ray cluster has a GPU, as far "
                    "as Ray knows (ray status). Start its nodes with --num-gpus, or use the cpu."
                )
            share = 1 / (workers or self._measured(jobs))
            self._each, self._most = {"num_cpus": share, "num_gpus": share}, None

    def _measured(self, jobs: Sequence[Job]) -> int:
        """Measure, in a task with a whole GPU, how many trainings should share one."""
        asked = Sharing.of(jobs)
        if asked.job is None or asked.most == 1:
            return 1
        task = self._ray.remote(ray_task.measure).options(num_cpus=1, num_gpus=1)
        number: int = self._ray.get(
            task.remote(self._request(asked.job, most=asked.most, steps=asked.steps))
        )
        return number

    def _request(self, job: Job, **more: Any) -> str:
        return json.dumps({**self._common, "job": job_to_json(job), "key": job.key, **more})

    @property
    def num_free(self) -> int:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            has = self._ray.cluster_resources()
            named = {"CPU": self._each["num_cpus"], "GPU": self._each.get("num_gpus", 0)}
            room = [int(has.get(name, 0) / each + 1e-6) for name, each in named.items() if each]
            self._room = min(room) + AHEAD
        most = self._room if self._most is None else min(self._most, self._room)
        return max(0, most - self.num_busy)

    @property
    def num_busy(self) -> int:
        return len(self._tasks) + len(self._at_once)

    def start(self, job: Job) -> None:
        claim = ExitStack()
        inputs: list[str] | None = None
        files: list[bytes] = []
        if not self._seen:
            if claim.enter_context(self._store.claim(job.key)) is None:
                self._at_once.append((job, Ended("held")))
                return
            if self._store.has(job.key):
                claim.close()
                self._at_once.append((job, Ended("reused")))
                return
            self._store.forgive(job.key)
            inputs = list(dict.fromkeys(before.key for before in job.inputs))
            files = [content for key in inputs for content in pack(self._store, key)]
        options = {"max_retries": 0, "num_returns": "streaming", "name": job.label, **self._each}
        task = self._ray.remote(ray_task.do).options(**options)
        messages = task.remote(self._request(job, inputs=inputs), *files)
        self._tasks.append(_Sent(job, messages, claim))

    def poll(self, deliver: Deliver, *, seconds: float) -> None:
        if self._stopping and not self._told:
            self._told = True
            for task in self._tasks:
                self._ray.cancel(task.messages)  # the job saves before it ends
        while self._at_once:
            deliver(*self._at_once.pop())
            seconds = 0.0
        if not self._tasks:
            time.sleep(seconds)
            return
        waiting = [task.messages for task in self._tasks]
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=seconds, fetch_local=False)
        if ready:
            ready, _ = self._ray.wait(
                waiting, num_returns=len(waiting), timeout=0, fetch_local=False
            )
        told = {id(messages) for messages in ready}
        for task in [task for task in self._tasks if id(task.messages) in told]:
            self._next(task, deliver)

    def _next(self, task: _Sent, deliver: Deliver) -> None:
        """Receive one message of a task, or find how the task ended without one."""
        try:
            text, *files = self._ray.get(next(task.messages))
        except StopIteration:
            self._end(task, _lost("Its task ended without a message"), deliver)
        except self._ray.exceptions.RayError as error:
            self._end(task, self._how_it_ended(error), deliver)
        else:
            ((kind, content),) = json.loads(text).items()
            self._hear(task, kind, content, Packed(*files), deliver)

    def _hear(
        self, task: _Sent, kind: str, content: Mapping[str, Any], packed: Packed, deliver: Deliver
    ) -> None:
        if kind == "refused":
            raise RegrowError(content["message"])
        if kind == "unseen":
            self._seen = False
            self._tasks.remove(task)
            self.start(task.job)
            return
        message = message_from_json(kind, content)
        if not isinstance(message, Ended):
            deliver(task.job, message)
            return
        if packed.record or message.status == "failed":
            message = self._keep(task.job, message, packed)
        self._end(task, message, deliver)

    def _keep(self, job: Job, ended: Ended, packed: Packed) -> Ended:
        """Store the record or failure sent by a task that cannot access the store."""
        try:
            if packed.record:
                unpack(self._store, job.key, packed)
            elif not self._seen:
                self._store.fail(
                    job.key,
                    job.spec,
                    message=ended.message,
                    traceback=ended.traceback,
                    may_pass=bool(ended.trouble),
                )
        except StoreError as error:
            return Ended("failed", message=f"{ended.message} {error}".strip())
        return ended

    def _end(self, task: _Sent, ended: Ended, deliver: Deliver) -> None:
        self._tasks.remove(task)
        task.claim.close()
        deliver(task.job, ended)

    def _how_it_ended(self, error: Exception) -> Ended:
        """Return how a task ended that could not report its end itself."""
        kinds = self._ray.exceptions
        if isinstance(error, kinds.TaskCancelledError) and self._stopping:
            return Ended("stopped")
        if isinstance(error, kinds.OutOfMemoryError):
            return Ended("died", message="Its machine ran out of memory", trouble="memory")
        if isinstance(error, kinds.WorkerCrashedError):
            return _lost("Its worker process on Ray ended without a message")
        cancelled = isinstance(error, kinds.TaskCancelledError)
        if isinstance(error, kinds.RayTaskError | kinds.RuntimeEnvSetupError) and not cancelled:
            raise RegrowError(
                f"A machine of the Ray cluster cannot run jobs: {_last_line(error)} It needs the "
                "same Python, with regrow and ray of the same versions."
            ) from error
        return _lost(f"Its machine was lost ({type(error).__name__})")

    def narrow(self) -> int | None:
        most = self._room if self._most is None else min(self._most, self._room)
        fewer = half_of(most, len(self._tasks))
        if fewer is not None:
            self._most = fewer
        return fewer

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        for task in self._tasks:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task.messages, force=True)
            task.claim.close()
        self._ray.shutdown()


def _lost(message: str) -> Ended:
    """Return that a job's process was lost, so that the job can be retried in another."""
    return Ended("died", message=message, trouble="passing")


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
