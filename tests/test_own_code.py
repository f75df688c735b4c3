"""Networks whose code refers to parameters, changes inputs, keeps results, or trains otherwise."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regrow.surgery import Trace, shrink, silence, trace, verify
from regrow.surgery.mask import Mask

SHAPE = (1, 6)


def half(found: Trace) -> Mask:
    groups = {n: g for n, g in found.groups.items() if g.size > 1}
    return Mask(unit="channel", kept={n: torch.arange(g.size) % 2 == 0 for n, g in groups.items()})


def traced(net: nn.Module) -> tuple[Trace, Mask]:
    found = trace(net.eval(), SHAPE)
    return found, half(found)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(6, 8), nn.Linear(8, 3)
        self.prepare()

    def prepare(self) -> None:
        pass

    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x).relu()
        return self.train_with(hidden) if self.training else self.o(hidden)

    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden)


# Parameters that plain attributes refer to --------------------------------------------------------


class Listed(Base):
    """Keeps parameters in a list, a mapping and an optimiser, beside their registration."""

    decayed: Any
    by_name: Any
    steps: Any
    alone: Any

    def prepare(self) -> None:
        self.decayed, self.by_name = [self.a.weight, self.o.weight], {"bias": self.a.bias}
        self.steps = torch.optim.SGD([self.a.weight, self.o.bias], lr=1.0)
        self.alone = [nn.Parameter(torch.ones(3))]


def test_plain_attributes_refer_to_the_cut_networks_own_parameters() -> None:
    net = Listed()
    found, mask = traced(net)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small: Any = shrink(net, mask, found)
    assert small.decayed == [small.a.weight, small.o.weight]
    assert small.by_name["bias"] is small.a.bias
    assert small.steps.param_groups[0]["params"] == [small.a.weight, small.o.bias]
    assert small.alone[0] is not net.alone[0]
    small(torch.randn(2, 6)).sum().backward()
    small.steps.step()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert net.decayed == [net.a.weight, net.o.weight]


# Code with effects --------------------------------------------------------------------------------


class Merging(nn.Linear):
    """Adds its update to the weight in evaluation, as LoRA does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.merged = False
        super().__init__(inputs, outputs)
        self.update = nn.Parameter(torch.randn(outputs, inputs))

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.update.T


def test_tracing_and_proving_do_not_switch_a_networks_mode() -> None:
    net = nn.Sequential(Merging(6, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    first = net[0]
    assert isinstance(first, Merging)
    weight = first.weight.detach().clone()
    found = trace(net, SHAPE)
    verify(net, half(found), found)
    assert net.training
    assert not first.merged
    assert torch.equal(first.weight, weight)


class Keeping(Base):
    """Keeps a table for the width that it sees first, and all that it saw."""

    table: Tensor | None = None
    seen = 0

    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x)
        if self.table is None:
            self.table = torch.zeros(1, hidden.shape[-1])
        self.seen += len(x)
        return self.o((hidden + self.table).relu())


def test_what_code_keeps_of_a_run_is_not_left_in_the_network() -> None:
    net = Keeping()
    found, mask = traced(net)
    assert [*found.groups] == ["a"]
    assert verify(net, mask, found).ok
    assert (net.table, net.seen) == (None, 0)


class InPlace(Base):
    """Normalises its input in place."""

    def forward(self, x: Tensor) -> Any:
        return self.o(self.a(x.sub_(0.5).div_(0.3)).relu())


class WithGradients(Base):
    """Enables gradients by itself."""

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            return self.o(self.a(x).relu())


@pytest.mark.parametrize("kind", [InPlace, WithGradients])
def test_code_that_changes_its_input_or_enables_gradients_is_proven(kind: type[Base]) -> None:
    net = kind().double()
    found, mask = traced(net)
    result = verify(net, mask, found)
    assert result.ok, str(result)


# Training mode ------------------------------------------------------------------------------------


class Features(Base):
    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden), hidden


class Activity(Base):
    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden), hidden.mean()


class Averages(Base):
    average: Tensor

    def prepare(self) -> None:
        self.register_buffer("average", torch.zeros(8))

    def train_with(self, hidden: Tensor) -> Any:
        self.average.lerp_(hidden.detach().mean(0), 0.1)
        return self.o(hidden)


