#!/usr/bin/env bash
# One environment for everything: dependencies, detectron2, Fashion-MNIST. Safe to run again: what is there is skipped.
#   bash setup.sh                    .venv here, or the conda / virtual environment that is active
#   UNIMOCO_ENV=DIR bash setup.sh    a virtual environment in DIR
#   UNIMOCO_DATA=DIR                 where the demo data go (default: data)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 not found; install it or name it: PYTHON=/path/to/python3.11 bash setup.sh"
}

environment() {
    if [ -n "${UNIMOCO_ENV:-}" ]; then echo "$UNIMOCO_ENV"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then echo "$CONDA_PREFIX"
    elif [ -n "${VIRTUAL_ENV:-}" ]; then echo "$VIRTUAL_ENV"
    else echo .venv
    fi
}

install_packages() {
    local stamp="$1/.unimoco-stamp" python="$1/bin/python" wanted site
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
        fail "$1 is not a Python 3.11 environment; make one with: conda env create -f environment.yml"
    wanted="$PWD $(cat pyproject.toml requirements-detectron2.txt setup.sh | sha256sum | cut -c1-64)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    if [ "$(cut -d' ' -f2 "$stamp" 2>/dev/null)" = "${wanted##* }" ]; then
        say "$1 has every package; pointing it at $PWD"
        "$python" -m pip install --quiet --no-deps --editable .
    else
        say "installing packages into $1 (some 6 GB, a few minutes)"
        "$python" -m pip install --quiet --editable '.[dev]'
        site="$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
        "$python" -m pip install --quiet --no-deps --upgrade --target "$site" --python-version 3.10 \
            --only-binary=:all: --require-hashes -r requirements-detectron2.txt
        # Where the system has no libGL, the headless build of the same OpenCV takes the place of the full one.
        "$python" -c 'import cv2' 2>/dev/null || "$python" -m pip install --quiet --no-deps --force-reinstall \
            "opencv-python-headless==$("$python" -c 'import importlib.metadata as m; print(m.version("opencv-python"))')"
    fi
    echo "$wanted" >"$stamp"
}

fashion_mnist() {
    local raw="${UNIMOCO_DATA:-data}/FashionMNIST/raw" debian=/usr/share/datasets/fashion-mnist name
    local names=(train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte)
    mkdir -p "$raw"
    for name in "${names[@]}"; do [ -s "$raw/$name" ] || break; done
    [ -s "$raw/$name" ] && return
    say "Fashion-MNIST into $raw"
    if [ ! -d "$debian" ] && [ -e /etc/debian_version ] && [ "$(id -u)" = 0 ]; then
        { apt-get update && apt-get install -y dataset-fashion-mnist; } >"$raw/apt.log" 2>&1 || say "apt-get failed, see $raw/apt.log"
    fi
    for name in "${names[@]}"; do
        [ -s "$raw/$name.gz" ] || { [ -d "$debian" ] && cp "$debian/$name.gz" "$raw/"; } || break
    done
    if [ ! -s "$raw/$name.gz" ]; then
        "$1/bin/python" -c 'import sys, torchvision; torchvision.datasets.FashionMNIST(sys.argv[1], download=True)' \
            "${UNIMOCO_DATA:-data}" >&2 ||
            fail "no Fashion-MNIST here: put ${names[*]/%/.gz} (github.com/zalandoresearch/fashion-mnist, data/fashion) into $PWD/$raw"
    fi
    for name in "${names[@]}"; do
        [ -s "$raw/$name" ] || { gunzip -c "$raw/$name.gz" >"$raw/$name.part" && mv "$raw/$name.part" "$raw/$name"; }
    done
}

env="$(environment)"
if [ ! -x "$env/bin/python" ]; then
    say "creating $env"
    "$(find_python)" -m venv "$env"
fi
install_packages "$env"
fashion_mnist "$env"
echo "$env"
