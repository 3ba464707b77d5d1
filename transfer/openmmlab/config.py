"""Configs of mmengine: read them, scale the schedule, replace SyncBN, limit the data workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from common.distributed import ranks_on_cores
from common.surroundings import cores
from transfer.changes import flat
from transfer.openmmlab.overrides import is_count
from transfer.scaling import Schedule, comparison, for_devices

# Variables of a config file whose values were copied to where they are used: changing them later has no effect.
SHORTHANDS = (
    "norm_cfg", "train_pipeline", "test_pipeline", "metainfo", "crop_size", "dataset_type", "img_scale",
    "class_weight", "data_preprocessor", "optimizer",
)  # fmt: skip
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Names in `recorded` -> keys of the config, where they differ
KEYS = {"max_iters": "train_cfg.max_iters", "batch": "train_dataloader.batch_size"}
SECTIONS = (*LOADERS, "model", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks", "val_evaluator")
OWN_FACTS = {"data": "name", "data_identity": "identity", "overlap": "overlap"}  # in records -> in `own`
WARM_UPS = ("LinearLR", "ConstantLR")


def read_config(path: Path, task: str, sections: Sequence[str] = SECTIONS) -> Config:
    """Read a config file of mmengine.

    Args:
        path: of the file.
        task: as the user named it, for errors.
        sections: that it must have.

    Raises:
        ValueError: it cannot be read, or a section is missing.
    """
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        raise ValueError(f"--task {task}: not read, {type(error).__name__}: {' '.join(str(error).split())}") from error
    if absent := [name for name in sections if not cfg.get(name)]:
        raise ValueError(f"--task {task}: {', '.join(absent)} missing; bases/runtime.yaml and other tasks show how")
    for name in SHORTHANDS:
        cfg.pop(name, None)
    cfg.default_hooks.pop("visualization", None)
    return cfg


@contextmanager
def name_source(source: str) -> Iterator[None]:
    """Turn errors about missing or ill-typed parts of a config into a ValueError that names where it comes from."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"{source}: the config does not fit, {type(error).__name__}: {error}") from error


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
        if not is_count(count):
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
    warm_up = max(
        [scheduler.get("end", 0) for scheduler in cfg.param_scheduler if scheduler.type in WARM_UPS], default=0
    )
    return Schedule(batch, float(cfg.optim_wrapper.optimizer.lr), warm_up, tuple(steps), cfg.train_cfg.max_iters)


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
                scheduler[key] = max(
                    int(key == "end"), round(scheduler[key] * stretch)
                )  # mmengine refuses an empty one
        if "milestones" in scheduler:
            scheduler.milestones = [step * accumulate for step in after.steps]
        if "eta_min" in scheduler:
            scheduler.eta_min *= rate
    return comparison(before, after)


def limit_workers(cfg: Config) -> None:
    """Limit the data workers to the cores of this rank, but keep one where any are asked for."""
    own = cores() // ranks_on_cores()
    for name in LOADERS:
        cfg[name].num_workers = min(cfg[name].get("num_workers", 0), max(1, own - 1))
        cfg[name].persistent_workers = cfg[name].num_workers > 0


def replace_sync_batch_norm(cfg: Any) -> int:
    """Replace SyncBN by BN everywhere in a config; return how often."""
    count = 0
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, dict | list | tuple):
            count += replace_sync_batch_norm(value)
    if isinstance(cfg, dict) and cfg.get("type") in ("SyncBN", "MMSyncBN"):
        cfg["type"] = "BN"
        count += 1
    return count


def recorded(cfg: Config, batch: int, loader: Sequence[str] = ("sampler", "dataset")) -> dict[str, Any]:
    """Return what the metrics depend on: no absolute paths, workers or intervals.

    Args:
        cfg: resolved, its data sets not yet found.
        batch: images per optimiser step, over all processes.
        loader: what is recorded of a loader.
    """
    kept = ("model", "optim_wrapper", "param_scheduler", "val_evaluator", "scenes", "images", "identity")
    config = {name: value for name, value in cfg.to_dict().items() if name in kept}
    config["max_iters"] = cfg.train_cfg.max_iters
    for name in LOADERS[:2]:
        config[name] = {key: value for key, value in cfg[name].to_dict().items() if key in loader}
    return {**config, "batch": batch}


def own_facts(cfg: Config) -> dict[str, str]:
    """Return what a record says of a user's data set (`own` in the task); nothing of another."""
    own = cfg.get("own") or {}
    return {name: own[key] for name, key in OWN_FACTS.items() if own.get(key)}


def by_option(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of `recorded` by the keys of --cfg-options."""
    return {KEYS.get(key, key): value for key, value in flat(config).items()}
