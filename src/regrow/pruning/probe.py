"""The weights, gradients and activations of a network, for criteria."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regrow.core.choice import Choice
from regrow.core.seeds import seeded
from regrow.data import Dataset, scaling_of
from regrow.errors import ConfigError
from regrow.pruning.reconstruct import Keep, contributions, observe
from regrow.surgery import Group, Slot
from regrow.surgery.cut import duplicate
from regrow.surgery.tape import evaluating
from regrow.tasks import task_of
from regrow.train.objective import Objective, make_objective
from regrow.train.safe_convolutions import safe_convolutions
from regrow.train.step import normalised

IMAGES = 512
Measured = TypeVar("Measured")
BATCH = 128


class Probe:
    """The weights, gradients and activations of a network, for criteria.

    Gradients and activations are taken in evaluation mode, on training images drawn by the seed,
    without augmentation. All that is returned is a copy, on the CPU; the network stays as it is.
    ``objective`` is the loss whose gradients are taken: the task's unless another is given.
    ``masks`` are those that the network was trained under.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset | None = None,
        *,
        seed: int = 0,
        num_images: int = IMAGES,
        groups: Mapping[str, Group] | None = None,
        objective: Objective | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._masks = masks or {}
        self._measured: dict[Callable[[Probe], Any], Any] = {}
        self._groups = groups or {}  # measured together when one of them is asked for
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._dataset = dataset
        self._seed = seed
        self._num_images = num_images
        self._objective = objective
        self._gradients: dict[Objective, dict[str, Tensor]] = {}
        self._contributions: dict[str, Tensor] = {}

    def weight(self, name: str) -> Tensor:
        """Return a parameter's values."""
        return self._parameters[name].detach().to("cpu", copy=True)

    def mask(self, name: str) -> Tensor:
        """Return which numbers of a parameter its training did not mask, as booleans."""
        whole = torch.ones(self._parameters[name].shape, dtype=torch.bool)
        return self._masks[name].clone() if name in self._masks else whole

    def network(self) -> nn.Module:
        """Return a copy of the network on the CPU, which may be changed and run in any way."""
        return duplicate(self._model).to("cpu").eval()

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the probe's images as a network reads them, with their targets, on the CPU."""
        return [(x.to("cpu"), targets.to("cpu")) for x, targets in self._batches()]

    def once(self, measure: "Callable[[Probe], Measured]") -> "Measured":
        """Return ``measure(probe)``, computed once for all the groups of a network.

        For criteria that measure the whole network, such as by a loss of their own.
        """
        if measure not in self._measured:
            self._measured[measure] = measure(self)
        result: Measured = self._measured[measure]
        return result

    def gradient(self, name: str, *, objective: Objective | None = None) -> Tensor:
        """Return the gradient of the mean loss over the probe's images, shaped as the parameter.

        Of another loss than the task's where a criterion gives its own ``objective``.
        """
        objective = objective or self._objective or self._own_objective()
        if objective not in self._gradients:
            self._gradients[objective] = self._measure_gradients(objective)
        return self._gradients[objective][name].clone()

    def activation(self, group: Group) -> Tensor:
        """Return what a group's channels put out, ``[images, units]``: the mean over the map.

        Taken after the group's first norm where it has one, else from its first producer, before
        any nonlinearity. A unit of several channels (a group of a convolution) puts out their sum,
        single weights nothing of their own: a ``ConfigError``.
        """
        slot = _output_of(group)
        module = self._model.get_submodule(slot.tensor.rpartition(".")[0])
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(_mean_over_map(module, output).cpu())

        batches = self._batches()
        handle = module.register_forward_hook(keep)
        try:
            with evaluating(self._model), torch.no_grad():
                for x, _ in batches:
                    self._model(x)
        finally:
            handle.remove()
        values = torch.cat(found)  # [images, channels of the module]
        if values.shape[1] != len(slot.units):
            raise ConfigError(
                f"Activations score channels, and {group.name!r} is a group of single weights. Use "
                "unit 'channel', or a criterion of weights and gradients."
            )
        mine = slot.units >= 0
        result = torch.zeros(len(values), group.size)
        return result.index_add_(1, slot.units[mine], values[:, mine])

    def contributions(self, group: Group) -> Tensor:
        """Return what each unit adds to outputs of the layers that read it: ``[samples, units]``.

        A row sums to one output, without its bias, at one place of one image.
        """
        if group.name not in self._contributions:
            together = self._groups.values() if group.name in self._groups else [group]
            images = (x for x, _ in self._batches())
            found = contributions(self._model, together, images, seed=self._seed)
            self._contributions.update(found)
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

    def _data(self) -> Dataset:
        if self._dataset is None:
            raise ConfigError(
                "This criterion looks at gradients or activations, so it needs images: give "
                "select(..., dataset=...)."
            )
        return self._dataset

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        data = self._data()
        device = next(iter(self._parameters.values())).device
        order = torch.randperm(len(data.train), generator=seeded(self._seed, "probe"))
        parts = torch.split(order[: self._num_images], BATCH)
        factors = scaling_of(data, device)
        return [
            (
                normalised(data.train.batch(part).to(device), factors, channels_last=False),
                data.train.labels[part].to(device),
            )
            for part in parts
        ]

    def _own_objective(self) -> Objective:
        """Return the loss of the data set's task."""
        return make_objective(Choice(task_of(self._data()).objective))

    def _measure_gradients(self, objective: Objective) -> dict[str, Tensor]:
        total = {name: torch.zeros(p.shape) for name, p in self._parameters.items()}
        learnt = {name: p for name, p in self._parameters.items() if p.requires_grad}
        batches = self._batches()
        count = sum(objective.count(targets) for _, targets in batches)
        with evaluating(self._model), torch.enable_grad():
            for x, targets in batches:
                with safe_convolutions():
                    outputs = self._model(x)
                loss = objective.total(outputs, targets) / count
                parts = torch.autograd.grad(loss, tuple(learnt.values()), allow_unused=True)
                for name, part in zip(learnt, parts, strict=True):
                    if part is not None:
                        total[name] += part.cpu()
        return total


def _output_of(group: Group) -> Slot:
    """Return where a group's units lie in the output of its first norm, or of a producer."""
    norms = [
        slot
        for slot in group.slots
        if slot.role == "norm" and slot.tensor.rpartition(".")[0] in group.norms
    ]
    return (*norms, *group.producers())[0]


def _mean_over_map(module: nn.Module, output: Tensor) -> Tensor:
    """Average over everything but images and channels: ``[N, ...] -> [N, channels]``."""
    channels = 1
    if isinstance(module, nn.LayerNorm):
        # One of maps with a forward of its own (torchvision's LayerNorm2d) leaves them in front.
        own = type(module).forward is not nn.LayerNorm.forward and output.dim() == 4
        channels = 1 if own else -len(module.normalized_shape)
    elif isinstance(module, nn.Linear):
        channels = -1
    return output.movedim(channels, 1).flatten(2).mean(2) if output.dim() > 2 else output
