"""Tasks: mmengine configs in transfer/configs/segmentation, brought to the backbone, the options and the processes."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from common.distributed import local_processes
from transfer.scaling import Schedule, comparison, for_devices
from transfer.segmentation import FOLDER, task_names

# Variables of a config file that have been copied to where they count: changing them later would change nothing.
SHORTHANDS = (
    "norm_cfg",
    "train_pipeline",
    "test_pipeline",
    "metainfo",
    "crop_size",
    "dataset_type",
    "img_scale",
    "class_weight",
    "data_preprocessor",
    "optimizer",
)
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# What running a user's file can raise, without errors of our own code being taken for it
CONFIG_ERRORS = (
    SyntaxError, OSError, ImportError, NameError, ValueError, TypeError, AttributeError, LookupError, AssertionError,
    RuntimeError,
)  # fmt: skip
AUTOCAST = {"AmpOptimWrapper": "float16 autocast", "CpuAmpOptimWrapper": "bfloat16 autocast"}
SECTIONS = (*LOADERS, "model", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks", "val_evaluator")


def read(task: str) -> Config:
    """Read a task by name, or a config of the user's own by path.

    Raises:
        ValueError: there is none of that name.
    """
    path = Path(task) if task.endswith(".py") else FOLDER / f"{task}.py"
    if not path.is_file():
        near = difflib.get_close_matches(task, task_names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--task {task}: there is none{hint} (one of {', '.join(task_names())}, or a config file)")
    try:
        cfg = Config.fromfile(path)
    except CONFIG_ERRORS as error:
        raise ValueError(f"--task {task}: not read, {type(error).__name__}: {error}") from error
    if absent := [name for name in SECTIONS if not cfg.get(name)]:
        raise ValueError(f"--task {task}: {', '.join(absent)} missing; bases/runtime.py and other tasks show how")
    if not cfg.get("scenes") and not cfg.get("data_root"):
        raise ValueError(f"--task {task}: data_root is missing, the folder of its images below --data-root")
    for name in SHORTHANDS:
        cfg.pop(name, None)
    # What a config of mmseg's own brings along, and this suite does in its way.
    evaluator = cfg.val_evaluator[0] if isinstance(cfg.val_evaluator, list | tuple) else cfg.val_evaluator
    cfg.val_evaluator = cfg.test_evaluator = {**evaluator, "type": "ClassIoU"}
    cfg.default_hooks.pop("visualization", None)
    return cfg


def datasets(loader: Any) -> Iterator[Any]:
    """Yield the data sets of a loader's config, those inside wrappers such as ConcatDataset."""
    inner = [loader.dataset]
    while inner:
        dataset = inner.pop(0)
        wrapped = dataset.get("datasets", [dataset["dataset"]] if "dataset" in dataset else [])
        inner += wrapped
        if not wrapped:
            yield dataset


def reference_processes(cfg: Config) -> int:
    """Return how many processes share the batch that a config's schedule is for.

    Raises:
        ValueError: the config does not say so.
    """
    if "reference_processes" in cfg:
        count = cfg.reference_processes
        if not whole(count):
            raise ValueError(f"reference_processes={count!r}: must be a whole number, at least 1")
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


def whole(value: Any) -> bool:
    """Return whether a setting is a whole number, at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def schedule_of(cfg: Config) -> Schedule:
    """Return the schedule that a task's config states: of all its processes together, without accumulation."""
    steps = [step for scheduler in cfg.param_scheduler for step in scheduler.get("milestones", ())]
    batch = cfg.train_dataloader.batch_size * reference_processes(cfg)
    return Schedule(batch, float(cfg.optim_wrapper.optimizer.lr), 0, tuple(steps), cfg.train_cfg.max_iters)


def step_batch(cfg: Config, processes: int) -> int:
    """Return the images of an optimiser step over all processes."""
    accumulate = cfg.optim_wrapper.get("accumulative_counts", 1)
    return int(cfg.train_dataloader.batch_size * processes * accumulate)


def rescale(cfg: Config, processes: int, batch: int | None, accumulate: int, scale: bool) -> str:
    """Bring a config to another number of processes; return what changed, for the screen.

    Args:
        cfg: as published.
        processes: number there are.
        batch: images of an optimiser step over all processes; None gives each as many as published.
        accumulate: mmengine's iterations to an optimiser step.
        scale: whether the schedule follows the processes; else it is kept, its batch spread over them.

    Raises:
        ValueError: a batch that cannot be shared evenly, or one beside --no-scale.
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


def mixed_precision(cfg: Config, cuda: bool) -> None:
    """Train under autocast: float16 on a GPU, with its loss scaled, bfloat16 on the CPU. Evaluation is in float32."""
    cfg.optim_wrapper.type = "AmpOptimWrapper" if cuda else "CpuAmpOptimWrapper"


def limit_workers(cfg: Config) -> None:
    """Start no more data workers than there are cores to run them, and one where any are asked for."""
    cores = len(os.sched_getaffinity(0)) // local_processes()
    for name in LOADERS:
        cfg[name].num_workers = min(cfg[name].get("num_workers", 0), max(1, cores - 1))
        cfg[name].persistent_workers = cfg[name].num_workers > 0


def plain_batch_norm(cfg: Any) -> int:
    """Write BN for SyncBN everywhere in a config; return how often."""
    count = 0
    for value in cfg.values() if isinstance(cfg, dict) else cfg:
        if isinstance(value, dict | list | tuple):
            count += plain_batch_norm(value)
    if isinstance(cfg, dict) and cfg.get("type") == "SyncBN":
        cfg["type"] = "BN"
        count += 1
    return count


def figures_depend_on(cfg: Config, batch: int) -> dict[str, Any]:
    """Return what of a config can change the figures: no absolute paths, workers or intervals.

    Args:
        cfg: a config as it is run, its data sets not yet found.
        batch: images of an optimiser step, over all processes.
    """
    kept = ("model", "optim_wrapper", "param_scheduler", "val_evaluator", "scenes", "images")
    told = {name: value for name, value in cfg.to_dict().items() if name in kept}
    told["max_iters"] = cfg.train_cfg.max_iters
    for name in LOADERS[:2]:
        told[name] = {key: value for key, value in cfg[name].to_dict().items() if key in ("sampler", "dataset")}
    return {**told, "batch": batch}


def protocol(cfg: Config, batch: int, own_statistics: bool = False, changes: Sequence[str] = ()) -> str:
    """Return the settings in a line of words; what is not as usual stands at its end.

    Args:
        cfg: as it is run.
        batch: images of an optimiser step, over all processes.
        own_statistics: whether batch norm has its own in each of several processes.
        changes: settings that --cfg-options have changed.
    """
    wrapper, optimizer = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    crop = "x".join(map(str, cfg.model.data_preprocessor.size))
    schedule = "/".join(scheduler.type for scheduler in cfg.param_scheduler)
    accumulate = wrapper.get("accumulative_counts", 1)
    unusual = [AUTOCAST[wrapper.type]] if wrapper.type in AUTOCAST else []
    unusual += [f"gradients of {accumulate} batches added up"] if accumulate > 1 else []
    unusual += ["batch norm of each process"] if own_statistics else []
    line = (
        f"{cfg.model.decode_head.type}, {cfg.train_cfg.max_iters // accumulate} iterations of {batch}, "
        f"crop {crop}, {optimizer.type} lr {optimizer.lr:g} wd {optimizer.get('weight_decay', 0):g} {schedule}, "
        f"{cfg.model.test_cfg.mode} image, single scale"
    )
    return ", ".join([line, *unusual]) + ("; changed: " + " ".join(changes) if changes else "")
