"""Tables and figures of what prunings keep and where weights lie, from hand-made records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from commands import Command
from liu import PAPER, cells, entries, entry, evaluate_claims, names, read_cells
from regrow.errors import ConfigError
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.report.rows import Run
from regrow.reproduce import figure_data, measures, scales
from regrow.reproduce.claims import Finding
from regrow.reproduce.curves import POINT
from regrow.reproduce.figure_data import BINS, TOP
from regrow.reproduce.figures import draw
from regrow.reproduce.images import Request
from regrow.reproduce.known import KNOWN
from regrow.reproduce.layout import NOT_RUN, terminal
from regrow.reproduce.paper import OF_PRUNINGS, WIDTH
from regrow.reproduce.plan import Plan, prepare
from regrow.reproduce.printed import records
from regrow.reproduce.publish import publish
from regrow.reproduce.results import StudyResults, averaged, read_back, rows, sheet
from regrow.store import Store

PATTERNS = [one.name for one in entries().values() if one.table and one.kind in OF_PRUNINGS]
PICTURES = [one.name for one in entries().values() if one.name.startswith("figure")]
PROVENANCE = {"command": "regrow reproduce", "date": "2026-01-01", "machine": "a machine"}


def plan_of(name: str, *, seeds: int = 1, only: str | None = None) -> Plan:
    return prepare(
        entry(name), Request(scale=scales.named("smoke"), seeds=seeds, only=(only,) if only else ())
    )


def store_of(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def put(store: Store, job: Job, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    store.commit(job.key, {"spec": job.spec, **record}, tensors)


def put_masks(store: Store, plan: Plan, keep: Callable[[Prune, str, Tensor], Tensor]) -> None:
    """Put what ``keep`` says of each group (or weight) of each pruning into a store."""
    for job in plan.jobs:
        assert isinstance(job, Prune)
        network, found = measures._traced(job.model, job.data.shape)
        if job.method.unit == "channel":
            whole = {name: torch.ones(group.size) for name, group in found.groups.items()}
        else:
            whole = {n: torch.ones(p.shape) for n, p in network.named_parameters() if p.dim() == 4}
        kept = {name: keep(job, name, units).bool() for name, units in whole.items()}
        put(store, job, {"unit": job.method.unit}, kept)


# What is run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
def test_a_table_of_prunings_runs_these_and_no_training_from_scratch(name: str) -> None:
    plan = plan_of(name, seeds=2)
    assert {type(job) for job in plan.jobs} == {Prune}
    ratios = set(cells(int(plan.entry.table or 0)).get("ratio", pd.Series(["60%"])))
    shown = {(job.seed, f"{100 * (job.sparsity or 0):g}%") for job in plan.jobs}  # type: ignore[attr-defined]
    assert shown == {(seed, ratio) for seed in (0, 1) for ratio in ratios}


def test_tables_and_figures_share_their_trainings() -> None:
    def keys(name: str) -> set[str]:
        return set(all_jobs(plan_of(name).jobs))

    for table, figure in ((7, 3), (21, 3), (18, 5), (19, 5), (20, 5)):
        assert keys(f"table-{table}") <= keys(f"figure-{figure}")
    assert keys("figure-4") <= keys("figure-3")
    alone = [job for job in plan_of("figure-8").jobs if job.key not in keys("figure-3")]
    assert {job.arm.name for job in alone if isinstance(job, Retrain)} == {"fine-tune"}


@pytest.mark.parametrize("name", ["figure-3", "figure-5", "figure-6"])
def test_all_architectures_of_a_curve_are_trained_alike_from_scratch(name: str) -> None:
    for part in prepare(entry(name), Request(scale=scales.named("paper"), data=DIGITS)).parts:
        jobs = [one.cell.job for one in part.cells]
        assert {job.recipe.epochs for job in jobs if isinstance(job, Train | Retrain)} == {160}
        retrained = [job for job in jobs if isinstance(job, Retrain)]
        assert {(job.arm.start, job.arm.budget.kind) for job in retrained} == {
            ("random", "equal-epochs")
        }
        assert {one.cell.seed for one in part.cells} == {0, 1, 2, 3, 4}


DIGITS = {"cifar10": "digits", "cifar100": "digits"}
CURVES = {
    "figure-3": ["unpruned", "pruned", "uniform"],
    "figure-5": ["unpruned", "pruned", "uniform"],
    "figure-6": ["unpruned", "pruned", "uniform", "guided", "transferred"],
}


@pytest.mark.parametrize("name", CURVES)
def test_a_figure_has_every_series_in_every_panel(name: str) -> None:
    plan = plan_of(name)
    shown = figure_data.gather(plan, [empty(part) for part in plan.parts])
    assert shown is not None
    assert shown.condition.startswith("scale smoke, digits for CIFAR-10")
    assert len(shown.panels) == {"figure-3": 2, "figure-5": 3, "figure-6": 2}[name]
    for panel in shown.panels:
        frame = shown.frame[shown.frame["panel"] == panel]
        assert [*dict.fromkeys(frame["series"])] == CURVES[name]
    assert all(NOT_RUN in row for row in shown.rows)


def empty(part: Any) -> StudyResults:
    runs = tuple(Run(data="d", model="m", arm="a", seed=one.cell.seed) for one in part.cells)
    return StudyResults(part=part, runs=runs, failures=(), complete=False, measured=pd.DataFrame())


def test_the_networks_of_five_stages_have_them_at_every_scale() -> None:
    for name in ("table-21", "figure-4"):
        (job, *_) = plan_of(name).jobs
        assert isinstance(job, Prune)
        stages = measures._numbered(job.model, job.data.shape)
        assert set(stages.values()) == {0, 1, 2, 3, 4}
    assert any("enlarged to 16 pixels" in note for note in plan_of("table-21").notes)


def test_a_pattern_is_transferred_from_the_data_that_stands_in_for_its_own() -> None:
    plan = plan_of("figure-6", only="transferred")
    sources = {
        use.source.data
        for one in plan.parts
        for use in one.study.experiments[0].uses
        if use.source is not None
    }
    assert {data.name for data in sources if data is not None} == {"digits"}
    assert any("In place of CIFAR-10: digits" in note for note in plan.notes)


# Widths and shares --------------------------------------------------------------------------------


def test_widths_are_means_over_seeds_in_the_order_of_the_layers(tmp_path: Path) -> None:
    plan, store = plan_of("table-7", seeds=2), store_of(tmp_path)

    def keep(job: Prune, name: str, units: Tensor) -> Tensor:
        # Of layer i, i channels in the first run and i + 2 in the second.
        layer = int(name.removeprefix("features.conv"))
        return torch.arange(len(units)) < layer + 2 * job.seed if layer < 8 else units

    put_masks(store, plan, keep)
    ours = rows(plan, read_back(plan, store))
    assert list(ours.columns) == [*WIDTH[1:], "mean", "std", "n", "table", "departs", *KNOWN]
    found = {(row["layer"], row["quantity"]): row for row in records(ours)}
    assert [found[str(i), "pruned width"]["mean"] for i in range(1, 8)] == [*range(2, 9)]
    assert found["3", "pruned width"]["std"] == pytest.approx(2**0.5)
    assert [found[str(i), "width"]["mean"] for i in (1, 4, 7, 13)] == [8, 16, 32, 64]
    assert found["total", "width"]["mean"] == 4224 / 8
    assert found["total", "pruned width"]["mean"] == sum(range(2, 9)) + 6 * 64
    placed = sheet(plan, ours)
    assert placed is not None
    assert all(cell.measured for cell in placed.cells)
    assert "2.0 \u00b1 1.4" in terminal(placed)


def test_shares_of_channels_are_those_of_their_stage(tmp_path: Path) -> None:
    plan, store = plan_of("table-21"), store_of(tmp_path)
    # Stage 1 is the layers 1 and 2: one keeps all its channels, the other half.
    put_masks(
        store,
        plan,
        lambda job, name, units: (
            torch.arange(len(units)) < len(units) // 2 if name == "features.conv2" else units
        ),
    )
    ours = rows(plan, read_back(plan, store))
    assert set(names(21)) <= set(ours.columns)
    assert set(ours["ratio"]) == {"10%", "20%", "30%", "40%", "50%", "60%"}
    by_stage = {row["stage"]: row["mean"] for row in records(ours)}
    assert by_stage == {"1": 0.75, "2": 1, "3": 1, "4": 1, "5": 1}
    placed = sheet(plan, ours)
    assert placed is not None
    assert (len(placed.cells), placed.num_unplaced) == (30, 0)
    assert all(cell.measured for cell in placed.cells)


def test_shares_of_weights_are_those_of_their_position_in_3x3_kernels(tmp_path: Path) -> None:
    plan, store = plan_of("table-20"), store_of(tmp_path)

    def keep(job: Prune, name: str, units: Tensor) -> Tensor:
        kept = torch.zeros_like(units)
        if kept.shape[2:] == (3, 3):
            kept[:, :, 0, 2] = 1
            kept[::2, :, 1, 1] = 1  # of every other filter
        return kept

    put_masks(store, plan, keep)
    placed = sheet(plan, rows(plan, read_back(plan, store)))
    assert placed is not None
    assert len(placed.cells) == 81
    for cell in placed.cells:
        place = cell.labels["kernel_row"], cell.labels["kernel_col"]
        assert cell.measured is not None
        share = {("1", "3"): 1.0, ("2", "2"): 0.5}.get(place, 0.0)
        assert cell.measured.mean == pytest.approx(share)


def test_a_table_half_run_says_what_is_not(tmp_path: Path) -> None:
    plan, store = plan_of("table-18"), store_of(tmp_path)
    some = plan_of("table-18", only="0.3")
    put_masks(store, some, lambda job, name, units: units)
    found = read_back(plan, store)
    assert not found[0].complete
    made = publish(plan, found, tmp_path / "out", provenance=PROVENANCE)
    assert made.summary == "3 of 21 cells"
    assert made.text.count(NOT_RUN) == 18
    assert "Some runs of figure-5-left have no result." in made.text
    ours = read_cells(tmp_path / "out").sparsity
    assert ours is not None
    assert list(ours["ratio"]) == ["30%"] * 3


def test_failures_of_prunings_are_told(tmp_path: Path) -> None:
    plan, store = plan_of("table-7"), store_of(tmp_path)
    (job,) = plan.jobs
    store.fail(job.key, job.spec, message="no luck")
    (found,) = read_back(plan, store)
    assert [one.message for one in found.failures] == ["no luck"]


def test_what_is_written_is_read_for_the_claims(tmp_path: Path) -> None:
    for name in ("table-7", "table-18", "table-21"):
        plan, store = plan_of(name, seeds=2), store_of(tmp_path)
        put_masks(store, plan, lambda job, name, units: units)
        made = publish(plan, read_back(plan, store), tmp_path / "out" / name, provenance=PROVENANCE)
        assert made.complete
    ours = read_cells(tmp_path / "out")
    assert ours.results.empty
    assert ours.widths is not None
    assert ours.sparsity is not None
    assert list(ours.sparsity["table"].unique()) == [18, 21]
    assert set(ours.sparsity["stage"]) == {"1", "2", "3", "4", "5"}
    assert set(ours.widths["layer"]) == {*(str(i) for i in range(1, 14)), "total"}


# Figures ------------------------------------------------------------------------------------------


def runs_of(plan: Plan, *, without: int | None = None) -> list[StudyResults]:
    """Give each cell an accuracy, but for the seed left out."""
    found = []
    for part in plan.parts:
        runs = []
        for i, one in enumerate(part.cells):
            cell = one.cell
            size = 1000 * (100 - int(100 * ((cell.cut.sparsity if cell.cut else 0) or 0)))
            done = cell.seed != without
            runs.append(
                Run(
                    data="d",
                    model="m",
                    arm=cell.arm.name,
                    seed=cell.seed,
                    status="done" if done else "missing",
                    score=60 + i % 7 + size / 5000 if done else None,
                    parameters=size if done else None,
                )
            )
        found.append(
            StudyResults(
                part=part,
                runs=tuple(runs),
                failures=(),
                complete=without is None,
                measured=pd.DataFrame(),
            )
        )
    return found


def is_drawn(folder: Path, name: str) -> bool:
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    return png.read_bytes()[:4] == b"\x89PNG" and "<svg" in svg.read_text(encoding="utf-8")


def test_points_are_means_over_the_seeds_that_ran(tmp_path: Path) -> None:
    plan = plan_of("figure-3", seeds=3)
    shown = figure_data.gather(plan, runs_of(plan, without=2))
    assert shown is not None
    assert set(shown.frame["n"]) == {2}
    assert set(shown.frame["n_expected"]) == {3}
    half = shown.frame[(shown.frame["series"] == "pruned") & (shown.frame["ratio"] == 0.5)]
    assert list(half["parameters"]) == [50_000]
    assert "2 of 3" in figure_data.plain(shown)
    draw(shown, tmp_path)
    assert is_drawn(tmp_path, "figure-3")


def test_curves_that_are_written_are_read_for_the_claims(tmp_path: Path) -> None:
    for name in ("figure-5", "figure-6"):
        plan = plan_of(name, seeds=2)
        made = publish(plan, runs_of(plan), tmp_path / name, provenance=PROVENANCE)
        curves = read_cells(tmp_path / name).curves
        assert made.figure is not None
        assert curves is not None
        expected = made.figure.frame.assign(figure=int(name[-1]))
        pd.testing.assert_frame_equal(curves, expected, check_dtype=False)
    both = read_cells(tmp_path)
    assert both.curves is not None
    found = evaluate_claims(both.results, curves_frame=both.curves)
    told = {finding.number: finding.text for finding in found}
    assert "transferred - pruned at equal parameters, Figure 6: " in told[22]
    assert "pruned - uniform at equal parameters, Figure 5: " in told[21]
    assert "`regrow reproduce figure-3`" in told[18]


def test_series_of_tickets_that_are_written_are_read_for_the_claims(tmp_path: Path) -> None:
    plan = plan_of("figure-7", seeds=2)
    publish(plan, runs_of(plan), tmp_path, provenance=PROVENANCE)
    (finding,) = judged_of(tmp_path, 27)
    assert [part.rows for part in finding.parts] == [28, 28, 28, 28]


def judged_of(folder: Path, *numbers: int) -> list[Finding]:
    ours = read_cells(folder)
    found = evaluate_claims(ours.results, curves_frame=ours.curves, weights_frame=ours.weights)
    return [finding for finding in found if finding.number in numbers]


FIGURE_5 = ",".join(POINT) + "\nleft,pruned,0.1,1000,93.5,0.1,5,5\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "figure-5.csv",
            FIGURE_5.replace("series", "serie").replace("n_expected", "expected"),
            r"figure-5.csv' must have the columns panel, series, .*Missing: series, n_expected. "
            r"Got: panel, serie, .*Undo the change, or write the file again",
        ),
        ("figure-8.csv", FIGURE_5, r"figure-8.csv' must have .*Missing: column, low, high, value"),
        ("cells.csv", FIGURE_5, r"cells.csv' must have .*Missing: table, dataset, model, arm"),
        ("sparsity.csv", FIGURE_5, r"sparsity.csv' must have .*Missing: table, stage, kernel_row"),
        (
            "figure-5.csv",
            FIGURE_5.replace("93.5", "93,5"),
            r"more cells than its head, perhaps by d",
        ),
        ("figure-5.csv", "", r"Cannot read '.*figure-5.csv' as a table: No columns"),
        (
            "figure-5.csv",
            FIGURE_5 + "left,pruned,ten,1000,93.5,0.1,5,5\n",
            r"The column 'ratio' of '.*figure-5.csv' must hold numbers. Got 'ten' in line 3",
        ),
        (
            "figure-5.csv",
            FIGURE_5.replace(",5,5", ",,5"),
            r"The column 'n' of .* must hold numbers. Got '' in line 2",
        ),
    ],
)
def test_a_file_that_was_changed_by_hand_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / name.partition(".")[0]
    folder.mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    for place in (folder, tmp_path):
        with pytest.raises(ConfigError, match=message):
            read_cells(place)


def test_a_file_as_it_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "figure-5.csv").write_text(
        FIGURE_5.replace("1000,93.5,0.1", ",,"), encoding="utf-8"
    )
    curves = read_cells(tmp_path).curves
    assert curves is not None
    assert curves[["parameters", "mean", "std"]].isna().all(axis=None)
    assert list(curves["n"]) == [5]


def test_tickets_have_four_series_that_start_at_the_unpruned_network(tmp_path: Path) -> None:
    plan = plan_of("figure-7")
    shown = figure_data.gather(plan, runs_of(plan))
    assert shown is not None
    assert len(shown.panels) == 4
    for panel in shown.panels:
        frame = shown.frame[shown.frame["panel"] == panel]
        series = dict.fromkeys(frame["series"])
        assert sorted(series) == [
            f"{start}, rate {rate}"
            for start in ("random", "winning ticket")
            for rate in (0.01, 0.1)
        ]
        rounds = 14 if "iterative" in panel else 5
        assert (frame.groupby("series")["ratio"].count() == rounds + 1).all()
        assert (frame.groupby("series")["ratio"].min() == 0).all()
    draw(shown, tmp_path)
    assert is_drawn(tmp_path, "figure-7")


def test_heat_maps_show_the_mean_of_each_position(tmp_path: Path) -> None:
    plan, store = plan_of("figure-4", seeds=2), store_of(tmp_path)

    def keep(job: Prune, name: str, units: Tensor) -> Tensor:
        kept = torch.zeros_like(units)
        kept[:, :, 1, 1] = 1
        kept[:, :, 0, 0] = job.seed  # in one run of two
        return kept

    put_masks(store, plan, keep)
    shown = figure_data.gather(plan, read_back(plan, store))
    assert shown is not None
    assert shown.rows[0] == ("3", "1", "0.500", "0.000", "0.000", "2")
    assert shown.rows[1] == ("3", "2", "0.000", "1.000", "0.000", "2")
    assert len(shown.rows) == 9
    draw(shown, tmp_path)
    assert is_drawn(tmp_path, "figure-4")


def test_histograms_leave_out_zeros_and_stay_on_the_paper_s_axis(tmp_path: Path) -> None:
    plan, store = plan_of("figure-8"), store_of(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for one in plan.parts[0].cells:
        weight = 0.05 * torch.randn(100, 10, 10, 10, generator=generator)
        weight[: 50 if one.cell.arm.name == "scratch-e" else 0] = 0
        weight[-1, -1, -1, -3:] = torch.tensor([-0.5, 0.29995, 0.4])
        put(
            store,
            one.cell.job,
            {"accuracy": 0.5, "loss": 1, "parameters": 1, "macs": 1, "epochs": 1, "samples": 1}
            | {"training_flops": 1.0},
            {"conv.weight": weight, "norm.weight": torch.ones(7)},
        )
    found = plan_measured(plan, store)
    publish(plan, found, tmp_path / "out", provenance=PROVENANCE)
    (finding,) = judged_of(tmp_path / "out", 16)
    shares = finding.parts[0].numbers
    assert shares["fine-tuned"] == pytest.approx(0.159, abs=0.005)  # as in the table below
    assert finding.outcome == "partly"
    shown = figure_data.gather(plan, found)
    assert shown is not None
    assert [row[:3] for row in shown.rows] == [
        (panel, column, "50,000" if column == "Scratch-trained" else "100,000")
        for panel in ("Structured Pruning", "Unstructured Pruning")
        for column in ("Unpruned", "Fine-tuned", "Scratch-trained")
    ]
    # A normal spread of 0.05: 15.9 % lie within a fifth of it.
    assert float(shown.rows[0][3]) == pytest.approx(0.159, abs=0.005)
    assert float(shown.rows[0][4]) == pytest.approx(0.05, abs=0.001)
    first = shown.frame[shown.frame["column"] == "Unpruned"].iloc[: BINS[0] + 2]
    assert (first["value"].iloc[0], first["value"].iloc[-1]) == (1, 1)
    assert first["value"].sum() == 100_000
    assert first["value"].iloc[1:-1].max() <= TOP
    draw(shown, tmp_path)
    assert is_drawn(tmp_path, "figure-8")


def plan_measured(plan: Plan, store: Store) -> list[StudyResults]:
    return [
        StudyResults(
            part=part,
            runs=(),
            failures=(),
            complete=True,
            measured=measures.measured(plan.entry.kind, part, store),
        )
        for part in plan.parts
    ]


@pytest.mark.parametrize("number", [1, 5])
def test_bins_are_as_few_as_keep_every_count_on_the_axis(number: int) -> None:
    fine = pd.DataFrame(
        {
            "panel": "p",
            "column": "c",
            "low": [-9.0, *(i / 1e4 - 0.3 for i in range(6000)), 0.3],
            "high": [-0.3, *(i / 1e4 - 0.2999 for i in range(6000)), 9.0],
            "value": [7, *[100 * number] * 6000, 7],
        }
    )
    merged = figure_data._merged(fine)
    # 30,000 in 300 bins of the finest, or in 60.
    assert len(merged) == {1: 60, 5: 120}[number] + 2
    assert merged["value"].sum() == 600_000 * number + 14


@pytest.mark.parametrize("name", PICTURES)
def test_a_figure_that_has_not_been_run_says_so_everywhere(name: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    made = publish(
        plan, read_back(plan, store_of(tmp_path)), tmp_path / "out", provenance=PROVENANCE
    )
    assert made.figure is not None
    assert all(NOT_RUN in row for row in made.figure.rows)
    assert is_drawn(tmp_path / "out", name)
    assert (tmp_path / "out" / f"{name}.csv").is_file()
    assert f"({name}.png)" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_pictures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    plan = plan_of("figure-5")
    shown = figure_data.gather(plan, runs_of(plan))
    assert shown is not None
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw(shown, tmp_path / folder)
    first, second = ((tmp_path / f / "figure-5.svg").read_bytes() for f in ("a", "b"))
    assert first == second


def test_an_average_has_its_spread_and_number(tmp_path: Path) -> None:
    part = plan_of("table-7").parts[0]
    frames = [pd.DataFrame({"layer": "1", "seed": [0, 1, 2], "value": [1, 2, 6]})]
    found = [
        StudyResults(part=part, runs=(), failures=(), complete=True, measured=frame)
        for frame in frames
    ]
    (row,) = records(averaged(found, ("layer",)))
    assert (row["layer"], row["mean"], row["n"]) == ("1", 3.0, 3)
    assert row["std"] == pytest.approx(7**0.5)


# Commands -----------------------------------------------------------------------------------------


def test_widths_at_smoke_scale_stand_beside_the_printed_ones(command: Command) -> None:
    found = command("reproduce", "table-7", "--scale", "smoke", "--workers", "0")
    assert found.code == 0
    assert "28 of 28 cells have been run." in found.out
    assert "1689.2" in found.out
    folder = Path("regrow-paper/smoke/table-7")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("report.md", "table.tex", "widths.csv")
    ]
    assert "each layer has 0.125 of its width" in found.out
    claims = command("claims", "--ours", folder)
    assert claims.code == 0


def test_all_are_on_one_page(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: entries()[name] for name in ("table-7", "figure-4")}
    monkeypatch.setitem(vars(PAPER), "entries", some)
    found = command("reproduce", "all", "--scale", "smoke", "--workers", "0", "--html")
    assert found.code == 0
    folder = Path("regrow-paper/smoke")
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "| [table-7](table-7/report.md) | Channels of VGG-16" in page
    assert "| 28 of 28 cells" in page
    assert "| 9 of 9 rows have been run |" in page
    assert "](figure-4/figure-4.png)" in page
    assert is_drawn(folder / "figure-4", "figure-4")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 1
    assert 'href="table-7/report.html"' in html
    assert "Channels of VGG-16" in (folder / "table-7" / "report.html").read_text(encoding="utf-8")
    assert len(pd.read_csv(folder / "widths.csv")) == 28


@pytest.mark.slow
def test_figure_8_at_smoke_scale_has_every_panel(command: Command) -> None:
    found = command("reproduce", "figure-8", "--scale", "smoke", "--workers", "0")
    assert found.code == 0
    assert NOT_RUN not in found.out
    folder = Path("regrow-paper/smoke/figure-8")
    assert is_drawn(folder, "figure-8")
    assert len(pd.read_csv(folder / "figure-8.csv")) == 6 * (BINS[0] + 2)
    assert (folder / "details" / "figure-8" / "report.md").is_file()
