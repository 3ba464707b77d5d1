"""The options of pre-training: a tree of frozen dataclasses, filled by a recipe and the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.cli import CommandParser, flatten, nest
from common.images import DataConfig, ImageSet
from common.labels import KeptLabels, LabelConfig
from common.surroundings import DEVICES
from common.transforms import ViewConfig

Stem = Literal["imagenet", "cifar"]

CROSS_ENTROPY = "cross_entropy"  # the loss that is the supervised baseline
RECIPES = Path(__file__).parent / "recipes"
# Options, or groups, that may differ between a run and its continuation: they do not change what is computed.
MAY_DIFFER = (
    *("recipe.", "name.", "runs.", "device.", "resume.", "data.root.", "data.workers.", "checkpoint."),
    *(f"monitor.{option}." for option in ("log_every", "knn_every", "bank", "k", "temperature", "plateau")),
)
SCHEDULE = ("optim.epochs", "optim.milestones", "optim.warmup")  # may change where --resume names a file
# Old name of an option -> its name now. Command lines, recipes and checkpoints with old names still work.
RENAMED = {
    "views.grey": "views.grayscale_prob",
    "views.grey_first": "views.grayscale_first",
    "model.queue": "model.queue_size",
    "model.momentum": "model.ema_momentum",
    "optim.every": "optim.lr_update",
}


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, queue and loss. Defaults: MoCo v2 / UniMoCo.

    Args:
        arch: any ResNet of timm: resnet18 ... resnet152, wide_resnet50_2, resnext50_32x4d ...
        stem: "imagenet": 7x7 stride 2 and max-pool; "cifar": 3x3 stride 1, no pool, for images of about 32 pixels.
        head: projection head, "mlp": two layers with a ReLU between (MoCo v2); "linear": one (MoCo v1).
        dim: width of the embedding, C.
        queue_size: number of keys in the queue, K.
        ema_momentum: weight of the key encoder in its moving average, m; 1 - m is the query encoder's.
        loss: "unicon" (UniMoCo), "info_nce" (MoCo: labels unused), "supcon" (mean outside the logarithm),
            "supcon_in" (inside), or "cross_entropy": the supervised baseline, a classifier trained on the images
            that keep their label, with the same views, batches and number of steps.
        temperature: T of the loss.
        bn_groups: batch-norm groups in the global batch, on however many devices; keys are shuffled between
            them. 8 groups of 32 images are what the papers' 8 GPUs do.
        mask_same_image: leave keys of the query's own image in the queue out of the loss. "auto": when the queue
            is as long as the data set or longer.
    """

    arch: str = "resnet50"
    stem: Stem = "imagenet"
    head: Literal["mlp", "linear"] = "mlp"
    dim: int = 128
    queue_size: int = 65536
    ema_momentum: float = 0.999
    loss: Literal["unicon", "info_nce", "supcon", "supcon_in", "cross_entropy"] = "unicon"
    temperature: float = 0.2
    bn_groups: int = 8
    mask_same_image: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        for name in ("dim", "queue_size", "bn_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.ema_momentum <= 1:
            raise ValueError(f"model.ema_momentum={self.ema_momentum}: must lie between 0 and 1 (MoCo uses 0.999)")
        if not self.temperature > 0:
            raise ValueError(f"model.temperature={self.temperature}: must be above 0 (UniMoCo uses 0.2)")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule. Defaults: MoCo v2 (SGD, base learning rate 0.03 per 256 images, cosine).

    Args:
        base_lr: learning rate per 256 images; the peak learning rate is base_lr * batch / 256.
        batch: images per step, over all devices and micro-batches.
        epochs: passes over the training images.
        momentum: of SGD.
        weight_decay: of SGD, on every parameter.
        schedule: "cosine" down to 0, or "step": times 0.1 at each milestone.
        milestones: epochs at which "step" lowers the learning rate.
        lr_update: when the learning rate changes: after each "epoch", as in MoCo, or each "step".
        warmup: epochs of linear warm-up from 0, in each step.
        accumulate: micro-batches that a device splits its part of the batch into, to save memory. The weights stay
            the same: batch-norm groups, shuffling and the queue see the whole batch. The running statistics of batch
            norm, which training does not read, weight the micro-batches of a step slightly unequally.
        precision: "auto" (bf16 where the device is fast at it, else fp32), "fp32", "bf16" or "fp16".
        compile: compile the encoders with torch.compile and replay them as CUDA graphs: "auto" (on a GPU), true or
            false. Where that fails, the run continues without, and says so.
    """

    base_lr: float = 0.03
    batch: int = 256
    epochs: float = 200
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: list[float] = field(default_factory=lambda: [120.0, 160.0])
    lr_update: Literal["epoch", "step"] = "epoch"
    warmup: float = 0.0
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name}={getattr(self, name)}: must be 1 or more")
        if not self.epochs > 0:
            raise ValueError(f"optim.epochs={self.epochs}: must be above 0")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"optim.warmup={self.warmup}: must lie between 0 and optim.epochs={self.epochs}: add "
                f"--optim.warmup {self.epochs / 10:g}, or more epochs"
            )
        if not self.base_lr > 0:
            raise ValueError(f"optim.base_lr={self.base_lr}: must be above 0")

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.base_lr * self.batch / 256


@dataclass(frozen=True)
class MonitorConfig:
    """Measurements during the training.

    Args:
        log_every: steps between two lines of metrics.jsonl.
        knn_every: epochs between two kNN evaluations; 0 = only before the first and after the last step.
        images: source of the held-out images that kNN classifies; default: `holdout`.
        holdout: number of labelled training images to hold out for kNN, class-balanced, unless `images` is given.
        bank: maximum number of labelled training images in the bank of kNN. It uses all labels, kept or not, because
            it only measures.
        k: number of neighbours.
        temperature: of the kNN weights.
        plateau: steps before a warning that the loss stays within 1 % of chance level although the queue is full, or
            that the embeddings stay nearly equal.
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
        resume: "auto": continue a run of this name; "never": refuse to; or a checkpoint file to start from, unless the
            run's own folder has a later one.
        data: images.
        labels: which images keep their label.
        views: augmentation.
        model: encoder, queue and loss.
        optim: optimiser and schedule.
        monitor: measurements during the training.
        checkpoint: when the state is saved.
        skip_check: do not look at every image before the training.
        recipe: file of the recipe that `--recipe` named.
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
    skip_check: bool = field(default=False, compare=False)
    recipe: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: must lie between 0 and 2**32 - 1")
        if ".." in Path(self.name or "").parts or Path(self.name or "").is_absolute():
            raise ValueError(
                f"name={self.name}: must name a folder below --runs; --runs {self.runs} names another place"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return nested builtins, as YAML and checkpoints hold them: all but `skip_check`, which decides nothing."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        del plain["skip_check"]
        return plain


def backbone_id(
    config: Config, images: ImageSet, kept: KeptLabels, epochs: float, earlier: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return METHOD-HASH12, which identifies a pre-training, `epochs` old, apart from its seeds.

    `earlier` are schedules that it was continued from, see `Training.earlier_schedules`.
    """
    labels = {"ratio": config.labels.ratio} if config.labels.list is None else {"list": kept.sha256}
    return f"{method(config)}-{_hash(_recipe(config, images, epochs, earlier) | {'labels': labels})}"


def recipe_id(config: Config, images: ImageSet, epochs: float, earlier: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a hash that pre-trainings share which differ in their labels and seeds alone."""
    return _hash(_recipe(config, images, epochs, earlier))


def _recipe(config: Config, images: ImageSet, epochs: float, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what decides the weights besides labels and seeds."""
    tree = config.as_dict()
    for option in ("accumulate", "compile"):  # they change how the weights are computed, not which
        del tree["optim"][option]
    chosen = {name: tree[name] for name in ("views", "model", "optim")}
    chosen |= {"data": images.identity, "images": len(images), "epochs": epochs}
    return chosen | ({"earlier": list(earlier)} if earlier else {})


def _hash(content: dict[str, Any]) -> str:
    with_floats = json.loads(json.dumps(content), parse_int=float)  # 200 and 200.0 are one value
    return hashlib.sha256(json.dumps(with_floats, sort_keys=True).encode()).hexdigest()[:12]


def method(config: Config) -> str:
    """Return the name of the method: the loss, or "unimoco" for its own."""
    return "unimoco" if config.model.loss == "unicon" else config.model.loss


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `key: old -> new` for each option that differs and changes what is computed."""
    old, new = flatten(old), flatten(new)
    if "auto" in (old.get("optim.compile"), new.get("optim.compile")):  # it decides for each machine
        old["optim.compile"] = new["optim.compile"] = "auto"
    differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [f"{n}: {old.get(n)} -> {new.get(n)}" for n in differ if not f"{n}.".startswith(MAY_DIFFER)]


@dataclass(frozen=True)
class PlanOptions:
    """What would be trained on; see pretrain/plan.py.

    Args:
        dry_run: print what the run would take, and train nothing. It needs neither a GPU nor the images.
        check_data: look at every image, and train nothing.
        gpus: --dry-run: number of GPUs.
        gpu: --dry-run: h200, h100, a100, v100 or 4090.
        images: --dry-run: size of the training set; default: counted, or that of the recipe's data set.
    """

    dry_run: bool = False
    check_data: bool = False
    gpus: int = 8
    gpu: str = "h100"
    images: int | None = None


def only_schedule(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether two configurations differ in nothing but the schedule, as far as it matters."""
    return all(row.partition(":")[0] in SCHEDULE for row in differing_keys(old, new))


def parse(arguments: list[str] | None) -> Config:
    """Return the configuration of a command line; see `parse_command`."""
    return parse_command(arguments)[0]


def parse_command(arguments: list[str] | None) -> tuple[Config, PlanOptions]:
    """Return the configuration of a command line; options override the recipe, wherever `--recipe` stands.

    Raises:
        ValueError: an option or a recipe is unknown, or a value impossible.
    """
    about = "UniMoCo pre-training on labelled and unlabelled images."
    variables = ("NPROC", "NNODES", "RDZV", "DRY_RUN", "UNIMOCO_ENV", *DEVICES)
    parser = CommandParser("pretrain/run.sh", about, RECIPES, RENAMED, variables)
    parser.add_class_arguments(Config, nested_key=None, as_group=False, skip={"recipe", "skip_check"})
    parser.add_argument("--skip-check", action="store_true", help="do not look at every image before the training")
    parser.add_argument("--check-data", action="store_true", help="look at every image, and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would take, and train nothing")
    parser.add_argument("--gpus", type=int, default=8, help="--dry-run: number of GPUs")
    parser.add_argument("--gpu", default="h100", help="--dry-run: h200, h100, a100, v100 or 4090")
    parser.add_argument("--images", type=int | None, help="--dry-run: training images; default: counted, or known")
    values = parser.parse(arguments)
    recipe = values.pop("recipe")
    plan = PlanOptions(*(values.pop(option.name) for option in dataclasses.fields(PlanOptions)))
    config = Config(**vars(parser.instantiate(values)))
    if recipe:
        config = dataclasses.replace(config, recipe=recipe.stem if recipe.parent == RECIPES else str(recipe))
    name = config.name or (recipe.stem if recipe else "unnamed")
    return dataclasses.replace(config, name=name), plan


def rename_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of an earlier version under the option names of today."""
    return nest({RENAMED.get(name, name): value for name, value in flatten(config).items()})
