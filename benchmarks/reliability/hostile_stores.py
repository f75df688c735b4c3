"""Hostile inputs for commands that read what other runs, machines and versions wrote.

Stores in any state (files, links, pipes, folders), changed plans and decisions with valid digests,
archives for ``store import``, jobs and records as they are sent to Ray, folders for ``push`` and
``compare-runs``, studies with a user's training function, annotations.
"""

import io
import json
import os
import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import hostile
import yaml
from hostile import Kind, changed, changed_value

import changed_studies
import regrow.report
import small
import test_voc
from commands import STUDY
from cutting import random_mask
from regrow.cli.main import main
from regrow.core.digests import sealed
from regrow.data import load
from regrow.data.spec import DataSpec
from regrow.errors import RegrowError
from regrow.jobs.as_json import job_from_json, job_to_json
from regrow.jobs.base import Job, all_jobs
from regrow.models import build
from regrow.run import ray_task, run
from regrow.run.coordinator import _set_damaged_aside
from regrow.store import Store
from regrow.store.check import verify
from regrow.store.packed import Packed, pack, unpack
from regrow.store.transfer import export_records
from regrow.studies.job_list import Planned, remember
from regrow.studies.study import Study
from regrow.surgery import shrink, trace
from regrow.surgery.architecture import Architecture, save
from test_damage import filled

LONGEST = 12_000  # characters of a printed line, which may repeat a user's text of 5,000
NETS = """
from torch import nn

def mlp(width=12, depth=1):
    layers = [nn.Linear(4, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))
"""
TRAINING = """
def train(model, budget, seed):
    return {"accuracy": 0.5}
"""
OWN = """\
name: mine
train: "HERE/mine.py:train"
metric: {name: accuracy, num_test: 450, chance: 0.1, margin: 1}
budget: {epochs: 4}
models: {network: "HERE/nets.py:mlp", input: 1x4, set: {width: 8}}
methods: {name: l1, parameters: 0.5}
arms: [unpruned, pruned, fine-tune, scratch-e, {name: scratch-b, cap: 3}]
uniform: true
rivals: [{network: "HERE/nets.py:mlp", set: {width: 5}}, {vary: width}]
seeds: 2
"""


class Refused(RegrowError):
    """Raised for a command that ends with exit code 1 or 2, with the longest line it printed."""


def command(*words: str | Path) -> str:
    """Run a command in this process, and return what it printed.

    Raises:
        Refused: it ended with exit code 1 or 2.
        AssertionError: it printed a traceback or an overlong line, or ended with another code.
    """
    printed, said = io.StringIO(), io.StringIO()
    sys.argv = ["regrow", *map(str, words)]
    code: Any = 0
    try:
        with redirect_stdout(printed), redirect_stderr(said):
            main()
    except SystemExit as end:
        code = end.code
    texts = printed.getvalue(), said.getvalue()
    for text in texts:
        text.encode()  # raises for lone surrogates, which a terminal would refuse
    longest = max("\n".join(texts).splitlines(), key=len, default="")
    if "Traceback" in "".join(texts) or len(longest) > LONGEST or code not in (0, 1, 2, None):
        raise AssertionError(f"exit code {code}, a line of {len(longest)}: {''.join(texts)[:1500]}")
    if code:
        raise Refused(longest)
    return texts[0]


# Stores in any state ----------------------------------------------------------------------------


