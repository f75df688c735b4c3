"""What ``regrow cluster`` prints: scripts that a shell reads, YAML with what KubeRay asks for."""

import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import Command

OPTIONS = ("--nodes", "3", "--gpus", "4", "--cpus", "16", "--store", "results", "--with", "a b.py")


def tool(folder: Path, name: str, text: str) -> None:
    """Put a stand-in for a program of the cluster on the path."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("has_tokens", [True, False])
def test_the_script_for_slurm_runs_the_study_on_all_nodes(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_tokens: bool
) -> None:
    """Run by bash, with programs that print what they are given in place of SLURM's and Ray's."""
    options = ("--time", "1-00:00:00", "--partition", "gpu", "--memory", "64G")
    script = command("cluster", "slurm", "mine.yaml", *OPTIONS, *options).out
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]
    for wanted in ("--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=16", "--gpus-per-task=4"):
        assert wanted in lines
    assert {"--time=1-00:00:00", "--partition=gpu", "--mem=64G"} < set(lines)
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    tool(tmp_path, "scontrol", r"printf 'node7\nnode8\nnode9\n'")
    # An older Ray has no tokens; a newer one refuses nodes that are not told to show theirs.
    tool(tmp_path, "ray", f"echo ray-token > token-was-made; exit {0 if has_tokens else 2}")
    tool(tmp_path, "srun", r"printf '%s\n' " + '"$@"; echo "$RAY_AUTH_MODE" > mode')
    monkeypatch.chdir(tmp_path)
    slurm = {"SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "41"}
    ran = subprocess.run(
        ["bash"],
        input=script,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"} | slurm,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "token-was-made").exists()
    assert (tmp_path / "mode").read_text() == ("token\n" if has_tokens else "\n")
    words = ran.stdout.splitlines()
    start, study = words[: words.index("--")], words[words.index("--") + 1 :]
    assert start[:3] == ["--ntasks=3", "ray", "symmetric-run"]
    assert start[start.index("--address") + 1] == "node7:20041"
    assert start[start.index("--min-nodes") + 1] == "3"
    # Nothing else: what `ray start` takes for a head alone ends the other nodes.
    assert start[7:] == ["--num-cpus=16", "--num-gpus=4"]
    assert study == shlex.split(
        "regrow run mine.yaml --on ray --store results --device cuda --stop-after 1435m "
        "--with 'a b.py' --address node7:20041"
    )


def test_a_study_on_processors_asks_for_no_gpu(command: Command) -> None:
    script = command("cluster", "slurm", "mine.yaml").out
    assert "--gpus" not in script
    assert "--device" not in script
    assert "--num-gpus=0" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_yaml_has_what_kuberay_asks_for(command: Command) -> None:
    options = ("--time", "02:00:00", "--image", "me/image:1", "--claim", "lab")
    text = command("cluster", "kubernetes", "My study.yaml", *OPTIONS, *options).out
    assert "&id" not in text
    value: dict[str, Any] = yaml.safe_load(text)
    assert (value["apiVersion"], value["kind"]) == ("ray.io/v1", "RayJob")
    assert value["metadata"]["name"] == "regrow-my-study"
    spec = value["spec"]
    assert spec["activeDeadlineSeconds"] == 7200
    assert spec["shutdownAfterJobFinishes"] is True
    assert shlex.split(spec["entrypoint"]) == [
        *("regrow", "run", "/shared/My study.yaml", "--on", "ray"),
        *("--store", "/shared/results", "--out", "/shared/regrow-report/My study"),
        *("--device", "cuda", "--stop-after", "115m", "--with", "/shared/a b.py"),
    ]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"][0].isdigit()
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"  # texts, as all of rayStartParams must be
    (group,) = cluster["workerGroupSpecs"]
    assert group["groupName"] == "workers"
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    assert group["rayStartParams"] == {}
    for part in (head, group):
        pod = part["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        assert container["image"] == "me/image:1"
        assert volume["persistentVolumeClaim"] == {"claimName": "lab"}
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "16", "memory": "32Gi", "nvidia.com/gpu": "4"}


def test_the_commands_for_one_machine(command: Command) -> None:
    text = command("cluster", "local", "mine.yaml", "--nodes", "3", "--port", "7000").out
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    comment, token, *lines = text.splitlines()
    assert comment.startswith("#")
    assert token.endswith("then export RAY_AUTH_MODE=token; fi")
    first, second, third, study, last = map(shlex.split, [*lines[:-1], "ray stop"])
    assert first[:3] == ["ray", "start", "--head"]
    assert "--port=7000" in first
    assert second == third
    assert "--address=127.0.0.1:7000" in second
    assert study[-2:] == ["--address", "127.0.0.1:7000"]
    assert last == ["ray", "stop"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("slurm", "s.yaml", "--time", "4 hours"), "--time is written as HH:MM:SS"),
        (("kubernetes", "s.yaml", "--time", "00:00:00"), "--time must be above 0. Got 00:00:00"),
        (("slurm", "s.yaml", "--partition", "a\n#SBATCH"), "letters, digits"),
        (("local", "s.yaml", "--port", "1"), "--port"),
    ],
)
def test_what_is_refused(command: Command, arguments: tuple[str, ...], match: str) -> None:
    result = command("cluster", *arguments)
    assert result.code == 2
    assert match in result.text
