"""Record a network's run on one example: every ATen operation, its tensors and its module."""

import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from regrow.errors import TraceError
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.held import held, is_memory
from regrow.surgery.operators import CHOICES, MADE_ANEW


@runtime_checkable
class Narrows(Protocol):
    """A module that moves channels itself, and can adapt to a cut of its inputs and outputs."""

    def narrow_(self, *, kept_in: Tensor, kept_out: Tensor) -> None:
        """Adapt to the kept input and output channels, given as positions before the cut."""


def narrows(module: nn.Module) -> bool:
    """Return whether a module is a ``Narrows``; ``isinstance`` would be slow on all modules."""
    return callable(getattr(type(module), "narrow_", None))


@dataclass(frozen=True)
class Ref:
    """A reference to a value of the tape, in an operation's arguments."""

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

    @property
    def in_place(self) -> bool:
        """True if the first argument is overwritten."""
        return self.name.endswith("_")

    def refs(self) -> list[int]:
        """Return the indices of the input values."""
        return self._taken

    @cached_property
    def _taken(self) -> list[int]:
        return list(_refs((*self.args, *self.kwargs.values())))


def _refs(arguments: Sequence[Any]) -> Iterator[int]:
    for argument in arguments:
        if isinstance(argument, Ref):
            yield argument.index
        elif type(argument) in (list, tuple):
            yield from _refs(argument)


