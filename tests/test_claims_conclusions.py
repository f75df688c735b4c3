"""Claims on results of ours: what allows no conclusion is left out, counted and named."""

import math
from typing import Any

import pandas as pd
import pytest

from liu import CLAIMS, as_cells, evidence, results, sparsity, widths
from regrow.reproduce.claims import Finding, _measured_finding
from regrow.reproduce.rules import Claim

FIT: dict[str, Any] = {"num_test": 10_000, "chance": 10.0, "loss": 0.01, "fall": 0.0}
FIT |= {"parent_mean": 90.0, "parent_std": 0.1, "parent_n": 5}
FIT |= {"parent_loss": 0.005, "parent_fall": 0.0}


def ours_of(frame: pd.DataFrame, **known: Any) -> pd.DataFrame:
    """Give rows what is known of their networks."""
    return frame.assign(**{**FIT, **known})


PRINTED = evidence(results=results(), widths=widths(), sparsity=sparsity())


def own(number: int, frame: pd.DataFrame | None = None, **more: Any) -> Finding:
    """Judge one claim on rows of ours."""
    rows = as_cells(results()[:0] if frame is None else frame)
    return _measured_finding(CLAIMS[number - 1], evidence(results=rows, **more), PRINTED)


IN_TABLES = [
    claim for claim in CLAIMS if claim.tables and not set(claim.tables) & {7, *range(18, 22)}
]


@pytest.mark.parametrize("claim", IN_TABLES, ids=lambda claim: str(claim.number))
def test_of_networks_at_chance_nothing_is_concluded(claim: Claim) -> None:
    number, frame = claim.number, results()
    rows = frame[frame["table"].isin(claim.tables)]
    # Whole tables, but for those of changes: accuracies about chance, in the places of the printed.
    rows = rows.assign(mean=10.0 + rows.index % 3 / 10, std=0.2, n=5, metric="top1")
    found = own(number, ours_of(rows, parent_mean=10.0))
    assert found.outcome == "no conclusion"
    assert "rows are left out: the unpruned network is not above chance" in found.text
    assert not found.against
    alone = own(number, ours_of(rows).drop(columns=list(FIT)))  # what is not known is not guessed
    assert alone.outcome != "no conclusion"
    assert "Whether these networks are above chance is not known" in alone.text


def test_rows_that_allow_a_conclusion_are_judged_without_the_others() -> None:
    frame = results()
    rows = ours_of(frame[(frame["table"] == 1) & (frame["dataset"] == "CIFAR-10")])
    whole, poor = own(1, rows), rows["model"] == "ResNet-110"
    assert [part.rows for part in whole.parts] == [5, 5]
    some = own(1, rows.assign(parent_mean=rows["parent_mean"].where(~poor, 10.0)))
    assert [part.rows for part in some.parts] == [3, 3]
    assert "2 rows are left out: the unpruned network is not above chance (2; one" in some.text
    assert {row for part in some.parts for row in part.left_out} == {
        "Table 1, CIFAR-10 ResNet-110 ResNet-110-A",
        "Table 1, CIFAR-10 ResNet-110 ResNet-110-B",
    }
    unfinished = own(1, rows.assign(parent_fall=0.05, parent_loss=1.0, fall=0.05, loss=1.0))
    assert unfinished.outcome == "no conclusion"
    assert "the unpruned network had not converged (5; one of them" in unfinished.text


@pytest.mark.parametrize("table", [2, 3])
def test_changes_are_left_out_by_the_accuracies_behind_them(table: int) -> None:
    frame = results()
    rows = frame[(frame["table"] == table) & frame["arm"].ne("unpruned")]
    parents = frame[(frame["table"] == table) & frame["arm"].eq("unpruned")]
    ours = pd.concat([parents, rows.assign(mean=50.0 - rows.index % 5, metric="top1")])
    assert own(table + 2, ours_of(ours)).outcome != "no conclusion"
    low = ours.assign(mean=ours["mean"] / 10)
    assert own(table + 2, ours_of(low, parent_mean=7.0)).outcome == "no conclusion"


def test_patterns_of_networks_at_chance_show_nothing() -> None:
    for number, frames in (
        (19, {"widths": widths()}),
        (20, {"sparsity": sparsity()}),
    ):
        fit = {name: ours_of(frame, loss=None, fall=None) for name, frame in frames.items()}
        assert own(number, **fit).outcome == "holds"
        poor = {name: frame.assign(parent_mean=9.0) for name, frame in fit.items()}
        assert own(number, **poor).outcome == "no conclusion"


def test_curves_and_weights_of_networks_at_chance_show_nothing() -> None:
    place = {"panel": "Network Slimming: VGG-16, CIFAR-10", "figure": 3, "n_expected": 5}
    points = pd.DataFrame(
        [
            {**place, "series": series, "ratio": ratio, "parameters": 1e6 * (1 - ratio)}
            | {"mean": 90.0 + lift, "std": 0.1, "n": 5}
            for series, lift in (("pruned", 1.0), ("uniform", 0.0))
            for ratio in (0.2, 0.4, 0.6)
        ]
    )
    missing = points.tail(1).assign(mean=math.nan, std=math.nan, n=0, ratio=0.8)
    points = pd.concat([points, missing], ignore_index=True)
    assert own(18, curves=ours_of(points)).outcome == "partly"
    low = own(18, curves=ours_of(points.assign(mean=9.0), parent_mean=9.0))
    assert low.outcome == "no conclusion"
    columns = ("Unpruned", "Fine-tuned", "Scratch-trained")
    bins = pd.DataFrame(
        [
            {"panel": "Unstructured Pruning", "column": column, "low": low, "high": low + 0.01}
            | {"value": value, "mean": 90.0, "std": None, "n": 1}
            for column, middle in zip(columns, (50, 1, 20), strict=True)
            for low, value in ((-0.03, 20), (-0.005, middle), (0.02, 20))
        ]
    )
    assert own(16, weights=ours_of(bins)).outcome == "holds"
    assert own(16, weights=ours_of(bins, parent_mean=10.0)).outcome == "no conclusion"
