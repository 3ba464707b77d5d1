"""Resolve a task: the mmengine config of one run from the config file, the backbone, the processes and the options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace
from mmengine.config import Config

from common.distributed import local_processes
from common.surroundings import cores
from converters import Backbone
from transfer.changes import changed, flat
from transfer.scaling import Schedule, comparison, for_devices
from transfer.segmentation import overrides
from transfer.segmentation.title import compose_title
from transfer.segmentation.weights import SegmentorBackbone
from transfer.tasks import SEGMENTATION

# Variables of a config file whose values were copied to where they are used: changing them later has no effect.
SHORTHANDS = (
    "norm_cfg", "train_pipeline", "test_pipeline", "metainfo", "crop_size", "dataset_type", "img_scale",
    "class_weight", "data_preprocessor", "optimizer",
)  # fmt: skip
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Names in `recorded` -> keys of the config, where they differ
KEYS = {"max_iters": "train_cfg.max_iters", "batch": "train_dataloader.batch_size"}
SECTIONS = (*LOADERS, "model", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks", "val_evaluator")


@dataclass(frozen=True)
class Resolved:
    """A task resolved for a backbone, the options and the processes.

    Attributes:
        cfg: mmengine's config, its data not yet found.
        weights: the backbone in mmseg's format.
        batch: images per optimiser step, over all processes.
        changes: what was changed, for the screen.
        config: what the metrics depend on, for the record.
        title: the settings in words, for the record.
    """

    cfg: Config
    weights: SegmentorBackbone
    batch: int
    changes: tuple[str, ...]
    config: dict[str, Any]
    title: str


def resolve(options: Namespace, backbone: Backbone, kind: str, processes: int) -> Resolved:
    """Resolve a task; --cfg-options are applied last.

    Args:
        options: of the command.
        backbone: what is measured; its network replaces the task's.
        kind: "cuda" or "cpu".
        processes: how many train together.

    Raises:
        ValueError: no such task, a wrong option, or a model that cannot hold the backbone.
    """
    cfg, weights = read_task(options.task), SegmentorBackbone.of(backbone)
    with _name_source(f"--task {options.task}"):
        weights.fit(cfg)
        overrides.check(cfg)
        changes = [rescale(cfg, processes, options.batch, options.accumulate, not options.no_scale)]
    own_statistics = processes > 1 and kind == "cpu"
    if processes == 1 or own_statistics:
        count = replace_sync_batch_norm(cfg.model)
        reason = "it needs a GPU; each process has its own statistics" if own_statistics else "one process"
        changes.append(f"BN replaces SyncBN ({count} settings): {reason}")
    if options.amp:  # evaluation stays in float32
        cfg.optim_wrapper.type = "AmpOptimWrapper" if kind == "cuda" else "CpuAmpOptimWrapper"
    limit_workers(cfg)
    before = recorded(cfg, step_batch(cfg, processes))
    overrides.apply(cfg, options.cfg_options)
    with _name_source(f"--cfg-options {' '.join(options.cfg_options)}"):
        overrides.check(cfg)
        weights.check(cfg)
        batch = step_batch(cfg, processes)
        config = recorded(cfg, batch)
        title = compose_title(cfg, batch, own_statistics, changed(by_option(before), by_option(config)))
    return Resolved(cfg, weights, batch, tuple(changes), config, title)


@contextmanager
def _name_source(source: str) -> Iterator[None]:
    """Turn errors about missing or ill-typed parts of a config into a ValueError that names where it comes from."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{source}: the config does not fit, {type(error).__name__}: {error}") from error


def read_task(task: str) -> Config:
    """Read a task by name, or a user's config by path.

    Raises:
        ValueError: no such task, or a file that is no complete config.
    """
    path = SEGMENTATION.find(task)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise ValueError(f"--task {task}: not read, {type(error).__name__}: {' '.join(str(error).split())}") from error
    if absent := [name for name in SECTIONS if not cfg.get(name)]:
        raise ValueError(f"--task {task}: {', '.join(absent)} missing; bases/runtime.yaml and other tasks show how")
    if not cfg.get("scenes") and not cfg.get("data_root"):
        raise ValueError(f"--task {task}: data_root is missing, the folder of its images below --data-root")
    for name in SHORTHANDS:
        cfg.pop(name, None)
    # mmseg's own configs hold these too; here they are always this project's.
    evaluator = cfg.val_evaluator[0] if isinstance(cfg.val_evaluator, list | tuple) else cfg.val_evaluator
    cfg.val_evaluator = cfg.test_evaluator = {**evaluator, "type": "ClassIoU"}
    cfg.default_hooks.pop("visualization", None)
    cfg.setdefault("absent_classes", None)  # so that --cfg-options can name classes that no mask shows
    return cfg


def datasets(loader: Any) -> Iterator[Any]:
    """Yield the data sets of a loader's config; of wrappers such as ConcatDataset those inside."""
    inner = [loader.dataset]
    while inner:
        dataset = inner.pop(0)
        wrapped = dataset.get("datasets", [dataset["dataset"]] if "dataset" in dataset else [])
        inner += wrapped
        if not wrapped:
            yield dataset


