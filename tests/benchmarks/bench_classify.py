"""Time and memory of classification on frozen features, as ratios measured in one run on one machine.

    python tests/benchmarks/bench_classify.py [--rounds 3] [--record results/benchmarks/classify.jsonl]

It ends with 1 where a bound is missed.

Memory is what the work adds to a process of its own, without mapped files. kNN searches a bank in a file of
half-precision features: up to ImageNet's 1.28 million x 2048, 5.2 GB of disk. Logistic regression is compared with
scikit-learn's on features of Fashion-MNIST until both converge, and on a twentieth of ImageNet's size for one
iteration, which shows the memory. Times are medians over rounds in which the variants take turns.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from common.features import FeatureExtractor, network_input, pooled_features, raw_features
from common.images import ImageSet, load_images
from common.knn import accuracy
from common.labels import choose_balanced
from common.run_folder import environment
from transfer.benchmark import read_checkpoint
from transfer.classification import logistic
from transfer.classification.data import hold_out
from transfer.classification.heads import predict
from transfer.classification.linear_probe import train_heads
from transfer.classification.neighbours import nearest, top_classes
from transfer.classification.schedules import CropConfig, HeadOptim
from transfer.classification.training import Setting

CPU = torch.device("cpu")
WIDTH, QUERIES, CLASSES, K = 2048, 256, 1000, 200
BANKS = (20_000, 160_000, 1_281_167)
PAPER_EPOCHS = 100  # of MoCo's linear protocol
SIZE = 32
PENALTY, TESTED = 1e-4, 5_000  # of logistic regression


def take_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each variant, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write_bank(path: Path, images: int) -> None:
    """Write (images, 2048) float16 features: one random block, repeated."""
    block = torch.randn(20_000, WIDTH, generator=torch.Generator().manual_seed(0)).abs().half().numpy()
    with open(path, "wb") as file:
        for start in range(0, images, len(block)):
            file.write(np.ascontiguousarray(block[: images - start]))


def synthetic_queries() -> Tensor:
    """Return (256, 2048), L2-normalised."""
    return F.normalize(torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1)).abs(), dim=1)


class PeakMemory:
    """Measure the memory that is added inside `with`: peak MiB of this process that is no file's."""

    def __enter__(self) -> PeakMemory:
        self.before, self.mib, self.done = self._now(), 0.0, threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watcher.join()

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.mib = max(self.mib, self._now() - self.before)

    @staticmethod
    def _now() -> float:
        rows = Path("/proc/self/status").read_text().splitlines()
        return int(next(row for row in rows if row.startswith("RssAnon")).split()[1]) / 1024


def mapped(path: str, images: int, width: int) -> Tensor:
    """Map a file of float16 features: (images, width)."""
    return torch.from_file(path, shared=False, size=images * width, dtype=torch.float16).view(images, width)


def search(path: str, images: int, plain: bool) -> dict[str, float]:
    """Return the MiB and seconds of a kNN search."""
    bank, labels, queries = mapped(path, images, WIDTH), torch.arange(images) % CLASSES, synthetic_queries()
    queries @ queries.T  # the maths library allocates its own buffers here
    with PeakMemory() as memory:
        began = time.perf_counter()
        if plain:
            (queries @ F.normalize(bank.float(), dim=1).T).topk(K, dim=1)
        else:
            top_classes(nearest(queries, bank, labels, K), CLASSES, K, 0.07)
        seconds = time.perf_counter() - began
    return {"MiB": memory.mib, "s": seconds}


