"""Stages and patterns, against the counts of the paper's networks and averages made by hand."""

from math import prod

import pytest
import torch
from torch import Tensor, nn

from regrow.errors import ConfigError, StoreError
from regrow.models import ModelSpec, build
from regrow.pruning.stages import (
    Kernel,
    Pattern,
    lay,
    pattern_of,
    stages_of,
)
from regrow.surgery import Trace, trace
from regrow.surgery.mask import Mask
from small import small

CIFAR = {"classes": 10, "in_channels": 3, "input_size": 32}


def network(name: str) -> tuple[nn.Module, Trace]:
    model = build(ModelSpec(name, dict(CIFAR)))
    return model, trace(model, (1, 3, 32, 32))


def channels(name: str) -> dict[int | None, int]:
    """Count the channels that network slimming prunes, by stage."""
    model, found = network(name)
    numbers, total = stages_of(model, found), dict[int | None, int]()
    for group in found.groups.values():
        if group.kind in ("conv", "view") and group.norms:
            stage = numbers.get(group.name)
            total[stage] = total.get(stage, 0) + group.size
    return total


# Stages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"), [("vgg-16", (2, 2, 3, 3, 3)), ("vgg-19", (2, 2, 4, 4, 4))]
)
def test_a_vggs_stages_lie_between_its_pools(name: str, layers: tuple[int, ...]) -> None:
    model, found = network(name)
    numbers = stages_of(model, found)
    expected = [stage for stage, num in enumerate(layers) for _ in range(num)]
    convs = [f"features.conv{number}" for number in range(1, sum(layers) + 1)]
    assert [numbers[conv] for conv in convs] == expected
    assert [numbers[f"{conv}.weight"] for conv in convs] == expected
    assert numbers.keys() == {*convs, *(f"{conv}.weight" for conv in convs)}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        # Network slimming's norms: of the residual stages, and the last norm's 256.
        ("preresnet-164", {0: 1_680, 1: 3_392, 2: 6_784, None: 256}),
        # Dense blocks, with the transition after each: 1,080 + 168 and 2,808 + 312.
        ("densenet-40", {0: 1_248, 1: 3_120, 2: 4_536, None: 456}),
    ],
)
def test_stages_have_the_channels_of_the_papers_networks(
    name: str, counts: dict[int | None, int]
) -> None:
    assert channels(name) == counts


# Kept shares of PreResNet-164's stages (CIFAR-10, network slimming) at 10 to 70 %.
TABLE_18 = (
    (0.879, 0.959, 0.889),
    (0.729, 0.863, 0.798),
    (0.557, 0.754, 0.716),
    (0.484, 0.651, 0.610),
    (0.421, 0.537, 0.507),
    (0.349, 0.428, 0.403),
    (0.271, 0.320, 0.301),
)


def test_the_papers_table_18_adds_up_if_the_last_norm_has_no_stage() -> None:
    """A global threshold fixes the sum; what is left of it is the last norm's."""
    counts, last = (1_680, 3_392, 6_784), 256
    for column, shares in enumerate(TABLE_18, 1):
        asked = (sum(counts) + last) * (1 - column / 10)
        rest = asked - sum(s * n for s, n in zip(shares, counts, strict=True))
        rounding = 0.0005 * (sum(counts) + last)
        assert 0 <= rest <= last
        assert abs(rest - shares[2] * last) > rounding  # it does not count as of stage 3


def test_a_blocks_layers_count_by_the_map_that_leaves_it() -> None:
    """The first block of a stage halves the map in its second convolution, or in its shortcut."""
    model, found = small("preresnet")
    numbers = stages_of(model, found)
    block = [name for name in numbers if name.startswith("features.stage2.0.")]
    assert {"norm1", "conv1", "conv1.weight", "conv3.weight", "shortcut.weight"} <= {
        name.removeprefix("features.stage2.0.") for name in block
    }
    assert {numbers[name] for name in block} == {1}


def test_finding_stages_leaves_the_network_alone() -> None:
    model, found = small("vgg")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages_of(model, found)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())


# Patterns -----------------------------------------------------------------------------------------

STAGES = {"a": 0, "b": 1, "c": 1, "a.weight": 0, "b.weight": 1, "c.weight": 1}


def stays(*kept: int) -> Tensor:
    return torch.tensor(kept, dtype=torch.bool)


def test_a_pattern_of_channels_is_the_kept_share_of_each_stage_over_all_masks() -> None:
    first = {"a": stays(1, 0), "b": stays(1, 1, 0, 0), "c": stays(1, 1), "head": stays(0, 1)}
    second = {"a": stays(1, 1), "b": stays(1, 0, 0, 0), "c": stays(0, 1), "head": stays(0, 1)}
    masks = [Mask(unit="channel", kept=kept) for kept in (first, second)]
    pattern = pattern_of(masks, STAGES)
    assert pattern == Pattern(unit="channel", shares=(3 / 4, (4 / 6 + 2 / 6) / 2))


