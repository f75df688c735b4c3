"""Jobs on Ray: what crosses, and what becomes of machines that are lost. Ray is stood in for here.

On a real cluster the same study is run in ``test_ray_cluster.py``.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import regrow
import regrow.run.on_ray as on_ray
from commands import Command, write_study
from fake_ray import (
    FakeRay,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from regrow.core.registry import load_file
from regrow.errors import ConfigError, Damaged, Interrupted, RegrowError
from regrow.jobs.as_json import job_from_json, job_to_json
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.train import Train
from regrow.run import Event, JobStarted, JobWarning, Summary, ray_task, run
from regrow.run.coordinator import Coordinator
from regrow.run.executors import Settings
from regrow.run.gpu_sharing import Sharing, num_steps
from regrow.run.ray_task import do
from regrow.run.schedule import Schedule
from regrow.store import Store
from regrow.store.packed import Packed, pack, unpack
from regrow.studies.study import Study
from regrow.train import Recipe
from small import MATERIAL
from test_jobs import VGG

METHODS = [{"name": "l1-filter", "sparsity": 0.5}]
ARMS = ["unpruned", "fine-tune", "scratch-e"]


def study(folder: Path, **changes: Any) -> Study:
    given: dict[str, Any] = {"methods": METHODS, "arms": ARMS, "seeds": 1}
    return Study.load(write_study(folder, **given | changes))


def train(**changes: Any) -> Train:
    given: dict[str, Any] = {"data": MATERIAL, "model": VGG, "seed": 0}
    return Train(**given | {"recipe": Recipe(epochs=1)} | changes)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrow.run.troubles.FIRST_WAIT", 0.0)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    def use(**options: Any) -> FakeRay:
        fake = FakeRay(**options)
        monkeypatch.setattr(on_ray, "connect", lambda address: fake)
        return fake

    return use


def on(jobs: Any, store: Path, **options: Any) -> Summary:
    return run(jobs, Store.open(store), on=on_ray.on_ray(), **options)


def records(store: Path) -> dict[str, bytes]:
    """Return all records without their times, and all tensors."""
    found = {}
    for file in sorted((store / "records").rglob("*.*")):
        content = file.read_bytes()
        if file.suffix == ".json":
            value = json.loads(content)
            del value["timing"]
            content = json.dumps(value).encode()
        found["/".join(file.parts[-2:])] = content
    return found


# Jobs as JSON


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"methods": [{"name": "network-slimming", "sparsity": 0.5, "strength": 1e-3}]},
        {"methods": [{"name": "l1-filter", "macs": 0.5, "multiple_of": 2}]},
        {"methods": [{"name": "magnitude", "sparsity": 0.5, "rounds": 3}]},
        {"methods": [{"name": "l1-filter", "sparsity": 0.5, "scope": "all"}], "budgets": [1, 2]},
        {"recipe": {"epochs": 1, "lr": 0.001, "optimiser": {"name": "adamw", "beta2": 0.99}}},
        {"arms": [*ARMS, {"name": "scratch-b", "cap": 2}, "winning-ticket", "random-init"]},
    ],
)
def test_jobs_are_the_same_after_json(tmp_path: Path, changes: dict[str, Any]) -> None:
    for key, job in all_jobs(study(tmp_path, **changes).jobs()).items():
        again = job_from_json(job_to_json(job), key=key)
        assert (again, again.label, again.flops) == (job, job.label, job.flops)
        assert [before.key for before in again.inputs] == [before.key for before in job.inputs]


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["regression", "search", "text"])
def test_jobs_of_examples_are_the_same_after_json(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    jobs = all_jobs(Study.load(EXAMPLES / f"{name}.yaml").jobs())
    for key, job in jobs.items():
        again = job_from_json(job_to_json(job), key=key)
        assert (again, again.label, again.spec) == (job, job.label, job.spec)


def test_values_that_several_jobs_share_are_written_once(tmp_path: Path) -> None:
    (job,) = (j for j in study(tmp_path).jobs() if "fine-tune" in j.label)
    text = job_to_json(job)
    assert text.count("regrow.train.material:Material") == 1
    assert text.count("regrow.jobs.train:Train") == 1


def test_a_value_that_json_cannot_hold_is_named() -> None:
    job = train(label=lambda: None)
    with pytest.raises(ConfigError, match=r"cannot be sent to another process: its 'label' is"):
        job_to_json(job)


def _altered(job: Job, change: Callable[[Any], None]) -> str:
    value = json.loads(job_to_json(job))
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["values"][-1].__setitem__(0, "subprocess:Popen"), "not a frozen dataclass"),
        (lambda v: v["values"][-1].__setitem__(0, "no.such.module:Job"), "--with"),
        (lambda v: v["values"][-1].__setitem__(0, "os:system"), "not a frozen dataclass"),
        (lambda v: v["values"][-1].__setitem__(0, "regrow.run.worker:_Worker"), "not a frozen"),
        (lambda v: v["values"][-1].__setitem__(0, "regrow.run.events:NotThere"), "no attribute"),
        (lambda v: v["values"][-1][1].pop("seed"), "other fields"),
        (lambda v: v["values"][-1][1].update(seed={"at": 99}), "not a job"),
        (lambda v: v["values"][-1][1].update(seed={"call": "exit"}), "not a job"),
        (lambda v: v.pop("root"), "not a job"),
        (lambda v: v["values"][-1][1].update(seed=1), "another key here .* another version"),
    ],
)
def test_what_is_not_the_job_is_refused(change: Callable[[Any], None], match: str) -> None:
    job = train()
    with pytest.raises(ConfigError, match=match):
        job_from_json(_altered(job, change), key=job.key)


@pytest.mark.parametrize("name", ["regrow.__main__:main", "regrow.nowhere:X", "nowhere:X"])
def test_a_module_that_holds_no_values_runs_nothing(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = train()
    with pytest.raises(ConfigError, match=r"not a job|cannot be imported"):
        job_from_json(_altered(job, lambda v: v["values"][0].__setitem__(0, name)), key=job.key)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("field", ["recipe", "data", "model"])
@pytest.mark.parametrize("value", [None, 10**400, "x", {"tuple": []}, {"dict": [[1, 2]]}])
def test_values_that_no_job_has_are_refused(field: str, value: Any) -> None:
    job = train()
    with pytest.raises(ConfigError, match=r"not a job|another key"):
        job_from_json(
            _altered(job, lambda v: v["values"][-1][1].__setitem__(field, value)), key=job.key
        )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"root":0,"values":[]}', "[" * 100_000])
def test_what_is_no_json_of_a_job_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a job"):
        job_from_json(text, key="x")


def test_values_of_files_of_with_cross(tmp_path: Path) -> None:
    file = tmp_path / "crossing.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\nclass Mine:\n    level: int\n"
        "@dataclass\nclass Loose:\n    level: int\n"
    )
    load_file(file)
    (module,) = (m for name, m in sys.modules.items() if name.endswith("_crossing"))
    job = train(label=module.Mine(3))
    again = job_from_json(job_to_json(job), key=job.key)
    assert again.label == module.Mine(3)
    with pytest.raises(ConfigError, match="'label'"):
        job_to_json(train(label=module.Loose(3)))


# Records as bytes


def test_a_record_arrives_as_it_was(tmp_path: Path) -> None:
    job = train()
    one, other = Store.open(tmp_path / "one"), Store.open(tmp_path / "other")
    assert run([job], one, workers=0).complete
    unpack(other, job.key, pack(one, job.key))
    for name in ("record.json", "tensors.safetensors"):
        left, right = (s.record_file(job.key).with_name(name) for s in (one, other))
        assert left.read_bytes() == right.read_bytes()
    packed = pack(one, job.key)
    last = packed.tensors[:-1] + bytes([packed.tensors[-1] ^ 1])
    for wrong in (
        Packed(packed.record.replace(b"accuracy", b"accuracz", 1), packed.tensors),
        Packed(packed.record, last),
        Packed(packed.record, b""),
        Packed(b"{", b"{"),
    ):
        empty = Store.open(tmp_path / "empty")
        with pytest.raises(Damaged, match="altered in transit"):
            unpack(empty, job.key, wrong)
        assert not empty.has(job.key)


# Runs


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("here")
    assert run(study(folder).jobs(), Store.open(folder / "store"), workers=0).complete
    return records(folder / "store")


def hidden(request: dict[str, Any]) -> None:
    """Have a machine not see the store."""
    request["store"] = "/nowhere/at/all"


def another(request: dict[str, Any]) -> None:
    """Have a machine see another store under that name."""
    request["token"] = "another"


@pytest.mark.parametrize("alter", [lambda request: None, hidden, another])
def test_records_are_those_of_a_run_without_ray(
    tmp_path: Path,
    ray: Callable[..., FakeRay],
    here: dict[str, bytes],
    alter: Callable[[dict[str, Any]], None],
) -> None:
    fake = ray(alter=alter)
    events: list[Event] = []
    summary = on(study(tmp_path).jobs(), tmp_path / "store", on_event=events.append)
    assert summary.complete
    assert len(summary.done) == 4
    assert records(tmp_path / "store") == here
    assert len([e for e in events if isinstance(e, JobStarted)]) == 4
    assert fake.down
    assert all(options["max_retries"] == 0 for options in fake.options)
    assert all(options["num_cpus"] == 1 for options in fake.options)
    seen = alter.__name__ not in ("hidden", "another")
    assert all(request["inputs"] is None for request in fake.requests) == seen
    assert any(fake.num_files) != seen
    assert not list((tmp_path / "store" / "running").iterdir())
    assert on(study(tmp_path).jobs(), tmp_path / "store").done == ()  # all is there


def test_lost_workers_and_machines_cost_no_job(
    tmp_path: Path, ray: Callable[..., FakeRay], here: dict[str, bytes]
) -> None:
    ray(faults=[WorkerCrashedError(), *[NodeDiedError()] * 2])
    events: list[Event] = []
    summary = on(study(tmp_path).jobs(), tmp_path / "store", on_event=events.append, workers=1)
    assert summary.complete
    assert records(tmp_path / "store") == here
    told = [event.message for event in events if isinstance(event, JobWarning)]
    assert told[0].startswith("Its worker process on Ray ended without a message; trying ")
    assert told[1].startswith("Its machine was lost (NodeDiedError); trying")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([WorkerCrashedError()] * 4, "Its worker process on Ray ended without a message, 4 times"),
        ([OutOfMemoryError()] * 4, "ran out of memory, 4 times"),
        ([NodeDiedError()] * 4, "Its machine was lost .*, 4 times"),
        ([TaskCancelledError()] * 4, "Its machine was lost .*, 4 times"),
    ],
)
def test_a_job_that_ends_its_workers_fails_in_the_end(
    tmp_path: Path, ray: Callable[..., FakeRay], faults: list[Exception], message: str
) -> None:
    ray(faults=faults)
    store = Store.open(tmp_path / "store")
    job = train()
    summary = run([job], store, on=on_ray.on_ray())
    assert summary.failed == ("train",)
    failure = store.failure(job.key)
    assert failure is not None
    assert re.search(message, failure["message"])
    assert run([job], store, on=on_ray.on_ray()).complete  # and is tried again


@pytest.mark.parametrize("alter", [lambda request: None, hidden])
def test_an_error_of_the_job_itself_is_told_and_not_tried_again(
    tmp_path: Path, ray: Callable[..., FakeRay], alter: Callable[[dict[str, Any]], None]
) -> None:
    fake = ray(alter=alter)
    store = Store.open(tmp_path / "store")
    job = train(recipe=Recipe(epochs=2, lr=1e30))
    summary = run([job], store, on=on_ray.on_ray())
    assert summary.failed == ("train",)
    failure = store.failure(job.key)
    assert failure is not None
    assert "The training diverged" in failure["message"]
    assert "TrainingError" in failure["traceback"]
    assert len(fake.requests) <= 2  # once more, where the store is not seen


def test_what_no_machine_can_do_ends_the_run(tmp_path: Path, ray: Callable[..., FakeRay]) -> None:
    fake = ray(faults=[RayTaskError("ModuleNotFoundError: No module named 'regrow'")])
    with pytest.raises(RegrowError, match=r"No module named 'regrow' It needs the same Python"):
        on([train()], tmp_path / "store")
    assert fake.down
    ray(alter=lambda request: request.update({"with": [{"path": "x.py", "text": "1 / 0"}]}))
    with pytest.raises(RegrowError, match=r"On .*x.py, line 1: ZeroDivisionError"):
        on([train()], tmp_path / "store")


def test_a_stop_lets_jobs_save(tmp_path: Path, ray: Callable[..., FakeRay]) -> None:
    """The task is closed as Ray closes one that it cancels; the next run goes on from there."""
    fake = ray()
    job = train(recipe=Recipe(epochs=200))
    store = Store.open(tmp_path / "store")
    settings = Settings(device="cpu", checkpoint_seconds=120.0)
    executor = on_ray.on_ray()([job], store, settings, None)

    def stop(event: Event) -> None:
        if isinstance(event, JobStarted):
            coordinator._on_signal(15, None)

    coordinator = Coordinator(Schedule([job], ()), store, executor, stop)
    with pytest.raises(Interrupted, match="0 of 1 jobs are done"):
        coordinator.run()
    executor.close()
    assert (store.root / "running" / job.key / "checkpoint.safetensors").exists()
    assert fake.down


def test_the_text_of_a_file_of_with_travels(
    tmp_path: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "extra.py"
    file.write_text("import regrow\n")
    load_file(file)
    fake = ray()
    assert on([train()], tmp_path / "store").complete
    assert {"path": str(file), "text": "import regrow\n"} in fake.requests[0]["with"]
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert ray_task._file(file, b"import regrow\n") == file
    copy = ray_task._file(file, b"import regrow  # as it was given\n")
    assert copy != file
    assert copy.name == file.name
    assert copy.read_text() == "import regrow  # as it was given\n"


def test_gpus_are_shared_as_measured(
    tmp_path: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(sharing: Sharing, device: str) -> int:
        assert sharing.job is not None
        asked.append((sharing.job.label, device, sharing.most, sharing.steps))
        return 4

    monkeypatch.setattr(Sharing, "answer", answer)
    jobs = [train(seed=seed, label=f"train {seed}") for seed in range(10)]
    jobs[3] = replace(jobs[3], recipe=Recipe(epochs=9), label="long")

    def on_cpu(request: dict[str, Any]) -> None:
        if "most" not in request:
            request["settings"]["device"] = "cpu"

    fake = ray(GPU=2.0, CPU=16.0, alter=on_cpu)
    assert on(jobs, tmp_path / "store", device="cuda").complete
    assert asked == [("long", "cuda", 10, num_steps(jobs))]
    assert fake.options[0] == {"num_cpus": 1, "num_gpus": 1}
    assert {(o["num_cpus"], o["num_gpus"]) for o in fake.options[1:]} == {(0.25, 0.25)}
    ray()
    with pytest.raises(ConfigError, match="no machine of this Ray cluster has a GPU"):
        on(jobs, tmp_path / "other", device="cuda")


@dataclass(frozen=True)
class Size:
    """The room of a cluster, and how many jobs it is given at once."""

    resources: dict[str, float]
    device: str
    workers: int | None
    free: int


@pytest.mark.parametrize(
    "size",
    [
        Size({"CPU": 4.0}, "cpu", None, 6),
        Size({"CPU": 4.0}, "cpu", 3, 3),
        Size({"CPU": 4.0}, "cpu", 9, 6),
        Size({}, "cpu", None, 2),
        Size({"CPU": 8.0, "GPU": 2.0}, "cuda", 3, 8),
        Size({"CPU": 1.0, "GPU": 2.0}, "cuda", 3, 5),
    ],
)
def test_a_cluster_is_given_what_it_has_room_for(
    tmp_path: Path, ray: Callable[..., FakeRay], size: Size
) -> None:
    ray(**size.resources or {"memory": 1.0})
    settings = Settings(device=size.device, checkpoint_seconds=60.0)
    store = Store.open(tmp_path / "store")
    executor = on_ray.on_ray()([train()], store, settings, size.workers)
    assert executor.num_free == size.free
    executor.close()


def test_a_task_of_a_file_that_is_not_there_says_where(tmp_path: Path) -> None:
    (message,) = do(json.dumps({"folder": ".", "with": [], "store": "x", "token": "", "job": ""}))
    assert "KeyError" in message[0]  # of a request that no regrow of this version wrote


def test_the_command_line(
    tmp_path: Path, ray: Callable[..., FakeRay], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path, methods=METHODS, arms=ARMS, seeds=1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    ray()
    assert command("run", "study.yaml", "--on", "ray").code == 0
    assert command("run", "study.yaml", "--out", "alone", "--store", "other").code == 0
    theirs, ours = (Path(f, "rows.csv") for f in ("regrow-report/tiny", "alone"))
    assert theirs.read_bytes() == ours.read_bytes()
    for arguments, match in (
        (("--on", "slurm"), "Unknown platform 'slurm'. Known: ray."),
        (("--address", "x:1"), "--address names a Ray cluster: give --on ray too."),
        (
            ("--on", "ray", "--device", "cuda:1"),
            "With --on ray, which assigns the GPUs, --device must be cpu or cuda",
        ),
        (("--on", "ray", "--workers", "0"), "--workers 0 trains in this process"),
        (("--on", "ray", "--hours", "1"), "--hours is estimated from the speed of this machine"),
        (
            ("--devices", "2"),
            "--devices takes only 'all' (every GPU); name single GPUs with --device. Got '2'.",
        ),
        (("--devices", "all"), "--devices all: PyTorch finds no GPU on this machine."),
        (("--device", "cuda:0,cpu"), "--device cuda:0,cpu: name one device, or several GPUs"),
    ):
        result = command("run", "study.yaml", *arguments)
        assert result.code == 2
        assert match in result.text


NETS = """
from torch import nn

