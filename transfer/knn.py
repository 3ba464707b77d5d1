"""Weighted kNN on the frozen features of a checkpoint (Wu et al., arXiv 1805.01978, section 3.4).

python transfer/knn.py --ckpt runs/fashion/last.pth
python transfer/knn.py --ckpt random:resnet18 --seeds 0 1
python transfer/knn.py --ckpt X --data /data/imagenet --store fp16 --temperature '[0.07, 0.1]'
torchrun --nproc-per-node 8 -m transfer.knn --ckpt X --data /data/imagenet     each GPU holds an eighth of the bank

The training images are the bank; a neighbour's score is exp(cosine similarity / T). All k and T are answered in one
pass, which reads the bank in blocks: beside the features of the test images it takes as much memory for a million
images as for a thousand, and prints how much. Where --test names the training images, no image is its own neighbour.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

import torch
from jsonargparse import Namespace

from common.cli import CommandParser
from results.record import Record
from transfer.benchmark import Run, read_backbone, run_benchmark
from transfer.classification import command, neighbours

TEMPERATURE = 0.07  # Wu et al., section 3.4


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = command.classification_parser("knn", __doc__)
    p.add_argument("--k", type=int | list[int], default=[10, 20, 100, 200], help="numbers of neighbours")
    p.add_argument("--temperature", type=float | list[float], default=TEMPERATURE, help="T of the scores")
    return p


def plan(options: Namespace, seed: int, device: torch.device) -> Run:
    """Return what is measured for a seed; nothing is computed yet."""
    ks, temperatures = check(options)
    backbone = read_backbone(options, seed)
    config, _ = command.base_config(options, backbone, device)
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
        title += f", {command.describe_labels(options)[1]}"
    # The protocol of Wu et al. reports k = 200.
    at = f"_T{temperatures[0]:g}" if len(temperatures) > 1 else ""
    headline = f"knn{at}_top1_k{200 if 200 in ks else max(ks)}"
    return Run(backbone, "knn", title, seed, config, headline, options.out)


def check(options: Namespace) -> tuple[list[int], list[float]]:
    """Return all k and all temperatures; raise a ValueError for options without a result, or with one several times."""
    ks, temperatures = (v if isinstance(v, list) else [v] for v in (options.k, options.temperature))
    for name, values in (("k", ks), ("temperature", temperatures)):
        if not values:
            raise ValueError(f"--{name} []: give one or more numbers")
    if min(temperatures) <= 0:
        raise ValueError(f"--temperature {min(temperatures)}: must be above 0")
    seeded = str(options.ckpt).partition(":")[0] == "random" and "seed=" not in str(options.ckpt)
    if len(options.seeds) > 1 and not seeded:
        raise ValueError(
            f"--seeds {' '.join(map(str, options.seeds))}: kNN draws nothing at random, so {options.ckpt} gives one "
            "result whatever the seed; give one seed, or checkpoints of several pre-trainings"
        )
    return ks, temperatures


def run(arguments: list[str] | None = None) -> list[Record]:
    """Measure, print the result and return the records."""
    return command.evaluate_seeds(parser().parse(arguments), plan, neighbours.load, neighbours.evaluate)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    return run_benchmark("knn", run, arguments, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
