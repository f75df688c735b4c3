"""The page of a report: what it holds, how it behaves in a browser, and what cannot harm it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from browser import Browser, axe, check_accessible
from commands import Command, write_study
from regrow.core.energy import Energy
from regrow.cost import Cost
from regrow.jobs.arms import Start
from regrow.own.card import Card
from regrow.report import Report, write
from regrow.report.html import StudyEvidence, document_of, render
from regrow.report.html.chart import Chart, ChartPoint, ReferenceLine, Series, draw
from regrow.report.html.checklist import checklist
from regrow.report.html.document import PageCell, PageTable, number_in
from regrow.report.html.evidence import Kept, RunEvidence
from regrow.report.html.render import MOST_BYTES
from regrow.report.record_fields import (
    OF_ALL,
    OF_CARDS,
    OF_COSTS,
    OF_ENERGY,
    OF_PRUNINGS,
    OF_TRAININGS,
)
from regrow.report.rows import Run

ANCHORS = [
    *("answer", "curves", "verdicts", "results", "training", "layers", "weights"),
    *("ledger", "records", "how"),
]
HOSTILE = "<script>alert(1)</script> \"' &amp; =cmd|x \\input{x} \u202e\x1b[31m \u4e2d\u6587"


class Page(HTMLParser):
    """A page as a browser reads it: its tags, ids, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" and "href" in given else []

    def handle_data(self, data: str) -> None:
        self.text += data


