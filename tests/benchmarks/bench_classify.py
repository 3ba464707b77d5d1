"""Time and memory of classification on frozen features, as ratios measured in one run on one machine.

    python tests/benchmarks/bench_classify.py [--rounds 3] [--record results/benchmarks/classify.jsonl]

It ends with 1 where a bound is missed.

Memory of kNN is what the search adds to the process, in a process of its own for each size of the bank, which lies in a
file of half-precision features: up to ImageNet's 1.28 million x 2048, 5.2 GB of disk. Times are medians over rounds in
which the variants take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.features import FeatureExtractor, network_input, pooled_features, raw_features
from common.images import ImageSet, load_images
from common.labels import choose_balanced
from common.run_folder import environment
from transfer.benchmark import read_checkpoint
from transfer.classification import logistic
from transfer.classification.data import hold_out
from transfer.classification.linear_probe import HeadOptim, train_heads
from transfer.classification.neighbours import nearest, top_classes
from transfer.classification.training import CropConfig, Setting

CPU = torch.device("cpu")
WIDTH, QUERIES, CLASSES, K = 2048, 256, 1000, 200
BANKS = (20_000, 160_000, 1_281_167)
PAPER_EPOCHS = 100  # of MoCo's linear protocol
SIZE = 32


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


def write_bank(path: Path, images: int) -> None:
    """(images, 2048) float16 features, one random block over and over."""
    block = torch.randn(20_000, WIDTH, generator=torch.Generator().manual_seed(0)).abs().half().numpy()
    with open(path, "wb") as file:
        for start in range(0, images, len(block)):
            file.write(np.ascontiguousarray(block[: images - start]))


def synthetic_queries() -> Tensor:
    """(256, 2048), L2-normalised."""
    return F.normalize(torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1)).abs(), dim=1)


def anonymous_memory() -> int:
    """Resident memory of this process that is no file's, KiB."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("RssAnon")).split()[1])


def _search(path: str, images: int, plain: bool, pipe: multiprocessing.connection.Connection) -> None:
    """Peak anonymous memory that a search adds, MiB, and its seconds."""
    bank = torch.from_file(path, shared=False, size=images * WIDTH, dtype=torch.float16).view(images, WIDTH)
    labels, queries = torch.arange(images) % CLASSES, synthetic_queries()
    queries @ queries.T  # the maths library's own buffers are nobody's
    before, peak, done = anonymous_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    if plain:
        (queries @ F.normalize(bank.float(), dim=1).T).topk(K, dim=1)
    else:
        top_classes(nearest(queries, bank, labels, K), CLASSES, K, 0.07)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    pipe.send(((max(peak, anonymous_memory()) - before) / 1024, seconds))


def in_a_process(path: Path, images: int, plain: bool = False) -> tuple[float, float]:
    """MiB and seconds of a search in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_search, args=(str(path), images, plain, there))
    process.start()
    found: tuple[float, float] = here.recv()
    process.join()
    return found


def knn_memory(largest: int) -> dict[str, dict[str, float]]:
    """MiB and seconds by size of the bank; the plain way only where the machine can be expected to bear it."""
    found: dict[str, dict[str, float]] = {"ours MiB": {}, "ours s": {}, "plain MiB": {}, "plain s": {}}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for images in (size for size in BANKS if size <= largest):
            path = Path(folder) / "bank"
            write_bank(path, images)
            found["ours MiB"][str(images)], found["ours s"][str(images)] = in_a_process(path, images)
            if images < 1_000_000:
                found["plain MiB"][str(images)], found["plain s"][str(images)] = in_a_process(path, images, plain=True)
    return found


def some_garments(count: int) -> ImageSet:
    """So many images of Fashion-MNIST, class-balanced."""
    images = load_images(["fashion:train"])
    return images.subset(choose_balanced(images.labels, count / len(images), seed=0))


def feature_seconds(rounds: int) -> dict[str, float]:
    """Features of 1,024 images of 32 pixels, ResNet-18: each core a part of the batch, or all cores each operation."""
    network = read_checkpoint("random:resnet18", 0).build().to(memory_format=torch.channels_last)
    views = torch.randint(0, 256, (4, 256, SIZE, SIZE, 3), dtype=torch.uint8)

    def ours() -> None:
        with FeatureExtractor(network, CPU) as trunk:
            for batch in views:
                trunk(batch)

    @torch.no_grad()
    def plain() -> None:
        for batch in views:
            pooled_features(network, network_input(batch, CPU))

    return take_turns({"ours": ours, "plain": plain}, rounds)


def linear_seconds(rounds: int, count: int = 3000) -> dict[str, float]:
    """Both protocols on the same images: `cached` whole, and one epoch of `moco`."""
    backbone, images = read_checkpoint("random:resnet18", 0), some_garments(count)
    network = backbone.build().to(memory_format=torch.channels_last)
    labels, held = torch.from_numpy(images.labels), torch.from_numpy(hold_out(images.labels, 0)[1])

    def cached() -> None:
        features = torch.cat(list(raw_features(network, images, SIZE, CPU)))
        logistic.fit(features, labels, 10, held, CPU, log=lambda _: None)

    def epoch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(Path(folder), 0, CPU, None, SIZE)
            train_heads(network, backbone.feature_dim, images, HeadOptim(epochs=1), CropConfig(), setting)

    return take_turns({"cached": cached, "epoch": epoch}, rounds)


def kept(ratio: float, bound: float, sense: str) -> bool:
    """Whether a ratio is within its bound."""
    return ratio <= bound if sense == "at most" else ratio >= bound


def main() -> int:
    """Measures everything, prints the table, appends a record where asked to; 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default: 3)")
    parser.add_argument("--largest", type=int, default=BANKS[-1], help="largest bank; 160000 needs 0.7 GB of disk")
    parser.add_argument("--record", type=Path, help="file to append one JSON line to")
    options = parser.parse_args()
    where = environment(CPU)
    memory, features = knn_memory(options.largest), feature_seconds(options.rounds)
    linear = linear_seconds(options.rounds)
    small, *_, large = memory["ours MiB"]
    both = str(BANKS[1]) if str(BANKS[1]) in memory["plain MiB"] else small
    ours, plain = memory["ours MiB"], memory["plain MiB"]
    epochs = PAPER_EPOCHS * linear["epoch"]
    rows = [
        (f"kNN memory, bank of {large} / of {small}", ours[large] / ours[small], 1.2, "at most"),
        (f"kNN memory, bank of {both}: ours / plain", ours[both] / plain[both], 0.5, "at most"),
        ("features: speed with a part for each core / shared operations", features["plain"] / features["ours"], 1.0,
         "at least"),
        (f"linear: moco, {PAPER_EPOCHS} times one epoch / cached: time", epochs / linear["cached"], 20.0, "at least"),
    ]  # fmt: skip
    for name, ratio, bound, sense in rows:
        missed = "" if kept(ratio, bound, sense) else ": missed"
        print(f"{name:65} {ratio:7.2f}   (wanted: {sense} {bound}{missed})")
    for name, values in memory.items():
        print(f"kNN {name}:", {size: round(value, 1) for size, value in values.items()})
    if options.record:
        record = {
            "rounds": options.rounds,
            "ratios": {name: ratio for name, ratio, _, _ in rows},
            "knn": memory,
            "seconds": {"features": features, "linear": linear},
            **where,
        }
        options.record.parent.mkdir(parents=True, exist_ok=True)
        with open(options.record, "a") as file:
            file.write(json.dumps(record) + "\n")
    return int(not all(kept(*rest) for _, *rest in rows))


if __name__ == "__main__":
    sys.exit(main())
