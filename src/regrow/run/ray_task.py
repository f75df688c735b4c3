"""A job as a Ray task, on the machine that does it: JSON comes in, JSON and bytes go out.

``do`` is what Ray calls, found by its import path. It yields its messages while the job runs in a
thread beside it, so that a cancelled task first lets its job save. Where the store's folder is not
seen here, the records that the job reads come as bytes, and its own goes back likewise.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from regrow.core.digests import parsed, read_file
from regrow.core.registry import load_file
from regrow.errors import ConfigError, StoreError
from regrow.jobs.as_json import job_from_json
from regrow.jobs.base import Notice, Progress
from regrow.run.executors import (
    Ended,
    Settings,
    exact_floats,
    execute,
    message_to_json,
    one_thread,
)
from regrow.run.gpu_sharing import Sharing
from regrow.store import Store
from regrow.store.packed import Packed, pack, unpack

FOLDER = "folder"  # the decision of a store that tells it from any other: ``folder.json``

NOTHING = Packed(b"", b"")
Message = tuple[str, bytes, bytes]  # JSON; of a record that goes back, its two files
Tell = Callable[..., None]


def do(request: str, *files: bytes) -> Iterator[Message]:
    """Do the job of a request; yields what it tells, its end last."""
    news: SimpleQueue[Message | None] = SimpleQueue()
    stopping = Event()

    def tell(name: str, content: Mapping[str, Any], packed: Packed = NOTHING) -> None:
        news.put((json.dumps({name: content}), *packed))

    def work() -> None:
        try:
            _work(json.loads(request), files, tell, stopping.is_set)
        except ConfigError as error:  # of what all jobs need
            tell("refused", {"message": f"On {platform.node()}: {error}"})
        except BaseException as error:  # the process may be asked for other jobs
            died = Ended("died", message=f"{type(error).__name__}: {error}")
            tell(*message_to_json(died))
        finally:
            news.put(None)

    thread = Thread(target=work, name="job")
    thread.start()
    try:
        while (message := news.get()) is not None:
            yield message
    finally:  # also of a task that was cancelled: its job saves first
        stopping.set()
        thread.join()


def answer() -> Iterator[str]:
    """Send a word, as jobs send their messages."""
    yield "here"


def measure(request: str) -> int:
    """Measure how many trainings like that of a request should share the GPU of this task."""
    asked = json.loads(request)
    _prepare(asked)
    job = job_from_json(asked["job"], key=asked["key"])
    return Sharing(job, asked["most"], asked["steps"]).answer(asked["settings"]["device"])


def _work(
    asked: Mapping[str, Any], files: tuple[bytes, ...], tell: Tell, stopping: Callable[[], bool]
) -> None:
    _prepare(asked)
    store = _seen(asked)
    if store is None and asked["inputs"] is None:
        tell("unseen", {})
        return
    job = job_from_json(asked["job"], key=asked["key"])
    for file in job.files:
        if not Path(file).exists():
            raise ConfigError(
                f"'{file}' is not seen in {Path.cwd()}. The code and the weights of your own have "
                "to lie at one place on all machines of the cluster: start the command in a folder "
                "that they share."
            )
    own = None if store is not None else Path(tempfile.mkdtemp(prefix="regrow-ray-"))
    try:
        if own is not None:
            store = Store.open(own / "store")
            for number, key in enumerate(asked["inputs"]):
                unpack(store, key, Packed(*files[2 * number : 2 * number + 2]))
        assert store is not None

        def report(message: Progress | Notice) -> None:
            tell(*message_to_json(message))

        with one_thread(), exact_floats():  # both are settings of the thread
            settings = Settings(**asked["settings"])
            ended = execute(job, store, settings, report=report, stopping=stopping)
        sent = own is not None and ended.status == "done"
        tell(*message_to_json(ended), pack(store, job.key) if sent else NOTHING)
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def _prepare(asked: Mapping[str, Any]) -> None:
    """Make this process like that of the command: its folder, and what ``--with`` registers."""
    with suppress(OSError):  # a folder that is not shared is not here
        os.chdir(asked["folder"])
    for given in asked["with"]:
        load_file(_file(Path(given["path"]), given["text"]))


def _file(path: Path, text: str) -> Path:
    """Return a file as it was given: where it lies, or as a copy, if another or none lies there."""
    content = text.encode()
    with suppress(OSError):
        if path.read_bytes() == content:
            return path
    digest = hashlib.sha256(content).hexdigest()[:16]
    copy = Path(tempfile.gettempdir()) / f"regrow-with-{os.getuid()}-{digest}" / path.name
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    if copy.parent.stat().st_uid != os.getuid():
        raise StoreError(f"{copy.parent} belongs to another user. Remove it.")
    fresh = copy.with_name(f"{copy.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(copy)
    return copy


def _seen(asked: Mapping[str, Any]) -> Store | None:
    """Open the store of the command, if the folder of its name here holds the same token."""
    root = Path(asked["store"])
    with suppress(OSError, ValueError, StoreError):
        if parsed(read_file(root / f"{FOLDER}.json")).get("token") == asked["token"]:
            return Store.open(root, create=False)
    return None
