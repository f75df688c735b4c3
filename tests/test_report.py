import itertools
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from liu import cells, lay_out
from regrow.errors import ConfigError
from regrow.jobs.arms import BudgetKind, Start
from regrow.report import Extra, Failure, Report, write
from regrow.report.answer import answer, sentence
from regrow.report.figures import _pages, score_figure, score_panels
from regrow.report.panels import places
from regrow.report.render import failure_lines
from regrow.report.rows import ROW_COLUMNS, Run, fairness, summarise, to_csv
from regrow.report.verdict import Verdict, verdicts
from regrow.reproduce import layout
from regrow.tasks.metric import ACCURACY

HOW: dict[str, Any] = {
    "title": "a study",
    "command": "regrow run s.yaml",
    "machine": "2 cores",
    "date": "2025-01-01",
}
ARMS: dict[str, tuple[Start, BudgetKind]] = {
    "unpruned": ("initial", "equal-epochs"),
    "pruned": ("inherited", "none"),
    "fine-tune": ("inherited", "share"),
    "scratch-e": ("random", "equal-epochs"),
    "scratch-b": ("random", "equal-flops"),
    "winning-ticket": ("initial", "equal-epochs"),
    "random-init": ("redrawn", "equal-epochs"),
    "prune-c": ("inherited", "share"),
}
BASE = [97.0, 97.4, 97.2, 97.5, 97.1]
NOISE = [0.02, -0.03, 0.01, 0.04, -0.02]


def make_arm(arm: str, accuracies: Sequence[float | None], **changes: Any) -> list[Run]:
    """Make one run a seed; None is a run that is missing."""
    start, budget = ARMS[arm]
    run = Run(
        data="digits",
        model="vgg",
        method="" if arm == "unpruned" else "l1-filter",
        sparsity=None if arm == "unpruned" else 0.5,
        arm=arm,
        seed=0,
        start=start,
        budget=budget,
        base_epochs=12,
    )
    run = replace(run, **changes, group="")
    sizes: dict[str, Any] = {"parameters": 1000, "macs": 4000} if arm != "unpruned" else {}
    done: dict[str, Any] = {
        "parameters": 4000,
        "macs": 20000,
        "epochs": 12,
        "training_flops": 1e9,
        **sizes,
    }
    return [
        replace(run, seed=seed)
        if accuracy is None
        else replace(run, seed=seed, status="done", score=accuracy, **done)
        for seed, accuracy in enumerate(accuracies)
    ]


def shifted(by: float, noise: float = 1.0) -> list[float]:
    return [b + by + noise * e for b, e in zip(BASE, NOISE, strict=True)]


def study(scratch: Sequence[float | None] = ()) -> list[Run]:
    return [
        *make_arm("unpruned", BASE),
        *make_arm("pruned", [60.0] * 5),
        *make_arm("fine-tune", BASE),
        *make_arm("scratch-b", scratch or shifted(0.1)),
    ]


def verdict_of(scratch: Sequence[float | None], *, margin: float = 0.3) -> Verdict:
    found = verdicts(study(scratch), margin=margin)
    return next(v for v in found if v.arm == "scratch-b" and v.against == "fine-tune")


def report(runs: Sequence[Run], folder: Path, **options: Any) -> Report:
    return write(runs, folder, **HOW, **options)


def test_rows_hold_mean_std_n_and_kept_shares() -> None:
    row = summarise(study([97.0, 98.0, 99.0, None, None])).iloc[-1]
    assert (row["mean"], row["std"], row["n"], row["n_expected"]) == (98.0, 1.0, 3, 5)
    assert (row["parameters_kept"], row["macs_kept"]) == (0.25, 0.2)
    assert row["n_missing"] == 2


def test_one_seed_has_no_std_and_no_seed_no_figures() -> None:
    frame = summarise([*make_arm("fine-tune", [97.0]), *make_arm("scratch-b", [None])])
    assert pd.isna(frame["std"]).all()
    assert frame["n"].tolist() == [1, 0]
    assert pd.isna(frame["mean"].iloc[1])
    assert pd.isna(frame["parameters_kept"]).all()


def test_rows_keep_the_order_of_first_appearance() -> None:
    frame = summarise(study())
    assert frame["arm"].tolist() == ["unpruned", "pruned", "fine-tune", "scratch-b"]


