"""A study run from Python: the numbers of the command, in scripts, notebooks, and when stopped."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import regrow
from commands import STUDY, Command, environment, write_study
from regrow.core import registry
from regrow.errors import ConfigError, Interrupted
from regrow.run import Event, JobDone
from regrow.run.worker import _hidden_script
from regrow.store import Store

SCRIPT = """
import regrow
{parts}
found = regrow.run_study({study!r}, store={store!r}, workers=1, progress=False)
print(found.complete, len(found.rows), found.answer.splitlines()[0])
"""
PARTS = """
from regrow import criterion, register_method

@criterion("of-this-script")
def of_this_script(group, probe):
    return group.sum(lambda name: probe.weight(name).abs())

register_method("of-this-script", criterion=of_this_script)
"""


def stored(store: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return every record without its times, and every tensor, as they lie in a store."""
    found = {}
    for key in Store.open(store, create=False).keys():  # noqa: SIM118
        folder = store / "records" / key[:2] / key
        record = json.loads((folder / "record.json").read_text())
        del record["timing"]
        tensors = folder / "tensors.safetensors"
        found[key] = record, tensors.read_bytes() if tensors.exists() else b""
    return found


def test_a_study_from_python_is_that_of_the_command_bit_for_bit(
    command: Command, tmp_path: Path
) -> None:
    file = write_study(tmp_path)
    out = tmp_path / "out"
    command("run", file, "--workers", "0", "--store", tmp_path / "a", "--out", out)
    found = regrow.run_study(STUDY, store=tmp_path / "b", workers=0, progress=False)
    assert found.complete
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    report = found.report(tmp_path / "own", html=True)
    for name in ("rows.csv", "runs.csv", "verdicts.csv", "table.tex"):
        assert (tmp_path / "own" / name).read_bytes() == (out / name).read_bytes()
    assert report.paths[-1].name == "report.html"
    pd.testing.assert_frame_equal(found.rows, report.frame)
    assert len(found.verdicts) == len(report.verdicts)
    assert [*found.runs["key"]] == [*regrow.results(tmp_path / "b", STUDY)["key"]]
    assert len(found.epochs) == sum(found.runs["epochs"] > 0)
    assert found.answer == report.answer
    assert found.answer in repr(found)


def test_the_snippet_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
    (snippet,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "run_study(" in block
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert names["found"].complete
    assert names["page"].exists()


def test_a_stopped_call_keeps_everything_and_the_same_call_resumes(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, JobDone):
            os.kill(os.getpid(), signal.SIGINT)

    whole = {"store": tmp_path / "a", "workers": 0, "progress": False}
    with pytest.raises(Interrupted, match=r"1 of \d+ jobs are done.*The same call resumes"):
        regrow.run_study(STUDY, **whole, on_event=stop)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = regrow.run_study(STUDY, **whole)
    assert again.complete
    assert len(again.summary.reused) == 1
    regrow.run_study(STUDY, **{**whole, "store": tmp_path / "b"})
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_names_harm_no_notebook(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    study = {**STUDY, "title": hostile, "models": {**STUDY["models"], "label": hostile}}
    study |= {"methods": [], "arms": ["unpruned"], "seeds": 1}
    shown = regrow.run_study(study, store=tmp_path, workers=0, progress=False)._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "<table" in shown


def test_failures_of_several_data_sets_are_told_apart(tmp_path: Path) -> None:
    data = [{**STUDY["data"], "label": label, "subset": n} for label, n in (("a", 60), ("b", 40))]
    study = {**STUDY, "data": data, "methods": [], "arms": ["unpruned"]}
    study["recipe"] = {**STUDY["recipe"], "lr": 1e30}
    found = regrow.run_study(study, store=tmp_path, workers=0, progress=False, retries=0)
    assert [*found.failures] == [
        f"{label} / tiny VGG unpruned seed {seed}" for label in "ab" for seed in (0, 1)
    ]


@pytest.mark.parametrize("study", [None, 3, ["a"]])
def test_what_is_no_study_is_refused(study: Any) -> None:
    with pytest.raises(ConfigError, match="A study is a file, a mapping"):
        regrow.run_study(study)


def run_script(
    folder: Path, *, parts: str = "", methods: Any = ()
) -> "subprocess.CompletedProcess[str]":
    study = {**STUDY, "methods": list(methods), "seeds": 1}
    study |= {} if methods else {"arms": ["unpruned"]}
    script = folder / "script.py"
    text = SCRIPT.format(parts=parts, study=study, store=str(folder / "store"))
    script.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_workers_do_not_import_the_script_unless_it_holds_parts() -> None:
    script = sys.modules["__main__"]
    with _hidden_script():
        told = get_preparation_data("a worker")
    assert not {"init_main_from_path", "init_main_from_name"} & set(told)
    assert sys.modules["__main__"] is script


@pytest.mark.slow
def test_a_script_needs_no_guard_around_its_call(tmp_path: Path) -> None:
    ended = run_script(tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("True 1 ")


@pytest.mark.slow
def test_a_script_that_registers_parts_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    methods = [{"name": "of-this-script", "sparsity": 0.5}]
    ended = run_script(tmp_path, parts=PARTS, methods=methods)
    assert ended.returncode == 1
    assert "needs `if __name__ == '__main__':`" in ended.stderr
    assert "bootstrapping" not in ended.stderr  # of multiprocessing, in the worker


def test_a_worker_that_comes_to_the_call_again_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as end:
        regrow.run_study("never-read.yaml")
    assert end.value.code == 1


def test_parts_that_only_a_notebook_has_are_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_ELSEWHERE", {"/tmp/ipykernel_1/123.py"})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(ConfigError, match="Put them into a file and name it in 'with_files'"):
        regrow.run_study(STUDY, store=tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
