"""Run a study under unusual conditions: odd names, full or read-only disks, clocks that jump.

    uv run python benchmarks/reliability/places.py --out places.json

``--rounds`` is the number of full disks: tmpfs file systems of increasing size, or with increasing
limits on the number of files, which are enlarged after the run has ended with an error. They and a
read-only one need ``unshare`` (Linux) and the permission to mount in a new namespace. Runs are
checked by ``rounds.Ground.after``; a read-only store must allow reporting, verifying and exporting.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rounds
import shim
from faults import incomplete
from rounds import Ended, Ground, Tally, finish, start

NAMES = (
    *("with space", "\u00fcn\u00efcode \u65e5\u672c\u8a9e", "\U0001f600", "-dash"),
    *("--store", ".hidden", "new\nline", "tab\there", "quote'\"`", "[brackets]*?", "100%20%s"),
    *("semi;colon&", "$HOME", "~", "#hash", "back\\slash", "{name}", "\x1b[31mred", "a:b"),
    *("x" * 255, "e\u0301", "/".join(["deep" * 50] * 17), "../up", "x.yaml", "\u202eright to left"),
)  # fmt: skip
REFUSED = {  # names that file systems or a library do not accept, and a part of the message
    "x" * 256: "File name too long",
    "/".join(["deep" * 50] * 25): "File name too long",
    "\udcff\udcfe": "not UTF-8",
}
JUMPS = (3600, 86_400, 10 * 31_557_600, 60 * 31_557_600)  # the last one to before 1970
PAGE = 4096
INSIDE = "REGROW_MOUNTS"


def command(ground: Ground, *words: str | Path) -> Ended:
    """Run a command in the ground's folder."""
    log = ground.folder / "log"
    return finish(start(*words, cwd=ground.folder, log=log), log)


def of_name(ground: Ground, place: Path, tally: Tally, *, workers: int) -> None:
    """Run, report, list, verify, export and compare in a folder, all by absolute paths."""
    where = f"the name {place.name[:60]!r}"
    store, out = place / "store", place / "out"
    at, to = ("--store", store), ("--out", out)
    place.mkdir(parents=True)
    study = place / "study.yaml"
    shutil.copyfile(ground.folder / "study.yaml", study)
    for words in (
        ("run", study, *at, *to, "--workers", str(workers)),
        ("run", study, *at, *to, "--workers", "0"),
        ("status", study, *at),
        ("report", study, *at, *to),
        ("store", "verify", *at),
        ("store", "list", *at),
        ("store", "export", "--to", place / "export", *at),
        ("store", "import", place / "export", *at),
        ("store", "diff", store, place / "export"),
        ("compare-runs", store, place / "export"),
    ):
        ended = command(ground, *words)
        if ended.code or "Traceback" in ended.text:
            tally.fault(where, f"`{words[0]} {words[1]}` ended with {ended.code}", ended.text)
    for name, content in ground.results.items():
        if not (out / name).exists() or (out / name).read_bytes() != content:
            tally.fault(where, f"{name} differs")


def refused(ground: Ground, name: str, words: str, tally: Tally) -> None:
    """Run with a store whose name must be refused, with ``words`` in the message."""
    at = ("--store", name, "--out", "out")
    ended = command(ground, "run", "study.yaml", "--workers", "0", *at)
    if ended.code != 2 or "Traceback" in ended.text or words not in ended.text:
        tally.fault(f"a store {name[:20]!r}", f"it ended with {ended.code}", ended.text)


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs on a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "regrow", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def full(ground: Ground, options: str, tally: Tally) -> bool:
    """Run on a file system that is too small, then enlarge it; False if it was large enough."""
    ground.clear()
    with mounted(ground.round, options):
        ended = ground.run()
        if "Traceback" in ended.text or ended.code not in (0, 1, 2):
            tally.fault(options, f"a traceback, or it ended with {ended.code}", ended.text)
        if ended.code and not ("No space left on device" in ended.text and " free" in ended.text):
            tally.fault(options, "the message lacks the error or the free space", ended.text)
        for problem in incomplete(ground):
            tally.fault(options, problem, ended.text)
        remount(ground.round, "size=64m,nr_inodes=10000")
        ground.after(options, tally)
    return ended.code != 0


