"""The pages of the site: they name all that the code has, their links lead somewhere, it builds."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import regrow
from regrow.jobs.arm_keys import ARM_KEYS
from regrow.jobs.arms import ARMS
from regrow.pruning.method import CRITERIA, METHODS
from regrow.report.columns import FILES
from regrow.studies.keys import KEYS, METHOD_KEYS, MODEL_KEYS
from regrow.train import Recipe
from small import module_at

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return module_at(ROOT / "docs" / "make_site.py")


@pytest.fixture(scope="module")
def site(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "pages"
    maker.main(out)
    return out


def rows_of(page: Path) -> set[str]:
    """Return what stands in the first cells of a page's tables."""
    return set(re.findall(r"^\| `([^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_reference_has_all_that_the_code_has(site: Path) -> None:
    pages = site / "reference"
    assert rows_of(pages / "study.md") >= {*KEYS, *METHOD_KEYS, *MODEL_KEYS, *ARM_KEYS}
    said = {field.name for field in fields(Recipe)} - {"last_epoch"}  # what arms come to
    assert rows_of(pages / "recipes.md") >= said
    assert rows_of(pages / "arms.md") >= {*ARMS.names()}
    heads = re.findall(r"^##+ (.+)$", (pages / "methods.md").read_text(), re.MULTILINE)
    assert {*heads} >= {*METHODS.names(), *CRITERIA.names()}
    api = (pages / "api.md").read_text()
    assert {*re.findall(r"^## regrow\.(\w+)$", api, re.MULTILINE)} == {*regrow.__all__}


def test_every_key_has_a_form_in_the_reference(site: Path) -> None:
    """Columns too: a line on each, or the reader is left alone with its name."""
    for name, file in FILES.items():
        assert not [column for column, _, about in file.columns() if not about], name


def test_links_of_the_site_lead_to_its_files(site: Path) -> None:
    for page in site.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in link:
                assert (page.parent / link).is_file(), (page, link)


def test_the_menu_has_every_written_page(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = {*re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE)}
    assert all((site / name).is_file() for name in named)
    pages = {page.relative_to(site).as_posix() for page in site.glob("*.md")}
    pages |= {page.relative_to(site).as_posix() for page in site.glob("reference/*.md")}
    assert pages == named


def test_a_link_to_nowhere_is_named(maker: ModuleType) -> None:
    page = ROOT / "docs" / "python.md"
    with pytest.raises(SystemExit, match=r"docs/python.md: the link gone.md leads nowhere"):
        maker._moved(page, "[a](gone.md)", set())


def test_mkdocs_builds_it_without_a_warning(site: Path, tmp_path: Path) -> None:
    if shutil.which("mkdocs") is None:
        pytest.skip("no mkdocs: .ci/run has it (uv run --only-group docs)")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"docs_dir": str(site), "site_dir": str(tmp_path / "html")}
    file = tmp_path / "mkdocs.yml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)


def test_the_citation_is_that_of_this_version() -> None:
    """``cffconvert --validate`` checks the rest."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    assert {"cff-version", "message", "title", "authors"} <= {*citation}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] in changes
