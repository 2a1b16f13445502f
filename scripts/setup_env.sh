# shellcheck shell=bash
# Sourced by quickstart.sh, test.sh and gpu_check.sh: finds a Python, creates .venv, installs into it.
# All messages go to standard error, so that standard output stays for results.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$repo/.venv
# shellcheck disable=SC2034  # the scripts that source this use it
fashion_mnist=/usr/share/datasets/fashion-mnist # where Debian's package puts it

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# telling LOG: its last line that says what is done now, in plain ASCII: not bars, nor what pip says of its own packages.
telling() {
    tr '\r' '\n' <"$1" | LC_ALL=C grep -aE '^ *(Collecting|Downloading|Building|Installing|Preparing|Get:|Selecting|Unpacking|Setting up) ?' |
        tail -n 1 | LC_ALL=C tr -cd '\040-\176' | sed 's/^ *//' | cut -c 1-100
}

# run_quietly WHAT LOG COMMAND...: the command's output goes to LOG; a line every ten seconds shows progress.
run_quietly() {
    local what=$1 log=$2 start=$SECONDS code=0 ticker
    shift 2
    : >"$log"
    (
        # The sleep outlives a killed loop briefly: it must not hold a pipe open.
        while sleep 10 >/dev/null 2>&1; do
            printf '  %s: %d s, %s\n' "$what" $((SECONDS - start)) "$(telling "$log" || true)" >&2
        done
    ) &
    ticker=$!
    # shellcheck disable=SC2064  # expand this ticker's number now
    trap "kill $ticker 2>/dev/null || true" EXIT
    "$@" >"$log" 2>&1 </dev/null || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    trap - EXIT
    if ((code == 0)); then
        say "$what: done in $((SECONDS - start)) s"
    else
        tail -n 15 "$log" >&2
        say "$what: failed after $((SECONDS - start)) s (full log: $log)"
    fi
    return "$code"
}

# apt_install PACKAGE...: true if they are installed afterwards; needs root.
apt_install() {
    local log
    [[ $(id -u) -eq 0 ]] && command -v apt-get >/dev/null || return 1
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive run_quietly "apt-get update" "$log" apt-get update ||
        say "continuing with the existing package lists"
    DEBIAN_FRONTEND=noninteractive run_quietly "apt-get install $*" "$log" \
        apt-get install --yes --no-install-recommends "$@" || return 1
    rm -f "$log"
}

have_fashion_mnist() { compgen -G "$1/train-images-idx3-ubyte*" >/dev/null; }

new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

# Sets `python` to a Python of version 3.11 or later; tries $PYTHON first.
find_python() {
    local candidate version found=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
        found+="${found:+, }$candidate is $version"
        if "$candidate" -c "$new_enough"; then
            python=$candidate
            return
        fi
    done
    die "Python 3.11 or later is needed (${found:-no Python found}): install one, or name it: PYTHON=/path/to/python3.11"
}

make_venv() {
    local python log=$venv/create.log
    if "$venv/bin/python" -c "$new_enough" 2>/dev/null && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    find_python
    "$python" -c 'import venv' 2>/dev/null ||
        die "$python has no venv module: install it (Debian: apt-get install python3-venv) and run this again"
    mkdir -p "$venv"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv --clear "$venv" >&2 || die "$python could not create $venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # Debian moves ensurepip into python3-venv, but the existing pip can install into the new environment.
        "$python" -m venv --clear --without-pip "$venv" >&2 || die "$python could not create $venv"
        run_quietly "pip for $venv" "$log" "$python" -m pip --python "$venv/bin/python" install pip ||
            die "pip could not be installed into $venv: install python3-venv and run this again"
    else
        die "$python has neither ensurepip nor pip: install one (Debian: apt-get install python3-venv) and run this again"
    fi
    say "created $venv with Python $("$venv/bin/python" -c 'import platform; print(platform.python_version())')"
}

# What an installation depends on besides the extras: this checkout's path and its pyproject.toml.
installation_hash() {
    "$venv/bin/python" -c '
import hashlib, pathlib, sys
print(hashlib.sha256(sys.argv[1].encode() + pathlib.Path(sys.argv[1], "pyproject.toml").read_bytes()).hexdigest())
' "$repo"
}

# install EXTRAS [PIP_OPTIONS...]: the project, editable, with extras such as "dev,dali" (or ""), unless already installed.
install() {
    local extras=$1 wanted stamp name requirement=$repo compile
    shift
    stamp=$venv/installed-${extras:-core}
    wanted=$(installation_hash)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        return
    fi
    name="installing hbr_fast${extras:+ with $extras}"
    say "$name into $venv: 2 to 10 minutes the first time (PyTorch is large)"
    [[ -z $extras ]] || requirement="${repo}[${extras}]"
    # Of 28,000 modules few are imported, and those are compiled then, once; every time, where Python may not keep it.
    compile=--no-compile
    [[ -z ${PYTHONDONTWRITEBYTECODE:-} ]] || compile=--compile
    run_quietly "$name" "$venv/install.log" "$venv/bin/python" -m pip install --disable-pip-version-check "$compile" \
        "$@" --editable "$requirement" || die "the installation failed: see the lines above"
    printf '%s\n' "$wanted" >"$stamp"
    # Extras include the core.
    printf '%s\n' "$wanted" >"$venv/installed-core"
}
