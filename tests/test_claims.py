"""The claims on the printed numbers, against counts made by hand from the tables."""

import json
import math
from typing import Any

import pandas as pd
import pytest

from liu import CLAIMS, PAPER, evaluate_claims, evidence, pairs, results, sparsity, widths
from regrow.report.statistics import Sample, holm
from regrow.reproduce.claims import (
    Finding,
    _measured_finding,
    disagreements,
    markdown,
    render,
    to_json,
)
from regrow.reproduce.contrasts import Contrast, Tally
from regrow.reproduce.curves import (
    POINT,
    CurveContrast,
    Point,
    accuracy_at,
    curve_pairs,
    parameters_at,
)
from regrow.reproduce.rules import (
    AT_LEAST,
    AT_LEAST_EACH,
    BETTER_EACH,
    ON_PAR,
    SELDOM_DOWN,
    Ask,
    Claim,
    combine,
    every,
    most,
)

PRINTED = {finding.number: finding for finding in evaluate_claims()}
UNTESTABLE = (16, 17, 18, 22, 27)
# (claim, start of the part's name, figures). "up" and "down" count rows of first minus second;
# significance is at p < 0.05, uncorrected.
ORACLES: list[tuple[int, str, dict[str, Any]]] = [
    (1, "scratch-e", {"rows": 7, "up": 5, "tested": 5, "significant_up": 1, "significant_down": 0}),
    (1, "scratch-b", {"rows": 7, "up": 7, "tested": 5, "significant_up": 3, "significant_down": 0}),
    (2, "scratch-b", {"rows": 7, "up": 6}),
    (3, "scratch-b", {"rows": 2, "smallest": 0.47, "largest": 0.62, "tested": 0}),
    (4, "scratch-b", {"rows": 6, "up": 6, "smallest": 0.03}),
    (4, "scratch-e - fine-tuned, Table 2", {"rows": 6, "up": 3}),
    (5, "scratch-b", {"rows": 2, "up": 2}),
    (5, "scratch-e", {"rows": 2, "up": 1}),
    (6, "scratch-e", {"rows": 15, "up": 12, "tested": 13, "significant_up": 1}),
    (6, "scratch-b", {"rows": 15, "up": 14, "tested": 13, "significant_up": 7}),
    (6, "scratch-b", {"significantly_down_in": ["CIFAR-10 ResNet-32 10%"]}),
    (7, "scratch-e - pruned", {"rows": 3, "up": 3}),
    (7, "scratch-b - pruned", {"rows": 3, "up": 3}),
    (7, "scratch-b - scratch-e", {"rows": 3, "down": 2}),
    (8, "scratch-b - fine-tuned, Table 4, CIFAR-10 and CIFAR-100", {"rows": 10, "up": 8}),
    (8, "scratch-b - fine-tuned, Table 4, C", {"significant_up": 5, "significant_down": 0}),
    (8, "scratch-b - fine-tuned, Table 4", {"rows": 11, "up": 9}),
    (9, "scratch-e", {"rows": 10, "down": 6, "within_larger_std": 4, "within_both_stds": 8}),
    (9, "scratch-e", {"significant_down": 4, "significant_up": 2}),
    (10, "scratch-e - pruned", {"rows": 3, "up": 2, "mean": 0.16}),
    (10, "scratch-b - pruned", {"rows": 3, "up": 3}),
    (10, "scratch-b - scratch-e", {"rows": 3, "up": 3}),
    (12, "scratch-e", {"rows": 12, "significant_up": 6, "significant_down": 5}),
    (12, "scratch-b", {"rows": 12, "significant_up": 4, "significant_down": 0}),
    (13, "scratch-b", {"rows": 6, "significant_up": 2, "significant_down": 3}),
    (
        13,
        "scratch-b",
        {
            "significantly_down_in": [
                "CIFAR-10 PreResNet-110 95%",
                "CIFAR-10 DenseNet-BC-100 95%",
                "CIFAR-100 DenseNet-BC-100 95%",
            ]
        },
    ),
    (14, "scratch-b", {"rows": 4, "down": 3, "smallest": -1.18, "largest": 0.34}),
    (19, "std", {"layer": "1", "largest": 0.095, "pruned": 0.600}),
    (21, "spread", {"spread": 0.197}),
    (21, "shares kept, Table 19", {"90%": {"lowest": 0.032, "highest": 0.217}}),
    (21, "shares kept, Table 20", {"90%": {"lowest": 0.040, "highest": 0.147}}),
    (23, "winning", {"rows": 10, "up": 6, "mean": 0.004, "significant_up": 0}),
    (23, "winning", {"significant_down": 0}),
    (24, "winning", {"rows": 10, "up": 10, "significant_up": 9, "mean": 0.52}),
    (25, "winning-ticket - random-init, Table 8, part a", {"rows": 5, "mean": -0.07}),
    (25, "winning-ticket - random-init, Table 8, part b", {"rows": 5, "mean": 0.01}),
    (25, "winning-ticket - random-init, Table 8, part a", {"significant_up": 0}),
    (25, "winning-ticket - random-init, Table 8, part b", {"significant_up": 0}),
    (26, "part b", {"rows": 35, "down": 35, "significant_down": 35, "largest": -0.60}),
    (28, "scratch-e", {"rows": 2, "up": 2, "tested": 0}),
    (28, "scratch-b", {"rows": 2, "up": 2, "tested": 0}),
    (29, "prune-c", {"rows": 2, "smallest": 0.48, "largest": 1.22}),
    (30, "scratch-b - fine-tuned, Tables 13, 14", {"rows": 6, "significant_up": 6}),
    (30, "scratch-e - fine-tuned, Tables 13, 14", {"rows": 6, "significant_up": 6}),
    (30, "fine-tuned - unpruned, Tables 13, 14", {"rows": 6, "significant_down": 6}),
    (30, "lead", {"larger": 5, "matched": 5, "rows": 6}),
    (30, "scratch-e - fine-tuned, Table 15", {"rows": 2, "down": 1}),
    (30, "fine-tuned - unpruned, Table 15", {"rows": 2, "largest": -0.16, "significant_down": 1}),
    (31, "fine-tune-160", {"rows": 5, "mean": 0.014}),
    (31, "fine-tune-80", {"rows": 5, "mean": 0.006}),
    (31, "scratch-e", {"rows": 5, "mean": 0.062, "significant_up": 1, "significant_down": 0}),
    (32, "scratch-e", {"rows": 5, "up": 4, "significant_up": 1, "significant_down": 0}),
    (32, "scratch-b", {"rows": 5, "up": 5, "significant_up": 2, "significant_down": 0}),
    (33, "scratch-b", {"rows": 68, "up": 59, "significant_down": 3}),
    (
        33,
        "scratch-b",
        {
            "significantly_down_in": [
                "CIFAR-10 VGG-19 30%",
                "CIFAR-10 ResNet-56 30%",
                "CIFAR-10 ResNet-56 40%",
            ]
        },
    ),
]


