"""Put a quickstart's report into the README: its table, figure and answer, and how they were made.

uv run regrow quickstart && uv run python docs/refresh_readme.py regrow-report/quickstart
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- quickstart -->", "<!-- /quickstart -->"


def main(report: Path) -> None:
    """Copy the figure and rewrite what stands between the README's marks."""
    text = (report / "report.md").read_text(encoding="utf-8")
    picture = "accuracy-macs.png"
    shutil.copyfile(report / picture, ROOT / "docs" / "quickstart" / picture)
    body = "\n\n".join(
        [
            f"![Accuracy against MACs, by method and arm](docs/quickstart/{picture})",
            _section(text, "Results").replace("### ", "**", 1).replace("\n", "**\n", 1),
            _section(text, "Answer"),
            "How these numbers were made:\n\n" + _section(text, "How it was made"),
        ]
    )
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    before, _, rest = old.partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{body}\n{END}{after}", encoding="utf-8")


def _section(text: str, title: str) -> str:
    """Return what stands below a heading of the second level, without its pictures."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None:
        raise SystemExit(f"The report has no section '{title}'.")
    return re.sub(r"^!\[.*\n\n?", "", found.group(1), flags=re.M).strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
