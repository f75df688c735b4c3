"""Measure pruning tools on many networks, each in its own process with limits on time and memory.

A line of JSON for each network and tool is appended to a file; results that it has are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import attention
import networks
import oracle
from regrow.errors import RegrowError, TraceError
from regrow.surgery import shrink, trace, verify
from regrow.surgery.alive import called
from regrow.surgery.groups import Trace
from regrow.surgery.mask import Mask
from regrow.surgery.tape import output_tensors

SHOWN = 1e-3  # relative change of the output below which a cut cannot be judged
WRONG = 1e-6  # largest relative error of an exact cut; in float64 its error is far below
WRONG_FLOAT = 1e-3  # the same if a network's code does not run in float64, or casts to float32
PATIENCE = 5  # a process is killed after its limit of CPU seconds times this, by the clock
Line = dict[str, Any]


def rows(path: Path) -> list[Line]:
    """Read the results so far; the last line of a network and tool counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.strip()]
    return list({(row["network"], row["tool"]): row for row in found}.values())


def options(about: str, out: str) -> argparse.ArgumentParser:
    """Make a parser with the options that both benchmarks share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("patterns", nargs="*", help="parts of networks' names (default: all)")
    kept = Path(__file__).parent / out
    parser.add_argument("--out", type=Path, default=kept, help="file for lines of JSON")
    parser.add_argument("--seconds", type=float, default=600, help="CPU time per network")
    parser.add_argument("--minutes", type=float, help="stop then; the next run continues")
    parser.add_argument("--gigabytes", type=float, default=10, help="memory per network")
    parser.add_argument("--again", action="store_true", help="repeat all measurements")
    parser.add_argument("--stale", metavar="COMMIT", help="repeat those measured at this commit")
    parser.add_argument("--list", action="store_true", help="print the networks' names")
    return parser


def run(
    given: argparse.Namespace,
    tools: Sequence[str],
    measure: Callable[[str, str], Line] | None = None,
) -> list[Line]:
    """Measure what is missing, packages of small networks first, and return all lines.

    ``measure`` is called with a network's name and a tool's; ``one`` if not given.
    """
    start = time.monotonic()
    measured = [] if given.again else rows(given.out)
    done = {(x["network"], x["tool"]) for x in measured if x["commit"] != given.stale}
    chosen = [
        name
        for name in sorted(networks.names(), key=_about_how_large)
        if not given.patterns or any(pattern in name for pattern in given.patterns)
    ]
    if given.list:
        print("\n".join(chosen))
        raise SystemExit
    _load([name for name in chosen if any((name, tool) not in done for tool in tools)])
    for name in chosen:
        if given.minutes is not None and time.monotonic() - start > 60 * given.minutes:
            break
        for tool in tools:
            if (name, tool) not in done:
                row = _in_process(name, tool, given, measure or one)
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(_short(row), flush=True)
    return rows(given.out)


def _about_how_large(name: str) -> int:
    """Rank a network by the usual size of its package, so that a short run covers many networks."""
    small = ("torch/", "torch_geometric/", "transformers/", "timm/test_", "diffusers/")
    ranks = (*small, "ultralytics/", "segmentation_models_pytorch/", "timm/", "torchvision/")
    large = ("torchvision/detection/", "torchvision/video/", "torchvision/optical_flow/")
    if name.startswith(large):
        return len(ranks)
    return next(rank for rank, start in enumerate(ranks) if name.startswith(start))


def _load(chosen: Sequence[str]) -> None:
    """Build one network of each package, so that imports happen once, not in each fork."""
    for name in {name.partition("/")[0]: name for name in chosen}.values():
        with suppress(Exception):
            networks.build(name)


def _short(row: Mapping[str, Any]) -> str:
    share = f"{row['share']:.2f}" if "share" in row else "    "
    return (
        f"{row['network']:58} {row['tool']:13} {row['outcome']:9} {share} "
        f"{row.get('message', '')[:80]}"
    )


def _in_process(
    name: str, tool: str, given: argparse.Namespace, measure: Callable[[str, str], Line]
) -> Line:
    """Measure one network with one tool in a process forked from this one."""
    base = {"network": name, "tool": tool, **_circumstances(name)}
    start = time.monotonic()
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(name, tool, given, measure, sending))
    process.start()
    sending.close()
    row: Line | None = None
    with suppress(EOFError):  # it ended without sending a result
        if receiving.poll(PATIENCE * given.seconds):
            row = receiving.recv()
            process.join(10)
    if process.is_alive():
        process.kill()
    process.join()
    base["seconds"] = round(time.monotonic() - start, 1)
    if row is not None:
        return base | row
    if process.exitcode == -signal.SIGKILL and base["seconds"] < given.seconds:
        return base | {"outcome": "memory", "message": "killed by the system"}
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        return base | {"outcome": "time-out", "message": f"more than {given.seconds:g} s"}
    return base | {"outcome": "killed", "message": f"exit code {process.exitcode}"}


def _limited(
    name: str,
    tool: str,
    given: argparse.Namespace,
    measure: Callable[[str, str], Line],
    sending: Connection,
) -> None:
    """Measure within limits on memory and CPU time, and send the row to the parent process."""
    most = int(given.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (int(given.seconds), int(given.seconds) + 5))
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        row = measure(name, tool)
    sending.send(row)


def _circumstances(name: str) -> Line:
    """Return regrow's commit, the date, and the version of the network's package."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        told = subprocess.run(
            ["git", *words, "--", "src"], cwd=root, capture_output=True, text=True
        )
        return told.stdout.strip()

    changed = "+" if git("status", "--porcelain") else ""
    return {
        "commit": git("log", "-1", "--format=%h") + changed,  # the last one that changed src/
        "date": datetime.now(UTC).date().isoformat(),
        "version": version(name.partition("/")[0].replace("_", "-")),
    }


