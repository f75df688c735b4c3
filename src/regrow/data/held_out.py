"""Split a data set's rows into training, validation and test."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.core.seeds import seeded
from regrow.core.texts import quoted
from regrow.data.spec import DataSpec
from regrow.data.splits import seeded_subset, split
from regrow.errors import DataError

TEST_SHARE = 0.2  # of the examples, if no test split is published
SHOWN = 3  # classes, in a notice


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The rows for each use; ``validation`` and ``test`` also name the split that they index."""

    train: Tensor
    validation: tuple[str, Tensor] | None
    test: tuple[str, Tensor]
    notices: tuple[str, ...]


def hold_out(
    labels: Mapping[str, Tensor], classes: tuple[str, ...], spec: DataSpec, *, noun: str = "image"
) -> HeldOut:
    """Draw the test split, the subset and the validation share, in this order, by ``spec.seed``.

    ``labels``: the class of each row of the published splits among ``train``, ``test`` and
    ``validation``. Draws are stratified by class.
    """
    train_labels = labels["train"]
    rows = torch.arange(len(train_labels))
    test_split, test_rows = "train", rows
    if "test" not in labels:
        in_split = split(train_labels, TEST_SHARE, seeded(spec.seed, "data", "test"))
        test_rows, rows = rows[in_split], rows[~in_split]
        _check_drawn(test_rows, spec, noun, purpose="testing", remedy="a test split")
    else:
        test_split, test_rows = "test", torch.arange(len(labels["test"]))
    test_labels = labels[test_split][test_rows]
    test_rows = test_rows[
        seeded_subset(test_labels, spec.test_subset, seed=spec.seed, option="test_subset")
    ]
    rows = rows[seeded_subset(train_labels[rows], spec.subset, seed=spec.seed, option="subset")]
    validation = None
    notices = _unseen(labels[test_split][test_rows], classes, noun, of="test")
    published = labels.get("validation")
    if spec.validation > 0:
        in_split = split(
            train_labels[rows], spec.validation, seeded(spec.seed, "data", "validation")
        )
        validation, rows = ("train", rows[in_split]), rows[~in_split]
        remedy = f"more {noun}s, or no share"
        _check_drawn(validation[1], spec, noun, purpose="validation", remedy=remedy)
        if published is not None:
            notices.append(
                f"The published validation split is left out: the option 'validation' uses a share "
                f"of the training {noun}s."
            )
    elif published is not None:
        validation = ("validation", torch.arange(len(published)))
        notices.append(
            f"The validation split ({len(published)} {noun}s) is used neither for training nor "
            "for testing; networks are scored on it in addition."
        )
    notices += _untaught(labels[test_split][test_rows], train_labels[rows], classes, noun)
    messages = tuple(f"Data set {spec.name!r}: {notice}" for notice in notices)
    return HeldOut(
        train=rows, validation=validation, test=(test_split, test_rows), notices=messages
    )


def _check_drawn(rows: Tensor, spec: DataSpec, noun: str, *, purpose: str, remedy: str) -> None:
    if not len(rows):
        raise DataError(
            f"Data set {spec.name!r}: no {noun} can be held out for {purpose}, because every class "
            f"has only one. Give {remedy}."
        )


def _unseen(labels: Tensor, classes: tuple[str, ...], noun: str, *, of: str) -> list[str]:
    """Return a notice if classes have no example in a split that networks are scored on."""
    missing = (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten().tolist()
    if not missing:
        return []
    shown = quoted([classes[k] for k in missing], SHOWN)
    return [f"No {of} {noun} is of {len(missing)} of the {len(classes)} classes ({shown})."]


def _untaught(test: Tensor, train: Tensor, classes: tuple[str, ...], noun: str) -> list[str]:
    """Return a notice if test examples are of classes that no training example has."""
    if not classes:
        return []
    counts = torch.bincount(test, minlength=len(classes))
    alone = (counts > 0) & (torch.bincount(train, minlength=len(classes)) == 0)
    if not alone.any():
        return []
    shown = quoted([classes[k] for k in alone.nonzero().flatten().tolist()], SHOWN)
    return [
        f"{int(counts[alone].sum())} of the {len(test)} test {noun}s are of classes that no "
        f"training {noun} has ({shown}): networks cannot learn to recognise them."
    ]
