"""Scopes of every kind, and scores of different kinds on one scale."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError, TraceError
from regrow.jobs.retrain import Retrain
from regrow.pruning.method import ALL, CRITERIA, METHODS, SCOPES, Method, general_method
from regrow.pruning.normalise import NORMALISATIONS, Scored
from regrow.pruning.probe import Probe
from regrow.pruning.select import left_out, select
from regrow.studies.study import Study
from regrow.surgery import shrink, trace, verify
from regrow.surgery.groups import Kind
from small import DIGITS, NETWORKS, SHAPE, small


class Tokens(nn.Module):
    """Images as tokens, a residual stream of two gated feed-forward parts, and a head."""

    def __init__(self, width: int = 12, hidden: int = 10) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.up, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.grow, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Read an image's rows as tokens: ``[N, 1, 8, 8] -> [N, 10]``."""
        x = self.embed(x.flatten(1, 2))
        x = x + self.down(F.gelu(self.gate(x)) * self.up(x))
        x = x + self.back(F.relu(self.grow(self.norm(x))))
        result: Tensor = self.head(x.mean(1))
        return result


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens()


def test_all_holds_every_kind_of_group_that_is_cut_by_its_channels() -> None:
    assert set(get_args(Kind)) - {"block"} <= set(ALL)
    assert set(ALL) < set(SCOPES)
    assert Method(name="own", criterion="l1-norm", scope=("all",)).scope == ALL
    both = Method(name="own", criterion="l1-norm", scope=("stream", "all"))
    assert sorted(both.scope) == sorted(ALL)


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("label", NETWORKS)
def test_every_kind_of_channel_is_cut_by_scope_all_and_proven(name: str, label: str) -> None:
    model, found = small(label)
    mask = select(model, found, name, sparsity=0.5)
    assert list(mask.kept) == list(found.groups)
    assert mask.num_kept - len(mask.guarded) <= mask.num_units - mask.num_units // 2
    assert verify(model, mask, found) < 1e-9


@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_a_cost_is_met_over_kinds_of_groups(cost: str) -> None:
    costs: dict[str, Any] = {cost: 0.5}
    for model, shape in ((tokens(), SHAPE), (small("resnext")[0], SHAPE)):
        found = trace(model, shape)
        mask = select(model, found, "l1-filter", scope="all", **costs)
        cut = sum(p.numel() for p in shrink(model, mask, found).parameters())
        assert cost == "macs" or 0.4 < cut / sum(p.numel() for p in model.parameters()) <= 0.5
        assert verify(model, mask, found) < 1e-9


def test_a_method_takes_another_scope_where_it_is_used() -> None:
    model = tokens()
    found = trace(model, SHAPE)
    with pytest.raises(TraceError, match="Give the method a scope that includes them: all"):
        select(model, found, "l1-filter", sparsity=0.5)
    mask = select(model, found, "l1-filter", sparsity=0.5, scope="all")
    assert list(mask.kept) == list(found.groups)
    assert left_out(found, "l1-filter", scope="all") == {}
    assert left_out(found, "l1-filter").keys() == found.groups.keys()
    only = select(model, found, "l1-filter", sparsity=0.5, scope=["stream"])
    assert list(only.kept) == [n for n, g in found.groups.items() if g.kind == "stream"]
    general = select(model, found, general_method("l1-norm"), sparsity=0.5)
    assert general.widths() == select(model, found, "l1", sparsity=0.5).widths()


def test_a_unit_of_several_layers_scores_the_sum_over_all_of_them() -> None:
    model = tokens()
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    groups = trace(model, SHAPE).groups
    (stream,) = (g for g in groups.values() if "embed.weight" in {s.tensor for s in g.producers()})
    made_by = ("embed", "down", "back")
    by_hand = np.sum([np.abs(weights[f"{name}.weight"]).sum(1) for name in made_by], axis=0)
    score = CRITERIA.get("l1-norm")
    np.testing.assert_allclose(score(stream, Probe(model)).numpy(), by_hand, rtol=1e-5)
    squares = np.sum([(weights[f"{name}.weight"] ** 2).sum(1) for name in made_by], axis=0)
    scores = CRITERIA.get("l2-norm")(stream, Probe(model)).numpy()
    np.testing.assert_allclose(scores, np.sqrt(squares), rtol=1e-5)
    (gated,) = (g for g in groups.values() if "gate.weight" in {s.tensor for s in g.producers()})
    by_hand = sum(np.abs(weights[f"{name}.weight"]).sum(1) for name in ("up", "gate"))
    np.testing.assert_allclose(score(gated, Probe(model)).numpy(), by_hand, rtol=1e-5)