class Noisy(Base):
    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden * (torch.rand(8) > 0.1))


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.mu, self.lv, self.d = (nn.Linear(6, 12), *(nn.Linear(12, 4) for _ in "mv"),
                                            nn.Linear(4, 6))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.e(x).relu()
        mu, lv = self.mu(hidden), self.lv(hidden)
        drawn: Tensor = self.d(mu + torch.randn_like(mu) * lv.exp() if self.training else mu)
        return drawn


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Features, "returns shapes"),
        (Activity, "its output is off by"),
        (Averages, "does not run in training mode"),
        (Noisy, "does not run in training mode"),
    ],
)
def test_code_for_training_that_reads_what_is_cut_is_found(kind: type[Base], words: str) -> None:
    net = kind()
    found, mask = traced(net)
    result = verify(net, mask, found)
    assert not result.ok
    assert result.wrong == ("a",)
    assert str(result).startswith("Wrong in training: it")
    assert words in str(result)
    assert "trace(..., keep=['a'])" in str(result)


def test_a_layer_whose_result_is_used_in_training_alone_is_compared_there() -> None:
    net = Vae().eval()
    found = trace(net, SHAPE, keep=["lv"])
    result = verify(net, half(found), found)
    assert result.wrong == ("mu",)
    found = trace(net, SHAPE, keep=["lv", "mu"])
    small = shrink(net, half(found), found)
    assert verify(net, half(found), found).ok
    assert small.train()(torch.zeros(2, 6)).shape == (2, 6)


class Dropped(Base):
    def train_with(self, hidden: Tensor) -> Any:
        return self.o(F.dropout(hidden, 0.5))


class Infinite(Base):
    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden) / 0.0 * 0.0


class Alike(Base):
    """Differs after a cut by less than what is called wrong, and more than rounding."""

    def train_with(self, hidden: Tensor) -> Any:
        return self.o(hidden) * (1 + 1e-5 * hidden.shape[1])


class NeedsTargets(Base):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = super().forward(x)
        if not self.training:
            return out
        assert y is not None
        return F.mse_loss(out, y)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Base, ""),
        (Dropped, "draws random numbers"),
        (Infinite, "they are not finite"),
        (Alike, "perhaps by rounding"),
        (NeedsTargets, "does not run in it on these inputs alone"),
    ],
)
def test_what_was_not_compared_in_training_is_said(kind: type[Base], words: str) -> None:
    net = kind()
    found, mask = traced(net)
    result = verify(net, mask, found)
    assert result.ok
    assert bool(result.training.limit) == bool(words)
    assert words in str(result)


def test_layers_that_the_example_does_not_use_are_named_as_not_compared() -> None:
    class Sized(Base):
        def prepare(self) -> None:
            self.large = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            hidden = self.a(x).relu()
            return self.o(self.large(hidden) if len(x) > 100 else hidden)

    net = Sized()
    found, mask = traced(net)
    result = verify(net, mask, found)
    assert result.ok
    assert "Not compared, because the example does not use them: 'large'." in str(result)


def test_training_mode_of_batch_norms_equals_that_of_the_silenced_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    found, mask = traced(net)
    assert verify(net, mask, found).training.limit == ""
    small, quiet = shrink(net, mask, found).double(), silence(net, mask, found).double()
    x = torch.randn(16, 6).double()
    assert torch.allclose(small.train()(x), quiet.train()(x))


class Rescaling(Base):
    """Halves its weights in place when it first runs in evaluation, as RWKV does."""

    rescaled = False

    def forward(self, x: Tensor) -> Any:
        if self.rescaled == self.training:
            with torch.no_grad():
                self.o.weight.mul_(2.0 if self.training else 0.5)
            self.rescaled = not self.training
        return super().forward(x)


def test_a_change_of_parameters_that_code_makes_once_is_made_once() -> None:
    net = Rescaling().eval()
    weight = net.o.weight.detach().clone()
    found, mask = traced(net)
    assert [*found.groups] == ["a"]
    assert verify(net, mask, found).ok
    assert net.rescaled
    assert torch.equal(net.o.weight, weight / 2)