@dataclass(kw_only=True)
class Tape:
    """The recorded operations and their tensors, indexed by value.

    Tensors that depend on the input are stored without data (on the device ``meta``): no rule may
    use their values, and all activations together take many times the memory of the network.
    """

    nodes: list[Node] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    storages: list[int] = field(default_factory=list)  # by value, the number of its storage
    names: dict[int, str] = field(default_factory=dict)  # value -> parameter or buffer name
    parameters: set[int] = field(default_factory=set)  # values that are parameters
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    movers: list[tuple[str, int, int]] = field(default_factory=list)  # module, value in, value out
    # Modules that hold a number of channels or groups -> the attribute that holds it.
    normalisers: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, frozenset[int]] = field(default_factory=dict)  # by module, those it holds
    compiled: frozenset[str] = frozenset()  # modules that torch.jit compiled
    _sharing: dict[int, list[int]] = field(default_factory=dict)
    _choices: dict[int, list[Node]] = field(default_factory=dict)

    def aliases(self, index: int) -> list[int]:
        """Return the values that share memory with one, itself included."""
        if not self._sharing:
            for i, number in enumerate(self.storages):
                self._sharing.setdefault(number, []).append(i)
        return self._sharing[self.storages[index]]

    def choices(self, ref: Ref) -> Sequence[Node]:
        """Return the operations that select positions of a value by number, in order."""
        if not self._choices:
            for node in self.nodes:
                if node.name in CHOICES:
                    self._choices.setdefault(node.args[0].index, []).append(node)
        return self._choices[ref.index]

    def output_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Return the shapes of the outputs; None if some of them depend on the data."""
        if any(self._chooses_by_data(node) for node in self.nodes):
            return None
        return tuple(tuple(self.values[index].shape) for index in self.outputs)

    def _chooses_by_data(self, node: Node) -> bool:
        if node.name in ("aten::index", "aten::index_put", "aten::index_put_"):
            return any(self.values[i].dtype in (torch.bool, torch.uint8) for i in node.refs()[1:])
        return node.name in _CHOSEN_BY_DATA


_CHOSEN_BY_DATA = (
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
    "torchvision::nms",
)


MOST_OF_ERROR = 300  # characters of an error of the network's own code that are quoted
RECURRENT = "torch.nn.RNNBase"  # name of a recurrent layer, recorded in place of its operations


class _TapeRecorder(OperationMode):
    """Writes each operation to a tape. Tensors are identified by ``id`` while they are alive."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.stack: list[str] = [""]
        self.muted = False  # inside a layer that is recorded as one operation
        self._index: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._data: set[int] = set()  # values that depend on the input
        # A weak reference keeps a storage's address from being reused.
        self._memory: dict[int, tuple[StorageWeakRef, int]] = {}

    def value(self, tensor: Tensor) -> int:
        """Return the index of a tensor's current value, adding it if it is new."""
        known = self._index.get(id(tensor))
        if known is None or known[0]() is not tensor:
            return self.enter(tensor)
        return known[1]

    def enter(self, tensor: Tensor, *, data: bool = False) -> int:
        """Add a tensor's current value and return its index; ``data`` is stored without numbers."""
        index = len(self.tape.values)
        self.tape.values.append(_without_numbers(tensor) if data else tensor)
        self.tape.storages.append(self._number(tensor))
        self._index[id(tensor)] = (weakref.ref(tensor), index)
        if data:
            self._data.add(index)
        return index

    def _number(self, tensor: Tensor) -> int:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse tensors, for example, have none
            return -len(self.tape.values) - 1
        known = self._memory.get(storage._cdata)
        if known is None:
            known = (StorageWeakRef(storage), len(self._memory))  # type: ignore[no-untyped-call]
            self._memory[storage._cdata] = known
        return known[1]

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.muted:
            return operation(*args, **kwargs)
        recorded_args = self._recorded(args)
        recorded_kwargs = {name: self._recorded(x) for name, x in kwargs.items()}
        refs = _refs((*recorded_args, *recorded_kwargs.values()))
        name = operation._schema.name
        data = name not in MADE_ANEW and any(i in self._data for i in refs)
        result = operation(*args, **kwargs)
        # An operation in place makes a new value of the same tensor, hence `enter`.
        outputs = tuple(
            self.enter(x, data=data) if isinstance(x, Tensor) else None
            for x in ([result] if isinstance(result, Tensor) else tree_leaves(result))
        )
        self.tape.nodes.append(
            Node(
                op=operation,
                name=name,
                args=recorded_args,
                kwargs=recorded_kwargs,
                outputs=outputs,
                module=self.stack[-1],
            )
        )
        return result

    def recur(self, layer: nn.RNNBase, args: tuple[Any, ...], output: Any) -> None:
        """Write a recurrent layer to the tape."""
        states = [self.value(x) for x in tree_leaves(args[1:]) if isinstance(x, Tensor)]
        cells = [[Ref(self.value(tensor)) for tensor in cell] for cell in layer.all_weights]
        node = Node(
            op=None,
            name=RECURRENT,
            args=(Ref(self.value(args[0])), [*map(Ref, states)], cells, 1 + layer.bidirectional),
            kwargs={},
            outputs=tuple(self.enter(x, data=True) for x in tree_leaves(output)),
            module=self.stack[-1],
        )
        self.tape.nodes.append(node)

    def _recorded(self, argument: Any) -> Any:
        # As tree_map would do it, but several times faster: operators take few kinds of arguments.
        if isinstance(argument, Tensor):
            return Ref(self.value(argument))
        if type(argument) in (list, tuple):
            return type(argument)([self._recorded(x) for x in argument])
        return argument


def is_dense(value: Any) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor of PyTorch's usual layout, rather than a sparse one."""
    return isinstance(value, Tensor) and value.layout == torch.strided


def _without_numbers(tensor: Tensor) -> Tensor:
    if not is_dense(tensor):
        return torch.empty_like(tensor, device="meta")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


class Arguments(NamedTuple):
    """Positional and keyword arguments of a network; a pytree, so its leaves can be mapped."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(model: nn.Module, example: Any) -> Any:
    """Call a network on one input, a list or tuple of inputs, or a mapping of inputs by name.

    Give ``([...],)`` if the only input is a list; ``Arguments`` hold positional and keyword inputs.
    PyTorch's fast path for attention is disabled, because it hides the operations inside.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if isinstance(example, Arguments):
            return model(*example.args, **example.kwargs)
        if isinstance(example, Mapping):
            return model(**example)
        return model(*example) if isinstance(example, list | tuple) else model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def leaves(output: Any) -> list[tuple[str, Any]]:
    """List the tensors and plain values that a network returned, each with its path in the output.

    Containers and dataclasses are searched, and other objects for tensors only. Caches (classes
    whose name ends so, such as ``DynamicCache``) are skipped: their width changes with the network.
    """
    return list(_found(output, "", set()))


