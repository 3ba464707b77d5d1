"""What a run would take on given GPUs, from one step on a fake GPU: memory, time, network, loaders.

    bash pretrain/run.sh --recipe imagenet_800ep --dry-run --gpus 8 --gpu h100

Neither a GPU nor the images are needed. Memory and operations are counted; seconds are an estimate from the data sheet
of the GPU, whose assumptions are printed with it.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from common.images import load_images
from common.loaders import Batch
from common.transforms import ViewMaker
from pretrain.config import CROSS_ENTROPY, Config, PlanOptions
from pretrain.engine import Model, Training
from pretrain.fake_cuda import CUDA, fake_cuda, move
from pretrain.model import build_model

GIB = 2**30
BLOCK = 512  # bytes; torch's allocator rounds up to them
BACKWARD = 2  # times the operations and memory traffic of a forward pass
# Reached of a data sheet's arithmetic and bandwidth. So NVIDIA's training of a ResNet-50 (DeepLearningExamples@291f0d0,
# PyTorch/Classification/ConvNets/resnet50v1.5: 2,470 img/s on an A100 80 GB, 1,156 on a V100 32 GB in mixed precision,
# 356 in fp32) is met within 10 %.
REACHED = 0.6, 0.8
HOST = 10e-3  # seconds that the host needs for a step with CUDA graphs: 9.9 beside an H200 (bench_gpu.py)
IMAGES = {"imagenet": 1_281_167, "moco": 1_281_167, "fashion": 60_000}  # by the start of a recipe's name
PHOTO = (375, 500)  # a typical photo of ImageNet, in pixels


@dataclass(frozen=True)
class Gpu:
    """A data sheet: dense TFLOP/s in half precision and in fp32, GB/s and GiB of memory, and bfloat16 or not."""

    half: float
    single: float
    bandwidth: float
    memory: float
    bf16: bool = True


# NVIDIA's data sheets: H200 SXM, H100 SXM5, A100 SXM4 80 GB, V100 SXM2 32 GB, GeForce RTX 4090.
GPUS = {
    "h200": Gpu(989, 67, 4800, 141),
    "h100": Gpu(989, 67, 3350, 80),
    "a100": Gpu(312, 19.5, 2039, 80),
    "v100": Gpu(125, 15.7, 900, 32, bf16=False),
    "4090": Gpu(165, 82.6, 1008, 24),
}


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        parameters: trained ones.
        flops: of one image in one training step: query encoder forward and backward, key encoder forward.
        precision: that the options resolve to on this GPU.
        memory: peak of torch's allocator on each GPU in GiB, without compilation.
        network: GiB that each GPU sends in a step.
        seconds: of a step on the GPU, estimated.
        images: in the training set.
        batch: images per step over all GPUs.
        steps: of the whole run.
        gpus: how many.
        gpu: which.
    """

    parameters: int
    flops: float
    precision: str
    memory: float
    network: float
    seconds: float
    images: int
    batch: int
    steps: int
    gpus: int
    gpu: str

    @property
    def images_per_second(self) -> float:
        """What the loaders must deliver, over all GPUs."""
        return self.batch / self.seconds

    @property
    def hours(self) -> float:
        """Wall time of the run; the loaders and the network are taken to keep up."""
        return self.steps * self.seconds / 3600


