"""Shell completion of registered names, read from the source so that PyTorch is not imported."""

from collections.abc import Callable
from importlib import import_module

Complete = Callable[[str], list[str]]


def of_registry(module: str, registry: str) -> Complete:
    """Return a completion function for a registry that is imported only when it is called."""

    def complete(incomplete: str) -> list[str]:
        names: tuple[str, ...] = getattr(import_module(module), registry).known()
        # Shells split words at colons, so completing a name such as folder:... repeats the prefix.
        return [name for name in names if name.startswith(incomplete) and ":" not in name]

    return complete


MODELS = of_registry("regrow.models", "MODELS")
METHODS = of_registry("regrow.pruning.method", "METHODS")
CRITERIA = of_registry("regrow.pruning.method", "CRITERIA")
