"""Questions, references, colours and heads follow from what arms are, under whatever names."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regrow.jobs.arms import ARMS, DEFAULT_ARMS, PRUNED, Arm, Budget
from regrow.report import write
from regrow.report.answer import answer, sentence
from regrow.report.figures import STYLES, arm_styles
from regrow.report.questions import _best, reference
from regrow.report.rows import Ending, Run, summarise
from regrow.report.statistics import mean_and_std
from regrow.report.verdict import Verdict, overall, verdicts
from regrow.studies.experiment import read_experiments
from regrow.tasks.metric import ACCURACY

NAMES = [*(arm.name for arm in DEFAULT_ARMS[1:]), "scratchpad", "from-scratch", "prune-c", "x"]
POOL = (
    *DEFAULT_ARMS[1:],
    Arm(name="long", start="inherited", budget=Budget(kind="epochs", amount=80)),
    Arm(name="late", start="rewound", epoch=2, budget=Budget(kind="equal-epochs")),
    Arm(name="short", start="random", budget=Budget(kind="epochs", amount=3)),
    Arm(name="capped", start="random", budget=Budget(kind="equal-flops", cap=2.0)),
    Arm(name="other", start="redrawn", budget=Budget(kind="epochs", amount=3)),
)
KNOWN: dict[str, Any] = {"num_test": 10_000, "chance": 10.0, "ending": Ending(loss=0.01)}


def runs_of(arm: Arm, accuracies: Sequence[float], **changes: Any) -> list[Run]:
    """Make the runs of an arm, one a seed, with the arm's value as a report collects it."""
    run = Run(
        data="d",
        arm=arm.name,
        seed=0,
        start=arm.start,
        budget=arm.budget.kind,
        amount=arm.budget.amount,
        cap=arm.budget.cap,
        schedule=arm.schedule,
        status="done",
        parameters=1000,
        macs=4000,
        epochs=0 if arm.budget.kind == "none" else 4,
        **{"model": "m", "method": "l1", "sparsity": 0.5, "score": 0.0, **KNOWN, **changes},
    )
    return [replace(run, seed=s, score=a) for s, a in enumerate(accuracies)]


def whole(accuracies: Sequence[float], **changes: Any) -> list[Run]:
    return runs_of(DEFAULT_ARMS[0], accuracies, method="", sparsity=None, **changes)


def near(mean: float, rng: random.Random, *, num: int = 5, std: float = 0.2) -> list[float]:
    return [round(rng.gauss(mean, std), 2) for _ in range(num)]


def study_arms(*entries: Any) -> tuple[Arm, ...]:
    """Read arms as a study file gives them."""
    given = {"data": "digits", "models": "resnet-20", "arms": list(entries)}
    return read_experiments({**given, "methods": {"name": "l1-filter", "sparsity": 0.5}})[0].arms


def asked(*entries: Any) -> list[str]:
    """Return the questions that a study with these arms is asked, but for the best arm's."""
    rng = random.Random(0)
    pruned = [arm for arm in study_arms(*entries) if arm.name != "unpruned"]
    found = verdicts([run for arm in pruned for run in runs_of(arm, near(93, rng))])
    return [v.question.text for v in found if v.question.first is not None]


