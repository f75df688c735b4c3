"""Latency: how long networks take for a batch on this machine, measured in alternation."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.core.machine import processor
from regrow.core.seeds import seeded
from regrow.surgery.alive import drawn_like
from regrow.surgery.cut import duplicate
from regrow.surgery.tape import call, evaluating

BATCH = 32
WARM_UP, FEWEST, MOST = 2, 9, 200  # rounds
SECONDS = 0.5  # for all rounds together; the fewest are run in any case


def latencies(
    *networks: nn.Module, example: Any, device: str = "cpu", batch: int = BATCH
) -> list[float]:
    """Return the shortest time of each network for a batch in seconds, measured in alternation.

    The shortest, because other load on the machine makes a network slower, never faster.

    The batch is random numbers of the example's shape; networks run in evaluation mode, with as
    many threads as PyTorch uses in this process.
    """
    return [min(times) for times in turns(networks, batched(example, batch), device=device)]


def turns(
    networks: Sequence[nn.Module],
    inputs: Any,
    *,
    device: str = "cpu",
    seconds: float = SECONDS,
    fewest: int = FEWEST,
    warm_up: int = WARM_UP,
) -> list[list[float]]:
    """Return the times of each network in seconds, measured in alternation, round by round.

    After the warm-up rounds, ``fewest`` rounds are run, and more until ``seconds`` have passed, but
    at most ``MOST``.
    """
    x = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    moved = [duplicate(network).to(device) for network in networks]
    rounds: list[list[float]] = [[] for _ in moved]
    until = now(device) + seconds
    for number in range(warm_up + MOST):
        if number >= warm_up + fewest and now(device) > until:
            break
        for network, times in zip(moved, rounds, strict=True):
            with evaluating(network), torch.no_grad():
                began = now(device)
                call(network, x)
                if number >= warm_up:
                    times.append(now(device) - began)
    return rounds


def batched(example: Any, batch: int) -> Any:
    """Return random inputs like an example, as a batch: see ``drawn_like``.

    An input that is a list, such as the images of a detector, repeats its first entry.
    """

    def grown(value: Any) -> Any:
        return value[:1] * batch if isinstance(value, list) else tree_map(repeated, value)

    def repeated(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        return leaf[:1].repeat(batch, *[1] * (leaf.dim() - 1))

    if isinstance(example, Mapping):
        inputs: Any = {name: grown(value) for name, value in example.items()}
    elif isinstance(example, list | tuple):
        inputs = tuple(grown(value) for value in example)
    else:
        inputs = grown(example)
    return drawn_like(inputs, seeded(0, "latency"))


def machine(device: str = "cpu", batch: int = BATCH) -> dict[str, Any]:
    """Return what a latency was measured on, for a record."""
    gpu = device.startswith("cuda")
    cpu = f"{processor()} ({os.cpu_count()} cores)"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else cpu,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "torch": torch.__version__,
    }


def now(device: str) -> float:
    """Return the time of a clock in seconds, after all work queued on a device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
