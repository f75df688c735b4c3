"""Parts of the paper's claims that no single contrast decides: pools, patterns, weights."""

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import pandas as pd

from regrow.core.texts import listed
from regrow.report.statistics import Sample, mean_and_std, pooled, welch
from regrow.report.words import p_value, signed
from regrow.reproduce.contrasts import Contrast
from regrow.reproduce.curves import CurveContrast, opposed, parameters_at
from regrow.reproduce.printed import records
from regrow.reproduce.rules import ClaimEvidence, Judgement, Outcome, untestable
from regrow.reproduce.weights import NEAR, near_zero

CONSISTENT = 0.10  # std over mean of a width, "at most about 10%"
ALMOST_NONE = 0.1  # times the share of the unpruned network's weights that are near zero
EVEN = 2.0  # shares kept within a factor of two count as nearly uniform


def leave_one_method_out(contrast: Contrast) -> Callable[[ClaimEvidence], Judgement]:
    """Pool the tested rows without each method in turn: does the mean depend on one of them?"""

    def ask(evidence: ClaimEvidence) -> Judgement:
        name, asks = "without each method in turn", "no mean worse by the margin"
        pairs = evidence.tally(contrast).pairs
        methods = dict.fromkeys(p.row["method"] for p in pairs if p.comparison.p is not None)
        means = {
            method: average
            for method in methods
            if (average := pooled([p.comparison for p in pairs if p.row["method"] != method]))
        }
        if not means:
            return untestable(name)
        lows = [average.low for average in means.values()]
        outcome: Outcome = "holds" if min(lows) > -evidence.margin else "partly"
        if any(average.high < 0 for average in means.values()):
            outcome = "does not hold"
        averages = [
            f"{method} {signed(average.mean)} ({signed(average.low)} to {signed(average.high)}, "
            f"{average.num} rows)"
            for method, average in means.items()
        ]
        return Judgement(
            name=name,
            judged=((asks, outcome),),
            text=f"random-effects mean without {listed(averages)}",
            rows=len(pairs),
            numbers={method: average.mean for method, average in means.items()},
        )

    return ask


def families_apart(
    structured: Contrast, unstructured: Contrast
) -> Callable[[ClaimEvidence], Judgement]:
    """Compare the row differences of two families by a two-sample Welch test."""

    def ask(evidence: ClaimEvidence) -> Judgement:
        where = " and ".join(structured.where["dataset"])
        name = f"row differences, Tables 1-5 against 6, {where}"
        asks = "structured above unstructured, p < 0.05"
        families = [evidence.tally(contrast) for contrast in (structured, unstructured)]
        if min(family.num for family in families) < 2:
            return untestable(name)
        samples = []
        for family in families:
            mean, std = mean_and_std(family.differences)
            samples.append(Sample(mean=mean, std=std, n=family.num))
        test = welch(*samples)
        apart = test.p is not None and test.p < 0.05
        outcome: Outcome = "partly"
        if apart or test.difference <= 0:
            outcome = "holds" if test.difference > 0 else "does not hold"
        p = "no test" if test.p is None else p_value(test.p)
        means = [signed(s.mean) for s in samples]
        return Judgement(
            name=name,
            judged=((asks, outcome),),
            text=f"mean {means[0]} over {samples[0].n} rows against {means[1]} over "
            f"{samples[1].n} ({p}; rows of one network are not independent)",
            rows=samples[0].n + samples[1].n,
            numbers={"structured": samples[0].mean, "unstructured": samples[1].mean, "p": test.p},
        )

    return ask


def larger_lead(high: Contrast, low: Contrast) -> Callable[[ClaimEvidence], Judgement]:
    """Require each row to lead by more than all rows of the same network pruned less."""

    def ask(evidence: ClaimEvidence) -> Judgement:
        name, asks = "lead against the same network pruned less", "larger in every row"
        smaller: dict[tuple[str, str], list[float]] = {}
        for pair in evidence.tally(low).pairs:
            smaller.setdefault(_network(pair.row), []).append(pair.comparison.difference)
        pairs = evidence.tally(high).pairs
        matched = [p for p in pairs if _network(p.row) in smaller]
        if not matched:
            return untestable(name)
        larger = sum(p.comparison.difference > max(smaller[_network(p.row)]) for p in matched)
        return Judgement(
            name=name,
            judged=(
                (
                    asks,
                    "holds" if larger == len(matched) else "partly" if larger else "does not hold",
                ),
            ),
            text=f"larger in {larger} of {len(matched)} rows; {len(pairs) - len(matched)} have "
            "none to compare with",
            rows=len(matched),
            numbers={"larger": larger, "matched": len(matched), "rows": len(pairs)},
        )

    return ask