def test_a_stage_that_cannot_be_pruned_is_kept_whole() -> None:
    mask = Mask(unit="channel", kept={"b": stays(1, 0)})
    assert pattern_of([mask], STAGES).shares == (1.0, 0.5)


def test_a_pattern_of_weights_is_the_kept_share_at_each_position_of_the_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (4, 1, 3, 3), "b.weight": (2, 4, 3, 3), "c.weight": (5, 2, 3, 3)}
    shapes |= {"d.weight": (3, 5, 1, 1)}
    masks = [
        Mask(
            unit="weight",
            kept={n: torch.rand(shape, generator=generator) < 0.4 for n, shape in shapes.items()},
        )
        for _ in range(2)
    ]
    pattern = pattern_of(masks, STAGES | {"d.weight": 1})
    pool = [
        kept[i, j]
        for m in masks
        for n in ("b.weight", "c.weight")
        for kept in [m.kept[n]]
        for i in range(kept.shape[0])
        for j in range(kept.shape[1])
    ]
    found = pattern.kernel(1)
    assert found is not None
    for row in range(3):
        for column in range(3):
            seen = [bool(kernel[row, column]) for kernel in pool]
            assert found[row][column] == pytest.approx(sum(seen) / len(seen))
    ones = torch.cat([m.kept["d.weight"].flatten() for m in masks])
    assert pattern.kernel(1, "1x1") == ((float(ones.double().mean()),),)
    assert pattern.kernel(0, "1x1") is None
    stage = torch.cat([m.kept[n].flatten() for m in masks for n in shapes if n != "a.weight"])
    assert pattern.shares[1] == pytest.approx(float(stage.double().mean()))


def test_a_pattern_survives_json() -> None:
    plain = Pattern(unit="channel", shares=(0.5, 1.0))
    kernels: tuple[dict[str, Kernel], ...] = ({"3x3": ((0.1, 0.2, 0.3),) * 3}, {})
    weights = Pattern(unit="weight", shares=(0.2, 1.0), kernels=kernels)
    assert Pattern.from_json(plain.to_json()) == plain
    assert Pattern.from_json(weights.to_json()) == weights


@pytest.mark.parametrize("value", [{}, [], {"unit": "channel", "shares": [1.5]}])
def test_a_damaged_pattern_is_refused(value: object) -> None:
    with pytest.raises(StoreError, match="pattern is damaged"):
        Pattern.from_json(value)  # type: ignore[arg-type]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\]\. Got 1\.5"):
        Pattern(unit="channel", shares=(1.5,))
    with pytest.raises(ConfigError, match=r"of 2 stages must have kernels for each.*Got 1"):
        Pattern(unit="weight", shares=(0.5, 0.5), kernels=({},))


@pytest.mark.parametrize(
    ("units", "got"),
    [((), "no mask"), (("block",), "blocks"), (("weight", "channel"), "channels and weights")],
)
def test_a_pattern_is_of_masks_that_are_alike(units: tuple[str, ...], got: str) -> None:
    masks = [Mask(unit=unit, kept={}) for unit in units]
    with pytest.raises(ConfigError, match=rf"all of channels, .*all of weights\. Got {got}\."):
        pattern_of(masks, STAGES)


# Following ----------------------------------------------------------------------------------------


def test_a_pattern_gives_each_layer_of_a_stage_its_share_rounded() -> None:
    pattern = Pattern(unit="channel", shares=(0.836, 0.4375))
    parts = lay(pattern, STAGES, {"a": (64,), "b": (8,), "c": (100,), "head": (5,)})
    kept = {n: round(prod(p.units.shape) * (1 - p.sparsity), 9) for n, (p,) in parts.items()}
    assert kept == {"a": 54, "b": 4, "c": 44, "head": 5}  # 53.5, 3.5, 43.75; the head has no stage


def test_a_pattern_gives_each_position_of_a_kernel_its_share() -> None:
    rows = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.7, 0.8, 0.9))
    pattern = Pattern(unit="weight", shares=(0.5, 0.3), kernels=({"3x3": rows}, {}))
    shapes = {"a.weight": (2, 3, 3, 3), "b.weight": (2, 2, 3, 3)}
    parts = lay(pattern, STAGES, shapes)
    chance = torch.zeros(2 * 3 * 9)
    for part in parts["a.weight"]:
        chance[part.units] += 1 - part.sparsity
    torch.testing.assert_close(chance.view(2, 3, 3, 3)[1, 2], torch.tensor(rows))
    (whole,) = parts["b.weight"]  # the pattern's stage has no kernels of this size
    assert whole.sparsity == 0.7
    assert bool(whole.units.all())


def test_a_pattern_of_other_stages_is_refused() -> None:
    with pytest.raises(ConfigError, match="of 3 stages cannot be applied to a network of 2"):
        lay(Pattern(unit="channel", shares=(1.0, 1.0, 1.0)), STAGES, {"a": (4,)})
