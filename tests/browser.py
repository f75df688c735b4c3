"""Drive a headless Chromium, if one is installed, through its DevTools pipe, without any package.

with Browser() as browser:
    browser.open(path)
    assert browser.value("document.title") == "..."
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0
AXE = "REGROW_AXE"  # names the file axe.min.js of the npm package axe-core
SCREENS = ((1280, 900), (390, 844))


def chromium() -> str:
    """Return the path of a Chromium; the test is skipped without one."""
    named = os.environ.get("REGROW_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    return found


class Browser:
    """One page; ``problems`` are console errors and exceptions, ``requests`` requested URLs."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self._loaded = False

    def __enter__(self) -> "Browser":
        self._profile = tempfile.mkdtemp(prefix="regrow-chromium-")
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        self._read, self._write = read_here, write_here
        # Chromium reads commands from file descriptor 3 and writes answers to 4.
        script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            [
                *("/bin/bash", "-c", script, "bash", chromium(), "--headless=new"),
                *("--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
                *("--disable-dev-shm-usage", "--disable-background-networking", "--mute-audio"),
                *(f"--user-data-dir={self._profile}", "about:blank"),
            ],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(SECONDS)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol, and wait for its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False,
        scripts: bool = True,
    ) -> None:  # fmt: skip
        """Load a page with the given window size and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.problems, self.requests, self._loaded = [], [], False
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not self._loaded:
            self._hear()

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression in the page; promises are awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move_to(self, selector: str, number: int = 0) -> None:
        """Move the mouse onto an element, after scrolling to it."""
        find = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.value(f"{find}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"({find}.getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write a screenshot as PNG, of the window or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """Print the page to PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _hear(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 20) if ready else b""
            assert chunk, "Chromium does not answer"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        self._note(heard.get("method", ""), heard.get("params", {}))
        return heard

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(details["exceptionDetails"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.problems.append(details["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.problems.append(str(details["args"]))


def axe() -> str:
    """Return the script of axe-core; the test is skipped without one."""
    file = os.environ.get(AXE)
    if file is None:
        pytest.skip(f"{AXE} does not name an axe.min.js (npm pack axe-core)")
    return Path(file).read_text(encoding="utf-8")


def check_accessible(*pages: Path) -> None:
    """Check pages with axe-core, if available, at desktop and phone size, light and dark.

    There must be no serious violation, nothing wider than the screen, and no network request.
    """
    if os.environ.get(AXE) is None:
        return
    script = axe()
    with Browser() as browser:
        for page, (width, height), dark in product(pages, SCREENS, (False, True)):
            browser.open(page, width=width, height=height, dark=dark)
            browser.value(f"{script}; 1")
            found = browser.value("axe.run().then(r => JSON.stringify(r.violations))")
            serious = {
                violation["id"]: [node["html"][:150] for node in violation["nodes"]]
                for violation in json.loads(found)
                if violation["impact"] in ("serious", "critical")
            }
            assert serious == {}, f"{page} at {width} pixels: {serious}"
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.problems == []
            assert all(address.startswith("file:") for address in browser.requests)
