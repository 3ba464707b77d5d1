"""Speed and memory of pre-training against plain references, as ratios measured in one run on one machine.

    python tests/benchmarks/bench_pretrain.py [--rounds 5] [--record results/benchmarks/pretrain.jsonl]

Each variant lives in a process of its own, so that none finds memory that another has warmed, and they take turns, so
that a busy machine slows all of them; a figure is the median over the rounds. Ours has the allocator settings that
pretrain/run.sh exports, the references those of a plain script; step and loss are also compared with both alike.
The page is made of the newest record: `python results/tables.py`.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import cv2
import numpy as np
import timm
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from common.loaders import Batch
from common.precision import autocast_dtype
from common.run_folder import environment
from common.transforms import MEAN, STD, ViewConfig, ViewMaker
from pretrain.config import Config, ModelConfig, OptimConfig
from pretrain.engine import Training, training_step
from pretrain.losses import positives, unicon
from pretrain.model import UniMoCo
from tests.benchmarks.bench_check import processor

ARCH, SIZE, BATCH, QUEUE, TEMPERATURE = "resnet50", 224, 16, 65536, 0.2
IMAGES = 40  # in a round of views
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # pretrain/run.sh's
# The same for blocks of any size; the naive loss has some of 64 MiB, which run.sh's settings give back.
ALL_MEMORY = KEPT_MEMORY | {"MALLOC_MMAP_THRESHOLD_": "4294967296"}
CPU = torch.device("cpu")


def naive_unicon(q: Tensor, k: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, t: float) -> Tensor:
    """UniCon as the paper writes it: a multi-hot target and sums of exponentials in linear space."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1) / t
    target = torch.cat([torch.ones(len(q), 1, device=q.device), positives(labels, queue_labels).float()], dim=1)
    negative = (torch.exp(logits) * (1 - target)).sum(1)
    positive = (torch.exp(-logits) * target).sum(1)
    return torch.log(1 + negative * positive).mean()


def encoder_with_head() -> nn.Module:
    """The query encoder of the references, NCHW."""
    encoder = timm.create_model(ARCH, num_classes=0)
    encoder.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
    return encoder


class PlainStep:
    """A step as MoCo's pseudo-code has it (arXiv 1911.05722, algorithm 1): NCHW, fp32, EMA tensor by tensor."""

    def __init__(self, device: torch.device = CPU) -> None:
        encoder = encoder_with_head().to(device)
        self.q, self.k = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.queue = F.normalize(torch.randn(128, QUEUE, device=device), dim=0)
        self.labels = torch.randint(0, 1000, (QUEUE,), device=device)
        self.pointer = 0
        self.optimizer = torch.optim.SGD(self.q.parameters(), 0.03, 0.9, weight_decay=1e-4, foreach=False)

    def __call__(self, x_q: Tensor, x_k: Tensor, labels: Tensor) -> None:
        q = F.normalize(self.q(x_q), dim=1)
        with torch.no_grad():
            for key, query in zip(self.k.parameters(), self.q.parameters(), strict=True):
                key.data = key.data * 0.999 + query.data * 0.001
            order = torch.randperm(len(x_k), device=x_k.device)
            k = F.normalize(self.k(x_k[order]), dim=1)[torch.argsort(order)]
        loss = naive_unicon(q, k, self.queue, labels, self.labels, TEMPERATURE)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.queue[:, self.pointer : self.pointer + len(k)] = k.T
        self.labels[self.pointer : self.pointer + len(k)] = labels
        self.pointer = (self.pointer + len(k)) % QUEUE


class EncoderWork:
    """What no implementation can leave out: query forward and backward, key forward; our format and precision."""

    def __init__(self, device: torch.device = CPU, graphs: bool = False) -> None:
        self.q = encoder_with_head().to(device, memory_format=torch.channels_last)
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.dtype = autocast_dtype("auto", device)
        if graphs:
            for encoder in (self.q, self.k):
                encoder.compile(mode="reduce-overhead")

    def __call__(self, x_q: Tensor, x_k: Tensor) -> None:
        with torch.autocast(x_q.device.type, self.dtype, enabled=self.dtype is not None):
            with torch.no_grad():
                self.k(x_k)
            q = self.q(x_q)
        q.float().sum().backward()
        self.q.zero_grad()


