"""Record what a network does with one example: every ATen operation, its values and its owner."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from regrow.errors import TraceError


@dataclass(frozen=True)
class Ref:
    """A value of the tape, standing in an operation's arguments."""

    index: int


@dataclass(frozen=True)
class Node:
    """One operation: arguments with ``Ref`` in place of tensors, and the module it ran in."""

    op: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    module: str

    def refs(self) -> list[int]:
        """Return the indices of the values that go in."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf.index for leaf in leaves if isinstance(leaf, Ref)]


@dataclass(kw_only=True)
class Tape:
    """The recorded operations and the tensors they passed, indexed by value."""

    nodes: list[Node] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)  # value -> parameter or buffer name
    parameters: set[int] = field(default_factory=set)  # values that are parameters
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    movers: list[tuple[str, int, int]] = field(default_factory=list)  # module, value in, value out


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Write each operation to a tape. Tensors are told by identity, so all are kept alive."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.stack: list[str] = [""]
        self._index: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing here is compiled, and the wrapper against it imports the compiler: over a second.
        return False

    def value(self, tensor: Tensor) -> int:
        """Return the index of a tensor's current value, entering it when it is new."""
        if id(tensor) not in self._index:
            self.enter(tensor)
        return self._index[id(tensor)]

    def enter(self, tensor: Tensor) -> int:
        self.tape.values.append(tensor)
        self._index[id(tensor)] = len(self.tape.values) - 1
        return self._index[id(tensor)]

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        def ref(x: Any) -> Any:
            return Ref(self.value(x)) if isinstance(x, Tensor) else x

        recorded_args = tree_map(ref, args)
        recorded_kwargs = tree_map(ref, dict(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        # An operation in place makes a new value of the same tensor, hence `enter`.
        outputs = tuple(
            self.enter(x) if isinstance(x, Tensor) else None for x in tree_leaves(result)
        )
        self.tape.nodes.append(
            Node(
                op=func,
                name=func._schema.name,
                args=tuple(recorded_args),
                kwargs=recorded_kwargs,
                outputs=outputs,
                module=self.stack[-1],
            )
        )
        return result


def record(model: nn.Module, example: Tensor) -> Tape:
    """Run a model once in evaluation mode and return its tape; the model is left as it was."""
    tape = Tape()
    recorder = _Recorder(tape)
    for name, parameter in model.named_parameters():
        index = recorder.enter(parameter)
        tape.names[index] = name
        tape.parameters.add(index)
    for name, buffer in model.named_buffers():
        tape.names[recorder.enter(buffer)] = name
    tape.inputs.append(recorder.enter(example))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(_owners(model, recorder))
            stack.enter_context(recorder)
            output = model(example)
    except TraceError:
        raise
    except Exception as error:
        where = f" in {recorder.stack[-1]!r}" if recorder.stack[-1] else ""
        raise TraceError(
            f"The network fails on an example of shape {tuple(example.shape)}{where}: {error}. "
            "Give an example input that the network takes."
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    tape.outputs = [recorder.value(x) for x in tree_leaves(output) if isinstance(x, Tensor)]
    return tape


@contextmanager
def _owners(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the recorder's stack of running modules, and note what passes through movers."""

    def entering(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            recorder.stack.append(name)

        return hook

    def leaving(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            recorder.stack.pop()
            if hasattr(module, "narrow_"):
                pair = (recorder.value(args[0]), recorder.value(output))
                recorder.tape.movers.append((name, *pair))

        return hook

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(entering(name)))
        handles.append(module.register_forward_hook(leaving(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