class Usage(TorchDispatchMode):
    """Follows the bytes that live on the GPU, their peak, and the bytes that operations read and write there."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.traffic = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(t) if isinstance(x, Tensor) and x.is_cuda] for t in (args, out))
        if not func.is_view and made:
            self.traffic += sum(x.numel() * x.element_size() for x in (*given, *made))
        for x in made:
            self._follow(x.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _ForwardDoneError(Exception):
    """The first micro-batch has reached its backward pass: activations and gradients are allocated."""


class _DryTraining(Training):
    """A training that ends where the first backward pass begins."""

    def wrap(self) -> nn.Module:
        self.model.encoder_q.no_sync = nullcontext
        return self.model.encoder_q

    def backward(self, loss: Tensor) -> Tensor:
        self.gradients = [torch.zeros_like(p) for p in self.model.encoder_q.parameters()]
        raise _ForwardDoneError


def make_plan(config: Config, options: PlanOptions) -> Plan:
    """Return what a run of this configuration would take.

    Raises:
        ValueError: an unknown GPU or number of images, or a batch that does not divide over the GPUs.
    """
    if options.gpu not in GPUS:
        raise ValueError(f"--gpu {options.gpu}: must be one of {', '.join(GPUS)}")
    if options.gpus < 1:
        raise ValueError(f"--gpus {options.gpus}: must be 1 or more")
    images, c, gpu = count_images(config, options.images), config.optim, GPUS[options.gpu]
    if images < c.batch:
        raise ValueError(f"{images} training images do not fill a batch; use --optim.batch {images} or less")
    config = replace(config, optim=replace(c, compile=False))
    model = build_model(config, images, classes=1000)
    with _ranks(options.gpus), fake_cuda(gpu.bf16), Usage() as usage:
        if c.batch % options.gpus:
            raise ValueError(f"optim.batch={c.batch} does not divide by {options.gpus} processes")
        move(model)
        t = _DryTraining(config, model, CUDA, images // c.batch)
        for p in model.encoder_q.parameters():
            t.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        each, traffic = _forward(t, c.batch // options.gpus, usage)
        precision, steps = str(t.dtype or torch.float32).removeprefix("torch."), t.steps
    flops = each * (1 + BACKWARD + len(list(model.children())) - 1)
    speed = (gpu.single if precision == "float32" else gpu.half) * 1e12 * REACHED[0]
    seconds = max(flops * c.batch / options.gpus / speed, traffic / (gpu.bandwidth * 1e9 * REACHED[1]), HOST)
    sent = _sent(config, model, options.gpus)
    return Plan(
        sum(p.numel() for p in model.encoder_q.parameters()), flops, precision, usage.peak / GIB, sent / GIB, seconds,
        images, c.batch, steps, options.gpus, options.gpu,
    )  # fmt: skip


def _forward(t: _DryTraining, n: int, usage: Usage) -> tuple[float, float]:
    """Run a step up to its first backward pass on n images.

    Returns:
        Operations of one encoder on one image, and the bytes that a whole step moves in the memory of a GPU.
    """
    size, micro = t.config.views.size, t.config.optim.accumulate
    views = torch.zeros((n, size, size, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        before = usage.traffic
        t.encode(t.encode_q, views[: n // micro].to(CUDA))
        query = (usage.traffic - before) * micro
    before, usage.peak = usage.traffic, usage.live
    batch = Batch(views, views.clone(), torch.zeros(n, dtype=torch.int64), torch.arange(n), {})
    with suppress(_ForwardDoneError):
        t.model.training_step(t, batch)
    rest = usage.traffic - before - query // micro  # keys, loss, moving average
    return counter.get_total_flops() / (n // micro), query * (1 + BACKWARD) + rest


@contextmanager
def _ranks(count: int) -> Iterator[None]:
    """Be rank 0 of `count` processes, of which the others exist in name only."""
    if count > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield
    finally:
        if count > 1:
            dist.destroy_process_group()


def _sent(config: Config, model: Model, gpus: int) -> float:
    """Return the bytes that a GPU sends in a step: gradients in a ring, key views to other GPUs, keys and labels."""
    share = (gpus - 1) / gpus
    gradients = 2 * share * 4 * sum(p.numel() for p in model.encoder_q.parameters())
    if config.model.loss == CROSS_ENTROPY:
        return gradients
    n = config.optim.batch // gpus
    return gradients + share * n * (3 * config.views.size**2) + (gpus - 1) * n * (4 * config.model.dim + 16)


def count_images(config: Config, given: int | None) -> int:
    """Return the size of the training set: as given, of the images that are there, or of the recipe's data set.

    Raises:
        ValueError: none of them is known.
    """
    if given is not None:
        return given
    if config.data.sources and all(Path(source).exists() for source in config.data.sources):
        return len(load_images(config.data.sources, config.data.root, config.data.classes))
    for name, images in IMAGES.items():
        if (config.recipe or "").startswith(name):
            return images
    raise ValueError("--dry-run does not know the number of images: give it with --images")


def views_per_second(config: Config, seconds: float = 1.0) -> float:
    """Measure how many images one core of this machine decodes and turns into their two views in a second."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), PHOTO[::-1], interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".jpg", smooth)[1]
    make_view, threads = ViewMaker(config.views), cv2.getNumThreads()
    cv2.setNumThreads(0)
    done, began = 0, time.thread_time()  # other programs of the machine do not count
    while time.thread_time() - began < seconds:
        image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
        make_view(image, rng)
        make_view(image, rng)
        done += 1
    cv2.setNumThreads(threads)
    return done / (time.thread_time() - began)


def report(config: Config, options: PlanOptions) -> str:
    """Return a plan as a table for the screen."""
    p, gpu = make_plan(config, options), GPUS[options.gpu]
    views, cores = views_per_second(config), len(os.sched_getaffinity(0))
    fits = "fits" if p.memory < 0.95 * gpu.memory else "does NOT fit: raise --optim.accumulate or --gpus"
    rows = [
        ["run", f"recipe {config.recipe or 'none'}, {config.model.arch}, {config.views.size} px, {p.precision}"],
        ["parameters", f"{p.parameters / 1e6:.1f} M, trained"],
        ["operations", f"{p.flops / 1e9:.1f} GFLOP an image: query forward and backward, key forward"],
        ["memory", f"{p.memory:.1f} of {gpu.memory:g} GiB a GPU at {p.batch // p.gpus} images each: {fits}"],
        ["network", f"{p.network * 1024:.0f} MiB sent by each GPU in a step"],
        ["step", f"{p.seconds * 1e3:.0f} ms, estimated; {p.images_per_second:,.0f} img/s over {p.gpus} x {p.gpu}"],
        ["loaders", f"{p.images_per_second / views:.0f} cores; one core of this machine ({cores}): {views:.0f} img/s"],
        ["length", f"{p.images:,} images, {config.optim.epochs:g} epochs, {p.steps:,} steps of {p.batch}"],
        ["time", f"{p.hours:,.1f} hours, {p.hours * p.gpus:,.0f} GPU-hours, estimated"],
        ["assumed", f"{p.gpu} reaches {REACHED[0]:.0%} of its arithmetic or {REACHED[1]:.0%} of its bandwidth;"
                    f" a backward pass is {BACKWARD} forward ones"],
        ["", "loaders and network keep up; small batches reach less; memory and seconds are those without compilation"],
    ]  # fmt: skip
    return str(tabulate(rows, tablefmt="plain"))
