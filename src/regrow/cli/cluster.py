"""The commands ``regrow cluster slurm``, ``cluster kubernetes`` and ``cluster local``.

They print scripts that start a Ray cluster and run a study on it, for ``sbatch``, the KubeRay
operator or a shell. They start nothing themselves.
"""

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from regrow.cli.options import DEFAULT_STORE, StoreOption, WithOption
from regrow.core.machine import version_of
from regrow.errors import ConfigError

DEFAULT_RAY = "2.49.0"  # the oldest version with `ray symmetric-run`
SAVE_SECONDS = 300  # reserved for the cluster to start, and for jobs to save at the end
SHARED = "/shared"  # where pods mount the volume
# The head node uses a token in the home folder by default; other nodes, and commands that connect
# to an address, only with RAY_AUTH_MODE=token. Ray versions without tokens lack this command.
TOKEN = (
    "# The nodes share an authentication token, which is kept in the home folder.",
    "if ray get-auth-token --generate > /dev/null 2>&1; then export RAY_AUTH_MODE=token; fi",
)
_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")

app = typer.Typer(
    no_args_is_help=True,
    help="Print a script that starts a Ray cluster and runs a study on it.",
)

ClusterStudy = Annotated[
    str, typer.Argument(help="Path of the study file on the machines.", show_default=False)
]
NodesOption = Annotated[int, typer.Option(min=1, help="Number of machines.")]
CpusOption = Annotated[int, typer.Option(min=1, help="Processor cores of each machine.")]
GpusOption = Annotated[int, typer.Option(min=0, help="GPUs of each machine; 0 trains on CPUs.")]
MemoryOption = Annotated[str, typer.Option(metavar="SIZE", help="Memory of each machine.")]
TimeOption = Annotated[
    str, typer.Option(metavar="[D-]HH:MM:SS", help="Time limit of the whole run.")
]


@app.command("slurm")
def slurm(
    study: ClusterStudy,
    store: StoreOption = DEFAULT_STORE,
    nodes: NodesOption = 2,
    cpus: CpusOption = 8,
    gpus: GpusOption = 0,
    memory: MemoryOption = "32G",
    time: TimeOption = "04:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition of the cluster.")] = None,
    with_files: WithOption = None,
) -> None:
    """Print a script for sbatch that runs the study with Ray on all nodes of one SLURM job."""
    command = _run(study, store, gpus=gpus, with_files=with_files, within=_seconds(time))
    options = [
        f"--job-name={_name(study)}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus}",
        *([f"--gpus-per-task={gpus}"] if gpus else []),
        f"--mem={_one_word(memory)}",
        f"--time={time}",
        *([f"--partition={_one_word(partition)}"] if partition else []),
        "--output=%x-%j.log",
    ]
    print(
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "# Submit it again to resume where this job ended. The study, the store and the",
        "# environment with regrow[ray] must be on a file system that all nodes share.",
        "set -euo pipefail",
        'names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "address=\"${names%%$'\\n'*}:$((20000 + SLURM_JOB_ID % 20000))\"  # of the first node",
        *TOKEN,
        'srun --ntasks="$SLURM_JOB_NUM_NODES" ray symmetric-run --address "$address" \\',
        f'    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus={cpus} --num-gpus={gpus} -- \\',
        f'    {shlex.join(command)} --address "$address"',
        sep="\n",
    )


@app.command("kubernetes")
def kubernetes(
    study: ClusterStudy,
    store: StoreOption = DEFAULT_STORE,
    nodes: NodesOption = 2,
    cpus: CpusOption = 8,
    gpus: GpusOption = 0,
    memory: MemoryOption = "32Gi",
    time: TimeOption = "04:00:00",
    image: Annotated[
        str, typer.Option(help="Container image with regrow[ray].")
    ] = "regrow-ray:latest",
    claim: Annotated[
        str,
        typer.Option(
            help="Claim of the volume with study and store; many pods must be able to write to it."
        ),
    ] = "regrow",
    with_files: WithOption = None,
) -> None:
    """Print a RayJob for KubeRay: a cluster for this study, removed when it is done.

    Paths are below the volume's folder, /shared, unless they begin with a slash.
    """
    import yaml

    command = _run(
        _shared(study),
        PurePosixPath(_shared(str(store))),
        gpus=gpus,
        within=_seconds(time),
        out=_shared(f"regrow-report/{PurePosixPath(study).stem}"),
        with_files=[Path(_shared(str(file))) for file in with_files or ()],
    )
    each = {"cpu": str(cpus), "memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    spec = {
        "entrypoint": shlex.join(command),
        "shutdownAfterJobFinishes": True,
        "activeDeadlineSeconds": _seconds(time),
        "backoffLimit": 2,
        "rayClusterSpec": _ray_cluster(nodes, each, image=image, claim=claim),
    }
    name = {"name": _name(study)}
    value = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": name, "spec": spec}
    print(f"# kubectl apply -f FILE; all pods mount the volume '{claim}' at {SHARED}.")
    print("# Apply it again under another name to resume where it ended.")
    print(yaml.safe_dump(value, sort_keys=False), end="")