def times_fewer(contrast: CurveContrast, times: float) -> Callable[[ClaimEvidence], Judgement]:
    """Require the first curve to need ``times`` fewer parameters than the second at some point.

    The second needs, for the accuracy of that point, the fewest parameters at which it reaches it.
    """

    def ask(evidence: ClaimEvidence) -> Judgement:
        sides = f"{contrast.second} over {contrast.first}"
        name = f"parameters of {sides} at equal accuracy, {contrast.where}"
        points = evidence.measured("curves", where={"figure": contrast.figure})
        curves = opposed(points, contrast)
        factors = [
            needed / point.parameters
            for _, points, second in curves
            for point in points
            if (needed := parameters_at(second, point.accuracy.mean)) is not None
        ]
        if not factors:
            return untestable(name, reason=contrast.absent)
        smallest, middle, largest = min(factors), median(factors), max(factors)
        criteria = [largest >= times, largest > 1.0]
        return Judgement(
            name=name,
            judged=((f"at least {times:g} at some point", _share(sum(criteria), len(criteria))),),
            text=f"{smallest:.2g} to {largest:.2g}, median {middle:.2g} over {len(factors)} points",
            rows=len(factors),
            numbers={"smallest": smallest, "median": middle, "largest": largest},
        )

    return ask


def consistent_widths(evidence: ClaimEvidence) -> Judgement:
    """Require no layer's width to vary between runs (std) by more than a tenth of its mean."""
    name, asks = "std over mean of each width", f"at most {100 * CONSISTENT:g}%"
    frame = evidence.measured("widths")
    if frame.empty or not len(pruned := frame[frame["quantity"] == "pruned width"]):
        return untestable(name)
    layers = pruned[(pruned["layer"] != "total") & pruned["std"].notna()]
    shares = layers["std"] / layers["mean"]
    if shares.empty:
        return untestable(name, reason="one run: no spread")
    worst = max(records(layers), key=lambda row: row["std"] / row["mean"])
    whole = frame[frame["layer"] != "total"].groupby("quantity")["mean"].sum()
    pruned_share = 1 - whole["pruned width"] / whole["width"]
    return Judgement(
        name=name,
        judged=((asks, "holds" if shares.max() <= CONSISTENT else "does not hold"),),
        text=f"largest {100 * shares.max():.1f}% (layer {worst['layer']}) of {len(layers)} layers; "
        f"{100 * pruned_share:.1f}% of the channels are pruned",
        rows=len(layers),
        n=(int(worst["n"]),),
        numbers={
            "largest": float(shares.max()),
            "layer": worst["layer"],
            "pruned": float(pruned_share),
        },
    )


def late_redundancy(evidence: ClaimEvidence) -> Judgement:
    """Test whether the shares kept fall over stages (Page's L), and more steeply at higher ratios.

    Reference: Page, Ordered hypotheses for multiple treatments, J. Am. Stat. Assoc. 1963.
    """
    name = "shares kept, VGG, Table 21"
    asks = "falling over stages (p < 0.05), least in the last two, spread growing with the ratio"
    table = _stages(evidence, 21)
    if table is None:
        return untestable(name)
    from scipy.stats import page_trend_test  # half a second to import

    stages = len(table.columns)
    p = float(page_trend_test(table.to_numpy(), predicted_ranks=range(stages, 0, -1)).pvalue)
    spread = [float(value) for value in table.max(axis=1) - table.min(axis=1)]
    late = all(stage in table.columns[-2:] for stage in table.idxmin(axis=1))
    grows = spread == sorted(spread)
    criteria = [p < 0.05, late, grows]
    return Judgement(
        name=name,
        judged=((asks, _share(sum(criteria), len(criteria))),),
        text=f"max - min over stages from {spread[0]:.3f} at {table.index[0]} to "
        f"{spread[-1]:.3f} at {table.index[-1]}; Page's trend test {p_value(p)} (the ratios share "
        f"a network); the least is {'always' if late else 'not always'} kept in the last two",
        rows=table.size,
        numbers={"spread": spread, "p": p, "late": late, "grows": grows},
    )


