"""Deliberately wrong cuts: each differs from the right one in a tensor that matters."""

import random
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutting import KINDS as CUT
from cutting import random_mask
from regrow.surgery import Trace, cut, proof, trace, verify
from regrow.surgery.alive import called, drawn_like, enlivened
from regrow.surgery.mask import Mask
from regrow.surgery.oracle import silence
from regrow.surgery.outputs import difference

Keys = dict[tuple[str, int], Tensor]
KINDS = ("shifted", "swapped", "statistic", "reader", "noise")


def wrongly(kind: str, found: Trace, mask: Mask, *, seed: int) -> "Mutant | None":
    """Return a mutant of a kind, at a random place; None if the network has no place for it."""
    slots = {(s.tensor, s.dim): s for n in mask.kept for s in found.groups[n].slots}
    right = cut.kept_positions(mask, found)
    choice = random.Random(seed)
    if kind == "noise":
        tensors = [t for t, _ in right if not t.endswith(".bias") and ":" not in t]
        return Mutant(kind, (choice.choice(tensors), 0), seed)
    roles = {"statistic": ("norm",), "reader": ("reader",)}.get(kind, ("producer", "reader"))
    places = [
        key
        for key, kept in right.items()
        # Order and choice can be wrong only with two kept positions and a removed one.
        if slots[key].role in roles
        and ":" not in key[0]
        and 1 < len(kept) < len(slots[key].units)
        and (kind != "statistic" or key[0].endswith(("running_mean", "running_var", "weight")))
        and (kind != "reader" or kept.tolist() != list(range(len(kept))))
    ]
    return Mutant(kind, choice.choice(places), seed) if places else None


class Mutant:
    """One wrong cut, which replaces the right one within the proof once it is patched in."""

    def __init__(self, kind: str, place: tuple[str, int], seed: int) -> None:
        self.kind, self.place, self.seed = kind, place, seed

    def __repr__(self) -> str:
        return f"{self.kind} {self.place}"

    def at_work(self, patch: pytest.MonkeyPatch) -> None:
        """Patch the wrong cut in; silencing stays right, and the search for wrong groups is off."""
        patch.setattr(proof, "_wrong", lambda *_: [])
        if self.kind == "noise":
            patch.setattr(proof, "shrink", self._shrink)
        else:
            patch.setattr(cut, "kept_positions", self._positions)

    def touched(self, mask: Mask, trace: Trace) -> Tensor:
        """Return the positions that the mutant keeps in error, or in place of others."""
        right, wrong = (read(mask, trace)[self.place] for read in (POSITIONS, self._positions))
        differ = right != wrong
        return torch.tensor(sorted({*right[differ].tolist(), *wrong[differ].tolist()}))

    def _shrink(self, model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
        small = cut.shrink(model, mask, trace)
        name = self.place[0]
        for other, tensor in (*small.named_parameters(), *small.named_buffers()):
            # A norm that is wrapped with a selection has another name.
            if name in (other, other.replace(".norm.", ".")):
                draw = torch.Generator().manual_seed(self.seed)
                noise = torch.rand(tensor.shape, generator=draw) * tensor.detach().abs().mean()
                with torch.no_grad():
                    tensor += 0.01 * noise
                return small
        raise AssertionError(name)

    def _positions(self, mask: Mask, trace: Trace) -> Keys:
        right = POSITIONS(mask, trace)
        if self.place not in right:  # a cut of other groups alone
            return right
        kept = right[self.place]
        if len(kept) < 2:
            return right
        size = next(
            len(s.units)
            for n in mask.kept
            for s in trace.groups[n].slots
            if (s.tensor, s.dim) == self.place
        )
        gone = sorted(set(range(size)) - set(kept.tolist()))
        wrong = kept.clone()
        if self.kind == "swapped":
            wrong[[0, 1]] = wrong[[1, 0]]
        elif self.kind == "reader":
            wrong = torch.arange(len(kept))
        elif gone:
            wrong[self.seed % len(kept)] = gone[self.seed % len(gone)]
        return {**right, self.place: wrong}


POSITIONS = cut.kept_positions


@dataclass
class Judged:
    """The wrong cuts of a network: how many were made, which got by, what was not cut and why."""

    made: int = 0
    missed: list[str] = field(default_factory=list)
    refused: str = ""  # why no cut, or none of some groups, is proven


def judged(net: nn.Module, shape: Any, *, num: int, seed: int) -> Judged:
    """Prove a right cut, and make so many wrong ones in turn of groups whose cut is proven.

    What ``verify`` compares for the right cut is compared for the wrong ones, until one differs.
    """
    found = trace(net, shape)
    mask = random_mask(found, seed=seed, kinds=(*CUT, "head"))
    if not mask.kept:
        return Judged()
    right = verify(net, mask, found)
    result = Judged(refused="" if right.ok else str(right))
    if right.unproven and right.error <= right.tolerance:
        kept = {name: kept for name, kept in mask.kept.items() if name not in right.unproven}
        mask = replace(mask, kept=kept)
        right = verify(net, mask, found)
    if not right.ok or not right.sensitivity:
        return result
    nets, inputs, _ = proof.networks_to_compare(net, mask, found, right.sensitivity)
    steady = cache(lambda: proof.is_steady(nets[1], inputs[0]))
    for i in range(num):
        mutant = wrongly(KINDS[(seed + i) % len(KINDS)], found, mask, seed=seed + i)
        if mutant is None:
            continue
        result.made += 1
        with pytest.MonkeyPatch.context() as patch:
            mutant.at_work(patch)
            passes = all(proof.compare(net, mask, found, inputs, steady=steady).ok for net in nets)
        if passes and _is_heard(net, mutant, mask, found):
            result.missed.append(repr(mutant))
    return result


def _is_heard(net: nn.Module, mutant: Mutant, mask: Mask, found: Trace) -> bool:
    """Tell whether what a mutant gets wrong affects the output of the silenced network.

    Queries of a single key do not, nor do channels that another group removes, nor an exchange of
    weights that read the same number, as behind pooling to more positions than there are.
    """
    example = drawn_like(found.example, torch.Generator().manual_seed(0))
    quiet = silence(enlivened(net, example), mask, found)
    before = called(quiet, example)
    name, dim = mutant.place
    tensor = dict([*quiet.named_parameters(), *quiet.named_buffers()])[name]
    with torch.no_grad():
        if mutant.kind == "noise":
            tensor.mul_(1 + torch.rand(tensor.shape))
        elif mutant.kind == "swapped":
            kept = POSITIONS(mask, found)[mutant.place][:2]
            tensor.index_copy_(dim, kept.flip(0), tensor.index_select(dim, kept))
        else:
            touched = mutant.touched(mask, found)
            part = tensor.index_select(dim, touched)
            tensor.index_copy_(dim, touched, part * (1 + torch.rand_like(part)))
    return difference(called(quiet, example), before) > 1e-6
