"""Options of the commands linear, knn, finetune and svm, and the mistakes in them; without torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import Namespace

from common.cli import CommandParser
from common.files import sha256, text_lines
from common.labels import LabelConfig
from common.surroundings import DEVICES, WEIGHTS
from transfer.classification.data import VOC, source_names
from transfer.classification.schedules import CACHED, CropConfig, HeadOptim, TuneOptim
from transfer.options import add_options, require_checkpoint

T = TypeVar("T")
RECIPES = Path(__file__).parents[1] / "configs" / "classification"
STORES = ("fp32", "fp16", "bf16")  # precisions in which features are kept
VIEW = 224  # side of the view in pixels, where neither --size nor the checkpoint names one
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)  # of the logistic regression
FOLDS = 3  # of the cross-validation that chooses the cost of an SVM
COSTS = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]  # of the SVMs
VOC_COSTS = [1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20))]


def classification_parser(name: str, description: str | None, precision: str = "fp32") -> CommandParser:
    """Return the parser of a command, with the options of all classification benchmarks; `precision` is a default."""
    p = CommandParser(f"transfer/{name}.py", description, RECIPES, variables=(*DEVICES, *WEIGHTS))
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
    p.add_argument("--device", default="auto", help="auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs")
    p.add_argument("--workers", type=int | None, help="loader processes")
    p.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default=precision, help="of the backbone's arithmetic"
    )
    p.add_argument("--store", choices=STORES, default="fp32", help="precision in which features are kept")
    p.add_argument("--cache", type=Path | None, default=Path("runs/features"), help="folder of features; null: none")
    p.add_argument("--pictures", type=bool, default=True, help="draw pictures of the first seed into its run folder")
    return p


def check(options: Namespace) -> None:
    """Raise a ValueError for what is wrong whatever the checkpoint holds, before torch is loaded."""
    require_checkpoint(options.ckpt)
    require_data(options)
    if options.size is not None and options.size < 1:
        raise ValueError(f"--size {options.size}: must be a positive number of pixels")
    source_names(options)
    describe_labels(options)


def resolve_linear(options: Namespace, size: int) -> tuple[dict[str, Any], str]:
    """Return the options that linear's metrics depend on, and their description, for views of `size` pixels.

    Raises:
        ValueError: an option has no meaning in the mode, or an impossible value.
    """
    if options.mode == CACHED:
        if not options.penalties or min(options.penalties) < 0:
            raise ValueError(f"--penalties {options.penalties}: one or more numbers, 0 or above")
        if options.head is not None:
            raise ValueError(f"--head {options.head}: --mode cached finds one minimum from any start; use another mode")
        chosen = f"{options.penalties[0]:g}" if len(options.penalties) == 1 else "chosen on a held-out tenth of train"
        how = f"logistic regression on centre views, L-BFGS, penalty {chosen}"
        return {"penalties": sorted(options.penalties)}, how
    optim, crop = HeadOptim(**options.optim.as_dict()), CropConfig(**options.crop.as_dict())
    crop.view(size)
    rates, decays = ("/".join(f"{value:g}" for value in values) for values in (optim.base_lr, optim.weight_decay))
    how = f"{optim.optimizer.upper()}, base lr {rates}, " + f"weight decay {decays}, " * any(optim.weight_decay)
    how += f"{optim.describe()}, {crop.describe()}, last epoch"
    if len(optim.heads) > 1:
        how += f", best of {len(optim.heads)} heads on a held-out tenth of train, fitted on 90 % of train"
    how += f", head from {options.head}" * bool(options.head)
    return {"optim": asdict(optim), "crop": asdict(crop), "head": head_hash(options.head)}, how


def resolve_tuning(options: Namespace, size: int) -> tuple[TuneOptim, CropConfig, str | None]:
    """Return schedule, views of `size` pixels and the hash of the head of fine-tuning.

    Raises:
        ValueError: an impossible value, or there is no such head.
    """
    optim, crop = TuneOptim(**options.optim.as_dict()), CropConfig(**options.crop.as_dict())
    crop.view(size)
    return optim, crop, head_hash(options.head)


def listed(values: T | list[T]) -> list[T]:
    """Return one value or several as a list."""
    return values if isinstance(values, list) else [values]


def costs_of(options: Namespace) -> list[float]:
    """Return the costs of SVMs to choose from: those given, else the task's."""
    given: list[float] | None = options.costs
    return (VOC_COSTS if options.task == "voc07-svm" else COSTS) if given is None else given


def require_data(options: Namespace) -> None:
    """Raise a ValueError where --data is missing: recipes do not know the folder of ImageNet or VOC."""
    if options.data is None:
        name = options.recipe.stem if options.recipe else ""
        needs = f"{VOC}FOLDER, VOCdevkit's VOC2007" if name.startswith("voc07") else "a folder of training images"
        needs = "ImageNet's folder with train/ and val/" if name.startswith("imagenet") else needs
        raise ValueError(f"--data is missing: {f'recipe {name} needs' if name else 'name'} {needs}")


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


def head_hash(path: Path | None) -> str | None:
    """Return the sha256 of a head's file, which identifies it in records; None without a head.

    Raises:
        ValueError: no such file.
    """
    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"--head {path}: no such file; transfer/linear.py writes a head.pth into its run folder")
    return sha256(path)