def test_unpruned_of_the_same_method_comes_first() -> None:
    plain = make_arm("unpruned", BASE)
    sparse = [replace(r, method="slimming", group="", parameters=2000) for r in plain]
    tuned = make_arm("fine-tune", BASE, method="slimming")
    frame = summarise([*plain, *sparse, *tuned])
    assert frame["parameters_kept"].iloc[-1] == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "none", "start": "inherited"}, "no training after pruning"),
        ({"budget": "share", "start": "inherited"}, "12 epochs after the unpruned network's 12"),
        ({"budget": "equal-epochs", "start": "random"}, "equal epochs"),
        ({"budget": "equal-flops", "start": "random"}, "equal FLOPs"),
        (
            {"budget": "equal-flops", "cap": 3.0, "capped": True},
            "equal FLOPs, capped at 3x",
        ),
        (
            {"budget": "equal-flops", "parent_counted": True},
            "equal FLOPs, the unpruned network's training counted",
        ),
        (
            {"budget": "equal-epochs", "start": "inherited", "entered": 5},
            "12 epochs after the unpruned network's 12, entering the schedule at epoch 5",
        ),
        (
            {"budget": "equal-flops", "start": "rewound", "entered": 5},
            "12 epochs after the unpruned network's 12, entering the schedule at epoch 5",
        ),
        (
            {"budget": "share", "start": "inherited", "pruning_epochs": 4},
            "12 epochs after the unpruned network's 12 and 4 while pruning",
        ),
        (
            {"budget": "equal-flops", "start": "random", "recipe_epochs": 2},
            "the FLOPs of the recipe's 2 epochs",
        ),
        (
            {"budget": "equal-epochs", "start": "random", "treatment": "rigl"},
            "equal epochs, with the treatment of rigl",
        ),
        (
            {"budget": "equal-epochs", "treatment": "agp at strength 2", "masked_at_end": 0.9},
            "equal epochs, with the treatment of agp at strength 2, "
            "0.9 of the weights masked at the end",
        ),
    ],
)
def test_fairness_is_worded_from_the_specs(changes: dict[str, object], words: str) -> None:
    assert fairness(make_arm("scratch-b", BASE, **changes)) == words


def test_better_and_worse_name_difference_interval_n_and_p() -> None:
    better, worse = verdict_of(shifted(0.8)), verdict_of(shifted(-0.8))
    assert (better.outcome, worse.outcome) == ("better", "worse")
    pattern = r"scratch-b is better than fine-tune by 0\.80 points \(95% interval .*n = 5 seeds, p"
    assert re.search(pattern, sentence(better))
    # The interval is that of how much better or worse, so it lies around the same number.
    for found in (better, worse):
        match = re.search(r"by (\S+) points \(95% interval (\S+) to (\S+),", sentence(found))
        assert match is not None
        size, low, high = map(float, match.groups())
        assert 0 < low < size < high


def test_equivalent_needs_the_margin() -> None:
    assert verdict_of(shifted(0.0)).outcome == "equivalent"
    assert "within 0.3 points" in sentence(verdict_of(shifted(0.0)))
    assert verdict_of(shifted(0.0), margin=0.01).outcome == "undecided"


def test_equivalent_does_not_hide_a_significant_small_difference() -> None:
    verdict = verdict_of(shifted(0.1))
    assert verdict.outcome == "equivalent"
    assert "The small difference is significant" in sentence(verdict)


def test_undecided_says_how_many_seeds_would_settle_it() -> None:
    verdict = verdict_of(shifted(0.2, noise=15))
    assert verdict.outcome == "undecided"
    assert verdict.needed is not None
    assert verdict.needed > 5
    assert f"about {verdict.needed} seeds would likely settle it" in sentence(verdict)
    assert "neither a difference nor equivalence" in sentence(verdict)


def test_one_seed_is_undecided_without_a_test() -> None:
    verdict = verdict_of([98.0, None, None, None, None])
    assert (verdict.outcome, verdict.n) == ("undecided", 1)
    assert "n = 1 of 5 seeds" in sentence(verdict)
    assert "one seed allows no test" in sentence(verdict)


def test_only_seeds_of_both_arms_are_compared() -> None:
    scratch = [None, *shifted(0.8)[1:]]
    verdict = verdict_of(scratch)
    assert [seed for seed, _ in verdict.differences] == [1, 2, 3, 4]
    assert "n = 4 of 5 seeds" in sentence(verdict)


