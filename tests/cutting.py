"""Shared by the tests of surgery: networks whose channels all matter, and random masks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.surgery import Kind, Trace, trace, verify
from regrow.surgery.assumptions import Assumptions
from regrow.surgery.mask import Mask

KINDS: tuple[Kind, ...] = ("conv", "linear", "grouped", "stream", "view")


def enliven_(model: nn.Module, shape: Sequence[int]) -> None:
    """Change parameters and running statistics so that every channel affects the output."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.std(correction=0)) < 1e-3:  # zeros, ones, layer scales
                parameter.add_(0.3 * noise(parameter))
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # average over all following batches
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, *shape[1:], generator=generator))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.momentum = 0.1
        norm.running_mean += 0.3 * norm.running_var.sqrt() * noise(norm.running_mean)


def error(model: nn.Module, mask: Mask, trace: Trace) -> float:
    """Return the difference between the cut network and the silenced one.

    Each group's effect on the output is not measured, because that is half of the work.
    """
    return float(verify(model, mask, trace, sensitivity=dict.fromkeys(trace.groups, 1.0)))


def random_mask(
    trace: Trace, *, seed: int = 0, kinds: Sequence[Kind] = KINDS, keep: float = 0.6
) -> Mask:
    """Draw a mask for all groups of the given kinds, each of which keeps at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, group in trace.groups.items():
        if group.kind in kinds:
            drawn = torch.rand(group.size, generator=generator) < keep
            drawn[torch.randint(group.size, (1,), generator=generator)] = True
            kept[name] = drawn
    return Mask(unit="channel", kept=kept)


def half(found: Trace, first: int = 0) -> Mask:
    """Return a mask that keeps every second unit of every group, starting with unit ``first``."""
    kept = {n: torch.arange(g.size) % 2 == first for n, g in found.groups.items() if g.size > 1}
    return Mask(unit="channel", kept=kept)


@contextmanager
def without_trials() -> Iterator[pytest.MonkeyPatch]:
    """Trust the rules of surgery: skip the trials that check their assumptions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Assumptions, "hold", lambda self, _, found: found.follow(self.choices))
        yield patch


def is_caught(net: nn.Module, shape: Sequence[int]) -> bool:
    """Return whether the proof of a cut by half fails, or the cut network does not even run."""
    found = trace(net, torch.randn(*shape))
    assert found.groups
    try:
        return not all(verify(net, half(found, first), found).ok for first in range(2))
    except TraceError:
        return True
