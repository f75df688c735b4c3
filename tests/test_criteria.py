"""Criteria against scores that NumPy computes by itself, on networks small enough to follow."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError, TraceError
from regrow.methods.sparsegpt import compensated, inverse_factor
from regrow.pruning.examples import examples_of
from regrow.pruning.method import ALLOCATIONS, CRITERIA, METHODS, REPAIRS
from regrow.pruning.probe import Probe
from regrow.pruning.select import layers_of, select
from regrow.surgery import Group, Trace, trace, verify
from regrow.units.masked import weight_groups
from small import SHAPE, digits, small

IMAGES = 48
Array = Any  # NumPy's, of numbers in float64


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    return net.eval()


def seen() -> tuple[Array, Array]:
    """Return what the probe shows: images as rows of 64 numbers, and labels."""
    batches = Probe(nn.Linear(1, 1), digits(), num_images=IMAGES).batches()
    x = torch.cat([x for x, _ in batches]).flatten(1).double().numpy()
    return x, torch.cat([y for _, y in batches]).numpy()


class ByHand:
    """The two layers in NumPy: activations, and the gradient of each image's own loss."""

    def __init__(self, net: nn.Sequential, *, temperature: float = 1.0) -> None:
        state = {name: t.double().numpy() for name, t in net.state_dict().items()}
        self.w1, self.b1 = state["1.weight"], state["1.bias"]
        self.w2, self.b2 = state["3.weight"], state["3.bias"]
        self.temperature = temperature
        self.x, self.y = seen()

    @property
    def hidden(self) -> Array:
        return np.maximum(self.x @ self.w1.T + self.b1, 0.0)

    def gradients(self) -> tuple[Array, Array, Array, Array]:
        """Return those of w1, b1, w2 and b2, ``[images, ...]``."""
        a = self.hidden
        logits = (a @ self.w2.T + self.b2) / self.temperature
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        d = (p - np.eye(10)[self.y]) / self.temperature
        dz = (d @ self.w2) * (a > 0)
        g1, g2 = dz[:, :, None] * self.x[:, None], d[:, :, None] * a[:, None]
        return g1, dz, g2, d


def score(name: str, net: nn.Module, group: Group, *, found: Trace | None = None) -> Array:
    groups = {group.name: group} if found is None else found.groups
    probe = Probe(net, digits(), num_images=IMAGES, groups=groups)
    return CRITERIA.get(name)(group, probe).double().numpy()


def hidden_units(net: nn.Module) -> Group:
    (group,) = trace(net, SHAPE).groups.values()
    return group


def first_weights(net: nn.Module) -> Group:
    return weight_groups(net, ("linear",))["1.weight"]


def test_taylor_of_weights_and_gates() -> None:
    net = two_layers()
    by_hand = ByHand(net)
    g1, _, g2, _ = (g.mean(0) for g in by_hand.gradients())
    of_weights = np.abs((by_hand.w1 * g1).sum(1))
    of_gates = np.abs((by_hand.w2 * g2).sum(0))
    np.testing.assert_allclose(score("taylor", net, hidden_units(net)), of_weights, rtol=1e-4)
    np.testing.assert_allclose(score("taylor-gate", net, hidden_units(net)), of_gates, rtol=1e-4)


def test_a_gate_behind_a_norm_has_the_derivative_that_the_paper_takes() -> None:
    model, found = small("vgg")
    probe = Probe(model, digits(), num_images=IMAGES)
    for i in (1, 2):  # what reads the third is behind a pooling of another kind
        norm = f"features.norm{i}"
        parts = [probe.weight(f"{norm}.{n}") * probe.gradient(f"{norm}.{n}")
                 for n in ("weight", "bias")]  # fmt: skip
        expected = (parts[0] + parts[1]).abs().numpy()
        mine = score("taylor-gate", model, found.group(f"features.conv{i}"))
        np.testing.assert_allclose(mine, expected, rtol=1e-3, atol=1e-6)


