"""Kernel launches, host time and memory of a pre-training step on a GPU, by configuration.

    python tests/benchmarks/bench_gpu.py [--record results/benchmarks/gpu.jsonl]

Launches are counted by torch's profiler. Where NULL_GPU names the folder of a stand-in for the CUDA runtime, in which
kernels compute nothing, they are counted by that: launches, host time and memory of the allocator are those of a GPU,
and the time of a step is not. Every configuration runs in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common.loaders import Batch
from common.run_folder import environment
from pretrain.config import Config, ModelConfig, OptimConfig
from pretrain.engine import Training, training_step
from pretrain.model import UniMoCo

ROUNDS = 5
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
BASE = Config(model=ModelConfig(arch="resnet50"), optim=OptimConfig(batch=256, precision="bf16", compile=False))
CASES: dict[str, dict[str, Any]] = {
    "eager": {},
    "CUDA graphs": {"compile": True},
    "eager, 8 micro-batches": {"accumulate": 8},
    "CUDA graphs, 8 micro-batches": {"accumulate": 8, "compile": True},
    "eager, 512 images": {"batch": 512},
    "eager, 768 images": {"batch": 768},
    "eager, 32 images, one of 8 GPUs": {"batch": 32, "bn_groups": 1},
    "CUDA graphs, 32 images, one of 8 GPUs": {"batch": 32, "bn_groups": 1, "compile": True},
}


def launches(step: Callable[[], None]) -> int:
    """Return the launches of kernels and graphs in a step."""
    if "NULL_GPU" in os.environ:
        library = ctypes.CDLL(str(Path(os.environ["NULL_GPU"], "libnull.so")))
        library.null_name.restype, library.null_value.restype = ctypes.c_char_p, ctypes.c_long
        library.null_reset()
        step()
        counts = {library.null_name(i): library.null_value(i) for i in range(library.null_count())}
        return int(counts[b"LAUNCH"])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    return sum(event.count for event in profiler.key_averages() if event.key in LAUNCHES)


def measure(options: dict[str, Any], pipe: Any) -> None:
    """Send the figures of one configuration through a pipe."""
    groups = options.pop("bn_groups", 8)
    config = replace(BASE, model=replace(BASE.model, bn_groups=groups), optim=replace(BASE.optim, **options))
    device, n = torch.device("cuda", 0), config.optim.batch
    t = Training(config, UniMoCo(config.model), device, 1000)
    views = torch.zeros((n, config.views.size, config.views.size, 3), dtype=torch.uint8)
    batch = Batch(views, views.clone(), torch.zeros(n, dtype=torch.int64), torch.arange(n), {}).pin_memory()

    def step() -> None:
        training_step(t, batch)
        t.step += 1

    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    count, host, whole = launches(step), [], []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began, busy = time.perf_counter(), time.process_time()
        step()
        host.append(time.process_time() - busy)  # other programs of the machine do not count
        torch.cuda.synchronize()
        whole.append(time.perf_counter() - began)
    statistics_of_memory = torch.cuda.memory_stats()
    pipe.send({
        "ran_as": t.compiled, "launches": count, "host_ms": 1e3 * statistics.median(host),
        "step_ms": None if "NULL_GPU" in os.environ else 1e3 * statistics.median(whole),
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": statistics_of_memory["reserved_bytes.all.peak"] / 2**30,
    })  # fmt: skip


def main() -> None:
    """Measure every configuration, print the table and append it to a file."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", type=Path, help="JSON lines file to append to")
    p.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = p.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: no GPU here, nothing measured")
        return
    context, rows = multiprocessing.get_context("spawn"), {}
    for name in options.only:
        here, there = context.Pipe()
        process = context.Process(target=measure, args=(dict(CASES[name]), there))
        process.start()
        there.close()
        rows[name] = here.recv()
        process.join()
        print(f"{name:40} " + ", ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
    record = {"cases": rows, "null_gpu": "NULL_GPU" in os.environ, "environment": environment(torch.device("cuda", 0))}
    if options.record:
        with open(options.record, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
