"""Conclusions over training budgets: the differences, the claims in their order, and the words."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from browser import check_accessible
from budget_runs import ARMS, make_arm, make_study
from regrow.report import Report, page_of, summarise, write
from regrow.report.answer import answer
from regrow.report.budget_figures import score_points, score_range
from regrow.report.budget_gains import Gains, at_largest
from regrow.report.budget_tables import tables
from regrow.report.budget_words import answers, schedule_notes, sentence, short
from regrow.report.budgets import Curve, Trend, curves
from regrow.report.html import document_of, render
from regrow.report.html.chart import draw
from regrow.report.html.document import Charts
from regrow.report.html.evidence import RunEvidence, StudyEvidence
from regrow.report.rows import Ending, Run
from regrow.report.statistics import holm, in_sequence
from regrow.report.verdict import verdicts
from regrow.tasks.metric import BITS_PER_BYTE

MARGIN = 0.5
FALLING = {  # clearly better, better, within the margin, within it
    2: (3.0, 3.2, 2.9, 3.1, 3.0),
    4: (1.0, 1.2, 0.9, 1.1, 1.0),
    8: (0.1, 0.0, -0.1, 0.2, 0.0),
    16: (0.0, 0.1, -0.1, 0.0, 0.1),
}


def curve_of(runs: list[Run], **options: Any) -> Curve:
    (curve,) = curves(runs, margin=MARGIN, **options)
    return curve


def trend_of(advantage: dict[int, Any], **options: Any) -> Trend:
    (trend,) = curve_of(make_study(advantage, **options)).trends
    return trend


# The order of the tests ---------------------------------------------------------------------------


def test_a_chain_ends_at_the_first_that_is_not_rejected() -> None:
    assert in_sequence([[0.01, 0.04, 0.2, 0.001]]) == [[0.01, 0.04, 0.2, 0.2]]


def test_chains_of_one_are_holms_procedure() -> None:
    ps = [0.01, None, 0.04, 0.03]
    assert [chain[0] for chain in in_sequence([[p] for p in ps])] == holm(ps)


def test_a_chain_that_is_rejected_to_its_end_leaves_its_share_to_the_others() -> None:
    # Level 0.05, two chains: each begins at 0.025. The first is rejected whole (0.01, 0.02), so the
    # second may use all of 0.05 for 0.04; were the first not, 0.04 would not do.
    assert in_sequence([[0.01, 0.02], [0.04]]) == [[0.02, 0.04], [0.04]]
    assert in_sequence([[0.01, 0.3], [0.04]]) == [[0.02, 0.3], [0.08]]


def test_no_test_ends_a_chain_and_one_that_begins_so_counts_not() -> None:
    assert in_sequence([[0.01, None, 0.001], [None, 0.01]]) == [[0.01, None, None], [None, None]]


# Differences and claims ---------------------------------------------------------------------------


def test_differences_are_those_of_scipy_seed_by_seed() -> None:
    trend = trend_of(FALLING)
    for d, given in zip(trend.differences, FALLING.values(), strict=True):
        found = stats.ttest_1samp(given, 0.0)
        interval = found.confidence_interval(0.95)
        assert d.test is not None
        assert d.test.difference == pytest.approx(sum(given) / 5)
        assert (d.test.low, d.test.high) == pytest.approx((interval.low, interval.high))
        assert d.test.p == pytest.approx(found.pvalue)
        below = stats.ttest_1samp(given, MARGIN, alternative="less").pvalue
        above = stats.ttest_1samp(given, -MARGIN, alternative="greater").pvalue
        assert d.p("enough") == pytest.approx(below)
        assert d.p("within") == pytest.approx(max(below, above))


def test_claims_go_from_the_largest_budget_down_and_from_the_smallest_up() -> None:
    trend = trend_of(FALLING)
    assert (trend.within_from, trend.enough_from, trend.better_to) == (8, 8, 4)
    assert (trend.scratch_from, trend.never_enough) == (None, False)
    assert short(trend) == "From 8 epochs on"
    largest_first = [d.p("within") for d in reversed(trend.differences)]
    running = [max(p for p in largest_first[: i + 1] if p is not None) for i in range(4)]
    assert [d.p_within for d in reversed(trend.differences)] == pytest.approx(running)


def test_a_gap_in_the_middle_ends_the_claim() -> None:
    """Within the margin at 2, 4 and 16 epochs, but not at 8: only 16 can be claimed."""
    close = (0.0, 0.1, -0.1, 0.0, 0.1)
    trend = trend_of({2: close, 4: close, 8: (1.5, -1.0, 0.7, -1.2, 0.9), 16: close})
    assert trend.within_from == 16
    assert "Not decided: at 8 epochs" in sentence(trend)
    assert "at 4 epochs" in sentence(trend).partition("Not decided")[2]
    alone = "is significant on its own, but not in the sequence of tests"
    assert f"that scratch-b is at most 0.5 points worse {alone}" in sentence(trend)
    ahead, open_ = (-1.0, -1.1, -0.9, -1.2, -1.0), (1.5, -1.0, 0.7, -1.2, 0.9)
    assert f"that scratch-b is better {alone}" in sentence(trend_of({2: ahead, 4: open_}))
    behind = tuple(-gain for gain in ahead)
    other = trend_of({2: open_, 4: behind, 8: open_})
    assert f"that fine-tune is better {alone}" in sentence(other)


def test_scratch_training_that_overtakes_is_enough_and_better() -> None:
    ahead = (-1.0, -1.1, -0.9, -1.2, -1.0)
    trend = trend_of({2: FALLING[2], 4: FALLING[8], 8: ahead, 16: ahead})
    assert (trend.better_to, trend.enough_from, trend.within_from) == (2, 4, None)
    assert trend.scratch_from == 8
    assert "From 8 epochs on scratch-b is better" in sentence(trend)
    assert short(trend_of({2: FALLING[2], 4: ahead})) == "From 4 epochs on, then better"


def test_no_tried_budget_is_enough() -> None:
    trend = trend_of({2: FALLING[2], 4: FALLING[4]})
    assert trend.never_enough
    assert short(trend) == "At no tried budget"
    assert "fine-tune is better at every tried budget" in sentence(trend)


def test_every_tried_budget_is_enough() -> None:
    assert short(trend_of({2: FALLING[8], 4: FALLING[16]})) == "At every tried budget"


def test_one_seed_allows_no_test() -> None:
    trend = trend_of({2: (3.0,), 4: (0.0,)})
    assert short(trend) == "Undecided"
    assert sentence(trend).endswith("One seed allows no test.")


def test_too_few_seeds_are_said_with_how_many_it_would_take() -> None:
    trend = trend_of({2: FALLING[2], 4: (0.3, -0.5, 0.8)})
    assert short(trend) == "Undecided"
    assert "at 4 epochs (95% interval" in sentence(trend)
    assert "seeds would likely settle it" in sentence(trend)


def test_a_budget_at_chance_tells_nothing_and_ends_what_comes_from_above() -> None:
    runs = make_study(FALLING)
    low = [
        replace(run, score=10.0, parent_score=10.0) if run.training_budget == 16 else run
        for run in runs
    ]
    (trend,) = curve_of(low).trends
    assert short(trend) == "Undecided"
    assert trend.better_to == 4
    assert "No conclusion at 16 epochs" in sentence(trend)
    first = [replace(run, score=10.0) if run.training_budget == 2 else run for run in runs]
    (trend,) = curve_of(first).trends
    assert (trend.better_to, trend.within_from) == (4, 8)
    assert "No conclusion at 2 epochs" in sentence(trend)


def test_a_margin_below_one_image_shows_no_equivalence() -> None:
    runs = [replace(run, num_test=100) for run in make_study(FALLING)]
    (trend,) = curve_of(runs).trends
    assert trend.within_from is None
    assert trend.enough_from is None
    assert "one test image changes the score by more than the margin" in sentence(trend)


def test_the_same_score_in_every_seed_is_within() -> None:
    trend = trend_of({2: FALLING[2], 4: (0.0, 0.0, 0.0)})
    assert trend.within_from == 4


def test_of_a_metric_of_which_less_is_better_the_lower_side_wins() -> None:
    runs = [
        replace(run, metric=BITS_PER_BYTE, score=-(run.score or 0.0), num_test=None, chance=None)
        for run in make_study(FALLING)
    ]
    (trend,) = curves(runs, margin=MARGIN)[0].trends
    assert (trend.within_from, trend.better_to) == (8, 4)
    assert trend.differences[0].test is not None
    assert trend.differences[0].test.difference < 0


def test_a_budget_without_results_ends_claims_about_all_larger_and_all_smaller_ones() -> None:
    trend = trend_of({**FALLING, 32: ()})
    assert (trend.better_to, trend.within_from, trend.enough_from) == (4, None, None)
    assert short(trend) == "Undecided"
    told = "Not run: 32 epochs, and what holds from a budget on is tested from the largest down."
    assert told in sentence(trend)
    tables_of = {table.name: table for table in tables([curve_of(make_study({**FALLING, 32: ()}))])}
    assert tables_of["budget-answers"].rows[0][-1] == "not run"
    trend = trend_of({**FALLING, 8: ()})
    assert (trend.better_to, trend.within_from) == (4, 16)
    assert "Not run: 8 epochs." in sentence(trend)
    assert trend_of({1: (), **FALLING}).better_to is None


def test_the_same_in_every_seed_is_said_without_a_p_value() -> None:
    none = (0.0, 0.0, 0.0)
    trend = trend_of({2: none, 4: none})
    assert trend.within_from == 2
    assert "(the same in every seed)" in sentence(trend)
    assert "p <" not in sentence(trend)
    coarse = trend_of({2: none, 4: none}, num_test=20)  # of which one is worth 5 points
    assert (coarse.within_from, coarse.enough_from) == (None, None)
    assert "changes the score by more than the margin" in sentence(coarse)


def test_rows_of_one_pair_share_the_level() -> None:
    """0.03 alone is enough for one row; of two rows it is not, unless the other is shown too."""
    near = (0.40, 0.15, 0.35, 0.05, 0.50)
    p = stats.ttest_1samp(near, MARGIN, alternative="less").pvalue
    assert 0.025 < p < 0.05
    far = (3.0, 2.0, 3.5, 1.0, 2.0)
    runs = make_study({2: far, 4: near})
    assert curve_of(runs).trends[0].enough_from == 4
    other = [r for r in make_study({2: far, 4: far}, method="random") if r.arm != "unpruned"]
    first, second = curves([*runs, *other], margin=MARGIN)
    assert (first.trends[0].enough_from, second.trends[0].enough_from) == (None, None)
    assert first.trends[0].differences[1].p_enough == pytest.approx(2 * p)


def test_a_study_without_budgets_has_no_curves() -> None:
    runs = [replace(run, training_budget=None, group="") for run in make_study({4: FALLING[4]})]
    assert curves(runs) == ()
    assert at_largest(runs) == runs
    assert curves(make_study({4: FALLING[4]})) == ()  # one budget is no axis


def test_several_rows_are_summed_up_and_their_differences_bounded() -> None:
    runs = make_study(FALLING)
    behind = dict.fromkeys(FALLING, FALLING[2])
    more = [r for r in make_study(FALLING, method="a") if r.arm != "unpruned"]
    none = [r for r in make_study(behind, method="b") if r.arm != "unpruned"]
    found = [*answers(curves([*runs, *more, *none], margin=MARGIN))]
    assert found[0].short == "From 8 epochs on in 2 of 3 rows"
    assert "at no tried budget in 1 of 3 (digits / vgg / b 0.5)" in found[0].text
    assert (
        "At the largest budget fine-tune minus scratch-b is +0.02 to +3.04 points" in found[0].text
    )
    alike = [*answers(curves([*runs, *more], margin=MARGIN))]
    assert (alike[0].short, alike[0].text[:19]) == ("From 8 epochs on", "in each of 2 rows. ")
    assert len([a for a in found if a.question.startswith("Does the unpruned network")]) == 1


# The unpruned network -----------------------------------------------------------------------------


def rising(gain: tuple[float, ...], **changes: Any) -> list[Run]:
    seeds = len(gain)
    return [
        *make_arm("unpruned", [8], seeds, lambda _, seed: 90.0 + seed, **changes),
        *make_arm("unpruned", [16], seeds, lambda _, seed: 90.0 + seed + gain[seed], **changes),
    ]


@pytest.mark.parametrize(
    ("gain", "state"),
    [
        ((1.0, 1.1, 0.9, 1.2, 1.0), "gaining"),
        ((0.1, 0.0, 0.1, 0.2, 0.0), "settled"),
        ((0.9, -0.4, 0.8, -0.2, 0.3), "open"),
        ((-1.0, -1.1, -0.9, -1.2, -1.0), "settled"),  # it only lost
        ((1.0,), "open"),
    ],
)
def test_the_gain_from_the_last_step_is_measured(gain: tuple[float, ...], state: str) -> None:
    runs = rising(gain)
    found = Gains(runs, margin=MARGIN).about(runs[-1])
    assert found is not None
    assert (found.smaller, found.larger, found.state, found.last) == (8, 16, state, True)
    if len(gain) > 1:
        assert found.p_settled == pytest.approx(
            stats.ttest_1samp(gain, MARGIN, alternative="less").pvalue
        )


def test_a_smaller_budget_is_judged_by_the_step_that_follows_it() -> None:
    runs = make_arm("unpruned", [2, 4, 8], 3, lambda budget, seed: 80.0 + budget + seed)
    gains = Gains(runs, margin=MARGIN)
    steps = [gains.about(run) for run in runs[::3]]
    assert [(g.smaller, g.larger) for g in steps if g] == [(2, 4), (4, 8), (4, 8)]


def test_the_measured_gain_stands_for_the_loss_and_leaves_nothing_out() -> None:
    """The loss still falls, which alone would leave every cell out; the measured gain is small."""
    falling = Ending(loss=0.5, fall=0.4)
    runs = [replace(run, ending=falling) for run in make_study(FALLING)]
    by_loss = verdicts([r for r in runs if r.training_budget == 16], margin=MARGIN)
    assert {v.outcome for v in by_loss} == {"no conclusion"}
    found = verdicts(runs, margin=MARGIN)
    assert "no conclusion" not in {v.outcome for v in found}
    rules = {reason.rule for v in found for reason in v.reasons}
    assert not rules & {"not converged", "convergence unknown", "still gaining"}
    (trend,) = curve_of(runs).trends
    assert (trend.within_from, trend.better_to) == (8, 4)
    text = "\n".join(map(str, answers(curves(runs, margin=MARGIN))))
    assert "by its training loss alone it had not converged" in text
    assert "No, less than the margin" in text


def test_an_unpruned_network_that_still_gains_qualifies_the_answer() -> None:
    runs = make_study(FALLING, parents={2: 70.0, 4: 80.0, 8: 85.0, 16: 88.0})
    runs = [
        replace(r, score=(r.score or 0) + 0.002 * r.seed * (r.training_budget or 0)) for r in runs
    ]
    found = verdicts(runs, margin=MARGIN)
    rules = [reason.rule for v in found for reason in v.reasons]
    assert set(rules) == {"still gaining"}
    text = "\n".join(map(str, answers(curves(runs, margin=MARGIN))))
    assert "from 8 to 16 epochs it gained 3.03 points" in text
    assert "a larger one may change them" in text


def test_a_loss_that_is_not_known_is_not_called_converged() -> None:
    runs = [replace(run, ending=None) for run in make_study(FALLING)]
    found = curves(runs, margin=MARGIN)
    text = "\n".join(map(str, answers(found)))
    assert "judged by this gain; no training loss is known" in text
    (gains,) = (table for table in tables(found) if table.name == "budget-gains")
    assert {row[-1] for row in gains.rows} == {"no loss known"}


def test_methods_are_compared_by_the_measured_gain_too(tmp_path: Path) -> None:
    falling = Ending(loss=0.5, fall=0.4)
    runs = make_study(FALLING, target="macs 0.5")
    runs += [r for r in make_study(FALLING, target="macs 0.5", method="a") if r.arm != "unpruned"]
    runs = [replace(run, ending=falling, parent_ending=falling, group="") for run in runs]
    page = page_of(runs, summarise(runs), title="t", margin=MARGIN)
    (outcomes,) = {tuple(v.outcome for v in contest.pairs) for contest in page.contests[1:]}
    assert outcomes == ("equivalent",)
    assert any("at the largest training budget only" in limit for limit in page.limits)


# Questions of the ordinary report -----------------------------------------------------------------


def test_each_budget_is_a_question_of_its_own_and_the_largest_is_answered() -> None:
    runs = make_study(FALLING, arms=("fine-tune", "rewind", "scratch-e", "scratch-b"))
    found = verdicts(runs, margin=MARGIN)
    texts = {v.question.text for v in found if v.group.startswith("digits/vgg/4 epochs")}
    assert all(text.endswith(", at 4 epochs?") for text in texts)
    main = {v.group for v in found if v.question.main}
    assert main == {"digits/vgg/16 epochs/l1-filter/0.5"}
    several = {q: {v.group for v in found if v.question == q} for q in {v.question for v in found}}
    assert all(len(groups) == 1 for groups in several.values())


def test_networks_with_other_largest_budgets_meet_at_their_own() -> None:
    runs = make_study(FALLING)
    other = make_study({2: FALLING[2], 4: FALLING[8]}, model="resnet")
    main = [v for v in verdicts([*runs, *other], margin=MARGIN) if v.question.main]
    assert {v.question.at for v in main} == {"at the largest budget of each network"}
    assert {v.group.split("/")[2] for v in main} == {"16 epochs", "4 epochs"}


def test_one_budget_is_asked_as_in_any_study() -> None:
    found = verdicts(make_study({4: FALLING[4]}), margin=MARGIN)
    assert {(v.question.at, v.question.main) for v in found} == {("", True)}
    assert "Is training from scratch (scratch-b) as good as fine-tuning (fine-tune)? No" in answer(
        found
    )


# Schedules ----------------------------------------------------------------------------------------


def notes(runs: list[Run]) -> str:
    return "\n".join(schedule_notes(curves(runs, margin=MARGIN)))


def test_shares_that_are_no_whole_epochs_are_said() -> None:
    runs = make_study({2: (0.0, 0.1), 4: (0.0, 0.1), 6: (0.0, 0.1)})
    text = notes(runs)
    assert "fine-tune" in text
    assert "at 2 (0.5 became 1) and at 6 (1.5 became 1) epochs" in text
    assert "at 4" not in text


def test_caps_and_budgets_that_are_not_spent_are_said() -> None:
    runs = make_study({2: (0.0, 0.1), 4: (0.0, 0.1)})
    capped = [
        replace(r, cap=1.5, capped=True, epochs=3) if (r.arm, r.training_budget) == ("scratch-b", 2)
        else r for r in runs
    ]  # fmt: skip
    assert "scratch-b: capped at 1.5x of the epochs at 2 (2 of 2 runs) epochs" in notes(capped)
    rounded = [
        replace(r, epochs=3) if (r.arm, r.training_budget) == ("scratch-b", 2) else r for r in runs
    ]
    rounded = [replace(r, arm_flops=(r.epochs or 0) * (r.macs or 0)) for r in rounded]
    assert "in the row that falls short most, only 75 % at 2" in notes(rounded)
    assert "scratch-b" not in notes(runs)


def test_an_arm_that_does_not_follow_the_budget_is_said() -> None:
    runs = [
        replace(r, budget="epochs", amount=3, epochs=3) if r.arm == "fine-tune" else r
        for r in make_study({2: (0.0, 0.1), 4: (0.0, 0.1)})
    ]
    assert "fine-tune: 3 epochs at every budget, instead of a share of it" in notes(runs)


# Files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("budgets")
    runs = make_study(FALLING, arms=("pruned", "fine-tune", "scratch-e", "scratch-b"))
    report = write(
        runs, folder, title="budgets", command="c", machine="m", date="2026-11-26", margin=MARGIN
    )
    return report, folder


def test_all_forms_have_the_table_the_answer_and_both_figures(
    written: tuple[Report, Path],
) -> None:
    report, folder = written
    page = (folder / "report.md").read_text(encoding="utf-8")
    for text in (page, report.text):
        assert "From which training budget on is scratch-b as good as fine-tune? From 8" in text
        assert "by training budget" in text
    assert "![Accuracy against the training budget" in page
    assert "![Difference to training from scratch against the training budget" in page
    assert page.count("which go on beyond the axis where they have no cap") == 2
    for name in ("budgets-accuracy", "budget-differences-accuracy"):
        assert (folder / f"{name}.png").is_file()
        assert (folder / f"{name}.svg").is_file()
    latex = (folder / "table.tex").read_text(encoding="utf-8")
    assert "accuracy \\% by training budget" in latex


def test_no_axis_reaches_beyond_what_a_score_can_be() -> None:
    runs = make_study({2: (-50.0, -45.0, -55.0), 4: (9.0, 5.0, 9.0)})
    curve = curve_of(runs)
    low, high = score_range({arm: score_points(curve, arm) for arm in curve.arms}, curve)
    assert 100.0 < high < 102.0
    assert low < 40.0


def test_the_files_have_every_number(written: tuple[Report, Path]) -> None:
    _, folder = written
    scores = pd.read_csv(folder / "budgets.csv")
    assert len(scores) == 4 * 5
    row = scores[(scores["arm"] == "fine-tune") & (scores["budget"] == 2)].iloc[0]
    assert (row["epochs"], row["training_flops"], row["unpruned_flops"]) == (1.0, 2e9, 2e9)
    differences = pd.read_csv(folder / "budget-differences.csv")
    assert len(differences) == 4 * 2
    told = pd.read_csv(folder / "budget-answers.csv")
    assert [*told["within_from"]] == [8, 8]
    assert {*told["gain_state"]} == {"settled"}


def test_the_terminal_shows_the_rows_of_the_largest_budget_alone(
    written: tuple[Report, Path],
) -> None:
    report, _ = written
    assert len(report.page.brief) == 1
    budgets = {row[1] for _, rows in report.page.brief[0].sections for row in rows}
    assert budgets == {"16"}
    every = {row[1] for _, rows in report.page.tables[0].sections for row in rows}
    assert every == {"2", "4", "8", "16"}


def test_the_page_has_both_charts_with_every_budget_and_links(
    written: tuple[Report, Path],
) -> None:
    report, folder = written
    runs = make_study(FALLING, arms=("pruned", "fine-tune", "scratch-e", "scratch-b"))
    evidence = StudyEvidence(
        runs=tuple(
            RunEvidence(key=f"{i:064x}", file=folder / f"{i}", done=True)
            for i, _ in enumerate(runs)
        )
    )
    document = document_of(report, runs, evidence, folder, settings={})
    assert document.headlines[0].short == "From 8 epochs on"
    section = next(section for section in document.sections if section.name == "budgets")
    scores, differences = (block for block in section.blocks if isinstance(block, Charts))
    assert [chart.title for chart in differences.charts] == [
        f"digits / vgg / l1-filter 0.5 minus {arm}" for arm in ("scratch-b", "scratch-e")
    ]
    drawn = draw(differences.charts[0])
    assert [text for _, text in drawn.x_ticks] == ["2", "4", "8", "16"]
    assert [text for _, text in drawn.below] == ["2.00G", "4.00G", "8.00G", "16.0G"]
    level = differences.charts[0].level
    assert level is not None
    assert (level.low, level.high) == (-MARGIN, MARGIN)
    text = render(document)
    (folder / "report.html").write_text(text, encoding="utf-8")
    check_accessible(folder / "report.html")
    links = [point.href for line in scores.charts[0].series for point in line.points]
    assert len(links) == 4 * 5
    assert all(f'id="{link[1:]}"' in text for link in links)
    tables = [b.title for s in document.sections if s.name == "verdicts" for b in s.blocks]
    assert (
        tables.count("Is training from scratch (scratch-b) as good as fine-tuning (fine-tune)?")
        == 1
    )


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_study_that_has_hardly_begun_is_written_too(done: int, tmp_path: Path) -> None:
    """Nothing done, or the smallest budget of three; or two, of which the second has one seed."""
    kept = {0: {}, 1: {2: 3}, 2: {2: 3, 4: 1}}[done]
    runs = [
        r if r.seed < kept.get(r.training_budget or 0, 0)
        else replace(r, status="missing", score=None, epochs=None, training_flops=None)
        for r in make_study({2: (3.0, 3.2, 2.9), 4: (1.0, 1.2, 0.9), 8: (0.1, 0.0, 0.1)})
    ]  # fmt: skip
    report = write(
        runs, tmp_path, title="t", command="c", machine="m", date="2026-11-26", draw=done == 1
    )
    evidence = StudyEvidence(
        runs=tuple(RunEvidence(key=str(i), file=tmp_path, done=r.done) for i, r in enumerate(runs))
    )
    page = document_of(report, runs, evidence, tmp_path, settings={})
    section = next(section for section in page.sections if section.name == "budgets")
    charts = next(block for block in section.blocks if isinstance(block, Charts)).charts
    assert all(0 <= at <= 340 for at, _ in draw(charts[0]).x_ticks)
    assert page.headlines[0].short == ("Not run", "Undecided", "Undecided")[done]
    assert ("Not run: 4 and 8 epochs," in report.answer) == (done == 1)


# How often claims are false -----------------------------------------------------------------------


def simulated(truth: dict[int, float], rng: random.Random, *, rows: int, seeds: int) -> list[Run]:
    """Draw a study of several methods whose true advantages are known."""
    runs: list[Run] = []
    for row in range(rows):
        for arm in ("fine-tune", "scratch-b"):
            add = truth if arm == "fine-tune" else dict.fromkeys(truth, 0.0)
            runs += make_arm(
                arm,
                [*truth],
                seeds,
                lambda budget, _, add=add: 90.0 + add[budget] + rng.gauss(0.0, 0.25),  # type: ignore[misc]
                method=f"m{row}",
            )
    return runs


def false_claims(trend: Trend, truth: dict[int, float]) -> set[str]:
    """Name the kinds of claim that a trend makes and that are not so."""
    wrong = set()
    claims: tuple[tuple[str, int | None, Callable[[float], bool]], ...] = (
        ("enough", trend.enough_from, lambda a: a < MARGIN),
        ("within", trend.within_from, lambda a: abs(a) < MARGIN),
        ("scratch", trend.scratch_from, lambda a: a < 0),
    )
    for name, start, holds in claims:
        if start is not None and not all(holds(a) for b, a in truth.items() if b >= start):
            wrong.add(name)
    up_to = trend.better_to or 0
    if not all(a > 0 for b, a in truth.items() if b <= up_to):
        wrong.add("inherited")
    if trend.never_enough and truth[max(truth)] <= 0:
        wrong.add("inherited")
    return wrong


TRUTHS = {  # at the edge of what each claim says, where tests err most often
    "a margin apart": dict.fromkeys((2, 4, 8, 16), MARGIN),
    "a margin apart at 8 epochs": {2: 3.0, 4: 1.0, 8: MARGIN, 16: 0.0},
    "equal": dict.fromkeys((2, 4, 8, 16), 0.0),
    "equal from 8 epochs on": {2: 3.0, 4: 1.0, 8: 0.0, 16: 0.0},
    "a margin worse": {2: 0.0, 4: 0.0, 8: -MARGIN, 16: -MARGIN},
}


def rates(num: int, truth: dict[int, float], *, rows: int, seeds: int) -> dict[str, float]:
    """Return for each kind of claim the share of studies in which any row makes a false one."""
    rng = random.Random(20261126)
    counts = dict.fromkeys(("enough", "within", "scratch", "inherited"), 0)
    for _ in range(num):
        found = curves(simulated(truth, rng, rows=rows, seeds=seeds), margin=MARGIN)
        for name in set().union(*(false_claims(t, truth) for c in found for t in c.trends)):
            counts[name] += 1
    return {name: count / num for name, count in counts.items()}


def allowed(num: int) -> float:
    return 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)


@pytest.mark.parametrize("name", TRUTHS)
def test_claims_are_hardly_ever_false(name: str) -> None:
    found = rates(40, TRUTHS[name], rows=1, seeds=3)
    assert max(found.values()) <= allowed(40), found


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "seeds"), [(1, 3), (1, 5), (3, 5)])
@pytest.mark.parametrize("name", TRUTHS)
def test_in_many_studies_false_claims_stay_at_their_level(name: str, rows: int, seeds: int) -> None:
    num = 4000 if rows == 1 else 2000
    found = rates(num, TRUTHS[name], rows=rows, seeds=seeds)
    shown = ", ".join(f"{kind} {100 * share:.2f} %" for kind, share in found.items())
    print(f"{name}, {rows} rows, {seeds} seeds, {num} studies: {shown}")
    assert max(found.values()) <= allowed(num), found


def test_every_arm_of_the_fabricated_studies_is_known() -> None:
    assert {"fine-tune", "scratch-b"} <= set(ARMS)
