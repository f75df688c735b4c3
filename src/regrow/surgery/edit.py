"""The edit that a pruning makes to a network, as a value that applies to any of the same model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from regrow.core.units import UNITS
from regrow.models import ModelSpec
from regrow.surgery.architecture import Architecture
from regrow.surgery.cut import duplicate, shrink
from regrow.surgery.groups import Trace
from regrow.surgery.mask import Mask, apply_, kept_weights
from regrow.surgery.proof import prove


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """The result of a pruning: which units of a model are kept, and weights repaired afterwards.

        pruned = edit.apply(network)        # a trained network, with repaired weights
        fresh = edit.cut(build(edit.model))  # any network, with its own weights
        edit.kept_weights(pruned)           # masks for training; empty if units were cut out

    Attributes:
        model: the unpruned model.
        shape: of one example, [1, C, H, W].
        mask: the units that are kept.
        repaired: all tensors of the pruned network if a repair changed some, else empty.
    """

    model: ModelSpec
    shape: tuple[int, ...]
    mask: Mask
    repaired: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The architecture after pruning: cut, or the model's own if units are only masked."""
        whole = Architecture(model=self.model, shape=self.shape)
        return whole if self.masked else whole.then(self.mask)

    @property
    def masked(self) -> bool:
        """True if removed units are masked in a network of full size."""
        return UNITS.get(self.mask.unit).masked

    def cut(self, network: nn.Module, trace: Trace | None = None) -> nn.Module:
        """Return a copy of a network of the unpruned model, without the units that are cut out.

        ``trace``: the trace of the network, if it is known already.
        """
        if self.masked:
            return duplicate(network)
        return (
            self.architecture.cut(network) if trace is None else shrink(network, self.mask, trace)
        )

    def mask_(self, network: nn.Module) -> None:
        """Zero the masked weights, if any, of a network that ``cut`` returned, in place."""
        if self.masked:
            apply_(network, self.mask)

    def apply(self, network: nn.Module) -> nn.Module:
        """Return a trained network as the pruning left it, with its repaired weights."""
        small = self.cut(network)
        self.mask_(small)
        if self.repaired:
            small.load_state_dict(dict(self.repaired))
        return small

    def kept_weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Return which single weights are kept, by parameter; empty if units are cut out."""
        return kept_weights(self.mask, network)

    def prove(
        self,
        network: nn.Module,
        trace: Trace,
        *,
        sensitivity: Callable[[], Mapping[str, float] | None],
    ) -> None:
        """Raise a ``TraceError`` if cutting this network would be wrong, or cannot be proven.

        ``sensitivity`` is called only if units are cut out; masked ones need no proof.
        """
        if not self.masked:
            prove(network, self.mask, trace, sensitivity=sensitivity())

    def record(self) -> dict[str, Any]:
        """Return a summary for records and tables, as JSON; tensors are stored beside it."""
        return cut_record(self.mask, self.architecture)

    @classmethod
    def read(
        cls,
        record: Mapping[str, Any],
        kept: Mapping[str, Tensor],
        *,
        repaired: Mapping[str, Tensor],
        model: ModelSpec,
        shape: tuple[int, ...],
    ) -> "Edit":
        """Read what ``record`` returned, with the kept units by group and the repaired tensors."""
        guarded = tuple(record.get("guarded", ()))
        mask = Mask(unit=record["unit"], kept=kept, guarded=guarded)
        return cls(model=model, shape=shape, mask=mask, repaired=repaired)


def cut_record(mask: Mask, architecture: Architecture) -> dict[str, Any]:
    """Return a summary of a cut for records and tables, as JSON."""
    return {
        "unit": mask.unit,
        "sparsity": mask.sparsity,
        "widths": mask.widths(),
        "guarded": list(mask.guarded),
        "architecture": architecture.to_json(),
    }
