"""A lock for PyTorch's process-global random generators.

The default random generators are of that kind: building a network and dropout draw from them. Who
draws does so within ``drawing``, so that trainings in several threads of one process find the
numbers that each of them would find alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TURN = RLock()


@contextmanager
def drawing(seed: int, *, device: "torch.device | None" = None) -> Iterator[None]:
    """Start the default generators of the CPU (and of a GPU) from a seed, and put them back after.

    One thread at a time is inside; it may enter again.
    """
    import torch

    # Not torch.random.fork_rng and torch.manual_seed: they ask every kind of device, which costs
    # 176 us a step; this costs 4, where a step of the smallest networks takes 5,000.
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with TURN:
        states = [generator.get_state() for generator in generators]
        try:
            for generator in generators:
                generator.manual_seed(seed)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
