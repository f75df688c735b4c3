"""Options and arguments of the command line, hostile ones; nothing of it trains."""

import os
import random
import shutil
from pathlib import Path

from hostile import Kind
from hostile_stores import StoreUnderTest, command, own_study

import changed_studies

TEXTS = (
    *("", "0", "-1", "1e400", "nan", "inf", "9" * 400, "9" * 5000, "x" * 3000, "../..", "/", "."),
    *("/dev/zero", "/dev/null", "/proc/self/mem", "a/b", "a=b", "a=b=c", "=", ":", "::", ",", ",,"),
    *("1x4", "1x3x99999999x99999999", "-1x4", "0x0", "1x4:int64", "1x4:int64:-1", "x:1x4,y:1x4"),
    *("1x" * 3000 + "1", "{name: vgg}", "{name: {}}", "[[[", "{a: &a *a}", "&a [*a]", "!!set {a}"),
    *("macs:0.5", "macs:nan", "macs:", "macs:0", "latency:1e-300", "cuda:99"),
    *("\udcff", "%s%n", "{}", "{0.__class__}", "$(id)", "`id`", "-", "--", "--help"),
    *("\u00e9\u2028\x1b[31m", "width=99999999"),
    *("width=-1", "depth=1e9", "width=[]", '{"width": 1e9}', "{" * 3000, "1d", "1e99h", "-5m", "5"),
    *("nets.py:mlp", "timm/", "hf/", "torchvision/resnet18", "os:system", "regrow.cli.main:main"),
)  # fmt: skip


def kinds(folder: Path, *, seed: int) -> dict[str, Kind]:
    """Return the kind of inputs by its name; files are written below a folder."""
    kept = StoreUnderTest(folder / "lines")
    file = own_study(folder / "lines" / "own")
    nets = file.with_name("nets.py")
    tiny = "{name: vgg, plan: [4, M, 4]}"
    versus: dict[str, str] = {
        "--model": tiny,
        "--data": "{name: digits, subset: 60, test_subset: 40}",
        "--target": "macs:0.5",
        "--against": "random",
        "--arms": "fine-tune",
        "--recipe": "{name: cifar, epochs: 2, precision: fp32}",
        "--budgets": "1,2",
        "--margin": "1",
    }

    def use(number: int) -> object:
        rng = random.Random(f"{seed} line {number}")
        text = rng.choice(TEXTS)
        if rng.random() < 0.3:
            text = "".join(rng.choice((*changed_studies.PIECES, "1x4", "a", "=")) for _ in range(3))
        text = text.replace("\0", "")
        at = ("--store", kept.root)
        net = f"{nets}:mlp"
        changed_options = {**versus, rng.choice([*versus]): text}
        options = [word for pair in changed_options.items() for word in pair]
        lines: list[tuple[str | Path, ...]] = [
            ("inspect", text),
            ("inspect", net, "--input", text),
            ("inspect", net, "--input", "1x4", "--set", text),
            ("inspect", net, "--input", "1x4", "--arguments", text),
            ("inspect", net, "--input", "1x4", "--keep", text),
            ("status", kept.file, *at, "--data", text),
            ("status", kept.file, "--store", text),
            ("status", text, *at),
            ("store", "list", *at, "--kind", text, "--label", text),
            ("store", "export", *at, "--to", kept.folder / "to" / text),
            ("store", "diff", kept.root, text),
            ("compare-runs", kept.root, text, *at),
            ("list", text),
            ("lint", text),
            ("run", kept.file, *at, "--stop-after", text, "--on", "nowhere"),
            ("run", kept.file, *at, "--devices", text, "--on", "nowhere"),
            ("shrink", net, "--input", "1x4", "--out", kept.folder / "small", "--macs", text),
            ("shrink", net, "--input", "1x4", "--out", text, "--macs", "0.5", "--scope", "nothing"),
            ("push", text, text, "--into", kept.folder / "to" / "x"),
            ("cluster", rng.choice(("slurm", "kubernetes", "local")), "--nodes", text),
            ("versus", "l1-filter", *options, *at, "--plan", "--out", kept.folder / "out"),
            ("versus", text, *options, *at, "--plan", "--out", kept.folder / "out"),
        ]
        os.chdir(folder)
        shutil.rmtree(kept.folder / "small", ignore_errors=True)
        return command(*rng.choice(lines))

    return {"command lines": Kind(6, use)}
