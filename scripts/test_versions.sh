#!/usr/bin/env bash
# The core's tests with another Python, and the oldest or newest torch, torchvision, NumPy and numba that we accept:
#
#   PYTHON=python3.12 bash scripts/test_versions.sh oldest [pytest options]
#
# in a new environment under VENV (default: .venv-VERSION-oldest), several GB for torch. What needs other extras than timm is skipped.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$repo"

versions=${1:?oldest or newest}
shift
[[ $versions == oldest || $versions == newest ]] || die "the versions are oldest or newest, not $versions"
find_python
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
venv=${VENV:-$repo/.venv-$version-$versions}

# The lower bounds of pyproject.toml, as e.g. "torch==2.11.*"; nothing where pip may choose.
bounds() {
    [[ $versions == oldest ]] || return 0
    "$python" -c '
import tomllib
for wanted in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    name, least = wanted.split(">=")
    if name in ("torch", "torchvision", "numpy", "numba"):
        print(f"{name}=={least}.*")
'
}

mapfile -t wanted < <(bounds)
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
log=$(mktemp)
run_quietly "installing hbr_fast with the $versions versions for Python $version" "$log" \
    "$venv/bin/pip" install -e . "${wanted[@]}" "fsspec[http]" timm torchdata hypothesis pytest pytest-timeout pytest-xdist pyyaml
rm -f "$log"

"$venv/bin/python" -c '
import sys, numba, numpy, torch, torchvision
print("Python", sys.version.split()[0], *(f"{of.__name__} {of.__version__}" for of in (torch, torchvision, numpy, numba)))'

OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$venv/bin/python" -m pytest -p no:cacheprovider \
    tests/kernels tests/hardness tests/orders tests/resampling tests/data tests/evaluation tests/members tests/training \
    tests/test_*files.py tests/test_machine.py tests/test_seeding.py tests/test_traps.py "$@"
