"""What the commands linear, knn, finetune and svm share: options, recipes, labels, seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace

from common import distributed
from common.precision import autocast_dtype, use_exact_fp32
from common.run_folder import exclusive
from converters import Backbone
from results.record import Record
from transfer.benchmark import Measurement, Run, measure, summary
from transfer.classification.check import check_sets
from transfer.classification.data import ClassData, source_names
from transfer.classification.features import FeatureCache
from transfer.classification.options import VIEW, describe_labels
from transfer.classification.voc import MultiLabel
from transfer.own_data import classification as own

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of --store

Plan = Callable[[Namespace, int, torch.device], Run]
Load = Callable[[Run, Namespace], ClassData | MultiLabel]
Evaluate = Callable[[Run, Namespace, torch.device], Measurement]
Processes = Literal["many", "one", "many on GPUs"]


def evaluate_seeds(
    options: Namespace, plan: Plan, load: Load, evaluate: Evaluate, processes: Processes = "many"
) -> list[Record]:
    """Measure all seeds, write the records, print the result and return the records.

    Args:
        options: of the command, checked.
        plan: returns what is measured for a seed; computes nothing.
        load: reads the lists of images, for the check before the first run.
        evaluate: measures a run.
        processes: with how many processes the benchmark can run.

    Raises:
        ValueError: there are too many processes.
    """
    device = distributed.start(options.device)
    use_exact_fp32()
    if distributed.world_size() > 1 and processes == "one":
        raise ValueError("this benchmark runs in one process")
    if distributed.world_size() > 1 and processes == "many on GPUs" and device.type == "cpu":
        raise ValueError("several processes need GPUs here: batch norm must see the complete batch")

    facts: dict[str, str] = {}  # about the data, for the records

    def inspect(run: Run, skip: bool = False) -> str:
        data = load(run, options)
        said = "" if skip else check_sets(data)
        targets = [data.targets, data.test_targets] if isinstance(data, MultiLabel) else []
        facts.update(own.describe(options, data.train, data.test, targets))
        if facts and not skip:
            facts.update(own.overlaps(options, run.backbone.source.path, data.train, data.test))
        return said

    def work(run: Run) -> Measurement:
        if options.skip_check and not facts and distributed.rank() == 0:
            inspect(run, skip=True)
        with exclusive(run_folder(run, run.task), "wait for it, or give another --out"):
            measured = evaluate(run, options, device).about(**facts)
        return measured if options.pictures and run.seed == options.seeds[0] else replace(measured, draw=None)

    records = measure((plan(options, seed, device) for seed in options.seeds), work, options, device, inspect)
    if records and distributed.rank() == 0:
        print(records[0].title)
        print(summary(records))
    return records


def base_config(options: Namespace, backbone: Backbone, device: torch.device) -> tuple[dict[str, Any], str]:
    """Return the options that every benchmark's metrics depend on, and the end of its title.

    Returns:
        data, test, size (pixels) and precision, and labels unless all are used; their description.

    Raises:
        ValueError: --data names no test images, or there is no list of labels.
    """
    size = int(backbone.meta.get("image_size", VIEW)) if options.size is None else options.size
    train, test = source_names(options)
    precision = str(autocast_dtype(options.precision, device, size) or torch.float32)
    labels, labels_title = describe_labels(options)
    config = {"data": train, "test": test, "size": size, "precision": precision}
    title = (
        f", {labels_title}" * bool(labels_title) + f"; train {train}, test {test}; pooled features, centre view of "
        f"{size} px in the test, {precision.removeprefix('torch.')}"
    )
    return config | ({"labels": labels} if labels_title else {}), title


def feature_cache(run: Run, options: Namespace, device: torch.device) -> FeatureCache:
    """Return the feature extraction that the options ask for."""
    size = run.config["size"]
    return FeatureCache(
        size, device, autocast_dtype(options.precision, device, size), DTYPES[options.store], options.cache,
        options.workers,
    )  # fmt: skip


def run_folder(run: Run, name: str) -> Path:
    """Return the folder of a run: of its task, then `name` and a hash of the config, then the seed."""
    return run.folder.parent / f"{name}-{run.config_hash[:6]}" / run.folder.name
