#!/usr/bin/env bash
# Lint, type check, documentation and tests, in .venv with all dependencies: bash scripts/test.sh [pytest options]
#
# FFCV is compiled on installation; missing libraries are installed with apt (as root), or the tests run without FFCV.
# With CI set, a missing FFCV or other extra is a failure.
set -euo pipefail

unset PYTHONDONTWRITEBYTECODE # some images set it: each of hundreds of processes would compile torch again, for seconds
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repo"

can_import() { "$venv/bin/python" -c "import $1" >/dev/null 2>&1; }

python_headers() {
    "$venv/bin/python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# Debian packages that compiling FFCV still needs here.
missing_for_ffcv() {
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    python_headers || "$venv/bin/python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])'
}

make_venv

extras=ffcv,dali,ray,tensorboard,timm,integrations,docs,dev
if ! can_import ffcv; then
    mapfile -t missing < <(missing_for_ffcv)
    if ((${#missing[@]} > 0)) && ! apt_install "${missing[@]}"; then
        remedy="apt-get install ${missing[*]}"
        [[ -z ${CI:-} ]] || die "FFCV cannot be compiled here, and with CI set it must be: run as root: $remedy"
        say "FFCV cannot be compiled here, continuing without it. To install its libraries, run as root: $remedy"
        extras=dali,ray,tensorboard,timm,integrations,docs,dev
    fi
fi
install "$extras"

if [[ -n ${CI:-} ]]; then
    for module in ffcv nvidia.dali ray tensorboard timm lightning transformers accelerate; do
        can_import "$module" || {
            "$venv/bin/python" -c "import $module" || true
            die "with CI set the tests need $module, and it cannot be imported (see above)"
        }
    done
fi

command -v chromium >/dev/null || apt_install chromium || {
    [[ -z ${CI:-} ]] || die "with CI set the report's page is opened in a browser: run as root: apt-get install chromium"
    say "no Chromium here: the report's page is not opened in a browser"
}
have_fashion_mnist "$fashion_mnist" || apt_install dataset-fashion-mnist ||
    say "Fashion-MNIST is not in $fashion_mnist: tests that use it are skipped"

# Several test processes share the cores, one more than there are: some tests wait for a cluster or for children. Those
# of the cluster wait longest; in the order of their names (no reordering) they are not the last.
cores=$("$venv/bin/python" -c 'import os; print(len(os.sched_getaffinity(0)))')
workers=$((cores < 4 ? cores + 1 : 4))
threads=$((cores / workers))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

failed=()
result() { # NAME SECONDS CODE
    if (($3 == 0)); then
        say "== $1: passed ($2 s)"
    else
        say "== $1: FAILED ($2 s)"
        failed+=("$1")
    fi
}
step() { # NAME COMMAND...
    local name=$1 start=$SECONDS code=0
    shift
    say "== $name"
    "$@" || code=$?
    result "$name" $((SECONDS - start)) "$code"
}

# Checks that keep one core busy run beside the tests; their output follows.
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
beside() { # NAME COMMAND...
    local name=$1 number=${#names[@]}
    shift
    names+=("$name")
    (
        code=0
        "$@" >"$logs/$number.log" 2>&1 </dev/null || code=$?
        echo "$SECONDS $code" >"$logs/$number.end"
    ) &
    pids+=($!)
}
names=() pids=()

step "format (ruff format)" "$venv/bin/ruff" format --check .
step "lint (ruff check)" "$venv/bin/ruff" check .
begun=$SECONDS
beside "types (mypy)" "$venv/bin/mypy"
beside "documentation (mkdocs)" env NO_MKDOCS_2_WARNING=1 "$venv/bin/mkdocs" build --quiet
[[ -z ${CI:-} ]] || beside "package (wheel, sdist)" env PYTHON="$venv/bin/python" bash scripts/check_package.sh
[[ -z ${CI:-} ]] || beside "kernels with bounds checking" env NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR="$logs/numba" \
    "$venv/bin/python" -m pytest -p no:cacheprovider tests/kernels/test_cpu_draws.py tests/kernels/test_cpu_bijections.py
step "tests (pytest)" "$venv/bin/python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --durations=20 --durations-min=5 "$@"
for number in "${!names[@]}"; do
    wait "${pids[number]}" || true
    say "== ${names[number]}"
    cat "$logs/$number.log" >&2
    read -r ended code <"$logs/$number.end"
    result "${names[number]}" $((ended - begun)) "$code"
done

if ((${#failed[@]} > 0)); then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
say "all passed in $SECONDS s"
