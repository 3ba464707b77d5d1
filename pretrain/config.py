"""Every option of pre-training: one tree of frozen dataclasses, filled by a recipe and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from common.labels import LabelConfig
from common.loaders import DataConfig
from common.transforms import ViewConfig
from pretrain.unimoco import ModelConfig

RECIPES = Path(__file__).parent / "recipes"
# What may differ between a run and its continuation, because it does not change what is computed.
MAY_DIFFER = (
    *("name", "runs", "device", "resume", "data.root", "data.workers", "checkpoint"),
    *(f"monitor.{option}" for option in ("log_every", "knn_every", "bank", "k", "temperature", "plateau")),
)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule. Defaults: MoCo v2 (SGD, base learning rate 0.03 per 256 images, cosine).

    Args:
        base_lr: learning rate per 256 images; the actual one is base_lr * batch / 256.
        batch: images per step, over all devices and micro-batches.
        epochs: passes over the training images.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        schedule: "cosine" down to 0, or "step": times 0.1 at each milestone.
        milestones: epochs at which "step" lowers the rate.
        every: when the rate moves: after each "epoch", as MoCo does, or each "step".
        warmup: epochs of linear warm-up from 0, moving each step.
        accumulate: micro-batches that a device splits its share of the batch into, to save memory. The weights
            come out the same: batch-norm groups, shuffling and the queue see the whole batch. Running statistics
            of batch norm, which training does not read, weigh the micro-batches of a step slightly unequally.
        precision: "auto" (bf16 where the device is fast at it, else fp32), "fp32", "bf16" or "fp16".
        compile: compile the encoders with torch.compile (pays on GPUs).
    """

    base_lr: float = 0.03
    batch: int = 256
    epochs: float = 200
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: list[float] = field(default_factory=lambda: [120.0, 160.0])
    every: Literal["epoch", "step"] = "epoch"
    warmup: float = 0.0
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name}={getattr(self, name)}: must be 1 or more")
        if not self.epochs > 0:
            raise ValueError(f"optim.epochs={self.epochs}: must be above 0")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"optim.warmup={self.warmup}: must lie between 0 and optim.epochs={self.epochs}")
        if not self.base_lr > 0:
            raise ValueError(f"optim.base_lr={self.base_lr}: must be above 0")

    @property
    def lr(self) -> float:
        """The actual peak learning rate."""
        return self.base_lr * self.batch / 256


