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
    hessian_times_gradient,
    mean_gradients,
    mean_over_examples,
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

    Gradients and activations are taken in evaluation mode, on training images drawn by the seed,
    without augmentation, or on ``Examples`` as they are. Everything returned is a copy, on the
    CPU; the network is not changed.
    ``objective`` is the loss whose gradients are taken: the task's unless another is given.
    ``masks`` are those that the network was trained with; ``example`` is one of its inputs.
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
    ) -> None:
        self._model = model
        self._example = example
        self._masks = masks or {}
        self._measured: dict[Callable[[Probe], Any], Any] = {}
        self._groups = groups or {}  # measured together when one of them is asked for
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
        """Return the values of a parameter, or of a buffer (a frozen norm's scale)."""
        known = self._parameters if name in self._parameters else dict(self._model.named_buffers())
        return known[name].detach().to("cpu", copy=True)

    def mask(self, name: str) -> Tensor:
        """Return which numbers of a parameter its training did not mask, as booleans."""
        whole = torch.ones(self._parameters[name].shape, dtype=torch.bool)
        return self._masks[name].clone() if name in self._masks else whole

    def network(self) -> nn.Module:
        """Return a copy of the network on the CPU, which may be changed and run in any way."""
        return duplicate(self._model).to("cpu").eval()

    def batches(self) -> list[Batch]:
        """Return the probe's images as a network reads them, with their targets, on the CPU.

        Other inputs are a tensor, a tuple of several, or a mapping by name.
        """
        return [(moved(x, "cpu"), moved(targets, "cpu")) for x, targets in self._batches()]

    def example(self) -> Any:
        """Return an input of the network on the CPU: what it was traced with, or of the data."""
        if self._example is not None:
            return moved(self._example, "cpu")
        return self.batches()[0][0]

    def once(self, measure: "Callable[[Probe], Measured]") -> "Measured":
        """Return ``measure(probe)``, computed once for all the groups of a network.

        For criteria that measure the whole network, such as by a loss of their own.
        """
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        result: Measured = self._measured[measure]
        return result

    def together(self, group: Group, measure: MeasureGroups) -> Tensor:
        """Return a group's part of ``measure(probe, groups)``, computed once for all groups.

        ``measure`` returns a tensor for each group by its name.
        """
        known = self._together.setdefault(measure, {})
        if group.name not in known:
            groups = self._groups.values() if group.name in self._groups else (group,)
            known.update(measure(self, tuple(groups)))
        return known[group.name].clone()

    def gradient(self, name: str, *, objective: Objective | None = None) -> Tensor:
        """Return the gradient of the mean loss over the probe's images, shaped as the parameter.

        Of another loss than the task's where a criterion gives its own ``objective``.
        """
        objective = objective or self._objective or self._own_objective()
        if objective not in self._gradients:
            self._gradients[objective] = mean_gradients(self._model, self._batches(), objective)
        return self._gradients[objective][name].clone()

    def gradients(self, measure: EachGradient, *, objective: Objective | None = None) -> Measures:
        """Average what is measured on the gradients of each image's own loss, one at a time.

        ``measure`` is given the gradients by parameter, of all parameters that learn.
        """
        objective = objective or self._objective or self._own_objective()
        return mean_over_examples(self._model, self._batches(), objective, measure)

    def hessian_gradient(self, name: str, *, temperature: float = 1.0) -> Tensor:
        """Return the Hessian of the mean loss times its gradient, shaped as the parameter.

        ``temperature``: what the network's outputs are divided by.
        """
        if temperature not in self._products:
            objective = self._objective or self._own_objective()
            self._products[temperature] = hessian_times_gradient(
                self._model, self._batches(), objective, temperature
            )
        return self._products[temperature][name].clone()

    def activation(self, group: Group, *, reduce: Reduce = mean_over_map) -> Tensor:
        """Return what a group's channels put out, ``[images, units]``: the mean over the map.

        Taken after the group's first norm where it has one, else from its first producer, before
        any nonlinearity. A unit of several channels (a group of a convolution) puts out their sum,
        single weights nothing of their own: a ``ConfigError``. ``reduce`` makes something else of
        the maps: ``[images, channels, *map] -> [images, channels]``.
        """
        slot = _output_of(group)
        module = self._model.get_submodule(slot.tensor.rpartition(".")[0])
        parts: list[Tensor] = []

        def keep(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            x = inputs[0] if inputs else output  # a module may be called by name
            parts.append(reduce(_channels_first(module, x, output)).cpu())

        batches = self._batches()
        handle = module.register_forward_hook(keep)
        try:
            with evaluating(self._model), torch.no_grad():
                for x, _ in batches:
                    call(self._model, x)
        finally:
            handle.remove()
        values = torch.cat(parts)  # [images, channels of the module]
        if values.shape[1] != len(slot.units):
            raise ConfigError(
                f"Activations score channels, and {group.name!r} is a group of single weights. Use "
                "unit 'channel', or a criterion of weights and gradients."
            )
        owned = slot.units >= 0
        result = torch.zeros(len(values), group.size)
        return result.index_add_(1, slot.units[owned], values[:, owned])

    def read(self, group: Group, measure: Measure) -> Tensor:
        """Return the mean of ``measure`` over the values of each unit where they are read.

        That is after nonlinearities and pooling, over images and places (or tokens), over the
        channels of a unit that has several (attention heads, flattened maps), and over all layers
        that read it. ``measure`` is elementwise, such as ``torch.abs``: ``[samples, channels]`` to
        the same shape.
        """
        total, num = torch.zeros(group.size), torch.zeros(group.size)
        for slot in group.readers():
            found, count = self._read(slot.tensor, measure, group)
            if found.shape != slot.units.shape:
                continue  # of a grouped convolution, whose weight has no dimension of all inputs
            mine = slot.units >= 0
            total.index_add_(0, slot.units[mine], found[mine])
            num.index_add_(0, slot.units[mine], torch.full((int(mine.sum()),), float(count)))
        if not bool(num.all()):
            raise ConfigError(
                f"No layer reads the units of {group.name!r} ({group.kind}) as they are, so they "
                "have no activations. Take a criterion of weights or gradients, or leave "
                f"{group.kind!r} out of the method's scope."
            )
        return total / num

    def input_norms(self, name: str) -> Tensor:
        """Return the L2 norm of each channel that a weight reads, over all samples.

        Shaped so that it multiplies the weight, of a convolution alike at all places of a kernel.
        """
        total, _ = self._read(name, torch.square)
        return along_inputs(total.sqrt(), layer_of(name, self._model), self._parameters[name])

    def gram(self, name: str, *, model: nn.Module | None = None) -> Tensor:
        """Return the mean of x x^T over the rows x that a linear layer's weight reads, in float64.

        ``[channels, channels]``. Of another network with these layers where ``model`` is given.
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
        """Sum ``measure`` over what a weight reads: ``[channels]``, and the number of rows.

        Measured at once for the weights that read (or are) any of the groups.
        """
        known = self._reads.setdefault(measure, {})
        if name not in known:
            groups = self._groups.values() if group is None or group.name in self._groups else ()
            names = {name, *(s.tensor for g in groups for s in (g.readers() or g.producers()))}
            names &= self._parameters.keys()

            def see(weight: str, rows: Tensor) -> None:
                total, num = known.get(weight, (0.0, 0))
                part = measure(rows).sum(0, dtype=torch.float64).cpu()
                if num and total.shape != part.shape:  # a table that is looked up as well
                    total, num = 0.0, 0
                known[weight] = (total + part, num + len(rows))

            def see_ids(weight: str, ids: Tensor) -> None:
                # A table multiplies rows that are 1 at an id and 0 elsewhere.
                counts = torch.bincount(ids.cpu(), minlength=len(self._parameters[weight])).double()
                zero, one = measure(torch.tensor([0.0, 1.0])).tolist()
                total, num = known.get(weight, (0.0, 0))
                if num and total.shape != counts.shape:  # a product's weight as well, which counts
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
        """Return what each unit adds to outputs of the layers that read it: ``[samples, units]``.

        A row sums to one output, without its bias, at one place of one image.
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

        Another network of this one's layers (one that was cut) is sampled on the same images and at
        the same places.
        """
        images = (x for x, _ in self._batches())
        return observe(model or self._model, readers, images, keep=keep, seed=self._seed)

    def random(self, group: Group) -> Tensor:
        """Return uniform numbers ``[units]`` that depend on the seed and the group's name alone."""
        return torch.rand(group.size, generator=seeded(self._seed, "random-score", group.name))

    def _data(self) -> Dataset | Examples:
        if self._dataset is None:
            raise ConfigError(
                "This criterion looks at gradients or activations, so it needs data: give "
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
    """Return inputs by name as an ordinary mapping, which a network is called with."""
    return dict(inputs) if isinstance(inputs, Mapping) else inputs


def _output_of(group: Group) -> Slot:
    """Return where a group's units lie in the output of its first norm, or of a producer.

    A parameter that is no layer's (a class token) puts out nothing that could be seen.
    """
    norms = [
        slot
        for slot in group.slots
        if slot.role == "norm" and slot.tensor.rpartition(".")[0] in group.norms
    ]
    layers = [slot for slot in group.producers() if slot.tensor.rpartition(".")[2] == "weight"]
    return (*norms, *layers, *group.producers())[0]


# Layers that write [N, channels, *map]; others, norms of one's own too, put channels last.
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)


def _channels_first(module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """Write what a module makes of ``x`` as ``[N, channels, *map]``."""
    channels = 1 if isinstance(module, _CHANNELS_FIRST) else -1
    if isinstance(module, nn.LayerNorm):
        # One of maps with a forward of its own (torchvision's LayerNorm2d) may leave them in front.
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
        f"Cannot see what {name!r} reads: the network never multiplies by it as it is. Use a "
        "criterion that looks at weights alone, or leave the layer out of the method's scope."
    )


def along_inputs(values: Tensor, layer: nn.Module, weight: Tensor) -> Tensor:
    """Lay a value for each channel that a layer reads along its weight, so that they multiply."""
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