def test_p_values_are_corrected_over_the_cells() -> None:
    one = verdict_of(shifted(0.3, noise=4))
    other = [replace(run, sparsity=0.8, group="") for run in study(shifted(0.3, noise=4))[5:]]
    found = verdicts([*study(shifted(0.3, noise=4)), *other])
    family = [v for v in found if v.question == one.question]
    assert one.p is not None
    assert [v.p for v in family] == pytest.approx([2 * one.p] * 2)


def test_pruned_is_the_reference_where_nothing_is_fine_tuned() -> None:
    runs = [*make_arm("pruned", BASE), *make_arm("scratch-b", shifted(0.8))]
    assert [(v.against, v.outcome) for v in verdicts(runs)] == [("pruned", "better")]


def test_winning_ticket_is_compared_with_random_init() -> None:
    runs = [*make_arm("winning-ticket", shifted(0.0)), *make_arm("random-init", BASE)]
    (verdict,) = verdicts(runs)
    assert (verdict.arm, verdict.against, verdict.outcome) == (
        "winning-ticket",
        "random-init",
        "equivalent",
    )


def test_best_arm_is_chosen_by_the_other_seeds() -> None:
    verdict = next(v for v in verdicts(study()) if v.against == "unpruned")
    assert verdict.arm == "scratch-b"
    assert "the best arm (scratch-b, chosen by the other seeds)" in sentence(verdict)
    # Each arm has one lucky seed, which makes it the best on that seed alone.
    lucky = [*make_arm("fine-tune", [99.0, 97.0, 97.1]), *make_arm("scratch-b", [97.0, 99.0, 97.0])]
    found = verdicts([*make_arm("unpruned", [97.0] * 3), *lucky])
    verdict = next(v for v in found if v.against == "unpruned")
    assert dict(verdict.differences) == pytest.approx({0: 0.0, 1: 0.0, 2: 0.1})
    assert verdict.arm == "scratch-b or fine-tune"


def test_best_arm_of_one_seed_is_said_to_be_chosen_on_it() -> None:
    found = verdicts([*make_arm("unpruned", [97.0]), *make_arm("scratch-b", [98.0])])
    assert "the best arm (scratch-b, chosen on this number) minus" in sentence(found[0])


def test_answer_averages_cells_seed_by_seed() -> None:
    up, down = shifted(0.5, noise=30), shifted(0.5, noise=-25)
    other = [replace(run, sparsity=0.8, group="") for run in study(down)[5:]]
    text = answer(verdicts([*study(up), *other]))
    # The noise of the two cells nearly cancels within each seed, so only the average is sure.
    assert "Yes: averaged over 2 cells, scratch-b is better than fine-tune by 0.51 points" in text
    assert "undecided in 2" in text


def test_answer_says_when_some_cells_are_worse() -> None:
    bad = [replace(run, sparsity=0.8, group="") for run in study(shifted(-0.5))[5:]]
    text = answer(verdicts([*study(shifted(2.0)), *bad]))
    assert "On average yes, but worse in 1 of 2 cells" in text


def test_answer_never_calls_the_undecided_equal() -> None:
    text = answer(verdicts(study(shifted(0.0, noise=30))))
    assert "training from scratch (scratch-b) as good as fine-tuning (fine-tune)? Undecided" in text
    assert "equal to" not in text


def test_report_writes_every_file_it_names(tmp_path: Path) -> None:
    made = report(study(), tmp_path / "a folder" / "named 'so'")
    names = {path.name for path in made.paths}
    assert {"report.md", "table.tex", "rows.csv", "rows.parquet", "runs.csv"} <= names
    assert {"accuracy-macs.png", "accuracy-macs.svg", "accuracy-parameters.png"} <= names
    assert all(path.stat().st_size > 0 for path in made.paths)
    page = (made.paths[0].parent / "report.md").read_text(encoding="utf-8")
    for text in ("regrow run s.yaml", "2 cores", "2025-01-01", "accuracy-macs.png", "0.3 points"):
        assert text in page


def test_what_holds_the_results_is_the_same_bytes_on_another_day(tmp_path: Path) -> None:
    first = report(study(), tmp_path / "1")
    other: dict[str, Any] = {**HOW, "date": "2026-02-02", "machine": "64 cores"}
    second = write(study(), tmp_path / "2", **other)
    for one, two in zip(first.paths, second.paths, strict=True):
        differ = one.name in ("report.md", "how.json")
        assert (one.read_bytes() != two.read_bytes()) == differ, one.name


