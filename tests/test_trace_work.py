"""What a trace does not do twice: nothing is measured, hooked or written down without need."""

import pytest
import torch
from torch import Tensor, nn

from regrow.surgery import proof, trace, trial
from regrow.surgery.colours import Paint
from regrow.surgery.cut import duplicate
from regrow.surgery.proof import is_steady
from regrow.surgery.tape import record, rerun
from regrow.surgery.views import _reshaped

EXAMPLE = torch.ones(1, 3, 6, 6)


@pytest.mark.parametrize(
    ("shape", "coloured", "after"),
    [
        ((2, 6, 4, 4), (1,), (2, 2, 3, 4, 4)),
        ((2, 6, 4, 4), (1,), (2, 6, 16)),
        ((2, 6, 4, 4), (1,), (2, 96)),
        ((2, 4, 4, 6), (3,), (2, 2, 2, 2, 2, 6)),
        ((2, 4, 4, 6), (3,), (8, 4, 2, 3)),
        ((2, 3, 4, 5), (1, 3), (6, 4, 5)),
        ((2, 3, 4, 5), (0, 1), (1, 6, 20, 1)),
        ((1, 6, 1), (1,), (6,)),
        ((1, 6, 1), (), (2, 3)),
        ((6,), (0,), (1, 2, 1, 3, 1)),
        ((2, 1, 3), (2,), (1, 6)),
    ],
)
def test_colours_in_another_shape_are_those_of_every_place(
    shape: tuple[int, ...], coloured: tuple[int, ...], after: tuple[int, ...]
) -> None:
    sizes = [size if dim in coloured else 1 for dim, size in enumerate(shape)]
    source = Paint(torch.arange(torch.Size(sizes).numel()).view(sizes), shape)
    assert torch.equal(_reshaped(source, after), source.full().reshape(after))


def test_places_of_one_colour_are_not_written_down() -> None:
    places = 2**22  # squared, as many as no memory holds
    ids = torch.arange(1, 9).view(1, 8, 1, 1)
    found = _reshaped(Paint(ids, (1, 8, places, places)), (2, 4, places**2))
    assert found[:, :, 5].flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


class Branches(nn.Module):
    """Two layers whose code does something else where they are narrower."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) if self.a.out_channels == 8 else self.a(x) * 2.0
        x = self.b(x) if self.b.out_channels == 16 else self.b(x) * 3.0
        result: Tensor = self.c(x)
        return result


def test_what_rounding_does_to_a_network_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"off": 0, "rounded": 0}
    off, rounded = trial.Trials._off, proof._rounded

    def judging(*args: object) -> str | None:
        calls["off"] += 1
        return off(*args)  # type: ignore[arg-type]

    def rounding(*args: object, **kwargs: object) -> float:
        calls["rounded"] += 1
        return rounded(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(trial.Trials, "_off", judging)
    monkeypatch.setattr(proof, "_rounded", rounding)
    found = trace(Branches().eval(), EXAMPLE)
    assert found.groups == {}
    assert calls["off"] > 2
    assert calls["rounded"] == 1


def test_a_network_that_draws_at_random_is_not_steady() -> None:
    class Noisy(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    assert is_steady(Branches(), EXAMPLE)
    assert not is_steady(Noisy(), EXAMPLE)


def test_steadiness_is_measured_in_float32_without_changing_the_network() -> None:
    class InFloat64(Branches):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float64
            return super().forward(x)

    net = Branches().double()
    assert is_steady(net, EXAMPLE.double())
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert not is_steady(InFloat64().double(), EXAMPLE.double())


def test_a_copy_that_is_tried_is_asked_of_no_module_that_need_not_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.out(self.norm(self.cells(x)[0]))
            return result

    net, example = Tagger().eval(), torch.ones(1, 5, 4)
    whole = record(net, example)
    hooked: list[nn.Module] = []
    register = nn.Module.register_forward_hook

    def noting(module: nn.Module, hook: object) -> object:
        hooked.append(module)
        return register(module, hook)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Module, "register_forward_hook", noting)
    again = rerun(duplicate(net), example, told={"norm"})
    assert [type(module) for module in hooked] == [nn.LSTM, nn.LayerNorm]
    assert [node.name for node in again.nodes] == [node.name for node in whole.nodes]
    assert {node.module for node in again.nodes} == {"", "cells", "norm"}
    assert [again.values[i].shape for i in again.outputs] == [(1, 5, 2)]