def test_fisher_and_obd_square_the_gradients_of_single_images() -> None:
    net = two_layers()
    by_hand = ByHand(net)
    g1, _, g2, _ = by_hand.gradients()
    of_weights = (by_hand.w1**2 * (g1**2).mean(0) / 2).ravel()
    of_gates = ((by_hand.w2 * g2).sum(1) ** 2).mean(0) / 2
    np.testing.assert_allclose(score("obd", net, first_weights(net)), of_weights, rtol=1e-4)
    np.testing.assert_allclose(score("fisher", net, hidden_units(net)), of_gates, rtol=1e-4)
    # Of a mean of losses the square would be another: the images' own gradients matter.
    assert not np.allclose(of_gates, (by_hand.w2 * g2.mean(0)).sum(0) ** 2 / 2, rtol=0.1)


def test_snip_and_l2_of_channels() -> None:
    net = two_layers()
    by_hand = ByHand(net)
    g1 = by_hand.gradients()[0].mean(0)
    expected = np.abs(by_hand.w1 * g1).sum(1)
    np.testing.assert_allclose(
        score("connection-sensitivity", net, hidden_units(net)), expected, rtol=1e-4
    )
    norms = np.sqrt((by_hand.w1**2).sum(1))
    np.testing.assert_allclose(score("l2-norm", net, hidden_units(net)), norms, rtol=1e-5)


def test_grasp_multiplies_by_the_hessian_times_the_gradient() -> None:
    net = two_layers()
    by_hand = ByHand(net, temperature=200.0)
    # All weights move along the gradient, a little either way: the difference is H g.
    start = [by_hand.w1, by_hand.b1, by_hand.w2, by_hand.b2]
    g = [part.mean(0) for part in by_hand.gradients()]
    ends = []
    step = 1e-2
    for sign in (1, -1):
        by_hand.w1, by_hand.b1, by_hand.w2, by_hand.b2 = (
            value + sign * step * part for value, part in zip(start, g, strict=True)
        )
        ends.append(by_hand.gradients()[0].mean(0))
    expected = (start[0] * (ends[0] - ends[1]) / (2 * step)).ravel()
    mine = score("gradient-flow", net, first_weights(net))
    np.testing.assert_allclose(mine, expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max())


def test_lamp_is_a_share_of_the_energy_that_is_left() -> None:
    net = two_layers()
    squares = (ByHand(net).w1 ** 2).ravel()
    by_hand = [w / squares[squares >= w].sum() for w in squares]
    np.testing.assert_allclose(score("lamp", net, first_weights(net)), by_hand, rtol=1e-4)
    assert score("lamp", net, first_weights(net)).max() == 1.0
    with torch.no_grad():
        net.get_parameter("1.weight").zero_()
    assert not score("lamp", net, first_weights(net)).any()


