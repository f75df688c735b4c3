"""Studies: every key that can be given, every way to get it wrong, and the graph that comes out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from regrow.errors import ConfigError, DataError, TraceError
from regrow.jobs.arms import ARMS, DEFAULT_ARMS, PRUNED, UNPRUNED
from regrow.jobs.base import all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import register_model
from regrow.pruning.method import METHODS
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.train import RECIPES
from small import PLAN

DIGITS = {"name": "digits", "subset": 128, "test_subset": 64}
VGG = {"name": "vgg", **PLAN, "label": "net"}
BASE: dict[str, Any] = {
    "data": DIGITS,
    "models": VGG,
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "scratch-e"],
    "seeds": 1,
    "recipe": {"epochs": 2},
}


def study(**changes: Any) -> Study:
    return Study.from_json({k: v for k, v in {**BASE, **changes}.items() if v is not None})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def retrain(cell: Cell) -> Retrain:
    assert isinstance(cell.job, Retrain)
    return cell.job


# Reading ----------------------------------------------------------------------------------------


def test_every_key_is_read() -> None:
    full = Study.from_json(
        {
            "name": "full",
            "title": "Everything at once",
            "margin": 0.5,
            "data": [DIGITS, {"name": "digits", "label": "all digits", "validation": 0.1}],
            "models": ["vgg-16", {"name": "VGG_16", "width": 0.25}],
            "methods": [
                {"name": "l1-filter", "sparsity": [0.3, 0.6], "target": "VGG-16-A"},
                {"name": "network-slimming", "sparsity": 0.5, "strength": 1e-3},
                {"name": "l1-filter", "label": "all alike", "shares": [0.5] * 13},
                {
                    "name": "l1-filter",
                    "label": "random everywhere",
                    "sparsity": 0,
                    "criterion": "random",
                    "allocation": "global",
                    "scope": ["conv", "linear"],
                },
            ],
            "arms": [
                "Unpruned",
                {"name": "fine-tune", "epochs": 12, "lr": 0.005},
                {"name": "tune-80", "like": "fine-tune", "share": 0.5, "schedule": "full"},
                {"name": "ticket", "start": "initial"},
                {"name": "scratch-b", "cap": 3},
            ],
            "seeds": [3, 5],
            "recipe": {"name": "cifar", "epochs": 20, "augmentation": "flip"},
        }
    )
    assert (full.name, full.title, full.margin) == ("full", "Everything at once", 0.5)
    first, *_ = full.experiments
    labels = [(one.data_label, one.model_label) for one in full.experiments]
    assert labels == [
        (data, model)
        for data in ("digits (128 images)", "all digits")
        for model in ("vgg-16", "vgg-16 (width 0.25)")
    ]
    assert [use.label for use in first.uses] == [
        *("l1-filter", "network-slimming", "all alike", "random everywhere")
    ]
    assert [cut.label for cut in first.uses[0].cuts] == ["0.3", "0.6", "vgg-16-a"]
    assert first.uses[0].cuts[2].shares == METHODS.get("l1-filter").targets["vgg-16-a"].shares
    assert first.uses[1].strength == 1e-3
    assert first.uses[2].cuts[0].shares == (0.5,) * 13
    own = first.uses[3].method
    assert (own.criterion, own.allocation, own.scope) == ("random", "global", ("conv", "linear"))
    unpruned, tune, long, ticket, scratch = first.arms
    assert unpruned is not None
    assert unpruned == UNPRUNED
    assert (tune.budget.kind, tune.budget.amount, tune.lr) == ("epochs", 12, 0.005)
    assert (long.start, long.budget.amount, long.schedule) == ("inherited", 0.5, "full")
    assert (ticket.start, ticket.budget.kind) == ("initial", "equal-epochs")
    assert scratch.budget.cap == 3
    assert first.seeds == (3, 5)
    assert first.recipe == replace(RECIPES["cifar"], epochs=20, augmentation="flip")


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    one = Study.load(written(tmp_path, "data: digits\nmodels: vgg-16\n"))
    assert (one.name, one.title, one.margin) == ("some", "some", None)
    (experiment,) = one.experiments
    assert experiment.arms == DEFAULT_ARMS
    assert experiment.seeds == (0, 1, 2, 3, 4)
    assert experiment.recipe == RECIPES["cifar"]
    assert experiment.uses == ()


def test_numbers_are_what_people_mean(tmp_path: Path) -> None:
    text = yaml.safe_dump({**BASE, "recipe": None}).replace("recipe: null", "recipe: {lr: 1e-3}")
    assert Study.load(written(tmp_path, text)).experiments[0].recipe.lr == 0.001
    text = text.replace("1e-3", "5E-2")
    assert Study.load(written(tmp_path, text)).experiments[0].recipe.lr == 0.05


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    text = """
data: digits
models: vgg-16
methods:
  - &half {name: l1-filter, sparsity: 0.5}
  - {<<: *half, label: again, sparsity: 0.25}
