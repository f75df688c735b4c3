"""A quick answer to whether the Hugging Face hub can be reached: its client tries for 25 s."""

import os
import socket
import threading
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

ENDPOINT = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # variables by which a user says so
SECONDS = 3.0  # for a name to be found and a connection to be made


@cache
def hub_answers() -> bool:
    """Try to connect to the hub, or to the proxy on the way to it, once in a process."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        return False
    asked = urlsplit(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    proxy = getproxies().get(asked.scheme)
    if proxy and not proxy_bypass(asked.hostname or ""):
        asked = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
    return _connects(asked.hostname or "", asked.port or {"http": 80}.get(asked.scheme, 443))


def _connects(host: str, port: int) -> bool:
    """Tell whether a connection can be made within ``SECONDS``, looking up the name included."""
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
