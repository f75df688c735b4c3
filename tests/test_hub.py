"""The Hugging Face hub: what is uploaded, and what failures say; nothing leaves this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import regrow
from commands import Command
from regrow.errors import ConfigError, StoreError

hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with nets.py and a small network cut from it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NET)
    origin = regrow.ModelOrigin("nets.py:build")
    cut = regrow.compress(origin.build(), "1x4", sparsity=0.5, origin=origin, batches=())
    cut.save("small")
    shutil.copytree("small", "scored")  # by a function of one's own, as `regrow export` writes it
    (tmp_path / "scored" / "result.json").write_text('{"accuracy": 98, "accuracy_unit": "%"}')
    return tmp_path


def metadata(page: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(page.split("---")[1])
    return value


def test_what_is_pushed_can_be_loaded(here: Path, command: Command) -> None:
    done = command(
        *("push", "small", "some/small-net", "--into", "there"),
        *("--result", "accuracy=98.4", "--on", "digits"),
    )
    assert done.code == 0, done
    again = regrow.load("there", code="nets.py:build")
    x = torch.rand(3, 4)
    assert torch.equal(again(x), regrow.load("small", code="nets.py:build")(x))
    page = (here / "there" / "README.md").read_text()
    (index,) = metadata(page)["model-index"]
    assert index["name"] == "small-net"
    (result,) = index["results"]
    assert result["dataset"]["name"] == "digits"
    assert result["metrics"] == [{"type": "accuracy", "value": 98.4}]
    assert "Proven: " in page
    assert 'regrow.load(regrow.pull("some/small-net"), code="nets.py:build")' in page


def test_the_score_of_a_study_is_taken(here: Path) -> None:
    result = {"top1": 97.5, "top1_unit": "%", "data": "digits"}
    (here / "small" / "result.json").write_text(json.dumps(result))
    regrow.push("small", "some/net", into="there")
    (index,) = metadata((here / "there" / "README.md").read_text())["model-index"]
    assert index["results"][0]["metrics"] == [{"type": "top1", "value": 97.5}]


def test_the_score_of_a_function_of_ones_own_needs_its_data(here: Path) -> None:
    (here / "small" / "result.json").write_text('{"f1": 0.5, "f1_unit": "", "macs": 3}')
    with pytest.raises(ConfigError, match="does not say on which data"):
        regrow.push("small", "some/net", into="there")
    regrow.push("small", "some/net", dataset="mine", into="there")
    assert "- f1: 0.5 on mine" in (here / "there" / "README.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("result.json", b'{"a":' * 50_000, "nested too deeply"),
        ("result.json", b"[]", "not a JSON object"),
        ("card.md", b"\xff\xfe", "cannot be read: 'utf-8'"),
    ],
)
def test_files_that_nobody_writes_so_are_refused(
    here: Path, file: str, content: bytes, match: str
) -> None:
    (here / "small" / file).write_bytes(content)
    with pytest.raises(StoreError, match=match):
        regrow.push("small", "some/net", into="there")


@pytest.mark.usefixtures("here")
def test_an_upload_is_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Client:
        def create_repo(self, name: str, *, exist_ok: bool) -> str:
            return f"address of {name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            seen[repo_id] = sorted(file.name for file in folder_path.iterdir())

    monkeypatch.setattr(hub, "HfApi", Client)
    assert regrow.push("small", "some/net") == "address of some/net"
    assert seen == {
        "some/net": ["README.md", "architecture.json", "card.json", "weights.safetensors"]
    }


def test_a_download_is_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(name: str, *, allow_patterns: list[str]) -> str:
        assert "architecture.json" in allow_patterns
        return str(here / "small")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    loaded: nn.Module = regrow.load(regrow.pull("some/net"), code="nets.py:build")
    assert loaded(torch.rand(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "net"], "A repository of the hub is OWNER/NAME. Got 'net'"),
        (["none", "a/net", "--into", "there"], "'none' holds no network: there is no arch"),
        (["small", "a/net", "--into", "small"], "exists already"),
        (["small", "a/net", "--result", "accuracy"], "--result must be METRIC=VALUE"),
        (["small", "a/net", "--result", "accuracy=1"], "Name the data set of the results: --on"),
        (["small", "a/net", "--into", "there", "--on", "x"], "no results for the data set 'x'"),
        (["scored", "a/net", "--into", "there"], "on which data. Name the data set: --on"),
    ],
)
@pytest.mark.usefixtures("here")
def test_bad_input_is_one_message(command: Command, arguments: list[str], message: str) -> None:
    done = command("push", *arguments)
    assert done.code == 2
    assert message in done.text
    assert not Path("there").exists()


@pytest.mark.usefixtures("here")
def test_a_hub_that_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Forbidden\nand more")

    monkeypatch.setattr(hub.HfApi, "create_repo", refuse)
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(regrow.DataError, match=r"cannot be uploaded .*403 Forbidden\).*hf auth"):
        regrow.push("small", "some/net")
    with pytest.raises(regrow.DataError, match=r"cannot be fetched .*403 Forbidden\).*log in"):
        regrow.pull("some/net")


@pytest.mark.usefixtures("here")
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(regrow.ConfigError, match=r"pip install 'regrow\[hub\]'"):
        regrow.push("small", "some/net", into="there")
