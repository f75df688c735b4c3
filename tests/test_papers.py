"""Papers are folders: the second one that comes along, and one of the user's own."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from browser import check_accessible
from commands import Command
from regrow.errors import ConfigError
from regrow.jobs.arms import Arm, Budget
from regrow.reproduce import paper as paper_module
from regrow.reproduce import scales
from regrow.reproduce.claims import evaluate_claims
from regrow.reproduce.images import Request
from regrow.reproduce.paper import RESULT, find_entry, find_paper, paper_in, papers
from regrow.reproduce.plan import Plan, prepare
from regrow.reproduce.printed import cells, records
from regrow.studies import expand
from regrow.train import Recipe

WANG = find_paper("wang2023")
SOURCE = Path(__file__).parents[2] / "shared" / "papers" / "wang2023" / "results.csv"

FILES = {
    "paper.yaml": """
        title: A paper of one table
        reference: Nobody, 2026
        runs: 2
        datasets: {digits: {label: Digits}}
        arms: {fine-tune: tuned}
    """,
    "entries.yaml": """
        table-1: {about: "Pruned digits: accuracy in %", table: 1, studies: [one]}
    """,
    "studies/one.yaml": """
        title: Table 1
        paper: {table: 1, dataset: Digits, model: Tiny}
        data: {name: digits, subset: 60, test_subset: 40}
        seeds: 1
        recipe: {name: cifar, epochs: 1, batch: 20}
        arms: [unpruned, fine-tune]
        experiments:
          - models: {name: vgg, plan: [4, M, 4]}
            methods: {name: l1-filter, sparsity: 0.5}
    """,
    "printed/results.csv": """
        table,dataset,model,target,arm,metric,mean,std
        1,Digits,Tiny,,unpruned,top1,50.0,
        1,Digits,Tiny,50%,tuned,top1,40.0,1.5
    """,
    "claims.py": """
        from regrow.reproduce.contrasts import Contrast
        from regrow.reproduce.rules import Ask, Claim, every

        LOSS = Contrast(first="unpruned", second=("tuned",), tables=(1,))
        CLAIMS = (Claim(number=1, text="Pruning loses.", asks=(Ask(contrast=LOSS),)),)
    """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds a paper of one table."""
    for name, text in FILES.items():
        lines = text.strip("\n").splitlines()
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines) + "\n")
    return tmp_path / "mine"


# A folder of the user's ---------------------------------------------------------------------------


def test_a_folder_is_a_paper(command: Command, folder: Path) -> None:
    listed = command("reproduce", "list", "--paper", folder)
    assert listed.out.splitlines() == [
        "mine: A paper of one table (Nobody, 2026)",
        "  table-1    Pruned digits: accuracy in %",
    ]
    made = command("reproduce", f"{folder}/table-1", "--workers", "0", "--html")
    assert made.code == 0, made.err
    assert "2 of 2 cells have been run." in made.text
    assert "40.00 ± 1.50" in made.text
    results = Path("regrow-paper/mine/paper/table-1")
    assert (results / "report.md").is_file()
    check_accessible(results / "report.html")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "2 of 2 cells" in page
    assert re.search(r"<t[dh][^>]*>40.00 \u00b1 1.50</t", page)
    (details,) = re.findall(r'href="(details/[^"]+)"', page)
    assert "Records behind the numbers" in (results / details).read_text(encoding="utf-8")
    judged = command("claims", "--paper", folder, "--ours", "regrow-paper/mine/paper/table-1")
    assert "Pruning loses." in judged.out
    assert "1 claims on our results" in judged.text


def test_a_package_adds_its_papers_by_an_entry_point(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    point = SimpleNamespace(module="mine")
    monkeypatch.setattr(paper_module, "entry_points", lambda group: [point])
    assert [*papers()] == ["liu2019", "mine", "wang2023"]
    assert find_entry("mine/table-1").about.startswith("Pruned digits")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("paper.yaml", ("reference:", "referenc:"), "Unknown key 'referenc'. Did you mean 'ref"),
        ("paper.yaml", ("title: A paper of one table\n", ""), "title must be given"),
        ("entries.yaml", ("studies:", "study:"), "table-1: Unknown key 'study'"),
        ("entries.yaml", ("table-1:", "- table-1:"), "expected a mapping"),
        ("studies/one.yaml", ("model: Tiny", "model: Large"), "0 printed cells"),
        ("studies/one.yaml", ("seeds: 1", "budgets: [1, 2]"), "'one' of a paper has 'budgets'"),
    ],
)
def test_a_mistake_in_a_folder_is_a_message(
    folder: Path, name: str, change: tuple[str, str], message: str
) -> None:
    path = folder / name
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message):
        prepare(paper_in(folder).entry("table-1"), Request(scale=scales.named("paper")))


