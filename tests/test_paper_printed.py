"""The paper's numbers: complete, found by their labels, counted once and laid out as printed."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from liu import (
    PAPER,
    as_cells,
    cells,
    lay_out,
    lookup,
    names,
    once,
    results,
    sparsity,
    widths,
)
from regrow.errors import ConfigError
from regrow.report.statistics import Sample, welch
from regrow.reproduce.layout import NOT_RUN, latex, markdown, terminal
from regrow.reproduce.printed import PrintedCell, compare, records

TABLES = PAPER.tables
SOURCE = Path(__file__).parents[2] / "shared" / "paper"


def own(**labels: object) -> dict[str, object]:
    row = {"table": 1, "dataset": "CIFAR-10", "model": "VGG-16", "target": "VGG-16-A"}
    return row | {"arm": "scratch-e", "mean": 93.5, "std": 0.2, "n": 3} | labels


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("results", {"mean": ["mean"], "std": ["std"]}),
        ("widths", {"mean": ["width", "pruned_width"], "std": ["pruned_width_std"]}),
        ("sparsity", {"mean": ["kept_ratio"]}),
    ],
)
def test_package_data_are_the_published_numbers(name: str, columns: dict[str, list[str]]) -> None:
    source = SOURCE / f"{name}.csv"
    if not source.exists():
        pytest.skip(f"needs {source.name} beside the checkout")
    published = pd.read_csv(source, dtype=str, keep_default_na=False)
    packaged = pd.read_csv(PAPER.folder / "printed" / source.name, dtype=str, keep_default_na=False)
    for column, others in columns.items():
        theirs = [value for row in records(published[others]) for value in row.values()]
        assert [value for value in packaged[column] if value] == [v for v in theirs if v]


def test_every_cell_has_its_n() -> None:
    frame = results()
    assert len(frame) == 391
    assert set(frame[frame["dataset"].str.startswith("CIFAR")]["n"]) == {5}
    assert set(frame[~frame["dataset"].str.startswith("CIFAR")]["n"]) == {1}
    assert frame["std"].notna().equals(frame["n"] == 5)
    assert (len(widths()), len(sparsity())) == (28, 213)


def test_labels_name_each_cell_once() -> None:
    for table in TABLES:
        frame = cells(table)
        assert len(frame.drop_duplicates(subset=list(names(table)))) == len(frame)


def test_lookup_finds_by_labels() -> None:
    assert lookup(table=4, dataset="CIFAR-10", target="70%", arm="scratch-b") == PrintedCell(
        mean=93.81, std=0.14, n=5
    )
    assert lookup(table=9, model="VGG-16", learning_rate=0.01, arm="unpruned").mean == 92.69
    assert lookup(
        table=2, model="VGG-16", arm="unpruned", reference="original-paper"
    ) == PrintedCell(mean=71.03, std=None, n=1)


def test_lookup_names_what_is_near() -> None:
    with pytest.raises(ConfigError, match=r"Unknown arm 'scratch-f'. Did you mean 'scratch-e' or"):
        lookup(table=1, arm="scratch-f")


def test_lookup_says_which_label_is_open() -> None:
    with pytest.raises(ConfigError, match=r"5 printed cells .* Also give target"):
        lookup(table=9, part="a", model="VGG-16", arm="random-init")


def test_unknown_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"numbered 1, .*21\. Got 22"):
        cells(22)


@pytest.mark.parametrize(
    ("table", "of", "num"),
    [(3, 2, 3), (8, 1, 3), (11, 10, 2), (13, 4, 3), (14, 1, 1), (15, 6, 8), (16, 1, 8)],
)
def test_repeated_cells_count_once(table: int, of: int, num: int) -> None:
    frame = results()
    both = frame[frame["table"].isin([table, of])]
    assert len(both) - len(once(both)) == num
    assert len(once(both[both["table"] == of])) == (both["table"] == of).sum()
    assert len(once(both[both["table"] == table])) == (both["table"] == table).sum()


def test_repeated_cells_have_the_figures_of_their_origin() -> None:
    frame = results()
    kept = set(map(tuple, once(frame)[list(names(1))].to_numpy()))
    dropped = [r for r in records(frame) if tuple(r[n] for n in names(1)) not in kept]
    assert len(dropped) == 28
    for row in dropped:
        origins = {repeat.of for repeat in PAPER.table(row["table"]).repeats}
        arms = {row["arm"], "fine-tuned"} if row["arm"] == "fine-tune-40" else {row["arm"]}
        alike = frame[
            frame["table"].isin(origins)
            & (frame["model"] == row["model"])
            & (frame["dataset"] == row["dataset"])
            & (frame["target"] == row["target"])
            & frame["arm"].isin(arms)
            & (frame["mean"] == row["mean"])
        ]
        assert len(alike) == 1
        assert alike["std"].iloc[0] == row["std"] or pd.isna(row["std"])


def test_look_alikes_that_are_no_repetition_stay() -> None:
    kept = once(results())
    resnet = kept[(kept["model"] == "ResNet-50") & (kept["reference"] == "original-paper")]
    assert list(resnet[resnet["arm"] == "unpruned"]["mean"]) == [75.15, 75.51]
    tuned = kept[(kept["table"] == 16) & (kept["arm"] == "fine-tune-40")]
    assert list(tuned["target"]) == ["VGG-16-A", "ResNet-56-B"]


def test_difference_within_the_two_spreads() -> None:
    printed = PrintedCell(mean=93.62, std=0.11, n=5)
    near = compare(Sample(mean=93.31, std=0.20, n=5), printed)
    far = compare(Sample(mean=93.30, std=0.20, n=5), printed)
    assert (near.within, far.within) == (True, False)
    assert far.p == welch(Sample(mean=93.30, std=0.20, n=5), printed.sample).p
    assert "-0.32 points, beyond the two spreads (Welch p" in far.words


def test_single_runs_and_missing_spreads_are_said() -> None:
    single = compare(Sample(mean=93.7, std=None, n=1), PrintedCell(mean=93.62, std=0.11, n=5))
    assert (single.within, single.p) == (True, None)
    assert single.words == "+0.08 points, within the paper's spread (no test; n = 1 and 5)"
    bare = compare(Sample(mean=71.0, std=0.1, n=5), PrintedCell(mean=71.18, std=None, n=1))
    assert (bare.within, bare.p) == (None, None)
    assert "the paper prints no spread" in bare.words


def test_own_rows_become_cells() -> None:
    frame = as_cells(pd.DataFrame([own(arm="fine-tune"), own(n=0, mean=None)]))
    assert list(frame["arm"]) == ["fine-tuned"]


def test_own_rows_need_their_columns() -> None:
    with pytest.raises(ConfigError, match="Missing: std, n"):
        as_cells(pd.DataFrame([own()]).drop(columns=["std", "n"]))


def test_accuracies_become_changes_where_the_paper_prints_changes() -> None:
    labels = {"table": 2, "dataset": "ImageNet"}
    rows = [own(**labels, arm="unpruned", target="", mean=70.0)]
    rows += [own(**labels, arm=a, target="VGG-GAP", mean=68.5) for a in ("fine-tune", "scratch-e")]
    frame = as_cells(pd.DataFrame(rows))
    assert list(frame["mean"]) == [70.0, -1.5, -1.5]
    here, theirs = "this-implementation", "original-paper"
    assert list(frame["reference"]) == [here, theirs, here]
    assert sum(cell.measured is not None for cell in lay_out(2, pd.DataFrame(rows)).cells) == 3


def test_changes_need_an_unpruned_network() -> None:
    with pytest.raises(ConfigError, match="changes from the unpruned VGG-16, of which there is no"):
        as_cells(pd.DataFrame([own(table=2, dataset="ImageNet", target="VGG-GAP")]))


def test_layouts_hold_every_printed_cell_once() -> None:
    placed = Counter(
        (table, *(cell.labels[name] for name in names(table)), cell.printed.mean)
        for table in TABLES
        for cell in lay_out(table).cells
    )
    printed = Counter(
        (row["table"], *(row[n] for n in names(row["table"])), row["mean"])
        for frame in (results(), widths(), sparsity())
        for row in records(frame)
    )
    assert placed == printed
    assert placed.total() == 391 + 28 + 213


@pytest.mark.parametrize("table", TABLES)
def test_without_results_every_cell_says_so(table: int) -> None:
    sheet = lay_out(table, pd.DataFrame())
    assert {cell.measured_text for cell in sheet.cells} == {NOT_RUN}
    for text in (terminal(sheet), markdown(sheet), latex(sheet)):
        assert text.count(NOT_RUN) == len(sheet.cells)
    for text in (terminal(sheet), markdown(sheet)):
        assert f"0 of {len(sheet.cells)} cells have been run." in text


@pytest.mark.parametrize("table", TABLES)
def test_own_results_stand_in_their_cells(table: int) -> None:
    sheet = lay_out(table, cells(table))
    assert sheet.num_unplaced == 0
    assert all(cell.measured == cell.printed.sample for cell in sheet.cells)
    assert NOT_RUN not in terminal(sheet) + markdown(sheet)
    assert max(map(len, terminal(sheet).splitlines())) <= 100


@pytest.mark.parametrize("table", TABLES)
def test_latex_has_as_many_cells_in_a_row_as_columns(table: int) -> None:
    text = latex(lay_out(table, cells(table)))
    num_columns = 0
    for line in text.splitlines():
        if line.startswith(r"\begin{longtable}"):
            num_columns = len(line.partition("}{")[2].rstrip("}"))
        elif line.endswith((r"\\", r"\\*")) and not line.startswith((r"\multic", r"\caption")):
            assert line.count(" & ") == num_columns - 1
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}")
    assert text.count(rf"\label{{tab:table-{table}}}") == text.count(r"\caption{") == 1
    assert NOT_RUN not in text


def test_digits_are_the_printed_ones() -> None:
    text = terminal(lay_out(4)) + terminal(lay_out(7)) + terminal(lay_out(2))
    assert "93.60 \u00b1 0.16" in text
    assert "    64    39.0 \u00b1 3.7" in text
    assert "+0.21" in text


def test_a_row_shows_difference_seeds_and_what_is_missing() -> None:
    rows = [own(), own(arm="scratch-b", mean=95.0, n=5), own(target="VGG-16-Z")]
    sheet = lay_out(1, pd.DataFrame(rows))
    text = terminal(sheet)
    row = text[text.index("VGG-16-A") : text.index("CIFAR-10, ResNet-56")]
    assert "-0.12 within  +1.22 beyond" in row
    assert row.splitlines()[-1].split() == ["n", "3", "5"]
    assert row.count(NOT_RUN) == 2
    assert "Measured rows without a cell in this table: 1." in text
    assert "ours 95.00 \u00b1 0.20 (n = 5)<br>+1.22 beyond" in markdown(sheet)


def test_two_rows_for_one_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Two measured rows .*VGG-16-A, scratch-e"):
        lay_out(1, pd.DataFrame([own(), own()]))


def test_own_widths_need_their_columns() -> None:
    with pytest.raises(ConfigError, match=r"beside Table 7 need .* Missing: quantity"):
        lay_out(7, cells(7).drop(columns="quantity"))
