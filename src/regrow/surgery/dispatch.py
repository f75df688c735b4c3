"""The ATen operations of a running network, one by one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which every ATen operation goes through ``run``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled, and the wrapper against it imports the compiler: over a second.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation."""
        return self.run(func, args, kwargs or {})

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, and return its result; subclasses look at both."""
        return operation(*args, **kwargs)


class Widening(OperationMode):
    """A context in which casts from float64 to float32 are left out."""

    found = False

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, and note whether it was such a cast."""
        is_cast = operation is torch.ops.aten._to_copy.default
        if is_cast and kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
            self.found |= args[0].dtype == torch.float64
        return operation(*args, **kwargs)