@dataclass(frozen=True)
class Written:
    """The page of the tiny study, after it was run, and its study file."""

    path: Path
    study: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Run the tiny study once, with its page."""
    from regrow.cli import main as cli

    folder = tmp_path_factory.mktemp("page")
    study = write_study(folder)
    arguments = [
        "run",
        study,
        "--workers",
        "0",
        "--store",
        folder / "st ore",
        "--out",
        folder / "o",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["regrow", *map(str, arguments), "--html"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return Written(folder / "o" / "report.html", study)


def make_runs(num_cells: int = 1, num_seeds: int = 2, **changes: str) -> list[Run]:
    """Make finished runs of two arms and of the unpruned network."""
    common = {"data": "digits", "model": "vgg", **changes}
    unpruned = Run(
        **{**common, "arm": "unpruned"},  # type: ignore[arg-type]
        seed=0, start="initial", budget="equal-epochs", status="done", score=98.0,
        parameters=4000, macs=20000, epochs=12, training_flops=1e9,
    )  # fmt: skip
    arms = {"fine-tune": ("inherited", "share"), "scratch-e": ("random", "equal-epochs")}
    runs = [replace(unpruned, seed=seed, score=98.0 + seed / 10) for seed in range(num_seeds)]
    for cell in range(num_cells):
        for number, (arm, (start, budget)) in enumerate(arms.items()):
            run = Run(
                **{**common, "arm": common.get("arm", "") + arm},  # type: ignore[arg-type]
                method=f"l1-filter{common.get('arm', '')}", sparsity=cell / (num_cells + 1),
                seed=0, start=start, budget=budget, status="done", score=97.0,  # type: ignore[arg-type]
                parameters=1000 + cell, macs=4000 + cell, epochs=12, base_epochs=12,
                training_flops=2e9,
            )  # fmt: skip
            runs += [
                replace(run, seed=seed, score=97.0 + seed / 10 + number / 7)
                for seed in range(num_seeds)
            ]
    return runs


def evidence_of(runs: list[Run], epochs: int = 3) -> StudyEvidence:
    history = tuple({"epoch": e, "loss": 1.0 / (e + 1), "lr": 0.1} for e in range(epochs))
    return StudyEvidence(
        runs=tuple(
            RunEvidence(key=f"{i:064x}", file=Path(f"records/{i}"), done=True, history=history)
            for i, _ in enumerate(runs)
        )
    )


def report_of(runs: list[Run], folder: Path, title: str = "a study") -> Report:
    return write(
        runs, folder, title=title, command="regrow run s.yaml", machine="2 cores",
        date="2026-11-26", draw=False,
    )  # fmt: skip


def rendered(runs: list[Run], folder: Path, title: str = "a study", epochs: int = 3) -> str:
    report = report_of(runs, folder, title)
    document = document_of(report, runs, evidence_of(runs, epochs), folder, settings={title: title})
    return render(document)


def test_the_answer_comes_first_and_every_part_is_there(written: Written) -> None:
    page = Page(written.text)
    sections = [name for name in page.ids if name in ANCHORS]
    assert sections == ANCHORS
    assert len(written.text.encode()) < MOST_BYTES


def test_every_link_leads_somewhere_and_every_score_to_its_record(written: Written) -> None:
    page = Page(written.text)
    inside = [link for link in page.links if link.startswith("#")]
    outside = [link for link in page.links if not link.startswith("#")]
    assert {link[1:] for link in inside} <= {*page.ids}
    assert len(set(page.ids)) == len(page.ids)
    files = [written.path.parent / unquote(link) for link in outside]
    scored = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(scored) == 14  # runs: 2 of the unpruned network, and 2 x 2 x 3
    assert all("accuracy" in record for record in scored)
    table = written.text.partition("<h2>Results")[2].partition("</table>")[0]
    numbers = re.findall(r'<td class="n"[^>]*>((?:(?!</td>).)+)</td>', table)
    assert len(numbers) > 7 * 6
    assert [number for number in numbers if not number.startswith("<a href")] == []


def test_the_page_asks_for_nothing(written: Written) -> None:
    assert not re.search(r'(src|action|href)="(https?:)?//', written.text)
    assert "@import" not in written.text
    assert "url(" not in written.text


def test_the_checklist_answers_what_records_know_and_leaves_the_rest(
    written: Written, command: Command
) -> None:
    folder = written.path.parent.parent
    done = command(
        "report", written.study, "--store", folder / "st ore", "--out", folder / "p", "--checklist"
    )
    assert done.code == 0, done.text
    text = Page((folder / "p" / "report.html").read_text(encoding="utf-8")).text
    assert "NeurIPS checklist" in text
    assert "2 seeds a comparison" in text
    assert "for the authors" in text


def test_the_checklist_has_the_sixteen_items_in_their_order(tmp_path: Path) -> None:
    runs = make_runs()
    section = checklist(report_of(runs, tmp_path), runs, evidence_of(runs))
    (table,) = section.blocks
    assert isinstance(table, PageTable)
    names = [row[0].text for row in table.rows]
    assert [int(name.partition(".")[0]) for name in names] == [*range(1, 17)]
    known = ("Claims", "Limitations", "Theory", "Reproducibility", "Open access", "Settings")
    for number, begins in enumerate(known, start=1):
        assert names[number - 1].startswith(f"{number}. {begins}")
    answered = [row[1].text != "for the authors" for row in table.rows]
    assert answered == [True, True, False, *[True] * 5, *[False] * 8]


def test_numbers_of_methods_and_of_layers_lead_to_their_records(tmp_path: Path) -> None:
    runs = [
        replace(run, method=method, score=run.score + bonus, macs=500, sparsity=0.5, group="")
        for method, bonus in (("a", 0.0), ("b", 1.0))
        for run in make_runs()
        if run.method and run.score is not None
    ]
    kept = Kept(group=runs[0].group, unit="channel", shares={"one": 0.5, "two": 0.25}, n=2)
    evidence = replace(evidence_of(runs), kept=(kept,))
    report = report_of(runs, tmp_path)
    document = document_of(report, runs, evidence, tmp_path, settings={})
    sections = {section.name: section for section in document.sections}
    anchors = {anchor for block in sections["records"].blocks for anchor in block.anchors}  # type: ignore[union-attr]
    for name, least in (("methods", 2), ("layers", 2)):
        tables = [block for block in sections[name].blocks if isinstance(block, PageTable)]
        hrefs = [cell.href[1:] for t in tables for row in t.rows for cell in row if cell.href]
        assert len(hrefs) >= least
        assert {*hrefs} <= anchors


def test_a_verdict_shows_the_p_value_that_its_outcome_stands_on(tmp_path: Path) -> None:
    runs = [replace(run, score=97.0 + 0.01 * run.seed) for run in make_runs(num_seeds=5)]
    runs = [r if r.arm != "scratch-e" else replace(r, score=97.0 + 0.02 * r.seed) for r in runs]
    document = document_of(
        report_of(runs, tmp_path), runs, evidence_of(runs), tmp_path, settings={}
    )
    (section,) = (found for found in document.sections if found.name == "verdicts")
    table = next(block for block in section.blocks if isinstance(block, PageTable))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["outcome"].text == "equivalent"
    shown = (row[f"p ({kind})"].value or 0.0 for kind in ("difference", "equivalence"))
    assert [p < 0.01 for p in shown] == [False, True]


def test_a_winner_that_hangs_on_the_retraining_is_a_headline(tmp_path: Path) -> None:
    arms = {"fine-tune": 95.0, "fine-tune-10x": 99.0, "scratch-b": 97.0}
    starts: dict[str, Start] = {"scratch-b": "random"}
    first = make_runs()[0]
    runs = [
        replace(
            first, arm=arm, method="l1", sparsity=0.5, seed=seed, score=score + seed / 10,
            start=starts.get(arm, "inherited"), budget="epochs", epochs=4, group="",
        )
        for arm, score in arms.items()
        for seed in range(3)
    ]  # fmt: skip
    document = document_of(
        report_of(runs, tmp_path), runs, evidence_of(runs), tmp_path, settings={}
    )
    (headline,) = (h for h in document.headlines if "winner" in h.question)
    assert headline.short == "Yes"
    assert "depends on the kind of retraining in 1 cell" in headline.text


def test_names_are_shown_and_never_read_as_markup(tmp_path: Path) -> None:
    runs = make_runs(data=HOSTILE, model=HOSTILE + "m", arm=HOSTILE)
    text = rendered(runs, tmp_path, HOSTILE)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert "alert(1)</script>" not in text
    assert "<script>alert(1)</script>" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    assert "\\u202e" in page.text
    assert "\u4e2d\u6587" in page.text


def test_a_large_study_stays_small_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    runs = make_runs(num_cells=40)
    report = report_of(runs, tmp_path)
    document = document_of(report, runs, evidence_of(runs), tmp_path, settings={})
    whole = len(render(document).encode())
    shorter = Page(render(document, most_bytes=whole - 1))
    assert "Left out, so that the page stays small: Training curves." in shorter.text
    assert "training" not in shorter.ids
    assert {f"r{i}" for i in range(81)} <= {*shorter.ids}
    text = render(document, most_bytes=whole // 2)
    shortest = Page(text)
    assert "the last rows of long tables" in shortest.text
    assert len(text.encode()) < whole // 2
    lost = {link for link in shortest.links if link[0] == "#"} - {f"#{i}" for i in shortest.ids}
    assert not lost


@pytest.mark.parametrize(
    ("text", "value"),
    [("25.7k (35%)", 25_700.0), ("-0.56", -0.56), ("1,234", 1234.0), ("3 of 5", 3.0), ("l1", None)],
)
def test_figures_sort_by_their_size(text: str, value: float | None) -> None:
    assert number_in(text) == value


def test_a_cell_that_is_a_plain_number_needs_no_second_one() -> None:
    assert (PageCell(text="12").sorts_by, PageCell(text="12k").sorts_by) == ("", "12000")


def test_points_stand_within_their_chart_and_those_beyond_say_their_value() -> None:
    points = tuple(ChartPoint(x=x, y=y) for x, y in ((1e3, 97.0), (1e4, 99.0), (1e5, 10.0)))
    series = (Series(name="a", look=1, points=points),)
    chart = Chart(title="t", x="MACs", y="%", series=series, log=True, least=95.0, most=100.0)
    drawn = draw(chart)
    assert [mark["value"] for mark in drawn.marks] == ["", "", "10.00"]
    assert all(0 <= mark["x"] <= 340 and 0 <= mark["y"] <= 230 for mark in drawn.marks)
    assert drawn.marks[0]["y"] > drawn.marks[1]["y"]


def test_a_score_of_which_less_is_better_stands_higher_where_it_is_lower() -> None:
    points = (ChartPoint(x=1.0, y=1.0), ChartPoint(x=2.0, y=2.0))
    chart = Chart(
        title="t", x="x", y="y", series=(Series(name="a", look=0, points=points),), falls=True,
        level=ReferenceLine(y=1.5, low=1.2, high=1.8),
    )  # fmt: skip
    first, second = draw(chart).marks
    assert first["y"] < second["y"]


# In a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


def test_it_opens_without_a_request_and_without_a_word_on_the_console(
    browser: Browser, written: Written
) -> None:
    browser.open(written.path)
    assert browser.requests == [written.path.absolute().as_uri()]
    assert browser.problems == []


def test_tables_sort_both_ways_by_number_with_what_is_empty_last(
    browser: Browser, written: Written
) -> None:
    browser.open(written.path)
    column = "[...document.querySelectorAll('#results tbody tr')].map(r => r.cells[5].dataset.v)"
    click = "document.querySelectorAll('#results thead button')[5].click()"
    browser.value(click)
    values = browser.value(column)
    assert [float(v) for v in values] == sorted((float(v) for v in values), reverse=True)
    browser.value(click)
    assert browser.value(column) == values[::-1] or sorted(values, key=float) == browser.value(
        column
    )
    assert browser.value("document.querySelector('#results [aria-sort]').ariaSort") == "ascending"
    browser.value("document.querySelectorAll('#results thead button')[4].click()")  # vs fine-tune
    differences = browser.value(column.replace("cells[5].dataset.v", "cells[4].textContent"))
    assert differences[-1] == ""


def test_values_show_on_hover_and_by_keys(browser: Browser, written: Written) -> None:
    browser.open(written.path)
    tip = "(t => [t.hidden, t.textContent])(document.querySelector('.tip'))"
    assert browser.value(tip) == [True, ""]
    browser.move_to("#curves a.p .hit")
    hidden, text = browser.value(tip)
    assert not hidden
    assert re.match(r"\S+ 0.5: \d+\.\d\d, 95% .* n = 2; .* MACs", text)
    browser.value("document.querySelector('#curves figure svg').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.value(tip)[0] is False
    browser.press("Enter")
    assert browser.value("!!document.querySelector('tr:target')")


def test_nothing_overflows_on_a_phone(browser: Browser, written: Written) -> None:
    browser.open(written.path, width=360, height=740)
    assert browser.value("document.documentElement.scrollWidth") <= 360


def test_the_reference_lists_every_field_of_records(written: Written) -> None:
    files = [*(written.path.parents[1] / "st ore" / "records").rglob("*.json")]
    assert len(files) > 5
    known = {**OF_ALL, **OF_TRAININGS, **OF_PRUNINGS, **OF_COSTS}
    for file in files:
        record = json.loads(file.read_text())
        assert set(record) <= set(known), file
        assert set(record["timing"]) <= {
            *("seconds", "energy", "machine", "versions", "digest"),
        }
        assert set(record["timing"]["energy"]) <= set(OF_ENERGY)
        for side in ("before", "after"):
            if record["kind"] == "prune":
                assert set(record[side]) <= set(OF_COSTS)


def test_the_reference_lists_every_field_of_a_card_and_of_costs() -> None:
    assert set(OF_CARDS) == {f.name for f in fields(Card)} | {"protocol"}
    assert set(OF_COSTS) == {f.name for f in fields(Cost)}
    assert set(OF_ENERGY) == {*Energy().to_json(), *Energy(unknown="why").to_json()}


def test_it_reads_without_scripts_and_prints(browser: Browser, written: Written) -> None:
    browser.open(written.path, scripts=False)
    assert browser.value("document.querySelectorAll('#curves title').length") > 0
    assert browser.value("document.querySelectorAll('thead button').length") == 0
    assert browser.pdf().startswith(b"%PDF")


def test_hostile_names_run_nothing(browser: Browser, tmp_path: Path) -> None:
    runs = make_runs(data=HOSTILE, model=HOSTILE + "m", arm=HOSTILE + "x" * 500)
    page = tmp_path / "page.html"
    page.write_text(rendered(runs, tmp_path, HOSTILE), encoding="utf-8")
    browser.open(page, width=360, height=740)
    assert browser.problems == []
    assert browser.value("document.documentElement.scrollWidth") <= 360


def test_axe_finds_nothing_serious(written: Written) -> None:
    axe()
    check_accessible(written.path)