def large_study(*models: str) -> pd.DataFrame:
    """Five methods with long names, four sizes, seven arms and an unpruned network a model."""
    methods = ("l1-filter", "sparse-structure-selection", "network-slimming", "thinet", "soft")
    runs = []
    for model in models:
        runs += make_arm("unpruned", [98.0, 98.2], model=model)
        for method, sparsity in itertools.product(methods, (0.1, 0.3, 0.5, 0.9)):
            for i, arm in enumerate(list(ARMS)[1:]):
                # Two arms fall far below the others.
                level = 98 - sparsity + 0.1 * i - (30 if arm in ("pruned", "scratch-e") else 0)
                epochs = 0 if arm in ("pruned", "scratch-e") else 12
                made = make_arm(arm, [level, level + 0.2])
                size = int(1e6 * (1 - sparsity))
                own: dict[str, Any] = {
                    "model": model,
                    "method": method,
                    "sparsity": sparsity,
                    "group": "",
                }
                runs += [replace(r, **own, macs=size, epochs=epochs) for r in made]
    return summarise(runs)


def test_a_figure_of_many_methods_and_arms_has_room_for_each() -> None:
    study = large_study("a-network")
    figure: Any = score_figure(study)
    figure.draw_without_rendering()
    assert figure.get_figwidth() < 10.0
    rows = score_panels(study, against="macs", metric=ACCURACY)
    assert [len(row) for row in rows] == [3, 2]
    placed = places(rows, width=9.6, height=float(figure.get_figheight()), foot=0.5)
    assert min(min(one.width, one.height) for one in placed) > 1.5
    for one in placed:
        assert len(one.panel.marks) == 8
        foot = max(one.bottom + one.height * mark.height for mark in one.panel.marks)
        lows = [
            one.up(value - below)
            for line in one.panel.lines
            for value, below in zip(line.values, line.below, strict=True)
        ]
        assert min(lows) > foot + 0.2  # the text of a mark is below
    looks = {
        (handle.get_color(), handle.get_marker()) for handle in figure.legends[0].legend_handles
    }
    assert len(looks) == 8


def test_a_panel_names_the_amount_where_its_method_has_one_alone() -> None:
    study = large_study("net")
    panels = itertools.chain(*score_panels(study, against="macs", metric=ACCURACY))
    several = {panel.title.splitlines()[-1] for panel in panels}
    assert several == {*study["method"]} - {""}
    named = study[study["sparsity"].isna()], study[study["method"] != ""].iloc[:1]
    one = pd.concat([named[0], named[1].assign(method="cut", target="small", sparsity=None)])
    ((panel,),) = score_panels(one, against="macs", metric=ACCURACY)
    assert panel.title.splitlines()[-1] == "cut small"


@pytest.mark.parametrize("size", [1e3, 1e6, 3.14e9])
def test_no_text_of_a_figure_hides_another_or_leaves_it(size: float) -> None:
    study = large_study("a-network")
    study["macs"] = study["macs"] * size / 1e6
    figure: Any = score_figure(study)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes.append(figure.legends[0].get_window_extent())
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, box
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, box
    for one, other in itertools.combinations(boxes, 2):
        assert one.padded(-0.5).count_overlaps([other.padded(-0.5)]) == 0


def test_arms_of_one_size_stand_before_those_of_the_next() -> None:
    ((panel, *_), *_) = score_panels(large_study("a-network"), against="macs", metric=ACCURACY)
    places_of_arms = [line.at for line in panel.lines]
    for smaller, larger in itertools.pairwise(zip(*places_of_arms, strict=True)):
        assert max(smaller) < min(larger)


def test_a_study_of_many_networks_gets_a_picture_for_each() -> None:
    pages = _pages(large_study("a", "b", "c"))
    assert [suffix for suffix, _, _ in pages] == ["-1", "-2", "-3"]
    assert len(_pages(large_study("a", "b"))) == 1


