"""A job as a Ray task, on the machine that runs it: it receives JSON and yields JSON and bytes.

Ray calls ``do``, found by its import path. It yields messages while the job runs in another thread,
so that a cancelled task first lets its job save. If this machine cannot access the store's folder,
the records that the job reads arrive as bytes, and its own record is sent back as bytes.
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
from regrow.core.registry import load_file, loaded_files
from regrow.core.source import expecting, read_digests
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

FOLDER = "folder"  # the decision (``folder.json``) with a token that identifies the store

NOTHING = Packed(b"", b"")
Message = tuple[str, bytes, bytes]  # JSON, and the two files of a record that is sent back
Tell = Callable[..., None]


def do(request: str, *files: bytes) -> Iterator[Message]:
    """Run the job of a request; yield its messages, the last of which is its end."""
    news: SimpleQueue[Message | None] = SimpleQueue()
    stopping = Event()

    def tell(name: str, content: Mapping[str, Any], packed: Packed = NOTHING) -> None:
        news.put((json.dumps({name: content}), *packed))

    def work() -> None:
        try:
            _work(json.loads(request), files, tell, stopping.is_set)
        except ConfigError as error:  # outside the job, so it would stop every job
            tell("refused", {"message": f"On {platform.node()}: {error}"})
        except BaseException as error:  # so that the process can run other jobs
            died = Ended("died", message=f"{type(error).__name__}: {error}")
            tell(*message_to_json(died))
        finally:
            news.put(None)

    thread = Thread(target=work, name="job")
    thread.start()
    try:
        while (message := news.get()) is not None:
            yield message
    finally:  # also if the task is cancelled: the job saves first
        stopping.set()
        thread.join()


def answer() -> Iterator[str]:
    """Yield a message, in the same way as jobs do."""
    yield "here"


def measure(request: str) -> int:
    """Measure how many trainings like the request's should share this task's GPU."""
    asked = json.loads(request)
    _prepare(asked)
    with expecting(asked["settings"]["read"]):
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
    with expecting(asked["settings"]["read"]):
        job = job_from_json(asked["job"], key=asked["key"])
    for file in job.files:
        if not Path(file).exists():
            raise ConfigError(
                f"'{file}' does not exist in {Path.cwd()}. Your own code and weights must be at "
                "the same path on all machines of the cluster: start the command in a folder that "
                "they share."
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

        settings = Settings(**asked["settings"])
        # In this thread, because such settings are per thread.
        with one_thread(), exact_floats(), expecting(settings.read):
            ended = execute(job, store, settings, report=report, stopping=stopping)
        sent = own is not None and ended.status == "done"
        tell(*message_to_json(ended), pack(store, job.key) if sent else NOTHING)
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def _prepare(asked: Mapping[str, Any]) -> None:
    """Change to the command's folder, and load its ``--with`` files."""
    with suppress(OSError):  # the folder may not exist on this machine
        os.chdir(asked["folder"])
    for given in asked["with"]:
        path, content = Path(given["path"]), given["text"].encode()
        read = read_digests().get(str(path), {}).get(str(path))
        if path not in loaded_files() or read != hashlib.sha256(content).hexdigest():
            load_file(_file(path, content))


def _file(path: Path, content: bytes) -> Path:
    """Return the path if it has this content, else that of a copy with it."""
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
    """Open the command's store if the folder at its path here has the same token, else None."""
    root = Path(asked["store"])
    with suppress(OSError, ValueError, StoreError):
        if parsed(read_file(root / f"{FOLDER}.json")).get("token") == asked["token"]:
            return Store.open(root, create=False)
    return None
