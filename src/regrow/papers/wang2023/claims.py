"""Claims of Tables 4, 6 and 7: the winner depends on schedules and budgets."""

from regrow.reproduce.contrasts import Contrast
from regrow.reproduce.crossings import Crossing
from regrow.reproduce.rules import AT_LEAST, BETTER, Ask, Claim, Rule, every, most

SCRATCH, STEP = "Scratch training", "Scratch (Step LR)"


def _contrast(first: str, second: str, *tables: int) -> Contrast:
    return Contrast(first=first, second=(second,), tables=tables)


def _ask(first: str, second: str, *tables: int, rules: tuple[Rule, ...]) -> Ask:
    return Ask(contrast=_contrast(first, second, *tables), rules=rules)


CLAIMS = (
    Claim(
        number=1,
        section="Learning rates of fine-tuning",
        text="From the rate 0.001, fine-tuning is no better than scratch training.",
        tables=(6, 7),
        tests="WES",
        asks=(_ask(STEP, "L1 (Step LR 0.001)", 6, 7, rules=(AT_LEAST,)),),
    ),
    Claim(
        number=2,
        section="Learning rates of fine-tuning",
        text="From the rate 0.01, fine-tuning is better than scratch training in most rows.",
        tables=(6, 7),
        tests="WS",
        asks=(_ask("L1 (Step LR 0.01)", STEP, 6, 7, rules=(most(), BETTER)),),
    ),
    Claim(
        number=3,
        section="Learning rates of fine-tuning",
        text="Fine-tuning from 0.01 is mostly better than from 0.001, whatever the schedule.",
        tables=(6, 7),
        tests="WS",
        asks=tuple(
            _ask(f"L1 ({kind} LR 0.01)", f"L1 ({kind} LR 0.001)", 6, 7, rules=(most(),))
            for kind in ("Step", "Cosine")
        ),
    ),
    Claim(
        number=4,
        section="Learning rates of fine-tuning",
        text="The winner of scratch training and fine-tuning changes with the rate, as at 70 %.",
        tables=(6, 7),
        tests="W",
        asks=tuple(
            Crossing(
                first=STEP,
                seconds=("L1 (Step LR 0.001)", "L1 (Step LR 0.01)"),
                tables=(table,),
            )
            for table in (6, 7)
        ),
    ),
    Claim(
        number=5,
        section="Budgets of the whole pipeline",
        text="At equal epochs, pruning at epoch 30 and fine-tuning from 0.1 beats scratch.",
        tables=(4,),
        tests="WS",
        asks=(_ask("L1-norm (P30F90, 1e-1)", SCRATCH, 4, rules=(every(),)),),
    ),
    Claim(
        number=6,
        section="Budgets of the whole pipeline",
        text="At equal FLOPs it still does in most rows.",
        tables=(4,),
        tests="WS",
        asks=(_ask("L1-norm (P30/kF90, 1e-1)", SCRATCH, 4, rules=(most(),)),),
    ),
)