def read_only(ground: Ground, tally: Tally) -> None:
    """Run all commands on a read-only store: those that do not write to it must succeed."""
    ground.clear()
    elsewhere = ground.folder / "elsewhere"
    with mounted(ground.round, "size=64m"):
        for done in (False, True):
            shutil.rmtree(elsewhere, ignore_errors=True)
            if not done:  # a store without records
                ground.run("run")
                shutil.rmtree(ground.round / "store" / "records")
                (ground.round / "store" / "records").mkdir()
            else:
                ground.run("run")
            remount(ground.round, "ro")
            store, study = ground.round / "store", ground.folder / "study.yaml"
            at = ("--store", store)
            for words in (
                ("status", study, *at),
                ("plan", study, *at),
                ("report", study, *at, "--out", elsewhere / "out"),
                ("store", "verify", *at),
                ("store", "list", *at),
                ("store", "gc", study, *at),
                ("store", "export", "--to", elsewhere / "e.tar", *at),
                ("store", "diff", store, store),
                ("compare-runs", store, store),
            ):
                ended = command(ground, *words)
                if ended.code or "Traceback" in ended.text:
                    tally.fault("read-only", f"{words[:2]} ended with {ended.code}", ended.text)
            for words in (
                ("run", study, *at, "--out", elsewhere / "out", "--workers", "0"),
                ("report", study, *at, "--out", ground.round / "other"),
                ("store", "import", elsewhere / "e.tar", *at),
            ):
                ended = command(ground, *words)
                told = "Read-only file system" in ended.text or "no permission" in ended.text
                if ended.code != 2 or "Traceback" in ended.text or not told:
                    tally.fault("read-only", f"{words[:2]} ended with {ended.code}", ended.text)
            remount(ground.round, "rw")
        ground.after("read-only", tally)
        shutil.rmtree(elsewhere, ignore_errors=True)


def disks(ground: Ground, num: int, tally: Tally) -> None:
    """Test full disks, from 8 kB or three files on, and a read-only one."""
    of_size = [f"size={PAGE * (2 + 3 * n)}" for n in range(num - num // 3)]
    of_files = [f"size=64m,nr_inodes={3 + 3 * n}" for n in range(num // 3)]
    for options in (*of_size, *of_files):
        was_full = full(ground, options, tally)
        tally.count("full disks" if was_full else "large enough")
        tally.rounds += 1
    read_only(ground, tally)
    tally.count("read-only")
    tally.rounds += 1


def jumping(ground: Ground, control: shim.Shim, jump: int, tally: Tally, *, workers: int) -> None:
    """Run while the clock jumps back and forth with every file operation."""
    ground.clear()
    with control.armed(ground.round, jump=jump):
        ended = ground.run(workers=workers)
        if ended.code or "Traceback" in ended.text:
            tally.fault(f"a jump of {jump} s", f"it ended with {ended.code}", ended.text)
        ground.after(f"a jump of {jump} s", tally)


def main() -> int:
    parser = rounds.options(__doc__ or "", rounds=45)
    given = parser.parse_args()
    can_mount = INSIDE in os.environ
    if not can_mount and shutil.which("unshare") and "REGROW_SHIM" not in os.environ:
        inside = ["unshare", "-rm", sys.executable]
        if not subprocess.run([*inside, "-c", "pass"], check=False).returncode:
            os.execvpe("unshare", [*inside, *sys.argv], {**os.environ, INSIDE: "1"})
    control = shim.preload()
    rounds.warm()
    rounds.without_figures()
    tally = Tally("places")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        ground = Ground(folder / "ground")
        for number, name in enumerate(NAMES):
            of_name(ground, folder / "names" / name, tally, workers=int(number == 1))
            tally.count("names")
            tally.rounds += 1
        for name, words in REFUSED.items():
            refused(ground, name, words, tally)
            tally.count("names that are refused")
            tally.rounds += 1
        for number, jump in enumerate((*JUMPS, *JUMPS[:1])):
            jumping(ground, control, jump, tally, workers=number // len(JUMPS))
            tally.count("clocks that jump")
            tally.rounds += 1
        if can_mount:
            disks(ground, given.rounds, tally)
    return tally.close(given.out, mounts=can_mount)


if __name__ == "__main__":
    raise SystemExit(main())
