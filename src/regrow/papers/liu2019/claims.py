"""The 33 claims of the paper: what each states, and the parts that must hold for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from regrow.papers.liu2019 import patterns
from regrow.reproduce.contrasts import MARGIN, Contrast
from regrow.reproduce.curves import CurveContrast
from regrow.reproduce.rules import (
    AT_LEAST,
    AT_LEAST_EACH,
    BETTER,
    BETTER_EACH,
    ON_AVERAGE,
    ON_PAR,
    SELDOM_DOWN,
    SOMETIMES,
    WITHIN_SPREAD,
    Ask,
    Claim,
    ClaimEvidence,
    Judgement,
    Rule,
    every,
    most,
    untestable,
)

FT, SE, SB = "fine-tuned", "scratch-e", "scratch-b"
FT_40, FT_80, FT_160 = "fine-tune-40", "fine-tune-80", "fine-tune-160"
TICKET, RANDOM = "winning-ticket", "random-init"
TICKET_01, TICKET_001 = "winning ticket, rate 0.1", "winning ticket, rate 0.01"  # of Figure 7
RANDOM_01, RANDOM_001 = "random, rate 0.1", "random, rate 0.01"
TUNED = ("fine-tuned", "pruned", "prune-c")  # a method's result: SSS and SFP do not fine-tune
STRUCTURED = (1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 17)
BOTH_SCRATCH = (1, 4, 6, 10, 11, 13, 17)
SLIMMING, UNSTRUCTURED = "Network Slimming", "Unstructured pruning"  # panels of Figures 3 and 6
CIFAR = {"dataset": ("CIFAR-10", "CIFAR-100")}
IMAGENET = {"dataset": ("ImageNet",)}
UP_TO_80 = {**CIFAR, "target": ("30%", "50%", "80%")}
AT_95 = {**CIFAR, "target": ("95%",)}
NOT_TINY = {"target": ("VGG-Conv", "VGG-GAP", "ResNet50-30%", "ResNet50-50%", "ResNet50-70%")}
PART_A, PART_B = {"part": ("a",)}, {"part": ("b",)}  # initial rates 0.1 and 0.01
SECTIONS = {
    "Structured pruning, predefined targets": range(1, 8),
    "Structured pruning, automatic targets": range(8, 12),
    "Unstructured pruning": range(12, 18),
    "Pruning as architecture search": range(18, 23),
    "Lottery ticket": range(23, 28),
    "Further checks": range(28, 34),
}
Where = Mapping[str, tuple[str, ...]]
Judge = Callable[[ClaimEvidence], Judgement]


def _of(
    first: str, second: str | Sequence[str], tables: int | tuple[int, ...], *, where: Where
) -> Contrast:
    return Contrast(
        first=first,
        second=(second,) if isinstance(second, str) else tuple(second),
        tables=(tables,) if isinstance(tables, int) else tables,
        where=where,
    )


def _up(
    first: str,
    second: str | Sequence[str],
    tables: int | tuple[int, ...],
    *,
    rules: tuple[Rule, ...] = (),
    where: Where | None = None,
) -> Ask:
    """Judge ``first`` minus ``second``; without rules it is only reported."""
    return Ask(contrast=_of(first, second, tables, where=where or {}), rules=rules)


def _down(
    first: str,
    second: str | Sequence[str],
    tables: int | tuple[int, ...],
    *,
    rules: tuple[Rule, ...],
    where: Where | None = None,
) -> Ask:
    """Judge the negative of that difference: ``every`` then requires every row to be below."""
    return Ask(contrast=_of(first, second, tables, where=where or {}), rules=rules, against=True)


def _curves(
    first: str,
    second: str,
    figure: int,
    *,
    rules: tuple[Rule, ...],
    panels: str = "",
    against: bool = False,
) -> Ask:
    """Judge one curve against another at equal parameters."""
    contrast = CurveContrast(figure=figure, first=first, second=second, panels=panels)
    return Ask(contrast=contrast, rules=rules, against=against)


def _iterative(first: str, second: str, *, rules: tuple[Rule, ...], against: bool = False) -> Ask:
    """Judge one series of Figure 7a against another, round by round."""
    contrast = CurveContrast(
        figure=7, first=first, second=second, panels="(a) iterative", at="shares pruned"
    )
    return Ask(contrast=contrast, rules=rules, against=against)


def _needs(evidence_needed: str) -> tuple[Judge]:
    """Return the part of a claim that no printed number can decide."""

    def judge(evidence: ClaimEvidence) -> Judgement:
        del evidence
        reason = f"not testable on the printed numbers; needed: {evidence_needed}"
        return untestable("Beyond the tables", reason=reason)

    return (judge,)


_OVERALL = _of(SB, TUNED, STRUCTURED, where={})
_FAMILIES = [
    (_of(SB, TUNED, (1, 2, 3, 4, 5), where=data), _of(SB, FT, 6, where=data))
    for data in (IMAGENET, CIFAR)
]
_CLAIMS = (
    Claim(
        number=1,
        text="L1 filters: in every row, training from scratch is at least as good as fine-tuning.",
        tables=(1,),
        tests="WES",
        asks=(_up(SE, FT, 1, rules=(AT_LEAST_EACH,)), _up(SB, FT, 1, rules=(AT_LEAST_EACH,))),
    ),
    Claim(
        number=2,
        text="L1 filters: scratch-b is mostly slightly above scratch-e.",
        tables=(1,),
        tests="S",
        asks=(_up(SB, SE, 1, rules=(most(),)),),
    ),
    Claim(
        number=3,
        text="L1 filters on ImageNet: both scratch-b networks beat fine-tuning noticeably.",
        tables=(1,),
        tests="S",
        asks=(_up(SB, FT, 1, rules=(every(MARGIN),), where=IMAGENET),),
    ),
    Claim(
        number=4,
        text="ThiNet: scratch training beats fine-tuning in all rows but scratch-e for VGG-Tiny.",
        tables=(2,),
        tests="S",
        asks=(
            _up(SB, FT, 2, rules=(every(),)),
            _up(SE, FT, 2, rules=(every(),), where=NOT_TINY),
            _up(SE, FT, 2),
        ),
    ),
    Claim(
        number=5,
        text="Regression: networks trained from scratch lose less than fine-tuned ones.",
        tables=(3,),
        tests="S",
        asks=(_up(SB, FT, 3, rules=(every(),)), _up(SE, FT, 3, rules=(every(),))),
    ),
    Claim(
        number=6,
        text="SFP: scratch-e beats the pruned network mostly, scratch-b nearly always.",
        tables=(10,),
        tests="WS",
        asks=(_up(SE, "pruned", 10, rules=(most(),)), _up(SB, "pruned", 10, rules=(most(0.9),))),
    ),
    Claim(
        number=7,
        text="SFP from a trained network: the same.",
        tables=(11,),
        tests="WS",
        asks=(
            _up(SE, "pruned", 11, rules=(most(),)),
            _up(SB, "pruned", 11, rules=(most(0.9),)),
            _up(SB, SE, 11),
        ),
    ),
    Claim(
        number=8,
        text="Slimming: scratch-b beats fine-tuning in 8 of the 10 CIFAR rows.",
        tables=(4,),
        tests="WS",
        asks=(_up(SB, FT, 4, rules=(most(0.8),), where=CIFAR), _up(SB, FT, 4)),
    ),
    Claim(
        number=9,
        text="Slimming: scratch-e is slightly below fine-tuning, but mostly within the std.",
        tables=(4,),
        tests="WES",
        asks=(_down(SE, FT, 4, rules=(most(), WITHIN_SPREAD), where=CIFAR),),
    ),
    Claim(
        number=10,
        text="SSS: scratch-e beats the pruned network on average, scratch-b beats both everywhere.",
        tables=(5,),
        tests="S",
        asks=(
            _up(SE, "pruned", 5, rules=(ON_AVERAGE,)),
            _up(SB, "pruned", 5, rules=(every(),)),
            _up(SB, SE, 5, rules=(every(),)),
        ),
    ),
    Claim(
        number=11,
        text="Overall: with structured methods, fine-tuning is no better than training anew.",
        tables=STRUCTURED,
        tests="WES",
        asks=(Ask(contrast=_OVERALL, rules=(AT_LEAST,)), patterns.leave_one_method_out(_OVERALL)),
    ),
    Claim(
        number=12,
        text="CIFAR, up to 80%: scratch-e sometimes falls short, scratch-b is at least on par.",
        tables=(6,),
        tests="WE",
        asks=(
            _down(SE, FT, 6, rules=(SOMETIMES,), where=UP_TO_80),
            _up(SB, FT, 6, rules=(AT_LEAST,), where=UP_TO_80),
        ),
    ),
    Claim(
        number=13,
        text="CIFAR, 95%: fine-tuning can beat training from scratch.",
        tables=(6,),
        tests="W",
        asks=(_down(SB, FT, 6, rules=(SOMETIMES,), where=AT_95),),
    ),
    Claim(
        number=14,
        text="ImageNet: scratch-b is mostly noticeably worse than fine-tuning.",
        tables=(6,),
        tests="S",
        asks=(_down(SB, FT, 6, rules=(most(), most(points=MARGIN)), where=IMAGENET),),
    ),
    Claim(
        number=15,
        text="Structured and unstructured pruning differ in how training from scratch fares.",
        tables=(1, 2, 3, 4, 5, 6),
        tests="W",
        asks=tuple(patterns.families_apart(*families) for families in _FAMILIES),
    ),
    Claim(
        number=16,
        text="Fine-tuned sparse networks have almost no weights near zero, retrained ones have.",
        tests="P",
        asks=(patterns.few_near_zero,),
    ),
    Claim(
        number=17,
        text="Scaling the initial std to the share kept brings nothing.",
        asks=_needs("new runs of magnitude pruning with and without the scaling"),
    ),
    Claim(
        number=18,
        text="Slimmed and sparse VGGs need fewer parameters than uniform ones (Slimming: 5x).",
        tests="WES",
        asks=(
            _curves("pruned", "uniform", 3, rules=(BETTER,), panels=SLIMMING),
            _curves("pruned", "uniform", 3, rules=(BETTER,), panels=UNSTRUCTURED),
            patterns.times_fewer(
                CurveContrast(figure=3, first="pruned", second="uniform", panels=SLIMMING), 5.0
            ),
        ),
    ),
    Claim(
        number=19,
        text="Pruned architectures agree between runs: widths vary by at most about 10%.",
        tables=(7,),
        tests="P",
        asks=(patterns.consistent_widths,),
    ),
    Claim(
        number=20,
        text="VGG is redundant in its late stages, and far from uniformly.",
        tables=(21,),
        tests="P",
        asks=(patterns.late_redundancy,),
    ),
    Claim(
        number=21,
        text="PreResNet and DenseNet lose nearly evenly, so there pruning only equals uniform.",
        tables=(18, 19, 20),
        tests="PWE",
        asks=(
            patterns.flatter_than_vgg,
            patterns.even_cells(19),
            patterns.even_cells(20),
            _curves("pruned", "uniform", 5, rules=(AT_LEAST,), against=True),
        ),
    ),
    Claim(
        number=22,
        text="Guided designs equal pruned ones; transferred ones may fall short, but beat uniform.",
        tests="WES",
        asks=(
            _curves("guided", "pruned", 6, rules=(ON_PAR,)),
            _curves("transferred", "pruned", 6, rules=(SOMETIMES,), against=True),
            _curves("guided", "uniform", 6, rules=(BETTER,)),
            _curves("transferred", "uniform", 6, rules=(BETTER, most(points=MARGIN))),
        ),
    ),
    Claim(
        number=23,
        text="Unstructured, rate 0.1: the winning ticket is no better than random.",
        tables=(9,),
        tests="WES",
        asks=(_down(TICKET, RANDOM, 9, rules=(AT_LEAST,), where=PART_A),),
    ),
    Claim(
        number=24,
        text="Unstructured, rate 0.01: the winning ticket is better.",
        tables=(9,),
        tests="WS",
        asks=(_up(TICKET, RANDOM, 9, rules=(BETTER,), where=PART_B),),
    ),
    Claim(
        number=25,
        text="Structured: the winning ticket is no better at either rate.",
        tables=(8,),
        tests="WES",
        asks=tuple(_down(TICKET, RANDOM, 8, rules=(AT_LEAST,), where=p) for p in (PART_A, PART_B)),
    ),
    Claim(
        number=26,
        text="The initial rate 0.01 is less accurate than 0.1, whatever the arm.",
        tables=(8, 9),
        tests="WS",
        asks=(
            Ask(
                contrast=Contrast(first="b", second=("a",), tables=(8, 9), by="part"),
                rules=(BETTER_EACH,),
                against=True,
            ),
        ),
    ),
    Claim(
        number=27,
        text="Iterative pruning behaves as one-shot pruning does.",
        tests="WES",
        # As the one-shot runs are judged: claims 23, 24 and 26.
        asks=(
            _iterative(TICKET_01, RANDOM_01, rules=(AT_LEAST,), against=True),
            _iterative(TICKET_001, RANDOM_001, rules=(BETTER,)),
            _iterative(TICKET_001, TICKET_01, rules=(BETTER_EACH,), against=True),
            _iterative(RANDOM_001, RANDOM_01, rules=(BETTER_EACH,), against=True),
        ),
    ),
    Claim(
        number=28,
        text="Detection: after transfer, training from scratch equals or beats fine-tuning.",
        tables=(12,),
        tests="S",
        asks=(_up(SE, "prune-c", 12, rules=(every(),)), _up(SB, "prune-c", 12, rules=(every(),))),
    ),
    Claim(
        number=29,
        text="Detection: pruning before the transfer beats pruning after it.",
        tables=(12,),
        tests="S",
        asks=(_up("prune-c", "prune-d", 12, rules=(every(),)),),
    ),
    Claim(
        number=30,
        text="Very high ratios: the lead of scratch grows, fine-tuned is far below unpruned.",
        tables=(13, 14, 15),
        tests="W",
        asks=(
            *(
                ask
                for tables in ((13, 14), (15,))
                for ask in (
                    _up(SB, FT, tables, rules=(BETTER_EACH,)),
                    _up(SE, FT, tables, rules=(BETTER_EACH,)),
                    _down(FT, "unpruned", tables, rules=(BETTER_EACH,)),
                )
            ),
            patterns.larger_lead(_of(SB, FT, (13, 14), where={}), _of(SB, FT, (1, 4), where={})),
        ),
    ),
    Claim(
        number=31,
        text="Longer fine-tuning does not help; scratch-e stays on par.",
        tables=(16,),
        tests="WE",
        asks=(
            _down(FT_160, FT_40, 16, rules=(AT_LEAST,)),
            _down(FT_80, FT_40, 16, rules=(AT_LEAST,)),
            _up(SE, FT_160, 16, rules=(ON_PAR,)),
        ),
    ),
    Claim(
        number=32,
        text="With a schedule of 300 epochs, scratch is still at least on par.",
        tables=(17,),
        tests="WES",
        asks=(_up(SE, FT, 17, rules=(AT_LEAST,)), _up(SB, FT, 17, rules=(AT_LEAST,))),
    ),
    Claim(
        number=33,
        text="More epochs, within reason, seldom harm: scratch-b against scratch-e.",
        tables=BOTH_SCRATCH,
        tests="WS",
        asks=(_up(SB, SE, BOTH_SCRATCH, rules=(most(), SELDOM_DOWN)),),
    ),
)
CLAIMS = tuple(
    replace(claim, section=next(name for name, nums in SECTIONS.items() if claim.number in nums))
    for claim in _CLAIMS
)