@pytest.mark.parametrize(
    ("arms", "questions"),
    [
        (
            ["unpruned", "pruned", {"name": "fine-tune-80", "like": "fine-tune"}, "scratch-e"],
            ["Is training from scratch (scratch-e) as good as fine-tuning (fine-tune-80)?"],
        ),
        (
            [{"name": "scratchpad", "like": "fine-tune"}, {"name": "x", "like": "scratch-e"}],
            ["Is training from scratch (x) as good as fine-tuning (scratchpad)?"],
        ),
        (
            ["pruned", {"name": "from-scratch", "like": "scratch-e"}],
            [
                "Is training from scratch (from-scratch) as good as keeping the inherited "
                "weights, untrained (pruned)?"
            ],
        ),
        (
            [{"name": "a", "start": "rewound", "epoch": 3}, {"name": "b", "like": "random-init"}],
            [
                "Is starting from the unpruned network's weights from early in its training (a) "
                "better than from another initialisation (b)?"
            ],
        ),
        (  # without a control of its own, a ticket is compared with an equally long random start
            [{"name": "ticket", "like": "winning-ticket"}, "scratch-b", "scratch-e"],
            [
                "Is starting from the unpruned network's initial weights (ticket) better than "
                "from another initialisation (scratch-e)?"
            ],
        ),
        (
            ["fine-tune", {"name": "fine-tune-80", "like": "fine-tune", "epochs": 80}, "scratch-b"],
            [
                "Is training from scratch (scratch-b) as good as fine-tuning (the best "
                "retraining)?",
                "Is training from scratch (scratch-b) as good as fine-tuning (fine-tune)?",
                "Is training from scratch (scratch-b) as good as fine-tuning (fine-tune-80)?",
            ],
        ),
        (["scratch-e", "scratch-b"], []),
        (["fine-tune", {"name": "scratch-0", "start": "random", "budget": "none"}], []),
        ([{"name": "scratch-0", "like": "fine-tune"}, "winning-ticket"], []),
    ],
)
def test_questions_are_those_of_the_arms_values(arms: list[Any], questions: list[str]) -> None:
    assert asked(*arms) == questions


def test_scratch_is_not_judged_by_the_untrained_network_where_another_was_trained() -> None:
    tuned = Arm(name="fine-tune-80", start="inherited", budget=Budget(kind="epochs", amount=6))
    scratch = ARMS.get("scratch-e")
    rng = random.Random(1)
    runs = [
        *whole(near(93, rng)),
        *runs_of(PRUNED, near(60, rng)),
        *runs_of(tuned, near(93, rng)),
        *runs_of(scratch, near(93, rng)),
    ]
    assert {v.against for v in verdicts(runs)} == {"fine-tune-80", "unpruned"}
    # Also where the trained arm has no results yet.
    waiting = [replace(r, status="missing") if r.arm == "fine-tune-80" else r for r in runs]
    assert {v.against for v in verdicts(waiting)} == {"fine-tune-80", "unpruned"}


def test_equal_flops_come_first_under_any_name() -> None:
    rng = random.Random(2)
    arms = [replace(ARMS.get("scratch-e"), name="scratch-b"), ARMS.get("fine-tune")]
    arms.append(replace(ARMS.get("scratch-b"), name="zz"))
    text = answer(verdicts([run for arm in arms for run in runs_of(arm, near(93, rng))]))
    assert [line.split("(")[1].split(")")[0] for line in text.splitlines()] == ["zz", "scratch-b"]


def told(runs: Sequence[Run], names: Mapping[str, str]) -> Any:
    """Return all that a report decides of arms, with their names as they were before."""

    def back(text: str | None) -> str:
        arms, bracket, how = (text or "").partition(
            " ("
        )  # of the best retraining, how it was chosen
        return " or ".join(names[part] for part in arms.split(" or ") if part) + bracket + how

    found = verdicts(runs)
    decided = [(back(v.arm), back(v.against), v.outcome, v.differences, v.p) for v in found]
    ranks = [(v.question.about, v.question.rank) for v in found]
    styles = {back(arm): style for arm, style in arm_styles(summarise(runs)).items()}
    return decided, ranks, back(reference(runs)), styles, summarise(runs)["fairness"].tolist()


def test_names_decide_nothing() -> None:
    rng = random.Random(3)
    for _ in range(60):
        arms = rng.sample(POOL, rng.randint(1, 7))
        results = {arm: near(rng.choice([12, 92, 93]), rng) for arm in arms}
        names = dict(zip((arm.name for arm in arms), rng.sample(NAMES, len(arms)), strict=True))
        plain, renamed = (
            [
                *whole(near(93, random.Random(0))),
                *(
                    r
                    for arm in arms
                    for r in runs_of(replace(arm, name=of[arm.name]), results[arm])
                ),
            ]
            for of in ({arm.name: arm.name for arm in arms}, names)
        )
        same = {name: name for name in [*names, "unpruned"]}
        before = {new: old for old, new in names.items()} | {"unpruned": "unpruned"}
        assert told(plain, same) == told(renamed, before)


