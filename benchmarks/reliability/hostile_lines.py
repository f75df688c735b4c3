"""Hostile command lines, and pipes, devices, links and endless files in place of input files."""

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hostile import Kind
from hostile_stores import Refused, StoreUnderTest, command, own_study
from safetensors.torch import save_file

import changed_studies
import image_files
import test_voc
from regrow.data import load
from regrow.data.spec import DataSpec
from regrow.models.weights import read_weights
from regrow.pruning.adapters import mask_file
from regrow.studies.study import Study

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


def _lines(folder: Path, seed: int) -> dict[str, Kind]:
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

    options = [word for pair in versus.items() for word in pair]
    for words in (
        ("list", "models"),
        ("lint", kept.file),
        ("inspect", f"{nets}:mlp", "--input", "1x4"),
        ("versus", "l1-filter", *options, "--store", kept.root, "--plan", "--out", folder / "out"),
        ("cluster", "slurm"),
    ):
        with suppress(Refused):
            command(*words)  # warm up, once for all children

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


def _sound(base: Path) -> dict[str, tuple[Path, str]]:
    """Write valid files for each reader; return the folder and the data set's name for each."""
    for name in ("csv", "npz", "safetensors", "parquet", "text", "weights", "masks", "study"):
        (base / name).mkdir(parents=True)
    (base / "csv" / "x.csv").write_text("a,b\n" + "1,2\n3,4\n" * 10)
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    np.savez(base / "npz" / "x.npz", x=x, y=y)
    columns = {"x": torch.rand(20, 4), "target": torch.arange(20) % 2}
    save_file(columns, base / "safetensors" / "x.safetensors")
    pq.write_table(pa.table({"x": x[:, 0], "target": y}), base / "parquet" / "x.parquet")
    for name in ("train.txt", "test.txt"):
        (base / "text" / name).write_bytes(b"some text " * 100)
    torch.save(columns, base / "weights" / "x.pt")
    np.savez(base / "masks" / "x.npz", w=y)
    (base / "study" / "x.yaml").write_text("name: a")
    image_files.parquet_folder(base / "hf")
    image_files.image_folder(base / "folder", num=2)
    whole = {name: test_voc.annotation(test_voc.box(1, 1, 48, 40)) for name in "abcd"}
    test_voc.folder(base / "voc", whole, train="a b c", val="d")
    return {
        **{n: (base / n, f"{n}:{base / n}") for n in ("text", "hf", "folder", "voc")},
        **{n: (base / n, f"{n}:{base / n / 'x'}.{n}") for n in ("csv", "npz")},
        **{n: (base / n, f"{n}:{base / n}") for n in ("safetensors", "parquet")},
        **{n: (base / n, "") for n in ("weights", "masks", "study")},
    }


def _places(folder: Path, seed: int) -> dict[str, Kind]:
    """Return the kind of input that puts pipes, devices, links and the like in place of files."""
    base = folder / "places"
    sound = folder / "sound-places"
    named = _sound(sound)

    def read(name: str, text: str) -> object:
        if name == "weights":
            return read_weights(base / name / "x.pt")
        if name == "masks":
            return mask_file.allocation(str(base / name / "x.npz"))
        if name == "study":
            return Study.load(base / name / "x.yaml")
        size = 8 if name in ("hf", "folder") else None
        spec = text.replace(str(sound), str(base))
        return load(DataSpec(name=spec, root=str(folder / "cache"), size=size))

    def use(number: int) -> object:
        rng = random.Random(f"{seed} place {number}")
        name = rng.choice([*named])
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(sound, base)
        file = rng.choice([path for path in sorted((base / name).rglob("*")) if path.is_file()])
        file.unlink()
        way = rng.choice(("pipe", "zero", "null", "folder", "loop", "nowhere", "empty", "endless"))
        if way == "pipe":
            if name == "study":
                return None  # studies may be read from a shell's pipes
            os.mkfifo(file)
        elif way in ("zero", "null", "loop", "nowhere"):
            places = {"zero": "/dev/zero", "null": "/dev/null", "loop": file.name}
            file.symlink_to(places.get(way, way))
        elif way == "folder":
            file.mkdir()
        else:
            with file.open("wb") as written:
                written.truncate(0 if way == "empty" else 1 << 42)
        return read(name, named[name][1])

    for name, (_, text) in named.items():
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(sound, base)
        if name not in ("study", "masks"):
            read(name, text)  # warm up, once for all children
    return {"places of files": Kind(4, use)}


def kinds(folder: Path, *, seed: int) -> dict[str, Kind]:
    """Return every kind of input by name; their files are written to ``folder``."""
    return {**_lines(folder, seed), **_places(folder, seed)}
