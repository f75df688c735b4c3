"""The weights, gradients and activations of a network, for criteria."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.choice import Choice
from regrow.core.seeds import seeded
from regrow.data import Dataset, scaling_of
from regrow.errors import ConfigError
from regrow.pruning.examples import Batch, Examples, moved
from regrow.pruning.gradients import (
    EachGradient,
    Measures,
    check_gradients,
    hessian_times_gradient,
    mean_gradients,
    mean_over_examples,
    widened,
)
from regrow.pruning.reconstruct import Keep, contributions, observe
from regrow.pruning.watch import watch
from regrow.surgery import Group, Slot
from regrow.surgery.cut import duplicate
from regrow.surgery.mask import layer_of
from regrow.surgery.tape import call, evaluating
from regrow.tasks import task_of
from regrow.train.objective import Objective, make_objective
from regrow.train.step import normalised

IMAGES = 512
Measured = TypeVar("Measured")
BATCH = 128
Measure = Callable[[Tensor], Tensor]
Reduce = Callable[[Tensor], Tensor]
MeasureGroups = Callable[["Probe", Sequence[Group]], Mapping[str, Tensor]]


def mean_over_map(maps: Tensor) -> Tensor:
    """Average over everything but images and channels: ``[N, channels, ...] -> [N, channels]``."""
    return maps.flatten(2).mean(2) if maps.dim() > 2 else maps


class Probe:
    """The weights, gradients and activations of a network, for criteria.

    Gradients and activations are computed in evaluation mode, on training images drawn by the seed,
    without augmentation, or on the given ``Examples``. Everything returned is a copy, on the CPU;
    the network is not changed.
    ``objective`` is the loss whose gradients are taken: the task's unless another is given.
    ``masks`` are those that the network was trained with; ``example`` is one of its inputs;
    ``left`` are the units of each group that no earlier round removed.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset | Examples | None = None,
        *,
        seed: int = 0,
        num_images: int = IMAGES,
        groups: Mapping[str, Group] | None = None,
        objective: Objective | None = None,
        masks: Mapping[str, Tensor] | None = None,
        example: Any = None,
        left: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._example = example
        self._masks = masks or {}
        self._left = left or {}
        self._measured: dict[Callable[[Probe], Any], Any] = {}
        self._groups = groups or {}  # measured together when one of them is needed
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._dataset = dataset
        self._seed = seed
        self._num_images = num_images
        self._objective = objective
        self._gradients: dict[Objective, dict[str, Tensor]] = {}
        self._together: dict[MeasureGroups, dict[str, Tensor]] = {}
        self._products: dict[float, dict[str, Tensor]] = {}
        self._contributions: dict[str, Tensor] = {}
        self._reads: dict[Measure, dict[str, tuple[Any, int]]] = {}

    def weight(self, name: str) -> Tensor:
        """Return the values of a parameter, or of a buffer (a frozen norm's scale).

        Half precision is returned as float32.
        """
        known = self._parameters if name in self._parameters else dict(self._model.named_buffers())
        return widened(known[name].detach().to("cpu", copy=True))

    def mask(self, name: str) -> Tensor:
        """Return which elements of a parameter the training did not mask, as booleans."""
        whole = torch.ones(self._parameters[name].shape, dtype=torch.bool)
        return self._masks[name].clone() if name in self._masks else whole

    def left(self, group: Group) -> Tensor:
        """Return which units of a group no earlier round removed: ``[units]`` booleans."""
        whole = torch.ones(group.size, dtype=torch.bool)
        return self._left[group.name].flatten().clone() if group.name in self._left else whole

    def network(self) -> nn.Module:
        """Return a copy of the network on the CPU, which may be changed and run in any way."""
        return duplicate(self._model).to("cpu").eval()

    def batches(self) -> list[Batch]:
        """Return the probe's batches on the CPU: normalised images, or other inputs, and targets.

        Other inputs are a tensor, a tuple of several, or a mapping by name.
        """
        return [moved((x, targets), "cpu", copy=True) for x, targets in self._batches()]

    def example(self) -> Any:
        """Return an input of the network on the CPU: the traced example, or the first batch."""
        if self._example is not None:
            return moved(self._example, "cpu", copy=True)
        return self.batches()[0][0]

    def once(self, measure: "Callable[[Probe], Measured]") -> "Measured":
        """Return ``measure(probe)``, computed once for all the groups of a network.

        For criteria that measure the whole network, for example by a custom loss.
        """
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        result: Measured = self._measured[measure]
        return result

    def together(self, group: Group, measure: MeasureGroups) -> Tensor:
        """Return a group's part of ``measure(probe, groups)``, computed once for all groups.

        ``measure`` returns tensors by the names of the groups.
        """
        known = self._together.setdefault(measure, {})
        if group.name not in known:
            groups = self._groups.values() if group.name in self._groups else (group,)
            known.update(measure(self, tuple(groups)))
        return known[group.name].clone()

    def gradient(self, name: str, *, objective: Objective | None = None) -> Tensor:
        """Return the gradient of the mean loss over the probe's images, shaped as the parameter.

        ``objective``: another loss than the task's.
        """
        objective = objective or self._objective or self._own_objective()
        if objective not in self._gradients:
            self.check_gradients()
            self._gradients[objective] = mean_gradients(self._model, self._batches(), objective)
        return self._gradients[objective][name].clone()

    def gradients(self, measure: EachGradient, *, objective: Objective | None = None) -> Measures:
        """Average over the images what ``measure`` returns for the gradients of each one's loss.

        ``measure`` is given the gradients of one image, by parameter, frozen ones too.
        """
        objective = objective or self._objective or self._own_objective()
        self.check_gradients()
        return mean_over_examples(self._model, self._batches(), objective, measure)

    def hessian_gradient(self, name: str, *, temperature: float = 1.0) -> Tensor:
        """Return the Hessian of the mean loss times its gradient, shaped as the parameter.

        The network's outputs are divided by ``temperature``.
        """
        if temperature not in self._products:
            self.check_gradients()
            objective = self._objective or self._own_objective()
            self._products[temperature] = hessian_times_gradient(
                self._model, self._batches(), objective, temperature
            )
        return self._products[temperature][name].clone()

    def check_gradients(self) -> None:
        """Refuse a network that computes with weights of the groups without gradients.

        For criteria that take gradients themselves.
        """
        names = {slot.tensor for group in self._groups.values() for slot in group.slots}
        check_gradients(self._model, self._batches()[0][0], names)

    def activation(self, group: Group, *, reduce: Reduce = mean_over_map) -> Tensor:
        """Return the outputs of a group's units, averaged over the map: ``[images, units]``.

        Taken after the group's first norm if it has one, else after its first producer, before any
        nonlinearity. For a unit of several channels (a group of a convolution) they are added up;
        single weights have no outputs, which is a ``ConfigError``. ``reduce`` replaces the average:
        ``[images, channels, *map] -> [images, channels]``.
        """
        slot = _output_of(group)
        module = self._model.get_submodule(slot.tensor.rpartition(".")[0])
        parts: list[Tensor] = []

        def keep(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            x = inputs[0] if inputs else output  # a module may be called with keywords alone
            parts.append(reduce(_channels_first(module, x, output)).cpu())

        batches = self._batches()
        handle = module.register_forward_hook(keep)
        try:
            with evaluating(self._model), torch.no_grad():
                for x, _ in batches:
                    call(self._model, x)
        finally:
            handle.remove()
        values = torch.cat(parts).float()  # [images, channels of the module]
        if values.shape[1] != len(slot.units):
            raise ConfigError(
                f"Only channels have activations, and {group.name!r} is a group of single weights. "
                "Use unit 'channel', or a criterion that uses weights or gradients."
            )
        owned = slot.units >= 0
        result = torch.zeros(len(values), group.size)
        return result.index_add_(1, slot.units[owned], values[:, owned])

    def read(self, group: Group, measure: Measure) -> Tensor:
        """Return the mean of ``measure`` over each unit's activations where layers read them.

        That is after nonlinearities and pooling. The mean is over images and positions (or tokens),
        the channels of a unit that has several (attention heads, flattened maps), and all layers
        that read it. ``measure`` is elementwise, such as ``torch.abs``: ``[samples, channels]`` to
        the same shape.
        """
        total, num = torch.zeros(group.size), torch.zeros(group.size)
        for slot in group.readers():
            found, count = self._read(slot.tensor, measure, group)
            if found.shape != slot.units.shape:
                continue  # a grouped convolution, whose weight has no dimension of all inputs
            mine = slot.units >= 0
            total.index_add_(0, slot.units[mine], found[mine])
            num.index_add_(0, slot.units[mine], torch.full((int(mine.sum()),), float(count)))
        if not bool(num.all()):
            raise ConfigError(
                f"No layer reads the units of {group.name!r} ({group.kind}) directly, so they "
                "have no activations. Use a criterion that uses weights or gradients, or leave "
                f"{group.kind!r} out of the method's scope."
            )
        return total / num

    def input_norms(self, name: str) -> Tensor:
        """Return the L2 norm over all samples of each input channel of a weight.

        It broadcasts over the weight; in a convolution it is the same at all kernel positions.
        """
        total, _ = self._read(name, torch.square)
        return along_inputs(total.sqrt(), layer_of(name, self._model), self._parameters[name])

    def gram(self, name: str, *, model: nn.Module | None = None) -> Tensor:
        """Return the mean of x x^T over a linear layer's inputs x, ``[channels, channels]``.

        In float64. ``model``: another network with the same layers, measured instead of this one.
        """
        parts: list[Tensor] = []
        num = 0

        def see(_name: str, rows: Tensor) -> None:
            nonlocal num
            product = (rows.double().T @ rows.double()).cpu()
            num += len(rows)
            parts[:] = [parts[0] + product] if parts else [product]

        watch(model or self._model, [name], (x for x, _ in self._batches()), see)
        if not parts:
            raise ConfigError(_unread(name))
        return parts[0] / num

    def _read(self, name: str, measure: Measure, group: Group | None = None) -> tuple[Tensor, int]:
        """Sum ``measure`` over the inputs of a weight: ``[channels]``, and the number of rows.

        Measured in one run for the weights that read the groups (or produce those that none reads).
        """
        known = self._reads.setdefault(measure, {})
        if name not in known:
            groups = self._groups.values() if group is None or group.name in self._groups else ()
            names = {name, *(s.tensor for g in groups for s in (g.readers() or g.producers()))}
            names &= self._parameters.keys()

            def see(weight: str, rows: Tensor) -> None:
                total, num = known.get(weight, (0.0, 0))
                part = measure(widened(rows)).sum(0, dtype=torch.float64).cpu()
                if num and total.shape != part.shape:  # also an embedding, whose ids do not count
                    total, num = 0.0, 0
                known[weight] = (total + part, num + len(rows))

            def see_ids(weight: str, ids: Tensor) -> None:
                # An embedding multiplies one-hot rows: 1 at an id and 0 elsewhere.
                counts = torch.bincount(ids.cpu(), minlength=len(self._parameters[weight])).double()
                zero, one = measure(torch.tensor([0.0, 1.0])).tolist()
                total, num = known.get(weight, (0.0, 0))
                if num and total.shape != counts.shape:  # also a linear layer, whose inputs count
                    return
                part = counts * one + (len(ids) - counts) * zero
                known[weight] = (total + part, num + len(ids))

            inputs = (x for x, _ in self._batches())
            watch(self._model, names, inputs, see, see_ids=see_ids)
        if name not in known:
            raise ConfigError(_unread(name))
        total, num = known[name]
        return total.float(), num

    def contributions(self, group: Group) -> Tensor:
        """Return each unit's contribution to outputs of the layers that read it.

        ``[samples, units]``: a row sums to one output, without its bias, at one position of one
        image.
        """
        if group.name not in self._contributions:
            together = self._groups.values() if group.name in self._groups else [group]
            images = (x for x, _ in self._batches())
            measured = contributions(self._model, together, images, seed=self._seed)
            self._contributions.update(measured)
        return self._contributions[group.name].clone()

    def observe(
        self, readers: Iterable[str], keep: Keep, *, model: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """Sample layers by the names of their weights: see ``reconstruct.observe``.

        ``model``: another network with the same layers (such as the cut one), sampled on the same
        images at the same positions.
        """
        images = (x for x, _ in self._batches())
        return observe(model or self._model, readers, images, keep=keep, seed=self._seed)

    def random(self, group: Group) -> Tensor:
        """Return uniform random numbers ``[units]``, from the seed and the group's name alone."""
        return torch.rand(group.size, generator=seeded(self._seed, "random-score", group.name))

    def _data(self) -> Dataset | Examples:
        if self._dataset is None:
            raise ConfigError(
                "This criterion uses gradients or activations, so it needs data: give "
                "select(..., dataset=...), a data set or batches; on the command line, --data; "
                "in a study with a 'train' function, 'examples'."
            )
        return self._dataset

    def _batches(self) -> list[Batch]:
        data = self._data()
        device = next(iter(self._parameters.values())).device
        if isinstance(data, Examples):
            return [(moved(x, device), moved(targets, device)) for x, targets in data.batches]
        order = torch.randperm(len(data.train), generator=seeded(self._seed, "probe"))
        parts = torch.split(order[: self._num_images], BATCH)
        factors = scaling_of(data, device)
        return [
            (
                _plain(normalised(data.train.batch(part).to(device), factors, channels_last=False)),
                data.train.labels[part].to(device),
            )
            for part in parts
        ]

    def _own_objective(self) -> Objective:
        """Return the loss of the data set's task, or of the examples."""
        data = self._data()
        if isinstance(data, Examples):
            return data.objective
        return make_objective(Choice(task_of(data).objective))


def _plain(inputs: Any) -> Any:
    """Return inputs by name as a dict, as a network is called with; others unchanged."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _output_of(group: Group) -> Slot:
    """Return the slot whose layer outputs a group's units: its first norm, else a producer.

    Parameters outside of layers (a class token) come last, because their output cannot be observed.
    """
    norms = [
        slot
        for slot in group.slots
        if slot.role == "norm" and slot.tensor.rpartition(".")[0] in group.norms
    ]
    layers = [slot for slot in group.producers() if slot.tensor.rpartition(".")[2] == "weight"]
    return (*norms, *layers, *group.producers())[0]


# Layers that output [N, channels, *map]; others, including custom norms, put channels last.
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)


def _channels_first(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """Return a module's output for ``x`` as ``[N, channels, *map]``."""
    channels = 1 if isinstance(module, _CHANNELS_FIRST) else -1
    if isinstance(module, nn.LayerNorm):
        # A subclass with its own forward (torchvision's LayerNorm2d) may keep channels first.
        shape = module.normalized_shape
        channels = -len(shape)
        if type(module).forward is not nn.LayerNorm.forward and output.dim() == 4:
            last = x.shape[channels:] == shape and torch.allclose(
                output, F.layer_norm(x, shape, module.weight, module.bias, module.eps), atol=1e-4
            )
            channels = channels if last else 1
    return output.movedim(channels, 1)


def _unread(name: str) -> str:
    return (
        f"Cannot observe the inputs of {name!r}: the network never multiplies by it directly. Use "
        "a criterion that uses weights alone, or leave the layer out of the method's scope."
    )


def along_inputs(values: Tensor, layer: nn.Module, weight: Tensor) -> Tensor:
    """Reshape one value per input channel of a layer so that it broadcasts over the weight."""
    if not isinstance(layer, nn.modules.conv._ConvNd):
        dim = next(d for d in reversed(range(weight.dim())) if weight.shape[d] == len(values))
        return values.view([-1 if d == dim else 1 for d in range(weight.dim())])
    kernel = [1] * (weight.dim() - 2)
    if layer.transposed:
        return values.view(-1, 1, *kernel)
    each = values.view(layer.groups, -1)  # of the inputs of each group
    return each.repeat_interleave(weight.shape[0] // layer.groups, 0).view(
        *weight.shape[:1], -1, *kernel
    )
