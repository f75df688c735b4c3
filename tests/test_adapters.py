"""Other libraries' ways to prune as methods: Torch-Pruning, torch.nn.utils.prune, mask files."""

import csv
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import regrow
from commands import STUDY, Command, write_study
from regrow.errors import ConfigError, TraceError
from regrow.pruning.method import CRITERIA, METHODS
from regrow.pruning.probe import Probe
from regrow.studies.study import Study
from small import bright

prune: Any = import_module("torch.nn.utils.prune")  # which has no types
CUSTOM = """
import torch
from torch.nn.utils import prune

class Every(prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def __init__(self, amount, first=0):
        self.amount, self.first = amount, first

    def compute_mask(self, t, default_mask):
        mask = default_mask.clone().flatten()
        mask[self.first : self.first + round(self.amount * len(mask))] = 0
        return mask.view_as(t)

class Odd(Every):
    def compute_mask(self, t, default_mask):
        return t

class NoAmount(prune.BasePruningMethod):
    def __init__(self):
        pass
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()


def kept_by(method: str, sparsity: float | None = 0.5, **options: Any) -> dict[str, Tensor]:
    net = network()
    trace = regrow.trace(net, (1, 3, 8, 8))
    return dict(regrow.select(net, trace, method, sparsity=sparsity, **options).kept)


def write_masks(file: str | Path, masks: dict[str, Any]) -> None:
    np.savez(file, **masks)


def theirs(method: Any, name: str, net: nn.Module) -> Tensor:
    layer = net.get_submodule(name.removesuffix(".weight"))
    method(layer)
    mask = layer.weight_mask
    assert isinstance(mask, Tensor)
    return mask.bool()


# torch.nn.utils.prune --------------------


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("l1_unstructured", lambda m: prune.l1_unstructured(m, "weight", amount=0.3)),
        ("ln_structured", lambda m: prune.ln_structured(m, "weight", amount=0.3, n=2, dim=0)),
        (
            "ln_structured(n=1, dim=1)",
            lambda m: prune.ln_structured(m, "weight", amount=0.3, n=1, dim=1),
        ),
    ],
)
def test_masks_are_those_of_torch(name: str, function: Any) -> None:
    kept, net = kept_by(f"nn-prune:{name}", 0.3), network()
    assert [*kept] == ["0.weight", "3.weight"]
    for weight, mask in kept.items():
        assert torch.equal(mask, theirs(function, weight, net))


@pytest.mark.parametrize("name", ["random_unstructured", "random_structured(dim=1)"])
def test_what_is_drawn_hangs_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first, again = (kept_by(f"nn-prune:{name}", seed=0)["3.weight"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, kept_by(f"nn-prune:{name}", seed=1)["3.weight"])
    assert int(first.sum()) == first.numel() // 2
    assert METHODS.get(f"nn-prune:{name}").designed


def test_a_method_of_ones_own_is_asked_for_its_masks(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CUSTOM)
    kept = kept_by(f"nn-prune:{file}:Every(first=2)", 0.25)["3.weight"].flatten()
    assert (~kept).nonzero().flatten().tolist() == [*range(2, 2 + len(kept) // 4)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nn-prune:l2_unstructured", "Did you mean 'l1_unstructured'"),
        ("nn-prune:ln_structured(2)", "each argument by its name"),
        ("nn-prune:ln_structured(n=2, di=0)", "cannot be made with amount=0.5"),
        ("nn-prune:mine.py:Odd", r"compute_mask must return ones and zeros of the shape \[8, 3"),
        ("nn-prune:mine.py:NoAmount", "It has to take an 'amount'"),
        ("nn-prune:mine.py:prune", "must be a class of torch.nn.utils.prune.BasePruningMethod"),
        ("nn-prune:mine.py:Missing", "Missing"),
        ("nn-prune:absent.py:Every", "there is no file 'absent.py'"),
        ("mask-file:absent.npz", "absent.npz cannot be read: No such file"),
        ("mask-file:mine.py", "A file of masks ends in .safetensors, .npz, .pt, .pth"),
        ("mask-file:broken.npz", "broken.npz cannot be read"),
        ("mask-file:broken.safetensors", "broken.safetensors cannot be read"),
        ("mask-file:code.pt", "code.pt cannot be read: UnpicklingError"),
        ("mask-file:numbers.npz", "must hold ones .kept. and zeros .pruned.. Got other numbers"),
        ("mask-file:shape.npz", r"'0.weight' must have the weight's shape \[8, 3, 3, 3\]. Got \[8"),
        ("mask-file:name.npz", "has a mask for 'conv.weight', which is not a weight of"),
        ("mask-file:whole.npz", "hold no zero, so nothing would be pruned"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(CUSTOM)
    for broken in ("broken.npz", "broken.safetensors"):
        Path(broken).write_bytes(b"nothing of the kind")
    torch.save(network(), "code.pt")
    weight = np.ones((8, 3, 3, 3))
    weight[0] = 0
    write_masks("numbers.npz", {"0.weight": weight * 0.5})
    write_masks("shape.npz", {"0.weight": weight[:, 0]})
    write_masks("name.npz", {"conv.weight": weight})
    write_masks("whole.npz", {"0.weight": np.ones((8, 3, 3, 3))})
    with pytest.raises(ConfigError, match=message):
        kept_by(name, None if name.startswith("mask-file") else 0.5)


# Files of masks --------------------


@pytest.mark.parametrize("kind", ["safetensors", "npz", "pt", "state of torch's"])
def test_masks_from_a_file_are_laid_on_the_weights_they_name(kind: str, tmp_path: Path) -> None:
    net = network()
    torch.manual_seed(3)
    masks = {n: torch.rand_like(net.get_parameter(n)) > 0.4 for n in ("3.weight", "8.weight")}
    file = tmp_path / f"masks.{kind if kind in ('safetensors', 'npz') else 'pt'}"
    if kind == "safetensors":
        save_file({name: mask.to(torch.uint8) for name, mask in masks.items()}, file)
    elif kind == "npz":
        write_masks(file, {name: mask.numpy() for name, mask in masks.items()})
    elif kind == "pt":
        torch.save({name: mask.float() for name, mask in masks.items()}, file)
    else:
        for name, mask in masks.items():
            layer = net.get_submodule(name.removesuffix(".weight"))
            prune.custom_from_mask(layer, "weight", mask)
        torch.save(net.state_dict(), file)
    kept = kept_by(f"mask-file:{file}", None)
    for name, mask in masks.items():
        assert torch.equal(kept[name], mask)
    assert bool(kept["0.weight"].all())


# Torch-Pruning --------------------


def importances() -> Any:
    return pytest.importorskip("torch_pruning", reason="needs the extra 'torch-pruning'")


@pytest.mark.parametrize("model", ["residual", "plain", "depthwise"])
@pytest.mark.parametrize(
    "name", ["MagnitudeImportance", "MagnitudeImportance(p=1)", "LAMPImportance", "FPGMImportance"]
)
def test_scores_are_those_of_torch_pruning(model: str, name: str) -> None:
    library = importances()
    net = {"residual": Residual().eval(), "plain": network(), "depthwise": depthwise()}[model]
    shape = (1, 3, 8, 8)
    trace, score = regrow.trace(net, shape), CRITERIA.get(f"torch-pruning:{name}")
    probe = Probe(net, groups=trace.groups, example=trace.example)
    graph = library.DependencyGraph().build_dependency(net, torch.zeros(shape))
    kind, _, arguments = name.partition("(")
    importance = getattr(library.importance, kind)(**eval(f"dict({arguments or ')'}"))
    roots = {}
    for group in graph.get_all_groups():  # their own way to go through a network
        module = group[0].dep.target.module
        roots[next(n for n, m in net.named_modules() if m is module)] = importance(group)
    compared = 0
    for group in trace.groups.values():
        for root in producers_of(group) & roots.keys():
            torch.testing.assert_close(score(group, probe), roots[root].detach())
            compared += 1
    assert compared == len(trace.groups) == 2, roots


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def depthwise() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


def test_gradients_are_those_of_the_mean_loss_over_the_examples() -> None:
    library = importances()
    data, net = bright(), None
    net = regrow.build(regrow.ModelSpec("vgg", vgg_of(data)), seed=0).eval()
    trace = regrow.trace(net, (1, *data.shape))
    probe = Probe(net, data, groups=trace.groups, example=trace.example)
    score = CRITERIA.get("torch-pruning:TaylorImportance")
    scores = {name: score(group, probe) for name, group in trace.groups.items()}
    total = sum(len(labels) for _, labels in probe.batches())
    for images, labels in probe.batches():
        loss = nn.functional.cross_entropy(net(images), labels, reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
    graph = library.DependencyGraph().build_dependency(net, torch.zeros(1, *data.shape))
    compared = 0
    for group in graph.get_all_groups():
        module = group[0].dep.target.module
        name = next(n for n, m in net.named_modules() if m is module)
        expected = library.importance.TaylorImportance()(group).detach()
        for ours in (g for g in trace.groups.values() if name in producers_of(g)):
            torch.testing.assert_close(scores[ours.name], expected, rtol=1e-3, atol=1e-5)
            compared += 1
    assert compared == len(trace.groups)


def producers_of(group: regrow.surgery.Group) -> set[str]:
    return {slot.tensor.removesuffix(".weight") for slot in group.slots if slot.dim == 0}


def vgg_of(data: Any) -> dict[str, Any]:
    return {
        "plan": [8, "M", 8],
        "classes": len(data.classes),
        "in_channels": data.shape[0],
        "input_size": data.shape[-1],
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MagnitudeImportanc", "Did you mean 'MagnitudeImportance'"),
        ("HessianImportance", "Unknown importance of Torch-Pruning 'HessianImportance'"),
        ("MagnitudeImportance(q=1)", "cannot be made: .*'q'"),
    ],
)
def test_importances_that_are_none_are_refused(name: str, message: str) -> None:
    importances()
    with pytest.raises(ConfigError, match=message):
        METHODS.get(f"torch-pruning:{name}")


def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'regrow\[torch-pruning\]'"):
        METHODS.get("torch-pruning:MagnitudeImportance")


def test_what_torch_pruning_does_not_follow_is_refused() -> None:
    importances()

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.table(x)).mean(1)
            return out

    net = Table()
    trace = regrow.trace(net, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(TraceError, match="Torch-Pruning groups in another way or not at all"):
        regrow.select(net, trace, "torch-pruning:MagnitudeImportance", scope="all", sparsity=0.5)


# In a study --------------------


def test_keys_hold_what_a_name_means_and_not_where_its_file_lies(tmp_path: Path) -> None:
    def key(file: Path, cell: int = -1) -> str:
        methods = [{"name": f"mask-file:{file}"}]
        return Study.from_json({**STUDY, "methods": methods}).cells()[cell].job.key

    shape, name = (4, 1, 3, 3), "features.conv1.weight"
    files = []
    for folder, gone in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        mask = np.ones(shape, dtype=bool)
        mask[:gone] = False
        files.append(tmp_path / folder / "masks.npz")
        write_masks(files[-1], {name: mask})
    first, moved, other = (key(file) for file in files)
    assert first == moved != other


def test_each_gets_the_whole_table(command: Command, tmp_path: Path) -> None:
    mask = np.ones((4, 1, 3, 3), dtype=bool)
    mask[::2] = False
    write_masks(tmp_path / "masks.npz", {"features.conv1.weight": mask})
    study = write_study(
        tmp_path,
        methods=[
            {"name": "nn-prune:l1_unstructured", "sparsity": 0.5},
            {"name": f"mask-file:{tmp_path / 'masks.npz'}"},
            *(
                [{"name": "torch-pruning:MagnitudeImportance", "macs": 0.6}]
                if has_package()
                else []
            ),
        ],
    )
    out = tmp_path / "out"
    ended = command("run", study, "--workers", "0", "--store", tmp_path / "s", "--out", out)
    assert ended.code == 0, ended.text
    with (out / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    for method in ("nn-prune:l1_unstructured", "mask-file:masks.npz"):
        found = {row["arm"]: row for row in rows if row["method"] == method}
        assert [*found] == ["pruned", "fine-tune", "scratch-e"]
        assert all(row["n"] == "2" for row in found.values())
    assert {row["sparsity"] for row in rows if row["method"] == "mask-file:masks.npz"} == {"0.5"}


def has_package() -> bool:
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return False
    return True
