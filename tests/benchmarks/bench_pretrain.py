"""Speed and memory of pre-training against plain references, as ratios measured in one run on one machine.

    python tests/benchmarks/bench_pretrain.py [--rounds 5] [--record results/records/benchmarks.jsonl]

The variants of a row take turns, so that a busy machine slows all of them; a figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from pretrain.augment import MEAN, STD, ViewConfig, ViewMaker
from pretrain.config import Config, OptimConfig
from pretrain.data import Batch
from pretrain.engine import Training, autocast_type, training_step
from pretrain.losses import positives, unicon
from pretrain.run_folder import environment
from pretrain.unimoco import ModelConfig, UniMoCo

ARCH, SIZE, BATCH, QUEUE, TEMPERATURE = "resnet50", 224, 16, 65536, 0.2
CPU = torch.device("cpu")


def naive_unicon(q: Tensor, k: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, t: float) -> Tensor:
    """UniCon as the paper writes it: a multi-hot target and sums of exponentials in linear space."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1) / t
    target = torch.cat([torch.ones(len(q), 1), positives(labels, queue_labels).float()], dim=1)
    negative = (torch.exp(logits) * (1 - target)).sum(1)
    positive = (torch.exp(-logits) * target).sum(1)
    return torch.log(1 + negative * positive).mean()


class PlainStep:
    """A step as MoCo's pseudo-code has it (arXiv 1911.05722, algorithm 1): NCHW, fp32, EMA tensor by tensor."""

    def __init__(self) -> None:
        encoder = timm.create_model(ARCH, num_classes=0)
        encoder.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
        self.q, self.k = encoder, copy.deepcopy(encoder).requires_grad_(False)
        self.queue = F.normalize(torch.randn(128, QUEUE), dim=0)
        self.labels = torch.randint(0, 1000, (QUEUE,))
        self.pointer = 0
        self.optimizer = torch.optim.SGD(self.q.parameters(), 0.03, 0.9, weight_decay=1e-4, foreach=False)

    def __call__(self, x_q: Tensor, x_k: Tensor, labels: Tensor) -> None:
        q = F.normalize(self.q(x_q), dim=1)
        with torch.no_grad():
            for key, query in zip(self.k.parameters(), self.q.parameters(), strict=True):
                key.data = key.data * 0.999 + query.data * 0.001
            order = torch.randperm(len(x_k))
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

    def __init__(self) -> None:
        encoder = timm.create_model(ARCH, num_classes=0)
        encoder.fc = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128))
        self.q = encoder.to(memory_format=torch.channels_last)
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.dtype = autocast_type("auto", CPU)

    def __call__(self, x_q: Tensor, x_k: Tensor) -> None:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            q = self.q(x_q)
            with torch.no_grad():
                self.k(x_k)
        q.float().sum().backward()
        self.q.zero_grad()


def take_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each variant; one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_steps(rounds: int) -> dict[str, float]:
    """The whole step, the plain step and the bare encoder work: seconds."""
    config = Config(
        model=ModelConfig(arch=ARCH, queue=QUEUE, temperature=TEMPERATURE, bn_groups=2), optim=OptimConfig(batch=BATCH)
    )
    training = Training(config, UniMoCo(config.model), CPU, steps_per_epoch=1000)
    views = torch.randint(0, 256, (2, BATCH, SIZE, SIZE, 3), dtype=torch.uint8)
    labels = torch.randint(0, 1000, (BATCH,))
    batch = Batch(views[0], views[1], labels, torch.arange(BATCH), {})
    nchw = [v.permute(0, 3, 1, 2).float().contiguous() / 255 for v in views]
    nhwc = [x.to(memory_format=torch.channels_last) for x in nchw]
    plain, bare = PlainStep(), EncoderWork()
    return take_turns(
        {
            "ours": lambda: training_step(training, batch),
            "plain": lambda: plain(nchw[0], nchw[1], labels),
            "bare": lambda: bare(nhwc[0], nhwc[1]),
        },
        rounds,
    )


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


def two_views(rounds: int, images: int = 40) -> dict[str, float]:
    """Decoding a 500 x 375 JPEG and making two views of 224, on one core: seconds an image."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    photo = cv2.resize(load_sample_image("china.jpg"), (500, 375))
    jpeg = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    pil, make_view, data = pil_pipeline(), ViewMaker(ViewConfig()), jpeg.tobytes()

    def ours() -> None:
        for number in range(images):
            rng = np.random.default_rng((0, 0, number))
            image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
            make_view(image, rng)
            make_view(image, rng)

    def theirs() -> None:
        for _ in range(images):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            pil(image)
            pil(image)

    return {name: value / images for name, value in take_turns({"ours": ours, "plain": theirs}, rounds).items()}


def loss_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    """N 256, C 128, K 65536, 1000 classes, all labelled."""
    generator = torch.Generator().manual_seed(0)
    q, k = (F.normalize(torch.randn(256, 128, generator=generator), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(128, QUEUE, generator=generator), dim=0)
    labels, queue_labels = (torch.randint(0, 1000, (n,), generator=generator) for n in (256, QUEUE))
    return q.requires_grad_(), k, queue, labels, queue_labels, TEMPERATURE


def loss_seconds(rounds: int) -> dict[str, float]:
    """Forward and backward of the loss: seconds."""
    inputs = loss_inputs()
    return take_turns(
        {"ours": lambda: unicon(*inputs).backward(), "plain": lambda: naive_unicon(*inputs).backward()}, 3 * rounds
    )


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
    where = environment(CPU)
    steps, loss, memory = training_steps(options.rounds), loss_seconds(options.rounds), loss_memory()
    views = two_views(options.rounds)  # last: it leaves torch with one thread
    rows = [
        ("training step / plain step: speed", steps["plain"] / steps["ours"], 2.5, "at least"),
        ("training step / bare encoder work: speed", steps["bare"] / steps["ours"], 0.9, "at least"),
        ("two views / PIL + torchvision: speed", views["plain"] / views["ours"], 3.0, "at least"),
        ("loss / naive loss: time", loss["ours"] / loss["plain"], 0.5, "at most"),
        ("loss / naive loss: peak memory", memory["ours"] / memory["plain"], 0.5, "at most"),
    ]
    for name, ratio, bound, sense in rows:
        print(f"{name:45} {ratio:6.2f}   (wanted: {sense} {bound})")
    print({name: round(BATCH / s, 2) for name, s in steps.items()}, "images/s")
    print({name: round(1 / s, 1) for name, s in views.items()}, "images/s of two views, one core")
    print({name: round(s * 1e3, 1) for name, s in loss.items()}, "ms", {n: round(m) for n, m in memory.items()}, "MiB")
    if options.record:
        record = {
            "rounds": options.rounds,
            "ratios": {name: ratio for name, ratio, _, _ in rows},
            "seconds": {"step": steps, "views": views, "loss": loss},
            "loss_mib": memory,
            "bf16": autocast_type("auto", CPU) is not None,
            **where,
        }
        with open(options.record, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
