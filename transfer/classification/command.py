"""What the commands linear, knn, finetune and svm share: options, recipes, labels, seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace

from common import distributed
from common.cli import CommandParser
from common.files import sha256, text_lines
from common.labels import LabelConfig
from common.precision import autocast_dtype, use_exact_fp32
from common.run_folder import exclusive
from converters import Backbone
from results.record import Record
from transfer.benchmark import Measurement, Run, measure, summary
from transfer.classification.check import check_sets
from transfer.classification.data import VOC, ClassData, source_names
from transfer.classification.features import FeatureCache
from transfer.classification.voc import MultiLabel
from transfer.options import add_options
from transfer.own_data import classification as own

RECIPES = Path(__file__).parents[1] / "configs" / "classification"
STORES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Plan = Callable[[Namespace, int, torch.device], Run]
Load = Callable[[Run, Namespace], ClassData | MultiLabel]
Evaluate = Callable[[Run, Namespace, torch.device], Measurement]
Processes = Literal["many", "one", "many on GPUs"]


def classification_parser(name: str, description: str | None, precision: str = "fp32") -> CommandParser:
    """Return the parser of a command, with the options of all classification benchmarks; `precision` is a default."""
    p = CommandParser(f"transfer/{name}.py", description, RECIPES)
    add_options(p)
    p.add_argument(
        "--data", type=str | list[str] | None, default="fashion",
        help="training images: a folder of class folders, a manifest of `path<TAB>label` lines, fashion:train, or a "
        "list [A, B] of these; or a folder with train/ and val/ (ImageNet) or `fashion`, which imply --test",
    )  # fmt: skip
    p.add_argument("--test", type=str | None, help="test images, as --data; kNN: the same as --data leaves one out")
    p.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    p.add_argument("--classes", type=str | None, help="file with one class name per line that fixes the class map")
    p.add_argument("--val-fraction", type=float | None, help="in place of --test: test on this part of --data")
    p.add_argument("--split-seed", type=int, default=0, help="of the choice of that part")
    p.add_argument("--data-name", help="of your own data in records and tables; default: that of its folder")
    p.add_argument("--allow-overlap", action="store_true", help="accept test images that are training images")
    p.add_class_arguments(LabelConfig, "labels")
    p.add_argument("--size", type=int | None, help="side of the view in pixels; default: of pre-training, else 224")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--workers", type=int | None, help="loader processes")
    p.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default=precision, help="of the backbone's arithmetic"
    )
    p.add_argument("--store", choices=list(STORES), default="fp32", help="precision in which features are kept")
    p.add_argument("--cache", type=Path | None, default=Path("runs/features"), help="folder of features; null: none")
    p.add_argument("--pictures", type=bool, default=True, help="draw pictures of the first seed into its run folder")
    return p


def evaluate_seeds(
    options: Namespace, plan: Plan, load: Load, evaluate: Evaluate, processes: Processes = "many"
) -> list[Record]:
    """Measure all seeds, write the records, print the result and return the records.

    Args:
        options: of the command.
        plan: returns what is measured for a seed; computes nothing.
        load: reads the lists of images, for the check before the first run.
        evaluate: measures a run.
        processes: with how many processes the benchmark can run.

    Raises:
        ValueError: --data is missing, or there are too many processes.
    """
    require_data(options)
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


def require_data(options: Namespace) -> None:
    """Raise a ValueError where --data is missing: recipes do not know the folder of ImageNet or VOC."""
    if options.data is None:
        name = options.recipe.stem if options.recipe else ""
        needs = f"{VOC}FOLDER, VOCdevkit's VOC2007" if name.startswith("voc07") else "a folder of training images"
        needs = "ImageNet's folder with train/ and val/" if name.startswith("imagenet") else needs
        raise ValueError(f"--data is missing: {f'recipe {name} needs' if name else 'name'} {needs}")


def base_config(options: Namespace, backbone: Backbone, device: torch.device) -> tuple[dict[str, Any], str]:
    """Return the options that every benchmark's metrics depend on, and the end of its title.

    Returns:
        data, test, size (pixels) and precision, and labels unless all are used; their description.

    Raises:
        ValueError: the size is not a positive number, --data names no test images, or there is no list of labels.
    """
    size = int(backbone.meta.get("image_size", 224)) if options.size is None else options.size
    if size < 1:
        raise ValueError(f"--size {size}: must be a positive number of pixels")
    train, test = source_names(options)
    precision = str(autocast_dtype(options.precision, device, size) or torch.float32)
    labels, labels_title = describe_labels(options)
    config = {"data": train, "test": test, "size": size, "precision": precision}
    title = (
        f", {labels_title}" * bool(labels_title) + f"; train {train}, test {test}; pooled features, centre view of "
        f"{size} px in the test, {precision.removeprefix('torch.')}"
    )
    return config | ({"labels": labels} if labels_title else {}), title


def describe_labels(options: Namespace) -> tuple[dict[str, Any], str]:
    """Return the options of the labels, and their part of a title, which is empty where all labels are used.

    Of a list they are its name, hash and number of images, wherever the file is.

    Raises:
        ValueError: there is no such list.
    """
    labels: dict[str, Any] = options.labels.as_dict()
    if labels == asdict(LabelConfig()):
        return labels, ""
    if labels["list"] is None:
        seed = f" (seed {labels['seed']})" if labels["seed"] else ""
        return labels, f"{labels['ratio']:.3g} of the labels{seed}"
    path = Path(labels["list"])
    if not path.is_file():
        raise ValueError(f"--labels.list {path}: no such file; it names one image per line (or use --labels.ratio)")
    images = sum(bool(line.strip()) for line in text_lines(path))
    labels |= {"list": path.name, "list_sha256": sha256(path), "images": images}
    return labels, f"labels of {path.name} ({images} images)"


def feature_cache(run: Run, options: Namespace, device: torch.device) -> FeatureCache:
    """Return the feature extraction that the options ask for."""
    size = run.config["size"]
    return FeatureCache(
        size, device, autocast_dtype(options.precision, device, size), STORES[options.store], options.cache,
        options.workers,
    )  # fmt: skip


def run_folder(run: Run, name: str) -> Path:
    """Return the folder of a run: of its task, then `name` and a hash of the config, then the seed."""
    return run.folder.parent / f"{name}-{run.config_hash[:6]}" / run.folder.name
