"""Speed, kernel launches and memory on a GPU: steps of pre-training by configuration, the loss, kNN.

    python tests/benchmarks/bench_gpu.py [--record results/benchmarks/gpu.jsonl] [--only NAME ...]

Every measurement runs in a process of its own. References of a step: the bare encoder, which is what no implementation
can leave out, and a plain step in fp32. Launches are counted by torch's profiler. Where NULL_GPU names the folder of a
stand-in for the CUDA runtime, in which kernels compute nothing, they are counted by that: launches, host time and
memory of the allocator are those of a GPU, and there are no times of the device.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from common import knn
from common.files import append_text
from common.loaders import Batch
from common.run_folder import environment
from pretrain.config import Config, ModelConfig, OptimConfig
from pretrain.engine import Training, training_step
from pretrain.losses import unicon
from pretrain.model import UniMoCo
from tests.benchmarks.bench_pretrain import EncoderWork, PlainStep, loss_inputs, naive_unicon

CUDA = torch.device("cuda", 0)
SIMULATED = "NULL_GPU" in os.environ
ROUNDS, STEPS = 5, 5
IMAGES, SIZE = 256, 224
BANK, QUERIES, WIDTH = 1_281_167, 10_000, 2048  # of kNN: ImageNet's training set, features of a ResNet-50
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
BASE = Config(model=ModelConfig(arch="resnet50"), optim=OptimConfig(batch=IMAGES, precision="bf16", compile=False))

Run = Callable[[], Any]


def step(**options: Any) -> tuple[Run, str]:
    """Return a whole step of pre-training with these options, and what its encoders run as."""
    groups = options.pop("bn_groups", 8)
    config = replace(BASE, model=replace(BASE.model, bn_groups=groups), optim=replace(BASE.optim, **options))
    t = Training(config, UniMoCo(config.model), CUDA, 1000)
    q, k = views(config.optim.batch)
    batch = Batch(q, k, torch.zeros(len(q), dtype=torch.int64, device=CUDA), torch.arange(len(q), device=CUDA), {})

    def run() -> None:
        training_step(t, batch)
        t.step += 1

    return run, t.compiled


def bare(graphs: bool) -> tuple[Run, str]:
    """Return the work of the encoders in bf16, channels last, without split batch norm; its input is float already."""
    x_q, x_k = (floats(v).contiguous(memory_format=torch.channels_last) for v in views(IMAGES))
    return partial(EncoderWork(CUDA, graphs), x_q, x_k), "CUDA graphs" if graphs else "eager"


def plain() -> tuple[Run, str]:
    """Return the plain step, which has one batch-norm group."""
    x_q, x_k = (floats(v).contiguous() for v in views(IMAGES))
    return partial(PlainStep(CUDA), x_q, x_k, torch.zeros(IMAGES, dtype=torch.int64, device=CUDA)), "eager"


def views(images: int) -> tuple[Tensor, Tensor]:
    """Return the views of a batch, each (n, S, S, 3) uint8, on the device."""
    generator = torch.Generator(CUDA).manual_seed(0)
    q, k = torch.randint(0, 256, (2, images, SIZE, SIZE, 3), dtype=torch.uint8, device=CUDA, generator=generator)
    return q, k


def floats(images: Tensor) -> Tensor:
    """Turn views (n, S, S, 3) into network input (n, 3, S, S) between 0 and 1."""
    return images.permute(0, 3, 1, 2).float() / 255


def loss(function: Callable[..., Tensor]) -> tuple[Run, str]:
    """Return the forward and backward pass of a loss: N 256, C 128, K 65536, 1000 classes."""
    inputs = [x.detach().to(CUDA) if isinstance(x, Tensor) else x for x in loss_inputs()]
    inputs[0].requires_grad_()
    return lambda: function(*inputs).backward(), "eager"


def neighbours(dtype: torch.dtype) -> tuple[Run, str]:
    """Return the kNN classification of QUERIES images with a bank of BANK, features drawn at random, k = 200."""
    generator = torch.Generator(CUDA).manual_seed(0)
    bank = F.normalize(torch.randn(BANK, WIDTH, device=CUDA, generator=generator), dim=1).to(dtype)
    labels = torch.randint(0, 1000, (BANK,), device=CUDA, generator=generator)
    queries = bank[:QUERIES].clone()
    return lambda: knn.knn_predict(queries, bank, labels, 1000, k=200), str(dtype).removeprefix("torch.")


CASES: dict[str, Callable[[], tuple[Run, str]]] = {
    "eager": step,
    "CUDA graphs": partial(step, compile=True),
    "eager, fp16": partial(step, precision="fp16"),
    "eager, 1 batch-norm group": partial(step, bn_groups=1),
    "CUDA graphs, 1 batch-norm group": partial(step, bn_groups=1, compile=True),
    "bare encoder, eager": partial(bare, False),
    "bare encoder, CUDA graphs": partial(bare, True),
    "plain step, fp32": plain,
    "eager, 8 micro-batches": partial(step, accumulate=8),
    "CUDA graphs, 8 micro-batches": partial(step, accumulate=8, compile=True),
    "eager, 512 images": partial(step, batch=512),
    "eager, 768 images": partial(step, batch=768),
    "eager, 1024 images": partial(step, batch=1024),
    "CUDA graphs, 1024 images": partial(step, batch=1024, compile=True),
    "eager, 32 images, one of 8 GPUs": partial(step, batch=32, bn_groups=1),
    "CUDA graphs, 32 images, one of 8 GPUs": partial(step, batch=32, bn_groups=1, compile=True),
}
PARTS: dict[str, Callable[[], tuple[Run, str]]] = {
    "loss": partial(loss, unicon),
    "naive loss": partial(loss, naive_unicon),
}
# On a real GPU only: nothing to count, and the memory of kNN is that of its features.
LARGE: dict[str, Callable[[], tuple[Run, str]]] = {"kNN, 10,000 queries": partial(neighbours, torch.float32)}
ALL = CASES | PARTS | LARGE


def launches(run: Run) -> int:
    """Return the launches of kernels and graphs in a run."""
    if SIMULATED:
        library = ctypes.CDLL(str(Path(os.environ["NULL_GPU"], "libnull.so")))
        library.null_name.restype, library.null_value.restype = ctypes.c_char_p, ctypes.c_long
        library.null_reset()
        run()
        counts = {library.null_name(i): library.null_value(i) for i in range(library.null_count())}
        return int(counts[b"LAUNCH"])
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in profiler.key_averages() if event.key in LAUNCHES)


def measure(name: str, pipe: Connection) -> None:
    """Make what is measured, measure it, and send the figures, each when the pipe says so."""
    pipe.recv()
    run, ran_as = ALL[name]()
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    pipe.send("made")
    pipe.recv()
    torch.cuda.reset_peak_memory_stats()
    held, count = torch.cuda.memory_allocated(), launches(run)
    steps, host, whole = 1 if SIMULATED or name in LARGE else STEPS, [], []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began, busy = time.perf_counter(), time.process_time()
        run()
        host.append(time.process_time() - busy)  # other programs of the machine do not count
        for _ in range(steps - 1):
            run()
        torch.cuda.synchronize()
        whole.append((time.perf_counter() - began) / steps)
    memory = torch.cuda.memory_stats()
    pipe.send({
        "ran_as": ran_as, "launches": count, "host_ms": 1e3 * statistics.median(host),
        "step_ms": None if SIMULATED else 1e3 * statistics.median(whole),
        "spread_ms": None if SIMULATED else 1e3 * (max(whole) - min(whole)),
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "added_mib": (torch.cuda.max_memory_allocated() - held) / 2**20,
        "reserved_gib": memory["reserved_bytes.all.peak"] / 2**30,
    })  # fmt: skip


class Measurement:
    """A measurement in a process of its own, which loads its libraries at once and takes memory when it is made."""

    def __init__(self, name: str) -> None:
        self.made = self.told = self.failed = False
        self.pipe, there = multiprocessing.get_context("spawn").Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, there))
        self.process.start()
        there.close()

    def make(self) -> None:
        """Let it make what is measured; only the first call counts."""
        if not self.told:
            self.pipe.send("make")
        self.told = True

    def wait(self) -> None:
        """Wait until that is made, or has failed."""
        self.make()
        try:
            self.made = self.made or bool(self.pipe.recv())
        except EOFError:
            self.failed = True

    def figures(self) -> dict[str, Any]:
        """Return its figures; of one that failed that it did."""
        self.wait()
        row: dict[str, Any] = {"failed": True}
        if not self.failed:
            self.pipe.send("measure")
            with contextlib.suppress(EOFError):
                row = self.pipe.recv()
        self.process.join()
        return row


def main() -> int:
    """Measure, print the figures and append them to a file, a line each; return 1 where a measurement failed."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", type=Path, help="JSON lines file to append to")
    p.add_argument("--only", nargs="+", choices=list(ALL), default=list(CASES | PARTS) if SIMULATED else list(ALL))
    p.add_argument("--together", action="store_true", help="compile all at once: minutes less and 100 GiB more")
    options = p.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: no GPU here, nothing measured")
        return 0
    names = sorted(options.only, key=lambda name: not (options.together and "graphs" in name))
    together = [name for name in names if options.together and "graphs" in name]
    waiting, failed = {name: Measurement(name) for name in together}, 0
    for name in together:
        waiting[name].make()
    for name in together:
        waiting[name].wait()
    for name, following in zip(names, [*names[1:], None], strict=True):
        for one in (name, following):  # the next one loads its libraries meanwhile
            if one is not None and one not in waiting:
                waiting[one] = Measurement(one)
        row = waiting[name].figures()
        failed += "failed" in row
        print(f"{name:40} " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if options.record and "failed" not in row:
            record = {"name": name, **row, "null_gpu": SIMULATED, "environment": environment(CUDA)}
            append_text(options.record, json.dumps(record) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
