"""The request for a table or figure, and the images that are used for the paper's.

Images that are not the paper's have a label that says so, and a note in the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regrow.data import DataSpec
from regrow.errors import ConfigError, DataError
from regrow.reproduce.paper import DataSet, Paper
from regrow.reproduce.scales import Scale
from regrow.studies.expand import material

IMAGENET, VOC = "imagenet", "voc2007"  # data of detectors: the backbone's, then the detector's


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a reproduction: its scale, data, number of seeds and rows."""

    scale: Scale
    data: Mapping[str, str] = field(default_factory=dict)
    seeds: int | None = None
    only: tuple[str, ...] = ()  # rows that match any of these patterns; all rows if empty
    precision: str | None = None
    without: frozenset[tuple[str, ...]] = frozenset()  # networks left out, by their labels
    budget: tuple[str, ...] = ()  # how its budget was chosen, and what it leaves out


def images_for(
    data_value: str | Mapping[str, Any], paper: Paper, request: Request, *, least_size: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Choose the data set to use for one of the paper's, with notes if it is another.

    Options besides the name (a normalisation) are kept if they fit the other data, such as a copy;
    images of another kind use their own.
    """
    scale = request.scale
    original: dict[str, Any] = (
        {"name": data_value} if isinstance(data_value, str) else dict(data_value)
    )
    name = original["name"]
    dataset = paper.datasets.get(name, DataSet(label=name))
    stand_in = request.data.get(name) or scale.stand_in
    if stand_in is None and dataset.large:
        raise DataError(
            f"{dataset.label} is not downloaded. Name a copy, or a data set to use instead: "
            f"--data {name}=folder:PATH or --data {name}=hf:PATH."
        )
    data = original if stand_in is None else _stand_in(original, stand_in)
    enlarged = False
    if dataset.large and name in request.data:
        data["size"] = scale.large_size
    else:
        least = max(least_size, (scale.large_least or 0) if dataset.large else 0)
        enlarged = stand_in is not None and _side(data) < least
        if enlarged:
            data["size"] = least
    if scale.subset is not None or scale.test_subset is not None:
        whole = material(DataSpec.from_json(data))
        data["subset"] = _at_most(scale.subset, whole.num_train, whole.classes)
        data["test_subset"] = _at_most(scale.test_subset, whole.num_test, whole.classes)
    data["label"] = dataset.label
    if stand_in is None:
        return data, []
    data["label"] = f"{stand_in} for {dataset.label}"
    notes = [_in_place(dataset.label, stand_in)]
    if enlarged:
        notes.append(f"The images of {stand_in} are enlarged to {data['size']} pixels a side.")
    if data.get("normalisation") != original.get("normalisation"):
        notes.append(
            f"{stand_in} is normalised by its own mean and std: it has no "
            f"{original['normalisation']!r}."
        )
    return data, notes


def _stand_in(original: Mapping[str, Any], stand_in: str) -> dict[str, Any]:
    """Replace a data set by another, keeping its options if they fit the other."""
    data = {**original, "name": stand_in}
    if len(data) > 1:
        try:
            material(DataSpec.from_json(data))
        except ConfigError:  # the option does not fit these images
            return {"name": stand_in}
    return data


def methods_on(
    methods: Any, paper: Paper, request: Request, *, least_size: int
) -> tuple[list[Any], list[str]]:
    """Choose the data of the networks that methods follow, with notes on replaced data."""
    chosen: list[Any] = []
    notes: list[str] = []
    for method in methods:
        if "data" not in method.get("from", {}):
            chosen.append(method)
            continue
        name = method["from"]["data"]
        data, data_notes = images_for(name, paper, request, least_size=least_size)
        notes += data_notes
        chosen.append({**method, "from": {**method["from"], "data": data}})
    return chosen, notes


def detection_images_for(paper: Paper, request: Request) -> tuple[dict[str, Any], list[str]]:
    """Choose the images to use for VOC 2007, with a note that names them."""
    scale, label = request.scale, paper.datasets[VOC].label
    stand_in = request.data.get(VOC) or scale.detection.stand_in
    if stand_in is None:
        raise DataError(
            f"{label} is not downloaded. Name a copy, or a data set to use instead: "
            f"--data {VOC}=voc:PATH."
        )
    # Broken files in a user's data are skipped, with a notice.
    data: dict[str, Any] = {"name": stand_in, "on_error": "skip"}
    available = material(DataSpec.from_json(data))
    data["subset"] = _at_most(scale.subset, available.num_train, available.classes)
    data["test_subset"] = _at_most(scale.test_subset, available.num_test, available.classes)
    return {**data, "label": f"{stand_in} for {label}"}, [_in_place(label, stand_in)]


def _in_place(label: str, stand_in: str) -> str:
    return f"In place of {label}: {stand_in}."


def _side(data: Any) -> int:
    """Return the side of a data set's images, in pixels."""
    return material(DataSpec.from_json(data)).shape[-1]


def _at_most(most: int | None, available: int, classes: int) -> int | None:
    return None if most is None or most >= available else max(most, classes)