@app.command("local")
def local(
    study: ClusterStudy,
    store: StoreOption = DEFAULT_STORE,
    nodes: NodesOption = 2,
    cpus: CpusOption = 1,
    gpus: GpusOption = 0,
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of the head.")] = 6379,
    with_files: WithOption = None,
) -> None:
    """Print commands that start a cluster of several nodes on this machine, for testing."""
    address = f"127.0.0.1:{port}"
    each = f"--node-ip-address=127.0.0.1 --num-cpus={cpus} --num-gpus={gpus}"
    each += " --object-store-memory=200000000 --disable-usage-stats"
    print(
        *TOKEN,
        f"ray start --head --port={port} {each} --include-dashboard=false",
        *[f"ray start --address={address} {each}"] * (nodes - 1),
        f"{shlex.join(_run(study, store, gpus=gpus, with_files=with_files))} --address {address}",
        "ray stop  # ends every Ray process of yours on this machine",
        sep="\n",
    )


def _run(
    study: str,
    store: Path | PurePosixPath,
    *,
    gpus: int,
    with_files: list[Path] | None,
    within: int | None = None,
    out: str | None = None,
) -> list[str]:
    """Return the command that runs a study on a cluster, stopping ``SAVE_SECONDS`` early to save.

    ``within`` is the cluster's time limit in seconds.
    """
    files = [word for file in with_files or () for word in ("--with", str(file))]
    more = ["--out", out] if out is not None else []
    more += ["--device", "cuda"] if gpus else []
    if within is not None:
        more += ["--stop-after", f"{max(1, (within - SAVE_SECONDS) // 60)}m"]
    return ["regrow", "run", study, "--on", "ray", "--store", str(store), *more, *files]


def _ray_version() -> str:
    """Return the version of Ray installed here, or else the oldest that works."""
    found = version_of("ray")
    return found if found[0].isdigit() else DEFAULT_RAY


def _name(study: str) -> str:
    """Name a job after its study in lower-case letters, digits and hyphens, as Kubernetes requires.

    >>> _name("studies/My study_2.yaml")
    'regrow-my-study-2'
    """
    words = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(study).stem.lower()).strip("-")
    return f"regrow-{words}"[:40].strip("-")


def _shared(path: str) -> str:
    return str(PurePosixPath(SHARED) / path)


def _seconds(time: str) -> int:
    """Return the seconds of a time limit in SLURM's format.

    >>> _seconds("1-02:00:00"), _seconds("00:30:00")
    (93600, 1800)
    """
    found = _TIME.fullmatch(time)
    if found is None:
        raise ConfigError(f"--time is written as HH:MM:SS or D-HH:MM:SS. Got {time!r}.")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ConfigError(f"--time must be above 0. Got {time}.")
    return total


def _one_word(text: str) -> str:
    if not re.fullmatch(r"[\w.,-]+", text):
        raise ConfigError(f"Use letters, digits, points, commas and hyphens only. Got {text!r}.")
    return text


def _ray_cluster(nodes: int, each: dict[str, str], *, image: str, claim: str) -> dict[str, Any]:
    """Return a cluster with this number of worker nodes, and a head node that runs no jobs."""
    head = _pod("ray-head", {"cpu": "2", "memory": "8Gi"}, image=image, claim=claim)
    return {
        "rayVersion": _ray_version(),
        "headGroupSpec": {
            # The head runs only the command, which schedules jobs and writes the report.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": nodes,
                "minReplicas": nodes,
                "maxReplicas": nodes,
                "rayStartParams": {},
                "template": _pod("ray-worker", each, image=image, claim=claim),
            }
        ],
    }


def _pod(name: str, resources: dict[str, str], *, image: str, claim: str) -> dict[str, Any]:
    """Return the template of a pod that mounts the shared volume."""
    container = {
        "name": name,
        "image": image,
        "workingDir": SHARED,
        "resources": {"limits": dict(resources), "requests": dict(resources)},
        "volumeMounts": [{"name": "shared", "mountPath": SHARED}],
    }
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": claim}}
    return {"spec": {"containers": [container], "volumes": [volume]}}
