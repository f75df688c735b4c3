"""The cost of a network: parameters, multiply-accumulates (MACs), FLOPs; and of its training.

``macs`` counts the multiply-accumulates of one image in every convolution, matrix product,
attention and recurrent layer that the network computes, whether a module computes it or a function
(``F.linear``, ``torch.matmul``, ``nn.MultiheadAttention``). It is half of what PyTorch's own
``FlopCounterMode`` counts.

``flops`` is the counter with which the paper's budgets were computed:

- two for each multiply-accumulate, and one for each output element of a convolution or linear
  module with a bias;
- two for each input element of a BatchNorm2d. If the norm reads a selection of channels
  (``Select``), all channels before the selection count, because the published code normalises the
  whole stream and selects afterwards;
- one for each input element of a ReLU module, and the window's size for each output element of a
  pooling module;
- functions, additions and concatenation are free, other than their multiply-accumulates.

The published code counts modules only. Its networks multiply in modules only, so for them this
gives the published numbers; networks that multiply outside modules are counted by the same rule.

Weights held at zero are not counted. ``caveats`` lists what cannot be counted.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from regrow.cost.operations import memory_of, name_of, products, tensors_in
from regrow.cost.zeros import MaskFollower
from regrow.models.layers import FunctionalReLU
from regrow.surgery import Select
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.mask import Mask, kept_weights
from regrow.surgery.tape import call, evaluating, uncompiled

# Backward costs about twice forward: once for the inputs' gradients, once for the weights'.
TRAINING_FACTOR = 3

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
_NORMS_AND_RELUS = (nn.BatchNorm2d, nn.ReLU, FunctionalReLU, Select)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_COUNTED = (*_WEIGHTED, *_NORMS_AND_RELUS, *_POOLS)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one image through a network (convention: this module's docstring).

    ``caveats`` lists what could not be counted, or only with uncertainty; usually it is empty.
    """

    parameters: int
    macs: int
    flops: int
    caveats: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers, and the caveats if there are any."""
        numbers = {"parameters": self.parameters, "macs": self.macs, "flops": self.flops}
        return {**numbers, "caveats": list(self.caveats)} if self.caveats else numbers

    def training_flops(self, samples: float) -> float:
        """Return the FLOPs of training on a number of images (forward x 3)."""
        return float(TRAINING_FACTOR * self.flops * samples)


def measure(model: nn.Module, example: Any, mask: Mask | None = None) -> Cost:
    """Measure a network on one example ``[1, C, H, W]``; masked weights count as removed.

    Several inputs are given as a list or tuple, or as a mapping by name.
    """
    return count(model, example, mask).cost


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A network's cost, and whether the first version of the counter agrees.

    That version used hooks on modules. Results whose costs it counted correctly keep their keys. It
    missed multiplications outside layers, and modules called by keyword; it counted ReLUs that are
    functions in the published code; and if the weight of a layer is not a parameter of its own (see
    ``own_weights``), it did not notice that the weight is held at zero.
    """

    cost: Cost
    as_first: bool
    own_weights: bool
    by_parameter: Mapping[str, int]  # multiply-accumulates with each, by name


def count(model: nn.Module, example: Any, mask: Mask | None = None) -> Counted:
    """Measure a network, and compare with the first version of the counter."""
    masks = {} if mask is None else kept_weights(mask, model)
    follower = MaskFollower(model, masks) if masks else None
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    names = {memory_of(parameter): name for name, parameter in parameters.items()}
    counter = _Count(
        follower=follower, modules={module: name for name, module in modules.items()}, names=names
    )
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_watched(counter))
        stack.enter_context(uncompiled())
        stack.enter_context(_Operations(counter))
        call(model, example)
    layers = [name for name, module in modules.items() if isinstance(module, _WEIGHTED)]
    cost = Cost(
        parameters=sum(p.numel() for p in parameters.values())
        - (follower.removed if follower else 0),
        macs=counter.macs,
        flops=2 * counter.macs + counter.beside,
        caveats=(*counter.caveats, *counter.unread()),
    )
    return Counted(
        cost=cost,
        as_first=counter.first == (counter.macs, counter.beside),
        own_weights=all(f"{name}.weight".removeprefix(".") in parameters for name in layers),
        by_parameter=counter.by_parameter,
    )