def test_a_view_is_scored_by_the_weights_that_read_it() -> None:
    model, found = small("preresnet")
    views = [g for g in found.groups.values() if g.kind == "view"]
    for view in views:
        (reader, *others) = view.readers()
        assert not others or len(views) > 1
        by_hand = sum(
            np.abs(np.moveaxis(model.get_parameter(s.tensor).detach().numpy(), s.dim, 0))
            .reshape(len(s.units), -1)
            .sum(1)
            for s in (reader, *others)
        )
        if all(len(s.units) == view.size for s in view.readers()):
            order = reader.units.numpy()
            scores = CRITERIA.get("l1-norm")(view, Probe(model)).numpy()
            np.testing.assert_allclose(scores[order], by_hand, rtol=1e-5)


def test_scores_of_kinds_are_put_on_one_scale() -> None:
    model = tokens()
    with torch.no_grad():
        for name in ("up", "gate"):
            model.get_parameter(f"{name}.weight").mul_(100)
    found = trace(model, SHAPE)
    raw = replace(general_method("l1-norm"), normalise=None)
    loud = next(g.name for g in found.groups.values() if "up.weight" in {
        s.tensor for s in g.producers()})  # fmt: skip
    kept = {m.normalise: select(model, found, m, sparsity=0.4) for m in (
        raw, replace(raw, normalise="group"), replace(raw, normalise="weight"))}  # fmt: skip
    assert kept[None].widths()[loud] == 10  # 100 times as large in each of their scores
    assert kept["weight"].widths()[loud] == 10
    assert kept["group"].widths()[loud] < 10
    scores = {n: CRITERIA.get("l1-norm")(g, Probe(model)) for n, g in found.groups.items()}
    sizes = {n: sum(model.get_parameter(s.tensor)[0].numel() for s in g.producers())
             for n, g in found.groups.items()}  # fmt: skip
    for scale, mask in kept.items():
        scaled = {
            n: s / s.mean() if scale == "group" else s / (sizes[n] if scale else 1)
            for n, s in scores.items()
        }
        flat = torch.cat(list(scaled.values()))
        threshold = flat.sort().values[int(0.4 * len(flat))]
        for n, score in scaled.items():
            if n not in mask.guarded:
                assert torch.equal(mask.kept[n], score >= threshold)


def test_the_scale_in_later_rounds_is_of_the_units_that_are_left() -> None:
    scores, left = torch.tensor([0.0, 1.0, -3.0, 0.0]), torch.tensor([False, True, True, False])
    given = Scored(scores=scores, left=left, num_weights=lambda: torch.tensor([0.0, 2.0, 4.0, 1.0]))
    assert NORMALISATIONS["group"](given).tolist() == [0.0, 0.5, -1.5, 0.0]
    assert NORMALISATIONS["weight"](given).tolist() == [0.0, 0.5, -0.75, 0.0]
    assert NORMALISATIONS["group"](replace(given, left=~left)).tolist() == scores.tolist()
    model = tokens()
    found = trace(model, SHAPE)
    first = select(model, found, "l1", sparsity=0.5)
    again = select(model, found, "l1", sparsity=0.5, within=first)
    assert again.num_kept < first.num_kept
    assert all(bool((kept <= first.kept[n]).all()) for n, kept in again.kept.items())


def test_an_unknown_normalisation_offers_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown normalisation 'groups'. Did you mean 'group'"):
        replace(METHODS.get("l1"), normalise="groups")
    with pytest.raises(ConfigError, match=r"Unknown scope 'heads'. Did you mean 'head'"):
        METHODS.get("l1").within("heads")  # type: ignore[arg-type]


def test_a_criterion_without_its_weights_names_the_group_and_the_way_out() -> None:
    model = tokens()
    found = trace(model, SHAPE)
    message = r"The group 'gate' \(linear\) has no norm weights to score.*leave 'linear' out of the"
    with pytest.raises(TraceError, match=message):
        select(model, found, "network-slimming", sparsity=0.5, scope="linear")


def test_a_study_prunes_every_kind_and_keys_only_what_differs() -> None:
    use: dict[str, Any] = {"name": "l1-filter", "sparsity": 0.5}
    uses = [
        use,
        {**use, "label": "same", "normalise": "none"},
        {**use, "label": "scaled", "normalise": "group"},
        {**use, "label": "all", "scope": "all"},
        {**use, "label": "each", "scope": list(ALL)},
    ]
    value = {"name": "t", "data": DIGITS.to_json(), "models": "resnet-20", "methods": uses}
    study = Study.from_json({**value, "arms": ["pruned"], "seeds": 1})
    jobs = [cell.job for cell in study.cells()]
    prunes = [job.prune for job in jobs if isinstance(job, Retrain)]
    keys = [prune.key for prune in prunes]
    assert keys[0] == keys[1]
    assert keys[3] == keys[4]
    assert len(set(keys)) == 3
    assert "normalise" not in prunes[0].spec


def test_a_pool_keeps_its_size_where_it_equals_a_width_that_is_cut() -> None:
    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), pool, nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found = trace(model, SHAPE)
    mask = select(model, found, "l1", sparsity=0.4)
    assert mask.widths() == {"0": 2}
    cut = shrink(model, mask, found).get_submodule("1")
    assert isinstance(cut, nn.MaxPool2d)
    assert cut.kernel_size == 3
    assert verify(model, mask, found) < 1e-9
