"""Weighted kNN on the frozen features of a checkpoint (Wu et al., arXiv 1805.01978, section 3.4).

python transfer/knn.py --ckpt runs/fashion/last.pth
python transfer/knn.py --ckpt random:resnet18 --seeds 0 1
python transfer/knn.py --ckpt X --data /data/imagenet --store fp16 --temperature '[0.07, 0.1]'
torchrun --nproc-per-node 8 -m transfer.knn --ckpt X --data /data/imagenet       each GPU holds an eighth of the bank

The training images vote, each with exp(cosine similarity / T). All k and T are answered in one pass, which reads the
bank in blocks; beside the features of the test images it takes as much memory for a million images as for a thousand,
and says how much. Where --test names the training images, no image counts as its own neighbour.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from torch.nn import functional as F

from common.distributed import all_gather, rank, start, world_size
from common.images import ImageSet
from common.knn import accuracy, check_neighbours, gather_nearest, knn_scores, nearest
from common.precision import autocast_dtype
from transfer.benchmark import Measurement, Metrics, Run, read_checkpoint, run_benchmark
from transfer.classification import options, pictures
from transfer.classification.data import ClassData, load_class_data, source_names
from transfer.classification.evaluation import evaluate_seeds
from transfer.classification.features import Extraction

CHUNK, BLOCK = 1024, 8192  # queries and bank images handled at a time
TEMPERATURE = 0.07  # Wu et al., section 3.4
FIRST = 5  # classes looked at a query


def parser() -> ArgumentParser:
    """The options."""
    p = options.classification_parser("knn", __doc__)
    p.add_argument("--k", type=int | list[int], default=[10, 20, 100, 200], help="numbers of neighbours")
    p.add_argument("--temperature", type=float | list[float], default=TEMPERATURE, help="T of the votes")
    return p


def plan(o: Namespace, seed: int, device: torch.device) -> Run:
    """What is measured for a seed, before anything is computed."""
    backbone = read_checkpoint(o.ckpt, seed)
    size, dtype = options.view_size(o, backbone), autocast_dtype(o.precision, device)
    bank, queries = source_names(o)
    config = {"bank": bank, "queries": queries, "k": as_list(o.k), "size": size} | options.label_options(o)
    temperatures = as_list(o.temperature)
    config["temperature"] = temperatures[0] if len(temperatures) == 1 else temperatures
    said = "/".join(f"{t:g}" for t in temperatures)
    protocol = f"weighted kNN, T {said}, train {bank}, test {queries}, pooled features, L2-normalised, {size} px"
    if dtype is not None or o.store != "fp32":
        config |= {"precision": str(dtype or torch.float32), "store": o.store}
        protocol += f", {str(dtype or torch.float32).removeprefix('torch.')} trunk, {o.store} bank"
    if bank == queries:
        protocol += ", leave one out"
    labels = options.labels_in_words(o)
    protocol += f", {labels}" * bool(labels)
    return Run(backbone, "knn", protocol, seed, config, headline(as_list(o.k), temperatures), o.out)


def headline(ks: list[int], temperatures: list[float]) -> str:
    """Return the metric that leads: top-1 of k = 200, the protocol of Wu et al., else of the largest k."""
    at = f"_T{temperatures[0]:g}" if len(temperatures) > 1 else ""
    return f"knn{at}_top1_k{200 if 200 in ks else max(ks)}"


def as_list(value: object) -> list:
    """One value or several as a list."""
    return list(value) if isinstance(value, list) else [value]


def check(o: Namespace) -> None:
    """Raises a ValueError for options that give no figures, or one figure several times."""
    for name in ("k", "temperature"):
        if not as_list(o[name]):
            raise ValueError(f"--{name} []: give one or more numbers")
    if min(as_list(o.temperature)) <= 0:
        raise ValueError(f"--temperature {min(as_list(o.temperature))}: must be above 0")
    seeded = str(o.ckpt).partition(":")[0] == "random" and "seed=" not in str(o.ckpt)
    if len(o.seeds) > 1 and not seeded:
        raise ValueError(
            f"--seeds {' '.join(map(str, o.seeds))}: kNN draws nothing at random, so {o.ckpt} gives one figure "
            "whatever the seed; give one seed, or checkpoints of several pre-trainings"
        )


def evaluate(o: Namespace) -> None:
    """Measures all seeds and says the result."""
    options.require_data(o)
    check(o)
    device = start(o.device)
    evaluate_seeds(o, device, plan, lambda run: measure_one(run, o, device))


def measure_one(run: Run, o: Namespace, device: torch.device) -> Measurement:
    """Lets the training images vote on the test images."""
    data = load_class_data(o, leave_one_out=True)
    if data.same and run.config["bank"] != run.config["queries"]:
        raise ValueError(
            f"--test {run.config['queries']}: these are the images of --data {run.config['bank']}; "
            "to leave one out give both the same name"
        )
    check_neighbours(as_list(o.k), len(data.train) - int(data.same))
    extract = Extraction(run.config["size"], device, o.precision, options.STORES[o.store], o.cache, o.workers)
    bank, queries = features_of(run, data, extract)
    metrics = vote(data, bank, queries, as_list(o.k), as_list(o.temperature))
    images = float(len(data.train) + (0 if data.same else len(data.test)))
    return Measurement(metrics, {"images": images}, draw=lambda: draw(run, data, bank, queries))


def features_of(run: Run, data: ClassData, extract: Extraction) -> tuple[Tensor, Tensor]:
    """Raw features of this rank's part of the bank, and of all test images on the device, as they are stored."""
    network = run.backbone.build().to(extract.device).to(memory_format=torch.channels_last)

    def of_part(images: ImageSet, name: str) -> Tensor:
        mine = images if world_size() == 1 else images.subset(np.arange(*part(len(images))))
        return extract(run.backbone, network, mine, name)

    bank = of_part(data.train, data.train_name)
    mine = bank if data.same else of_part(data.test, data.test_name)
    return bank, all_parts(mine.to(extract.device), len(data.test))


