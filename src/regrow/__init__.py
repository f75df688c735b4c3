"""regrow: is a pruned network good because of its weights, or because of its architecture?

Public names are imported from their modules on first use, so that ``import regrow`` and
``regrow --help`` stay fast.
"""

from regrow.core.lazy import exports

_ROOMS = {
    "comparison": ("compare",),
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
    "jobs.arms": ("ARMS", "Arm", "Budget", "register_arm"),
    "models": ("MODELS", "ModelSpec", "build", "register_model"),
    "models.origins": ("ModelOrigin",),
    "own": ("compress", "export", "inspect", "pull", "push"),
    "pruning.method": ("METHODS", "Method", "allocation", "criterion", "register_method"),
    "pruning.probe": ("Probe",),
    "pruning.select": ("left_out", "select"),
    "pruning.stages": ("Pattern", "pattern_of", "stages_of"),
    "report.frames": ("epochs", "results"),
    "store": ("Store",),
    "studies.study": ("Study",),
    "study_run": ("run_study",),
    "surgery": ("shrink", "silence", "trace", "verify"),
    "surgery.architecture": ("Architecture", "load", "save"),
    "surgery.fold": ("fold",),
    "surgery.mask": ("Mask",),
    "train": ("MaskUpdates", "Moment", "Recipe", "Training", "Treatment", "evaluate", "fit"),
}

__all__ = sorted(name for names in _ROOMS.values() for name in names)
__getattr__ = exports("regrow", _ROOMS)


def __dir__() -> list[str]:
    return __all__
