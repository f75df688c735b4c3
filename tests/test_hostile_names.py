"""Names that are markup, formulas, commands or unseen characters harm no reader of an output."""

import csv
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from commands import Command, write_study
from regrow.cli.terminal import say
from regrow.core.texts import one_line, visible
from regrow.report import Failure, write
from regrow.report.rows import Run
from regrow.run import events
from regrow.run.display import display
from test_report import HOW, make_arm, study

NAMES = {
    "quotes": "\"a' `b` \u201cc\u201d",
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)> &amp; **b** [l](u) | # ~",
    "formula": "=cmd|'/C calc'!A0",
    "formulas": "@SUM(1+1)*cmd",
    "latex": "\\input{/etc/passwd} $x$ % ^^M {\\bf b} #1 ~ _ & \\end{longtable}",
    "mathtext": "$\\frac{1}$ $$ $",
    "rich": "[red]a[/red] [link=http://x]b",
    "not-latin": "\u4e2d\u6587 \u0420\u0443\u0441 \u05e2\u05d1\u05e8",
    "long": "x" * 500,
    "controls": "a\x1b[31mb\x07c\x00d\x08e\x9bf\rg\x0bh\x85i\u2028j",
    "lines": "a\nb\n- c\n# d\n| e |",
    "directions": "a\u202egnp.exe\u2066b\u200fc",
}
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def hostile(name: str) -> list[Run]:
    """Make the runs of a study whose every name is the given one."""
    return [
        replace(
            run,
            data=f"{name}d",
            model=f"{name}m",
            method=f"{name}c" if run.method else "",
            arm=f"{name}{run.arm}",
            group="",
        )
        for run in study()
    ]


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write a report of one hostile name."""
    name = NAMES[request.param]
    folder = tmp_path_factory.mktemp("report")
    how = {**HOW, "title": name}
    failure = Failure(label=name, message=name)
    report = write(
        hostile(name), folder, **how, failures=[failure], notes=[name],
        draw=request.param in ("mathtext", "not-latin", "long"),
    )  # fmt: skip
    return name, folder, report


def test_no_output_holds_what_is_unseen(written: Any) -> None:
    _, folder, report = written
    assert not UNSEEN.search(report.text)
    for file in folder.iterdir():
        if file.suffix in (".md", ".tex", ".csv", ".svg"):
            assert not UNSEEN.search(file.read_text(encoding="utf-8")), file.name


def test_markdown_keeps_its_lines_and_columns(written: Any) -> None:
    _, folder, _ = written
    text = (folder / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("# ")] == [lines[0]]
    assert not re.search(r"(?<!\\)<(?!br>)[a-z/]", text)
    assert not re.search(r"(?<!\\)\]\((?!accuracy-|#setups\))", text)
    tables = [line for line in lines if line.startswith("| ")]
    bare = [re.sub(r"\\.", "", line).count("|") for line in tables]
    assert len(tables) >= 5
    assert len(set(bare)) == 1


def test_csv_files_hold_no_formula_and_keep_their_columns(written: Any) -> None:
    name, folder, _ = written
    for file in folder.glob("*.csv"):
        rows = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))
        assert len({len(row) for row in rows}) == 1
        for row in rows[1:]:
            for cell in row:
                assert cell[:1] not in tuple("=@+") or _is_number(cell), (file.name, cell)
    text = (folder / "rows.csv").read_text(encoding="utf-8")
    first = next(csv.DictReader(io.StringIO(text)))
    assert first["data"].removeprefix("'") == f"{one_line(name)}d"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_latex_holds_no_command_of_a_name(written: Any) -> None:
    _, folder, _ = written
    text = (folder / "table.tex").read_text(encoding="utf-8")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert "\\input" not in body
    assert "\\bf" not in body
    assert body.count("\\end{longtable}") == 1
    assert text.isascii() or not re.search("[\u0100-\uffff]", text)


def test_latex_compiles_with_every_name(tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    if compiler is None:
        pytest.skip("no pdflatex on the PATH")
    tables = []
    for i, name in enumerate(NAMES.values()):
        write(hostile(name), tmp_path / f"{i}", **{**HOW, "title": name}, draw=False)
        tables.append((tmp_path / f"{i}" / "table.tex").read_text(encoding="utf-8"))
    head = "\\documentclass{article}\\usepackage{booktabs,longtable}\\begin{document}\n"
    (tmp_path / "all.tex").write_text(head + "\n".join(tables) + "\n\\end{document}\n", "utf-8")
    command = [compiler, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


def test_figures_are_drawn_and_stay_of_a_size_to_look_at(written: Any) -> None:
    _, folder, report = written
    for figure in report.page.figures:
        root = ElementTree.parse(folder / figure.paths[1]).getroot()
        assert float(root.attrib["width"].removesuffix("pt")) < 1000


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("terminal", [False, True])
def test_the_display_of_a_run_shows_names_as_they_are(name: str, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with display(console) as show:
        show(events.JobStarted(key="a", label=name, kind="train"))
        show(events.JobFailed(key="a", label=name, message=name))
        show(events.JobWarning(key="a", label=name, message=name))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", out.getvalue())  # of the live display itself
    assert not UNSEEN.search(text)
    assert "FAILED" in text


def test_commands_print_names_as_they_are(tmp_path: Path, command: Command) -> None:
    name = " ".join(NAMES[kind] for kind in ("markup", "directions", "rich", "formula"))
    study_file = write_study(
        tmp_path,
        title=name,
        data={"name": "digits", "subset": 60, "test_subset": 40, "label": name},
        models={"name": "vgg", "plan": [4, "M", 4], "label": name},
        methods=[{"name": "l1-filter", "sparsity": 0.5, "label": name}],
        arms=["unpruned", {"name": name, "like": "fine-tune"}],
        seeds=1,
    )
    store = ("--store", tmp_path / "store")
    done = command("run", study_file, "--workers", "0", *store, "--out", tmp_path / "o")
    assert done.code == 0, done.text
    for name in ("status", "plan", "lint"):
        printed = command(name, study_file, *store)
        assert not UNSEEN.search(done.out + done.err + printed.out + printed.err), name
        assert printed.code in (0, 1)


def test_a_study_with_control_characters_is_refused_without_them(
    tmp_path: Path, command: Command
) -> None:
    refused = command("plan", write_study(tmp_path, title=NAMES["controls"]))
    assert refused.code == 2
    assert not UNSEEN.search(refused.err)


def test_what_people_write_stays_as_it_is() -> None:
    for text in (
        "na\u00efve caf\u00e9",
        "\u4e2d\u6587",
        "\u05e2\u05d1\u05e8\u05d9\u05ea",
        "a\tb\nc",
        "\U0001f600\u200d\U0001f680",
    ):
        assert visible(text) == text
    assert make_arm("fine-tune", [97.0])[0].arm == "fine-tune"


@pytest.mark.parametrize("kind", ["markup", "directions", "controls", "quotes", "not-latin"])
def test_cards_and_inspections_of_networks_show_names_as_they_are(
    kind: str, tmp_path: Path
) -> None:
    from torch import nn

    import regrow

    name = NAMES[kind].replace(".", " ")  # which modules cannot have in a name
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(1, 4, 3))
    net.add_module(f"{name}2", nn.Flatten())
    net.add_module(f"{name}3", nn.Linear(4 * 36, 3))
    assert not UNSEEN.search(str(regrow.inspect(net, (1, 1, 8, 8))))
    cut = regrow.compress(net, (1, 1, 8, 8), sparsity=0.5, batches=())
    card = replace(cut.card, network=name, origin=name, weights=name, caveats=[name])
    page = card.to_markdown()
    assert not UNSEEN.search(page)
    assert not UNSEEN.search(str(card))
    outside = re.sub(r"`[^`\n]*`", "", page)  # code, in which nothing is markup
    assert "<script" not in outside
    assert "**b**" not in outside
    assert "`" not in outside.replace("\\`", "")


def test_scores_on_a_page_of_the_hub_show_names_as_they_are(tmp_path: Path) -> None:
    from regrow.own import hub

    (tmp_path / "architecture.json").write_text('{"origin": {"text": "a\\"b.py:Net"}}')

    class Hub:
        class ModelCardData:
            def __init__(self, **given: Any) -> None:
                pass

            def to_yaml(self) -> str:
                return "a: 1"

        class EvalResult:
            def __init__(self, **given: Any) -> None:
                pass

    name = NAMES["markup"] + NAMES["controls"] + NAMES["lines"]
    page = hub._page(
        tmp_path, "me/net", Hub, results={name: 1.0}, dataset=name, task="image-classification"
    )
    (line,) = (line for line in page.splitlines() if ": 1 on" in line)
    assert not UNSEEN.search(line)
    assert "<script" not in line
    assert 'code="a\\"b.py:Net"' in page


def test_text_between_colons_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a picture: ``mine.py:train: ...`` is how errors begin."""
    say("mine.py:train: it returns nothing")
    assert capsys.readouterr().err == "mine.py:train: it returns nothing\n"