@dataclass(frozen=True)
class Regression:
    """A problem of logistic regression on images x width features; `iterations` at most."""

    images: int
    width: int
    classes: int
    iterations: int = 2000

    def write(self, path: Path) -> None:
        """Write features (images + TESTED, width) float16 and, beside them, labels."""
        if self.width == 512:
            images = load_images(["fashion:train"])
            network = read_checkpoint("random:resnet18", 0).build().to(memory_format=torch.channels_last)
            parts, labels = raw_features(network, images, SIZE, CPU), torch.from_numpy(images.labels)
        else:  # rectified mixtures, one centre per class
            labels, g = torch.arange(self.images + TESTED) % self.classes, torch.Generator().manual_seed(0)
            centres, mix = torch.randn(self.classes, 256, generator=g), torch.randn(256, self.width, generator=g)
            parts = (
                ((centres[y] + 3 * torch.randn(len(y), 256, generator=g)) @ mix).relu() for y in labels.split(10_000)
            )
        np.save(path.with_suffix(".npy"), labels.numpy())
        with open(path, "wb") as file:
            for part in parts:
                file.write(part.half().numpy().tobytes())


REGRESSIONS = {  # the first: features of Fashion-MNIST and a random ResNet-18
    "55,000 x 512 x 10": Regression(55_000, 512, 10),
    "32,000 x 2,048 x 1,000": Regression(32_000, 2048, 1000, iterations=1),
    "64,000 x 2,048 x 1,000": Regression(64_000, 2048, 1000, iterations=1),
}


def regress(path: str, problem: Regression, theirs: bool) -> dict[str, float]:
    """Return MiB, CPU seconds, evaluations and test accuracy of a fit; scikit-learn's in float32, standardised."""
    features = mapped(path, problem.images + TESTED, problem.width)
    labels = torch.from_numpy(np.load(f"{path}.npy"))
    train, test, y = features[: problem.images], features[problem.images :], labels[: problem.images]
    with PeakMemory() as memory:
        began = time.process_time()
        if theirs:
            scaler = StandardScaler(copy=False)
            x = scaler.fit_transform(train.float().numpy())
            model = LogisticRegression(C=1 / (PENALTY * len(x)), max_iter=problem.iterations).fit(x, y.numpy())
            ranked = torch.from_numpy(model.predict(scaler.transform(test.float().numpy())))[:, None]
            iterations = int(model.n_iter_.max())
        else:
            fitted = logistic.Problem(train, y, torch.ones(len(y), dtype=torch.bool), problem.classes, CPU)
            iterations = fitted.solve(PENALTY, steps=problem.iterations).evaluations
            ranked = predict(fitted.head(), test, 1)
        seconds = time.process_time() - began
    top1 = accuracy(ranked, labels[problem.images :])
    return {"MiB": memory.mib, "CPU s": seconds, "iterations": iterations, "top1": top1}


def _send(pipe: multiprocessing.connection.Connection, work: Callable[..., object], arguments: tuple) -> None:
    pipe.send(work(*arguments))


def in_a_process(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Return what `work` returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, work, arguments))
    process.start()
    found: dict[str, float] = here.recv()
    process.join()
    return found


def logistic_costs() -> dict[str, dict[str, dict[str, float]]]:
    """Return the costs of our solver and of scikit-learn's for each problem."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, problem in REGRESSIONS.items():
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = Path(folder) / "features"
            problem.write(path)
            found[name] = {
                solver: in_a_process(regress, str(path), problem, solver != "ours")
                for solver in ("ours", "scikit-learn")
            }
        print(f"logistic regression, {name}:", found[name], flush=True)
    return found


def knn_memory(largest: int) -> dict[str, dict[str, float]]:
    """Return MiB and seconds by size of the bank; of the plain way for banks that fit into memory."""
    found: dict[str, dict[str, float]] = {"ours MiB": {}, "ours s": {}, "plain MiB": {}, "plain s": {}}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for images in (size for size in BANKS if size <= largest):
            path = Path(folder) / "bank"
            write_bank(path, images)
            for way in ("ours", "plain") if images < 1_000_000 else ("ours",):
                for unit, value in in_a_process(search, str(path), images, way == "plain").items():
                    found[f"{way} {unit}"][str(images)] = value
    return found


def some_garments(count: int) -> ImageSet:
    """Return class-balanced images of Fashion-MNIST."""
    images = load_images(["fashion:train"])
    return images.subset(choose_balanced(images.labels, count / len(images), seed=0))


def feature_seconds(rounds: int) -> dict[str, float]:
    """Time the features of 1,024 small images, ResNet-18: a part of a batch per core, or all cores together."""
    network = read_checkpoint("random:resnet18", 0).build().to(memory_format=torch.channels_last)
    views = torch.randint(0, 256, (4, 256, SIZE, SIZE, 3), dtype=torch.uint8)

    def ours() -> None:
        with FeatureExtractor(network, CPU) as run:
            for batch in views:
                run(batch)

    @torch.no_grad()
    def plain() -> None:
        for batch in views:
            pooled_features(network, network_input(batch, CPU))

    return take_turns({"ours": ours, "plain": plain}, rounds)


def linear_seconds(rounds: int, count: int = 3000) -> dict[str, float]:
    """Time both protocols on the same images: all of `cached`, and one epoch of `moco`."""
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


def cpu_model() -> str:
    """Return the name of this machine's CPU and the cores that it gives to this process."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), "unknown")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def kept(ratio: float, bound: float, sense: str) -> bool:
    """Return whether a ratio is within its bound."""
    return ratio <= bound if sense == "at most" else ratio >= bound