def test_arms_of_one_kind_are_told_apart_by_colour() -> None:
    rows = summarise([run for arm in POOL for run in runs_of(arm, [93.0])])
    styles = arm_styles(rows)
    assert styles["fine-tune"] == STYLES["inherited", ""] != styles["long"]
    assert len(set(styles.values())) == len(POOL)


def test_the_head_names_the_arms_that_others_are_shown_against(tmp_path: Path) -> None:
    how: dict[str, Any] = {"title": "t", "command": "c", "machine": "m", "date": "d"}
    tuned = replace(ARMS.get("fine-tune"), name="tuned")
    scratch = ARMS.get("scratch-e")
    first = [*runs_of(PRUNED, [60.0]), *runs_of(tuned, [93.0]), *runs_of(scratch, [94.0])]
    other = [*runs_of(PRUNED, [91.0], model="n"), *runs_of(scratch, [94.0], model="n")]
    none = runs_of(scratch, [90.0], model="o")
    write([*first, *other, *none], tmp_path, **how, draw=False)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in ("| vs tuned |", "| vs pruned |", "| vs inherited |", "94.00 | 1 | +1.00"):
        assert text in page


# No conclusion where there is none ----------------------------------------------------------------


def cell(unpruned: float, tuned: float, scratch: float, seed: int, **changes: Any) -> list[Run]:
    rng = random.Random(seed)
    runs = [*whole(near(unpruned, rng, std=0.1), **changes)]
    for name, mean in (("fine-tune", tuned), ("scratch-b", scratch)):
        runs += runs_of(ARMS.get(name), near(mean, rng, std=0.1), **changes)
    return runs


def first_of(runs: Iterable[Run], **options: Any) -> Verdict:
    return next(v for v in verdicts(runs, **options) if v.question.about == "scratch")


def test_a_parent_at_chance_allows_no_conclusion() -> None:
    runs = [*whole([10.0] * 5), *cell(10.0, 10.0, 13.51, 0)[5:]]
    verdict = first_of(runs)
    assert (verdict.outcome, verdict.p, verdict.counts) == ("no conclusion", None, False)
    assert "no conclusion (scratch-b minus fine-tune: +3.5" in sentence(verdict)
    lines = answer(verdicts(runs)).splitlines()
    assert lines[0].startswith("No conclusion in 1 cell: the unpruned network is not above chance")
    assert "10.00 \u00b1 0.00, and always naming the most frequent class 10.00" in lines[0]
    for line in lines[1:]:
        assert "? No conclusion: 1 cell is left out: the unpruned network is not above" in line
        assert "Yes" not in line


def test_cells_without_a_conclusion_take_no_part_in_averages() -> None:
    good = [cell(93, 93, 93.5, 1), cell(93, 93, 93.6, 2, model="n")]
    bad = [
        cell(10, 10, 60, 3, model="o"),
        cell(50, 50, 70, 4, model="p", ending=Ending(loss=1.5, fall=0.1)),
    ]
    found = [verdicts([run for part in parts for run in part]) for parts in (good, good + bad)]
    few, all_ = (next(v for v in verdict if v.question.about == "scratch") for verdict in found)
    assert few.p == all_.p  # Holm counts none of them either
    text = answer(found[1])
    assert "(fine-tune)? Yes: averaged over 2 of 4 cells, scratch-b is better" in text
    assert (
        "2 of 4 cells are left out: the unpruned network is not above chance in 1 and the unpruned "
        "network had not converged in 1." in text
    )
    assert "undecided" not in text.splitlines()[2]
    assert "no conclusion in 2" in text
    assert text.startswith("No conclusion in 1 of 4 cells: the unpruned network is not above")
    averages = [
        next(line for line in answer(v).splitlines() if "fine-tuning" in line).split(
            "scratch-b is"
        )[1][:70]
        for v in found
    ]
    assert averages[0] == averages[1]