def tally(first: str, second: str, table: int, **changes: Any) -> Tally:
    contrast = Contrast(first=first, second=(second,), tables=(table,))
    return Tally(pairs=pairs(results(), contrast, margin=0.3), margin=0.3, **changes)


def numbers(finding: Finding, name: str) -> Any:
    exact = finding.numbers.get(name)
    return exact or next(found for key, found in finding.numbers.items() if key.startswith(name))


@pytest.mark.parametrize(("claim", "part", "expected"), ORACLES)
def test_printed_numbers_say(claim: int, part: str, expected: dict[str, Any]) -> None:
    found = numbers(PRINTED[claim], part)
    for name, value in expected.items():
        exact = isinstance(value, (int, str, list))
        assert found[name] == (value if exact else pytest.approx(value, abs=0.0051)), name


def test_all_33_claims_are_there_in_order() -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 34))
    assert all(claim.section for claim in CLAIMS)


@pytest.mark.parametrize("number", UNTESTABLE)
def test_claims_beyond_the_tables_say_what_they_need(number: int) -> None:
    finding = PRINTED[number]
    assert finding.outcome == "not testable here"
    assert "; needed: " in finding.text


# Claims about every row that the printed tables contradict, by hand: first minus second there.
REFUTED = {
    4: ["ImageNet VGG-16 VGG-Conv -1.52", "ImageNet VGG-16 VGG-GAP -0.99"],
    5: ["ImageNet VGG-16 VGG-16-5x -0.79"],
}