def vote(data: ClassData, bank: Tensor, queries: Tensor, ks: list[int], temperatures: list[float]) -> Metrics:
    """Top-1, and top-5 where there are more classes than that, for each k and T.

    Every rank searches its part of the bank for all test images; the nearest of all parts vote.

    Args:
        data: bank and test images.
        bank: (B, D) raw features of this rank's part.
        queries: (N, D) raw features of all test images.
        ks: numbers of neighbours.
        temperatures: T of the scores.
    """
    first, last = part(len(data.train))
    own = torch.arange(len(queries), device=queries.device) - first if data.same else None  # elsewhere: no row here
    say_memory(data, bank, queries, max(ks))
    labels = torch.from_numpy(data.train.labels[first:last])
    found = gather_nearest(nearest(bank, labels, queries, max(ks), CHUNK, BLOCK, own, normalise=True), max(ks))
    truth, classes = torch.from_numpy(data.test.labels).to(queries.device), len(data.classes)
    metrics: Metrics = {}
    for temperature in temperatures:
        at = f"_T{temperature:g}" if len(temperatures) > 1 else ""
        for k in ks:
            ranked = knn_scores(found, classes, k, temperature, FIRST)
            metrics[f"knn{at}_top1_k{k}"] = accuracy(ranked, truth)
            if classes > FIRST:
                metrics[f"knn{at}_top5_k{k}"] = accuracy(ranked, truth, FIRST)
    return metrics


def part(images: int) -> tuple[int, int]:
    """First and last + 1 of this rank's images: equal, consecutive parts, the last ones one image shorter."""
    bounds = [-(-images * r // world_size()) for r in (rank(), rank() + 1)]
    return bounds[0], bounds[1]


def all_parts(mine: Tensor, images: int) -> Tensor:
    """(N, D) from every rank's consecutive part of it."""
    if world_size() == 1:
        return mine
    longest = -(-images // world_size())
    gathered = all_gather(F.pad(mine, (0, 0, 0, longest - len(mine)))[None])
    sizes = [-(-images * (r + 1) // world_size()) - -(-images * r // world_size()) for r in range(world_size())]
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def say_memory(data: ClassData, bank: Tensor, queries: Tensor, k: int) -> None:
    """How much memory the search takes, and what it grows with."""
    if rank() == 0:
        block, number, width = min(BLOCK, len(bank)), len(queries), bank.shape[1]
        search = 4 * (block * width + 2 * CHUNK * block + CHUNK * width) + 12 * number * k
        held = "" if queries.data_ptr() == bank.data_ptr() else f", {queries.nbytes / 2**20:.0f} MiB of test features"
        grows = f"{12 * number * k / 2**20:.0f} MiB of it for the neighbours of each image" if data.same else (
            "whatever its size"
        )  # fmt: skip
        print(
            f"bank: {len(data.train)} images, {bank.nbytes / 2**20:.0f} MiB in {bank.dtype} on this process{held}; "
            f"searching it takes {search / 2**20:.0f} MiB, {grows}"
        )


def draw(run: Run, data: ClassData, bank: Tensor, queries: Tensor) -> list[Path]:
    """Draw test images and their nearest neighbours, where this process holds the complete bank."""
    if world_size() > 1:
        return []
    path: Path = options.run_folder(run, "knn") / "neighbours.png"
    pictures.neighbours(path, data.train, data.test, bank, queries.cpu())
    return [path]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_benchmark("knn", lambda: evaluate(options.parse(parser(), given)), resumable=False)


if __name__ == "__main__":
    sys.exit(main())