def reference_processes(cfg: Config) -> int:
    """Return the number of processes that a config's schedule is for.

    Raises:
        ValueError: the config does not state it.
    """
    if "reference_processes" in cfg:
        count = cfg.reference_processes
        if not overrides.is_count(count):
            raise ValueError(f"reference_processes={count!r}: must be an integer, at least 1")
        return int(count)
    each, base = cfg.train_dataloader.batch_size, cfg.get("auto_scale_lr", {}).get("base_batch_size")
    if base is None:
        raise ValueError(
            f"{cfg.filename}: add reference_processes = N, the number of processes, with {each} images each, that its "
            "learning rate and iterations are for"
        )
    if base % each:
        raise ValueError(f"{cfg.filename}: auto_scale_lr.base_batch_size={base} is no multiple of batch_size={each}")
    return int(base // each)


def schedule_of(cfg: Config) -> Schedule:
    """Return the schedule of a task's config, over all its processes and without gradient accumulation."""
    steps = [step for scheduler in cfg.param_scheduler for step in scheduler.get("milestones", ())]
    batch = cfg.train_dataloader.batch_size * reference_processes(cfg)
    return Schedule(batch, float(cfg.optim_wrapper.optimizer.lr), 0, tuple(steps), cfg.train_cfg.max_iters)


def step_batch(cfg: Config, processes: int) -> int:
    """Return the number of images per optimiser step over all processes."""
    accumulate = cfg.optim_wrapper.get("accumulative_counts", 1)
    return int(cfg.train_dataloader.batch_size * processes * accumulate)


def rescale(cfg: Config, processes: int, batch: int | None, accumulate: int, scale: bool) -> str:
    """Scale a config to a number of processes; return a table of what changed.

    Args:
        cfg: as published.
        processes: how many train together.
        batch: images per optimiser step over all processes; None: per process as many as published.
        accumulate: mmengine's iterations per optimiser step.
        scale: scale the schedule; else it is kept, and its batch is split among the processes.

    Raises:
        ValueError: a batch that the processes cannot share evenly, or --batch with --no-scale.
    """
    if accumulate < 1:
        raise ValueError(f"--accumulate {accumulate}: must be at least 1")
    if batch is not None and not scale:
        raise ValueError("--batch changes the schedule and --no-scale keeps it: leave one of them out")
    before = schedule_of(cfg)
    wanted = batch if scale else before.batch
    after = for_devices(before, reference_processes(cfg), processes * accumulate, wanted)
    cfg.train_dataloader.batch_size = after.batch // (processes * accumulate)
    rate, stretch = after.lr / before.lr, after.iterations * accumulate / before.iterations
    cfg.optim_wrapper.optimizer.lr = after.lr
    cfg.optim_wrapper.accumulative_counts = accumulate
    cfg.train_cfg.max_iters = after.iterations * accumulate
    cfg.train_cfg.val_interval = max(1, round(cfg.train_cfg.val_interval * stretch))
    cfg.default_hooks.checkpoint.interval = max(1, round(cfg.default_hooks.checkpoint.interval * stretch))
    for scheduler in cfg.param_scheduler:
        for key in ("begin", "end"):
            if key in scheduler:
                scheduler[key] = round(scheduler[key] * stretch)
        if "milestones" in scheduler:
            scheduler.milestones = [step * accumulate for step in after.steps]
        if "eta_min" in scheduler:
            scheduler.eta_min *= rate
    return comparison(before, after)


def limit_workers(cfg: Config) -> None:
    """Limit the data workers to the cores of this process, but keep one where any are asked for."""
    own = cores() // local_processes()
    for name in LOADERS:
        cfg[name].num_workers = min(cfg[name].get("num_workers", 0), max(1, own - 1))
        cfg[name].persistent_workers = cfg[name].num_workers > 0


def replace_sync_batch_norm(cfg: Any) -> int:
    """Replace SyncBN by BN everywhere in a config; return how often."""
    count = 0
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, dict | list | tuple):
            count += replace_sync_batch_norm(value)
    if isinstance(cfg, dict) and cfg.get("type") == "SyncBN":
        cfg["type"] = "BN"
        count += 1
    return count


def recorded(cfg: Config, batch: int) -> dict[str, Any]:
    """Return what the metrics depend on: no absolute paths, workers or intervals.

    Args:
        cfg: resolved, its data sets not yet found.
        batch: images per optimiser step, over all processes.
    """
    kept = ("model", "optim_wrapper", "param_scheduler", "val_evaluator", "scenes", "images")
    config = {name: value for name, value in cfg.to_dict().items() if name in kept}
    config["max_iters"] = cfg.train_cfg.max_iters
    for name in LOADERS[:2]:
        config[name] = {key: value for key, value in cfg[name].to_dict().items() if key in ("sampler", "dataset")}
    return {**config, "batch": batch}


def by_option(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of `recorded` by the keys of --cfg-options."""
    return {KEYS.get(key, key): value for key, value in flat(config).items()}