def one(name: str, tool: str) -> Line:
    """Measure one network with one tool in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net, example = networks.build(name)
    row: Line = {"parameters": sum(p.numel() for p in net.parameters())}
    try:
        costs, found = _costs(net, example, TOOLS[tool])
        row |= costs
        row |= _judged(net, example, TOOLS[tool], found)
        if found is not None:
            row |= _proven(net, found)
    except Exception as error:
        row |= failed(error)
    return row


def failed(error: Exception) -> Line:
    """Return the outcome of a measurement that raised an error, with its message and place."""
    if isinstance(error, MemoryError):
        return {"outcome": "memory"}
    short = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    memory = "allocate memory" in str(error) or "bad_alloc" in str(error)
    told = isinstance(error, RegrowError)
    outcome = "memory" if memory else "refused" if told else "crash"
    return {"outcome": outcome, "message": short, "where": _where(error)}


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"


class Cut(NamedTuple):
    """A cut network, CPU seconds to trace and to cut it, and regrow's trace, for another cut."""

    net: nn.Module
    tracing: float
    cutting: float
    found: Trace | None = None


Tool = Callable[[nn.Module, Any, Trace | None], Cut]


def _costs(net: nn.Module, example: Any, tool: Tool) -> tuple[Line, Trace | None]:
    """Measure CPU seconds, peak memory, and the share of the parameters that is removed."""
    called(net, example)
    start = time.process_time()
    called(net, example)
    forward = time.process_time() - start
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cut = tool(net, example, None)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = sum(p.numel() * p.element_size() for p in net.parameters())
    num = sum(p.numel() for p in net.parameters())
    row: Line = {
        "share": round(1 - sum(p.numel() for p in cut.net.parameters()) / num, 4),
        "forward_seconds": round(forward, 3),
        "trace_seconds": round(cut.tracing, 3),
        "shrink_seconds": round(cut.cutting, 3),
        "peak_mb": round(after / 1024),
        # Peak memory beyond one forward pass, as a multiple of the size of the parameters.
        "beyond": round((after - before) * 1024 / held, 2),
    }
    with suppress(Exception):  # networks that do not run are reported as broken by `_judged`
        row |= attention.cuts(net, cut.net, example)
    return row, cut.found


def _judged(net: nn.Module, example: Any, tool: Tool, found: Trace | None) -> Line:
    """Cut a copy of a network with other parameter values, and compare it with the oracle."""
    live, wide = oracle.alive(net, example)
    small = tool(live, wide, found).net
    try:
        called(small, wide)
    except Exception as error:
        return {"outcome": "broken", "message": f"does not run: {error}"[:300]}
    try:
        error, moved = oracle.compare(live, small, wide)
    except oracle.UnmatchedError:
        return {"outcome": "unmatched"}
    except TraceError as error:  # what a norm of the silenced network raises comes wrapped
        if isinstance(error.__cause__, oracle.UnmatchedError):
            return {"outcome": "unmatched"}
        raise
    single = next(live.parameters()).dtype != torch.float64
    if not single and error > WRONG:
        single = oracle.rounds_to_float32(live, wide)
    rounding = oracle.rounding(live, wide)
    if math.isinf(rounding):  # rounding changes the number of the outputs, as of detections
        return {"outcome": "unmatched"}
    if math.isinf(error):
        return {"outcome": "broken", "message": "returns other shapes, or no finite numbers"}
    allowed = max(WRONG_FLOAT if single else WRONG, 100 * rounding)
    if not allowed <= WRONG_FLOAT:  # it draws random numbers, or amplifies rounding
        return {"outcome": "unmatched", "oracle_error": error}
    outcome = "exact" if error <= allowed else "wrong"
    if outcome == "exact" and moved < SHOWN:
        outcome = "nothing" if not moved else "unseen"
    return {"outcome": outcome, "oracle_error": error, "oracle_moved": min(moved, 1e9)}


