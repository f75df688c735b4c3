"""A lock for the process-global random generators of PyTorch, Python and numpy.

Building a network and dropout draw from PyTorch's default generators, and a user's network may also
draw from those of Python and numpy. All code that does so runs within ``drawing``, so that
trainings in several threads of one process draw the same numbers as each would alone.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

TURN = RLock()
_idle: "list[np.random.MT19937]" = []  # to be used again, because making one takes a millisecond


@contextmanager
def drawing(seed: int, *, device: "torch.device | None" = None) -> Iterator[None]:
    """Seed the global generators (on a GPU, its own too), and restore their state on exit.

    Only one thread at a time can be inside; it may enter again. The second normal number of a pair,
    which ``numpy.random.randn`` keeps for its next call, is not restored.
    """
    import numpy as np
    import torch
    from numpy.random import mtrand

    # Not torch.random.fork_rng and torch.manual_seed: they go through every type of device, which
    # costs 176 us a step. This costs 6 us, and 29 with those of Python and numpy (the latter is
    # replaced, because copying its state takes hundreds); a step of the smallest networks takes
    # 5,000 us.
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    with TURN:
        states = [generator.get_state() for generator in generators]
        of_python, of_numpy = random.getstate(), mtrand.get_bit_generator()
        own = _idle.pop() if _idle else np.random.MT19937()
        try:
            for generator in generators:
                generator.manual_seed(seed)
            random.seed(seed)
            mtrand.set_bit_generator(own)
            np.random.seed(seed % 2**32)
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            random.setstate(of_python)
            mtrand.set_bit_generator(of_numpy)
            _idle.append(own)


def host_state() -> tuple[object, ...]:
    """Return the state of Python's and numpy's generators, which any draw from them changes."""
    import numpy as np

    _, key, *rest = np.random.get_state()
    return random.getstate(), np.asarray(key).tobytes(), *rest