Variant = Callable[[], Callable[[], object]]  # makes what is measured, in the process where it is measured


class Alone:
    """A variant in a process of its own."""

    def __init__(self, make: Variant, allocator: dict[str, str], threads: int) -> None:
        """allocator: variables of the process, as KEPT_MEMORY: freed memory is kept for the next use."""
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        for name in KEPT_MEMORY:
            os.environ.pop(name, None)
        os.environ.update(allocator)
        self.process = context.Process(target=_serve, args=(make, threads, there), daemon=True)
        self.process.start()

    def seconds(self) -> float:
        """One run."""
        self.pipe.send("go")
        taken: float = self.pipe.recv()
        return taken

    def end(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.join()


def _serve(make: Variant, threads: int, pipe: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(threads)
    cv2.setNumThreads(0)
    run = make()
    while True:
        pipe.recv()
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)


def take_turns(
    variants: dict[str, tuple[Variant, dict[str, str]]], rounds: int, threads: int | None = None
) -> dict[str, float]:
    """Median seconds of each variant, given with the allocator's variables; two rounds to warm up."""
    count = threads or torch.get_num_threads()
    alone = {name: Alone(make, allocator, count) for name, (make, allocator) in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, variant in alone.items():
            taken = variant.seconds()
            if number >= 2:
                seconds[name].append(taken)
    for variant in alone.values():
        variant.end()
    return {name: statistics.median(values) for name, values in seconds.items()}


def step_inputs() -> tuple[Tensor, Tensor]:
    """(2, N, S, S, 3) uint8 views and (N,) labels."""
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (2, BATCH, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    return views, torch.randint(0, 1000, (BATCH,), generator=generator)


def our_step() -> Callable[[], object]:
    """The whole step."""
    config = Config(
        model=ModelConfig(arch=ARCH, queue_size=QUEUE, temperature=TEMPERATURE, bn_groups=2),
        optim=OptimConfig(batch=BATCH),
    )
    training = Training(config, UniMoCo(config.model), CPU, steps_per_epoch=1000)
    views, labels = step_inputs()
    batch = Batch(views[0], views[1], labels, torch.arange(BATCH), {})
    return lambda: training_step(training, batch)


def plain_step() -> Callable[[], object]:
    """The reference step, on images that are floats already."""
    views, labels = step_inputs()
    x_q, x_k = (v.permute(0, 3, 1, 2).float().contiguous() / 255 for v in views)
    plain = PlainStep()
    return lambda: plain(x_q, x_k, labels)


def bare_step() -> Callable[[], object]:
    """The encoder work, on images that are floats already."""
    views, _ = step_inputs()
    x_q, x_k = (v.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last) / 255 for v in views)
    bare = EncoderWork()
    return lambda: bare(x_q, x_k)


def pil_pipeline() -> transforms.Compose:
    """MoCo v2's views as its authors write them."""

    def gaussian(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.Lambda(gaussian)], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def photograph() -> np.ndarray:
    """A 500 x 375 JPEG file."""
    photo = cv2.resize(load_sample_image("china.jpg"), (500, 375))
    return cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]


def our_views() -> Callable[[], object]:
    """Decoding and two views of IMAGES images."""
    jpeg, make_view = photograph(), ViewMaker(ViewConfig())

    def run() -> None:
        for number in range(IMAGES):
            rng = np.random.default_rng((0, 0, number))
            image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
            make_view(image, rng)
            make_view(image, rng)

    return run


def plain_views() -> Callable[[], object]:
    """The same with PIL and torchvision."""
    data, pil = photograph().tobytes(), pil_pipeline()

    def run() -> None:
        for _ in range(IMAGES):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            pil(image)
            pil(image)

    return run


def loss_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """N 256, C 128, K 65536, 1000 classes, all labelled."""
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(256, 128, generator=generator), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(128, QUEUE, generator=generator), dim=0)
    labels, queue_labels = (torch.randint(0, 1000, (n,), generator=generator) for n in (256, QUEUE))
    return q.requires_grad_(), k, queue, labels, queue_labels, TEMPERATURE