def test_a_study_of_detectors_is_worded_by_its_own_metric(tmp_path: Path) -> None:
    what = "the classifier"
    runs = [
        *make_arm("unpruned", BASE),
        *make_arm("prune-c", BASE, stamp="7 epochs; classifier: 4 epochs", subject=what),
        *make_arm("scratch-b", shifted(0.1), subject=what),
    ]
    about = "mAP is what it is"
    changes: dict[str, Any] = {
        "key": "map",
        "name": "mAP",
        "axis": "mAP (%)",
        "about": about,
        "counted": False,
    }
    runs = [replace(run, metric=replace(ACCURACY, **changes)) for run in runs]
    extra = Extra(
        name="detections",
        title="By class",
        columns=("arm", "AP a_b"),
        rows=(("prune-c", "50.00"),),
        about="In percent.",
        csv="arm,AP\n",
    )
    made = report(runs, tmp_path, extras=[extra])
    names = {path.name for path in made.paths}
    assert {"map-macs.png", "detections.csv"} <= names
    assert "accuracy-macs.png" not in names
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (
        "| mAP % | n | vs prune-c |",
        "mAP is what it is: mean",
        "| arm | AP a\\_b |\n|---|---:|\n| prune-c | 50.00 |\n\nIn percent.",
        "7 epochs; classifier: 4 epochs |",
        "Is training the classifier from scratch (scratch-b) as good as fine-tuning the classifier "
        "(prune-c)? Yes",
    ):
        assert text in page
    assert "ccuracy" not in page
    assert "By class" in made.text
    assert r"mAP in \%" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert (tmp_path / "detections.csv").read_text(encoding="utf-8") == extra.csv


def test_csv_has_a_fixed_number_of_digits() -> None:
    lines = to_csv(summarise(study()), ROW_COLUMNS).splitlines()
    header, last = lines[0].split(","), lines[-1].split(",")
    row = dict(zip(header, last, strict=True))
    assert (row["mean"], row["training_flops"], row["sparsity"]) == (
        "97.3440",
        "1.000000e+09",
        "0.5",
    )


def test_parquet_holds_the_rows(tmp_path: Path) -> None:
    made = report(study(), tmp_path, draw=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), made.frame)


def test_missing_and_failed_seeds_are_counted_in_words(tmp_path: Path) -> None:
    runs = study([*shifted(0.8)[:4], None])
    runs[-1] = replace(runs[-1], status="failed")
    failure = Failure(label="scratch-b seed 4", message="The loss is nan at\nepoch 3, step 10.")
    made = report(runs, tmp_path, failures=[failure], draw=False)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (made.text, page):
        assert "4 of 5" in text
        assert "The loss is nan at epoch 3, step 10." in text
        assert "1 failed" in text


def test_a_study_that_has_not_run_says_so(tmp_path: Path) -> None:
    runs = [*make_arm("fine-tune", [None] * 2), *make_arm("scratch-b", [None] * 2)]
    made = report(runs, tmp_path)
    assert made.text.count("not run") >= 2
    assert made.answer.startswith("Not run")
    assert not list(tmp_path.glob("*.png"))


def test_a_study_without_rows_still_has_a_report(tmp_path: Path) -> None:
    made = report([], tmp_path)
    assert "no two arms to compare" in made.answer
    assert "no rows" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert len(pd.read_parquet(tmp_path / "rows.parquet")) == 0


def test_limits_name_caps_guards_and_single_seeds(tmp_path: Path) -> None:
    runs = make_arm("scratch-b", [97.0], cap=3.0, capped=True, emptied=1)
    text = report(runs, tmp_path, notes=["2,000 images only."], draw=False).text
    for part in ("capped at 3x", "would have removed", "One seed", "2,000 images only."):
        assert part in text


def test_unwritable_folder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"Cannot write the report to '.*file'.*Name a folder"):
        report(study(), tmp_path / "file")


def test_latex_is_escaped_and_balanced(tmp_path: Path) -> None:
    runs = [replace(run, data="my_data & 50%", group="") for run in study()]
    runs += [replace(run, model="[a]|b<c>", group="") for run in study()]
    report(runs, tmp_path, draw=False)
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    begun = re.findall(r"\\begin\{(\w+\*?)\}", text)
    assert re.findall(r"\\end\{(\w+\*?)\}", text) == begun == ["longtable"] * 2
    assert r"\usepackage{booktabs,longtable}" in text
    assert re.findall(r"\\label\{(.*?)\}", text) == ["tab:a-study-1", "tab:a-study-2"]
    assert r"my\_data \& 50\%" in text
    assert r"{[}a{]}\textbar{}b\textless{}c\textgreater{}" in text
    code = re.sub(r"\\.|%.*", "", text)
    assert code.count("{") == code.count("}")
    lines = (line.removesuffix("*") for line in text.splitlines())
    rows = [x for x in lines if x.endswith(r"\\") and not x.startswith((r"\m", r"\c"))]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}