def test_claims_that_printed_tables_contradict_do_not_hold_and_the_rows_are_named() -> None:
    assert {n: found.against for n, found in PRINTED.items() if found.against} == REFUTED
    for number, rows in REFUTED.items():
        assert PRINTED[number].outcome == "does not hold"
        assert "The printed table contradicts the text: " in PRINTED[number].text
        assert all(row in PRINTED[number].text for row in rows)


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.number in (1, 3, 5, 10, 28)])
def test_one_plain_counterexample_refutes_a_claim_about_every_row(claim: Claim) -> None:
    """Whatever else the claim says, and wherever the row stands in the table."""
    frame = results()
    table, first = claim.tables[0], "scratch-b"
    whole = frame["table"].eq(table) & frame["arm"].eq(first)
    for place in frame.index[whole & frame["std"].isna()]:  # single runs
        worse = frame.assign(mean=frame["mean"].where(frame.index != place, frame["mean"] - 5))
        finding = _measured_finding(claim, evidence(results=worse), evidence(results=frame))
        assert finding.outcome == "does not hold"
        assert any(frame["target"][place] in row for row in finding.against)
        assert "Our rows contradict the claim: " in finding.text


def test_a_row_within_the_margin_or_its_noise_is_no_plain_counterexample() -> None:
    near = Contrast(first="scratch-e", second=("fine-tuned",), tables=(1,))
    part = Ask(contrast=near, rules=(AT_LEAST_EACH,))(
        evidence(results=results())
    )  # two rows are down, by less than five seeds show
    assert (part.judged[0][1], part.against) == ("partly", ())


def test_redundancy_of_vgg_grows_with_the_ratio() -> None:
    spread = numbers(PRINTED[20], "shares")["spread"]
    assert (spread[0], spread[-1]) == pytest.approx((0.139, 0.868))


def test_imagenet_sets_unstructured_pruning_apart() -> None:
    found = numbers(PRINTED[15], "row differences, Tables 1-5 against 6, ImageNet")
    assert found["structured"] > 0 > found["unstructured"]
    assert found["p"] < 0.05


def test_fine_tuning_is_no_better_without_any_one_method() -> None:
    means = numbers(PRINTED[11], "without")
    assert set(means) == {"l1-filter", "slimming", "sfp", "sfp-pretrained"}
    assert min(means.values()) > 0


def test_p_values_are_corrected_within_each_table() -> None:
    both = Contrast(first="scratch-b", second=("scratch-e",), tables=(1, 17))
    found = pairs(results(), both, margin=0.3)
    for table in (1, 17):
        alone = [pair for pair in found if pair.row["table"] == table]
        assert [pair.p for pair in alone] == holm([pair.comparison.p for pair in alone])


def test_a_tally_read_from_the_other_side_is_the_other_contrast() -> None:
    one, other = (
        tally("winning-ticket", "random-init", 8),
        tally("random-init", "winning-ticket", 8),
    )
    turned = tally("winning-ticket", "random-init", 8, sign=-1)
    assert turned.differences == pytest.approx(other.differences)
    assert turned.no_worse() == other.no_worse()
    assert turned.numbers()["up"] == one.numbers()["up"]  # figures are told unturned


def test_not_significant_is_not_equal() -> None:
    # ResNet-56-B: -0.13 points, p = 0.25, and yet five seeds do not rule out -0.3.
    scratch_e = tally("scratch-e", "fine-tuned", 1)
    assert scratch_e.significant(-1, corrected=False) == 0
    assert AT_LEAST_EACH.judge(scratch_e) == "partly"
    assert AT_LEAST.judge(scratch_e) == "holds"