def test_activations_are_those_that_the_next_layer_reads() -> None:
    net = two_layers()
    hidden = ByHand(net).hidden
    group = hidden_units(net)
    np.testing.assert_allclose(score("mean-activation", net, group), hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(score("apoz", net, group), (hidden > 0).mean(0), rtol=1e-6)


def test_activations_of_convolutions_are_means_over_the_map_behind_nonlinearity_and_pool() -> None:
    model, found = small("vgg")
    inputs: dict[str, Tensor] = {}
    for i, name in (("1", "features.conv2"), ("2", "features.conv3")):
        layer = model.get_submodule(name)
        layer.register_forward_hook(lambda m, a, o, i=i: inputs.update({i: a[0]}))
    images = torch.cat([b for b, _ in Probe(model, digits(), num_images=IMAGES).batches()])
    with torch.no_grad():
        model.eval()(images)
    for i in ("1", "2"):
        values = inputs[i].double().numpy()
        group = found.group(f"features.conv{i}")
        mine = score("mean-activation", model, group, found=found)
        np.testing.assert_allclose(mine, np.abs(values).mean((0, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(
            score("apoz", model, group, found=found), (values != 0).mean((0, 2, 3)), rtol=1e-6
        )


class Attending(nn.Module):
    """Rows of images as tokens, attention, and a smooth feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Read ``[N, 1, 8, 8]``."""
        x = x.squeeze(1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(x)))
        result: Tensor = self.head(x.mean(1))
        return result


class Heads(nn.Module):
    """Rows of images as tokens, and attention of two heads from one packed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 4
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        packed = self.qkv(x).reshape(len(x), 8, 3, self.num_heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 8, -1)
        result: Tensor = self.head((x + self.proj(joined)).mean(1))
        return result


def test_a_head_scores_all_that_it_owns_and_what_is_read_of_it() -> None:
    torch.manual_seed(0)
    net = Heads().eval()
    found = trace(net, SHAPE)
    (group,) = (group for group in found.groups.values() if group.kind == "head")
    weight = net.qkv.weight.detach().double().numpy().reshape(3, 2, 4, 8)
    by_hand = np.abs(weight).sum((0, 2, 3))
    np.testing.assert_allclose(score("l1-norm", net, group), by_hand, rtol=1e-5)
    vectors = weight.transpose(1, 0, 2, 3).reshape(2, -1)
    distance = np.linalg.norm(vectors[0] - vectors[1])
    np.testing.assert_allclose(score("geometric-median", net, group), [distance] * 2, rtol=1e-5)
    inputs: list[Tensor] = []
    net.proj.register_forward_hook(lambda m, a, o: inputs.append(a[0]))
    probe = Probe(net, digits(), num_images=IMAGES)
    with torch.no_grad():
        net(torch.cat([x for x, _ in probe.batches()]))
    values = inputs[0].double().numpy().reshape(-1, 2, 4)
    mine = score("mean-activation", net, group)
    np.testing.assert_allclose(mine, np.abs(values).mean((0, 2)), rtol=1e-4)
    product = (probe.weight("proj.weight") * probe.gradient("proj.weight")).double().numpy()
    gates = np.abs(product.reshape(8, 2, 4).sum((0, 2)))
    np.testing.assert_allclose(score("taylor-gate", net, group), gates, rtol=1e-4)
    for name in ("taylor", "fisher", "l1"):
        options: dict[str, Any] = {"dataset": digits(), "num_images": 16, "scope": "head"}
        mask = select(net, found, name, sparsity=0.5, **options)
        assert mask.widths() == {group.name: 1}
        assert verify(net, mask, found) < 1e-9


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised, filter by filter, whenever it is used."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        spread = flat.std(1, keepdim=True) + 1e-3
        weight = ((flat - flat.mean(1, keepdim=True)) / spread).view_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_what_a_computed_weight_reads_is_what_enters_its_layer() -> None:
    torch.manual_seed(0)
    first, second = Standardised(1, 4, 3), Standardised(4, 3, 3)
    net = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(48, 10)).eval()
    probe = Probe(net, digits(), num_images=IMAGES)
    images = torch.cat([x for x, _ in probe.batches()])
    with torch.no_grad():
        read = first(images).relu().double().numpy()
    norms = np.broadcast_to(np.sqrt((read**2).sum((0, 2, 3)))[:, None, None], (3, 4, 1, 1))
    np.testing.assert_allclose(probe.input_norms("2.weight").numpy(), norms, rtol=1e-4)
    # The last layer's is the parameter itself, and is not counted twice.
    assert probe.input_norms("4.weight").shape == (1, 48)


def test_the_channels_of_norms_with_a_forward_of_their_own_are_found() -> None:
    class Last(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3)  # maps of 6 x 6: the shape does not say where the channels are
    net = nn.Sequential(conv, Turn(), Last(6), nn.Flatten(), nn.Linear(216, 10)).eval()
    probe = Probe(net, digits(), num_images=IMAGES)
    with torch.no_grad():
        expected = net[:3](torch.cat([x for x, _ in probe.batches()])).mean((1, 2))
    mine = probe.activation(trace(net, SHAPE).group("0"))
    torch.testing.assert_close(mine, expected)


def attending() -> nn.Module:
    torch.manual_seed(0)
    return Attending().eval()


def test_what_tokens_and_attention_read_is_seen_whoever_multiplies() -> None:
    net = attending()
    probe = Probe(net, digits(), num_images=IMAGES)
    (images,) = (x for x, _ in probe.batches())
    x = images.squeeze(1).double().numpy()
    state = {name: t.double().numpy() for name, t in net.state_dict().items()}
    packed = x @ state["attention.in_proj_weight"].T + state["attention.in_proj_bias"]
    q, k, v = (part.reshape(-1, 8, 2, 4).transpose(0, 2, 1, 3) for part in np.split(packed, 3, -1))
    weights = np.exp(q @ k.transpose(0, 1, 3, 2) / 2.0)
    weights /= weights.sum(-1, keepdims=True)
    rows = (weights @ v).transpose(0, 2, 1, 3).reshape(-1, 8)  # what the last projection reads
    norms = probe.input_norms("attention.out_proj.weight")
    np.testing.assert_allclose(norms.numpy(), np.sqrt((rows**2).sum(0))[None], rtol=1e-4)
    gram = probe.gram("attention.out_proj.weight").numpy()
    np.testing.assert_allclose(gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-7)
    gram = probe.gram("attention.in_proj_weight").numpy()
    np.testing.assert_allclose(gram, x.reshape(-1, 8).T @ x.reshape(-1, 8) / len(rows), rtol=1e-4,
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("name", ["taylor", "taylor-gate", "fisher", "mean-activation", "l2"])
def test_channels_of_token_models_are_scored_and_cut(name: str) -> None:
    net = attending()
    found = trace(net, SHAPE)
    mask = select(net, found, name, macs=0.8, dataset=digits(), num_images=16)
    assert mask.num_kept < mask.num_units
    assert verify(net, mask, found) < 1e-9


def test_wanda_weighs_by_the_norms_of_inputs_and_compares_within_an_output() -> None:
    net = two_layers()
    by_hand = ByHand(net)
    expected = np.abs(by_hand.w2) * np.sqrt((by_hand.hidden**2).sum(0))
    group = weight_groups(net, ("linear",))["3.weight"]
    np.testing.assert_allclose(score("wanda", net, group), expected.ravel(), rtol=1e-4)
    found = trace(net, SHAPE)
    mask = select(net, found, "wanda", sparsity=0.5, dataset=digits(), num_images=IMAGES)
    for row, kept in zip(expected, mask.kept["3.weight"].numpy(), strict=True):
        assert sorted(np.argsort(-row)[:3]) == np.flatnonzero(kept).tolist()
    third = select(net, found, "wanda", sparsity=0.4, dataset=digits(), num_images=IMAGES)
    rows = third.kept["3.weight"].sum(1)  # 3.6 of 6 weights each, 36 of 60 in all
    assert (int(rows.sum()), int(rows.min()), int(rows.max())) == (36, 3, 4)


def test_wanda_takes_convolutions_too_at_all_places_alike() -> None:
    model, _ = small("resnext")
    probe = Probe(model, digits(), num_images=IMAGES)
    for name, group in list(weight_groups(model, ("conv",)).items())[:4]:
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, nn.Conv2d)
        inputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda m, a, o, inputs=inputs: inputs.append(a[0]))
        with torch.no_grad():
            for x, _ in probe.batches():
                model.eval()(x)
        handle.remove()
        norms = torch.cat(inputs).double().square().sum((0, 2, 3)).sqrt().numpy()
        weight = layer.weight.detach().double().numpy()
        expected = np.abs(weight)
        per_group = weight.shape[1]
        for out in range(len(weight)):
            first = out // (len(weight) // layer.groups) * per_group
            expected[out] *= norms[first : first + per_group, None, None]
        np.testing.assert_allclose(score("wanda", model, group), expected.ravel(), rtol=1e-4)


def test_wanda_compares_all_weights_of_a_filter_with_each_other() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )
    data = [(torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))]
    found = trace(net, (1, 3, 8, 8))
    mask = select(net, found, "wanda", scope=("conv", "linear"), sparsity=0.5, dataset=data)
    # Each filter of a depthwise convolution has one input, so its weights rank by magnitude.
    for weights, kept in zip(
        net.get_parameter("1.weight").detach().flatten(1), mask.kept["1.weight"], strict=True
    ):
        num = int(kept.sum())
        assert num in (4, 5)
        assert (
            sorted(weights.abs().topk(num).indices.tolist())
            == torch.where(kept.flatten())[0].tolist()
        )
    probe = Probe(net, examples_of(data, net, num=8))
    group = weight_groups(net, ("conv",))["2.weight"]
    scores = CRITERIA.get("wanda")(group, probe).reshape(8, 4, 3, 3).movedim(1, 0).flatten(1)
    kept = mask.kept["2.weight"].movedim(1, 0).flatten(1)
    for row, stays in zip(scores, kept, strict=True):
        assert int(stays.sum()) == 36
        assert row[stays].min() >= row[~stays].max()


def optimal_brain_surgeon(weight: Array, kept: Array, h: Array) -> Array:
    """Remove one weight after another, by the inverse of what is left of H (no factorisation)."""
    w = weight.copy()
    for row in range(len(w)):
        for j in range(w.shape[1]):
            inverse = np.linalg.inv(h[j:, j:])
            if not kept[row, j]:
                w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
                w[row, j] = 0.0
    return w


def test_sparsegpt_costs_and_compensates_as_the_optimal_brain_surgeon() -> None:
    net = two_layers()
    by_hand = ByHand(net)
    h = by_hand.hidden.T @ by_hand.hidden / IMAGES
    h += 0.01 * h.diagonal().mean() * np.eye(6)
    cost = [np.linalg.inv(h[j:, j:])[0, 0] for j in range(6)]
    group = weight_groups(net, ("linear",))["3.weight"]
    expected = (by_hand.w2**2 / cost).ravel()
    np.testing.assert_allclose(score("sparsegpt", net, group), expected, rtol=1e-3)
    kept = np.random.default_rng(0).random((10, 6)) > 0.5
    probe = Probe(net, digits(), num_images=IMAGES)
    factor = inverse_factor(probe.gram("3.weight"))
    mine = compensated(net.get_parameter("3.weight").detach(), torch.from_numpy(kept), factor)
    solved = optimal_brain_surgeon(by_hand.w2, kept, h)
    np.testing.assert_allclose(mine.numpy(), solved, rtol=1e-3, atol=1e-5)
    assert not mine[~torch.from_numpy(kept)].any()


def test_sparsegpts_repair_brings_the_outputs_nearer() -> None:
    net = two_layers()
    found, x = trace(net, SHAPE), torch.from_numpy(seen()[0]).float().view(-1, *SHAPE[1:])
    probe = Probe(net, digits(), num_images=IMAGES)
    mask = select(net, found, "sparsegpt", sparsity=0.6, dataset=digits(), num_images=IMAGES)
    errors = []
    for repairs in (True, False):
        small_one = two_layers()
        if repairs:
            REPAIRS.get("sparsegpt")(small_one, mask, found, probe)
        with torch.no_grad():
            for name, kept in mask.kept.items():
                weight = small_one.get_parameter(name)
                assert not repairs or not bool(weight[~kept].any())
                weight.mul_(kept)
            errors.append(float((small_one(x) - net(x)).square().mean()))
    assert errors[0] < 0.5 * errors[1]


def test_sparsegpt_refuses_what_is_no_linear_layer() -> None:
    model, found = small("vgg")
    with pytest.raises(ConfigError, match=r"'features.conv1.weight' has the shape.*scope: linear"):
        select(model, found, "sparsegpt", scope="conv", sparsity=0.5, dataset=digits())


def test_fpgm_measures_distances_between_all_that_units_own() -> None:
    net = attending()
    for group in trace(net, SHAPE).groups.values():
        slots = group.producers()
        if any(len(s.units) != group.size for s in slots):
            continue
        rows = np.concatenate(
            [net.get_parameter(s.tensor).detach().double().numpy()[np.argsort(s.units.numpy())]
             for s in slots], axis=1)  # fmt: skip
        expected = np.linalg.norm(rows[:, None] - rows[None], axis=2).sum(1)
        np.testing.assert_allclose(score("geometric-median", net, group), expected, rtol=1e-4)


def test_hrank_is_the_mean_rank_of_a_channels_maps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10))
    with torch.no_grad():
        conv = net.get_submodule("0")
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.weight[0].zero_()  # a constant map: rank 1
        conv.bias.fill_(0.5)
    x = torch.from_numpy(seen()[0]).float().view(-1, *SHAPE[1:])
    with torch.no_grad():
        maps = conv(x).relu().numpy()
    expected = np.array([[np.linalg.matrix_rank(m) for m in image] for image in maps]).mean(0)
    mine = score("hrank", net, trace(net, SHAPE).group("0"))
    np.testing.assert_allclose(mine, expected, rtol=1e-6)
    assert mine[0] == 1.0


REFUSED = [
    (
        "hrank",
        r"hrank takes the rank of two-dimensional feature maps, and 'up' \(linear\) outputs \[12,",
    ),
    (
        "apoz",
        r"activations that layers read from 'up' \(linear\) are never zero.*mean-activ",
    ),
]


@pytest.mark.parametrize(("name", "message"), REFUSED)
def test_a_criterion_that_means_nothing_there_names_the_group_and_a_way_out(
    name: str, message: str
) -> None:
    net = attending()
    with pytest.raises(ConfigError, match=message):
        select(net, trace(net, SHAPE), name, scope="linear", sparsity=0.5, dataset=digits())


def test_units_that_nothing_reads_have_no_activations() -> None:
    net = two_layers()
    group = hidden_units(net)
    alone = Group(group.name, group.kind, group.size, group.producers(), ())
    with pytest.raises(ConfigError, match=r"No layer reads the units of '1' \(linear\).*scope"):
        score("mean-activation", net, alone)
    with pytest.raises(TraceError, match=r"The group '1' \(linear\) has no reader weights"):
        score("taylor-gate", net, alone)


def test_per_output_keeps_its_share_of_what_an_earlier_choice_left() -> None:
    net = two_layers()
    found, method = trace(net, SHAPE), METHODS.get("wanda")
    options: dict[str, Any] = {"dataset": digits(), "num_images": IMAGES}
    first = select(net, found, method, sparsity=0.5, **options)
    again = select(net, found, method, sparsity=0.5, within=first, **options)
    assert all(bool((kept <= first.kept[n]).all()) for n, kept in again.kept.items())
    assert {n: int(k.sum()) for n, k in again.kept.items()} == {"1.weight": 96, "3.weight": 15}
    layers = layers_of(net, found, method, scores=None)
    kept = ALLOCATIONS.get("per-output")(layers, 0.25)
    assert {n: int(k.sum()) for n, k in kept.items()} == {"1.weight": 288, "3.weight": 45}


def test_more_rounds_than_units_are_refused() -> None:
    net = two_layers()
    found = trace(net, SHAPE)
    assert len(select(net, found, "l1", scope="linear", sparsity=0.5, rounds=6).kept) == 1
    with pytest.raises(ConfigError, match="at most 6"):
        select(net, found, "l1", scope="linear", sparsity=0.5, rounds=7)
