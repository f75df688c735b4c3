"""regrow: is a pruned network good because of its weights, or because of its architecture?

The facade: every name here is imported from its room when it is first used, so that ``import
regrow`` and ``regrow --help`` cost nothing.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "architecture": ("Architecture", "load", "save"),
    "arms": ("ARMS", "Arm", "Budget", "register_arm"),
    "cost": ("Cost", "measure"),
    "data": ("DATASETS", "DataSpec", "register_data"),
    "errors": (
        "ConfigError",
        "DataError",
        "Interrupted",
        "RegrowError",
        "StoreError",
        "TraceError",
        "TrainingError",
    ),
    "mask": ("Mask",),
    "models": ("MODELS", "ModelSpec", "build", "register_model"),
    "probe": ("Probe",),
    "prune": (
        "METHODS",
        "Method",
        "allocation",
        "criterion",
        "left_out",
        "register_method",
        "select",
    ),
    "stages": ("Pattern", "pattern_of", "stages_of"),
    "store": ("Store",),
    "study": ("Study",),
    "surgery": ("shrink", "silence", "trace", "verify"),
    "train": ("Recipe", "Training", "evaluate", "fit"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'regrow' has no attribute {name!r}")
    return getattr(import_module(f"regrow.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