def test_rules_speak_against_what_the_rows_contradict() -> None:
    far_below = tally("fine-tuned", "scratch-b", 13)
    assert AT_LEAST.judge(far_below) == "does not hold"
    assert ON_PAR.judge(tally("scratch-b", "scratch-e", 6)) == "partly"
    assert ON_PAR.judge(tally("winning-ticket", "random-init", 8)) == "holds"
    assert SELDOM_DOWN.judge(far_below) == "does not hold"
    assert most().judge(far_below) == "does not hold"
    assert every().judge(tally("scratch-b", "fine-tuned", 13)) == "holds"


def test_parts_combine() -> None:
    assert combine(["holds", "does not hold"]) == "partly"
    assert combine(["does not hold", "not testable here"]) == "does not hold"
    assert combine([]) == "not testable here"


def test_comparisons_are_those_of_the_statistics() -> None:
    pair = tally("scratch-b", "fine-tuned", 14).pairs[0]
    error = math.sqrt((0.26**2 + 0.08**2) / 5)
    assert pair.comparison.difference == pytest.approx(91.93 - 89.17)
    assert pair.comparison.error == pytest.approx(error)
    assert pair.comparison.n == 5


def test_own_rows_run_through_the_same_claims() -> None:
    ours = {f.number: f for f in evaluate_claims(results())}
    assert ours[19].outcome == ours[20].outcome == "not testable here"
    for number in set(PRINTED) - {19, 20, 21}:
        assert ours[number].outcome == PRINTED[number].outcome
        assert ours[number].numbers == PRINTED[number].numbers
    patterns = evaluate_claims(results(), widths_frame=widths(), sparsity_frame=sparsity())
    assert [f.outcome for f in patterns] == [f.outcome for f in PRINTED.values()]


def test_part_of_the_rows_says_how_many() -> None:
    frame = results()
    some = frame[(frame["table"] == 1) & (frame["model"] == "VGG-16")]
    found = {f.number: f for f in evaluate_claims(some)}
    assert "1 of the paper's 7 rows have been run" in found[1].text
    assert found[24].outcome == "not testable here"
    assert "not run" in found[24].text


def test_no_rows_leave_nothing_to_test() -> None:
    assert {f.outcome for f in evaluate_claims(results().iloc[:0])} == {"not testable here"}


def test_an_outcome_that_hangs_on_the_std_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = results()
    rows = (frame["table"] == 14) & (frame["arm"] == "scratch-e")
    frame.loc[rows, ["mean", "std"]] = [89.57, 0.28]
    rows = (frame["table"] == 14) & (frame["arm"] == "fine-tuned")
    frame.loc[rows, ["mean", "std"]] = [89.17, 0.22]  # t = 2.5, p = 0.04; with wider stds 0.06
    contrast = Contrast(first="scratch-e", second=("fine-tuned",), tables=(14,))
    claim = Claim(number=1, text="scratch-e", asks=(Ask(contrast=contrast, rules=(BETTER_EACH,)),))
    monkeypatch.setattr("regrow.reproduce.claims.results", lambda paper: frame)
    monkeypatch.setitem(vars(PAPER), "claims", (claim,))
    (finding,) = evaluate_claims()
    assert finding.outcome == "holds"
    assert "divided by n, not n - 1, the outcome would be: partly." in finding.text


def test_rendering_names_every_claim_in_100_columns() -> None:
    findings = list(PRINTED.values())
    text = render(findings, measured=evaluate_claims(results().iloc[:8]))
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    assert all(claim.text in flat for claim in CLAIMS)
    assert "Our results: not testable here" in text
    apart = disagreements(findings)
    assert len(apart) == sum(finding.outcome in ("does not hold", "partly") for finding in findings)
    assert apart[0].startswith("Claim 4 is contradicted (ImageNet VGG-16 VGG-Conv -1.52 and")
    assert all(line in flat for line in apart)


