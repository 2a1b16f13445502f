#!/usr/bin/env bash
# On a machine with a GPU: the GPU tests, the kernels' parity tests and all benchmarks; one CSV with the device's name.
#
#   bash scripts/gpu_check.sh [--no-install] [OUT.csv]
#
# --no-install uses the current Python ($PYTHON, else python3) as it is, for machines without a network.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repo"

install=true
if [[ ${1:-} == --no-install ]]; then
    install=false
    shift
fi
if $install; then
    make_venv
    install dev
    python=$venv/bin/python
else
    find_python
fi
export PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH}

device=$("$python" -c '
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} sees no GPU on this machine")
print(torch.cuda.get_device_name(0))') || die "nothing to check without a GPU (see above)"
out=${1:-benchmarks/results/gpu-$(tr -cs 'A-Za-z0-9\n' - <<<"$device" | tr '[:upper:]' '[:lower:]').csv}
say "device: $device; results: $out"

"$python" -m pytest -q tests/gpu
TRITON_INTERPRET=1 "$python" -m pytest -q tests/interpreted

parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
for benchmark in gpu recording loading sampling training; do
    say "== bench_$benchmark"
    "$python" "benchmarks/bench_$benchmark.py" --out "$parts/$benchmark.csv" || say "bench_$benchmark failed: its rows are missing"
done
"$python" - "$parts" "$out" "$device" <<'PYTHON'
import csv, pathlib, sys
parts, out, device = sys.argv[1:]
rows = [{"device": device, "benchmark": path.stem, **row} for path in sorted(pathlib.Path(parts).glob("*.csv"))
        for row in csv.DictReader(path.open())]
fields = list(dict.fromkeys(name for row in rows for name in row))
with open(out, "w", newline="") as file:
    writer = csv.DictWriter(file, fields)
    writer.writeheader()
    writer.writerows(rows)
print(f"written: {out}, {len(rows)} rows")
PYTHON