def test_latex_fits_the_width_of_an_article(tmp_path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    runs = [replace(r, macs=r.macs and 123_000_000, group="") for r in study()]
    runs += make_arm("winning-ticket", shifted(0.1))
    report(runs, tmp_path, draw=False)
    text = (tmp_path / "table.tex").read_text(encoding="utf-8")
    font = FontProperties(fname=str(mpl.get_data_path()) + "/fonts/ttf/cmr10.ttf", size=7)
    widths = [0.0] * 8
    for line in text.splitlines():
        cells = line.removesuffix("*").removesuffix(r" \\").split(" & ")
        if len(cells) == 8:
            plain = [re.sub(r"\$(\\pm|-)\$", "+", cell).replace("\\", "") for cell in cells]
            found = [TextPath((0, 0), c, prop=font).get_extents().width if c else 0 for c in plain]
            widths = list(map(max, widths, found))
    assert 200 < sum(widths) + 8 * 2 * 3 < 345  # points: \scriptsize of an article of 10 points


def hostile_study() -> list[Run]:
    """Make five methods at three sparsities, names with all that LaTeX reads as markup."""
    text = "my_data & 50% #1 {x} $y$ ~ ^ \\z [a] *b* <c>|d \u4e2d\u6587 caf\u00e9 \u017b \u2264"
    runs = make_arm("unpruned", BASE, data=text)
    for number, sparsity in itertools.product(range(5), (0.3, 0.6, 0.875)):
        method = f"method {number} of {text}, whose name goes on for longer than a line does"
        for arm in ARMS.keys() - {"unpruned"}:
            runs += make_arm(arm, shifted(number - 2), data=text, method=method, sparsity=sparsity)
        alike = make_arm("scratch-b", BASE, data=text, method=method, sparsity=sparsity)
        runs += [replace(run, arm="scratch-b-for-160-epochs-of-all-images") for run in alike]
    return [replace(run, macs=run.macs and 123_456_789) for run in runs]


LATEX = shutil.which("pdflatex")


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
def test_tables_compile_in_a_plain_article_and_fit_its_page(tmp_path: Path) -> None:
    report(hostile_study(), tmp_path, draw=False)
    for table in (2, 6):
        (tmp_path / f"{table}.tex").write_text(layout.latex(lay_out(table, cells(table))), "utf-8")
    page = r"""\documentclass{article}
    \usepackage{booktabs,longtable}
    \begin{document}\input{table.tex}\input{2.tex}\input{6.tex}\end{document}"""
    (tmp_path / "page.tex").write_text(page)
    assert LATEX is not None
    for _ in range(2):  # the second time with the columns' widths
        call = [LATEX, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
        done = subprocess.run(call, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    said = (tmp_path / "page.log").read_text(encoding="utf-8", errors="replace")
    if "booktabs.sty' not found" in said or "longtable.sty' not found" in said:
        pytest.skip("booktabs and longtable are not installed")
    assert done.returncode == 0, said[-2000:]
    assert "Overfull" not in said


def test_markdown_is_escaped(tmp_path: Path) -> None:
    runs = [replace(run, model="a|b_<c>*", group="") for run in study()]
    report(runs, tmp_path, draw=False)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"a\|b\_&lt;c&gt;\*" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {11}


def test_ten_thousand_runs_become_two_thousand_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    runs = [
        replace(run, data=f"data-{d}", sparsity=s / 100, group="")
        for d in range(20)
        for s in range(1, 26)
        for arm in ("pruned", "fine-tune", "scratch-e", "scratch-b")
        for run in make_arm(arm, [rng.gauss(97, 0.3) for _ in range(5)])
    ]
    made = report(runs, tmp_path, draw=False)
    assert len(runs) == 10_000
    assert len(made.frame) == 2000
    assert len(made.verdicts) == 1000  # scratch-e and scratch-b in each of 500 cells


def test_what_follows_a_failure_begins_a_sentence() -> None:
    alike = [Failure(label=label, message="RuntimeError: no luck") for label in "ab"]
    assert failure_lines(alike) == ["a: RuntimeError: no luck. The same failure: b."]
