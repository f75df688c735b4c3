#!/usr/bin/env bash
# Everything that needs a GPU, in one command that can be stopped and repeated: the CUDA tests, the
# training benchmark, and as much of the CIFAR-10 part of Table 1 as the time allows.
#
#     DATA=hf:FOLDER benchmarks/gpu.sh          (repeat until it says that all is done)
#
#     DATA    CIFAR-10: "cifar10" (torchvision's copy in $REGROW_DATA), or hf:FOLDER of Parquet files
#     STATE   folder for the progress so far (.gpu); keep it between calls
#     SLICE   seconds that one call may take (560, for machines available for 10 minutes at a time)
#     PYTHON  an interpreter with torch >= 2.7 built for CUDA, torchvision, numpy, pandas, pyarrow,
#             pyyaml, safetensors, scikit-learn, scipy, matplotlib, pillow, typer, rich, pytest,
#             hypothesis. Nothing is downloaded: missing packages are listed first; bring them as
#             wheels (pip install --no-index --no-deps --target DIR *.whl, and DIR in PYTHONPATH).
#
# Results: $STATE/bench.*.json, $STATE/tests.txt, $STATE/report/; copied to $OUT if that is set.
set -uo pipefail
cd "$(dirname "$0")/.."
STATE=${STATE:-.gpu}
SLICE=${SLICE:-560}
DATA=${DATA:-cifar10}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export REGROW_DATA=${REGROW_DATA:-$PWD/$STATE/data}
mkdir -p "$STATE"

left() { echo $((SLICE - SECONDS)); }
say() { printf '\n== %s (%d s left)\n' "$1" "$(left)"; }
regrow() { "$PYTHON" -m regrow "$@"; }

give_results() {
    [ -n "${OUT:-}" ] || return 0
    cp -f "$STATE"/bench.* "$STATE"/tests.txt "$STATE"/report/*.{md,csv} "$OUT"/ 2>/dev/null
    return 0
}
trap give_results EXIT

# Run a step unless $STATE has a file that says it is done. An interrupted step is run again.
step() { # name, minimum seconds it needs, command
    [ -e "$STATE/$1.done" ] && return 0
    if [ "$(left)" -lt "$2" ]; then
        echo "Not enough time left for '$1': call again."
        exit 0
    fi
    say "$1"
    if timeout -k 20 "$(($(left) - 15))" "${@:3}"; then
        touch "$STATE/$1.done"
    else
        echo "'$1' failed (exit code $?)."
        return 1
    fi
}

check() {
    "$PYTHON" - <<'PYTHON'
import importlib, sys
names = "torch torchvision numpy pandas pyarrow yaml safetensors sklearn scipy matplotlib PIL typer rich"
missing = []
for name in [*names.split(), "pytest", "hypothesis", "regrow"]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit("Missing: " + ", ".join(missing))
import torch
if not torch.cuda.is_available():
    sys.exit("This machine has no CUDA device that torch can use.")
print(torch.__version__, torch.cuda.get_device_name(), *torch.cuda.mem_get_info())
PYTHON
}

tests() {
    "$PYTHON" -m pytest -q -p no:cacheprovider -o filterwarnings=default tests/test_gpu.py \
        tests/test_gpu_sharing.py 2>&1 | tee "$STATE/tests.txt"
}

bench() { # one network at a time, so that running out of time loses only one
    "$PYTHON" -m regrow bench train --device cuda --nets "$1" --data "$2" --rounds 3 \
        --seconds 4 --json >"$STATE/bench.$1.json.part" &&
        mv "$STATE/bench.$1.json.part" "$STATE/bench.$1.json"
}

table1() {
    sed "s|^data: .*|data: {name: '$DATA'}|" benchmarks/table1-cifar.yaml >"$STATE/table1.yaml"
    # SIGINT stops cleanly: every training saves its state.
    timeout -s INT -k 60 "$(($(left) - 45))" "$PYTHON" -m regrow \
        run "$STATE/table1.yaml" --device cuda --store "$STATE/store" --out "$STATE/report"
    case $? in
        0) touch "$STATE/table1.done" ;;
        *) echo "Table 1 is not complete: call again to continue." ;;
    esac
    regrow report "$STATE/table1.yaml" --store "$STATE/store" --out "$STATE/report"
}

export -f check tests bench
export PYTHON STATE
step check 20 bash -c check || exit 2
step tests 60 bash -c tests # failures are printed, and the benchmarks run all the same
for net in resnet-56 vgg-16 densenet-40 preresnet-164 digits; do
    step "bench-$net" 90 bash -c 'bench "$@"' bench "$net" synthetic
done
[ -e "$STATE/table1.done" ] || { [ "$(left)" -gt 120 ] && say "table 1" && table1; }

say "so far"
tail -n 3 "$STATE/tests.txt" 2>/dev/null
"$PYTHON" - "$STATE" <<'PYTHON'
import json, pathlib, sys
rows = []
for file in sorted(pathlib.Path(sys.argv[1]).glob("bench.*.json")):
    found = json.loads(file.read_text())
    rows += [(found, row) for row in found["rows"]]
for found, row in rows[:1]:
    print(found["machine"]["device"], found["machine"]["date"], "torch", found["machine"]["torch"])
    print(f"{'images/s':15}" + "".join(f"{name:>15}" for name in row["rates"]), "  jobs  times plain")
for found, row in rows:
    rates = "".join(f"{rate:15,.0f}" for rate in row["rates"].values())
    print(f"{row['net']:15}{rates}{row['num_together']:7}{row['times_plain']:11.1f}x")
PYTHON
[ -e "$STATE/table1.done" ] && echo "All is done." || echo "Not all is done: call again."
