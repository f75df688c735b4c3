"""Latency: how long networks take for a batch on this machine, compared with each other."""

import os
import platform
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow.surgery.tape import evaluating

BATCH = 32
WARM_UP, FEWEST, MOST = 2, 9, 200  # rounds
SECONDS = 0.5  # for all rounds together, once there are the fewest


def latencies(
    *networks: nn.Module, example: Tensor, device: str = "cpu", batch: int = BATCH
) -> list[float]:
    """Return the least seconds that each of some networks takes for a batch, measured in turns.

    The least, because whatever else a machine does makes a network slower and never faster.

    The batch is random numbers of the example's shape; networks run in evaluation mode, with as
    many threads as PyTorch uses in this process.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *example.shape[1:], generator=generator).to(device)
    moved = [deepcopy(network).to(device) for network in networks]
    seconds: list[list[float]] = [[] for _ in moved]
    until = _now(device) + SECONDS
    for number in range(WARM_UP + MOST):
        if number >= WARM_UP + FEWEST and _now(device) > until:
            break
        for network, taken in zip(moved, seconds, strict=True):
            with evaluating(network), torch.no_grad():
                began = _now(device)
                network(x)
                if number >= WARM_UP:
                    taken.append(_now(device) - began)
    return [min(taken) for taken in seconds]


def machine(device: str = "cpu", batch: int = BATCH) -> dict[str, Any]:
    """Return what a latency was measured on, for a record."""
    gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _processor(),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Name the processor: its model where the system tells, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name} ({os.cpu_count()} cores)"


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