def mlp(hidden=8):
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))
"""
TRAIN = """
import torch
from torch.nn.functional import cross_entropy

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()

def train(model, budget, seed):
    optimiser = torch.optim.SGD(model.parameters(), 0.2)
    for _ in budget:
        optimiser.zero_grad()
        cross_entropy(model.train()(x), y).backward()
        optimiser.step()
    return {"accuracy": (model.eval()(x).argmax(1) == y).double().mean()}
"""


def test_ones_own_network_and_function_go_to_a_cluster(
    tmp_path: Path, ray: Callable[..., FakeRay], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("mine.py").write_text(TRAIN)
    asked = ("compare", "nets.py:mlp", "--input", "1x4", "--train", "mine.py:train")
    more = ("--budget", "4", "--sparsity", "0.5", "--seeds", "1", "--margin", "1")
    fake = ray()
    on_cluster = command(*asked, *more, "--out", "a", "--store", "sa", "--on", "ray")
    assert on_cluster.code == 0, on_cluster.text
    assert fake.requests
    assert command(*asked, *more, "--out", "b", "--store", "sb", "--workers", "0").code == 0
    assert records(Path("sa")) == records(Path("sb"))
    assert Path("a", "rows.csv").read_bytes() == Path("b", "rows.csv").read_bytes()

    (tmp_path / "elsewhere").mkdir()
    ray(alter=lambda request: request.update(folder=str(tmp_path / "elsewhere")))
    refused = command(*asked, *more, "--out", "c", "--store", "sc", "--on", "ray")
    assert refused.code == 2
    assert "'nets.py' does not exist in" in refused.text
    assert "start the command in a folder that they share" in refused.text
    assert refused.text.count("does not exist in") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (
            *("versus", "l1-filter", "--model", "{name: vgg, plan: [4, M, 4]}"),
            *("--data", "{name: digits, subset: 60, test_subset: 40}", "--arms", "fine-tune"),
            *("--recipe", "{name: cifar, epochs: 1, batch: 20, precision: fp32}"),
            *("--seeds", "1", "--against", "random"),
        ),
        ("reproduce", "table-14", "--scale", "smoke", "--only", "unpruned"),
    ],
    ids=["versus", "reproduce"],
)
def test_other_commands_train_on_a_cluster(
    tmp_path: Path,
    ray: Callable[..., FakeRay],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = ray()
    ended = command(*arguments, "--on", "ray")
    assert ended.code == 0, ended.text
    assert fake.requests
    assert fake.down


def test_studies_from_python_go_to_a_cluster(
    tmp_path: Path, ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = ray()
    file = write_study(tmp_path, methods=METHODS, arms=ARMS, seeds=1)
    monkeypatch.setattr("regrow.study_run.registered_elsewhere", lambda: ())  # by other tests
    found = regrow.run_study(file, store="store", on="ray", progress=False)
    assert found.complete
    assert len(fake.requests) == 4
    with pytest.raises(ConfigError, match="give --on ray too"):
        regrow.run_study(file, store="store", address="head:1")
    monkeypatch.setattr("regrow.study_run.registered_elsewhere", lambda: ("script.py",))
    with pytest.raises(ConfigError, match=r"a Ray cluster cannot import\. Put them into a file"):
        regrow.run_study(file, store="store", on="ray")


def test_a_gpu_elsewhere_decides_no_precision(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_study(tmp_path, recipe={"epochs": 1})
    for more in ((), ("--on", "ray")):
        result = command("run", "study.yaml", "--device", "cuda", *more)
        assert result.code == 2
        assert "'auto' is decided by the device 'cuda', which this machine does not" in result.text


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(on_ray, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'regrow\[ray\]'"):
        on([train()], tmp_path / "store")


@pytest.mark.parametrize("mode", [None, "token"])
def test_a_cluster_whose_workers_do_not_answer_is_a_clear_error(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a cluster without tokens, of a command that asks for one."""
    calls = []

    class Deaf:
        heard = False

        def init(self, **options: Any) -> None:
            calls.append(f"init {options['address']}")

        def remote(self, function: Any) -> Any:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: "messages"))

        def wait(self, waiting: list[str], *, timeout: float, fetch_local: bool) -> Any:
            return (waiting, []) if self.heard else ([], waiting)

        def shutdown(self) -> None:
            calls.append("shutdown")

    monkeypatch.setattr(on_ray, "import_module", lambda name: Deaf())
    monkeypatch.delenv(on_ray.AUTH_MODE, raising=False)
    if mode:
        monkeypatch.setenv(on_ray.AUTH_MODE, mode)
    for address in ("head:1", None):
        where = address or "this machine"
        with pytest.raises(ConfigError, match=rf"at {where} accepts .* answered within 120") as e:
            on_ray.connect(address)
        assert ("=token is set here" in str(e.value)) == (mode == "token")
    assert calls == ["init head:1", "shutdown", "init auto", "shutdown"]
    on_ray.connect("local")  # one that was started for the run is not asked
    monkeypatch.setattr(Deaf, "heard", True)
    on_ray.connect("head:1")


@pytest.mark.parametrize("error", [ConnectionError("gone"), Exception("The node timed out.")])
def test_a_cluster_that_does_not_answer_is_a_clear_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray raises bare exceptions too, such as of a node that did not start in time."""

    class Silent:
        def init(self, **options: Any) -> None:
            raise error

    monkeypatch.setattr(on_ray, "import_module", lambda name: Silent())
    monkeypatch.delenv(on_ray.AUTH_MODE, raising=False)
    told = str(error).rstrip(".")
    for address, ending in ((None, "head."), ("local", "head."), ("head:1", "MODE=token.")):
        with pytest.raises(ConfigError, match=f"No Ray cluster can be used .* {told}. Start") as e:
            on_ray.connect(address)
        assert str(e.value).endswith(ending)
