"""Methods against methods: pairs at one cost, ranks, best retrainings, and how they are worded."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regrow.jobs.arms import ARMS, Arm
from regrow.report import write
from regrow.report.contest_words import answers, csv_files
from regrow.report.contests import DENSE, Contest, chance_of, contests
from regrow.report.crossing import winner_changes, winner_line
from regrow.report.html.methods import method_headlines
from regrow.report.method_figures import method_panels, methods_figure
from regrow.report.questions import BEST_RETRAINING
from regrow.report.rows import Ending, Run
from regrow.report.setups import setup
from regrow.report.verdict import verdicts
from regrow.tasks.metric import ACCURACY, BITS_PER_BYTE

SEEDS = 5
KNOWN: dict[str, Any] = {"num_test": 10_000, "chance": 10.0, "ending": Ending(loss=0.01)}


def entries(
    method: str, arm: Arm, mean: float, *, target: str = "macs 0.5", **changes: Any
) -> list[Run]:
    """Make the runs of a method under an arm; seeds differ, and methods within them."""
    rng = random.Random(f"{method}/{arm.name}/{target}/{changes.get('model')}")
    share = float(target.split()[-1])
    of_seed = random.Random(7)
    common: dict[str, Any] = {
        "data": "d",
        "model": "m",
        "method": method,
        "target": target,
        "arm": arm.name,
        "start": arm.start,
        "budget": arm.budget.kind,
        "amount": arm.budget.amount,
        "status": "done",
        "parameters": 500,
        "macs": round(1000 * share),
        "epochs": 0 if arm.budget.kind == "none" else 10,
        "training_flops": 1e9,
        "cost_asked": share,
        "cost_left": share,
        "base": "of-all",
        "pruning_epochs": 0,
        **KNOWN,
        **changes,
    }
    return [
        Run(**common, seed=seed, score=mean + of_seed.gauss(0, 0.3) + rng.gauss(0, 0.05))
        for seed in range(SEEDS)
    ]


FINE_TUNE, SCRATCH, PRUNED = (ARMS.get(name) for name in ("fine-tune", "scratch-b", "pruned"))
LEVELS = [(model, f"macs {share}") for model in ("m1", "m2") for share in (0.5, 0.3, 0.2)]


def table(means: Mapping[str, float], *, levels: Sequence[tuple[str, str]] = LEVELS) -> list[Run]:
    return [
        run
        for model, target in levels
        for method, mean in means.items()
        for arm, change in ((PRUNED, 40.0), (FINE_TUNE, 0.0))
        for run in entries(method, arm, mean - change, target=target, model=model)
    ]


def only(found: Sequence[Contest], arm: str) -> Contest:
    (contest,) = (contest for contest in found if contest.arm == arm)
    return contest


def outcomes(contest: Contest) -> dict[tuple[str, str], str]:
    return {(v.arm, v.against): v.outcome for v in contest.main}


def test_every_pair_is_compared_and_the_better_found() -> None:
    contest = only(contests(table({"a": 93.0, "b": 92.0, "c": 92.01})), "fine-tune")
    assert outcomes(contest) == {
        ("a", "b"): "better",
        ("a", "c"): "better",
        ("b", "c"): "equivalent",
    }
    assert len(contest.pairs) == 3 * len(LEVELS)
    assert contest.averages[0].setup.startswith("S4.2")


def test_p_values_are_corrected_over_all_of_a_contest() -> None:
    few = only(contests(table({"a": 93.0, "b": 92.9}, levels=LEVELS[:1])), "fine-tune")
    many = only(contests(table({"a": 93.0, "b": 92.9, "c": 91.0})), "fine-tune")
    (one,) = few.pairs
    same = next(v for v in many.pairs if (v.arm, v.against, v.group) == ("a", "b", one.group))
    assert one.comparison == same.comparison
    assert one.p is not None
    assert same.p is not None
    assert same.p > one.p


def test_a_reference_is_the_first_side_of_every_pair() -> None:
    runs = table({"a": 93.0, "b": 92.0, "mine": 92.5})
    each = only(contests(runs), "fine-tune")
    facing = only(contests(runs, reference="mine"), "fine-tune")
    assert outcomes(facing) == {("mine", "a"): "worse", ("mine", "b"): "better"}
    turned = next(v for v in facing.pairs if v.against == "a")
    before = next(v for v in each.pairs if (v.arm, v.against) == ("a", "mine"))
    assert turned.comparison is not None
    assert before.comparison is not None
    assert before.comparison.low is not None
    assert turned.comparison.high == -before.comparison.low
    assert turned.differences == tuple((seed, -d) for seed, d in before.differences)
    assert "mine is better than b; worse than a." in answers([facing])[0]


def failed(run: Run) -> Run:
    return replace(run, status="failed", score=None)


@pytest.mark.parametrize(
    ("change", "answer", "against"),
    [
        (lambda r: replace(r, cost_left=0.6), "Better than 1 of 2, worse than 0", "not comparable"),
        (failed, "Better than 1 of 2, worse than 0", "not run against a"),
        (lambda r: None if "0.5" in r.level else r, "Better than 1 of 2, worse than 1", "worse"),
        (
            lambda r: r if (r.seed < 2) == ("0.5" in r.level) else failed(r),  # no seed has both
            "Better than 1 of 2, worse than 1",
            "worse than a",
        ),
    ],
)
def test_a_rival_without_an_average_does_not_vanish_beside_averages(
    change: Callable[[Run], Run | None], answer: str, against: str
) -> None:
    runs = table({"mine": 93.0, "a": 94.0, "b": 92.0}, levels=LEVELS[:2])
    runs = [new for r in runs if (new := change(r) if r.method == "a" else r) is not None]
    contest = only(contests(runs, reference="mine"), "fine-tune")
    assert {verdict.against for verdict in contest.main} == {"a", "b"}
    assert [verdict.against for verdict in contest.averages] == ["b"]
    (text,) = (line for line in answers([contest]) if line.startswith("Is mine"))
    assert f"? {answer}: mine is better than b; " in text
    assert against in text
    lines = csv_files([contest])["pairs.csv"].splitlines()
    assert len(lines) == len({*lines}) == 1 + 3 + sum(v.against == "a" for v in contest.pairs)
    open_one = only(contests(runs), "fine-tune")
    pairs = {frozenset((verdict.arm, verdict.against)) for verdict in open_one.main}
    assert pairs == {frozenset(pair) for pair in (("mine", "a"), ("mine", "b"), ("a", "b"))}


def test_levels_that_contradict_an_average_are_named() -> None:
    runs = [
        replace(run, score=(run.score or 0.0) - change)
        for level, change in zip(LEVELS, (3.0, 0.0), strict=False)
        for run in table({"mine": 94.0, "b": 92.0}, levels=[level])
        for change in [change if run.method == "mine" else 0.0]
    ]
    (text,) = answers(contests(runs, reference="mine"))
    assert "? On average yes, but worse in 1 of 2 cells: mine is better than b." in text
    assert "But mine is worse than b at d / m1 / macs 0.5." in text
    level = [replace(r, score=(r.score or 0.0) - 0.5 * (r.method == "mine")) for r in runs]
    (text,) = answers(contests(level, reference="mine"))
    assert "? No: equivalent to all: mine is equivalent to b." in text
    assert "But mine is worse than b at d / m1 / macs 0.5." in text
    assert "But mine is better than b at d / m1 / macs 0.3." in text


def test_why_nothing_can_be_concluded_is_said() -> None:
    runs = [replace(run, parent_score=10.0) for run in table({"mine": 93.0, "a": 92.0})]
    for reference in ("mine", None):
        (text,) = answers(contests(runs, reference=reference))
        assert "(the unpruned network is not above chance)" in text


@pytest.mark.parametrize(
    ("means", "short"),
    [((92.0, 92.0), "All equivalent"), ((93.0, 92.0), "Better than some"), ((9.0, 9.0), "No con")],
)
def test_a_headline_says_what_the_comparisons_show(means: tuple[float, float], short: str) -> None:
    found = contests(table(dict(zip("ab", means, strict=True)), levels=LEVELS[:1]))
    (headline,) = method_headlines(found)
    assert headline.short.startswith(short)


def test_pairs_stand_in_one_order_whatever_that_of_the_levels() -> None:
    runs = table({"a": 93.0, "b": 92.0}, levels=LEVELS[:1])
    runs += table({"b": 92.0, "a": 93.0}, levels=LEVELS[1:2])
    assert list(outcomes(only(contests(runs), "fine-tune"))) == [("a", "b")]


def test_rows_of_unequal_cost_are_named_and_not_ranked() -> None:
    amounts: dict[str, Any] = {
        "target": None,
        "sparsity": 0.3,
        "cost_asked": None,
        "cost_left": None,
    }
    runs = [
        replace(run, macs=macs, group="", **amounts)
        for method, macs in (("a", 220), ("b", 480), ("c", 225))
        for run in entries(method, FINE_TUNE, 93.0)
    ]
    runs += [
        replace(r, method="", macs=1000, group="", sparsity=None, target=None)
        for r in entries("", ARMS.get("unpruned"), 94.0)
    ]
    (contest,) = contests(runs)
    assert outcomes(contest) == {
        ("a", "b"): "no conclusion",
        ("a", "c"): "equivalent",
        ("b", "c"): "no conclusion",
    }
    assert contest.ranking is None
    text, _ = answers([contest])
    assert "costs differ: d / m / sparsity 0.3 (macs left: a 22 %, b 48 %, c 22.5 %)" in text
    reason = contest.pairs[0].left_out_for
    assert reason is not None
    assert reason.text == ("the methods' networks do not cost the same (macs left: a 22 %, b 48 %)")


def test_latencies_of_different_machines_are_not_compared() -> None:
    runs = [
        run
        for method, machine in (("a", "cpu, 1 thread(s)"), ("b", "cuda"))
        for run in entries(method, FINE_TUNE, 93.0, target="latency 0.5", cost_machine=machine)
    ]
    (pair,) = contests(runs)[0].pairs
    assert pair.outcome == "no conclusion"
    assert "different machines" in pair.reasons[0].figures


def test_ranks_come_with_a_critical_difference_from_six_cells_on() -> None:
    means = {"a": 93.0, "b": 92.0, "c": 91.0}
    contest = only(contests(table(means)), "fine-tune")
    assert contest.ranking is not None
    assert contest.ranking.methods == ("a", "b", "c")
    assert contest.ranking.ranks == (1.0, 2.0, 3.0)
    assert contest.ranking.critical == pytest.approx(2.343 * (3 * 4 / (6 * 6)) ** 0.5, abs=1e-3)
    few = only(contests(table(means, levels=LEVELS[:5])), "fine-tune").ranking
    assert few is not None
    assert few.critical is None
    assert "too few for a test of ranks" in answers(contests(table(means, levels=LEVELS[:5])))[0]


def test_ranks_are_over_the_seeds_that_all_methods_have() -> None:
    runs = [
        replace(run, score=(run.score or 0.0) - 40.0) if run.seed == 0 else run  # a hard seed
        for run in table({"a": 91.0, "b": 92.0, "c": 93.0})
        if (run.method, run.seed) != ("a", 0)
    ]
    ranking = only(contests(runs), "fine-tune").ranking
    assert ranking is not None
    assert ranking.methods == ("c", "b", "a")
    apart = [run for run in runs if run.method != "b" or run.seed == 0]
    assert only(contests(apart), "fine-tune").ranking is None


def test_the_best_retraining_is_chosen_on_validation_never_on_test() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    runs = [
        *entries("a", FINE_TUNE, 93.0, validation=90.0),
        *entries("a", long, 92.0, validation=91.0),  # better on validation, worse on test
        *entries("b", FINE_TUNE, 92.5, validation=90.0),
        *entries("b", long, 92.5, validation=89.0),
    ]
    contest = contests(runs)[0]
    assert contest.arm == BEST_RETRAINING
    chosen = {entrant.method: entrant.arms for entrant in contest.levels[0].entrants}
    assert chosen == {"a": ("long",), "b": ("fine-tune",)}
    assert {entrant.how for entrant in contest.levels[0].entrants} == {"chosen on validation"}


def test_retrainings_are_chosen_by_the_seeds_that_all_have() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    easy = [80.0, 95.0, 95.0, 95.0, 95.0]
    runs = [
        *(replace(r, validation=easy[r.seed]) for r in entries("a", FINE_TUNE, 93.0)),
        *(
            replace(r, validation=easy[r.seed] - 1) if r.seed else failed(r)
            for r in entries("a", long, 92.0)
        ),
        *entries("b", FINE_TUNE, 92.5, validation=90.0),
    ]
    assert contests(runs)[0].levels[0].entrants[0].arms == ("fine-tune",)


def test_one_seed_is_not_said_to_be_chosen_by_others() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    runs = [run for arm in (FINE_TUNE, long) for m in "ab" for run in entries(m, arm, 93.0)]
    (text, *_) = answers(contests([run for run in runs if run.seed == 0]))
    assert "(chosen by the scores that are compared)" in text


def test_without_validation_each_seeds_retraining_is_chosen_by_the_others() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    runs = [
        *entries("a", FINE_TUNE, 93.0),
        *entries("a", long, 92.0),
        *entries("b", FINE_TUNE, 92.5),
    ]
    contest = contests(runs)[0]
    assert contest.levels[0].entrants[0].how == "chosen by the other seeds"
    assert contest.levels[0].entrants[0].arms == ("fine-tune",)


def test_scratch_training_is_compared_with_the_best_retraining() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    runs = [
        *entries("a", FINE_TUNE, 93.0, validation=90.0, recipe="rate 0.001"),
        *entries("a", long, 92.0, validation=91.0),
        *entries("a", SCRATCH, 92.0, validation=91.0),
    ]
    first = next(v for v in verdicts(runs) if v.question.first is not None)
    assert first.question.text.endswith("as good as fine-tuning (the best retraining)?")
    assert first.against == "long (the best retraining, chosen on validation)"
    assert first.outcome == "equivalent"


def test_the_best_small_dense_network_is_a_rival_of_every_method() -> None:
    runs = [
        *entries("a", FINE_TUNE, 93.0, validation=92.0),
        *entries("a", SCRATCH, 99.0, validation=99.0),  # its widths were found by pruning
        *entries("width", FINE_TUNE, 91.0, validation=90.0, designed=True),
        *entries("width", SCRATCH, 94.0, validation=93.0, designed=True),
        *entries("uniform", SCRATCH, 95.0, validation=92.0, designed=True),
    ]
    contest = contests(runs)[0]
    assert contest.arm == BEST_RETRAINING
    dense = next(e for e in contest.levels[0].entrants if e.method == DENSE)
    assert dense.arms == ("scratch-b",)
    assert dense.runs[0].method == "width"  # chosen on validation
    assert outcomes(contest)["a", DENSE] == "worse"


def test_orders_before_and_after_retraining_are_compared() -> None:
    means = {"a": 93.0, "b": 92.0, "c": 91.0}
    found = only(contests(table(means)), "fine-tune").agreement
    assert found is not None
    assert (found.tau, found.num, found.num_methods, found.n) == (1.0, 6, 3, SEEDS)
    upside_down = [
        replace(run, score=10.0 + 100 - run.score) if run.arm == "pruned" and run.score else run
        for run in table(means)
    ]
    turned = only(contests(upside_down), "fine-tune").agreement
    assert turned is not None
    assert turned.tau == -1.0
    two = only(contests(table({"a": 93.0, "b": 92.0})), "fine-tune")
    assert two.agreement is None


def test_superiority_is_the_share_of_seeds_won() -> None:
    contest = only(contests(table({"a": 93.0, "b": 92.0}, levels=LEVELS[:1])), "fine-tune")
    chance = chance_of(contest.pairs[0])
    assert chance is not None
    assert (chance.value, chance.n, chance.high) == (1.0, SEEDS, 1.0)
    assert chance.low == pytest.approx(0.025 ** (1 / SEEDS))


def test_of_a_metric_of_which_less_is_better_less_is_better() -> None:
    runs = [
        replace(r, metric=BITS_PER_BYTE, chance=8.0, score=(r.score or 0.0) / 40)
        for r in table({"a": 93.0, "b": 92.0, "c": 91.0})
        if r.arm == "fine-tune"
    ]
    contest = only(contests(runs), "fine-tune")
    assert outcomes(contest)["a", "c"] == "worse"
    assert contest.ranking is not None
    assert contest.ranking.methods == ("c", "b", "a")
    chance = chance_of(contest.averages[0])
    assert chance is not None
    assert chance.value == 0.0


@pytest.mark.parametrize(
    ("changes", "stamp"),
    [
        ({}, "S4.2"),
        ({"pruning_epochs": 3}, "S3.2"),
        ({"recipe": "rate 0.01"}, "S3.1"),
        ({"entered": 4}, "S3.1"),
        ({"epochs": 11}, "S2"),
        ({"base": "other"}, "S1"),
        ({"base": ""}, "S1"),
        ({"macs": 600, "target": "macs 0.6"}, ""),
        ({"model": "other"}, None),
    ],
)
def test_setups_are_the_rungs_of_the_ladder(changes: dict[str, Any], stamp: str | None) -> None:
    first = entries("a", FINE_TUNE, 93.0)
    second = [replace(run, group="", **changes) for run in entries("b", FINE_TUNE, 93.0)]
    whole = "" if stamp is None else ", SX-B" if stamp else "SX-B"
    assert setup(first, second) == (stamp or "") + whole
    longer = [replace(run, training_flops=2e9) for run in second]
    assert setup(first, longer) == (stamp or "")


def test_pipelines_are_equal_only_where_all_of_their_cost_is_known() -> None:
    """A scratch training depends on no other; weights that came along cost something."""
    tuned = [replace(run, epochs=4, total_epochs=8) for run in entries("a", FINE_TUNE, 93.0)]
    flops = 1e9
    scratch: dict[str, Any] = {"start": "random", "group": "", "epochs": 4, "total_epochs": 8}
    as_long = [replace(run, **scratch, arm_flops=flops / 2) for run in tuned]
    assert setup(tuned, as_long) == "S1"  # it trained for half of what the pipeline took
    as_much = [replace(run, **scratch | {"epochs": 8}, arm_flops=flops) for run in tuned]
    assert setup(tuned, as_much) == "S1, SX-A, SX-B"
    given = [replace(run, given=True) for run in tuned]
    assert setup(given, as_much) == "S1"
    assert setup(given, given).endswith("SX-A, SX-B")


def test_setups_are_said_in_words_and_explained(tmp_path: Path) -> None:
    tuned = [replace(run, method="a") for run in entries("a", FINE_TUNE, 93.0)]
    runs = [*tuned, *entries("a", SCRATCH, 92.0)]
    report = write(
        runs, tmp_path, title="t", command="c", machine="m", date="2026-11-26", draw=False
    )
    assert "Both sides have the same data, network and speed-up [S1" in report.answer
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert re.search(r"speed-up.* \[S1[^\]]*\]\(#setups\)", page)
    assert "## Setups" in page
    assert "arxiv.org/abs/2301.05219" in page


def test_a_report_has_the_contests_in_every_form(tmp_path: Path) -> None:
    report = write(
        table({"a": 93.0, "b & c": 92.0, "_d_": 91.0}),
        tmp_path,
        title="t",
        command="c",
        machine="m",
        date="2026-11-26",
        draw=False,
    )
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "### Comparisons of methods under fine-tune" in page
    assert r"\_d\_" in page
    assert r"b \& c" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert (
        "Methods at equal cost, under fine-tune (10 epochs): of 3 pairs, 3 differ." in report.answer
    )
    assert {path.name for path in report.paths} >= {"methods.csv", "pairs.csv", "ranks.csv"}
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 1 + 3 * len(LEVELS) + 3
    assert csv_files([]) == {}


def test_methods_that_meet_at_no_amount_make_no_contest() -> None:
    runs = entries("a", FINE_TUNE, 93.0) + entries("b", FINE_TUNE, 93.0, target="macs 0.3")
    assert contests(runs) == ()


def test_what_has_not_run_is_said(tmp_path: Path) -> None:
    waiting = [replace(run, status="missing", score=None) for run in table({"a": 93.0, "b": 92.0})]
    (text,) = answers(contests(waiting))
    assert text == "Methods at equal cost, under fine-tune: not run."


def test_the_figure_has_all_methods_on_one_axis_and_a_panel_for_each_arm() -> None:
    runs = table({"a": 93.0, "b": 92.0, "c": 91.0})
    runs += [run for method in "ab" for run in entries(method, SCRATCH, 90.0, model="m1")]
    assert methods_figure(runs, metric=ACCURACY) is not None
    panels = method_panels(runs, metric=ACCURACY)
    assert [panel.title.split("\n") for panel in panels] == [
        ["d / m1", "fine-tune"],
        ["d / m1", "scratch-b"],
        ["d / m2", "fine-tune"],
    ]
    assert [len(panel.lines) for panel in panels] == [3, 2, 3]
    entrant = only(contests(runs), "fine-tune").levels[0].entrants[0]
    line = panels[0].lines[0]
    values = zip(line.values, line.below, line.above, strict=True)
    ends = [(value - below, value + above) for value, below, above in values]
    assert any(end == pytest.approx((entrant.low, entrant.high)) for end in ends)
    assert panels[0].y == panels[1].y
    assert methods_figure(entries("a", FINE_TUNE, 93.0), metric=ACCURACY) is None


def test_a_winner_that_changes_with_the_retraining_is_found() -> None:
    long = replace(ARMS.get("lr-rewind"), name="long")
    runs = [
        *entries("a", FINE_TUNE, 92.0),
        *entries("a", long, 94.0),
        *entries("a", SCRATCH, 93.0),
        *entries("b", FINE_TUNE, 92.0),
        *entries("b", long, 92.5),
        *entries("b", SCRATCH, 93.0),
    ]
    (change,) = winner_changes(verdicts(runs))
    assert change.shown
    assert change.words == (
        "d / m / a macs 0.5: scratch-b beats fine-tune (shown) and loses to long (shown)"
    )
    (line,) = winner_line(verdicts(runs))
    assert "in 1 of 2 cells by the means, and significantly in 1 (d / m / a macs 0.5" in line
    never = winner_line(verdicts([run for run in runs if run.method == "b"]))
    assert never == [
        "Whether scratch training wins depends on the kind of retraining in 0 of 1 cell."
    ]
    assert winner_line(verdicts(entries("a", FINE_TUNE, 93.0) + entries("a", SCRATCH, 93.0))) == []