def test_a_parent_that_a_cut_network_outgrows_is_found_in_the_runs() -> None:
    runs = cell(44, 44, 52, 5, ending=Ending(loss=1.5))
    runs = [replace(r, ending=Ending(loss=1.2)) if r.arm == "scratch-b" else r for r in runs]
    assert first_of(runs).outcome == "no conclusion"
    assert "had not converged" in answer(verdicts(runs)).splitlines()[0]


def test_a_study_without_unpruned_networks_knows_them_by_its_runs() -> None:
    runs = [replace(r, parent_score=10.0) for r in cell(10, 12, 14, 6) if not r.unpruned]
    assert first_of(runs).outcome == "no conclusion"


def test_given_weights_are_one_measurement_however_many_seeds_are_trained() -> None:
    runs = [
        replace(run, num_test=50, job="given", score=16.0)  # as likely as not by guessing
        if run.unpruned
        else replace(run, num_test=50, base="given", parent_score=16.0)
        for run in cell(16, 50, 55, 5)
    ]
    assert first_of(runs).outcome == "no conclusion"
    assert first_of([run for run in runs if not run.unpruned]).outcome == "no conclusion"


def test_an_arm_that_pruning_broke_is_a_result_that_is_marked() -> None:
    runs = cell(93, 10, 92, 7)
    verdict = first_of(runs)
    assert verdict.outcome == "better"
    assert "But one of the two arms is not above chance" in sentence(verdict)
    assert answer(verdicts(runs)).startswith("Caution in 1 cell: one of the two arms")


def test_the_same_in_every_seed_is_equivalent_however_many_cells() -> None:
    runs = []
    for model in "abcdefgh":
        for name in ("fine-tune", "scratch-b"):
            runs += runs_of(ARMS.get(name), [93.0, 93.5, 92.5], model=model)
    assert {v.outcome for v in verdicts(runs)} == {"equivalent"}
    assert "the same in every seed (n = 3 seeds)" in sentence(verdicts(runs)[0])
    one = first_of(runs_of(ARMS.get("fine-tune"), [93.0]) + runs_of(ARMS.get("scratch-b"), [93.0]))
    assert one.outcome == "undecided"
    coarse = first_of([replace(run, num_test=10) for run in runs])  # one example is 10 points
    assert coarse.outcome == "undecided"
    assert "equivalence cannot be shown" in sentence(coarse)
    unsized = first_of([replace(run, num_test=None) for run in runs])
    assert unsized.outcome == "undecided"
    assert "same score in every seed (n = 3 seeds), but the number of test images" in sentence(
        unsized
    )


def test_equal_scores_on_few_examples_may_be_an_accident() -> None:
    runs = [
        run
        for model, num_test in (("few", 900), ("many", 1000))  # 2.7 and 3 examples a margin
        for name in ("fine-tune", "scratch-b")
        for run in runs_of(ARMS.get(name), [93.0, 93.5, 92.5], model=model, num_test=num_test)
    ]
    few, many = verdicts(runs)
    assert (few.outcome, many.outcome) == ("undecided", "equivalent")
    assert "margin is worth fewer than 3 of 900 test images" in sentence(few)
    for order in ((few, many), (many, few)):
        mean = overall(order)
        assert mean is not None
        assert mean.outcome == "undecided"


@pytest.mark.parametrize(("seeds", "outcome"), [(2, "undecided"), (5, "undecided"), (6, "better")])
def test_the_same_difference_in_every_seed_is_no_independent_evidence(
    seeds: int, outcome: str
) -> None:
    runs = [
        *runs_of(ARMS.get("fine-tune"), [93.0 + 0.25 * s for s in range(seeds)]),
        *runs_of(ARMS.get("scratch-b"), [94.0 + 0.25 * s for s in range(seeds)]),
    ]
    verdict = first_of(runs)
    assert verdict.outcome == outcome
    assert "the training ignores its seed" in sentence(verdict)
    if outcome == "undecided":
        assert f"exactly +1.00 points in every seed (n = {seeds} seeds)" in sentence(verdict)
        assert "from 6 seeds on (exact sign test)" in sentence(verdict)


