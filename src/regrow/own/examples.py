"""The examples on which a criterion evaluates a user's own network."""

from collections.abc import Sequence

import torch
from torch import nn

from regrow.data import Dataset, DataSpec, load
from regrow.errors import ConfigError
from regrow.models.inputs import Inputs
from regrow.pruning.examples import check_fit


def spec_of(name: str, inputs: Inputs) -> DataSpec:
    """Return the spec of a data set, with images in the size of a network's input."""
    shape = inputs.inputs[0].shape
    return DataSpec(name, size=shape[-1] if len(shape) == 4 else None)


def read_examples(spec: DataSpec, inputs: Inputs, network: nn.Module, *, where: str) -> Dataset:
    """Read a data set; raise ``ConfigError`` if its examples do not fit the network."""
    shape, dataset = inputs.inputs[0].shape, load(spec)
    if dataset.inputs is None:
        found = tuple(dataset.train.batch(torch.tensor([0])).shape[1:])
        if found != shape[1:]:
            raise ConfigError(
                f"{where}: its examples have the shape {_sizes(found)}, and the network "
                f"takes {_sizes(shape[1:])} each. Give data, or an --input, that fit."
            )
    check_fit(dataset, network, where=where)
    return dataset


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "of one number"
