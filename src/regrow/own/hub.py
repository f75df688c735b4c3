"""Upload and download of a network's architecture, weights and card (Hugging Face hub)."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regrow.core.digests import parsed, read_file
from regrow.core.texts import markdown_text, one_line
from regrow.core.validation import is_number, path_of, text
from regrow.errors import ConfigError, DataError, StoreError, short
from regrow.models.libraries import package
from regrow.models.origins import ModelOrigin
from regrow.own.new_folder import new_folder
from regrow.surgery.architecture import ARCHITECTURE, WEIGHTS

CARD, PAGE, RESULT = "card.json", "card.md", "result.json"
MOVED = (ARCHITECTURE, WEIGHTS, CARD, RESULT, "model.onnx", "model.onnx.data", "model.pt2")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LOADING = """## Loading it

```python
import regrow

net = regrow.load(regrow.pull("{name}"){code})
```
"""


def push(
    folder: str | Path,
    name: str,
    *,
    results: Mapping[str, float] | None = None,
    dataset: str | None = None,
    task: str = "image-classification",
    into: str | Path | None = None,
) -> str:
    """Upload a network that ``save``, ``shrink`` or ``export`` wrote, with a card.

    Args:
        folder: the network's folder; its architecture, weights, card and exports are uploaded.
        name: of the repository, ``OWNER/NAME``; it is created if it does not exist.
        results: scores by the name of their metric, for the card's ``model-index``.
        dataset, task: the data set and the task of the scores.
        into: write what would be uploaded to this new folder, and upload nothing.

    Returns:
        The repository's address, or the folder.

    Raises:
        ConfigError: the folder or name is invalid, or the package huggingface-hub is missing.
        DataError: the hub refuses the upload.
    """
    source = path_of(folder, "The folder to upload")
    if not REPOSITORY.fullmatch(text(name, "name")):
        raise ConfigError(f"A repository of the hub is OWNER/NAME. Got {name!r}.")
    if results and dataset is None:
        raise ConfigError("Name the data set of the results: --on NAME.")
    if dataset is not None and not results and not (source / RESULT).is_file():
        raise ConfigError(
            f"There are no results for the data set {short(dataset)}. Give some: --result "
            "METRIC=VALUE."
        )
    hub = package("huggingface_hub", extra="hub", wanted_for="The Hugging Face hub")
    if into is not None:
        with new_folder(into) as scratch:
            _lay_out(source, scratch, name, hub, results=results, dataset=dataset, task=task)
        return str(into)
    with TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        _lay_out(source, scratch, name, hub, results=results, dataset=dataset, task=task)
        try:
            client = hub.HfApi()
            address = client.create_repo(name, exist_ok=True)
            client.upload_folder(
                repo_id=name, folder_path=scratch, commit_message="Upload with regrow"
            )
        except Exception as error:  # the client raises its own, its HTTP library's and OSErrors
            raise DataError(
                f"'{name}' cannot be uploaded to the Hugging Face hub ({type(error).__name__}: "
                f"{_line(error)}). Log in with `hf auth login`, and check the name and the network."
            ) from error
    return str(address)


def pull(name: str) -> Path:
    """Download a network from the hub into the hub's cache; returns its folder, for ``load``."""
    if not REPOSITORY.fullmatch(text(name, "name")):
        raise ConfigError(f"A repository of the hub is OWNER/NAME. Got {name!r}.")
    hub = package("huggingface_hub", extra="hub", wanted_for="The Hugging Face hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[*MOVED, "README.md"]))
    except Exception as error:  # the client raises its own, its HTTP library's and OSErrors
        raise DataError(
            f"'{name}' cannot be fetched from the Hugging Face hub ({type(error).__name__}: "
            f"{_line(error)}). Check the name and the network; for one that is not public, log in "
            "with `hf auth login`."
        ) from error


def _lay_out(source: Path, scratch: Path, name: str, hub: Any, **said: Any) -> None:
    """Write a repository's files into a folder."""
    for file in (ARCHITECTURE, WEIGHTS):
        if not (source / file).is_file():
            raise StoreError(
                f"'{source}' holds no network: there is no {file}. Give a folder that regrow "
                "shrink, regrow export or regrow.save wrote."
            )
    for file in MOVED:
        if (source / file).is_file():
            shutil.copyfile(source / file, scratch / file)
    (scratch / "README.md").write_text(_page(source, name, hub, **said), encoding="utf-8")


def _page(
    source: Path,
    name: str,
    hub: Any,
    *,
    results: Mapping[str, float] | None,
    dataset: str | None,
    task: str,
) -> str:
    """Return the repository's card: metadata with a ``model-index``, the card, how to load it."""
    found = dict(results or {})
    if not found and (source / RESULT).is_file():  # exported from a study: its score and data
        result = _read(source / RESULT)
        metrics = [key.removesuffix("_unit") for key in result if key.endswith("_unit")]
        found = {name: result[name] for name in metrics if is_number(result.get(name))}
        dataset = dataset or result.get("data")
        if found and dataset is None:  # the user's own function scored it, so data are unknown
            raise ConfigError(
                f"'{source}' has scores ({', '.join(found)}) but does not say on which data. Name "
                "the data set: --on NAME."
            )
    data = hub.ModelCardData(
        model_name=name.partition("/")[2],
        library_name="regrow",
        tags=["pruning"],
        eval_results=[
            hub.EvalResult(
                task_type=task,
                dataset_type=str(dataset),
                dataset_name=str(dataset),
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in found.items()
        ]
        or None,
    )
    told = source / PAGE
    about = _text(told) if told.is_file() else f"# {name}\n"
    of_data = markdown_text(one_line(str(dataset)))
    scores = [
        f"- {markdown_text(metric)}: {value:g} on {of_data}" for metric, value in found.items()
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        about.strip(),
        *(["## Scores", "\n".join(scores)] if scores else []),
        LOADING.format(name=name, code=_code(source)).strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _code(source: Path) -> str:
    """Return the argument of ``load`` that names the network's own code, if it has some."""
    origin = _read(source / ARCHITECTURE).get("origin")
    text = origin.get("text") if isinstance(origin, dict) else None
    of_code = isinstance(text, str) and text and ModelOrigin(text).kind == "code"
    return f", code={json.dumps(text)}" if of_code else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        return parsed(read_file(file))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _text(file: Path) -> str:
    try:
        return read_file(file).decode("utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> StoreError:
    return StoreError(f"'{file}' cannot be read: {short(error)}. Write it again.")


def _line(error: Exception) -> str:
    return short(Exception((str(error).splitlines() or [""])[0]))