def _proven(net: nn.Module, found: Trace) -> Line:
    """Verify regrow's cut with its own proof, and list the reasons for what it keeps whole."""
    mask = _half(found)
    row: Line = {"groups": len(found.groups), "whole": _reasons(net, found)}
    if mask.kept:
        proof = verify(net, mask, found)
        row |= {
            "ok": proof.ok,
            "error": proof.error,
            "sensitivity": min(proof.sensitivity.values(), default=0.0),
            "proof": "" if proof.ok else str(proof)[:300],
        }
    return row


def _reasons(net: nn.Module, found: Trace) -> list[tuple[str, float]]:
    """Return the six main reasons for keeping parameters, with their shares, largest first."""
    total = sum(p.numel() for p in net.parameters())
    return [(why, round(num / total, 4)) for why, num in found.reasons(net).items()][:6]


def _half(found: Trace) -> Mask:
    kept = {name: torch.arange(g.size) % 2 == 0 for name, g in found.groups.items() if g.size > 1}
    return Mask(unit="channel", kept=kept)


def _regrow(net: nn.Module, example: Any, found: Trace | None) -> Cut:
    start = time.process_time()
    found = trace(net, example) if found is None else replace(found, example=example)
    middle = time.process_time()
    small = shrink(net, _half(found), found)
    return Cut(small, middle - start, time.process_time() - middle, found)


def _torch_pruning(net: nn.Module, example: Any, _: Trace | None) -> Cut:
    """Cut by half with Torch-Pruning, given the output layers and the attention heads.

    It is also given the output tensors, because it looks for them in lists only, where caches are.
    """
    import copy

    import torch_pruning

    ends = _ends(net, example)
    small = copy.deepcopy(net)
    ignored = [m for n, m in small.named_modules() if n and n in ends]
    heads = {
        layer: num
        for module in small.modules()
        if (num := _num_heads(module)) is not None
        for layer in module.children()
        if isinstance(layer, nn.Linear) and layer.out_features >= layer.in_features
        and layer is not list(module.children())[-1]
    }  # fmt: skip
    start = time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        small,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=ignored,
        num_heads=heads,
        output_transform=lambda output: [x for x in output_tensors(output) if x.requires_grad],
    )
    middle = time.process_time()
    pruner.step()
    took = time.process_time() - middle
    for module in small.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "head_dim"):
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.qkv.out_features // 3
        if isinstance(getattr(module, "conv_proj", None), nn.Conv2d) and hasattr(
            module, "hidden_dim"
        ):
            module.hidden_dim = module.conv_proj.out_channels  # of torchvision's ViT
        _tell_heads(module)
    return Cut(small, middle - start, took)


def _num_heads(module: nn.Module) -> int | None:
    """Return an attention's number of heads, from an attribute with one of the usual names."""
    found = (getattr(module, name, None) for name in HEADS)
    return next((num for num in found if isinstance(num, int)), None)


def _tell_heads(module: nn.Module) -> None:
    """Update the attributes for head widths in a narrowed attention of transformers.

    Torch-Pruning leaves that to its user.
    """
    query = next((q for name in QUERIES if (q := getattr(module, name, None)) is not None), None)
    num = _num_heads(module)
    if num is None or not isinstance(query, nn.Linear):
        return
    width = query.out_features
    widths = {"attention_head_size": width // num, "head_dim": width // num}
    widths |= {"key_value_proj_dim": width // num, "all_head_size": width, "inner_dim": width}
    for name, value in (widths | {"embed_dim": width}).items():
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)


def _ends(net: nn.Module, example: Any) -> list[str]:
    """Name the output layers, by a trace in another process, whose memory is not counted."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def tell() -> None:
        whole = trace(net, example).whole
        sending.send([name for name, why in whole.items() if "output" in why])

    process = context.Process(target=tell)
    process.start()
    sending.close()
    ends: list[str] = []
    with suppress(EOFError):  # a network that cannot be traced
        ends = receiving.recv()
    process.join()
    return ends


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")  # in attentions
QUERIES = ("query", "q_proj", "q_lin", "q")
TOOLS: Mapping[str, Tool] = {"regrow": _regrow, "torch-pruning": _torch_pruning}