def test_names_of_entries_and_papers() -> None:
    assert find_entry("table-4").paper.name == "liu2019"
    assert find_entry("table-4", WANG).paper is WANG
    assert find_entry("wang2023/table-6") is WANG.entry("table-6")
    with pytest.raises(ConfigError, match=r"Unknown paper 'wang2022'. Did you mean 'wang2023'"):
        find_entry("wang2022/table-4")
    with pytest.raises(ConfigError, match=r"Unknown table or figure 'table-5'"):
        find_entry("wang2023/table-5")


# Wang et al. --------------------------------------------------------------------------------------


@pytest.fixture
def plan_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Plan]:
    """Prepare a table at smoke scale, without trying whether methods fit their networks."""
    monkeypatch.setattr(expand, "_check_use", lambda use, model, data: None)
    return lambda name: prepare(WANG.entry(name), Request(scale=scales.named("smoke"), seeds=1))


def test_printed_numbers_are_the_published_ones() -> None:
    if not SOURCE.exists():
        pytest.skip("needs the paper's numbers beside the checkout")
    with SOURCE.open(newline="") as file:
        published = [
            (int(row["table"]), row["arm"], float(row["pruning_ratio"]), float(row["accuracy"]))
            for row in csv.DictReader(file)
        ]
    packaged = [
        (table, row["arm"], float(row["target"].rstrip("%") or 0) / 100, row["mean"])
        for table in WANG.tables
        for row in records(cells(WANG, table))
    ]
    assert sorted(packaged) == sorted(published)
    assert len(packaged) == 123


@pytest.mark.parametrize("name", [*WANG.entries])
def test_each_cell_of_ours_is_one_printed_cell_and_none_is_missed(
    name: str, plan_of: Callable[[str], Plan]
) -> None:
    plan = plan_of(name)
    ours = [
        tuple(cell.labels[label] for label in RESULT)
        for part in plan.parts
        for cell in part.cells
        if cell.labels is not None
    ]
    table = plan.entry.table
    assert table is not None
    printed = [tuple(row[label] for label in RESULT) for row in records(cells(WANG, table))]
    assert sorted(ours) == sorted(printed)


def rates(arm: Arm, base: Recipe) -> dict[int, float]:
    """Return the epochs at which an arm's learning rate changes, and to what."""
    recipe = arm.recipe(base, arm.budget.epochs(base.epochs, 1.0))
    each = [recipe.lr_at(epoch) for epoch in range(recipe.epochs)]
    return {epoch: lr for epoch, lr in enumerate(each) if epoch == 0 or each[epoch - 1] != lr}


def test_fine_tuning_has_the_published_schedules() -> None:
    value = WANG.study("table-4")
    arms = {
        arm["name"]: Arm(
            **{key: arm[key] for key in ("name", "start", "lr", "schedule")},
            drop_at=tuple(arm["drop_at"]),
            budget=Budget(kind="epochs", amount=arm["epochs"]),
        )
        for part in value["experiments"][1:]
        for arm in part["arms"]
    }
    base = Recipe(epochs=30)
    assert rates(arms["P30F90, 1e-1"], base) == {0: 0.1, 30: 0.01, 60: 1e-3, 75: 1e-4, 83: 1e-5}
    assert rates(arms["P60F60, 1e-2"], base) == {0: 0.01, 30: 1e-3, 45: 1e-4, 53: 1e-5}
    for arm in arms.values():
        assert [*rates(arm, base).values()][-1] == 1e-5
    scratch = Recipe.from_json(value["recipe"])
    changes = [e for e in range(1, 120) if scratch.lr_at(e) != scratch.lr_at(e - 1)]
    assert changes == [30, 60, 90, 105]


def test_claims_are_judged_on_the_printed_numbers() -> None:
    outcomes = {finding.number: finding.outcome for finding in evaluate_claims(WANG)}
    held = dict.fromkeys((3, 5, 6), "holds")
    assert outcomes == {**held, **dict.fromkeys((1, 2, 4), "partly")}


def test_the_winner_changes_with_the_rate_at_70_percent_and_tests_show_it_on_one_network() -> None:
    finding = next(f for f in evaluate_claims(WANG) if "winner" in f.claim.text)
    first, second = finding.parts
    assert first.numbers["changed"] == ["CIFAR-10 ResNet-56 70%"]
    assert second.numbers["changed"] == second.numbers["shown"] == ["CIFAR-100 VGG-19 70%"]
    assert first.numbers["shown"] == []  # 92.26 +- 0.17 against 92.11 +- 0.12, n = 3
    assert finding.outcome == "partly"
    assert "beats L1 (Step LR 0.001) by 0.34 and loses to L1 (Step LR 0.01) by 0.15" in finding.text
