#!/usr/bin/env bash
# Every check of the project: set-up, formatting, lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

env="$(bash setup.sh)"
export PATH="$env/bin:$PATH"
if [ $# = 0 ]; then
    ruff format --check .
    ruff check .
    shellcheck setup.sh pretrain/*.sh results/*.sh results/studies/*.sh tests/run.sh .ci/run
    mypy
fi
# A file of tests to each core: two processes of one thread do far more than one of two.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$env/bin/python" -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
