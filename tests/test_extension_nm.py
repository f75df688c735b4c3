"""A pattern of 2 in 4 weights added by a user: one new file, and nothing else edited."""

from pathlib import Path

import pytest
import torch

from regrow.core.registry import load_file
from regrow.jobs.retrain import Retrain
from regrow.report.collect import collect
from regrow.run import run
from regrow.store import Store
from regrow.studies.study import Study
from small import STUDY

FILE = '''
"""Keep the two largest of every four weights along the inputs of a layer."""

import torch

from regrow.pruning.layers import Layers
from regrow.pruning.method import allocation


@allocation("mine-2:4", sparsity=0.5)
def two_of_four(layers: Layers, sparsity: float) -> dict[str, torch.Tensor]:
    """Keep the best two of every four inputs; layers of other widths stay whole."""
    kept = {}
    for name, scores in layers.items():
        dim, stays = layers.input_dim(name), torch.ones_like(scores, dtype=torch.bool)
        if layers.weight_shape(name)[dim] % 4 == 0:
            laid = layers.whole(name).movedim(dim, -1)
            ranks = laid.unflatten(-1, (-1, 4)).argsort(-1, descending=True).argsort(-1)
            stays = (ranks < 2).flatten(-2).movedim(-1, dim).flatten()
        kept[name] = stays
    return kept
'''


@pytest.fixture(autouse=True)
def _names() -> None:
    torch.set_num_threads(1)


def test_an_allocation_of_one_file_runs_in_a_study_of_three_arms(tmp_path: Path) -> None:
    file = tmp_path / "patterns.py"
    file.write_text(FILE)
    load_file(file)
    study = Study.from_json({**STUDY, "methods": {"name": "magnitude", "allocation": "mine-2:4"}})
    store = Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    runs, failures = collect(study, store)
    assert not failures
    assert [each.arm for each in runs] == ["pruned", "fine-tune", "scratch-e"]
    job = study.cells()[1].job
    assert isinstance(job, Retrain)
    kept = store.tensors(job.prune.key)
    for name in ("features.conv1.weight", "features.conv2.weight"):
        if kept[name].shape[1] % 4 == 0:
            assert bool((kept[name].reshape(8, -1, 4, 3, 3).sum(2) == 2).all())
        trained = store.tensors(job.key)[name]
        assert bool((trained[~kept[name]] == 0).all())
    assert job.prune.code is not None  # an edited file has other results
