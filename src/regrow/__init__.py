"""regrow: is a pruned network good because of its weights, or because of its architecture?

The facade: every name here is imported from its room when it is first used, so that ``import
regrow`` and ``regrow --help`` cost nothing.
"""

from regrow.lazy import exports

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
    "method": ("METHODS", "Method", "allocation", "criterion", "register_method"),
    "models": ("MODELS", "ModelSpec", "build", "register_model"),
    "probe": ("Probe",),
    "prune": ("left_out", "select"),
    "stages": ("Pattern", "pattern_of", "stages_of"),
    "store": ("Store",),
    "study": ("Study",),
    "surgery": ("shrink", "silence", "trace", "verify"),
    "train": ("Recipe", "Training", "evaluate", "fit"),
}

__all__ = sorted(name for names in _ROOMS.values() for name in names)
__getattr__ = exports("regrow", _ROOMS)


def __dir__() -> list[str]:
    return __all__