class StoreUnderTest:
    """A store with all kinds of files, restored for each input, and the commands that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "store"
        self.other = folder / "other"
        self.file = folder / "study.yaml"
        self.elsewhere = folder / "elsewhere"  # a possible target of links in the store
        for name in ("Documents/letter.txt", "ab/cd/record.json", ".hidden/.key", "lock/owner"):
            (self.elsewhere / name).parent.mkdir(parents=True)
            (self.elsewhere / name).write_text("mine")
        self.file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        self.study, store = Study.load(self.file), Store.open(folder / "sound")
        self.jobs: dict[str, Job] = all_jobs(self.study.jobs())
        run(self.study.jobs(), store, workers=0)
        remember(store, self.file, Planned.of(self.study.name, self.study.title, self.jobs))
        store.decide("precision", {"precision": "fp32", "why": "w", "machine": "m", "date": "d"})
        store.decide("folder", {"token": "t"})
        *_, last, first, second, third = self.jobs
        self.open = (first, second, third)  # failed, stopped half-way, running elsewhere
        tensors = store.tensors(last)
        for key in self.open:
            store.drop(key)
        store.fail(first, self.jobs[first].spec, message="it failed", traceback="in line 1")
        store.log(first, "said")
        with store.claim(second) as workspace:
            assert workspace is not None
            workspace.save_checkpoint(tensors, {"steps_done": 1})
            workspace.progress({"fraction": 0.5, "note": "half"})
        lock = store.root / "running" / third / "lock"
        lock.mkdir(parents=True)
        (lock / "owner").write_bytes(b'{"count":3,"host":"far","token":"far-1-2-3-ab"}'.ljust(512))
        self.sound = store.root
        shutil.copytree(self.sound, self.other)
        self.renew()

    def renew(self) -> Store:
        """Replace the damaged store by a copy of the sound one."""
        for place in (self.root, self.folder / "to", self.folder / "out"):
            if place.is_symlink() or place.is_file():
                place.unlink()
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.sound, self.root)
        return Store(self.root)

    def look(self, rng: random.Random) -> object:
        """Run a random command on the store; files elsewhere must not be removed."""
        at = ("--store", self.root)
        to = self.folder / "to"
        looks: list[Callable[[], object]] = [
            lambda: command("status", self.file, *at),
            lambda: command("status", self.file, *at, "--json"),
            lambda: command("report", self.file, *at, "--out", self.folder / "out"),
            lambda: command("report", self.file, *at, "--out", to, "--checklist", "--epochs"),
            lambda: command("store", "verify", *at),
            lambda: command("store", "list", *at),
            lambda: command("store", "gc", self.file, *at, "--yes"),
            lambda: command("store", "export", "--to", rng.choice((to, f"{to}.tar")), *at),
            lambda: command("store", "import", self.root, "--store", to),
            lambda: command("store", "diff", self.root, self.other),
            lambda: command("compare-runs", self.root, self.other),
            self.begin_a_run,
        ]
        (self.folder / "to.tar").unlink(missing_ok=True)
        before = {*self.elsewhere.rglob("*")}
        try:
            return rng.choice(looks)()
        finally:
            assert before <= {*self.elsewhere.rglob("*")}, "files elsewhere were removed"

    def begin_a_run(self) -> object:
        """Do what a run does with the store besides running jobs."""
        store = Store.open(self.root)
        store.tidy()
        _set_damaged_aside(self.jobs.values(), store, lambda _: None)
        for key in self.open:
            with store.claim(key) as workspace:
                if workspace is not None:
                    workspace.load_checkpoint()
                    workspace.save_checkpoint({}, {"steps_done": 2})
        return store.snapshot({key: job.spec for key, job in self.jobs.items()})


def hurt(path: Path, rng: random.Random, *, elsewhere: Path) -> None:
    """Replace a file or folder by something else."""
    content = path.read_bytes() if path.is_file() else b""
    ways = ["nothing", "empty", "bytes", "folder", "dangling", "loop", "pipe", "elsewhere", "zero"]
    if path.suffix == ".json" or path.name == "owner":
        ways += ["value"] * 6
    way = rng.choice(ways + ["bytes"] * 3 * path.is_file())
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    if way in ("empty", "bytes", "value"):
        path.write_bytes({"empty": b"", "bytes": changed(content, rng)}.get(way) or b"")
    if way == "value":
        path.write_bytes(resealed(path, content, rng))
    elif way == "folder":
        path.mkdir()
        (path / rng.choice(("x", "record.json", "a" * 200, ".hidden.1.new"))).write_text("x")
    elif way == "pipe":
        os.mkfifo(path)
    elif way in ("dangling", "loop", "elsewhere", "zero"):
        to = {"loop": path.name, "elsewhere": elsewhere, "zero": "/dev/zero"}.get(way, "nowhere")
        path.symlink_to(to)


def resealed(path: Path, content: bytes, rng: random.Random) -> bytes:
    """Change a value of a JSON file, and give it a valid digest if its kind has one."""
    value = json.loads(content)
    under = "timing" if path.name == "record.json" else None
    name = path.parent.name if under else path.stem
    holder = value.get(under, {}) if under else value
    holder.pop("digest", None)
    value = changed_value(value, rng)
    try:
        if path.name in ("owner", "progress.json", "store.json"):
            return json.dumps(value).encode()[:512].ljust(512 if path.name == "owner" else 0)
        return sealed(value, name, under=under).encode()
    except (ValueError, TypeError, AttributeError):  # not finite, or no longer a mapping
        return json.dumps(value).encode()


def _trees(folder: Path, seed: int) -> dict[str, Kind]:
    kept = StoreUnderTest(folder / "trees")
    entries = sorted(path.relative_to(kept.root) for path in kept.root.rglob("*"))
    sealed_ones = [path for path in entries if path.suffix == ".json" and len(path.parts) < 3]

    def use(number: int, *, name: str, paths: list[Path]) -> object:
        rng = random.Random(f"{seed} {name} {number}")
        kept.renew()
        for path in rng.sample(paths, min(len(paths), rng.choice((1, 1, 1, 2, 5)))):
            if os.path.lexists(kept.root / path):
                if name == "plans":
                    content = (kept.root / path).read_bytes()
                    (kept.root / path).write_bytes(resealed(kept.root / path, content, rng))
                else:
                    hurt(kept.root / path, rng, elsewhere=kept.elsewhere)
        return kept.look(rng)

    for number in range(12):
        with_luck = random.Random()
        with_luck.choice = lambda values, n=number: values[n % len(values)]  # type: ignore
        kept.renew()
        try:
            kept.look(with_luck)  # warm up with each command, once for all children
        except RegrowError:
            continue
    return {
        "stores": Kind(8, partial(use, name="stores", paths=entries)),
        "plans": Kind(5, partial(use, name="plans", paths=sealed_ones)),
    }


# Archives and records on their way --------------------------------------------------------------


def _header(name: str, content: bytes, rng: random.Random) -> bytes:
    """Return an archive member that no export would write."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    kind = tarfile.GNU_FORMAT
    way = rng.randrange(8)
    if way == 0:
        member.name = rng.choice(
            ("../x", "/tmp/x", name.upper(), "x" * 300, "records/ab", "\u00e9")
        )
    elif way == 1:
        member.type = rng.choice((b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"V", b"M", b"Z"))
        member.linkname = rng.choice(("/etc/passwd", "../..", name))
    elif way == 2:
        member.size = rng.choice((10**12, 0, 1, 8 << 30, 33 << 20))
    elif way == 3:
        kind = tarfile.PAX_FORMAT
        member.pax_headers = {
            rng.choice(("size", "path", "linkpath", "mtime", "GNU.sparse.size", "hdrcharset")): (
                rng.choice(("1" * 30, "-1", "-1024", "x", "../x", "1e9", "BINARY", "\u00e9" * 100))
            )
        }
    elif way == 4:
        kind = tarfile.PAX_FORMAT
        member.pax_headers = {
            "GNU.sparse.major": rng.choice(("0", "1")),
            "GNU.sparse.minor": rng.choice(("0", "1")),
            "GNU.sparse.realsize": str(10**12),
            "GNU.sparse.size": str(10**12),
            "GNU.sparse.map": rng.choice(("0,1,99999999999,1", "x", "0")),
            "GNU.sparse.name": name,
        }
    elif way == 5:
        return _sparse(member) + content.ljust(-(-len(content) // 512) * 512, b"\0")
    head = member.tobuf(format=kind, encoding="utf-8", errors="surrogateescape")
    return head + content.ljust(-(-len(content) // 512) * 512, b"\0")


def _sparse(member: tarfile.TarInfo) -> bytes:
    """Return the header of a GNU sparse file of 8 GB with only a few bytes of data."""
    head = bytearray(member.tobuf(format=tarfile.GNU_FORMAT))
    head[156:157] = b"S"
    head[386:410] = b"%011o\0%011o\0" % (0, member.size)
    head[482] = 0
    head[483:495] = b"%011o\0" % (8**11 - 1)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return bytes(head)


def _archives(folder: Path, seed: int) -> dict[str, Kind]:
    folder = folder / "archives"
    folder.mkdir()
    _, store = filled(folder / "store")
    keys = store.keys()[:4]
    export_records(store, keys, folder / "sound.tar")
    sound = (folder / "sound.tar").read_bytes()
    with tarfile.open(folder / "sound.tar") as archive:
        members = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore

    def content(rng: random.Random) -> bytes:
        way = rng.random()
        if way < 0.35:
            return changed(sound, rng)
        parts = []
        place = rng.randrange(len(members))
        for number, (name, old) in enumerate(members):
            if number != place:
                parts.append(_plain(name, old))
            elif way < 0.8:
                parts.append(_header(name, old, rng))
            elif name.endswith("record.json"):
                key = Path(name).parent.name
                parts.append(
                    _plain(name, hostile._sealed(changed_value(json.loads(old), rng), key))
                )
            else:
                parts += [_plain(name, changed(old, rng))] * rng.choice((1, 1, 2, 3000))
        return b"".join([*parts, bytes(1024)])

    def take(number: int) -> object:
        rng = random.Random(f"{seed} archive {number}")
        into, file = folder / "into", folder / "hostile.tar"
        shutil.rmtree(into, ignore_errors=True)
        file.write_bytes(content(rng))
        before = sorted(folder.iterdir())
        try:
            return command("store", "import", file, "--store", into)
        finally:
            assert sorted(path for path in folder.iterdir() if path != into) == before
            if (into / "store.json").exists():
                assert not verify(Store(into)).damaged
                assert not [path for path in into.iterdir() if path.name.startswith(".")]

    def receive(number: int) -> object:
        rng = random.Random(f"{seed} packed {number}")
        key = rng.choice(keys)
        record, tensors = pack(store, key)
        if rng.random() < 0.4:
            record = hostile._sealed(changed_value(json.loads(record), rng), key) or b""
        elif rng.random() < 0.5:
            record = changed(record, rng)
        else:
            tensors = rng.choice((changed(tensors, rng), hostile._tensors_bomb(rng), b""))
        shutil.rmtree(folder / "received", ignore_errors=True)
        received = Store.open(folder / "received")
        try:
            return unpack(received, rng.choice((key, key, keys[0])), Packed(record, tensors))
        finally:
            assert not verify(received).damaged

    return {"archives": Kind(5, take), "records on their way": Kind(3, receive)}


def _plain(name: str, content: bytes | None) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = len(content or b"")
    return member.tobuf() + (content or b"").ljust(-(-member.size // 512) * 512, b"\0")


def _jobs(folder: Path, seed: int) -> dict[str, Kind]:
    study = Study.from_json(yaml.safe_load(hostile.DIGITS))
    own = Study.load(own_study(folder / "jobs"))
    jobs = [*all_jobs(study.jobs()).values(), *all_jobs(own.jobs()).values()]
    texts = [(job.key, job_to_json(job)) for job in jobs]
    names = ("os:system", "regrow.__main__:main", "regrow.nope:X", "regrow.jobs.base:Job", "x", ":",
             "regrow.jobs.train:Train", "regrow.store.store:Store", "pathlib:Path", "a.b:c.d.e",
             "regrow.core.digests:os.system", "regrow.jobs.train:Train.run")  # fmt: skip

    def read(number: int) -> object:
        rng = random.Random(f"{seed} job {number}")
        key, text = rng.choice(texts)
        value = json.loads(text)
        way = rng.random()
        if way < 0.15:
            text = changed(text.encode(), rng).decode(errors="replace")
        elif way < 0.3:
            rng.choice(value["values"])[0] = rng.choice(names)
            text = json.dumps(value)
        elif way < 0.33:
            text = rng.choice(("[" * 100_000, '{"values":' * 50_000, "9" * 5000, "", "null"))
        else:
            text = json.dumps(changed_value(value, rng))
        job = job_from_json(text, key=key)
        assert job.key == key
        return job

    asked = {"store": str(folder / "none"), "token": "t", "folder": str(folder), "with": []}
    asked |= {"settings": {"device": "cpu", "checkpoint_seconds": 60.0}, "inputs": []}

    def do(number: int) -> object:
        rng = random.Random(f"{seed} request {number}")
        key, text = texts[0]
        value = changed_value({**asked, "job": text, "key": key}, rng)
        request = changed(json.dumps(value).encode(), rng).decode(errors="replace")
        told = [*ray_task.do(request if rng.random() < 0.2 else json.dumps(value))]
        os.chdir(folder)
        (kind,) = json.loads(told[-1][0])
        assert kind in ("ended", "refused", "unseen")
        return told

    [*ray_task.do(json.dumps({**asked, "job": texts[0][1], "key": texts[0][0]}))]
    return {"jobs": Kind(5, read), "requests to Ray": Kind(2, do)}


# Networks, reports and studies ------------------------------------------------------------------


def own_study(folder: Path) -> Path:
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    (folder / "mine.py").write_text(TRAINING)
    file = folder / "study.yaml"
    file.write_text(OWN.replace("HERE", str(folder)))
    return file


def _own(folder: Path, seed: int) -> dict[str, Kind]:
    file = own_study(folder / "own")
    base = file.read_text()
    ways = (
        changed_studies.changed_text,
        changed_studies.changed_values,
        changed_studies.changed_values,
        changed_studies.changed_keys,
    )
    Study.load(file).jobs()

    def use(number: int) -> object:
        rng = random.Random(f"{seed} own {number}")
        content = rng.choice(ways)(rng, base)
        if rng.random() < 0.3:
            words = base.split(" ")
            place = rng.choice([n for n, word in enumerate(words) if word[:1].isdigit()])
            words[place] = rng.choice(hostile.LARGE) + words[place].lstrip("0123456789.")
            content = " ".join(words).encode()
        file.write_bytes(content)
        return Study.load(file).jobs()

    return {"studies of one's own": Kind(5, use)}


def _folders(folder: Path, seed: int) -> dict[str, Kind]:
    folder = folder / "folders"
    spec = small.NETWORKS["vgg"]
    model = build(spec)
    found = trace(model, small.SHAPE)
    cut = random_mask(found)
    network = folder / "network"
    save(
        network, shrink(model, cut, found), Architecture(model=spec, shape=small.SHAPE, cuts=(cut,))
    )
    (network / "card.json").write_text('{"network": "vgg", "proof": {"proven": true}}')
    (network / "card.md").write_text("# vgg, cut\n\nProven.\n")
    result = {"data": "digits", "accuracy": 98.0, "accuracy_unit": "%", "loss": 0.1}
    (network / "result.json").write_text(json.dumps(result))
    filled(folder / "store")
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    for name in ("report", "other"):
        command("report", study, "--store", folder / "store", "--out", folder / name)
    report = folder / "report"
    files = {
        "network": [network / name for name in ("architecture.json", "card.md", "result.json")],
        "report": [report / name for name in ("runs.csv", "verdicts.csv", "how.json")],
    }
    contents = {file: file.read_bytes() for each in files.values() for file in each}
    into = folder / "into"

    def use(number: int, *, name: str, words: tuple[str | Path, ...]) -> object:
        rng = random.Random(f"{seed} {name} {number}")
        shutil.rmtree(into, ignore_errors=True)
        file = rng.choice(files[name])
        try:
            if file.suffix == ".json" and rng.random() < 0.6:
                value = changed_value(json.loads(contents[file]), rng)
                deep = b'{"a":' * 50_000
                file.write_bytes(deep if rng.random() < 0.03 else json.dumps(value).encode())
            else:
                hurt(file, rng, elsewhere=folder)
            return command(*words)
        finally:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            file.unlink(missing_ok=True)
            file.write_bytes(contents[file])

    push = ("push", network, "me/net", "--into", into)
    compare = ("compare-runs", report, folder / "other")
    command(*push)
    command(*compare)
    return {
        "networks pushed": Kind(3, partial(use, name="network", words=push)),
        "reports compared": Kind(3, partial(use, name="report", words=compare)),
    }


BOMB = "<!DOCTYPE a [<!ENTITY x0 'xxxxxxxxxx'>{}]><annotation>&x9;</annotation>".format(
    "".join(f"<!ENTITY x{n + 1} '{f'&x{n};' * 10}'>" for n in range(9))
)


def _annotations(folder: Path, seed: int) -> dict[str, Kind]:
    whole = test_voc.box(1, 1, 48, 40)
    texts = {
        name: test_voc.annotation(whole, test_voc.box(5, 5, 20, 30, name="dog", difficult=1))
        for name in "abcd"
    }
    sound = test_voc.folder(folder / "annotations", texts, train="a b c", val="d")
    place = folder / "annotated"

    def use(number: int) -> object:
        rng = random.Random(f"{seed} annotation {number}")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound, place)
        file = rng.choice([path for path in sorted(place.rglob("*")) if path.is_file()])
        way = rng.random()
        if file.suffix == ".jpg":
            file.write_bytes(hostile.picture(rng))
        elif way < 0.1:
            file.write_text(
                rng.choice((BOMB, "<a>" * 100_000, "<a " + "b='' " * 9999, "a" * 10**6))
            )
        elif way < 0.5:
            old = rng.choice(("48", "40", ">1<", "20", "cat", "dog", "object", "a", "name"))
            new = rng.choice(
                (*hostile.LARGE, "nan", "-1", "", "\u00e9", "x" * 5000, "../../x", "&lt;")
            )
            file.write_text(file.read_text().replace(old, new, rng.choice((1, 9))))
        elif way < 0.6:
            hurt(file, rng, elsewhere=folder)
        else:
            file.write_bytes(changed(file.read_bytes(), rng))
        options = {"on_error": rng.choice(("stop", "skip"))}
        return load(DataSpec(name=f"voc:{place}", root=str(folder / "cache"), **options))

    return {"annotations": Kind(4, use)}


def kinds(folder: Path, *, seed: int) -> dict[str, Kind]:
    """Return every kind of input by name; their files are written to ``folder``."""
    folder = folder / "stores"
    folder.mkdir(parents=True)
    regrow.report._figures = lambda *_: ()  # type: ignore[assignment]  # they take a second
    return {
        **_trees(folder, seed),
        **_archives(folder, seed),
        **_jobs(folder, seed),
        **_own(folder, seed),
        **_folders(folder, seed),
        **_annotations(folder, seed),
    }
