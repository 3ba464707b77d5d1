"""kNN with a bank of any size: read in blocks, split over ranks, several k and temperatures in one pass.

Shapes: N queries, B images of the bank, D feature width, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.nn import functional as F

from common.distributed import all_gather, rank, world_size
from common.images import ImageSet
from common.knn import accuracy, check_k, rank_classes
from transfer.benchmark import Measurement, Run, read_backbone
from transfer.classification import pictures
from transfer.classification.command import base_config, feature_cache, run_folder
from transfer.classification.data import ClassData, load_class_data
from transfer.classification.options import describe_labels, listed

CHUNK, BLOCK, RANKED = 1024, 8192, 4096  # queries and bank images searched at a time; queries ranked at a time
TOP = 5


@dataclass(frozen=True)
class Neighbours:
    """The k most similar bank images of each query, the nearest first.

    Args:
        similarity: (N, k) float32 cosine similarities; -inf where the bank had no more images.
        labels: (N, k) int64, their classes.
    """

    similarity: Tensor
    labels: Tensor

    def merge(self, other: Neighbours, k: int) -> Neighbours:
        """Return the k nearest of both; of equals these come first."""
        similarity = torch.cat([self.similarity, other.similarity], dim=1)
        labels = torch.cat([self.labels, other.labels], dim=1)
        top, index = similarity.topk(min(k, similarity.shape[1]), dim=1)
        return Neighbours(top, labels.gather(1, index))


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor, bank_labels: Tensor, k: int, excluded: Tensor | None = None) -> Neighbours:
    """Return the k nearest bank images of each query, by cosine similarity in fp32.

    The bank is read once, a block at a time, and may be in a file or on another device, in half precision. The memory
    for the search does not depend on B: see `search_mib`.

    Args:
        queries: (N, D) features, of any length; the work is done on their device.
        bank: (B, D) features, of any length.
        bank_labels: (B,) int64.
        k: number of neighbours.
        excluded: (N,) int64, the bank row that is the query itself and does not count; no row of the bank: none.
    """
    starts = range(0, len(queries), CHUNK)
    empty = queries.new_empty(len(queries), 0, dtype=torch.float32)
    best = [Neighbours(part, part.long()) for part in empty.split(CHUNK)]

    def normalised(part: Tensor) -> Tensor:
        part = part.to(queries.device, torch.float32, copy=True)
        return part.div_(torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_min_(1e-12))

    def search(first: int) -> None:
        rows, labels = normalised(bank[first : first + BLOCK]), bank_labels[first : first + BLOCK].to(queries.device)
        for i, start in enumerate(starts):
            similarity = normalised(queries[start : start + CHUNK]) @ rows.T  # (CHUNK, BLOCK)
            if excluded is not None:
                row = (excluded[start : start + CHUNK] - first)[:, None]  # without nonzero, for which a host waits
                at, outside = row.clamp(0, len(rows) - 1), (row < 0) | (row >= len(rows))
                similarity.scatter_(1, at, similarity.gather(1, at).where(outside, -torch.inf))
            top, index = similarity.topk(min(k, len(rows)), dim=1)
            best[i] = best[i].merge(Neighbours(top, labels[index]), k)

    for first in range(0, len(bank), BLOCK):  # a function, so that one block is freed before the next is read
        search(first)
    return Neighbours(torch.cat([b.similarity for b in best]), torch.cat([b.labels for b in best]))


def search_mib(queries: Tensor, k: int) -> float:
    """Return the memory that `nearest` takes at most: the neighbours found, a block, a chunk, their similarities."""
    n, width = queries.shape
    return (12 * n * k + 4 * (BLOCK * width + CHUNK * width + 2 * CHUNK * BLOCK)) / 2**20


def gather_nearest(mine: Neighbours, k: int) -> Neighbours:
    """Return the k nearest over all ranks, each of which has searched its part of the bank for the same queries."""
    if world_size() == 1:
        return mine
    missing = k - mine.similarity.shape[1]  # a collective needs equal shapes
    similarity = all_gather(F.pad(mine.similarity, (0, missing), value=-torch.inf)[None])
    labels = all_gather(F.pad(mine.labels, (0, missing))[None])
    found = Neighbours(similarity[0], labels[0])
    for r in range(1, world_size()):
        found = found.merge(Neighbours(similarity[r], labels[r]), k)
    return found


def top_classes(neighbours: Neighbours, classes: int, k: int, temperature: float) -> Tensor:
    """Return (N, 5 or C) int64: the classes that the k nearest rank first."""
    pairs = zip(neighbours.similarity[:, :k].split(RANKED), neighbours.labels[:, :k].split(RANKED), strict=True)
    return torch.cat([rank_classes(s, y, classes, temperature)[:, :TOP] for s, y in pairs])


def plan(options: Namespace, seed: int, device: torch.device) -> Run:
    """Return what is measured for a seed; nothing is computed yet."""
    ks, temperatures = listed(options.k), listed(options.temperature)
    backbone = read_backbone(options, seed)
    config, _ = base_config(options, backbone, device)
    bank, queries, size, precision = (config.pop(name) for name in ("data", "test", "size", "precision"))
    config |= {"bank": bank, "queries": queries, "k": ks, "size": size}
    config["temperature"] = temperatures[0] if len(temperatures) == 1 else temperatures
    shown = "/".join(f"{t:g}" for t in temperatures)
    title = f"weighted kNN, T {shown}, train {bank}, test {queries}, pooled features, L2-normalised, {size} px"
    if precision != "torch.float32" or options.store != "fp32":
        config |= {"precision": precision, "store": options.store}
        title += f", {precision.removeprefix('torch.')} backbone, {options.store} bank"
    title += ", leave one out" * (bank == queries)
    if "labels" in config:
        title += f", {describe_labels(options)[1]}"
    # The protocol of Wu et al. reports k = 200.
    at = f"_T{temperatures[0]:g}" if len(temperatures) > 1 else ""
    headline = f"knn{at}_top1_k{200 if 200 in ks else max(ks)}"
    return Run(backbone, "knn", title, seed, config, headline, options.out)


def load(run: Run, options: Namespace) -> ClassData:
    """Read the lists of images.

    Raises:
        ValueError: see `load_class_data`; or both are the same under different names, k exceeds the bank, or there are
            fewer images than processes.
    """
    data = load_class_data(options, leave_one_out=True)
    if data.same and run.config["bank"] != run.config["queries"]:
        raise ValueError(
            f"--test {run.config['queries']}: these are the images of --data {run.config['bank']}; "
            "to leave one out give both the same name"
        )
    ks, available = run.config["k"], len(data.train) - int(data.same)
    try:
        for k in ks:
            check_k(k, available)
    except ValueError as error:
        fitting = [k for k in ks if 1 <= k <= available] or [1]
        raise ValueError(f"{error}; --k '{fitting}' would do") from error
    fewest = min(len(data.train), len(data.test))
    if fewest < world_size():
        raise ValueError(f"{fewest} images do not fill {world_size()} processes; use {fewest} or fewer")
    return data


def evaluate(run: Run, options: Namespace, device: torch.device) -> Measurement:
    """Measure top-1, and top-5 of more than five classes, for each k and T of a run."""
    data = load(run, options)
    ks, temperatures = run.config["k"], run.config["temperature"]
    bank, queries = _features(run, data, options, device)
    if rank() == 0:
        size = f"{len(data.train)} images, {bank.nbytes / 2**20:.0f} MiB in {bank.dtype} on this process"
        print(f"bank: {size}; searching it takes {search_mib(queries, max(ks)):.0f} MiB")
    mine = _parts(len(data.train))[rank()]
    excluded = torch.arange(len(queries), device=device) - int(mine[0]) if data.same else None
    labels = torch.from_numpy(data.train.labels[mine])
    found = gather_nearest(nearest(queries, bank, labels, max(ks), excluded), max(ks))
    truth = torch.from_numpy(data.test.labels).to(device)
    metrics, hits = {}, {}
    for temperature in temperatures if isinstance(temperatures, list) else [temperatures]:
        at = f"_T{temperature:g}" if isinstance(temperatures, list) else ""
        for k in ks:
            ranked = top_classes(found, len(data.classes), k, temperature)
            metrics[f"knn{at}_top1_k{k}"] = accuracy(ranked, truth)
            hits[f"knn{at}_top1_k{k}"] = (ranked[:, 0] == truth).cpu().numpy()
            if len(data.classes) > TOP:
                metrics[f"knn{at}_top5_k{k}"] = accuracy(ranked, truth, TOP)
    images = float(len(data.train) + (0 if data.same else len(data.test)))
    draw = partial(_draw, run, data, bank, queries) if world_size() == 1 else None  # it needs the complete bank
    return Measurement(metrics, {"images": images}, {run.headline: hits[run.headline]}, draw)


def _features(run: Run, data: ClassData, options: Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the raw features of this rank's part of the bank, and of all test images on the device."""
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    extract = feature_cache(run, options, device)

    def part_of(images: ImageSet, name: str) -> Tensor:
        mine = images if world_size() == 1 else images.subset(_parts(len(images))[rank()])
        return extract(run.backbone, network, mine, name)

    bank = part_of(data.train, data.train_name)
    queries = (bank if data.same else part_of(data.test, data.test_name)).to(device)
    if world_size() == 1:
        return bank, queries
    sizes = [len(part) for part in _parts(len(data.test))]
    gathered = all_gather(F.pad(queries, (0, 0, 0, sizes[0] - len(queries)))[None])  # the first part is the longest
    return bank, torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def _parts(images: int) -> list[np.ndarray]:
    """Return the indices of every rank's images: consecutive parts of nearly equal size."""
    return np.array_split(np.arange(images), world_size())


def _draw(run: Run, data: ClassData, bank: Tensor, queries: Tensor) -> Sequence[Path]:
    path = run_folder(run, "knn") / "neighbours.png"
    pictures.neighbours(path, data.train, data.test, bank, queries.cpu())
    return [path]
