.PHONY: setup format lint types test benchmark check
setup:      ; bash setup.sh
format:     ; ruff format . && ruff check --fix .
lint:       ; ruff format --check . && ruff check . && shellcheck setup.sh pretrain/*.sh results/*.sh tests/run.sh .ci/run
types:      ; mypy
test:       ; python -m pytest
benchmark:  ; for file in tests/benchmarks/bench_*.py; do python "$$file" || exit; done
check:      ; bash tests/run.sh
