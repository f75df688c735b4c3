"""Several processes that train one network: as one would, to tolerance, and stopped together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from commands import environment, finished, spawn, write_study
from ranks_at_work import CASES, state
from regrow.core.distributed import ALONE, Ranks, launched, lost, own_device
from regrow.errors import DataError, RanksLost
from regrow.store import Store
from regrow.studies.study import Study
from regrow.train.distributed import over_ranks, share_of

TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def plain_environment() -> dict[str, str]:
    """Return an environment that says nothing of ranks, and finds the tests' modules."""
    own = {k: v for k, v in environment().items() if not k.startswith(("MASTER_", "WORLD_"))}
    return {**own, "PYTHONWARNINGS": "error::FutureWarning:regrow"}


# As one process -----------------------------------------------------------------------------------


def images_of_which_one_is_damaged(base: Path) -> Path:
    """Write 70 images, of which one that is not looked at before a training cannot be read."""
    for number in range(70):
        folder = base / "train" / ("cat" if number < 35 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 99)).save(folder / f"{number:02}.png")
    for name in ("cat", "dog"):
        (base / "test" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(base / "test" / name / "0.png")
    bad = base / "train" / "cat" / "11.png"
    bad.write_bytes(bad.read_bytes()[:50])
    return bad


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Take all trainings by two processes, and return the folder of what they ended in."""
    folder = tmp_path_factory.mktemp("together")
    images_of_which_one_is_damaged(folder / "images")
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])  # that is free
    # What a launcher says, which would take a process itself.
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    meeting |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "ranks_at_work.py"), str(folder)],
            env=plain_environment() | meeting | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    told = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "".join(told)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_learn_what_one_process_learns(name: str, together: Path) -> None:
    training, scored = CASES[name].run()
    ours = json.loads((together / f"{name}.json").read_text())
    exact = training.recipe.precision == "fp32"
    for mine, other in zip(training.history, ours["history"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5 if exact else 0.02)
    assert scored.loss == pytest.approx(ours["loss"], abs=1e-5 if exact else 0.02)
    assert scored.score == pytest.approx(ours["accuracy"], abs=0.004 if exact else 0.1)
    if exact:  # in bfloat16 each rank rounds the sum over its own images
        theirs = load_file(together / f"{name}.safetensors")
        assert theirs.keys() == state(training).keys()
        for key, value in state(training).items():
            torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_an_image_that_one_rank_cannot_read_is_named_on_every_rank(together: Path) -> None:
    for rank in (0, 1):
        error = (together / f"error-{rank}.txt").read_text()
        assert error.startswith(str(together / "images" / "train" / "cat" / "11.png"))
        assert "the image cannot be read" in error


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see a process's threads")
def test_ranks_that_left_have_no_thread_that_could_abort_at_the_end(together: Path) -> None:
    for rank in (0, 1):
        names = (together / f"threads-{rank}.txt").read_text().split("\n")
        assert "python" in " ".join(names)
        assert not [name for name in names if "gloo" in name]


# Shares -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("num", [2, 5, 15, 16, 17, 143, 256])
def test_shares_are_the_batch_in_order_or_all_of_it_for_everyone(size: int, num: int) -> None:
    shares = [share_of((40, 40 + num), Ranks(rank=rank, size=size)) for rank in range(size)]
    if num < 2 * size:
        assert shares == [(40, 40 + num)] * size
    else:
        places = [place for start, end in shares for place in range(start, end)]
        assert places == list(range(40, 40 + num))
        lengths = [end - start for start, end in shares]
        assert min(lengths) >= 2
        assert max(lengths) - min(lengths) <= 1


def test_norms_are_themselves_again_after_a_step() -> None:
    model = CASES["norms of maps and of vectors"].model()
    x = torch.randn(6, 3, 8, 8)
    plainly = model(x)
    with over_ranks(model, ALONE):
        assert torch.allclose(model(x), plainly, atol=1e-5)
        assert not torch.equal(model.eval()(x), plainly)
        model.train()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(x), plainly)


# Alone --------------------------------------------------------------------------------------------


def test_a_process_is_alone_unless_it_was_launched_with_others() -> None:
    others = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    assert launched(others)
    assert not launched({**others, "WORLD_SIZE": "1"})
    assert not launched({**others, "MASTER_ADDR": ""})
    assert not launched({})
    assert own_device("cuda") == "cuda"


def test_alone_everything_is_ones_own() -> None:
    assert ALONE.share(lambda: 3) == 3
    assert ALONE.most(4) == 4
    box = torch.ones(2)
    ALONE.add_(box)
    assert box.tolist() == [1, 1]
    with pytest.raises(DataError, match="mine"), ALONE.agreeing():
        raise DataError("mine")


def test_a_lost_rank_is_worded_with_its_reason() -> None:
    with pytest.raises(RanksLost, match=r"cannot continue.*RuntimeError: closed\).*are kept"):
        raise lost(RuntimeError("closed\nmore"))


def test_cases_have_a_last_batch_of_each_kind() -> None:
    lengths = [case.num % 16 for case in CASES.values()]
    assert set(lengths) == {6, 3}


# Studies ------------------------------------------------------------------------------------------


def write(folder: Path, *, epochs: int = 1, **changes: Any) -> None:
    value = {
        "data": {"name": "digits", "subset": 400, "test_subset": 100},
        "models": {"name": "vgg", "plan": [8, 8, "M", 16, 16], "label": "small"},
        "methods": {"name": "l1-filter", "sparsity": 0.5},
        "arms": ["unpruned", "fine-tune"],
        "seeds": 1,
        # Said, because `auto` is another precision, and so another key, on some processors.
        "recipe": {"name": "cifar", "epochs": epochs, "batch": 20, "lr": 0.02, "precision": "fp32"},
    }
    write_study(folder, **{**value, **changes})


def torchrun(*arguments: str) -> list[str]:
    return [*TORCHRUN, "2", "-m", "regrow", *arguments]


def run_together(folder: Path, store: str) -> "subprocess.CompletedProcess[str]":
    command = torchrun("run", "study.yaml", "--store", store, "--out", f"out-{store}")
    return finished(command, cwd=folder, env=plain_environment())


def records(folder: Path, store: str) -> list[dict[str, Any]]:
    """Return the record of each row."""
    opened = Store.open(folder / store, create=False)
    jobs = Study.load(folder / "study.yaml").jobs()
    return [opened.record(job.key, spec=job.spec) for job in jobs]


def alike(folder: Path, *, after: int) -> None:
    """Check that two stores tell of the same trainings, for so many epochs.

    What differs by rounding grows from epoch to epoch.
    """
    for one, two in zip(records(folder, "one"), records(folder, "two"), strict=True):
        assert len(one["history"]) == len(two["history"])
        for mine, other in zip(one["history"][:after], two["history"], strict=False):
            assert mine == pytest.approx(other, abs=1e-3)
        assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.15)


@pytest.mark.slow
def test_a_study_has_the_same_keys_and_results_by_two_ranks(tmp_path: Path) -> None:
    write(tmp_path)
    done = run_together(tmp_path, "two")
    assert done.returncode == 0, done.stderr
    assert spawn("run", "study.yaml", "--store", "one", "--workers", "0", cwd=tmp_path).code == 0
    stores = [Store.open(tmp_path / name, create=False) for name in ("one", "two")]
    assert stores[0].keys() == stores[1].keys()
    alike(tmp_path, after=1)
    assert done.stdout.count("Answer") == 1  # rank 0 alone speaks
    assert "rank 1" not in done.stderr
    assert not any((tmp_path / "two" / "running").iterdir())


# Stopping -----------------------------------------------------------------------------------------


@pytest.fixture
def under_way(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a study that takes a while, and wait for its first checkpoint."""
    write(tmp_path, epochs=20)
    process = subprocess.Popen(
        torchrun("run", "study.yaml", "--store", "two", "--checkpoint-seconds", "0.5"),
        cwd=tmp_path,
        env=plain_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "two" / "running").glob("*/checkpoint.safetensors")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def of_rank(rank: int, process: "subprocess.Popen[str]") -> int:
    """Find the process of a rank among the children of a launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text().replace(
            "LOCAL_RANK", "_"
        ).replace("GROUP_RANK", "_").replace("ROLE_RANK", "_"):
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


def goes_on(folder: Path) -> None:
    """Check that one process ends what two began, as if they had not been disturbed."""
    (paused,) = (folder / "two" / "running").iterdir()
    assert (paused / "checkpoint.safetensors").exists()
    assert spawn("run", "study.yaml", "--store", "two", "--workers", "0", cwd=folder).code == 0
    assert spawn("run", "study.yaml", "--store", "one", "--workers", "0", cwd=folder).code == 0
    alike(folder, after=2)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_one_process_goes_on(
    rank: int, under_way: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    os.kill(of_rank(rank, under_way), signal.SIGKILL)
    _, told = under_way.communicate(timeout=60)
    assert under_way.returncode != 0
    assert "regrow: " in told
    assert "The same command resumes" in told
    goes_on(tmp_path)


@pytest.mark.slow
def test_a_second_signal_ends_all_ranks_at_once(
    under_way: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    first = of_rank(0, under_way)
    for number in (signal.SIGINT, signal.SIGTERM):  # both at once: within one step
        os.kill(first, number)
    _, told = under_way.communicate(timeout=60)
    assert under_way.returncode != 0
    assert "Stopped at once" in told
    goes_on(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the launcher", "one rank"])
def test_ctrl_c_stops_all_ranks_in_good_order(
    whom: str, under_way: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    pid = under_way.pid if whom == "the launcher" else of_rank(1, under_way)
    os.kill(pid, signal.SIGINT)
    _, told = under_way.communicate(timeout=60)
    assert under_way.returncode != 0
    assert "The same command resumes" in told
    assert "cannot continue" not in told
    goes_on(tmp_path)
