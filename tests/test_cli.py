"""The product as its user meets it: mistakes end in one message, outputs can be read."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import regrow
from commands import STUDY, Command, Result, command_line, environment, write_study
from image_files import image_folder
from regrow.cli import main as cli
from regrow.cli import plan
from regrow.data import DataSpec, load
from regrow.errors import ConfigError
from regrow.pruning.method import CRITERIA, METHODS, criterion_key
from regrow.train import evaluate


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that has been run: study.yaml, regrow-store, regrow-report."""
    folder = tmp_path_factory.mktemp("finished")
    write_study(folder)
    before = Path.cwd()
    os.chdir(folder)
    argv, sys.argv = sys.argv, ["regrow", "run", "study.yaml", "--workers", "0"]
    code: object = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = argv
        os.chdir(before)
    assert code == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished study in the test's own working folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(result: Result, message: str) -> None:
    assert result.code == 2, result
    assert result.out == ""
    assert re.search(message, result.text), result.text


# What a study can get wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "vgg-17"}, r"study\.yaml: Unknown model 'vgg-17'\. Did you mean 'vgg-1"),
        ({"data": "digit"}, r"Unknown data set 'digit'\. Did you mean 'digits'"),
        ({"methods": {"name": "l1-filters", "sparsity": 0.5}}, "Did you mean 'l1-filter'"),
        ({"arms": ["scratch-x"]}, "Unknown arm 'scratch-x'.*'scratch-"),
        ({"recipe": "cifer"}, "Did you mean 'cifar'"),
        ({"seedz": 3}, "Unknown key 'seedz'. Did you mean 'seeds'"),
        ({"recipe": {"name": "cifar", "epoch": 3}}, "'epoch'.*Did you mean 'epochs'"),
        ({"methods": {"name": "l1-filter", "sparsty": 0.5}}, "Did you mean 'sparsity'"),
        ({"recipe": {"name": "cifar", "epochs": "many"}}, "'epochs'.*int.*'many'"),
        ({"recipe": {"name": "cifar", "lr": -1}}, "'lr'.*-1"),
        ({"methods": {"name": "l1-filter", "sparsity": 1.0}}, r"\[0, 1\).*1\.0"),
        ({"methods": {"name": "l1-filter", "sparsity": -0.1}}, r"\[0, 1\).*-0\.1"),
        ({"methods": {"name": "l1-filter", "sparsity": "half"}}, r"\[0, 1\).*'half'"),
        ({"methods": {"name": "l1-filter"}}, "needs a 'sparsity'"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [1, 1]}, "twice"),
        ({"margin": 0}, "'margin'.*above 0"),
        ({"data": None}, "'data' is missing"),
        ({"data": "hf:nowhere"}, "nowhere"),
        ({"data": "folder:nowhere"}, "nowhere"),
        ({"data": {"name": "digits", "subset": 100_000}}, "subset"),
        ({"models": {"name": "vgg", "plan": [4, "M"], "wdth": 1}}, "Did you mean 'width'"),
        ({"experiments": []}, "'experiments'"),
    ],
)
def test_mistake_in_a_study_is_one_message(
    command: Command, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_study(tmp_path, **changes)
    result = command("run", "study.yaml")
    refused(result, message)
    assert len([line for line in result.err.splitlines() if not line.endswith(" ...")]) == 1
    assert not (tmp_path / "regrow-report").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Cannot read the study 'study.yaml': No such file"),
        (b"", "A study must be a mapping"),
        (b"\x80\xff\x00", "Cannot read the study"),
        (b"\x00\x01\x02", "not YAML"),
        (b"name: [", "not YAML"),
        (b"just words", "A study must be a mapping"),
        (b"name: a\nname: b\n", "occurs twice"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_study_file_that_is_none(
    command: Command, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "study.yaml").write_bytes(content)
    refused(command("plan", "study.yaml"), message)


def test_folder_as_study(command: Command, tmp_path: Path) -> None:
    refused(command("plan", tmp_path), "Is a directory")


def test_truncated_parquet_is_refused_before_training(command: Command, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train.parquet").write_bytes(b"PAR1 and then nothing")
    write_study(tmp_path, data={"name": "hf:images", "root": str(tmp_path / "cache")})
    refused(command("run", "study.yaml"), r"train\.parquet")


# Where things lie --------------------------------------------------------------------------------


def test_store_of_another_version(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "store.json").write_text('{"format": 99}')
    for verb in ("run", "plan", "status", "report"):
        refused(command(verb, "study.yaml", "--store", "old"), "format 99.*Use the version of")


@pytest.mark.parametrize("verb", ["run", "plan", "status", "report"])
def test_store_that_is_a_file(command: Command, tmp_path: Path, verb: str) -> None:
    write_study(tmp_path)
    (tmp_path / "file").write_text("x")
    refused(command(verb, "study.yaml", "--store", "file"), "store.* file")


def test_folder_that_is_not_a_store(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    refused(command("run", "study.yaml", "--store", "mine"), "not a store.*'thesis.tex'")


@pytest.mark.parametrize("verb", ["status", "report"])
def test_store_that_does_not_exist(command: Command, tmp_path: Path, verb: str) -> None:
    write_study(tmp_path)
    refused(command(verb, "study.yaml"), "There is no store at regrow-store. Run a study first")
    assert not (tmp_path / "regrow-store").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "x" * 300])
def test_out_that_cannot_be_made_is_found_before_the_work(
    command: Command, tmp_path: Path, out: str
) -> None:
    write_study(tmp_path)
    (tmp_path / "file").write_text("x")
    refused(command("run", "study.yaml", "--out", out), "Cannot write the report to.*--out")
    assert not list((tmp_path / "regrow-store").glob("records/*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission_is_found_before_the_work(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(command("run", "study.yaml", "--out", "closed"), "Permission denied")


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "..", ".", "a/b"])
def test_name_of_a_study_cannot_leave_the_report_folder(
    command: Command, tmp_path: Path, name: str
) -> None:
    write_study(tmp_path, name=name)
    refused(command("run", "study.yaml"), "names a folder.*no slash and no dot in front")


def test_runs_from_elsewhere_and_in_folders_with_strange_names(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    strange = tmp_path / "a \"b\" 'c' [d]"
    strange.mkdir()
    shutil.copytree(finished / "regrow-store", strange / "store")
    write_study(strange, file="my study.yaml", name=None, title="On [/red] marks")
    study, store = Path(strange.name) / "my study.yaml", Path(strange.name) / "store"
    result = command("run", study, "--store", store, "--out", Path(strange.name) / "out")
    assert result.code == 0
    assert "On [/red] marks" in result.out
    assert (strange / "out" / "rows.csv").exists()
    for verb in ("plan", "status", "report"):
        assert "On [/red] marks" in command(verb, study, "--store", store).out


# Options -----------------------------------------------------------------------------------------


def test_device_that_is_not_there_is_said_before_training(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path)
    missing = "cuda:99" if torch.cuda.is_available() else "cuda"
    for device in (missing, "gpu", "meta"):
        refused(command("run", "study.yaml", "--device", device), f"device '{device}'.*--device")
    assert not (tmp_path / "regrow-store").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("gone.py", None, "--with gone.py: no such file"),
        ("bad.py", "def (", "--with bad.py: SyntaxError.*line 1"),
        ("raises.py", "1 / 0", "--with raises.py, line 1: ZeroDivisionError"),
        ("notes.txt", "hello", "--with notes.txt: not a Python file"),
    ],
)
def test_file_given_with_with_that_cannot_be_loaded(
    command: Command, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    write_study(tmp_path)
    if content is not None:
        (tmp_path / file).write_text(content)
    for verb in (["run", "study.yaml"], ["list"]):
        refused(command(*verb, "--with", file), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "study.yaml", "--workers", "-1"], "--workers"),
        (["run", "study.yaml", "--workers", "two"], "--workers"),
        (["run", "study.yaml", "--checkpoint-seconds", "0"], "--checkpoint-seconds"),
        (["run", "study.yaml", "--stoer", "x"], "--stoer"),
        (["run"], "(?i)study"),
        (["frobnicate"], "frobnicate"),
        (["list", "method"], "Did you mean 'methods'"),
        (["list", "nonsense"], "Unknown kind of name 'nonsense'. Known: .*recipes"),
    ],
)
def test_options_that_cannot_be_meant(
    command: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_study(tmp_path)
    refused(command(*arguments), message)


def options_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every option of a command and of those below it, with the words that lead there."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*path, name))
    yield from ((path, one) for one in command.params if one.opts[0].startswith("-"))


def test_option_given_twice_is_refused_by_every_command_unless_it_makes_a_list(
    command: Command,
) -> None:
    lists, refusals = set(), 0
    for path, option in options_of(typer.main.get_command(cli.app)):
        name = option.opts[0]
        if not path or (option.is_flag and not option.secondary_opts):
            continue
        twice = [name, *option.secondary_opts] if option.is_flag else [name, "1", f"{name}=2"]
        result = command(*path, "x", *twice)
        if option.multiple:
            assert f"{name} was given" not in result.text
            lists.add(name)
        else:
            refused(result, f"{name} was given 2 times, but takes one value")
            refusals += 1
    assert lists == {
        *("--data", "--with", "--replace-data", "--nets", "--only", "--ignore"),
        *("--input", "--keep", "--scope", "--set", "--result", "--target", "--rival", "--small"),
        "--track",
    }
    assert refusals > 40


def test_version(command: Command) -> None:
    assert re.fullmatch(r"regrow \d+\.\d+\S*\n", command("--version").out)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas'}"
    code = f"import regrow.cli.main, sys; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_help_of_every_command_names_json_and_fits_80_columns(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("run", "plan", "status", "report", "export", "list"):
        shown = command(name, "--help")
        assert shown.code == 0
        assert "--json" in shown.out
        assert max(map(len, shown.out.splitlines())) <= 80


# Outputs -----------------------------------------------------------------------------------------


def test_json_of_every_command_is_all_there_is_on_standard_output(
    copy: Path, command: Command
) -> None:
    shown = {
        verb: json.loads(command(verb, "study.yaml", "--json").out)
        for verb in ("plan", "status", "report", "run")
    }
    assert shown["plan"]["jobs"] == shown["plan"]["done"] == shown["status"]["jobs"]
    assert shown["status"]["counts"]["missing"] == 0
    assert shown["run"]["rows"] == shown["report"]["rows"]
    assert {row["n"] for row in shown["run"]["rows"]} == {2}
    assert shown["run"]["accuracy_unit"] == "percent"
    assert max(row["mean"] for row in shown["run"]["rows"]) > 1.0  # a share would not be
    assert shown["run"]["jobs"]["reused"] == shown["plan"]["jobs"]
    assert shown["run"]["jobs"]["failed"] == []
    assert {Path(path).name for path in shown["run"]["paths"]} >= {"report.md", "rows.csv"}
    names = json.loads(command("list", "--json").out)
    assert "l1-filter" in names["methods"]
    assert list(json.loads(command("list", "arms", "--json").out)) == ["arms"]


def test_list_says_something_of_every_name(command: Command) -> None:
    names = json.loads(command("list", "--json").out)
    assert set(names) == {
        "data", "tasks", "models", "methods", "criteria", "allocations", "arms", "recipes",
        "objectives", "optimisers", "schedules", "costs", "units", "scopes", "normalisations",
    }  # fmt: skip
    texts = {(kind, name): text for kind, of in names.items() for name, text in of.items()}
    assert all(texts.values()), texts
    assert "A registered" not in " ".join(texts.values())
    lines = command("list", "arms").out.splitlines()
    assert [line.split()[0] for line in lines] == ["arms", *names["arms"]]


def test_plan_and_status_say_what_is_left(copy: Path, command: Command) -> None:
    write_study(copy, seeds=3)
    shown = command("plan", "study.yaml", "--workers", "1").out
    assert re.search(r"train .* 3 .* 2 .* 1 ", shown)
    assert re.search(r"about \d+ seconds with 1 worker on this machine", shown)
    assert re.search(r"16 of 24 jobs done, 8 not started|\d+ of \d+ jobs done, \d+ not started",
                     command("status", "study.yaml").out)  # fmt: skip


def test_report_of_half_a_study_says_so_and_is_no_failure(copy: Path, command: Command) -> None:
    write_study(copy, seeds=3)
    result = command("report", "study.yaml")
    assert result.code == 0
    assert "2 of 3" in result.out
    assert "did not run" in result.out


def test_what_is_left_out_of_data_is_said_once_and_reported(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_DATA", str(tmp_path / "cache"))
    base = image_folder(tmp_path / "x", num=10)
    (base / "train" / "cat" / "0.png").write_bytes(b"")
    data = {"name": f"folder:{base}", "on_error": "skip"}
    write_study(tmp_path, data=data, methods=None, arms=["unpruned"])
    said = "1 of 40 images are left out"
    result = command("run", "study.yaml", "--workers", "0")
    assert result.code == 0, result.err
    assert result.err.count(said) == 1
    assert (tmp_path / "regrow-report" / "tiny" / "report.md").read_text().count(said) == 1


def test_finished_study_is_not_run_again(copy: Path, command: Command) -> None:
    before = {file: file.stat().st_mtime_ns for file in copy.glob("regrow-store/records/*/*/*")}
    result = command("run", "study.yaml")
    assert result.code == 0
    assert re.search(r"0 jobs done in 0:0\d, \d+ were done before", result.err)
    assert before == {f: f.stat().st_mtime_ns for f in copy.glob("regrow-store/records/*/*/*")}


def test_damaged_record_is_named_everywhere_and_run_does_it_anew(
    copy: Path, command: Command
) -> None:
    table = command("report", "study.yaml").out
    record = next(iter(copy.glob("regrow-store/records/*/*/record.json")))
    record.write_text(record.read_text()[:40])
    damaged = rf"{record.parent.name}/record.json is damaged: it is not JSON"
    for name in ("status", "plan"):
        result = command(name, "study.yaml")
        assert result.code == 0
        assert re.search(damaged, result.err)
    result = command("report", "study.yaml", "--out", "out")
    assert result.code == 0
    assert re.search(damaged, (copy / "out/report.md").read_text().replace("\\", ""))
    result = command("run", "study.yaml", "--workers", "0")
    assert result.code == 0
    assert re.search(rf"{damaged}.*moved to .*damaged/{record.parent.name}-1", result.err)
    assert command("report", "study.yaml").out == table


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--help"], id="in frames and colours"),
        pytest.param(["claims"], id="more than is buffered"),
        pytest.param(["reproduce", "list"], id="less than is buffered"),
    ],
)
def test_broken_pipe_is_quiet(arguments: list[str]) -> None:
    process = subprocess.Popen(
        command_line(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (1, b"")


# Failing and stopping ----------------------------------------------------------------------------

SHAKY = '''
from pathlib import Path
from torch import Tensor
from regrow.pruning.method import criterion, register_method

@criterion("shaky")
def shaky(group, probe) -> Tensor:
    """Fail in one job of five, but not when tried before there is a store, until all is well."""
    working = Path("regrow-store").exists()
    if working and not Path("well").exists() and not Path("shook").exists():
        Path("shook").touch()
        raise ValueError("the ground shook")
    return group.sum(lambda name: probe.weight(name).abs())

register_method("shaky", criterion=shaky, allocation="uniform", unit="channel")
'''


@pytest.mark.usefixtures("own_registries")
def test_failing_job_leaves_the_others_and_is_tried_again(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SHAKY)
    write_study(
        tmp_path,
        methods=[{"name": "shaky", "sparsity": 0.5}],
        arms=["unpruned", "fine-tune"],
        seeds=5,
    )
    mine = ("study.yaml", "--with", "mine.py")
    result = command("run", *mine, "--workers", "0")
    assert result.code == 1
    assert "4 of 5" in result.out
    assert re.search(r"FAILED tiny VGG shaky 0.5 prune seed \d: .*the ground shook", result.err)
    assert re.search(r"13 jobs done in .*; 1 FAILED and 1 not started .* of 15 jobs", result.err)
    page = (tmp_path / "regrow-report" / "tiny" / "report.md").read_text()
    assert "ValueError: the ground shook" in page
    assert "4/5" in page or "4 of 5" in page
    shown = command("status", *mine)
    assert re.search(r"13 of 15 jobs done, 1 failed, 1 not started", shown.out)
    assert "the ground shook" in shown.out
    assert command("report", *mine).code == 1

    (tmp_path / "well").touch()
    result = command("run", *mine, "--workers", "0")
    assert result.code == 0
    assert "2 jobs done in" in result.err
    assert "the ground shook" not in (tmp_path / "regrow-report/tiny/report.md").read_text()


def test_diverging_training_is_a_failure_with_its_message(command: Command, tmp_path: Path) -> None:
    write_study(
        tmp_path, arms=["unpruned", "scratch-e"], recipe={**STUDY["recipe"], "lr": 1e6, "epochs": 3}
    )
    result = command("run", "study.yaml", "--workers", "0")
    assert result.code == 1
    assert re.search(r"FAILED tiny VGG unpruned seed 0: .*epoch", result.err)
    assert "Failures" in result.out


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_stops_in_good_order_and_goes_on(
    command: Command, tmp_path: Path, workers: str
) -> None:
    write_study(tmp_path, recipe={**STUDY["recipe"], "epochs": 50_000}, seeds=1, arms=["unpruned"])
    process = subprocess.Popen(
        command_line("run", "study.yaml", "--workers", workers),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("regrow-store/running/*/progress.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert re.search(
        r"regrow: Stopped: 0 of 1 jobs are done\. .* The results so far: regrow report", err
    )
    assert "The same command resumes: regrow run study.yaml --workers" in err
    assert out == ""
    assert list(tmp_path.glob("regrow-store/running/*/checkpoint.safetensors"))
    assert "1 stopped half-way" in command("status", "study.yaml").out


def test_ctrl_c_outside_the_work_is_no_traceback(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "load_within", interrupt)
    result = command("plan", "study.yaml")
    assert result.code == 130
    assert "The same command resumes" in result.err


def test_models_are_listed_with_their_sizes(command: Command) -> None:
    listed = command("list", "models")
    assert re.search(r"resnet-20 .*269,722 parameters, 40,551,040 MACs for 3x32x32", listed.out)
    assert re.search(r"imagenet-resnet-50 .*25,557,032 parameters.* for 3x224x224", listed.out)


@pytest.mark.parametrize("name", ["l1", "l1-norm"])
def test_a_norm_has_one_name_as_method_and_as_criterion(name: str) -> None:
    assert (METHODS.key(name), CRITERIA.key(name)) == ("l1", "l1-norm")


def test_a_method_named_for_a_criterion_is_told_apart() -> None:
    with pytest.raises(ConfigError, match=r"'l1-filter' is a method, .* needed here: l1-norm"):
        criterion_key("l1-filter")


# Exporting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        ["--arm", "unpruned"],
        ["--method", "l1-filter", "--arm", "scratch-e"],
        ["--method", "l1-filter", "--arm", "pruned"],
        ["--method", "magnitude", "--arm", "fine-tune", "--sparsity", "0.750"],
        ["--method", "magnitude", "--arm", "pruned"],
    ],
)
def test_exported_network_is_as_good_as_its_record(
    copy: Path, command: Command, choice: list[str]
) -> None:
    made = command("export", "study.yaml", "--to", "net", "--seed", "1", "--json", *choice)
    assert made.code == 0, made.err
    shown = json.loads(made.out)
    network = regrow.load(copy / "net")
    dataset = load(DataSpec.from_json(STUDY["data"]))
    share = evaluate(network, dataset.test, dataset).score
    kept = sum(int(p.count_nonzero()) if p.ndim > 1 else p.numel() for p in network.parameters())
    result = json.loads((copy / "net" / "result.json").read_text())
    for one in (shown, result):
        assert one["accuracy_unit"] == "percent"
        assert one["accuracy"] == pytest.approx(100 * share, rel=1e-9)
        assert one["accuracy"] > 1.0  # a share would not be
    assert kept == shown["parameters"] == result["parameters"]
    assert result["classes"] == [str(digit) for digit in range(10)]
    assert result["input"]["mean"] == list(dataset.mean)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([], r"14 rows match.*--arm 'unpruned' or .*'scratch-e'; --seed '0' or '1'"),
        (["--seed", "0", "--arm", "pruned"], "2 rows match.*--method 'l1-filter' or 'magnitude'"),
        (["--arm", "scratch-x"], "--arm: Unknown arm 'scratch-x'. Did you mean 'scratch-e'"),
        (["--arm", "unpruned", "--method", "magnitude"], "Unknown arm 'unpruned'"),
        (["--seed", "9"], "--seed: Unknown seed '9'. Known: 0, 1"),
        (["--sparsity", "0.3"], "Unknown sparsity '0.3'"),
    ],
)
def test_export_of_no_single_row_lists_the_choices(
    copy: Path, command: Command, choice: list[str], message: str
) -> None:
    refused(command("export", "study.yaml", "--to", "net", *choice), message)
    assert not (copy / "net").exists()


def test_an_exported_network_is_written_in_other_formats_too(copy: Path, command: Command) -> None:
    choice = ("--arm", "pruned", "--method", "l1-filter", "--seed", "0")
    done = command("export", "study.yaml", "--to", "net", *choice, "--pt2")
    assert done.code == 0, done
    assert "model.pt2: takes batches of any size; within" in done.out
    x = torch.rand(3, 1, 8, 8)
    program: Any = torch.export.load(copy / "net" / "model.pt2").module()
    network = regrow.load(copy / "net")
    assert torch.allclose(program(x), network(x), atol=1e-5)


def test_export_of_what_has_not_been_run_or_cannot_be_written(copy: Path, command: Command) -> None:
    write_study(copy, seeds=3)
    choice = ["--arm", "unpruned", "--seed"]
    refused(command("export", "study.yaml", "--to", "net", *choice, "2"), "has not been done yet")
    refused(
        command("export", "study.yaml", "--to", "study.yaml", *choice, "1"),
        "'study.yaml' exists already and is not overwritten",
    )
