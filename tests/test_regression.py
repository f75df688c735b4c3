"""LASSO's choice against planted channels, a closed form and the optimality conditions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from regrow.methods.regression import entry_penalties
from regrow.pruning.method import CRITERIA, METHODS
from regrow.pruning.probe import Probe
from regrow.pruning.select import groups_in_scope
from regrow.surgery import trace
from small import SHAPE, digits, small


def random_products(seed: int, num_units: int = 8) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(60, num_units)) @ (np.eye(num_units) + 0.3 * draw.normal(size=(8, 8)))
    return rows.T @ rows / 60


@pytest.mark.parametrize("seed", range(3))
def test_planted_channels_are_kept(seed: int) -> None:
    """The next layer reads 3 of 8 channels; the others are as loud."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1), nn.Flatten()
    )
    planted = [1, 4, 6]
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(0.5)  # none of them silent
        read = torch.zeros(8)
        read[planted] = 1.0
        model.get_parameter("2.weight").mul_(read[:, None, None])
    group = trace(model, SHAPE).groups["0"]
    scores = CRITERIA.get("lasso-path")(group, Probe(model, digits(), num_images=32))
    assert sorted(scores.argsort(descending=True)[:3].tolist()) == planted
    assert (scores > 0).tolist() == [unit in planted for unit in range(8)]


@pytest.mark.parametrize("seed", range(4))
def test_a_channel_enters_where_a_lasso_begins_to_use_it(seed: int) -> None:
    """Against scikit-learn's coordinate descent, an algorithm of another kind."""
    products = random_products(seed)
    penalties = entry_penalties(products)
    order = np.argsort(-penalties)
    root = np.linalg.cholesky(products).T * np.sqrt(8)  # rows with these mean products
    for num, unit in enumerate(order, start=1):
        used = []
        for penalty in (0.999 * penalties[unit], 1.001 * penalties[unit]):
            lasso = Lasso(alpha=penalty, fit_intercept=False, tol=1e-10, max_iter=100_000)
            used.append(set(np.flatnonzero(lasso.fit(root, root.sum(axis=1)).coef_)))
        below, above = used
        assert unit in below - above
        assert below <= set(order[:num])


def test_channels_that_act_apart_enter_in_the_order_of_their_energy() -> None:
    energies = np.array([0.3, 0.0, 0.1, 0.6])
    np.testing.assert_allclose(entry_penalties(np.diag(energies)), energies, rtol=1e-6, atol=1e-12)


def test_copies_and_silent_channels_make_no_trouble() -> None:
    products = random_products(0)
    index = [0, 1, 1, 2, 2, 2]
    padded = np.zeros((7, 7))
    padded[:6, :6] = products[np.ix_(index, index)]
    penalties = entry_penalties(padded)
    assert np.isfinite(penalties).all()
    assert penalties[6] == 0.0
    assert (penalties >= 0.0).all()
    assert min(penalties[0], penalties[1:3].max(), penalties[3:6].max()) > 0.0


def test_a_group_that_nothing_comes_from_scores_zero() -> None:
    model, found = small("vgg")
    with torch.no_grad():
        model.get_parameter("features.conv2.weight").zero_()
    group = found.groups["features.conv1"]
    scores = CRITERIA.get("lasso-path")(group, Probe(model, digits(), num_images=8))
    assert torch.equal(scores, torch.zeros(group.size))


def test_scores_compare_between_groups_whatever_the_scale_of_their_readers() -> None:
    model, found = small("resnet")
    group = groups_in_scope(model, found, METHODS.get("regression"))["features.stage1.0.conv1"]
    score = CRITERIA.get("lasso-path")
    before = score(group, Probe(model, digits(), num_images=16))
    with torch.no_grad():
        model.get_parameter("features.stage1.0.conv2.weight").mul_(4.0)
    after = score(group, Probe(model, digits(), num_images=16))
    torch.testing.assert_close(after, before)
    assert float(before.max()) <= 1.0 + 1e-6
