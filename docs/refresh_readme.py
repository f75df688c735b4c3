"""Put a quickstart's report into the docs, and its figure, ten rows and answer into the README.

uv run regrow quickstart && uv run python docs/refresh_readme.py regrow-report/quickstart
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "quickstart"
START, END = "<!-- quickstart -->", "<!-- /quickstart -->"
ARMS = ("fine-tune", "scratch-e", "scratch-b")
COLUMNS = ("pruned by", "arm", "accuracy %", "vs fine-tune", "parameters", "MACs", "epochs")


def main(report: Path) -> None:
    """Copy the report and rewrite what stands between the README's marks."""
    text = (report / "report.md").read_text(encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    for file in (report / "report.md", *report.glob("*.png")):
        shutil.copyfile(file, FOLDER / file.name)
    body = "\n\n".join(
        [
            "![Accuracy against MACs, by method and arm](docs/quickstart/accuracy-macs.png)",
            _ten_rows(_section(text, "Results")),
            "Five seeds each; of each method only the higher sparsity is shown. The [whole table]"
            "(docs/quickstart/report.md) has every arm, the training FLOPs and how each training "
            "budget was set. The report's answer begins:",
            _lead(_section(text, "Answer")).replace("](#", "](docs/quickstart/report.md#"),
            _made(_section(text, "How it was made")),
        ]
    )
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    before, _, rest = old.partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8")


def _ten_rows(results: str) -> str:
    """Return the unpruned network's row, and three arms of each method's highest sparsity."""
    lines = [line for line in results.splitlines() if line.startswith("|")]
    names, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    places = [names.index(name) for name in COLUMNS]
    sections: dict[str, list[list[str]]] = {}  # by method and sparsity, in the table's order
    section = ""
    for row in rows[1:]:  # after the line of dashes
        section = row[0] or section
        sections.setdefault(section, []).append(row)
    last = {name.rpartition(" ")[0]: name for name in sections if name}
    table = [sections[""][0]]
    for name in last.values():
        chosen = [row for row in sections[name] if row[1] in ARMS]
        table += [[name if i == 0 else "", *row[1:]] for i, row in enumerate(chosen)]
    head = [COLUMNS, ["---", "---", *["---:"] * (len(COLUMNS) - 2)]]
    shown = [*head, *([row[place] for place in places] for row in table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def _lead(answers: str) -> str:
    """Return the answers up to the first question's, with what cautions stand before it."""
    lines = answers.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("- Is "))
    return "\n".join(lines[: first + 1])


def _made(items: str) -> str:
    """Word the list of how the numbers were made as one line."""
    values = dict(line.removeprefix("- ").split(": ", 1) for line in items.splitlines())
    return f"*{values['command']}, {values['date']}, on {values['machine']}; {values['versions']}.*"


def _section(text: str, title: str) -> str:
    """Return what stands below a heading of the second level, without its figures."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise SystemExit(f"The report has no section '{title}'.")
    return re.sub(r"^!\[.*\n\n?", "", found.group(1), flags=re.M).strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