@dataclass(frozen=True)
class MonitorConfig:
    """What is measured on the way.

    Args:
        log_every: steps between two lines of metrics.jsonl.
        knn_every: epochs between two kNN evaluations; 0 = only before the first and after the last step.
        images: source of the held-out images that kNN classifies; default: `holdout`.
        holdout: number of labelled training images to hold out for kNN, class-balanced, where `images` is not
            given.
        bank: number of labelled training images that vote, at most. kNN uses all labels, kept or not: it only
            measures.
        k: neighbours.
        temperature: of the votes.
        plateau: steps that the loss may stay within 1 % of chance level, once the queue is full, or the
            embeddings nearly equal, before a warning.
    """

    log_every: int = 20
    knn_every: float = 1
    images: str | None = None
    holdout: int = 0
    bank: int = 50000
    k: int = 20
    temperature: float = 0.07
    plateau: int = 1000

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"monitor.log_every={self.log_every}: must be 1 or more")
        if min(self.knn_every, self.holdout) < 0 or self.k < 1:
            raise ValueError("monitor: knn_every and holdout must be 0 or more, k 1 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved.

    Args:
        last_every: steps between two writes of last.pth; 0 = at the end of every epoch.
        keep_every: epochs between two checkpoints that are kept as epoch_NNNN.pth; 0 = none.
    """

    last_every: int = 0
    keep_every: float = 0

    def __post_init__(self) -> None:
        if min(self.last_every, self.keep_every) < 0:
            raise ValueError("checkpoint.last_every and checkpoint.keep_every must be 0 or more")


@dataclass(frozen=True)
class Config:
    """UniMoCo pre-training.

    Args:
        name: of the run, its folder below `runs`; default: the recipe's name.
        runs: folder of all runs.
        seed: of initialisation, order of the images, views and shuffling.
        device: "auto", "cpu", "cuda" or "cuda:N".
        resume: "auto": go on where a run of this name stopped; "never": refuse to touch one; or a checkpoint file.
        data: images.
        labels: which images keep their label.
        views: augmentation.
        model: encoder, queue and loss.
        optim: optimiser and schedule.
        monitor: measurements on the way.
        checkpoint: when the state is saved.
    """

    name: str | None = None
    runs: str = "runs"
    seed: int = 0
    device: str = "auto"
    resume: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    labels: LabelConfig = field(default_factory=LabelConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def as_dict(self) -> dict[str, Any]:
        """Nested builtins, as YAML and checkpoints hold them."""
        plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(_builtins(dataclasses.asdict(self))))
        return plain


def settings_hash(config: Config, images: int) -> str:
    """Tells pre-trainings apart that differ in more than seed and labels: views, model, optimiser, number of images."""
    tree = config.as_dict()
    chosen: dict[str, Any] = {name: tree[name] for name in ("views", "model", "optim")} | {"images": images}
    for name in ("accumulate", "compile"):  # how it is computed, not what
        del chosen["optim"][name]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each option that differs and changes what is computed."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if name in MAY_DIFFER or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differing_keys(before, after, f"{name}.")
        else:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def parse(arguments: list[str]) -> Config:
    """Command line -> configuration. `--recipe NAME|FILE` comes first, whatever its place; then the options."""
    parser = _Parser(
        prog="pretrain/run.sh",
        description="UniMoCo pre-training on labelled and unlabelled images.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", action="config", help=f"one of {', '.join(recipe_names())}; or a YAML file")
    parser.add_class_arguments(Config, nested_key=None, as_group=False)
    values = parser.parse_args(_recipe_first(arguments, parser))
    recipe = values.pop("recipe", None)
    for group in (f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.default_factory)):
        if not isinstance(values[group], Namespace):
            parser.error(f"{group}: {values[group]}: holds options of its own, so it cannot be one value")
    try:
        config = Config(**vars(parser.instantiate(Namespace(values))))
    except ValueError as error:
        parser.error(str(error))
    if config.name is None:
        name = Path(str(recipe[0])).stem if recipe else "unnamed"
        config = dataclasses.replace(config, name=name)
    return config


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


class _Parser(ArgumentParser):
    """Says a mistake in one line, with the nearest option that exists."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(str(message).split())
        options = [option for action in self._actions for option in action.option_strings]
        known = [option for option in options if not any(other.startswith(f"{option}.") for other in options)]
        for word in _unknown_options(text):
            near = difflib.get_close_matches(word, known, n=1)
            if near:
                text += f"; did you mean {near[0]}?"
        if re.search(r"Expected a <class '(list|tuple)'>", text):
            text += "; several values are written '[a, b]', one as '[a]'"
        print(f"pretrain: error: {text}", file=sys.stderr)
        sys.exit(2)


def _unknown_options(message: str) -> list[str]:
    """The unknown options that a message of jsonargparse complains of, as they stand on a command line."""
    if "nrecognized arguments" in message:
        return [word.split("=")[0] for word in message.split() if word.startswith("--")]
    in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
    if in_group:
        return [f"--{in_group[1]}.{in_group[2]}"]
    at_top = re.search(r"Option '([\w.]+)' is not accepted", message)
    return [f"--{at_top[1]}"] if at_top else []


def _recipe_first(arguments: list[str], parser: _Parser) -> list[str]:
    recipes, others, waiting = [], [], False
    for argument in arguments:
        if waiting or argument.startswith("--recipe="):
            recipes.append(argument.removeprefix("--recipe="))
            waiting = False
        elif argument == "--recipe":
            waiting = True
        else:
            others.append(argument)
    if waiting or "" in recipes:
        parser.error(f"--recipe: name a recipe or a file; there are {', '.join(recipe_names())}")
    if len(recipes) > 1:
        parser.error(f"--recipe {' and '.join(recipes)}: give one")
    return [f"--recipe={_recipe_file(name, parser)}" for name in recipes] + others


def _recipe_file(name: str, parser: _Parser) -> Path:
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(recipe_names())}"
    return parser.error(f"--recipe {name}: no such recipe or file; {hint}")


def _builtins(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _builtins(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_builtins(item) for item in value]
    return value
