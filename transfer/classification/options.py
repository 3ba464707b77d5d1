"""The options that linear, knn, finetune and svm share, and recipes that fill them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace

from common.files import sha256
from common.images import text_lines
from common.labels import LabelConfig
from converters import Backbone
from transfer.benchmark import Run
from transfer.classification.data import source_names
from transfer.classification.multilabel import VOC, voc_sources
from transfer.options import add_options

RECIPES = Path(__file__).parents[1] / "configs" / "classification"
STORES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def classification_parser(name: str, description: str | None) -> ArgumentParser:
    """A parser with the options of all benchmarks, of data and of features; records go to NAME.jsonl."""
    p = _Parser(prog=f"transfer/{name}.py", description=description, allow_abbrev=False)
    p.add_argument("--recipe", action="config", help=f"one of {', '.join(recipe_names())}; or a YAML file")
    add_options(p)
    p.add_argument(
        "--data", type=str | list[str] | None, default="fashion",
        help="training images: a folder of class folders, a manifest of `path<TAB>label` lines, fashion:train, or a "
        "list [A, B] of these; or a folder with train/ and val/ (ImageNet) or `fashion`, which name --test too",
    )  # fmt: skip
    p.add_argument("--test", type=str | None, help="test images, as --data; the same as --data: leave one out (kNN)")
    p.add_argument("--root", default="data", help="folder of Fashion-MNIST")
    p.add_argument("--classes", type=str | None, help="file with one class name a line that fixes the class map")
    p.add_class_arguments(LabelConfig, "labels")
    p.add_argument(
        "--size", type=int | None, help="side of the view, pixels; default: that of the pre-training, else 224"
    )
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--workers", type=int | None, help="loader processes")
    p.add_argument(
        "--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32", help="of the trunk's arithmetic"
    )
    p.add_argument("--store", choices=list(STORES), default="fp32", help="precision in which features are kept")
    p.add_argument(
        "--cache", type=Path | None, default=Path("runs/features"), help="folder of kept features; null: none"
    )
    p.add_argument(
        "--pictures", type=bool, default=True, help="draw the pictures of the first seed into its run folder"
    )
    return p


class _Parser(ArgumentParser):
    """Leaves it to `told` to say a mistake, in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = "; several values are written '[a, b]', one as '[a]'" if "Expected a <class 'list'>" in message else ""
        raise ValueError(f"{message}{hint}") from ex


def parse(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Command line -> options; `--recipe NAME` means a file of this package.

    Raises:
        ValueError: no such recipe.
    """
    resolved, waiting = [], False
    for argument in arguments:
        if waiting or argument.startswith("--recipe="):
            resolved.append(f"--recipe={_recipe_file(argument.removeprefix('--recipe='))}")
            waiting = False
        elif argument == "--recipe":
            waiting = True
        else:
            resolved.append(argument)
    if waiting:
        raise ValueError(f"--recipe: name a recipe or a file; there are {', '.join(recipe_names())}")
    resolved.sort(key=lambda argument: not argument.startswith("--recipe="))  # options win wherever they stand
    return parser.parse_args(resolved)


def require_data(options: Namespace) -> None:
    """Raises a ValueError where a recipe for data that everybody keeps elsewhere is used without --data."""
    if options.data is None:
        name = Path(str(options.recipe[-1])).stem if options.get("recipe") else "used"
        wants = f"wants {VOC}FOLDER, VOCdevkit's VOC2007" if name.startswith("voc07") else "names no training images"
        wants = "wants ImageNet's folder with train/ and val/" if name.startswith("imagenet") else wants
        raise ValueError(f"--data is missing: recipe {name} {wants}")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _recipe_file(name: str) -> Path:
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipe_names())}"
    raise ValueError(f"--recipe {name}: no such recipe or file; {hint}")


def view_size(options: Namespace, backbone: Backbone) -> int:
    """Side of the evaluation view: as asked for, else that of the pre-training, else 224.

    Raises:
        ValueError: not a positive number.
    """
    size = int(backbone.meta.get("image_size", 224)) if options.size is None else options.size
    if size < 1:
        raise ValueError(f"--size {size}: must be a positive number of pixels")
    return size


def fine_print(options: Namespace, size: int, dtype: torch.dtype | None) -> str:
    """What every protocol says at its end: data, feature layer, view, precision."""
    train, test = voc_sources(options.data) or source_names(options)
    arithmetic = str(dtype or torch.float32).removeprefix("torch.")
    return f"train {train}, test {test}; pooled features, centre view of {size} px in the test, {arithmetic}"


def label_options(options: Namespace) -> dict[str, object]:
    """The part of a record's config that says which labels were used; empty where all were."""
    labels = LabelConfig(**options.labels.as_dict())
    return {} if labels == LabelConfig() else {"labels": label_config(options)}


def label_config(options: Namespace) -> dict[str, object]:
    """The labels' options; a list by name, number of images and hash, wherever it lies.

    Raises:
        ValueError: there is no such list.
    """
    labels: dict[str, object] = options.labels.as_dict()
    if options.labels.list is None:
        return labels
    path = Path(options.labels.list)
    if not path.is_file():
        raise ValueError(f"--labels.list {path}: no such file; it names one image a line (--labels.ratio: a share)")
    images = sum(bool(line.strip()) for line in text_lines(path))
    return labels | {"list": path.name, "list_sha256": sha256(path), "images": images}


def labels_in_words(options: Namespace) -> str:
    """Which labels were used, for a protocol; empty where all were."""
    labels = LabelConfig(**options.labels.as_dict())
    if labels == LabelConfig():
        return ""
    if labels.list is not None:
        return f"labels of {Path(labels.list).name} ({label_config(options)['images']} images)"
    return f"{labels.ratio:.3g} of the labels" + f" (seed {labels.seed})" * bool(labels.seed)


def run_folder(run: Run, name: str) -> Path:
    """Folder of a run: that of its task, parted by `name` and by a hash of the options."""
    return run.folder.parent / f"{name}-{run.config_hash[:6]}" / run.folder.name