@dataclass(kw_only=True)
class _Count:
    """The count of a network's cost while it runs."""

    follower: MaskFollower | None
    modules: Mapping[nn.Module, str]  # to their names
    names: Mapping[int, str]  # of parameters, by their memory
    macs: int = 0
    beside: int = 0  # FLOPs besides multiply-accumulates
    first: tuple[int, int] = (0, 0)  # both, as hooks on modules counted them
    called: dict[nn.Module, None] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)  # memory of what operations read
    selected: tuple[Tensor, int] | None = None  # the last ``Select``'s output, and its input's size
    caveats: dict[str, None] = field(default_factory=dict)
    by_parameter: dict[str, int] = field(default_factory=dict)

    def operation(self, operation: Any, arguments: tuple[Any, ...], result: Any) -> None:
        """Count one operation."""
        if not operation.is_view:
            self.read.update(map(memory_of, tensors_in(arguments)))
        multiplications = products(operation, arguments, result)
        if multiplications is None:
            name = name_of(operation)
            name = name if "::" in name else f"aten::{name}"
            self.caveats[f"{name}{self._where()}"] = None
        for product in multiplications or ():
            macs, exact = (
                (product.macs, True) if self.follower is None else self.follower.macs(product)
            )
            self.macs += macs
            for name in filter(None, (self.names.get(memory_of(x)) for x in product.operands)):
                self.by_parameter[name] = self.by_parameter.get(name, 0) + macs
            if not exact:
                self.caveats[f"masked weights{self._where()} (counted as if present)"] = None
        if self.follower is not None:
            self.follower.follow(operation, arguments, result)

    def module(self, module: nn.Module, x: Tensor, output: Tensor, *, positional: bool) -> None:
        """Count the FLOPs of one call of a module besides its multiply-accumulates."""
        if isinstance(module, Select):
            self.selected = output, x.numel()
            return
        first = beside = _beside(module, x, output)
        follows_selection = self.selected is not None and self.selected[0] is x
        if isinstance(module, FunctionalReLU):
            first = x.numel()
        elif isinstance(module, nn.BatchNorm2d) and follows_selection and self.selected is not None:
            beside = 2 * self.selected[1]
        self.beside += beside
        if positional:
            self.first = self.first[0] + _macs(module, x, output), self.first[1] + first

    def unread(self) -> Iterator[str]:
        """Yield the weights of modules that ran, but that no operation was seen to read."""
        for module in self.called:
            parameters = module.named_parameters(recurse=False)
            unread = [n for n, p in parameters if p.dim() > 1 and memory_of(p) not in self.read]
            if unread:
                names = ", ".join(unread) + _in(self.modules[module])
                yield f"{names}, which no operation was seen to read"

    def _where(self) -> str:
        """Return the running module for a message: the innermost whose ``forward`` is running."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            module = frame.f_locals.get("self")
            if frame.f_code.co_name == "forward" and isinstance(module, nn.Module):
                return _in(self.modules.get(module, ""))
            frame = frame.f_back
        return ""


def _beside(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return the FLOPs of one call of a module besides its multiply-accumulates."""
    if isinstance(module, _WEIGHTED):
        return output.numel() if module.bias is not None else 0
    if isinstance(module, nn.BatchNorm2d):
        return 2 * x.numel()
    if isinstance(module, nn.ReLU):
        return x.numel()
    # A pooling window covers (input / output) positions: exact where windows tile the map, as here.
    return _window(module, x, output) * output.numel() if isinstance(module, _POOLS) else 0


def _macs(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return the multiply-accumulates of a layer, by its type and sizes.

    The weight itself is not accessed, because that would compute a parametrized weight again.
    """
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, _CONVOLUTIONS):
        return output.numel() * module.in_channels // module.groups * prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        return x.numel() * module.out_channels // module.groups * prod(module.kernel_size)
    return 0


def _in(module: str) -> str:
    return f" in {module!r}" if module else ""


def _window(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    kernel = getattr(module, "kernel_size", None)
    if isinstance(kernel, int):
        return kernel * kernel
    if isinstance(kernel, tuple):
        return int(kernel[0] * kernel[1])
    return (inputs.shape[-1] * inputs.shape[-2]) // (output.shape[-1] * output.shape[-2])


class _Operations(OperationMode):
    """Counts each ATen operation that is computed."""

    def __init__(self, count: _Count) -> None:
        super().__init__()
        self.count = count

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        self.count.operation(operation, args, result)
        return result


@contextmanager
def _watched(count: _Count) -> Iterator[None]:
    """Report each call of a module to a count, with its input and output."""

    def counted(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object
    ) -> None:
        count.called[module] = None
        x, y = next(tensors_in((*args, *kwargs.values())), None), next(tensors_in([output]), None)
        if x is not None and y is not None:
            count.module(module, x, y, positional=bool(args))

    handles = []
    for module in count.modules:
        if isinstance(module, torch.jit.ScriptModule):
            count.caveats["norms, ReLUs and pools in TorchScript"] = None
        elif isinstance(module, _COUNTED) or module._parameters:
            handles.append(module.register_forward_hook(counted, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
