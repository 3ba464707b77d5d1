"""What pre-training, converters and benchmarks share. Every command imports it before any other package."""

import importlib.util
import os
import sys

# Threads that wait for each other in a parallel loop try 10,000 times before they sleep. OpenMP's default of 300,000
# keeps cores from the threads that are waited for, where other processes use them, too; without trying, each wait
# costs a wake-up. Measured by tests/benchmarks/bench_busy.py. libgomp reads it when it is loaded, with torch.
WAITING = {"GOMP_SPINCOUNT": "10000"}
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ.update(WAITING)

NEEDED = ("torch", "timm", "cv2", "jsonargparse")

_missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    print(
        f"error: {sys.executable} has no {', '.join(_missing)}: activate the project's environment "
        "(source .venv/bin/activate, or conda activate), or make it (bash setup.sh)",
        file=sys.stderr,
    )
    sys.exit(2)