def test_a_margin_below_one_image_shows_no_equivalence() -> None:
    accuracies = [95.0, 95.01, 94.99, 95.0, 95.0]
    for num_test, outcome in ((1000, "equivalent"), (300, "undecided")):
        runs = [
            *runs_of(ARMS.get("fine-tune"), [95.0] * 5, num_test=num_test),
            *runs_of(ARMS.get("scratch-b"), accuracies, num_test=num_test),
        ]
        assert first_of(runs).outcome == outcome
    assert "equivalence cannot be shown, because one test image" in sentence(first_of(runs))


def test_what_cannot_be_known_is_said() -> None:
    runs = cell(93, 93, 94, 8, chance=None)
    assert answer(verdicts(runs)).startswith(
        "Caution in 1 cell: it is not known whether the networks are above chance"
    )


@pytest.mark.parametrize("num_cells", [1, 4])
@pytest.mark.parametrize("mean", [10.0, 93.0])
def test_noise_alone_hardly_ever_gives_a_difference(num_cells: int, mean: float) -> None:
    rng = random.Random(9)
    arms = [arm for arm in DEFAULT_ARMS[1:] if arm != PRUNED]
    wrong: dict[str, int] = {}
    for _ in range(num := 150):
        runs = []
        for model in map(str, range(num_cells)):
            runs += whole(near(mean, rng), model=model)
            runs += [r for arm in arms for r in runs_of(arm, near(mean, rng), model=model)]
        for line in answer(verdicts(runs)).splitlines():
            question, _, rest = line.partition("?")
            wrong[question] = wrong.get(question, 0) + (" is better than" in rest)
    assert len(wrong) >= 4
    if mean == 10.0:
        assert sum(wrong.values()) == 0
    # 2.5 % are expected; the probability of more than 11 of 150 is below 0.1 %.
    assert max(wrong.values()) <= 0.025 * num + 7


def plainly_best(arms: Sequence[Sequence[Run]]) -> list[Run]:
    """Choose the best arm for each seed as it is defined, anew for each seed."""

    def gain(scores: Sequence[float]) -> float:
        return ACCURACY.gain(mean_and_std(scores)[0]) if scores else float("-inf")

    chosen = []
    for seed in dict.fromkeys(run.seed for runs in arms for run in runs):
        candidates = [(run, runs) for runs in arms for run in runs if run.seed == seed]
        others = [
            [r.score for r in runs if r.done and r.seed != seed and r.score is not None]
            for _, runs in candidates
        ]
        if not any(others):
            others = [[run.score] if run.score is not None else [] for run, _ in candidates]
        gains = [gain(scores) for scores in others]
        chosen.append(candidates[gains.index(max(gains))][0])
    return chosen


def test_the_best_arm_of_each_seed_is_what_its_definition_says() -> None:
    rng = random.Random(5)
    for _ in range(300):
        arms = []
        for arm in rng.sample(POOL, rng.randint(1, 3)):
            scores = [rng.choice([90.0, 91.0, 90.0 + rng.random()]) for _ in range(4)]
            runs = [r for r in runs_of(arm, scores) if rng.random() < 0.9]
            undone: dict[str, Any] = {"status": "missing", "score": None}
            arms.append([replace(r, **undone) if rng.random() < 0.2 else r for r in runs])
        assert _best(arms) == plainly_best(arms)


def test_what_happens_to_be_done_of_a_seed_is_not_its_best_arm() -> None:
    good, bad = (
        runs_of(arm, scores) for arm, scores in zip(POOL[:2], ([90.0] * 3, [20.0] * 3), strict=True)
    )
    good[2] = replace(good[2], status="missing", score=None)
    assert _best([bad, good]) == good


def test_choosing_the_best_arm_of_each_seed_takes_one_look_at_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def noting(values: Sequence[float]) -> tuple[float, float | None]:
        seen.append(len(values))
        return mean_and_std(values)

    monkeypatch.setattr("regrow.report.questions.mean_and_std", noting)
    monkeypatch.setattr("regrow.report.statistics.mean_and_std", noting)
    _best([runs_of(arm, near(90, random.Random(1), num=500)) for arm in POOL[:2]])
    assert sum(seen) <= 2 * 500
