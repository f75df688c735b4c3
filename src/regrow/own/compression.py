"""Cut a network to a cost: choose, shrink, prove, measure, and write the result to a folder."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from torch import nn

from regrow.core.machine import version_of
from regrow.cost import measure
from regrow.cost.latency import machine
from regrow.data import Dataset
from regrow.errors import ConfigError, RegrowError, TraceError
from regrow.models.inputs import Inputs, inputs_of
from regrow.models.origins import ModelOrigin
from regrow.own.card import BATCHES, Card, measure_speed
from regrow.own.exports import CLOSE, EXPORTS, largest_gap
from regrow.own.new_folder import new_folder
from regrow.pruning.costs import CostShare
from regrow.pruning.dry_run import saying_where
from regrow.pruning.examples import Loss
from regrow.pruning.method import Scope, checked_sparsity, general_method
from regrow.pruning.select import select
from regrow.surgery import Proof, Trace, shrink, trace, verify
from regrow.surgery.alive import called
from regrow.surgery.architecture import Architecture, load, save
from regrow.surgery.fold import fold
from regrow.surgery.mask import Mask
from regrow.surgery.taken import check_names, check_numbers

CARD, PAGE = "card.json", "card.md"


@dataclass(frozen=True, eq=False, kw_only=True)
class Compressed:
    """A pruned network, with its mask, the trace of the unpruned one, the proof and the card.

    ``print`` shows the costs before and after, and the proof.
    """

    network: nn.Module
    mask: Mask
    trace: Trace
    proof: Proof
    card: Card
    architecture: Architecture | None = None  # None: the network's origin was not given

    def __str__(self) -> str:
        return str(self.card)

    def save(self, folder: str | Path, *, exports: Sequence[str] = ()) -> Card:
        """Write the network and its card to a new folder, completely or not at all.

        Returns the card, including the exports. An export that fails is left out, and raised when
        the network is written.

        Args:
            folder: must not exist.
            exports: any of ``onnx`` and ``pt2``; each file is compared with the network.

        Raises:
            ConfigError: the folder exists or cannot be written, or an extra is missing.
            TraceError: the written network or an export computes something else.
        """
        if self.architecture is None:
            raise ConfigError(
                "It is not known how this network is built, so it cannot be saved. Give "
                "compress(..., origin='package.module:build'), and its arguments."
            )
        with new_folder(folder) as scratch:
            save(scratch, self.network, self.architecture)
            self._check_reading(scratch)
            exported, failures = self._export(scratch, exports)
            card = replace(self.card, exports=exported)
            text = json.dumps(card.to_json(), indent=1, allow_nan=False)
            (scratch / CARD).write_text(f"{text}\n", encoding="utf-8")
            (scratch / PAGE).write_text(card.to_markdown(), encoding="utf-8")
        if failures:
            kept = f"'{folder}' has the pruned network and everything else."
            raise type(failures[0])(" ".join([*map(str, failures), kept]))
        return card

    def _export(
        self, folder: Path, formats: Sequence[str]
    ) -> tuple[dict[str, str], list[RegrowError]]:
        """Write exports; return each file's comparison with the network, and what failed."""
        exported: dict[str, str] = {}
        failures: list[RegrowError] = []
        for name in formats:
            file = folder / f"model.{name}"
            try:
                exported[file.name] = EXPORTS[name](self.network, self.trace.example, file)
            except (ConfigError, TraceError) as error:
                failures.append(error)
                for partial in folder.glob(f"{file.name}*"):  # of weights, too
                    partial.unlink()
        return exported, failures

    def _check_reading(self, folder: Path) -> None:
        """Load the written network and compare its outputs; raise ``TraceError`` if they differ."""
        assert self.architecture is not None
        model = self.architecture.model
        by_code = isinstance(model, ModelOrigin) and model.kind == "code"
        again = load(folder, code=model.text if by_code else None)  # type: ignore[union-attr]
        gap = largest_gap(
            called(again, self.trace.example), called(self.network, self.trace.example)
        )
        if not gap <= CLOSE:
            raise TraceError(
                f"The network that is rebuilt from {model!r} computes other outputs than the "
                f"one that was cut (off by {gap:.1e}): they depend on something besides its "
                "arguments and weights. Make that an argument, or a buffer."
            )


