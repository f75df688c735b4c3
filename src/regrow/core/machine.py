"""The processor, its cores and the versions of packages, for records.

The machine's name is never recorded.
"""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("regrow", "torch", "numpy")


@cache
def processor() -> str:
    """Return the processor's model, or its architecture if the system does not say."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if models:
            return models[0]
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Return how many cores this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> str:
    """Describe the machine without naming it."""
    return f"{num_cores()} cores, {processor()}, {platform.system()}"


@cache
def versions() -> str:
    """Return the versions of Python and of the packages that results depend on."""
    parts = [f"Python {platform.python_version()}", *(f"{p} {version_of(p)}" for p in PACKAGES)]
    return ", ".join(parts)


def version_of(package: str) -> str:
    """Return an installed package's version, or "(not installed)" if it is only on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
