"""Names that shells complete; read off the source, so that PyTorch is not imported."""

from collections.abc import Callable
from importlib import import_module

Complete = Callable[[str], list[str]]


def of_registry(module: str, registry: str) -> Complete:
    """Return what completes the names of a registry, which is imported when it is asked."""

    def complete(incomplete: str) -> list[str]:
        names: tuple[str, ...] = getattr(import_module(module), registry).known()
        # Shells divide words at colons, so that a prefix such as folder: would stand twice.
        return [name for name in names if name.startswith(incomplete) and ":" not in name]

    return complete


MODELS = of_registry("regrow.models", "MODELS")
METHODS = of_registry("regrow.pruning.method", "METHODS")
CRITERIA = of_registry("regrow.pruning.method", "CRITERIA")