def test_markdown_and_json_hold_the_same() -> None:
    findings = list(PRINTED.values())
    page = markdown(findings)
    assert all(f"- {line}" in page for line in disagreements(findings))
    assert all(f"### {claim.number}. {claim.text}" in page for claim in CLAIMS)
    values = json.loads(json.dumps(to_json(findings), allow_nan=False))
    assert [value["outcome"] for value in values] == [f.outcome for f in findings]
    assert values[23]["parts"][0]["numbers"]["significant_up"] == 9
    assert values[0]["n"] == [1, 5]


# Curves -------------------------------------------------------------------------------------------

SLIMMED, SPARSE = "Network Slimming: VGG-19, CIFAR-100", "Unstructured pruning: VGG-19, CIFAR-100"
LINE = [
    Point(100.0, Sample(mean=80.0, std=0.3, n=5)),
    Point(200.0, Sample(mean=90.0, std=0.4, n=4)),
    Point(400.0, Sample(mean=92.0, std=0.1, n=5)),
]


def drawn(figure: int, lifts: dict[str, float], *, std: float = 0.1) -> pd.DataFrame:
    """Draw two panels of parallel curves, each so many points above the uniform one."""
    rows = [
        (panel, series, ratio, 1e6 * (1 - ratio), 74.0 - 4 * ratio + lift, std, 5, 5)
        for panel in (SLIMMED, SPARSE)
        for series, lift in ({"uniform": 0.0} | lifts).items()
        for ratio in (0.2, 0.4, 0.6)
    ]
    rows += [(panel, "unpruned", 0.0, 1e6, 74.0, std, 5, 5) for panel in (SLIMMED, SPARSE)]
    return pd.DataFrame(rows, columns=[*POINT]).assign(figure=figure)


def judged(
    number: int, curves: pd.DataFrame | None, *, weights: pd.DataFrame | None = None
) -> Finding:
    found = evaluate_claims(results().iloc[:0], curves_frame=curves, weights_frame=weights)
    return next(finding for finding in found if finding.number == number)


def test_a_curve_is_read_in_a_straight_line_between_its_points() -> None:
    assert accuracy_at(LINE, 100.0) == LINE[0].accuracy
    assert accuracy_at(LINE, 200.0) == LINE[1].accuracy
    quarter = accuracy_at(LINE, 125.0)
    assert quarter is not None
    assert (quarter.mean, quarter.n) == (82.5, 4)
    assert quarter.std == pytest.approx(math.sqrt((0.75 * 0.3) ** 2 + (0.25 * 0.4) ** 2))


def test_beyond_its_ends_a_curve_says_nothing() -> None:
    assert accuracy_at(LINE, 90.0) is None
    assert accuracy_at(LINE, 450.0) is None
    assert accuracy_at([], 100.0) is None
    assert accuracy_at(LINE, 99.0) == LINE[0].accuracy  # equal but for what chance drew


def test_single_runs_of_a_curve_are_not_tested() -> None:
    single = [Point(p.parameters, Sample(mean=p.accuracy.mean, std=None, n=1)) for p in LINE]
    assert accuracy_at(single, 150.0) == Sample(mean=85.0, std=None, n=1)


def test_the_fewest_parameters_that_reach_an_accuracy() -> None:
    assert parameters_at(LINE, 85.0) == 150.0
    assert parameters_at(LINE, 91.0) == 300.0
    assert parameters_at(LINE, 93.0) is None
    assert parameters_at(LINE, 80.0) is None  # smaller networks were not tried
    falling = [*LINE, Point(800.0, Sample(mean=84.0, std=0.1, n=5))]
    assert parameters_at(falling, 85.0) == 150.0


