"""Arms that learn from the unpruned network: the loss, the steps, the jobs, what they cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from regrow.core.choice import Choice
from regrow.core.seeds import seeded
from regrow.data import normalise
from regrow.errors import ConfigError
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import model_cost
from regrow.report import summarise
from regrow.report.collect import results_of
from regrow.run import run
from regrow.run.estimate import estimate
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train import Recipe, Training, fit, make_objective
from small import bright
from test_gpu_sharing import Bodies
from test_training import QUICK, assert_same_bits, network

TAUGHT = Choice("distillation", temperature=2.0, weight=0.7)
STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 96, "test_subset": 64},
    "models": {"name": "vgg", "plan": [6, "M", 8]},
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": [
        {"name": "scratch-b", "cap": 3},
        {
            "name": "taught",
            "like": "scratch-b",
            "cap": 3,
            "objective": {"name": "distillation", "temperature": 2},
        },
    ],
    "seeds": 1,
    "recipe": {"epochs": 2, "batch": 32, "lr": 0.05},
}


def teacher() -> torch.nn.Module:
    one = network()
    fit(Training(one, bright(), QUICK, seed=1))
    return one.eval()


def taught(**options: Any) -> Training:
    recipe = replace(QUICK, objective=TAUGHT, channels_last=False)
    return Training(network(), bright(), recipe, seed=7, teacher=teacher(), **options)


def test_the_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    outputs, other, targets = torch.randn(6, 4), torch.randn(6, 4), torch.randint(0, 4, (6,))
    wanted = torch.softmax(other / 2, dim=1)
    soft = (wanted * (wanted.log() - torch.log_softmax(outputs / 2, dim=1))).sum(1).mean()
    expected = 0.7 * 4 * soft + 0.3 * F.cross_entropy(outputs, targets)
    found = make_objective(TAUGHT).mean(outputs, targets, teacher=other)
    torch.testing.assert_close(found, expected)


def test_steps_equal_a_plain_loop() -> None:
    ours, model, data, shown = taught(), network(), bright(), teacher()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    order = torch.randperm(70, generator=seeded(7, "shuffle", 0))
    draws = data.train.draw(data.augmentation, seeded(7, "augment", 0))
    for places in torch.split(torch.arange(70), 16):
        pixels = data.train.augmented(order[places], draws[places], kind=data.augmentation)
        x, y = normalise(pixels, data.mean, data.std), data.train.labels[order[places]]
        with torch.no_grad():
            wanted = torch.log_softmax(shown(x) / 2, dim=1)
        outputs = model(x)
        own = torch.log_softmax(outputs / 2, dim=1)
        soft = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        optimiser.zero_grad()
        loss = 0.7 * 4 * soft + 0.3 * F.cross_entropy(outputs, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        ours.step()
        for name, parameter in ours.model.named_parameters():
            expected = model.get_parameter(name)
            torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ["single calls", "recorded"])
def test_resumes_to_the_same_bits_and_leaves_the_teacher_alone(engine: str) -> None:
    def begun() -> Training:
        return taught(recorder=Bodies() if engine == "recorded" else None)

    undisturbed, killed, resumed = begun(), begun(), begun()
    fit(undisturbed)
    for _ in range(7):
        killed.step()
    resumed.restore(*killed.state())
    fit(resumed)
    assert_same_bits(resumed, undisturbed)
    assert undisturbed.notice is None
    assert not any("teacher" in name for name in undisturbed.state()[0])


def test_an_arm_is_taught_by_the_unpruned_network_and_pays_for_it(tmp_path: Path) -> None:
    study = Study.from_json(STUDY)
    plain, taught = study.jobs()
    assert isinstance(plain, Retrain)
    assert isinstance(taught, Retrain)
    assert plain.teacher is None
    assert taught.teacher is not None
    assert taught.teacher in taught.inputs
    assert taught.spec["arm"]["objective"] == {"name": "distillation", "temperature": 2}
    assert "objective" not in plain.spec["arm"]

    store = Store.open(tmp_path / "store", create=True)
    run(study.jobs(), store, workers=0)
    scratch, learnt = (store.record(job.key) for job in (plain, taught))
    whole = model_cost(taught.prune.model, taught.data.shape).flops
    # Equal FLOPs, of which the teacher takes one pass of the unpruned network for each image.
    ratio = whole * 3 / (learnt["flops"] * 3 + whole)
    assert learnt["epochs"] == int(2 * min(ratio, 3)) < scratch["epochs"]
    assert learnt["teacher_flops"] == whole * learnt["samples"]
    own = 3 * learnt["flops"] * learnt["samples"]
    assert learnt["training_flops"] == own + learnt["teacher_flops"]
    assert "teacher_flops" not in scratch

    runs = results_of(study, store).runs
    rows = summarise(runs).set_index("arm")
    said, other = (str(rows.loc[arm, "fairness"]) for arm in ("taught", "scratch-b"))
    assert f"with distillation (the teacher's {learnt['teacher_flops']:.3g} FLOPs counted)" in said
    assert "distillation" not in other
    parent = store.record(taught.teacher.key)["training_flops"]
    assert rows.loc["taught", "training_flops"] == parent + learnt["training_flops"]
    ends = {one.arm: one.ending for one in runs}
    assert ends["taught"] is None  # of another loss than the parent's
    assert ends["scratch-b"] is not None


def test_what_is_left_is_estimated_with_the_teacher() -> None:
    (job,) = Study.from_json({**STUDY, "arms": STUDY["arms"][1:]}).jobs()
    assert isinstance(job, Retrain)
    found = estimate([job], [], workers=1)
    whole = model_cost(job.prune.model, job.data.shape).training_flops(96 * 2)
    assert found.training_flops == pytest.approx(2 * whole, rel=0.25)  # equal FLOPs, whole epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": {"objective": "distillation"}}, "learns from the unpruned network, which this"),
        (
            {"arms": [{"name": "x", "like": "fine-tune", "objective": {"name": "distilation"}}]},
            "distillation",
        ),
        (
            {
                "arms": [
                    {
                        "name": "x",
                        "like": "fine-tune",
                        "objective": {"name": "distillation", "temperature": 0},
                    }
                ]
            },
            r"'temperature' must be in \[0.1, 1000\]. Got 0",
        ),
        ({"arms": [{"name": "pruned", "objective": "cross-entropy"}]}, "measured, not trained"),
        (
            {"recipe": {"schedule": "one-cycle"}, "arms": ["fine-tune"]},
            "has none: it changes at each update. Give the arm 'peak_rates'",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_a_study_is_read(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.from_json({**STUDY, **change})


def test_an_edited_objective_does_not_find_old_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.core.registry import load_file

    text = (
        "from torch.nn import functional as F\n"
        "from regrow.train import register_objective\n\n"
        "@register_objective('own-loss')\n"
        "def own_loss(outputs, targets, *, power: float = {power}):\n"
        "    return F.cross_entropy(outputs, targets, reduction='none') ** power\n"
    )
    keys = []
    for number, power in enumerate((1.0, 2.0)):
        file = tmp_path / str(number) / "own_loss.py"
        file.parent.mkdir()
        file.write_text(text.format(power=power))
        load_file(file)
        recipe = {**STUDY["recipe"], "objective": "own-loss"}
        study = Study.from_json({**STUDY, "recipe": recipe, "arms": ["unpruned", "scratch-e"]})
        keys.append([job.key for job in study.jobs()])
        monkeypatch.undo()
    assert not set(keys[0]) & set(keys[1])
    assert Recipe().code() is None
