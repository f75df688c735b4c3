"""Check quickly whether the Hugging Face hub can be reached; its own client tries for 25 s."""

import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

ENDPOINT = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # variables that force offline mode
SECONDS = 3.0  # to look up the name and to connect


@cache
def hub_answers() -> bool:
    """Return whether the hub, or the proxy to it, can be reached; tried once per process."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        return False
    asked = urlsplit(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    proxy = getproxies().get(asked.scheme)
    if proxy and not proxy_bypass(asked.hostname or ""):
        asked = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return _connects(asked.hostname or "", asked.port or {"http": 80}.get(asked.scheme, 443))


def _connects(host: str, port: int) -> bool:
    """Return whether a connection can be made within ``SECONDS``, including the name lookup."""
    done = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=SECONDS).close()
        except OSError:
            return
        done.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return done.is_set()
