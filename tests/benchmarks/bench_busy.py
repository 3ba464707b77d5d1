"""How much other work slows a training step down, by how long OpenMP threads try before they sleep.

    python tests/benchmarks/bench_busy.py [--rounds 5] [--record results/benchmarks/busy.jsonl]

The step of the small-scale recipe, with a thread for each core and the allocator of pretrain/run.sh: alone, and beside
a busy loop for each core, in a session of its own like a command in another terminal. Each setting runs in processes of
its own, and they take turns. A figure is the median over the rounds; a fair half of each core would make the ratio 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from common import WAITING
from common.files import append_text
from common.loaders import Batch
from common.run_folder import environment
from common.surroundings import cores
from pretrain.config import parse
from pretrain.engine import Training, training_step
from pretrain.model import UniMoCo
from tests.benchmarks.bench_check import processor
from tests.benchmarks.bench_pretrain import KEPT_MEMORY

STEPS = 12  # timed
LIMIT = 2.5  # wanted: a step beside the loops over a step alone, at most
OURS = "ours: " + ", ".join(f"{name}={value}" for name, value in WAITING.items())
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    OURS: WAITING,
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}


def measure() -> None:
    """Print the median seconds of a step, alone and beside busy loops."""
    torch.set_num_threads(cores())
    config = parse(["--recipe", "fashion"])
    training = Training(config, UniMoCo(config.model), torch.device("cpu"), steps_per_epoch=400)
    n, side = config.optim.batch, config.views.size
    views = torch.randint(0, 256, (2, n, side, side, 3), dtype=torch.uint8)
    batch = Batch(views[0], views[1], torch.randint(0, 10, (n,)), torch.arange(n), {})

    def seconds() -> float:
        taken = []
        for _ in range(STEPS):
            began = time.perf_counter()
            training_step(training, batch)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    seconds()  # to warm up
    alone = seconds()
    loop = [
        sys.executable,
        "-c",
        f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10**6))",
    ]  # ends with this
    loops = [subprocess.Popen(loop, start_new_session=True) for _ in range(cores())]
    try:
        time.sleep(0.5)
        print(alone, seconds())
    finally:
        for process in loops:
            process.kill()


def main() -> None:
    """Measure each setting, print the table, and append a record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each setting (default: 5)")
    parser.add_argument("--record", type=Path, help="file to append one JSON line to")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure()
        return
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    for _ in range(given.rounds):
        for name, setting in SETTINGS.items():
            done = subprocess.run(
                [sys.executable, __file__, "--measure"], env=others | KEPT_MEMORY | setting, check=True,
                stdout=subprocess.PIPE, encoding="utf-8",
            )  # fmt: skip
            alone, busy = map(float, done.stdout.split())
            found[name].append((alone, busy))
    rows = {}
    for name, pairs in found.items():
        alone, busy = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows[name] = {"alone": alone, "busy": busy, "ratio": busy / alone}
        print(
            f"{name:30} alone {alone * 1e3:6.0f} ms, busy {busy * 1e3:6.0f} ms: {busy / alone:5.2f} (wanted: {LIMIT})"
        )
    if given.record:
        cpu = {"cpu": processor(), "cores": cores()}
        row = {"rounds": given.rounds, "seconds": rows, **cpu, **environment(torch.device("cpu"))}
        append_text(given.record, json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