def our_loss() -> Callable[[], object]:
    """Forward and backward of the loss."""
    inputs = loss_inputs()
    return lambda: unicon(*inputs).backward()


def plain_loss() -> Callable[[], object]:
    """Forward and backward of the naive loss."""
    inputs = loss_inputs()
    return lambda: naive_unicon(*inputs).backward()


def _peak(name: str, pipe: multiprocessing.connection.Connection) -> None:
    inputs = loss_inputs()
    inputs[0] @ inputs[2][:, :64]  # the maths library's own buffers are nobody's
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = _resident_peak()
    {"ours": unicon, "plain": naive_unicon}[name](*inputs).backward()
    pipe.send((_resident_peak() - before) / 1024)


def _resident_peak() -> int:
    """Peak resident memory of this process, KiB."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1])


def loss_memory() -> dict[str, float]:
    """Peak memory that the loss adds to its inputs, each in a process of its own: MiB."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in ("ours", "plain"):
        here, there = context.Pipe()
        process = context.Process(target=_peak, args=(name, there))
        process.start()
        peaks[name] = here.recv()
        process.join()
    return peaks


def main() -> None:
    """Measures everything, prints the table, and appends a record where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each variant (default: 5)")
    parser.add_argument("--record", type=Path, help="file to append one JSON line to")
    options = parser.parse_args()
    where, n, bf16 = environment(CPU), options.rounds, autocast_dtype("auto", CPU) is not None
    variants = {
        "ours": (our_step, KEPT_MEMORY), "plain": (plain_step, {}), "bare": (bare_step, KEPT_MEMORY),
        "plain_as_ours": (plain_step, KEPT_MEMORY),
    }  # fmt: skip
    steps = take_turns(variants, n)
    views = take_turns({"ours": (our_views, KEPT_MEMORY), "plain": (plain_views, {})}, n, threads=1)
    losses = {
        "ours": (our_loss, KEPT_MEMORY), "plain": (plain_loss, {}), "ours_as_plain": (our_loss, {}),
        "ours_all": (our_loss, ALL_MEMORY), "plain_all": (plain_loss, ALL_MEMORY),
    }  # fmt: skip
    loss, memory = take_turns(losses, 3 * n), loss_memory()
    rows = [
        ("training step / plain step: speed", steps["plain"] / steps["ours"], 2.6 if bf16 else 1.4, "at least"),
        ("step, both with run.sh's allocator", steps["plain_as_ours"] / steps["ours"], None, ""),
        ("training step / bare encoder work: speed", steps["bare"] / steps["ours"], 0.97, "at least"),
        ("two views / PIL + torchvision: speed", views["plain"] / views["ours"], 3.5, "at least"),
        ("loss / naive loss: time", loss["ours"] / loss["plain"], 0.5, "at most"),
        ("loss, both with a plain script's allocator", loss["ours_as_plain"] / loss["plain"], 0.5, "at most"),
        ("loss, both with an allocator that keeps all", loss["ours_all"] / loss["plain_all"], 0.6, "at most"),
        ("loss / naive loss: peak memory", memory["ours"] / memory["plain"], 0.5, "at most"),
    ]
    for name, ratio, bound, sense in rows:
        print(f"{name:48} {ratio:6.2f}" + (f"   (wanted: {sense} {bound})" if bound else ""))
    print({name: round(BATCH / s, 2) for name, s in steps.items()}, "images/s")
    print({name: round(IMAGES / s, 1) for name, s in views.items()}, "images/s of two views, one core")
    print({name: round(s * 1e3, 1) for name, s in loss.items()}, "ms", {n: round(m) for n, m in memory.items()}, "MiB")
    if options.record:
        record = {
            "rounds": options.rounds,
            "ratios": {name: ratio for name, ratio, _, _ in rows},
            "seconds": {"step": steps, "views": views, "loss": loss},
            "loss_mib": memory,
            "bf16": bf16,
            "cpu": processor(),
            **where,
        }
        with open(options.record, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