def _found(value: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | bool | int | float | str | complex | None):
        yield place, value
        return
    if id(value) in seen or any(kind.__name__.endswith("Cache") for kind in type(value).__mro__):
        return
    if isinstance(value, Mapping):
        parts = [(f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        parts = [(f"[{number}]", part) for number, part in enumerate(value)]
    elif is_dataclass(value):
        parts = [(f".{f.name}", getattr(value, f.name, None)) for f in fields(value)]
    else:
        seen.add(id(value))
        for name, part in getattr(value, "__dict__", {}).items():
            if isinstance(part, Tensor) or not callable(part):
                inside = _found(part, f"{place}.{name}", seen)
                yield from (pair for pair in inside if isinstance(pair[1], Tensor))
        return
    for name, part in parts:
        yield from _found(part, place + name, seen)


def output_tensors(output: Any) -> list[Tensor]:
    """List the tensors of what a network returned, as ``leaves`` finds them."""
    return [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)]


class Unrecorded(TraceError):
    """A network failed while it was recorded, after ``reached`` operations."""

    def __init__(self, message: str, *, reached: int) -> None:
        super().__init__(message)
        self.reached = reached


def record(model: nn.Module, example: Any) -> Tape:
    """Run a model once in evaluation mode and return its tape; the model is left as it was.

    ``example``: see ``call``.
    """
    modules = dict(model.named_modules())
    compiled = (n for n, m in modules.items() if isinstance(m, torch.jit.ScriptModule))
    tape = Tape(compiled=frozenset(compiled))
    recorder = _TapeRecorder(tape)
    for name, parameter in model.named_parameters():
        index = recorder.enter(parameter)
        tape.names[index] = name
        tape.parameters.add(index)
    for name, buffer in model.named_buffers():
        tape.names[recorder.enter(buffer)] = name
    for attribute in ("num_features", "num_groups", "normalized_shape"):
        tape.normalisers |= {n: attribute for n, m in modules.items() if hasattr(m, attribute)}
    tape.numbers |= {
        name: frozenset(number for *_, number in held(module)) for name, module in modules.items()
    }
    with _restored(model):
        _run(model, example, recorder, modules)
    return tape


def rerun(copy: nn.Module, example: Any, *, told: Collection[str] = ()) -> Tape:
    """Run a copy that is discarded afterwards, and return its tape without names of tensors.

    Operations record their module only if it is in ``told``, or a recurrent layer: hooks on every
    module would take as long as the operations of many networks.
    """
    recorder = _TapeRecorder(Tape())
    modules = copy.named_modules()
    _run(copy, example, recorder, {n: m for n, m in modules if n in told or type(m) in _RECURRENT})
    return recorder.tape


def _run(
    model: nn.Module, example: Any, recorder: _TapeRecorder, modules: Mapping[str, nn.Module]
) -> None:
    """Run a model in evaluation mode, and write what it does to the recorder's tape."""
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    recorder.tape.inputs += [recorder.enter(tensor, data=True) for tensor in tensors]
    try:
        with evaluating(model), torch.no_grad(), _owners(modules, recorder), recorder:
            output = call(model, example)
    except Exception as error:
        where = f" in {recorder.stack[-1]!r}" if recorder.stack[-1] else ""
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
        what = f"an example of shape {shapes}" if shapes else "an example without a tensor"
        raise Unrecorded(
            f"The network fails on {what}{where}: {worded(error)}. "
            "Give an example input that the network accepts; its first dimension counts samples, "
            "of which one is run.",
            reached=len(recorder.tape.nodes),
        ) from error
    recorder.tape.outputs += [recorder.value(tensor) for tensor in output_tensors(output)]
    if not recorder.tape.outputs:
        raise TraceError(
            f"The network returns a {type(output).__name__}, in which no tensor can be found. Let "
            "it return a tensor, or a tuple, list or dict of tensors."
        )
    _refuse_sparse(output)


def worded(error: BaseException) -> str:
    """Return the message of an error in a network's own code, shortened."""
    text = str(error).strip() or type(error).__name__
    return text if len(text) <= MOST_OF_ERROR else f"{text[:MOST_OF_ERROR]} ..."


def _refuse_sparse(output: Any) -> None:
    """Raise a ``TraceError`` if outputs are tensors whose numbers cannot be compared."""
    for leaf in output_tensors(output):
        if not is_dense(leaf) or leaf.is_quantized:
            kind = "quantized" if leaf.is_quantized else str(leaf.layout).removeprefix("torch.")
            raise TraceError(
                f"The network returns a tensor of another layout than PyTorch's usual one: {kind}. "
                "Let it return an ordinary tensor, as to_dense() or dequantize() makes."
            )


def refuse_lazy(model: nn.Module) -> None:
    """Raise a ``TraceError`` if layers have no weights yet."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = dict.fromkeys(n.rpartition(".")[0] for n, t in tensors if is_lazy(t))
    if lazy:
        raise TraceError(
            f"This network has lazy layers, which have no weights before a first run: "
            f"{', '.join(map(repr, lazy))}. Run it once on an example, net(example), where it is "
            "built, and trace it then."
        )


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore all buffers and attributes afterwards: code may keep what it computes.

    Attributes stay as they are if the code changed parameters, as an initialisation does that is
    done once. Caches are empty meanwhile, so that the operations that fill them are recorded.
    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers() if is_dense(buffer)]
    plain = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    places = [(module._buffers, dict(module._buffers)) for module in plain]
    for module in plain:
        full = [name for name, value in vars(module).items() if is_memory(name, value)]
        places.append((vars(module), {name: vars(module)[name] for name in full}))
        vars(module).update({name: {} for name in full})
    attributes = [(vars(module), _attributes(module)) for module in plain]
    before_run = versions(model)
    try:
        yield
    finally:
        for place, before in attributes if versions(model) == before_run else ():
            for name in place.keys() - before.keys() - _REGISTRIES:
                del place[name]
            place.update(before)
        for buffer, copy in saved:
            if buffer.shape != copy.shape or not torch.equal(buffer, copy):
                buffer.data = copy
        for place, before in places:
            place.update(before)


_REGISTRIES = frozenset(vars(nn.Module()))  # of parameters, modules, hooks, ...


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that its own class set, apart from registries."""
    return {name: value for name, value in vars(module).items() if name not in _REGISTRIES}


def versions(model: nn.Module) -> list[int]:
    """Return how often each parameter was changed in place."""
    return [p._version for p in model.parameters() if not p.is_inference()]


@contextmanager
def eagerly() -> Iterator[None]:
    """Leave inference mode and run compiled code eagerly, so that each operation is seen."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():  # in which composite operations have no parts
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(uncompiled())
        yield


def uncompiled() -> AbstractContextManager[object]:
    """Run compiled networks eagerly: operations inside compiled code are not seen."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own mode after.

    Its own ``train`` and ``eval`` are not called: they may change weights, as merging LoRA does.
    """
    modes = {module: module.training for module in model.modules()}
    for module, training in modes.items():
        if training:
            module.training = False
    try:
        yield
    finally:
        for module, training in modes.items():
            if module.training != training:
                module.training = training


_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def _is_recurrent(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Return whether a layer is one of PyTorch's recurrent layers, and its input a plain tensor."""
    return type(module) in _RECURRENT and bool(args) and isinstance(args[0], Tensor)


@contextmanager
def _owners(modules: Mapping[str, nn.Module], recorder: _TapeRecorder) -> Iterator[None]:
    """Maintain the recorder's stack of running modules, and record what passes through movers."""

    def entering(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            recorder.stack.append(name)
            recorder.muted = recorder.muted or _is_recurrent(module, args)

        return hook

    def leaving(name: str, *, moves: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if _is_recurrent(module, args):
                assert isinstance(module, nn.RNNBase)
                recorder.muted = False
                recorder.recur(module, args, output)
            recorder.stack.pop()
            if moves:
                pair = (recorder.value(args[0]), recorder.value(output))
                recorder.tape.movers.append((name, *pair))

        return hook

    handles = []
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it takes no hooks, and runs no Python code
        handles.append(module.register_forward_pre_hook(entering(name)))
        after = leaving(name, moves=narrows(module))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
