#!/usr/bin/env bash
# One environment for everything. Safe to run again: what is there is skipped. The last line, on stdout, is its folder.
#   bash setup.sh                           .venv here, or the conda / virtual environment that is active
#   bash setup.sh --with-system-packages    with apt-get, as root: Debian's copy of Fashion-MNIST, what some tests start
# Environment variables:
#   UNIMOCO_ENV=DIR      an environment in DIR
#   UNIMOCO_EXTRAS=E,E   of detectron2, mmseg, mmdet, study, dev (default: all,dev); core: none of them
#   TORCH=cpu|cu126|…    torch's wheel index (default: PyPI's build, or an older CUDA's where the driver is older)
#   PYTHON=PROGRAM       Python 3.11, 3.12 or 3.13
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

extras="${UNIMOCO_EXTRAS:-all,dev}"
detectron2=transfer/detection/requirements-detectron2.txt
system_packages=(dataset-fashion-mnist slurm-wlm munge chromium chromium-driver texlive-latex-base texlive-latex-recommended)

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3 python; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || fail "PYTHON=$PYTHON: not Python 3.11, 3.12 or 3.13"
    done
    fail "no Python 3.11, 3.12 or 3.13 here; one of these brings it: apt-get install python3 python3-venv," \
        "conda create -n unimoco python=3.12 && conda activate unimoco, uv python install 3.12"
}

environment() {
    if [ -n "${UNIMOCO_ENV:-}" ]; then echo "$UNIMOCO_ENV"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then echo "$CONDA_PREFIX"
    elif [ -n "${VIRTUAL_ENV:-}" ]; then echo "$VIRTUAL_ENV"
    else echo .venv
    fi
}

create() {
    local found
    found="$(find_python)" || exit
    say "creating $1 with $found"
    if command -v uv >/dev/null; then uv venv --quiet --python "$found" "$1" >&2
    else "$found" -m venv "$1" >&2 || fail "$found makes no environments: apt-get install python3-venv"
    fi
}

# torch's wheel index: PyPI's build wants a driver of CUDA 13; with an older one it would train on the CPU.
torch_index() {
    local driver
    if [ -n "${TORCH:-}" ]; then echo "$TORCH"
    elif driver="$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\)\.\([0-9]*\).*/\1\2/p')" && [ -n "$driver" ]; then
        if [ "$driver" -ge 130 ]; then :
        elif [ "$driver" -ge 126 ]; then echo cu126
        else fail "the NVIDIA driver is for CUDA ${driver%?}.${driver: -1}, torch wants 12.6 or above:" \
            "renew the driver, or set TORCH=cpu"
        fi
    fi
}

install() {
    local quiet=()
    [ -t 2 ] || quiet=(--quiet) # a progress bar is for a terminal
    if command -v uv >/dev/null; then uv pip install "${quiet[@]}" --python "$python" "$@" >&2
    else "$python" -m pip install --disable-pip-version-check "${quiet[@]}" "$@" >&2
    fi
}

install_packages() {
    local stamp="$1/.unimoco-stamp" wanted project=. index began=$SECONDS
    supported "$python" || fail "$1 is not an environment of Python 3.11, 3.12 or 3.13; conda env create -f environment.yml makes one"
    wanted="$PWD $({ cat pyproject.toml constraints.txt "$detectron2" setup.sh; echo "$extras ${TORCH:-}"; } | sha256sum | cut -c1-64)"
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    if [ "$(cut -d' ' -f2 "$stamp" 2>/dev/null)" = "${wanted##* }" ]; then
        say "$1 has every package; pointing it at $PWD"
        install --no-deps --editable .
    else
        index="$(torch_index)"
        say "1/3 torch into $1 (${TORCH:+TORCH=$TORCH; }some GB and minutes; TORCH=cpu is the small one)"
        install ${index:+--extra-index-url "https://download.pytorch.org/whl/$index"} -c constraints.txt torch torchvision
        [ "$extras" = core ] || project=".[$extras]"
        say "2/3 the packages of $project"
        install -c constraints.txt --editable "$project"
        if [[ ",$extras," == *,all,* || ",$extras," == *,detectron2,* ]]; then
            say "3/3 detectron2"
            "$python" -m transfer.detection.install
        fi
        # Where the system has no libGL, the headless build of the same OpenCV takes the place of the full one.
        "$python" -c 'import cv2' 2>/dev/null || install --no-deps --force-reinstall \
            "opencv-python-headless==$("$python" -c 'import importlib.metadata as m; print(m.version("opencv-python"))')"
        say "done in $((SECONDS - began)) s, $(du -sh "$1" | cut -f1)"
    fi
    echo "$wanted" >"$stamp"
}

add_system_packages() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then fail "--with-system-packages needs root and apt-get"; fi
    local missing=() name
    for name in "${system_packages[@]}"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "apt-get install ${missing[*]}"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >&2 ||
        fail "apt-get failed, see above"
}

case "${1:-}" in
"") ;;
--with-system-packages) add_system_packages ;;
*) fail "$1: unknown; bash setup.sh takes --with-system-packages alone" ;;
esac
env="$(environment)"
python="$env/bin/python"
[ -x "$python" ] || create "$env"
install_packages "$env"
echo "$env"
