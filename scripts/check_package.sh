#!/usr/bin/env bash
# Builds wheel and sdist, checks both, and uses the wheel in a fresh environment: bash scripts/check_package.sh [DIR]
#
# The packages go into DIR, by default a temporary one. Only the package itself is installed; its dependencies are those of
# the environment that has the extra `dev` ($PYTHON, by default .venv's).
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
python=${PYTHON:-$venv/bin/python}
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=${1:-$work/dist}

# The wheel is built from the sdist, so a file missing from the sdist is missing from the wheel.
"$python" -m build --no-isolation --outdir "$out" "$repo" >"$work/build.log" 2>&1 || {
    tail -n 15 "$work/build.log" >&2
    die "the packages could not be built: see the lines above"
}
version=$("$python" -c 'import runpy, sys; print(runpy.run_path(sys.argv[1])["__version__"])' "$repo/hbr_fast/__init__.py")
wheel=$out/hbr_fast-$version-py3-none-any.whl
"$python" -m twine check --strict "$wheel" "$out/hbr_fast-$version.tar.gz"

tracked=$(cd "$repo" && git ls-files hbr_fast | sort)
packed=$("$python" -m zipfile --list "$wheel" | awk '$1 ~ /^hbr_fast\// {print $1}' | sort)
[[ $tracked == "$packed" ]] ||
    die "the wheel does not hold exactly the tracked files of hbr_fast/: $(diff <(echo "$tracked") <(echo "$packed") | grep '^[<>]' | head -n 5)"

fresh=$work/fresh
"$python" -m venv --without-pip "$fresh"
"$python" -m pip --python "$fresh/bin/python" install --quiet --disable-pip-version-check --no-deps --no-index "$wheel"
# After installing, so that pip does not see the editable installation.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$(echo "$fresh"/lib/python*/site-packages)/dependencies.pth"

cd "$work"
[[ $("$fresh/bin/hbr-fast" --version) == "hbr-fast $version" ]] || die "hbr-fast --version is not hbr-fast $version"
"$fresh/bin/python" -c 'import sys, hbr_fast; sys.exit(not hbr_fast.__file__.startswith(sys.prefix))' ||
    die "the fresh environment does not import its own hbr_fast"
"$fresh/bin/python" -m hbr_fast convert synthetic toy.hbr --classes 3 --train-per-class 4 --test-per-class 2
"$fresh/bin/hbr-fast" info toy.hbr >/dev/null
# A user's type checker reads the installed package through py.typed; no public name is of type Any.
cp "$repo/tests/user_script.py" .
"$fresh/bin/python" -c '
import hbr_fast
print("import hbr_fast", *(f"reveal_type(hbr_fast.{name})" for name in hbr_fast.__all__), sep="\n")' >public_names.py
# What other libraries define is none of this check's business, and reading torch would take longer than all the rest.
{
    echo '[mypy]'
    printf '[mypy-%s.*]\nfollow_imports = skip\n' torch torchvision numba scipy sklearn matplotlib PIL plotly rich
} >mypy.ini
types=$("$python" -m mypy --strict --config-file=mypy.ini --cache-dir="$work/types" --python-executable "$fresh/bin/python" \
    user_script.py public_names.py) || die "mypy --strict fails on a user's script: $(grep error: <<<"$types")"
untyped=$(grep 'is "Any"' <<<"$types") && die "public names without a type: $untyped"
say "hbr-fast $version: wheel and sdist are good"