def test_points_without_a_counterpart_are_counted() -> None:
    curves = drawn(5, {"pruned": 0.0})
    smallest = (curves["series"] == "pruned") & (curves["ratio"] == 0.6)
    curves.loc[smallest, "parameters"] = 1e5
    found, beyond = curve_pairs(
        curves, CurveContrast(figure=5, first="pruned", second="uniform"), margin=0.3
    )
    assert (len(found), beyond) == (4, 2)
    assert "2 points lie beyond the other curve" in judged(21, curves).text


def test_points_that_have_not_been_run_are_left_out() -> None:
    curves = drawn(5, {"pruned": 0.0})
    curves.loc[curves["ratio"] == 0.4, ["parameters", "mean", "std"]] = math.nan
    curves.loc[curves["ratio"] == 0.4, "n"] = 0
    contrast = CurveContrast(figure=5, first="pruned", second="uniform")
    found, beyond = curve_pairs(curves, contrast, margin=0.3)
    assert (len(found), beyond) == (4, 0)


@pytest.mark.parametrize(
    ("lift", "std", "outcome"),
    [
        (0.0, 0.1, "holds"),
        (-1.0, 0.1, "holds"),
        (0.1, 1.0, "partly"),  # five seeds do not rule out 0.3
        (0.2, 0.1, "does not hold"),
    ],
)
def test_pruned_is_not_better_than_uniform_in_figure_5(
    lift: float, std: float, outcome: str
) -> None:
    finding = judged(21, drawn(5, {"pruned": lift}, std=std))
    assert finding.parts[-1].judged[0][1] == outcome


def test_series_of_figure_6_as_the_paper_has_them() -> None:
    finding = judged(22, drawn(6, {"pruned": 2.0, "guided": 2.0, "transferred": 1.7}))
    assert finding.outcome == "holds"
    assert finding.n == (5,)
    assert [part.rows for part in finding.parts] == [6, 6, 6, 6]
    assert "guided - pruned at equal parameters, Figure 6: " in finding.text


@pytest.mark.parametrize(
    ("lifts", "outcomes"),
    [
        ({"guided": 1.0}, ["does not hold", "holds", "holds", "holds", "holds"]),
        ({"transferred": 2.0}, ["holds", "does not hold", "holds", "holds", "holds"]),
        ({"transferred": -0.5}, ["holds", "holds", "holds", "does not hold", "does not hold"]),
    ],
)
def test_series_of_figure_6_that_lie_otherwise(
    lifts: dict[str, float], outcomes: list[str]
) -> None:
    finding = judged(22, drawn(6, {"pruned": 2.0, "guided": 2.0, "transferred": 1.7} | lifts))
    assert [outcome for part in finding.parts for _, outcome in part.judged] == outcomes
    assert finding.outcome == "partly"


def test_parameters_at_equal_accuracy_in_figure_3() -> None:
    curves = drawn(3, {"pruned": 1.0})
    assert judged(18, curves).outcome == "partly"
    pruned = (curves["series"] == "pruned") & (curves["panel"] == SLIMMED)
    curves.loc[pruned, "parameters"] /= 4
    finding = judged(18, curves)
    # Pruned by 0.6 it is at 72.6 with 100k parameters; the uniform curve is there at 650k.
    assert finding.parts[-1].numbers["largest"] == pytest.approx(6.5)
    assert finding.parts[-1].judged[0][1] == "holds"


def test_curves_that_have_not_been_run_say_what_writes_them() -> None:
    finding = judged(22, drawn(5, {"pruned": 0.0}))
    assert finding.outcome == "not testable here"
    assert "`regrow reproduce figure-6`" in finding.text


# Series of tickets --------------------------------------------------------------------------------

ROUNDS = (0.2, 0.36, 0.488)