"""
    (one,) = Study.load(written(tmp_path, text)).experiments
    assert [use.cuts[0].sparsity for use in one.uses] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"some.yaml: A study must be a mapping of name, title, data.*Got None"),
        ("- data: digits\n", r"A study must be a mapping of .*Got \[\{'data'"),
        ("data: [digits\n", r"The study '.*some.yaml' is not YAML: .*line 2"),
        ("data: digits\n models: a\n", r"is not YAML"),
        ("data: digits\ndata: digits\n", r"is not YAML: the key 'data' occurs twice.*line 2"),
        ("data: digits\nmodels: {name: vgg-16, name: vgg-1}\n", "the key 'name' occurs twice"),
        ("data: !!python/object:os.system x\n", "is not YAML: could not determine a constructor"),
        ("data: digits\nmodels: vgg-16\nname: 2024-01-01\n", "The 'name' must be a text. Got dat"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_study_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        Study.load(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the study '.*none.yaml': No such file"):
        Study.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"Cannot read .*: Is a directory. Give the path of a"):
        Study.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"Cannot read the study '.*latin.yaml': 'utf-8' codec"):
        Study.load(tmp_path / "latin.yaml")


L1 = {"name": "l1-filter"}
WRONG: list[tuple[dict[str, Any], str]] = [
    # Names
    ({"models": "vgg-17"}, "Unknown model 'vgg-17'. Did you mean 'vgg-1"),
    ({"models": 16}, "A model name must be a text. Got 16"),
    ({"models": {"width": 0.5}}, "models: an entry needs a 'name'. Got {'width': 0.5}"),
    ({"data": "digit"}, "Unknown data set 'digit'. Did you mean 'digits'"),
    ({"data": {"subset": 5}}, "A data set needs a 'name'"),
    ({"methods": "l9"}, "Unknown method 'l9'"),
    ({"methods": {"name": "l1-fliter", "sparsity": 0.5}}, "Did you mean 'l1-filter'"),
    ({"methods": {"sparsity": 0.5}}, "methods: an entry needs a 'name'"),
    ({"methods": {**L1, "sparsity": 0.5, "criterion": "l3"}}, "Unknown criterion 'l3'"),
    ({"methods": {**L1, "sparsity": 0.5, "allocation": "globl"}}, "Did you mean 'global'"),
    ({"methods": {**L1, "sparsity": 0.5, "scope": "convs"}}, "Unknown scope 'convs'. Did you me"),
    ({"methods": {**L1, "target": "vgg-16-b"}}, "Unknown target 'vgg-16-b'. Did you mean 'vgg-16"),
    ({"arms": ["scratch-c"]}, "Unknown arm 'scratch-c'. Did you mean 'scratch-"),
    ({"arms": [{"name": "mine", "like": "scrach-e"}]}, "Unknown arm 'scrach-e'. Did you mean 's"),
    ({"arms": [{"like": "scratch-e"}]}, "arms: an entry needs a 'name'"),
    ({"recipe": "cifr"}, "Unknown recipe 'cifr'. Did you mean 'cifar'"),
    ({"recipe": {"augmentation": "flop"}}, "Recipe: Unknown augmentation 'flop'. Did you mean 'f"),
    # Keys
    ({"model": "vgg-16"}, "A study: Unknown key 'model'. Did you mean 'models'"),
    ({"data": {"name": "digits", "subsets": 5}}, "Unknown option 'subsets'. Did you mean 'subse"),
    ({"models": {"name": "vgg-16", "widht": 1}}, "Unknown argument 'widht'. Did you mean 'width'"),
    ({"models": {"name": "vgg-16", "classes": 3}}, "'classes' comes from the data set"),
    ({"methods": {**L1, "sparcity": 0.5}}, "methods: an entry: Unknown key 'sparcity'. Did you m"),
    ({"arms": [{"name": "fine-tune", "epoch": 3}]}, "be rewound. Got 'inherited'; .* 'epochs'"),
    ({"recipe": {"epoch": 3}}, "Recipe: Unknown field 'epoch'. Did you mean 'epochs'"),
    # Types and ranges
    ({"models": {"name": "vgg-16", "width": "1"}}, "'width' must be a number. Got '1'"),
    ({"methods": 3}, "methods: an entry must be a mapping of name, label, .*Got 3"),
    ({"arms": [3]}, "arms: an entry must be a mapping of name, like, .*Got 3"),
    ({"arms": [{"name": 3}]}, "The 'name' must be a text. Got 3"),
    ({"recipe": [1]}, "A recipe must be a name or a mapping"),
    ({"recipe": {"epochs": 0}}, "'epochs' of a recipe must be an int of at least 1. Got 0"),
    ({"data": {**DIGITS, "label": 3}}, "The 'label' must be a text. Got 3"),
    ({"title": ""}, "The 'title' must be a text. Got ''"),
    ({"name": "a/b"}, "can have no slash and no dot in front. Got 'a/b'"),
    ({"name": "../up"}, "can have no slash and no dot in front"),
    *(
        ({"margin": bad}, "The 'margin' must be a number above 0")
        for bad in (0, -1, True, "0.3", float("nan"), float("inf"))
    ),
    *(
        ({"methods": {**L1, "sparsity": bad}}, r"'l1-filter': .*a number in \[0, 1\). Got")
        for bad in (1, 1.0, -0.1, "0.5", True, None, [0.5, 1.5], float("nan"))
    ),
    ({"methods": {**L1, "shares": [0.5, 2]}}, r"'l1-filter': .*a number in \[0, 1\). Got 2"),
    *(
        ({"seeds": bad}, "The 'seeds' must be how many .* or a list of at least one seed. Got")
        for bad in (0, -1, True, "3", [], [1.5], [-1], [True])
    ),
    *(
        (
            {"methods": {"name": "network-slimming", "sparsity": 0.5, "strength": bad}},
            "'network-slimming': 'strength' must be at least 0. Got",
        )
        for bad in (-1, "1e-4", True, float("inf"), float("nan"))
    ),
    # What is missing, empty, twice, or together
    ({"data": None}, "'data' is missing. Name at least one"),
    ({"models": None}, "'models' is missing. Name at least one"),
    ({"data": []}, "'data' must name at least one. Got an empty list"),
    ({"models": []}, "'models' must name at least one. Got an empty list"),
    ({"arms": []}, "'arms' must name at least one. Got an empty list"),
    ({"methods": None, "arms": ["scratch-e"]}, "There is nothing to run: without 'methods'"),
    ({"methods": L1}, r"'l1-filter' needs a 'sparsity' in \[0, 1\), .* or a 'target' \(vgg-16-a"),
    ({"methods": "magnitude"}, r"'magnitude' needs a 'sparsity' in \[0, 1\), or several\."),
    ({"methods": {**L1, "sparsity": []}}, "needs a 'sparsity'"),
    ({"methods": {**L1, "sparsity": 0.5, "strength": 1}}, "no penalty .*takes no 'strength'"),
    ({"models": ["vgg-16", "VGG16"]}, "models: 'vgg-16' occurs twice; give one .*'label'"),
    ({"data": ["digits", "digits"]}, "data: 'digits' occurs twice"),
    ({"methods": [{**L1, "sparsity": s} for s in (0.3, 0.5)]}, "methods: 'l1-filter' occurs tw"),
    ({"methods": {**L1, "sparsity": [0.5, 0.50]}}, "'l1-filter': '0.5' occurs twice; leav"),
    ({"arms": ["scratch-e", "Scratch_E"]}, "arms: 'scratch-e' occurs twice"),
    ({"seeds": [1, 1]}, "seeds: '1' occurs twice"),
    # Arms
    ({"arms": [{"name": "fine-tune", "epochs": 3, "share": 0.5}]}, "give one of epochs and share"),
    ({"arms": [{"name": "fine-tune", "cap": 2}]}, "only a budget of equal FLOPs can have a 'cap'"),
    ({"arms": [{"name": "scratch-e", "cap": 2}]}, "only a budget of equal FLOPs can have a 'cap'"),
    ({"arms": [{"name": "scratch-b", "cap": 0.5}]}, "cap must be a number of at least 1"),
    ({"arms": [{"name": "fine-tune", "epochs": 1.5}]}, "epochs must be an int of at least 1"),
    ({"arms": [{"name": "mine", "like": "scratch-e", "budget": "long"}]}, "A budget must be one"),
    ({"arms": [{"name": "mine", "start": "warm"}]}, "'start' of the arm 'mine' must be one of"),
    ({"arms": [{"name": "pruned", "epochs": 2}]}, "'pruned' is measured, not trained: it takes"),
    ({"arms": [{"name": "mine", "like": "unpruned"}]}, "'unpruned' is measured, not trained"),
    ({"arms": [{"name": "scratch-e", "like": "fine-tune"}]}, "with 'like' the arm needs another"),
    ({"arms": [{"name": "scratch-e", "start": "initial"}]}, "with 'start' the arm needs another"),
    # Experiments
    ({"experiments": []}, r"'experiments' must be a list of mappings. Got \[\]"),
    ({"experiments": {}}, "'experiments' must be a list of mappings. Got {}"),
    ({"experiments": [3]}, "experiments, number 1 must be a mapping of data, models"),
    ({"experiments": [{}, {"margin": 1}]}, "experiments, number 2: Unknown key 'margin'"),
    ({"experiments": [{}, {"models": "vgg-17"}]}, "experiments, number 2: Unknown model 'vgg-17'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_cannot_be_meant_is_refused_with_a_reason(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**changes)


# Expanding --------------------------------------------------------------------------------------


def test_cells_are_in_report_order() -> None:
    methods = [{"name": "l1-filter", "sparsity": [0.3, 0.6]}, {"name": "random", "sparsity": 0.5}]
    cells = study(methods=methods, arms=["pruned", "unpruned", "scratch-e"], seeds=2).cells()
    rows = list(dict.fromkeys(cell.place[3:6] for cell in cells))
    assert rows == [
        ("", "", "unpruned"),
        *(
            (method, share, arm)
            for method, share in (("l1-filter", "0.3"), ("l1-filter", "0.6"), ("random", "0.5"))
            for arm in ("pruned", "scratch-e")
        ),
    ]
    assert [cell.seed for cell in cells] == [0, 1] * 7


def test_a_name_written_otherwise_is_the_same_arm() -> None:
    (cell, _) = study(arms=["UNPRUNED", {"name": "Pruned"}]).cells()
    assert isinstance(cell.job, Train)
    assert study(arms=["Pruned"]).experiments[0].arms == (PRUNED,)


def test_arms_stand_on_as_little_as_they_can() -> None:
    arms = ["fine-tune", "scratch-e", "winning-ticket", "pruned"]
    (plain,) = {cell.job.key: cell.job for cell in study(arms=["unpruned"]).cells()}.values()
    cells = {cell.arm.name: retrain(cell) for cell in study(arms=arms).cells()}
    prune = cells["scratch-e"].prune
    assert prune.inputs == (plain,)
    assert all(job.prune.key == prune.key for job in cells.values())
    assert [name for name, job in cells.items() if job.parent is not None] == [
        "fine-tune", "pruned"
    ]  # fmt: skip


def test_scratch_of_a_predefined_target_needs_no_trained_network() -> None:
    both = study(
        models="vgg-16",
        methods={"name": "l1-filter", "target": "vgg-16-a"},
        arms=["fine-tune", "scratch-e", "winning-ticket"],
        seeds=2,
    )
    cells = {(cell.arm.name, cell.seed): retrain(cell) for cell in both.cells()}
    scratch = [cells["scratch-e", seed] for seed in (0, 1)]
    assert all(job.prune.inputs == () for job in scratch)
    assert scratch[0].prune.key == scratch[1].prune.key
    assert scratch[0].prune.method.criterion == "first"
    for arm in ("fine-tune", "winning-ticket"):
        assert cells[arm, 0].prune.inputs != ()
        assert cells[arm, 0].prune.method.criterion == "l1-norm"


@pytest.mark.parametrize(
    ("model", "method"),
    [
        (VGG, {"name": "magnitude", "shares": [0.5, 0.5, 0.5]}),
        (
            {"name": "preresnet-56", "depth": 11, "width": 0.25},
            {"name": "l1-filter", "criterion": "norm-scale", "scope": "view", "shares": [0.5] * 4},
        ),
    ],
)
def test_where_positions_matter_scratch_takes_the_mask_of_the_trained_network(
    model: Any, method: Any
) -> None:
    (cell,) = study(models=model, methods=method, arms=["scratch-e"]).cells()
    assert retrain(cell).prune.inputs != ()


def test_choices_by_chance_need_no_trained_network() -> None:
    methods = {"name": "random", "sparsity": 0.5}
    scratch, tuned = study(methods=methods, arms=["scratch-e", "fine-tune"]).cells()
    assert retrain(scratch).prune.inputs == ()
    assert retrain(tuned).inputs == (retrain(scratch).prune, retrain(tuned).parent)


def test_a_penalty_trains_a_parent_of_its_own_by_the_familys_strength() -> None:
    def parent(model: Any, **more: Any) -> Train:
        method = {"name": "network-slimming", "sparsity": 0.5, **more}
        (cell,) = study(models=model, methods=method, arms=["fine-tune"]).cells()
        found = retrain(cell).parent
        assert isinstance(found, Train)
        return found

    preresnet = {"name": "preresnet-56", "depth": 11, "width": 0.25}
    for train, strength in (
        (parent(VGG), 1e-4),
        (parent(preresnet), 1e-5),
        (parent(VGG, strength=0.01), 0.01),
        (parent(VGG, strength=0), 0.0),
    ):
        assert train.treated is not None
        assert (train.treated.method, train.treated.strength) == ("network-slimming", strength)
    unpruned = study(arms=["unpruned"]).cells()[0].job
    assert isinstance(unpruned, Train)
    assert unpruned.treated is None


def test_experiments_take_from_the_top_what_they_do_not_say() -> None:
    own = {"models": {"name": "vgg-16", "width": 0.1}, "seeds": [7]}
    whole = study(experiments=[{}, own], arms=["unpruned"])
    one, two = whole.experiments
    assert (one.model_label, one.seeds) == ("net", (0,))
    assert (two.model_label, two.seeds) == ("vgg-16 (width 0.1)", (7,))
    assert (one.recipe, one.uses) == (two.recipe, two.uses)


def test_what_several_experiments_share_stands_in_the_table_once() -> None:
    other = {"methods": {"name": "random", "sparsity": 0.5}}
    cells = study(experiments=[{}, other, {}], seeds=2).cells()
    assert [cell.arm.name for cell in cells].count("unpruned") == 2
    assert len(cells) == 2 * 3
    assert len({cell.place for cell in cells}) == len(cells)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"recipe": {"epochs": 3}}, "the recipe"),
        ({"data": {**DIGITS, "subset": 64, "label": "digits (128 images)"}}, "the data"),
        ({"models": {**VGG, "norm_scale": 1.0}, "recipe": "cifar"}, "the model and the recipe"),
    ],
)
def test_two_networks_under_one_label_are_refused(change: dict[str, Any], differs: str) -> None:
    message = f"Two experiments call their network 'net' on 'digits .128 images.', .* in {differs}:"
    with pytest.raises(ConfigError, match=rf"{message}.* another 'label'"):
        study(experiments=[{}, change])
    if "models" not in change:
        labelled = {**change, "models": {**VGG, "label": "other"}}
        assert len(study(experiments=[{}, labelled]).cells()) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            {"methods": {"name": "network-slimming", "sparsity": 0.5}},
            {"methods": {"name": "network-slimming", "sparsity": 0.5, "strength": 1}},
        ),
        (
            {"arms": [{"name": "fine-tune", "epochs": 1}]},
            {"arms": [{"name": "fine-tune", "epochs": 2}]},
        ),
    ],
)
def test_two_meanings_of_one_row_are_refused(first: dict[str, Any], second: dict[str, Any]) -> None:
    message = r"mean different things by the row 'digits \(128 images\) / net / .*another 'label'"
    with pytest.raises(ConfigError, match=message):
        study(experiments=[first, second]).cells()


def test_jobs_are_listed_once_each() -> None:
    asked = study(experiments=[{}, {"seeds": 3}])
    assert len({job.key for job in asked.jobs()}) == len(asked.jobs()) == 2 * 3


def test_a_target_of_another_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'resnet-56-a' of l1-filter is made for resnet-56. Got the model vgg"
    ):
        study(methods={"name": "l1-filter", "target": "resnet-56-a"}).cells()


def test_shares_for_another_number_of_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'shares' gives 2 shares, and vgg has 3 groups in the"):
        study(methods={"name": "l1-filter", "shares": [0.5, 0.5]}).cells()


def test_a_network_without_what_a_method_prunes_is_refused_before_training() -> None:
    method = {"name": "l1-filter", "scope": "stream", "sparsity": 0.5}
    with pytest.raises(
        TraceError, match=r"prunes channels of residual streams \(scope stream\), and this"
    ):
        study(methods=method).cells()


def test_data_that_is_missing_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        study(data=f"folder:{tmp_path / 'none'}").cells()


def test_pruned_networks_of_a_method_are_sent_without_its_penalty() -> None:
    """A function cannot always be sent to another process, and the pruning does not need it."""
    methods = {"name": "network-slimming", "sparsity": 0.5}
    prunings = [retrain(cell).prune for cell in study(methods=methods, arms=["pruned"]).cells()]
    assert all(isinstance(p, Prune) and p.method.treatment is None for p in prunings)


def test_every_registered_arm_can_be_asked_for() -> None:
    names = list(ARMS.names())
    assert [arm.name for arm in study(arms=names).experiments[0].arms] == names


def test_slimming_a_network_without_norms_is_refused_before_training() -> None:

    @register_model("no-norms", family="example")
    def no_norms(*, classes: int, in_channels: int = 3, input_size: int = 32) -> nn.Module:
        parts = nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Conv2d(8, classes, 3)
        return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    methods = {"name": "network-slimming", "sparsity": 0.5}
    message = (
        r"no-norms: network-slimming .*\(scope normed-conv, view, normed-linear\), and this "
        r"network has none .* '0' \(its kind is conv, without a norm of its own\)"
    )
    with pytest.raises(TraceError, match=message):
        study(models="no-norms", methods=methods).cells()


@pytest.mark.parametrize(
    ("first", "method", "message"),
    [
        (lambda: nn.LazyConv2d(8, 3), "l1-filter", r"lazy layers, .* '0'. Run it once"),
        (lambda: weight_norm(nn.Conv2d(1, 8, 3)), "magnitude", "weights of '0' cannot be held"),
        (lambda: weight_norm(nn.Conv2d(1, 8, 3)), "l1-filter", "Kept whole: '0' .its weight is"),
    ],
)
def test_networks_that_cannot_be_pruned_so_are_refused_by_name_before_training(
    first: Callable[[], nn.Module],
    method: str,
    message: str,
) -> None:

    name = f"special-{message}"  # for each another, because traces are remembered

    @register_model(name, family="example")
    def special(*, classes: int, in_channels: int = 3, input_size: int = 32) -> nn.Module:
        return nn.Sequential(first(), nn.ReLU(), nn.Conv2d(8, classes, 3), nn.Flatten(2))

    with pytest.raises(TraceError, match=f"^special-.*: .*{message}"):
        study(models=name, methods={"name": method, "sparsity": 0.5}).cells()


def test_each_job_of_a_study_has_its_own_label() -> None:
    methods = [
        {"name": "l1-filter", "sparsity": 0.5},
        {"name": "width", "sparsity": 0.5},
        {"name": "network-slimming", "sparsity": [0.3, 0.5]},
    ]
    arms = ["unpruned", "fine-tune", "scratch-e"]
    asked = {"methods": methods, "arms": arms, "seeds": 2, "budgets": [2, 4]}
    several = study(
        data=[{**DIGITS, "label": "a"}, {**DIGITS, "subset": 64, "label": "b"}], **asked
    )
    jobs = all_jobs(several.jobs()).values()
    labels = {job.label for job in jobs}
    assert len(labels) == len(jobs)
    assert "b / net for 4 epochs l1-filter 0.5 fine-tune seed 1" in labels
    alone = {job.label for job in all_jobs(study(**asked).jobs()).values()}
    assert alone == {label.partition(" / ")[2] for label in labels}
    each = study(
        data=None, experiments=[{"data": one} for one in (DIGITS, {**DIGITS, "subset": 64})]
    )
    assert {job.label.partition(" / ")[0] for job in each.jobs()} == {
        "digits (128 images)",
        "digits (64 images)",
    }