def compress(
    network: nn.Module,
    example: Any,
    *,
    criterion: str = "l1-norm",
    allocation: str = "uniform",
    scope: Scope | Sequence[Scope] = "all",
    keep: Sequence[str] = (),
    multiple_of: int = 1,
    rounds: int = 1,
    dataset: Dataset | Iterable[Any] | None = None,
    loss: Loss | None = None,
    origin: ModelOrigin | str | None = None,
    weights: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    batches: Sequence[int] = BATCHES,
    on_step: Callable[[str], None] = lambda step: None,
    **amount: float,
) -> Compressed:
    """Cut a network to a share of a cost (``macs=0.5``), prove the cut, and measure it.

    Args:
        network, example: any network, which is not changed, and its input: a tensor, its shape,
            several inputs, or their text form (``"1x3x224x224"``).
        criterion, allocation, scope, rounds, dataset, loss, multiple_of, seed: as for ``select``.
        keep: names of modules that must not be pruned.
        origin: how the network is built, so that it can be saved: see ``ModelOrigin``.
        weights: where its weights come from, for the card.
        device, batches: where it is measured, and with which batch sizes (none: not at all).
        on_step: called with a description of each step, because large networks take minutes.
        amount: one of ``macs``, ``parameters`` and ``latency``, the largest share that may remain,
            or ``sparsity``, the share of the units to remove.

    Raises:
        TraceError: nothing can be cut, or the cut fails the correctness check.
        ConfigError: an argument is invalid, or the cost cannot be reached.
    """
    _check(network, amount)
    inputs = inputs_of(example)
    method = general_method(criterion, scope=scope, allocation=allocation)
    given, network = network, _folded(network, on_step)
    on_step("Tracing the channels")
    traced = _traced(network, inputs.example() if _is_text(example) else example, keep)
    options: dict[str, Any] = {"rounds": rounds, "multiple_of": multiple_of, **amount}
    on_step("Choosing the units to keep")
    options |= {"dataset": dataset, "loss": loss, "seed": seed, "device": device}
    with saying_where(method):
        mask = select(network, traced, method, **options)
    _refuse_nothing(mask, amount, multiple_of=multiple_of)
    settings = {"criterion": method.criterion, "allocation": allocation, **amount}
    settings |= {name: options[name] for name in ("rounds", "multiple_of") if options[name] > 1}
    model_origin = ModelOrigin(origin) if isinstance(origin, str) else origin
    cut = _cut(network, mask, traced, batches=batches, device=device, on_step=on_step)
    card = replace(cut.card, inputs=str(inputs), asked=settings, weights=weights)
    if model_origin is None:
        return replace(cut, card=card)
    kept: dict[str, Any] = {"keep": tuple(keep), "folded": network is not given}
    architecture = Architecture(model=model_origin, shape=inputs, cuts=(mask,), **kept)
    return replace(cut, card=replace(card, origin=model_origin.text), architecture=architecture)


def _check(network: object, amount: Mapping[str, float]) -> None:
    check_numbers(network)
    if len(amount) != 1:
        raise ConfigError(
            "compress takes one of macs, parameters, latency and sparsity. Got "
            f"{' and '.join(amount) or 'none'}."
        )
    check_amount(amount)


def check_amount(amount: Mapping[str, float]) -> None:
    """Refuse an amount that is not valid for any network."""
    for name, value in amount.items():
        if name == "sparsity":
            checked_sparsity(value)
        else:
            CostShare(name, value)


def _folded(network: nn.Module, on_step: Callable[[str], None]) -> nn.Module:
    """Fold weight and spectral norms into plain weights, if there are any, and report that."""
    folded = fold(network)
    if folded is not network:
        on_step("Folding weight or spectral norms into plain weights")
    return folded


def _traced(network: nn.Module, example: Any, keep: Sequence[str]) -> Trace:
    check_names(network, example)
    return trace(network, example, keep=keep)


def _is_text(example: Any) -> bool:
    return isinstance(example, str | Inputs)


def _refuse_nothing(mask: Mask, amount: Mapping[str, float], *, multiple_of: int) -> None:
    if mask.num_kept == mask.num_units:
        raise ConfigError(
            f"Nothing would be cut: all {mask.num_units} units of its {len(mask.kept)} groups stay "
            f"at {', '.join(f'{name} {value:g}' for name, value in amount.items())} in multiples "
            f"of {multiple_of}. Increase the amount of pruning, or use a smaller multiple."
        )


def _proven(network: nn.Module, mask: Mask, traced: Trace) -> Proof:
    proof = verify(network, mask, traced)
    if proof.ok:
        return proof
    doubtful = proof.wrong or proof.unproven
    options = " ".join(f"--keep {name}" for name in doubtful[:5])
    raise TraceError(
        f"The network was not cut, because the cut could not be proven correct. {proof}"
        + (f" (On the command line: {options}.)" if options else "")
    )


def _cut(
    network: nn.Module,
    mask: Mask,
    traced: Trace,
    *,
    batches: Sequence[int],
    device: str,
    on_step: Callable[[str], None],
) -> Compressed:
    """Shrink a network, prove the cut, and measure both; the card does not have settings yet."""
    small = shrink(network, mask, traced).eval()
    on_step("Proving the cut")
    proof = _proven(network, mask, traced)
    before, after = (measure(net, traced.example) for net in (network, small))
    on_step("Measuring both networks")
    about = machine(device)
    del about["batch"]
    card = Card(
        network=type(network).__name__,
        parameters=(before.parameters, after.parameters),
        macs=(before.macs, after.macs),
        speeds=[
            measure_speed(network, small, traced.example, batch=batch, device=device)
            for batch in batches
        ],
        proof=proof,
        widths={name: (mask.kept[name].numel(), num) for name, num in mask.widths().items()},
        whole=dict(traced.whole),
        machine=about,
        date=date.today().isoformat(),
        version=version_of("regrow"),
        caveats=after.caveats,
    )
    return Compressed(network=small, mask=mask, trace=traced, proof=proof, card=card)