def flatter_than_vgg(evidence: ClaimEvidence) -> Judgement:
    """Require PreResNet's shares kept to vary less over stages than VGG's at each common ratio."""
    name, asks = "spread over stages, Table 18", "below VGG's (Table 21) at every common ratio"
    flat, steep = _stages(evidence, 18), _stages(evidence, 21)
    if flat is None or steep is None:
        return untestable(name)
    spreads = [table.max(axis=1) - table.min(axis=1) for table in (flat, steep)]
    common = [ratio for ratio in flat.index if ratio in steep.index]
    below = sum(bool(spreads[0][ratio] < spreads[1][ratio]) for ratio in common)
    return Judgement(
        name=name,
        judged=(
            (asks, "holds" if below == len(common) else "partly" if below else "does not hold"),
        ),
        text=f"max - min at most {spreads[0].max():.3f}; below VGG's at {below} of {len(common)} "
        "ratios",
        rows=flat.size,
        numbers={"spread": float(spreads[0].max()), "below": below, "common": len(common)},
    )


def even_cells(number: int) -> Callable[[ClaimEvidence], Judgement]:
    """Require the shares kept at all kernel positions and stages to be within a factor of two."""

    def ask(evidence: ClaimEvidence) -> Judgement:
        name, asks = f"shares kept, Table {number}", f"within a factor of {EVEN:g} at every ratio"
        cells = evidence.measured("sparsity", where={"table": number})
        if cells.empty:
            return untestable(name)
        low, high = (cells.groupby("ratio")["mean"].agg(name) for name in ("min", "max"))
        even = [bool(high[r] <= EVEN * low[r]) for r in low.index]
        ranges = [f"{r}: {low[r]:.3f} to {high[r]:.3f}" for r in low.index]
        return Judgement(
            name=name,
            judged=((asks, _share(sum(even), len(even))),),
            text=", ".join(ranges),
            rows=len(cells),
            numbers={r: {"lowest": float(low[r]), "highest": float(high[r])} for r in low.index},
        )

    return ask


def few_near_zero(evidence: ClaimEvidence) -> Judgement:
    """Require almost no weights near zero after fine-tuning, but some after scratch training."""
    panel = "Unstructured Pruning"
    name = f"share of weights within {NEAR:g} of zero, Figure 8, {panel}"
    bins = evidence.measured("weights", where={"panel": panel})
    columns = bins.groupby("column", sort=False) if len(bins) else ()
    networks = {str(column): near_zero(rows) for column, rows in columns}
    if networks.keys() != {"Unpruned", "Fine-tuned", "Scratch-trained"}:
        return untestable(
            name,
            reason="no numbers of these weights; needed: those of all three networks, as `regrow "
            "reproduce figure-8` writes them",
        )
    unpruned, tuned, scratch = (
        networks[column] for column in ("Unpruned", "Fine-tuned", "Scratch-trained")
    )
    few = ALMOST_NONE * unpruned
    criteria = [tuned <= few, scratch > few, scratch < unpruned]
    asks = (
        f"fine-tuned at most {ALMOST_NONE:g} times unpruned, scratch-trained more than that and "
        "less than unpruned"
    )
    return Judgement(
        name=name,
        judged=((asks, _share(sum(criteria), len(criteria))),),
        text=f"{unpruned:.3f} unpruned, {tuned:.3f} fine-tuned, {scratch:.3f} scratch-trained, of "
        "the weights that are not pruned; one network each, so nothing is tested",
        rows=len(networks),
        n=(1,),
        numbers={"unpruned": unpruned, "fine-tuned": tuned, "scratch-trained": scratch},
    )


def _share(num: int, of: int) -> Outcome:
    return "holds" if num == of else "partly" if num else "does not hold"


def _network(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["dataset"], row["model"]


def _stages(evidence: ClaimEvidence, number: int) -> pd.DataFrame | None:
    """Return a table of shares kept by ratio (rows) and stage (columns); None if any is missing."""
    cells = evidence.measured("sparsity", where={"table": number})
    if cells.empty:
        return None
    table = cells.pivot_table(index="ratio", columns="stage", values="mean")
    return None if table.isna().to_numpy().any() else table
