#!/usr/bin/env bash
# From a fresh checkout to a report: hardness-based resampling on Fashion-MNIST.
#
#   bash scripts/quickstart.sh [FASHION_MNIST_DIR] [options of `hbr-fast study quickstart`]
#
# Needs Python >= 3.11 with pip. The last line on standard output is one JSON object; a second run reuses finished work.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

root=""
if (($# > 0)) && [[ $1 != -* ]]; then
    [[ -d $1 ]] || die "'$1' is not a folder: pass the one with Fashion-MNIST's four idx files, or none"
    root=$(cd "$1" && pwd)
    have_fashion_mnist "$root" || die "no train-images-idx3-ubyte[.gz] in '$root': pass the folder with Fashion-MNIST's four idx files"
    shift
fi

make_venv
install "" --only-binary=:all:

if [[ -z $root ]]; then
    if have_fashion_mnist "$fashion_mnist" || { apt_install dataset-fashion-mnist && have_fashion_mnist "$fashion_mnist"; }; then
        root=$fashion_mnist
    fi
fi
if [[ -n $root ]]; then
    data=(--root "$root")
else
    say "Fashion-MNIST is not on this machine: downloading it (30 MB); without a network, pass its folder: bash scripts/quickstart.sh FOLDER"
    data=(--download)
fi

exec "$venv/bin/hbr-fast" study quickstart --out "$repo/runs/quickstart" "${data[@]}" "$@"
