"""Find the Parquet files of each split of a data set, in a folder or on the Hugging Face hub."""

import re
from pathlib import Path

from regrow.data.files import files_below
from regrow.data.spec import DataSpec
from regrow.data.split_files import SplitFiles, split_files
from regrow.errors import ConfigError, DataError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find(spec: DataSpec) -> SplitFiles:
    """Find the Parquet files of each split."""
    base = _base(spec)
    files = [file for file in files_below(base) if file.suffix.lower() == ".parquet"]
    fetched = not Path(spec.location).expanduser().is_dir()
    found = split_files(spec, base, files, fetched=fetched)
    if "train" not in found.splits:
        got = f"got {', '.join(f.name for f in files[:3])}" if files else "there are none"
        raise DataError(
            f"Data set {spec.name!r}: expected Parquet files named train-*.parquet and "
            f"test-*.parquet (or validation-*) below {base}, {got}."
        )
    return found


def _base(spec: DataSpec) -> Path:
    local = Path(spec.location).expanduser().absolute()
    if local.is_dir():
        return local
    if not HUB_ID.match(spec.location) or spec.location.startswith("."):
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}. Give a folder that holds Parquet "
            "files, or the id of a data set on the Hugging Face hub such as 'uoft-cs/cifar10'."
        )
    return _from_hub(spec, local)


def _from_hub(spec: DataSpec, local: Path) -> Path:
    """Download OWNER/NAME or OWNER/NAME/FOLDER, or find it in the hub's cache; return its path."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"Data set {spec.name!r}: there is no folder {local}, and reading from the Hugging "
            "Face hub needs the package huggingface-hub. Install it: pip install 'regrow[hub]'."
        ) from error
    owner, name, *inner = spec.location.split("/")
    within = "/".join(inner)
    try:
        snapshot = snapshot_download(
            f"{owner}/{name}",
            repo_type="dataset",
            allow_patterns=[f"{within}/*.parquet" if within else "*.parquet"],
        )
    except Exception as error:  # the client's own, those of its HTTP library, and OSError
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"Data set {spec.name!r}: there is no folder {local}, and '{owner}/{name}' cannot be "
            f"fetched from the Hugging Face hub ({type(error).__name__}: {reason}). Check the name "
            "and the network, or give the folder of a copy."
        ) from error
    return Path(snapshot) / within