def tickets(*, at_01: float = 0.0, at_001: float = 0.5, rate: float = -1.0) -> pd.DataFrame:
    """Draw Figure 7a: tickets so many points above random weights, by rate; and what 0.01 costs."""
    rows = [
        (f"(a) iterative, {model}", f"{start}, rate {lr}", ratio, 1e6, 93.0 + lift, 0.1, 5, 5)
        for model in ("VGG-16", "ResNet-50")
        for lr, base, lead in (("0.1", 0.0, at_01), ("0.01", rate, at_001))
        for start, own in (("winning ticket", lead), ("random", 0.0))
        for ratio in (0.0, *ROUNDS)
        for lift in [base + (own if ratio else 0.0)]
    ]
    one_shot = [("(b) one-shot, VGG-16", *row[1:4], 50.0, *row[5:]) for row in rows]
    return pd.DataFrame(rows + one_shot, columns=[*POINT]).assign(figure=7)


def test_series_of_tickets_are_compared_round_by_round() -> None:
    finding = judged(27, tickets())
    assert finding.outcome == "holds"
    assert [part.rows for part in finding.parts] == [6, 6, 6, 6]  # not the unpruned networks
    assert [part.numbers["mean"] for part in finding.parts] == pytest.approx([0, 0.5, -0.5, -1])
    assert finding.parts[0].name == (
        "winning ticket, rate 0.1 - random, rate 0.1 at equal shares pruned, Figure 7, "
        "(a) iterative"
    )


@pytest.mark.parametrize(
    ("changes", "outcomes"),
    [
        ({"at_01": 0.5}, ["does not hold", "holds", "holds", "holds"]),
        ({"at_001": 0.0}, ["holds", "does not hold", "holds", "holds"]),
        ({"rate": 0.0}, ["holds", "holds", "does not hold", "does not hold"]),
    ],
)
def test_series_of_tickets_that_lie_otherwise(
    changes: dict[str, float], outcomes: list[str]
) -> None:
    finding = judged(27, tickets(**changes))
    assert [outcome for part in finding.parts for _, outcome in part.judged] == outcomes


def test_rounds_that_one_series_lacks_are_left_out() -> None:
    curves = tickets()
    missing = curves["series"].str.startswith("random") & (curves["ratio"] == ROUNDS[-1])
    curves.loc[missing, ["mean", "std"]] = math.nan
    curves.loc[missing, "n"] = 0
    finding = judged(27, curves)
    assert [part.rows for part in finding.parts] == [4, 4, 6, 4]
    assert "beyond" not in finding.text


# Weights ------------------------------------------------------------------------------------------


def histogram(near: dict[str, int], *, panel: str = "Unstructured Pruning") -> pd.DataFrame:
    """Draw Figure 8 with so many of 1000 weights within 0.01 of zero."""
    edges = (-math.inf, -0.02, -0.01, 0.0, 0.01, 0.02, math.inf)
    rows = [
        (panel, column, low, high, value)
        for column, num in near.items()
        for low, high, value in zip(
            edges[:-1], edges[1:], (100, 200, num, 0, 700 - num, 0), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["panel", "column", "low", "high", "value"])


@pytest.mark.parametrize(
    ("tuned", "scratch", "outcome"),
    [
        (0, 150, "holds"),
        (30, 31, "holds"),
        (31, 150, "partly"),  # more than almost none
        (10, 20, "partly"),  # retrained has almost none either
        (0, 300, "partly"),  # as many as the unpruned network
        (300, 300, "partly"),
        (31, 10, "partly"),
    ],
)
def test_weights_near_zero(tuned: int, scratch: int, outcome: str) -> None:
    near = {"Unpruned": 300, "Fine-tuned": tuned, "Scratch-trained": scratch}
    others = histogram({**near, "Fine-tuned": 0}, panel="Structured Pruning")
    weights = pd.concat([others, histogram(near)], ignore_index=True)
    finding = judged(16, None, weights=weights)
    assert finding.outcome == outcome
    assert finding.parts[0].numbers["fine-tuned"] == tuned / 1000
    assert finding.n == (1,)
    assert "one network each, so nothing is tested" in finding.text


def test_weights_of_two_networks_are_not_enough() -> None:
    finding = judged(16, None, weights=histogram({"Unpruned": 300, "Fine-tuned": 0}))
    assert finding.outcome == "not testable here"
    assert "`regrow reproduce figure-8`" in finding.text