def main() -> int:
    """Measure everything, print the table, append a record where asked to; return 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default: 3)")
    parser.add_argument("--largest", type=int, default=BANKS[-1], help="largest bank; 160000 needs 0.7 GB of disk")
    parser.add_argument("--record", type=Path, help="file to append one JSON line to")
    options = parser.parse_args()
    where = environment(CPU)
    regressions = logistic_costs()
    memory, features = knn_memory(options.largest), feature_seconds(options.rounds)
    linear = linear_seconds(options.rounds)
    small, *_, large = memory["ours MiB"]
    both = str(BANKS[1]) if str(BANKS[1]) in memory["plain MiB"] else small
    ours, plain = memory["ours MiB"], memory["plain MiB"]
    epochs = PAPER_EPOCHS * linear["epoch"]
    small_fit, large_fit = (regressions[name] for name in list(REGRESSIONS)[-2:])
    rows = [
        (f"kNN memory, bank of {large} / of {small}", ours[large] / ours[small], 1.2, "at most"),
        (f"kNN memory, bank of {both}: ours / plain", ours[both] / plain[both], 0.5, "at most"),
        ("features: speed, a part of a batch per core / all cores together", features["plain"] / features["ours"], 1.0,
         "at least"),
        ("logistic regression memory, a twentieth of ImageNet: ours / scikit-learn",
         large_fit["ours"]["MiB"] / large_fit["scikit-learn"]["MiB"], 0.5, "at most"),
        ("logistic regression memory, twice the images: ours", large_fit["ours"]["MiB"] / small_fit["ours"]["MiB"], 1.2,
         "at most"),
        (f"linear: moco, {PAPER_EPOCHS} times one epoch / cached: time", epochs / linear["cached"], 20.0, "at least"),
    ]  # fmt: skip
    if torch.get_num_threads() == 1:  # the two ways are the same then
        rows = [row for row in rows if not row[0].startswith("features")]
    for name, ratio, bound, sense in rows:
        missed = "" if kept(ratio, bound, sense) else ": missed"
        print(f"{name:65} {ratio:7.2f}   (wanted: {sense} {bound}{missed})")
    for name, values in memory.items():
        print(f"kNN {name}:", {size: round(value, 1) for size, value in values.items()})
    if options.record:
        record = {
            "rounds": options.rounds,
            "cpu": cpu_model(),
            "ratios": {name: ratio for name, ratio, _, _ in rows},
            "knn": memory,
            "logistic": regressions,
            "seconds": {"features": features, "linear": linear},
            **where,
        }
        options.record.parent.mkdir(parents=True, exist_ok=True)
        with open(options.record, "a") as file:
            file.write(json.dumps(record) + "\n")
    return int(not all(kept(*rest) for _, *rest in rows))


if __name__ == "__main__":
    sys.exit(main())
