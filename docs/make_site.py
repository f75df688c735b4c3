"""Gather the pages of the site: the written ones, and a reference generated from the code.

uv run python docs/make_site.py                  # into build/pages
uv run --isolated --only-group docs mkdocs build --strict   # into build/site
uv run --isolated --with zensical --only-group docs zensical build   # the same, with Zensical

Pages and the files that they link to are copied to ``build/pages`` under their paths in the
repository, except that the content of ``docs/`` moves to the root. Links are rewritten to match; a
linked folder gets an index page that lists its files.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

OUT = ROOT / "build" / "pages"
OF_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")  # pages in addition to docs/
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def main(out: Path = OUT) -> None:
    """Delete a folder, and write every page of the site into it."""
    from reference import pages

    shutil.rmtree(out, ignore_errors=True)
    written = [ROOT / name for name in OF_ROOT] + sorted((ROOT / "docs").rglob("*.md"))
    linked: set[Path] = set()
    for page in written:
        text = _moved(page, page.read_text(encoding="utf-8"), linked)
        _write(out / place(page), text)
    for name, text in pages().items():
        _write(out / "reference" / name, text)
    for path in sorted(linked):
        if path.is_dir():
            _write(out / place(path) / "index.md", _listing(path))
        for file in _files(path):
            if file.suffix != ".md":
                _copy(file, out / place(file))


def place(path: Path) -> PurePosixPath:
    """Return the path on the site of a file of the repository."""
    inside = PurePosixPath(path.relative_to(ROOT).as_posix())
    return inside.relative_to("docs") if inside.parts[:1] == ("docs",) else inside


def _moved(page: Path, text: str, linked: set[Path]) -> str:
    """Return a page with its links rewritten for the site, and add their targets to ``linked``."""

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (page.parent / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise SystemExit(f"{page.relative_to(ROOT)}: the link {target} leads nowhere.")
        linked.add(path)
        there = place(path) / "index.md" if path.is_dir() else place(path)
        return f"{before}{os.path.relpath(there, place(page).parent)}{after}"

    return _outside_code(text, lambda part: LINK.sub(moved, part))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to a text outside of its code blocks."""
    parts, end = [], 0
    for block in CODE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def _files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the Python, YAML, Markdown and PNG files directly in a folder."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".py", ".yaml", ".md", ".png"):
            yield file


def _listing(folder: Path) -> str:
    names = [file.name for file in _files(folder) if file.suffix != ".md"]
    lines = [f"- [{name}]({name})" for name in names]
    return "\n".join([f"# {place(folder)}", "", *lines, ""])


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


if __name__ == "__main__":
    main()
